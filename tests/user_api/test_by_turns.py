"""The tests of one component again, on two processes over one database that answer by turns.

Whatever a call does, the next one, which another process answers, knows of it.
"""

from __future__ import annotations

from twisted.trial.runner import TestLoader
from twisted.trial.unittest import SynchronousTestCase, TestSuite

from tests.user_api import (
    test_accounts,
    test_data,
    test_keys,
    test_keys_backup,
    test_keys_cross_signing,
    test_keys_one_time,
    test_keys_to_device,
    test_remote_keys,
    test_remote_lists,
    test_tokens,
    test_uia_sessions,
    test_unread,
)
from tests.user_api.harness import UsersCase
from tests.user_api.keys_support import KeysCase
from tests.user_api.processes import KeysByTurns, UsersByTurns

OF_ONE = {
    "what one process remembers of its own": {
        "test_a_known_token_asks_no_database",
        "test_where_nothing_changed_nothing_is_read",
        "test_counts_that_did_not_change_are_not_read",
        "test_an_empty_inbox_is_not_read",
    },
    "what one process counts of its own, so that of several each may go as far": {
        "test_an_inbox_keeps_the_newest",
        "test_beyond_the_limit_those_go_that_expire_first",
        "test_those_who_wait_for_a_turn_wait_as_long_as_their_client",
    },
    "what clients of one process share; of several each may ask": {
        "test_clients_that_ask_at_the_same_time_share_an_answer",
        "test_but_no_longer_than_their_own_time",
        "test_rooms_end_with_the_newest_profile",
    },
    "processes that the test makes, or a database of its own": {
        "test_a_process_among_others_remembers_nothing",
        "test_claims_of_one_commit_share_no_key",
        "test_a_restart_goes_on_with_what_is_stale",
    },
}
"""Tests that are not for several processes, by what they are about."""

MODULES = (
    test_accounts,
    test_data,
    test_keys,
    test_keys_backup,
    test_keys_cross_signing,
    test_keys_one_time,
    test_keys_to_device,
    test_remote_keys,
    test_remote_lists,
    test_tokens,
    test_uia_sessions,
    test_unread,
)


def cases() -> dict[str, type[SynchronousTestCase]]:
    """A class for each of the modules' classes of tests."""
    made: dict[str, type[SynchronousTestCase]] = {}
    for module in MODULES:
        for name, case in vars(module).items():
            if not isinstance(case, type) or case.__module__ != module.__name__:
                continue
            turns = UsersByTurns if issubclass(case, UsersCase) else KeysByTurns if issubclass(case, KeysCase) else None
            if turns is not None:
                title = f"{module.__name__.rpartition('.test_')[2]}_{name}"
                made[title] = type(title, (turns, case), {"__module__": __name__, "__doc__": case.__doc__})
    return made


CASES = cases()
globals().update(CASES)


def test_suite() -> TestSuite:
    """What trial runs of this module: all tests of the classes but those that are left out."""
    left_out = set[str]().union(*OF_ONE.values())
    suite = TestSuite()
    for case in CASES.values():
        for name in TestLoader().getTestCaseNames(case):  # type: ignore[no-untyped-call]
            if f"test{name}" not in left_out:
                suite.addTest(case(f"test{name}"))
    return suite

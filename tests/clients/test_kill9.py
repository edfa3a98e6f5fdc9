"""Twenty seeds of :mod:`tests.clients.kill9`, which runs any number of them from the command line."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from twisted.trial.unittest import SynchronousTestCase

from bench.http import Connection
from bench.matrix import Account
from tests.clients.kill9 import Courier, Sender, Watcher, check_errands, check_history, check_watcher, story
from tests.clients.stage import Stage

ROOM = "!room:localhost"
HISTORY = (("$1", "@alice:localhost m0"), ("$2", "@alice:localhost m1"), ("$3", "@alice:localhost m2"))


def refused(check: Callable[[], None]) -> bool:
    """Whether a check raises."""
    try:
        check()
    except AssertionError:
        return True
    return False


SEEDS = range(1, 21)


class Kill9Tests(Stage):
    """Two kills each, at moments that the seed decides; a test for each of `SEEDS`."""

    async def held(self, seed: int) -> None:
        """Play a seed; what it saw is printed."""
        print(await story(self.server, seed))


def _test_of(seed: int) -> Callable[[Kill9Tests], None]:
    def test(self: Kill9Tests) -> None:
        self.play(self.held(seed))

    test.__doc__ = f"Seed {seed}."
    return test


for _seed in SEEDS:
    setattr(Kill9Tests, f"test_seed_{_seed}", _test_of(_seed))


class CheckTests(SynchronousTestCase):
    """The checks notice what a crash could do to a history."""

    def setUp(self) -> None:
        """Alice sent three messages and three errands, and Bob watched."""
        alice = Account(Connection("127.0.0.1", 0), "@alice:localhost", "")
        bob = Account(Connection("127.0.0.1", 0), "@bob:localhost", "")
        self.sender = Sender(alice, ROOM, [(text, event_id) for event_id, text in HISTORY])
        self.courier = Courier(alice, ["@bob:localhost"], [text for _, text in HISTORY])
        self.watcher = Watcher(bob, [ROOM])

    def test_everything_once_in_order(self) -> None:
        """What was answered is what is there."""
        self.watcher.events[ROOM] = ["$1", "$2", "$3"]
        self.watcher.errands = [text for _, text in HISTORY]
        check_history(ROOM, HISTORY, [self.sender])
        check_watcher(self.watcher, ROOM, HISTORY)
        check_errands(self.watcher, [self.courier], False)

    def test_history_that_differs(self) -> None:
        """An event lost at either end or between, stored twice, moved, or kept under another id."""
        first, second, third = HISTORY
        twice = ("$4", third[1])
        wrong = ((second, third), (first, third), (first, second), (*HISTORY, twice), (second, first, third))
        for events in (*wrong, (("$9", first[1]), second, third)):
            assert refused(partial(check_history, ROOM, events, [self.sender])), events

    def test_sync_that_differs(self) -> None:
        """An event skipped at either end or between, repeated, or shown in another order."""
        for seen in (["$2", "$3"], ["$1", "$3"], ["$1", "$2"], ["$1", "$2", "$2", "$3"], ["$2", "$1", "$3"]):
            self.watcher.events[ROOM] = seen
            assert refused(partial(check_watcher, self.watcher, ROOM, HISTORY)), seen

    def test_errands_that_differ(self) -> None:
        """A to-device message lost or repeated."""
        first, second, third = (text for _, text in HISTORY)
        for arrived in ([second, third], [first, third], [first, second], [first, first, second, third]):
            self.watcher.errands = arrived
            assert refused(partial(check_errands, self.watcher, [self.courier], False)), arrived
        self.watcher.errands = [first, first, second, third]
        check_errands(self.watcher, [self.courier], True)

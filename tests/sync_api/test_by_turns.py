"""What holds for one sync process holds for two that are asked by turns."""

from __future__ import annotations

from random import Random
from types import ModuleType
from typing import Any

from tests.sync_api import (
    test_filtering,
    test_histories,
    test_memberships,
    test_old_sync,
    test_other_servers,
    test_personal,
    test_reading,
    test_sync,
)
from tests.sync_api.scene import ROOM, B, C, SyncCase, joined
from tests.sync_api.test_filtering import LAZY, members
from tests.sync_api.test_histories import history
from tests.sync_api.turns import ByTurns, Lagging


def by_turns(module: ModuleType, **more: Any) -> dict[str, type]:
    """The test cases of a module in the shape "two processes by turns"."""
    cases = {}
    for name, case in vars(module).items():
        if isinstance(case, type) and issubclass(case, SyncCase) and case.__module__ == module.__name__:
            cases[name] = type(name, (ByTurns, case), {"__module__": __name__, **more})
    return cases


globals().update(by_turns(test_filtering))
globals().update(by_turns(test_histories, seeds=12))
globals().update(by_turns(test_memberships))
globals().update(by_turns(test_old_sync))
globals().update(by_turns(test_other_servers))
globals().update(by_turns(test_personal))
globals().update(by_turns(test_reading))
globals().update(by_turns(test_sync))


class LazyLoading(ByTurns, test_filtering.LazyLoading):
    """Each process knows only what it has sent itself: members are sent again, and none is left out."""

    def test_members_are_sent_once(self) -> None:
        since = self.sync("alice", filter=LAZY)["next_batch"]
        for sender in (B, C, C, B):
            self.rooms.message(ROOM, sender)
            answer = self.sync("alice", since, filter=LAZY)
            self.assertEqual(members(joined(answer)), [sender])
            since = answer["next_batch"]

    def test_a_gap_has_all_members_who_changed(self) -> None:
        since = self.sync("alice", filter=LAZY)["next_batch"]
        self.rooms.leave(ROOM, C)
        for n in range(12):
            self.rooms.message(ROOM, B, str(n))
        self.assertEqual(members(joined(self.sync("alice", since, filter=LAZY))), [B, C])


class LaggingHistories(Lagging, test_histories.HistoriesCase):
    """One process hears at other times than the other."""

    def test_clients_follow(self) -> None:
        for seed in range(12):
            chance = Random(seed)
            with self.subTest(seed=seed):
                self.play(history(chance, 80), chance.choice([1, 20_000, 64 << 20]), resolutions=seed % 2 == 1)

    def begin(self) -> None:
        super().begin()
        # The state of a room that is loaded meanwhile may be ahead of the answer's end, so it may tell of events before
        # the timeline does.
        self.resolved = True

    def check_all(self) -> None:
        for _ in range(2):
            for queue in self.queues.values():
                queue.hear(10_000)
            for client in self.clients:
                self.follow(client)
        super().check_all()

"""Leases: who holds what, how they change hands, and what becomes of those who are slow, stopped or dead."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.sharing.leases import Sole
from dendrite_tw.sharing.shares import ROOM_LEASES, SHARES, share_of, spread
from tests.sharing.support import Process, Shore

NAMES = [*ROOM_LEASES, "relay"]


class SharesTests(SynchronousTestCase):
    def test_rooms_are_shared_the_same_for_ever(self) -> None:
        self.assertEqual([share_of(f"!{name}:example.org") for name in "abc"], [36, 42, 47])
        self.assertEqual({share_of(f"!{number}:example.org") for number in range(2000)}, set(range(SHARES)))

    def test_spread_is_even_and_moves_little(self) -> None:
        before = spread({f"p{number}": NAMES for number in range(3)})
        after = spread({f"p{number}": NAMES for number in range(4)})
        for chosen, count in ((before, 3), (after, 4)):
            loads = [list(chosen.values()).count(f"p{number}") for number in range(count)]
            self.assertEqual(sum(loads), 65)
            self.assertLessEqual(max(loads), -(-65 // count))
        moved = [name for name in NAMES if before[name] != after[name] and after[name] != "p3"]
        self.assertLess(len(moved), 12)

    def test_nobody_is_given_what_they_do_not_want(self) -> None:
        chosen = spread({"a": ["x", "y"], "b": ["y"], "c": []})
        self.assertEqual(chosen, {"x": "a", "y": "b"})
        self.assertEqual(spread({}), {})


class SoleTests(SynchronousTestCase):
    def test_it_holds_all_while_it_runs(self) -> None:
        told: list[object] = []

        async def gained(name: str) -> None:
            told.append(name)

        async def lost(name: str, kept: bool) -> None:
            told.append((name, kept))

        leases = Sole()
        leases.want(["a", "b"], gained, lost)
        self.assertFalse(leases.holds("a"))
        self.successResultOf(Deferred.fromCoroutine(leases.start()))
        self.assertTrue(leases.holds("a") and leases.holds("b"))
        self.assertFalse(leases.holds("c"))
        self.successResultOf(Deferred.fromCoroutine(leases.stop()))
        self.assertFalse(leases.holds("a"))
        self.assertEqual(told, ["a", "b", ("a", True), ("b", True)])

    def test_one_that_ends_with_trouble_keeps_none_of_the_others_from_ending(self) -> None:
        slow: Deferred[None] = Deferred()
        ended: list[str] = []

        async def gained(name: str) -> None:
            return

        async def lost(name: str, kept: bool) -> None:
            if name == "a":
                raise ValueError("trouble")
            await slow
            ended.append(name)

        leases = Sole()
        leases.want(["a", "b"], gained, lost)
        self.successResultOf(Deferred.fromCoroutine(leases.start()))
        stopping = Deferred.fromCoroutine(leases.stop())
        self.assertNoResult(stopping)
        slow.callback(None)
        self.failureResultOf(stopping, ValueError)
        self.assertEqual(ended, ["b"])


class LeasesCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1_700_000_000)
        self.shore = Shore(self.clock)
        self.processes: list[Process] = []

    def process(self) -> Process:
        made = Process(self.shore, len(self.processes), list(NAMES))
        self.processes.append(made)
        self.successResultOf(made.start())
        return made

    def settle(self) -> None:
        """Let what is due now happen, until nothing is."""
        for _ in range(12):
            self.clock.advance(0)
            for process in self.processes:
                if not process.dead and not process.paused:
                    process.clock.run()

    def pass_time(self, seconds: float) -> None:
        for _ in range(round(seconds / 0.05)):
            self.clock.advance(0.05)
            self.settle()
            self.check()

    def check(self) -> None:
        """Nobody acts on what somebody else acts on, or has by the database's word."""
        holders = self.shore.holders()
        for process in self.processes:
            for name in process.held():
                self.assertEqual(holders.get(name), process.leases.process, name)

    def all_held(self) -> bool:
        return sorted(name for process in self.processes for name in process.held()) == sorted(NAMES)


class LeasesTests(LeasesCase):
    def test_the_first_has_all(self) -> None:
        one = self.process()
        self.settle()
        self.assertEqual(one.held(), set(NAMES))
        self.assertEqual(sorted(one.log), sorted(("gained", name) for name in NAMES))
        self.pass_time(10)
        self.assertEqual(one.held(), set(NAMES))

    def test_the_second_is_given_its_part_without_waiting(self) -> None:
        one = self.process()
        self.settle()
        two = self.process()
        self.settle()
        self.assertTrue(self.all_held())
        self.assertEqual({len(one.held()), len(two.held())}, {32, 33})
        self.assertEqual({name for what, name in one.log if what == "drained"}, two.held())

    def test_a_lease_is_kept_until_its_holder_has_finished(self) -> None:
        one = self.process()
        self.settle()
        one.slow = True
        two = self.process()
        self.pass_time(8)
        self.assertEqual(two.held(), set())
        self.assertEqual(len(one.draining), 32)
        first = next(iter(one.draining))
        one.draining.pop(first).callback(None)
        self.settle()
        self.assertEqual(two.held(), {first})
        for draining in one.draining.values():
            draining.callback(None)
        self.settle()
        self.assertTrue(self.all_held())

    def test_who_stops_gives_back_everything_at_once(self) -> None:
        one, two = self.process(), self.process()
        self.settle()
        stopped = one.stop()
        self.settle()
        self.successResultOf(stopped)
        one.kill()
        self.assertEqual(two.held(), set(NAMES))
        self.assertFalse(self.shore.alive(one.leases.process))

    def test_the_leases_of_a_dead_process_are_held_again_soon(self) -> None:
        one, two = self.process(), self.process()
        self.settle()
        one.kill()
        self.pass_time(2.0)
        self.assertLess(len(two.held()), 40)
        self.pass_time(1.6)
        self.assertEqual(two.held(), set(NAMES))

    def test_who_wakes_up_late_has_lost_all_and_begins_anew(self) -> None:
        one, two = self.process(), self.process()
        self.settle()
        held, name = one.held(), one.leases.process
        one.paused = True
        self.pass_time(4)
        self.assertEqual(two.held(), set(NAMES))
        one.paused = False
        self.assertEqual(one.held(), set())
        self.pass_time(0.1)
        self.assertEqual({name for what, name in one.log if what == "taken"}, held)
        self.assertNotEqual(one.leases.process, name)
        self.pass_time(0.1)
        self.assertTrue(self.all_held())
        self.assertIn(len(one.held()), {32, 33})

    def test_a_write_finds_out_that_the_process_was_taken_for_dead(self) -> None:
        one, two = self.process(), self.process()
        self.settle()
        one.paused = True
        self.pass_time(4)

        async def change(txn: object) -> None:
            raise AssertionError("it was let through")

        failed = one.database.write(change)
        self.failureResultOf(failed)
        self.assertEqual(one.database.fenced_writes, 1)
        self.assertTrue(any(what == "taken" for what, _ in one.log))
        self.assertEqual(two.held(), set(NAMES))

    def test_nobody_loses_anything_while_the_database_is_away_for_all(self) -> None:
        one, two = self.process(), self.process()
        self.settle()
        before = (one.held(), two.held())
        for process in self.processes:
            process.database.away = True
        self.pass_time(2)
        self.assertEqual((one.held(), two.held()), before)
        self.pass_time(2)
        self.assertEqual((one.held(), two.held()), (set(), set()))
        for process in self.processes:
            process.database.away = False
        self.pass_time(1)
        self.assertTrue(self.all_held())

    def test_what_cannot_be_taken_up_is_tried_again(self) -> None:
        one = Process(self.shore, 7, ["a", "b"])
        failing = [True]

        async def gained(name: str) -> None:
            if failing[0] and name == "a":
                raise RuntimeError("not yet")

        one.leases.want(["a"], gained, one.lost)
        self.processes.append(one)
        self.successResultOf(one.start())
        self.settle()
        self.assertEqual(one.held(), {"b"})
        self.assertGreaterEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        failing[0] = False
        self.pass_time(0.6)
        self.flushLoggedErrors(RuntimeError)
        self.assertEqual(one.held(), {"a", "b"})

    def test_who_has_its_clock_set_back_is_not_sure(self) -> None:
        one = self.process()
        self.settle()
        self.assertEqual(one.held(), set(NAMES))
        one.clock.seconds = lambda: self.clock.seconds() - 3600  # type: ignore[method-assign]
        self.assertEqual(one.held(), set())

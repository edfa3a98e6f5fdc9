"""The queues of destinations: order, limits, turns, failures, crashes, catching up."""

from __future__ import annotations

import tracemalloc
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.federation_api import post, senders
from dendrite_tw.federation_api.api import RemoteRefused, Unreachable
from dendrite_tw.federation_api.queue import Moment, Numbers, Queue, time_of
from dendrite_tw.federation_api.senders import HEARD_SECONDS, SLOW_SECONDS
from dendrite_tw.matrix.transactions import MAX_EDUS, MAX_PDUS
from dendrite_tw.world import test_world

from .sending import Sending, Sent, names


class SendersTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1_700_000_000)
        self.sending = self.make()
        self.world = self.sending.world

    def make(self, **options: int) -> Sending:
        return Sending(self.clock, **options)


class OrderTests(SendersTestCase):
    def test_an_event_goes_to_each_server_at_once(self) -> None:
        self.sending.event("$1", ["a.test", "b.test"])
        self.assertEqual(self.world.events_to("a.test"), ["$1"])
        self.assertEqual(self.world.events_to("b.test"), ["$1"])
        self.assertEqual(self.sending.count("destination_events", "a.test"), 0)
        self.assertEqual(self.sending.post.queues, {})

    def test_one_transaction_at_a_time_in_order(self) -> None:
        self.world.slow.add("a.test")
        for event_id in names(5):
            self.sending.event(event_id, ["a.test"])
        self.assertEqual(self.world.events_to("a.test"), ["$0"])
        self.world.to("a.test")[0].answer.callback(None)
        self.assertEqual([sent.pdus for sent in self.world.to("a.test")], [["$0"], ["$1", "$2", "$3", "$4"]])
        self.assertEqual(self.sending.count("destination_events", "a.test"), 4)
        self.world.to("a.test")[1].answer.callback(None)
        self.assertEqual(self.sending.count("destination_events", "a.test"), 0)

    def test_fifty_events_and_a_hundred_messages_at_most(self) -> None:
        self.world.slow.add("a.test")
        self.sending.event("$first", ["a.test"])
        self.sending.events(names(120), ["a.test"])
        for number in range(230):
            self.sending.edu("m.direct_to_device", {"n": number}, ["a.test"])
        self.world.slow.clear()
        self.world.to("a.test")[0].answer.callback(None)
        self.assertEqual(self.world.events_to("a.test"), ["$first", *names(120)])
        self.assertEqual([edu["content"]["n"] for edu in self.world.edus_to("a.test")], list(range(230)))
        self.assertEqual(max(len(sent.pdus) for sent in self.world.sent), MAX_PDUS)
        self.assertEqual(max(len(sent.edus) for sent in self.world.sent), MAX_EDUS)
        self.assertEqual(len({sent.txn_id for sent in self.world.sent}), len(self.world.sent))

    def test_what_comes_while_it_is_looked_whether_there_is_more(self) -> None:
        take, looked = self.sending.post.take, []

        async def take_slowly(queue: Queue) -> post.Batch | None:
            batch = await take(queue)
            if batch is None and not looked:
                looked.append(queue)
                self.sending.event("$2", ["a.test"])
            return batch

        self.patch(self.sending.post, "take", take_slowly)
        self.sending.edu("m.direct_to_device", {}, ["a.test"])
        self.assertEqual(self.world.events_to("a.test"), ["$2"])
        self.assertEqual(len(looked), 1)

    def test_a_batch_that_begins_while_it_is_looked_for_is_closed_before_it_is_sent(self) -> None:
        read, asked = self.sending.database.read, []

        async def read_slowly(function: Any, *args: Any) -> Any:
            asked.append(function)
            if len(asked) == 1:
                self.sending.event("$1", ["a.test"])
            return await read(function, *args)

        self.patch(self.sending.database, "read", read_slowly)
        self.world.slow.add("a.test")
        self.sending.senders.add_moment(["a.test"], "typing", Moment("m.typing", b"{}"))
        self.sending.event("$2", ["a.test"])
        self.world.slow.clear()
        self.world.to("a.test")[0].answer.callback(None)
        self.assertEqual([sent.pdus for sent in self.world.to("a.test")], [["$1"], ["$2"]])

    def test_what_was_deleted_is_not_sent_and_holds_nothing_up(self) -> None:
        self.sending.rooms.missing = {"$1", "$2"}
        self.sending.events(["$1"], ["a.test"])
        self.sending.events(["$2", "$3"], ["a.test"])
        self.assertEqual(self.world.events_to("a.test"), ["$3"])
        self.assertEqual(self.sending.post.queues, {})


class TurnTests(SendersTestCase):
    def make(self, **options: int) -> Sending:
        return super().make(turns=2, doubtful_turns=1, **options)

    def test_a_slow_server_holds_nobody_up(self) -> None:
        self.world.slow |= {"slow1.test", "slow2.test"}
        for event_id in names(3):
            self.sending.event(event_id, ["slow1.test", "slow2.test", "fast.test"])
        self.assertEqual(self.world.events_to("fast.test"), [])
        self.clock.advance(SLOW_SECONDS)
        self.assertEqual(self.world.events_to("fast.test"), names(3))
        self.assertEqual(self.sending.senders.running, 2)

    def test_dead_servers_hold_nobody_up(self) -> None:
        dead = [f"dead{number}.test" for number in range(20)]
        self.world.down |= set(dead)
        self.sending.event("$0", [*dead, "alive.test"])
        # From now on they hang instead of refusing.
        self.world.down.clear()
        self.world.slow |= set(dead)
        self.clock.advance(2)
        self.assertEqual(len([sent for sent in self.world.sent if sent.server in dead]), 1)
        self.sending.event("$1", [*dead, "alive.test"])
        self.assertEqual(self.world.events_to("alive.test"), ["$0", "$1"])

    def test_turns_go_round(self) -> None:
        self.world.slow |= {"a.test", "b.test", "c.test"}
        self.sending.event("$first", ["a.test", "b.test"])
        self.sending.events(names(200, "$c"), ["c.test"])
        self.sending.events(names(200, "$a"), ["a.test"])
        self.sending.event("$b", ["b.test"])
        order = []
        for _ in range(11):
            sent = next(sent for sent in self.world.sent if not sent.answer.called)
            order.append(sent.server[0])
            sent.answer.callback(None)
        self.assertEqual("".join(order), "abcabcacacac"[: len(order)])
        self.assertEqual(len(self.world.events_to("a.test")), 201)

    def test_stopping_waits_a_moment_for_what_is_under_way(self) -> None:
        self.world.slow.add("a.test")
        self.sending.event("$1", ["a.test"])
        stopped = Deferred.fromCoroutine(self.sending.senders.stop())
        self.assertNoResult(stopped)
        self.world.sent[0].answer.callback(None)
        self.successResultOf(stopped)
        self.assertEqual(self.sending.count("destination_events", "a.test"), 0)

    def test_stopping_does_not_wait_for_ever(self) -> None:
        self.world.slow.add("a.test")
        self.sending.event("$1", ["a.test"])
        stopped = Deferred.fromCoroutine(self.sending.senders.stop())
        self.clock.advance(5)
        self.successResultOf(stopped)
        self.assertEqual(self.sending.count("destination_events", "a.test"), 1)
        self.assertEqual(self.sending.destinations.failures("a.test"), 0)


class FailureTests(SendersTestCase):
    def test_pauses_double_and_then_it_is_given_up(self) -> None:
        attempts: list[float] = []
        begin = self.clock.seconds()

        def refuse(sent: Sent) -> None:
            attempts.append(self.clock.seconds() - begin)
            raise Unreachable("no")

        self.world.answer = refuse
        self.sending.event("$1", ["a.test"])
        self.sending.pass_time(1000)
        self.assertEqual(attempts, [0, 2, 6, 14])
        self.assertTrue(self.sending.destinations.is_given_up("a.test"))
        self.assertEqual([call for call in self.clock.getDelayedCalls() if call.active()], [])

    def test_the_same_transaction_is_repeated(self) -> None:
        self.world.answer = _failing(2)
        self.sending.event("$1", ["a.test"])
        self.sending.event("$2", ["a.test"])
        self.sending.edu("m.direct_to_device", {"n": 1}, ["a.test"])
        self.sending.pass_time(10)
        first, second, third, rest = self.world.to("a.test")
        self.assertEqual((first.txn_id, first.body), (second.txn_id, second.body))
        self.assertEqual((first.txn_id, first.body), (third.txn_id, third.body))
        self.assertEqual((first.pdus, rest.pdus, len(rest.edus)), (["$1"], ["$2"], 1))

    def test_others_are_not_concerned(self) -> None:
        self.world.down.add("a.test")
        for event_id in names(3):
            self.sending.event(event_id, ["a.test", "b.test"])
        self.assertEqual(self.world.events_to("b.test"), names(3))

    def test_who_is_heard_of_is_sent_to_at_once(self) -> None:
        self.world.down.add("a.test")
        self.sending.event("$1", ["a.test"])
        self.sending.pass_time(100)
        self.assertTrue(self.sending.destinations.is_given_up("a.test"))
        self.sending.event("$2", ["a.test"])
        self.world.down.clear()
        self.sending.pass_time(10_000, 100)
        self.assertEqual(self.world.sent, [])
        self.sending.hear_of("a.test")
        self.assertEqual(self.world.events_to("a.test"), ["$2"])

    def test_who_is_heard_of_but_not_reached_is_not_tried_each_time(self) -> None:
        attempts = []

        def refuse(sent: Sent) -> None:
            attempts.append(sent)
            raise Unreachable("no")

        self.world.answer = refuse
        self.sending.event("$1", ["a.test"])
        for _ in range(100):
            self.sending.hear_of("a.test")
            self.clock.advance(HEARD_SECONDS / 100)
        self.assertLessEqual(len(attempts), 4)

    def test_a_refused_transaction_is_not_repeated(self) -> None:
        self.world.answer = lambda sent: RemoteRefused(400, "M_BAD_JSON", "too odd") if sent.pdus == ["$1"] else None
        self.sending.event("$1", ["a.test"])
        self.sending.event("$2", ["a.test"])
        self.sending.pass_time(10)
        self.assertEqual(self.world.events_to("a.test"), ["$1", "$2"])
        self.assertEqual(self.sending.count("destination_events", "a.test"), 0)

    def test_what_breaks_is_tried_again_later(self) -> None:
        self.world.answer = _failing(1, ZeroDivisionError)
        self.sending.event("$1", ["a.test"])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.sending.pass_time(100)
        self.assertEqual(self.world.events_to("a.test"), ["$1", "$1"])
        self.assertEqual(self.sending.count("destination_events", "a.test"), 0)

    def test_an_administrator_may_have_it_tried_now(self) -> None:
        self.world.down.add("a.test")
        self.sending.event("$1", ["a.test"])
        self.sending.pass_time(100)
        self.world.down.clear()
        self.assertTrue(self.successResultOf(Deferred.fromCoroutine(self.sending.senders.retry("a.test"))))
        self.assertEqual(self.world.events_to("a.test"), ["$1"])
        self.assertFalse(self.successResultOf(Deferred.fromCoroutine(self.sending.senders.retry("a.test"))))


def _failing(times: int, error: type[Exception] | None = None):  # type: ignore[no-untyped-def]
    """Answers that fail so often, then succeed."""
    left = times

    def answer(sent: Sent) -> None:
        nonlocal left
        if left:
            left -= 1
            raise error("broken") if error else Unreachable("no")

    return answer


class CrashTests(SendersTestCase):
    def test_what_was_not_answered_is_sent_again_the_same(self) -> None:
        self.world.slow.add("a.test")
        self.sending.event("$1", ["a.test"])
        self.sending.edu("m.direct_to_device", {"n": 1}, ["a.test"])
        self.sending.event("$2", ["a.test"])
        self.world.slow.clear()
        self.clock.advance(500)
        self.sending.crash()
        first, again, rest = self.world.to("a.test")
        self.assertEqual((first.txn_id, first.body), (again.txn_id, again.body))
        self.assertEqual((rest.pdus, len(rest.edus)), (["$2"], 1))
        self.assertNotEqual(rest.txn_id, first.txn_id)
        self.assertEqual(self.sending.count("destination_edus", "a.test"), 0)

    def test_failures_are_remembered(self) -> None:
        self.world.down.add("a.test")
        self.sending.event("$1", ["a.test"])
        self.world.down.clear()
        self.sending.crash()
        self.assertEqual(self.world.sent, [])
        self.sending.pass_time(2)
        self.assertEqual(self.world.events_to("a.test"), ["$1"])

    def test_names_are_never_given_twice(self) -> None:
        for _ in range(3):
            for event_id in names(3):
                self.sending.event(event_id, ["a.test"])
            self.sending.crash()
        # The clock was set back.
        self.clock.rightNow -= 3600
        self.sending.crash()
        self.sending.event("$late", ["a.test"])
        self.assertEqual(len({sent.txn_id for sent in self.world.sent}), 10)

    def test_the_position_is_stored_with_the_rows(self) -> None:
        self.world.down.add("a.test")
        self.sending.event("$1", ["a.test"])

        async def position(txn):  # type: ignore[no-untyped-def]
            return await txn.fetch("SELECT consumer, position FROM federation_positions", ())

        self.assertEqual([tuple(row) for row in self.sending.database.prepare(position)], [("consumer", 1)])


class AwayTestCase(SendersTestCase):
    """A test with a server that is given up, and comes back."""

    def give_up(self, server: str = "a.test") -> None:
        self.world.down.add(server)
        self.sending.event("$0", [server])
        self.sending.pass_time(100)
        self.assertTrue(self.sending.destinations.is_given_up(server))

    def come_back(self, server: str = "a.test") -> None:
        self.world.down.discard(server)
        self.sending.hear_of(server)

    def prune(self) -> list[str]:
        now = int(self.clock.seconds() * 1000)
        return self.successResultOf(Deferred.fromCoroutine(self.sending.post.prune(now)))


class FarBehindTests(AwayTestCase):
    def test_only_the_newest_event_of_each_room_is_kept(self) -> None:
        self.give_up()
        for number in range(10):
            self.sending.event(f"$x{number}", ["a.test"], "!x")
            self.sending.event(f"$y{number}", ["a.test"], "!y")
        self.assertEqual(self.sending.count("destination_rooms", "a.test"), 3)
        self.assertEqual(self.sending.count("destination_events", "a.test"), 0)
        self.come_back()
        self.assertEqual(self.world.events_to("a.test"), ["$0", "$x9", "$y9"])
        self.sending.event("$next", ["a.test"])
        self.assertEqual(self.world.events_to("a.test")[3:], ["$next"])
        self.assertEqual(self.sending.post.queues, {})

    def test_it_is_told_what_is_newest_now(self) -> None:
        self.give_up()
        rooms = self.sending.rooms
        for room_id, servers, ends in (
            ("!end", ["a.test"], ["$mine!end", "$theirs"]),
            ("!older", ["a.test"], ["$theirs1", "$theirs2"]),
            ("!left", ["b.test"], ["$secret"]),
            ("!unknown", [], []),
        ):
            rooms.servers[room_id], rooms.ends[room_id] = servers, ends
            self.sending.event(f"$mine{room_id}", ["a.test"], room_id)
        self.come_back()
        self.assertEqual(
            self.world.events_to("a.test"),
            ["$0", "$mine!end", "$theirs1", "$theirs2", "$mine!left", "$mine!unknown"],
        )

    def test_many_rooms_take_several_transactions(self) -> None:
        self.give_up()
        for number in range(120):
            self.sending.event(f"$e{number}", ["a.test"], f"!r{number}")
        self.come_back()
        self.assertEqual([len(sent.pdus) for sent in self.world.to("a.test")], [50, 50, 21])
        self.assertEqual(len(set(self.world.events_to("a.test"))), 121)

    def test_events_while_it_catches_up_are_not_lost(self) -> None:
        self.give_up()
        for number in range(60):
            self.sending.event(f"$e{number}", ["a.test"], f"!r{number}")
        self.world.slow.add("a.test")
        self.come_back()
        self.sending.event("$new", ["a.test"], "!r59")
        self.sending.event("$newer", ["a.test"], "!r1")
        self.world.slow.clear()
        self.world.sent[0].answer.callback(None)
        told = self.world.events_to("a.test")
        self.assertIn("$new", told)
        self.assertNotIn("$e59", told)
        self.assertLess(told.index("$e1"), told.index("$newer"))
        self.assertFalse(self.sending.post.queues)

    def test_a_crash_while_catching_up(self) -> None:
        self.give_up()
        for number in range(60):
            self.sending.event(f"$e{number}", ["a.test"], f"!r{number}")
        self.world.slow.add("a.test")
        self.come_back()
        self.world.slow.clear()
        self.sending.crash()
        first, again, *_ = self.world.to("a.test")
        self.assertEqual((first.txn_id, first.body), (again.txn_id, again.body))
        self.assertEqual(set(self.world.events_to("a.test")), {"$0", *names(60, "$e")})

    def test_a_restart_remembers_who_is_behind(self) -> None:
        self.give_up()
        self.sending.event("$1", ["a.test"])
        self.sending.crash()
        self.sending.event("$2", ["a.test"])
        self.come_back()
        self.assertEqual(self.world.events_to("a.test"), ["$2"])

    def test_a_long_queue_is_collapsed_before_it_is_given_up(self) -> None:
        self.patch(post, "EVENTS_KEPT", 100)
        self.patch(senders, "EVENTS_KEPT", 100)
        self.world.down.add("a.test")
        for number in range(3):
            self.sending.events(names(50, f"${number}-"), ["a.test"], f"!r{number}")
        self.assertEqual(self.sending.count("destination_events", "a.test"), 0)
        self.assertEqual(self.sending.count("destination_rooms", "a.test"), 3)
        self.world.down.clear()
        self.sending.pass_time(5)
        self.assertEqual(self.world.events_to("a.test"), ["$0-49", "$1-49", "$2-49"])

    def test_who_is_gone_for_months_is_forgotten(self) -> None:
        self.give_up()
        self.sending.edu("m.direct_to_device", {"n": 1}, ["a.test"])
        self.sending.event("$alive", ["b.test"])
        self.assertEqual(self.prune(), [])
        self.clock.advance(81 * 86_400)
        self.assertEqual(self.prune(), ["a.test"])
        for table in ("destination_events", "destination_rooms", "destination_edus"):
            self.assertEqual(self.sending.count(table, "a.test"), 0)


class EduTests(AwayTestCase):
    def test_to_device_messages_wait_however_many(self) -> None:
        self.give_up()
        for number in range(150):
            self.sending.edu("m.direct_to_device", {"n": number}, ["a.test"])
        self.sending.crash()
        self.come_back()
        self.assertEqual([edu["content"]["n"] for edu in self.world.edus_to("a.test")], list(range(150)))

    def test_of_changed_devices_the_last_waits(self) -> None:
        self.world.down.add("a.test")
        for number in range(5):
            self.sending.edu("m.device_list_update", {"n": number}, ["a.test", "b.test"], "devices @u:here.test")
            self.sending.edu("m.device_list_update", {"o": number}, ["a.test"], "devices @v:here.test")
        self.assertEqual(self.sending.count("destination_edus", "a.test"), 2)
        self.assertEqual([edu["content"]["n"] for edu in self.world.edus_to("b.test")], list(range(5)))
        self.come_back()
        self.assertEqual([edu["content"] for edu in self.world.edus_to("a.test")], [{"n": 4}, {"o": 4}])

    def test_changes_in_one_parcel_collapse_too(self) -> None:
        self.give_up()
        parcel = post.Parcel()
        for number in range(3):
            parcel.add_edu(post.OutgoingEdu("m.device_list_update", b'{"n":%d}' % number, ["a.test"], "devices @u"))
        self.sending.put(parcel)
        self.come_back()
        self.assertEqual([edu["content"] for edu in self.world.edus_to("a.test")], [{"n": 2}])

    def test_receipts_replace_each_other_and_wait_a_little(self) -> None:
        for number in range(3):
            self.sending.edu("m.receipt", {"n": number}, ["a.test"], "receipt !r @u", linger=1.0)
        self.sending.edu("m.receipt", {"v": 0}, ["a.test"], "receipt !r @v", linger=1.0)
        self.assertEqual(self.world.sent, [])
        self.clock.advance(1)
        (sent,) = self.world.sent
        self.assertEqual([edu["content"] for edu in sent.edus], [{"n": 2}, {"v": 0}])

    def test_receipts_go_with_what_is_urgent(self) -> None:
        self.sending.edu("m.receipt", {"n": 1}, ["a.test"], "receipt !r @u", linger=20.0)
        self.sending.event("$1", ["a.test"])
        (sent,) = self.world.sent
        self.assertEqual((sent.pdus, len(sent.edus)), (["$1"], 1))

    def test_who_was_given_up_gets_no_receipts(self) -> None:
        self.world.down.add("a.test")
        self.sending.edu("m.receipt", {"n": 1}, ["a.test"], "receipt !r @u")
        self.assertEqual(self.sending.count("destination_edus", "a.test"), 1)
        self.give_up()
        self.assertEqual(self.sending.count("destination_edus", "a.test"), 0)
        self.sending.edu("m.receipt", {"n": 2}, ["a.test"], "receipt !r @u")
        self.assertEqual(self.sending.count("destination_edus", "a.test"), 0)

    def test_moments_go_now_or_never(self) -> None:
        typing = Moment("m.typing", b'{"typing":true}')
        self.sending.senders.add_moment(["a.test"], "typing", typing)
        self.assertEqual(self.world.edus_to("a.test"), [{"edu_type": "m.typing", "content": {"typing": True}}])
        self.world.down.add("a.test")
        self.sending.senders.add_moment(["a.test"], "typing", typing)
        self.sending.senders.add_moment(["a.test"], "typing", typing)
        self.come_back()
        self.assertEqual(len(self.world.edus_to("a.test")), 1)

    def test_moments_replace_each_other_and_are_bounded(self) -> None:
        self.world.slow.add("a.test")
        self.sending.event("$1", ["a.test"])
        for number in range(1000):
            moment = Moment("m.typing", b'{"n":%d}' % number)
            self.sending.senders.add_moment(["a.test"], f"typing {number % 300}", moment)
        self.world.slow.clear()
        self.world.sent[0].answer.callback(None)
        (sent,) = self.world.sent[1:]
        self.assertEqual([edu["content"]["n"] for edu in sent.edus], list(range(900, 1000)))

    def test_edus_that_nobody_waits_for_are_pruned(self) -> None:
        self.world.down.add("b.test")
        self.sending.edu("m.direct_to_device", {"n": 1}, ["a.test"])
        self.sending.edu("m.direct_to_device", {"n": 2}, ["b.test"])
        self.prune()

        async def contents(txn):  # type: ignore[no-untyped-def]
            return await txn.fetch("SELECT content FROM outgoing_edus", ())

        self.assertEqual([bytes(row[0]) for row in self.sending.database.prepare(contents)], [b'{"n":2}'])


class ManyTests(SendersTestCase):
    def test_a_room_of_ten_thousand_servers(self) -> None:
        servers = [f"s{number}.test" for number in range(10_000)]
        self.world.slow |= set(servers)
        self.sending.event("$warm", ["warm.test"])
        tracemalloc.start()
        try:
            self.sending.event("$1", servers)
            used, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        self.assertLess(most / 2**20, 40)
        self.assertLess(used / 2**20, 25)
        self.assertEqual(self.sending.senders.running, 96)
        self.world.slow.clear()
        for sent in list(self.world.sent):
            if not sent.answer.called and sent.server != "warm.test":
                sent.answer.callback(None)
        self.assertEqual(len(self.world.sent), 10_001)
        self.assertEqual(self.sending.post.queues, {})


class NumberTests(SynchronousTestCase):
    def test_numbers_grow_and_tell_the_time(self) -> None:
        clock = Clock()
        clock.advance(1_700_000_000)
        world = test_world(clock)
        numbers = Numbers(world.clock, world.random)
        given = [numbers.next() for _ in range(1000)]
        self.assertEqual(given, sorted(set(given)))
        self.assertEqual(time_of(given[0]), 1_700_000_000_000)
        self.assertLess(given[-1], 2**63)

    def test_the_open_batch_closes_when_it_is_full(self) -> None:
        world = test_world(Clock())
        queue, numbers = Queue("a.test"), Numbers(world.clock, world.random)
        places = [queue.place_event(numbers) for _ in range(MAX_PDUS + 1)]
        self.assertEqual(len({batch for batch, _ in places[:-1]}), 1)
        self.assertGreater(places[-1][0], places[0][0])
        first = queue.place_edu(numbers, "k")
        self.assertEqual(queue.place_edu(numbers, "k"), first)
        queue.close()
        self.assertGreater(queue.place_edu(numbers, "k")[0], first[0])

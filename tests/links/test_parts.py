"""Calls whose requests and answers are longer than the broker takes."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred

from dendrite_tw.jetstream.wire import Msg, Op
from dendrite_tw.links import answering, calling, frames
from dendrite_tw.links.errors import CallFailed, Unanswered
from dendrite_tw.matrix.errors import MatrixError
from tests.links.support import CallCase, Process


class Losing:
    """Loses messages of a kind: one of them, counted from 0, or that and all after it."""

    def __init__(self, kind: bytes, number: int, *, all_after: bool = False) -> None:
        self.seen = 0
        self._kind = kind
        self._number = number
        self._all_after = all_after

    def __call__(self, op: Op) -> bool:
        if not isinstance(op, Msg) or op.payload[:1] != self._kind:
            return False
        self.seen += 1
        return self.seen - 1 == self._number or (self._all_after and self.seen - 1 > self._number)


class PartsCase(CallCase):
    settings = {"max_payload": 4096}  # noqa: RUF012 - as in the class above

    def assert_nothing_is_left(self, *processes: Process) -> None:
        for process in (self.caller, *processes):
            calls = process.calls
            self.assertEqual((calls.asking.under_way, calls.answering.under_way), (0, 0), process.name)
            self.assertEqual((calls.budget.bytes, calls.budget.count), (0, 0), process.name)


class PartsTests(PartsCase):
    def test_long_requests_and_answers_arrive(self) -> None:
        one = self.answerer("one")
        for length, size in ((10, 100_000), (100_000, 10), (50_000, 50_000), (4096, 4096), (4000, 4090)):
            self.assertEqual(self.result(self.caller.asks.replace(bytes(length), size)), bytes(size))
            self.assertEqual(one.desk.begun.pop(), f"{length} bytes")
        self.assert_nothing_is_left(one)

    def test_nothing_is_longer_than_the_broker_takes(self) -> None:
        one = self.answerer("one")
        longest = [0]

        def measure(op: Op) -> bool:
            if isinstance(op, Msg):
                longest[0] = max(longest[0], len(op.payload))
            return False

        self.caller.lose_ops(measure)
        one.lose_ops(measure)
        self.result(self.caller.asks.replace(bytes(50_000), 50_000))
        self.assertEqual(longest, [4096])

    def test_a_long_answer_is_not_in_the_way_of_short_ones(self) -> None:
        self.answerer("one")
        order: list[str] = []

        def note(what: str, call: Any) -> None:
            Deferred.fromCoroutine(call).addCallback(lambda result: order.append(what))

        note("long", self.caller.asks.load(1_000_000))
        note("short", self.caller.asks.act("x"))
        self.broker.settle()
        self.assertEqual(order, ["short", "long"])

    def test_what_is_too_long_is_refused_at_once(self) -> None:
        self.patch(calling, "MAX_BYTES", 10_000)
        one = self.answerer("one")
        error = self.failureResultOf(self.begin(self.caller.asks.replace(bytes(10_000), 1)), MatrixError).value
        self.assertEqual((error.status, error.errcode), (413, "M_TOO_LARGE"))
        self.assertEqual(one.desk.begun, [])

    def test_an_answer_that_is_too_long_is_a_failure(self) -> None:
        self.patch(answering, "MAX_BYTES", 10_000)
        one = self.answerer("one")
        self.failureResultOf(self.begin(self.caller.asks.load(10_000)), CallFailed)
        self.assert_nothing_is_left(one)

    def test_who_has_no_room_for_another_long_request_is_asked_later(self) -> None:
        self.patch(frames, "MAX_INCOMING", 1)
        one = self.answerer("one")
        calls = [Deferred.fromCoroutine(self.caller.asks.replace(bytes(50_000), 1)) for _ in range(3)]
        self.broker.advance(1.0)
        self.assertEqual([self.successResultOf(call) for call in calls], [b"\0"] * 3)
        self.assertEqual(one.desk.begun, ["50000 bytes"] * 3)
        self.assert_nothing_is_left(one)

    def test_where_the_broker_takes_less_after_a_reconnection_less_is_sent(self) -> None:
        one = self.answerer("one")
        self.broker.bench.server.settings = type(self.broker.bench.server.settings)(max_payload=1000)
        for process in (self.caller, one):
            process.lose()
            process.connect()
        self.assertEqual(self.result(self.caller.asks.replace(bytes(3000), 3000)), bytes(3000))


class LossTests(PartsCase):
    def test_an_answer_that_is_lost_in_part_is_asked_for_again_where_that_does_no_harm(self) -> None:
        one = self.answerer("one")
        self.caller.lose_ops(Losing(frames.PART, 2))
        waiting = self.begin(self.caller.asks.load(50_000))
        self.broker.advance(0.5)
        self.assertEqual(self.successResultOf(waiting), bytes(50_000))
        self.assertEqual(one.desk.begun, ["load 50000"] * 2)
        self.assert_nothing_is_left(one)

    def test_an_action_whose_answer_is_lost_in_part_is_not_repeated(self) -> None:
        one = self.answerer("one")
        self.caller.lose_ops(Losing(frames.PART, 2))
        waiting = self.begin(self.caller.asks.replace(b"", 50_000))
        self.failureResultOf(waiting, Unanswered)
        self.assertEqual(one.desk.begun, ["0 bytes"])
        self.assert_nothing_is_left(one)

    def test_a_request_that_is_lost_in_part_was_not_carried_out_so_it_is_sent_again(self) -> None:
        one = self.answerer("one")
        one.lose_ops(Losing(frames.PART, 2))
        waiting = self.begin(self.caller.asks.replace(bytes(50_000), 1))
        self.broker.advance(0.5)
        self.assertEqual(self.successResultOf(waiting), b"\0")
        self.assertEqual(one.desk.begun, ["50000 bytes"])
        self.assert_nothing_is_left(one)

    def test_acknowledgements_that_are_lost_end_a_call_in_time(self) -> None:
        one = self.answerer("one")
        one.lose_ops(Losing(frames.MORE, 0, all_after=True))
        waiting = self.begin(self.caller.asks.replace(b"", 50_000))
        self.broker.advance(5.0)
        self.failureResultOf(waiting, Unanswered)
        self.assert_nothing_is_left(one)

    def test_who_dies_while_a_request_comes_has_not_carried_it_out(self) -> None:
        one = self.answerer("one")
        self.caller.lose_ops(Losing(frames.MORE, 3, all_after=True))
        waiting = self.begin(self.caller.asks.replace(bytes(50_000), 1))
        self.assertNoResult(waiting)
        one.lose()
        self.caller.lose_ops(lambda op: False)
        two = self.answerer("two")
        self.broker.advance(5.0)
        self.assertEqual(self.successResultOf(waiting), b"\0")
        self.assertEqual((one.desk.begun, two.desk.begun), ([], ["50000 bytes"]))
        self.assert_nothing_is_left(one, two)

    def test_who_dies_while_its_answer_comes_is_noticed(self) -> None:
        one = self.answerer("one")
        self.caller.lose_ops(lambda op: isinstance(op, Msg) and op.payload[:1] == frames.PART and self.dies(one))
        waiting = self.begin(self.caller.asks.replace(b"", 50_000))
        self.broker.advance(5.0)
        self.failureResultOf(waiting, Unanswered)
        self.assert_nothing_is_left(one)

    def dies(self, process: Process) -> bool:
        """With the second part on its way."""
        self.seen = getattr(self, "seen", 0) + 1
        if self.seen == 2:
            process.link.cut()
            process.client.disconnected("killed")
        return self.seen >= 2

    def test_a_caller_that_dies_leaves_nothing_behind(self) -> None:
        one = self.answerer("one")
        one.lose_ops(Losing(frames.PART, 3, all_after=True))
        asking = self.begin(self.caller.asks.replace(bytes(50_000), 1))
        one.lose_ops(Losing(frames.MORE, 3, all_after=True))
        answered = self.begin(self.caller.asks.load(50_000))
        self.assertEqual(one.calls.answering.under_way, 2)
        self.caller.link.cut()
        self.broker.advance(4.1)
        self.assertEqual((one.calls.answering.under_way, one.calls.budget.count), (0, 0))
        for call in (asking, answered):
            call.cancel()
            self.failureResultOf(call)

    def test_a_caller_that_goes_away_stops_an_answer_on_its_way(self) -> None:
        one = self.answerer("one")
        one.lose_ops(Losing(frames.MORE, 1, all_after=True))
        waiting = self.begin(self.caller.asks.load(50_000))
        self.assertNoResult(waiting)
        waiting.cancel()
        self.failureResultOf(waiting)
        self.broker.settle()
        self.assert_nothing_is_left(one)

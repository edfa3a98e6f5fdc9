"""Calls that take long, and processes that die, stand still or go away meanwhile."""

from __future__ import annotations

from twisted.internet.defer import CancelledError

from dendrite_tw.links import answering
from dendrite_tw.links.errors import CallFailed, Unanswered
from tests.links.support import CallCase, Process


class LongCallTests(CallCase):
    def test_a_call_may_take_long(self) -> None:
        one = self.answerer("one")
        waiting = self.begin(self.caller.asks.act("wait"))
        self.broker.advance(90.0)
        self.assertNoResult(waiting)
        one.desk.open()
        self.broker.settle()
        self.assertEqual(self.successResultOf(waiting), "one wait")

    def test_who_stands_still_does_not_take_others_for_dead(self) -> None:
        one = self.answerer("one")
        waiting = self.begin(self.caller.asks.act("wait"))
        self.broker.advance(60.0, step=15.0)
        self.assertNoResult(waiting)
        one.desk.open()
        self.broker.settle()
        self.assertEqual(self.successResultOf(waiting), "one wait")

    def test_time_passes_without_ticks_where_nothing_is_under_way(self) -> None:
        one = self.answerer("one")
        self.result(self.caller.asks.act("x"))
        self.broker.advance(1.0)
        sent = self.broker.bench.server.in_messages
        self.broker.advance(30.0)
        self.assertEqual(self.broker.bench.server.in_messages, sent)
        waiting = self.begin(self.caller.asks.act("wait"))
        for process in (one, self.caller):
            process.calls.stop()
        self.broker.advance(30.0)
        self.assertEqual(self.broker.bench.server.in_messages, sent + 1)
        self.assertNoResult(waiting)


class DeathTests(CallCase):
    def killed_in_the_middle(self, one: Process) -> None:
        self.assertEqual(one.desk.begun, ["wait"])
        one.lose()

    def test_an_action_of_a_process_that_dies_is_given_up_within_seconds(self) -> None:
        one = self.answerer("one")
        waiting = self.begin(self.caller.asks.act("wait"))
        self.answerer("two")
        self.killed_in_the_middle(one)
        self.broker.advance(3.0)
        self.assertNoResult(waiting)
        self.broker.advance(1.1)
        self.assertIn("no sign of life", str(self.failureResultOf(waiting, Unanswered).value))

    def test_a_question_is_asked_again_of_another(self) -> None:
        one = self.answerer("one")
        waiting = self.begin(self.caller.asks.ask("wait"))
        two = self.answerer("two")
        self.killed_in_the_middle(one)
        self.broker.advance(4.5)
        self.assertEqual(two.desk.begun, ["wait"])
        two.desk.open()
        self.broker.settle()
        self.assertEqual(self.successResultOf(waiting), "two wait")

    def test_who_dies_late_is_noticed_as_soon(self) -> None:
        one = self.answerer("one")
        waiting = self.begin(self.caller.asks.act("wait"))
        self.broker.advance(30.0)
        one.lose()
        self.broker.advance(4.1)
        self.failureResultOf(waiting, Unanswered)

    def test_what_a_dead_process_had_is_shared_by_the_others_from_then_on(self) -> None:
        self.answerer("one").lose()
        self.answerer("two")
        self.assertEqual({self.result(self.caller.asks.act("x")) for _ in range(4)}, {"two x"})


class AnswersTwiceTests(CallCase):
    def test_of_two_answers_the_first_counts(self) -> None:
        one = self.answerer("one")
        tell = one.client.tell

        def twice(subject: str, payload: bytes = b"", *, reply: str = "", headers: bytes = b"") -> bool:
            tell(subject, payload, reply=reply, headers=headers)
            return tell(subject, payload, reply=reply, headers=headers)

        one.client.tell = twice  # type: ignore[method-assign]
        self.assertEqual([self.result(self.caller.asks.act(word)) for word in "xy"], ["one x", "one y"])
        self.assertEqual(self.caller.calls.asking.under_way, 0)


class ConnectionTests(CallCase):
    def test_when_the_callers_connection_is_lost_a_question_is_asked_again(self) -> None:
        one = self.answerer("one")
        waiting = self.begin(self.caller.asks.ask("wait"))
        self.caller.lose()
        self.broker.advance(2.0)
        self.assertNoResult(waiting)
        self.caller.connect()
        self.broker.advance(0.5)
        self.assertEqual(one.desk.begun, ["wait", "wait"])
        one.desk.open()
        self.broker.settle()
        self.assertEqual(self.successResultOf(waiting), "one wait")

    def test_when_the_callers_connection_is_lost_an_action_is_in_doubt(self) -> None:
        one = self.answerer("one")
        waiting = self.begin(self.caller.asks.act("wait"))
        self.caller.lose()
        self.failureResultOf(waiting, Unanswered)
        one.desk.open()
        self.assertEqual(one.desk.done, ["wait"])

    def test_when_the_answerers_connection_is_lost_for_a_moment_its_answer_still_comes(self) -> None:
        one = self.answerer("one")
        calls = [self.begin(self.caller.asks.act("wait")), self.begin(self.caller.asks.act("wait longer"))]
        one.lose()
        one.desk.gates.pop(0).callback(None)
        self.broker.advance(2.0)
        one.connect()
        self.assertEqual(self.successResultOf(calls[0]), "one wait")
        self.broker.advance(10.0)
        one.desk.open()
        self.broker.settle()
        self.assertEqual(self.successResultOf(calls[1]), "one wait longer")

    def test_only_so_much_is_kept_for_a_connection_that_comes_back(self) -> None:
        self.patch(answering, "MAX_UNSENT", 1)
        one = self.answerer("one")
        calls = [self.begin(self.caller.asks.act(word)) for word in ("wait a", "wait b")]
        one.lose()
        one.desk.open()
        one.connect()
        self.assertEqual([call.called for call in calls].count(True), 1)
        self.broker.advance(5.0)
        self.failureResultOf(next(call for call in calls if not isinstance(call.result, str)), Unanswered)

    def test_with_the_broker_all_calls_come_back(self) -> None:
        one = self.answerer("one")
        self.caller.lose()
        one.lose()
        waiting = self.begin(self.caller.asks.act("x"))
        self.broker.advance(3.0)
        self.caller.connect()
        self.broker.advance(2.0)
        one.connect()
        self.broker.advance(0.5)
        self.assertEqual(self.successResultOf(waiting), "one x")


class LeavingTests(CallCase):
    def test_a_call_that_nobody_waits_for_is_stopped_at_its_next_sign_of_life(self) -> None:
        one = self.answerer("one")
        waiting = self.begin(self.caller.asks.act("wait"))
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        self.broker.settle()
        self.assertEqual(one.calls.answering.under_way, 1)
        self.broker.advance(1.1)
        self.assertEqual((one.calls.answering.under_way, one.desk.done), (0, []))

    def test_one_that_has_given_a_sign_of_life_is_stopped_at_once(self) -> None:
        one = self.answerer("one")
        waiting = self.begin(self.caller.asks.act("wait"))
        self.broker.advance(1.1)
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        self.broker.settle()
        self.assertEqual((one.calls.answering.under_way, one.desk.done), (0, []))

    def test_what_goes_on_to_its_end_does_so(self) -> None:
        one = self.answerer("one")
        waiting = self.begin(self.caller.asks.finish("wait"))
        self.broker.advance(1.1)
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        self.broker.settle()
        one.desk.open()
        self.assertEqual(one.desk.done, ["wait"])

    def test_a_question_of_a_caller_that_was_killed_is_stopped_and_an_action_goes_on(self) -> None:
        one = self.answerer("one")
        self.begin(self.caller.asks.ask("wait for an answer"))
        self.begin(self.caller.asks.act("wait to be done"))
        self.caller.link.cut()
        self.broker.advance(1.1)
        self.assertEqual(one.calls.answering.under_way, 1)
        one.desk.open()
        self.assertEqual((one.desk.done, one.calls.answering.under_way), (["wait to be done"], 0))

    def test_an_answerer_that_is_cancelled_by_its_own_hand_has_failed(self) -> None:
        one = self.answerer("one")
        waiting = self.begin(self.caller.asks.act("wait"))
        one.desk.gates[0].cancel()
        self.broker.settle()
        self.failureResultOf(waiting, CallFailed)
        self.assertEqual(len(self.flushLoggedErrors(CancelledError)), 1)


class StrangerTests(CallCase):
    """Others may speak on the broker too."""

    def setUp(self) -> None:
        super().setUp()
        self.one = self.answerer("one", "!a:x")
        self.stranger = self.broker.bench.talker
        self.stranger.subscribe("_INBOX.stranger", "1")
        self.warnings: list[str] = []
        self.patch(answering.log, "warn", lambda text, **fields: self.warnings.append(text.format(**fields)))

    def answers(self, subject: str, payload: bytes) -> list[bytes]:
        self.stranger.publish(subject, payload, "_INBOX.stranger")
        self.broker.settle()
        return self.stranger.payloads()

    def test_nonsense_is_refused_and_logged_once(self) -> None:
        for payload in (b"\0", b"\0\xc1", b"\0\x91\x01", b"\0" + b"\x91" * 5000, b"\0\x93\xa1a\x01\x02"):
            self.assertEqual(self.answers("DendriteCall.DeskAPI.act", payload)[0][:1], b"\x02", payload)
        self.assertEqual(self.one.desk.begun, [])
        self.assertEqual(len(self.warnings), 1)

    def test_odd_kinds_and_parts_are_refused(self) -> None:
        for payload in (b"", b"\x09", b"\x04", b"\x04" + b"\xff" * 12 + b"x", b"\x05\0\0\0\1", b"\x06", b"\x07"):
            self.assertEqual(self.answers("DendriteCall.DeskAPI.act", payload), [b"\x03"], payload)
        calls = self.one.calls
        self.assertEqual((calls.answering.under_way, calls.budget.count), (0, 0))

    def test_parts_that_make_no_request_are_refused(self) -> None:
        part = b"\x04\0\0\0\0" + (4).to_bytes(8, "big") + b"\x01abc"
        self.assertEqual(self.answers("DendriteCall.DeskAPI.act", part)[-1:], [b"\x03"])
        self.assertEqual((self.one.calls.answering.under_way, self.one.calls.budget.count), (0, 0))

    def test_methods_that_are_none_are_for_others(self) -> None:
        for name in ("steal", "__init__", "begun", "write", "act.extra"):
            expected = [] if "." in name else [b"\x03"]
            self.assertEqual(
                [each for each in self.answers(f"DendriteCall.DeskAPI.{name}", b"\0\x90") if each], expected
            )
        self.assertEqual(len(self.warnings), 4)

    def test_who_cannot_be_answered_is_not_served(self) -> None:
        for reply in ("", "$JS.API.STREAM.DELETE.DendriteOutputRoomEvent"):
            self.stranger.publish("DendriteCall.DeskAPI.act", b"\0\x91\xa1x", reply)
        self.broker.settle()
        self.assertEqual(self.one.desk.begun, [])
        self.assertEqual(len(self.warnings), 1)

    def test_a_flood_of_different_nonsense_is_logged_up_to_a_point(self) -> None:
        for number in range(200):
            self.answers(f"DendriteCall.DeskAPI.steal{number}", b"")
        self.assertEqual(len(self.warnings), answering.MAX_COMPLAINTS)

    def test_what_is_said_to_calls_that_are_none_is_not_heard(self) -> None:
        waiting = self.begin(self.caller.asks.act("wait"))
        for subject in ("_INBOX.one.job.x", "_INBOX.one.job.99", "_INBOX.caller.call.99", "_INBOX.caller.call.x"):
            for payload in (b"", b"\0", b"\x04", b"\x05", b"\x06", b"\x07"):
                self.stranger.publish(subject, payload)
        self.broker.settle()
        self.assertNoResult(waiting)
        self.one.desk.open()
        self.broker.settle()
        self.assertEqual(self.successResultOf(waiting), "one wait")

    def test_an_answer_that_makes_no_sense_is_none(self) -> None:
        for payload in (b"\x09", b"\x05\0\0\0\1", b"", b"\x04\0"):
            waiting = self.begin(self.caller.asks.act("wait"))
            number = self.caller.calls.asking._next
            self.stranger.publish(f"_INBOX.caller.call.{number}", payload)
            self.broker.settle()
            self.failureResultOf(waiting, Unanswered)
            self.one.desk.open()

    def test_only_so_many_calls_are_taken_at_a_time(self) -> None:
        self.patch(answering, "MAX_JOBS", 1)
        first, second = (self.begin(self.caller.asks.act(word)) for word in ("wait a", "wait b"))
        self.assertEqual(self.one.desk.begun, ["wait a"])
        for _ in range(2):
            self.one.desk.open()
            self.broker.advance(0.5)
        self.assertEqual([self.successResultOf(call) for call in (first, second)], ["one wait a", "one wait b"])

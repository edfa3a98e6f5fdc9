"""Who answers a call between processes, and what is said of errors on the way."""

from __future__ import annotations

from typing import Protocol

from dendrite_tw.database.engines import Unavailable
from dendrite_tw.federation_api.api import BackingOff, RemoteRefused, Unreachable
from dendrite_tw.links.echoes import Hearer
from dendrite_tw.links.errors import CallFailed, Unanswered
from dendrite_tw.links.handle import handle
from dendrite_tw.matrix.errors import MatrixError
from tests.links.support import CallCase, Desk, DeskAPI, Process
from tests.links.test_handle import Contract, Shop, ShopAPI


class ContractTests(Contract, CallCase):
    """What every transport has to keep is kept between processes."""

    def make(self, shop: Shop) -> ShopAPI:
        self.broker.process("shop").calls.serve(ShopAPI, shop)
        self.broker.settle()
        return handle(ShopAPI, self.caller.calls.transport(ShopAPI, None))

    def run_call(self, coroutine: object) -> object:
        return self.result(coroutine)

    def begun(self, coroutine: object) -> object:
        return self.begin(coroutine)


class RouteTests(CallCase):
    def test_anybody_answers_in_turn(self) -> None:
        self.answerer("one")
        self.answerer("two")
        answers = sorted(self.result(self.caller.asks.act("x")) for _ in range(4))
        self.assertEqual(answers, ["one x"] * 2 + ["two x"] * 2)

    def test_the_holder_of_a_share_answers(self) -> None:
        self.answerer("one", "!a:x")
        self.answerer("two", "!b:x")
        self.assertEqual(self.result(self.caller.asks.write("!a:x")), "one !a:x")
        self.assertEqual(self.result(self.caller.asks.write(room_id="!b:x", word="w")), "two w")

    def test_what_is_here_is_called_here(self) -> None:
        desk = handle(DeskAPI, self.caller.calls.transport(DeskAPI, self.caller.desk))
        self.answerer("one", "!a:x")
        self.assertEqual(self.result(desk.act("x")), "caller x")
        self.assertEqual(self.result(desk.write("!a:x")), "one !a:x")
        self.caller.take("!b:x")
        self.assertEqual(self.result(desk.write("!b:x")), "caller !b:x")

    def test_a_share_that_comes_here_meanwhile_is_written_to_here(self) -> None:
        desk = handle(DeskAPI, self.caller.calls.transport(DeskAPI, self.caller.desk))
        waiting = self.begin(desk.write("!a:x"))
        self.caller.take("!a:x")
        self.broker.advance(0.1)
        self.assertEqual(self.successResultOf(waiting), "caller !a:x")

    def test_arguments_are_checked_where_they_are_given(self) -> None:
        for call in (
            lambda: self.caller.asks.act(),  # type: ignore[call-arg]
            lambda: self.caller.asks.act("x", 1, 2),  # type: ignore[call-arg]
            lambda: self.caller.asks.act("x", number=1),  # type: ignore[call-arg]
            lambda: self.caller.asks.act("x", word="y"),  # type: ignore[misc]
        ):
            self.failureResultOf(self.begin(call()), TypeError)

    def test_a_caller_of_an_older_release_leaves_out_what_it_does_not_know(self) -> None:
        class DeskAPI(Protocol):
            async def act(self, word: str) -> str: ...

        self.answerer("one")
        older = handle(DeskAPI, self.caller.calls.transport(DeskAPI, None))
        self.assertEqual(self.result(older.act("x")), "one x")

    def test_a_method_that_only_newer_processes_have_is_answered_by_them(self) -> None:
        class Newer:
            async def renew(self) -> str:
                return "newer"

        desk_api = type("DeskAPI", (Protocol,), {})  # type: ignore[misc]

        async def renew(self: object) -> str: ...  # type: ignore[empty-body]

        desk_api.renew = renew  # type: ignore[attr-defined]
        self.answerer("old")
        self.broker.process("new").calls.serve(desk_api, Newer())
        self.broker.settle()
        desk = handle(desk_api, self.caller.calls.transport(desk_api, None))
        for _ in range(3):
            waiting = self.begin(desk.renew())  # type: ignore[attr-defined]
            self.broker.advance(1.0)
            self.assertEqual(self.successResultOf(waiting), "newer")


class ErrorTests(CallCase):
    def raises(self, error: Exception) -> MatrixError:
        async def act(word: str, times: int = 1) -> str:
            raise error

        process = self.broker.process("one")
        process.desk.act = act  # type: ignore[method-assign]
        process.serve()
        found = self.failureResultOf(self.begin(self.caller.asks.act("x"))).value
        assert isinstance(found, MatrixError)
        self.assertIs(type(found), type(error))
        return found

    def test_refusals_cross(self) -> None:
        self.answerer("one")
        refused = self.failureResultOf(self.begin(self.caller.asks.act("refused")), MatrixError).value
        self.assertEqual(refused.body(), {"errcode": "M_FORBIDDEN", "error": "No.", "left": 3})

    def test_errors_of_other_servers_cross_with_all_that_they_say(self) -> None:
        refused = self.raises(RemoteRefused(403, "M_FORBIDDEN", "not you"))
        assert isinstance(refused, RemoteRefused)
        self.assertEqual(refused.forwarded().body(), {"errcode": "M_FORBIDDEN", "error": "not you"})
        self.assertEqual((refused.status, refused.remote_status), (502, 403))

    def test_servers_that_are_not_there_cross(self) -> None:
        backing = self.raises(BackingOff("x.org", 500))
        assert isinstance(backing, BackingOff)
        self.assertEqual((backing.retry_after_ms, backing.reason.partition(" ")[0]), (500, "x.org"))
        gone = self.raises(Unreachable("no route", retry_after_ms=7))
        self.assertEqual(gone.body(), {"errcode": "M_UNKNOWN", "error": "no route", "retry_after_ms": 7})

    def test_a_database_that_is_away_crosses(self) -> None:
        self.assertEqual(self.raises(Unavailable("disk full")).extra, {"retry_after_ms": 5000})

    def test_an_error_that_only_the_answerer_knows_is_one_of_those_it_is_made_of(self) -> None:
        class Narrower(Unreachable):
            def __init__(self) -> None:
                super().__init__("gone")
                self.secret = object()

        async def act(word: str, times: int = 1) -> str:
            raise Narrower

        process = self.broker.process("one")
        process.desk.act = act  # type: ignore[method-assign]
        process.serve()
        error = self.failureResultOf(self.begin(self.caller.asks.act("x")), MatrixError).value
        self.assertEqual((type(error), error.status, error.error), (MatrixError, 502, "gone"))
        del MatrixError.kinds["Narrower"]

    def test_an_unknown_kind_falls_back_to_the_nearest_known(self) -> None:
        class Newer(Unreachable):
            """Known to the answerer alone."""

        async def act(word: str, times: int = 1) -> str:
            error = Newer("gone")
            del MatrixError.kinds["Newer"]
            raise error

        process = self.broker.process("one")
        process.desk.act = act  # type: ignore[method-assign]
        process.serve()
        error = self.failureResultOf(self.begin(self.caller.asks.act("x"))).value
        self.assertIs(type(error), Unreachable)

    def test_what_was_not_foreseen_is_logged_there_and_no_refusal_here(self) -> None:
        self.answerer("one")
        error = self.failureResultOf(self.begin(self.caller.asks.act("broken")), CallFailed).value
        self.assertNotIsInstance(error, MatrixError)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_a_result_that_cannot_be_encoded_is_such_a_failure(self) -> None:
        async def act(word: str, times: int = 1) -> object:
            return object()

        process = self.broker.process("one")
        process.desk.act = act  # type: ignore[method-assign,assignment]
        process.serve()
        self.failureResultOf(self.begin(self.caller.asks.act("x")), CallFailed)
        self.assertEqual(len(self.flushLoggedErrors(TypeError)), 1)


class RetryTests(CallCase):
    def test_what_nobody_takes_is_tried_again_until_somebody_is_there(self) -> None:
        waiting = self.begin(self.caller.asks.act("x"))
        self.broker.advance(3.0)
        self.assertNoResult(waiting)
        self.answerer("late")
        self.broker.advance(0.5)
        self.assertEqual(self.successResultOf(waiting), "late x")

    def test_what_nobody_ever_takes_is_refused_with_a_hint_to_try_again(self) -> None:
        waiting = self.begin(self.caller.asks.act("x"))
        self.broker.advance(7.9)
        self.assertNoResult(waiting)
        self.broker.advance(0.5)
        error = self.failureResultOf(waiting, Unanswered).value
        self.assertEqual((error.status, error.extra), (503, {"retry_after_ms": 2000}))
        self.assertIsInstance(error, Unavailable)

    def test_outcomes_are_counted(self) -> None:
        self.answerer("one")
        self.result(self.caller.asks.act("x"))
        self.failureResultOf(self.begin(self.caller.asks.act("refused")), MatrixError)
        waiting = self.begin(self.caller.asks.write("!a:x"))
        self.broker.advance(9.0)
        self.failureResultOf(waiting, Unanswered)
        counts = self.caller.calls.counts
        self.assertEqual((counts["DeskAPI.act", "answered"], counts["DeskAPI.write", "unanswered"]), (2, 1))
        self.assertGreater(counts["DeskAPI.write", "again"], 20)

    def test_who_goes_away_meanwhile_is_not_answered_for(self) -> None:
        waiting = self.begin(self.caller.asks.act("x"))
        waiting.cancel()
        self.failureResultOf(waiting)
        late = self.answerer("late")
        self.broker.advance(1.0)
        self.assertEqual((late.desk.begun, self.caller.calls.asking.under_way), ([], 0))

    def test_without_a_connection_a_call_waits_for_one(self) -> None:
        self.answerer("one")
        self.caller.lose()
        waiting = self.begin(self.caller.asks.act("x"))
        self.broker.advance(2.0)
        self.assertNoResult(waiting)
        self.caller.connect()
        self.broker.advance(0.5)
        self.assertEqual(self.successResultOf(waiting), "one x")


class HandoverTests(CallCase):
    def test_a_share_that_moves_is_followed(self) -> None:
        one = self.answerer("one", "!a:x")
        one.held.clear()
        waiting = self.begin(self.caller.asks.write("!a:x"))
        self.assertNoResult(waiting)
        self.result(one.give("!a:x"))
        self.broker.process("two").take("!a:x")
        self.broker.advance(0.5)
        self.assertEqual(self.successResultOf(waiting), "two !a:x")
        self.assertEqual(one.desk.begun, [])

    def test_a_share_is_given_away_when_its_calls_are_done(self) -> None:
        one = self.answerer("one", "!a:x")
        last = self.begin(self.caller.asks.write("!a:x", "wait"))
        other = self.begin(self.caller.asks.act("wait too"))
        given = self.begin(one.give("!a:x"))
        self.assertNoResult(given)
        late = self.begin(self.caller.asks.write("!a:x", "late"))
        self.broker.process("two").take("!a:x")
        self.broker.advance(0.5)
        self.assertEqual(self.successResultOf(late), "two late")
        self.assertNoResult(given)
        one.desk.gates.pop(0).callback(None)
        self.broker.settle()
        self.assertEqual(self.successResultOf(last), "one wait")
        self.successResultOf(given)
        self.assertNoResult(other)

    def test_what_was_on_its_way_to_a_share_that_is_given_away_goes_to_the_next_holder(self) -> None:
        one = self.answerer("one", "!a:x")
        waiting = self.caller.asks.write("!a:x")
        given = one.give("!a:x")
        waiting = self.begin(waiting)
        self.successResultOf(given)
        self.broker.process("two").take("!a:x")
        self.broker.advance(0.5)
        self.assertEqual(self.successResultOf(waiting), "two !a:x")

    def test_what_an_answerer_finds_to_be_no_longer_its_own_goes_to_the_next_holder(self) -> None:
        one = self.answerer("one", "!a:x")
        one.desk.gives_up = True
        waiting = self.begin(self.caller.asks.write("!a:x"))
        self.assertNoResult(waiting)
        self.result(one.give("!a:x"))
        self.broker.process("two").take("!a:x")
        self.broker.advance(0.5)
        self.assertEqual(self.successResultOf(waiting), "two !a:x")

    def test_so_does_what_was_called_here(self) -> None:
        desk = handle(DeskAPI, self.caller.calls.transport(DeskAPI, self.caller.desk))
        self.caller.take("!a:x")
        self.caller.desk.gives_up = True
        waiting = self.begin(desk.write("!a:x"))
        self.broker.advance(0.5)
        self.assertNoResult(waiting)
        self.result(self.caller.give("!a:x"))
        self.broker.process("two").take("!a:x")
        self.broker.advance(0.5)
        self.assertEqual(self.successResultOf(waiting), "two !a:x")

    def test_a_share_can_come_back_at_once(self) -> None:
        one = self.answerer("one", "!a:x")
        given = one.give("!a:x")
        one.take("!a:x")
        self.successResultOf(given)
        self.assertEqual(self.result(self.caller.asks.write("!a:x")), "one !a:x")

    def test_a_share_that_is_taken_twice_is_given_away_as_a_whole(self) -> None:
        one = self.answerer("one", "!a:x")
        one.take("!a:x")
        self.result(one.give("!a:x"))
        waiting = self.begin(self.caller.asks.write("!a:x"))
        self.broker.advance(1.0)
        self.assertNoResult(waiting)
        self.assertEqual(one.desk.begun, [])

    def test_while_two_believe_to_hold_a_share_one_of_them_is_asked(self) -> None:
        one, two = self.answerer("one", "!a:x"), self.answerer("two", "!a:x")
        for number in range(6):
            self.result(self.caller.asks.write("!a:x", str(number)))
        self.assertEqual(sorted(one.desk.begun + two.desk.begun), list("012345"))

    def test_giving_away_what_is_not_held_is_done_at_once(self) -> None:
        self.successResultOf(self.caller.give("!a:x"))

    def test_a_share_is_given_away_without_a_connection_too(self) -> None:
        one = self.answerer("one", "!a:x")
        one.lose()
        self.successResultOf(one.give("!a:x"))
        one.connect()
        waiting = self.begin(self.caller.asks.write("!a:x"))
        self.assertNoResult(waiting)
        self.assertEqual(one.desk.begun, [])


class DrainTests(CallCase):
    def test_who_drains_takes_nothing_more_and_finishes_what_it_has(self) -> None:
        one = self.answerer("one", "!a:x")
        calls = [self.begin(self.caller.asks.act("wait")), self.begin(self.caller.asks.write("!a:x", "wait"))]
        self.answerer("two")
        drained = self.begin(one.calls.drain())
        self.assertEqual({self.result(self.caller.asks.act("x")) for _ in range(4)}, {"two x"})
        self.assertNoResult(drained)
        one.desk.open()
        self.broker.settle()
        self.assertEqual([self.successResultOf(call) for call in calls], ["one wait", "one wait"])
        self.successResultOf(drained)

    def test_what_was_on_its_way_is_answered_to_the_last(self) -> None:
        one = self.answerer("one")
        waiting, drained = self.begin(self.later(self.caller)), one.calls.drain()
        self.successResultOf(self.begin(drained))
        self.assertEqual(self.successResultOf(waiting), "one x")

    async def later(self, caller: Process) -> str:
        return await caller.asks.act("x")

    def test_draining_takes_so_long_at_the_most(self) -> None:
        one = self.answerer("one")
        self.begin(self.caller.asks.act("wait"))
        drained = self.begin(one.calls.drain(5.0))
        self.broker.advance(4.5)
        self.assertNoResult(drained)
        self.broker.advance(0.5)
        self.successResultOf(drained)
        one.desk.open()
        self.broker.settle()
        self.assertEqual(one.calls.answering.under_way, 0)

    def test_calls_within_a_process_that_drains_go_to_others_if_there_are_any(self) -> None:
        desk = handle(DeskAPI, self.caller.calls.transport(DeskAPI, self.caller.desk))
        self.caller.serve()
        self.result(self.caller.calls.drain())
        self.assertEqual(self.result(desk.act("x")), "caller x")
        self.answerer("other")
        self.assertEqual(self.result(desk.act("x")), "other x")


class OrderTests(CallCase):
    def test_an_echo_is_heard_before_the_answer_and_by_all_before_what_follows_from_it(self) -> None:
        story: list[str] = []
        one, third = self.broker.process("one"), self.broker.process("third")

        def notes(name: str) -> Hearer:
            return lambda payload: story.append(f"{name} hears {payload.decode()}")

        for process in (self.caller, third):
            process.echoes.hear("change", notes(process.name))
        self.broker.settle()

        async def act(word: str, times: int = 1) -> str:
            one.echoes.tell("change", word.encode())
            return word

        one.desk.act = act  # type: ignore[method-assign]
        one.serve()
        third.desk.act = self.recording(story)  # type: ignore[method-assign]
        third.take("!a:x")

        async def play() -> None:
            story.append(f"caller is told {await self.caller.asks.act('x')}")
            await self.caller.asks.write("!a:x")

        self.result(play())
        self.assertEqual([line for line in story if "caller" in line], ["caller hears x", "caller is told x"])
        self.assertEqual([line for line in story if "third" in line], ["third hears x", "third is asked"])

    def recording(self, story: list[str]) -> object:
        async def act(word: str, times: int = 1) -> str:
            story.append("third is asked")
            return word

        return act


class OtherPrefixTests(CallCase):
    def test_deployments_with_other_prefixes_do_not_hear_each_other(self) -> None:
        stranger = Desk("stranger")
        self.caller.client.prefix = "Other"
        one = self.broker.process("one")
        one.calls.serve(DeskAPI, stranger)
        self.caller.asks = handle(DeskAPI, self.caller.calls.transport(DeskAPI, None))
        waiting = self.begin(self.caller.asks.act("x"))
        self.broker.advance(9.0)
        self.failureResultOf(waiting, Unanswered)
        self.assertEqual(stranger.begun, [])

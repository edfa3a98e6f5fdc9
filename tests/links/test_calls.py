"""Calls between processes, over a broker in memory."""

from __future__ import annotations

from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.links.handle import handle
from dendrite_tw.links.nats import CallFailed, Unanswered
from dendrite_tw.links.routing import routed, share_of
from dendrite_tw.matrix.errors import MatrixError
from tests.links.support import Broker, Process


class DeskAPI(Protocol):
    async def act(self, word: str) -> str: ...

    @routed(repeat=True)
    async def ask(self, word: str) -> str: ...

    @routed(share="room_id")
    async def write(self, room_id: str, word: str = "") -> str: ...


class Desk:
    """Answers with the name of its process."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.acts: list[str] = []

    async def act(self, word: str) -> str:
        if word == "refused":
            raise MatrixError(403, "M_FORBIDDEN", "No.", left=3)
        if word == "broken":
            raise ZeroDivisionError
        self.acts.append(word)
        return f"{self.name} {word}"

    async def ask(self, word: str) -> str:
        return await self.act(word)

    async def write(self, room_id: str, word: str = "") -> str:
        return await self.act(word or room_id)


class CallCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.broker = Broker()
        self.caller = self.broker.process("caller")
        self.desk = handle(DeskAPI, self.caller.calls.transport(DeskAPI, None))

    def answerer(self, name: str, *rooms: str) -> Process:
        process = self.broker.process(name)
        desk = Desk(name)
        process.calls.serve(DeskAPI, desk)
        for room in rooms:
            process.held.add(("DeskAPI", share_of(room)))
            process.calls.serve_share(DeskAPI, desk, share_of(room))
        self.broker.settle()
        return process

    def begin(self, call: Any) -> Deferred[Any]:
        deferred = Deferred.fromCoroutine(call)
        self.broker.settle()
        return deferred

    def result(self, call: Any) -> Any:
        return self.successResultOf(self.begin(call))


class CallTests(CallCase):
    def test_anybody_answers_in_turn(self) -> None:
        self.answerer("one")
        self.answerer("two")
        self.assertEqual(sorted(self.result(self.desk.act("x")) for _ in range(4)), ["one x"] * 2 + ["two x"] * 2)

    def test_the_holder_of_a_share_answers(self) -> None:
        self.answerer("one", "!a:x")
        self.answerer("two", "!b:x")
        self.assertEqual(self.result(self.desk.write("!a:x")), "one !a:x")
        self.assertEqual(self.result(self.desk.write(room_id="!b:x", word="w")), "two w")

    def test_errors_cross(self) -> None:
        self.answerer("one")
        refused = self.failureResultOf(self.begin(self.desk.act("refused")), MatrixError).value
        self.assertEqual(refused.body(), {"errcode": "M_FORBIDDEN", "error": "No.", "left": 3})
        self.failureResultOf(self.begin(self.desk.act("broken")), CallFailed)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_what_nobody_takes_is_tried_again_until_somebody_is_there(self) -> None:
        waiting = self.begin(self.desk.act("x"))
        self.broker.advance(3.0)
        self.assertNoResult(waiting)
        self.answerer("late")
        self.broker.advance(0.5)
        self.assertEqual(self.successResultOf(waiting), "late x")

    def test_what_nobody_ever_takes_is_refused_with_a_hint_to_try_again(self) -> None:
        waiting = self.begin(self.desk.act("x"))
        self.broker.advance(9.0)
        error = self.failureResultOf(waiting, Unanswered).value
        self.assertEqual((error.status, error.extra), (503, {"retry_after_ms": 2000}))

    def test_a_share_that_moves_is_followed(self) -> None:
        one, share = self.answerer("one", "!a:x"), share_of("!a:x")
        one.held.clear()
        waiting = self.begin(self.desk.write("!a:x"))
        self.assertNoResult(waiting)
        one.calls.withdraw_share(DeskAPI, share)
        self.answerer("two", "!a:x")
        self.broker.advance(0.5)
        self.assertEqual(self.successResultOf(waiting), "two !a:x")

    def test_what_is_here_is_called_here(self) -> None:
        here = Desk("here")
        desk = handle(DeskAPI, self.caller.calls.transport(DeskAPI, here))
        self.answerer("one", "!a:x")
        self.assertEqual(self.result(desk.act("x")), "here x")
        self.assertEqual(self.result(desk.write("!a:x")), "one !a:x")
        self.caller.held.add(("DeskAPI", share_of("!b:x")))
        self.caller.calls.serve_share(DeskAPI, here, share_of("!b:x"))
        self.assertEqual(self.result(desk.write("!b:x")), "here !b:x")

    def test_who_drains_takes_nothing_more(self) -> None:
        one = self.answerer("one")
        self.answerer("two")
        self.begin(one.calls.drain())
        self.assertEqual({self.result(self.desk.act("x")) for _ in range(4)}, {"two x"})

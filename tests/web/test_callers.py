"""Callers are remembered where the user component is elsewhere, and never for longer than they are true."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.cache import CacheBudget
from dendrite_tw.links.handle import handle
from dendrite_tw.matrix.errors import MatrixError
from dendrite_tw.user_api.api import SESSIONS, Caller, NewLogin, SessionsChanged, UserAPI
from dendrite_tw.user_api.tokens import digest
from dendrite_tw.web.callers import LIFETIME_MS, RememberedCallers
from dendrite_tw.world import ReactorClock
from tests.links.support import Broker
from tests.user_api.harness import UsersCase


class Echoes:
    """What others tell is said by the test."""

    def __init__(self) -> None:
        self.hearing = True
        self.hearers: dict[str, Callable[[bytes], None]] = {}
        self.missed: Callable[[], None] = lambda: None

    def tell(self, topic: str, payload: bytes) -> None:
        raise AssertionError("who only remembers tells nothing")

    def hear(self, topic: str, call: Callable[[bytes], None]) -> None:
        self.hearers[topic] = call

    def on_missed(self, call: Callable[[], None]) -> None:
        self.missed = call


class Elsewhere:
    """The user component: how often it was asked, and what it says when it is let."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.gate: Deferred[None] | None = None
        self.expires_ts = 0

    async def caller_of(self, access_token: str) -> Caller:
        self.asked.append(access_token)
        number = len(self.asked)
        if self.gate is not None:
            await self.gate
        if access_token.startswith("unknown"):
            raise MatrixError(401, "M_UNKNOWN_TOKEN", "Unknown.")
        return Caller(user_id=f"@{access_token}:x", device_id=None, session_id=number, expires_ts=self.expires_ts)

    async def acting_as(self, appservice_id: str, user_id: str, device_id: str | None) -> Caller:
        self.asked.append(user_id)
        return Caller(user_id=user_id, device_id=device_id, appservice_id=appservice_id)


class RememberedTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.echoes, self.elsewhere, self.budget = Echoes(), Elsewhere(), CacheBudget(1 << 20)
        users: UserAPI = self.elsewhere  # type: ignore[assignment]
        self.callers = RememberedCallers(users, self.echoes, self.budget, ReactorClock(self.clock))

    def begin(self, token: str) -> Deferred[Caller]:
        return Deferred.fromCoroutine(self.callers.caller_of(token))

    def caller(self, token: str) -> Caller:
        return self.successResultOf(self.begin(token))

    def changed(self, *tokens: str) -> None:
        self.echoes.hearers[SESSIONS](
            msgspec.msgpack.encode(SessionsChanged("@a:x", [digest(each) for each in tokens]))
        )

    def test_who_was_asked_for_is_remembered(self) -> None:
        self.assertEqual([self.caller(token).user_id for token in "abab"], ["@a:x", "@b:x"] * 2)
        self.assertEqual(self.elsewhere.asked, ["a", "b"])

    def test_a_change_is_asked_for_and_others_are_still_remembered(self) -> None:
        first = self.caller("a")
        self.caller("b")
        self.changed("a", "c")
        self.assertNotEqual(self.caller("a"), first)
        self.caller("b")
        self.assertEqual(self.elsewhere.asked, ["a", "b", "a"])

    def test_what_is_on_its_way_while_something_changes_is_not_remembered(self) -> None:
        self.elsewhere.gate = Deferred()
        waiting = self.begin("a")
        self.changed("a")
        self.elsewhere.gate.callback(None)
        self.successResultOf(waiting)
        self.caller("a")
        self.assertEqual(self.elsewhere.asked, ["a", "a"])

    def test_when_something_was_missed_all_are_asked_for_again(self) -> None:
        self.caller("a")
        self.echoes.missed()
        self.caller("a")
        self.assertEqual(self.elsewhere.asked, ["a", "a"])

    def test_nothing_is_remembered_while_nothing_is_heard(self) -> None:
        self.echoes.hearing = False
        for _ in range(3):
            self.caller("a")
        self.assertEqual(len(self.elsewhere.asked), 3)

    def test_refusals_are_not_remembered(self) -> None:
        for _ in range(2):
            self.failureResultOf(self.begin("unknown"), MatrixError)
        self.assertEqual(len(self.elsewhere.asked), 2)

    def test_nothing_is_remembered_for_long(self) -> None:
        self.caller("a")
        self.clock.advance(LIFETIME_MS / 1000 - 1)
        self.caller("a")
        self.assertEqual(self.elsewhere.asked, ["a"])
        self.clock.advance(1)
        self.caller("a")
        self.assertEqual(self.elsewhere.asked, ["a", "a"])

    def test_a_token_that_expires_is_asked_for_from_then_on(self) -> None:
        self.elsewhere.expires_ts = 5_000
        self.caller("a")
        self.clock.advance(4.9)
        self.caller("a")
        self.assertEqual(self.elsewhere.asked, ["a"])
        self.clock.advance(0.1)
        self.caller("a")
        self.caller("a")
        self.assertEqual(self.elsewhere.asked, ["a"] * 3)

    def test_an_echo_that_cannot_be_understood_is_taken_to_be_about_all(self) -> None:
        self.caller("a")
        self.echoes.hearers[SESSIONS](b"\xc1")
        self.caller("a")
        self.assertEqual(self.elsewhere.asked, ["a", "a"])

    def test_only_so_many_are_remembered(self) -> None:
        for number in range(10_000):
            self.caller(str(number))
        self.assertLessEqual(self.budget.used, 1 << 20)
        self.assertEqual(self.elsewhere.asked, list(map(str, range(10_000))))

    def test_whom_an_application_service_acts_as_is_asked_each_time(self) -> None:
        for _ in range(2):
            found = self.successResultOf(Deferred.fromCoroutine(self.callers.acting_as("bridge", "@b:x", None)))
            self.assertEqual((found.user_id, found.appservice_id), ("@b:x", "bridge"))
        self.assertEqual(self.elsewhere.asked, ["@b:x", "@b:x"])


class BetweenProcessesTests(UsersCase):
    """With the user component itself in another process."""

    def setUp(self) -> None:
        super().setUp()
        self.broker = Broker()
        self.users_process, self.front = self.broker.process("users"), self.broker.process("front")
        tokens = self.api.tokens
        tokens._echoes = self.users_process.echoes
        self.patch(type(tokens._database), "shared", True)
        self.users_process.calls.serve(UserAPI, self.api)
        users = handle(UserAPI, self.front.calls.transport(UserAPI, None))
        self.callers = RememberedCallers(
            users, self.front.echoes, CacheBudget(1 << 20), ReactorClock(self.broker.clock)
        )
        self.asks = users
        self.broker.settle()

    def done(self, coroutine: object) -> Deferred[object]:
        deferred = Deferred.fromCoroutine(coroutine)  # type: ignore[arg-type]
        self.broker.settle()
        return deferred

    def test_a_session_that_ends_elsewhere_is_not_served_from_memory(self) -> None:
        login = self.make("alice")
        for _ in range(2):
            found = self.successResultOf(self.done(self.callers.caller_of(login.access_token)))
            assert isinstance(found, Caller)
            self.assertEqual((found.user_id, found.device_id), (login.user_id, login.device_id))
        asked = self.broker.bench.server.in_messages
        self.successResultOf(self.done(self.callers.caller_of(login.access_token)))
        self.assertEqual(self.broker.bench.server.in_messages, asked)

        async def log_out() -> None:
            await self.asks.delete_devices(login.user_id, [login.device_id], None)
            await self.callers.caller_of(login.access_token)

        error = self.failureResultOf(self.done(log_out()), MatrixError).value
        self.assertEqual((error.status, error.errcode), (401, "M_UNKNOWN_TOKEN"))

    def test_what_an_account_may_do_changes_at_once(self) -> None:
        login = self.make("alice")
        changes: list[tuple[Callable[[], object], str]] = [
            (lambda: self.asks.set_suspended(login.user_id, True), "suspended"),
            (lambda: self.asks.set_suspended(login.user_id, False), "let be"),
            (lambda: self.asks.log_in(NewLogin(user_id=login.user_id, device_id=login.device_id)), "replaced"),
        ]
        seen = []
        for change, name in changes:
            self.successResultOf(self.done(self.callers.caller_of(login.access_token)))
            self.successResultOf(self.done(change()))
            asking = self.done(self.callers.caller_of(login.access_token))
            if name == "replaced":
                self.failureResultOf(asking, MatrixError)
            else:
                found = self.successResultOf(asking)
                assert isinstance(found, Caller)
                seen.append(found.is_suspended)
        self.assertEqual(seen, [True, False])

"""Requests to servers that misbehave: turns, retries, time, and what is learnt about a destination."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.http_headers import Headers

from dendrite_tw.database.engines import SQLiteDatabase
from dendrite_tw.database.migrate import migrate, steps_of
from dendrite_tw.federation_api import destinations
from dendrite_tw.federation_api.api import BackingOff, FederationRequest, RemoteRefused, Unreachable
from dendrite_tw.federation_api.client import (
    RUNNING_PER_DESTINATION,
    WAITING_PER_DESTINATION,
    Busy,
    FederationClient,
    path_of,
)
from dendrite_tw.federation_api.destinations import Destinations
from dendrite_tw.federation_api.signing_keys import OwnKeys
from dendrite_tw.federation_api.tables.unreachable import KEPT_MS, unreachable_servers
from dendrite_tw.matrix.errors import MatrixError
from dendrite_tw.web.client import HttpAnswer, Peer, Stale
from dendrite_tw.world import ReactorClock

from .network import key_of

A = Peer("a.test", 8448, "a.test", ("192.0.2.1",))
B = Peer("a.test", 8449, "a.test", ("192.0.2.2",))


class Http:
    """Answers with what it was told: an answer, an error, or a `Deferred` of either."""

    def __init__(self) -> None:
        self.answers: list[Any] = []
        self.asked: list[tuple[Peer, str, str, dict[str, str], bytes | None, float]] = []

    async def request_at(
        self,
        peer: Peer,
        method: str,
        target: str,
        headers: Any,
        body: bytes | None,
        seconds: float,
        limit: int,
        sink: Any,
    ) -> HttpAnswer:
        self.asked.append((peer, method, target, dict(headers), body, seconds))
        answer = self.answers.pop(0)
        if isinstance(answer, Deferred):
            answer = await answer
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, HttpAnswer)
        return answer


class Locator:
    def __init__(self) -> None:
        self.peers = [A]
        self.forgotten: list[str] = []

    async def resolve(self, server_name: str) -> list[Peer]:
        return self.peers

    def forget(self, server_name: str) -> None:
        self.forgotten.append(server_name)


def answer(body: bytes = b"{}", status: int = 200) -> HttpAnswer:
    return HttpAnswer(status, Headers(), body)


class ClientCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1_700_000_000)
        self.time = ReactorClock(self.clock)
        self.database = SQLiteDatabase(":memory:", None)
        self.database.prepare(migrate, "federation_api", steps_of("dendrite_tw.federation_api"))
        self.destinations = Destinations(self.database, self.time, max_retries=3)
        self.http, self.locator = Http(), Locator()
        self.outcomes: list[str] = []
        own = OwnKeys("us.test", key_of(1), [], 86_400_000, self.time)
        self.client = FederationClient(
            self.http,  # type: ignore[arg-type]
            self.locator,
            self.destinations,
            own,
            self.clock,
            lambda method, outcome: self.outcomes.append(outcome),
        )

    def ask(self, *answers: Any, **options: Any) -> Deferred[dict[str, Any]]:
        self.http.answers += answers
        request = FederationRequest(method="PUT", destination="a.test", path="/x", body={"a": 1}, **options)
        return Deferred.fromCoroutine(self.client.request(request))


class ClientTests(ClientCase):
    def test_what_is_sent(self) -> None:
        self.assertEqual(self.successResultOf(self.ask(answer(b'{"b":2}'), query=[("v", "a b&ü")])), {"b": 2})
        ((peer, method, target, headers, body, seconds),) = self.http.asked
        self.assertEqual((peer, method, target, body, seconds), (A, "PUT", "/x?v=a%20b%26%C3%BC", b'{"a":1}', 30))
        self.assertTrue(headers["Authorization"].startswith('X-Matrix origin="us.test",destination="a.test",key='))
        self.assertEqual(headers["Content-Type"], "application/json")

    def test_paths_are_encoded(self) -> None:
        self.assertEqual(path_of("/a/{}/{}", "!r/?#:x", "$é"), "/a/%21r%2F%3F%23%3Ax/%24%C3%A9")

    def test_a_stale_connection_is_replaced_once_if_the_request_allows(self) -> None:
        self.successResultOf(self.ask(Stale("closed"), answer()))
        self.failureResultOf(self.ask(Stale("closed"), Stale("closed")), Unreachable)
        self.clock.advance(100)
        self.failureResultOf(self.ask(Stale("closed"), retry=False), Unreachable)
        self.assertEqual(len(self.http.asked), 5)

    def test_the_next_place_is_tried(self) -> None:
        self.locator.peers = [A, B]
        self.successResultOf(self.ask(Unreachable("refused"), answer()))
        self.assertEqual([asked[0] for asked in self.http.asked], [A, B])
        self.assertEqual((self.outcomes, self.destinations.failures("a.test")), (["ok"], 0))

    def test_only_so_many_places_are_tried(self) -> None:
        self.locator.peers = [A, B] * 10
        self.failureResultOf(self.ask(*[Unreachable("refused")] * 20), Unreachable)
        self.assertEqual(len(self.http.asked), 3)

    def test_no_place_is_tried_after_the_time_is_over(self) -> None:
        self.locator.peers = [A, B]
        first: Deferred[HttpAnswer] = Deferred()
        asking = self.ask(first, timeout_ms=5000)
        self.clock.advance(6)
        first.errback(Unreachable("no answer"))
        self.failureResultOf(asking, Unreachable)
        self.assertEqual(len(self.http.asked), 1)

    def test_what_is_not_an_object_is_no_answer(self) -> None:
        for body in (b"[]", b"", b"<html>"):
            self.failureResultOf(self.ask(answer(body)), Unreachable)
            self.clock.advance(100)
        self.assertEqual(self.destinations.failures("a.test"), 3)

    def test_refusals(self) -> None:
        for status, body, expected, counts in (
            (403, b'{"errcode":"M_FORBIDDEN","error":"No."}', ("M_FORBIDDEN", "No."), 0),
            (404, b"<html>", ("M_UNKNOWN", "status 404"), 0),
            (302, b"", ("M_UNKNOWN", "status 302"), 1),
            (400, b'{"errcode":1,"error":[]}', ("M_UNKNOWN", "status 400"), 0),
            (500, b'{"errcode":"M_UNKNOWN","error":"x"}', ("M_UNKNOWN", "x"), 1),
            (403, b'{"errcode":"' + b"E" * 999 + b'","error":"' + b"x" * 999 + b'"}', ("E" * 255, "x" * 500), 0),
        ):
            self.setUp()
            error = self.failureResultOf(self.ask(answer(body, status)), RemoteRefused).value
            self.assertEqual((error.remote_errcode, error.remote_error), expected)
            self.assertEqual(self.destinations.failures("a.test"), counts)
            self.assertEqual(self.outcomes, ["refused"])

    def test_a_refusal_that_no_homeserver_wrote_says_nothing_of_it(self) -> None:
        self.successResultOf(Deferred.fromCoroutine(self.destinations.failed("a.test")))
        self.clock.advance(100)
        self.failureResultOf(self.ask(answer(b"<html>", 404)), RemoteRefused)
        self.assertEqual(self.destinations.failures("a.test"), 1)
        self.failureResultOf(self.ask(answer(b'{"errcode":"M_NOT_FOUND","error":"x"}', 404)), RemoteRefused)
        self.assertEqual(self.destinations.failures("a.test"), 0)

    def test_any_answer_of_who_wants_it_raw(self) -> None:
        for status, body, outcome, counts in (
            (200, b'{"a": 1}', "ok", 0),
            (200, b"[no object]", "ok", 0),
            (404, b'{"errcode":"M_UNRECOGNIZED","error":"x"}', "refused", 0),
            (404, b"<html>", "refused", 0),
            (500, b'{"errcode":"M_UNKNOWN"}', "refused", 1),
        ):
            self.setUp()
            self.http.answers.append(answer(body, status))
            request = FederationRequest(method="PUT", destination="a.test", path="/x", body={"a": 1})
            said = self.successResultOf(Deferred.fromCoroutine(self.client.ask(request)))
            self.assertEqual((said.status, said.body), (status, body))
            self.assertEqual((self.outcomes, self.destinations.failures("a.test")), ([outcome], counts))
        self.http.answers.append(Unreachable("gone"))
        self.failureResultOf(Deferred.fromCoroutine(self.client.ask(request)), Unreachable)
        self.assertEqual(self.destinations.failures("a.test"), 1)

    def test_a_refusal_does_not_sign_a_client_out(self) -> None:
        error = RemoteRefused(401, "M_UNKNOWN_TOKEN", "Who are you?")
        self.assertEqual((error.status, error.errcode), (502, "M_UNKNOWN"))
        self.assertIs(error.forwarded(), error)
        self.assertIsInstance(RemoteRefused(404, "M_NOT_FOUND", "Gone.").forwarded(), MatrixError)
        self.assertEqual(RemoteRefused(404, "M_NOT_FOUND", "Gone.").forwarded().errcode, "M_NOT_FOUND")

    def test_turns(self) -> None:
        pending: list[Deferred[HttpAnswer]] = [Deferred() for _ in range(RUNNING_PER_DESTINATION + 1)]
        asking = [self.ask(one) for one in pending]
        self.assertEqual(len(self.http.asked), RUNNING_PER_DESTINATION)
        pending[0].callback(answer())
        self.assertEqual(len(self.http.asked), RUNNING_PER_DESTINATION + 1)
        for one in pending[1:]:
            one.callback(answer())
        for one_asking in asking:
            self.successResultOf(one_asking)
        self.assertEqual(self.client._slots, {})

    def test_whoever_waits_too_long_for_a_turn_is_told_and_the_destination_not_blamed(self) -> None:
        running = [self.ask(Deferred()) for _ in range(RUNNING_PER_DESTINATION)]
        waiting = self.ask(timeout_ms=5000)
        self.clock.advance(5)
        self.failureResultOf(waiting, Busy)
        self.assertEqual(self.destinations.failures("a.test"), 0)
        self.leave(running)

    def test_only_so_many_wait(self) -> None:
        running = [self.ask(Deferred()) for _ in range(RUNNING_PER_DESTINATION)]
        waiting = [self.ask() for _ in range(WAITING_PER_DESTINATION)]
        self.failureResultOf(self.ask(), Busy)
        self.leave(waiting + running)
        self.assertEqual(self.client._slots, {})

    def leave(self, asking: list[Deferred[dict[str, Any]]]) -> None:
        for one in asking:
            one.cancel()
            self.failureResultOf(one, CancelledError)

    def test_who_goes_away_leaves_no_trace(self) -> None:
        asking = self.ask(Deferred())
        asking.cancel()
        self.failureResultOf(asking, CancelledError)
        self.assertEqual((self.client._slots, len(self.destinations)), ({}, 0))

    def test_what_cannot_be_written_is_no_crash(self) -> None:
        request = FederationRequest(method="PUT", destination="a.test", path="/x", body={"a": "\ud800"})
        self.failureResultOf(Deferred.fromCoroutine(self.client.request(request)), Unreachable)


class DestinationsTests(ClientCase):
    def failed(self) -> None:
        self.successResultOf(Deferred.fromCoroutine(self.destinations.failed("a.test")))

    def wait(self) -> int | None:
        error = self.assertRaises(BackingOff, self.destinations.check, "a.test")
        wait: int | None = error.retry_after_ms
        return wait

    def test_waits_double_until_the_server_is_given_up(self) -> None:
        waits = []
        for _ in range(4):
            self.failed()
            waits.append(self.wait())
            self.clock.advance((waits[-1] or 0) / 1000)
        self.assertEqual(waits, [2000, 4000, 8000, None])
        self.clock.advance(10_000_000)
        self.assertIsNone(self.wait())

    def test_failures_of_one_moment_count_once(self) -> None:
        for _ in range(10):
            self.failed()
        self.assertEqual((self.destinations.failures("a.test"), self.wait()), (1, 2000))

    def test_what_is_reached_is_forgotten(self) -> None:
        self.failed()
        self.successResultOf(Deferred.fromCoroutine(self.destinations.reached("a.test")))
        self.destinations.check("a.test")
        self.assertEqual(len(self.destinations), 0)

    def test_who_is_heard_of_again_is_told_of(self) -> None:
        told: list[str] = []
        self.destinations.on_reached = told.append
        self.successResultOf(Deferred.fromCoroutine(self.destinations.reached("a.test")))
        self.successResultOf(Deferred.fromCoroutine(self.destinations.failed("b.test")))
        self.successResultOf(Deferred.fromCoroutine(self.destinations.reached("b.test")))
        self.assertEqual(told, ["b.test"])

    def test_a_restart_remembers(self) -> None:
        self.failed()
        again = Destinations(self.database, self.time, max_retries=3)
        again.prepare()
        self.assertRaises(BackingOff, again.check, "a.test")
        self.successResultOf(Deferred.fromCoroutine(again.reached("a.test")))
        third = Destinations(self.database, self.time, max_retries=3)
        third.prepare()
        self.assertEqual(len(third), 0)

    def test_long_waits_are_bounded(self) -> None:
        self.destinations = Destinations(self.database, self.time, max_retries=62)
        for _ in range(40):
            self.failed()
            self.clock.advance(24 * 3600)
        self.failed()
        self.assertEqual(self.wait(), 24 * 3_600_000)

    def test_names_that_strangers_invent_do_not_fill_the_disk(self) -> None:
        self.patch(destinations, "REMEMBERED", 10)
        for number in range(25):
            self.successResultOf(Deferred.fromCoroutine(self.destinations.failed(f"s{number}.test")))
        self.assertEqual(len(self.destinations), 10)
        rows = self.database.prepare(unreachable_servers, 100)
        self.assertEqual({row.server_name for row in rows}, {f"s{number}.test" for number in range(15, 25)})

    def test_servers_that_nobody_tries_are_forgotten(self) -> None:
        self.failed()
        self.clock.advance(KEPT_MS / 1000 + 1)
        self.successResultOf(Deferred.fromCoroutine(self.destinations.prune()))
        self.assertEqual(len(self.destinations), 0)
        again = Destinations(self.database, self.time, max_retries=3)
        again.prepare()
        self.assertEqual(len(again), 0)

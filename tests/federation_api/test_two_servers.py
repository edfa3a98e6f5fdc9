"""Two servers speak: a name is found, a certificate checked, keys are fetched, a request is signed and believed."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.federation_api.api import BackingOff, FederationRequest, RemoteRefused, Unreachable
from dendrite_tw.federation_api.client import path_of
from dendrite_tw.matrix.errors import forbidden
from dendrite_tw.web.routes import Access, Route

from .network import FederationServer, Network, key_of


class Echo:
    """An endpoint for servers that says who asked for what."""

    def routes(self) -> list[Route]:
        return [
            Route("PUT", "/_matrix/federation/v1/send/{txn_id}", self.send, Access.SERVER),
            Route("GET", "/_matrix/federation/v1/event/{event_id}", self.event, Access.SERVER),
            Route("GET", "/_matrix/federation/v1/state/{room_id}", self.refuse, Access.SERVER),
        ]

    async def send(self, origin: str, txn_id: str, body: dict[str, Any]) -> dict[str, Any]:
        return {"origin": origin, "txn_id": txn_id, "body": body}

    async def event(self, origin: str, event_id: str) -> dict[str, Any]:
        return {"origin": origin, "event_id": event_id}

    async def refuse(self, origin: str, room_id: str) -> dict[str, Any]:
        raise forbidden("You are not in this room.")


class TwoServersTests(SynchronousTestCase):
    def setUp(self) -> None:
        clock = Clock()
        clock.advance(1_700_000_000)
        self.network = Network(clock)
        self.alpha = FederationServer(self.network, "alpha.test", "192.0.2.1", key_of(1))
        self.beta = FederationServer(self.network, "beta.test", "192.0.2.2", key_of(2), routes=Echo().routes)

    def ask(self, path: str, body: Any = None, **options: Any) -> Any:
        request = FederationRequest(
            method="GET" if body is None else "PUT", destination="beta.test", path=path, body=body, **options
        )
        return self.network.begin(self.alpha.component.request(request))

    def test_a_request_is_signed_and_believed(self) -> None:
        body = {"pdus": [{"content": {"n": 1, "text": "ü\u2028"}}], "big": 2**53 - 1}
        answer = self.successResultOf(self.ask("/_matrix/federation/v1/send/1", body))
        self.assertEqual(answer, {"origin": "alpha.test", "txn_id": "1", "body": body})
        self.assertEqual(self.alpha.outcomes, [("PUT", "ok")])

    def test_numbers_of_old_rooms_are_signed_too(self) -> None:
        body = {"pdus": [{"depth": 1.5, "n": 2**60}]}
        answer = self.successResultOf(self.ask("/_matrix/federation/v1/send/1", body))
        self.assertEqual(answer["body"], body)

    def test_encoded_paths_and_queries_are_covered(self) -> None:
        path = path_of("/_matrix/federation/v1/event/{}", "$a/b c:beta.test")
        answer = self.successResultOf(self.ask(path, query=[("limit", "1"), ("v", "ü&x y")]))
        self.assertEqual(answer["event_id"], "$a/b c:beta.test")

    def test_connections_are_used_again(self) -> None:
        for number in range(5):
            self.successResultOf(self.ask(f"/_matrix/federation/v1/send/{number}", {}))
        to_beta = [place for place in self.network.connections if place == ("192.0.2.2", 8448)]
        self.assertEqual(len(to_beta), 1)

    def test_a_refusal_is_told(self) -> None:
        error = self.failureResultOf(self.ask("/_matrix/federation/v1/state/x"), RemoteRefused).value
        self.assertEqual(
            (error.remote_status, error.remote_errcode, error.remote_error),
            (403, "M_FORBIDDEN", "You are not in this room."),
        )
        self.assertEqual(error.status, 502)
        self.assertEqual(error.forwarded().status, 403)

    def test_an_unknown_endpoint_is_a_refusal(self) -> None:
        error = self.failureResultOf(self.ask("/_matrix/federation/v1/nothing"), RemoteRefused).value
        self.assertEqual((error.remote_status, error.remote_errcode), (404, "M_UNRECOGNIZED"))

    def test_without_a_key_nothing_is_believed(self) -> None:
        self.alpha.go_offline()
        error = self.failureResultOf(self.ask("/_matrix/federation/v1/send/1", {}), RemoteRefused).value
        self.assertEqual((error.remote_status, error.remote_errcode), (401, "M_UNAUTHORIZED"))

    def test_a_server_that_is_gone_is_left_in_peace_and_tried_again(self) -> None:
        self.successResultOf(self.ask("/_matrix/federation/v1/send/0", {}))
        self.beta.go_offline()
        self.failureResultOf(self.ask("/_matrix/federation/v1/send/1", {}), Unreachable)
        tried = len(self.network.connections)
        error = self.failureResultOf(self.ask("/_matrix/federation/v1/send/1", {}), BackingOff).value
        self.assertEqual(error.retry_after_ms, 2000)
        self.assertEqual(len(self.network.connections), tried)
        self.beta.go_online()
        self.successResultOf(self.ask("/_matrix/federation/v1/send/1", {}, despite_backoff=True))
        self.successResultOf(self.ask("/_matrix/federation/v1/send/2", {}))

    def test_one_that_stays_gone_is_given_up_until_it_speaks(self) -> None:
        self.beta.go_offline()
        for _ in range(4):
            self.failureResultOf(self.ask("/_matrix/federation/v1/send/1", {}), Unreachable)
            self.network.advance(60)
        self.network.advance(10 * 86_400)
        self.assertIsNone(self.failureResultOf(self.ask("/x"), BackingOff).value.retry_after_ms)
        restarted = FederationServer(
            self.network, "alpha.test", "192.0.2.1", key_of(1), routes=Echo().routes, database=self.alpha.database
        )
        self.alpha = restarted
        self.failureResultOf(self.ask("/x"), BackingOff)
        self.beta.go_online()
        self.successResultOf(
            self.network.begin(self.beta.component.client.get_json("alpha.test", "/_matrix/federation/v1/event/$x"))
        )
        self.successResultOf(self.ask("/_matrix/federation/v1/send/1", {}))

    def test_a_name_that_is_none_or_our_own_is_not_asked(self) -> None:
        for name in ("", "a b", "alpha.test", "beta.test/../x", "[::1", "beta.test:99999"):
            request = FederationRequest(method="GET", destination=name, path="/x")
            self.failureResultOf(self.network.begin(self.alpha.component.request(request)), Unreachable)
        self.assertEqual(self.network.connections, [])

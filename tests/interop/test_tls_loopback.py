"""The HTTP client over real sockets: the system's resolver, TLS with names checked, and the networks."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IListeningPort
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from dendrite_tw.config.tree import FederationApi
from dendrite_tw.matrix.errors import MatrixError
from dendrite_tw.web.client import HttpClient, Peer
from dendrite_tw.web.internet import Unreachable
from dendrite_tw.web.names import SystemNames
from dendrite_tw.web.networks import Networks
from dendrite_tw.web.routes import Access, Route
from dendrite_tw.web.site import make_root, make_site
from dendrite_tw.web.tls import ClientTls
from tests.federation_api.network import Script, response, server_options, trust_root
from tests.harness import KnownCallers, NoLimits

THING = "/_matrix/federation/v1/thing"


def coroutine(test: Callable[[Any], Coroutine[Any, Any, None]]) -> Callable[[Any], Deferred[None]]:
    @wraps(test)
    def run(self: Any) -> Deferred[None]:
        return Deferred.fromCoroutine(test(self))

    return run


class LoopbackTests(TestCase):
    def setUp(self) -> None:
        async def thing(body: dict[str, Any]) -> dict[str, Any]:
            return {"heard": body}

        routes = [Route("PUT", THING, thing, Access.PUBLIC)]
        root = make_root(routes, KnownCallers({}), NoLimits(), lambda endpoint, status: None)
        site = make_site(root, reactor)
        listen: Any = reactor
        self.port: IListeningPort = listen.listenSSL(0, site, server_options("localhost"), interface="127.0.0.1")
        self.number: int = self.port.getHost().port
        self.clients: list[HttpClient] = []

    @coroutine
    async def tearDown(self) -> None:  # type: ignore[override]
        for client in self.clients:
            await client.close()
        await self.stop_listening()

    async def stop_listening(self) -> None:
        stopped = self.port.stopListening()
        if stopped is not None:
            await stopped

    def client(self, networks: Networks | None = None, tls: ClientTls | None = None) -> HttpClient:
        made = HttpClient(
            reactor, SystemNames(reactor), networks or Networks([], []), tls or ClientTls(trust_root=trust_root())
        )
        self.clients.append(made)
        return made

    async def refused(self, client: HttpClient, peer: Peer) -> str:
        try:
            await client.request_at(peer, "PUT", THING, [], b"{}", 10)
        except Unreachable as error:
            return error.reason
        raise AssertionError("there was an answer")

    @coroutine
    async def test_a_name_that_the_system_knows(self) -> None:
        client = self.client()
        body = b'{"text": "' + b"x" * 200_000 + b'"}'
        for _ in range(3):
            answer = await client.request("PUT", f"https://localhost:{self.number}{THING}", [], body, 10)
            self.assertEqual(len(answer.json_object()["heard"]["text"]), 200_000)

    @coroutine
    async def test_the_wrong_certificate(self) -> None:
        peer = Peer("example.test", self.number, "example.test", ("127.0.0.1",))
        self.assertIn("certificate", await self.refused(self.client(), peer))

    @coroutine
    async def test_an_unknown_authority(self) -> None:
        peer = Peer("localhost", self.number, "localhost")
        self.assertIn("certificate", await self.refused(self.client(tls=ClientTls()), peer))
        anybody = self.client(tls=ClientTls(validate=False))
        self.assertEqual((await anybody.request_at(peer, "PUT", THING, [], b"{}", 10)).status, 200)

    @coroutine
    async def test_the_networks_of_the_defaults_keep_out_of_here(self) -> None:
        defaults = FederationApi()
        client = self.client(Networks(defaults.deny_networks, defaults.allow_networks))
        self.assertIn("may not connect", await self.refused(client, Peer("localhost", self.number, "localhost")))

    @coroutine
    async def test_errors_are_of_the_vocabulary(self) -> None:
        client = self.client()
        await self.stop_listening()
        try:
            await client.request("GET", f"https://localhost:{self.number}/")
        except MatrixError as error:
            self.assertEqual(error.status, 502)
        else:
            self.fail("there was an answer")

    @coroutine
    async def test_closing_does_not_wait_for_a_peer_that_fell_silent(self) -> None:
        script = Script(response(b"{}"))
        listen: Any = reactor
        port = listen.listenSSL(0, script, server_options("localhost"), interface="127.0.0.1")
        client = self.client()
        await client.request("GET", f"https://localhost:{port.getHost().port}/")
        peer: Any = script.made[0]
        peer.transport.pauseProducing()
        try:
            await client.close().addTimeout(5, listen)
        finally:
            peer.transport.abortConnection()
            await port.stopListening()
            while not peer.closed:
                await deferLater(listen, 0.01)

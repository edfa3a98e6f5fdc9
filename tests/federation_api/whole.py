"""A whole homeserver on a network in memory, and other servers that speak to it.

`WholeServerTestCase` has a server named ``test`` with all of its components; `Stranger` is another server of which
there is a name, a key and whatever the test makes it say.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

import orjson
from twisted.internet.defer import Deferred

from dendrite_tw.federation_api.api import FederationRequest
from dendrite_tw.federation_api.xmatrix import sign_request
from dendrite_tw.matrix.keys import SigningKey
from dendrite_tw.web.internet import Internet
from dendrite_tw.web.routes import Route
from tests.harness import Answer
from tests.server import POLYLITH, ServerTestCase

from .network import FederationServer, Network, NetworkInternet, key_of

BETWEEN = 5 if POLYLITH else 0
"""How often an answer of another server may go on between processes before the next one is asked."""

WHOLE_ADDRESS = "192.0.2.100"


class WholeServerTestCase(ServerTestCase):
    """A test on a server that federates."""

    def setUp(self) -> None:
        self._network: Network | None = None
        self.nets: list[NetworkInternet] = []
        """Where each process finds others."""
        super().setUp()

    @property
    def network(self) -> Network:
        if self._network is None:
            self._network = Network(self.clock)
        return self._network

    def internet(self) -> Internet | None:
        self.nets.append(NetworkInternet(self.network))
        return self.nets[-1]

    def federating(self) -> list[Any]:
        """What talks to others, in each process that has it."""
        if POLYLITH:
            return [process.parts.federating for process in self.server.processes["federation_api"]]  # type: ignore
        return [self.server.parts.federating]

    def counted(self, what: str) -> Counter[str]:
        """How many events (``pdus``) or EDUs came, by what is counted, at all processes."""
        counts = Counter[str]()
        for one in self.federating():
            counts.update({key: count for (key,), count in getattr(one.inbound, what).items()})
        return counts

    def start(self, seed: int = 0) -> Any:
        server = super().start(seed)
        self.network.names.known["test"] = [WHOLE_ADDRESS]
        if POLYLITH:
            self.network.settle = self.pump
        self.network.listen(WHOLE_ADDRESS, 8448, server.factory(self.clock), certificate_for="test")
        return server

    def pump(self, seconds: float = 0.0) -> None:
        super().pump(seconds)
        if self._network is not None:
            self._network.flush()
            for _ in range(BETWEEN):
                super().pump()
                self._network.flush()

    def stranger(
        self, name: str = "stranger.test", seed: int = 77, routes: Callable[[], list[Route]] = list
    ) -> Stranger:
        """Another server, which publishes its key and serves `routes`."""
        return Stranger(self.network, self.request, name, seed, "test", routes)


class Stranger:
    """Another server: asks ours, and publishes the key that it signs with."""

    def __init__(
        self,
        network: Network,
        send: Callable[..., Answer],
        name: str,
        seed: int,
        destination: str,
        routes: Callable[[], list[Route]] = list,
    ) -> None:
        """`send` is given method, target, body and headers; `destination` is whom the requests are signed for."""
        self._network = network
        self._send = send
        self._destination = destination
        self.name = name
        self.key = key_of(seed)
        self.address = f"192.0.2.{seed}"
        self.server = FederationServer(network, name, self.address, self.key, routes=routes)

    def signed(
        self, method: str, uri: str, body: bytes | None = None, destination: str = "", key: SigningKey | None = None
    ) -> str:
        """The Authorization header of a request."""
        return sign_request(key or self.key, self.name, destination or self._destination, method, uri, body)

    def request(self, method: str, path: str, body: Any = None, query: Any = ()) -> Answer:
        """The answer to a signed request; `path` is encoded already, `body` JSON unless it is bytes."""
        uri = f"{path}?{urlencode(query, doseq=True)}" if query else path
        data = body if isinstance(body, bytes) or body is None else orjson.dumps(body)
        return self._send(method, uri, data, headers={"Authorization": self.signed(method, uri, data)})

    def get(self, path: str, **query: Any) -> Answer:
        return self.request("GET", "/_matrix/federation" + path, None, query)

    def put(self, path: str, body: Any, **query: Any) -> Answer:
        return self.request("PUT", "/_matrix/federation" + path, body, query)

    def post(self, path: str, body: Any, **query: Any) -> Answer:
        return self.request("POST", "/_matrix/federation" + path, body, query)

    def ask(self, path: str, **options: Any) -> Deferred[dict[str, Any]]:
        """The answer over the network, TLS and all."""
        asked = FederationRequest(method="GET", destination=self._destination, path=path, **options)
        return self._network.begin(self.server.component.request(asked))

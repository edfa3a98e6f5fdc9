"""A whole homeserver on a network in memory, and other servers that speak to it.

`WholeServerTestCase` has a server named ``test`` with all of its components; `Stranger` is another server of which
there is a name, a key and whatever the test makes it say.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

import orjson
from twisted.internet.defer import Deferred

from dendrite_tw.federation_api.api import FederationRequest
from dendrite_tw.federation_api.xmatrix import sign_request
from dendrite_tw.matrix.keys import SigningKey
from dendrite_tw.web.internet import Internet
from dendrite_tw.web.site import make_site
from tests.harness import Answer
from tests.server import ServerTestCase

from .network import FederationServer, Network, NetworkInternet, key_of

WHOLE_ADDRESS = "192.0.2.100"


class WholeServerTestCase(ServerTestCase):
    """A test on a server that federates."""

    def setUp(self) -> None:
        self._network: Network | None = None
        super().setUp()

    @property
    def network(self) -> Network:
        if self._network is None:
            self._network = Network(self.clock)
        return self._network

    def internet(self) -> Internet | None:
        self.net = NetworkInternet(self.network)
        return self.net

    def start(self, seed: int = 0) -> Any:
        server = super().start(seed)
        self.network.names.known["test"] = [WHOLE_ADDRESS]
        self.network.listen(WHOLE_ADDRESS, 8448, make_site(server.site, self.clock), certificate_for="test")
        return server

    def pump(self, seconds: float = 0.0) -> None:
        super().pump(seconds)
        if self._network is not None:
            self._network.flush()

    def stranger(self, name: str = "stranger.test", seed: int = 77) -> Stranger:
        """Another server, which publishes its key."""
        return Stranger(self, name, key_of(seed), f"192.0.2.{100 + seed}")


class Stranger:
    """Another server: asks ours, and publishes the key that it signs with."""

    def __init__(self, case: WholeServerTestCase, name: str, key: SigningKey, address: str) -> None:
        self._case = case
        self.name = name
        self.key = key
        self.address = address
        self.server = FederationServer(case.network, name, address, key)

    def signed(
        self, method: str, uri: str, body: Any = None, destination: str = "test", key: SigningKey | None = None
    ) -> str:
        """The Authorization header of a request."""
        content = body if isinstance(body, bytes) or body is None else orjson.dumps(body)
        return sign_request(key or self.key, self.name, destination, method, uri, content)

    def request(self, method: str, path: str, body: Any = None, query: Any = ()) -> Answer:
        """The answer to a signed request; `path` is encoded already."""
        uri = f"{path}?{urlencode(query)}" if query else path
        data = body if isinstance(body, bytes) or body is None else orjson.dumps(body)
        return self._case.request(method, uri, data, headers={"Authorization": self.signed(method, uri, data)})

    def get(self, path: str, **query: Any) -> Answer:
        return self.request("GET", "/_matrix/federation" + path, None, query)

    def put(self, path: str, body: Any, **query: Any) -> Answer:
        return self.request("PUT", "/_matrix/federation" + path, body, query)

    def post(self, path: str, body: Any, **query: Any) -> Answer:
        return self.request("POST", "/_matrix/federation" + path, body, query)

    def ask(self, path: str, **options: Any) -> Deferred[dict[str, Any]]:
        """The answer over the network, TLS and all."""
        asked = FederationRequest(method="GET", destination="test", path=path, **options)
        return self._case.network.begin(self.server.component.request(asked))

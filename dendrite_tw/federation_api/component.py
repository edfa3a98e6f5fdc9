"""The federation component: everything that speaks to other servers, made and introduced.

Server-Server API.  It is the transport: requests and their answers, keys, who signed what.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..database.engines import Database
from ..database.migrate import migrate, steps_of
from ..links.echoes import Echoes
from ..web.internet import HttpRequests, Locator
from ..web.names import Names
from ..web.routes import Route
from ..world import World
from .api import (
    Download,
    DownloadRequest,
    FederationRequest,
    KeysWanted,
    RawAnswer,
    ServerKey,
    SignatureCheck,
    SignedRequest,
)
from .client import FederationClient, Observer
from .destinations import Destinations
from .downloads import Downloads
from .failures import FailedRequests
from .keyring import REREAD_SECONDS, KeyRing, Perspective
from .notary import Notary
from .resolver import ServerResolver
from .routes import KeyRoutes
from .signing_keys import OwnKeys
from .xmatrix import Asked, ServerAuthenticator

log = Logger()

KEY_SECONDS = 10.0
KEY_LIMIT = 256 << 10
NOTARY_LIMIT = 4 << 20
"""Bytes of a document of keys, and of a notary's answer with many of them."""

PRUNE_SECONDS = 3600


class FederationComponent:
    """Serves `FederationAPI` and the endpoints for keys."""

    def __init__(
        self,
        database: Database,
        http: HttpRequests,
        names: Names,
        own: OwnKeys,
        world: World,
        perspectives: Sequence[Perspective] = (),
        prefer_direct_fetch: bool = False,
        send_max_retries: int = 16,
        locator: Locator | None = None,
        observe: Observer = lambda method, outcome: None,
        echoes: Echoes | None = None,
    ) -> None:
        """`locator` finds servers in another way than the specification's, for tests."""
        self._database = database
        self.own = own
        self.destinations = Destinations(database, world.clock, send_max_retries, echoes)
        self.locator = locator or ServerResolver(http, names, world.clock, world.random)
        self.client = FederationClient(http, self.locator, self.destinations, own, world.time, observe)
        self.downloads = Downloads(self.client, http)
        self.keys = KeyRing(
            own, database, KeyQuestions(self.client), world.time, world.clock, perspectives, prefer_direct_fetch, echoes
        )
        self.notary = Notary(self.keys, own, database, world.clock)
        self.servers = ServerAuthenticator(
            frozenset([own.server_name]),
            self.keys,
            world.clock.now_ms,
            self.destinations.reached,
            FailedRequests(world.clock),
        )
        self._http = http
        self._pruning = LoopingCall(lambda: Deferred.fromCoroutine(self.prune()).addErrback(_unpruned))
        self._pruning.clock = world.time
        self._rereading = LoopingCall(self.keys.forget)
        self._rereading.clock = world.time

    def prepare(self) -> None:
        """Bring the database up to date and read which servers do not answer."""
        self._database.prepare(migrate, "federation_api", steps_of("dendrite_tw.federation_api"))
        self.destinations.prepare()

    async def start(self) -> None:
        self._pruning.start(PRUNE_SECONDS, now=False)
        if self._database.shared:
            await self.destinations.load()
            self._rereading.start(REREAD_SECONDS, now=False)

    async def stop(self) -> None:
        for loop in (self._pruning, self._rereading):
            if loop.running:
                loop.stop()
        await self._http.close()

    def routes(self) -> list[Route]:
        return KeyRoutes(self.own, self.notary).routes()

    async def request(self, request: FederationRequest) -> dict[str, Any]:
        """`FederationAPI.request`."""
        return await self.client.request(request)

    async def ask(self, request: FederationRequest) -> RawAnswer:
        """`FederationAPI.ask`."""
        return await self.client.ask(request)

    async def fetch_keys(self, wanted: list[KeysWanted]) -> list[ServerKey]:
        """`FederationAPI.fetch_keys`."""
        return await self.keys.fetch(wanted)

    async def download(self, request: DownloadRequest) -> Download:
        """`FederationAPI.download`."""
        return await self.downloads.download(request)

    async def check_signatures(self, checks: list[SignatureCheck]) -> list[str | None]:
        """`FederationAPI.check_signatures`."""
        return await self.keys.verify_all(checks)

    async def origin_of(self, request: SignedRequest) -> str:
        """`FederationAPI.origin_of`."""
        return await self.servers.origin_of(Asked(request))

    async def prune(self) -> None:
        """Delete what is kept for a while only, and learn what another process perhaps did not live to tell."""
        await self.keys.prune()
        await self.destinations.prune()
        await self.destinations.load()


class KeyQuestions:
    """Asks servers for keys: without a signature, which could not be checked before the keys are known."""

    def __init__(self, client: FederationClient) -> None:
        self._client = client

    async def server_keys(self, server_name: str) -> dict[str, Any]:
        """A server's own document, also of one that did not answer lately: the key ring has a measure of its own."""
        return await self._client.get_json(
            server_name,
            "/_matrix/key/v2/server",
            seconds=KEY_SECONDS,
            limit=KEY_LIMIT,
            signed=False,
            despite_backoff=True,
        )

    async def notary_keys(self, notary: str, question: dict[str, Any]) -> dict[str, Any]:
        """A notary's answer to ``POST /_matrix/key/v2/query``."""
        return await self._client.put_json(
            notary,
            "/_matrix/key/v2/query",
            (),
            question,
            seconds=KEY_SECONDS,
            limit=NOTARY_LIMIT,
            signed=False,
            method="POST",
        )


def _unpruned(failure: Failure) -> None:
    log.failure("what is kept of other servers for a while only could not be deleted", failure=failure)

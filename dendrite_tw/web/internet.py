"""The way out of this process: where clients of other servers, and answers about names, come from.

`World.internet` is an `Internet`: `SystemInternet` in a server that people use, and whatever a test or a simulation
puts in its place.  What is made here is handed on as plain arguments.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from ..matrix.errors import MatrixError
from .networks import Networks

if TYPE_CHECKING:
    from ..world import Clock
    from .client import HttpAnswer, Peer
    from .names import Names


class Unreachable(MatrixError):
    """There was no answer, or none that can be used; says why in words that hold nothing secret."""

    def __init__(self, reason: str, **extra: Any) -> None:
        super().__init__(502, "M_UNKNOWN", reason, **extra)
        self.reason = reason


Write = Callable[[bytes], None]

Sink = Callable[["HttpAnswer"], Write | None]
"""Is shown the head of an answer and says where its body is written; with `None` a megabyte of it is kept."""


class PeerRequests(Protocol):
    """Makes requests to whom somebody has found already: all that federation itself needs."""

    async def request_at(
        self,
        peer: Peer,
        method: str,
        target: str,
        headers: Iterable[tuple[str, str]] = (),
        body: bytes | None = None,
        seconds: float = 30.0,
        limit: int = 1 << 20,
        sink: Sink | None = None,
    ) -> HttpAnswer:
        """The answer of `peer` within `seconds` and of at most `limit` bytes, whatever its status; or `Unreachable`.

        With a `sink` the body goes where that says, and so far as it takes it.
        """

    def close(self) -> Awaitable[Any]:
        """Close what is open; done when that is closed."""


class HttpRequests(PeerRequests, Protocol):
    """Makes requests for URLs too, as `client.HttpClient` does."""

    async def request(
        self,
        method: str,
        url: str,
        headers: Iterable[tuple[str, str]] = (),
        body: bytes | None = None,
        seconds: float = 30.0,
        limit: int = 1 << 20,
        redirects: int = 0,
        sink: Sink | None = None,
    ) -> HttpAnswer:
        """As `client.HttpClient.request`."""


class Locator(Protocol):
    """Where a server is found."""

    async def resolve(self, server_name: str) -> Sequence[Peer]:
        """The places to try, in order; `Unreachable` where there is none."""

    def forget(self, server_name: str) -> None:
        """None of the places answered: look anew the next time."""


class NameCache(msgspec.Struct, frozen=True):
    """``global.dns_cache``: how many names are kept, and how long."""

    size: int
    lifetime_ms: int


class ClientOptions(msgspec.Struct, frozen=True):
    """How a client connects: ``validate_tls`` false takes any certificate; without ``keep_alive`` each request has a
    connection of its own."""

    networks: Networks
    validate_tls: bool = True
    keep_alive: bool = True


class Internet(Protocol):
    """Where connections to others come from."""

    @property
    def locator(self) -> Locator | None:
        """Finds servers in another way than the specification's; `None` in the real world."""

    def names(self, cache: NameCache | None) -> Names:
        """Answers about names; with `cache` they are kept for a while."""

    def client(self, names: Names, options: ClientOptions) -> HttpRequests:
        """Makes requests."""


class SystemInternet:
    """The operating system's network."""

    locator: Locator | None = None

    def __init__(self, reactor: Any, clock: Clock) -> None:
        self._reactor = reactor
        self._clock = clock

    def names(self, cache: NameCache | None) -> Names:
        from .names import CachedNames, SystemNames

        names = SystemNames(self._reactor)
        return names if cache is None else CachedNames(names, self._clock, cache.size, cache.lifetime_ms)

    def client(self, names: Names, options: ClientOptions) -> HttpRequests:
        # TLS and the authorities of the system take five megabytes, of no use to a server that keeps to itself.
        from .client import HttpClient
        from .tls import ClientTls

        tls = ClientTls(validate=options.validate_tls)
        return HttpClient(self._reactor, names, options.networks, tls, keep_alive=options.keep_alive)

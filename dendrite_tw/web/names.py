"""Names to addresses: what this server asks of the DNS.

`Names` is handed to whoever connects, so that a test answers from a dict.  `SystemNames` asks the operating system
for addresses, which knows ``/etc/hosts`` too, and a name server for services.  `CachedNames` is ``global.dns_cache``.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

import msgspec
from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore
from twisted.internet.interfaces import IHostnameResolver, IReactorTime, IResolutionReceiver
from twisted.names import dns
from twisted.names.client import Resolver
from zope.interface import implementer

from ..world import Clock

T = TypeVar("T")

ADDRESS_LIMIT = 16
"""How many addresses of a name are looked at."""

_HOST = re.compile(r"[0-9A-Za-z_.-]{1,253}\Z")

LOOKUPS = 6
"""How many lookups may be under way: each holds one of the reactor's ten threads, however slow the name server is."""

LOOKUP_SECONDS = 60
"""After so long a lookup is taken for failed, and its thread for free."""

SERVICE_LIMIT = 16
SERVICE_TIMEOUTS = (2, 4)
"""Seconds that a name server has for its answer, one for each attempt."""


class UnknownName(Exception):
    """A name has no address, or nobody could be asked."""


class Service(msgspec.Struct, frozen=True):
    """An SRV record (RFC 2782)."""

    priority: int
    weight: int
    host: str
    port: int


class Names(Protocol):
    """Answers questions about names."""

    async def addresses(self, host: str) -> list[str]:
        """The IPv4 and IPv6 addresses of `host`, the preferred first; `UnknownName` where there is none."""

    async def services(self, name: str) -> list[Service]:
        """The SRV records at `name`; none where there are none or nobody could be asked."""


@implementer(IResolutionReceiver)
class _Collector:
    """Gathers addresses until there will be no more, or it takes too long.

    `on_complete` is called then, also where nobody waits for ``complete`` any longer.
    """

    def __init__(self, on_complete: Callable[[], object], time: IReactorTime) -> None:
        self.found: list[str] = []
        self.complete: Deferred[list[str]] = Deferred()
        self._on_complete = on_complete
        self._timer = time.callLater(LOOKUP_SECONDS, self._end)

    def resolutionBegan(self, resolutionInProgress: Any) -> None:
        return None

    def addressResolved(self, address: Any) -> None:
        if len(self.found) < ADDRESS_LIMIT and address.host not in self.found:
            self.found.append(address.host)

    def resolutionComplete(self) -> None:
        if self._timer.active():
            self._timer.cancel()
            self._end()

    def _end(self) -> None:
        self._on_complete()
        if not self.complete.called:
            self.complete.callback(self.found)


class SystemNames:
    """Asks the operating system and its name server."""

    def __init__(self, reactor: Any, resolv_conf: str = "/etc/resolv.conf") -> None:
        self._reactor = reactor
        self._resolv_conf = resolv_conf
        self._services: Resolver | None = None
        self._turns = DeferredSemaphore(LOOKUPS)

    async def addresses(self, host: str) -> list[str]:
        if not _is_host(host):
            raise UnknownName(f"{host[:100]!r} can have no address")
        await self._turns.acquire()
        collector = _Collector(self._turns.release, self._reactor)
        resolver: IHostnameResolver = self._reactor.nameResolver
        resolver.resolveHostName(collector, host, transportSemantics="TCP")
        found = await collector.complete
        if not found:
            raise UnknownName(f"{host} has no address")
        return found

    async def services(self, name: str) -> list[Service]:
        if self._services is None:
            self._services = Resolver(resolv=self._resolv_conf, reactor=self._reactor)
        try:
            answers, _, _ = await self._services.lookupService(name, SERVICE_TIMEOUTS)
        except CancelledError:
            raise
        except Exception:
            # No such name, no such record, a name server that does not answer: without records the specification
            # goes on to the next step, and the certificate is checked in each.
            return []
        records = [answer.payload for answer in answers if answer.type == dns.SRV]
        return [
            Service(record.priority, record.weight, str(record.target.name, "ascii", "replace"), record.port)
            for record in records[:SERVICE_LIMIT]
        ]


def _is_host(host: str) -> bool:
    """Whether the system can be asked for `host`.  It fails for some names in ways that nobody is told of."""
    try:
        return _HOST.match(host) is not None and bool(host.encode("idna"))
    except UnicodeError:
        return False


class CachedNames:
    """Keeps the answers of another `Names` for a while."""

    def __init__(self, names: Names, clock: Clock, size: int, lifetime_ms: int) -> None:
        self._names = names
        self._clock = clock
        self._size = size
        self._lifetime_ms = lifetime_ms
        self._kept: OrderedDict[tuple[str, str], tuple[int, Any]] = OrderedDict()

    async def addresses(self, host: str) -> list[str]:
        return await self._cached("addresses", host, self._names.addresses)

    async def services(self, name: str) -> list[Service]:
        return await self._cached("services", name, self._names.services)

    async def _cached(self, kind: str, name: str, ask: Callable[[str], Awaitable[list[T]]]) -> list[T]:
        key, now = (kind, name.lower()), self._clock.now_ms()
        expires, value = self._kept.get(key, (0, None))
        if value is not None and now < expires:
            self._kept.move_to_end(key)
            return list(value)
        answer = await ask(name)
        self._kept[key] = (now + self._lifetime_ms, answer)
        self._kept.move_to_end(key)
        while len(self._kept) > self._size:
            self._kept.popitem(last=False)
        return list(answer)

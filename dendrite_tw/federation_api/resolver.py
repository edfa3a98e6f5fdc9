"""Where a server is found: from its name to whom to connect to, and what is kept of the answers.

Server-Server API, "Resolving server names".  Addresses are looked up when a connection is made, not here: as long as
one is kept nobody asks the DNS.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import NamedTuple

import msgspec

from ..matrix.identifiers import is_server_name
from ..web.client import HttpAnswer, HttpClient, Peer, Unreachable, is_address
from ..web.names import Names, Service
from ..world import Clock, Random
from .shared import SharedCalls

DEFAULT_PORT = 8448
SERVICES = ("_matrix-fed._tcp.", "_matrix._tcp.")
"""The names of the SRV records, the second deprecated."""

PEERS_KEPT_MS = 300_000
SERVERS_KEPT = 10_000

WELL_KNOWN_LIMIT = 50 << 10
WELL_KNOWN_SECONDS = 10.0
WELL_KNOWN_REDIRECTS = 5
SHORTEST_MS = 300_000
DEFAULT_MS = 24 * 3_600_000
LONGEST_MS = 48 * 3_600_000
"""How long an answer of a well-known file counts: at least, if it does not say, and at most."""

FIRST_ERROR_MS = 60_000
LONGEST_ERROR_MS = 3_600_000
"""How long a failure counts: each in a row twice as long as the one before."""


class Place(NamedTuple):
    """A server name taken apart: ``host`` without brackets, ``text`` with them."""

    host: str
    text: str
    port: int | None


class WellKnown(msgspec.Struct, frozen=True):
    """What a host's file says: ``delegate`` is the server name in it, `None` where there is no valid one."""

    delegate: str | None
    fetched_ts: int
    expires_ts: int
    failures: int = 0


class ServerResolver:
    """Finds servers."""

    def __init__(self, http: HttpClient, names: Names, clock: Clock, random: Random) -> None:
        self._http = http
        self._names = names
        self._clock = clock
        self._random = random
        self._peers: OrderedDict[str, tuple[int, list[Peer]]] = OrderedDict()
        self._files: OrderedDict[str, WellKnown] = OrderedDict()
        self._asking: SharedCalls[str, WellKnown] = SharedCalls()

    async def resolve(self, server_name: str) -> Sequence[Peer]:
        """Whom to connect to, the preferred first.  `Unreachable` where the name is malformed."""
        if not is_server_name(server_name):
            raise Unreachable("the server's name is malformed")
        now = self._clock.now_ms()
        kept = self._peers.get(server_name)
        if kept is not None and now < kept[0]:
            self._peers.move_to_end(server_name)
            return kept[1]
        peers = await self._find(server_name)
        self._peers[server_name] = (now + PEERS_KEPT_MS, peers)
        self._peers.move_to_end(server_name)
        if len(self._peers) > SERVERS_KEPT:
            self._peers.popitem(last=False)
        return peers

    def forget(self, server_name: str) -> None:
        """Look anew the next time; also at the well-known file, unless that was read just now."""
        self._peers.pop(server_name, None)
        if is_server_name(server_name):
            host = split_server_name(server_name).host
            known = self._files.get(host)
            if known is not None and known.delegate and known.fetched_ts + SHORTEST_MS <= self._clock.now_ms():
                self._files[host] = msgspec.structs.replace(known, expires_ts=0)

    async def _find(self, server_name: str) -> list[Peer]:
        """The steps of the specification; a delegated name takes the same ones, but for the well-known file."""
        place = split_server_name(server_name)
        if is_address(place.host) or place.port is not None:
            return [_at(place, server_name)]
        known = await self._well_known(place.host)
        if known.delegate is None:
            return await self._by_services(place)
        delegate = split_server_name(known.delegate)
        if is_address(delegate.host) or delegate.port is not None:
            return [_at(delegate, known.delegate)]
        return await self._by_services(delegate)

    async def _by_services(self, place: Place) -> list[Peer]:
        for prefix in SERVICES:
            services = [one for one in await self._names.services(prefix + place.host) if one.host not in ("", ".")]
            if services:
                return [
                    Peer(place.host, one.port, place.text, (one.host.rstrip("."),)) for one in self._ordered(services)
                ]
        return [_at(place, place.text)]

    def _ordered(self, services: list[Service]) -> list[Service]:
        """By priority, and among equals by chance, as their weights say (RFC 2782)."""
        chance = {one: self._random.uniform(0.0, 1.0) ** (1.0 / max(one.weight, 0.01)) for one in services}
        return sorted(services, key=lambda one: (one.priority, -chance[one]))

    # --- the well-known file ---

    async def _well_known(self, host: str) -> WellKnown:
        known = self._files.get(host)
        if known is not None and self._clock.now_ms() < known.expires_ts:
            self._files.move_to_end(host)
            return known
        return await self._asking.run(host, lambda: self._read_file(host))

    async def _read_file(self, host: str) -> WellKnown:
        before, now = self._files.get(host), self._clock.now_ms()
        delegate, lifetime = None, 0
        try:
            answer = await self._http.request(
                "GET",
                f"https://{host}/.well-known/matrix/server",
                [("Accept", "application/json")],
                seconds=WELL_KNOWN_SECONDS,
                limit=WELL_KNOWN_LIMIT,
                redirects=WELL_KNOWN_REDIRECTS,
            )
            delegate = _delegate(answer)
            lifetime = _lifetime(answer, now)
        except Unreachable:
            if before is not None and before.delegate and now < before.fetched_ts + LONGEST_MS:
                return self._keep(host, msgspec.structs.replace(before, expires_ts=now + FIRST_ERROR_MS))
        if delegate is None:
            failures = 0 if before is None or before.delegate else before.failures
            lifetime = min(FIRST_ERROR_MS << min(failures, 16), LONGEST_ERROR_MS)
            return self._keep(host, WellKnown(None, now, now + lifetime, failures + 1))
        return self._keep(host, WellKnown(delegate, now, now + lifetime))

    def _keep(self, host: str, known: WellKnown) -> WellKnown:
        self._files[host] = known
        self._files.move_to_end(host)
        if len(self._files) > SERVERS_KEPT:
            self._files.popitem(last=False)
        return known


def split_server_name(server_name: str) -> Place:
    """Take a valid server name apart."""
    text, colon, port = server_name.rpartition(":")
    if not colon or not port.isdigit() or text.endswith(":") or server_name.endswith("]"):
        text, port = server_name, ""
    return Place(text.strip("[]"), text, int(port) if port else None)


def _at(place: Place, host_header: str) -> Peer:
    return Peer(place.host, DEFAULT_PORT if place.port is None else place.port, host_header)


def _delegate(answer: HttpAnswer) -> str | None:
    """The server name in a well-known file, if it is one."""
    if answer.status != 200:
        return None
    try:
        delegate = answer.json_object().get("m.server")
    except Unreachable:
        return None
    return delegate if is_server_name(delegate) else None


def _lifetime(answer: HttpAnswer, now: int) -> int:
    """How long the headers allow an answer to be kept, in milliseconds and within reason."""
    wanted = DEFAULT_MS
    directives = [part.strip().lower() for part in (answer.header("cache-control") or "").split(",")]
    ages = [part[8:].strip('"') for part in directives if part.startswith("max-age=")]
    if "no-store" in directives or "no-cache" in directives:
        wanted = 0
    elif ages and ages[0].isdecimal() and ages[0].isascii():
        wanted = int(ages[0][:9]) * 1000
    elif expires := answer.header("expires"):
        try:
            wanted = int(parsedate_to_datetime(expires).replace(tzinfo=UTC).timestamp() * 1000) - now
        except (ValueError, OverflowError):
            wanted = 0
    return max(SHORTEST_MS, min(wanted, LONGEST_MS))

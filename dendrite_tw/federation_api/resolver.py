"""Where a server is found: the network's answers to the questions of `matrix.discovery`, and what is kept of them.

Server-Server API, "Resolving server names".
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from email.utils import parsedate_to_datetime

import msgspec

from ..matrix import discovery
from ..matrix.discovery import Answer, FetchWellKnown, LookUpSRV, NoAddress, Question, SRVRecord, Target
from ..web.client import HttpAnswer, Peer
from ..web.internet import HttpRequests, Unreachable
from ..web.names import Names, UnknownName
from ..world import Clock, Random
from .shared import SharedCalls

PEERS_KEPT_MS = 300_000
"""How long the result of a search is used; a server that cannot be reached is searched anew."""

SERVERS_KEPT = 10_000

WELL_KNOWN_SECONDS = 10.0
RENEWED_MS = 300_000
"""A well-known file that is older is read again when the server that it names cannot be reached."""


class _File(msgspec.Struct, frozen=True):
    """What a host's well-known file said, and when."""

    known: discovery.WellKnown
    fetched_ts: int
    expires_ts: int


class ServerResolver:
    """Finds servers."""

    def __init__(self, http: HttpRequests, names: Names, clock: Clock, random: Random) -> None:
        self._http = http
        self._names = names
        self._clock = clock
        self._random = random
        self._peers: OrderedDict[str, tuple[int, list[Peer]]] = OrderedDict()
        self._files: OrderedDict[str, _File] = OrderedDict()
        self._searches: SharedCalls[str, list[Peer]] = SharedCalls()
        self._readings: SharedCalls[str, discovery.WellKnown] = SharedCalls()

    async def resolve(self, server_name: str) -> Sequence[Peer]:
        """Whom to connect to, the preferred first; `Unreachable` where there is nobody."""
        kept = self._peers.get(server_name)
        if kept is not None and self._clock.now_ms() < kept[0]:
            self._peers.move_to_end(server_name)
            return kept[1]
        return await self._searches.run(server_name, lambda: self._search(server_name))

    def forget(self, server_name: str) -> None:
        """Search anew the next time; also in the well-known file, unless that was read just now."""
        self._peers.pop(server_name, None)
        file = self._files.get(server_name)
        if file is not None and file.known.server and file.fetched_ts + RENEWED_MS <= self._clock.now_ms():
            self._files[server_name] = msgspec.structs.replace(file, expires_ts=0)

    async def _search(self, server_name: str) -> list[Peer]:
        search = discovery.resolve(server_name)
        answer: Answer = None
        try:
            while True:
                answer = await self._answer(search.send(answer))
        except StopIteration as found:
            peers = _grouped(found.value)
        except ValueError:
            raise Unreachable("the server's name is malformed") from None
        except NoAddress as error:
            raise Unreachable(str(error)) from None
        self._peers[server_name] = (self._clock.now_ms() + PEERS_KEPT_MS, peers)
        self._peers.move_to_end(server_name)
        if len(self._peers) > SERVERS_KEPT:
            self._peers.popitem(last=False)
        return peers

    async def _answer(self, question: Question) -> Answer:
        if isinstance(question, FetchWellKnown):
            return (await self._well_known(question.host)).server
        if isinstance(question, LookUpSRV):
            found = await self._names.services(question.name)
            # Among records of the same priority and weight chance decides: discovery keeps the order of equals.
            found.sort(key=lambda one: self._random.uniform(0.0, 1.0))
            return [SRVRecord(one.priority, one.weight, one.port, one.host) for one in found]
        try:
            return await self._names.addresses(question.host)
        except UnknownName:
            return []

    # --- the well-known file ---

    async def _well_known(self, host: str) -> discovery.WellKnown:
        file = self._files.get(host)
        if file is not None and self._clock.now_ms() < file.expires_ts:
            self._files.move_to_end(host)
            return file.known
        return await self._readings.run(host, lambda: self._read(host))

    async def _read(self, host: str) -> discovery.WellKnown:
        before, now = self._files.get(host), self._clock.now_ms()
        try:
            answer = await self._http.request(
                "GET",
                f"https://{host}/.well-known/matrix/server",
                [("Accept", "application/json")],
                seconds=WELL_KNOWN_SECONDS,
                limit=discovery.MAX_WELL_KNOWN_BYTES,
                redirects=discovery.MAX_WELL_KNOWN_REDIRECTS,
            )
        except Unreachable:
            if before and before.known.server and now < before.fetched_ts + discovery.WELL_KNOWN_MAXIMUM_MS:
                # Nobody answers, which says nothing against what the file said before.
                expires = now + discovery.WELL_KNOWN_FIRST_ERROR_MS
                self._files[host] = msgspec.structs.replace(before, expires_ts=expires)
                return before.known
            known = None
        else:
            known = discovery.read_well_known(
                answer.status,
                answer.body,
                cache_control=answer.header("cache-control"),
                age=answer.header("age"),
                expires_in_ms=_expires_in_ms(answer),
            )
        known = known or discovery.well_known_failed(before.known if before else None)
        self._files[host] = _File(known, now, now + known.fresh_for_ms)
        self._files.move_to_end(host)
        if len(self._files) > SERVERS_KEPT:
            self._files.popitem(last=False)
        return known


def _grouped(targets: Sequence[Target]) -> list[Peer]:
    """The targets as peers: neighbours that differ in their address only are one, whose addresses are raced."""
    peers: list[Peer] = []
    for target in targets:
        peer = Peer(target.certificate_name, target.port, target.host_header, (target.address,))
        if peers and msgspec.structs.replace(peers[-1], hosts=peer.hosts) == peer:
            peers[-1] = msgspec.structs.replace(peer, hosts=peers[-1].hosts + peer.hosts)
        else:
            peers.append(peer)
    return peers


def _expires_in_ms(answer: HttpAnswer) -> int | None:
    """The time from a response's ``Date`` to its ``Expires``; none where either is missing, 0 where it is malformed."""
    date, expires = answer.header("date"), answer.header("expires")
    if date is None or expires is None:
        return None
    try:
        return int((parsedate_to_datetime(expires) - parsedate_to_datetime(date)).total_seconds() * 1000)
    except (ValueError, TypeError, OverflowError):
        return 0

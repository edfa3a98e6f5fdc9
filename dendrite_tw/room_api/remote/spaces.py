"""Rooms that this server is not in, as other servers describe them: for spaces and for summaries.

Server-Server API, ``GET /hierarchy/{roomId}``.  An answer is kept for a while; it tells of a space's children too, so
that of those which are no spaces themselves nobody has to be asked.  What a user may be shown, the caller decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import quote

import msgspec
import orjson

from ...cache import Cache, CacheBudget
from ...federation_api.api import FederationAPI, FederationRequest, Unreachable
from ...matrix.canonical_json import CanonicalJSONError, encode_lenient
from ...matrix.identifiers import is_historical_user_id, is_room_id, is_server_name, server_name_of
from ...world import Clock
from ..api import PublicRoom

SECONDS = 10.0
LIMIT = 4 << 20
SERVERS_ASKED = 3
CHILDREN_LIMIT = 1000
VIA_LIMIT = 3
"""Servers that are remembered with a child."""

KEPT_MS = 5 * 60_000
UNKNOWN_MS = 60_000
"""How long an answer is kept, and how long it is that nobody had one."""

QUESTIONS = 20
QUESTIONS_MS = 15_000
"""How many questions one page of a space's tree may cost, and after what time none is begun."""

TEXT_LIMIT = 65_536
ORDER_LENGTH = 50
SPACE = "m.space"
SPACE_CHILD = "m.space.child"


class Child(msgspec.Struct, frozen=True):
    """A child of a space: ``via`` are servers that know it, ``shown`` is the stripped event as JSON."""

    room_id: str
    via: tuple[str, ...]
    suggested: bool
    shown: bytes
    order: tuple[bool, str, int, str]
    """Children with a valid order come first, by it; then by time, then by room."""


class FarRoom(msgspec.Struct, frozen=True, kw_only=True):
    """A room as others describe it; ``inaccessible`` are children of which this server shall not come to know."""

    summary: PublicRoom
    children: tuple[Child, ...] = ()
    inaccessible: frozenset[str] = frozenset()


class Later(Exception):
    """To know this room somebody would have to be asked, and enough were asked for now."""


class Questions:
    """How many questions are left for one page."""

    def __init__(self, clock: Clock, count: int = QUESTIONS) -> None:
        self._clock = clock
        self._left = count
        self._deadline = clock.now_ms() + QUESTIONS_MS

    def take(self) -> None:
        """One more is to be asked; `Later` where that is too many."""
        if self._left <= 0 or self._clock.now_ms() >= self._deadline:
            raise Later
        self._left -= 1


class _Kept(msgspec.Struct, frozen=True):
    room: FarRoom | None
    until: int


class FarRooms:
    """Asks other servers for rooms, and remembers their answers."""

    def __init__(self, federation: FederationAPI, budget: CacheBudget, clock: Clock, server_name: str) -> None:
        self._federation = federation
        self._clock = clock
        self._server_name = server_name
        self._known: Cache[str, _Kept] = Cache("far_rooms", budget, _size)

    async def look(self, room_id: str, via: Iterable[str], questions: Questions) -> FarRoom | None:
        """What others say of a room; `None` where none of those that may know it says anything.

        `Later` where they would have to be asked, and `questions` has none left.
        """
        known = self._known.get(room_id)
        if known is not None and self._clock.now_ms() < known.until:
            return known.room
        found = None
        for server in self._servers(room_id, via):
            questions.take()
            found = await self._ask(server, room_id)
            if found is not None:
                break
        self._keep(room_id, found)
        return found

    def _servers(self, room_id: str, via: Iterable[str]) -> list[str]:
        """Whom to ask: those that are named, then the one that made the room."""
        named = [server for server in via if is_server_name(server)]
        maker = [server_name_of(room_id)] if ":" in room_id else []
        servers = dict.fromkeys([*named, *maker])
        servers.pop(self._server_name, None)
        return list(servers)[:SERVERS_ASKED]

    def _keep(self, room_id: str, room: FarRoom | None) -> None:
        until = self._clock.now_ms() + (UNKNOWN_MS if room is None else KEPT_MS)
        self._known.put(room_id, _Kept(room, until))

    async def _ask(self, server: str, room_id: str) -> FarRoom | None:
        question = FederationRequest(
            method="GET",
            destination=server,
            path=f"/_matrix/federation/v1/hierarchy/{quote(room_id, safe='')}",
            query=[("suggested_only", "false")],
            timeout_ms=int(SECONDS * 1000),
            response_limit=LIMIT,
        )
        try:
            answer = await self._federation.ask(question)
            said = orjson.loads(answer.body) if answer.status == 200 else None
        except (Unreachable, orjson.JSONDecodeError):
            return None
        if not isinstance(said, dict):
            return None
        room = read_room(said.get("room"), said.get("inaccessible_children"))
        if room is None or room.summary.room_id != room_id:
            return None
        self._keep_children(said.get("children"), {child.room_id for child in room.children})
        return room

    def _keep_children(self, entries: object, children: set[str]) -> None:
        """Remember what is told of a space's children, unless they are spaces: of these more is to be known."""
        for entry in entries[:CHILDREN_LIMIT] if isinstance(entries, list) else []:
            child = read_room(entry, None)
            if child is None or child.summary.room_id not in children or child.summary.room_type == SPACE:
                continue
            known = self._known.get(child.summary.room_id)
            if known is None or known.room is None or known.until <= self._clock.now_ms():
                self._keep(child.summary.room_id, child)


def read_room(entry: object, inaccessible: object) -> FarRoom | None:
    """A room in another server's answer; `None` where it is malformed."""
    if not isinstance(entry, dict):
        return None
    try:
        summary = msgspec.convert({key: value for key, value in entry.items() if value is not None}, PublicRoom)
    except msgspec.ValidationError:
        return None
    texts = (summary.name, summary.topic, summary.canonical_alias, summary.avatar_url, summary.join_rule)
    if not is_room_id(summary.room_id) or any(len(text or "") > TEXT_LIMIT for text in texts):
        return None
    state = entry.get("children_state") if summary.room_type == SPACE else None
    found = [read_child(event) for event in state[:CHILDREN_LIMIT]] if isinstance(state, list) else []
    hidden = inaccessible[:CHILDREN_LIMIT] if isinstance(inaccessible, list) else []
    return FarRoom(
        summary=summary,
        children=tuple(sorted(filter(None, found), key=lambda child: child.order)),
        inaccessible=frozenset(room_id for room_id in hidden if isinstance(room_id, str)),
    )


def read_child(event: object) -> Child | None:
    """A child event, stripped and with a time, as a `Child`; `None` where it is none, or not valid."""
    if not isinstance(event, dict) or event.get("type") != SPACE_CHILD:
        return None
    content, room_id, sender = event.get("content"), event.get("state_key"), event.get("sender")
    ts = event.get("origin_server_ts")
    if not isinstance(content, dict) or not is_room_id(room_id) or not isinstance(ts, int) or isinstance(ts, bool):
        return None
    if not isinstance(sender, str) or not is_historical_user_id(sender):
        return None
    return child_of(content, room_id, sender, ts)


def child_of(content: dict[str, Any], room_id: str, sender: str, ts: int) -> Child | None:
    """The child that an event with this content, state key, sender and time makes; `None` where it is not valid."""
    via = content.get("via")
    if not isinstance(via, list) or not via or not all(isinstance(server, str) for server in via):
        return None
    if not is_room_id(room_id):
        return None
    order = content.get("order")
    if not isinstance(order, str) or len(order) > ORDER_LENGTH or not all(" " <= char <= "~" for char in order):
        order = ""
    shown = {
        "type": SPACE_CHILD,
        "state_key": room_id,
        "content": content,
        "sender": sender,
        "origin_server_ts": ts,
    }
    try:
        encoded = encode_lenient(shown)
    except CanonicalJSONError:
        return None
    return Child(
        room_id=room_id,
        via=tuple(via[:VIA_LIMIT]),
        suggested=content.get("suggested") is True,
        shown=encoded,
        order=(not order, order, ts, room_id),
    )


def _size(kept: _Kept) -> int:
    if kept.room is None:
        return 300
    texts: Sequence[str | None] = (kept.room.summary.name, kept.room.summary.topic)
    children = sum(len(child.shown) + 400 for child in kept.room.children)
    return 1500 + sum(len(text or "") for text in texts) + children + 100 * len(kept.room.inaccessible)

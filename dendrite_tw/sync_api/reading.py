"""Endpoints that read events of a room: a page of history, one event, what surrounds or relates to it.

Who may see what is the room component's to say; here the events are dressed:
bundled aggregations, the caller's transaction IDs, and nothing of users whom
the caller ignores.  Client-Server API, "Getting events for a room",
"Aggregations of child events", "Threading", "Ignoring Users".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec
import orjson

from ..matrix.errors import invalid_param, not_found
from ..matrix.filters import CompiledEventFilter, RoomEventFilter, load_json, parse_room_event_filter
from ..room_api.api import Membership, RoomAPI, RoomEvent
from ..user_api.api import Caller, UserAPI
from ..web.routes import Access, Limit, Route
from ..world import Clock
from .notifier import Notifier
from .request import database_filter
from .splice import Renderer, array
from .timeline import memberships_at
from .tokens import parse_page_token

DEFAULT_PAGE = 10
MAX_PAGE = 1000
MAX_CONTEXT = 100
DEFAULT_RELATIONS = 50
RECURSION_DEPTH = 3
"""How many steps of relations ``recurse`` follows, as the room component does."""

TIMES = Limit("timestamp_to_event")
"""Other servers may have to be asked."""

Direction = Literal["b", "f"]


class MessagesQuery(msgspec.Struct, frozen=True):
    dir: Direction
    from_token: str | None = msgspec.field(name="from", default=None)
    to: str | None = None
    limit: int = DEFAULT_PAGE
    filter: str | None = None


class ContextQuery(msgspec.Struct, frozen=True):
    limit: int = DEFAULT_PAGE
    filter: str | None = None


class RelationsQuery(msgspec.Struct, frozen=True):
    from_token: str | None = msgspec.field(name="from", default=None)
    to: str | None = None
    limit: int = DEFAULT_RELATIONS
    dir: Direction = "b"
    recurse: bool = False


class ThreadsQuery(msgspec.Struct, frozen=True):
    include: Literal["all", "participated"] = "all"
    from_token: str | None = msgspec.field(name="from", default=None)
    limit: int = DEFAULT_RELATIONS


class TimestampQuery(msgspec.Struct, frozen=True):
    ts: int
    dir: Direction


def page_limit(limit: int, maximum: int = MAX_PAGE, minimum: int = 1) -> int:
    """A limit within bounds; 400 ``M_INVALID_PARAM`` where it is negative."""
    if limit < 0:
        raise invalid_param("limit must not be negative.")
    return max(minimum, min(limit, maximum))


def event_filter(parameter: str | None) -> RoomEventFilter:
    """The ``RoomEventFilter`` that a query gives as JSON."""
    return parse_room_event_filter(load_json(parameter)) if parameter else RoomEventFilter()


class EventReader:
    """Answers the endpoints that read events."""

    def __init__(self, rooms: RoomAPI, users: UserAPI, notifier: Notifier, renderer: Renderer, clock: Clock) -> None:
        self._rooms = rooms
        self._users = users
        self._notifier = notifier
        self._renderer = renderer
        self._clock = clock

    def routes(self) -> list[Route]:
        v3, v1 = "/_matrix/client/v3/rooms/{room_id}", "/_matrix/client/v1/rooms/{room_id}"
        relations = v1 + "/relations/{event_id}"
        return [
            Route("GET", v3 + "/messages", self.messages, Access.GUEST),
            Route("GET", v3 + "/context/{event_id}", self.context, Access.GUEST),
            Route("GET", v3 + "/event/{event_id}", self.event, Access.GUEST),
            Route("GET", relations, self.relations, Access.GUEST),
            Route("GET", relations + "/{rel_type}", self.relations_of_type, Access.GUEST),
            Route("GET", relations + "/{rel_type}/{event_type}", self.relations_of_event_type, Access.GUEST),
            Route("GET", v1 + "/threads", self.threads, Access.GUEST),
            Route("GET", v1 + "/timestamp_to_event", self.timestamp_to_event, Access.GUEST, TIMES),
        ]

    # --- dressing ---

    async def ignored(self, user_id: str) -> frozenset[str]:
        """The users whose messages the caller is not shown."""
        stream = self._notifier.active(user_id)
        if stream is not None and stream.loading is None:
            return stream.ignored
        return await self._users.ignored_users(user_id)

    async def dress(self, caller: Caller, room_id: str, events: Sequence[RoomEvent]) -> list[bytes]:
        """Events of a room as JSON, with what others add to them."""
        messages = [event.event_id for event in events if event.state_key is None]
        live = [event for event in events if event.position > 0]
        if not messages and not live:
            return self._renderer.render_full(events, self._clock.now_ms(), caller, {}, {})
        found = await self._rooms.dressing(room_id, messages, caller.user_id)
        memberships = memberships_of(caller, live, found.membership)
        return self._renderer.render_full(events, self._clock.now_ms(), caller, memberships, found.bundles)

    async def _shown(self, caller: Caller, events: Sequence[RoomEvent]) -> list[RoomEvent]:
        """Without the messages of those whom the caller ignores."""
        ignored = await self.ignored(caller.user_id)
        if not ignored:
            return list(events)
        return [event for event in events if event.state_key is not None or event.sender not in ignored]

    # --- endpoints ---

    async def messages(self, room_id: str, caller: Caller, query: MessagesQuery) -> bytes:
        """``GET /rooms/{roomId}/messages``."""
        wanted = event_filter(query.filter)
        page = await self._rooms.messages(
            room_id,
            caller.user_id,
            query.dir,
            parse_page_token(query.from_token),
            parse_page_token(query.to),
            page_limit(query.limit),
            database_filter(wanted),
            wanted.lazy_load_members,
        )
        check = CompiledEventFilter(wanted)
        events = [e for e in page.events if check.check(e.type, e.sender, e.room_id, e.has_url, e.rel_type)]
        chunk = await self.dress(caller, room_id, await self._shown(caller, events))
        parts = [b'{"start":' + orjson.dumps(query.from_token or page.start), b'"chunk":' + array(chunk)]
        if page.end is not None:
            parts.append(b'"end":' + orjson.dumps(page.end))
        if page.state:
            parts.append(b'"state":' + array(await self.dress(caller, room_id, page.state)))
        return b",".join(parts) + b"}"

    async def context(self, room_id: str, event_id: str, caller: Caller, query: ContextQuery) -> bytes:
        """``GET /rooms/{roomId}/context/{eventId}``."""
        wanted = event_filter(query.filter)
        limit = page_limit(query.limit, MAX_CONTEXT, 0)
        found = await self._rooms.context(
            room_id, caller.user_id, event_id, limit, database_filter(wanted), wanted.lazy_load_members
        )
        check = CompiledEventFilter(wanted)

        async def dressed(events: Sequence[RoomEvent]) -> bytes:
            kept = [e for e in events if check.check(e.type, e.sender, e.room_id, e.has_url, e.rel_type)]
            return array(await self.dress(caller, room_id, await self._shown(caller, kept)))

        return b'{"start":%b,"end":%b,"event":%b,"events_before":%b,"events_after":%b,"state":%b}' % (
            orjson.dumps(found.start),
            orjson.dumps(found.end),
            (await self.dress(caller, room_id, [found.event]))[0],
            await dressed(found.events_before),
            await dressed(found.events_after),
            await dressed(found.state),
        )

    async def event(self, room_id: str, event_id: str, caller: Caller) -> bytes:
        """``GET /rooms/{roomId}/event/{eventId}``."""
        event = await self._rooms.event(room_id, caller.user_id, event_id)
        if event.state_key is None and event.sender in await self.ignored(caller.user_id):
            raise not_found("The event was sent by a user whom you ignore.")
        return (await self.dress(caller, room_id, [event]))[0]

    async def relations(self, room_id: str, event_id: str, caller: Caller, query: RelationsQuery) -> bytes:
        """``GET /rooms/{roomId}/relations/{eventId}``."""
        return await self._relations(room_id, event_id, None, None, caller, query)

    async def relations_of_type(
        self, room_id: str, event_id: str, rel_type: str, caller: Caller, query: RelationsQuery
    ) -> bytes:
        """``GET /rooms/{roomId}/relations/{eventId}/{relType}``."""
        return await self._relations(room_id, event_id, rel_type, None, caller, query)

    async def relations_of_event_type(
        self, room_id: str, event_id: str, rel_type: str, event_type: str, caller: Caller, query: RelationsQuery
    ) -> bytes:
        """``GET /rooms/{roomId}/relations/{eventId}/{relType}/{eventType}``."""
        return await self._relations(room_id, event_id, rel_type, event_type, caller, query)

    async def _relations(
        self,
        room_id: str,
        event_id: str,
        rel_type: str | None,
        event_type: str | None,
        caller: Caller,
        query: RelationsQuery,
    ) -> bytes:
        page = await self._rooms.relations(
            room_id,
            caller.user_id,
            event_id,
            rel_type,
            event_type,
            query.dir,
            parse_page_token(query.from_token),
            parse_page_token(query.to),
            page_limit(query.limit),
            query.recurse,
        )
        chunk = await self.dress(caller, room_id, await self._shown(caller, page.events))
        parts = [b'{"chunk":' + array(chunk)]
        if page.end is not None:
            parts.append(b'"next_batch":' + orjson.dumps(page.end))
        if query.from_token is not None:
            parts.append(b'"prev_batch":' + orjson.dumps(query.from_token))
        if query.recurse:
            parts.append(b'"recursion_depth":%d' % RECURSION_DEPTH)
        return b",".join(parts) + b"}"

    async def threads(self, room_id: str, caller: Caller, query: ThreadsQuery) -> bytes:
        """``GET /rooms/{roomId}/threads``; roots of ignored users are shown without their content."""
        page = await self._rooms.threads(
            room_id, caller.user_id, query.include, parse_page_token(query.from_token), page_limit(query.limit)
        )
        ignored = await self.ignored(caller.user_id)
        roots = [emptied(e) if e.sender in ignored and e.state_key is None else e for e in page.events]
        parts = [b'{"chunk":' + array(await self.dress(caller, room_id, roots))]
        if page.end is not None:
            parts.append(b'"next_batch":' + orjson.dumps(page.end))
        return b",".join(parts) + b"}"

    async def timestamp_to_event(self, room_id: str, caller: Caller, query: TimestampQuery) -> dict[str, str | int]:
        """``GET /rooms/{roomId}/timestamp_to_event``."""
        event_id, ts = await self._rooms.timestamp_to_event(room_id, caller.user_id, query.ts, query.dir)
        return {"event_id": event_id, "origin_server_ts": ts}


def memberships_of(caller: Caller, live: Sequence[RoomEvent], member: Membership | None) -> dict[str, str]:
    """The caller's membership at those of the live events for which their current one tells it."""
    if member is None:
        return {}
    ordered = sorted(live, key=lambda event: event.position)
    found = memberships_at(caller.user_id, member, ordered)
    return {e.event_id: at for e, at in zip(ordered, found, strict=True) if at is not None}


def emptied(event: RoomEvent) -> RoomEvent:
    """A message event as it would be after a redaction: of its content nothing is left."""
    return msgspec.structs.replace(event, client=orjson.dumps({**orjson.loads(event.client), "content": {}}))

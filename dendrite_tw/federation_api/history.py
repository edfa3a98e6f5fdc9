"""What other servers ask of rooms: events, their state and authority, and what came before them.

Server-Server API, "Retrieving events", "Retrieving event authorisation information", "Backfilling and retrieving
missing events".  What a server may see is for the room component to decide.
"""

from __future__ import annotations

from typing import Any

import msgspec
import orjson

from ..matrix.errors import bad_json, invalid_param, missing_param, not_found
from ..matrix.identifiers import is_event_id
from ..room_api.api import RoomAPI
from ..web.routes import Access, Response, Route
from ..world import Clock
from .streams import EventStreams

V1 = "/_matrix/federation/v1"

BACKFILL_LIMIT = 100
BACKFILL_FROM = 100
"""How many events one answer may have, and how many it may start from."""

MISSING_LIMIT = 50
MISSING_DEFAULT = 10
MISSING_FROM = 500
LATEST_TS = 2**53 - 1


class AtQuery(msgspec.Struct, frozen=True):
    event_id: str


class BackfillQuery(msgspec.Struct, frozen=True):
    v: list[str]
    limit: int


class TimestampQuery(msgspec.Struct, frozen=True):
    ts: int
    dir: str


class MissingBody(msgspec.Struct, frozen=True):
    """What a server has, and what refers to events that it lacks; who names nothing is told nothing."""

    earliest_events: list[str] = []
    latest_events: list[str] = []
    limit: int = MISSING_DEFAULT
    min_depth: int = 0


class HistoryRoutes:
    """Serves events to servers that may see them."""

    def __init__(self, rooms: RoomAPI, streams: EventStreams, clock: Clock, server_name: str) -> None:
        self._rooms = rooms
        self._streams = streams
        self._clock = clock
        self._server_name = server_name

    def routes(self) -> list[Route]:
        def row(method: str, path: str, handler: Any) -> Route:
            return Route(method, f"{V1}/{path}", handler, Access.SERVER, cors=False)

        return [
            row("GET", "event/{event_id}", self.event),
            row("GET", "state/{room_id}", self.state),
            row("GET", "state_ids/{room_id}", self.state_ids),
            row("GET", "event_auth/{room_id}/{event_id}", self.event_auth),
            row("GET", "backfill/{room_id}", self.backfill),
            row("POST", "get_missing_events/{room_id}", self.missing_events),
            row("GET", "timestamp_to_event/{room_id}", self.timestamp_to_event),
        ]

    async def event(self, origin: str, event_id: str) -> dict[str, Any]:
        """One event."""
        found = await self._rooms.events_for_server(origin, [_event_id(event_id)])
        if event_id not in found:
            raise not_found("There is no such event that the server may see.")
        return self._transaction([found[event_id]])

    async def state(self, origin: str, room_id: str, query: AtQuery) -> Response:
        """The state before an event, and its authority."""
        self._streams.check(origin)
        state, auth_chain = await self._state(origin, room_id, query)
        return self._streams.response(origin, b"{", [("pdus", state), ("auth_chain", auth_chain)])

    async def state_ids(self, origin: str, room_id: str, query: AtQuery) -> dict[str, Any]:
        state, auth_chain = await self._state(origin, room_id, query)
        return {"pdu_ids": state, "auth_chain_ids": auth_chain}

    async def _state(self, origin: str, room_id: str, query: AtQuery) -> tuple[list[str], list[str]]:
        await self._rooms.check_server(room_id, origin)
        return await self._rooms.state_ids_for_server(origin, room_id, _event_id(query.event_id))

    async def event_auth(self, origin: str, room_id: str, event_id: str) -> Response:
        """The events that an event's authority rests on."""
        self._streams.check(origin)
        await self._rooms.check_server(room_id, origin)
        chain = await self._rooms.event_auth_for_server(origin, room_id, _event_id(event_id))
        return self._streams.response(origin, b"{", [("auth_chain", chain)])

    async def backfill(self, origin: str, room_id: str, query: BackfillQuery) -> dict[str, Any]:
        """Events and what came before them."""
        if not query.v:
            raise missing_param("v is required.")
        if query.limit < 0:
            raise invalid_param("limit is negative.")
        if len(query.v) > BACKFILL_FROM:
            raise invalid_param(f"At most {BACKFILL_FROM} events may be named.")
        event_ids = [_event_id(event_id) for event_id in query.v]
        await self._rooms.check_server(room_id, origin)
        limit = min(query.limit, BACKFILL_LIMIT)
        return self._transaction(await self._rooms.backfill_for_server(origin, room_id, event_ids, limit))

    async def missing_events(self, origin: str, room_id: str, body: MissingBody) -> dict[str, Any]:
        """The events between what a server has and what it heard of."""
        if len(body.earliest_events) > MISSING_FROM or len(body.latest_events) > MISSING_FROM:
            raise bad_json(f"At most {MISSING_FROM} events may be named.")
        if body.limit < 0 or body.min_depth < 0:
            raise bad_json("limit or min_depth is negative.")
        await self._rooms.check_server(room_id, origin)
        events = await self._rooms.missing_events_for_server(
            origin,
            room_id,
            [_event_id(event_id) for event_id in body.earliest_events],
            [_event_id(event_id) for event_id in body.latest_events],
            min(body.limit, MISSING_LIMIT),
            min(body.min_depth, LATEST_TS),
        )
        return {"events": [orjson.Fragment(event) for event in events]}

    async def timestamp_to_event(self, origin: str, room_id: str, query: TimestampQuery) -> dict[str, Any]:
        """The event that is nearest to a time."""
        if query.dir not in ("f", "b"):
            raise invalid_param("dir must be f or b.")
        if not 0 <= query.ts <= LATEST_TS:
            raise invalid_param("ts is out of range.")
        await self._rooms.check_server(room_id, origin)
        event_id, ts = await self._rooms.timestamp_to_event_for_server(origin, room_id, query.ts, query.dir)
        return {"event_id": event_id, "origin_server_ts": ts}

    def _transaction(self, pdus: list[bytes]) -> dict[str, Any]:
        """Events in the form of a transaction, as the specification has it for these answers."""
        return {
            "origin": self._server_name,
            "origin_server_ts": self._clock.now_ms(),
            "pdus": [orjson.Fragment(pdu) for pdu in pdus],
        }


def _event_id(event_id: str) -> str:
    if not is_event_id(event_id):
        raise invalid_param("An event ID is malformed.")
    return event_id

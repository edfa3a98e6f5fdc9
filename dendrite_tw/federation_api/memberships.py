"""Users of other servers join, leave and knock through this one.

Server-Server API, "Joining Rooms", "Leaving Rooms", "Knocking upon a room".  Servers of rooms of the first versions
may still call the first paths of ``send_join`` and ``send_leave``, whose answers are a pair of a status and an object.
"""

from __future__ import annotations

from typing import Any

import msgspec
import orjson

from ..matrix.errors import bad_json
from ..room_api.api import RoomAPI, TakenMembership
from ..web.routes import Access, Response, Route
from .streams import EventStreams

V1 = "/_matrix/federation/v1"
V2 = "/_matrix/federation/v2"

VERSIONS_LIMIT = 100
BODY_LIMIT = 160 << 10
"""Bytes of a body with one event: its own limit, and room for ``unsigned``."""


class VersionsQuery(msgspec.Struct, frozen=True):
    """The room versions that the asking server knows; one that says nothing knows the first."""

    ver: list[str] = msgspec.field(default_factory=lambda: ["1"])


class KnockQuery(msgspec.Struct, frozen=True):
    """The same, for an endpoint that is younger than the second version."""

    ver: list[str]


class JoinQuery(msgspec.Struct, frozen=True):
    omit_members: bool = False


class MembershipRoutes:
    """``make_`` and ``send_`` of joins, leaves and knocks."""

    def __init__(self, rooms: RoomAPI, streams: EventStreams, server_name: str) -> None:
        self._rooms = rooms
        self._streams = streams
        self._server_name = server_name

    def routes(self) -> list[Route]:
        def send(path: str, handler: Any) -> Route:
            where = f"{path}/{{room_id}}/{{event_id}}"
            return Route("PUT", where, handler, Access.SERVER, body_limit=BODY_LIMIT, cors=False)

        who = "{room_id}/{user_id}"
        return [
            Route("GET", f"{V1}/make_join/{who}", self.make_join, Access.SERVER, cors=False),
            Route("GET", f"{V1}/make_leave/{who}", self.make_leave, Access.SERVER, cors=False),
            Route("GET", f"{V1}/make_knock/{who}", self.make_knock, Access.SERVER, cors=False),
            send(f"{V1}/send_join", self.send_join_v1),
            send(f"{V2}/send_join", self.send_join),
            send(f"{V1}/send_leave", self.send_leave_v1),
            send(f"{V2}/send_leave", self.send_leave),
            send(f"{V1}/send_knock", self.send_knock),
        ]

    # --- templates ---

    async def make_join(self, origin: str, room_id: str, user_id: str, query: VersionsQuery) -> dict[str, Any]:
        return await self._make("join", origin, room_id, user_id, query.ver)

    async def make_leave(self, origin: str, room_id: str, user_id: str) -> dict[str, Any]:
        return await self._make("leave", origin, room_id, user_id, [])

    async def make_knock(self, origin: str, room_id: str, user_id: str, query: KnockQuery) -> dict[str, Any]:
        return await self._make("knock", origin, room_id, user_id, query.ver)

    async def _make(self, kind: str, origin: str, room_id: str, user_id: str, versions: list[str]) -> dict[str, Any]:
        await self._rooms.check_server(room_id, origin)
        return await self._rooms.make_membership(kind, room_id, user_id, origin, versions[:VERSIONS_LIMIT])

    # --- events ---

    async def send_join(self, origin: str, room_id: str, event_id: str, body: bytes, query: JoinQuery) -> Response:
        """Take a join; the answer is the state that the room had before it."""
        self._streams.check(origin)
        taken = await self._take("join", origin, room_id, event_id, body, query.omit_members)
        return self._streams.response(origin, self._begun(taken), _lists(taken))

    async def send_join_v1(self, origin: str, room_id: str, event_id: str, body: bytes) -> Response:
        self._streams.check(origin)
        taken = await self._take("join", origin, room_id, event_id, body)
        return self._streams.response(origin, b"[200," + self._begun(taken), _lists(taken), b"}]")

    def _begun(self, taken: TakenMembership) -> bytes:
        """The answer up to its lists of events."""
        told: dict[str, Any] = {"origin": self._server_name, "event": orjson.Fragment(taken.event)}
        if taken.members_omitted:
            told |= {"members_omitted": True, "servers_in_room": taken.servers_in_room}
        else:
            told["members_omitted"] = False
        return orjson.dumps(told)[:-1] + b","

    async def send_leave(self, origin: str, room_id: str, event_id: str, body: bytes) -> None:
        await self._take("leave", origin, room_id, event_id, body)

    async def send_leave_v1(self, origin: str, room_id: str, event_id: str, body: bytes) -> Response:
        await self._take("leave", origin, room_id, event_id, body)
        return Response(200, b"[200,{}]")

    async def send_knock(self, origin: str, room_id: str, event_id: str, body: bytes) -> dict[str, Any]:
        """Take a knock; the answer tells what room it is."""
        taken = await self._take("knock", origin, room_id, event_id, body)
        return {"knock_room_state": [orjson.Fragment(event) for event in taken.stripped]}

    async def _take(
        self, kind: str, origin: str, room_id: str, event_id: str, body: bytes, omit_members: bool = False
    ) -> TakenMembership:
        if not body.lstrip().startswith(b"{"):
            raise bad_json("The request body must be a JSON object.")
        await self._rooms.check_server(room_id, origin)
        return await self._rooms.take_membership(kind, room_id, event_id, origin, body, omit_members)


def _lists(taken: TakenMembership) -> list[tuple[str, list[str]]]:
    return [("state", taken.state), ("auth_chain", taken.auth_chain)]

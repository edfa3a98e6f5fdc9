"""Rooms seen from outside: the tree of a space, summaries, and rooms in common.

Client-Server API, "Spaces", "Room summaries", "Mutual Rooms".  The unstable
paths are those under which clients knew the summary and the rooms in common
before the specification had them.
"""

from __future__ import annotations

from typing import Any

import msgspec
import orjson

from ..matrix.errors import invalid_param
from ..matrix.identifiers import is_room_alias
from ..room_api.api import PublicRoom, RoomAPI
from ..user_api.api import Caller
from ..web.routes import Access, Limit, Route

CLIENT = "/_matrix/client/v1"
UNSTABLE = "/_matrix/client/unstable"
LOOKING = Limit("hierarchy")
VIA_LIMIT = 50


class HierarchyQuery(msgspec.Struct):
    suggested_only: bool = False
    limit: int | None = None
    max_depth: int | None = None
    from_token: str | None = msgspec.field(default=None, name="from")


class SummaryQuery(msgspec.Struct):
    via: list[str] = []


class MutualQuery(msgspec.Struct):
    user_id: str
    from_token: str | None = msgspec.field(default=None, name="from")
    batch_token: str | None = None


class SpaceRoutes:
    """The endpoints by which clients look at rooms they need not be in."""

    def __init__(self, rooms: RoomAPI) -> None:
        self._rooms = rooms

    def routes(self) -> list[Route]:
        nheko = f"{UNSTABLE}/im.nheko.summary"
        return [
            Route("GET", f"{CLIENT}/rooms/{{room_id}}/hierarchy", self.hierarchy, Access.USER, LOOKING),
            Route("GET", f"{CLIENT}/room_summary/{{room_id_or_alias}}", self.room_summary, Access.OPTIONAL, LOOKING),
            Route("GET", f"{nheko}/summary/{{room_id_or_alias}}", self.nheko_summary, Access.OPTIONAL, LOOKING),
            Route("GET", f"{nheko}/rooms/{{room_id_or_alias}}/summary", self.nheko_summary, Access.OPTIONAL, LOOKING),
            Route("GET", f"{CLIENT}/mutual_rooms", self.mutual_rooms, Access.USER, LOOKING),
            Route(
                "GET",
                f"{UNSTABLE}/uk.half-shot.msc2666/user/mutual_rooms",
                self.unstable_mutual_rooms,
                Access.USER,
                LOOKING,
            ),
        ]

    async def hierarchy(self, caller: Caller, room_id: str, query: HierarchyQuery) -> dict[str, Any]:
        rooms, following = await self._rooms.hierarchy(
            caller.user_id, room_id, query.suggested_only, query.max_depth, query.limit, query.from_token
        )
        shown = [
            msgspec.to_builtins(room.summary)
            | {"children_state": [orjson.Fragment(child) for child in room.children_state]}
            for room in rooms
        ]
        page: dict[str, Any] = {"rooms": shown}
        return page if following is None else page | {"next_batch": following}

    async def room_summary(self, caller: Caller | None, room_id_or_alias: str, query: SummaryQuery) -> dict[str, Any]:
        room, membership = await self._summary(caller, room_id_or_alias, query.via)
        return _shown(room, membership)

    async def nheko_summary(self, caller: Caller | None, room_id_or_alias: str, query: SummaryQuery) -> dict[str, Any]:
        room, membership = await self._summary(caller, room_id_or_alias, query.via)
        shown = _shown(room, membership) | {"im.nheko.summary.room_version": room.room_version}
        return shown | ({"im.nheko.summary.encryption": room.encryption} if room.encryption else {})

    async def _summary(
        self, caller: Caller | None, room_id_or_alias: str, via: list[str]
    ) -> tuple[PublicRoom, str | None]:
        room_id = room_id_or_alias
        if is_room_alias(room_id):
            alias = await self._rooms.resolve_alias(room_id)
            room_id, via = alias.room_id, [*via, *alias.servers]
        return await self._rooms.room_summary_for(room_id, caller.user_id if caller else None, via[:VIA_LIMIT])

    async def mutual_rooms(self, caller: Caller, query: MutualQuery) -> dict[str, Any]:
        joined, following, count = await self._rooms.mutual_rooms(caller.user_id, query.user_id, query.from_token)
        page: dict[str, Any] = {"joined": joined, "count": count}
        return page if following is None else page | {"next_batch": following}

    async def unstable_mutual_rooms(self, caller: Caller, query: MutualQuery) -> dict[str, Any]:
        if query.from_token is not None and query.batch_token is not None:
            raise invalid_param("A page begins at one token.")
        token = query.from_token or query.batch_token
        joined, following, _ = await self._rooms.mutual_rooms(caller.user_id, query.user_id, token)
        page: dict[str, Any] = {"joined": joined}
        return page if following is None else page | {"next_batch_token": following, "next_batch": following}


def _shown(room: PublicRoom, membership: str | None) -> dict[str, Any]:
    shown: dict[str, Any] = msgspec.to_builtins(room)
    return shown if membership is None else shown | {"membership": membership}

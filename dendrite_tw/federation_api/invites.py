"""Users of this server are invited by other servers, some of them by what others know them as.

Server-Server API, "Inviting to a room" and "Third-party invites".
"""

from __future__ import annotations

from typing import Any

import orjson

from ..matrix.errors import MatrixError, invalid_param
from ..matrix.identifiers import is_event_id, is_room_id
from ..room_api.api import RoomAPI
from ..web.routes import Access, Limit, Response, Route

V1 = "/_matrix/federation/v1"
V2 = "/_matrix/federation/v2"

INVITE_LIMIT = 8 << 20
"""Bytes of an invite: an event, and a hundred more that show what room it is."""

ONBIND_LIMIT = 256 << 10
ONBIND = Limit("onbind")


class InviteRoutes:
    """Takes invites."""

    def __init__(self, rooms: RoomAPI) -> None:
        self._rooms = rooms

    def routes(self) -> list[Route]:
        where = "invite/{room_id}/{event_id}"
        exchange = f"{V1}/exchange_third_party_invite/{{room_id}}"
        return [
            Route("PUT", f"{V1}/{where}", self.invite_v1, Access.SERVER, body_limit=INVITE_LIMIT, cors=False),
            Route("PUT", f"{V2}/{where}", self.invite, Access.SERVER, body_limit=INVITE_LIMIT, cors=False),
            Route("PUT", exchange, self.exchange, Access.SERVER, cors=False),
            Route(
                "PUT",
                f"{V1}/3pid/onbind",
                self.bound,
                Access.PUBLIC,
                ONBIND,
                body_limit=ONBIND_LIMIT,
                cors=False,
            ),
        ]

    async def invite(self, origin: str, room_id: str, event_id: str, body: dict[str, Any]) -> dict[str, Any]:
        """The invite with this server's signature."""
        return {"event": await self._invited(origin, room_id, event_id, body, old=False)}

    async def invite_v1(self, origin: str, room_id: str, event_id: str, body: dict[str, Any]) -> Response:
        event = await self._invited(origin, room_id, event_id, body, old=True)
        return Response(200, orjson.dumps([200, {"event": event}]))

    async def _invited(
        self, origin: str, room_id: str, event_id: str, body: dict[str, Any], old: bool
    ) -> orjson.Fragment:
        if not is_room_id(room_id) or not is_event_id(event_id):
            raise invalid_param("The path names no room or no event.")
        try:
            await self._rooms.check_server(room_id, origin)
        except MatrixError as error:
            if error.status != 404:
                raise
        return orjson.Fragment(await self._rooms.receive_invite(room_id, event_id, origin, body, old))

    async def exchange(self, origin: str, room_id: str, body: dict[str, Any]) -> None:
        """Another server found out who the invited one is: invite them in earnest."""
        await self._rooms.exchange_third_party_invite(room_id, origin, body)

    async def bound(self, body: dict[str, Any]) -> None:
        """An identity server says that a user of this server is known by an address that was invited."""
        await self._rooms.third_party_bound(body)

"""``/presence/{userId}/status``: users set their own presence and ask for that of others.

Client-Server API, "Presence".  A user's presence is shown to those who share a
room with them.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from ..matrix.errors import forbidden, invalid_param
from ..room_api.api import RoomAPI
from ..user_api.api import Caller
from ..web.routes import Access, Limit, Route
from ..world import Clock
from .online import OnlineMarker
from .presence import PresenceBoard, presence_content

SETTING = Limit("presence")
STATUS_LIMIT = 1000
"""Characters of a status message."""


class StatusBody(msgspec.Struct):
    """Without a ``status_msg`` the one that is set remains; null takes it away."""

    presence: Literal["online", "unavailable", "offline"]
    status_msg: str | UnsetType | None = UNSET


class PresenceStatus:
    """Serves the endpoint."""

    def __init__(self, board: PresenceBoard, online: OnlineMarker, rooms: RoomAPI, clock: Clock) -> None:
        self._board = board
        self._online = online
        self._rooms = rooms
        self._clock = clock

    def routes(self) -> list[Route]:
        path = "/_matrix/client/v3/presence/{user_id}/status"
        return [
            Route("GET", path, self.get, Access.USER),
            Route("PUT", path, self.put, Access.USER, SETTING),
        ]

    async def put(self, user_id: str, caller: Caller, body: StatusBody) -> None:
        """``PUT /presence/{userId}/status``."""
        if user_id != caller.user_id:
            raise forbidden("You may set your own presence only.")
        if isinstance(body.status_msg, str) and len(body.status_msg) > STATUS_LIMIT:
            raise invalid_param(f"A status message has {STATUS_LIMIT} characters at most.")
        known = self._board.get(user_id)
        status = known.status_msg if body.status_msg is UNSET and known is not None else body.status_msg
        await self._online.set(user_id, body.presence, status or None)

    async def get(self, user_id: str, caller: Caller) -> dict[str, Any]:
        """``GET /presence/{userId}/status``; whoever was never seen is offline."""
        if user_id != caller.user_id and not await self._rooms.shares_room(caller.user_id, [user_id]):
            raise forbidden("You share no room with this user.")
        known = self._board.get(user_id)
        return {"presence": "offline"} if known is None else presence_content(known, self._clock.now_ms())

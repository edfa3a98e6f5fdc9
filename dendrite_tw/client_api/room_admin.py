"""What administrators do to rooms, by Dendrite's paths."""

from __future__ import annotations

from ..room_api.api import RoomAPI
from ..web.routes import Access, Route

ADMIN = "/_dendrite/admin"


class RoomAdminRoutes:
    """The administrators' endpoints that concern rooms."""

    def __init__(self, rooms: RoomAPI) -> None:
        self._rooms = rooms

    def routes(self) -> list[Route]:
        return [
            Route("POST", f"{ADMIN}/evacuateRoom/{{room_id}}", self.evacuate_room, Access.ADMIN),
            Route("POST", f"{ADMIN}/evacuateUser/{{user_id}}", self.evacuate_user, Access.ADMIN),
            Route("POST", f"{ADMIN}/purgeRoom/{{room_id}}", self.purge_room, Access.ADMIN),
            Route("GET", f"{ADMIN}/emptyRooms", self.empty_rooms, Access.ADMIN),
        ]

    async def evacuate_room(self, room_id: str) -> dict[str, list[str]]:
        return {"affected": await self._rooms.evacuate_room(room_id)}

    async def evacuate_user(self, user_id: str) -> dict[str, list[str]]:
        return {"affected": await self._rooms.evacuate_user(user_id)}

    async def purge_room(self, room_id: str) -> None:
        await self._rooms.purge_room(room_id)

    async def empty_rooms(self) -> dict[str, list[str]]:
        return {"empty_rooms": await self._rooms.empty_rooms()}

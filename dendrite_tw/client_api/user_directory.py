"""Finding users (Client-Server API, "User directory")."""

from __future__ import annotations

from typing import Any

import msgspec

from ..matrix.errors import invalid_param
from ..room_api.api import RoomAPI
from ..user_api.api import Caller
from ..web.routes import Access, Limit, Route

SEARCHING = Limit("search")
TERM_LIMIT = 500


class SearchBody(msgspec.Struct):
    search_term: str
    limit: int = 10


class UserDirectoryRoutes:
    """The endpoint of the user directory."""

    def __init__(self, rooms: RoomAPI) -> None:
        self._rooms = rooms

    def routes(self) -> list[Route]:
        return [Route("POST", "/_matrix/client/v3/user_directory/search", self.search, Access.USER, SEARCHING, 1 << 14)]

    async def search(self, caller: Caller, body: SearchBody) -> dict[str, Any]:
        if body.limit < 0:
            raise invalid_param("limit must not be negative.")
        if len(body.search_term) > TERM_LIMIT:
            raise invalid_param(f"A search term may have {TERM_LIMIT} characters at most.")
        found, limited = await self._rooms.search_users(caller.user_id, body.search_term, body.limit)
        return {"results": [msgspec.to_builtins(user) for user in found], "limited": limited}

"""Questions of other servers about users, aliases, the directory and spaces.

Server-Server API, "Querying for information", "Published Room Directory", "Spaces".
"""

from __future__ import annotations

from typing import Any

import msgspec

from ..matrix.errors import invalid_param, not_found
from ..matrix.identifiers import is_historical_user_id, is_room_alias, server_name_of, within_limit
from ..room_api.api import RoomAPI
from ..user_api.api import UserAPI
from ..web.routes import Access, Route

V1 = "/_matrix/federation/v1"

DIRECTORY_LIMIT = 500
"""How many rooms a page of the directory has where nobody says otherwise, and at most."""


class AliasQuery(msgspec.Struct, frozen=True):
    room_alias: str


class ProfileQuery(msgspec.Struct, frozen=True):
    user_id: str
    field: str | None = None


class DirectoryQuery(msgspec.Struct, frozen=True):
    """A page of the directory; a limit of 0 is none.  There are no networks but Matrix here."""

    limit: int = 0
    since: str | None = None
    include_all_networks: bool = False
    third_party_instance_id: str | None = None


class DirectoryFilter(msgspec.Struct, frozen=True):
    generic_search_term: str | None = None
    room_types: list[str | None] | None = None


class DirectoryBody(msgspec.Struct, frozen=True):
    limit: int | None = None
    since: str | None = None
    filter: DirectoryFilter | None = None
    include_all_networks: bool = False
    third_party_instance_id: str | None = None


class HierarchyQuery(msgspec.Struct, frozen=True):
    suggested_only: bool = False


class QueryRoutes:
    """Answers questions."""

    def __init__(self, rooms: RoomAPI, users: UserAPI, server_name: str) -> None:
        self._rooms = rooms
        self._users = users
        self._server_name = server_name

    def routes(self) -> list[Route]:
        def row(method: str, path: str, handler: Any) -> Route:
            return Route(method, f"{V1}/{path}", handler, Access.SERVER, cors=False)

        return [
            row("GET", "query/directory", self.directory),
            row("GET", "query/profile", self.profile),
            row("GET", "query/{query_type}", self.other),
            row("GET", "publicRooms", self.public_rooms),
            row("POST", "publicRooms", self.search_public_rooms),
            row("GET", "hierarchy/{room_id}", self.hierarchy),
        ]

    async def directory(self, query: AliasQuery) -> dict[str, Any]:
        """The room that an alias of this server names, and servers that know it."""
        if not is_room_alias(query.room_alias):
            raise invalid_param("That is not a room alias.")
        if server_name_of(query.room_alias) != self._server_name:
            raise not_found("The alias is of another server.")
        alias = await self._rooms.resolve_alias(query.room_alias)
        return {"room_id": alias.room_id, "servers": alias.servers}

    async def profile(self, query: ProfileQuery) -> dict[str, Any]:
        """What a user of this server tells of themselves."""
        if not is_historical_user_id(query.user_id) or server_name_of(query.user_id) != self._server_name:
            raise invalid_param("That is not a user of this server.")
        if query.field is not None and not within_limit(query.field):
            raise invalid_param("The name of the field is too long.")
        fields = await self._users.profile_fields(query.user_id)
        if fields is None:
            raise not_found("There is no such user.")
        if query.field is None:
            return fields
        return {query.field: fields[query.field]} if query.field in fields else {}

    async def other(self, query_type: str) -> dict[str, Any]:
        raise not_found("This server knows no such query.")

    # --- the directory ---

    async def public_rooms(self, query: DirectoryQuery) -> dict[str, Any]:
        if query.third_party_instance_id and not query.include_all_networks:
            return {"chunk": [], "total_room_count_estimate": 0}
        return await self._page(query.limit, query.since, None)

    async def search_public_rooms(self, body: DirectoryBody) -> dict[str, Any]:
        if body.third_party_instance_id and not body.include_all_networks:
            return {"chunk": [], "total_room_count_estimate": 0}
        return await self._page(body.limit or 0, body.since, body.filter)

    async def _page(self, limit: int, since: str | None, filter: DirectoryFilter | None) -> dict[str, Any]:
        if limit < 0:
            raise invalid_param("limit is negative.")
        limit = min(limit or DIRECTORY_LIMIT, DIRECTORY_LIMIT)
        search = filter.generic_search_term if filter is not None else None
        room_types = filter.room_types if filter is not None else None
        chunk, following, previous, total = await self._rooms.public_rooms(limit, since, search, room_types)
        hidden = ("room_version", "encryption", "allowed_room_ids")
        page: dict[str, Any] = {
            "chunk": [
                {key: value for key, value in room.items() if key not in hidden} for room in msgspec.to_builtins(chunk)
            ],
            "total_room_count_estimate": total,
        }
        if following is not None:
            page["next_batch"] = following
        if previous is not None:
            page["prev_batch"] = previous
        return page

    async def hierarchy(self, origin: str, room_id: str, query: HierarchyQuery) -> dict[str, Any]:
        """A space and its children, those that the server may know of."""
        await self._rooms.check_server(room_id, origin)
        return await self._rooms.hierarchy_for_server(origin, room_id, query.suggested_only)

"""Account data and tags (Client-Server API, "Client Config", "Room Tagging")."""

from __future__ import annotations

from typing import Any

import orjson

from ..matrix.errors import bad_json, forbidden, invalid_param, not_found
from ..matrix.identifiers import is_room_id
from ..user_api.api import Caller, UserAPI
from ..web.routes import Access, Response, Route, decode_object

CLIENT = "/_matrix/client/v3"
TAGS = "m.tag"


class AccountDataSection:
    """``/user/{user_id}/account_data``, also of rooms, and ``/tags``."""

    def __init__(self, users: UserAPI) -> None:
        self._users = users

    def routes(self) -> list[Route]:
        everywhere = f"{CLIENT}/user/{{user_id}}/account_data/{{type}}"
        room = f"{CLIENT}/user/{{user_id}}/rooms/{{room_id}}"
        return [
            Route("GET", everywhere, self.get, Access.USER),
            Route("PUT", everywhere, self.put, Access.USER),
            Route("GET", f"{room}/account_data/{{type}}", self.get_of_room, Access.USER),
            Route("PUT", f"{room}/account_data/{{type}}", self.put_of_room, Access.USER),
            Route("GET", f"{room}/tags", self.tags, Access.USER),
            Route("PUT", f"{room}/tags/{{tag}}", self.put_tag, Access.USER),
            Route("DELETE", f"{room}/tags/{{tag}}", self.delete_tag, Access.USER),
        ]

    async def get(self, caller: Caller, user_id: str, type: str) -> Response:
        return await self._get(caller, user_id, "", type)

    async def put(self, caller: Caller, user_id: str, type: str, body: bytes) -> None:
        await self._put(caller, user_id, "", type, body)

    async def get_of_room(self, caller: Caller, user_id: str, room_id: str, type: str) -> Response:
        return await self._get(caller, user_id, checked_room(room_id), type)

    async def put_of_room(self, caller: Caller, user_id: str, room_id: str, type: str, body: bytes) -> None:
        await self._put(caller, user_id, checked_room(room_id), type, body)

    async def _get(self, caller: Caller, user_id: str, room_id: str, type: str) -> Response:
        own(caller, user_id)
        content = await self._users.account_data(user_id, room_id, type)
        if content is None:
            raise not_found("Account data not found.")
        return Response(200, content)

    async def _put(self, caller: Caller, user_id: str, room_id: str, type: str, body: bytes) -> None:
        own(caller, user_id)
        if not body:
            raise bad_json("The request body must be a JSON object.")
        content = orjson.dumps(decode_object(body))
        await self._users.put_account_data(user_id, room_id, type, content)

    async def tags(self, caller: Caller, user_id: str, room_id: str) -> dict[str, Any]:
        own(caller, user_id)
        content = await self._users.account_data(user_id, checked_room(room_id), TAGS)
        stored = orjson.loads(content) if content is not None else {}
        tags = stored.get("tags") if isinstance(stored, dict) else None
        return {"tags": tags if isinstance(tags, dict) else {}}

    async def put_tag(self, caller: Caller, user_id: str, room_id: str, tag: str, body: dict[str, Any]) -> None:
        own(caller, user_id)
        order = body.get("order")
        if order is not None and (isinstance(order, bool) or not isinstance(order, int | float)):
            raise bad_json("order must be a number.")
        await self._users.put_tag(user_id, checked_room(room_id), tag, body)

    async def delete_tag(self, caller: Caller, user_id: str, room_id: str, tag: str) -> None:
        own(caller, user_id)
        await self._users.put_tag(user_id, checked_room(room_id), tag, None)


def own(caller: Caller, user_id: str) -> None:
    """Raise 403 unless the path names the caller."""
    if caller.user_id != user_id:
        raise forbidden("You may use your own data only.")


def checked_room(room_id: str) -> str:
    """`room_id` if it is one; 400 ``M_INVALID_PARAM`` otherwise."""
    if not is_room_id(room_id):
        raise invalid_param("This is not a valid room ID.")
    return room_id

"""Pushers, and what one was notified of (Client-Server API, "Push Notifications")."""

from __future__ import annotations

from typing import Any

import msgspec
import orjson

from ..matrix.errors import invalid_param, missing_param
from ..room_api.api import RoomAPI, RoomEvent
from ..user_api.api import Caller, Notification, Pusher, UserAPI
from ..web.routes import Access, Route, shape_error
from .settings import PUSH

CLIENT = "/_matrix/client/v3"
DEFAULT_PAGE = 30
LARGEST_PAGE = 100


class PusherBody(msgspec.Struct, kw_only=True):
    pushkey: str
    kind: str | None
    app_id: str
    app_display_name: str | None = None
    device_display_name: str | None = None
    profile_tag: str | None = None
    lang: str | None = None
    data: dict[str, Any] | None = None
    append: bool = False


class PageQuery(msgspec.Struct):
    start: str | None = msgspec.field(default=None, name="from")
    limit: int = DEFAULT_PAGE
    only: str | None = None


class PushersSection:
    """``/pushers`` and ``/notifications``."""

    def __init__(self, users: UserAPI, rooms: RoomAPI) -> None:
        self._users = users
        self._rooms = rooms

    def routes(self) -> list[Route]:
        return [
            Route("GET", f"{CLIENT}/pushers", self.pushers, Access.USER),
            Route("POST", f"{CLIENT}/pushers/set", self.put, Access.USER, PUSH),
            Route("GET", f"{CLIENT}/notifications", self.notifications, Access.USER),
        ]

    async def pushers(self, caller: Caller) -> dict[str, Any]:
        found = await self._users.pushers(caller.user_id)
        rows = [msgspec.to_builtins(pusher) for pusher in found]
        return {"pushers": [{key: value for key, value in row.items() if value is not None} for row in rows]}

    async def put(self, caller: Caller, body: dict[str, Any]) -> None:
        await self._put(caller, shaped(body))

    async def _put(self, caller: Caller, body: PusherBody) -> None:
        if body.kind is None:
            await self._users.delete_pusher(caller.user_id, body.app_id, body.pushkey)
            return
        names = ("app_display_name", "device_display_name", "lang", "data")
        missing = [name for name in names if getattr(body, name) is None]
        if missing:
            raise missing_param(f"Missing parameters: {', '.join(missing)}")
        pusher = Pusher(
            app_id=body.app_id,
            pushkey=body.pushkey,
            kind=body.kind,
            app_display_name=body.app_display_name or "",
            device_display_name=body.device_display_name or "",
            lang=body.lang or "",
            data=body.data or {},
            profile_tag=body.profile_tag,
        )
        await self._users.put_pusher(caller.user_id, caller.session_id, pusher, body.append)

    async def notifications(self, caller: Caller, query: PageQuery) -> dict[str, Any]:
        limit = min(max(query.limit, 1), LARGEST_PAGE)
        before = _position(query.start)
        found = await self._users.notifications(caller.user_id, before, limit, query.only == "highlight")
        events = await self._rooms.events([one.event_id for one in found])
        seen = {event.event_id: event for event in await self._rooms.visible(caller.user_id, events)}
        answer: dict[str, Any] = {
            "notifications": [_shown(one, seen[one.event_id]) for one in found if one.event_id in seen]
        }
        if len(found) == limit:
            answer["next_token"] = str(found[-1].position)
        return answer


def shaped(body: dict[str, Any]) -> PusherBody:
    """A body in its shape; its ``data`` is kept as it came, so no number in it may be beyond what JSON carries."""
    try:
        return msgspec.convert(body, PusherBody)
    except msgspec.ValidationError as error:
        raise shape_error(error) from None


def _position(token: str | None) -> int | None:
    """The position in a token of an earlier answer; 400 ``M_INVALID_PARAM`` where it is none."""
    if token is None or token == "":
        return None
    if not (token.isascii() and token.isdigit() and len(token) < 19):
        raise invalid_param("from is not a token of an earlier answer.")
    return int(token)


def _shown(one: Notification, event: RoomEvent) -> dict[str, Any]:
    return {
        "room_id": one.room_id,
        "event": orjson.Fragment(event.client),
        "ts": one.ts,
        "read": one.read,
        "actions": one.actions,
        "profile_tag": "",
    }

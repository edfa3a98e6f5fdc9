"""Server notices: messages from the administrators to a user, in a room of the server's own.

Client-Server API, "Server Notices"; the endpoint is the one of Dendrite and Synapse.
"""

from __future__ import annotations

from typing import Any

import msgspec
import orjson

from ..matrix.errors import invalid_param, not_found
from ..room_api.api import MembershipChange, NewEvent, NewRoom, RoomAPI
from ..user_api.api import Caller, UserAPI
from ..web.routes import Access, Route, shape_error
from .settings import ClientSettings, Notices

TAG = "m.server_notice"
TRANSACTION_LIMIT = 255
DEFAULT_NAME = "Server Alerts"


class NoticeBody(msgspec.Struct, kw_only=True):
    user_id: str
    content: dict[str, Any]
    type: str = "m.room.message"
    state_key: str | None = None


class NoticesSection:
    """``/_synapse/admin/v1/send_server_notice``."""

    def __init__(self, users: UserAPI, rooms: RoomAPI, settings: ClientSettings, notices: Notices) -> None:
        self._users = users
        self._rooms = rooms
        self._settings = settings
        self._notices = notices
        self._sender = f"@{notices.local_part}:{settings.server_name}"

    def routes(self) -> list[Route]:
        path = "/_synapse/admin/v1/send_server_notice"
        return [
            Route("POST", path, self.send, Access.ADMIN),
            Route("PUT", f"{path}/{{txn_id}}", self.send_once, Access.ADMIN),
        ]

    async def send(self, caller: Caller, body: dict[str, Any]) -> dict[str, Any]:
        return await self._send(body, None, None)

    async def send_once(self, caller: Caller, txn_id: str, body: dict[str, Any]) -> dict[str, Any]:
        """Sent again with the same transaction, a notice arrives once."""
        if len(txn_id) > TRANSACTION_LIMIT:
            raise invalid_param(f"A transaction ID has {TRANSACTION_LIMIT} characters at most.")
        return await self._send(body, caller.device_id, f"{caller.user_id} {txn_id}")

    async def _send(self, raw: dict[str, Any], device_id: str | None, txn_id: str | None) -> dict[str, Any]:
        body = shaped(raw)
        if not await self._users.is_local_account(body.user_id):
            raise not_found("There is no such user here.")
        profile = {"displayname": self._notices.display_name or DEFAULT_NAME}
        if self._notices.avatar_url:
            profile["avatar_url"] = self._notices.avatar_url
        await self._users.ensure_own_account(self._sender, profile)
        room_id = await self._room_of(body.user_id) or await self._new_room(body.user_id, profile)
        event = NewEvent(
            room_id=room_id,
            sender=self._sender,
            type=body.type,
            content=body.content,
            state_key=body.state_key,
            device_id=device_id,
            transaction_id=txn_id,
        )
        return {"event_id": await self._rooms.send(event)}

    async def _room_of(self, user_id: str) -> str | None:
        """The notices room of a user; one who left it is invited again."""
        for standing in await self._rooms.memberships(user_id):
            if standing.membership not in ("join", "invite", "leave"):
                continue
            if not await self._is_tagged(user_id, standing.room_id):
                continue
            own = await self._rooms.membership(standing.room_id, self._sender)
            if own is None or own.membership != "join":
                continue
            if standing.membership == "leave":
                invite = MembershipChange(
                    room_id=standing.room_id, sender=self._sender, target=user_id, action="invite"
                )
                await self._rooms.change_membership(invite)
            return standing.room_id
        return None

    async def _is_tagged(self, user_id: str, room_id: str) -> bool:
        content = await self._users.account_data(user_id, room_id, "m.tag")
        value = orjson.loads(content) if content is not None else None
        tags = value.get("tags") if isinstance(value, dict) else None
        return isinstance(tags, dict) and TAG in tags

    async def _new_room(self, user_id: str, profile: dict[str, str]) -> str:
        room = NewRoom(
            creator=self._sender,
            preset="private_chat",
            name=self._notices.room_name or DEFAULT_NAME,
            invite=[user_id],
            power_level_content_override={"users_default": -10},
            creator_profile=profile,
        )
        room_id = await self._rooms.create_room(room)
        await self._users.put_tag(user_id, room_id, TAG, {})
        return room_id


def shaped(raw: dict[str, Any]) -> NoticeBody:
    """A body in its shape; what it says is sent as it came."""
    try:
        body = msgspec.convert(raw, NoticeBody)
    except msgspec.ValidationError as error:
        raise shape_error(error) from None
    if body.type == "m.room.message" and not isinstance(body.content.get("msgtype"), str):
        raise invalid_param("content.msgtype is required.")
    return body

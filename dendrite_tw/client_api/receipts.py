"""Receipts, read markers and typing (Client-Server API, "Receipts", "Fully read markers", "Typing Notifications")."""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from ..matrix.errors import forbidden, invalid_param
from ..room_api.api import RoomAPI
from ..sync_api.api import OUTPUT_TYPING_EVENT, Typing
from ..user_api.api import Caller, UserAPI
from ..web.routes import Access, Route
from ..world import Clock
from .account_data import own
from .settings import RECEIPTS, TYPING

ROOMS = "/_matrix/client/v3/rooms/{room_id}"

FULLY_READ = "m.fully_read"
RECEIPT_TYPES = ("m.read", "m.read.private", FULLY_READ)
EVENT_ID_LIMIT = 255

LONGEST_TYPING_MS = 120_000
DEFAULT_TYPING_MS = 30_000


class Queue(Protocol):
    """The part of the queue's client that is needed here."""

    async def publish(self, stream: str, payload: bytes) -> Any: ...


class MarkersBody(msgspec.Struct, kw_only=True):
    fully_read: str | None = msgspec.field(default=None, name="m.fully_read")
    read: str | None = msgspec.field(default=None, name="m.read")
    read_private: str | None = msgspec.field(default=None, name="m.read.private")


class TypingBody(msgspec.Struct):
    typing: bool
    timeout: int | float | None = None


class ReceiptsSection:
    """``/receipt``, ``/read_markers`` and ``/typing``."""

    def __init__(self, users: UserAPI, rooms: RoomAPI, queue: Queue, clock: Clock) -> None:
        self._users = users
        self._rooms = rooms
        self._queue = queue
        self._clock = clock

    def routes(self) -> list[Route]:
        receipt = f"{ROOMS}/receipt/{{receipt_type}}/{{event_id}}"
        return [
            Route("POST", receipt, self.receipt, Access.USER, RECEIPTS),
            Route("POST", f"{ROOMS}/read_markers", self.markers, Access.USER, RECEIPTS),
            Route("PUT", f"{ROOMS}/typing/{{user_id}}", self.typing, Access.USER, TYPING),
        ]

    async def receipt(
        self, caller: Caller, room_id: str, receipt_type: str, event_id: str, body: dict[str, Any]
    ) -> None:
        if receipt_type not in RECEIPT_TYPES:
            raise invalid_param(f"The type of a receipt is one of {', '.join(RECEIPT_TYPES)}.")
        thread_id = body.get("thread_id")
        if "thread_id" in body:
            if not isinstance(thread_id, str) or not 0 < len(thread_id) <= EVENT_ID_LIMIT:
                raise invalid_param("thread_id must be a non-empty string.")
            if receipt_type == FULLY_READ:
                raise invalid_param(f"{FULLY_READ} is not of a thread.")
        await self._users.read_up_to(caller.user_id, room_id, {receipt_type: event_id}, thread_id)

    async def markers(self, caller: Caller, room_id: str, body: MarkersBody) -> None:
        given = dict(zip(RECEIPT_TYPES, (body.read, body.read_private, body.fully_read), strict=True))
        receipts = {type: event_id for type, event_id in given.items() if event_id}
        await self._users.read_up_to(caller.user_id, room_id, receipts, None)

    async def typing(self, caller: Caller, room_id: str, user_id: str, body: TypingBody) -> None:
        own(caller, user_id)
        standing = await self._rooms.membership(room_id, user_id)
        if standing is None or standing.membership != "join":
            raise forbidden("You are not joined to this room.")
        timeout = DEFAULT_TYPING_MS if body.timeout is None else int(min(max(body.timeout, 0), LONGEST_TYPING_MS))
        typing = Typing(
            room_id=room_id,
            user_id=user_id,
            typing=body.typing and timeout > 0,
            timeout_ms=timeout if body.typing else 0,
            ts=self._clock.now_ms(),
        )
        await self._queue.publish(OUTPUT_TYPING_EVENT, msgspec.msgpack.encode(typing))

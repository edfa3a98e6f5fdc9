"""What other servers tell in passing: typing, receipts, presence, messages and keys of devices.

Server-Server API, "EDUs" and the sections of each.  A server speaks for its own users (`matrix.edus` sees to that), in
rooms that they are joined to and that do not keep it out.  Messages to devices are on disk when this returns, and
are told once however often they come; the rest may be lost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from twisted.internet.defer import CancelledError
from twisted.logger import Logger

from ..matrix import edus
from ..matrix.edus import EDUError, read_edu, rooms_of, without_rooms
from ..matrix.errors import MatrixError
from ..matrix.transactions import EDU
from ..room_api.api import RoomAPI
from ..sync_api.api import OUTPUT_PRESENCE_EVENT, OUTPUT_TYPING_EVENT, Presence, Typing
from ..user_api.api import DeviceListUpdate, KeyAPI, Receipt, UserAPI
from ..world import Clock

log = Logger()

TYPING_MS = 60_000
"""How long somebody types if nothing else is heard of them: their server repeats it more often than that."""

UPDATES = 2_000
"""How many updates of presence and receipts one transaction may have; each costs more to take than to make up."""


class Ephemeral:
    """Takes EDUs and tells whom they concern."""

    def __init__(
        self,
        rooms: RoomAPI,
        users: UserAPI,
        keys: KeyAPI,
        queue: Any,
        clock: Clock,
        takes_presence: bool,
        observe: Callable[[str], None] = lambda edu_type: None,
    ) -> None:
        """`takes_presence` is ``global.presence.enable_inbound``; `observe` is told of every EDU of a known type."""
        self._rooms = rooms
        self._users = users
        self._keys = keys
        self._queue = queue
        self._clock = clock
        self._takes_presence = takes_presence
        self._observe = observe

    async def take(self, origin: str, received: Sequence[EDU]) -> None:
        """Do what the EDUs of one transaction say; raise only what makes it worth while to send them again."""
        room = UPDATES
        for edu in received:
            try:
                content = read_edu(edu, origin)
                if isinstance(content, edus.Presence | edus.Receipts):
                    content, room = _shortened(content, room)
                if content is not None:
                    self._observe(edu.edu_type)
                    await self._take(origin, content)
            except EDUError as error:
                log.debug("{origin}: {error}", origin=origin, error=str(error))
            except MatrixError as error:
                if error.status >= 500:
                    raise
                log.debug("{type} of {origin}: {error}", type=edu.edu_type, origin=origin, error=error.error)
            except CancelledError:
                raise
            except Exception:
                log.failure("{type} of {origin} could not be taken", type=edu.edu_type[:50], origin=origin)

    async def _take(self, origin: str, content: edus.Content) -> None:
        denied = {room_id for room_id in rooms_of(content) if not await self._may_speak(room_id, origin)}
        allowed = without_rooms(content, denied)
        if isinstance(allowed, edus.Typing):
            await self._typing(allowed)
        elif isinstance(allowed, edus.Receipts):
            await self._receipts(allowed)
        elif isinstance(allowed, edus.Presence):
            await self._presence(allowed)
        elif isinstance(allowed, edus.DirectToDevice):
            await self._keys.send_to_device(allowed.sender, "", allowed.type, allowed.message_id, allowed.messages)
        elif isinstance(allowed, edus.DeviceListUpdate):
            update = DeviceListUpdate(**{**msgspec.structs.asdict(allowed), "prev_id": list(allowed.prev_id)})
            await self._keys.device_list_update(origin, update)
        elif isinstance(allowed, edus.SigningKeyUpdate):
            await self._keys.signing_key_update(origin, allowed.user_id, allowed.master_key, allowed.self_signing_key)

    async def _may_speak(self, room_id: str, origin: str) -> bool:
        """Whether the room is known here and does not keep the server out."""
        try:
            await self._rooms.check_server(room_id, origin)
        except MatrixError as error:
            if error.status >= 500:
                raise
            return False
        return True

    async def _is_joined(self, room_id: str, user_id: str) -> bool:
        standing = await self._rooms.membership(room_id, user_id)
        return standing is not None and standing.membership == "join"

    async def _typing(self, said: edus.Typing) -> None:
        if not await self._is_joined(said.room_id, said.user_id):
            return
        typing = Typing(
            room_id=said.room_id,
            user_id=said.user_id,
            typing=said.typing,
            timeout_ms=TYPING_MS if said.typing else 0,
            ts=self._clock.now_ms(),
        )
        await self._tell(OUTPUT_TYPING_EVENT, typing)

    async def _receipts(self, said: edus.Receipts) -> None:
        receipts = [
            Receipt(
                room_id=one.room_id,
                user_id=one.user_id,
                receipt_type="m.read",
                event_id=one.event_id,
                ts=one.ts,
                thread_id=one.thread_id,
            )
            for one in said.receipts
            if await self._is_joined(one.room_id, one.user_id)
        ]
        if receipts:
            await self._users.put_receipts(receipts)

    async def _presence(self, said: edus.Presence) -> None:
        if not self._takes_presence:
            return
        now = self._clock.now_ms()
        for one in said.push:
            presence = Presence(
                user_id=one.user_id,
                presence=one.presence,
                last_active_ts=max(0, now - one.last_active_ago),
                status_msg=one.status_msg,
                currently_active=one.currently_active,
            )
            await self._tell(OUTPUT_PRESENCE_EVENT, presence)

    async def _tell(self, stream: str, news: Typing | Presence) -> None:
        """Tell the rest of this server.  While the queue is away nobody hears it: later it would be worth nothing, and
        the transaction that it came in holds more.
        """
        try:
            await self._queue.publish(stream, msgspec.msgpack.encode(news))
        except MatrixError as error:
            log.debug("{stream} is not told: {error}", stream=stream, error=error.error)


def _shortened(content: edus.Presence | edus.Receipts, room: int) -> tuple[edus.Content, int]:
    """The first `room` of what an EDU says, and how many more there may be."""
    if isinstance(content, edus.Presence):
        return edus.Presence(content.push[:room]), max(0, room - len(content.push))
    return edus.Receipts(content.receipts[:room]), max(0, room - len(content.receipts))

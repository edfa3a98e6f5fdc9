"""Receipts: how far users have read (Client-Server API, "Receipts", "Fully read markers").

Of each user, type and thread of a room the newest is kept, by the position of
the event; one that is behind it is dropped.  A receipt of a local user moves
the marks that unread counts are taken from, in the same transaction.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import orjson

from ..database.engines import Database
from ..database.outbox import Outbox
from ..database.statements import Transaction
from ..matrix.errors import MatrixError, forbidden, invalid_param
from ..room_api.api import RoomAPI, RoomEvent
from ..world import World
from .account_data import FULLY_READ, AccountData
from .api import OUTPUT_NOTIFICATION_DATA, OUTPUT_RECEIPT_EVENT, Receipt, UnreadChange
from .counts import MAIN
from .settings import UserSettings
from .tables import account_data as account_data_table
from .tables import receipts as table
from .threads import is_of_thread
from .unread_store import UnreadStore

READ = "m.read"
READ_PRIVATE = "m.read.private"
RECEIPT_TYPES = (READ, READ_PRIVATE)


class Receipts:
    """The receipts of all users, local and remote."""

    def __init__(
        self,
        settings: UserSettings,
        database: Database,
        outbox: Outbox,
        data: AccountData,
        unread: UnreadStore,
        rooms: RoomAPI,
        world: World,
    ) -> None:
        self._settings = settings
        self._database = database
        self._outbox = outbox
        self._data = data
        self._unread = unread
        self._rooms = rooms
        self._clock = world.clock

    # --- questions ---

    async def receipts_since(self, room_ids: list[str], after: int, upto: int) -> list[Receipt]:
        return [
            Receipt(
                room_id=row.room_id,
                user_id=row.user_id,
                receipt_type=row.receipt_type,
                event_id=row.event_id,
                ts=row.ts,
                thread_id=row.thread_id or None,
                position=row.position,
            )
            for row in await self._database.read(table.since, room_ids, after, upto)
        ]

    # --- changes ---

    async def read_up_to(self, user_id: str, room_id: str, receipts: dict[str, str], thread_id: str | None) -> None:
        standing = await self._rooms.membership(room_id, user_id)
        if standing is None or standing.membership != "join":
            raise forbidden("You are not joined to this room.")
        if not receipts:
            return
        found = {event.event_id: event for event in await self._rooms.events(list(set(receipts.values())))}
        events: dict[str, RoomEvent] = {}
        for receipt_type, event_id in receipts.items():
            event = found.get(event_id)
            if event is None or event.room_id != room_id:
                raise MatrixError(404, "M_NOT_FOUND", "The room has no such event.")
            if thread_id is not None and not await is_of_thread(self._rooms, event, thread_id):
                raise invalid_param("The event is not related to the thread.")
            events[receipt_type] = event
        await self._database.write(self._read_up_to, user_id, room_id, events, thread_id)

    async def _read_up_to(
        self, txn: Transaction, user_id: str, room_id: str, events: dict[str, RoomEvent], thread_id: str | None
    ) -> None:
        marker = events.get(FULLY_READ)
        if marker is not None:
            await self._move_marker(txn, user_id, marker)
        now = self._clock.now_ms()
        for receipt_type in RECEIPT_TYPES:
            event = events.get(receipt_type)
            if event is not None:
                receipt = Receipt(
                    room_id=room_id,
                    user_id=user_id,
                    receipt_type=receipt_type,
                    event_id=event.event_id,
                    ts=now,
                    thread_id=thread_id,
                )
                await self._store(txn, receipt, event.position)

    async def _move_marker(self, txn: Transaction, user_id: str, event: RoomEvent) -> None:
        """Put ``m.fully_read`` at an event; it is account data, which only the server writes."""
        content = orjson.dumps({"event_id": event.event_id})
        if await account_data_table.content(txn, user_id, event.room_id, FULLY_READ) != content:
            await self._data.put(txn, user_id, event.room_id, FULLY_READ, content)

    async def put_receipts(self, receipts: list[Receipt]) -> None:
        wanted = [receipt for receipt in receipts if await self._may_be_taken(receipt)]
        named = {receipt.event_id for receipt in wanted} | {receipt.thread_id for receipt in wanted}
        events = await self._rooms.events([event_id for event_id in named if event_id and event_id != MAIN])
        positions = {(event.room_id, event.event_id): event.position for event in events}
        rows = [
            (receipt, positions.get((receipt.room_id, receipt.event_id), 0))
            for receipt in wanted
            if receipt.thread_id in (None, MAIN) or (receipt.room_id, receipt.thread_id) in positions
        ]
        if rows:
            await self._database.write(self._store_all, rows)

    async def _may_be_taken(self, receipt: Receipt) -> bool:
        """Whether a receipt counts: another server's users are heard where they are joined, and what they read
        in private is none of ours.  So there is one for each member, and for each of them and each thread."""
        if self._settings.is_local(receipt.user_id):
            return receipt.receipt_type in RECEIPT_TYPES
        if receipt.receipt_type != READ:
            return False
        standing = await self._rooms.membership(receipt.room_id, receipt.user_id)
        return standing is not None and standing.membership == "join"

    async def _store_all(self, txn: Transaction, rows: Sequence[tuple[Receipt, int]]) -> None:
        for receipt, position in rows:
            await self._store(txn, receipt, position)

    async def _store(self, txn: Transaction, receipt: Receipt, event_position: int) -> None:
        """Store a receipt and tell of it, unless one that is as far is stored already.

        An event that is not known (position 0) is one that is still on its way, so that nobody has read further.
        """
        room_id, user_id, type, thread = (
            receipt.room_id,
            receipt.user_id,
            receipt.receipt_type,
            receipt.thread_id or "",
        )
        before = await table.place(txn, room_id, user_id, type, thread)
        if before is not None:
            if before == table.Place(receipt.event_id, event_position):
                return
            if event_position and before.event_position >= event_position and before.event_position:
                return
        position = await self._outbox.append(
            txn,
            OUTPUT_RECEIPT_EVENT,
            lambda position: msgspec.msgpack.encode(msgspec.structs.replace(receipt, position=position)),
        )
        await table.put(txn, room_id, user_id, type, thread, receipt.event_id, event_position, receipt.ts, position)
        if self._settings.is_local(user_id) and event_position > 0:
            change = UnreadChange(user_id=user_id, room_id=room_id, thread_id=thread, read_upto=event_position)
            await self._unread.mark_now(txn, change)
            await self._outbox.append(
                txn,
                OUTPUT_NOTIFICATION_DATA,
                lambda position: msgspec.msgpack.encode(msgspec.structs.replace(change, position=position)),
            )

    async def delete_room(self, room_id: str) -> int:
        """Forget a room's receipts; returns how many there were."""
        return await self._database.write(table.delete_room, room_id)

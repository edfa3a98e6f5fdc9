"""The table ``receipts``: the newest receipt of each user, type and thread of a room.

``thread_id`` is empty for an unthreaded receipt.  ``event_position`` is that
of the event in its room's order, 0 where the event is not known here.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ...database.statements import Transaction, many, maybe, none

RETENTION = "one row for each room, user, type and thread; a room's go with the room"


class ReceiptRow(msgspec.Struct, frozen=True):
    room_id: str
    user_id: str
    receipt_type: str
    thread_id: str
    event_id: str
    ts: int
    position: int


@many(
    ReceiptRow,
    "SELECT room_id, user_id, receipt_type, thread_id, event_id, ts, position FROM receipts "
    "WHERE room_id = ANY(:room_ids) AND position > :after AND position <= :upto ORDER BY position",
)
def since(txn: Transaction, room_ids: Sequence[str], after: int, upto: int) -> None: ...


class Place(msgspec.Struct, frozen=True):
    """How far a receipt says that its user has read."""

    event_id: str
    event_position: int


@maybe(
    Place,
    "SELECT event_id, event_position FROM receipts WHERE room_id = :room_id AND user_id = :user_id "
    "AND receipt_type = :receipt_type AND thread_id = :thread_id",
)
def place(txn: Transaction, room_id: str, user_id: str, receipt_type: str, thread_id: str) -> None: ...


@none(
    "INSERT INTO receipts (room_id, user_id, receipt_type, thread_id, event_id, event_position, ts, position) "
    "VALUES (:room_id, :user_id, :receipt_type, :thread_id, :event_id, :event_position, :ts, :position) "
    "ON CONFLICT (room_id, user_id, receipt_type, thread_id) DO UPDATE SET event_id = excluded.event_id, "
    "event_position = excluded.event_position, ts = excluded.ts, position = excluded.position"
)
def put(
    txn: Transaction,
    room_id: str,
    user_id: str,
    receipt_type: str,
    thread_id: str,
    event_id: str,
    event_position: int,
    ts: int,
    position: int,
) -> None: ...


@none("DELETE FROM receipts WHERE room_id = :room_id")
def delete_room(txn: Transaction, room_id: str) -> None: ...

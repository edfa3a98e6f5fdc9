"""The table ``account_data``: what users store for themselves, global (``room_id`` empty) or by room.

``position`` is the outbox id of the newest change.  The row of ``m.push_rules``
holds the difference from the default rules, not what clients see.
"""

from __future__ import annotations

import msgspec

from ...database.statements import Transaction, many, maybe, none, one

RETENTION = "one row for each type, room and user; all of a user's when the account is erased"


class DataRow(msgspec.Struct, frozen=True):
    room_id: str
    type: str
    content: bytes
    position: int


class UserContent(msgspec.Struct, frozen=True):
    user_id: str
    content: bytes


@many(
    DataRow,
    "SELECT room_id, type, content, position FROM account_data "
    "WHERE user_id = :user_id AND position > :after AND position <= :upto ORDER BY position",
)
def since(txn: Transaction, user_id: str, after: int, upto: int) -> None: ...


@maybe(
    bytes,
    "SELECT content FROM account_data WHERE user_id = :user_id AND room_id = :room_id AND type = :type",
)
def content(txn: Transaction, user_id: str, room_id: str, type: str) -> None: ...


@one(int, "SELECT COUNT(*) FROM account_data WHERE user_id = :user_id")
def count(txn: Transaction, user_id: str) -> None: ...


@none(
    "INSERT INTO account_data (user_id, room_id, type, content, position) "
    "VALUES (:user_id, :room_id, :type, :content, :position) "
    "ON CONFLICT (user_id, room_id, type) DO UPDATE SET content = excluded.content, position = excluded.position"
)
def put(txn: Transaction, user_id: str, room_id: str, type: str, content: bytes, position: int) -> None: ...


@none("DELETE FROM account_data WHERE user_id = :user_id AND room_id = :room_id AND type = :type")
def delete(txn: Transaction, user_id: str, room_id: str, type: str) -> None: ...


@none("DELETE FROM account_data WHERE user_id = :user_id")
def delete_all(txn: Transaction, user_id: str) -> None: ...


@many(UserContent, "SELECT user_id, content FROM account_data WHERE room_id = '' AND type = :type")
def everybodys(txn: Transaction, type: str) -> None:
    """The global data of one type of all users who have any."""

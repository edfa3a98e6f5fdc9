"""When the keys of each user changed last."""

from __future__ import annotations

import msgspec

from ...database.statements import Transaction, many, maybe, none, one

RETENTION = "Compacted as it is written: one row for each user whose keys ever changed, with the newest position."


class ChangeRow(msgspec.Struct, frozen=True):
    """``device_position`` is that of the newest change of a device, which other servers know as ``stream_id``."""

    position: int
    device_position: int


@maybe(ChangeRow, "SELECT position, device_position FROM key_changes WHERE user_id = :user_id")
def of_user(txn: Transaction, user_id: str) -> None: ...


@none(
    """
    INSERT INTO key_changes (user_id, position, device_position) VALUES (:user_id, :position, :device_position)
    ON CONFLICT (user_id) DO UPDATE SET position = excluded.position, device_position = excluded.device_position
    """
)
def store(txn: Transaction, user_id: str, position: int, device_position: int) -> None: ...


@many(
    str,
    "SELECT user_id FROM key_changes WHERE position > :after AND position <= :upto ORDER BY position",
)
def between(txn: Transaction, after: int, upto: int) -> None: ...


@one(int, "SELECT COALESCE(MAX(position), 0) FROM key_changes")
def newest(txn: Transaction) -> None: ...

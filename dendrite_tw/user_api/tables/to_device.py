"""Messages that wait for a device, and the transactions that were sent already."""

from __future__ import annotations

from typing import Any

import msgspec

from ...database.statements import Transaction, each, many, none, one

INBOX_LIMIT = 50_000
"""Messages that wait for one device at most, give or take `CHECK_EVERY`; beyond it the oldest are dropped."""

TRANSACTION_RETENTION_MS = 24 * 3600 * 1000
MESSAGE_RETENTION_MS = 14 * TRANSACTION_RETENTION_MS
"""How long a client's transaction and another server's message are known again; a server may try for days."""

RETENTION = (
    "Messages: deleted when the device has them, with the device, and beyond `INBOX_LIMIT` (`drop_oldest`). "
    "Transactions: `prune_transactions` after a day; those of other servers `prune_messages` after 14."
)


class WaitingRow(msgspec.Struct, frozen=True):
    """A message that waits; ``event`` is JSON."""

    position: int
    event: bytes


@each(
    "INSERT INTO to_device (position, user_id, device_id, event) VALUES (:position, :user_id, :device_id, :event)",
    row="position user_id device_id event",
)
def add(txn: Transaction, rows: Any) -> None: ...


@many(
    WaitingRow,
    """
    SELECT position, event FROM to_device
    WHERE user_id = :user_id AND device_id = :device_id AND position > :after AND position <= :upto
    ORDER BY position LIMIT :count
    """,
)
def between(txn: Transaction, user_id: str, device_id: str, after: int, upto: int, count: int) -> None: ...


@one(
    int,
    "SELECT COALESCE(MAX(position), 0) FROM to_device WHERE user_id = :user_id AND device_id = :device_id",
)
def highest(txn: Transaction, user_id: str, device_id: str) -> None: ...


@one(
    int,
    "SELECT COALESCE(MIN(position), 0) FROM to_device WHERE user_id = :user_id AND device_id = :device_id",
)
def lowest(txn: Transaction, user_id: str, device_id: str) -> None: ...


@none("DELETE FROM to_device WHERE user_id = :user_id AND device_id = :device_id AND position <= :upto")
def delete_upto(txn: Transaction, user_id: str, device_id: str, upto: int) -> None: ...


@none("DELETE FROM to_device WHERE user_id = :user_id AND device_id = :device_id")
def delete_of_device(txn: Transaction, user_id: str, device_id: str) -> None: ...


@none("DELETE FROM to_device WHERE user_id = :user_id")
def delete_of_user(txn: Transaction, user_id: str) -> None: ...


@none(
    """
    DELETE FROM to_device WHERE user_id = :user_id AND device_id = :device_id AND position <= (
        SELECT position FROM to_device WHERE user_id = :user_id AND device_id = :device_id
        ORDER BY position DESC LIMIT 1 OFFSET :kept
    )
    """
)
def drop_oldest(txn: Transaction, user_id: str, device_id: str, kept: int) -> None:
    """Keep the newest `kept` messages of a device."""


@none(
    """
    INSERT INTO to_device_transactions (user_id, device_id, event_type, txn_id, sent_ts)
    VALUES (:user_id, :device_id, :event_type, :txn_id, :sent_ts)
    ON CONFLICT (user_id, device_id, event_type, txn_id) DO NOTHING
    """
)
def begin(txn: Transaction, user_id: str, device_id: str, event_type: str, txn_id: str, sent_ts: int) -> None:
    """Remember a transaction; touches no row if it was remembered before."""


@none("DELETE FROM to_device_transactions WHERE user_id = :user_id AND device_id = :device_id")
def delete_transactions(txn: Transaction, user_id: str, device_id: str) -> None: ...


@none("DELETE FROM to_device_transactions WHERE user_id = :user_id")
def delete_transactions_of_user(txn: Transaction, user_id: str) -> None: ...


@none("DELETE FROM to_device_transactions WHERE sent_ts < :before_ts AND event_type <> ''")
def prune_transactions(txn: Transaction, before_ts: int) -> None: ...


@none("DELETE FROM to_device_transactions WHERE sent_ts < :before_ts")
def prune_messages(txn: Transaction, before_ts: int) -> None:
    """Forget those of other servers, which have no event type, too."""

"""Backups of room keys: their versions, and the keys in each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from ...database.statements import Transaction, each, many, maybe, none, one

DELETED_KEPT = 100
RETENTION = (
    "Keys: deleted with their backup, room or session by the user; capped in number for each backup. "
    "Versions: a deleted one leaves its number, so that deleting again succeeds; `prune_deleted` keeps the "
    "newest 100 of a user."
)


class BackupRow(msgspec.Struct, frozen=True):
    """A backup; ``id`` is its version, ``auth_data`` JSON, ``etag`` grows with each change of its keys."""

    id: int
    algorithm: str
    auth_data: bytes
    etag: int
    key_count: int
    deleted: int


class KeyRow(msgspec.Struct, frozen=True):
    """The key of a session; ``session_data`` is JSON."""

    room_id: str
    session_id: str
    first_message_index: int
    forwarded_count: int
    is_verified: int
    session_data: bytes


class KeyRank(msgspec.Struct, frozen=True):
    """What decides whether a key gives way to another."""

    session_id: str
    first_message_index: int
    forwarded_count: int
    is_verified: int


@one(
    int,
    """
    INSERT INTO backup_versions (user_id, algorithm, auth_data, etag, key_count, deleted)
    VALUES (:user_id, :algorithm, :auth_data, 0, 0, 0) RETURNING id
    """,
)
def create(txn: Transaction, user_id: str, algorithm: str, auth_data: bytes) -> None: ...


@maybe(
    BackupRow,
    """
    SELECT id, algorithm, auth_data, etag, key_count, deleted FROM backup_versions
    WHERE user_id = :user_id AND deleted = 0 ORDER BY id DESC LIMIT 1
    """,
)
def current(txn: Transaction, user_id: str) -> None: ...


@maybe(
    BackupRow,
    """
    SELECT id, algorithm, auth_data, etag, key_count, deleted FROM backup_versions
    WHERE id = :id AND user_id = :user_id
    """,
)
def version(txn: Transaction, user_id: str, id: int) -> None: ...


@none("UPDATE backup_versions SET etag = etag WHERE id = :id AND user_id = :user_id")
def lock(txn: Transaction, user_id: str, id: int) -> None:
    """Make transactions that change the same backup follow each other, so that its counts stay exact."""


@one(int, "SELECT COUNT(*) FROM backup_versions WHERE user_id = :user_id AND deleted = 0")
def count_versions(txn: Transaction, user_id: str) -> None: ...


@none("UPDATE backup_versions SET auth_data = :auth_data WHERE id = :id")
def set_auth_data(txn: Transaction, id: int, auth_data: bytes) -> None: ...


@none("UPDATE backup_versions SET etag = :etag, key_count = :key_count WHERE id = :id")
def set_counts(txn: Transaction, id: int, etag: int, key_count: int) -> None: ...


@none("UPDATE backup_versions SET deleted = 1, auth_data = :nothing, key_count = 0 WHERE id = :id")
def mark_deleted(txn: Transaction, id: int, nothing: bytes) -> None: ...


@none(
    """
    DELETE FROM backup_versions WHERE user_id = :user_id AND deleted = 1 AND id <= (
        SELECT id FROM backup_versions WHERE user_id = :user_id AND deleted = 1
        ORDER BY id DESC LIMIT 1 OFFSET :kept
    )
    """
)
def prune_deleted(txn: Transaction, user_id: str, kept: int) -> None: ...


@none(
    """
    UPDATE backup_versions SET deleted = 1, auth_data = :nothing, key_count = 0
    WHERE user_id = :user_id AND deleted = 0
    """
)
def mark_deleted_of_user(txn: Transaction, user_id: str, nothing: bytes) -> None: ...


@many(
    int,
    """
    SELECT id FROM backup_versions WHERE deleted = 1
    AND EXISTS (SELECT 1 FROM backup_keys WHERE backup_id = backup_versions.id)
    """,
)
def deleted_with_keys(txn: Transaction) -> None:
    """Deleted backups whose keys are not all gone yet."""


@many(
    KeyRank,
    """
    SELECT session_id, first_message_index, forwarded_count, is_verified FROM backup_keys
    WHERE backup_id = :id AND room_id = :room_id AND session_id = ANY(:session_ids)
    """,
)
def ranks(txn: Transaction, id: int, room_id: str, session_ids: Sequence[str]) -> None: ...


@each(
    """
    INSERT INTO backup_keys
    (backup_id, room_id, session_id, first_message_index, forwarded_count, is_verified, session_data)
    VALUES (:id, :room_id, :session_id, :first_message_index, :forwarded_count, :is_verified, :session_data)
    ON CONFLICT (backup_id, room_id, session_id) DO UPDATE SET
    first_message_index = excluded.first_message_index, forwarded_count = excluded.forwarded_count,
    is_verified = excluded.is_verified, session_data = excluded.session_data
    """,
    row="id room_id session_id first_message_index forwarded_count is_verified session_data",
)
def store(txn: Transaction, rows: Any) -> None: ...


@many(
    KeyRow,
    """
    SELECT room_id, session_id, first_message_index, forwarded_count, is_verified, session_data
    FROM backup_keys WHERE backup_id = :id ORDER BY room_id
    """,
)
def keys(txn: Transaction, id: int) -> None: ...


@many(
    KeyRow,
    """
    SELECT room_id, session_id, first_message_index, forwarded_count, is_verified, session_data
    FROM backup_keys WHERE backup_id = :id AND room_id = :room_id
    """,
)
def keys_of_room(txn: Transaction, id: int, room_id: str) -> None: ...


@maybe(
    KeyRow,
    """
    SELECT room_id, session_id, first_message_index, forwarded_count, is_verified, session_data
    FROM backup_keys WHERE backup_id = :id AND room_id = :room_id AND session_id = :session_id
    """,
)
def key(txn: Transaction, id: int, room_id: str, session_id: str) -> None: ...


@none(
    """
    DELETE FROM backup_keys WHERE backup_id = :id AND (room_id, session_id) IN (
        SELECT room_id, session_id FROM backup_keys WHERE backup_id = :id LIMIT :count
    )
    """
)
def delete_some(txn: Transaction, id: int, count: int) -> None:
    """Delete `count` keys of a backup, or those that are left."""


@none("DELETE FROM backup_keys WHERE backup_id = :id AND room_id = :room_id")
def delete_room(txn: Transaction, id: int, room_id: str) -> None: ...


@none("DELETE FROM backup_keys WHERE backup_id = :id AND room_id = :room_id AND session_id = :session_id")
def delete_session(txn: Transaction, id: int, room_id: str, session_id: str) -> None: ...

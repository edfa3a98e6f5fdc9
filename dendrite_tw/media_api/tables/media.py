"""What is known of each ``mxc://`` URI: its file, its uploader, its dates."""

from __future__ import annotations

from collections.abc import Awaitable

import msgspec

from ...database.statements import Transaction, each, many, maybe, none, one

RETENTION = (
    "A row stays while its media does; delete_expired deletes one whose awaited upload did not come in time, and "
    "delete_unused those of other servers that nobody asks for; what that leaves of files goes by unused_files."
)


class MediaRow(msgspec.Struct, frozen=True):
    """``hash`` is `None` while the upload is awaited, until ``expires_ts``; times are milliseconds."""

    origin: str
    media_id: str
    hash: str | None
    size: int
    content_type: str
    upload_name: str | None
    uploader: str | None
    created_ts: int
    accessed_ts: int
    expires_ts: int | None
    authenticated: int


class Pending(msgspec.Struct, frozen=True):
    """How many uploads of a user are awaited, and when the first of them expires (0 where none)."""

    count: int
    first_expires_ts: int


@maybe(
    MediaRow,
    "SELECT origin, media_id, hash, size, content_type, upload_name, uploader, created_ts, accessed_ts, expires_ts, "
    "authenticated FROM media WHERE origin = :origin AND media_id = :media_id",
)
def media_row(txn: Transaction, origin: str, media_id: str) -> None: ...


@none(
    "INSERT INTO media (origin, media_id, hash, size, content_type, upload_name, uploader, created_ts, accessed_ts, "
    "expires_ts, authenticated) VALUES (:origin, :media_id, :hash, :size, :content_type, :upload_name, :uploader, "
    ":now, :now, :expires_ts, :authenticated) ON CONFLICT DO NOTHING"
)
def insert_media(
    txn: Transaction,
    origin: str,
    media_id: str,
    hash: str | None,
    size: int,
    content_type: str,
    upload_name: str | None,
    uploader: str | None,
    now: int,
    expires_ts: int | None,
    authenticated: int,
) -> None:
    """A new row; touches none where the URI is taken."""


@none(
    "UPDATE media SET hash = :hash, size = :size, content_type = :content_type, upload_name = :upload_name, "
    "accessed_ts = :now, expires_ts = NULL, authenticated = :authenticated "
    "WHERE origin = :origin AND media_id = :media_id AND hash IS NULL AND expires_ts > :now"
)
def complete_media(
    txn: Transaction,
    origin: str,
    media_id: str,
    hash: str,
    size: int,
    content_type: str,
    upload_name: str | None,
    now: int,
    authenticated: int,
) -> None:
    """The awaited upload is here; touches none where it came before or too late."""


@one(
    Pending,
    "SELECT COUNT(*), COALESCE(MIN(expires_ts), 0) FROM media WHERE uploader = :uploader AND hash IS NULL "
    "AND expires_ts > :now",
)
def pending_of(txn: Transaction, uploader: str, now: int) -> None: ...


@none("DELETE FROM media WHERE hash IS NULL AND expires_ts <= :now")
def delete_expired(txn: Transaction, now: int) -> None:
    """Forget uploads that did not come in time."""


@maybe(str, "SELECT hash FROM media WHERE hash = :hash LIMIT 1")
def hash_in_use(txn: Transaction, hash: str) -> None: ...


@many(str, "SELECT media_id FROM media WHERE uploader = :uploader AND hash IS NOT NULL ORDER BY created_ts, media_id")
def uploads_of(txn: Transaction, uploader: str) -> None: ...


@each(
    "UPDATE media SET accessed_ts = :ts WHERE origin = :origin AND media_id = :media_id AND accessed_ts < :ts",
    row="ts origin media_id",
)
def touch_media(txn: Transaction, rows: object) -> None: ...


class UnusedRow(msgspec.Struct, frozen=True):
    origin: str
    media_id: str
    hash: str


@many(
    UnusedRow,
    "SELECT origin, media_id, hash FROM media WHERE uploader IS NULL AND accessed_ts < :before AND hash IS NOT NULL "
    "AND origin <> :own LIMIT :count",
)
def unused_media(txn: Transaction, own: str, before: int, count: int) -> None:
    """Media of other servers that was last asked for before a time."""


async def insert_or_forget(txn: Transaction, hash: str, insert: Awaitable[int], origin: str, media_id: str) -> None:
    """Run `insert` of a row for a file that was fetched; where another one was quicker with another file, note that
    this one is of no use.
    """
    if await insert == 0:
        row = await media_row(txn, origin, media_id)
        if row is None or row.hash != hash:
            await note_unused_files(txn, [(hash,)])


@each("DELETE FROM media WHERE origin = :origin AND media_id = :media_id", row="origin media_id")
def delete_media(txn: Transaction, rows: object) -> None: ...


@each("INSERT INTO unused_files (hash) VALUES (:hash) ON CONFLICT DO NOTHING", row="hash")
def note_unused_files(txn: Transaction, rows: object) -> None: ...


@many(str, "SELECT hash FROM unused_files LIMIT :count")
def unused_files(txn: Transaction, count: int) -> None: ...


@none("DELETE FROM unused_files WHERE hash = :hash")
def forget_unused_file(txn: Transaction, hash: str) -> None: ...


async def delete_unused(txn: Transaction, own: str, before: int, count: int) -> int:
    """Delete rows of `unused_media`, and note their files; returns how many."""
    rows = await unused_media(txn, own, before, count)
    await delete_media(txn, [(row.origin, row.media_id) for row in rows])
    await note_unused_files(txn, [(row.hash,) for row in rows])
    return len(rows)

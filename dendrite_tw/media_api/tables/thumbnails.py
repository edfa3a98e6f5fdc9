"""The thumbnails that were made of each file, by the name of theirs beside it."""

from __future__ import annotations

import msgspec

from ...database.statements import Transaction, each, many, none

RETENTION = "Thumbnails go with their file: forget_thumbnails is called where the file is removed."


class ThumbnailRow(msgspec.Struct, frozen=True):
    """A thumbnail: ``name`` is its file's name, which says size, method and whether it moves."""

    name: str
    size: int
    content_type: str


@many(ThumbnailRow, "SELECT name, size, content_type FROM thumbnails WHERE hash = :hash ORDER BY name")
def thumbnails_of(txn: Transaction, hash: str) -> None: ...


@each(
    "INSERT INTO thumbnails (hash, name, size, content_type, created_ts) VALUES (:hash, :name, :size, :content_type, "
    ":now) ON CONFLICT (hash, name) DO UPDATE SET size = excluded.size, content_type = excluded.content_type",
    row="hash name size content_type now",
)
def insert_thumbnails(txn: Transaction, rows: object) -> None: ...


@none("DELETE FROM thumbnails WHERE hash = :hash")
def forget_thumbnails(txn: Transaction, hash: str) -> None: ...

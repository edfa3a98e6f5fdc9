"""Lists of devices that other servers are being asked for, and what processes have heard of them since.

Only processes that share a database keep this here: any of them may hear what concerns a list that another one asks
for.  ``newest`` is up to which stream ID something was told, -1 for nothing; ``ended`` is 1 where the user ceased to
share rooms.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from ...database.statements import Transaction, each, many, none

LIFETIME_MS = 3_600_000
RETENTION = "Deleted when the answer is stored or there is none; those of killed processes by `prune`, after an hour."


class HeardRow(msgspec.Struct, frozen=True):
    user_id: str
    newest: int
    ended: int


@each(
    "INSERT INTO remote_fetches (fetch_id, user_id, newest, ended, begun_ts) "
    "VALUES (:fetch_id, :user_id, -1, 0, :begun_ts)",
    row="fetch_id user_id begun_ts",
)
def begin(txn: Transaction, rows: Sequence[Sequence[Any]]) -> None: ...


@many(
    HeardRow,
    "SELECT user_id, newest, ended FROM remote_fetches WHERE fetch_id = :fetch_id AND user_id = ANY(:user_ids)",
)
def heard(txn: Transaction, fetch_id: str, user_ids: Sequence[str]) -> None: ...


@none("UPDATE remote_fetches SET newest = :stream_id WHERE user_id = :user_id AND newest < :stream_id")
def told(txn: Transaction, user_id: str, stream_id: int) -> None: ...


@none("UPDATE remote_fetches SET ended = 1 WHERE user_id = ANY(:user_ids)")
def end(txn: Transaction, user_ids: Sequence[str]) -> None: ...


@many(str, "SELECT DISTINCT user_id FROM remote_fetches WHERE user_id = ANY(:user_ids)")
def fetched(txn: Transaction, user_ids: Sequence[str]) -> None:
    """Those of these users whose lists are being asked for."""


@none("DELETE FROM remote_fetches WHERE user_id = ANY(:user_ids) AND fetch_id = :fetch_id")
def finish(txn: Transaction, user_ids: Sequence[str], fetch_id: str) -> None: ...


@none("DELETE FROM remote_fetches WHERE begun_ts < :before_ts")
def prune(txn: Transaction, before_ts: int) -> None: ...

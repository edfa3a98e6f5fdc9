"""Servers that could not be reached."""

from __future__ import annotations

import msgspec

from ...database.statements import Transaction, each, many, none

RETENTION = (
    "A row goes when its server is reached or heard of; forget_unreachable deletes those of servers that nobody "
    "tried for KEPT_MS, and there are no more than LOADED: one more takes the place of another one."
)

KEPT_MS = 90 * 86_400_000
LOADED = 100_000


class UnreachableRow(msgspec.Struct, frozen=True):
    """See ``0001_federation.sql``; ``error`` says in words what was wrong."""

    server_name: str
    failures: int
    retry_ts: int
    given_up: int
    failed_ts: int
    error: str


@many(
    UnreachableRow,
    "SELECT server_name, failures, retry_ts, given_up, failed_ts, error FROM unreachable_servers "
    "ORDER BY failed_ts DESC LIMIT :count",
)
def unreachable_servers(txn: Transaction, count: int) -> None: ...


@each(
    "INSERT INTO unreachable_servers (server_name, failures, retry_ts, given_up, failed_ts, error) "
    "VALUES (:server_name, :failures, :retry_ts, :given_up, :failed_ts, :error) "
    "ON CONFLICT (server_name) DO UPDATE SET failures = excluded.failures, retry_ts = excluded.retry_ts, "
    "given_up = excluded.given_up, failed_ts = excluded.failed_ts, error = excluded.error",
    row="server_name failures retry_ts given_up failed_ts error",
)
def store_unreachable(txn: Transaction, rows: object) -> None: ...


@each("DELETE FROM unreachable_servers WHERE server_name = :server_name", row="server_name")
def store_reachable(txn: Transaction, rows: object) -> None: ...


@none("DELETE FROM unreachable_servers WHERE failed_ts < :before")
def forget_unreachable(txn: Transaction, before: int) -> None: ...

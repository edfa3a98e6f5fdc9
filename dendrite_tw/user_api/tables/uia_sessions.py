"""The table ``uia_sessions``: proofs on their way, of processes that share what they know; ``content`` is JSON."""

from __future__ import annotations

from ...database.statements import Transaction, maybe, none

SESSIONS_LIMIT = 100_000
"""Sessions that are kept; beyond them those that expire first are forgotten."""

RETENTION = "until they end or expire, `SESSIONS_LIMIT` at most; `make_room` runs whenever one is stored"


@maybe(bytes, "SELECT content FROM uia_sessions WHERE id = :id AND expires_ts > :now")
def session(txn: Transaction, id: str, now: int) -> None: ...


@none(
    "INSERT INTO uia_sessions (id, expires_ts, content) VALUES (:id, :expires_ts, :content) "
    "ON CONFLICT (id) DO UPDATE SET expires_ts = excluded.expires_ts, content = excluded.content"
)
def put(txn: Transaction, id: str, expires_ts: int, content: bytes) -> None: ...


@none("DELETE FROM uia_sessions WHERE id = :id")
def delete(txn: Transaction, id: str) -> None: ...


@none("DELETE FROM uia_sessions WHERE expires_ts <= :now")
def _delete_expired(txn: Transaction, now: int) -> None: ...


@none(
    "DELETE FROM uia_sessions WHERE expires_ts <= "
    "(SELECT expires_ts FROM uia_sessions ORDER BY expires_ts DESC LIMIT 1 OFFSET :kept)"
)
def _delete_beyond(txn: Transaction, kept: int) -> None: ...


async def make_room(txn: Transaction, now: int) -> None:
    """Forget what has expired, and the oldest where there are too many."""
    await _delete_expired(txn, now)
    await _delete_beyond(txn, SESSIONS_LIMIT)

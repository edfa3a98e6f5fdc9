"""The table ``short_tokens``: tokens for one purpose that live for minutes (login tokens, OpenID tokens)."""

from __future__ import annotations

from ...database.statements import Transaction, maybe, none

RETENTION = "until they expire; `delete_expired` runs whenever one is made"


@none(
    "INSERT INTO short_tokens (token_hash, purpose, user_id, expires_ts) "
    "VALUES (:token_hash, :purpose, :user_id, :expires_ts)"
)
def insert(txn: Transaction, token_hash: bytes, purpose: str, user_id: str, expires_ts: int) -> None: ...


@maybe(
    str,
    "SELECT t.user_id FROM short_tokens t JOIN accounts a ON a.user_id = t.user_id "
    "WHERE t.token_hash = :token_hash AND t.purpose = :purpose AND t.expires_ts > :now AND a.deactivated = 0",
)
def owner(txn: Transaction, token_hash: bytes, purpose: str, now: int) -> None: ...


@none("DELETE FROM short_tokens WHERE token_hash = :token_hash")
def delete(txn: Transaction, token_hash: bytes) -> None: ...


@none("DELETE FROM short_tokens WHERE user_id = :user_id")
def delete_of_user(txn: Transaction, user_id: str) -> None: ...


@none("DELETE FROM short_tokens WHERE expires_ts <= :now")
def delete_expired(txn: Transaction, now: int) -> None: ...

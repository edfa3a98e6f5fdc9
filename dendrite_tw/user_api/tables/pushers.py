"""The table ``pushers``: where users want to be told of events when they are not looking."""

from __future__ import annotations

import msgspec

from ...database.statements import Transaction, many, none, one

RETENTION = "until the client removes it, another user takes its key over, or its session ends"


class PusherRow(msgspec.Struct, frozen=True):
    """``details`` is the JSON of what the client set beside the key."""

    user_id: str
    app_id: str
    pushkey: str
    session_id: int
    kind: str
    created_ts: int
    details: bytes


@many(
    PusherRow,
    "SELECT user_id, app_id, pushkey, session_id, kind, created_ts, details FROM pushers "
    "WHERE user_id = :user_id ORDER BY created_ts, app_id, pushkey",
)
def pushers(txn: Transaction, user_id: str) -> None: ...


@one(int, "SELECT COUNT(*) FROM pushers WHERE user_id = :user_id")
def count(txn: Transaction, user_id: str) -> None: ...


@none(
    "INSERT INTO pushers (user_id, app_id, pushkey, session_id, kind, created_ts, details) "
    "VALUES (:user_id, :app_id, :pushkey, :session_id, :kind, :created_ts, :details) "
    "ON CONFLICT (user_id, app_id, pushkey) DO UPDATE SET session_id = excluded.session_id, "
    "kind = excluded.kind, details = excluded.details"
)
def put(
    txn: Transaction,
    user_id: str,
    app_id: str,
    pushkey: str,
    session_id: int,
    kind: str,
    created_ts: int,
    details: bytes,
) -> None: ...


@none("DELETE FROM pushers WHERE user_id = :user_id AND app_id = :app_id AND pushkey = :pushkey")
def delete(txn: Transaction, user_id: str, app_id: str, pushkey: str) -> None: ...


@none("DELETE FROM pushers WHERE app_id = :app_id AND pushkey = :pushkey AND user_id <> :user_id")
def delete_of_others(txn: Transaction, app_id: str, pushkey: str, user_id: str) -> None: ...


@none("DELETE FROM pushers WHERE session_id = :session_id")
def delete_of_session(txn: Transaction, session_id: int) -> None: ...


@none("DELETE FROM pushers WHERE user_id = :user_id AND session_id <> :session_id")
def delete_of_other_sessions(txn: Transaction, user_id: str, session_id: int) -> None: ...


@none("DELETE FROM pushers WHERE user_id = :user_id")
def delete_all(txn: Transaction, user_id: str) -> None: ...

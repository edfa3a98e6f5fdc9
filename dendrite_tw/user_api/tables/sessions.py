"""The tables ``devices`` and ``token_pairs``: where somebody is logged in, and the tokens that prove it.

Tokens are stored as their SHA-256: who reads the database cannot use them.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ...database.statements import Transaction, each, many, maybe, none, one

RETENTION = "devices until they are deleted; token pairs until they are replaced or their device is deleted"


class DeviceRow(msgspec.Struct, frozen=True):
    session_id: int
    user_id: str
    device_id: str
    display_name: str | None
    last_seen_ts: int
    last_seen_ip: str
    user_agent: str


class TokenRow(msgspec.Struct, frozen=True):
    """What an access token stands for: its pair, its device, its account."""

    pair_id: int
    expires_ts: int | None
    parent_id: int | None
    session_id: int
    user_id: str
    device_id: str
    account_type: int
    locked: int
    suspended: int


class PairRow(msgspec.Struct, frozen=True):
    pair_id: int
    session_id: int
    parent_id: int | None
    user_id: str
    device_id: str
    locked: int


_DEVICE = "session_id, user_id, device_id, display_name, last_seen_ts, last_seen_ip, user_agent"


@many(DeviceRow, f"SELECT {_DEVICE} FROM devices WHERE user_id = :user_id ORDER BY session_id")
def devices(txn: Transaction, user_id: str) -> None: ...


@maybe(DeviceRow, f"SELECT {_DEVICE} FROM devices WHERE user_id = :user_id AND device_id = :device_id")
def device(txn: Transaction, user_id: str, device_id: str) -> None: ...


@one(int, "SELECT COUNT(*) FROM devices WHERE user_id = :user_id")
def device_count(txn: Transaction, user_id: str) -> None: ...


@one(
    int,
    "INSERT INTO devices (user_id, device_id, display_name, created_ts, last_seen_ts, last_seen_ip, user_agent) "
    "VALUES (:user_id, :device_id, :display_name, :created_ts, :last_seen_ts, :last_seen_ip, :user_agent) "
    "RETURNING session_id",
)
def insert_device(
    txn: Transaction,
    user_id: str,
    device_id: str,
    display_name: str | None,
    created_ts: int,
    last_seen_ts: int,
    last_seen_ip: str,
    user_agent: str,
) -> None: ...


@none("UPDATE devices SET display_name = :display_name WHERE user_id = :user_id AND device_id = :device_id")
def rename_device(txn: Transaction, user_id: str, device_id: str, display_name: str | None) -> None: ...


@none("DELETE FROM devices WHERE session_id = :session_id")
def delete_device(txn: Transaction, session_id: int) -> None: ...


@each(
    "UPDATE devices SET last_seen_ts = :last_seen_ts, last_seen_ip = :last_seen_ip, user_agent = :user_agent "
    "WHERE user_id = :user_id AND device_id = :device_id AND last_seen_ts < :last_seen_ts",
    row="user_id device_id last_seen_ts last_seen_ip user_agent",
)
def seen(txn: Transaction, rows: Sequence[Sequence[object]]) -> None: ...


@maybe(
    TokenRow,
    "SELECT p.pair_id, p.expires_ts, p.parent_id, d.session_id, d.user_id, d.device_id, "
    "a.account_type, a.locked, a.suspended "
    "FROM token_pairs p JOIN devices d ON d.session_id = p.session_id JOIN accounts a ON a.user_id = d.user_id "
    "WHERE p.access_hash = :access_hash AND a.deactivated = 0",
)
def token(txn: Transaction, access_hash: bytes) -> None: ...


@maybe(
    PairRow,
    "SELECT p.pair_id, p.session_id, p.parent_id, d.user_id, d.device_id, a.locked "
    "FROM token_pairs p JOIN devices d ON d.session_id = p.session_id JOIN accounts a ON a.user_id = d.user_id "
    "WHERE p.refresh_hash = :refresh_hash AND a.deactivated = 0",
)
def pair_of_refresh_token(txn: Transaction, refresh_hash: bytes) -> None: ...


@many(
    bytes,
    "SELECT p.access_hash FROM token_pairs p JOIN devices d ON d.session_id = p.session_id WHERE d.user_id = :user_id",
)
def access_hashes(txn: Transaction, user_id: str) -> None: ...


@none(
    "INSERT INTO token_pairs (session_id, access_hash, refresh_hash, expires_ts, parent_id) "
    "VALUES (:session_id, :access_hash, :refresh_hash, :expires_ts, :parent_id)"
)
def insert_pair(
    txn: Transaction,
    session_id: int,
    access_hash: bytes,
    refresh_hash: bytes | None,
    expires_ts: int | None,
    parent_id: int | None,
) -> None: ...


@none("DELETE FROM token_pairs WHERE parent_id = :pair_id")
def delete_children(txn: Transaction, pair_id: int) -> None: ...


@none("DELETE FROM token_pairs WHERE pair_id = :pair_id")
def delete_pair(txn: Transaction, pair_id: int) -> None: ...


@none("UPDATE token_pairs SET parent_id = NULL WHERE pair_id = :pair_id")
def make_independent(txn: Transaction, pair_id: int) -> None: ...


@none("UPDATE token_pairs SET parent_id = NULL WHERE pair_id = :pair_id AND parent_id = :parent_id")
def become_independent(txn: Transaction, pair_id: int, parent_id: int) -> None:
    """Touches no row where the pair is gone, or stands for itself already."""


@none("DELETE FROM token_pairs WHERE session_id = :session_id")
def delete_tokens(txn: Transaction, session_id: int) -> None: ...

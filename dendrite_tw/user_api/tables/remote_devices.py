"""Devices and cross-signing keys of users of other servers, as their servers told them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from ...database.statements import Transaction, each, many, maybe, none, one

RETENTION = (
    "A list for a user of another server who shares a room with one of ours; deleted when they share none any more "
    "(`forget`). Devices of a user: `remote_checks.DEVICES_LIMIT`."
)


class ListRow(msgspec.Struct, frozen=True):
    """What is known of a user's list: ``seen`` is a JSON list of the updates since the list of ``stream_id``."""

    user_id: str
    stale: int
    stream_id: int
    seen: bytes
    master_key: bytes | None
    self_signing_key: bytes | None


class DeviceRow(msgspec.Struct, frozen=True):
    """A device; ``content`` is its JSON as clients see it."""

    user_id: str
    device_id: str
    content: bytes


_LIST = "user_id, stale, stream_id, seen, master_key, self_signing_key"


@maybe(ListRow, f"SELECT {_LIST} FROM remote_lists WHERE user_id = :user_id")
def of_user(txn: Transaction, user_id: str) -> None: ...


@many(ListRow, f"SELECT {_LIST} FROM remote_lists WHERE user_id = ANY(:user_ids)")
def of_users(txn: Transaction, user_ids: Sequence[str]) -> None: ...


@many(str, "SELECT user_id FROM remote_lists WHERE user_id = ANY(:user_ids)")
def known_users(txn: Transaction, user_ids: Sequence[str]) -> None:
    """Those of these users of whom there is a list, stale or not."""


@many(DeviceRow, "SELECT user_id, device_id, content FROM remote_devices WHERE user_id = ANY(:user_ids)")
def devices_of_users(txn: Transaction, user_ids: Sequence[str]) -> None: ...


@maybe(bytes, "SELECT content FROM remote_devices WHERE user_id = :user_id AND device_id = :device_id")
def device(txn: Transaction, user_id: str, device_id: str) -> None: ...


@one(int, "SELECT COUNT(*) FROM remote_devices WHERE user_id = :user_id")
def device_count(txn: Transaction, user_id: str) -> None: ...


@none(
    f"""
    INSERT INTO remote_lists (server_name, {_LIST})
    VALUES (:server_name, :user_id, :stale, :stream_id, :seen, :master_key, :self_signing_key)
    ON CONFLICT (user_id) DO UPDATE SET stale = excluded.stale, stream_id = excluded.stream_id,
    seen = excluded.seen, master_key = excluded.master_key, self_signing_key = excluded.self_signing_key
    """
)
def put(
    txn: Transaction,
    server_name: str,
    user_id: str,
    stale: int,
    stream_id: int,
    seen: bytes,
    master_key: bytes | None,
    self_signing_key: bytes | None,
) -> None: ...


@none("UPDATE remote_lists SET stale = 1 WHERE user_id = :user_id")
def mark_stale(txn: Transaction, user_id: str) -> None: ...


@none("UPDATE remote_lists SET stream_id = :stream_id, seen = :seen WHERE user_id = :user_id")
def put_seen(txn: Transaction, user_id: str, stream_id: int, seen: bytes) -> None: ...


@none("UPDATE remote_lists SET master_key = :master_key, self_signing_key = :self_signing_key WHERE user_id = :user_id")
def put_keys(txn: Transaction, user_id: str, master_key: bytes | None, self_signing_key: bytes | None) -> None: ...


@each(
    """
    INSERT INTO remote_devices (user_id, device_id, content) VALUES (:user_id, :device_id, :content)
    ON CONFLICT (user_id, device_id) DO UPDATE SET content = excluded.content
    """,
    row="user_id device_id content",
)
def put_devices(txn: Transaction, rows: Sequence[Sequence[Any]]) -> None: ...


@none("DELETE FROM remote_devices WHERE user_id = :user_id AND device_id = ANY(:device_ids)")
def delete_devices(txn: Transaction, user_id: str, device_ids: Sequence[str]) -> None: ...


@none("DELETE FROM remote_devices WHERE user_id = :user_id")
def delete_all_devices(txn: Transaction, user_id: str) -> None: ...


@none("DELETE FROM remote_lists WHERE user_id = :user_id")
def delete_list(txn: Transaction, user_id: str) -> None: ...


@many(str, "SELECT DISTINCT server_name FROM remote_lists WHERE stale = 1")
def stale_servers(txn: Transaction) -> None: ...


@many(
    str,
    "SELECT user_id FROM remote_lists WHERE stale = 1 AND server_name = :server_name AND user_id > :after "
    "ORDER BY user_id LIMIT :count",
)
def stale_users(txn: Transaction, server_name: str, after: str, count: int) -> None: ...


async def replace_devices(txn: Transaction, user_id: str, devices: Mapping[str, bytes]) -> bool:
    """Make `devices` the user's only ones; returns whether that changed anything."""
    before = {row.device_id: row.content for row in await devices_of_users(txn, [user_id])}
    gone = sorted(before.keys() - devices.keys())
    changed = [(user_id, name, content) for name, content in devices.items() if before.get(name) != content]
    if gone:
        await delete_devices(txn, user_id, gone)
    await put_devices(txn, changed)
    return bool(gone or changed)


async def forget(txn: Transaction, user_id: str) -> None:
    """Forget a user's list and devices."""
    await delete_list(txn, user_id)
    await delete_all_devices(txn, user_id)

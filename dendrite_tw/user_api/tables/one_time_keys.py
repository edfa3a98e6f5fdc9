"""One-time keys that wait to be claimed, the names of those that were, and fallback keys.

A claimed key leaves its name and digest behind, so that a device which repeats
an upload whose answer it never saw does not put the same key up twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from ...database.statements import Transaction, each, many, maybe, none

CLAIMED_RETENTION_MS = 30 * 24 * 3600 * 1000
RETENTION = (
    "Unclaimed keys: capped for each device when they are stored; gone when claimed or with the device. "
    "Names of claimed keys: `prune_claimed` after 30 days. Fallback keys: one for each algorithm."
)


class NamedKey(msgspec.Struct, frozen=True):
    """A key's name and the digest of what it says apart from its signatures."""

    algorithm: str
    key_id: str
    digest: bytes


class StoredKey(msgspec.Struct, frozen=True):
    """A key as it is handed out; ``content`` is JSON."""

    key_id: str
    digest: bytes
    content: bytes


class FallbackKey(msgspec.Struct, frozen=True):
    """A fallback key of a device; ``used`` is 1 once it was handed out."""

    algorithm: str
    key_id: str
    digest: bytes
    content: bytes
    used: int


class Count(msgspec.Struct, frozen=True):
    """How many keys of an algorithm wait."""

    algorithm: str
    count: int


class DeviceCount(msgspec.Struct, frozen=True):
    """How many keys of an algorithm wait at a device."""

    user_id: str
    device_id: str
    algorithm: str
    count: int


class UnusedFallback(msgspec.Struct, frozen=True):
    """A device has a fallback key of the algorithm that was not handed out."""

    user_id: str
    device_id: str
    algorithm: str


@many(
    NamedKey,
    """
    SELECT algorithm, key_id, digest FROM one_time_keys
    WHERE user_id = :user_id AND device_id = :device_id AND key_id = ANY(:key_ids)
    """,
)
def waiting_named(txn: Transaction, user_id: str, device_id: str, key_ids: Sequence[str]) -> None: ...


@many(
    NamedKey,
    """
    SELECT algorithm, key_id, digest FROM claimed_one_time_keys
    WHERE user_id = :user_id AND device_id = :device_id AND key_id = ANY(:key_ids)
    """,
)
def claimed_named(txn: Transaction, user_id: str, device_id: str, key_ids: Sequence[str]) -> None: ...


@each(
    """
    INSERT INTO one_time_keys (user_id, device_id, algorithm, key_id, digest, content)
    VALUES (:user_id, :device_id, :algorithm, :key_id, :digest, :content)
    ON CONFLICT (user_id, device_id, algorithm, key_id) DO NOTHING
    """,
    row="user_id device_id algorithm key_id digest content",
)
def add(txn: Transaction, rows: Any) -> None: ...


@maybe(
    StoredKey,
    """
    DELETE FROM one_time_keys WHERE id = (
        SELECT id FROM one_time_keys
        WHERE user_id = :user_id AND device_id = :device_id AND algorithm = :algorithm ORDER BY id LIMIT 1
    ) RETURNING key_id, digest, content
    """,
)
def take_oldest(txn: Transaction, user_id: str, device_id: str, algorithm: str) -> None:
    """Take the key that was uploaded first; `None` where none waits or another transaction took it meanwhile."""


@maybe(
    int,
    """
    SELECT id FROM one_time_keys
    WHERE user_id = :user_id AND device_id = :device_id AND algorithm = :algorithm LIMIT 1
    """,
)
def any_waiting(txn: Transaction, user_id: str, device_id: str, algorithm: str) -> None: ...


@each(
    """
    INSERT INTO claimed_one_time_keys (user_id, device_id, algorithm, key_id, digest, claimed_ts)
    VALUES (:user_id, :device_id, :algorithm, :key_id, :digest, :claimed_ts)
    ON CONFLICT (user_id, device_id, algorithm, key_id)
    DO UPDATE SET digest = excluded.digest, claimed_ts = excluded.claimed_ts
    """,
    row="user_id device_id algorithm key_id digest claimed_ts",
)
def remember_claimed(txn: Transaction, rows: Any) -> None: ...


@none("DELETE FROM claimed_one_time_keys WHERE claimed_ts < :before_ts")
def prune_claimed(txn: Transaction, before_ts: int) -> None:
    """Forget which keys were claimed before `before_ts` (`CLAIMED_RETENTION_MS` ago)."""


@many(
    Count,
    """
    SELECT algorithm, COUNT(*) FROM one_time_keys
    WHERE user_id = :user_id AND device_id = :device_id GROUP BY algorithm
    """,
)
def counts(txn: Transaction, user_id: str, device_id: str) -> None: ...


@many(
    DeviceCount,
    """
    SELECT user_id, device_id, algorithm, COUNT(*) FROM one_time_keys
    WHERE user_id = ANY(:user_ids) AND device_id = ANY(:device_ids) GROUP BY user_id, device_id, algorithm
    """,
)
def counts_of(txn: Transaction, user_ids: Sequence[str], device_ids: Sequence[str]) -> None:
    """Those of all devices of these users that are called so: also of some that were not meant."""


@many(
    UnusedFallback,
    """
    SELECT user_id, device_id, algorithm FROM fallback_keys
    WHERE user_id = ANY(:user_ids) AND device_id = ANY(:device_ids) AND used = 0 ORDER BY algorithm
    """,
)
def unused_fallbacks_of(txn: Transaction, user_ids: Sequence[str], device_ids: Sequence[str]) -> None:
    """As `counts_of`."""


@many(
    FallbackKey,
    """
    SELECT algorithm, key_id, digest, content, used FROM fallback_keys
    WHERE user_id = :user_id AND device_id = :device_id ORDER BY algorithm
    """,
)
def fallbacks(txn: Transaction, user_id: str, device_id: str) -> None: ...


@maybe(
    FallbackKey,
    """
    SELECT algorithm, key_id, digest, content, used FROM fallback_keys
    WHERE user_id = :user_id AND device_id = :device_id AND algorithm = :algorithm
    """,
)
def fallback(txn: Transaction, user_id: str, device_id: str, algorithm: str) -> None: ...


@none(
    """
    INSERT INTO fallback_keys (user_id, device_id, algorithm, key_id, digest, content, used)
    VALUES (:user_id, :device_id, :algorithm, :key_id, :digest, :content, 0)
    ON CONFLICT (user_id, device_id, algorithm) DO UPDATE
    SET key_id = excluded.key_id, digest = excluded.digest, content = excluded.content, used = 0
    """
)
def store_fallback(
    txn: Transaction, user_id: str, device_id: str, algorithm: str, key_id: str, digest: bytes, content: bytes
) -> None: ...


@none(
    """
    UPDATE fallback_keys SET used = 1
    WHERE user_id = :user_id AND device_id = :device_id AND algorithm = :algorithm
    """
)
def use_fallback(txn: Transaction, user_id: str, device_id: str, algorithm: str) -> None: ...


@none("DELETE FROM one_time_keys WHERE user_id = :user_id AND device_id = :device_id")
def delete_waiting(txn: Transaction, user_id: str, device_id: str) -> None: ...


@none("DELETE FROM claimed_one_time_keys WHERE user_id = :user_id AND device_id = :device_id")
def delete_claimed(txn: Transaction, user_id: str, device_id: str) -> None: ...


@none("DELETE FROM fallback_keys WHERE user_id = :user_id AND device_id = :device_id")
def delete_fallbacks(txn: Transaction, user_id: str, device_id: str) -> None: ...


@many(
    str,
    """
    SELECT device_id FROM one_time_keys WHERE user_id = :user_id
    UNION SELECT device_id FROM claimed_one_time_keys WHERE user_id = :user_id
    UNION SELECT device_id FROM fallback_keys WHERE user_id = :user_id
    """,
)
def devices_with_keys(txn: Transaction, user_id: str) -> None: ...

"""The signing keys of other servers, and the documents that told them."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ...database.statements import Transaction, each, many, maybe, none

RETENTION = (
    "A key or document goes when its server did not confirm it for KEPT_MS, or when there are more than "
    "ROWS_LIMIT and it was confirmed least lately: prune deletes a few of them at a time. Of one server there are no "
    "more than KEYS_OF_SERVER keys."
)

KEPT_MS = 2 * 365 * 86_400_000
ROWS_LIMIT = 1_000_000
"""A stranger who owns a domain can make this server ask for the keys of any number of names below it."""

PRUNED_AT_ONCE = 500

KEYS_OF_SERVER = 500
"""How many keys of one server are kept, those that it confirmed last: it could have new ones each time it is asked."""

RETIRED_OF_SERVER = 20
"""How many keys that a server forgot are remembered for it as a notary would."""


class KeyRow(msgspec.Struct, frozen=True):
    """See ``0001_federation.sql``."""

    server_name: str
    key_id: str
    verify_key: bytes
    valid_until_ts: int
    expired: int
    told_until_ts: int
    fetched_ts: int


class DocumentRow(msgspec.Struct, frozen=True):
    """A server's document, as bytes of JSON with its own signatures."""

    server_name: str
    document: bytes
    valid_until_ts: int
    fetched_ts: int


@many(
    KeyRow,
    "SELECT server_name, key_id, verify_key, valid_until_ts, expired, told_until_ts, fetched_ts FROM server_keys "
    "WHERE server_name = ANY(:server_names)",
)
def keys_of(txn: Transaction, server_names: Sequence[str]) -> None: ...


@each(
    "INSERT INTO server_keys (server_name, key_id, verify_key, valid_until_ts, expired, told_until_ts, fetched_ts) "
    "VALUES (:server_name, :key_id, :verify_key, :valid_until_ts, :expired, :told_until_ts, :fetched_ts) "
    "ON CONFLICT (server_name, key_id) DO UPDATE SET verify_key = excluded.verify_key, "
    "valid_until_ts = excluded.valid_until_ts, expired = excluded.expired, told_until_ts = excluded.told_until_ts, "
    "fetched_ts = excluded.fetched_ts WHERE excluded.told_until_ts >= server_keys.told_until_ts",
    row="server_name key_id verify_key valid_until_ts expired told_until_ts fetched_ts",
)
def store_keys(txn: Transaction, rows: object) -> None:
    """Store keys; what a newer document said of one stays."""


@none(
    "DELETE FROM server_keys WHERE server_name = :server_name AND key_id NOT IN (SELECT key_id FROM "
    "server_keys WHERE server_name = :server_name ORDER BY fetched_ts DESC, key_id LIMIT :count)"
)
def prune_keys_of(txn: Transaction, server_name: str, count: int) -> None: ...


@maybe(
    DocumentRow,
    "SELECT server_name, document, valid_until_ts, fetched_ts FROM server_key_documents "
    "WHERE server_name = :server_name",
)
def document_of(txn: Transaction, server_name: str) -> None: ...


@each(
    "INSERT INTO server_key_documents (server_name, document, valid_until_ts, fetched_ts) "
    "VALUES (:server_name, :document, :valid_until_ts, :fetched_ts) "
    "ON CONFLICT (server_name) DO UPDATE SET document = excluded.document, "
    "valid_until_ts = excluded.valid_until_ts, fetched_ts = excluded.fetched_ts",
    row="server_name document valid_until_ts fetched_ts",
)
def store_documents(txn: Transaction, rows: object) -> None:
    """Store documents, in place of older ones."""


@many(
    DocumentRow,
    "SELECT server_name, document, valid_until_ts, fetched_ts FROM retired_key_documents "
    "WHERE server_name = :server_name AND key_id = ANY(:key_ids) ORDER BY fetched_ts DESC",
)
def retired_documents(txn: Transaction, server_name: str, key_ids: Sequence[str]) -> None:
    """The last documents with keys that the server names no longer."""


@each(
    "INSERT INTO retired_key_documents (server_name, key_id, document, valid_until_ts, fetched_ts) "
    "VALUES (:server_name, :key_id, :document, :valid_until_ts, :fetched_ts) "
    "ON CONFLICT (server_name, key_id) DO UPDATE SET document = excluded.document, "
    "valid_until_ts = excluded.valid_until_ts, fetched_ts = excluded.fetched_ts",
    row="server_name key_id document valid_until_ts fetched_ts",
)
def store_retired(txn: Transaction, rows: object) -> None: ...


@none(
    "DELETE FROM retired_key_documents WHERE server_name = :server_name AND key_id NOT IN (SELECT key_id FROM "
    "retired_key_documents WHERE server_name = :server_name ORDER BY fetched_ts DESC, key_id LIMIT :count)"
)
def prune_retired_of(txn: Transaction, server_name: str, count: int) -> None: ...


@none(
    "DELETE FROM retired_key_documents WHERE (server_name, key_id) IN (SELECT server_name, key_id FROM "
    "retired_key_documents WHERE fetched_ts < :before ORDER BY fetched_ts LIMIT :count)"
)
def prune_retired(txn: Transaction, before: int, count: int) -> None: ...


@none(
    "DELETE FROM server_keys WHERE (server_name, key_id) IN (SELECT server_name, key_id FROM server_keys "
    "WHERE fetched_ts < :before ORDER BY fetched_ts LIMIT :count)"
)
def prune_keys(txn: Transaction, before: int, count: int) -> None: ...


@none(
    "DELETE FROM server_key_documents WHERE server_name IN (SELECT server_name FROM server_key_documents "
    "WHERE fetched_ts < :before ORDER BY fetched_ts LIMIT :count)"
)
def prune_documents(txn: Transaction, before: int, count: int) -> None: ...


@maybe(int, "SELECT fetched_ts FROM server_keys ORDER BY fetched_ts DESC LIMIT 1 OFFSET :rows")
def fetched_of_surplus(txn: Transaction, rows: int) -> None:
    """When the newest key was confirmed of those beyond the `rows` newest; none where there are no more."""


async def prune(txn: Transaction, now: int) -> int:
    """Forget what nobody confirmed for long, and the surplus; says how many rows went."""
    surplus = await fetched_of_surplus(txn, ROWS_LIMIT)
    before = max(now - KEPT_MS, -1 if surplus is None else surplus + 1)
    keys = await prune_keys(txn, before, PRUNED_AT_ONCE)
    keys += await prune_retired(txn, before, PRUNED_AT_ONCE)
    return keys + await prune_documents(txn, before, PRUNED_AT_ONCE)

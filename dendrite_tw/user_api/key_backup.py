"""Backups of room keys: encrypted by clients, kept in versions, only ever replaced by better keys.

Client-Server API, "Server-side key backups".  Keys are written to the newest
version only.  ``etag`` grows with each request that changed something; the
number of keys is kept beside it, so neither is ever counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import orjson

from ..database.engines import Database
from ..database.statements import Transaction
from ..matrix.errors import MatrixError, forbidden, invalid_param, not_found, too_large
from . import key_checks
from .api import BackupInfo, BackupKey, BackupState
from .tables import key_backup as table

AUTH_DATA_LIMIT = 64 << 10
SESSION_DATA_LIMIT = 16 << 10
"""Bytes of JSON."""

VERSIONS_LIMIT = 100
"""Backups of a user that are not deleted."""

KEYS_LIMIT = 1_000_000
"""Keys in one backup."""

CHUNK = 1_000
"""Keys that one transaction stores or deletes: a big backup must not hold up other writers."""


class KeyBackup:
    """The backups of local users."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # --- versions ---

    async def create(self, user_id: str, algorithm: str, auth_data: bytes) -> str:
        """Make a backup, now the current one; returns its version."""
        key_checks.identifier(algorithm, "algorithm")
        check_auth_data(auth_data)

        async def transaction(txn: Transaction) -> str:
            if await table.count_versions(txn, user_id) >= VERSIONS_LIMIT:
                raise forbidden(f"There may be {VERSIONS_LIMIT} backups at most; delete old ones first.")
            return str(await table.create(txn, user_id, algorithm, auth_data))

        return await self._database.write(transaction)

    async def info(self, user_id: str, version: str | None) -> BackupInfo:
        """A backup, or the current one; ``M_NOT_FOUND`` where there is none."""
        if version is None:
            row = await self._database.read(table.current, user_id)
            if row is None:
                raise not_found("There is no backup.")
        else:
            row = await self._database.read(live_version, user_id, version)
        return BackupInfo(
            version=str(row.id),
            algorithm=row.algorithm,
            auth_data=row.auth_data,
            count=row.key_count,
            etag=str(row.etag),
        )

    async def update(self, user_id: str, version: str, algorithm: str, auth_data: bytes) -> None:
        """Change the ``auth_data`` of a backup; ``M_INVALID_PARAM`` for another algorithm."""
        check_auth_data(auth_data)

        async def transaction(txn: Transaction) -> None:
            row = await live_version(txn, user_id, version)
            if row.algorithm != algorithm:
                raise invalid_param("The algorithm of a backup cannot be changed.")
            await table.set_auth_data(txn, row.id, auth_data)

        await self._database.write(transaction)

    async def delete(self, user_id: str, version: str) -> None:
        """Delete a backup with its keys; again for one that is deleted, ``M_NOT_FOUND`` for one that never was."""

        async def transaction(txn: Transaction) -> int:
            row = await any_version(txn, user_id, version)
            await table.mark_deleted(txn, row.id, b"{}")
            return row.id

        await self._delete_keys(await self._database.write(transaction))
        await self._database.write(table.prune_deleted, user_id, table.DELETED_KEPT)

    async def _delete_keys(self, backup_id: int) -> None:
        while await self._database.write(table.delete_some, backup_id, CHUNK) == CHUNK:
            pass

    # --- keys ---

    async def put(self, user_id: str, version: str, keys: Sequence[BackupKey]) -> BackupState:
        """Store keys in the current backup where they are better than those that are there."""
        for key in keys:
            check_key(key)
        state = await self._database.write(self._put, user_id, version, keys[:CHUNK])
        for start in range(CHUNK, len(keys), CHUNK):
            state = await self._database.write(self._put, user_id, version, keys[start : start + CHUNK])
        return state

    async def _put(self, txn: Transaction, user_id: str, version: str, keys: Sequence[BackupKey]) -> BackupState:
        backup = await self._writable(txn, user_id, version)
        by_room: dict[str, dict[str, BackupKey]] = {}
        for key in keys:
            by_room.setdefault(key.room_id, {})[key.session_id] = key
        better: list[BackupKey] = []
        added = 0
        for room_id, sessions in by_room.items():
            known = {rank.session_id: rank for rank in await table.ranks(txn, backup.id, room_id, list(sessions))}
            added += len(sessions) - len(known)
            better += [
                key
                for session_id, key in sessions.items()
                if session_id not in known or is_better(key, known[session_id])
            ]
        if not better:
            return state_of(backup.key_count, backup.etag)
        if backup.key_count + added > KEYS_LIMIT:
            raise too_large(f"A backup may have {KEYS_LIMIT} keys at most.")
        await table.store(txn, [row_of(backup.id, key) for key in better])
        await table.set_counts(txn, backup.id, backup.etag + 1, backup.key_count + added)
        return state_of(backup.key_count + added, backup.etag + 1)

    async def _writable(self, txn: Transaction, user_id: str, version: str) -> table.BackupRow:
        """The backup if it is the current one; ``M_WRONG_ROOM_KEYS_VERSION`` for an older one."""
        backup = await live_version(txn, user_id, version, lock=True)
        current = await table.current(txn, user_id)
        if current is None or current.id != backup.id:
            raise MatrixError(
                403,
                "M_WRONG_ROOM_KEYS_VERSION",
                "Keys can be stored in the newest backup only.",
                current_version=str(current.id if current is not None else backup.id),
            )
        return backup

    async def get(self, user_id: str, version: str, room_id: str | None, session_id: str | None) -> bytes:
        """JSON of all rooms, of a room's sessions, or of one key."""
        if room_id is None:
            return await self._database.read_long(self._get_all, user_id, version)
        return await self._database.read(self._get_room, user_id, version, room_id, session_id)

    async def _get_all(self, txn: Transaction, user_id: str, version: str) -> bytes:
        backup = await live_version(txn, user_id, version)
        rooms: dict[str, list[table.KeyRow]] = {}
        for row in await table.keys(txn, backup.id):
            rooms.setdefault(row.room_id, []).append(row)
        parts = (b'%b:{"sessions":%b}' % (orjson.dumps(room), sessions_json(rows)) for room, rows in rooms.items())
        return b'{"rooms":{%b}}' % b",".join(parts)

    async def _get_room(
        self, txn: Transaction, user_id: str, version: str, room_id: str, session_id: str | None
    ) -> bytes:
        backup = await live_version(txn, user_id, version)
        if session_id is None:
            rows = await table.keys_of_room(txn, backup.id, room_id) if key_checks.is_identifier(room_id) else []
            return b'{"sessions":%b}' % sessions_json(rows)
        row = None
        if key_checks.is_identifier(room_id) and key_checks.is_identifier(session_id):
            row = await table.key(txn, backup.id, room_id, session_id)
        if row is None:
            raise not_found("The backup has no such key.")
        return key_json(row)

    async def delete_keys(self, user_id: str, version: str, room_id: str | None, session_id: str | None) -> BackupState:
        """Delete all keys of a backup, those of a room, or one."""
        if room_id is None:
            return await self._clear(user_id, version)
        key_checks.identifier(room_id, "room ID")
        if session_id is not None:
            key_checks.identifier(session_id, "session ID")
        return await self._database.write(self._delete_some, user_id, version, room_id, session_id)

    async def _delete_some(
        self, txn: Transaction, user_id: str, version: str, room_id: str, session_id: str | None
    ) -> BackupState:
        backup = await live_version(txn, user_id, version, lock=True)
        if session_id is None:
            gone = await table.delete_room(txn, backup.id, room_id)
        else:
            gone = await table.delete_session(txn, backup.id, room_id, session_id)
        return await self._count_off(txn, backup, gone)

    async def _count_off(self, txn: Transaction, backup: table.BackupRow, gone: int) -> BackupState:
        count, etag = backup.key_count - gone, backup.etag + (gone > 0)
        if gone:
            await table.set_counts(txn, backup.id, etag, count)
        return state_of(count, etag)

    async def _clear(self, user_id: str, version: str) -> BackupState:
        async def transaction(txn: Transaction) -> tuple[BackupState, int]:
            backup = await live_version(txn, user_id, version, lock=True)
            gone = await table.delete_some(txn, backup.id, CHUNK)
            return await self._count_off(txn, backup, gone), gone

        while True:
            state, gone = await self._database.write(transaction)
            if gone < CHUNK:
                return state

    # --- ends ---

    async def account_deactivated(self, txn: Transaction, user_id: str) -> None:
        """All backups of the user are gone at once; `prune` deletes their keys."""
        await table.mark_deleted_of_user(txn, user_id, b"{}")

    async def prune(self) -> None:
        """Delete the keys that deleted backups still have."""
        for backup_id in await self._database.read_long(table.deleted_with_keys):
            await self._delete_keys(backup_id)


async def any_version(txn: Transaction, user_id: str, version: str, lock: bool = False) -> table.BackupRow:
    """A backup, deleted or not; ``M_NOT_FOUND`` where there never was one."""
    row = None
    if version.isascii() and version.isdigit() and len(version) < 19 and str(int(version)) == version:
        if lock:
            await table.lock(txn, user_id, int(version))
        row = await table.version(txn, user_id, int(version))
    if row is None:
        raise not_found("There is no such backup.")
    return row


async def live_version(txn: Transaction, user_id: str, version: str, lock: bool = False) -> table.BackupRow:
    """A backup that is not deleted; ``M_NOT_FOUND`` otherwise.  `lock` it where its counts will change."""
    row = await any_version(txn, user_id, version, lock)
    if row.deleted:
        raise not_found("The backup was deleted.")
    return row


def check_auth_data(auth_data: bytes) -> None:
    if len(auth_data) > AUTH_DATA_LIMIT:
        raise too_large(f"auth_data may have {AUTH_DATA_LIMIT} bytes at most.")


def check_key(key: BackupKey) -> None:
    key_checks.identifier(key.room_id, "room ID")
    key_checks.identifier(key.session_id, "session ID")
    if len(key.session_data) > SESSION_DATA_LIMIT:
        raise too_large(f"session_data may have {SESSION_DATA_LIMIT} bytes at most.")


def is_better(key: BackupKey, known: table.KeyRank) -> bool:
    """Whether `key` takes the place of the one that is there: verified, then lower index, then forwarded less."""
    return (not key.is_verified, key.first_message_index, key.forwarded_count) < (
        not known.is_verified,
        known.first_message_index,
        known.forwarded_count,
    )


def row_of(backup_id: int, key: BackupKey) -> tuple[int, str, str, int, int, int, bytes]:
    return (
        backup_id,
        key.room_id,
        key.session_id,
        key.first_message_index,
        key.forwarded_count,
        int(key.is_verified),
        key.session_data,
    )


def state_of(count: int, etag: int) -> BackupState:
    return BackupState(count=count, etag=str(etag))


def key_json(row: table.KeyRow) -> bytes:
    """The key as the client stored it."""
    return b'{"first_message_index":%d,"forwarded_count":%d,"is_verified":%b,"session_data":%b}' % (
        row.first_message_index,
        row.forwarded_count,
        b"true" if row.is_verified else b"false",
        row.session_data,
    )


def sessions_json(rows: Iterable[table.KeyRow]) -> bytes:
    return b"{%b}" % b",".join(b"%b:%b" % (orjson.dumps(row.session_id), key_json(row)) for row in rows)

"""Identity keys of devices: stored as they were signed, queried with what the asker may see.

Client-Server API, "Uploading keys" and ``/keys/query``.  A device's JSON is kept
as it is shown, so an answer is spliced from stored bytes; a query of many
users takes four statements.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import orjson

from ..database.engines import Database
from ..database.statements import Transaction
from ..matrix.errors import MatrixError, not_found, too_large
from ..matrix.signing import signed_payload
from . import key_checks
from .api import DeviceEntry, DeviceList, QueriedKeys
from .key_changes import KeyChanges
from .tables import cross_signing as signing_table
from .tables import device_keys as table
from .tables import key_changes as change_table

QUERY_LIMIT = 10_000
"""Users in one query."""

INLINE_QUERY = 300
"""A query of more users reads beside the reactor."""

DevicesOf = Callable[[Transaction, Sequence[str]], Awaitable[dict[str, dict[str, str | None]]]]
"""Users to their devices, each with its display name; a user without devices is left out."""


async def stored_devices(txn: Transaction, user_ids: Sequence[str]) -> dict[str, dict[str, str | None]]:
    """`DevicesOf` in the user component's own database."""
    devices: dict[str, dict[str, str | None]] = {}
    for row in await table.names_of_users(txn, user_ids):
        devices.setdefault(row.user_id, {})[row.device_id] = row.display_name
    return devices


class DeviceKeys:
    """The identity keys of local devices."""

    def __init__(self, database: Database, changes: KeyChanges, devices_of: DevicesOf) -> None:
        self._database = database
        self._changes = changes
        self._devices_of = devices_of

    async def require_device(self, txn: Transaction, user_id: str, device_id: str) -> None:
        """Raise unless the device exists and its ID is not that of a cross-signing key of its user."""
        if device_id not in (await self._devices_of(txn, [user_id])).get(user_id, {}):
            raise MatrixError(401, "M_UNKNOWN_TOKEN", "This device was removed.", soft_logout=False)
        if any(key.public_key == device_id for key in await signing_table.of_user(txn, user_id)):
            raise MatrixError(403, "M_FORBIDDEN", "The ID of this device is a cross-signing key of its user.")

    async def store(
        self, txn: Transaction, user_id: str, device_id: str, value: dict[str, Any], signatures: Mapping[str, str]
    ) -> None:
        """Store checked keys, with the device's signature and, where it holds, the self-signing key's.

        The same keys again keep the self-signing key's signature that came since.
        """
        payload = signed_payload(value)
        old = await table.of_device(txn, user_id, device_id)
        known = orjson.loads(old) if old is not None else {}
        before = key_checks.signatures_of(known, user_id)
        own = f"ed25519:{device_id}"
        kept = {own: signatures[own]} if own in signatures else {}
        for key in await signing_table.of_user(txn, user_id):
            name, verify_key = f"ed25519:{key.public_key}", key_checks.public_key(key.public_key)
            signature = signatures.get(name, before.get(name))
            if key.usage == "self_signing" and verify_key and key_checks.is_signed(payload, signature, verify_key):
                assert signature is not None, "it was verified"
                kept[name] = signature
        if before != kept or signed_payload(known) != payload:
            await table.store(txn, user_id, device_id, key_checks.stored_form(value, user_id, kept))
            await self._changes.record(txn, user_id, device_id)

    async def query(self, requester: str, wanted: Mapping[str, Sequence[str]]) -> QueriedKeys:
        """Keys of local users as `requester` may see them; an empty list of devices means all."""
        if len(wanted) > INLINE_QUERY:
            return await self._database.read_long(self._query, requester, wanted)
        return await self._database.read(self._query, requester, wanted)

    async def _query(self, txn: Transaction, requester: str, wanted: Mapping[str, Sequence[str]]) -> QueriedKeys:
        users = list(wanted)
        devices = await self._devices_of(txn, users)
        found: dict[str, dict[str, bytes]] = {user_id: {} for user_id in devices}
        picked = {user_id: frozenset(device_ids) for user_id, device_ids in wanted.items()}
        for row in await table.of_users(txn, users):
            only = picked[row.user_id]
            names = devices.get(row.user_id, {})
            if row.device_id in names and (not only or row.device_id in only):
                found[row.user_id][row.device_id] = key_checks.with_display_name(row.content, names[row.device_id])
        answer = QueriedKeys(device_keys=found)
        by_usage = {"master": answer.master_keys, "self_signing": answer.self_signing_keys}
        signed = {row.target: row for row in await signing_table.signatures_by(txn, requester, users)}
        for key in await signing_table.of_users(txn, users):
            if key.usage in by_usage:
                signature = signed.get(key.user_id) if key.usage == "master" else None
                by_usage[key.usage][key.user_id] = with_signature(key.content, key.public_key, requester, signature)
            elif key.user_id == requester:
                answer.user_signing_keys[requester] = key.content
        return answer

    async def add_signatures(self, requester: str, master_keys: dict[str, bytes]) -> dict[str, bytes]:
        """Master keys of users of other servers with the signatures that `requester` made of them."""
        signed = {
            row.target: row
            for row in await self._database.read(signing_table.signatures_by, requester, list(master_keys))
        }
        return {
            user_id: with_signature(content, key_checks.public_key_of(content), requester, signed.get(user_id))
            for user_id, content in master_keys.items()
        }

    async def list_of(self, user_id: str) -> DeviceList:
        """All devices with keys; ``M_NOT_FOUND`` for a user who never had a device."""

        async def read(txn: Transaction) -> DeviceList:
            names = (await self._devices_of(txn, [user_id])).get(user_id, {})
            changed = await change_table.of_user(txn, user_id)
            if not names and changed is None:
                raise not_found("There is no such user, or they never had a device.")
            rows = await table.of_users(txn, [user_id])
            keys = {key.usage: key.content for key in await signing_table.of_user(txn, user_id)}
            return DeviceList(
                user_id=user_id,
                stream_id=changed.device_position if changed is not None else 0,
                devices=[
                    DeviceEntry(device_id=row.device_id, keys=row.content, display_name=names[row.device_id])
                    for row in rows
                    if row.device_id in names
                ],
                master_key=keys.get("master"),
                self_signing_key=keys.get("self_signing"),
            )

        return await self._database.read(read)

    async def device_deleted(self, txn: Transaction, user_id: str, device_id: str) -> None:
        """Forget the keys of a device; others are told that it is gone."""
        await table.delete(txn, user_id, device_id)
        await self._changes.record(txn, user_id, device_id, deleted=True)

    async def device_changed(self, txn: Transaction, user_id: str, device_id: str) -> None:
        """A device is new, or what is shown beside its keys changed; it belongs to the list without keys too."""
        await self._changes.record(txn, user_id, device_id)

    async def account_deactivated(self, txn: Transaction, user_id: str) -> None:
        for row in await table.of_users(txn, [user_id]):
            await self.device_deleted(txn, user_id, row.device_id)


def with_signature(
    content: bytes, public_key: str, signer: str, signature: signing_table.UserSignature | None
) -> bytes:
    """A master key's JSON with a signature that only its signer sees; one of another key is left out."""
    if signature is None or signature.target_key != public_key:
        return content
    key = orjson.loads(content)
    signatures = key.get("signatures")
    others = signatures if isinstance(signatures, dict) else {}
    key["signatures"] = {**others, signer: {f"ed25519:{signature.signing_key}": signature.signature}}
    return orjson.dumps(key)


def check_query(device_keys: Mapping[str, Sequence[str]]) -> None:
    """``M_TOO_LARGE`` for too many users, ``M_INVALID_PARAM`` for what is no user ID."""
    if len(device_keys) > QUERY_LIMIT:
        raise too_large(f"One query may name {QUERY_LIMIT} users at most.")
    for user_id in device_keys:
        key_checks.user_id(user_id)

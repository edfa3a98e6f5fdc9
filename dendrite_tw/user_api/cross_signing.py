"""Cross-signing: three keys for a user, and the signatures that lead from one user to another's device.

Client-Server API, "Cross-signing" and "Key and signature security".  Signatures
that everybody may see become part of the signed key's JSON: a self-signing key's
of a device, a device's of its user's master key.  What a user-signing key says
of another user's master key is kept apart, for its maker alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import orjson

from ..database.engines import Database
from ..database.statements import Transaction
from ..matrix.errors import MatrixError, bad_json, forbidden, missing_param, not_found, too_large
from ..matrix.identifiers import server_name_of
from ..matrix.signing import signed_payload
from . import key_checks
from .device_keys import DevicesOf
from .key_changes import KeyChanges
from .key_checks import CrossSigningKey, invalid_signature
from .tables import cross_signing as table
from .tables import device_keys as device_table

SIGNED_LIMIT = 500
"""Signed objects in one upload of signatures."""

Failures = dict[str, dict[str, dict[str, str]]]
"""User, key ID, error."""


class Signer(msgspec.Struct, frozen=True):
    """A user with the cross-signing keys that are stored, by usage."""

    user_id: str
    keys: dict[str, table.CrossSigningRow]

    def verify_key(self, usage: str) -> bytes | None:
        row = self.keys.get(usage)
        return key_checks.public_key(row.public_key) if row is not None else None


class CrossSigning:
    """The cross-signing keys and signatures of local users."""

    def __init__(self, database: Database, changes: KeyChanges, devices_of: DevicesOf, server_name: str) -> None:
        self._database = database
        self._changes = changes
        self._devices_of = devices_of
        self._server_name = server_name

    # --- keys ---

    async def upload_keys(self, user_id: str, keys: Mapping[str, dict[str, Any]], replace: bool) -> bool:
        """See `KeyAPI.upload_cross_signing_keys`."""
        checked = {usage: key_checks.cross_signing_key(value, user_id, usage) for usage, value in keys.items()}
        return await self._database.write(self._upload_keys, user_id, checked, replace)

    async def _upload_keys(
        self, txn: Transaction, user_id: str, keys: Mapping[str, CrossSigningKey], replace: bool
    ) -> bool:
        stored = {row.usage: row for row in await table.of_user(txn, user_id)}
        master = self._effective_master(keys, stored)
        device_ids = (await self._devices_of(txn, [user_id])).get(user_id, {})
        for key in keys.values():
            if key.public_key in device_ids:
                raise forbidden("The ID of a key is the ID of one of the user's devices.")
            self._check_signed_by_master(user_id, key, *master)
        new = {
            usage: key
            for usage, key in keys.items()
            if usage not in stored or stored[usage].public_key != key.public_key
        }
        if not new:
            return True
        if "master" in stored and not replace:
            return False
        if "master" in new:
            # What the old master key vouched for is not vouched for any more.
            for usage in stored.keys() - new.keys():
                await table.delete(txn, user_id, usage)
        if "master" in new or "user_signing" in new:
            await table.delete_signatures_by(txn, user_id)
        for usage, key in new.items():
            signatures = await self._kept_signatures(txn, user_id, key, *master)
            content = key_checks.stored_form(key.value, user_id, signatures)
            await table.store(txn, user_id, usage, key.public_key, content)
        if new.keys() == {"user_signing"}:
            # Nobody else sees it, so nobody else has to ask again.
            position = await self._changes.tell_signer(txn, user_id, user_id)
            await table.set_told(txn, user_id, "user_signing", position)
        else:
            await self._changes.record(txn, user_id)
        return True

    def _effective_master(
        self, keys: Mapping[str, CrossSigningKey], stored: Mapping[str, table.CrossSigningRow]
    ) -> tuple[str, bytes]:
        """The public key, as text and bytes, of the master key that the request brings, or the stored one."""
        if "master" in keys:
            return keys["master"].public_key, keys["master"].verify_key
        if "master" not in stored:
            raise missing_param("There is no master key; upload one first, or with the others.")
        text = stored["master"].public_key
        verify_key = key_checks.public_key(text)
        assert verify_key is not None, "a stored key was checked"
        return text, verify_key

    def _check_signed_by_master(
        self, user_id: str, key: CrossSigningKey, master: str, master_verify_key: bytes
    ) -> None:
        signatures = key_checks.signatures_of(key.value, user_id)
        payload = key_checks.payload_of(key.value)
        if key.usage != "master" and not key_checks.is_signed(
            payload, signatures.get(f"ed25519:{master}"), master_verify_key
        ):
            raise invalid_signature(f"The {key.usage} key must be signed by the master key.")

    async def _kept_signatures(
        self, txn: Transaction, user_id: str, key: CrossSigningKey, master: str, master_verify_key: bytes
    ) -> dict[str, str]:
        """The signatures that come with a key and hold: of the master key, and on it those of devices."""
        signatures = key_checks.signatures_of(key.value, user_id)
        name = f"ed25519:{master}"
        if key.usage != "master":
            return {name: signatures[name]}
        payload = key_checks.payload_of(key.value)
        kept = await self._device_signatures(txn, user_id, payload, signatures)
        if name in signatures and key_checks.is_signed(payload, signatures[name], master_verify_key):
            kept[name] = signatures[name]
        return kept

    async def _device_signatures(
        self, txn: Transaction, user_id: str, payload: bytes, signatures: Mapping[str, str]
    ) -> dict[str, str]:
        """Those of `signatures` that devices of the user made."""
        kept = {}
        for key_id, signature in signatures.items():
            algorithm, _, device_id = key_id.partition(":")
            if algorithm != "ed25519" or not key_checks.is_identifier(device_id):
                continue
            content = await device_table.of_device(txn, user_id, device_id)
            verify_key = key_checks.device_verify_key(orjson.loads(content)) if content is not None else None
            if verify_key is not None and key_checks.is_signed(payload, signature, verify_key):
                kept[key_id] = signature
        return kept

    # --- signatures ---

    async def upload_signatures(
        self, user_id: str, signed: Mapping[str, Mapping[str, Any]], remote_masters: Mapping[str, bytes]
    ) -> Failures:
        """See `KeyAPI.upload_signatures`; `remote_masters` are master keys of users of other servers."""
        if sum(map(len, signed.values())) > SIGNED_LIMIT:
            raise too_large(f"One request may bring {SIGNED_LIMIT} signed objects at most.")
        for target, objects in signed.items():
            key_checks.user_id(target)
            if not all(isinstance(value, dict) for value in objects.values()):
                raise bad_json("A signed object must be an object.")
        return await self._database.write(self._upload_signatures, user_id, signed, remote_masters)

    async def _upload_signatures(
        self,
        txn: Transaction,
        user_id: str,
        signed: Mapping[str, Mapping[str, Any]],
        remote_masters: Mapping[str, bytes],
    ) -> Failures:
        signer = Signer(user_id, {row.usage: row for row in await table.of_user(txn, user_id)})
        failures: Failures = {}
        for target, objects in signed.items():
            for key_id, value in objects.items():
                try:
                    if target == user_id:
                        await self._sign_own(txn, signer, key_id, value)
                    else:
                        await self._sign_other(txn, signer, target, key_id, value, remote_masters)
                except MatrixError as error:
                    failures.setdefault(target, {})[key_id] = {"errcode": error.errcode, "error": error.error}
        return failures

    async def _sign_own(self, txn: Transaction, signer: Signer, key_id: str, value: dict[str, Any]) -> None:
        """A signature of one of the user's own devices, or of their master key."""
        master = signer.keys.get("master")
        if master is not None and key_id == master.public_key:
            await self._sign_master(txn, signer.user_id, master, value)
        else:
            await self._sign_device(txn, signer, key_checks.identifier(key_id, "ID of a key"), value)

    async def _sign_device(self, txn: Transaction, signer: Signer, device_id: str, value: dict[str, Any]) -> None:
        """The self-signing key's signature of a device."""
        stored = await device_table.of_device(txn, signer.user_id, device_id)
        if stored is None:
            raise not_found("The user has no such device or master key.")
        payload = self._same_payload(stored, value)
        name, verify_key = self._signing_key(signer, "self_signing")
        signature = key_checks.signatures_of(value, signer.user_id).get(name)
        if signature is None or not key_checks.is_signed(payload, signature, verify_key):
            raise invalid_signature("The device is not signed by the self-signing key.")
        key = orjson.loads(stored)
        old = key_checks.signatures_of(key, signer.user_id)
        own = f"ed25519:{device_id}"
        # A device need not have signed its own keys.
        new = {**({own: old[own]} if own in old else {}), name: signature}
        if old != new:
            await device_table.store(txn, signer.user_id, device_id, key_checks.stored_form(key, signer.user_id, new))
            await self._changes.record(txn, signer.user_id, device_id)

    async def _sign_master(
        self, txn: Transaction, user_id: str, master: table.CrossSigningRow, value: dict[str, Any]
    ) -> None:
        """Signatures of the master key by devices of its user; those of devices that are gone give way."""
        payload = self._same_payload(master.content, value)
        key = orjson.loads(master.content)
        old = key_checks.signatures_of(key, user_id)
        by_master = f"ed25519:{master.public_key}"
        new = {
            name: signature
            for name, signature in key_checks.signatures_of(value, user_id).items()
            if old.get(name) != signature and name != by_master
        }
        held = await self._device_signatures(txn, user_id, payload, new)
        if len(held) < len(new):
            raise invalid_signature("A signature of the master key is not by a device of its user.")
        if held:
            devices = (await self._devices_of(txn, [user_id])).get(user_id, {})
            names = {f"ed25519:{device_id}" for device_id in devices} | {by_master}
            kept = {name: signature for name, signature in {**old, **held}.items() if name in names}
            newest = dict(list(kept.items())[-key_checks.ENTRIES_LIMIT :])
            content = key_checks.stored_form(key, user_id, newest)
            await table.store(txn, user_id, "master", master.public_key, content)
            await self._changes.record(txn, user_id)

    async def _sign_other(
        self,
        txn: Transaction,
        signer: Signer,
        target: str,
        key_id: str,
        value: dict[str, Any],
        remote_masters: Mapping[str, bytes],
    ) -> None:
        """A signature of another user's master key."""
        if server_name_of(target) == self._server_name:
            masters = {row.usage: row.content for row in await table.of_user(txn, target)}
            content = masters.get("master")
        else:
            content = remote_masters.get(target)
        if content is None or key_checks.public_key_of(content) != key_id:
            raise not_found("The user has no such master key.")
        payload = self._same_payload(content, value)
        name, verify_key = self._signing_key(signer, "user_signing")
        signature = key_checks.signatures_of(value, signer.user_id).get(name)
        if signature is None or not key_checks.is_signed(payload, signature, verify_key):
            raise invalid_signature("The master key is not signed by the user-signing key.")
        known = [
            row
            for row in await table.signatures_by(txn, signer.user_id, [target])
            if (row.target_key, row.signature) == (key_id, signature)
        ]
        if not known:
            position = await self._changes.tell_signer(txn, signer.user_id, target)
            signing_key = name.removeprefix("ed25519:")
            await table.store_signature(txn, signer.user_id, target, key_id, signing_key, signature, position)

    def _signing_key(self, signer: Signer, usage: str) -> tuple[str, bytes]:
        """The key ID and public key of one of the user's keys."""
        verify_key = signer.verify_key(usage)
        if verify_key is None:
            raise not_found(f"The user has no {usage} key.")
        return f"ed25519:{signer.keys[usage].public_key}", verify_key

    def _same_payload(self, stored: bytes, value: dict[str, Any]) -> bytes:
        """What signatures of the object cover, which must be what is stored."""
        payload = key_checks.payload_of(value)
        if payload != signed_payload(orjson.loads(stored)):
            raise MatrixError(400, "M_INVALID_SIGNATURE", "The signed object is not the key that is stored.")
        return payload

    # --- ends ---

    async def account_deactivated(self, txn: Transaction, user_id: str) -> None:
        await table.delete_signatures_of(txn, user_id)
        if await table.delete_of_user(txn, user_id):
            await self._changes.record(txn, user_id)

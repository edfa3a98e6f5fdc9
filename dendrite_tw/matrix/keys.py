"""Signing keys: their files, when a key was valid, and the document that publishes ours.

Specification: Server-Server API, "Retrieving server keys"; room version 5,
"Signing key validity period".  Two file formats are read: Dendrite's PEM block
``MATRIX PRIVATE KEY``, and the lines of Synapse and its `signedjson` library.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from typing import Any

import msgspec
from nacl.bindings import crypto_sign_seed_keypair

from dendrite_tw.matrix import signing
from dendrite_tw.matrix.room_versions import RoomVersion

DAY_MS = 24 * 60 * 60 * 1000
MAX_VALIDITY_MS = 7 * DAY_MS
"""No published ``valid_until_ts`` counts for longer than this from now."""

_KEY_ID = re.compile(r"ed25519:[a-zA-Z0-9_]+\Z")
_PEM = re.compile(r"-----BEGIN MATRIX PRIVATE KEY-----\r?\n(?P<inside>.*?)-----END MATRIX PRIVATE KEY-----", re.DOTALL)


class KeyFormatError(ValueError):
    """A key or key file is not what it should be.  The text never holds key material."""


class SigningKey(msgspec.Struct, frozen=True):
    """A private Ed25519 key of this server."""

    key_id: str
    """``ed25519:`` and its version."""
    secret: bytes
    """64 bytes, seed and public key: what `signing.sign_bytes` and `events.build_event` take."""

    @property
    def seed(self) -> bytes:
        """The 32 bytes that the key grows from."""
        return self.secret[: signing.SEED_BYTES]

    @property
    def verify_key(self) -> bytes:
        """The public key, 32 bytes."""
        return self.secret[signing.SEED_BYTES :]

    @property
    def verify_key_base64(self) -> str:
        """The public key as it is published."""
        return signing.encode_base64(self.verify_key)

    def __repr__(self) -> str:
        return f"SigningKey({self.key_id!r})"


class OldVerifyKey(msgspec.Struct, frozen=True):
    """A public key that this server no longer signs with, but once did."""

    key_id: str
    verify_key_base64: str
    expired_ts: int
    """Milliseconds; events from before are still verified with it."""


def check_key_id(key_id: str) -> str:
    """Return ``key_id`` if it is ``ed25519:`` and letters, digits or underscores; else `KeyFormatError`."""
    if _KEY_ID.match(key_id) is None:
        raise KeyFormatError("the key id must be ed25519: followed by letters, digits or underscores")
    return key_id


def signing_key(key_id: str, seed: bytes, *, check_id: bool = True) -> SigningKey:
    """The key that grows from a 32-byte seed.  ``check_id=False`` is for old keys with ids of any form."""
    if check_id:
        check_key_id(key_id)
    elif not key_id.startswith("ed25519:"):
        raise KeyFormatError("the key id must start with ed25519:")
    if len(seed) != signing.SEED_BYTES:
        raise KeyFormatError("the key must have 32 bytes")
    return SigningKey(key_id, crypto_sign_seed_keypair(seed)[1])


# --- files ----------------------------------------------------------------------------------------


def read_pem(text: str, *, check_id: bool = True) -> SigningKey:
    """Read Dendrite's key file: PEM with a ``Key-ID`` header around the seed."""
    block = _PEM.search(text)
    if block is None:
        raise KeyFormatError("no MATRIX PRIVATE KEY block in the file")
    key_id = None
    body = []
    for line in block["inside"].splitlines():
        name, colon, value = line.partition(":")
        if not colon:
            body.append(line.strip())
        elif name.strip() == "Key-ID":
            key_id = value.strip()
    if key_id is None:
        raise KeyFormatError("the key block has no Key-ID header")
    try:
        seed = signing.decode_base64("".join(body))
    except ValueError:
        raise KeyFormatError("the body of the key block is not base64") from None
    return signing_key(key_id, seed, check_id=check_id)


def write_pem(key: SigningKey) -> str:
    """The key file that Dendrite would write for ``key``."""
    body = base64.b64encode(key.seed).decode("ascii")
    return f"-----BEGIN MATRIX PRIVATE KEY-----\nKey-ID: {key.key_id}\n\n{body}\n-----END MATRIX PRIVATE KEY-----\n"


def read_signedjson(text: str, *, check_id: bool = True) -> list[SigningKey]:
    """Read Synapse's key file: lines of algorithm, version and seed."""
    # Imported where such a file is read: with what it imports it is half a megabyte.
    from signedjson.key import read_signing_keys

    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise KeyFormatError("no key in the file")
    try:
        found = read_signing_keys(lines)
        return [signing_key(f"{key.alg}:{key.version}", bytes(key), check_id=check_id) for key in found]
    except KeyFormatError:
        raise
    except (ValueError, TypeError):
        raise KeyFormatError("not a key file of signedjson's format") from None


def write_signedjson(keys: Iterable[SigningKey]) -> str:
    """The key file that Synapse would read."""
    lines = []
    for key in keys:
        algorithm, _, version = key.key_id.partition(":")
        lines.append(f"{algorithm} {version} {signing.encode_base64(key.seed)}\n")
    return "".join(lines)


def read_key_file(text: str, *, check_id: bool = True) -> list[SigningKey]:
    """Read either format, whichever it is; `KeyFormatError` if neither."""
    if "-----BEGIN" in text:
        return [read_pem(text, check_id=check_id)]
    return read_signedjson(text, check_id=check_id)


# --- validity -------------------------------------------------------------------------------------


def key_valid_at(
    ts: int, valid_until_ts: int, *, now: int, version: RoomVersion, expired_ts: int | None = None
) -> bool:
    """Whether a key may verify an event of ``origin_server_ts`` ``ts``.  All times in milliseconds.

    ``expired_ts`` is that of a key among ``old_verify_keys``: it verifies what is no later.
    For a current key, room versions that enforce validity want ``valid_until_ts``, or seven days
    from ``now`` if that is less, to reach ``ts``; older versions ignore it.
    """
    if expired_ts is not None:
        return ts <= expired_ts
    if not version.enforce_key_validity:
        return True
    return ts <= min(valid_until_ts, now + MAX_VALIDITY_MS)


# --- publishing -----------------------------------------------------------------------------------


def server_keys_document(
    server_name: str, keys: Iterable[SigningKey], old_keys: Iterable[OldVerifyKey], valid_until_ts: int
) -> dict[str, Any]:
    """The answer of ``GET /_matrix/key/v2/server``, signed by each of ``keys``."""
    keys = list(keys)
    document: dict[str, Any] = {
        "server_name": server_name,
        "verify_keys": {key.key_id: {"key": key.verify_key_base64} for key in keys},
        "old_verify_keys": {
            key.key_id: {"key": key.verify_key_base64, "expired_ts": key.expired_ts} for key in old_keys
        },
        "valid_until_ts": valid_until_ts,
    }
    for key in keys:
        document = signing.sign_json(document, server_name, key.key_id, key.secret)
    return document

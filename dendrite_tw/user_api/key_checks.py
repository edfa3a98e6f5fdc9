"""What uploaded keys must look like; pure.

Client-Server API, "End-to-End Encryption": "Key algorithms", "Device keys",
"One-time and fallback keys", "Cross-signing"; appendices, "Signing JSON".
Every refusal is a `MatrixError`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, TypeGuard

import msgspec
import orjson

from ..matrix.canonical_json import CanonicalJSONError
from ..matrix.errors import MatrixError, bad_json, invalid_param, too_large
from ..matrix.identifiers import is_historical_user_id, within_limit
from ..matrix.signing import SignatureError, decode_base64, signed_payload, verify_bytes

DEVICE_KEYS_LIMIT = 16 << 10
"""Bytes of a device's keys or of a cross-signing key, with their signatures."""

ONE_TIME_KEY_LIMIT = 4 << 10
"""Bytes of a one-time or fallback key."""

UPLOAD_LIMIT = 2_000
"""One-time keys in one upload, and unclaimed ones of a device in all."""

ENTRIES_LIMIT = 64
"""Algorithms, public keys or signatures of one object."""

USAGES = ("master", "self_signing", "user_signing")


class NewKey(msgspec.Struct, frozen=True):
    """A one-time or fallback key that a device wants to store."""

    algorithm: str
    key_id: str
    digest: bytes
    content: bytes

    @property
    def name(self) -> tuple[str, str]:
        return self.algorithm, self.key_id


class CrossSigningKey(msgspec.Struct, frozen=True):
    """A cross-signing key that passed `cross_signing_key`; ``public_key`` is unpadded base64."""

    usage: str
    public_key: str
    verify_key: bytes
    value: dict[str, Any]


def invalid_signature(error: str) -> MatrixError:
    return MatrixError(400, "M_INVALID_SIGNATURE", error)


def is_identifier(value: object) -> TypeGuard[str]:
    """Whether `value` can name something: 1 to 255 bytes, no NUL."""
    return isinstance(value, str) and value != "" and within_limit(value) and "\0" not in value


def identifier(value: object, what: str) -> str:
    """`value` if it can name something; ``M_INVALID_PARAM`` otherwise."""
    if not is_identifier(value):
        raise invalid_param(f"The {what} must be text of 1 to 255 bytes.")
    return value


def user_id(value: str) -> str:
    """`value` if it is a user ID; ``M_INVALID_PARAM`` otherwise."""
    if not is_historical_user_id(value):
        raise invalid_param("A key of the request is not a user ID.")
    return value


def signatures_of(value: Mapping[str, Any], signer: str) -> dict[str, str]:
    """What `signer` signed of a JSON object: key ID to signature; ``M_BAD_JSON`` for another shape."""
    signatures = value.get("signatures", {})
    by_signer = signatures.get(signer, {}) if isinstance(signatures, dict) else None
    if not isinstance(by_signer, dict) or len(by_signer) > ENTRIES_LIMIT:
        raise bad_json("signatures must map users to maps of key IDs to signatures.")
    if not all(isinstance(signature, str) for signature in by_signer.values()):
        raise bad_json("A signature must be a string.")
    return by_signer


def payload_of(value: Mapping[str, Any]) -> bytes:
    """The bytes that signatures of `value` cover; ``M_BAD_JSON`` where there is no canonical JSON."""
    try:
        return signed_payload(value)
    except CanonicalJSONError as error:
        raise bad_json(f"The object cannot be signed: {error}.") from None


def public_key(text: object) -> bytes | None:
    """32 bytes out of base64, or `None`."""
    if not isinstance(text, str) or len(text) > 64:
        return None
    try:
        key = decode_base64(text)
    except ValueError:
        return None
    return key if len(key) == 32 else None


def is_signed(payload: bytes, signature: str | None, verify_key: bytes) -> bool:
    """Whether `signature` (base64) is that of `payload` by an Ed25519 key."""
    if signature is None:
        return False
    try:
        verify_bytes(payload, signature, verify_key)
    except SignatureError:
        return False
    return True


def stored_form(value: Mapping[str, Any], signer: str, signatures: Mapping[str, str]) -> bytes:
    """JSON of a key to be stored: without ``unsigned``, with `signatures` of its owner alone."""
    kept = {key: part for key, part in value.items() if key not in ("unsigned", "signatures")}
    if signatures:
        kept["signatures"] = {signer: dict(signatures)}
    content = orjson.dumps(kept)
    if len(content) > DEVICE_KEYS_LIMIT:
        raise too_large(f"A key with its signatures may have {DEVICE_KEYS_LIMIT} bytes at most.")
    return content


def device_keys(value: dict[str, Any], owner: str, device_id: str) -> dict[str, str]:
    """Check the identity keys that a device uploads for itself; returns what their owner signed of them.

    Whether keys and signatures are good is for clients to judge, who have to check that anyway.
    """
    missing = [name for name in ("user_id", "device_id", "algorithms", "keys") if name not in value]
    if missing:
        raise bad_json(f"device_keys lacks {', '.join(missing)}.")
    if value["user_id"] != owner or value["device_id"] != device_id:
        raise invalid_param("user_id and device_id of device_keys must be those of the caller.")
    algorithms, keys = value["algorithms"], value["keys"]
    if (
        not isinstance(algorithms, list)
        or len(algorithms) > ENTRIES_LIMIT
        or not all(isinstance(algorithm, str) for algorithm in algorithms)
    ):
        raise bad_json("algorithms must be a list of strings.")
    if (
        not isinstance(keys, dict)
        or len(keys) > ENTRIES_LIMIT
        or not all(isinstance(key, str) for key in keys.values())
    ):
        raise bad_json("keys must map key IDs to keys.")
    payload_of(value)
    return signatures_of(value, owner)


def device_verify_key(content: Mapping[str, Any]) -> bytes | None:
    """The Ed25519 key of a device out of its stored keys."""
    keys = content.get("keys")
    return public_key(keys.get(f"ed25519:{content.get('device_id')}")) if isinstance(keys, dict) else None


def one_time_keys(keys: Mapping[str, Any], fallback: bool = False) -> list[NewKey]:
    """Check one-time keys, or fallback keys, that a device uploads, in the order of the upload."""
    if len(keys) > UPLOAD_LIMIT:
        raise too_large(f"One upload may have {UPLOAD_LIMIT} keys at most.")
    made = [_one_time_key(name, value, fallback) for name, value in keys.items()]
    if fallback and len({key.algorithm for key in made}) != len(made):
        raise invalid_param("There can be one fallback key for each algorithm.")
    if fallback and len(made) > ENTRIES_LIMIT:
        raise too_large(f"There may be {ENTRIES_LIMIT} fallback keys at most.")
    return made


def _one_time_key(name: str, value: Any, fallback: bool) -> NewKey:
    algorithm, colon, key_id = name.partition(":")
    if not colon:
        raise invalid_param("The name of a key must be <algorithm>:<key_id>.")
    identifier(algorithm, "algorithm of a key")
    identifier(key_id, "ID of a key")
    signed = isinstance(value, dict)
    if signed:
        if not isinstance(value.get("key"), str) or not isinstance(value.get("signatures"), dict):
            raise bad_json(f"The key {name[:64]} must have key and signatures.")
    elif not isinstance(value, str) or algorithm.startswith("signed_"):
        raise bad_json(f"The key {name[:64]} must be {'an object' if algorithm.startswith('signed_') else 'a string'}.")
    content = orjson.dumps(value)
    if len(content) > ONE_TIME_KEY_LIMIT:
        raise too_large(f"A key may have {ONE_TIME_KEY_LIMIT} bytes at most.")
    # Signing again may give other signatures to the same key, so they do not count.
    said = {part: value[part] for part in value if part not in ("signatures", "unsigned")} if signed else value
    digest = hashlib.sha256(orjson.dumps(said, option=orjson.OPT_SORT_KEYS)).digest()
    return NewKey(algorithm, key_id, digest, content)


def cross_signing_key(value: dict[str, Any], owner: str, usage: str) -> CrossSigningKey:
    """Check a cross-signing key of `owner`, except for its signatures."""
    if value.get("user_id") != owner:
        raise invalid_param(f"user_id of the {usage} key must be that of the caller.")
    usages, keys = value.get("usage"), value.get("keys")
    if not isinstance(usages, list) or usage not in usages or len(usages) > ENTRIES_LIMIT:
        raise invalid_param(f"usage of the {usage} key must be a list with {usage}.")
    if not isinstance(keys, dict) or len(keys) != 1:
        raise invalid_param(f"keys of the {usage} key must have exactly one property.")
    key_id, text = next(iter(keys.items()))
    verify_key = public_key(text)
    if verify_key is None or key_id != f"ed25519:{text}" or "=" in text:
        raise invalid_param(f"The {usage} key must be named ed25519: and its public key in unpadded base64.")
    return CrossSigningKey(usage, text, verify_key, value)


def with_display_name(content: bytes, name: str | None) -> bytes:
    """A device's JSON with its ``unsigned`` part."""
    if name is None:
        return content[:-1] + b',"unsigned":{}}'
    return b'%b,"unsigned":{"device_display_name":%b}}' % (content[:-1], orjson.dumps(name))


def public_key_of(content: bytes) -> str:
    """The public key of a cross-signing key's JSON; empty where it has none."""
    keys = orjson.loads(content).get("keys")
    return str(next(iter(keys.values()), "")) if isinstance(keys, dict) else ""

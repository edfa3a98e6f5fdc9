"""Sign JSON and check signatures; who must have signed an event.

Specification: appendices, "Signing JSON" and "Unpadded Base64"; Server-Server
API, "Signing Events".  Ed25519 comes from PyNaCl's bindings directly: the
object layer above them costs a quarter more for each signature.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from nacl.bindings import crypto_sign, crypto_sign_open, crypto_sign_seed_keypair
from nacl.exceptions import CryptoError
from nacl.signing import SigningKey as NaclSigningKey

from dendrite_tw.matrix import canonical_json, identifiers

if TYPE_CHECKING:
    from dendrite_tw.matrix.events import Event

SEED_BYTES = 32
SECRET_BYTES = 64
VERIFY_KEY_BYTES = 32
SIGNATURE_BYTES = 64

SigningSecret = bytes | NaclSigningKey
"""A key that can sign: 32 bytes of seed, 64 bytes of seed and public key, or PyNaCl's object."""


class SignatureError(ValueError):
    """A signature is missing, malformed or wrong."""


def encode_base64(data: bytes, *, urlsafe: bool = False) -> str:
    """Unpadded base64, in the standard alphabet unless ``urlsafe``."""
    encoded = base64.urlsafe_b64encode(data) if urlsafe else binascii.b2a_base64(data, newline=False)
    return encoded.rstrip(b"=").decode("ascii")


def decode_base64(text: str, *, urlsafe: bool = False) -> bytes:
    """Decode base64 with or without padding.

    Raises `ValueError` for any character outside of the alphabet, which Python's
    own decoders would skip over.
    """
    unpadded = text.rstrip("=")
    if len(text) - len(unpadded) > 2:
        raise ValueError("too much padding")
    if urlsafe:
        if "+" in unpadded or "/" in unpadded:
            raise ValueError("not URL-safe base64")
        unpadded = unpadded.replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(unpadded + "=" * (-len(unpadded) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("not base64") from None


def decode_base64_either(text: str) -> bytes:
    """Decode base64 of either alphabet, as keys of third-party invites may have."""
    return decode_base64(text, urlsafe="-" in text or "_" in text)


@lru_cache(maxsize=16)
def _expand_seed(seed: bytes) -> bytes:
    return crypto_sign_seed_keypair(seed)[1]


def secret_bytes(key: SigningSecret) -> bytes:
    """The 64 bytes that the signing primitive wants.  `ValueError` for a key of the wrong length."""
    if isinstance(key, bytes):
        if len(key) == SECRET_BYTES:
            return key
        if len(key) == SEED_BYTES:
            return _expand_seed(key)
        raise ValueError("a signing key has 32 or 64 bytes")
    return _expand_seed(key.encode())


def sign_bytes(message: bytes, key: SigningSecret) -> str:
    """The signature of ``message``, as unpadded base64."""
    return encode_base64(crypto_sign(message, secret_bytes(key))[:SIGNATURE_BYTES])


def verify_bytes(message: bytes, signature: str, verify_key: bytes) -> None:
    """Raise `SignatureError` unless ``signature``, in base64, is by ``verify_key``, 32 bytes."""
    try:
        raw = decode_base64(signature)
        if len(raw) != SIGNATURE_BYTES or len(verify_key) != VERIFY_KEY_BYTES:
            raise SignatureError("signature or key has the wrong length")
        crypto_sign_open(raw + message, verify_key)
    except SignatureError:
        raise
    except (ValueError, CryptoError):
        raise SignatureError("signature does not match") from None


def signed_payload(obj: Mapping[str, Any], *, lenient: bool = False) -> bytes:
    """The bytes that a signature of ``obj`` covers: all but ``signatures`` and ``unsigned``.

    Raises `canonical_json.CanonicalJSONError`.
    """
    covered = {key: value for key, value in obj.items() if key != "signatures" and key != "unsigned"}
    return canonical_json.encode_lenient(covered) if lenient else canonical_json.encode(covered)


def sign_json(obj: Mapping[str, Any], server_name: str, key_id: str, signing_key: SigningSecret) -> dict[str, Any]:
    """A copy of ``obj`` with a signature by ``server_name`` added to those it has."""
    signature = sign_bytes(signed_payload(obj), signing_key)
    signatures = {server: dict(by_key) for server, by_key in obj.get("signatures", {}).items()}
    signatures.setdefault(server_name, {})[key_id] = signature
    return {**obj, "signatures": signatures}


def verify_json(
    obj: Mapping[str, Any], server_name: str, key_id: str, verify_key: bytes, *, lenient: bool = False
) -> None:
    """Raise `SignatureError` unless ``obj`` is signed by that server with that key.

    ``verify_key`` is the public key, 32 bytes.  ``lenient`` is for JSON of room
    versions 1 to 5.
    """
    signatures = obj.get("signatures")
    by_server = signatures.get(server_name) if isinstance(signatures, dict) else None
    signature = by_server.get(key_id) if isinstance(by_server, dict) else None
    if not isinstance(signature, str):
        raise SignatureError(f"not signed by {server_name} with {key_id}")
    try:
        payload = signed_payload(obj, lenient=lenient)
    except canonical_json.CanonicalJSONError as error:
        raise SignatureError(f"not canonical JSON: {error}") from None
    verify_bytes(payload, signature, verify_key)


def required_signers(event: Event) -> frozenset[str]:
    """The servers without whose valid signature the event is not accepted.

    That is the sender's server, except for an invite made from a third-party invite,
    which the auth rules check by its own signatures; where servers choose event
    ids, the server named in it; and the server that authorised a restricted join.

    Ask this of the event as it will be used.  If the content hash did not match, that
    is the redacted event: otherwise a forged ``third_party_invite``, which redaction then
    removes, would excuse an ordinary invite from the sender's signature.
    `events.receive_event` returns the right one.
    """
    servers = set()
    is_member = event.type == "m.room.member"
    content = event.content
    if not (is_member and content.get("membership") == "invite" and "third_party_invite" in content):
        servers.add(identifiers.server_name_of(event.sender))
    if event.version.event_id_format == "origin":
        servers.add(identifiers.server_name_of(event.event_id))
    if is_member and event.version.restricted_joins:
        authoriser = content.get("join_authorised_via_users_server")
        if identifiers.is_historical_user_id(authoriser):
            servers.add(identifiers.server_name_of(authoriser))
    return frozenset(servers)

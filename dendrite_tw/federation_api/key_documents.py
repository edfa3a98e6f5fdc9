"""Documents of other servers' keys: what may be believed of one.

Server-Server API, "Publishing Keys".  A key counts if the server that publishes it has signed the document with it;
and none for longer than seven days, so that a key that was stolen ceases to be of use.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ..matrix import signing
from ..matrix.keys import MAX_VALIDITY_MS
from ..matrix.signing import VERIFY_KEY_BYTES, SignatureError
from .tables.keys import KeyRow

CURRENT_LIMIT = 20
OLD_LIMIT = 100
"""How many keys of one document are looked at."""

KEY_ID_LIMIT = 255
LATEST_TS = 2**53 - 1


class DocumentError(ValueError):
    """The document is malformed or not signed as it must be."""


class Published(msgspec.Struct, frozen=True):
    """A document that was checked: its keys, and until when it counts."""

    document: dict[str, Any]
    keys: list[KeyRow]
    valid_until_ts: int


def read_document(server_name: str, document: Any, now: int, direct: bool) -> Published:
    """Check a document of `server_name`'s keys; `DocumentError`.

    One that came from the server itself (``direct``) replaces whatever was said before.
    """
    if not isinstance(document, dict) or document.get("server_name") != server_name:
        raise DocumentError("not a document of this server's keys")
    told = document.get("valid_until_ts")
    if not isinstance(told, int) or isinstance(told, bool) or not 0 <= told <= LATEST_TS:
        raise DocumentError("valid_until_ts is missing or malformed")
    valid_until = min(told, now + MAX_VALIDITY_MS)
    told_until = now + MAX_VALIDITY_MS if direct else valid_until
    current = {
        key_id: key
        for key_id, key, _ in _keys(document.get("verify_keys"), CURRENT_LIMIT)
        if _is_signed(document, server_name, key_id, key)
    }
    if not current:
        raise DocumentError("not signed with any of its keys")
    rows = [KeyRow(server_name, key_id, key, valid_until, 0, told_until, now) for key_id, key in current.items()]
    for key_id, key, entry in _keys(document.get("old_verify_keys"), OLD_LIMIT):
        expired = entry.get("expired_ts")
        if key_id in current or not isinstance(expired, int) or isinstance(expired, bool) or expired < 0:
            continue
        rows.append(KeyRow(server_name, key_id, key, min(expired, now - 1), 1, told_until, now))
    return Published(document, rows, valid_until)


def _keys(value: object, limit: int) -> list[tuple[str, bytes, dict[str, Any]]]:
    """The well-formed Ed25519 keys among `value`."""
    found: list[tuple[str, bytes, dict[str, Any]]] = []
    for key_id, entry in list(value.items())[:limit] if isinstance(value, dict) else ():
        text = entry.get("key") if isinstance(entry, dict) else None
        if not key_id.startswith("ed25519:") or len(key_id) > KEY_ID_LIMIT or not isinstance(text, str):
            continue
        try:
            key = signing.decode_base64(text)
        except ValueError:
            continue
        if len(key) == VERIFY_KEY_BYTES:
            found.append((key_id, key, entry))
    return found


def _is_signed(document: dict[str, Any], server_name: str, key_id: str, key: bytes) -> bool:
    try:
        signing.verify_json(document, server_name, key_id, key)
    except SignatureError:
        return False
    return True

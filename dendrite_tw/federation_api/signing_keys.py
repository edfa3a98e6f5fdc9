"""The keys of this server: the document that publishes them, and what it signs as a notary.

Server-Server API, "Retrieving server keys".
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import orjson

from ..matrix import signing
from ..matrix.keys import MAX_VALIDITY_MS, OldVerifyKey, SigningKey, server_keys_document
from ..world import Clock
from .api import ServerKey

SHORTEST_VALIDITY_MS = 3_600_000
"""A shorter validity would only make others ask again and again."""

SIGNED_ANEW_MS = 60_000
"""How long one signed document is handed out."""


class OwnKeys:
    """What this server signs with, and what it says of it."""

    def __init__(
        self,
        server_name: str,
        key: SigningKey,
        old_keys: Sequence[OldVerifyKey],
        validity_ms: int,
        clock: Clock,
    ) -> None:
        """`validity_ms` is ``key_validity_period``: how long others may keep the document.

        `ValueError` for an old key that is not base64.
        """
        self.server_name = server_name
        self.key = key
        self.old_keys = tuple(old_keys)
        self._old = {old.key_id: (signing.decode_base64(old.verify_key_base64), old.expired_ts) for old in old_keys}
        self.validity_ms = min(max(validity_ms, SHORTEST_VALIDITY_MS), MAX_VALIDITY_MS)
        self._clock = clock
        self._document: dict[str, Any] = {}
        self._bytes = b""
        self._signed_ts = -SIGNED_ANEW_MS

    def document(self) -> dict[str, Any]:
        """The signed document; it is not to be changed."""
        now = self._clock.now_ms()
        if not 0 <= now - self._signed_ts < SIGNED_ANEW_MS:
            valid_until = now + self.validity_ms
            self._document = server_keys_document(self.server_name, [self.key], self.old_keys, valid_until)
            self._bytes = orjson.dumps(self._document)
            self._signed_ts = now
        return self._document

    def document_bytes(self) -> bytes:
        """The same as JSON."""
        self.document()
        return self._bytes

    def verify_key(self, key_id: str, minimum_valid_until_ts: int) -> bytes | None:
        """The public key of that id, if signatures of that time may be by it."""
        if key_id == self.key.key_id:
            return self.key.verify_key
        key, expired = self._old.get(key_id, (None, 0))
        return key if minimum_valid_until_ts <= expired else None

    def keys(self, key_ids: Collection[str]) -> list[ServerKey]:
        """Those of this server's public keys, old ones too, that have one of these ids."""
        found = []
        if self.key.key_id in key_ids:
            until = self._clock.now_ms() + self.validity_ms
            found.append(ServerKey(self.server_name, self.key.key_id, self.key.verify_key, until))
        for key_id, (key, expired) in self._old.items():
            if key_id in key_ids and key_id != self.key.key_id:
                found.append(ServerKey(self.server_name, key_id, key, expired, expired))
        return found

    def countersign(self, document: dict[str, Any]) -> dict[str, Any]:
        """Another server's document, with this server's signature beside its own."""
        return signing.sign_json(document, self.server_name, self.key.key_id, self.key.secret)

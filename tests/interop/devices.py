"""The keys of a device as clients make them: real Ed25519 signatures over canonical JSON; what is encrypted is not."""

from __future__ import annotations

import secrets
from typing import Any

from nacl.signing import SigningKey
from signedjson.key import encode_verify_key_base64
from signedjson.sign import sign_json, verify_signed_json
from signedjson.types import SigningKey as Signing
from unpaddedbase64 import encode_base64

from tests.interop.people import PASSWORD, Person

ALGORITHMS = ["m.olm.v1.curve25519-aes-sha2", "m.megolm.v1.aes-sha2"]


def _signing_key(version: str) -> Signing:
    key: Any = SigningKey(secrets.token_bytes(32))
    _name(key, version)
    return key  # type: ignore[no-any-return]


def _name(key: Any, version: str) -> None:
    """Call a key ``ed25519:{version}``."""
    for part in (key, key.verify_key):
        part.alg, part.version = "ed25519", version


def _curve_key() -> str:
    return encode_base64(secrets.token_bytes(32))


class Keys:
    """The keys of a person's device."""

    def __init__(self, owner: Person) -> None:
        self.owner = owner
        self._key = _signing_key(owner.device_id)
        self.one_time: dict[str, Any] = {}
        self._cross: dict[str, Signing] = {}
        self._device: dict[str, Any] = self._signed(
            {
                "user_id": owner.user_id,
                "device_id": owner.device_id,
                "algorithms": ALGORITHMS,
                "keys": {
                    f"curve25519:{owner.device_id}": _curve_key(),
                    f"ed25519:{owner.device_id}": encode_verify_key_base64(self._key.verify_key),
                },
            }
        )

    def _signed(self, value: dict[str, Any]) -> dict[str, Any]:
        return sign_json(value, self.owner.user_id, self._key)

    def upload(self, one_time: int = 0) -> None:
        """Publish the device's keys, so many one-time keys, and a fallback key."""
        self.one_time = {
            f"signed_curve25519:k{number}": self._signed({"key": _curve_key()}) for number in range(one_time)
        }
        fallback = self._signed({"key": _curve_key(), "fallback": True})
        body = {
            "device_keys": self._device,
            "one_time_keys": self.one_time,
            "fallback_keys": {"signed_curve25519:f0": fallback},
        }
        self.owner.post("/keys/upload", body)

    def verify(self, value: dict[str, Any]) -> None:
        """What came back from the other server is signed by this device."""
        verify_signed_json(value, self.owner.user_id, self._key.verify_key)

    @property
    def master_public(self) -> str:
        return encode_verify_key_base64(self._cross["master"].verify_key)

    def upload_cross_signing(self) -> None:
        """Publish cross-signing keys, and the device's keys signed by the self-signing one."""
        user = self.owner.user_id
        body: dict[str, Any] = {}
        for usage in ("master", "self_signing", "user_signing"):
            key = self._cross[usage] = _signing_key("")
            public = encode_verify_key_base64(key.verify_key)
            _name(key, public)
            body[f"{usage}_key"] = {"user_id": user, "usage": [usage], "keys": {f"ed25519:{public}": public}}
            if usage != "master":
                sign_json(body[f"{usage}_key"], user, self._cross["master"])
        path = "/keys/device_signing/upload"
        reply = self.owner.ask("POST", path, body)
        if reply.status == 401:
            identifier = {"type": "m.id.user", "user": user}
            proof = {"type": "m.login.password", "identifier": identifier, "password": PASSWORD}
            self.owner.post(path, {**body, "auth": {**proof, "session": reply.json["session"]}})
        else:
            assert reply.status == 200, reply
        signed = sign_json(dict(self._device, signatures={}), user, self._cross["self_signing"])
        told = self.owner.post("/keys/signatures/upload", {user: {self.owner.device_id: signed}})
        assert not told.get("failures"), told

    def is_signed_by_self(self, device: dict[str, Any]) -> bool:
        """Whether the device's keys as the other server tells them bear the self-signing key's signature."""
        key = self._cross["self_signing"]
        signatures = device["signatures"][self.owner.user_id]
        if f"ed25519:{key.version}" not in signatures:
            return False
        verify_signed_json(device, self.owner.user_id, key.verify_key)
        return True

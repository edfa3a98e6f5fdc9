"""What other servers say of their users' keys: taken as far as it is well-formed, and bounded; pure.

Server-Server API, "Device Management" and "End-to-End Encryption".  Whether keys are good is for clients
to judge, which cannot trust servers; here it is seen to that an answer is about whom it says it is, and of a size
that can be kept.  What is not right is left out, so that one bad device does not hide the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import orjson

from ..matrix.errors import MatrixError
from . import key_checks

DEVICES_LIMIT = 1000
"""Devices that one user may have; what is more is left out."""

DISPLAY_NAME_LIMIT = 512
"""Characters of a device's name; the rest is cut off."""

NEVER = -2
"""The stream ID of a list that was never fetched."""

UNNUMBERED = -1
"""The stream ID of a list whose answer had none: no update can be known to continue it."""

LARGEST_NUMBER = 2**53 - 1


class RemoteDevices(msgspec.Struct, frozen=True):
    """All devices and cross-signing keys of a user, as JSON that clients are shown."""

    devices: dict[str, bytes]
    master_key: bytes | None = None
    self_signing_key: bytes | None = None
    stream_id: int = UNNUMBERED


class Malformed(ValueError):
    """An answer that cannot be used at all; the text says why."""


def device(user_id: str, device_id: str, keys: object, display_name: object) -> bytes | None:
    """A device's JSON as clients are shown it; `None` where it cannot be used."""
    if not key_checks.is_identifier(device_id) or not isinstance(keys, dict):
        return None
    try:
        signatures = key_checks.device_keys({**_blank(user_id, device_id), **keys}, user_id, device_id)
        content = key_checks.stored_form(keys, user_id, signatures)
    except MatrixError:
        return None
    if content == b"{}":
        return None
    name = display_name[:DISPLAY_NAME_LIMIT] if isinstance(display_name, str) else None
    return key_checks.with_display_name(content, name)


def _blank(user_id: str, device_id: str) -> dict[str, Any]:
    """What counts for parts that are not there: clients will not use such a device, but may be told of it."""
    return {"user_id": user_id, "device_id": device_id, "algorithms": [], "keys": {}}


def signing_keys(user_id: str, master: object, self_signing: object) -> tuple[bytes | None, bytes | None]:
    """Cross-signing keys as JSON; a self-signing key counts only with the master key's signature."""
    master_key = _signing_key(user_id, master, "master")
    if master_key is None:
        return None, None
    key = _signing_key(user_id, self_signing, "self_signing")
    return master_key, key if key is not None and is_signed_by(key, user_id, master_key) else None


def _signing_key(user_id: str, value: object, usage: str) -> bytes | None:
    if not isinstance(value, dict):
        return None
    try:
        key = key_checks.cross_signing_key(value, user_id, usage)
        key_checks.payload_of(key.value)
        return key_checks.stored_form(key.value, user_id, key_checks.signatures_of(value, user_id))
    except MatrixError:
        return None


def is_signed_by(key: bytes, user_id: str, master_key: bytes) -> bool:
    """Whether a key's JSON is signed by the user's master key."""
    value, public = orjson.loads(key), key_checks.public_key_of(master_key)
    verify_key = key_checks.public_key(public)
    signature = key_checks.signatures_of(value, user_id).get(f"ed25519:{public}")
    return verify_key is not None and key_checks.is_signed(key_checks.payload_of(value), signature, verify_key)


def read_device_list(answer: Mapping[str, Any], user_id: str) -> RemoteDevices:
    """The answer to ``GET /user/devices``; raises `Malformed`."""
    stream_id, entries = answer.get("stream_id"), answer.get("devices")
    if answer.get("user_id") != user_id or not isinstance(entries, list):
        raise Malformed("it is not a list of the user's devices")
    if type(stream_id) is not int or not 0 <= stream_id <= LARGEST_NUMBER:
        raise Malformed("stream_id is out of range")
    found: dict[str, bytes] = {}
    for entry in entries:
        if len(found) >= DEVICES_LIMIT:
            break
        if isinstance(entry, dict) and isinstance(device_id := entry.get("device_id"), str):
            content = device(user_id, device_id, entry.get("keys"), entry.get("device_display_name"))
            if content is not None:
                found[device_id] = content
    keys = signing_keys(user_id, answer.get("master_key"), answer.get("self_signing_key"))
    return RemoteDevices(found, *keys, stream_id)


def read_query(answer: Mapping[str, Any], wanted: Mapping[str, list[str]]) -> dict[str, RemoteDevices]:
    """The answer to ``POST /user/keys/query``: those of the users in `wanted` of whom it says something."""
    devices, masters, self_signing = (
        part if isinstance(part := answer.get(name), dict) else {}
        for name in ("device_keys", "master_keys", "self_signing_keys")
    )
    return {
        user_id: RemoteDevices(
            _queried_devices(user_id, devices.get(user_id)),
            *signing_keys(user_id, masters.get(user_id), self_signing.get(user_id)),
        )
        for user_id in wanted
        if isinstance(devices.get(user_id), dict) or isinstance(masters.get(user_id), dict)
    }


def _queried_devices(user_id: str, value: object) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for device_id, keys in value.items() if isinstance(value, dict) else ():
        if len(found) >= DEVICES_LIMIT:
            break
        unsigned = keys.get("unsigned") if isinstance(keys, dict) else None
        name = unsigned.get("device_display_name") if isinstance(unsigned, dict) else None
        content = device(user_id, device_id, keys, name)
        if content is not None:
            found[device_id] = content
    return found


Claimed = dict[str, dict[str, dict[str, bytes]]]
"""User, device, ``algorithm:key_id`` to the key's JSON."""


def read_claim(answer: Mapping[str, Any], wanted: Mapping[str, Mapping[str, str]]) -> Claimed:
    """The answer to ``POST /user/keys/claim``: one key of the algorithm for each device in `wanted` that has any."""
    claimed: Claimed = {}
    users = answer.get("one_time_keys")
    for user_id, devices in wanted.items():
        by_device = users.get(user_id) if isinstance(users, dict) else None
        for device_id, algorithm in devices.items():
            keys = by_device.get(device_id) if isinstance(by_device, dict) else None
            key = _claimed_key(keys, algorithm)
            if key is not None:
                claimed.setdefault(user_id, {})[device_id] = key
    return claimed


def _claimed_key(keys: object, algorithm: str) -> dict[str, bytes] | None:
    """The first of `keys` that can be used."""
    for name, value in list(keys.items())[: key_checks.ENTRIES_LIMIT] if isinstance(keys, dict) else ():
        if name.partition(":")[0] == algorithm:
            try:
                (key,) = key_checks.one_time_keys({name: value})
            except MatrixError:
                continue
            return {name: key.content}
    return None

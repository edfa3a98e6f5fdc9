"""The shapes of EDUs: what they say, and whether their sender may say it.

Specification: Server-Server API, "Typing Notifications", "Presence", "Receipts",
"Device Management", "End-to-End Encryption", "Send-to-device messaging".

`read_edu` turns an `EDU` into one of the shapes below.  A server speaks for its own
users only: where an EDU is about one user, another server's EDU is refused; where
it lists many, what is not the sender's to say is left out.  Membership and access
control lists are the caller's to check; `rooms_of` and `without_rooms` help.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal

import msgspec

from dendrite_tw.matrix.errors import MALFORMED
from dendrite_tw.matrix.identifiers import (
    is_event_id,
    is_historical_user_id,
    is_room_id,
    server_name_of,
    within_limit,
)
from dendrite_tw.matrix.transactions import EDU

MAX_PRESENCE_UPDATES = 1_000
MAX_RECEIPTS = 1_000
MAX_TO_DEVICE_MESSAGES = 1_000
MAX_PREV_IDS = 100
MAX_DEVICE_ID_BYTES = 255
MAX_MESSAGE_ID_BYTES = 255
"""The specification says 32 characters; longer ids cost nothing, and dropping them loses messages."""
MAX_STATUS_BYTES = 4_096
MAX_NAME_BYTES = 1_024
MAX_KEYS_BYTES = 65_536
_MAX_INTEGER = 2**53 - 1

PresenceState = Literal["online", "unavailable", "offline"]


class EDUError(ValueError):
    """The EDU is malformed or not its sender's to send, and is ignored; the text says why."""


# --- shapes ---------------------------------------------------------------------------------------


class Typing(msgspec.Struct, frozen=True):
    """``m.typing``: a user types in a room, or no longer."""

    room_id: str
    user_id: str
    typing: bool


class PresenceUpdate(msgspec.Struct, frozen=True):
    """How present one user is."""

    user_id: str
    presence: PresenceState
    last_active_ago: int = 0
    """Milliseconds before the EDU was made."""
    currently_active: bool = False
    status_msg: str | None = None


class Presence(msgspec.Struct, frozen=True):
    """``m.presence``."""

    push: tuple[PresenceUpdate, ...]


class Receipt(msgspec.Struct, frozen=True):
    """That one user has read up to an event."""

    room_id: str
    user_id: str
    event_id: str
    ts: int
    thread_id: str | None = None
    """The root of the thread, ``main``, or `None` for a receipt that is of no thread."""


class Receipts(msgspec.Struct, frozen=True):
    """``m.receipt``, of the one federated type ``m.read``."""

    receipts: tuple[Receipt, ...]


class DeviceListUpdate(msgspec.Struct, frozen=True):
    """``m.device_list_update``: a change of one device."""

    user_id: str
    device_id: str
    stream_id: int
    prev_id: tuple[int, ...] = ()
    """Updates that came directly before; one that is unknown means that some were lost."""
    deleted: bool = False
    device_display_name: str | None = None
    keys: dict[str, Any] | None = None


class SigningKeyUpdate(msgspec.Struct, frozen=True):
    """``m.signing_key_update``: new cross-signing keys of a user."""

    user_id: str
    master_key: dict[str, Any] | None = None
    self_signing_key: dict[str, Any] | None = None


class DirectToDevice(msgspec.Struct, frozen=True):
    """``m.direct_to_device``: messages for devices; ``*`` stands for all devices of a user."""

    sender: str
    type: str
    message_id: str
    messages: dict[str, dict[str, dict[str, Any]]]


Content = Typing | Presence | Receipts | DeviceListUpdate | SigningKeyUpdate | DirectToDevice


# --- reading --------------------------------------------------------------------------------------


def read_edu(edu: EDU, origin: str) -> Content | None:
    """What an EDU of ``origin`` says; `None` for a type that is unknown here.  Raises `EDUError`."""
    reader = _READERS.get(edu.edu_type)
    if reader is None:
        return None
    try:
        return reader(bytes(edu.content), origin)
    except MALFORMED as error:
        raise EDUError(f"malformed {edu.edu_type}: {error}") from None


def _check(condition: bool, error: str) -> None:
    if not condition:
        raise EDUError(error)


def _is_of(user_id: object, origin: str) -> bool:
    return is_historical_user_id(user_id) and server_name_of(user_id) == origin


def _read_typing(content: bytes, origin: str) -> Typing:
    typing = _typing.decode(content)
    _check(is_room_id(typing.room_id), "room_id is not a room id")
    _check(_is_of(typing.user_id, origin), "the user is of another server")
    return typing


class _RawPresence(msgspec.Struct):
    push: list[msgspec.Raw]


def _read_presence(content: bytes, origin: str) -> Presence:
    push = _raw_presence.decode(content).push
    _check(len(push) <= MAX_PRESENCE_UPDATES, "too many presence updates")
    found = []
    for raw in push:
        try:
            update = _presence_update.decode(raw)
        except MALFORMED:
            continue
        status = update.status_msg
        if not _is_of(update.user_id, origin) or (status is not None and not within_limit(status, MAX_STATUS_BYTES)):
            continue
        if 0 <= update.last_active_ago <= _MAX_INTEGER:
            found.append(update)
    return Presence(tuple(found))


class _ReceiptData(msgspec.Struct):
    ts: int
    thread_id: str | None = None


class _UserReceipt(msgspec.Struct):
    event_ids: list[str]
    data: _ReceiptData


class _RoomReceipts(msgspec.Struct):
    read: dict[str, msgspec.Raw] = msgspec.field(name="m.read", default_factory=dict)


def _read_receipts(content: bytes, origin: str) -> Receipts:
    found: list[Receipt] = []
    for room_id, by_type in _receipts.decode(content).items():
        if not is_room_id(room_id):
            continue
        for user_id, raw in by_type.read.items():
            receipt = _read_receipt(room_id, user_id, raw) if _is_of(user_id, origin) else None
            if receipt is not None:
                found.append(receipt)
        _check(len(found) <= MAX_RECEIPTS, "too many receipts")
    return Receipts(tuple(found))


def _read_receipt(room_id: str, user_id: str, raw: msgspec.Raw) -> Receipt | None:
    try:
        entry = _user_receipt.decode(raw)
    except MALFORMED:
        return None
    thread_id = entry.data.thread_id
    # Older servers list several events; the last is where the user is.
    if not entry.event_ids or not is_event_id(entry.event_ids[-1]) or not 0 <= entry.data.ts <= _MAX_INTEGER:
        return None
    if thread_id is not None and thread_id != "main" and not is_event_id(thread_id):
        return None
    return Receipt(room_id, user_id, entry.event_ids[-1], entry.data.ts, thread_id)


def _read_device_list_update(content: bytes, origin: str) -> DeviceListUpdate:
    update = _device_list_update.decode(content)
    _check(_is_of(update.user_id, origin), "the user is of another server")
    _check(len(update.device_id) > 0 and within_limit(update.device_id, MAX_DEVICE_ID_BYTES), "no device id")
    _check(0 <= update.stream_id <= _MAX_INTEGER, "stream_id is out of range")
    _check(len(update.prev_id) <= MAX_PREV_IDS, "too many prev_id")
    _check(all(0 <= number <= _MAX_INTEGER for number in update.prev_id), "prev_id is out of range")
    _check(within_limit(update.device_display_name or "", MAX_NAME_BYTES), "the display name is too long")
    _check(len(content) <= MAX_KEYS_BYTES, "the keys are too large")
    return update


def _read_signing_key_update(content: bytes, origin: str) -> SigningKeyUpdate:
    update = _signing_key_update.decode(content)
    _check(_is_of(update.user_id, origin), "the user is of another server")
    _check(len(content) <= MAX_KEYS_BYTES, "the keys are too large")
    return update


def _read_direct_to_device(content: bytes, origin: str) -> DirectToDevice:
    direct = _direct_to_device.decode(content)
    _check(_is_of(direct.sender, origin), "the sender is of another server")
    _check(bool(direct.type) and within_limit(direct.type), "type is empty or too long")
    _check(bool(direct.message_id) and within_limit(direct.message_id, MAX_MESSAGE_ID_BYTES), "no usable message_id")
    _check(sum(map(len, direct.messages.values())) <= MAX_TO_DEVICE_MESSAGES, "too many messages")
    _check(len(direct.messages) <= MAX_TO_DEVICE_MESSAGES, "too many users")
    for user_id, by_device in direct.messages.items():
        _check(is_historical_user_id(user_id), "messages are for something that is not a user")
        _check(all(within_limit(device, MAX_DEVICE_ID_BYTES) for device in by_device), "a device id is too long")
    return direct


_typing = msgspec.json.Decoder(Typing)
_raw_presence = msgspec.json.Decoder(_RawPresence)
_presence_update = msgspec.json.Decoder(PresenceUpdate)
_receipts = msgspec.json.Decoder(dict[str, _RoomReceipts])
_user_receipt = msgspec.json.Decoder(_UserReceipt)
_device_list_update = msgspec.json.Decoder(DeviceListUpdate)
_signing_key_update = msgspec.json.Decoder(SigningKeyUpdate)
_direct_to_device = msgspec.json.Decoder(DirectToDevice)

_READERS: Mapping[str, Callable[[bytes, str], Content]] = {
    "m.typing": _read_typing,
    "m.presence": _read_presence,
    "m.receipt": _read_receipts,
    "m.device_list_update": _read_device_list_update,
    "m.signing_key_update": _read_signing_key_update,
    "m.direct_to_device": _read_direct_to_device,
}

EDU_TYPES: Mapping[type[Content], str] = {
    Typing: "m.typing",
    Presence: "m.presence",
    Receipts: "m.receipt",
    DeviceListUpdate: "m.device_list_update",
    SigningKeyUpdate: "m.signing_key_update",
    DirectToDevice: "m.direct_to_device",
}


# --- rooms ----------------------------------------------------------------------------------------


def rooms_of(content: Content) -> frozenset[str]:
    """The rooms that an EDU is local to, whose access control lists therefore apply."""
    if isinstance(content, Typing):
        return frozenset((content.room_id,))
    if isinstance(content, Receipts):
        return frozenset(receipt.room_id for receipt in content.receipts)
    return frozenset()


def without_rooms(content: Content, denied: Collection[str]) -> Content | None:
    """The EDU without what it says about rooms that its sender is kept out of; `None` if nothing is left."""
    if isinstance(content, Typing):
        return None if content.room_id in denied else content
    if isinstance(content, Receipts):
        kept = tuple(receipt for receipt in content.receipts if receipt.room_id not in denied)
        return Receipts(kept) if kept else None
    return content


# --- writing --------------------------------------------------------------------------------------


def edu_dict(content: Content) -> dict[str, Any]:
    """The EDU as it goes into a transaction."""
    return {"edu_type": EDU_TYPES[type(content)], "content": _content(content)}


def edu_content(content: Content) -> bytes:
    """The JSON of an EDU's ``content``."""
    return msgspec.json.encode(_content(content))


def _content(content: Content) -> dict[str, Any]:
    if isinstance(content, Receipts):
        return _receipts_content(content)
    if isinstance(content, Presence):
        return {"push": [_without_none(update) for update in content.push]}
    return _without_none(content)


def _without_none(struct: msgspec.Struct) -> dict[str, Any]:
    return {key: value for key, value in msgspec.to_builtins(struct).items() if value is not None}


def _receipts_content(content: Receipts) -> dict[str, Any]:
    body: dict[str, Any] = {}
    for receipt in content.receipts:
        data: dict[str, Any] = {"ts": receipt.ts}
        if receipt.thread_id is not None:
            data["thread_id"] = receipt.thread_id
        users = body.setdefault(receipt.room_id, {}).setdefault("m.read", {})
        users[receipt.user_id] = {"event_ids": [receipt.event_id], "data": data}
    return body

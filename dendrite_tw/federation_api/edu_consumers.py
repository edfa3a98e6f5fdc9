"""Messages to devices, changes of keys and receipts of local users, made into EDUs for the servers they concern.

Server-Server API, "Send-to-device messaging", "Device Management", "End-to-End Encryption", "Receipts".  These survive
a crash and wait for a server that is away; of changes of a user's devices only the last waits, which makes the server
fetch the whole list, for it does not know the change that came before.
"""

from __future__ import annotations

from typing import Any

import msgspec
import orjson

from ..matrix.edus import (
    MAX_TO_DEVICE_MESSAGES,
    DeviceListUpdate,
    Receipt,
    Receipts,
    SigningKeyUpdate,
    edu_content,
)
from ..matrix.errors import MatrixError
from ..user_api.api import (
    OUTPUT_KEY_CHANGE_EVENT,
    OUTPUT_RECEIPT_EVENT,
    OUTPUT_SEND_TO_DEVICE_EVENT,
    DeviceList,
    KeyAPI,
    KeyChange,
)
from ..user_api.api import Receipt as UserReceipt
from .consumers import Consumer, Message, server_of
from .post import Parcel
from .queue import OutgoingEdu

EDU_BYTES = 60_000
"""Messages to devices are put into one EDU up to about this size."""

SERVERS_A_SECOND = 50
SHORTEST_LINGER = 0.5
LONGEST_LINGER = 20.0


def linger(servers: int) -> float:
    """For how many seconds something that is not urgent may wait for company.

    The more servers are told, the longer: in a room of a thousand servers each of a thousand readers would otherwise
    cause a thousand requests.
    """
    return min(LONGEST_LINGER, max(SHORTEST_LINGER, servers / SERVERS_A_SECOND))


# --- to devices ---


class _ToldMessage(msgspec.Struct):
    """The part of a `ToDeviceMessage` that says whether it is for somebody elsewhere."""

    user_id: str
    position: int
    device_id: str
    event: bytes
    message_id: str = ""


class _Content(msgspec.Struct):
    sender: str
    type: str
    content: msgspec.Raw


_MESSAGE = msgspec.msgpack.Decoder(_ToldMessage)
_CONTENT = msgspec.json.Decoder(_Content)


class _Envelope:
    """Messages of one request for the users of one server: one EDU."""

    def __init__(self, server: str, first: _ToldMessage, content: _Content) -> None:
        self.server = server
        self.key = (server, first.message_id, content.sender, content.type)
        # A request whose messages do not fit into one EDU, or are read in two batches, makes several; the
        # receiver takes only the first of those with the same ID.
        self.message_id = f"{first.message_id[:20]}.{first.position:x}"
        self.sender, self.type = content.sender, content.type
        self.size = 0
        self.count = 0
        self.messages: dict[str, dict[str, orjson.Fragment]] = {}

    def takes(self, key: tuple[str, str, str, str], message: _ToldMessage, size: int) -> bool:
        """Whether a message may be added: one of the same request, for a device that has none of it yet.

        Those for one user stay together, for one to all devices gives way to one to a certain device.
        """
        devices = self.messages.get(message.user_id)
        if key != self.key or self.count >= MAX_TO_DEVICE_MESSAGES:
            return False
        if devices is not None:
            return message.device_id not in devices
        return self.size + size <= EDU_BYTES

    def add(self, message: _ToldMessage, content: bytes) -> None:
        self.size += len(content) + len(message.user_id) + len(message.device_id)
        self.count += 1
        self.messages.setdefault(message.user_id, {})[message.device_id] = orjson.Fragment(content)

    def edu(self) -> OutgoingEdu:
        body = {"sender": self.sender, "type": self.type, "message_id": self.message_id, "messages": self.messages}
        return OutgoingEdu("m.direct_to_device", orjson.dumps(body), [self.server])


class SendToDeviceConsumer(Consumer):
    """Messages of local users to devices of others, each put into exactly one EDU."""

    stream = OUTPUT_SEND_TO_DEVICE_EVENT
    name = "FederationAPIESendToDeviceConsumer"

    def __init__(self, *needs: Any) -> None:
        super().__init__(*needs)
        self._open: dict[str, _Envelope] = {}

    async def consume(self, messages: list[Message]) -> None:
        # What a batch that failed left open comes again with it.
        self._open = {}
        await super().consume(messages)

    async def read(self, message: Message, after: int, parcel: Parcel) -> int:
        told = _MESSAGE.decode(message.payload)
        server = server_of(told.user_id)
        if told.position > after and self.others([server]):
            content = _CONTENT.decode(told.event)
            raw = bytes(content.content)
            key = (server, told.message_id, content.sender, content.type)
            envelope = self._open.get(server)
            if envelope is None or not envelope.takes(key, told, len(raw)):
                self._seal(envelope, parcel)
                envelope = self._open[server] = _Envelope(server, told, content)
            envelope.add(told, raw)
        return told.position

    def _seal(self, envelope: _Envelope | None, parcel: Parcel) -> None:
        if envelope is not None:
            parcel.add_edu(envelope.edu())

    async def finish(self, parcel: Parcel) -> None:
        for envelope in self._open.values():
            self._seal(envelope, parcel)
        self._open = {}


# --- keys ---

_CHANGE = msgspec.msgpack.Decoder(KeyChange)


class KeyChangeConsumer(Consumer):
    """Changes of the devices and cross-signing keys of local users, for all who share a room with them.

    The keys are those of the moment when this is read: if they have changed again since, that is told next.
    """

    stream = OUTPUT_KEY_CHANGE_EVENT
    name = "FederationAPIKeyChangeConsumer"

    def __init__(self, keys: KeyAPI, *needs: Any) -> None:
        super().__init__(*needs)
        self._keys = keys

    async def read(self, message: Message, after: int, parcel: Parcel) -> int:
        change = _CHANGE.decode(message.payload)
        if change.position > after and not change.only_for and self.is_local(change.user_id):
            servers = await self.servers_of(change.user_id)
            if servers:
                await self._tell(change, servers, parcel)
        return change.position

    async def _tell(self, change: KeyChange, servers: list[str], parcel: Parcel) -> None:
        try:
            devices = await self._keys.device_list(change.user_id)
        except MatrixError as error:
            if error.status != 404:
                raise
            devices = DeviceList(user_id=change.user_id, stream_id=change.position, devices=[])
        if change.device_id:
            update = device_list_update(change, devices)
            parcel.add_edu(
                OutgoingEdu("m.device_list_update", edu_content(update), servers, f"devices {change.user_id}")
            )
        else:
            signing = signing_key_update(devices)
            parcel.add_edu(OutgoingEdu("m.signing_key_update", edu_content(signing), servers, f"keys {change.user_id}"))


def device_list_update(change: KeyChange, devices: DeviceList) -> DeviceListUpdate:
    """The EDU about a device: with its keys if it has any."""
    entry = next((entry for entry in devices.devices if entry.device_id == change.device_id), None)
    return DeviceListUpdate(
        user_id=change.user_id,
        device_id=change.device_id,
        stream_id=change.position,
        prev_id=(change.previous,) if change.previous else (),
        deleted=change.deleted and entry is None,
        device_display_name=entry.display_name if entry is not None else None,
        keys=orjson.loads(entry.keys) if entry is not None else None,
    )


def signing_key_update(devices: DeviceList) -> SigningKeyUpdate:
    """The EDU about a user's cross-signing keys, those that others may see."""
    return SigningKeyUpdate(
        user_id=devices.user_id,
        master_key=orjson.loads(devices.master_key) if devices.master_key else None,
        self_signing_key=orjson.loads(devices.self_signing_key) if devices.self_signing_key else None,
    )


# --- receipts ---


_RECEIPT = msgspec.msgpack.Decoder(UserReceipt)


class ReceiptConsumer(Consumer):
    """How far local users have read, for the servers in the room; private receipts are nobody's business."""

    stream = OUTPUT_RECEIPT_EVENT
    name = "FederationAPIReceiptConsumer"

    async def read(self, message: Message, after: int, parcel: Parcel) -> int:
        told = _RECEIPT.decode(message.payload)
        if told.position > after and told.receipt_type == "m.read" and self.is_local(told.user_id):
            servers = await self.servers_in(told.room_id)
            if servers:
                receipt = Receipt(told.room_id, told.user_id, told.event_id, told.ts, told.thread_id)
                key = f"receipt {told.room_id} {told.user_id} {told.thread_id or ''}"
                content = edu_content(Receipts((receipt,)))
                parcel.add_edu(OutgoingEdu("m.receipt", content, servers, key, linger(len(servers))))
        return told.position

"""Messages from device to device: sent once, kept until the device has them.

Client-Server API, "Send-to-Device messaging".  A message for a local device is
stored in the transaction that tells of it; its position is that of its outbox
row.  A message for another server's user is told on the same stream with
headers that the federation's senders need: ``destination``, ``sender``, ``type``
and ``message_id``, the same for all messages that are to travel in one EDU.
The other server takes an EDU of one ``message_id`` once, as this one does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import orjson

from ..cache import CacheBudget
from ..database.engines import Database
from ..database.outbox import Outbox
from ..database.statements import Transaction
from ..matrix.errors import bad_json, too_large
from ..matrix.identifiers import server_name_of
from ..world import Clock, Random
from . import key_checks
from .api import OUTPUT_SEND_TO_DEVICE_EVENT, ToDeviceMessage
from .device_keys import DevicesOf
from .recent import Recent
from .tables import to_device as table

MESSAGE_LIMIT = 64 << 10
"""Bytes of one message as its device sees it."""

TARGET_LIMIT = 5_000
"""Messages in one request; as many again may come of the wildcard."""

TOTAL_LIMIT = 64 << 20
"""Bytes that one request may put into inboxes: a wildcard multiplies what was sent."""

INBOX_BYTES = 400
"""What the remembered newest position of an inbox takes, about."""

CHECK_EVERY = 500
"""After so many messages for a device its inbox is held against `INBOX_LIMIT`."""

COUNTED_INBOXES = 10_000
"""Devices whose arriving messages are counted for that."""

EDU_MESSAGES = 500
EDU_BYTES = 256 << 10
"""Messages of one EDU, and their bytes, give or take those for one user, which stay together."""

EVERY_DEVICE = "*"


class Outgoing(msgspec.Struct, frozen=True):
    """A message on its way: the JSON that its device will see."""

    user_id: str
    device_id: str
    event: bytes


class ToDevice:
    """The inboxes of local devices."""

    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        clock: Clock,
        random: Random,
        devices_of: DevicesOf,
        server_name: str,
        budget: CacheBudget,
        exclusive: bool,
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._clock = clock
        self._random = random
        self._devices_of = devices_of
        self._server_name = server_name
        self._exclusive = exclusive
        self._highest: Recent[tuple[str, str], int] = Recent("to_device_inboxes", budget, INBOX_BYTES)
        self._arrived: dict[tuple[str, str], int] = {}
        self._to_check: set[tuple[str, str]] = set()

    async def send(
        self, sender: str, device_id: str, event_type: str, txn_id: str, messages: Mapping[str, Mapping[str, Any]]
    ) -> None:
        """See `KeyAPI.send_to_device`."""
        for value, what in ((event_type, "event type"), (txn_id, "transaction ID")):
            key_checks.identifier(value, what)
        from_here = server_name_of(sender) == self._server_name
        outgoing = prepare(sender, event_type, messages, from_here)
        local = [one for one in outgoing if server_name_of(one.user_id) == self._server_name]
        remote: list[Outgoing] = []
        if from_here:
            remote = [one for one in outgoing if server_name_of(one.user_id) != self._server_name]
        leaving = [
            ({"destination": name, "sender": sender, "type": event_type, "message_id": self._random.token(24)}, one)
            for name, one in edus(remote)
        ]
        # Another server's message is known by its ID alone; not at all where it reaches no device.
        transaction = (sender, device_id, event_type, txn_id) if from_here else (sender, "", "", txn_id)
        await self._database.write(self._send, transaction, local, leaving)
        await self._drop_oldest()

    async def _send(
        self,
        txn: Transaction,
        transaction: tuple[str, str, str, str],
        local: Sequence[Outgoing],
        leaving: Sequence[tuple[Mapping[str, str], Sequence[Outgoing]]],
    ) -> None:
        devices = await self._devices_of(txn, sorted({one.user_id for one in local})) if local else {}
        reached = addressed(local, devices)
        if not reached and not transaction[2]:
            return
        if not await table.begin(txn, *transaction, self._clock.now_ms()):
            return
        rows = []
        for (user_id, device_id), event in reached.items():
            message = encoder(Outgoing(user_id, device_id, event))
            position = await self._outbox.append(txn, OUTPUT_SEND_TO_DEVICE_EVENT, message)
            rows.append((position, user_id, device_id, event))
        await table.add(txn, rows)
        if rows:
            txn.after_commit(lambda: self._stored(rows))
        for headers, messages in leaving:
            for one in messages:
                message = encoder(one, headers["message_id"])
                await self._outbox.append(txn, OUTPUT_SEND_TO_DEVICE_EVENT, message, headers=headers)

    def _stored(self, rows: Sequence[tuple[int, str, str, bytes]]) -> None:
        """On the reactor thread: what is remembered of inboxes grows with what was stored."""
        for position, user_id, device_id, _ in rows:
            inbox = user_id, device_id
            self._raise_highest(inbox, position)
            count = self._arrived.pop(inbox, 0) + 1
            if count >= CHECK_EVERY:
                self._to_check.add(inbox)
            else:
                self._arrived[inbox] = count
        while len(self._arrived) > COUNTED_INBOXES:
            del self._arrived[next(iter(self._arrived))]

    def _raise_highest(self, inbox: tuple[str, str], position: int) -> None:
        self._highest.change(inbox, lambda highest: max(highest, position))

    async def _drop_oldest(self) -> None:
        """Bring inboxes that may have grown too full back to `INBOX_LIMIT`."""
        while self._to_check:
            user_id, device_id = self._to_check.pop()
            await self._database.write(table.drop_oldest, user_id, device_id, table.INBOX_LIMIT)

    async def since(self, user_id: str, device_id: str, after: int, upto: int, count: int) -> list[ToDeviceMessage]:
        """Waiting messages with positions in (after, upto], oldest first; nothing is read where none can be."""
        if await self._highest_of(user_id, device_id) <= after:
            return []
        rows = await self._database.read(table.between, user_id, device_id, after, upto, count)
        return [
            ToDeviceMessage(user_id=user_id, device_id=device_id, event=row.event, position=row.position)
            for row in rows
        ]

    async def _highest_of(self, user_id: str, device_id: str) -> int:
        key = user_id, device_id
        highest = self._highest.get(key) if self._exclusive else None
        if highest is None:
            generation = self._highest.generation
            highest = await self._database.read(table.highest, user_id, device_id)
            if self._exclusive:
                self._highest.keep(key, highest, generation)
        return highest

    async def delete(self, user_id: str, device_id: str, upto: int) -> None:
        """Forget the messages up to and including `upto`; no transaction is begun where there are none."""
        if not await self._highest_of(user_id, device_id):
            return
        lowest = await self._database.read(table.lowest, user_id, device_id)
        if not lowest or lowest > upto:
            return

        async def transaction(txn: Transaction) -> None:
            await table.delete_upto(txn, user_id, device_id, upto)
            txn.after_commit(
                lambda: self._highest.change((user_id, device_id), lambda highest: 0 if highest <= upto else highest)
            )

        await self._database.write(transaction)

    async def device_deleted(self, txn: Transaction, user_id: str, device_id: str) -> None:
        await table.delete_of_device(txn, user_id, device_id)
        await table.delete_transactions(txn, user_id, device_id)
        txn.after_commit(lambda: self._highest.forget((user_id, device_id)))

    async def account_deactivated(self, txn: Transaction, user_id: str) -> None:
        for device_id in (await self._devices_of(txn, [user_id])).get(user_id, {}):
            await self.device_deleted(txn, user_id, device_id)
        await table.delete_of_user(txn, user_id)
        await table.delete_transactions_of_user(txn, user_id)

    async def prune(self) -> None:
        """Forget transactions that no client repeats any more, and messages that no server does."""
        now = self._clock.now_ms()
        await self._database.write(table.prune_transactions, now - table.TRANSACTION_RETENTION_MS)
        await self._database.write(table.prune_messages, now - table.MESSAGE_RETENTION_MS)


def encoder(message: Outgoing, message_id: str = "") -> Callable[[int], bytes]:
    """Makes the payload of a message, given its position."""
    return lambda position: msgspec.msgpack.encode(
        ToDeviceMessage(
            user_id=message.user_id,
            device_id=message.device_id,
            event=message.event,
            position=position,
            message_id=message_id,
        )
    )


def edus(messages: Sequence[Outgoing]) -> list[tuple[str, list[Outgoing]]]:
    """Messages for users of other servers by destination, in parts that fit into an EDU."""
    by_server: dict[str, dict[str, list[Outgoing]]] = {}
    for message in messages:
        by_server.setdefault(server_name_of(message.user_id), {}).setdefault(message.user_id, []).append(message)
    found: list[tuple[str, list[Outgoing]]] = []
    for server_name, users in by_server.items():
        count = size = 0
        part: list[Outgoing] = []
        for ones in users.values():
            bytes_here = sum(len(one.event) for one in ones)
            if part and (count + len(ones) > EDU_MESSAGES or size + bytes_here > EDU_BYTES):
                found.append((server_name, part))
                part, count, size = [], 0, 0
            part += ones
            count += len(ones)
            size += bytes_here
        found.append((server_name, part))
    return found


def prepare(
    sender: str, event_type: str, messages: Mapping[str, Mapping[str, Any]], strict: bool = True
) -> list[Outgoing]:
    """The messages of a request, checked and encoded; without `strict` one that is too large is left out."""
    if sum(map(len, messages.values())) > TARGET_LIMIT:
        raise too_large(f"One request may carry {TARGET_LIMIT} messages at most.")
    outgoing = []
    for user_id, by_device in messages.items():
        key_checks.user_id(user_id)
        for device_id, content in by_device.items():
            key_checks.identifier(device_id, "device ID")
            if not isinstance(content, dict):
                raise bad_json("The content of a message must be an object.")
            try:
                event = orjson.dumps({"content": content, "sender": sender, "type": event_type})
            except TypeError:
                raise bad_json("A message nests too deeply or has an integer that is too large.") from None
            if len(event) <= MESSAGE_LIMIT:
                outgoing.append(Outgoing(user_id, device_id, event))
            elif strict:
                raise too_large(f"A message may have {MESSAGE_LIMIT} bytes at most.")
    return outgoing


def addressed(
    messages: Sequence[Outgoing], devices: Mapping[str, Mapping[str, str | None]]
) -> dict[tuple[str, str], bytes]:
    """Messages by device: wildcards stand for all devices of a user, a device's own message goes before them.

    Devices that do not exist are left out.
    """
    found: dict[tuple[str, str], bytes] = {}
    for message in sorted(messages, key=lambda message: message.device_id != EVERY_DEVICE):
        known = devices.get(message.user_id, {})
        device_ids = known if message.device_id == EVERY_DEVICE else {message.device_id} & known.keys()
        for device_id in device_ids:
            found[message.user_id, device_id] = message.event
    if len(found) > 2 * TARGET_LIMIT or sum(map(len, found.values())) > TOTAL_LIMIT:
        raise too_large(f"One request may reach {2 * TARGET_LIMIT} devices with {TOTAL_LIMIT} bytes at most.")
    return found

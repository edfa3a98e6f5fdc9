"""From one queue to another: streams with their messages, and how far each durable consumer is in them.

The other one may be a NATS server.  Messages keep their order and headers, and are numbered anew from 1.  Nothing is
deleted on either side, and what was copied before is not copied again, so a move that broke off is simply repeated.
"""

from __future__ import annotations

import binascii
from collections.abc import AsyncIterator, Iterable
from typing import Any, Final

import msgspec
import orjson
from twisted.internet.defer import Deferred

from . import wire
from .client import QueueClient
from .errors import CONSUMER_NOT_FOUND, NO_MESSAGE, ApiError
from .messages import Message
from .wire import Msg

WINDOW: Final = 64
"""Messages under way at a time."""
PULL: Final = 256
"""Messages that a consumer is asked for at a time."""
NUMBER_HEADER: Final = "Nats-Expected-Last-Sequence"
_LARGEST: Final = 16 * 1024 * 1024


class MoveError(Exception):
    """Why a queue cannot be moved there, and what to do: a sentence for the operator."""


class Moved(msgspec.Struct, frozen=True):
    """What became of a stream: messages that it holds, how many of them were copied just now, durable consumers."""

    stream: str
    messages: int
    copied: int
    consumers: int


async def move(source: QueueClient, target: QueueClient, streams: Iterable[str]) -> list[Moved]:
    """Copy these streams of the catalogue, and hold both sides against each other at the end; both clients are ready.

    Nobody else may use the two meanwhile.  Raises `MoveError`, `ApiError` and `UnavailableError`.
    """
    return [await _Stream(source, target, name).move() for name in streams]


class _Consumer(msgspec.Struct):
    """A durable consumer of the source: how many of the stream's messages it has done with."""

    name: str
    config: dict[str, Any]
    floor: int
    done: int = 0


class _Stream:
    """One stream on both sides.  What the source holds is numbered from 1 on here, as the target numbers it."""

    def __init__(self, source: QueueClient, target: QueueClient, short: str) -> None:
        self._source = source
        self._target = target
        self._from = source.prefix + short
        self._to = target.prefix + short

    async def move(self) -> Moved:
        consumers = await self._consumers()
        for consumer in consumers:
            await self._create(consumer)
        had: int = (await self._target.api(f"STREAM.INFO.{self._to}"))["state"]["last_seq"]
        number = await self._copy(consumers, had)
        if number < had:
            raise self._in_use(had)
        for consumer in consumers:
            await self._advance(consumer)
        await self._verify(consumers)
        return Moved(self._to, number, number - had, len(consumers))

    def _in_use(self, had: int) -> MoveError:
        return MoveError(
            f"The stream {self._to} there has been in use: it has had {had} messages, which are not those of here. "
            "Delete it there (nats stream rm), or choose another global.jetstream.topic_prefix."
        )

    # --- messages ---

    async def _copy(self, consumers: list[_Consumer], had: int) -> int:
        """Publish what the target has not; the number of messages that the source holds."""
        number = 0
        under_way: list[Deferred[Msg]] = []
        async for message in _messages(self._source, self._from):
            number += 1
            for consumer in consumers:
                consumer.done += message.stream_seq <= consumer.floor
            if number <= had:
                there = await _message(self._target, self._to, {"seq": number})
                if there is not None and not self._alike(message, there):
                    raise self._in_use(had)
                continue
            under_way.append(self._publish(message, number))
            if len(under_way) == WINDOW:
                await self._stored(under_way)
        await self._stored(under_way)
        return number

    def _publish(self, message: Message, number: int) -> Deferred[Msg]:
        size = len(message.payload) + len(message.header_block)
        if size > self._target.max_payload - 100:
            raise MoveError(
                f"A message of {self._from} has {size} bytes, and the server takes {self._target.max_payload}. "
                f'Set "max_payload: {_LARGEST}" in its configuration.'
            )
        block = wire.replace_headers(message.header_block, (NUMBER_HEADER,), {NUMBER_HEADER: str(number - 1)})
        return self._target.ask(self._renamed(message.subject), message.payload, block)

    async def _stored(self, under_way: list[Deferred[Msg]]) -> None:
        for answer in under_way:
            error = orjson.loads((await answer).payload).get("error")
            if error:
                raise MoveError(f"The server does not take a message of {self._from}: {error.get('description')}.")
        under_way.clear()

    def _renamed(self, name: str) -> str:
        """A stream, subject or consumer under the prefix of the target."""
        return self._target.prefix + name.removeprefix(self._source.prefix)

    def _alike(self, here: Message, there: Message) -> bool:
        def fields(message: Message) -> dict[str, str]:
            return {name: value for name, value in message.headers.items() if name != NUMBER_HEADER}

        same = self._renamed(here.subject) == there.subject and here.payload == there.payload
        return same and fields(here) == fields(there)

    # --- consumers ---

    async def _consumers(self) -> list[_Consumer]:
        found: list[_Consumer] = []
        while True:
            page = await self._source.api(f"CONSUMER.LIST.{self._from}", {"offset": len(found)})
            found += [
                _Consumer(info["name"], info["config"], info["ack_floor"]["stream_seq"])
                for info in page["consumers"] or ()
            ]
            if len(found) >= page["total"] or not page["consumers"]:
                return [consumer for consumer in found if consumer.config.get("durable_name")]

    async def _create(self, consumer: _Consumer) -> None:
        name = self._renamed(consumer.name)
        try:
            await self._target.api(f"CONSUMER.INFO.{self._to}.{name}")
            return
        except ApiError as error:
            if error.err_code != CONSUMER_NOT_FOUND.err_code:
                raise
        config = consumer.config | {"durable_name": name, "name": name}
        body = {"stream_name": self._to, "config": config}
        await self._target.api(f"CONSUMER.DURABLE.CREATE.{self._to}.{name}", body)

    async def _advance(self, consumer: _Consumer) -> None:
        """Let the target's consumer acknowledge what this one has done with."""
        path = f"{self._to}.{self._renamed(consumer.name)}"
        info = await self._target.api(f"CONSUMER.INFO.{path}")
        floor, reached = info["ack_floor"], info["delivered"]["stream_seq"]
        while reached < consumer.done:
            wanted = min(consumer.done - reached, PULL)
            await self._pull(path, wanted)
            reached += wanted
        for number in self._to_acknowledge(consumer, floor["stream_seq"]):
            delivery = floor["consumer_seq"] + number - floor["stream_seq"]
            await self._target.ask(f"$JS.ACK.{path}.1.{number}.{delivery}.0.0", b"+ACK")

    def _to_acknowledge(self, consumer: _Consumer, floor: int) -> Iterable[int]:
        """The messages to acknowledge: the last one says it for all before it, where the consumer means it so."""
        if consumer.done <= floor:
            return ()
        if consumer.config.get("ack_policy") == "all":
            return (consumer.done,)
        return range(floor + 1, consumer.done + 1)

    async def _pull(self, path: str, wanted: int) -> None:
        """Have the next `wanted` messages delivered."""
        come: Deferred[None] = Deferred()
        left = wanted

        def receive(op: Msg) -> None:
            nonlocal left
            left -= bool(op.reply)
            if left == 0 and not come.called:
                come.callback(None)

        inbox = f"{self._target.inbox}.moving.{self._target.next_number()}"
        handle = self._target.subscribe(inbox, receive)
        timer = self._target.clock.callLater(self._target.timeout, come.cancel)
        try:
            request = orjson.dumps({"batch": wanted, "expires": int(self._target.timeout * 10**9)})
            self._target.tell(f"{self._target.api_prefix}.CONSUMER.MSG.NEXT.{path}", request, reply=inbox)
            await come
        finally:
            self._target.unsubscribe(handle)
            if timer.active():
                timer.cancel()

    # --- the end ---

    async def _verify(self, consumers: list[_Consumer]) -> None:
        """Hold both sides against each other: each message that somebody still wants, and what each still wants."""
        all_done = min((consumer.done for consumer in consumers), default=0)
        number = 0
        async for message in _messages(self._source, self._from):
            number += 1
            there = await _message(self._target, self._to, {"seq": number})
            if there is None and number <= all_done:
                continue
            if there is None or not self._alike(message, there):
                raise MoveError(f"Message {number} of {self._to} did not arrive as it was. Repeat the move.")
        for consumer in consumers:
            info = await self._target.api(f"CONSUMER.INFO.{self._to}.{self._renamed(consumer.name)}")
            if info["ack_floor"]["stream_seq"] != consumer.done:
                raise MoveError(
                    f"{self._renamed(consumer.name)} is at message {info['ack_floor']['stream_seq']} of {self._to} "
                    f"and not at {consumer.done}. Something else consumes there: stop it, and repeat the move."
                )


async def _messages(client: QueueClient, stream: str) -> AsyncIterator[Message]:
    """All messages of a stream, in their order."""
    seq = 0
    while True:
        message = await _message(client, stream, {"seq": seq + 1, "next_by_subj": ">"})
        if message is None:
            return
        seq = message.stream_seq
        yield message


async def _message(client: QueueClient, stream: str, which: dict[str, Any]) -> Message | None:
    """The message of a number or the first from there on, if the stream still has it."""
    try:
        found = await client.api(f"STREAM.MSG.GET.{stream}", which)
    except ApiError as error:
        if error.err_code != NO_MESSAGE.err_code:
            raise
        return None
    message = found["message"]
    block, payload = binascii.a2b_base64(message.get("hdrs", "")), binascii.a2b_base64(message.get("data", ""))
    return Message(message["subject"], block, payload, message["seq"])

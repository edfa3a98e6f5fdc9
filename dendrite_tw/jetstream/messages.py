"""Messages as handlers see them, and the stream's answer to a publication."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from dendrite_tw.jetstream import wire
from dendrite_tw.jetstream.wire import Msg


class Message:
    """A message as handlers see it.

    ``stream_seq`` is its number in the stream (0 outside streams), ``num_delivered`` how often it has been
    delivered, this time included, and ``consumer_seq`` the number of the delivery among all of its consumer.
    """

    __slots__ = (
        "_fields",
        "consumer_seq",
        "header_block",
        "num_delivered",
        "payload",
        "reply",
        "stream_seq",
        "subject",
    )

    def __init__(
        self,
        subject: str,
        header_block: bytes,
        payload: bytes,
        stream_seq: int = 0,
        num_delivered: int = 1,
        reply: str = "",
        consumer_seq: int = 0,
    ) -> None:
        self.subject = subject
        self.header_block = header_block
        self.payload = payload
        self.stream_seq = stream_seq
        self.num_delivered = num_delivered
        self.reply = reply
        self.consumer_seq = consumer_seq
        self._fields: dict[str, str] | None = None

    @property
    def headers(self) -> Mapping[str, str]:
        """The first value of each header."""
        if self._fields is None:
            self._fields = {name: values[0] for name, values in wire.decode_headers(self.header_block).items()}
        return self._fields

    @property
    def time_us(self) -> int:
        """When the stream took the message, in microseconds by the server's clock; 0 outside streams."""
        parts = self.reply.split(".")
        if len(parts) < 9:
            return 0
        return int(parts[7] if len(parts) == 9 else parts[9]) // 1000

    def __repr__(self) -> str:
        return f"<Message {self.subject} {self.stream_seq} of {len(self.payload)} bytes>"


class PubAck(msgspec.Struct, frozen=True):
    """The stream has the message, on disk if it is a stream with file storage."""

    stream: str = ""
    seq: int = 0
    duplicate: bool = False
    error: dict[str, Any] | None = None


def delivered(op: Msg) -> Message:
    """The message of a delivery by a consumer; its numbers are in the reply subject."""
    parts = op.reply.split(".")
    if len(parts) == 9:
        return Message(op.subject, op.headers, op.payload, int(parts[5]), int(parts[4]), op.reply, int(parts[6]))
    if len(parts) >= 11:
        # With domain and account: $JS.ACK.domain.account.stream.consumer.deliveries.seq.…
        return Message(op.subject, op.headers, op.payload, int(parts[7]), int(parts[6]), op.reply, int(parts[8]))
    return Message(op.subject, op.headers, op.payload, reply=op.reply)


def subject_token(text: str) -> str:
    """A string as one token of a subject: whatever is not a letter, digit or ``$`` becomes ``_``."""
    return "".join(c if c.isascii() and (c.isalnum() or c == "$") else "_" for c in text)

"""The parts of a consumer's work: requests, deliveries under way, where they go, and what of it is saved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec

from dendrite_tw.jetstream.storage import Stored

if TYPE_CHECKING:
    from dendrite_tw.jetstream.consumers import Consumer


class Output(Protocol):
    """Where a consumer's deliveries go."""

    def deliver(self, destination: str, message: Stored, reply: str, headers_only: bool) -> None:
        """A message, under its own subject, to the subscribers of ``destination``."""

    def status(self, destination: str, code: int, description: str, fields: dict[str, str], reply: str) -> None:
        """A message without content: the end of a request, a heartbeat, a flow control question."""

    def reaches(self, destination: str, group: str) -> bool:
        """Whether anybody is subscribed to ``destination`` now."""

    def given_up(self, consumer: Consumer, seq: int, deliveries: int) -> None:
        """A message has been delivered as often as allowed, in vain."""

    def wake(self, consumer: Consumer, at: int) -> None:
        """`Consumer.tick` wants to be called at this time, earlier than was said before."""


class Pending:
    """A delivery that awaits its acknowledgement."""

    __slots__ = ("consumer_seq", "deadline")

    def __init__(self, consumer_seq: int, deadline: int) -> None:
        self.consumer_seq = consumer_seq
        self.deadline = deadline


class Pull:
    """A pull request that has not been filled yet."""

    __slots__ = (
        "batch",
        "deadline",
        "heartbeat",
        "heartbeat_at",
        "left_bytes",
        "max_bytes",
        "no_wait",
        "reply",
        "sent",
    )

    def __init__(
        self,
        reply: str,
        batch: int,
        deadline: int,
        *,
        no_wait: bool = False,
        max_bytes: int = 0,
        heartbeat: int = 0,
    ) -> None:
        self.reply = reply
        self.batch = batch
        self.deadline = deadline
        self.no_wait = no_wait
        self.max_bytes = self.left_bytes = max_bytes
        self.heartbeat = heartbeat
        self.heartbeat_at = 0
        self.sent = 0


class Snapshot(msgspec.Struct, array_like=True, frozen=True):
    """A consumer's progress, as it is written to disk."""

    name: str
    consumer_seq: int
    stream_seq: int
    floor_consumer: int
    floor_stream: int
    pending: list[tuple[int, int]]
    redelivered: dict[int, int]
    abandoned: dict[int, int] = {}

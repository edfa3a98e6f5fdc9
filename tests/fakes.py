"""Stand-ins that any component's tests may use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import msgspec

from dendrite_tw.federation_api.api import FederationRequest, NoFederation, RawAnswer


@dataclass
class FakeMessage:
    """A message as listeners get it."""

    subject: str
    payload: bytes
    stream_seq: int
    headers: dict[str, str] = field(default_factory=dict)
    time_us: int = 0


@dataclass
class FakeListening:
    """A subscription that can be stopped."""

    handlers: list[Callable[[Any], object]]
    handler: Callable[[Any], object]

    def stop(self) -> None:
        self.handlers.remove(self.handler)


class FakeQueue:
    """A queue that calls its listeners at once, and keeps what was published.

    While it is ``silent`` nobody hears anything; what they would have heard is kept in ``unheard``.
    """

    def __init__(self) -> None:
        self.published: list[tuple[str, bytes]] = []
        self.silent = False
        self.unheard: list[tuple[str, bytes]] = []
        self.time_us = 0
        """The queue's clock, which goes on by one with each message; a test may set it."""
        self._listeners: dict[str, list[Callable[[Any], object]]] = {}
        self._sequences: dict[str, int] = {}
        self._taken: set[tuple[str, str]] = set()

    def tell(self, stream: str, value: Any, subject_suffix: str = "") -> int:
        """Publish a struct; returns its sequence number in the stream."""
        return self.send(stream, msgspec.msgpack.encode(value), subject_suffix)

    def send(self, stream: str, payload: bytes, subject_suffix: str = "", headers: dict[str, str] | None = None) -> int:
        if self.silent:
            self.unheard.append((stream, payload))
            return 0
        number = self._sequences[stream] = self._sequences.get(stream, 0) + 1
        self.time_us += 1
        self.published.append((stream, payload))
        for handler in list(self._listeners.get(stream, ())):
            handler(FakeMessage(stream + subject_suffix, payload, number, headers or {}, self.time_us))
        return number

    def forget_ids(self) -> None:
        """Take messages of IDs that were taken before: it is long ago."""
        self._taken.clear()

    async def publish(
        self,
        stream: str,
        payload: bytes,
        *,
        subject_suffix: str = "",
        headers: dict[str, str] | None = None,
        msg_id: str | None = None,
    ) -> None:
        if msg_id is not None and (stream, msg_id) in self._taken:
            return
        self._taken.add((stream, msg_id or ""))
        self.send(stream, payload, subject_suffix, headers)

    def listen(
        self, stream: str, handler: Callable[[Any], object], on_begun: Callable[[], None] = lambda: None
    ) -> FakeListening:
        handlers = self._listeners.setdefault(stream, [])
        handlers.append(handler)
        on_begun()
        return FakeListening(handlers, handler)


class FakeFederation(NoFederation):
    """Other servers that answer what they were told to; whoever was told nothing cannot be reached.

    ``answers`` has what is answered by destination and path (decoded): a JSON object, or a status with one.
    """

    def __init__(self) -> None:
        self.answers: dict[tuple[str, str], Any] = {}
        self.asked: list[FederationRequest] = []

    @property
    def destinations(self) -> list[str]:
        """Who was asked so far."""
        return [request.destination for request in self.asked]

    async def ask(self, request: FederationRequest) -> RawAnswer:
        self.asked.append(request)
        answer = self.answers.get((request.destination, unquote(request.path)))
        if answer is None:
            return await super().ask(request)
        status, body = answer if isinstance(answer, tuple) else (200, answer)
        return RawAnswer(status, body if isinstance(body, bytes) else msgspec.json.encode(body))


class Hall:
    """A hall in which processes hear each other's echoes, at once."""

    def __init__(self) -> None:
        self.members: list[HallEchoes] = []

    def echoes(self) -> HallEchoes:
        """The `Echoes` of one more process."""
        self.members.append(HallEchoes(self))
        return self.members[-1]


class HallEchoes:
    """`Echoes` of one process in a `Hall`."""

    hearing = True

    def __init__(self, hall: Hall) -> None:
        self._hall = hall
        self._hearers: dict[str, list[Callable[[bytes], None]]] = {}

    def tell(self, topic: str, payload: bytes) -> None:
        for other in self._hall.members:
            if other is not self:
                for call in other._hearers.get(topic, ()):
                    call(payload)

    def hear(self, topic: str, call: Callable[[bytes], None]) -> None:
        self._hearers.setdefault(topic, []).append(call)

    def on_missed(self, call: Callable[[], None]) -> None:
        """Nothing is missed in the hall."""

"""Stand-ins that any component's tests may use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec


@dataclass
class FakeMessage:
    """A message as listeners get it."""

    subject: str
    payload: bytes
    stream_seq: int
    headers: dict[str, str] = field(default_factory=dict)


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
        self._listeners: dict[str, list[Callable[[Any], object]]] = {}
        self._sequences: dict[str, int] = {}

    def tell(self, stream: str, value: Any, subject_suffix: str = "") -> int:
        """Publish a struct; returns its sequence number in the stream."""
        return self.send(stream, msgspec.msgpack.encode(value), subject_suffix)

    def send(self, stream: str, payload: bytes, subject_suffix: str = "", headers: dict[str, str] | None = None) -> int:
        if self.silent:
            self.unheard.append((stream, payload))
            return 0
        number = self._sequences[stream] = self._sequences.get(stream, 0) + 1
        self.published.append((stream, payload))
        for handler in list(self._listeners.get(stream, ())):
            handler(FakeMessage(stream + subject_suffix, payload, number, headers or {}))
        return number

    async def publish(
        self,
        stream: str,
        payload: bytes,
        *,
        subject_suffix: str = "",
        headers: dict[str, str] | None = None,
        msg_id: str | None = None,
    ) -> None:
        self.send(stream, payload, subject_suffix, headers)

    def listen(self, stream: str, handler: Callable[[Any], object]) -> FakeListening:
        handlers = self._listeners.setdefault(stream, [])
        handlers.append(handler)
        return FakeListening(handlers, handler)

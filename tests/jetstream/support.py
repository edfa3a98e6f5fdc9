"""What the tests of the queue share: a queue on a fake clock, whose thread is the test itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import Clock

from dendrite_tw.jetstream.embedded import EmbeddedQueue
from dendrite_tw.jetstream.messages import Message

START = 1_700_000_000.0


def inline(call: Callable[..., Any], *args: Any) -> Deferred[Any]:
    """Run at once what would run in a thread."""
    return maybeDeferred(call, *args)


def settle(clock: Clock, turns: int = 50) -> None:
    """Let the turns of the reactor pass that need no time."""
    for _ in range(turns):
        clock.advance(0)


class Bench:
    """A running embedded queue under test."""

    def __init__(
        self, folder: Path | str = "", *, in_memory: bool = False, clock: Clock | None = None
    ) -> None:
        self.clock = clock or Clock()
        if clock is None:
            self.clock.advance(START)
        self.queue = EmbeddedQueue(self.clock, inline, folder, in_memory)
        self.client = self.queue.client
        self.result(self.queue.start())

    def result(self, work: Any) -> Any:
        """What a coroutine or promise comes to, without time passing; raises what it raises."""
        deferred = work if isinstance(work, Deferred) else Deferred.fromCoroutine(work)
        outcome: list[Any] = []
        deferred.addBoth(outcome.append)
        settle(self.clock)
        if not outcome:
            raise AssertionError("still waiting")
        if hasattr(outcome[0], "raiseException"):
            outcome[0].raiseException()
        return outcome[0]

    def publish(self, stream: str, payload: bytes, **more: Any) -> Any:
        return self.result(self.client.publish(stream, payload, **more))

    def settle(self) -> None:
        settle(self.clock)

    def advance(self, seconds: float, step: float = 0.5) -> None:
        """Let time pass, and everything that it sets off."""
        while seconds > 0:
            self.clock.advance(min(step, seconds))
            settle(self.clock, 10)
            seconds -= step

    def stop(self) -> None:
        self.result(self.queue.stop())

    def crash(self) -> None:
        """Go down as a killed process does: nothing more is written."""
        self.queue.engine.close_files()
        self.clock.calls.clear()


class Collector:
    """A handler that keeps what it got, and fails when told to."""

    def __init__(self) -> None:
        self.batches: list[list[Message]] = []
        self.failures = 0
        self.gate: Deferred[None] | None = None

    async def __call__(self, messages: list[Message]) -> None:
        if self.gate is not None:
            await self.gate
        if self.failures:
            self.failures -= 1
            raise RuntimeError("told to fail")
        self.batches.append(messages)

    @property
    def payloads(self) -> list[bytes]:
        return [message.payload for batch in self.batches for message in batch]

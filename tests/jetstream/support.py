"""What the tests of the queue share: a queue on a fake clock, whose thread is the test itself."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.jetstream.api import Api
from dendrite_tw.jetstream.embedded import EmbeddedQueue
from dendrite_tw.jetstream.engine import JetStream
from dendrite_tw.jetstream.messages import Message
from dendrite_tw.jetstream.server import Server, Settings
from dendrite_tw.jetstream.syncer import Syncer
from dendrite_tw.jetstream.wire import Connect, Msg, Op, Pub, Sub, encode_headers

START = 1_700_000_000.0


class DiskCase(SynchronousTestCase):
    """Tests that write files, but need not wait for the disk: what they lose is lost by their own hand."""

    def setUp(self) -> None:
        for name in ("fsync", "fdatasync"):
            self.patch(os, name, lambda descriptor: None)


def inline(call: Callable[..., Any], *args: Any) -> Deferred[Any]:
    """Run at once what would run in a thread."""
    return maybeDeferred(call, *args)


def settle(clock: Clock, turns: int = 50) -> None:
    """Let the turns of the reactor pass that need no time."""
    for _ in range(turns):
        clock.advance(0)


class Bench:
    """A running embedded queue under test."""

    def __init__(self, folder: Path | str = "", *, in_memory: bool = False, clock: Clock | None = None) -> None:
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


class Talker:
    """A client of a server by hand: what it sends are operations, what it hears are operations."""

    def __init__(self, server: Server, clock: Clock, **options: Any) -> None:
        self.clock = clock
        self.heard: list[Op] = []
        self.closed = False
        self.session = server.open(self.heard.append, self._close)
        self._answers = 0
        self.session.handle(Connect({"headers": True, "no_responders": True, **options}))
        self.heard.clear()
        if not self.closed:
            self.session.handle(Sub("_INBOX.>", "", "0"))

    def _close(self) -> None:
        self.closed = True
        self.session.closed()

    def subscribe(self, subject: str, sid: str, queue: str = "") -> None:
        self.session.handle(Sub(subject, queue, sid))

    def publish(
        self, subject: str, payload: bytes = b"", reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        block = encode_headers(headers.items()) if headers else b""
        self.session.handle(Pub(subject, reply, block, payload))
        settle(self.clock, 5)

    def take(self) -> list[Msg]:
        """The messages heard since the last time."""
        heard = [op for op in self.heard if isinstance(op, Msg)]
        self.heard.clear()
        return heard

    def payloads(self) -> list[bytes]:
        return [op.payload for op in self.take()]

    def ask(self, subject: str, payload: Any = b"", headers: dict[str, str] | None = None) -> Msg:
        """A request and its answer."""
        self._answers += 1
        reply = f"_INBOX.{self._answers}"
        before = len(self.heard)
        body = payload if isinstance(payload, bytes) else orjson.dumps(payload)
        self.publish(subject, body, reply, headers)
        for op in self.heard[before:]:
            if isinstance(op, Msg) and op.subject == reply:
                self.heard.remove(op)
                return op
        raise AssertionError("no answer")

    def api(self, request: str, body: Any = b"") -> dict[str, Any]:
        """A request of the JetStream API, and the object that answers it."""
        answer: dict[str, Any] = orjson.loads(self.ask(f"$JS.API.{request}", body).payload)
        return answer

    def refused(self, request: str, body: Any = b"") -> int:
        """The error code with which the API refuses a request."""
        answer = self.api(request, body)
        if "error" not in answer:
            raise AssertionError(answer)
        return int(answer["error"]["err_code"])

    def put(self, subject: str, payload: bytes = b"", **headers: str) -> dict[str, Any]:
        """Publish to a stream; ``Msg_Id`` stands for the header ``Nats-Msg-Id``."""
        named = {f"Nats-{name.replace('_', '-')}": value for name, value in headers.items()}
        answer: dict[str, Any] = orjson.loads(self.ask(subject, payload, named).payload or b"{}")
        return answer


class ServerBench:
    """A server with JetStream under test, and somebody who talks to it."""

    def __init__(self, folder: Path | None = None, clock: Clock | None = None, **settings: Any) -> None:
        self.clock = clock or Clock()
        if clock is None:
            self.clock.advance(START)
        self.server = Server(Settings(**settings))
        self.syncer = Syncer(inline, self.clock.callLater)
        self.engine = JetStream(self.server, self.clock, self.syncer, folder)
        self.api = Api(self.engine, self.server.settings.domain)
        self.engine.recover()
        self.engine.serve()
        self.engine.start()
        settle(self.clock)
        self.talker = Talker(self.server, self.clock)

    def advance(self, seconds: float, step: float = 0.1) -> None:
        while seconds > 0.0001:
            self.clock.advance(min(step, seconds))
            settle(self.clock, 3)
            seconds -= step

    def crash(self) -> None:
        self.engine.close_files()
        self.clock.calls.clear()

"""Processes of a deployment that are joined by a broker in memory, on a fake clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.jetstream.client import QueueClient
from dendrite_tw.jetstream.embedded import Link
from dendrite_tw.jetstream.wire import Op, Unsub
from dendrite_tw.links.echoes import NatsEchoes
from dendrite_tw.links.handle import handle
from dendrite_tw.links.nats import Calls
from dendrite_tw.links.routing import routed
from dendrite_tw.matrix.errors import MatrixError
from dendrite_tw.room_api.actions import to_the_end
from dendrite_tw.sharing.leases import NotMine
from dendrite_tw.sharing.shares import share_of
from tests.jetstream.support import ServerBench, settle


class Process:
    """One process: its client of the broker, its calls and its echoes."""

    def __init__(self, broker: Broker, name: str) -> None:
        self.broker = broker
        self.name = name
        self.client = QueueClient(broker.clock, inbox=f"_INBOX.{name}")
        self.held: set[int] = set()
        self.calls = Calls(self.client, broker.clock, lambda interface, share: share in self.held)
        self.echoes = NatsEchoes(self.client, name)
        self.link: Any = None
        self.desk = Desk(name)
        self.asks = handle(DeskAPI, self.calls.transport(DeskAPI, None))
        """The interface, as this process calls others by it."""

    def connect(self) -> None:
        bench = self.broker.bench
        self.link = Link(bench.server, self.client, bench.clock, bench.syncer)
        self.broker.settle()

    def lose(self) -> None:
        """The connection breaks, with all that was under way on it; so it looks to others if the process is killed."""
        self.link.cut()
        self.client.disconnected("the wire is cut")
        self.broker.settle()

    def serve(self, *rooms: str) -> None:
        """Answer what anybody may answer, and what is said of these rooms."""
        self.calls.serve(DeskAPI, self.desk)
        self.take(*rooms)

    def take(self, *rooms: str) -> None:
        for share in map(share_of, rooms):
            self.held.add(share)
            self.calls.serve_share(DeskAPI, self.desk, share)
        self.broker.settle()

    def give(self, room: str) -> Deferred[None]:
        return self.calls.withdraw_share(DeskAPI, share_of(room))

    def lose_ops(self, is_lost: Callable[[Op], bool]) -> None:
        """From now on some of what the broker sends to this process is lost."""
        handle = type(self.client).handle
        self.client.handle = lambda op: None if is_lost(op) else handle(self.client, op)  # type: ignore[method-assign]


class Broker:
    """A NATS server in memory, and the processes around it."""

    def __init__(self, **settings: Any) -> None:
        self.clock = Clock()
        self.clock.advance(1_700_000_000.0)
        self.bench = ServerBench(None, self.clock, **settings)
        # Who listens to everybody would keep the broker from saying that nobody is there.
        self.bench.talker.session.handle(Unsub("0"))

    def process(self, name: str) -> Process:
        made = Process(self, name)
        made.connect()
        return made

    def settle(self) -> None:
        settle(self.clock)

    def advance(self, seconds: float, step: float = 0.125) -> None:
        self.bench.advance(seconds, step)


class DeskAPI(Protocol):
    """Something to be asked."""

    async def act(self, word: str, times: int = 1) -> str: ...

    async def finish(self, word: str) -> str: ...

    async def replace(self, data: bytes, size: int) -> bytes: ...

    @routed(repeat=True)
    async def ask(self, word: str) -> str: ...

    @routed(repeat=True)
    async def load(self, size: int) -> bytes: ...

    @routed(share="room_id")
    async def write(self, room_id: str, word: str = "") -> str: ...


class Desk:
    """Answers with its name and the word; the word may say how."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.begun: list[str] = []
        self.done: list[str] = []
        self.gives_up = False
        """Whether it finds that what it is told to write to is another's by now."""
        self.gates: list[Deferred[None]] = []
        """What those wait for who were told to wait."""

    async def act(self, word: str, times: int = 1) -> str:
        self.begun.append(word)
        if word == "refused":
            raise MatrixError(403, "M_FORBIDDEN", "No.", left=3)
        if word == "broken":
            raise ZeroDivisionError
        if word.startswith("wait"):
            self.gates.append(Deferred())
            await self.gates[-1]
        self.done.append(word)
        return f"{self.name} {word}" * times

    @to_the_end
    async def finish(self, word: str) -> str:
        return await self.act(word)

    async def replace(self, data: bytes, size: int) -> bytes:
        self.begun.append(f"{len(data)} bytes")
        return bytes(size)

    async def ask(self, word: str) -> str:
        return await self.act(word)

    async def load(self, size: int) -> bytes:
        self.begun.append(f"load {size}")
        return bytes(size)

    async def write(self, room_id: str, word: str = "") -> str:
        if self.gives_up:
            raise NotMine
        return await self.act(word or room_id)

    def open(self) -> None:
        """Let those go on who wait."""
        while self.gates:
            gate = self.gates.pop()
            if not gate.called:
                gate.callback(None)


class CallCase(SynchronousTestCase):
    """Tests with a process that calls, and others that answer."""

    settings: ClassVar[dict[str, Any]] = {}

    def setUp(self) -> None:
        self.broker = Broker(**self.settings)
        self.caller = self.broker.process("caller")

    def answerer(self, name: str, *rooms: str) -> Process:
        process = self.broker.process(name)
        process.serve(*rooms)
        return process

    def begin(self, call: Any) -> Deferred[Any]:
        deferred = call if isinstance(call, Deferred) else Deferred.fromCoroutine(call)
        self.broker.settle()
        return deferred

    def result(self, call: Any) -> Any:
        return self.successResultOf(self.begin(call))

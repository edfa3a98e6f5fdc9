"""Processes of a deployment that are joined by a broker in memory, on a fake clock."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock

from dendrite_tw.jetstream.client import QueueClient
from dendrite_tw.jetstream.embedded import Link
from dendrite_tw.links.echoes import NatsEchoes
from dendrite_tw.links.nats import Calls
from tests.jetstream.support import ServerBench, settle


class Process:
    """One process: its client of the broker, its calls and its echoes."""

    def __init__(self, broker: Broker, name: str) -> None:
        self.broker = broker
        self.name = name
        self.client = QueueClient(broker.clock, inbox=f"_INBOX.{name}")
        self.held: set[tuple[str, int]] = set()
        self.calls = Calls(self.client, broker.clock, lambda interface, share: (interface, share) in self.held)
        self.echoes = NatsEchoes(self.client, name)
        self.link: Any = None

    def connect(self) -> None:
        bench = self.broker.bench
        self.link = Link(bench.server, self.client, bench.clock, bench.syncer)
        self.broker.settle()

    def lose(self) -> None:
        """The connection breaks, with all that was under way on it."""
        self.link.cut()
        self.client.disconnected("the wire is cut")
        self.broker.settle()


class Broker:
    """A NATS server in memory, and the processes around it."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.clock.advance(1_700_000_000.0)
        self.bench = ServerBench(None, self.clock)

    def process(self, name: str) -> Process:
        made = Process(self, name)
        made.connect()
        return made

    def settle(self) -> None:
        settle(self.clock)

    def advance(self, seconds: float, step: float = 0.1) -> None:
        self.bench.advance(seconds, step)

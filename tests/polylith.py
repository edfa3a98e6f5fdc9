"""A whole deployment in the test's process: two processes of each component, their broker and their database.

`Deployment` stands where a test of the whole server has its `Server`.  Each process is made as `twistd` makes it, with
a clock that the test holds, and its own connections to one PostgreSQL database.  Requests go by turns to the listeners
of the processes that answer them, and now and then to another one, which hands them on.
"""

from __future__ import annotations

import itertools
import os
import re
from collections import Counter
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import psycopg2
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from dendrite_tw.assemble import polylith
from dendrite_tw.components import COMPONENTS
from dendrite_tw.config import Config
from dendrite_tw.front.ways import component_of
from dendrite_tw.jetstream.tcp import ServerFactory
from dendrite_tw.web.routes import Route
from dendrite_tw.world import World
from tests.database.cluster import cluster
from tests.harness import Web
from tests.jetstream.support import ServerBench

EACH = 2
"""Processes of each component."""

STOPPED = ("client_api", "sync_api", "media_api", "federation_api", "room_server", "user_api")
"""The components in the order in which they are stopped."""

ASTRAY = 5
"""One request of so many goes to a process that has to hand it on."""

TURNS = 5000
"""Turns of the reactor in which everything must have come to rest."""

TIME = """
CREATE TABLE test_time (seconds DOUBLE PRECISION);
INSERT INTO test_time VALUES (0);
CREATE FUNCTION clock_timestamp() RETURNS TIMESTAMPTZ LANGUAGE SQL AS 'SELECT to_timestamp(seconds) FROM test_time';
"""
"""The database's clock is the test's."""

STEP = 0.25
"""Seconds that pass at once: processes renew their leases more often than every second."""


class Wire:
    """One side of a connection in memory: what is written arrives in the next turn, in order."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._out: list[bytes] = []
        self._flushing = False
        self.disconnecting = False
        self.other: Wire
        self.protocol: Any

    def write(self, data: bytes) -> None:
        self._out.append(data)
        if not self._flushing:
            self._flushing = True
            self._clock.callLater(0, self._flush)

    def writeSequence(self, data: Any) -> None:
        self.write(b"".join(data))

    def _flush(self) -> None:
        self._flushing = False
        out, self._out = self._out, []
        if not self.other.disconnecting:
            self.other.protocol.dataReceived(b"".join(out))

    def loseConnection(self) -> None:
        if not self.disconnecting:
            self._flush()
            self._clock.callLater(0, self._end)

    abortConnection = loseConnection

    def _end(self) -> None:
        for side in (self, self.other):
            if not side.disconnecting:
                side.disconnecting = True
                side.protocol.connectionLost(Failure(ConnectionDone()))

    def setTcpNoDelay(self, enabled: bool) -> None:
        return None

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        return None

    def unregisterProducer(self) -> None:
        return None

    def getPeer(self) -> IPv4Address:
        return IPv4Address("TCP", "127.0.0.1", 4222)

    getHost = getPeer


class Broker:
    """A NATS server in memory, at whatever address is connected to."""

    prefix = "Dendrite"

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.bench = ServerBench(None, clock)
        # It hears all inboxes, so that messages for who is gone would count as received.
        self.bench.talker.session.closed()

    def connectTCP(self, host: str, port: int, factory: Any, timeout: float = 30, bindAddress: Any = None) -> Any:
        here, there = Wire(self.clock), Wire(self.clock)
        here.other, there.other = there, here
        here.protocol = factory.buildProtocol(None)
        there.protocol = ServerFactory(self.bench.server, self.clock, self.bench.syncer.kick).buildProtocol(None)

        def connect() -> None:
            here.protocol.makeConnection(here)
            there.protocol.makeConnection(there)

        self.clock.callLater(0, connect)
        return here

    def exchange(self) -> bool:
        """Whether anything came that waited for nobody's turn."""
        return False

    def close(self) -> None:
        """It is gone with the test."""


def broker_of(clock: Clock) -> Any:
    """The broker that the environment asks for: a real one where ``TEST_POLYLITH`` is ``nats``."""
    if os.environ.get("TEST_POLYLITH") == "nats":
        from tests.nats_wire import RealBroker

        return RealBroker(clock)
    return Broker(clock)


_around: WeakKeyDictionary[Clock, list[Around]] = WeakKeyDictionary()
"""All that is under way on a clock."""


class Around:
    """What a deployment stands on: a broker, a database, and the time, which both have from the test's clock."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        _around.setdefault(clock, []).append(self)
        self.broker: Any = broker_of(clock)
        self._dsn = cluster().new(",pg_catalog")
        self._connection = psycopg2.connect(self._dsn)
        self._connection.autocommit = True
        self._cursor = self._connection.cursor()
        self._cursor.execute(TIME)
        self._tell_time()

    def config(self, text: str) -> str:
        """The configuration of a server with everything in itself, for one that is to stand on this."""
        text = re.sub(r'"file:[^"]+"', f'"{self._dsn}"', text)
        queue = f"addresses: [nats.test], topic_prefix: {self.broker.prefix}"
        return re.sub(r"in_memory: true, storage_path: [^ }]*", queue, text)

    def pump(self, seconds: float) -> None:
        """Let time pass, and all happen that follows from it."""
        self._settle()
        while seconds > 0:
            self.clock.advance(min(seconds, STEP))
            for around in _around[self.clock]:
                around._tell_time()
            seconds -= STEP
            self._settle()

    def _settle(self) -> None:
        for _ in range(TURNS):
            if any(call.getTime() <= self.clock.seconds() for call in self.clock.getDelayedCalls()):
                self.clock.advance(0)
                continue
            moved = [around.broker.exchange() for around in _around[self.clock]]
            if not any(moved):
                return
        raise AssertionError("it goes round and round")

    def _tell_time(self) -> None:
        self._cursor.execute("UPDATE test_time SET seconds = %s", (self.clock.seconds(),))

    def rows(self, sql: str) -> list[Any]:
        """What SQL finds in the database."""
        self._cursor.execute(sql)
        return self._cursor.fetchall()

    def close(self) -> None:
        _around[self.clock].remove(self)
        self.broker.close()
        self._connection.close()


class Deployment:
    """Stands for a `Server`: ``processes`` are those of each component."""

    def __init__(self, config: Config, world: Callable[[str], World], clock: Clock) -> None:
        self.clock = clock
        self.processes: dict[str, list[Any]] = {
            component: [
                polylith(config, world(f"{component} {number}"), frozenset([component])) for number in range(EACH)
            ]
            for component in COMPONENTS
        }
        self.all = [process for processes in self.processes.values() for process in processes]
        self.sites = {process: process.factory(clock) for process in self.all}
        self.parts = View(self.processes)
        self.started: Deferred[None] = Deferred()
        self._turn = itertools.count()

    def startService(self) -> None:
        for process in self.all:
            process.startService()
        waiting = DeferredList([process.started for process in self.all], fireOnOneErrback=True)
        waiting.addCallbacks(lambda _: self.started.callback(None), self.started.errback)

    def stopService(self) -> Deferred[Any]:
        """Those first that ask the others."""
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        for component in STOPPED:
            await DeferredList([process.stopService() for process in self.processes[component]], fireOnOneErrback=True)

    def web(self) -> Web:
        return Listeners(self, self.clock)

    def webs(self) -> list[Web]:
        """Each process's own listener."""
        return [Listener(site, self.clock) for site in self.sites.values()]

    def factory(self, reactor: Any) -> Factory:
        """What other servers connect to."""
        return Incoming(self)

    def site_for(self, method: str, path: str) -> Any:
        """Whose listener is asked next."""
        turn = next(self._turn)
        component = component_of(method.encode(), path.partition("?")[0].encode()) or "client_api"
        if turn % ASTRAY == ASTRAY - 1:
            component = COMPONENTS[turn // ASTRAY % len(COMPONENTS)]
        processes = self.processes[component]
        return self.sites[processes[turn % len(processes)]]


class View:
    """What tests look at of `assemble.Parts`: the first process of each component."""

    def __init__(self, processes: dict[str, list[Any]]) -> None:
        self._first = {component: made[0].parts for component, made in processes.items()}
        self._federations = [process.parts.federating for process in processes["federation_api"]]

    @property
    def routes(self) -> list[Route]:
        own: list[Route] = self._first["client_api"].rows[""]
        return own + [row for component, parts in self._first.items() for row in parts.rows.get(component, [])]

    @property
    def federating(self) -> Any:
        return self._first["federation_api"].federating and Federating(self._federations)

    @property
    def queue(self) -> Any:
        return self._first["client_api"].queue

    @property
    def media(self) -> Any:
        return self._first["media_api"].media

    @property
    def others(self) -> Any:
        return self._first["client_api"].others


class Federating:
    """What tests look at of `federating.Federating`, of all processes together."""

    def __init__(self, parts: list[Any]) -> None:
        self._parts = parts
        self.component = parts[0].component
        self.inbound = self.inbox = self

    @property
    def pdus(self) -> Counter[tuple[str, ...]]:
        return sum((Counter(one.inbound.pdus) for one in self._parts), Counter())

    @property
    def edus(self) -> Counter[tuple[str, ...]]:
        return sum((Counter(one.inbound.edus) for one in self._parts), Counter())

    @property
    def waiting(self) -> int:
        return sum(one.inbound.inbox.waiting for one in self._parts)


class Listener(Web):
    """Sends requests to one listener."""

    def __init__(self, site: Any, clock: Clock) -> None:
        self.clock = clock
        self.site = site


class Listeners(Web):
    """Sends requests to the listeners of a deployment."""

    def __init__(self, deployment: Deployment, clock: Clock) -> None:
        self.clock = clock
        self._deployment = deployment

    def site_for(self, method: str, path: str) -> Any:
        return self._deployment.site_for(method, path)


class Incoming(Factory):
    """Connections of other servers go to the processes for them by turns."""

    noisy = False

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment

    def buildProtocol(self, addr: Any) -> Any:
        return self._deployment.site_for("GET", "/_matrix/federation/").buildProtocol(addr)

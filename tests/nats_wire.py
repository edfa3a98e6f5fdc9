"""A real NATS server for tests whose clock stands still: sockets that are waited for.

Each process of a deployment has a socket of its own.  `RealBroker.exchange` asks the server on all of them whether it
is there; what it had to say before is then here.  Once nothing comes in a whole round, and what is asked of its streams
is answered, all is quiet.
"""

from __future__ import annotations

import atexit
import itertools
import select
import shutil
import socket
import subprocess
import tempfile
import time
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from bench.processes import free_port
from dendrite_tw.jetstream.catalogue import CATALOGUE
from tests.interop.test_jetstream import real_server, wait_for_port

PATIENCE = 10.0
"""Seconds of real time in which the server must answer."""

STREAMS = 0.3
"""Seconds of real time that streams may take to store and to deliver."""

MOMENT = 0.003
"""Seconds of real time after which what was stored has been delivered as well."""

_numbers = itertools.count(1)
_port = 0


def server_port() -> int:
    """Where the server listens that all tests of this process share."""
    global _port
    if not _port:
        _port = free_port()
        folder = tempfile.mkdtemp(prefix="nats-")
        command = [real_server(), "-a", "127.0.0.1", "-p", str(_port), "-js", "-sd", folder]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        atexit.register(shutil.rmtree, folder, True)
        atexit.register(process.wait)
        atexit.register(process.kill)
        wait_for_port(_port)
    return _port


class Socket:
    """A connection to the server: what is written goes at once, what comes is read when the test says so."""

    disconnecting = False

    def __init__(self, broker: RealBroker, protocol: Any) -> None:
        self._broker = broker
        self.protocol = protocol
        self.socket = socket.create_connection(("127.0.0.1", server_port()))
        self.pings = 0
        self._tail = b""

    def fileno(self) -> int:
        return self.socket.fileno()

    @property
    def admitted(self) -> bool:
        return bool(self.protocol._admitted)

    @property
    def asked(self) -> bool:
        """Whether it awaits an answer about streams."""
        return bool(self.protocol._queue.client._asked)

    def ping(self) -> None:
        self.pings += 1
        self.write(b"PING\r\n")

    def read(self) -> bool:
        """Take what has come; whether it is more than answers to `ping`."""
        data = self.socket.recv(1 << 20)
        if not data:
            self.loseConnection()
            return True
        answered = (self._tail + data).count(b"PONG\r\n")
        self._tail = (self._tail + data)[-5:] if not data.endswith(b"PONG\r\n") else b""
        self.pings = max(0, self.pings - answered)
        self.protocol.dataReceived(data)
        return len(data) > 6 * answered

    # --- the transport of the protocol ---

    def write(self, data: bytes) -> None:
        if not self.disconnecting:
            self.socket.sendall(data)

    def loseConnection(self) -> None:
        if not self.disconnecting:
            self.disconnecting = True
            self._broker.sockets.remove(self)
            self.socket.close()
            self._broker.clock.callLater(0, self.protocol.connectionLost, Failure(ConnectionDone()))

    abortConnection = loseConnection

    def setTcpNoDelay(self, enabled: bool) -> None:
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, enabled)

    def getPeer(self) -> IPv4Address:
        return IPv4Address("TCP", "127.0.0.1", server_port())


class Connector:
    """What `connectTCP` returns."""

    def disconnect(self) -> None:
        """Connected at once: there is nothing to give up."""


class RealBroker:
    """The server, at whatever address is connected to, with streams of its own for each deployment."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.prefix = f"T{next(_numbers)}"
        self.sockets: list[Socket] = []

    def connectTCP(self, host: str, port: int, factory: Any, timeout: float = 30, bindAddress: Any = None) -> Any:
        def connect() -> None:
            protocol = factory.buildProtocol(None)
            made = Socket(self, protocol)
            self.sockets.append(made)
            protocol.makeConnection(made)

        self.clock.callLater(0, connect)
        return Connector()

    def exchange(self) -> bool:
        """Hand over what the server has for anybody; whether there was anything."""
        moved = self._round()
        until = time.monotonic() + STREAMS
        while not moved and any(one.asked for one in self.sockets) and time.monotonic() < until:
            moved = self._wait(0.02)
        if not moved:
            time.sleep(MOMENT)
            moved = self._round()
        return moved

    def _round(self) -> bool:
        moved = False
        if any(not one.admitted for one in self.sockets):
            moved = self._wait(0.5)
        for one in self.sockets:
            if one.admitted:
                one.ping()
        until = time.monotonic() + PATIENCE
        while any(one.pings for one in self.sockets):
            if time.monotonic() > until:
                raise AssertionError("the NATS server does not answer")
            moved = self._wait(1.0) or moved
        return moved

    def _wait(self, seconds: float) -> bool:
        readable, _, _ = select.select(self.sockets, [], [], seconds) if self.sockets else ([], [], [])
        moved = [one.read() for one in readable]
        return any(moved)

    def close(self) -> None:
        """Part, and delete the streams."""
        for one in list(self.sockets):
            one.socket.close()
        self.sockets.clear()
        with socket.create_connection(("127.0.0.1", server_port())) as last:
            last.sendall(b'CONNECT {"verbose":false}\r\n')
            for name in CATALOGUE:
                last.sendall(f"PUB $JS.API.STREAM.DELETE.{self.prefix}{name} 0\r\n\r\n".encode())
            last.sendall(b"PING\r\n")
            while b"PONG" not in last.recv(4096):
                """It greets before it answers."""

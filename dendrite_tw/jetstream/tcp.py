"""The server on TCP: bytes to operations and back, with patience for slow clients that has an end.

Reference: NATS documentation, "Client Protocol".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from dendrite_tw.jetstream import wire
from dendrite_tw.jetstream.server import Server, Session
from dendrite_tw.jetstream.wire import Op, Parser, ProtocolError

MAX_PENDING: Final = 64 * 1024 * 1024
"""Bytes that may wait for a client that does not read; then it is cut off."""
MAX_CONNECTIONS: Final = 65_536
AUTH_SECONDS: Final = 2.0
PING_SECONDS: Final = 120.0
MAX_PINGS_OUT: Final = 2

TURN: Final = 64
"""Operations after which the disk may begin with what they brought, while the others of an arrival are handled."""

log = Logger(namespace="dendrite_tw.jetstream.tcp")


@implementer(IPushProducer)
class ServerConnection(Protocol):
    """One client of the server."""

    def __init__(self, server: Server, clock: IReactorTime, turn_done: Callable[[], None]) -> None:
        self._server = server
        self._clock = clock
        self._turn_done = turn_done
        self._parser = Parser(server.settings.max_payload)
        self._session: Session | None = None
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._paused = False
        self._flushing = False
        self._closing = False
        self._timer: IDelayedCall | None = None

    def connectionMade(self) -> None:
        assert self.transport is not None
        transport: Any = self.transport
        if len(self._server.sessions) >= MAX_CONNECTIONS:
            self.transport.write(wire.encode(wire.Err("maximum connections exceeded")))
            self.transport.loseConnection()
            return
        transport.setTcpNoDelay(True)
        transport.registerProducer(self, True)
        self._session = self._server.open(self._send, self._hang_up)
        self._flush()
        wait = AUTH_SECONDS if self._server.demands_login else PING_SECONDS
        self._timer = self._clock.callLater(wait, self._check)

    def dataReceived(self, data: bytes) -> None:
        session = self._session
        if session is None or self._closing:
            return
        count = 0
        try:
            for op in self._parser.feed(data):
                session.handle(op)
                if self._closing:
                    return
                count += 1
                if not count % TURN:
                    self._turn_done()
        except ProtocolError as error:
            session.refuse(str(error))
        self._turn_done()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._closing = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._session is not None:
            self._session.closed()
            self._session = None
        self._out.clear()

    # --- sending ---

    def _send(self, op: Op) -> None:
        if self._closing:
            return
        data = wire.encode(op)
        self._out.append(data)
        self._out_bytes += len(data)
        if self._paused:
            if self._out_bytes > MAX_PENDING:
                self._cut_off()
        elif not self._flushing:
            self._flushing = True
            self._clock.callLater(0, self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if self._out and not self._paused and self.transport is not None:
            out, self._out = self._out, []
            self._out_bytes = 0
            self.transport.write(b"".join(out))

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused = False
        self._flush()

    def stopProducing(self) -> None:
        self._closing = True

    def _cut_off(self) -> None:
        """The client does not read what it subscribed to."""
        log.warn("A client is too slow, and is cut off")
        self._closing = True
        self._out.clear()
        transport: Any = self.transport
        if transport is not None:
            transport.abortConnection()

    def _hang_up(self) -> None:
        if not self._closing:
            self._flush()
            self._closing = True
            transport: Any = self.transport
            if transport is not None:
                transport.unregisterProducer()
                transport.loseConnection()

    # --- patience ---

    def _check(self) -> None:
        """Is the client admitted, and does it still answer?"""
        self._timer = None
        session = self._session
        if session is None or self._closing:
            return
        if not session.is_admitted:
            session.refuse("Authentication Timeout")
            return
        if session.pings_out >= MAX_PINGS_OUT:
            session.refuse("Stale Connection")
            return
        session.pings_out += 1
        self._send(wire.PING)
        self._timer = self._clock.callLater(PING_SECONDS, self._check)


class ServerFactory(Factory):
    """Accepts clients for a server.  ``turn_done`` is called when the bytes of one arrival have been
    handled.
    """

    noisy = False

    def __init__(self, server: Server, clock: IReactorTime, turn_done: Callable[[], None]) -> None:
        self._server = server
        self._clock = clock
        self._turn_done = turn_done

    def buildProtocol(self, addr: object) -> ServerConnection:
        return ServerConnection(self._server, self._clock, self._turn_done)

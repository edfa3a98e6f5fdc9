"""The queue on a NATS server elsewhere: connect, reconnect for ever, and carry the client's operations.

Any of the configured servers will do; when a connection is lost the next one is tried.  Where none is to be had they
are tried again after pauses that grow from `FIRST_RETRY_SECONDS` to `RETRY_SECONDS`, with some jitter.  Until there is
a connection the client answers every question with `UnavailableError`, and `RemoteQueue.degraded` says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import ClientFactory, Protocol, connectionDone
from twisted.internet.ssl import CertificateOptions, optionsForClientTLS
from twisted.logger import Logger
from twisted.python.failure import Failure

from dendrite_tw import __version__
from dendrite_tw.jetstream import wire
from dendrite_tw.jetstream.addresses import Address, parse_address
from dendrite_tw.jetstream.catalogue import CATALOGUE, DEFAULT_PREFIX
from dendrite_tw.jetstream.client import QueueClient
from dendrite_tw.jetstream.credentials import Credentials
from dendrite_tw.jetstream.wire import Op, Parser, ProtocolError
from dendrite_tw.writing import write_at_once

FIRST_RETRY_SECONDS: Final = 0.25
RETRY_SECONDS: Final = 2.0
JITTER: Final = 0.5
"""The part of a pause that chance adds at the most."""
CONNECT_SECONDS: Final = 10.0
PING_SECONDS: Final = 10.0
MAX_PINGS_OUT: Final = 2
STOP_SECONDS: Final = 5.0
"""How long a server may take to part from us."""
MAX_MESSAGE: Final = 64 * 1024 * 1024

log = Logger(namespace="dendrite_tw.jetstream.remote")


class Connection(Protocol):
    """One connection to a server: introduction, TLS, login, and then the client's operations."""

    def __init__(self, queue: RemoteQueue, address: Address) -> None:
        self._queue = queue
        self._address = address
        self._parser = Parser(MAX_MESSAGE, max_line=wire.MAX_JSON_LINE)
        self._introduced = False
        self._admitted = False
        self._out: list[bytes] = []
        self._flushing = False
        self._receiving = False
        self._pings_out = 0
        self._timer: IDelayedCall | None = None

    def connectionMade(self) -> None:
        transport: Any = self.transport
        transport.setTcpNoDelay(True)
        self._timer = self._queue.clock.callLater(CONNECT_SECONDS, self._give_up)

    def dataReceived(self, data: bytes) -> None:
        self._receiving = True
        try:
            for op in self._parser.feed(data):
                try:
                    self._handle(op)
                except Exception:
                    # One message that cannot be dealt with must not cost all others their connection.
                    log.failure("The queue's client failed on {kind}", kind=type(op).__name__)
        except ProtocolError as error:
            log.error("{address} does not speak NATS: {error}", address=self._address, error=str(error))
            self._hang_up()
        self._queue.client.flush()
        self._receiving = False
        self._flush()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None
        self._out.clear()
        self._queue.lost(self, reason.getErrorMessage(), was_admitted=self._admitted)

    def _handle(self, op: Op) -> None:
        kind = type(op)
        if kind is wire.Msg:
            self._queue.client.handle(op)
        elif isinstance(op, wire.Info):
            self._queue.client.handle(op)
            if not self._introduced:
                self._introduced = True
                self._introduce(op.options)
        elif kind is wire.Ping:
            self.send(wire.PONG)
        elif kind is wire.Pong:
            self._pings_out = 0
            if not self._admitted:
                self._admit()
        elif isinstance(op, wire.Err):
            log.error("{address} says: {message}", address=self._address, message=op.message)

    def _introduce(self, options: dict[str, Any]) -> None:
        """Answer the server's introduction, on TLS if it or the address asks for that."""
        address, credentials = self._address, self._queue.credentials
        if address.tls or options.get("tls_required"):
            transport: Any = self.transport
            transport.startTLS(self._queue.tls_options(address.host))
        mine: dict[str, Any] = {
            "verbose": False,
            "pedantic": False,
            "headers": True,
            "no_responders": True,
            "protocol": 1,
            "lang": "python-twisted",
            "version": __version__,
            "name": "dendrite_tw",
        }
        if credentials is not None:
            mine["jwt"] = credentials.jwt
            mine["sig"] = credentials.sign(str(options.get("nonce") or ""))
        if address.token:
            mine["auth_token"] = address.token
        elif address.user:
            mine.update({"user": address.user, "pass": address.password})
        self.send(wire.Connect(mine))
        self.send(wire.PING)

    def _admit(self) -> None:
        """The server has answered the ping behind the login."""
        self._admitted = True
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._queue.clock.callLater(PING_SECONDS, self._ping)
        self._queue.admitted(self)

    def _ping(self) -> None:
        self._timer = None
        if self._pings_out >= MAX_PINGS_OUT:
            self._give_up()
            return
        self._pings_out += 1
        self.send(wire.PING)
        self._timer = self._queue.clock.callLater(PING_SECONDS, self._ping)

    def _give_up(self) -> None:
        self._timer = None
        log.warn("{address} does not answer", address=self._address)
        self.abort()

    def send(self, op: Op) -> None:
        """Send an operation; those of one turn of the reactor go in one write."""
        self._out.append(wire.encode(op))
        if not (self._flushing or self._receiving):
            self._flushing = True
            self._queue.clock.callLater(0, self._flush_later)

    def _flush_later(self) -> None:
        self._flushing = False
        self._flush()

    def _flush(self) -> None:
        if self._out and self.transport is not None:
            out, self._out = self._out, []
            write_at_once(self.transport, out[0] if len(out) == 1 else b"".join(out))

    def _hang_up(self) -> None:
        if self.transport is not None:
            self._flush()
            self.transport.loseConnection()

    def close(self) -> None:
        """Let what was sent go out, and part."""
        self._hang_up()

    def abort(self) -> None:
        """Part at once."""
        transport: Any = self.transport
        if transport is not None:
            transport.abortConnection()


class _Factory(ClientFactory):
    noisy = False

    def __init__(self, queue: RemoteQueue, address: Address) -> None:
        self._queue = queue
        self._address = address

    def buildProtocol(self, addr: object) -> Connection:
        return Connection(self._queue, self._address)

    def clientConnectionFailed(self, connector: object, reason: Failure) -> None:
        self._queue.lost(None, reason.getErrorMessage(), was_admitted=False)


class RemoteQueue(Service):
    """The client of external NATS servers, as a service.

    ``clock`` tells the time (`IReactorTime`) and, unless there is a ``tcp`` for that, connects (`IReactorTCP`);
    ``inbox`` is a subject of this process alone, such as ``_INBOX.`` and some random letters; ``chance`` is a
    number from 0 to 1 at each call.
    """

    def __init__(
        self,
        clock: Any,
        addresses: Sequence[str],
        *,
        inbox: str,
        chance: Callable[[], float],
        topic_prefix: str = DEFAULT_PREFIX,
        credentials: Credentials | None = None,
        verify_tls: bool = True,
        domain: str = "",
        tcp: Any = None,
    ) -> None:
        if not addresses:
            raise ValueError("no addresses of NATS servers")
        self.clock = clock
        self.credentials = credentials
        api = f"$JS.{domain}.API" if domain else "$JS.API"
        self.client = QueueClient(clock, inbox=inbox, prefix=topic_prefix, streams=CATALOGUE, api_prefix=api)
        self.client.on_streams_lost = self._declare_again
        self._tcp = tcp or clock
        self._addresses = [parse_address(text) for text in addresses]
        self._verify_tls = verify_tls
        self._chance = chance
        self._attempts = 0
        self._rounds = 0
        """How often all servers were tried in vain."""
        self._connector: Any = None
        self._connection: Connection | None = None
        self._retry: IDelayedCall | None = None
        self._running = False
        self._gone: Deferred[None] | None = None

    @property
    def degraded(self) -> list[str]:
        """What is wrong at present."""
        if self.client.ready:
            return []
        return ["no connection to NATS" if self._connection is None else "NATS does not take the streams"]

    def tls_options(self, host: str) -> Any:
        if self._verify_tls:
            return optionsForClientTLS(host)
        return CertificateOptions(verify=False)

    # --- life ---

    async def start(self) -> None:
        """Begin to connect; the client tells when it is ready (`QueueClient.on_ready`)."""
        self._running = True
        self._connect()

    async def stop(self) -> None:
        """Part from the server."""
        self._running = False
        if self._retry is not None and self._retry.active():
            self._retry.cancel()
        connection, connector = self._connection, self._connector
        if connection is not None:
            self._gone = Deferred()
            timer = self.clock.callLater(STOP_SECONDS, connection.abort)
            connection.close()
            await self._gone
            if timer.active():
                timer.cancel()
        elif connector is not None:
            connector.disconnect()
        self.client.close()

    def startService(self) -> None:
        super().startService()
        Deferred.fromCoroutine(self.start()).addErrback(lambda failure: log.failure("The queue did not start", failure))

    def stopService(self) -> Deferred[None]:
        super().stopService()
        return Deferred.fromCoroutine(self.stop())

    # --- connections ---

    def _connect(self) -> None:
        self._retry = None
        address = self._addresses[self._attempts % len(self._addresses)]
        self._attempts += 1
        factory = _Factory(self, address)
        self._connector = self._tcp.connectTCP(address.host, address.port, factory, timeout=CONNECT_SECONDS)

    def admitted(self, connection: Connection) -> None:
        """A connection is usable."""
        if not self._running:
            connection.close()
            return
        self._connection = connection
        self.client.connected(connection.send)
        self._declare(connection)

    def _declare(self, connection: Connection) -> None:
        def failed(failure: Failure) -> None:
            if self._connection is connection and self._running:
                log.warn("The streams cannot be declared: {error}", error=failure.getErrorMessage())
                self._retry = self.clock.callLater(self._pause(), self._declare, connection)

        def declared(result: None) -> None:
            self._rounds = 0

        if self._connection is connection:
            Deferred.fromCoroutine(self.client.declare()).addCallbacks(declared, failed)

    def _declare_again(self) -> None:
        """Somebody deleted a stream."""
        log.warn("NATS has lost a stream")
        if self._connection is not None:
            self._declare(self._connection)

    def _pause(self) -> float:
        """How long to wait before the next round."""
        pause: float = min(FIRST_RETRY_SECONDS * 2 ** min(self._rounds, 10), RETRY_SECONDS)
        self._rounds += 1
        return pause * (1 + JITTER * self._chance())

    def lost(self, connection: Connection | None, reason: str, *, was_admitted: bool) -> None:
        """A connection has ended, or was never made."""
        if connection is not None and connection is self._connection:
            self._connection = self._connector = None
            self.client.disconnected(f"the connection to the queue was lost: {reason}")
        gone, self._gone = self._gone, None
        if gone is not None:
            gone.callback(None)
        if not self._running:
            return
        if self._retry is not None and self._retry.active():
            self._retry.cancel()
        # After a loss, the other servers are tried at once; when all have been tried, there is a pause.
        immediate = was_admitted or self._attempts % len(self._addresses) != 0
        log.warn("No connection to NATS: {reason}", reason=reason)
        self._retry = self.clock.callLater(0.1 if immediate else self._pause(), self._connect)

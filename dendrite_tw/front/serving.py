"""Requests that came to another process, answered by this one: HTTP over a connection through the broker.

The bytes of the request are read by the same channel and the same resources as those of a socket, and the bytes of the
answer go back as they are.  So there is one set of rules, wherever a request came in.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IConsumer, IPushProducer, ITransport
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from zope.interface import implementer

from ..web.bodies import apis_below
from ..web.channel import DirectChannel
from ..web.site import QuietSite
from .tunnel import End, Opening, Tunnels


@implementer(ITransport, IConsumer, IPushProducer)
class TunnelTransport:
    """What a channel takes for its socket; behind it is one end of a connection, and one request."""

    disconnecting = False

    def __init__(self, end: End, opening: Opening, time: Any) -> None:
        self._end = end
        self._time = time
        self._peer = IPv4Address("TCP", opening.host, opening.port)
        self._producer: Any = None
        self._reading = True
        self._held: list[bytes] = []
        self._counted = True
        self.channel: TunnelChannel

    def begin(self, channel: TunnelChannel, data: bytes) -> None:
        self.channel = channel
        channel.makeConnection(self)
        channel.dataReceived(data)

    # --- for the channel ---

    def getPeer(self) -> IPv4Address:
        return self._peer

    def getHost(self) -> IPv4Address:
        return self._peer

    def write(self, data: bytes) -> None:
        self._end.send(data)

    def writeSequence(self, data: Iterable[bytes]) -> None:
        self._end.send(b"".join(data))

    def loseConnection(self) -> None:
        """Close the client's connection once it has all that was written."""
        self._finish(True)

    def abortConnection(self) -> None:
        self._end.abort()
        self._over(ConnectionLost())

    def answered(self) -> None:
        """The one request is answered; the client's connection may go on."""
        self._finish(False)

    def _finish(self, close: bool) -> None:
        if not self.disconnecting:
            self.disconnecting = True
            self._end.finish(close)
            self._time.callLater(0, self._over, ConnectionDone())

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        self._producer = producer

    def unregisterProducer(self) -> None:
        self._producer = None

    def pauseProducing(self) -> None:
        self._reading = False

    def resumeProducing(self) -> None:
        self._reading = True
        while self._held and self._reading:
            self._deliver(self._held.pop(0))

    def stopProducing(self) -> None:
        self._reading = False

    # --- for the connection ---

    def received(self, data: bytes) -> None:
        if self._reading and not self._held:
            self._deliver(data)
        else:
            self._held.append(data)

    def _deliver(self, data: bytes) -> None:
        self._end.went(len(data))
        if not self.disconnecting:
            self.channel.dataReceived(data)

    def pause(self) -> None:
        if self._producer is not None:
            self._producer.pauseProducing()

    def resume(self) -> None:
        if self._producer is not None:
            self._producer.resumeProducing()

    def ended(self, close: bool) -> None:
        self._over(ConnectionDone())

    def broken(self, reason: str) -> None:
        self._over(ConnectionLost(reason))

    def _over(self, reason: Exception) -> None:
        """The channel is told once that there is no connection any more."""
        channel, self.disconnecting = self.channel, True
        if self._counted:
            self._counted = False
            self._producer = None
            channel.connectionLost(Failure(reason))
            channel.inner.gone(self)


class TunnelChannel(DirectChannel):
    """Reads one request and writes one answer."""

    inner: Inner

    def answered(self) -> None:
        super().answered()
        self._transport.answered()

    def requestDone(self, request: Any) -> None:
        super().requestDone(request)
        if self.persistent:
            self._transport.answered()

    @property
    def _transport(self) -> TunnelTransport:
        transport: Any = self.transport
        return transport  # type: ignore[no-any-return]


class Inner:
    """Serves what is of this process's components to clients of other processes."""

    def __init__(self, tunnels: Tunnels, root: Resource, time: Any) -> None:
        self._tunnels = tunnels
        self._time = time
        self._site = QuietSite(root, apis_below(root), reactor=time, timeout=90)
        self._site.protocol = TunnelChannel
        self._under_way: set[TunnelTransport] = set()

    @property
    def busy(self) -> int:
        """Requests that are being answered."""
        return len(self._under_way)

    def serve(self, component: str) -> None:
        self._tunnels.serve(component, self._accept)

    def _accept(self, end: End, opening: Opening) -> TunnelTransport:
        transport = TunnelTransport(end, opening, self._time)
        end.receiver = transport
        channel: Any = self._site.buildProtocol(None)
        channel.inner = self
        self._under_way.add(transport)
        transport.begin(channel, opening.data)
        return transport

    def gone(self, transport: TunnelTransport) -> None:
        self._under_way.discard(transport)

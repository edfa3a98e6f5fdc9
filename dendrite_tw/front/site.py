"""A listener of a process with some of the components: what is of others is handed on to a process that has it.

A request is handed on as the bytes that it came as, and its answer comes back as bytes, so nothing of either is lost;
both go piece by piece, no faster than the slower side.  Where nobody is to be had for a moment, one is looked for
again; a question that was whole is asked again if its process died before it answered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.python.failure import Failure
from twisted.web.http import Request as HttpRequest
from twisted.web.resource import Resource
from zope.interface import implementer

from ..matrix.errors import MatrixError
from ..web.bodies import BoundedRequest, apis_below
from ..web.channel import HEAD_LIMIT, DirectChannel, DirectRequest, parse_head
from ..web.pieces import LAST_CHUNK, chunk
from ..web.resource import error_response
from ..web.routes import Response
from ..web.site import QuietSite
from .tunnel import NOBODY, PIECE, End, Tunnels
from .ways import component_of

PATIENCE: Final = 4.0
"""Seconds for which somebody is looked for who answers."""
AGAIN_SECONDS: Final = 0.25
DEATHS: Final = 3
"""After so many processes that died over a question it is not asked again."""

HOP_HEADERS: Final = frozenset([b"content-length", b"transfer-encoding", b"expect"])
"""What is said anew of a body that is handed on."""


def unavailable() -> MatrixError:
    return MatrixError(
        503, "M_UNKNOWN", "The part of this server that answers this is not there; try again.", retry_after_ms=2000
    )


def starting() -> MatrixError:
    return MatrixError(503, "M_UNKNOWN", "This server is starting; try again.", retry_after_ms=2000)


class Way:
    """Whether a request may be answered here, and who else does."""

    HERE = ""
    """This process."""
    NOT_YET = "?"
    """This process, when it has started."""


class Sink:
    """The client whose request is handed on: where the answer's bytes go."""

    def write(self, data: bytes) -> None:
        raise NotImplementedError

    def done(self) -> None:
        """All of the answer was written; the connection may go on."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the connection when all that was written has gone."""
        raise NotImplementedError

    def abort(self) -> None:
        """Close the connection at once: the answer broke off."""
        raise NotImplementedError

    def refuse(self, error: MatrixError) -> None:
        raise NotImplementedError

    def hold(self, held: bool) -> None:
        """Read no more of the request's body, or go on."""
        raise NotImplementedError


@implementer(IPushProducer)
class Forwarded:
    """One request that is handed on.

    ``data`` are its first bytes, the head at least.  If it is `whole` and changes nothing it may be sent a second time.
    """

    def __init__(self, site: FrontSite, component: str, peer: Any, data: bytes, repeatable: bool, sink: Sink) -> None:
        self._site = site
        self._component = component
        self._host, self._port = getattr(peer, "host", "") or "", getattr(peer, "port", 0) or 0
        self._data = data
        self._repeatable = repeatable
        self._sink = sink
        self._until = site.seconds() + PATIENCE
        self._started = self._over = False
        self._behind = 0
        self._full = False
        self._deaths = 0
        self._end: End
        self._begin([data[PIECE:]])

    def _begin(self, later: Sequence[bytes]) -> None:
        self._end = self._site.tunnels.open(self._component, self._host, self._port, self._data[:PIECE], self)
        for data in later:
            self._end.send(data)

    # --- from the client ---

    def send(self, data: bytes) -> None:
        """More of the request."""
        if not self._over:
            self._end.send(data)

    def gone(self) -> None:
        """The client went away."""
        if not self._over:
            self._over = True
            self._end.abort()

    def pauseProducing(self) -> None:
        self._full = True

    def resumeProducing(self) -> None:
        self._full = False
        behind, self._behind = self._behind, 0
        self._end.went(behind)

    def stopProducing(self) -> None:
        self.gone()

    # --- from the process that answers ---

    def received(self, data: bytes) -> None:
        self._started = True
        self._sink.write(data)
        if self._full:
            self._behind += len(data)
        else:
            self._end.went(len(data))

    def pause(self) -> None:
        self._sink.hold(True)

    def resume(self) -> None:
        self._sink.hold(False)

    def ended(self, close: bool) -> None:
        if not self._over:
            self._over = True
            if close:
                self._sink.close()
            else:
                self._sink.done()

    def broken(self, reason: str) -> None:
        if self._over:
            return
        if self._started:
            self._over = True
            self._sink.abort()
        elif self._may_ask_again(reason):
            self._site.reactor.callLater(AGAIN_SECONDS, self._again)
        else:
            self._over = True
            self._sink.refuse(unavailable())

    def _may_ask_again(self, reason: str) -> bool:
        if reason == NOBODY:
            return self._site.seconds() < self._until
        self._deaths += 1
        self._until = self._site.seconds() + PATIENCE
        return self._repeatable and self._deaths < DEATHS

    def _again(self) -> None:
        if not self._over:
            self._begin([self._data[PIECE:]] if self._end.is_taken else self._end.untaken())


class FrontSite(QuietSite):
    """Serves what is of some components, and hands on the rest."""

    def __init__(self, root: Resource, reactor: Any, components: frozenset[str], tunnels: Tunnels) -> None:
        super().__init__(root, apis_below(root), reactor=reactor, timeout=90)
        self.protocol = FrontChannel
        self.requestFactory = FrontRequest
        self.tunnels = tunnels
        self.channels: set[FrontChannel] = set()
        self.ready = False
        """Whether what is of this process is answered."""
        self.draining = False
        self._components = components
        self._plain_head = self.head
        self.head = self._head

    def way(self, method: bytes, uri: bytes) -> str:
        """`Way.HERE`, `Way.NOT_YET`, or the component that has it."""
        component = component_of(method, uri.partition(b"?")[0])
        if component in self._components:
            return Way.HERE if self.ready else Way.NOT_YET
        return component

    def forward(self, component: str, peer: Any, data: bytes, repeatable: bool, sink: Sink) -> Forwarded:
        return Forwarded(self, component, peer, data, repeatable, sink)

    def _head(self, response: Response, cors: bool) -> bytes:
        head = self._plain_head(response, cors)
        return head[:-2] + b"Connection: close\r\n\r\n" if self.draining else head

    def drain(self) -> None:
        """Let connections end: those that wait for nothing now, the others when they have their answer."""
        self.draining = True
        for channel in list(self.channels):
            if channel.is_idle:
                channel.loseConnection()

    @property
    def busy(self) -> int:
        """Requests that are being read or answered."""
        return sum(not channel.is_idle for channel in self.channels)


class FrontChannel(DirectChannel):
    """A connection of a `FrontSite`."""

    site: FrontSite

    def connectionMade(self) -> None:
        super().connectionMade()
        self.site.channels.add(self)

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        self.site.channels.discard(self)
        super().connectionLost(reason)

    @property
    def is_idle(self) -> bool:
        """Whether no request is being read or answered."""
        return self._direct is None and not self.requests

    def answered(self) -> None:
        super().answered()
        if self.site.draining and self._direct is None:
            self.loseConnection()

    def requestDone(self, request: Any) -> None:
        if self.site.draining:
            self.persistent = False
        super().requestDone(request)

    def _read(self, data: bytes) -> bytes | None:
        line = data[: data.find(b"\r\n", 0, HEAD_LIMIT)].split(b" ")
        way = self.site.way(line[0], line[1]) if len(line) == 3 else Way.HERE
        if way == Way.HERE:
            return super()._read(data)
        end = data.find(b"\r\n\r\n", 0, HEAD_LIMIT)
        head = parse_head(data[:end]) if end >= 0 else None
        if head is None or len(data) < end + 4 + head.length:
            return None
        body_end = end + 4 + head.length
        self._direct = request = DirectRequest(self, head, b"")
        self._reading = True
        try:
            if way == Way.NOT_YET:
                request.respond(error_response(starting()), True)
            else:
                DirectSink(request, self.site, way, data[:body_end])
        finally:
            self._reading = False
        return data[body_end:]


class DirectSink(Sink):
    """The client of a request that came whole."""

    def __init__(self, request: DirectRequest, site: FrontSite, component: str, data: bytes) -> None:
        self._request = request
        peer = request._channel.getPeer()
        self._forwarded = site.forward(component, peer, data, request.method == b"GET", self)
        request.registerProducer(self._forwarded, True)
        request.notifyFinish().addErrback(lambda _: self._forwarded.gone())

    def write(self, data: bytes) -> None:
        self._request.write(data)

    def done(self) -> None:
        self._request.unregisterProducer()
        self._request.finish()

    def close(self) -> None:
        self._request.unregisterProducer()
        self._request.loseConnection()

    def abort(self) -> None:
        self._request._abort()

    def refuse(self, error: MatrixError) -> None:
        self._request.unregisterProducer()
        self._request.respond(error_response(error), True)

    def hold(self, held: bool) -> None:
        """All that there is of it was sent."""


class FrontRequest(BoundedRequest):
    """A request that Twisted parsed: it is handed on as its head, and then its body as it comes."""

    forwarded: Forwarded | None = None
    _chunks = False

    def gotLength(self, length: int | None) -> None:
        channel: Any = self.channel
        site: FrontSite = channel.site
        way = site.way(channel._command, channel._path)
        if way == Way.HERE:
            super().gotLength(length)
            return
        self.site = site
        self.method, self.uri = channel._command, channel._path
        HttpRequest.gotLength(self, 0)
        if way == Way.NOT_YET:
            self.refuse(starting())
            return
        self._chunks = length is None
        self.forwarded = site.forward(
            way,
            channel.getPeer(),
            self._head(length),
            length == 0 and self.method in (b"GET", b"HEAD"),
            ParsedSink(self),
        )
        # Who answers says whether the body may come.
        self.requestHeaders.removeHeader(b"Expect")
        channel.registerProducer(self.forwarded, True)

    def _head(self, length: int | None) -> bytes:
        """The request's head as it is handed on."""
        channel: Any = self.channel
        lines = [b" ".join([self.method, self.uri, channel._version])]
        for name, values in self.requestHeaders.getAllRawHeaders():
            if name.lower() not in HOP_HEADERS or (name == b"Expect" and length != 0):
                lines += [name + b": " + value for value in values]
        if length is None:
            lines.append(b"Transfer-Encoding: chunked")
        elif length or self.requestHeaders.hasHeader(b"Content-Length"):
            lines.append(b"Content-Length: %d" % length)
        return b"\r\n".join(lines) + b"\r\n\r\n"

    def handleContentChunk(self, data: bytes) -> None:
        if self.forwarded is None:
            super().handleContentChunk(data)
        elif not self._refused:
            self.forwarded.send(chunk(data) if self._chunks else data)

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        if self.forwarded is None or self._refused:
            super().requestReceived(command, path, version)
            return
        self._heard = True
        self.method, self.uri, self.clientproto = command, path, version
        if self._chunks:
            self.forwarded.send(LAST_CHUNK)

    def connectionLost(self, reason: Failure) -> None:
        if self.forwarded is not None:
            self.forwarded.gone()
        super().connectionLost(reason)


class ParsedSink(Sink):
    """The client of a request that Twisted parsed."""

    def __init__(self, request: FrontRequest) -> None:
        self._request = request
        self._channel: Any = request.channel

    def write(self, data: bytes) -> None:
        self._channel.write(data)

    def done(self) -> None:
        self._channel.unregisterProducer()
        self._request.startedWriting = 1
        self._request.chunked = 0
        self._request.finish()

    def close(self) -> None:
        self._channel.unregisterProducer()
        self._channel.loseConnection()

    def abort(self) -> None:
        self._channel.transport.abortConnection()

    def refuse(self, error: MatrixError) -> None:
        self._channel.unregisterProducer()
        self._request.refuse(error)
        if self._request._heard:
            self._request._close()

    def hold(self, held: bool) -> None:
        producer = self._channel._networkProducer
        if held:
            producer.pauseProducing()
        else:
            producer.resumeProducing()


def when_empty(time: Any, count: Callable[[], int], seconds: float) -> Deferred[bool]:
    """Fires when nothing is left, or after so many seconds; whether nothing is left."""
    until = time.seconds() + seconds
    empty: Deferred[bool] = Deferred()

    def look() -> None:
        if not count() or time.seconds() >= until:
            empty.callback(not count())
        else:
            time.callLater(0.05, look)

    look()
    return empty

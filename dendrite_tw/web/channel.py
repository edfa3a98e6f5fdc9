"""HTTP/1.1 without detours: a request that arrives whole is read at once.

Most requests come in one piece, head and body together.  `DirectChannel` reads
such a request in a few steps and hands it to its API; whatever is less plain
(a body that is still coming, chunks, ``Expect``, an upgrade, a connection that
is to be closed, anything malformed) goes to Twisted's own parser, which it is
a subclass of, so there is one set of rules for what is accepted.

The theory: the channel is *at rest* between requests.  Data that arrives at
rest is offered to `_read`, which takes a whole request off its front or
declines.  While the answer to a request is awaited, data is kept, up to a
bound beyond which the peer is not read from.  RFC 9112.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from twisted.web.http import RESPONSES, HTTPChannel, datetimeToString
from twisted.web.http_headers import Headers

from ..matrix.errors import not_found
from ..writing import write_at_once
from .files import FilePart, narrow, send
from .pieces import LAST_CHUNK, chunk, send_pieces
from .resource import CORS_HEADERS, ApiResource, error_response
from .routes import Response

if TYPE_CHECKING:
    from .site import QuietSite

HEAD_LIMIT = 16384
"""Bytes of a head that are read here; Twisted's parser has the same bound."""

LATER_LIMIT = 1 << 16
"""Bytes that are kept of what a client sends before it has its answer."""

LOOK_SECONDS = 5.0
"""How often connections are looked for that were idle for too long."""

METHODS = frozenset([b"GET", b"PUT", b"POST", b"DELETE", b"OPTIONS"])

_TARGET = re.compile(rb"/[!-~]*\Z")
_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+\Z")
_FORBIDDEN = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")

SINGLE = frozenset([b"content-length", b"host", b"authorization", b"connection"])
"""Headers that, given twice, are left to the other parser to judge."""

DETOURS = frozenset([b"transfer-encoding", b"expect", b"upgrade", b"te", b"http2-settings"])
"""Headers that ask for more than is done here."""

_CORS_LINES = b"".join(b"%s: %s\r\n" % header for header in CORS_HEADERS)


class Head:
    """The head of a request, and how long its body is."""

    __slots__ = ("headers", "length", "method", "uri")

    def __init__(self, method: bytes, uri: bytes, headers: dict[bytes, bytes], length: int) -> None:
        self.method = method
        self.uri = uri
        self.headers = headers
        self.length = length


def parse_head(head: bytes) -> Head | None:
    """Read a head (without its empty line); `None` for one that is malformed or asks for more than the usual."""
    lines = head.split(b"\r\n")
    start = lines[0].split(b" ")
    if len(start) != 3 or start[2] != b"HTTP/1.1" or start[0] not in METHODS or not _TARGET.match(start[1]):
        return None
    headers: dict[bytes, bytes] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(b":")
        name = name.lower()
        if not colon or not _NAME.match(name) or name in DETOURS or (name in SINGLE and name in headers):
            return None
        headers[name] = value.strip(b" \t")
    if _FORBIDDEN.search(head.replace(b"\r\n", b"")) or b"host" not in headers:
        return None
    connection = headers.get(b"connection")
    if connection is not None and connection.lower() != b"keep-alive":
        return None
    length = headers.get(b"content-length", b"0")
    if not length.isdigit() or len(length) > 12:
        return None
    return Head(start[0], start[1], headers, int(length))


class DirectRequest:
    """A request that was read at once.

    It has the part of `twisted.web.http.Request` that `files.send` and `resource.Exchange` use.
    """

    __slots__ = (
        "_body",
        "_channel",
        "_disconnected",
        "_headers",
        "_notifications",
        "finished",
        "method",
        "uri",
    )

    body_file = None

    def __init__(self, channel: DirectChannel, head: Head, body: bytes) -> None:
        self._channel = channel
        self._headers = head.headers
        self._body = body
        self._notifications: list[Deferred[None]] = []
        self._disconnected = False
        self.finished = False
        self.method = head.method
        self.uri = head.uri

    # --- what was asked ---

    def header(self, name: bytes) -> bytes | None:
        """The value of a header, its name in lower case."""
        return self._headers.get(name)

    def read_body(self) -> bytes:
        return self._body

    def peer_host(self) -> str:
        """The peer's address."""
        return getattr(self._channel.getPeer(), "host", "") or ""

    @property
    def requestHeaders(self) -> Headers:
        return Headers({name: [value] for name, value in self._headers.items()})

    # --- the answer ---

    def respond(self, response: Response, cors: bool) -> None:
        """Send an answer whole, or its head and then its file."""
        if self._disconnected:
            return
        part = None
        if response.file is not None:
            response = narrow(self.requestHeaders, response)
        if response.file is not None:
            try:
                part = FilePart(response.file, response.file_offset, response.file_length, response.tail)
            except OSError:
                response = error_response(not_found("The file is gone."))
        body = chunk(response.body) if response.pieces is not None and response.body else response.body
        self.write(self._channel.site.head(response, cors) + body)
        if part is not None:
            send(part, self, self._channel.site.reactor.callLater, self._abort)  # type: ignore[arg-type]
        elif response.pieces is not None:
            later, send_chunk = self._channel.site.reactor.callLater, lambda piece: self.write(chunk(piece))
            send_pieces(response.pieces, self, later, send_chunk, self._end_chunks, self._abort)
        else:
            self.finish()

    def write(self, data: bytes) -> None:
        self._channel.write(data)

    def _end_chunks(self) -> None:
        self.write(LAST_CHUNK)
        self.finish()

    def _abort(self) -> None:
        transport: Any = self._channel.transport
        transport.abortConnection()

    def finish(self) -> None:
        self.finished = True
        self._channel.answered()
        self._notify(None)

    def abandon(self) -> None:
        """An answer that cannot be given: all that can be said is said by closing."""
        self._channel.loseConnection()

    loseConnection = abandon

    def notifyFinish(self) -> Deferred[None]:
        """Fires when the answer is sent, or with the reason why it will never be."""
        notification: Deferred[None] = Deferred()
        self._notifications.append(notification)
        return notification

    def lost(self, reason: Failure) -> None:
        """The client went away."""
        self._disconnected = True
        self._notify(reason)

    def _notify(self, result: Failure | None) -> None:
        notifications, self._notifications = self._notifications, []
        for notification in notifications:
            if result is None:
                notification.callback(None)
            else:
                notification.errback(result)

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        self._channel.registerProducer(producer, streaming)

    def unregisterProducer(self) -> None:
        self._channel.unregisterProducer()


class DirectChannel(HTTPChannel):
    """A connection of a `QuietSite`."""

    site: QuietSite
    _direct: DirectRequest | None = None
    _heard_at = 0.0
    _reading = False
    _later: Sequence[bytes] = ()

    def dataReceived(self, data: bytes) -> None:
        if self._direct is not None:
            self._keep(data)
            return
        if not self._at_rest():
            super().dataReceived(data)
            return
        self.resetTimeout()
        while data:
            rest = self._read(data)
            if rest is None:
                super().dataReceived(data)
                return
            if self._direct is not None:
                if rest:
                    self._keep(rest)
                return
            data = rest

    def _at_rest(self) -> bool:
        """Whether the other parser is between two requests with nothing in hand."""
        return (
            not self.requests
            and not self._buffer
            and bool(self.line_mode)
            and bool(self.persistent)
            and self._HTTPChannel__first_line == 1  # type: ignore[attr-defined]
        )

    def _keep(self, data: bytes) -> None:
        self._later = [*self._later, data]
        if sum(map(len, self._later)) > LATER_LIMIT and not self._waitingForTransport:
            self._networkProducer.pauseProducing()

    def _read(self, data: bytes) -> bytes | None:
        """Start on the request at the front of `data` and return what is behind it; `None` to decline."""
        end = data.find(b"\r\n\r\n", 0, HEAD_LIMIT)
        if end < 0:
            return None
        head = parse_head(data[:end])
        if head is None or len(data) < end + 4 + head.length:
            return None
        api = self.site.api_of(head.uri)
        if api is None or not api.takes_directly(head.method, head.uri):
            return None
        body_end = end + 4 + head.length
        self._direct = request = DirectRequest(self, head, data[end + 4 : body_end])
        self._reading = True
        try:
            api.serve(request)
        finally:
            self._reading = False
        return data[body_end:]

    def write(self, data: bytes) -> None:
        write_at_once(self.transport, data)

    def answered(self) -> None:
        """The answer to the request that was read at once is on its way."""
        self._direct = None
        if self._reading:
            return
        self.resetTimeout()
        if self._later:
            data, self._later = b"".join(self._later), ()
            if not self._waitingForTransport:
                self._networkProducer.resumeProducing()
            self.dataReceived(data)

    def setTimeout(self, period: float | None) -> float | None:
        """Wait so long for something to come, or for ever; see `ChannelTimeouts`."""
        before, self.timeOut = self.timeOut, period  # type: ignore[assignment]
        if period is None:
            self.site.timeouts.leave(self)
        else:
            self.resetTimeout()
            self.site.timeouts.watch(self)
        return before

    def resetTimeout(self) -> None:
        """Something came."""
        self._heard_at = self.site.seconds()

    def is_overdue(self, now: float) -> bool:
        """Whether nothing came for as long as the connection may be idle."""
        return self.timeOut is not None and now - self._heard_at >= self.timeOut

    def timeoutConnection(self) -> None:
        """Nothing came for a while; a client that waits for its answer is not idle."""
        if self._direct is not None:
            self.setTimeout(self.timeOut)
            return
        super().timeoutConnection()

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        direct, self._direct = self._direct, None
        if direct is not None:
            direct.lost(reason)
        super().connectionLost(reason)


class ChannelTimeouts:
    """Ends connections on which nothing comes, with one timer for all of them.

    Twisted gives each connection a timer of its own, which most never need: half a kilobyte for each, and work
    for each request.  For this a connection lives up to `LOOK_SECONDS` longer than it may.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._watched: set[DirectChannel] = set()
        self._call: Any = None

    def watch(self, channel: DirectChannel) -> None:
        self._watched.add(channel)
        if self._call is None:
            self._call = self._reactor.callLater(LOOK_SECONDS, self._look)

    def leave(self, channel: DirectChannel) -> None:
        self._watched.discard(channel)
        if not self._watched and self._call is not None:
            self._call.cancel()
            self._call = None

    def _look(self) -> None:
        self._call = None
        now = self._reactor.seconds()
        overdue = [channel for channel in self._watched if channel.is_overdue(now)]
        self._watched.difference_update(overdue)
        for channel in overdue:
            channel.timeoutConnection()
        if self._watched and self._call is None:
            self._call = self._reactor.callLater(LOOK_SECONDS, self._look)


class Heads:
    """Heads of answers, put together from few pieces; the date is made once a second."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._second = -1
        self._start = b""

    def head(self, response: Response, cors: bool) -> bytes:
        """Everything before the body."""
        second = int(self._reactor.seconds())
        if second != self._second:
            self._second = second
            self._start = b"\r\nServer: dendrite_tw\r\nDate: %s\r\nContent-Type: " % datetimeToString(second)
        status = response.status
        lines = b"".join(b"%s: %s\r\n" % header for header in response.headers) if response.headers else b""
        if response.pieces is not None:
            length = b"Transfer-Encoding: chunked\r\n"
        elif status == 304:
            length = b""
        else:
            length = b"Content-Length: %d\r\n" % response.length
        return b"".join(
            (
                b"HTTP/1.1 200 OK"
                if status == 200
                else b"HTTP/1.1 %d %s" % (status, RESPONSES.get(status, b"Unknown")),
                self._start,
                response.content_type,
                b"\r\n",
                _CORS_LINES if cors else b"",
                lines,
                length,
                b"\r\n",
            )
        )


def find_api(apis: Sequence[tuple[bytes, ApiResource]], uri: bytes) -> ApiResource | None:
    """The API below whose path a request's target lies."""
    for prefix, api in apis:
        if uri.startswith(prefix) and uri[len(prefix) : len(prefix) + 1] in (b"/", b"?", b""):
            return api
    return None

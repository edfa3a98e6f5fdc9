"""Requests that this server makes: to homeservers, push gateways, application services and anybody else.

One client for all: connections are kept and used again (HTTP/1.1), the addresses behind a name are looked up once and
held against `Networks` before they are connected to, also after a redirect, and each request has a time that it must be
over in, an end to the headers and the body that it takes, and one error, `Unreachable`, for whatever went wrong.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit

import msgspec
from OpenSSL import SSL
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.error import ConnectError, ConnectingCancelledError, ConnectionClosed, DNSLookupError
from twisted.internet.interfaces import (
    IAddress,
    IHostnameResolver,
    IOpenSSLClientConnectionCreator,
    IReactorPluggableNameResolver,
    IReactorTime,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from twisted.web._newclient import HTTP11ClientProtocol, ParseError
from twisted.web.client import (
    Agent,
    HTTPConnectionPool,
    RequestGenerationFailed,
    RequestTransmissionFailed,
    ResponseDone,
    ResponseFailed,
    ResponseNeverReceived,
)
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgentEndpointFactory, IBodyProducer, IResponse
from zope.interface import implementer

from ..matrix.errors import MatrixError
from .internet import Sink, Unreachable, Write
from .names import Names, UnknownName
from .networks import Networks
from .routes import decode_object
from .tls import ClientTls

log = Logger()

T = TypeVar("T")

DEFAULT_TIMEOUT = 30.0
"""Seconds for a whole request, from the name to the last byte."""

CONNECT_TIMEOUT = 10.0
"""Seconds for the connection to one address."""

HEAD_LIMIT = 256 << 10
"""Bytes that may come before a response's body; what arrives together with the head counts too."""

JSON_LIMIT = 1 << 20
"""Bytes of a JSON body, unless a caller says otherwise."""

IDLE_SECONDS = 90
IDLE_PER_PEER = 2
"""How many unused connections to one peer are kept."""

REDIRECTS = frozenset({301, 302, 303, 307, 308})
DEFAULT_PORTS = {"https": 443, "http": 80}


class Stale(Unreachable):
    """A connection that had been kept was closed before it answered: the request may be made again at once."""


class Peer(msgspec.Struct, frozen=True):
    """Whom a request is made to: who must be there, and where that is.

    ``hosts`` are what is connected to, the preferred first: addresses, or names whose addresses are looked up when
    a connection is made.  Empty means ``name``.
    """

    name: str
    """A DNS name, or an address without brackets: the certificate must be for it."""
    port: int
    host_header: str
    hosts: tuple[str, ...] = ()
    scheme: str = "https"


class HttpAnswer(msgspec.Struct, frozen=True):
    """A response: its body is empty where it was written elsewhere."""

    status: int
    headers: Headers
    body: bytes = b""

    def header(self, name: str) -> str | None:
        """The last value of a header."""
        values = self.headers.getRawHeaders(name)
        return values[-1] if values else None

    def json_object(self) -> dict[str, Any]:
        """The JSON object in the body; `Unreachable` where there is none or it nests too deeply."""
        try:
            return decode_object(self.body or b"null")
        except MatrixError:
            raise Unreachable("the answer is not a JSON object") from None


class HttpClient:
    """Makes requests.  One of it serves a whole process."""

    def __init__(
        self,
        reactor: Any,
        names: Names,
        networks: Networks,
        tls: ClientTls,
        user_agent: str = "dendrite_tw",
        keep_alive: bool = True,
    ) -> None:
        """`reactor` connects and schedules: `IReactorTCP` and `IReactorTime`."""
        self._reactor = reactor
        self._names = names
        self._networks = networks
        self._tls = tls
        self._user_agent = user_agent
        self._pool = _Pool(reactor, persistent=keep_alive)

    def close(self) -> Deferred[None]:
        """Close the connections that are kept; fires when they are closed."""
        closed: Deferred[None] = self._pool.closeCachedConnections()
        return closed

    async def request(
        self,
        method: str,
        url: str,
        headers: Iterable[tuple[str, str]] = (),
        body: bytes | None = None,
        seconds: float = DEFAULT_TIMEOUT,
        limit: int = JSON_LIMIT,
        redirects: int = 0,
        sink: Sink | None = None,
    ) -> HttpAnswer:
        """The answer to a request for an absolute URL, whatever its status.

        `limit` is the most bytes that the body may have; `sink` takes them as they come, as many as it likes.  At
        most `redirects` redirections are followed, and none from HTTPS to HTTP.  Raises `Unreachable`, or what
        `sink` raises.
        """
        deadline = self._reactor.seconds() + seconds
        sent = list(headers)
        for _ in range(redirects + 1):
            peer, target = _peer_of(url)
            remaining = max(0.0, deadline - self._reactor.seconds())
            answer = await self.request_at(peer, method, target, sent, body, remaining, limit, sink)
            location = answer.header("location")
            if answer.status not in REDIRECTS or location is None or not redirects:
                return answer
            if method not in ("GET", "HEAD"):
                raise Unreachable("the answer is a redirection")
            moved = _joined(url, location)
            if peer.scheme == "https" and not moved.startswith("https:"):
                raise Unreachable("the answer leads away from HTTPS")
            if urlsplit(moved).netloc != urlsplit(url).netloc:
                sent = [(name, value) for name, value in sent if name.lower() != "authorization"]
            url = moved
        raise Unreachable("there are too many redirections")

    async def request_at(
        self,
        peer: Peer,
        method: str,
        target: str,
        headers: Iterable[tuple[str, str]] = (),
        body: bytes | None = None,
        seconds: float = DEFAULT_TIMEOUT,
        limit: int = JSON_LIMIT,
        sink: Sink | None = None,
    ) -> HttpAnswer:
        """The answer of `peer` to a request for `target`, a path with its query; redirections are not followed.

        Raises `Unreachable`; `Stale` where it may be worth while to try again.
        """
        sent = Headers({"User-Agent": [self._user_agent], "Host": [peer.host_header]})
        for name, value in headers:
            sent.setRawHeaders(name, [value])
        answering = Deferred.fromCoroutine(self._exchange(peer, method, target, sent, body, limit, sink))
        return await _in_time(answering, seconds, self._reactor)

    async def _exchange(
        self,
        peer: Peer,
        method: str,
        target: str,
        headers: Headers,
        body: bytes | None,
        limit: int,
        sink: Sink | None,
    ) -> HttpAnswer:
        endpoints = _Endpoints(lambda: self._endpoint(peer))
        agent = Agent.usingEndpointFactory(self._reactor, endpoints, self._pool)
        url = f"{peer.scheme}://{_bracketed(peer.name)}:{peer.port}{target}".encode("ascii")
        producer = None if body is None else _Bytes(body)
        response: IResponse = await agent.request(method.encode("ascii"), url, headers, producer)
        reader = _reader(HttpAnswer(response.code, response.headers), limit, sink, response.length)
        response.deliverBody(reader)
        return HttpAnswer(response.code, response.headers, await reader.complete)

    def _endpoint(self, peer: Peer) -> IStreamClientEndpoint:
        creator = self._tls.creator(peer.name) if peer.scheme == "https" else None
        return _CheckedEndpoint(self._reactor, self._names, self._networks, peer, creator)


# --- addresses ---


def _peer_of(url: str) -> tuple[Peer, str]:
    """Whom a URL names, and the path with the query; `Unreachable` for a URL that is none."""
    try:
        parts = urlsplit(url)
        name, port = parts.hostname, parts.port
        url.encode("ascii")
    except ValueError:
        raise Unreachable("the URL is malformed") from None
    if parts.scheme not in DEFAULT_PORTS or not name or parts.username is not None or not url.isprintable():
        raise Unreachable("the URL is malformed")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Peer(name, port or DEFAULT_PORTS[parts.scheme], parts.netloc, (), parts.scheme), target


def _joined(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError:
        raise Unreachable("the answer leads to a malformed URL") from None


def _bracketed(name: str) -> str:
    return f"[{name}]" if ":" in name else name


def is_address(name: str) -> bool:
    """Whether `name` is an IPv4 or IPv6 literal, without brackets."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


@implementer(IStreamClientEndpoint)
class _CheckedEndpoint:
    """Connects to the first of a peer's addresses that answers, and to none that is denied; over TLS with `creator`."""

    def __init__(
        self,
        reactor: Any,
        names: Names,
        networks: Networks,
        peer: Peer,
        creator: IOpenSSLClientConnectionCreator | None,
    ) -> None:
        self._reactor = reactor
        self._names = names
        self._networks = networks
        self._peer = peer
        self._creator = creator

    def connect(self, protocolFactory: Any) -> Deferred[Any]:
        return Deferred.fromCoroutine(self._connect(protocolFactory))

    async def _connect(self, factory: Any) -> Any:
        name = self._peer.name
        addresses: list[str] = []
        for host in self._peer.hosts or (name,):
            addresses += [host] if is_address(host) else await self._names.addresses(host)
        permitted = self._networks.permitted(addresses)
        if not permitted:
            raise Unreachable("the address lies in a network that this server may not connect to")
        pinned: Any = _Pinned(self._reactor, permitted)
        endpoint = HostnameEndpoint(pinned, name, self._peer.port, timeout=CONNECT_TIMEOUT)
        if self._creator is None:
            return await endpoint.connect(factory)
        over_tls: Any = TLSMemoryBIOFactory(self._creator, True, factory, clock=self._reactor)
        connected: Any = await endpoint.connect(over_tls)
        return connected.wrappedProtocol


@implementer(IReactorPluggableNameResolver, IHostnameResolver)
class _Pinned:
    """A reactor that knows one name: so `HostnameEndpoint` races the addresses that were checked, and no others."""

    def __init__(self, reactor: Any, addresses: Sequence[str]) -> None:
        self._addresses = addresses
        self.nameResolver = self
        self.connectTCP = reactor.connectTCP
        self.callLater = reactor.callLater
        self.seconds = reactor.seconds

    def installNameResolver(self, resolver: Any) -> Any:
        raise NotImplementedError

    def resolveHostName(self, resolutionReceiver: Any, hostName: str, portNumber: int = 0, *args: Any) -> Any:
        resolutionReceiver.resolutionBegan(self)
        for address in self._addresses:
            resolutionReceiver.addressResolved(_tcp_address(address, portNumber))
        resolutionReceiver.resolutionComplete()
        return self

    def cancel(self) -> None:
        """An answer that is there at once cannot be cancelled."""


def _tcp_address(address: str, port: int) -> IAddress:
    kind: Any = IPv6Address if ":" in address else IPv4Address
    made: IAddress = kind("TCP", address, port)
    return made


# --- HTTP ---


@implementer(IAgentEndpointFactory)
class _Endpoints:
    """Makes the endpoint of a request, should it need a connection of its own."""

    def __init__(self, make: Callable[[], IStreamClientEndpoint]) -> None:
        self._make = make

    def endpointForURI(self, uri: Any) -> IStreamClientEndpoint:
        return self._make()


@implementer(IBodyProducer)
class _Bytes:
    """A body that is in memory: written at once."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.length = len(body)

    def startProducing(self, consumer: Any) -> Deferred[None]:
        consumer.write(self._body)
        return succeed(None)

    def pauseProducing(self) -> None:
        """It is over before it could pause."""

    def resumeProducing(self) -> None:
        """It never paused."""

    def stopProducing(self) -> None:
        """It is over before it could be stopped."""


class _BoundedProtocol(HTTP11ClientProtocol):
    """A connection whose other end cannot send headers without end."""

    _head_left: int | None = None

    def request(self, request: Any) -> Deferred[IResponse]:
        self._head_left = HEAD_LIMIT
        answer: Deferred[IResponse] = super().request(request)
        return answer.addBoth(self._head_is_over)

    def _head_is_over(self, result: T) -> T:
        self._head_left = None
        return result

    def dataReceived(self, data: bytes) -> None:
        if self._head_left is not None:
            self._head_left -= len(data)
            if self._head_left < 0:
                self.abort()
                return
        super().dataReceived(data)


class _BoundedFactory(Factory):
    """What the pool makes its connections with."""

    noisy = False

    def __init__(self, quiescent: Callable[[Any], None], metadata: object) -> None:
        self._quiescent = quiescent

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        return _BoundedProtocol(self._quiescent)


class _Pool(HTTPConnectionPool):
    _factory = _BoundedFactory  # type: ignore[assignment]
    maxPersistentPerHost = IDLE_PER_PEER
    cachedConnectionTimeout = IDLE_SECONDS

    def closeCachedConnections(self) -> Deferred[None]:
        """Close the connections that are kept.

        Nothing is under way on them, so they are not taken leave of: a peer that is silent would not answer the
        farewell of TLS, and who stops would wait for it.
        """
        for kept in [protocol for protocols in self._connections.values() for protocol in protocols]:
            if kept.state == "QUIESCENT":  # not lost meanwhile
                kept.transport.abortConnection()
        closed: Deferred[None] = super().closeCachedConnections()
        return closed


class _Body(Protocol):
    """Takes a body as it comes; ``complete`` fires with it, or fails where it is too long or breaks off."""

    def __init__(
        self, limit: int | None, write: Write | None, announced: Any, refused: Exception | None = None
    ) -> None:
        """``limit`` `None` leaves it to `write` how much is taken; with `refused` nothing is."""
        self.complete: Deferred[bytes] = Deferred(lambda _: self._hang_up())
        self._limit = limit
        self._announced = announced
        self._refused = refused
        self._parts: list[bytes] = []
        self._write = write or self._parts.append
        self._length = 0

    def connectionMade(self) -> None:
        if self._refused is not None:
            self._fail(self._refused)
        elif self._limit is not None and isinstance(self._announced, int) and self._announced > self._limit:
            self._fail(Unreachable(f"the answer has more than {self._limit} bytes"))

    def dataReceived(self, data: bytes) -> None:
        if self.complete.called:
            return
        self._length += len(data)
        if self._limit is not None and self._length > self._limit:
            self._fail(Unreachable(f"the answer has more than {self._limit} bytes"))
            return
        try:
            self._write(data)
        except Exception as error:
            self._fail(error)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.complete.called:
            return
        if reason.check(ResponseDone, PotentialDataLoss):
            self.complete.callback(b"".join(self._parts))
        else:
            self.complete.errback(Unreachable("the answer broke off"))

    def _fail(self, error: Exception) -> None:
        self.complete.errback(error)
        self._hang_up()

    def _hang_up(self) -> None:
        if self.transport is not None:
            self.transport.loseConnection()


def _reader(head: HttpAnswer, limit: int, sink: Sink | None, announced: Any) -> _Body:
    """What takes the body of the answer with this head."""
    if sink is None:
        return _Body(limit, None, announced)
    try:
        write = sink(head)
    except Exception as error:
        return _Body(0, None, announced, error)
    return _Body(min(limit, JSON_LIMIT), None, announced) if write is None else _Body(None, write, announced)


# --- what went wrong ---


async def _in_time(answering: Deferred[T], seconds: float, time: IReactorTime) -> T:
    """The result, with whatever the layers below may raise told as `Unreachable`.

    Only who waits for it may cancel it; that is told as `CancelledError`, and says nothing about the other end.
    """
    is_over = False

    def give_up() -> None:
        nonlocal is_over
        is_over = True
        answering.cancel()

    timer = time.callLater(seconds, give_up)
    try:
        return await answering
    except MatrixError:
        raise
    except Exception as error:
        if is_over:
            raise Unreachable("there was no answer in time") from error
        if _is_cancelled(error):
            raise CancelledError from error
        raise explained(error) from error
    finally:
        if timer.active():
            timer.cancel()


def _reasons(error: Exception) -> list[Exception]:
    return [failure.value for failure in getattr(error, "reasons", ())] or [error]


def _is_cancelled(error: Exception) -> bool:
    return any(isinstance(reason, CancelledError | ConnectingCancelledError) for reason in _reasons(error))


def explained(error: Exception) -> Unreachable:
    """What a failed request is told as."""
    if isinstance(error, UnknownName | DNSLookupError):
        return Unreachable("the name has no address")
    if any(isinstance(reason, SSL.Error) for reason in _reasons(error)):
        return Unreachable("the certificate is not acceptable, or TLS failed otherwise")
    if isinstance(error, ConnectError):
        return Unreachable(f"no connection: {error}"[:200])
    if isinstance(error, RequestTransmissionFailed | ResponseNeverReceived | ConnectionClosed):
        return Stale("the connection was closed without an answer")
    if isinstance(error, ResponseFailed | RequestGenerationFailed | ParseError | ValueError):
        return Unreachable("the answer is not HTTP")
    log.failure("a request failed in an unforeseen way", failure=Failure(error))
    return Unreachable("the request failed")

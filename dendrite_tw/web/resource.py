"""Twisted request in, typed arguments to a handler, JSON out, errors too.

`ApiResource` is the Resource of one API: a leaf of the site's tree that finds
the endpoint in its table, asks who the caller is, applies the limit, decodes
body and query, calls the handler and writes what it returns.  Every error
becomes the specification's JSON here and nowhere else.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Coroutine, Generator, Sequence
from typing import Any, Protocol, TypeVar
from urllib.parse import parse_qsl

import msgspec
import orjson
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request

from ..matrix.errors import MatrixError, invalid_param, not_found, too_large, unrecognized
from ..user_api.api import Caller
from .files import FilePart, narrow, send
from .pieces import send_pieces
from .routes import Access, BodyFile, Endpoint, Response, Route, RouteTree

log = Logger()

T = TypeVar("T")

CORS_HEADERS = (
    (b"Access-Control-Allow-Origin", b"*"),
    (b"Access-Control-Allow-Methods", b"GET, POST, PUT, DELETE, OPTIONS"),
    (b"Access-Control-Allow-Headers", b"X-Requested-With, Content-Type, Authorization"),
)

QUERY_FIELD_LIMIT = 200
"""How many fields a query string may have."""


class Authenticator(Protocol):
    """Says who is behind a request."""

    async def caller(self, access: Access, exchange: Exchange) -> Caller | None:
        """The caller that `access` allows; `MatrixError` where it allows none."""


class ServerAuthenticator(Protocol):
    """Says which other server made a request."""

    async def origin_of(self, exchange: Exchange) -> str:
        """The name of the server that signed the request; `MatrixError` where none did."""


class Limiter(Protocol):
    """Says whether a caller may call again already."""

    def check(self, endpoint: Endpoint, caller: Caller | None, ip: str) -> None:
        """Raise ``M_LIMIT_EXCEEDED`` where not."""


class Incoming(Protocol):
    """A request as a channel hands it over, and the way back for its answer."""

    @property
    def method(self) -> bytes: ...

    @property
    def uri(self) -> bytes: ...

    @property
    def body_file(self) -> BodyFile | None:
        """What the body was written to while it arrived, for a route that wants that."""

    def header(self, name: bytes) -> bytes | None:
        """The last value of a header, its name in lower case."""

    def read_body(self) -> bytes: ...

    def peer_host(self) -> str: ...

    def respond(self, response: Response, cors: bool) -> None:
        """Send the answer and be done, unless the client is gone."""

    def abandon(self) -> None:
        """Give up: the answer cannot be sent."""

    def notifyFinish(self) -> Deferred[None]: ...


class Parsed:
    """A request of Twisted's as an `Incoming`."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self.method: bytes = request.method
        self.uri: bytes = request.uri
        self.body_file: BodyFile | None = getattr(request, "body_file", None)

    def header(self, name: bytes) -> bytes | None:
        values = self._request.requestHeaders.getRawHeaders(name)
        return values[-1] if values else None

    def read_body(self) -> bytes:
        content = self._request.content
        return content.read() if content is not None else b""

    def peer_host(self) -> str:
        return getattr(self._request.getClientAddress(), "host", "") or ""

    def respond(self, response: Response, cors: bool) -> None:
        write(self._request, response, cors)

    def abandon(self) -> None:
        if not self._request._disconnected and not self._request.finished:
            self._request.setResponseCode(500)
            self._request.finish()

    def notifyFinish(self) -> Deferred[None]:
        return self._request.notifyFinish()


class Exchange:
    """One request, as handlers and authentication see it."""

    __slots__ = ("_body", "_pairs", "_real_ip_header", "caller", "endpoint", "parsed", "request")

    def __init__(self, request: Incoming, endpoint: Endpoint, real_ip_header: bytes = b"") -> None:
        self.request = request
        self.endpoint = endpoint
        self.caller: Caller | None = None
        self._real_ip_header = real_ip_header
        self._pairs: list[tuple[str, str]] | None = None
        self._body: bytes | None = None
        self.parsed: Any = None
        """The body's value, where authentication had to read it: valid JSON within the limits of `decode_object`."""

    @property
    def method(self) -> str:
        return self.request.method.decode("ascii", "replace")

    @property
    def uri(self) -> bytes:
        """Path and query string as they were sent."""
        return self.request.uri

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The decoded fields of the query string, in order."""
        if self._pairs is None:
            _, _, raw = self.request.uri.partition(b"?")
            try:
                self._pairs = (
                    parse_qsl(
                        raw.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=QUERY_FIELD_LIMIT
                    )
                    if raw
                    else []
                )
            except ValueError:
                raise invalid_param("The query string cannot be read.") from None
        return self._pairs

    def field(self, name: str) -> str | None:
        """The first value of a field of the query string."""
        return next((value for key, value in self.pairs if key == name), None)

    def header(self, name: bytes) -> str | None:
        """The last value of a header, its name in lower case, or `None`."""
        value = self.request.header(name)
        return value.decode("utf-8", "replace") if value is not None else None

    @property
    def body(self) -> bytes:
        if self._body is None:
            self._body = self.request.read_body()
        return self._body

    def body_file(self) -> BodyFile:
        """The file that the body was written to, for a route with ``body_file``.

        A site that writes bodies elsewhere first (`bodies.BoundedSite` does not) costs a copy here.
        """
        opener = self.endpoint.route.body_file
        assert opener is not None
        if self.request.body_file is not None:
            return self.request.body_file
        copy = opener()
        self.request.notifyFinish().addBoth(lambda _: copy.close())
        copy.write(self.request.read_body())
        if copy.tell() > self.endpoint.route.body_limit:
            raise body_too_large(self.endpoint.route.body_limit)
        return copy

    @property
    def ip(self) -> str:
        """The address of the peer; behind a proxy, what it says in the configured header."""
        if self._real_ip_header:
            told = self.header(self._real_ip_header)
            if told:
                return told.split(",")[0].strip()[:64]
        return self.request.peer_host()

    @property
    def user_agent(self) -> str:
        return (self.header(b"user-agent") or "")[:512]


Observer = Callable[[Endpoint | None, int], None]
"""Is told of every answer: the endpoint, `None` where none was found, and the status."""


def encode(value: Any) -> bytes:
    """JSON bytes of what a handler returned."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, msgspec.Struct):
        return msgspec.json.encode(value)
    return orjson.dumps({} if value is None else value, default=msgspec.to_builtins)


class ApiResource(Resource):
    """The Resource of one API, made from its table of routes.

    ``observe(endpoint, status)`` is told of every answer, for the metrics.
    """

    isLeaf = True

    def __init__(
        self,
        routes: Sequence[Route],
        authenticator: Authenticator,
        limiter: Limiter,
        observe: Observer = lambda endpoint, status: None,
        real_ip_header: str = "",
        servers: ServerAuthenticator | None = None,
    ) -> None:
        super().__init__()
        self._servers = servers
        self.tree = RouteTree(routes)
        self._authenticator = authenticator
        self._limiter = limiter
        self._observe = observe
        self._real_ip_header = real_ip_header.lower().encode()

    def render(self, request: Request) -> int:
        """The way in for a request that Twisted parsed."""
        self.serve(Parsed(request))
        return NOT_DONE_YET

    def takes_directly(self, method: bytes, uri: bytes) -> bool:
        """Whether a request need not be looked at before its body is read."""
        endpoint = self.endpoint_of(method, uri)
        return endpoint is None or endpoint.route.body_file is None

    def serve(self, request: Incoming) -> None:
        """Answer a request, now or when the answer is there."""
        path = request.uri.partition(b"?")[0]
        try:
            if request.method == b"OPTIONS":
                if not self.tree.knows(path):
                    self.tree.find("OPTIONS", path)
                self._observe(None, 200)
                request.respond(Response(200, b"{}"), True)
                return
            endpoint, values = self.tree.find(request.method.decode("ascii", "replace"), path)
        except MatrixError as error:
            self._observe(None, error.status)
            request.respond(error_response(error), True)
            return
        answering = self._answer(Exchange(request, endpoint, self._real_ip_header), values)
        try:
            awaited = answering.send(None)
        except StopIteration as stop:
            self._reply(stop.value, request, endpoint)
            return
        answer: Deferred[Response] = Deferred.fromCoroutine(_rest(answering, awaited))
        if request.method == b"GET" and not answer.called:
            # Who goes away need not be answered; but what changes something is not left half done.
            request.notifyFinish().addErrback(lambda _: answer.cancel())
        answer.addCallback(self._reply, request, endpoint)
        answer.addErrback(self._lost, request)

    def endpoint_of(self, method: bytes, uri: bytes) -> Endpoint | None:
        """The endpoint that a request will reach, if any: asked before its body is read."""
        try:
            return self.tree.find(method.decode("ascii", "replace"), uri.partition(b"?")[0])[0]
        except MatrixError:
            return None

    async def admit(self, request: Incoming, endpoint: Endpoint) -> None:
        """Hold a request's head, before its body is read, against the endpoint's `Access`; `MatrixError` if refused."""
        if endpoint.route.access is not Access.PUBLIC:
            exchange = Exchange(request, endpoint, self._real_ip_header)
            await self._authenticator.caller(endpoint.route.access, exchange)

    async def _answer(self, exchange: Exchange, values: list[str]) -> Response:
        endpoint = exchange.endpoint
        try:
            result = await self._call(exchange, endpoint, values)
        except MatrixError as error:
            return error_response(error)
        except CancelledError:
            raise
        except Exception:
            log.failure("{method} {path} failed", method=exchange.method, path=endpoint.route.path)
            return error_response(MatrixError(500, "M_UNKNOWN", "Something went wrong in this server; it is logged."))
        return result if isinstance(result, Response) else Response(200, encode(result))

    async def _call(self, exchange: Exchange, endpoint: Endpoint, values: list[str]) -> Any:
        route = endpoint.route
        caller = None
        arguments: dict[str, Any] = dict(zip(endpoint.parameters, values, strict=True))
        if route.access is Access.SERVER:
            origin = await self._origin(exchange)
            self._limiter.check(endpoint, None, origin)
            if endpoint.wants_origin:
                arguments["origin"] = origin
        else:
            if route.access is not Access.PUBLIC:
                caller = exchange.caller = await self._authenticator.caller(route.access, exchange)
            self._limiter.check(endpoint, caller, exchange.ip)
        if endpoint.wants_caller:
            arguments["caller"] = caller
        if endpoint.wants_request:
            arguments["request"] = exchange
        if route.body_file is not None:
            arguments["body"] = exchange.body_file()
        if endpoint.body is not None:
            body = exchange.body
            if len(body) > route.body_limit:
                raise body_too_large(route.body_limit)
            known = endpoint.takes_object and isinstance(exchange.parsed, dict)
            arguments["body"] = exchange.parsed if known else endpoint.body(body)
        if endpoint.query is not None:
            arguments["query"] = endpoint.query(exchange.pairs)
        return await route.handler(**arguments)

    async def _origin(self, exchange: Exchange) -> str:
        """The server that signed the request; nothing is verified of a body that is too large."""
        if self._servers is None:
            raise unrecognized()
        if len(exchange.body) > exchange.endpoint.route.body_limit:
            raise body_too_large(exchange.endpoint.route.body_limit)
        return await self._servers.origin_of(exchange)

    def _reply(self, response: Response, request: Incoming, endpoint: Endpoint) -> None:
        self._observe(endpoint, response.status)
        request.respond(response, endpoint.route.cors)

    def _lost(self, failure: Failure, request: Incoming) -> None:
        """The client went away, or the answer could not be written."""
        if failure.check(CancelledError) is None:
            log.failure("an answer could not be written", failure=failure)
            request.abandon()


@types.coroutine
def _rest(answering: Coroutine[Any, Any, T], awaited: Any) -> Generator[Any, Any, T]:
    """The rest of a coroutine that was begun already and waits for `awaited`.

    Most answers are there without a wait; they are spared the Deferred of `Deferred.fromCoroutine`.
    """
    try:
        while True:
            try:
                result = yield awaited
            except GeneratorExit:
                answering.close()
                raise
            except BaseException as error:
                awaited = answering.throw(error)
            else:
                awaited = answering.send(result)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]


def body_too_large(limit: int) -> MatrixError:
    """The answer to a body of more than `limit` bytes."""
    return too_large(f"The request body may have {limit} bytes at most.")


def write(request: Request, response: Response, cors: bool) -> None:
    """Send `response` over a request of Twisted's and finish it, unless the client is gone."""
    if request._disconnected:
        return
    part = None
    if response.file is not None:
        response = narrow(request.requestHeaders, response)
    if response.file is not None and request.method != b"HEAD":
        try:
            part = FilePart(response.file, response.file_offset, response.file_length, response.tail)
        except OSError:
            response = error_response(not_found("The file is gone."))
    headers = request.responseHeaders
    request.setResponseCode(response.status)
    headers.addRawHeader(b"Content-Type", response.content_type)
    if response.status != 304 and response.pieces is None:
        headers.addRawHeader(b"Content-Length", b"%d" % response.length)
    if cors:
        for name, value in CORS_HEADERS:
            headers.addRawHeader(name, value)
    for name, value in response.headers:
        headers.addRawHeader(name, value)
    if request.method != b"HEAD":
        request.write(response.body)
        channel: Any = request.channel

        def abort() -> None:
            channel.transport.abortConnection()

        if part is not None:
            send(part, request, channel.callLater, abort)
            return
        if response.pieces is not None:
            send_pieces(response.pieces, request, channel.callLater, request.write, request.finish, abort)
            return
    request.finish()


def error_response(error: MatrixError) -> Response:
    """The specification's answer for `error`; a wait is told in the header as well."""
    headers: list[tuple[bytes, bytes]] = []
    wait = error.extra.get("retry_after_ms")
    if isinstance(wait, int):
        headers.append((b"Retry-After", b"%d" % -(-wait // 1000)))
    return Response(error.status, orjson.dumps(error.body()), headers=headers)

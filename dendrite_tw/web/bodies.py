"""A site that looks at a request's head before it reads the body.

What is too large is refused before it is sent, or as soon as it grows too
large; what goes to a file (`Route.body_file`) is written there piece by piece,
and only for callers whom the endpoint admits.  A refused client may still be
sending: its connection stays open for a moment, so that it reads the answer
rather than finding the connection reset.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import RESPONSES, HTTPChannel
from twisted.web.resource import IResource
from twisted.web.server import Request, Site

from ..matrix.errors import MatrixError
from .resource import CORS_HEADERS, ApiResource, Parsed, body_too_large, error_response
from .routes import DEFAULT_BODY_LIMIT, BodyFile, Endpoint

log = Logger()

LINGER_SECONDS = 3.0
"""How long a refused client may go on sending before its connection is closed."""


class BoundedRequest(Request):
    """A request whose body is bounded while it arrives."""

    site: BoundedSite
    _limit = DEFAULT_BODY_LIMIT
    _received = 0
    _refused = False
    _heard = False
    _linger: IDelayedCall | None = None
    body_file: BodyFile | None = None

    def gotLength(self, length: int | None) -> None:
        """The head is complete: refuse now, or say where the body goes."""
        if not isinstance(self.channel, HTTPChannel):
            # Over HTTP/2 the head may not be complete here; the resource bounds the body once it is there.
            self._limit = sys.maxsize
            super().gotLength(length)
            return
        self.site = self.channel.site  # type: ignore[attr-defined]
        self.method, self.uri = self.channel._command, self.channel._path
        if length == 0:
            super().gotLength(length)
            return
        api, endpoint = self.site.endpoint_of(self.method, self.uri)
        self._limit = endpoint.route.body_limit if endpoint is not None else DEFAULT_BODY_LIMIT
        opener = endpoint.route.body_file if endpoint is not None else None
        super().gotLength(0 if opener is not None else length)
        if length is not None and length > self._limit:
            self.refuse(body_too_large(self._limit))
        elif opener is not None:
            assert api is not None and endpoint is not None
            self._admit(api, endpoint)
        if opener is not None and not self._refused:
            try:
                self.content = self.body_file = opener()
            except OSError as error:
                self.refuse(no_space(error))

    def _admit(self, api: ApiResource, endpoint: Endpoint) -> None:
        """Ask whether the caller may send a body at all; the client waits while that is not known."""
        answer = Deferred.fromCoroutine(api.admit(Parsed(self), endpoint))
        paused = None if answer.called else self.channel._networkProducer
        if paused is not None:
            paused.pauseProducing()

        def known(result: object) -> None:
            if isinstance(result, Failure):
                self._not_admitted(result)
            if paused is not None and not self._disconnected:
                paused.resumeProducing()

        answer.addBoth(known)

    def _not_admitted(self, failure: Failure) -> None:
        error = failure.value
        if not isinstance(error, MatrixError):
            log.failure("a caller could not be looked up", failure=failure)
            error = MatrixError(503, "M_UNKNOWN", "The server cannot tell who is calling; try again later.")
        if not self._heard and not self._disconnected:
            self.refuse(error)

    def handleContentChunk(self, data: bytes) -> None:
        if self._refused:
            return
        self._received += len(data)
        if self._received > self._limit:
            self.refuse(body_too_large(self._limit))
            return
        try:
            self.content.write(data)  # type: ignore[union-attr]
        except MatrixError as error:
            self.refuse(error)
        except OSError as error:
            self.refuse(no_space(error))

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        """All of the body is here.  Query and forms are left to those who want them: no ``args`` are parsed."""
        self._heard = True
        if self._refused:
            self._close()
            return
        assert self.content is not None
        self.content.seek(0)
        self.args: dict[bytes, list[bytes]] = {}
        self.method, self.uri, self.clientproto = command, path, version
        self.path = path.partition(b"?")[0]
        self.process()

    def refuse(self, error: MatrixError) -> None:
        """Answer at once, drop what still comes, and close the connection."""
        if self._refused:
            return
        self._refused = True
        if self.content is not None:
            self.content.close()
        self.requestHeaders.removeHeader(b"Expect")
        response = error_response(error)
        headers = [
            (b"Content-Type", response.content_type),
            (b"Content-Length", b"%d" % len(response.body)),
            (b"Connection", b"close"),
            *CORS_HEADERS,
            *response.headers,
        ]
        head = b"HTTP/1.1 %d %s\r\n" % (error.status, RESPONSES.get(error.status, b"Refused"))
        lines = b"".join(b"%s: %s\r\n" % header for header in headers)
        transport = self.channel.transport
        assert transport is not None
        transport.write(head + lines + b"\r\n" + response.body)
        self._linger = self.site.reactor.callLater(LINGER_SECONDS, self._close)

    def _close(self) -> None:
        """Close the connection of a refused client; it has sent all, or has had the time to."""
        self._stop_lingering()
        self.channel.loseConnection()

    def _stop_lingering(self) -> None:
        if self._linger is not None and self._linger.active():
            self._linger.cancel()

    def connectionLost(self, reason: Failure) -> None:
        self._stop_lingering()
        super().connectionLost(reason)


def no_space(error: OSError) -> MatrixError:
    """The answer where a body cannot be written."""
    log.error("a request's body cannot be written: {error}", error=error.strerror)
    return MatrixError(503, "M_UNKNOWN", "The server cannot store this now; try again later.", retry_after_ms=30_000)


class BoundedSite(Site):
    """A `Site` that knows which bodies its APIs take.

    ``apis`` are the API Resources with the path below which each is found.
    """

    def __init__(self, resource: IResource, apis: Sequence[tuple[bytes, ApiResource]], **options: Any) -> None:
        """`options` are those of `twisted.web.server.Site`."""
        super().__init__(resource, requestFactory=BoundedRequest, **options)
        self._apis = list(apis)

    def endpoint_of(self, method: bytes, uri: bytes) -> tuple[ApiResource | None, Endpoint | None]:
        """The API and the endpoint that will answer a request, where one is known."""
        for prefix, api in self._apis:
            if uri.startswith(prefix):
                endpoint = api.endpoint_of(method, uri)
                if endpoint is not None:
                    return api, endpoint
        return None, None


def apis_below(resource: IResource, path: bytes = b"") -> list[tuple[bytes, ApiResource]]:
    """The API Resources in a tree, each with its path."""
    if isinstance(resource, ApiResource):
        return [(path, resource)]
    children: dict[bytes, IResource] = getattr(resource, "children", {})
    return [found for name, child in children.items() for found in apis_below(child, path + b"/" + name)]

"""A light HTTP/1.1 client for measuring: one keep-alive connection, one request at a time.

It understands what servers under test answer (Content-Length and chunked bodies) and no more; a server that
closes the connection is dialled again by the next request.
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from typing import Any

import orjson


@dataclass(frozen=True, slots=True)
class Response:
    """Status and body of an answer."""

    status: int
    body: bytes

    def json(self) -> Any:
        """The body as JSON values."""
        return orjson.loads(self.body)


class ConnectionLostError(Exception):
    """The server closed the connection before its answer was complete."""


class Exchange(asyncio.Protocol):
    """The receiving half of one connection: bytes in, one :class:`Response` out for each :meth:`expect`."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.closed = False
        self._buffer = bytearray()
        self._waiter: asyncio.Future[Response] | None = None
        self._status = 0
        self._body_start = -1
        self._body_length = -1
        self._chunked = False
        self._closing = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def expect(self) -> asyncio.Future[Response]:
        """The answer to the request that is written next."""
        self._buffer.clear()
        self._body_start = -1
        self._waiter = asyncio.get_running_loop().create_future()
        return self._waiter

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._body_start < 0 and not self._read_head():
            return
        body = self._chunks() if self._chunked else self._counted()
        if body is not None and self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(Response(self._status, body))
            if self._closing and self.transport is not None:
                self.closed = True
                self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(ConnectionLostError(str(error or "closed by the server")))

    def _read_head(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return False
        lines = bytes(self._buffer[:end]).lower().split(b"\r\n")
        self._status = int(lines[0][9:12])
        headers = dict(line.split(b":", 1) for line in lines[1:])
        self._body_start = end + 4
        self._chunked = b"chunked" in headers.get(b"transfer-encoding", b"")
        self._body_length = int(headers.get(b"content-length", b"0"))
        self._closing = b"close" in headers.get(b"connection", b"")
        return True

    def _counted(self) -> bytes | None:
        end = self._body_start + self._body_length
        return bytes(self._buffer[self._body_start : end]) if len(self._buffer) >= end else None

    def _chunks(self) -> bytes | None:
        """The body of a chunked answer once its last chunk is in."""
        if not self._buffer.endswith(b"0\r\n\r\n"):
            return None
        parts: list[bytes] = []
        at = self._body_start
        while True:
            line_end = self._buffer.find(b"\r\n", at)
            if line_end < 0:
                return None
            size = int(bytes(self._buffer[at:line_end]).split(b";")[0], 16)
            if size == 0:
                return b"".join(parts)
            if len(self._buffer) < line_end + 2 + size + 2:
                return None
            parts.append(bytes(self._buffer[line_end + 2 : line_end + 2 + size]))
            at = line_end + 2 + size + 2


class Connection:
    """Requests to one server over one keep-alive connection; one is under way, others wait their turn."""

    def __init__(self, host: str, port: int, token: str | None = None, tls: ssl.SSLContext | None = None) -> None:
        self._host = host
        self._port = port
        self._tls = tls
        self._exchange: Exchange | None = None
        self._turn = asyncio.Lock()
        self._common = b"Host: localhost\r\nUser-Agent: bench\r\nAccept: application/json\r\n"
        if token is not None:
            self._common += b"Authorization: Bearer " + token.encode() + b"\r\n"

    async def request(
        self, method: str, path: str, body: bytes | None = None, authorization: str | None = None
    ) -> Response:
        """Send a request (``path`` percent-encoded already, ``body`` JSON) and wait for the answer.

        ``authorization`` is for this request alone, where there is no token.  Raises :class:`ConnectionLostError` or
        :class:`OSError` when the server goes away.
        """
        async with self._turn:
            return await self._request(method, path, body, authorization)

    async def _request(self, method: str, path: str, body: bytes | None, authorization: str | None) -> Response:
        exchange = self._exchange
        if exchange is None or exchange.closed:
            loop = asyncio.get_running_loop()
            _, exchange = await loop.create_connection(Exchange, self._host, self._port, ssl=self._tls)
            self._exchange = exchange
        head = f"{method} {path} HTTP/1.1\r\n".encode() + self._common
        if authorization is not None:
            head += b"Authorization: " + authorization.encode() + b"\r\n"
        if body is not None:
            head += b"Content-Type: application/json\r\nContent-Length: %d\r\n" % len(body)
        answer = exchange.expect()
        assert exchange.transport is not None
        exchange.transport.write(head + b"\r\n" + (body or b""))
        try:
            return await answer
        except asyncio.CancelledError:
            self.close()
            raise

    def close(self) -> None:
        """Hang up, whatever is under way."""
        if self._exchange is not None and self._exchange.transport is not None:
            self._exchange.closed = True
            self._exchange.transport.abort()
        self._exchange = None

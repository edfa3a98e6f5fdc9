"""Files as answers: sent piece by piece, whole, in part or not at all.

RFC 9110, "Conditional Requests" and "Range Requests".  One range of bytes is
answered; a request for several gets the whole file, which the RFC allows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import orjson
from twisted.internet.interfaces import IPushProducer
from twisted.web.http_headers import Headers
from twisted.web.server import Request
from zope.interface import implementer

from ..matrix.errors import MatrixError
from .pieces import STALLED_SECONDS, CallLater
from .routes import Response

PIECE_BYTES = 1 << 16

_RANGE = re.compile(rb"bytes=(\d{0,18})-(\d{0,18})\Z")


def byte_range(header: bytes, size: int) -> tuple[int, int] | None:
    """Offset and length that a ``Range`` header asks for, of a file of `size` bytes.

    `None` where the header is not one well-formed range and so means the whole
    file; `ValueError` where the file has no such bytes.
    """
    match = _RANGE.match(header.strip())
    if match is None or match.groups() == (b"", b""):
        return None
    first, last = match.groups()
    if not first:
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), min(size, int(last) + 1 if last else size)
        if last and int(last) < start:
            return None
    if start >= size or end <= start:
        raise ValueError("the file has no such bytes")
    return start, end - start


def narrow(request_headers: Headers, response: Response) -> Response:
    """What is left of the answer `response`, which has a file, after the request's conditions and range."""
    etag = _header(response.headers, b"etag")
    if response.status != 200 or response.body or response.tail:
        return response
    unchanged = request_headers.getRawHeaders(b"if-none-match")
    if etag is not None and unchanged and _matches(b",".join(unchanged), etag):
        return msgspec.structs.replace(response, status=304, body=b"", file=None, file_length=0)
    accepts = (*response.headers, (b"Accept-Ranges", b"bytes"))
    response = msgspec.structs.replace(response, headers=accepts)
    wanted = request_headers.getRawHeaders(b"range")
    condition = request_headers.getRawHeaders(b"if-range")
    if not wanted or (condition and condition[-1].strip() != etag):
        return response
    size = response.file_length
    try:
        part = byte_range(wanted[-1], size)
    except ValueError:
        error = MatrixError(416, "M_UNKNOWN", "The content has no such range of bytes.")
        return Response(416, orjson.dumps(error.body()), headers=[(b"Content-Range", b"bytes */%d" % size)])
    if part is None:
        return response
    offset, length = part
    return msgspec.structs.replace(
        response,
        status=206,
        file_offset=response.file_offset + offset,
        file_length=length,
        headers=(*accepts, (b"Content-Range", b"bytes %d-%d/%d" % (offset, offset + length - 1, size))),
    )


def _header(headers: Sequence[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    return next((value for key, value in headers if key.lower() == name), None)


def _matches(tags: bytes, etag: bytes) -> bool:
    """Whether an ``If-None-Match`` list names `etag`, weakly or strongly, or anything at all."""
    return any(tag.strip().removeprefix(b"W/") in (etag, b"*") for tag in tags.split(b","))


class FilePart:
    """The bytes of a file from `offset` on, `length` of them, then `tail`; `OSError` where it cannot be opened."""

    def __init__(self, path: str, offset: int, length: int, tail: bytes = b"") -> None:
        self._file = Path(path).open("rb")  # noqa: SIM115
        self._file.seek(offset)
        self._left = length
        self._tail = tail

    def read(self) -> bytes:
        """The next piece; empty at the end, or where the file is shorter than it was said to be."""
        if not self._left:
            tail, self._tail = self._tail, b""
            return tail
        data = self._file.read(min(PIECE_BYTES, self._left))
        self._left -= len(data)
        return data

    @property
    def complete(self) -> bool:
        return self._left == 0

    def close(self) -> None:
        self._file.close()


@implementer(IPushProducer)
class _Sender:
    """Writes a part to a request as fast as the client takes it."""

    def __init__(self, part: FilePart, request: Request, call_later: CallLater, abort: Callable[[], object]) -> None:
        self._part = part
        self._request = request
        self._call_later = call_later
        self._abort = abort
        self._flowing = False
        self._over = False
        self._stalled: Any = None

    def resumeProducing(self) -> None:
        self._has_taken()
        if self._over or self._flowing:
            return
        self._flowing = True
        while self._flowing and not self._over:
            try:
                data = self._part.read()
            except OSError:
                data = b""
            if data:
                self._request.write(data)
            else:
                self._finish()

    def pauseProducing(self) -> None:
        self._flowing = False
        if self._stalled is None and not self._over:
            self._stalled = self._call_later(STALLED_SECONDS, self._give_up)

    def _has_taken(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _give_up(self) -> None:
        """The client takes nothing any more: to close in order would be to wait until it does."""
        self._stalled = None
        self._abort()

    def stopProducing(self) -> None:
        """The client went away."""
        self._has_taken()
        if not self._over:
            self._over = True
            self._part.close()

    def _finish(self) -> None:
        complete = self._part.complete
        self.stopProducing()
        self._request.unregisterProducer()
        if self._request._disconnected:
            return
        if not complete:
            # The length was promised: a connection that ends early is the only way left to say so.
            self._request.loseConnection()
            return
        self._request.finish()


def send(part: FilePart, request: Request, call_later: CallLater, abort: Callable[[], object]) -> None:
    """Write `part` to `request`, then finish it; `abort` the connection of a client that takes nothing."""
    sender = _Sender(part, request, call_later, abort)
    request.notifyFinish().addErrback(lambda _: sender.stopProducing())
    request.registerProducer(sender, True)
    sender.resumeProducing()

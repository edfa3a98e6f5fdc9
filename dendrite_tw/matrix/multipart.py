"""``multipart/mixed`` as servers send media in: written around a file, read as it comes.

Server-Server API, "Content Repository"; the format is that of RFC 2046, section 5.1.
"""

from __future__ import annotations

import re

HEAD_LIMIT = 16 << 10
"""Bytes of the headers of one part."""

PREAMBLE_LIMIT = 64 << 10
PADDING_LIMIT = 100
"""Bytes before the first part, which are left out of account, and blanks after a boundary."""

_BOUNDARY = re.compile(
    r"""multipart/mixed\s*;(?:.*;)?\s*boundary\s*=\s*
    (?: "(?P<quoted>[0-9A-Za-z'()+_,\-./:=? ]{0,69}[0-9A-Za-z'()+_,\-./:=?])" | (?P<bare>[0-9A-Za-z'+_\-.]{1,70}) )
    \s*(?:;.*)?\Z""",
    re.IGNORECASE | re.VERBOSE | re.DOTALL,
)
_PADDING = re.compile(rb"[ \t]{0,%d}\r\n" % PADDING_LIMIT)
_BEGUN = re.compile(rb"[ \t]{0,%d}\r?" % PADDING_LIMIT)


class MultipartError(ValueError):
    """What came is no ``multipart/mixed``, or one without end."""


class PartHead(dict[str, str]):
    """The headers of a part, their names in lower case; its bytes follow."""


def boundary_of(content_type: str) -> bytes:
    """The boundary that a ``Content-Type`` names; `MultipartError` where that is not ``multipart/mixed`` with one."""
    match = _BOUNDARY.match(content_type.strip()) if len(content_type) <= 1000 else None
    if match is None:
        raise MultipartError("the answer is not multipart/mixed")
    return (match["quoted"] or match["bare"]).encode()


def framed(boundary: str, content_type: str, disposition: bytes) -> tuple[bytes, bytes]:
    """What goes before and after a file's bytes: empty metadata, then the file's headers; and the end."""
    head = (
        f"--{boundary}\r\nContent-Type: application/json\r\n\r\n{{}}\r\n"
        f"--{boundary}\r\nContent-Type: {content_type}\r\nContent-Disposition: "
    )
    return head.encode() + disposition + b"\r\n\r\n", f"\r\n--{boundary}--\r\n".encode()


class MultipartReader:
    """Takes the bytes of a body as they come and tells what is in them."""

    def __init__(self, boundary: bytes) -> None:
        self._delimiter = b"\r\n--" + boundary
        self._rest = b"\r\n"
        self._hidden = 0
        """How many bytes in front of ``_rest`` are a line end that belongs to what was before."""
        self._in_head = False
        self._parts = 0
        self._preamble = 0
        self.complete = False
        """Whether the end was there."""

    def feed(self, data: bytes) -> list[PartHead | bytes]:
        """The heads of parts that begin in `data`, each followed by the pieces of its body; `MultipartError`."""
        self._rest += data
        told: list[PartHead | bytes] = []
        while not self.complete:
            if not (self._read_head(told) if self._in_head else self._read_body(told)):
                return told
        self._rest = b""
        return told

    def _read_head(self, told: list[PartHead | bytes]) -> bool:
        """Take the headers in front, behind the line end of their boundary; `False` where more has to come."""
        end = self._rest.find(b"\r\n\r\n")
        if max(end, 0 if end >= 0 else len(self._rest)) > HEAD_LIMIT:
            raise MultipartError("the headers of a part are too long")
        if end < 0:
            return False
        head = PartHead()
        for line in filter(None, self._rest[2:end].decode("utf-8", "replace").split("\r\n")):
            name, colon, value = line.partition(":")
            if not colon:
                raise MultipartError("a header of a part is malformed")
            head.setdefault(name.strip().lower(), value.strip())
        told.append(head)
        self._rest = self._rest[end + 2 :]
        self._hidden = 2
        self._in_head = False
        self._parts += 1
        return True

    def _read_body(self, told: list[PartHead | bytes]) -> bool:
        """Take what belongs to the body in front, and a boundary behind it; `False` where more has to come."""
        at = self._rest.find(self._delimiter)
        if at < 0:
            self._take(len(self._rest) - len(self._delimiter) + 1, told)
            return False
        after = self._rest[at + len(self._delimiter) :][: PADDING_LIMIT + 3]
        padding = _PADDING.match(after)
        if after.startswith(b"--") or padding is not None:
            self._take(at, told)
            self.complete = padding is None
            self._in_head = not self.complete
            if padding is not None:
                self._rest = self._rest[len(self._delimiter) + padding.end() - 2 :]
            return True
        if after == b"-" or _BEGUN.fullmatch(after):
            self._take(at, told)
            return False
        self._take(at + 1, told)
        return True

    def _take(self, count: int, told: list[PartHead | bytes]) -> None:
        """Tell the first `count` bytes, unless they are before the first part."""
        if count <= 0:
            return
        piece, self._rest = self._rest[self._hidden : count], self._rest[count:]
        self._hidden = max(0, self._hidden - count)
        if not self._parts:
            self._preamble += len(piece)
            if self._preamble > PREAMBLE_LIMIT:
                raise MultipartError("there is too much before the first part")
        elif piece:
            told.append(piece)

"""The NATS protocol, pure: operations as objects, and their bytes in both directions.

Client and server are state machines over these objects.  Within one process they hand them to each other as
they are; over TCP a `Parser` makes them of bytes and `encode` makes bytes of them.  The payload is bytes
throughout, and headers stay one block of bytes (``NATS/1.0\\r\\nName: value\\r\\n\\r\\n``) until somebody
asks for a header: most messages pass through a server unread.

Reference: NATS documentation, "Client Protocol"; headers as in "NATS Message Headers".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

import msgspec
import orjson

MAX_CONTROL_LINE: Final = 4096
"""Bytes in the line of an operation; `Connect` and `Info` may be longer (`MAX_JSON_LINE`)."""
MAX_JSON_LINE: Final = 64 * 1024
DEFAULT_MAX_PAYLOAD: Final = 1024 * 1024
HEADER_LINE: Final = b"NATS/1.0"
_CRLF: Final = b"\r\n"


class ProtocolError(Exception):
    """The peer sent what the protocol does not allow; the text is what a NATS server says about it."""


class Op(msgspec.Struct, frozen=True, gc=False):
    """An operation of the protocol."""


class Connect(Op, frozen=True, gc=False):
    """The client's introduction: its options and credentials."""

    options: dict[str, Any]


class Pub(Op, frozen=True, gc=False):
    """PUB or HPUB: a message for a subject.  ``headers`` is empty or a whole header block."""

    subject: str
    reply: str
    headers: bytes
    payload: bytes


class Sub(Op, frozen=True, gc=False):
    """Ask for the messages of a subject, alone or as a member of a queue group."""

    subject: str
    queue: str
    sid: str


class Unsub(Op, frozen=True, gc=False):
    """End a subscription, at once or when it has received ``limit`` messages."""

    sid: str
    limit: int = 0


class Msg(Op, frozen=True, gc=False):
    """MSG or HMSG: a message for one subscription of the client."""

    subject: str
    sid: str
    reply: str
    headers: bytes
    payload: bytes


class Info(Op, frozen=True, gc=False):
    """The server's introduction and its later news."""

    options: dict[str, Any]


class Err(Op, frozen=True, gc=False):
    """-ERR: what the server has against the client."""

    message: str


class Ping(Op, frozen=True, gc=False):
    """Are you there?"""


class Pong(Op, frozen=True, gc=False):
    """I am here, and have seen all that you sent before the `Ping`."""


class Ok(Op, frozen=True, gc=False):
    """+OK, for clients that asked to be told (``verbose``)."""


PING: Final = Ping()
PONG: Final = Pong()
OK: Final = Ok()


# --- headers ---


def encode_headers(fields: Iterable[tuple[str, str]], status: int = 0, description: str = "") -> bytes:
    """A header block of these fields, with the inline status that servers use in answers to pull requests.

    Raises `ValueError` for a name or value that would break out of its line.
    """
    first = f"NATS/1.0 {status} {description}".rstrip() if status else "NATS/1.0"
    lines = [first]
    for name, value in fields:
        line = f"{name}: {value}"
        if not name or ":" in name or "\r" in line or "\n" in line:
            raise ValueError(f"not a header: {name!r}")
        lines.append(line)
    lines.append("\r\n")
    return "\r\n".join(lines).encode()


def decode_headers(block: bytes) -> dict[str, list[str]]:
    """The fields of a header block, in order, values of one name together; nothing is raised for odd
    lines.
    """
    fields: dict[str, list[str]] = {}
    if block:
        for line in block.decode("utf-8", "replace").split("\r\n")[1:]:
            name, colon, value = line.partition(":")
            if colon:
                fields.setdefault(name, []).append(value.strip())
    return fields


def decode_status(block: bytes) -> tuple[int, str]:
    """The inline status of a header block and its description; ``(0, "")`` without one."""
    if len(block) < 11 or block[8:9] != b" ":
        return 0, ""
    line = block[9 : block.find(_CRLF)].decode("utf-8", "replace")
    code, _, description = line.strip().partition(" ")
    return (int(code) if code.isdecimal() else 0), description.strip()


def header(block: bytes, name: str) -> str:
    """The first value of one header, without decoding the others; empty when it is absent."""
    if not block:
        return ""
    mark = b"\r\n" + name.encode() + b":"
    start = block.find(mark)
    if start < 0:
        return ""
    start += len(mark)
    return block[start : block.find(_CRLF, start)].decode("utf-8", "replace").strip()


def nats_headers(block: bytes) -> dict[str, str]:
    """The headers that are meant for the server (``Nats-…``), without their common prefix; the first of
    each.
    """
    fields: dict[str, str] = {}
    for line in block.split(b"\r\nNats-")[1:]:
        end = line.find(_CRLF)
        name, colon, value = (line if end < 0 else line[:end]).partition(b":")
        if colon:
            fields.setdefault(name.decode("utf-8", "replace"), value.strip().decode("utf-8", "replace"))
    return fields


def replace_headers(block: bytes, drop: Iterable[str], add: Mapping[str, str]) -> bytes:
    """The block without some headers and with others added."""
    dropped = set(drop)
    fields = [(name, value) for name, values in decode_headers(block).items() for value in values]
    kept = [(name, value) for name, value in fields if name not in dropped]
    kept.extend(add.items())
    return encode_headers(kept) if kept else b""


# --- objects to bytes ---


def _encode_pub(op: Pub) -> bytes:
    head = f"{op.subject} {op.reply}" if op.reply else op.subject
    size = len(op.payload)
    if op.headers:
        line = f"HPUB {head} {len(op.headers)} {len(op.headers) + size}\r\n".encode()
        return b"%b%b%b\r\n" % (line, op.headers, op.payload)
    return b"PUB %b %d\r\n%b\r\n" % (head.encode(), size, op.payload)


def _encode_msg(op: Msg) -> bytes:
    head = f"{op.subject} {op.sid} {op.reply}" if op.reply else f"{op.subject} {op.sid}"
    size = len(op.payload)
    if op.headers:
        line = f"HMSG {head} {len(op.headers)} {len(op.headers) + size}\r\n".encode()
        return b"%b%b%b\r\n" % (line, op.headers, op.payload)
    return b"MSG %b %d\r\n%b\r\n" % (head.encode(), size, op.payload)


def _encode_sub(op: Sub) -> bytes:
    middle = f" {op.queue} " if op.queue else " "
    return f"SUB {op.subject}{middle}{op.sid}\r\n".encode()


def _encode_unsub(op: Unsub) -> bytes:
    return (f"UNSUB {op.sid} {op.limit}\r\n" if op.limit else f"UNSUB {op.sid}\r\n").encode()


_ENCODERS: Final[dict[type[Op], Callable[[Any], bytes]]] = {
    Pub: _encode_pub,
    Msg: _encode_msg,
    Sub: _encode_sub,
    Unsub: _encode_unsub,
    Connect: lambda op: b"CONNECT " + orjson.dumps(op.options) + _CRLF,
    Info: lambda op: b"INFO " + orjson.dumps(op.options) + b" \r\n",
    Err: lambda op: f"-ERR '{op.message}'\r\n".encode(),
    Ping: lambda op: b"PING\r\n",
    Pong: lambda op: b"PONG\r\n",
    Ok: lambda op: b"+OK\r\n",
}


def encode(op: Op) -> bytes:
    """The bytes of an operation on the wire."""
    return _ENCODERS[type(op)](op)


# --- bytes to objects ---


class Parser:
    """Turns a stream of bytes into operations; one for each connection and direction.

    ``max_payload`` bounds headers and payload of a message together.
    """

    def __init__(self, max_payload: int = DEFAULT_MAX_PAYLOAD, max_line: int = MAX_CONTROL_LINE) -> None:
        self._pieces: list[bytes] = []
        self._held = 0
        self._needed = 0
        """Bytes that the message at the front takes; until they are here there is nothing to look at."""
        self._max_payload = max_payload
        self._max_line = max_line

    def feed(self, data: bytes) -> Iterator[Op]:
        """The operations that are complete with these bytes.

        The iterator raises `ProtocolError` after the operations before the fault; the connection is then at
        its end.
        """
        self._pieces.append(data)
        self._held += len(data)
        if self._held < self._needed:
            return
        buffer = b"".join(self._pieces) if len(self._pieces) > 1 else data
        self._needed = position = 0
        try:
            while True:
                end = buffer.find(_CRLF, position)
                if end < 0 or end - position > MAX_JSON_LINE:
                    self._check_line(
                        buffer[position : position + 8], len(buffer) - position if end < 0 else end - position
                    )
                    break
                op, position_after = (
                    self._message(buffer, position, end)
                    if buffer.startswith(b"MSG ", position)
                    else self._operation(buffer, position, end)
                )
                if op is None:
                    break
                position = position_after
                yield op
        finally:
            rest = buffer[position:] if position else buffer
            self._pieces = [rest] if rest else []
            self._held = len(rest)
            if self._needed:
                self._needed -= position

    def _check_line(self, start: bytes, length: int) -> None:
        """Raises for a line that has grown too long before its end has come."""
        name = start.upper()
        limit = MAX_JSON_LINE if name.startswith((b"CONNECT", b"INFO")) else self._max_line
        if length > limit:
            raise ProtocolError("Maximum Control Line Exceeded")

    def _message(self, buffer: bytes, start: int, end: int) -> tuple[Op | None, int]:
        """What most operations are, a plain MSG, in fewer steps; anything odd about it is for `_operation`."""
        try:
            words = buffer[start + 4 : end].decode("ascii").split(" ")
        except UnicodeDecodeError:
            return self._operation(buffer, start, end)
        count, length = len(words), words[-1]
        is_plain = 2 < count < 5 and "" not in words and length.isdecimal() and len(length) < 10
        if not is_plain or end - start > self._max_line:
            return self._operation(buffer, start, end)
        at = end + 2
        stop = at + int(length)
        if stop - at > self._max_payload or buffer[stop : stop + 2] != _CRLF:
            return self._operation(buffer, start, end)
        return Msg(words[0], words[1], words[2] if count == 4 else "", b"", buffer[at:stop]), stop + 2

    def _operation(self, buffer: bytes, start: int, end: int) -> tuple[Op | None, int]:
        if buffer.startswith(b"PUB ", start) and end - start <= self._max_line:
            return _read_pub(self, buffer, buffer[start + 4 : end], end + 2)
        first = buffer.find(b" ", start, end)
        tab = buffer.find(b"\t", start, min(end, start + 8))
        if tab >= 0 and (first < 0 or tab < first):
            first = tab
        if first < 0:
            name, rest = buffer[start:end], b""
        else:
            name, rest = buffer[start:first], buffer[first + 1 : end]
        reader = _READERS.get(name)
        if reader is None:
            reader = _READERS.get(name.upper())
            if reader is None:
                raise ProtocolError("Unknown Protocol Operation")
        if end - start > self._max_line and reader not in (_read_connect, _read_info):
            raise ProtocolError("Maximum Control Line Exceeded")
        return reader(self, buffer, rest, end + 2)

    def body(self, buffer: bytes, at: int, header_size: int, size: int) -> tuple[bytes, bytes] | None:
        """Headers and payload of a message whose line has been read; ``None`` if they are not all here
        yet.
        """
        if size > self._max_payload:
            raise ProtocolError("Maximum Payload Violation")
        end = at + size
        if len(buffer) < end + 2:
            self._needed = end + 2
            return None
        if buffer[end : end + 2] != _CRLF:
            raise ProtocolError("Unknown Protocol Operation")
        if header_size:
            block = buffer[at : at + header_size]
            if not block.startswith(HEADER_LINE) or not block.endswith(b"\r\n\r\n"):
                raise ProtocolError("Invalid Header")
            return block, buffer[at + header_size : end]
        return b"", buffer[at:end]


def _words(line: bytes, low: int, high: int, what: str) -> list[str]:
    try:
        words = line.decode().split()
    except UnicodeDecodeError:
        raise ProtocolError("Invalid Subject") from None
    if not low <= len(words) <= high:
        raise ProtocolError(f"Parser Error: {what}")
    return words


def _size(word: str) -> int:
    if len(word) > 10 or not (word.isascii() and word.isdecimal()):
        raise ProtocolError("Parser Error: size")
    return int(word)


def _read_pub(parser: Parser, buffer: bytes, rest: bytes, at: int) -> tuple[Op | None, int]:
    """The commonest of all: what the others do in steps is done here at once."""
    words = rest.split()
    count = len(words)
    if not 2 <= count <= 3:
        raise ProtocolError("Parser Error: PUB")
    digits = words[-1]
    if len(digits) > 10 or not digits.isdigit():
        raise ProtocolError("Parser Error: size")
    parts = parser.body(buffer, at, 0, int(digits))
    if parts is None:
        return None, 0
    payload = parts[1]
    try:
        subject, reply = words[0].decode(), words[1].decode() if count == 3 else ""
    except UnicodeDecodeError:
        raise ProtocolError("Invalid Subject") from None
    return Pub(subject, reply, b"", payload), at + len(payload) + 2


def _read_hpub(parser: Parser, buffer: bytes, rest: bytes, at: int) -> tuple[Op | None, int]:
    words = _words(rest, 3, 4, "HPUB")
    header_size, size = _size(words[-2]), _size(words[-1])
    if not 12 <= header_size <= size:
        raise ProtocolError("Parser Error: HPUB")
    parts = parser.body(buffer, at, header_size, size)
    if parts is None:
        return None, 0
    return Pub(words[0], words[1] if len(words) == 4 else "", *parts), at + size + 2


def _read_msg(parser: Parser, buffer: bytes, rest: bytes, at: int) -> tuple[Op | None, int]:
    words = _words(rest, 3, 4, "MSG")
    size = _size(words[-1])
    parts = parser.body(buffer, at, 0, size)
    if parts is None:
        return None, 0
    return Msg(words[0], words[1], words[2] if len(words) == 4 else "", b"", parts[1]), at + size + 2


def _read_hmsg(parser: Parser, buffer: bytes, rest: bytes, at: int) -> tuple[Op | None, int]:
    words = _words(rest, 4, 5, "HMSG")
    header_size, size = _size(words[-2]), _size(words[-1])
    if not 12 <= header_size <= size:
        raise ProtocolError("Parser Error: HMSG")
    parts = parser.body(buffer, at, header_size, size)
    if parts is None:
        return None, 0
    return Msg(words[0], words[1], words[2] if len(words) == 5 else "", *parts), at + size + 2


def _read_sub(parser: Parser, buffer: bytes, rest: bytes, at: int) -> tuple[Op | None, int]:
    words = _words(rest, 2, 3, "SUB")
    return Sub(words[0], words[1] if len(words) == 3 else "", words[-1]), at


def _read_unsub(parser: Parser, buffer: bytes, rest: bytes, at: int) -> tuple[Op | None, int]:
    words = _words(rest, 1, 2, "UNSUB")
    return Unsub(words[0], _size(words[1]) if len(words) == 2 else 0), at


def _json(rest: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(rest)
    except orjson.JSONDecodeError:
        raise ProtocolError("Parser Error: JSON") from None
    if not isinstance(value, dict):
        raise ProtocolError("Parser Error: JSON")
    return value


def _read_connect(parser: Parser, buffer: bytes, rest: bytes, at: int) -> tuple[Op | None, int]:
    return Connect(_json(rest)), at


def _read_info(parser: Parser, buffer: bytes, rest: bytes, at: int) -> tuple[Op | None, int]:
    return Info(_json(rest)), at


def _read_err(parser: Parser, buffer: bytes, rest: bytes, at: int) -> tuple[Op | None, int]:
    return Err(rest.decode("utf-8", "replace").strip().strip("'")), at


_Reader = Callable[[Parser, bytes, bytes, int], tuple[Op | None, int]]

_READERS: Final[dict[bytes, _Reader]] = {
    b"PUB": _read_pub,
    b"HPUB": _read_hpub,
    b"MSG": _read_msg,
    b"HMSG": _read_hmsg,
    b"SUB": _read_sub,
    b"UNSUB": _read_unsub,
    b"CONNECT": _read_connect,
    b"INFO": _read_info,
    b"-ERR": _read_err,
    b"PING": lambda parser, buffer, rest, at: (PING, at),
    b"PONG": lambda parser, buffer, rest, at: (PONG, at),
    b"+OK": lambda parser, buffer, rest, at: (OK, at),
}

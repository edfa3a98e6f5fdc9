"""What callers and answerers send each other, pure: kinds of messages, and long ones in parts.

A message begins with a byte that says what it is.  Requests and results are `codec.RESULT` and `codec.ERROR` with what
follows.  One that is longer than `PART` bytes, or than the broker takes, travels in parts: the receiver says how many
it has (`MORE`), and the sender is never more than `WINDOW` parts ahead.  So a long message is nowhere in the way of
short ones for longer than a few parts take, and fills no buffer of the broker.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

NOT_MINE: Final = b"\x03"
"""Not taken: this process does not answer for it (any more)."""
FAILED: Final = b"\x02"
"""Failed in a way that was not foreseen; a sentence follows."""
PART: Final = b"\x04"
MORE: Final = b"\x05"
WORKING: Final = b"\x06"
"""Somebody is at it; the reply subject is where that one is reached."""
STOP: Final = b"\x07"
"""Nobody waits for the answer any more."""

PART_BYTES: Final = 128 * 1024
WINDOW: Final = 2
MAX_BYTES: Final = 256 * 1024 * 1024
"""Bytes of one message, all parts together."""
MAX_ALL_BYTES: Final = 2 * MAX_BYTES
"""Bytes of all messages that a process is putting together at a time."""
MAX_INCOMING: Final = 256
"""Messages that a process puts together at a time."""

_PART: Final = struct.Struct(">cIQ")
_MORE: Final = struct.Struct(">cI")
OVERHEAD: Final = _PART.size

Send = Callable[[bytes], object]


class BrokenFrameError(Exception):
    """The other side sent what makes no sense, or a part of it is lost."""


class Budget:
    """Room for the messages that a process puts together."""

    def __init__(self) -> None:
        self.bytes = 0
        self.count = 0

    def take(self, size: int) -> bool:
        if self.count >= MAX_INCOMING or self.bytes + size > MAX_ALL_BYTES:
            return False
        self.bytes += size
        self.count += 1
        return True

    def give_back(self, size: int) -> None:
        self.bytes -= size
        self.count -= 1


class Outgoing:
    """A long message on its way; ``send`` is called with each part."""

    def __init__(self, message: bytes, part_bytes: int) -> None:
        self._message = memoryview(message)
        self._part_bytes = part_bytes
        self.parts = -(-len(message) // part_bytes)
        self.sent = 0
        self.received = 0

    @property
    def is_sent(self) -> bool:
        return self.sent == self.parts

    @property
    def is_received(self) -> bool:
        return self.received == self.parts

    def next_part(self) -> bytes:
        start = self.sent * self._part_bytes
        head = _PART.pack(PART, self.sent, len(self._message))
        self.sent += 1
        return head + self._message[start : start + self._part_bytes]

    def fill(self, send: Send) -> None:
        """Send as many parts as may be under way."""
        while not self.is_sent and self.sent - self.received < WINDOW:
            send(self.next_part())

    def acknowledge(self, frame: bytes) -> None:
        """The receiver has so many parts."""
        received = more_of(frame)
        if not self.received <= received <= self.sent:
            raise BrokenFrameError(f"{received} parts are acknowledged, {self.sent} were sent")
        self.received = received


class Incoming:
    """A long message that is being put together; `close` gives its room back."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._parts: list[bytes | memoryview] = []
        self._size = -1
        self._have = 0

    def add(self, frame: bytes) -> bool:
        """Take the next part; true when that was the last.  Raises `BrokenFrameError`."""
        number, size = _part_of(frame)
        if self._size < 0:
            if not 0 < size <= MAX_BYTES:
                raise BrokenFrameError(f"a message of {size} bytes")
            if not self._budget.take(size):
                raise BrokenFrameError("there is no room for another long message")
            self._size = size
        self._have += len(frame) - OVERHEAD
        if number != len(self._parts) or size != self._size or self._have > size or len(frame) <= OVERHEAD:
            raise BrokenFrameError("a part is missing, or does not fit")
        self._parts.append(memoryview(frame)[OVERHEAD:])
        return self._have == size

    def acknowledgement(self) -> bytes:
        return _MORE.pack(MORE, len(self._parts))

    def message(self) -> bytes:
        whole = b"".join(self._parts)
        self._parts.clear()
        return whole

    def close(self) -> None:
        if self._size >= 0:
            self._budget.give_back(self._size)
            self._size = -1
        self._parts.clear()


def _part_of(frame: bytes) -> tuple[int, int]:
    """The number of a part, and the size of the message that it is of."""
    try:
        _, number, size = _PART.unpack_from(frame)
    except struct.error:
        raise BrokenFrameError("a part is too short") from None
    return int(number), int(size)


def more_of(frame: bytes) -> int:
    """How many parts an acknowledgement is of."""
    try:
        return int(_MORE.unpack(frame)[1])
    except struct.error:
        raise BrokenFrameError("an acknowledgement of odd length") from None

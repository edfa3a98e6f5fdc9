"""What a stream keeps, and where: in memory here, on disk in `store`."""

from __future__ import annotations

from typing import Protocol

import msgspec


class Stored(msgspec.Struct, frozen=True, gc=False):
    """A message as a stream keeps it; ``time`` in nanoseconds since the epoch."""

    seq: int
    time: int
    subject: str
    headers: bytes
    payload: bytes


class Storage(Protocol):
    """Where the messages of a stream lie."""

    def append(self, message: Stored) -> int:
        """Keep a message; the returned place finds it again."""

    def read(self, seq: int, place: int) -> Stored | None:
        """The message at a place, or ``None`` if it cannot be read."""

    def release(self, seq: int, place: int, size: int) -> None:
        """The message is no longer needed; its room may be used again."""

    def erased(self, seqs: list[int]) -> None:
        """These messages were deleted on request: they must not come back after a restart."""

    def floor(self, seq: int) -> None:
        """Nothing below this sequence will be asked for again."""

    def skipped(self, seq: int) -> None:
        """The stream passed over sequences up to this one without keeping a message."""


class MemoryStorage:
    """Messages in a dictionary: gone with the process."""

    def __init__(self) -> None:
        self._messages: dict[int, Stored] = {}

    def append(self, message: Stored) -> int:
        self._messages[message.seq] = message
        return 0

    def read(self, seq: int, place: int) -> Stored | None:
        return self._messages.get(seq)

    def release(self, seq: int, place: int, size: int) -> None:
        self._messages.pop(seq, None)

    def erased(self, seqs: list[int]) -> None:
        """Nothing to remember."""

    def floor(self, seq: int) -> None:
        """Nothing to remember."""

    def skipped(self, seq: int) -> None:
        """Nothing to remember."""

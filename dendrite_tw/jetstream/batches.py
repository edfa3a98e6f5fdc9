"""Atomic batches, pure: messages that enter a stream all together or not at all.

Messages of a batch name it and are numbered; the one that commits ends it.  Until then they are only staged.
Reference: NATS documentation, "Atomic Batch Publishing" (ADR-50).
"""

from __future__ import annotations

from typing import Final

import msgspec

from dendrite_tw.jetstream import errors, wire
from dendrite_tw.jetstream.errors import refusal
from dendrite_tw.jetstream.times import SECOND

MAX_BATCH: Final = 1000
MAX_OPEN: Final = 50
"""Batches of one stream that may be open at a time."""
MAX_ID: Final = 64
PATIENCE: Final = 10 * SECOND
"""How long a batch waits for its next message, in nanoseconds."""


class Staged(msgspec.Struct, frozen=True):
    """A message of a batch that has not been committed."""

    subject: str
    headers: bytes
    payload: bytes


class _Open:
    def __init__(self) -> None:
        self.messages: list[Staged] = []
        self.touched = 0


class Batches:
    """The open batches of one stream."""

    def __init__(self) -> None:
        self._open: dict[str, _Open] = {}

    def take(self, asked: dict[str, str], message: Staged, now: int) -> list[Staged] | None:
        """Stage a message; returns the whole batch when this message commits it, otherwise ``None``.

        ``asked`` are its ``Nats-`` headers.  Raises `errors.ApiError`, and then the batch is given up.
        """
        name = asked["Batch-Id"]
        number, commit = asked.get("Batch-Sequence", ""), asked.get("Batch-Commit", "")
        if not 0 < len(name) <= MAX_ID:
            raise refusal(errors.BATCH_INVALID_ID)
        if not number.isdecimal() or not int(number):
            raise refusal(errors.BATCH_SEQUENCE_MISSING)
        self._forget_old(now)
        batch = self._continue(name, int(number))
        batch.touched = now
        if commit not in ("", "1", "eob"):
            del self._open[name]
            raise refusal(errors.BATCH_INVALID_COMMIT)
        if commit != "eob":
            batch.messages.append(message)
        if len(batch.messages) > MAX_BATCH:
            del self._open[name]
            raise refusal(errors.BATCH_TOO_LARGE, MAX_BATCH)
        if not commit:
            return None
        del self._open[name]
        if not batch.messages:
            raise refusal(errors.BATCH_INCOMPLETE)
        return _sealed(batch.messages)

    def _continue(self, name: str, number: int) -> _Open:
        batch = self._open.get(name)
        if number == 1:
            if batch is None and len(self._open) >= MAX_OPEN:
                raise refusal(errors.BATCH_INCOMPLETE)
            batch = self._open[name] = _Open()
        if batch is None or len(batch.messages) != number - 1:
            self._open.pop(name, None)
            raise refusal(errors.BATCH_INCOMPLETE)
        return batch

    def _forget_old(self, now: int) -> None:
        for name in [name for name, batch in self._open.items() if now - batch.touched > PATIENCE]:
            del self._open[name]


def _sealed(messages: list[Staged]) -> list[Staged]:
    """The batch with the mark of the commit on its last message, by which recovery knows that it is whole."""
    last = messages[-1]
    if "Batch-Commit" not in wire.nats_headers(last.headers):
        block = wire.replace_headers(last.headers, (), {"Nats-Batch-Commit": "1"})
        messages[-1] = Staged(last.subject, block, last.payload)
    return messages

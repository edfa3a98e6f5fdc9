"""Numbers for events and snapshots, known before the transaction that stores them."""

from __future__ import annotations

from collections.abc import Iterator

from ..database.engines import Database
from .tables import events as event_table

BLOCK = 1000
"""How many numbers are reserved at once."""


class Numbers:
    """The numbers of one counter, reserved in blocks."""

    def __init__(self, database: Database, name: str) -> None:
        self._database = database
        self._name = name
        self._next = 0
        self._end = 0
        self._forgotten = 0

    def forget(self) -> None:
        """Take further numbers from above all that any process has been given until now."""
        self._next = self._end = 0
        self._forgotten += 1

    async def take(self, count: int) -> Iterator[int]:
        """`count` numbers in growing order, which nobody else is given."""
        while self._end - self._next < count:
            block = max(BLOCK, count)
            forgotten = self._forgotten
            first = await self._database.write(event_table.take_block, self._name, block)
            if forgotten == self._forgotten:
                self._next, self._end = first, first + block
        first = self._next
        self._next += count
        return iter(range(first, self._next))

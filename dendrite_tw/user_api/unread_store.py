"""Unread counts between memory and disk.

New events are in memory at once and go to disk in batches, together with the
position that the consumer has reached: what a crash takes is delivered again.
What is read from disk is completed with what is still on its way there.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar

import msgspec
from twisted.internet.defer import DeferredLock

from ..cache import Cache, CacheBudget
from ..database.engines import Database
from ..database.statements import Transaction
from .counts import EVERYTHING, WHOLE, Reader, RoomLog, Span
from .settings import LOG_LIMIT
from .tables import unread as table
from .tables.unread import LogRow, MarkRow, PersonalRow

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

CONSUMER = "UserAPIRoomServerConsumer"
MEASURED_EVERY = 50
"""After how many more events the bytes of a log are estimated again."""

TRIM_AT_ONCE = 64
"""By how much a log may be too long before it is cut."""

READER_BYTES = 1000
SPANS_BYTES = 400


class Batch:
    """What is on its way to disk."""

    def __init__(self) -> None:
        self.log: list[LogRow] = []
        self.personal: list[PersonalRow] = []
        self.marks: dict[tuple[str, str, str], int] = {}
        self.trims: dict[str, int] = {}
        self.position = 0

    def __len__(self) -> int:
        return len(self.log) + len(self.personal) + len(self.marks)

    def follow(self, later: Batch) -> None:
        """Take `later` up behind this one."""
        self.log += later.log
        self.personal += later.personal
        for key, position in later.marks.items():
            self.marks[key] = max(position, self.marks.get(key, 0))
        self.trims |= later.trims
        self.position = max(self.position, later.position)


class UnreadStore:
    """Logs of rooms and readers of rooms, in memory as far as they are used."""

    def __init__(self, database: Database, budget: CacheBudget) -> None:
        self._database = database
        self._logs: Cache[str, RoomLog] = Cache("unread_logs", budget, lambda log: 800 + 10 * log.size)
        self._readers: Cache[tuple[str, str], Reader] = Cache("unread_readers", budget, lambda reader: READER_BYTES)
        self._spans: Cache[str, dict[str, Span]] = Cache("unread_spans", budget, lambda spans: SPANS_BYTES)
        self._waiting = Batch()
        self._leaving: Batch | None = None
        self._lock = DeferredLock()
        self.on_stored: Callable[[int], None] = lambda position: None
        """Is told of the position up to which all is stored, each time it is."""

    # --- questions ---

    async def log(self, room_id: str) -> RoomLog:
        """The log of a room."""
        known = self._logs.get(room_id)
        if known is None:
            known = RoomLog(await self._database.read(table.log, room_id))
            for batch in self._batches():
                for row in batch.log:
                    if row.room_id == room_id:
                        known.add(row.thread_id, row.position, bool(row.highlight))
            known = _first(self._logs, room_id, known)
        return known

    async def reader(self, user_id: str, room_id: str) -> Reader:
        """A user in a room."""
        key = (user_id, room_id)
        known = self._readers.get(key)
        if known is None:
            known = Reader(*await self._database.read(_reader_rows, user_id, room_id))
            for batch in self._batches():
                for row in batch.personal:
                    if (row.user_id, row.room_id) == key:
                        known.add(row)
                for (user, room, thread_id), position in batch.marks.items():
                    if (user, room) == key:
                        known.mark(thread_id, position)
            known = _first(self._readers, key, known)
        return known

    async def span(self, user_id: str, room_id: str) -> Span:
        """The part of the room's log that counts for the user."""
        spans = self._spans.get(user_id)
        if spans is None:
            rows = await self._database.read(table.spans, user_id)
            stored = {row.room_id: (row.after_position, row.upto_position) for row in rows}
            spans = _first(self._spans, user_id, stored)
        if not spans:
            return WHOLE
        everywhere, here = spans.get("", WHOLE), spans.get(room_id.lower(), WHOLE)
        return max(everywhere[0], here[0]), min(everywhere[1], here[1])

    async def stored_position(self) -> int:
        """The position up to which events are on disk."""
        return await self._database.read(table.consumer_position, CONSUMER) or 0

    def _batches(self) -> list[Batch]:
        return [self._waiting] if self._leaving is None else [self._leaving, self._waiting]

    # --- changes ---

    async def add_log(self, row: LogRow) -> None:
        """An event that notifies everybody with the default rules."""
        log = await self.log(row.room_id)
        log.add(row.thread_id, row.position, bool(row.highlight))
        if log.size % MEASURED_EVERY == 0:
            self._logs.put(row.room_id, log)
        self._waiting.log.append(row)
        upto = log.trim() if log.size >= LOG_LIMIT + TRIM_AT_ONCE else 0
        if upto:
            self._waiting.trims[row.room_id] = upto

    def add_personal(self, row: PersonalRow) -> None:
        """An event that means something of its own to one user."""
        reader = self._readers.peek((row.user_id, row.room_id))
        if reader is not None:
            reader.add(row)
        self._waiting.personal.append(row)

    def add_mark(self, user_id: str, room_id: str, thread_id: str, position: int) -> None:
        """A user has read up to `position` by sending an event or joining."""
        reader = self._readers.peek((user_id, room_id))
        if reader is not None:
            reader.mark(thread_id, position)
        key = (user_id, room_id, thread_id)
        self._waiting.marks[key] = max(position, self._waiting.marks.get(key, 0))

    async def mark_now(self, txn: Transaction, user_id: str, room_id: str, thread_id: str, position: int) -> None:
        """A user has read up to `position` by a receipt, which is stored within `txn`."""
        await table.raise_marks(txn, [(user_id, room_id, thread_id, position)])
        if thread_id == EVERYTHING:
            await table.delete_marks_upto(txn, user_id, room_id, position)

        def committed() -> None:
            reader = self._readers.peek((user_id, room_id))
            if reader is not None:
                reader.mark(thread_id, position)

        txn.after_commit(committed)

    async def put_spans(self, user_id: str, spans: dict[str, Span]) -> None:
        """Other parts of logs count for a user from now on; room IDs are in lower case."""
        known = self._spans.peek(user_id)
        if known is not None:
            known.update(spans)
        rows = [(user_id, room_id, after, upto) for room_id, (after, upto) in spans.items()]
        await self._database.write(table.put_spans, rows)

    async def remove_event(self, room_id: str, position: int) -> None:
        """An event was redacted: it is nothing to be told of any more."""
        log = self._logs.peek(room_id)
        if log is not None:
            log.remove(position)
        concerned: list[str] = []
        for batch in self._batches():
            concerned += [row.user_id for row in batch.personal if (row.room_id, row.position) == (room_id, position)]
            batch.log = [row for row in batch.log if (row.room_id, row.position) != (room_id, position)]
            batch.personal = [row for row in batch.personal if (row.room_id, row.position) != (room_id, position)]
        concerned += await self._database.write(_delete_event, room_id, position)
        for user_id in concerned:
            reader = self._readers.peek((user_id, room_id))
            if reader is not None:
                reader.remove(position)

    async def delete_room(self, room_id: str) -> int:
        """Forget a room; returns the number of rows that went."""
        self._logs.pop(room_id)
        for batch in self._batches():
            batch.log = [row for row in batch.log if row.room_id != room_id]
            batch.personal = [row for row in batch.personal if row.room_id != room_id]
            batch.marks = {key: position for key, position in batch.marks.items() if key[1] != room_id}
        users, rows = await self._database.write(_delete_room, room_id)
        for user_id in users:
            self._readers.pop((user_id, room_id))
        return rows

    # --- to disk ---

    async def flush(self, position: int) -> None:
        """Store what is new, and that events up to `position` are taken into account."""
        await self._lock.acquire()
        try:
            await self._flush(position)
        finally:
            self._lock.release()

    async def _flush(self, position: int) -> None:
        batch, self._waiting = self._waiting, Batch()
        batch.position = max(batch.position, position)
        self._leaving = batch
        try:
            await self._database.write(_store, batch)
            self.on_stored(batch.position)
        except BaseException:
            batch.follow(self._waiting)
            self._waiting = batch
            raise
        finally:
            self._leaving = None


async def _reader_rows(txn: Transaction, user_id: str, room_id: str) -> tuple[list[MarkRow], list[PersonalRow]]:
    marks = await table.marks(txn, user_id, room_id)
    after = next((row.event_position for row in marks if row.thread_id == EVERYTHING), 0)
    newest = await table.personal(txn, user_id, room_id, after, LOG_LIMIT)
    return marks, newest[::-1]


async def _delete_event(txn: Transaction, room_id: str, position: int) -> list[str]:
    """Forget an event; returns the users for whom it meant something of its own."""
    users = await table.users_of_event(txn, room_id, position)
    await table.delete_logged(txn, room_id, position)
    await table.delete_personal(txn, room_id, position)
    return users


async def _delete_room(txn: Transaction, room_id: str) -> tuple[list[str], int]:
    """Forget a room; returns the users of whom something was stored, and how many rows went."""
    return await table.users_of_room(txn, room_id), await table.delete_room(txn, room_id)


async def _store(txn: Transaction, batch: Batch) -> None:
    await table.insert_log(txn, [msgspec.structs.astuple(row) for row in batch.log])
    await table.insert_personal(txn, [msgspec.structs.astuple(row) for row in batch.personal])
    await table.raise_marks(txn, [(*key, position) for key, position in batch.marks.items()])
    for room_id, upto in batch.trims.items():
        await table.trim_log(txn, room_id, upto)
    await table.put_consumer_position(txn, CONSUMER, batch.position)


def _first(cache: Cache[K, V], key: K, value: V) -> V:
    """The value at `key` that others may have loaded meanwhile, or else `value`, which is kept."""
    there = cache.peek(key)
    if there is not None:
        return there
    cache.put(key, value)
    return value

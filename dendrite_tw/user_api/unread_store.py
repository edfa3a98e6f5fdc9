"""Unread counts between memory and disk.

New events are in memory at once and go to disk in batches, together with the
position that the consumer has reached: what a crash takes is delivered again.
What is read from disk is completed with what is still on its way there.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from typing import Concatenate, NamedTuple, ParamSpec, TypeVar

import msgspec
from twisted.internet.defer import DeferredLock

from ..cache import Cache, CacheBudget
from ..database.engines import Database
from ..database.statements import Transaction
from ..links.echoes import Echoes, NoEchoes
from ..matrix.push_rules import RuleSet
from .api import UnreadChange
from .counts import EVERYTHING, Reader, RoomLog, Span, Spans, span_in
from .push_rules import rules_in
from .settings import LOG_LIMIT
from .tables import push_rule_changes as change_table
from .tables import unread as table
from .tables.unread import LogRow, MarkRow, PersonalRow

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
P = ParamSpec("P")
T = TypeVar("T")

SpansOf = Callable[[RuleSet, RuleSet, int], Spans]
"""What counts from a position on for a user whose rules changed, and up to there: old rules, new ones, position."""

CONSUMER = "UserAPIRoomServerConsumer"

READ_MARKS = "read_marks"
"""The topic of the echoes that tell how far users have read; the payload is an `UnreadChange`."""

NO_ECHOES = NoEchoes()
MEASURED_EVERY = 50
"""After how many more events the bytes of a log are estimated again."""

TRIM_AT_ONCE = 64
"""By how much a log may be too long before it is cut."""

READER_BYTES = 1000
SPANS_BYTES = 400


class RuleChange(NamedTuple):
    """A user whose push rules are others now."""

    user_id: str
    old: RuleSet
    new: RuleSet


async def nothing(txn: Transaction) -> None:
    """What goes with a flush that is nothing but one."""


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

    def __init__(self, database: Database, budget: CacheBudget, echoes: Echoes = NO_ECHOES) -> None:
        self._database = database
        self._echoes = echoes
        self._logs: Cache[str, RoomLog] = Cache("unread_logs", budget, lambda log: 800 + 10 * log.size)
        self._readers: Cache[tuple[str, str], Reader] = Cache("unread_readers", budget, lambda reader: READER_BYTES)
        self._spans: Cache[str, Spans] = Cache("unread_spans", budget, lambda spans: SPANS_BYTES)
        self._waiting = Batch()
        self._leaving: Batch | None = None
        self._generation = 0
        self._reading: list[str] = []
        """Users of whom something is being read."""
        self._lock = DeferredLock()
        echoes.hear(READ_MARKS, self.heard_mark)
        echoes.on_missed(self.forget_marks)
        self.on_stored: Callable[[int], None] = lambda position: None
        """Is told of the position up to which all is stored, each time it is."""

    # --- questions ---

    def known(self, user_id: str, room_ids: Sequence[str]) -> list[tuple[str, Reader, RoomLog, Span]] | None:
        """A user in rooms, the rooms' logs and what of them counts; `None` unless all of it is in memory."""
        spans = self._spans.get(user_id)
        if spans is None or not self._echoes.hearing:
            return None
        found = []
        for room_id in room_ids:
            reader, log = self._readers.get((user_id, room_id)), self._logs.get(room_id)
            if reader is None or log is None:
                return None
            found.append((room_id, reader, log, span_in(spans, room_id)))
        return found

    async def logs(self, room_ids: Sequence[str]) -> dict[str, RoomLog]:
        """The logs of rooms; what is not in memory is read at once for all of them."""
        found = zip(room_ids, self._logs.get_many(room_ids), strict=True)
        logs = {room_id: log for room_id, log in found if log is not None}
        missing = [room_id for room_id in room_ids if room_id not in logs]
        if not missing:
            return logs
        loaded: dict[str, list[LogRow]] = {room_id: [] for room_id in missing}
        rows, batches = await self._read(table.logs, missing)
        for row in rows:
            loaded[row.room_id].append(row)
        for batch in batches:
            for row in batch.log:
                if row.room_id in loaded:
                    loaded[row.room_id].append(row)
        for room_id, rows in loaded.items():
            logs[room_id] = _first(self._logs, room_id, RoomLog(rows))
        return logs

    async def readers(self, user_id: str, room_ids: Sequence[str]) -> dict[str, Reader]:
        """A user in rooms; what is not in memory is read at once for all of them.

        In a shared database other processes raise marks, and tell (`heard_mark`); while that cannot be heard, marks
        are read each time.
        """
        deaf = not self._echoes.hearing
        found = zip(room_ids, self._readers.get_many((user_id, room_id) for room_id in room_ids), strict=True)
        readers = {room_id: reader for room_id, reader in found if reader is not None}
        missing = [room_id for room_id in room_ids if room_id not in readers]
        if missing or deaf:
            marked = room_ids if deaf else missing
            self._reading.append(user_id)
            try:
                (marks, personal), batches = await self._read(_reader_rows, user_id, marked, missing)
            finally:
                self._reading.remove(user_id)
            loaded = {room_id: Reader((), ()) for room_id in missing}
            for mark in marks:
                (loaded.get(mark.room_id) or readers[mark.room_id]).mark(mark.thread_id, mark.event_position)
            for row in personal:
                loaded[row.room_id].add(row)
            add_waiting(user_id, loaded, batches)
            for room_id, reader in loaded.items():
                readers[room_id] = _first(self._readers, (user_id, room_id), reader)
        return readers

    async def marked(self, user_id: str, room_ids: Sequence[str]) -> dict[str, Reader]:
        """How far a user has read rooms, and nothing else; of any process."""
        readers = {room_id: Reader((), ()) for room_id in room_ids}
        marks, batches = await self._read(table.marks, user_id, room_ids)
        for mark in marks:
            readers[mark.room_id].mark(mark.thread_id, mark.event_position)
        add_waiting(user_id, readers, batches)
        return readers

    async def spans(self, user_id: str) -> Spans:
        """The parts of rooms' logs that count for the user."""
        spans = self._spans.get(user_id)
        if spans is None:
            spans = _first(self._spans, user_id, await self.stored_spans(user_id))
        return spans

    async def stored_spans(self, user_id: str) -> Spans:
        """As `spans`; of any process."""
        rows = await self._database.read(table.spans, user_id)
        return {row.room_id: (row.after_position, row.upto_position) for row in rows}

    async def stored_position(self) -> int:
        """The position up to which events are on disk."""
        return await self._database.read(table.consumer_position, CONSUMER) or 0

    async def _read(
        self, function: Callable[Concatenate[Transaction, P], Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> tuple[T, list[Batch]]:
        """What is on disk, and what has to be added to it: what was on its way there at some time meanwhile.

        Read again where something of it was taken away, or raised, meanwhile.
        """
        while True:
            generation, batches = self._generation, self._batches()
            found = await self._database.read(function, *args, **kwargs)
            if generation == self._generation:
                return found, batches + [batch for batch in self._batches() if batch not in batches]

    def _batches(self) -> list[Batch]:
        return [self._waiting] if self._leaving is None else [self._leaving, self._waiting]

    # --- changes ---

    async def add_log(self, row: LogRow) -> None:
        """An event that notifies everybody with the default rules."""
        log = (await self.logs([row.room_id]))[row.room_id]
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

    async def mark_now(self, txn: Transaction, change: UnreadChange) -> None:
        """A user has read on by a receipt, which is stored within `txn`."""
        user_id, room_id, thread_id, position = change.user_id, change.room_id, change.thread_id, change.read_upto
        await table.raise_marks(txn, [(user_id, room_id, thread_id, position)])
        if thread_id == EVERYTHING:
            await table.delete_marks_upto(txn, user_id, room_id, position)

        def committed() -> None:
            self._marked(change)
            if self._database.shared:
                self._echoes.tell(READ_MARKS, msgspec.msgpack.encode(change))

        txn.after_commit(committed)

    def _marked(self, change: UnreadChange) -> None:
        """A mark was raised on disk."""
        if change.user_id in self._reading:
            self._generation += 1
        reader = self._readers.peek((change.user_id, change.room_id))
        if reader is not None:
            reader.mark(change.thread_id, change.read_upto)

    def heard_mark(self, payload: bytes) -> None:
        """Another process raised a mark: at once by an echo, and surely by what its transaction told on the stream."""
        self._marked(msgspec.msgpack.decode(payload, type=UnreadChange))

    def forget_marks(self) -> None:
        """Marks may have been raised of which nothing was heard."""
        self._generation += 1
        self._readers.clear()

    async def take_up_rules(self, position: int, spans_of: SpansOf) -> list[RuleChange]:
        """Take up push rules that changed: they count for events after `position`, up to which all were given here.

        One transaction stores what was on its way to disk, up to where the old rules count, and that this was
        done.  So it is as exact where the process ends in the middle.
        """

        async def take_up(txn: Transaction) -> list[RuleChange]:
            changes = [
                RuleChange(row.user_id, rules_in(row.content), rules_in(row.stored))
                for row in await change_table.changes(txn)
            ]
            rows = [
                (change.user_id, room_id, *span)
                for change in changes
                for room_id, span in spans_of(change.old, change.new, position).items()
            ]
            await table.put_spans(txn, rows)
            await change_table.delete(txn, [change.user_id for change in changes])
            return changes

        if not await self._database.read(change_table.changes):
            return []
        changes = await self._flush_with(position, take_up)
        for change in changes:
            self._spans.pop(change.user_id)
        return changes

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
        self._generation += 1
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
        self._generation += 1
        for user_id in users:
            self._readers.pop((user_id, room_id))
        return rows

    def forget_all(self) -> None:
        """Another process counts from now on."""
        self._waiting = Batch()
        for cache in (self._logs, self._readers, self._spans):
            cache.clear()

    # --- to disk ---

    async def flush(self, position: int, also: Callable[[Transaction], Awaitable[None]] = nothing) -> None:
        """Store what is new, and that events up to `position` are taken into account; `also` with it."""
        await self._flush_with(position, also)

    async def _flush_with(self, position: int, also: Callable[[Transaction], Awaitable[T]]) -> T:
        """As `flush`, with `also` in the same transaction."""
        await self._lock.acquire()
        try:
            return await self._flush(position, also)
        finally:
            self._lock.release()

    async def _flush(self, position: int, also: Callable[[Transaction], Awaitable[T]]) -> T:
        batch, self._waiting = self._waiting, Batch()
        batch.position = max(batch.position, position)
        self._leaving = batch
        try:
            result = await self._database.write(_store, batch, also)
            self.on_stored(batch.position)
            return result
        except BaseException:
            batch.follow(self._waiting)
            self._waiting = batch
            raise
        finally:
            self._leaving = None


def add_waiting(user_id: str, readers: Mapping[str, Reader], batches: Sequence[Batch]) -> None:
    """Complete what was read of a user with what was on its way to disk."""
    for batch in batches:
        for row in batch.personal:
            if row.user_id == user_id and row.room_id in readers:
                readers[row.room_id].add(row)
        for (user, room_id, thread_id), position in batch.marks.items():
            if user == user_id and room_id in readers:
                readers[room_id].mark(thread_id, position)


async def _reader_rows(
    txn: Transaction, user_id: str, marked: Sequence[str], missing: Sequence[str]
) -> tuple[list[MarkRow], list[PersonalRow]]:
    marks = await table.marks(txn, user_id, marked)
    return marks, await table.personal(txn, user_id, missing, LOG_LIMIT) if missing else []


async def _delete_event(txn: Transaction, room_id: str, position: int) -> list[str]:
    """Forget an event; returns the users for whom it meant something of its own."""
    users = await table.users_of_event(txn, room_id, position)
    await table.delete_logged(txn, room_id, position)
    await table.delete_personal(txn, room_id, position)
    return users


async def _delete_room(txn: Transaction, room_id: str) -> tuple[list[str], int]:
    """Forget a room; returns the users of whom something was stored, and how many rows went."""
    return await table.users_of_room(txn, room_id), await table.delete_room(txn, room_id)


async def _store(txn: Transaction, batch: Batch, also: Callable[[Transaction], Awaitable[T]]) -> T:
    await table.insert_log(txn, [msgspec.structs.astuple(row) for row in batch.log])
    await table.insert_personal(txn, [msgspec.structs.astuple(row) for row in batch.personal])
    await table.raise_marks(txn, [(*key, position) for key, position in batch.marks.items()])
    for room_id, upto in batch.trims.items():
        await table.trim_log(txn, room_id, upto)
    await table.put_consumer_position(txn, CONSUMER, batch.position)
    return await also(txn)


def _first(cache: Cache[K, V], key: K, value: V) -> V:
    """The value at `key` that others may have loaded meanwhile, or else `value`, which is kept."""
    there = cache.peek(key)
    if there is not None:
        return there
    cache.put(key, value)
    return value

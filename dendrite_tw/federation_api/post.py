"""What waits for other servers, on disk: put in, taken out a batch at a time, collapsed for who is far behind.

Whatever is put in is stored in one transaction with the position of the consumer that puts it in, and is deleted in
the one that notes the answer.  `Post` is of a process that has the database to itself (`shared_post` is for others); it
keeps the order by doing one thing after the other: between the choice of a place for a row and the commit no other row
gets a place.

**Far behind.**  A server that was given up, or for which more than `EVENTS_KEPT` events wait, is kept only the newest
event of each room (``destination_rooms``).  When it is there again it is told of each room's newest events: the last
of ours where it is still an end of the room's history, else what is.  It then asks for what lies before them
(``/get_missing_events``, ``/backfill``, ``/state_ids``), as after any gap.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec
from twisted.internet.defer import DeferredLock

from ..database.engines import Database
from ..database.statements import Transaction
from ..matrix.transactions import MAX_PDUS
from ..room_api.api import RoomAPI
from .destinations import Destinations
from .queue import Numbers, OpenBatch, OutgoingEdu, OutgoingEvent, Queue
from .tables import queues as table
from .tables.queues import QueuedEdu, QueuedEvent

EVENTS_KEPT = 5_000
"""Events that wait for one server before it counts as far behind: a hundred transactions."""

EXTREMITIES_TOLD = 5
"""How many ends of a room's history a server that was away is told of."""

ALWAYS_NEWEST = "m.receipt"
"""The kind of EDU of which the newest replaces others even for a server that is there."""


class Batch(msgspec.Struct, frozen=True):
    """What goes into one transaction; its number names it."""

    number: int
    events: list[QueuedEvent]
    edus: list[QueuedEdu]


class Parcel:
    """What a consumer has for the post, and up to where it has read."""

    def __init__(self) -> None:
        self.events: list[OutgoingEvent] = []
        self.edus: list[OutgoingEdu] = []
        self.rows = 0
        """How many rows this makes, about: one for each thing and server."""

    def add_event(self, event: OutgoingEvent) -> None:
        if event.servers:
            self.events.append(event)
            self.rows += len(event.servers)

    def add_edu(self, edu: OutgoingEdu) -> None:
        if edu.servers:
            self.edus.append(edu)
            self.rows += len(edu.servers)

    def lingers(self) -> dict[str, float]:
        """The servers concerned, each with how many seconds what is for it may wait for company."""
        servers: dict[str, float] = {}
        for edu in self.edus:
            for server in edu.servers:
                servers[server] = min(edu.linger, servers.get(server, edu.linger))
        for event in self.events:
            servers |= dict.fromkeys(event.servers, 0.0)
        return servers


Drop = Callable[[Transaction, Sequence[tuple[str, str]]], Awaitable[None]]
"""Deletes the EDUs with these keys that wait for these servers."""


class Rows:
    """The rows that a parcel makes."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int, int, int, str, str]] = []
        self.rooms: list[tuple[str, str, int, str]] = []
        self.edus: list[tuple[int, str, bytes]] = []
        self.addressed: dict[tuple[Any, ...], tuple[str, int, int, int, str]] = {}
        """By the place, or by server and collapse key where the newest goes in the place of all others."""
        self.replaced: list[tuple[str, str]] = []


class Post:
    """Keeps the queues of all destinations; ``queues`` holds those that anything is known of."""

    def __init__(self, database: Database, rooms: RoomAPI, destinations: Destinations, numbers: Numbers) -> None:
        self._database = database
        self._rooms = rooms
        self._destinations = destinations
        self.numbers = numbers
        self._lock = DeferredLock()
        self.queues: dict[str, Queue] = {}

    def prepare(self) -> None:
        """Read for whom anything waits, before the reactor runs."""
        self._database.prepare(_name_all)
        self.numbers.highest = self._database.prepare(table.highest_number)
        for row in self._database.prepare(table.event_counts):
            self.queue(row.destination).events = row.rows
        for row in self._database.prepare(table.room_counts):
            self.queue(row.destination).behind = True
        for row in self._database.prepare(table.edu_counts):
            self.queue(row.destination).edus = True

    def queue(self, server: str) -> Queue:
        """The queue of a destination, a new one if nothing is known of it."""
        known = self.queues.get(server)
        if known is None:
            known = self.queues[server] = Queue(server)
        return known

    async def waiting(self) -> list[str]:
        """The servers for which anything waits, and those of which something is remembered."""
        return list(self.queues)

    # --- putting in ---

    async def put(self, parcel: Parcel, consumer: str, position: int) -> dict[str, float]:
        """Store what a consumer has, and that it has read up to `position`; nothing where that is known already.

        Returns the servers concerned that this process sends to, each with how many seconds what is new may wait for
        company.
        """
        await self._lock.acquire()
        try:
            rows = self._addressed(parcel, self.queue, self.numbers)
            await self._database.write(store_rows, rows, consumer, position, table.drop_replaced)
            for server, *_ in rows.events:
                self.queue(server).events += 1
            for server, *_ in rows.addressed.values():
                self.queue(server).edus = True
        finally:
            self._lock.release()
        return parcel.lingers()

    def _addressed(self, parcel: Parcel, batch_of: Callable[[str], OpenBatch], numbers: Numbers) -> Rows:
        """The rows of a parcel, each in its place in the batch that is open for its server."""
        rows = Rows()
        for event in parcel.events:
            for server in event.servers:
                batch = batch_of(server)
                if self._destinations.is_given_up(server):
                    batch.behind = True
                if batch.behind:
                    rows.rooms.append((server, event.room_id, event.position, event.event_id))
                else:
                    place = batch.place_event(numbers)
                    rows.events.append((server, *place, event.position, event.room_id, event.event_id))
        for edu in parcel.edus:
            edu_id = numbers.next()
            if sum(self._address_edu(rows, edu, edu_id, server, batch_of(server), numbers) for server in edu.servers):
                rows.edus.append((edu_id, edu.edu_type, edu.content))
        return rows

    def _address_edu(
        self, rows: Rows, edu: OutgoingEdu, edu_id: int, server: str, batch: OpenBatch, numbers: Numbers
    ) -> bool:
        """Give an EDU its place at one server; false where it is not worth one."""
        key = edu.collapse_key
        alone = bool(key) and self._destinations.failures(server) > 0
        if alone:
            if edu.edu_type == ALWAYS_NEWEST and self._destinations.is_given_up(server):
                return False
            rows.replaced.append((server, key))
        place = batch.place_edu(numbers, key if edu.edu_type == ALWAYS_NEWEST else "")
        rows.addressed[(server, key) if alone else (server, *place)] = (server, *place, edu_id, key)
        return True

    # --- taking out ---

    async def take(self, queue: Queue) -> Batch | None:
        """The oldest batch of a destination, which takes nothing more; `None` where nothing is stored for it."""
        batch = await self._oldest(queue)
        while batch is None and queue.behind:
            await self._unfold(queue)
            batch = await self._oldest(queue)
        return batch

    async def _oldest(self, queue: Queue) -> Batch | None:
        """Close what is open and read the oldest batch: all of it, so nothing may get a place in it meanwhile."""
        if not self._lock.locked:
            placed = queue.placed
            batch = await self._read_oldest(queue)
            if placed == queue.placed:
                return batch
        await self._lock.acquire()
        try:
            return await self._read_oldest(queue)
        finally:
            self._lock.release()

    async def _read_oldest(self, queue: Queue) -> Batch | None:
        queue.close()
        placed = queue.placed
        batch = await self._database.read(_first_batch, queue.server)
        if batch is None and placed == queue.placed:
            queue.edus = False
        return batch

    async def answered(self, queue: Queue, batch: Batch) -> None:
        """The destination has a batch: forget it."""
        await self._database.write(_answered, queue.server, batch)
        queue.events = max(0, queue.events - len(batch.events))

    # --- far behind ---

    async def collapse(self, queue: Queue) -> None:
        """Keep only the newest event of each room, and of EDUs that replace each other the newest."""
        await self._lock.acquire()
        try:
            given_up = self._destinations.is_given_up(queue.server)
            await self._database.write(_collapse, queue.server, given_up)
            queue.close()
            self._note_behind(queue, queue.behind or queue.events > 0)
            queue.events = 0
        finally:
            self._lock.release()

    async def _unfold(self, queue: Queue) -> None:
        """Make a batch of some of the rooms whose newest event a destination has not been told of."""
        rows = await self._database.read(table.oldest_rooms, queue.server, MAX_PDUS)
        chosen = await self._newest(queue.server, rows)
        await self._lock.acquire()
        try:
            batch = self.numbers.next()
            added, is_behind = await self._database.write(_unfold, queue.server, batch, chosen)
            queue.events += added
            self._note_behind(queue, is_behind)
        finally:
            self._lock.release()

    def _note_behind(self, queue: Queue, is_behind: bool) -> None:
        """From now on only the newest event of each room is kept for a destination, or no longer so."""
        queue.behind = is_behind

    async def _newest(self, server: str, rows: Sequence[QueuedEvent]) -> list[tuple[QueuedEvent, list[str]]]:
        """For each room the events that a server which was away is told of, as many as one transaction takes.

        The event that it missed last, if that is an end of the room's history; else those that are. A server that is
        no longer in the room (it may have been banned meanwhile) is not shown what came after.
        """
        newest = await self._rooms.newest_events([row.room_id for row in rows])
        chosen: list[tuple[QueuedEvent, list[str]]] = []
        room = MAX_PDUS
        for row in rows:
            ends = newest.get(row.room_id, [])
            if not ends or row.event_id in ends or server not in await self._rooms.room_servers(row.room_id):
                ends = [row.event_id]
            if len(ends[:EXTREMITIES_TOLD]) > room:
                break
            chosen.append((row, ends[:EXTREMITIES_TOLD]))
            room -= len(ends[:EXTREMITIES_TOLD])
        return chosen

    # --- forgetting ---

    async def forget_room(self, room_id: str) -> None:
        """A room was deleted: nobody is told of it any more."""
        await self._database.write(_forget_room, room_id)

    async def prune(self, now: int) -> list[str]:
        """Forget servers that could not be reached for long, and EDUs that are in no queue; says which servers."""
        troubles = [self._destinations.trouble(server) for server in self.queues]
        gone = [one.server_name for one in troubles if one and one.given_up and now - one.failed_ts > table.KEPT_MS]
        for server in gone:
            await self._database.write(table.forget_destination, server)
            self.queues.pop(server).cancel()
        while await self._database.write(table.prune_edus, table.PRUNED_AT_ONCE) == table.PRUNED_AT_ONCE:
            pass
        return gone


class Progress:
    """How far a consumer has read, stored from time to time where nothing is stored with it.

    ``on_stored`` is told of each position that is stored.
    """

    def __init__(self, consumer: str, database: Database, on_stored: Callable[[int], None]) -> None:
        self.consumer = consumer
        self.reached = 0
        self._database = database
        self._stored = 0
        self._on_stored = on_stored

    async def load(self) -> None:
        stored = await self._database.read(table.consumer_position, self.consumer)
        self._stored = self.reached = stored or 0
        self._on_stored(self._stored)

    def stored(self, position: int) -> None:
        """A position has been stored with what follows from it."""
        self._stored = max(self._stored, position)
        self.reached = max(self.reached, position)
        self._on_stored(self._stored)

    async def store(self) -> None:
        """Store where the consumer is, if that is not stored."""
        position = self.reached
        if position > self._stored:
            await self._database.write(table.put_consumer_position, self.consumer, position)
            self.stored(position)


async def _name_all(txn: Transaction) -> None:
    """Make batches of what processes that shared the database left without a name."""
    await table.name_all_events(txn)
    await table.name_all_edus(txn)


async def store_rows(txn: Transaction, rows: Rows, consumer: str, position: int, drop: Drop) -> None:
    """Store what a parcel made, unless it is stored already: then the consumer's position is, too."""
    if not await table.put_consumer_position(txn, consumer, position):
        return
    await table.add_events(txn, rows.events)
    await table.put_rooms(txn, rows.rooms)
    await drop(txn, rows.replaced)
    await table.add_edus(txn, rows.edus)
    await table.queue_edus(txn, list(rows.addressed.values()))


async def _first_batch(txn: Transaction, server: str) -> Batch | None:
    number = await table.first_batch(txn, server)
    if number is None:
        return None
    return Batch(number, await table.events_of(txn, server, number), await table.edus_of(txn, server, number))


async def _answered(txn: Transaction, server: str, batch: Batch) -> None:
    if batch.events:
        await table.delete_events(txn, server, batch.number)
    if batch.edus:
        await table.delete_edus(txn, server, batch.number)


async def _collapse(txn: Transaction, server: str, given_up: bool) -> None:
    newest = {row.room_id: row for row in await table.all_events_of(txn, server)}
    await table.put_rooms(txn, [(server, row.room_id, row.position, row.event_id) for row in newest.values()])
    await table.delete_all_events(txn, server)
    await table.collapse_edus(txn, server)
    if given_up:
        await table.drop_edus_of_type(txn, server, ALWAYS_NEWEST)


async def _unfold(
    txn: Transaction, server: str, batch: int, chosen: Sequence[tuple[QueuedEvent, list[str]]]
) -> tuple[int, bool]:
    """Returns how many events were put into the batch, and whether rooms are left.

    A room of which something newer came since it was looked at is left for the next batch.
    """
    added: list[tuple[str, int, int, int, str, str]] = []
    for row, ends in chosen:
        if await table.delete_room(txn, server, row.room_id, row.position):
            for event_id in ends:
                added.append((server, batch, len(added) + 1, row.position, row.room_id, event_id))
    await table.add_events(txn, added)
    return len(added), await table.any_room(txn, server) is not None


async def _forget_room(txn: Transaction, room_id: str) -> None:
    await table.delete_rooms_of_room(txn, [(room_id,)])

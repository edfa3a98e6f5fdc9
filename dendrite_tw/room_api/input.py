"""One room's events in order: build, check, store, tell.

The writer takes all that waits for a room, makes each draft into an event on
top of the one before, checks it against the state there, and stores the whole
batch in one transaction; what arrives during that transaction is the next
batch.  A draft that is refused is answered with the reason and leaves no
trace.
"""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..database.engines import Database
from ..database.outbox import Outbox
from ..matrix.errors import MatrixError, not_found
from ..matrix.keys import SigningKey
from ..world import Clock, Random
from .drafts import Drafting
from .duties import Duties
from .numbers import Numbers
from .room import Also, Before, Draft, Room, Rooms, Work
from .states import States
from .steps import CREATE, POWER_LEVELS, Accepted, Batch, Step
from .store import EventStore
from .storing import Storing
from .tables.names import Names
from .user_directory import UserDirectory

log = Logger()

BATCH = 64
"""How many pieces of work share one transaction of a room."""

AUTHORITIES = frozenset(["m.room.create", "m.room.power_levels", "m.room.join_rules", "m.room.member"])
"""State that is asked for again with every event; the rest is read when it is wanted."""


class RoomWriter:
    """The single writer of the rooms that this process owns."""

    def __init__(
        self,
        *,
        database: Database,
        outbox: Outbox,
        names: Names,
        rooms: Rooms,
        store: EventStore,
        clock: Clock,
        random: Random,
        server_name: str,
        key: SigningKey,
        duties: Duties,
        user_directory: UserDirectory,
    ) -> None:
        self._database = database
        self._rooms = rooms
        self._store = store
        self._states = states = States(database, names, store)
        self._drafting = Drafting(
            states=states, store=store, clock=clock, random=random, server_name=server_name, key=key
        )
        self._storing = Storing(
            outbox=outbox, names=names, duties=duties, user_directory=user_directory, server_name=server_name
        )
        self._event_numbers = Numbers(database, "event")
        self._snapshot_numbers = Numbers(database, "snapshot")

    async def submit(
        self, room: Room, drafts: list[Draft], *, also: Also | None = None, before: Before | None = None
    ) -> list[str]:
        """Send `drafts` to a room, all or none; returns their event IDs once they are on disk.

        `also` runs in the same transaction, after the events; `before` once they are accepted, before it.
        Without drafts, `also` takes its turn among what else waits for the room.
        """
        if room.closed:
            raise not_found("This server does not know the room.")
        work = Work(drafts, Deferred(), also, before)
        room.waiting.append(work)
        if not room.writing:
            room.writing = True
            Deferred.fromCoroutine(self._write(room)).addErrback(self._defect, room)
        return await work.answer

    def _defect(self, failure: Failure, room: Room) -> None:
        log.failure("the writer of {room} failed", failure=failure, room=room.room_id)
        room.writing = False
        room.stale = True
        while room.waiting:
            _refuse(room.waiting.popleft(), _internal())

    async def _write(self, room: Room) -> None:
        """Write until nothing waits."""
        while room.waiting:
            works = [room.waiting.popleft() for _ in range(min(BATCH, len(room.waiting)))]
            try:
                await self._write_batch(room, works)
            except Exception:
                for work in works:
                    _refuse(work, _internal())
                raise
        room.writing = False

    async def _write_batch(self, room: Room, works: list[Work]) -> None:
        if room.stale:
            try:
                await self._rooms.refresh(room)
            except MatrixError as error:
                for work in works:
                    _refuse(work, error)
                return
        accepted = await self._accept(room, works)
        if not accepted:
            return

        def moved(room_nid: int, steps: list[Step]) -> None:
            self._moved(room, room_nid, steps)

        is_new = not room.room_nid
        if is_new:
            self._rooms.add(room)
        try:
            await self._database.write(self._storing.store_works, room, accepted, moved)
        except Exception as error:
            room.stale = True
            if is_new:
                room.closed = True
                self._rooms.forget(room)
            await self._take_apart(room, accepted, error)
            return
        for work, steps in accepted:
            if not work.answer.called:
                work.answer.callback([step.event.event_id for step in steps])

    async def _take_apart(self, room: Room, accepted: list[Accepted], error: Exception) -> None:
        """After a transaction that failed: tell all of them, or find out which one it was that cannot be stored."""
        again = [] if len(accepted) == 1 or isinstance(error, MatrixError) or room.closed else accepted
        for work, _ in accepted:
            if not again or work.before is not None:
                _refuse(work, error)
        for work, _ in again:
            if work.before is None:
                await self._write_batch(room, [work])

    async def _accept(self, room: Room, works: list[Work]) -> list[Accepted]:
        """Build and check what `works` want, each on top of the one before; answers those that are refused."""
        batch = Batch(room, room.head)
        accepted: list[Accepted] = []
        for work in works:
            before = batch.copy() if len(work.drafts) > 1 or work.before is not None else batch
            try:
                steps = await self._accept_work(batch, work)
            except Exception as error:
                batch = before
                _refuse(work, error)
                continue
            accepted.append((work, steps))
        return accepted

    async def _accept_work(self, batch: Batch, work: Work) -> list[Step]:
        """Make and check all of a work, on top of what the batch has."""
        event_nids = await self._event_numbers.take(len(work.drafts))
        snapshot_nids = await self._snapshot_numbers.take(len(work.drafts))
        steps: list[Step] = []
        for draft in work.drafts:
            step = await self._drafting.prepare(batch, draft, next(event_nids), next(snapshot_nids))
            batch.add(step)
            steps.append(step)
        if work.before is not None:
            await work.before([step.event for step in steps])
        return steps

    def _moved(self, room: Room, room_nid: int, steps: list[Step]) -> None:
        """The room goes on from `steps`, which are on disk."""
        room.room_nid = room_nid
        if steps:
            room.head = steps[-1].after
        for step in steps:
            if step.event.type in AUTHORITIES and step.slot_nid is not None:
                self._store.remember(step.event_nid, step.event)
            if step.redacted_nid is not None and step.redacted is not None:
                self._store.forget(step.redacted_nid)
                room.summary = None
                if (step.redacted.type, step.redacted.state_key) in (CREATE, POWER_LEVELS):
                    self._states.levels_changed()


def _refuse(work: Work, error: Exception) -> None:
    if not work.answer.called:
        work.answer.errback(error)


def _internal() -> MatrixError:
    return MatrixError(500, "M_UNKNOWN", "Something went wrong in this server; it is logged.")



"""One room's events in order: build, check, store, tell.

The writer takes all that waits for a room, makes each draft into an event on
top of the one before, checks it against the state there, and stores the whole
batch in one transaction; what arrives during that transaction is the next
batch.  A draft that is refused is answered with the reason and leaves no
trace.  Events that exist already, of other servers or from long ago, pass
through it in the same way (`room.Arrival`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..database.engines import Database, Fenced
from ..matrix.errors import MatrixError, not_found
from ..matrix.events import Event, receive_event
from ..sharing.leases import NotMine
from .arrivals import Arrivals, Unasked
from .drafts import Drafting
from .numbers import Numbers
from .policies import Policies
from .room import Also, Arrival, Before, Draft, Outcome, Room, Rooms, Way, Work
from .servers import Servers
from .steps import Accepted, Batch, Step, remember
from .store import EventStore, RoomEvents
from .storing import Storing

log = Logger()

BATCH = 64
"""How many pieces of work share one transaction of a room."""

POLICY_ROUNDS = 3
"""How often events are judged again because a policy server had to be asked."""

ASKED_AT_ONCE = 8

STATES_EACH = 2
"""States that one event may add to those that are stored: the one before it, and what is current with it."""

AUTHORITIES = frozenset(["m.room.create", "m.room.power_levels", "m.room.join_rules", "m.room.member"])
"""State that is asked for again with every event; the rest is read when it is wanted."""


class RoomWriter:
    """The single writer of the rooms that this process owns."""

    def __init__(
        self,
        *,
        database: Database,
        rooms: Rooms,
        store: EventStore,
        shown: RoomEvents,
        servers: Servers,
        drafting: Drafting,
        arrivals: Arrivals,
        policies: Policies,
        storing: Storing,
    ) -> None:
        self._database = database
        self._rooms = rooms
        self._store = store
        self._shown = shown
        self._servers = servers
        self._drafting = drafting
        self._arrivals = arrivals
        self._policies = policies
        self._storing = storing
        self.event_numbers = Numbers(database, "event")
        self._snapshot_numbers = Numbers(database, "snapshot")
        self._history_numbers = Numbers(database, "history")

    def forget_numbers(self) -> None:
        """Rooms come from other processes: go on above all numbers that are stored in them."""
        for numbers in (self.event_numbers, self._snapshot_numbers, self._history_numbers):
            numbers.forget()

    async def submit(
        self, room: Room, drafts: list[Draft], *, also: Also | None = None, before: Before | None = None
    ) -> list[str]:
        """Send `drafts` to a room, all or none; returns their event IDs once they are on disk.

        `also` runs in the same transaction, after the events; `before` once they are accepted, before it.
        Without drafts, `also` takes its turn among what else waits for the room.
        """
        if len(drafts) == 1 and before is None and not self._policies.has_none(room.head):
            batch = Batch(room, room.head)
            policy = await self._policies.of(batch)
            if policy is not None:
                # The room does not wait for the policy server.
                event, _, _ = await self._drafting.compose(batch, drafts[0])
                received = receive_event((await self._policies.recommended(event, policy)).pdu, room.version)
                arrival = Arrival(received, strict=True, distribute=True, policy=policy, draft=drafts[0])
                return [outcome.event_id for outcome in await self.take(room, [arrival], also=also)]
        outcomes = await self._enqueue(room, Work(drafts, Deferred(), also, before))
        return [outcome.event_id for outcome in outcomes]

    async def compose(self, room: Room, draft: Draft) -> Event:
        """The event that a draft would become now, recommended by the room's policy server; nothing is stored.

        `MatrixError` where it is refused.
        """
        batch = Batch(room, room.head)
        event, _, _ = await self._drafting.compose(batch, draft)
        policy = await self._policies.of(batch)
        return event if policy is None else await self._policies.recommended(event, policy)

    async def take(self, room: Room, arrivals: Sequence[Arrival], *, also: Also | None = None) -> list[Outcome]:
        """Let events that exist already come into a room, in their order; says what became of each, once that is on
        disk.  History is given oldest first.

        `also` as of `submit`.  `MatrixError` (403) if one that is ``strict`` is not accepted: then none is stored.
        """
        outcomes: dict[str, Outcome] = {}
        for _ in range(POLICY_ROUNDS):
            try:
                found = await self._enqueue(room, Work(arrivals, Deferred(), also))
            except Unasked:
                arrivals = await self._ask_policy(room, arrivals)
                continue
            # What was settled before is known now.
            outcomes.update((one.event_id, one) for one in found if not _is_settled(outcomes.get(one.event_id)))
            if all(one.verdict != "unasked" for one in outcomes.values()):
                return [outcomes[arrival.received.event.event_id] for arrival in arrivals]
            arrivals = await self._ask_policy(room, arrivals)
        raise MatrixError(503, "M_UNKNOWN", "The room has changed its policy server; try again.", retry_after_ms=1000)

    async def _ask_policy(self, room: Room, arrivals: Sequence[Arrival]) -> list[Arrival]:
        """Let the policy server of a room recommend events, some at a time."""
        policy = await self._policies.of(Batch(room, room.head))
        asked = list(arrivals)
        if policy is None:
            return asked
        for start in range(0, len(asked), ASKED_AT_ONCE):
            part = asked[start : start + ASKED_AT_ONCE]
            answers = await gatherResults(
                [Deferred.fromCoroutine(self._policies.asked(one.received, policy)) for one in part],
                consumeErrors=True,
            )
            asked[start : start + ASKED_AT_ONCE] = [
                replace(one, received=received, policy=policy) for one, received in zip(part, answers, strict=True)
            ]
        return asked

    async def _enqueue(self, room: Room, work: Work) -> list[Outcome]:
        if room.closed:
            raise not_found("This server does not know the room.")
        self._rooms.require(room)
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
            _refuse(room.waiting.pop(0), _internal())

    async def _write(self, room: Room) -> None:
        """Write until nothing waits."""
        while room.waiting:
            works = room.waiting[:BATCH]
            del room.waiting[:BATCH]
            try:
                with self._rooms.writing(room):
                    await self._write_batch(room, works)
            except NotMine as error:
                # The room was given away before its turn came: nothing of this was stored.
                for work in works:
                    _refuse(work, error)
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
        batch, accepted = await self._accept(room, works)
        if not any(done.steps or done.work.also for done in accepted):
            _answer(accepted)
            return

        def moved(room_nid: int) -> None:
            self._moved(batch, room_nid, [step for work in accepted for step in work.steps])

        is_new = not room.room_nid
        if is_new:
            self._rooms.add(room)
        try:
            await self._database.write(self._storing.store_works, room, accepted, moved)
        except Exception as problem:
            # Who is fenced has stored nothing, and another process has the room.
            why = NotMine() if isinstance(problem, Fenced) else problem
            room.stale = True
            if is_new:
                room.closed = True
                self._rooms.forget(room)
            await self._take_apart(room, accepted, why)
            return
        _answer(accepted)

    async def _take_apart(self, room: Room, accepted: list[Accepted], error: Exception) -> None:
        """After a transaction that failed: tell all of them, or find out which one it was that cannot be stored."""
        again = [] if len(accepted) == 1 or isinstance(error, MatrixError) or room.closed else accepted
        for failed in accepted:
            if not again or failed.work.before is not None:
                _refuse(failed.work, error)
        for failed in again:
            if failed.work.before is None:
                await self._write_batch(room, [failed.work])

    async def _accept(self, room: Room, works: list[Work]) -> tuple[Batch, list[Accepted]]:
        """Build and check what `works` want, each on top of the one before; answers those that are refused."""
        batch = Batch(room, room.head)
        accepted: list[Accepted] = []
        for work in works:
            before = batch.copy() if len(work.items) > 1 or work.before is not None else batch
            try:
                accepted.append(await self._accept_work(batch, work))
            except Exception as error:
                batch = before
                _refuse(work, error)
        return batch, accepted

    async def _accept_work(self, batch: Batch, work: Work) -> Accepted:
        """Make and check all of a work, on top of what the batch has."""
        count = len(work.items)
        event_nids = await self.event_numbers.take(count)
        snapshot_nids = await self._snapshot_numbers.take(STATES_EACH * count)
        steps: list[Step] = []
        outcomes: list[Outcome] = []
        is_drafted = not count or isinstance(work.items[0], Draft)
        for item in work.items if is_drafted else await self._numbered(work.items):
            if isinstance(item, Draft):
                made = await self._drafting.prepare(batch, item, next(event_nids), snapshot_nids)
                step: Step | None = made
                outcomes.append(Outcome(made.event.event_id))
            else:
                outcome, step = await self._arrivals.prepare(batch, item, next(event_nids), snapshot_nids)
                if outcome.verdict == "unasked" and work.also is not None:
                    raise Unasked
                outcomes.append(outcome)
            if step is not None:
                batch.add(step)
                steps.append(step)
        if work.before is not None:
            await work.before([step.event for step in steps])
        return Accepted(work, steps, outcomes)

    async def _numbered(self, items: Sequence[Draft | Arrival]) -> Sequence[Draft | Arrival]:
        """Items, with positions for those that are history: the older, the further below 0."""
        count = sum(isinstance(item, Arrival) and item.way is Way.HISTORY for item in items)
        if not count:
            return items
        positions = iter(sorted(-number for number in await self._history_numbers.take(count)))
        return [
            replace(item, position=next(positions)) if isinstance(item, Arrival) and item.way is Way.HISTORY else item
            for item in items
        ]

    def _moved(self, batch: Batch, room_nid: int, steps: list[Step]) -> None:
        """The room goes on from `steps`, which are on disk."""
        room = batch.room
        room.room_nid = room_nid
        state_nid = room.head.snapshot_nid
        if steps:
            room.head = steps[-1].after
        if batch.placed:
            remember(room.placed, batch.placed, room.head.extremities)
        for step in steps:
            if step.event.type in AUTHORITIES and step.slot_nid is not None:
                self._store.remember(step.event_nid, step.event)
            if step.known or step.missing or step.awaited:
                self._shown.forget(step.event_nid)
            if step.changes:
                self._servers.changed(room_nid, step.changes, state_nid, step.after.snapshot_nid)
            state_nid = step.after.snapshot_nid
            if step.redacted_nid is not None and step.redacted is not None:
                self._store.forget(step.redacted_nid)
                room.summary = None


def _is_settled(outcome: Outcome | None) -> bool:
    return outcome is not None and outcome.is_settled


def _answer(accepted: list[Accepted]) -> None:
    for done in accepted:
        if not done.work.answer.called:
            done.work.answer.callback(done.outcomes)


def _refuse(work: Work, error: Exception) -> None:
    if not work.answer.called:
        work.answer.errback(error)


def _internal() -> MatrixError:
    return MatrixError(500, "M_UNKNOWN", "Something went wrong in this server; it is logged.")

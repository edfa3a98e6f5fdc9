"""Where an event stands: the state before it, the state after it, and what becomes of the room's current state.

The state before an event is the state after the one that it follows; where it follows several, theirs
resolved.  The current state of a room is the same question, asked for the ends of its timeline
(Server-Server API, "Room State Resolution").
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec

from ..database.engines import Database
from ..matrix.events import Event
from .graph import Resolver
from .room import Head, Placed, Room, State
from .snapshots import EMPTY, Link, Snapshots, StateMap, Tape, difference, overlaid
from .steps import Batch, Change, is_local
from .store import EventStore, stored_event
from .tables import edges as edge_table
from .tables import names as name_table
from .tables.events import ACCEPTED, REJECTED, EventRow
from .tables.names import Slot

RESOLUTIONS_REMEMBERED = 8

WALK_LIMIT = 100
"""Events that were not accepted through which the ends of a timeline are looked for."""


class Place(NamedTuple):
    """Where a live event stands: what `Step` takes over."""

    before_nid: int
    after: Head
    links: tuple[Link, ...]
    changes: tuple[Change, ...]
    placed: Placed | None
    awaited: bool


class Placing:
    """Finds places for the events of a room's writer."""

    def __init__(
        self,
        *,
        database: Database,
        store: EventStore,
        snapshots: Snapshots,
        resolver: Resolver,
        server_name: str,
    ) -> None:
        self._database = database
        self._store = store
        self._snapshots = snapshots
        self._resolver = resolver
        self._server_name = server_name

    # --- states ---

    async def before(self, batch: Batch, prev_events: Sequence[str]) -> State | None:
        """The state before an event that follows these; `None` if one of them is not part of the timeline here."""
        head = batch.head
        if len(prev_events) == len(head.extremities) and set(prev_events) == set(head.extremities):
            return State(head.state, head.snapshot_nid)
        states = []
        for event_id in prev_events:
            placed = await self.after(batch, event_id)
            if placed is None:
                return None
            states.append(placed.after)
        return await self.resolved(batch, states)

    async def resolved(self, batch: Batch, states: Sequence[State]) -> State:
        """What some states make together."""
        different: list[State] = []
        for state in states:
            if not any(_same(state, other) for other in different):
                different.append(state)
        if not different:
            return State(EMPTY, 0)
        if len(different) == 1:
            return different[0]
        slots = await self._resolution(batch, different)
        for state in (State(batch.head.state, batch.head.snapshot_nid), *different):
            if state.slots is slots or state.slots == slots:
                return state
        return State(slots, 0)

    async def _resolution(self, batch: Batch, states: list[State]) -> StateMap:
        """The resolution of different states, which is remembered: the same branches grow for a while."""
        resolutions = batch.room.resolutions
        key = tuple(sorted(state.snapshot_nid for state in states)) if all(one.snapshot_nid for one in states) else ()
        found = resolutions.get(key) if key else None
        if found is None:
            found = await self._resolver.resolve(batch.room.version, [state.slots for state in states], batch)
            if key:
                resolutions[key] = found
                if len(resolutions) > RESOLUTIONS_REMEMBERED:
                    resolutions.popitem(last=False)
        return found

    async def after(self, batch: Batch, event_id: str) -> Placed | None:
        """An event of the timeline with the state after it; `None` if it is not here as such."""
        placed = batch.placed.get(event_id) or batch.room.placed.get(event_id)
        if placed is not None:
            return placed
        head = batch.head
        nid = batch.nids.get(event_id)
        if nid is not None and head.extremities == (event_id,):
            return Placed(nid, ACCEPTED, (), State(head.state, head.snapshot_nid))
        row = await self._store.row(event_id)
        if row is None or row.room_nid != batch.room.room_nid or not (row.position or row.snapshot_nid):
            return None
        prev_events = stored_event(row).prev_events if row.status != ACCEPTED else ()
        if head.extremities == (event_id,):
            return Placed(row.event_nid, row.status, prev_events, State(head.state, head.snapshot_nid))
        placed = Placed(row.event_nid, row.status, prev_events, await self._state_after(head, row))
        batch.placed[event_id] = placed
        return placed

    async def state_before(self, room: Room, event_id: str) -> StateMap | None:
        """The state before a stored event; `None` if it is not known, as for one kept apart from the timeline."""
        row = await self._store.row(event_id)
        if row is None or row.room_nid != room.room_nid or not (row.position or row.snapshot_nid):
            return None
        return await self._load(room.head, row.snapshot_nid)

    async def state_after(self, room: Room, event_id: str) -> StateMap | None:
        """As `state_before`, with what the event itself sets if it was not rejected."""
        placed = await self.after(Batch(room, room.head), event_id)
        return None if placed is None else placed.after.slots

    async def _state_after(self, head: Head, row: EventRow) -> State:
        before = await self._load(head, row.snapshot_nid)
        if row.slot_nid is None or row.status == REJECTED:
            return State(before, row.snapshot_nid)
        after = before.set(row.slot_nid, row.event_nid)
        if row.current_nid:
            current = await self._load(head, row.current_nid)
            if current == after:
                return State(current, row.current_nid)
        return State(after, 0)

    async def _load(self, head: Head, snapshot_nid: int) -> StateMap:
        """A stored state; what is in memory already is shared."""
        if snapshot_nid == head.snapshot_nid:
            return head.state
        if snapshot_nid == head.tape.chain.snapshot_nid:
            return head.tape.state
        return overlaid(head.state, await self._database.read_long(self._snapshots.state, snapshot_nid))

    # --- places ---

    async def live(
        self,
        batch: Batch,
        event: Event,
        event_nid: int,
        slot_nid: int | None,
        before: State,
        snapshot_nids: Iterator[int],
    ) -> Place:
        """The place of an accepted event that happens now, on the state before it; takes up to two snapshot numbers."""
        head = batch.head
        is_current = before.slots is head.state or (before.snapshot_nid and before.snapshot_nid == head.snapshot_nid)
        if is_current and _covers(event.prev_events, head.extremities):
            return await self._next(batch, event, event_nid, slot_nid, snapshot_nids)
        return await self._beside(batch, event, event_nid, slot_nid, before, snapshot_nids)

    async def _next(
        self, batch: Batch, event: Event, event_nid: int, slot_nid: int | None, snapshot_nids: Iterator[int]
    ) -> Place:
        """The place of an event that follows all that is here, as almost every one does."""
        head = batch.head
        extremities, depth = (event.event_id,), max(event.depth, head.depth)
        if slot_nid is None or event.state_key is None:
            after = Head(head.state, head.snapshot_nid, head.tape, extremities, depth, head.joined, head.local)
            return Place(head.snapshot_nid, after, (), (), _placed(event_nid, after), False)
        state = head.state.set(slot_nid, event_nid)
        own = {slot_nid: event_nid} if head.tape.state is head.state else None
        tape, link = head.tape.store(state, next(snapshot_nids), own)
        replaced_nid = head.state.get(slot_nid)
        replaced = (await self._store.events([replaced_nid], batch.events))[replaced_nid] if replaced_nid else None
        changes = (Change((event.type, event.state_key), slot_nid, event_nid, event, replaced),)
        joined, local = self._counts(head, changes)
        after = Head(state, tape.chain.snapshot_nid, tape, extremities, depth, joined, local)
        return Place(
            head.snapshot_nid, after, (link,) if link is not None else (), changes, _placed(event_nid, after), False
        )

    async def _beside(
        self,
        batch: Batch,
        event: Event,
        event_nid: int,
        slot_nid: int | None,
        before: State,
        snapshot_nids: Iterator[int],
    ) -> Place:
        """The place of an event that makes a branch, or ends one."""
        head = batch.head
        tape, before_nid, first = _kept(head.tape, before, snapshot_nids)
        before = State(before.slots, before_nid)
        after = before if slot_nid is None else State(before.slots.set(slot_nid, event_nid), 0)
        referring = await self._database.read(edge_table.accepted_referring, event.event_id, batch.room.room_nid)
        extremities = await self._extremities(batch, event, bool(referring))
        batch = batch.seen_with(event, event_nid)
        current = await self._current(batch, extremities, event.event_id, after)
        own = None
        if slot_nid is not None and current is after and tape.state is before.slots:
            own = {slot_nid: event_nid}
        tape, current_nid, second = _kept(tape, current, snapshot_nids, own)
        if current is after:
            after = State(after.slots, current_nid)
        changes = await self.changes(batch, head.state, current.slots, {event_nid: event})
        joined, local = self._counts(head, changes)
        return Place(
            before_nid=before_nid,
            after=Head(current.slots, current_nid, tape, extremities, max(event.depth, head.depth), joined, local),
            links=tuple(link for link in (first, second) if link is not None),
            changes=changes,
            placed=Placed(event_nid, ACCEPTED, (), after),
            awaited=bool(referring),
        )

    def unseen(
        self,
        batch: Batch,
        event: Event,
        event_nid: int,
        slot_nid: int | None,
        before: State,
        status: int,
        snapshot_nids: Iterator[int],
        *,
        keep_after: bool = False,
    ) -> tuple[Place, int]:
        """The place of an event that leaves the current state as it is, and the snapshot of the state after it.

        That snapshot is made only with ``keep_after``, and 0 else.  Takes up to two snapshot numbers.
        """
        tape, before_nid, first = _kept(batch.head.tape, before, snapshot_nids)
        after, after_nid, second = State(before.slots, before_nid), before_nid, None
        if slot_nid is not None and status != REJECTED:
            after = State(before.slots.set(slot_nid, event_nid), 0)
            if keep_after:
                tape, after_nid, second = _kept(tape, after, snapshot_nids)
                after = State(after.slots, after_nid)
        head = msgspec.structs.replace(batch.head, tape=tape)
        links = tuple(link for link in (first, second) if link is not None)
        placed = Placed(event_nid, status, event.prev_events, after)
        return Place(before_nid, head, links, (), placed, False), after_nid if keep_after else 0

    async def take_over(
        self,
        batch: Batch,
        event: Event,
        event_nid: int,
        slot_nid: int,
        before: StateMap,
        known: Mapping[int, Event],
        snapshot_nids: Iterator[int],
    ) -> Place:
        """The place of a join with which the state before it becomes the room's; takes two snapshot numbers."""
        head = batch.head
        before_nid = next(snapshot_nids)
        tape, first = head.tape.renew(before, before_nid)
        now = before.set(slot_nid, event_nid)
        tape, current_nid, second = _kept(tape, State(now, 0), snapshot_nids)
        changes = await self.changes(batch, head.state, now, {**known, event_nid: event})
        joined, local = self._counts(head, changes)
        placed = Placed(event_nid, ACCEPTED, (), State(now, current_nid))
        after = Head(now, current_nid, tape, (event.event_id,), event.depth, joined, local)
        links = tuple(link for link in (first, second) if link is not None)
        return Place(before_nid, after, links, changes, placed, False)

    async def _extremities(self, batch: Batch, event: Event, awaited: bool) -> tuple[str, ...]:
        """The ends of the timeline with a new event."""
        covered = await self._covered(batch, event)
        rest = tuple(event_id for event_id in batch.head.extremities if event_id not in covered)
        return rest if awaited and rest else (*rest, event.event_id)

    async def _covered(self, batch: Batch, event: Event) -> set[str]:
        """What an event follows, be it by way of events that were not accepted."""
        covered = set(event.prev_events)
        waiting = list(event.prev_events)
        for _ in range(WALK_LIMIT):
            if not waiting:
                break
            placed = await self.after(batch, waiting.pop())
            if placed is not None and placed.status != ACCEPTED:
                waiting += [event_id for event_id in placed.prev_events if event_id not in covered]
                covered.update(placed.prev_events)
        return covered

    async def _current(self, batch: Batch, extremities: Sequence[str], own: str, after: State) -> State:
        """The state that the ends of the timeline make."""
        states = []
        for event_id in extremities:
            placed = None if event_id == own else await self.after(batch, event_id)
            if event_id == own:
                states.append(after)
            elif placed is not None:
                states.append(placed.after)
        return await self.resolved(batch, states)

    async def changes(
        self, batch: Batch, was: StateMap, now: StateMap, known: Mapping[int, Event]
    ) -> tuple[Change, ...]:
        """What differs between two states; `known` are events that need not be read."""
        different = difference(was, now)
        if not different:
            return ()
        nids = {nid for slot in different for nid in (was.get(slot, 0), different[slot]) if nid}
        events = await self._store.events(nids, {**batch.events, **known})
        read = self._database.read if len(different) < 500 else self._database.read_long
        slots: dict[int, Slot] = {
            row.slot_nid: (row.type, row.state_key) for row in await read(name_table.slots_by_nid, list(different))
        }
        return tuple(
            Change(slots[slot], slot, nid, events.get(nid), events.get(was.get(slot, 0)))
            for slot, nid in different.items()
        )

    def _counts(self, head: Head, changes: Sequence[Change]) -> tuple[int, int]:
        """How many are joined with some changes: all, and those of this server."""
        joined, local = head.joined, head.local
        for change in changes:
            if change.slot[0] == "m.room.member":
                step = _is_join(change.event) - _is_join(change.replaced)
                joined += step
                if step and is_local(change.slot[1], self._server_name):
                    local += step
        return joined, local


def _covers(prev_events: tuple[str, ...], extremities: tuple[str, ...]) -> bool:
    return prev_events == extremities or set(prev_events) >= set(extremities)


def _placed(event_nid: int, head: Head) -> Placed | None:
    """The place of the newest event, if others may refer to it when it is not the newest any more."""
    if head.joined == head.local:
        return None
    return Placed(event_nid, ACCEPTED, (), State(head.state, head.snapshot_nid))


def _is_join(event: Event | None) -> bool:
    return event is not None and event.membership == "join"


def _same(one: State, other: State) -> bool:
    """Whether two states are known to be the same; if they are and it is not known, their resolution finds out."""
    return one.slots is other.slots or (one.snapshot_nid != 0 and one.snapshot_nid == other.snapshot_nid)


def _kept(
    tape: Tape, state: State, snapshot_nids: Iterator[int], changes: dict[int, int] | None = None
) -> tuple[Tape, int, Link | None]:
    """The tape with a state on it, the state's number, and the link to be stored if it was not there."""
    if state.snapshot_nid or not state.slots:
        return tape, state.snapshot_nid, None
    tape, link = tape.store(state.slots, next(snapshot_nids), changes)
    return tape, tape.chain.snapshot_nid, link

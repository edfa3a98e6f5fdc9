"""Events that exist already come into a room: judged in the order of the specification, and given a place.

What was checked before they come here, and what each of the ways in means, is said at `room.Arrival`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from ..matrix import admission
from ..matrix.admission import Admission, KnownEvent
from ..matrix.errors import MatrixError, forbidden
from ..matrix.events import Event, redact_event
from .placing import Placing
from .policies import Policies
from .redactions import Redaction, Redactions
from .room import FOLLOWED, Arrival, Outcome, State, Way
from .states import States
from .steps import Batch, Step
from .store import EventStore
from .tables.events import ACCEPTED, ASIDE, REJECTED, SOFT_FAILED, EventRow
from .tables.names import Slot
from .tables.rooms import PARTIAL

_STATUS = {"accepted": ACCEPTED, "soft_failed": SOFT_FAILED, "rejected": REJECTED}


class Unasked(Exception):
    """The policy server of the room has not been asked about an event that stands or falls with others."""


class _PolicyMissing(Exception):
    """As `Unasked`, about one that is being judged."""


class Arrivals:
    """Takes in events for a room's writer."""

    def __init__(
        self, *, states: States, store: EventStore, placing: Placing, redactions: Redactions, policies: Policies
    ) -> None:
        self._states = states
        self._store = store
        self._placing = placing
        self._redactions = redactions
        self._policies = policies

    async def prepare(
        self, batch: Batch, arrival: Arrival, event_nid: int, snapshot_nids: Iterator[int]
    ) -> tuple[Outcome, Step | None]:
        """What becomes of an arrival, and what is to be stored for it.

        Takes up to two snapshot numbers.  403 for one that is ``strict`` and not accepted.
        """
        event = arrival.received.event
        row = await self._store.row(event.event_id)
        if row is not None and row.room_nid != batch.room.room_nid:
            # Possible where servers choose the IDs of their events.
            return Outcome(event.event_id, "dropped", "an event of another room has its ID"), None
        if event.event_id in batch.nids or (row is not None and _is_settled(row, arrival)):
            return Outcome(event.event_id, "known"), None
        if arrival.way is Way.ASIDE:
            if batch.room.is_here and batch.head.local:
                raise MatrixError(
                    503, "M_UNKNOWN", "This server has joined the room meanwhile; try again.", retry_after_ms=1000
                )
            return Outcome(event.event_id), await self._aside(batch, arrival, row, event_nid)
        if event.type == "m.room.create" and batch.head.extremities and not await self._is_create(batch, arrival, row):
            return Outcome(event.event_id, "dropped", "the room has its create event"), None
        before, missing = await self._before(batch, arrival)
        if before is None:
            return Outcome(event.event_id, "dropped", "events before it are missing", missing), None
        try:
            verdict = await self._judge(batch, arrival, before)
        except _PolicyMissing:
            if arrival.strict:
                raise Unasked from None
            return Outcome(event.event_id, "unasked"), None
        outcome = Outcome(event.event_id, verdict.verdict, verdict.reason, verdict.missing)
        if arrival.strict and verdict.verdict != "accepted":
            raise forbidden(f"The room does not allow this: {verdict.reason}.")
        if verdict.event is None:
            return outcome, None
        status = _STATUS[verdict.verdict]
        step = await self._step(batch, arrival, verdict.event, row, event_nid, before, missing, status, snapshot_nids)
        return outcome, step

    async def _is_create(self, batch: Batch, arrival: Arrival, row: EventRow | None) -> bool:
        """Whether an arrival is the room's create event, which was known apart from the timeline so far."""
        if row is None or arrival.way is not Way.HISTORY:
            return False
        return batch.head.state.get(await self._states.slot_nid(("m.room.create", ""))) == row.event_nid

    # --- judging ---

    async def _before(self, batch: Batch, arrival: Arrival) -> tuple[State | None, tuple[str, ...]]:
        """The state before an arrival, if it can be known; and which of its ``prev_events`` are not here."""
        prev_events = arrival.received.event.prev_events
        if len(prev_events) > FOLLOWED:
            return await self._before_many(batch, arrival)
        given = [State(slots, 0) for slots in (arrival.before, *arrival.branches) if slots is not None]
        if not given:
            before = await self._placing.before(batch, prev_events)
            if before is not None:
                return before, ()
        known, missing = [], []
        for event_id in prev_events:
            placed = await self._placing.after(batch, event_id)
            if placed is None:
                missing.append(event_id)
            else:
                known.append(placed.after)
        if not given:
            return None, tuple(missing)
        if arrival.way is Way.TAKEOVER:
            return given[0], tuple(missing)
        return await self._placing.resolved(batch, [*given, *known]), tuple(missing)

    async def _before_many(self, batch: Batch, arrival: Arrival) -> tuple[State | None, tuple[str, ...]]:
        """As `_before`, for an old event that follows so many others that their states are not looked at."""
        if arrival.before is None:
            return None, ()
        prev_events = arrival.received.event.prev_events
        rows = [row for row in await self._store.rows(prev_events) if row.room_nid == batch.room.room_nid]
        here = {row.event_id for row in rows if row.position or row.snapshot_nid} | batch.nids.keys()
        return State(arrival.before, 0), tuple(event_id for event_id in prev_events if event_id not in here)

    async def _judge(self, batch: Batch, arrival: Arrival, before: State) -> Admission:
        """The steps of the specification after the signatures."""
        steps = admission.admit_verified(arrival.received)
        question: Any = next(steps, None)
        try:
            while True:
                question = steps.send(await self._answer(batch, arrival, before, question))
        except StopIteration as stop:
            verdict: Admission = stop.value
            return verdict

    async def _answer(self, batch: Batch, arrival: Arrival, before: State, question: Any) -> Any:
        if isinstance(question, admission.LoadAuthEvents):
            return await self._known(batch, question.event_ids)
        if isinstance(question, admission.StateBefore):
            return await self._state(batch, arrival, before, question.keys)
        if isinstance(question, admission.CurrentState):
            return await self._current_state(batch, arrival, before, question.keys)
        if isinstance(question, admission.FindPolicyServer):
            return await self._policies.of(batch) if arrival.way is Way.LIVE else None
        if isinstance(question, admission.AskPolicyServer):
            if arrival.policy is None or arrival.policy.via != question.via:
                raise _PolicyMissing
            return None
        raise TypeError(f"an unexpected question: {question!r}")

    async def _current_state(
        self, batch: Batch, arrival: Arrival, before: State, keys: Iterable[Slot]
    ) -> dict[Slot, Event] | None:
        """What an event that happens now must be allowed by as well; `None` if that is the state before it.

        Behind a gap the room may have changed in ways that are only seen now: who speaks has joined in between.
        """
        current = State(batch.head.state, batch.head.snapshot_nid)
        if arrival.way is not Way.LIVE or before.slots is current.slots:
            return None
        if arrival.before is not None or arrival.branches:
            current = await self._placing.resolved(batch, [current, before])
        return await self._state(batch, arrival, current, keys)

    async def _known(self, batch: Batch, event_ids: Iterable[str]) -> dict[str, KnownEvent]:
        standings = await self._store.standings(event_ids, batch)
        events = await self._states.events([one.event_nid for one in standings.values()], batch)
        return {
            event_id: KnownEvent(events[one.event_nid], one.rejected)
            for event_id, one in standings.items()
            if one.event_nid in events
        }

    async def _state(self, batch: Batch, arrival: Arrival, state: State, keys: Iterable[Slot]) -> dict[Slot, Event]:
        """A state at some places; where members are still missing, those that the event names stand in."""
        wanted = list(keys)
        found = await self._states.at(state.slots, wanted, batch)
        if batch.room.standing == PARTIAL or arrival.way is Way.TAKEOVER:
            for known in (await self._known(batch, arrival.received.event.auth_events)).values():
                key = (known.event.type, known.event.state_key or "")
                if key[0] == "m.room.member" and key in wanted and key not in found and not known.rejected:
                    found[key] = known.event
        return found

    # --- places ---

    async def _step(
        self,
        batch: Batch,
        arrival: Arrival,
        event: Event,
        row: EventRow | None,
        event_nid: int,
        before: State,
        missing: tuple[str, ...],
        status: int,
        snapshot_nids: Iterator[int],
    ) -> Step:
        aside_nid = row.event_nid if row is not None and row.status == ASIDE else None
        nid = event_nid if row is None or aside_nid is not None else row.event_nid
        slot_nid = None
        if event.state_key is not None:
            slot_nid = await self._states.slot_nid((event.type, event.state_key))
        current_nid, position = 0, None
        is_live = status == ACCEPTED and arrival.way is not Way.HISTORY
        if is_live and arrival.way is Way.TAKEOVER and slot_nid is not None:
            place = await self._placing.take_over(
                batch, event, nid, slot_nid, before.slots, arrival.known, snapshot_nids
            )
        elif is_live:
            place = await self._placing.live(batch, event, nid, slot_nid, before, snapshot_nids)
        else:
            is_history = status == ACCEPTED
            position = arrival.position if is_history else 0
            place, current_nid = self._placing.unseen(
                batch, event, nid, slot_nid, before, status, snapshot_nids, keep_after=is_history
            )
        redaction = await self._redaction(batch, event, row) if status == ACCEPTED else None
        target_nid = target = None
        if status == ACCEPTED and event.redacts is not None:
            target_nid, target = await self._redactions.of_arrival(batch, event, before.slots)
        if is_live and target is None and _is_withheld(arrival, event) and not (missing or place.changes):
            position = 0
        replaced_nid = before.slots.get(slot_nid) if slot_nid is not None else None
        replaced = (await self._states.events([replaced_nid], batch)).get(replaced_nid) if replaced_nid else None
        return Step(
            event=redact_event(event) if redaction is not None else event,
            event_nid=nid,
            before_nid=place.before_nid,
            current_nid=place.after.snapshot_nid if is_live else current_nid,
            slot_nid=slot_nid,
            after=place.after,
            links=place.links,
            changes=place.changes,
            draft=arrival.draft,
            way=arrival.way,
            status=status,
            position=position,
            replaced_nid=replaced_nid,
            replaced=replaced,
            redacted_nid=target_nid,
            redacted=target,
            redaction_nid=redaction.event_nid if redaction else None,
            redaction=redaction.event if redaction else None,
            placed=place.placed,
            missing=await self._may_come(missing),
            gap=bool(missing),
            awaited=place.awaited or arrival.way is Way.HISTORY,
            known=row is not None,
            aside_nid=aside_nid,
            distribute=arrival.distribute and status == ACCEPTED,
        )

    async def _may_come(self, missing: tuple[str, ...]) -> tuple[str, ...]:
        """Those of some events, not part of a timeline, that are not known to be another room's."""
        if not missing:
            return ()
        elsewhere = {row.event_id for row in await self._store.rows(missing) if row.position or row.snapshot_nid}
        return tuple(event_id for event_id in missing if event_id not in elsewhere)

    async def _redaction(self, batch: Batch, event: Event, row: EventRow | None) -> Redaction | None:
        """What has redacted an event before it takes its place."""
        if row is not None and row.redacted_by_nid is not None:
            events = await self._states.events([row.redacted_by_nid], batch)
            return Redaction(row.redacted_by_nid, events[row.redacted_by_nid])
        return await self._redactions.waiting_for(batch, event)

    async def _aside(self, batch: Batch, arrival: Arrival, row: EventRow | None, event_nid: int) -> Step:
        """An event of a room that this server is not in: told, and nothing of the room is changed by it."""
        event = arrival.received.event
        nid = event_nid if row is None else row.event_nid
        slot_nid = await self._states.slot_nid((event.type, event.state_key or ""))
        return Step(
            event=event,
            event_nid=nid,
            before_nid=0,
            current_nid=0,
            slot_nid=slot_nid,
            after=batch.head,
            way=Way.ASIDE,
            status=ASIDE,
            known=row is not None,
            distribute=arrival.distribute,
        )


def _is_withheld(arrival: Arrival, event: Event) -> bool:
    """Whether an event of another server, which empties nothing, is of no use to clients.

    A redaction that may not be carried out, or not yet: it is part of the timeline, and not shown.  If its target
    comes later, that one is shown with the redaction in its ``redacted_because`` (room version 3, "Handling
    redactions").
    """
    is_redaction = event.type == "m.room.redaction" and event.state_key is None
    return is_redaction and not event.version.redaction_in_auth_rules and arrival.draft is None


def _is_settled(row: EventRow, arrival: Arrival) -> bool:
    """Whether an event is part of the timeline here, or was judged to be none."""
    if arrival.way in (Way.ASIDE, Way.TAKEOVER):
        return False
    return bool(row.position or row.snapshot_nid)

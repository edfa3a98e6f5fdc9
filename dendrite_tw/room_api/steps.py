"""What a turn of a room's writer has made and not stored yet."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import msgspec

from ..matrix.events import Event
from ..matrix.identifiers import server_name_of
from .room import Draft, Head, Outcome, Placed, Room, Way, Work
from .snapshots import Link
from .tables.events import ACCEPTED
from .tables.names import Slot

CREATE = ("m.room.create", "")
POWER_LEVELS = ("m.room.power_levels", "")

PLACED_REMEMBERED = 50
"""Events of a room whose states are kept in memory; those that others refer to are mostly among the newest."""


class Change(NamedTuple):
    """A place in the current state that another event holds than before; `None` and 0 where there is none now."""

    slot: Slot
    slot_nid: int
    event_nid: int
    event: Event | None
    replaced: Event | None


class Step(msgspec.Struct, frozen=True, eq=False):
    """An event with its place: what the transaction stores, and the head that follows.

    ``position`` is below 0 for history, 0 for an event that is kept and not shown; a live event is given its own with
    the transaction.  ``replaced`` was state before the event; ``changes`` are those of the current state, the event's
    own among them.  ``missing`` are the events before it that are not here, ``awaited`` that one here refers to it.
    ``redacted`` is what is left of the event that this one redacts, ``redaction`` what redacted it before it came.
    ``known``: the event is stored already, apart from the timeline; ``aside_nid`` is its number until now if it was
    kept aside.
    """

    event: Event
    event_nid: int
    before_nid: int
    current_nid: int
    slot_nid: int | None
    after: Head
    links: tuple[Link, ...] = ()
    changes: tuple[Change, ...] = ()
    draft: Draft | None = None
    way: Way = Way.LIVE
    status: int = ACCEPTED
    position: int | None = None
    replaced_nid: int | None = None
    replaced: Event | None = None
    redacted_nid: int | None = None
    redacted: Event | None = None
    redaction_nid: int | None = None
    redaction: Event | None = None
    placed: Placed | None = None
    missing: tuple[str, ...] = ()
    gap: bool = False
    awaited: bool = False
    known: bool = False
    aside_nid: int | None = None
    distribute: bool = False


class Accepted(NamedTuple):
    """A work that may be stored."""

    work: Work
    steps: list[Step]
    outcomes: list[Outcome]


@dataclass
class Batch:
    """One turn: the head as it is after what was accepted so far, and the events that are not on disk yet.

    ``events`` has them by number, ``nids`` their numbers by ID, ``placed`` their places, and ``redactions`` the
    redactions among them whose targets are not here, by the target's ID.
    """

    room: Room
    head: Head
    events: dict[int, Event] = field(default_factory=dict)
    nids: dict[str, int] = field(default_factory=dict)
    placed: dict[str, Placed] = field(default_factory=dict)
    redactions: dict[str, list[int]] = field(default_factory=dict)

    def add(self, step: Step) -> None:
        """Go on from an event."""
        event = step.event
        self.head = step.after
        self.events[step.event_nid] = event
        self.nids[event.event_id] = step.event_nid
        if step.placed is not None:
            self.placed[event.event_id] = step.placed
        if len(event.prev_events) == 1 and not step.missing and (self.placed or self.room.placed):
            self._stored_after(event.prev_events[0], step.before_nid)
        if step.redacted_nid is not None and step.redacted is not None:
            self.events[step.redacted_nid] = step.redacted
        elif event.redacts is not None and step.status == ACCEPTED:
            self.redactions.setdefault(event.redacts, []).append(step.event_nid)

    def _stored_after(self, event_id: str, snapshot_nid: int) -> None:
        """The state after an event is stored, as that before the one that follows."""
        placed = self.placed.get(event_id) or self.room.placed.get(event_id)
        if placed is not None and not placed.after.snapshot_nid:
            self.placed[event_id] = placed._replace(after=placed.after._replace(snapshot_nid=snapshot_nid))

    def seen_with(self, event: Event, event_nid: int) -> Batch:
        """The batch as if it had an event, which is not accepted yet."""
        return replace(self, events={**self.events, event_nid: event}, nids={**self.nids, event.event_id: event_nid})

    def copy(self) -> Batch:
        """What to go back to where the rest of a work is refused."""
        redactions = {event_id: list(nids) for event_id, nids in self.redactions.items()}
        return Batch(self.room, self.head, dict(self.events), dict(self.nids), dict(self.placed), redactions)


def remember(placed: OrderedDict[str, Placed], fresh: Mapping[str, Placed], extremities: Collection[str]) -> None:
    """Keep the places of events that are on disk now: those at the ends of the timeline, and as many more as may be."""
    placed.update(fresh)
    for event_id in [*placed][: len(placed) - PLACED_REMEMBERED - len(extremities)]:
        if event_id not in extremities:
            del placed[event_id]


def is_local(user_id: str, server_name: str) -> bool:
    """Whether a user is one of the server with that name; not every member event has a user ID for a key."""
    return ":" in user_id and server_name_of(user_id) == server_name

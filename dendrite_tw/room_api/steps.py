"""What a turn of a room's writer has made and not stored yet."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..matrix.events import Event
from .room import Draft, Head, Room, Work
from .snapshots import Link

CREATE = ("m.room.create", "")
POWER_LEVELS = ("m.room.power_levels", "")


@dataclass(frozen=True)
class Step:
    """An event with its place: what the transaction stores, and the head that follows."""

    draft: Draft
    event: Event
    event_nid: int
    before_nid: int
    slot_nid: int | None
    link: Link | None
    replaced_nid: int | None
    replaced: Event | None
    redacted_nid: int | None
    redacted: Event | None
    after: Head


Accepted = tuple[Work, list[Step]]


@dataclass
class Batch:
    """One turn: the head as it is after what was accepted so far, and the events that are not on disk yet by number."""

    room: Room
    head: Head
    events: dict[int, Event] = field(default_factory=dict)

    def add(self, step: Step) -> None:
        """Go on from an event."""
        self.head = step.after
        self.events[step.event_nid] = step.event
        if step.redacted_nid is not None and step.redacted is not None:
            self.events[step.redacted_nid] = step.redacted

    def copy(self) -> Batch:
        """What to go back to where the rest of a work is refused."""
        return Batch(self.room, self.head, dict(self.events))

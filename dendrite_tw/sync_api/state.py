"""Which state events a client needs beside a timeline, to know the room's state.

A client that keeps state lays ``state`` and then the timeline's state events
over what it has; one that asked for ``state_after`` takes that alone.  So for
each slot that changed: with ``state_after`` the current event, and otherwise
the current event where the timeline does not show the slot, or what stood
there before the timeline's first event at it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..room_api.api import RoomAPI, RoomEvent
from .rooms import MEMBER, Room, Slot


class StateSpan:
    """A room's state at the end of a span and around its timeline; to be used before waiting for anything else.

    ``first_in_timeline`` has the first event that the timeline shows at a slot.
    """

    def __init__(
        self,
        room: Room,
        upto: int,
        timeline: Iterable[RoomEvent],
        known: Mapping[Slot, RoomEvent | None] | None = None,
    ) -> None:
        """``known`` has what stands at the end at slots that the room component was asked about."""
        self.room = room
        self._later = {**(room.changed_after(upto) or {}), **(known or {})}
        self.first_in_timeline: dict[Slot, RoomEvent] = {}
        for event in timeline:
            if event.state_key is not None:
                self.first_in_timeline.setdefault((event.type, event.state_key), event)

    def at_end(self, slot: Slot) -> RoomEvent | None:
        """What stands at `slot` at the end of the span."""
        return self._later[slot] if slot in self._later else self.room.get(slot)

    def slots_at_end(self) -> Iterable[Slot]:
        gone = [slot for slot, event in self._later.items() if event is not None and self.room.get(slot) is None]
        return [*self.room.state, *((MEMBER, user) for user in self.room.members), *gone]

    def replaced_by(self, slot: Slot) -> RoomEvent | str | None:
        """What stood at `slot` before the timeline's first event there: the event, its ID, or nothing."""
        first = self.first_in_timeline[slot]
        if first.position <= self.room.changes_floor:
            return first.replaces
        for change in self.room.changes:
            if change.slot == slot and change.position >= first.position:
                return change.previous
        return self.at_end(slot)


async def fill_in(rooms: RoomAPI, values: Iterable[RoomEvent | str | None]) -> list[RoomEvent]:
    """The events among `values`, those that are IDs fetched."""
    listed = list(values)
    missing = [value for value in listed if isinstance(value, str)]
    fetched = {event.event_id: event for event in await rooms.events(missing)} if missing else {}
    found = [fetched.get(value) if isinstance(value, str) else value for value in listed]
    return [event for event in found if event is not None]


def full_state(span: StateSpan, slots: Iterable[Slot], state_after: bool) -> list[RoomEvent | str | None]:
    """The state at these slots, at the end of the span or at the start of its timeline."""
    if state_after or not span.first_in_timeline:
        return [span.at_end(slot) for slot in slots]
    return [span.replaced_by(slot) if slot in span.first_in_timeline else span.at_end(slot) for slot in slots]


def state_delta(
    span: StateSpan, base: Mapping[Slot, RoomEvent | None], state_after: bool
) -> list[RoomEvent | str | None]:
    """What is told of the slots that changed, whose former events `base` has."""
    told: list[RoomEvent | str | None] = []
    for slot, before in base.items():
        if state_after or slot not in span.first_in_timeline:
            event: RoomEvent | str | None = span.at_end(slot)
        else:
            event = span.replaced_by(slot)
        event_id = event.event_id if isinstance(event, RoomEvent) else event
        if event_id is not None and (before is None or before.event_id != event_id):
            told.append(event)
    return told

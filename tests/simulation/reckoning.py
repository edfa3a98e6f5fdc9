"""The state of a room worked out again from its events alone, by the plain implementation of state resolution.

Slow, and independent of everything that servers remember: it says which of two servers that differ is right, or that
both are wrong alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from dendrite_tw.matrix.events import Event, event_from_storage
from dendrite_tw.matrix.room_versions import ROOM_VERSIONS, RoomVersion
from tests.matrix.plain_state_res import PlainResolution

Slot = tuple[str, str]


class Reckoning:
    """States of one room; `pdus` are all events that anybody has, by event id."""

    def __init__(self, version: str, pdus: Mapping[str, bytes]) -> None:
        known: RoomVersion = ROOM_VERSIONS[version]
        self.events: dict[str, Event] = {
            event_id: event_from_storage(pdu, known, event_id) for event_id, pdu in pdus.items()
        }
        self._plain = PlainResolution(known, self.events)
        self._after: dict[str, dict[Slot, Event] | None] = {}
        self._resolved: dict[frozenset[str], dict[Slot, Event] | None] = {}

    def after(self, event_id: str) -> dict[Slot, Event] | None:
        """The state after an event; `None` where events before it are missing."""
        waiting = [event_id]
        while waiting:
            current = waiting[-1]
            if current in self._after:
                waiting.pop()
                continue
            event = self.events.get(current)
            missing = [prev for prev in event.prev_events if prev not in self._after] if event is not None else []
            if missing:
                waiting.extend(missing)
                continue
            waiting.pop()
            self._after[current] = None if event is None else self._one_on(event)
        return self._after[event_id]

    def _one_on(self, event: Event) -> dict[Slot, Event] | None:
        before: dict[Slot, Event] | None = {} if event.type == "m.room.create" else self.at(event.prev_events)
        if before is None or event.state_key is None:
            return before
        return {**before, (event.type, event.state_key): event}

    def at(self, event_ids: Iterable[str]) -> dict[Slot, Event] | None:
        """The state where these events meet."""
        wanted = frozenset(event_ids)
        if wanted not in self._resolved:
            states = [self.after(event_id) for event_id in sorted(wanted)]
            known = [state for state in states if state is not None]
            different = {tuple(sorted(event.event_id for event in state.values())): state for state in known}
            if len(known) < len(states) or not known:
                self._resolved[wanted] = None
            elif len(different) == 1:
                self._resolved[wanted] = known[0]
            else:
                self._resolved[wanted] = self._plain.resolve(list(different.values()))
        return self._resolved[wanted]

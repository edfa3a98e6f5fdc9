"""Events of a room in the order of the graph.

Server-Server API, "PDUs": an event follows those that it names in ``prev_events``.
"""

from __future__ import annotations

from collections.abc import Iterable

from dendrite_tw.matrix.events import Event, ReceivedEvent


def oldest_first(received: Iterable[ReceivedEvent]) -> list[ReceivedEvent]:
    """As `parents_first`, of events that were received."""
    by_id = {one.event.event_id: one for one in received}
    return [by_id[event.event_id] for event in parents_first(one.event for one in by_id.values())]


def parents_first(events: Iterable[Event]) -> list[Event]:
    """Events so that each comes after those of its ``prev_events`` that are among them.

    Among those of which neither follows the other, the lesser depth comes first.  Events that go round in a
    circle, which only versions allow that do not hash their ids, are left out.
    """
    by_id = {event.event_id: event for event in events}
    waiting: dict[str, int] = {}
    above: dict[str, list[str]] = {}
    for event_id, event in by_id.items():
        below = {prev_id for prev_id in event.prev_events if prev_id in by_id}
        waiting[event_id] = len(below)
        for prev_id in below:
            above.setdefault(prev_id, []).append(event_id)

    def place(event_id: str) -> tuple[int, str]:
        return by_id[event_id].depth, event_id

    ready = sorted((event_id for event_id, count in waiting.items() if not count), key=place)
    for event_id in ready:  # grows while it is read
        for other in sorted(above.get(event_id, ()), key=place):
            waiting[other] -= 1
            if not waiting[other]:
                ready.append(other)
    return [by_id[event_id] for event_id in ready]

"""Where state resolution looks events up: numbered events and bitmaps of their auth chains.

Everything that the algorithms compare is a set of events, so events are numbers
and sets are roaring bitmaps.  Numbers grow along the graph: an event has a
greater number than each of its auth events.  That holds by itself wherever events
are numbered as they are stored, and it spares most questions about ancestry: what
is older than an event cannot build on it.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterable
from typing import Protocol

from pyroaring import BitMap

from dendrite_tw.matrix.events import Event

StateKey = tuple[str, str]
"""A type and a state key."""


class AuthGraph(Protocol):
    """The auth events of one room, closed: the auth events of each event in it are in it."""

    def number(self, event_id: str, /) -> int:
        """The number of an event; `KeyError` if it is not here."""

    def event(self, number: int, /) -> Event:
        """The event with that number; `KeyError` if there is none."""

    def auth_chain(self, number: int, /) -> BitMap:
        """The numbers of all events that are reached along ``auth_events``, the event itself excluded.

        The caller does not change what it gets.
        """

    def is_rejected(self, number: int, /) -> bool:
        """Whether the event was rejected when it was received."""


class MemoryGraph:
    """An `AuthGraph` of events in memory, as of a ``send_join`` response before it is stored.

    Raises `ValueError` for events that lack auth events, or are their own ancestors.
    """

    def __init__(self, events: Iterable[Event] = (), *, rejected: Collection[str] = ()) -> None:
        self._rejected = rejected
        self._numbers: dict[str, int] = {}
        self._events: list[Event] = []
        self._chains: list[BitMap] = []
        for event in auth_order(events):
            self.add(event)

    def add(self, event: Event) -> int:
        """Take in an event whose auth events are all here, and tell its number."""
        known = self._numbers.get(event.event_id)
        if known is not None:
            return known
        chain = BitMap()
        for auth_id in event.auth_events:
            number = self._numbers.get(auth_id)
            if number is None:
                raise ValueError(f"{event.event_id} is authorised by {auth_id}, which is missing")
            chain |= self._chains[number]
            chain.add(number)
        self._numbers[event.event_id] = len(self._events)
        self._events.append(event)
        self._chains.append(chain)
        return len(self._events) - 1

    def number(self, event_id: str, /) -> int:
        return self._numbers[event_id]

    def event(self, number: int, /) -> Event:
        return self._events[number]

    def auth_chain(self, number: int, /) -> BitMap:
        return self._chains[number]

    def is_rejected(self, number: int, /) -> bool:
        return self._events[number].event_id in self._rejected


def auth_order(events: Iterable[Event]) -> list[Event]:
    """The events so that each follows those of its auth events that are among them.

    Raises `ValueError` if they go round in a circle, which room versions allow that do not hash their ids.
    """
    steps = auth_order_in_steps(events)
    while True:
        try:
            next(steps)
        except StopIteration as done:
            ordered: list[Event] = done.value
            return ordered


def auth_order_in_steps(events: Iterable[Event], events_a_step: int = 2000) -> Generator[None, None, list[Event]]:
    """As `auth_order`, for who has something else to do in between: yields now and then."""
    by_id = {event.event_id: event for event in events}
    waiting: dict[str, int] = {}
    citing: dict[str, list[str]] = {}
    for index, event in enumerate(by_id.values()):
        if index % events_a_step == events_a_step - 1:
            yield
        cited = {auth_id for auth_id in event.auth_events if auth_id in by_id}
        waiting[event.event_id] = len(cited)
        for auth_id in cited:
            citing.setdefault(auth_id, []).append(event.event_id)
    ready = [event_id for event_id, count in waiting.items() if not count]
    for index, event_id in enumerate(ready):  # grows while it is read
        if index % events_a_step == events_a_step - 1:
            yield
        for above in citing.get(event_id, ()):
            waiting[above] -= 1
            if not waiting[above]:
                ready.append(above)
    if len(ready) != len(by_id):
        raise ValueError("events that authorise each other in a circle")
    return [by_id[event_id] for event_id in ready]

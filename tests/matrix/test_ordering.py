"""Events in the order of the graph."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.matrix.events import Event, ReceivedEvent, receive_event
from dendrite_tw.matrix.ordering import oldest_first
from dendrite_tw.matrix.room_versions import ROOM_V1, ROOM_V10

from .builders import ALICE, RoomBuilder


def received(event: Event) -> ReceivedEvent:
    return receive_event(event.pdu, event.version)


class OrderingTests(SynchronousTestCase):
    @given(st.lists(st.sets(st.integers(0, 15), max_size=3), min_size=1, max_size=16), st.randoms())
    def test_each_follows_those_before_it(self, graph: list[set[int]], chance: Random) -> None:
        room = RoomBuilder(ROOM_V10)
        events: list[Event] = []
        for below in graph:
            prev = [events[index] for index in below if index < len(events)]
            events.append(room.event("m.room.message", ALICE, {}, None, prev))
        shuffled = list(map(received, events))
        chance.shuffle(shuffled)
        ordered = [one.event.event_id for one in oldest_first(shuffled)]
        self.assertEqual(sorted(ordered), sorted(event.event_id for event in events))
        for event in events:
            for prev_id in event.prev_events:
                self.assertLess(ordered.index(prev_id), ordered.index(event.event_id))

    def test_a_circle_is_left_out(self) -> None:
        room = RoomBuilder(ROOM_V1)
        first = room.event("m.room.message", ALICE, {}, None, [room.create], event_id="one")
        second = room.event("m.room.message", ALICE, {}, None, [first], event_id="two")
        again = room.event("m.room.message", ALICE, {}, None, [second], event_id="one")
        above = room.event("m.room.message", ALICE, {}, None, [again], event_id="three")
        found = oldest_first(map(received, [above, second, again, room.create]))
        self.assertEqual([one.event.event_id for one in found], [room.create.event_id])

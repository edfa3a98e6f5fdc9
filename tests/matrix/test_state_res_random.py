"""The quick state resolution against the plain one, in rooms that chance invents."""

from __future__ import annotations

from itertools import permutations
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.matrix import state_res
from dendrite_tw.matrix.events import Event
from dendrite_tw.matrix.room_versions import ROOM_V1, ROOM_V2, ROOM_V6, ROOM_V11, ROOM_V12, RoomVersion
from dendrite_tw.matrix.state_res import MemoryGraph, StateKey

from .forks import Forks, Move, random_forks
from .plain_state_res import PlainResolution

bounded = settings(max_examples=100, deadline=None, derandomize=True)

rejections = st.sets(st.integers(0, 60), max_size=3)


@st.composite
def scripts(draw: st.DrawFn) -> list[Move]:
    """Moves for a room.  All chance is in one number, or most rooms would be too short to fork twice."""
    chance = Random(draw(st.integers(0, 2**32)))
    return [tuple(chance.randrange(41) for _ in range(5)) for _ in range(draw(st.integers(8, 45)))]  # type: ignore[misc]


def ids(state: dict[StateKey, Event]) -> dict[StateKey, str]:
    return {key: event.event_id for key, event in state.items()}


def tips(forks: Forks, count: int) -> list[dict[StateKey, str]]:
    return [ids(state) for state in list(forks.states.values())[-count:]]


class AgainstPlainTests(SynchronousTestCase):
    def compare(self, version: RoomVersion, script: list[Move], count: int, rejected: set[int]) -> None:
        forks = random_forks(version, script)
        events = list(forks.events.values())
        refused = {events[index].event_id for index in rejected if index < len(events)}
        states = list(forks.states.values())[-count:]
        expected = ids(PlainResolution(version, forks.events, refused).resolve(states))
        graph = MemoryGraph(events, rejected=refused)
        self.assertEqual(state_res.resolve(version, [ids(state) for state in states], graph), expected)

    @bounded
    @given(scripts(), st.integers(1, 4), rejections)
    def test_version_1(self, script: list[Move], count: int, rejected: set[int]) -> None:
        self.compare(ROOM_V1, script, count, rejected)

    @bounded
    @given(scripts(), st.integers(1, 4), rejections)
    def test_version_2(self, script: list[Move], count: int, rejected: set[int]) -> None:
        self.compare(ROOM_V2, script, count, rejected)

    @bounded
    @given(scripts(), st.integers(1, 4), rejections)
    def test_version_11(self, script: list[Move], count: int, rejected: set[int]) -> None:
        self.compare(ROOM_V11, script, count, rejected)

    @bounded
    @given(scripts(), st.integers(1, 4), rejections)
    def test_version_12(self, script: list[Move], count: int, rejected: set[int]) -> None:
        self.compare(ROOM_V12, script, count, rejected)


class OrderTests(SynchronousTestCase):
    def resolve_every_way(self, version: RoomVersion, script: list[Move]) -> None:
        forks = random_forks(version, script)
        events = list(forks.events.values())
        graphs = [MemoryGraph(events), MemoryGraph(reversed(events))]
        states = tips(forks, 3)
        expected = state_res.resolve(version, states, graphs[0])
        for graph in graphs:
            for order in permutations(states):
                turned = [dict(reversed(state.items())) for state in order]
                self.assertEqual(state_res.resolve(version, turned, graph), expected)

    @bounded
    @given(scripts(), st.sampled_from([ROOM_V1, ROOM_V6, ROOM_V12]))
    def test_the_order_of_the_input_does_not_matter(self, script: list[Move], version: RoomVersion) -> None:
        self.resolve_every_way(version, script)

    @bounded
    @given(scripts(), st.sampled_from([ROOM_V1, ROOM_V6, ROOM_V12]))
    def test_equal_states_resolve_to_themselves(self, script: list[Move], version: RoomVersion) -> None:
        forks = random_forks(version, script)
        (state,) = tips(forks, 1)
        graph = MemoryGraph(forks.events.values())
        self.assertEqual(state_res.resolve(version, [state, dict(state)], graph), state)
        self.assertEqual(state_res.resolve(version, [state], graph), state)

    @bounded
    @given(scripts(), st.sampled_from([ROOM_V6, ROOM_V12]))
    def test_what_all_states_share_stays(self, script: list[Move], version: RoomVersion) -> None:
        forks = random_forks(version, script)
        states = tips(forks, 3)
        shared = {key: one for key, one in states[0].items() if all(state.get(key) == one for state in states)}
        resolved = state_res.resolve(version, states, MemoryGraph(forks.events.values()))
        self.assertEqual({key: resolved[key] for key in shared}, shared)

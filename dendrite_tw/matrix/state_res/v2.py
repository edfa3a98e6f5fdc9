"""State resolution of room version 2, and as room version 12 revised it (2.1).

Specification: "State resolution" of room versions 2 and 12.  What is disputed, and
whatever of the auth chains not all states share, is judged anew in an order on
which all servers agree: first the events that can take power from somebody, then
the rest along the mainline of power levels.

The revision begins with an empty state, so that each event stands on its own
auth events until another event that was judged replaces them; and it judges also
what lies between disputed events.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping, Sequence

from pyroaring import BitMap

from dendrite_tw.matrix.auth_rules import AuthError, auth_event_keys, check_auth
from dendrite_tw.matrix.events import Event
from dendrite_tw.matrix.power_levels import PowerLevels
from dendrite_tw.matrix.room_versions import RoomVersion
from dendrite_tw.matrix.state_res.graph import AuthGraph, StateKey

_CREATE = ("m.room.create", "")
_POWER_LEVELS = ("m.room.power_levels", "")


def resolve(
    version: RoomVersion,
    unconflicted: Mapping[StateKey, int],
    conflicted: Sequence[Mapping[StateKey, int]],
    graph: AuthGraph,
) -> dict[StateKey, int]:
    """What belongs over ``unconflicted``; arguments and result as of `state_res.resolve_conflicts`."""
    from_nothing = version.state_resolution == "v2.1"
    disputed = full_conflicted_set(unconflicted, conflicted, graph, subgraph=from_nothing)
    resolution = _Resolution(version, {} if from_nothing else unconflicted, graph)
    first = resolution.power_order(_with_conflicted_chains(disputed, graph))
    resolution.apply(first)
    rest = disputed - BitMap(first)
    resolution.apply(resolution.mainline_order(rest))
    return {key: number for key, number in resolution.judged.items() if key not in unconflicted}


# --- sets of events -------------------------------------------------------------------------------


def full_conflicted_set(
    unconflicted: Mapping[StateKey, int],
    conflicted: Sequence[Mapping[StateKey, int]],
    graph: AuthGraph,
    *,
    subgraph: bool,
) -> BitMap:
    """The conflicted state set with the auth difference; with ``subgraph`` also what lies between its events."""
    sets = [BitMap(state.values()) for state in conflicted]
    state_set = BitMap.union(*sets) if len(sets) > 1 else sets[0].copy()
    chains = [_union(graph.auth_chain(number) for number in numbers) for numbers in sets]
    everything = _union(chains)
    difference = everything - (BitMap.intersection(*chains) if len(chains) > 1 else chains[0])
    _exclude_common(difference, unconflicted, graph)
    found: BitMap = state_set | difference
    if subgraph:
        found |= _between(state_set, everything - found, graph)
    return found


def _union(bitmaps: Iterable[BitMap]) -> BitMap:
    """All of them together: two at a time would copy what is there already once for each."""
    listed = list(bitmaps)
    if len(listed) > 1:
        return BitMap.union(*listed)
    return listed[0].copy() if listed else BitMap()


def _exclude_common(difference: BitMap, unconflicted: Mapping[StateKey, int], graph: AuthGraph) -> None:
    """Take out of the difference what is behind an event that all states share."""
    if not difference:
        return
    oldest = difference.min()
    # An event builds only on what has a smaller number.
    difference -= _union(graph.auth_chain(number) for number in unconflicted.values() if number > oldest)


def _between(state_set: BitMap, candidates: BitMap, graph: AuthGraph) -> BitMap:
    """The conflicted state subgraph: of what is behind one event of the set, that which builds on another."""
    return BitMap(
        number
        for number in candidates.iter_equal_or_larger(state_set.min() + 1)
        if graph.auth_chain(number).intersect(state_set)
    )


def _is_power_event(event: Event) -> bool:
    if event.state_key is None:
        return False
    if event.type == "m.room.member":
        return event.membership in ("leave", "ban") and event.sender != event.state_key
    return event.type in ("m.room.power_levels", "m.room.join_rules")


def _with_conflicted_chains(disputed: BitMap, graph: AuthGraph) -> BitMap:
    """The power events of the set, with whatever of the set is in their auth chains."""
    found = BitMap()
    for number in disputed:
        if _is_power_event(graph.event(number)):
            found |= graph.auth_chain(number) & disputed
            found.add(number)
    return found


# --- orders and judgement -------------------------------------------------------------------------


class _Resolution:
    """One resolution on its way: what was judged so far lies over the state that it began with."""

    def __init__(self, version: RoomVersion, start: Mapping[StateKey, int], graph: AuthGraph) -> None:
        self.judged: dict[StateKey, int] = {}
        self._version = version
        self._start = start
        self._graph = graph
        self._cited: dict[str, tuple[int, StateKey | None]] = {}
        self._authorities: dict[int, dict[StateKey, int]] = {}
        self._levels: dict[tuple[int, int | None], PowerLevels] = {}

    def _cite(self, auth_id: str) -> tuple[int, StateKey | None]:
        """The number of an auth event and its place in the state; a few of them stand behind most events."""
        known = self._cited.get(auth_id)
        if known is None:
            cited = self._graph.number(auth_id)
            event = self._graph.event(cited)
            known = self._cited[auth_id] = cited, None if event.state_key is None else (event.type, event.state_key)
        return known

    def _authority(self, number: int) -> dict[StateKey, int]:
        """The auth events of an event by their place in the state, with the create event if that is implied."""
        known = self._authorities.get(number)
        if known is not None:
            return known
        found: dict[StateKey, int] = {}
        event = self._graph.event(number)
        for auth_id in event.auth_events:
            cited, key = self._cite(auth_id)
            if key is not None:
                found.setdefault(key, cited)
        if not self._version.create_event_in_auth_events and event.type != "m.room.create":
            found[_CREATE] = self._graph.number("$" + event.room_id[1:])
        self._authorities[number] = found
        return found

    def _power_levels(self, create: int, number: int | None) -> PowerLevels:
        known = self._levels.get((create, number))
        if known is None:
            event = None if number is None else self._graph.event(number)
            known = self._levels[create, number] = PowerLevels(self._graph.event(create), event)
        return known

    def _sender_power(self, number: int, sender: str) -> int:
        """The power of the sender by the event's own auth events; none where these name no room."""
        authority = self._authority(number)
        create = authority.get(_CREATE)
        if create is None:
            return 0
        return self._power_levels(create, authority.get(_POWER_LEVELS)).user_level(sender)

    def power_order(self, numbers: BitMap) -> list[int]:
        """The reverse topological power ordering, earliest first."""
        waiting: dict[int, int] = {}
        above: dict[int, list[int]] = {}
        ready = []
        for number in numbers:
            below = self._below(number, numbers)
            waiting[number] = len(below)
            for other in below:
                above.setdefault(other, []).append(number)
            if not below:
                ready.append(self._rank(number))
        heapq.heapify(ready)
        ordered = []
        while ready:
            number = heapq.heappop(ready)[-1]
            ordered.append(number)
            for other in above.get(number, ()):
                waiting[other] -= 1
                if not waiting[other]:
                    heapq.heappush(ready, self._rank(other))
        return ordered

    def _below(self, number: int, numbers: BitMap) -> BitMap:
        """The nearest of ``numbers`` that the event builds on, be it by way of others."""
        below = BitMap()
        for auth_id in self._graph.event(number).auth_events:
            cited = self._graph.number(auth_id)
            if cited in numbers:
                below.add(cited)
            else:
                below |= self._graph.auth_chain(cited) & numbers
        return below

    def _rank(self, number: int) -> tuple[int, int, str, int]:
        event = self._graph.event(number)
        return -self._sender_power(number, event.sender), event.origin_server_ts, event.event_id, number

    def mainline_order(self, numbers: Iterable[int]) -> list[int]:
        """The mainline ordering, based on the power levels of the state so far."""
        positions: dict[int, float] = {}
        step, index = self._find(_POWER_LEVELS), 0
        while step is not None:
            positions[step] = index
            step, index = self._levels_behind(step), index + 1

        def rank(number: int) -> tuple[float, int, str]:
            event = self._graph.event(number)
            return -self._mainline_position(number, positions), event.origin_server_ts, event.event_id

        return sorted(numbers, key=rank)

    def _mainline_position(self, number: int, positions: dict[int, float]) -> float:
        """Where the power levels behind an event meet the mainline; ``positions`` remembers what was walked."""
        walked: list[int] = []
        step = self._levels_behind(number)
        while step is not None and step not in positions:
            walked.append(step)
            step = self._levels_behind(step)
        position = math.inf if step is None else positions[step]
        if walked:
            positions.update(dict.fromkeys(walked, position))
        return position

    def _levels_behind(self, number: int) -> int | None:
        """The power levels among the auth events of an event."""
        for auth_id in self._graph.event(number).auth_events:
            cited, key = self._cite(auth_id)
            if key == _POWER_LEVELS:
                return cited
        return None

    def _find(self, key: StateKey) -> int | None:
        found = self.judged.get(key)
        return self._start.get(key) if found is None else found

    def apply(self, numbers: Iterable[int]) -> None:
        """The iterative auth checks: let each event that the state allows be part of it."""
        look_up = self._graph.event
        for number in numbers:
            event = look_up(number)
            if event.state_key is None:
                continue
            place = self._places(number, event)
            create, levels = place.get(_CREATE), None
            if create is not None:
                levels = self._power_levels(create, place.get(_POWER_LEVELS))
            state = {key: look_up(found) for key, found in place.items()}
            try:
                check_auth(event, state, power_levels=levels)
            except AuthError:
                continue
            self.judged[event.type, event.state_key] = number

    def _places(self, number: int, event: Event) -> dict[StateKey, int]:
        """The state that the event is judged by; what it lacks is taken from the event's auth events."""
        keys = auth_event_keys(
            version=self._version,
            type=event.type,
            sender=event.sender,
            state_key=event.state_key,
            content=event.content,
        )
        if not self._version.create_event_in_auth_events:
            keys.append(_CREATE)
        judged, start = self.judged.get, self._start.get
        place = {}
        for key in keys:
            found = judged(key)
            if found is None:
                found = start(key)
            if found is None:
                found = self._authority(number).get(key)
                if found is None or self._graph.is_rejected(found):
                    continue
            place[key] = found
        return place

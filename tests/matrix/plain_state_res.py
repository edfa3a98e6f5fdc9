"""State resolution as the specification tells it: sets, sentences, and no haste.

Written from the text alone, to hold the quick implementation against.  A state is a
dict from type and state key to `Event`; an auth graph is a dict from event id to
`Event`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence

from dendrite_tw.matrix.auth_rules import AuthError, auth_event_keys, check_auth
from dendrite_tw.matrix.events import Event
from dendrite_tw.matrix.power_levels import PowerLevels
from dendrite_tw.matrix.room_versions import RoomVersion

Key = tuple[str, str]
State = Mapping[Key, Event]
CREATE = ("m.room.create", "")
LEVELS = ("m.room.power_levels", "")


def needed_keys(event: Event) -> list[Key]:
    return auth_event_keys(
        version=event.version,
        type=event.type,
        sender=event.sender,
        state_key=event.state_key,
        content=event.content,
    )


def allowed(event: Event, state: State) -> bool:
    try:
        check_auth(event, state)
    except AuthError:
        return False
    return True


class PlainResolution:
    """``events`` by id, closed under auth events; ``rejected`` the ids of those that were rejected."""

    def __init__(self, version: RoomVersion, events: Mapping[str, Event], rejected: Collection[str] = ()) -> None:
        self.version = version
        self.events = events
        self.rejected = rejected
        self.chains: dict[str, set[str]] = {}

    def resolve(self, states: Sequence[State]) -> dict[Key, Event]:
        if self.version.state_resolution == "v1":
            return self.version_1(states)
        return self.version_2(states)

    # --- room version 1

    def version_1(self, states: Sequence[State]) -> dict[Key, Event]:
        found: dict[Key, set[str]] = {}
        for state in states:
            for key, event in state.items():
                found.setdefault(key, set()).add(event.event_id)
        result = {key: self.events[min(ids)] for key, ids in found.items() if len(ids) == 1}
        conflicts = {key: ids for key, ids in found.items() if len(ids) > 1}
        for event_type in ("m.room.power_levels", "m.room.join_rules", "m.room.member"):
            settled = {}
            for key, ids in conflicts.items():
                if key[0] == event_type:
                    candidates = sorted((self.events[one] for one in ids), key=self.sha1, reverse=True)
                    candidates.sort(key=lambda event: event.depth)
                    trial = dict(result)
                    trial[key] = candidates[0]
                    for event in candidates[1:]:
                        if not allowed(event, trial):
                            break
                        trial[key] = event
                    settled[key] = trial[key]
            result.update(settled)
            conflicts = {key: ids for key, ids in conflicts.items() if key not in settled}
        last = dict(result)
        for key, ids in conflicts.items():
            candidates = sorted((self.events[one] for one in ids), key=self.sha1)
            candidates.sort(key=lambda event: -event.depth)
            passing = [event for event in candidates if allowed(event, result)]
            if passing:
                last[key] = passing[0]
        return last

    def sha1(self, event: Event) -> str:
        return hashlib.sha1(event.event_id.encode()).hexdigest()

    # --- room version 2, and 12

    def version_2(self, states: Sequence[State]) -> dict[Key, Event]:
        pairs = {(key, event.event_id) for state in states for key, event in state.items()}
        in_all = {
            (key, event_id)
            for key, event_id in pairs
            if all(key in state and state[key].event_id == event_id for state in states)
        }
        unconflicted = {key: self.events[event_id] for key, event_id in in_all}
        conflicted = {event_id for _, event_id in pairs - in_all}
        full = conflicted | self.auth_difference(states)
        if self.version.state_resolution == "v2.1":
            full |= self.subgraph(conflicted)

        chosen = {one for one in full if self.is_power_event(self.events[one])}
        for one in list(chosen):
            chosen |= self.chain(one) & full
        partial = {} if self.version.state_resolution == "v2.1" else dict(unconflicted)
        partial = self.iterate(partial, self.power_ordering(chosen))
        remaining = full - chosen
        result = self.iterate(partial, self.mainline_ordering(remaining, partial.get(LEVELS)))
        result.update(unconflicted)
        return result

    def chain(self, event_id: str) -> set[str]:
        if event_id not in self.chains:
            self.chains[event_id] = self.walk_chain(event_id)
        return self.chains[event_id]

    def walk_chain(self, event_id: str) -> set[str]:
        found: set[str] = set()
        todo = [event_id]
        while todo:
            for auth_id in self.events[todo.pop()].auth_events:
                if auth_id not in found:
                    found.add(auth_id)
                    todo.append(auth_id)
        return found

    def auth_difference(self, states: Sequence[State]) -> set[str]:
        full_chains = []
        for state in states:
            full_chain: set[str] = set()
            for event in state.values():
                full_chain |= self.chain(event.event_id)
            full_chains.append(full_chain)
        return set().union(*full_chains) - full_chains[0].intersection(*full_chains)

    def subgraph(self, conflicted: set[str]) -> set[str]:
        """The events on all paths between two conflicted events.

        An event is on such a path if one leads from a conflicted event to it, and one from it to another.
        """
        reached = conflicted.union(*(self.chain(one) for one in conflicted))
        return {one for one in reached if one in conflicted or self.chain(one) & conflicted}

    def is_power_event(self, event: Event) -> bool:
        if event.type in ("m.room.power_levels", "m.room.join_rules"):
            return event.state_key is not None
        return (
            event.type == "m.room.member"
            and event.state_key is not None
            and event.content.get("membership") in ("leave", "ban")
            and event.sender != event.state_key
        )

    def cited(self, event: Event, key: Key) -> Event | None:
        for auth_id in event.auth_events:
            other = self.events[auth_id]
            if (other.type, other.state_key) == key:
                return other
        if key == CREATE and not event.version.create_event_in_auth_events and event.type != "m.room.create":
            return self.events["$" + event.room_id[1:]]
        return None

    def power(self, event: Event) -> int:
        create = self.cited(event, CREATE)
        return 0 if create is None else PowerLevels(create, self.cited(event, LEVELS)).user_level(event.sender)

    def power_ordering(self, ids: set[str]) -> list[Event]:
        left, ordered = set(ids), []
        while left:
            free = [self.events[one] for one in left if not self.chain(one) & left]
            smallest = min(free, key=lambda event: (-self.power(event), event.origin_server_ts, event.event_id))
            left.discard(smallest.event_id)
            ordered.append(smallest)
        return ordered

    def mainline_ordering(self, ids: Iterable[str], levels: Event | None) -> list[Event]:
        mainline: list[str] = []
        while levels is not None:
            mainline.append(levels.event_id)
            levels = self.cited(levels, LEVELS)

        def rank(event: Event) -> tuple[float, int, str]:
            position = float("inf")
            step = self.cited(event, LEVELS)
            while step is not None:
                if step.event_id in mainline:
                    position = mainline.index(step.event_id)
                    break
                step = self.cited(step, LEVELS)
            return -position, event.origin_server_ts, event.event_id

        return sorted((self.events[one] for one in ids), key=rank)

    def iterate(self, start: State, events: Iterable[Event]) -> dict[Key, Event]:
        state = dict(start)
        for event in events:
            needed = needed_keys(event)
            if not event.version.create_event_in_auth_events:
                needed.append(CREATE)
            judge = {key: state[key] for key in needed if key in state}
            for key in needed:
                if key not in judge:
                    cited = self.cited(event, key)
                    if cited is not None and cited.event_id not in self.rejected:
                        judge[key] = cited
            if allowed(event, judge) and event.state_key is not None:
                state[event.type, event.state_key] = event
        return state

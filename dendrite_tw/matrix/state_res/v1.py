"""State resolution of room version 1.

Specification: room version 1, "State resolution".  Conflicts are settled in passes:
power levels, join rules, memberships, then the rest; each pass is authorised by
what the passes before it left.

Within one pass the outcome for one state key does not bear on another, so that the
order in which keys are looked at cannot matter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from dendrite_tw.matrix.auth_rules import AuthError, auth_event_keys, check_auth
from dendrite_tw.matrix.events import Event
from dendrite_tw.matrix.room_versions import RoomVersion
from dendrite_tw.matrix.state_res.graph import AuthGraph, StateKey

_PASSES = ("m.room.power_levels", "m.room.join_rules", "m.room.member")


def resolve(
    version: RoomVersion,
    unconflicted: Mapping[StateKey, int],
    conflicted: Sequence[Mapping[StateKey, int]],
    graph: AuthGraph,
) -> dict[StateKey, int]:
    """What belongs over ``unconflicted``; arguments and result as of `state_res.resolve_conflicts`."""
    candidates: dict[StateKey, set[int]] = {}
    for state in conflicted:
        for key, number in state.items():
            candidates.setdefault(key, set()).add(number)
    # A key that some states lack is no conflict in this version.
    resolved = {key: min(numbers) for key, numbers in candidates.items() if len(numbers) == 1}
    contests = {key: _ordered(numbers, graph) for key, numbers in candidates.items() if len(numbers) > 1}
    authority = _Authority(version, unconflicted, resolved, graph)
    for event_type in _PASSES:
        keys = [key for key in contests if key[0] == event_type]
        resolved.update([(key, authority.climb(key, contests.pop(key))) for key in keys])
    for key, contest in contests.items():
        for number in reversed(contest):
            if authority.allows(number):
                # No pass follows that this could authorise.
                resolved[key] = number
                break
    return resolved


def _ordered(numbers: Iterable[int], graph: AuthGraph) -> list[int]:
    """By ascending depth, then descending SHA-1 of the event id."""

    def rank(number: int) -> tuple[int, int]:
        event = graph.event(number)
        digest = hashlib.sha1(event.event_id.encode(), usedforsecurity=False).digest()
        return event.depth, -int.from_bytes(digest, "big")

    return sorted(numbers, key=rank)


class _Authority:
    """Asks the authorisation rules in the state as it is so far."""

    def __init__(
        self,
        version: RoomVersion,
        unconflicted: Mapping[StateKey, int],
        resolved: Mapping[StateKey, int],
        graph: AuthGraph,
    ) -> None:
        self._version = version
        self._unconflicted = unconflicted
        self._resolved = resolved
        self._graph = graph

    def allows(self, number: int, key: StateKey | None = None, holder: int | None = None) -> bool:
        """Whether the event is allowed, were ``holder`` the state at ``key``."""
        event = self._graph.event(number)
        state: dict[StateKey, Event] = {}
        for needed in auth_event_keys(
            version=self._version,
            type=event.type,
            sender=event.sender,
            state_key=event.state_key,
            content=event.content,
        ):
            found = holder if needed == key else self._find(needed)
            if found is not None:
                state[needed] = self._graph.event(found)
        try:
            check_auth(event, state)
        except AuthError:
            return False
        return True

    def _find(self, key: StateKey) -> int | None:
        found = self._resolved.get(key)
        return self._unconflicted.get(key) if found is None else found

    def climb(self, key: StateKey, contest: Sequence[int]) -> int:
        """The last of a line of events of which the first is given and each allows the next."""
        holder, *others = contest
        for number in others:
            if not self.allows(number, key, holder):
                break
            holder = number
        return holder

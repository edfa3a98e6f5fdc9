"""Which state wins where branches of a room meet.

Specification: "Room State Resolution" (Server-Server API) and "State resolution"
of the room versions.  Maps in, map out: the algorithm of the room version is
applied to the states after each of an event's ``prev_events``.

`resolve` takes whole states by event id.  Who holds states as event numbers, and
knows where they differ, calls `resolve_conflicts` and touches nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from dendrite_tw.matrix.room_versions import RoomVersion
from dendrite_tw.matrix.state_res import v1, v2
from dendrite_tw.matrix.state_res.graph import AuthGraph, MemoryGraph, StateKey, auth_order, auth_order_in_steps

__all__ = [
    "AuthGraph",
    "MemoryGraph",
    "StateKey",
    "auth_order",
    "auth_order_in_steps",
    "resolve",
    "resolve_conflicts",
    "split",
]


Name = TypeVar("Name", int, str)
"""What stands for an event: its number or its id."""


def split(states: Sequence[Mapping[StateKey, Name]]) -> tuple[dict[StateKey, Name], list[dict[StateKey, Name]]]:
    """What all states have in common, and of each what is left."""
    if not states:
        return {}, []
    first, *others = states
    if len(others) == 1:
        lookup = others[0].get
        common = {key: number for key, number in first.items() if lookup(key) == number}
    else:
        lookups = [other.get for other in others]
        common = {key: number for key, number in first.items() if all(get(key) == number for get in lookups)}
    rest = [{key: number for key, number in state.items() if key not in common} for state in states]
    return common, rest


def resolve_conflicts(
    version: RoomVersion,
    unconflicted: Mapping[StateKey, int],
    conflicted: Sequence[Mapping[StateKey, int]],
    graph: AuthGraph,
) -> dict[StateKey, int]:
    """What belongs over ``unconflicted`` to make the resolved state; by event numbers of ``graph``.

    Arguments as `split` returns them: what all states have in common, and the rest of each, be it empty.
    The result has no key of ``unconflicted``.
    """
    if not any(conflicted):
        return {}
    if version.state_resolution == "v1":
        return v1.resolve(version, unconflicted, conflicted, graph)
    return v2.resolve(version, unconflicted, conflicted, graph)


def resolve(version: RoomVersion, states: Sequence[Mapping[StateKey, str]], graph: AuthGraph) -> dict[StateKey, str]:
    """The resolution of ``states``, maps of type and state key to event id.

    All events of the states, and their auth events, must be in ``graph`` (`KeyError`).  The order of
    ``states``, and of what is in them, does not matter.
    """
    common, rest = split(states)
    number = graph.number
    unconflicted = {key: number(event_id) for key, event_id in common.items()}
    conflicted = [{key: number(event_id) for key, event_id in state.items()} for state in rest]
    for key, found in resolve_conflicts(version, unconflicted, conflicted, graph).items():
        common[key] = graph.event(found).event_id
    return common

"""Rooms that fork: every event remembers the state after it.

`Forks` makes the events of a story by hand; `random_forks` follows a script of small
numbers, so that hypothesis can invent and shrink rooms.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from dendrite_tw.matrix.auth_rules import AuthError, auth_event_keys, check_auth
from dendrite_tw.matrix.events import Event
from dendrite_tw.matrix.room_versions import RoomVersion

from .builders import ALICE, BOB, CAROL, DAVE, RoomBuilder
from .plain_state_res import PlainResolution

State = dict[tuple[str, str], Event]

USERS = (ALICE, BOB, CAROL, DAVE)


class Forks:
    """A room whose events are put after any other event, or after several."""

    def __init__(self, version: RoomVersion, **create: Any) -> None:
        self.version = version
        self.builder = RoomBuilder(version, **create)
        self.events: dict[str, Event] = {}
        self.states: dict[str, State] = {}
        self.plain = PlainResolution(version, self.events)
        self.create = self.builder.create
        self._store(self.create, {})

    def _store(self, event: Event, before: Mapping[tuple[str, str], Event]) -> None:
        self.events[event.event_id] = event
        state = dict(before)
        if event.state_key is not None:
            state[event.type, event.state_key] = event
        self.states[event.event_id] = state

    def state_before(self, after: Sequence[Event]) -> State:
        states = [self.states[event.event_id] for event in after]
        if len(states) == 1:
            return states[0]
        return self.plain.resolve(states)

    def put(
        self,
        after: Event | Sequence[Event],
        type: str,
        sender: str,
        content: Mapping[str, Any],
        state_key: str = "",
        *,
        ts: int | None = None,
        depth: int | None = None,
        allowed: bool = True,
    ) -> Event:
        """A state event after others, authorised by the state there; raises `AuthError` unless ``allowed`` is false."""
        parents = [after] if isinstance(after, Event) else list(after)
        state = self.state_before(parents)
        keys = auth_event_keys(version=self.version, type=type, sender=sender, state_key=state_key, content=content)
        authorities = [state[key] for key in keys if key in state]
        event = self.builder.event(type, sender, content, state_key, parents, authorities)
        changes = {"origin_server_ts": ts, "depth": depth}
        event = msgspec.structs.replace(event, **{k: v for k, v in changes.items() if v is not None})
        if allowed:
            check_auth(event, state)
        self._store(event, state)
        return event

    def member(self, after: Event | Sequence[Event], user: str, membership: str, sender: str | None = None) -> Event:
        return self.put(after, "m.room.member", sender or user, {"membership": membership}, user)

    def levels(self, after: Event | Sequence[Event], sender: str, users: Mapping[str, int], **more: Any) -> Event:
        return self.put(after, "m.room.power_levels", sender, {"users": dict(users), **more})

    def start(self, *joined: str, users: Mapping[str, int] | None = None) -> Event:
        """Alice joins, sets power levels and opens the room; the others join.  The last event of it."""
        event = self.member(self.create, ALICE, "join")
        creator = {} if self.version.privileged_creators else {ALICE: 100}
        event = self.levels(event, ALICE, creator | dict(users or {}))
        event = self.put(event, "m.room.join_rules", ALICE, {"join_rule": "public"})
        for user in joined:
            event = self.member(event, user, "join")
        return event

    def after(self, event: Event) -> State:
        return self.states[event.event_id]


Move = tuple[int, int, int, int, int]


def random_forks(version: RoomVersion, script: Iterable[Move]) -> Forks:
    """A room that the script makes; moves that the rules do not allow are left out.

    A move is: after which event, who, what, to whom, and with what value.
    """
    forks = Forks(version)
    forks.start(BOB, CAROL, users={BOB: 50, CAROL: 50})
    for place, who, what, whom, value in script:
        ids = list(forks.events)
        parents = [forks.events[ids[-1 - place % min(len(ids), 8)]]]
        if what % 11 == 10:
            other = forks.events[ids[-1 - value % min(len(ids), 8)]]
            if other is not parents[0]:
                parents.append(other)
        sender, target = USERS[who % 4], USERS[whom % 4]
        try:
            forks.put(parents, *_action(version, sender, target, what, value), ts=1_700_000_000_000 + value % 3)
        except AuthError:
            continue
    return forks


def _action(
    version: RoomVersion, sender: str, target: str, what: int, value: int
) -> tuple[str, str, dict[str, Any], str]:
    match what % 11:
        case 0 | 1:
            return "m.room.member", sender, {"membership": "join"}, sender
        case 2:
            return "m.room.member", sender, {"membership": "leave"}, target
        case 3:
            return "m.room.member", sender, {"membership": "ban"}, target
        case 4:
            return "m.room.member", sender, {"membership": "invite"}, target
        case 5 | 6:
            users = {target: (0, 50, 100)[value % 3], sender: (0, 50, 100)[value // 3 % 3]}
            if version.privileged_creators:
                users.pop(ALICE, None)
            else:
                users.setdefault(ALICE, 100)
            return "m.room.power_levels", sender, {"users": users}, ""
        case 7:
            rule = ("public", "invite", "knock" if version.knocking else "private")[value % 3]
            return "m.room.join_rules", sender, {"join_rule": rule}, ""
        case 8:
            return "m.room.name", sender, {"name": str(value)}, ""
    return "m.room.topic", sender, {"topic": str(value)}, ""

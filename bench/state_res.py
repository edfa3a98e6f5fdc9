"""``python -m bench.state_res``: how long a fork of a long room takes to resolve.

A room of 100,000 events goes on in two branches of a thousand events each, as when two servers could not reach
each other for a while.  In both branches people come, go and change their names, moderators kick and ban,
somebody changes the topic and who may do what.  Then the states at the two ends are resolved, as for the event
that follows both.  What is timed is `dendrite_tw.matrix.state_res.resolve` alone, in processor time, with the
events and the bitmaps of their auth chains in memory.

The seed is printed; the same seed makes the same room.
"""

from __future__ import annotations

import argparse
import gc
import random
import secrets
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dendrite_tw.matrix.auth_rules import AuthError, auth_event_keys, check_auth
from dendrite_tw.matrix.events import Event, build_event
from dendrite_tw.matrix.keys import signing_key
from dendrite_tw.matrix.power_levels import PowerLevels
from dendrite_tw.matrix.room_versions import ROOM_VERSIONS, RoomVersion
from dendrite_tw.matrix.state_res import MemoryGraph, StateKey, resolve, split
from dendrite_tw.matrix.state_res.v2 import full_conflicted_set

SERVER = "bench.example"
CREATOR = f"@creator:{SERVER}"
KEY = signing_key("ed25519:1", b"\7" * 32)
MODERATORS = 10
STATE_SHARE = 0.1
"""How many events of the room's long past change its state."""

STATE_SHARES = (0.1, 0.5, 1.0)
"""The same for the branches: a usual room, a troubled one, and the worst, where nobody only talks."""

CREATE: StateKey = ("m.room.create", "")
POWER_LEVELS: StateKey = ("m.room.power_levels", "")


@dataclass(slots=True)
class Branch:
    """An end of the room: its newest event, and the state there."""

    newest: Event
    state: dict[StateKey, Event]
    levels: PowerLevels

    def copy(self) -> Branch:
        """Another end, which goes on from here."""
        return Branch(self.newest, dict(self.state), self.levels)

    def ids(self) -> dict[StateKey, str]:
        """The state as event ids."""
        return {key: event.event_id for key, event in self.state.items()}


class LongRoom:
    """Writes a room's history by chance; only what the authorisation rules allow becomes part of it."""

    def __init__(self, version: RoomVersion, chance: random.Random) -> None:
        self.version = version
        self.graph = MemoryGraph()
        self.count = 0
        self._chance = chance
        self._users = 0
        self._moderators = [f"@moderator{number}:{SERVER}" for number in range(MODERATORS)]
        content: dict[str, Any] = {"room_version": version.identifier}
        if not version.implicit_room_creator:
            content["creator"] = CREATOR
        create = self._event(None, [], "m.room.create", CREATOR, content, "")
        self.room_id = create.room_id
        self.start = Branch(create, {CREATE: create}, PowerLevels(create, None))
        self._found()

    def _found(self) -> None:
        """What clients put into a new room, and its moderators."""
        start, member = self.start, {"membership": "join", "displayname": "Creator"}
        self.send(start, "m.room.member", CREATOR, member, CREATOR)
        self.send(start, "m.room.power_levels", CREATOR, self._levels_content({}), "")
        self.send(start, "m.room.join_rules", CREATOR, {"join_rule": "public"}, "")
        self.send(start, "m.room.history_visibility", CREATOR, {"history_visibility": "shared"}, "")
        self.send(start, "m.room.name", CREATOR, {"name": "A long room"}, "")
        for moderator in self._moderators:
            self.send(start, "m.room.member", moderator, {"membership": "join"}, moderator)

    def _levels_content(self, more: Mapping[str, int]) -> dict[str, Any]:
        users = dict.fromkeys(self._moderators, 50) | dict(more)
        if not self.version.privileged_creators:
            users[CREATOR] = 100
        events = {"m.room.name": 50, "m.room.power_levels": 50, "m.room.history_visibility": 100}
        return {"users": users, "events": events, "users_default": 0, "state_default": 50, "invite": 0}

    def go_on(self, branch: Branch, events: int, state_share: float) -> None:
        """Let that many more events happen on a branch."""
        end = self.count + events
        while self.count < end:
            if self._chance.random() < state_share:
                self._change_something(branch)
            else:
                body = {"msgtype": "m.text", "body": f"message {self._chance.randrange(10**9)}"}
                self.send(branch, "m.room.message", self._anybody(branch), body)

    def send(
        self, branch: Branch, type: str, sender: str, content: Mapping[str, Any], state_key: str | None = None
    ) -> None:
        """Put an event at the end of a branch, or nothing if it is not allowed there."""
        keys = auth_event_keys(version=self.version, type=type, sender=sender, state_key=state_key, content=content)
        authorities = [branch.state[key] for key in keys if key in branch.state]
        event = self._event(branch.newest, authorities, type, sender, content, state_key)
        try:
            check_auth(event, branch.state, power_levels=branch.levels)
        except AuthError:
            return
        self.graph.add(event)
        self.count += 1
        branch.newest = event
        if state_key is not None:
            branch.state[type, state_key] = event
            if type == "m.room.power_levels":
                branch.levels = PowerLevels(branch.state[CREATE], event)

    def _event(
        self,
        parent: Event | None,
        authorities: Sequence[Event],
        type: str,
        sender: str,
        content: Mapping[str, Any],
        state_key: str | None,
    ) -> Event:
        hashed = self.version.room_ids_as_hashes
        event = build_event(
            self.version,
            room_id=self.room_id if parent else None if hashed else f"!long:{SERVER}",
            sender=sender,
            type=type,
            content=content,
            state_key=state_key,
            prev_events=[parent.event_id] if parent else [],
            auth_events=[authority.event_id for authority in authorities],
            depth=parent.depth + 1 if parent else 1,
            origin_server_ts=1_700_000_000_000 + 1000 * self.count + self._chance.randrange(5000),
            server_name=SERVER,
            key_id=KEY.key_id,
            signing_key=KEY.secret,
        )
        if parent is None:
            self.graph.add(event)
            self.count += 1
        return event

    def _anybody(self, branch: Branch) -> str:
        """A member, be it one who has left."""
        users = self._users
        return f"@user{self._chance.randrange(users)}:{SERVER}" if users else CREATOR

    def _moderator(self) -> str:
        return self._chance.choice(self._moderators)

    def _change_something(self, branch: Branch) -> None:
        kinds: list[tuple[int, Callable[[Branch], None]]] = [
            (38, self._join),
            (30, self._rename),
            (14, self._leave),
            (5, self._invite),
            (5, self._kick),
            (3, self._ban),
            (3, self._title),
            (1, self._empower),
            (1, self._open_or_close),
        ]
        [(_, change)] = self._chance.choices(kinds, [weight for weight, _ in kinds])
        change(branch)

    def _member(self, branch: Branch, sender: str, user: str, membership: str) -> None:
        content = {"membership": membership, "displayname": f"{user[1:9]} {self._chance.randrange(10**6)}"}
        self.send(branch, "m.room.member", sender, content, user)

    def _join(self, branch: Branch) -> None:
        if self._users and self._chance.random() < 0.3:
            user = self._anybody(branch)
        else:
            user = f"@user{self._users}:{SERVER}"
            self._users += 1
        self._member(branch, user, user, "join")

    def _rename(self, branch: Branch) -> None:
        user = self._anybody(branch)
        self._member(branch, user, user, "join")

    def _leave(self, branch: Branch) -> None:
        user = self._anybody(branch)
        self._member(branch, user, user, "leave")

    def _invite(self, branch: Branch) -> None:
        self._member(branch, self._anybody(branch), self._anybody(branch), "invite")

    def _kick(self, branch: Branch) -> None:
        self._member(branch, self._moderator(), self._anybody(branch), "leave")

    def _ban(self, branch: Branch) -> None:
        self._member(branch, self._moderator(), self._anybody(branch), "ban")

    def _title(self, branch: Branch) -> None:
        type, key = self._chance.choice([("m.room.name", "name"), ("m.room.topic", "topic")])
        self.send(branch, type, self._moderator(), {key: f"{key} {self._chance.randrange(10**6)}"}, "")

    def _empower(self, branch: Branch) -> None:
        """Give or take back a few users' levels."""
        levels = {self._anybody(branch): self._chance.choice([0, 10, 25]) for _ in range(5)}
        sender = self._chance.choice([CREATOR, self._moderator()])
        self.send(branch, "m.room.power_levels", sender, self._levels_content(levels), "")

    def _open_or_close(self, branch: Branch) -> None:
        rule = self._chance.choices(["public", "invite"], [4, 1])[0]
        self.send(branch, "m.room.join_rules", self._moderator(), {"join_rule": rule}, "")


def fork(room: LongRoom, apart: int, state_share: float) -> list[Branch]:
    """Two ends of the room, each so many events from where its history is now."""
    branches = [room.start.copy(), room.start.copy()]
    for branch in branches:
        room.go_on(branch, apart, state_share)
    return branches


def measure(room: LongRoom, branches: Sequence[Branch], rounds: int) -> list[float]:
    """Milliseconds of processor time that each of the rounds took."""
    states = [branch.ids() for branch in branches]
    spent = []
    gc.collect()
    gc.freeze()
    for _ in range(rounds):
        before = time.process_time()
        resolve(room.version, states, room.graph)
        spent.append(1000 * (time.process_time() - before))
    gc.unfreeze()
    return spent


def disputed(room: LongRoom, branches: Sequence[Branch]) -> int:
    """How many events a resolution has to judge."""
    number = room.graph.number
    common, rest = split([branch.ids() for branch in branches])
    return len(
        full_conflicted_set(
            {key: number(event_id) for key, event_id in common.items()},
            [{key: number(event_id) for key, event_id in state.items()} for state in rest],
            room.graph,
            subgraph=room.version.state_resolution == "v2.1",
        )
    )


def main(arguments: Sequence[str]) -> int:
    """Make the rooms, resolve, report."""
    parser = argparse.ArgumentParser(prog="python -m bench.state_res", description=__doc__)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6))
    parser.add_argument("--events", type=int, default=100_000, help="events of the room, branches included")
    parser.add_argument("--apart", type=int, default=1000, help="events of each branch")
    parser.add_argument("--rounds", type=int, default=20, help="resolutions of each fork")
    parser.add_argument("--version", action="append", choices=["10", "12"], help="room version; may be repeated")
    options = parser.parse_args(arguments)
    print(f"seed {options.seed}")
    for identifier in options.version or ["10", "12"]:
        room = LongRoom(ROOM_VERSIONS[identifier], random.Random(options.seed))
        room.go_on(room.start, options.events - 2 * options.apart - room.count, STATE_SHARE)
        print(f"version {identifier}: {options.events} events, {len(room.start.state)} in the state at the fork")
        for state_share in STATE_SHARES:
            branches = fork(room, options.apart, state_share)
            spent = measure(room, branches, options.rounds)
            print(
                f"  two branches of {options.apart} events, {state_share:4.0%} state: "
                f"{disputed(room, branches):4} events judged, {statistics.median(spent):5.1f} ms of processor time "
                f"(median of {len(spent)}; {min(spent):.1f} to {max(spent):.1f})",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

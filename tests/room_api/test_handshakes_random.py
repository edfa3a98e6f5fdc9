"""Users of three servers come, go, invite, turn away and talk at random, while events are on their way.

In the end everything has arrived, and all servers that are in the room must agree on it.  Some are joined without
their members.
"""

from __future__ import annotations

import random
from collections import deque
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.matrix.errors import MatrixError
from dendrite_tw.room_api.api import MembershipChange, NewEvent, OutputRoomEvent
from tests.room_api.federation import Net, Server

USERS = [f"@{name}:{server}.example" for server in "abc" for name in ("ann", "ben")]
OWN = ["join", "join", "join", "leave", "knock"]
OTHERS = ["invite", "invite", "kick", "ban", "unban"]
SEEDS = 12


class Scene:
    """One room, with events that wait between its servers."""

    def __init__(self, test: SynchronousTestCase, seed: int) -> None:
        self.random = random.Random(seed)
        self.net = Net(test)
        self.servers = [self.net.add(f"{letter}.example") for letter in "abc"]
        self.posts: dict[tuple[str, str], deque[bytes]] = {}
        for server in self.servers:
            server.rooms.remote.answers.small = self.random.choice([0, 1000])
        self.version = self.random.choice(["6", "8", "10", "11", "12"])
        first = self.servers[0]
        preset = self.random.choice(["public_chat", "private_chat"])
        self.room_id = first.create(USERS[0], preset=preset, room_version=self.version)
        levels = {"users": {} if self.version == "12" else {USERS[0]: 100}, "kick": 0, "ban": 0, "invite": 0}
        first.set_state(self.room_id, USERS[0], "m.room.power_levels", levels)
        self.errors: list[BaseException] = []

    def server(self, user: str) -> Server:
        return self.net.servers[user.partition(":")[2]]

    def act(self) -> None:
        user, other = self.random.choice(USERS), self.random.choice(USERS)
        rooms = self.server(user).rooms
        what = self.random.randrange(10)
        if what < 3:
            self.attempt(rooms.send(self.event(user, "m.room.message", {"body": str(self.random.random())})))
        elif what == 3:
            rule = self.random.choice(["public", "invite", "knock"])
            self.attempt(rooms.send(self.event(user, "m.room.join_rules", {"join_rule": rule}, "")))
        elif what < 8:
            via = [self.random.choice(self.servers).name]
            self.attempt(self.change(rooms, user, user, self.random.choice(OWN), via=via))
        else:
            self.attempt(self.change(rooms, user, other, self.random.choice(OTHERS)))

    def event(self, sender: str, type: str, content: dict[str, Any], key: str | None = None) -> NewEvent:
        return NewEvent(room_id=self.room_id, sender=sender, type=type, content=content, state_key=key)

    def change(self, rooms: Any, sender: str, target: str, action: str, **options: Any) -> Any:
        change = MembershipChange(room_id=self.room_id, sender=sender, target=target, action=action, **options)
        return rooms.change_membership(change)

    def attempt(self, action: Any) -> None:
        """Do something that may be refused, but not fail."""

        def done(result: Any) -> None:
            if isinstance(result, Failure):
                error = result.value
                if not isinstance(error, MatrixError) or error.status == 500:
                    self.errors.append(result.value)

        Deferred.fromCoroutine(action).addBoth(done)
        if self.random.random() < 0.7:
            self.net.pause()

    # --- the post ---

    def collect(self) -> None:
        """Put what servers distribute into the bags of those whom it is for."""
        for server in self.servers:
            while server.sent < len(server.told):
                output = server.told[server.sent]
                server.sent += 1
                for name in self.addressees(server, output):
                    (pdu,) = self.net.do(server.rooms.pdus([output.event.event_id])).values()
                    self.posts.setdefault((server.name, name), deque()).append(pdu)

    def addressees(self, server: Server, output: OutputRoomEvent) -> list[str]:
        event = output.event
        names: set[str] = set()
        if output.distribute:
            names.update(self.net.do(server.rooms.room_servers(event.room_id)))
        ends = event.membership in ("leave", "ban") and event.state_key is not None
        if ends and (output.distribute or event.sender.endswith(f":{server.name}")):
            names.add((event.state_key or "").partition(":")[2])
        return sorted(names - {server.name, event.sender.partition(":")[2]})

    def deliver(self, most: int) -> bool:
        """Bring some of what waits, in order for each pair of servers; whether there was any."""
        self.collect()
        waiting = sorted(pair for pair, bag in self.posts.items() if bag)
        if not waiting:
            return False
        pair = self.random.choice(waiting)
        bag = self.posts[pair]
        pdus = [bag.popleft() for _ in range(min(most, len(bag)))]
        self.attempt(self.net.servers[pair[1]].rooms.receive(pair[0], self.room_id, pdus))
        return True

    def crash(self) -> None:
        """A server stops and starts again; what it was doing for its users is lost, what it was given is not."""
        server = self.random.choice(self.servers)
        self.net.pause()
        self.net.do(server.rooms.stop())
        server.begin()
        server.rooms.remote.answers.small = self.random.choice([0, 1000])

    def play(self, length: int) -> None:
        for _ in range(length):
            self.net.memory.clock.advance(0.01)
            what = self.random.random()
            if what < 0.55:
                self.act()
            elif what < 0.97:
                self.deliver(self.random.randrange(1, 4))
            else:
                self.crash()
        self.settle()

    def settle(self) -> None:
        """Let everything arrive, and each server speak once more."""
        for _ in range(3):
            self.pass_time()
            for server in self.servers:
                for user in self.net.do(server.rooms.joined_users(self.room_id)):
                    if user.endswith(server.name):
                        self.attempt(server.rooms.send(self.event(user, "m.room.message", {"body": "the end"})))
                        break
            self.pass_time()

    def pass_time(self) -> None:
        for _ in range(3):
            self.net.pause()
            while self.deliver(50):
                self.net.pause()
            self.net.memory.clock.advance(700)

    def disagreements(self) -> list[tuple[str, str]]:
        """Pairs of servers with different states that take each other to be in the room.

        Where a server's last user was evicted by the resolution of branches, the others send it nothing any more,
        and it does not learn that: so one that others do not count as a member is not held to agree with them.
        """
        seen: dict[str, tuple[Any, set[str]]] = {}
        for server in self.servers:
            room = self.net.do(server.rooms.rooms.find(self.room_id))
            if room is not None and room.is_here and room.head.local:
                joined = server.joined(self.room_id)
                local = next(user for user in joined if user.endswith(server.name))
                seen[server.name] = (server.state(self.room_id, local), {user.partition(":")[2] for user in joined})
        return [
            (one, other)
            for one, (state, servers) in seen.items()
            for other, (other_state, other_servers) in seen.items()
            if one < other and one in other_servers and other in servers and state != other_state
        ]


class RandomTests(SynchronousTestCase):
    def test_servers_agree(self) -> None:
        for seed in range(SEEDS):
            scene = Scene(self, seed)
            scene.play(60)
            self.assertEqual(scene.errors, [], f"seed {seed}")
            self.assertEqual(scene.disagreements(), [], f"seed {seed}")

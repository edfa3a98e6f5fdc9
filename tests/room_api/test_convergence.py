"""Whatever servers do at the same time, and however their events come to others, all come to the same conclusions.

Users of three servers act while only some of the events go around; then two observers receive everything in
different orders, with repetitions.  One asks for what is missing, the other has nobody to ask.  In the end every
server knows the same state before each event and rejects the same events.  Which of them it shows may differ (an
event that comes late may be soft-failed), but those that show the same ends of the timeline show the same state.
"""

from __future__ import annotations

import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.matrix.errors import MatrixError
from dendrite_tw.matrix.room_versions import ROOM_VERSIONS
from dendrite_tw.room_api.api import MembershipChange, NewEvent
from dendrite_tw.room_api.tables.events import REJECTED
from tests.room_api.federated import Network, Server, State

AUTHORS = ["a", "b", "c"]
USERS = ["@alice:a", "@bob:b", "@carol:c", "@chris:c"]
LEVELS = [0, 40, 50, 100]

user = st.integers(0, len(USERS) - 1)
act = st.one_of(
    st.tuples(st.just("say"), user, user, st.integers(0, 3)),
    st.tuples(st.just("topic"), user, user, st.integers(0, 3)),
    st.tuples(st.just("level"), user, user, st.integers(0, len(LEVELS) - 1)),
    st.tuples(st.just("rule"), user, user, st.integers(0, 1)),
    st.tuples(st.sampled_from(["join", "leave", "kick", "ban", "unban"]), user, user, st.just(0)),
    st.tuples(st.just("redact"), user, user, st.integers(0, 30)),
    st.tuples(st.just("pass"), st.integers(0, 2), st.integers(0, 2), st.just(0)),
)


class Play:
    """One room and what happens in it."""

    def __init__(self, test: SynchronousTestCase, version: str) -> None:
        self.network = Network(test)
        self.version = version
        self.servers = [self.network.server(name) for name in AUTHORS]
        self.observers = [self.network.server("x"), self.network.server("y")]
        first = self.servers[0]
        self.room_id = first.create(USERS[0], preset="public_chat", room_version=version)
        joining = [(self.servers[1], USERS[1]), (self.servers[2], USERS[2])]
        # Somebody of each server stays, so that it is told of everything.
        joining += [(server, f"@eve:{server.name}") for server in [*self.servers[1:], *self.observers]]
        first.change(self.room_id, "@eve:a", "join")
        for server, user_id in joining:
            if server.rooms.rooms._active(self.room_id) is None:
                first.let_join(server, self.room_id, user_id)
            else:
                self.pass_on(first, server)
                first.receive(server, self.room_id, [server.change(self.room_id, user_id, "join")])
        named = {USERS[1]: 50} if ROOM_VERSIONS[version].privileged_creators else {USERS[0]: 100, USERS[1]: 50}
        levels = {"users": named, "state_default": 50, "events": {"m.room.topic": 0}}
        first.send(self.room_id, USERS[0], "m.room.power_levels", levels, "")
        self.base = len(first.timeline(self.room_id))
        for server in [*self.servers[1:], *self.observers]:
            self.pass_on(first, server)

    def pass_on(self, one: Server, other: Server) -> None:
        """Let one server have all that another one shows, in order."""
        other.receive(one, self.room_id, one.timeline(self.room_id))

    def act(self, kind: str, who: int, whom: int, number: int) -> None:
        if kind == "pass":
            if who != whom:
                self.pass_on(self.servers[who], self.servers[whom])
            return
        server = self.servers[AUTHORS.index(USERS[who].rpartition(":")[2])]
        self.network.memory.clock.advance(1)
        done = Deferred.fromCoroutine(self.action(server, kind, USERS[who], USERS[whom], number))
        done.addErrback(lambda failure: failure.trap(MatrixError))

    def action(self, server: Server, kind: str, sender: str, target: str, number: int) -> Any:
        if kind in ("join", "leave", "kick", "ban", "unban"):
            own = kind in ("join", "leave")
            return server.rooms.change_membership(
                MembershipChange(room_id=self.room_id, sender=sender, target=sender if own else target, action=kind)
            )
        contents: dict[str, tuple[str, str | None, dict[str, Any]]] = {
            "say": ("m.room.message", None, {"body": f"{number}"}),
            "topic": ("m.room.topic", "", {"topic": f"{number}"}),
            "level": ("m.room.power_levels", "", self.levels(target, LEVELS[number % len(LEVELS)])),
            "rule": ("m.room.join_rules", "", {"join_rule": ["public", "invite"][number % 2]}),
            "redact": ("m.room.redaction", None, {}),
        }
        type, state_key, content = contents[kind]
        redacts = None
        if kind == "redact":
            known = server.timeline(self.room_id)[self.base :]
            redacts = known[number % len(known)] if known else None
        return server.rooms.send(
            NewEvent(
                room_id=self.room_id, sender=sender, type=type, content=content, state_key=state_key, redacts=redacts
            )
        )

    def levels(self, target: str, level: int) -> dict[str, Any]:
        users = {USERS[0]: 100, USERS[1]: 50, target: level}
        if ROOM_VERSIONS[self.version].privileged_creators:
            users.pop(USERS[0])
        return {"users": users, "state_default": 50, "events": {"m.room.topic": 0}}


class ConvergenceTests(SynchronousTestCase):
    @settings(max_examples=25, deadline=None, derandomize=True)
    @given(st.lists(act, max_size=25), st.sampled_from(["1", "2", "6", "10", "11", "12"]), st.integers(0, 2**32))
    def test_all_end_in_the_same_state(self, acts: list[Any], version: str, seed: int) -> None:
        play = Play(self, version)
        for one in acts:
            play.act(*one)
        try:
            self.check(play, random.Random(seed))
        finally:
            for server in (*play.servers, *play.observers):
                server.database.close()

    def check(self, play: Play, chance: random.Random) -> None:
        everything = [
            (server, event_id) for server in play.servers for event_id in server.timeline(play.room_id)[play.base :]
        ]
        asking, patient = play.observers
        chance.shuffle(everything)
        for server, event_id in everything + everything[: len(everything) // 2]:
            play.network.memory.clock.advance(1000)
            asking.receive(server, play.room_id, [event_id])
        play.network.deaf.update(AUTHORS)
        for _ in range(len(everything) + 1):
            chance.shuffle(everything)
            for server, event_id in everything:
                patient.receive(server, play.room_id, [event_id])
        play.network.deaf.clear()
        for server in play.servers:
            for other, event_id in everything:
                play.network.memory.clock.advance(1000)
                server.receive(other, play.room_id, [event_id])
        self.check_same(play, {event_id for _, event_id in everything})
        self.check_kept(play)

    def check_same(self, play: Play, events: set[str]) -> None:
        first, *others = [*play.servers, *play.observers]
        for event_id in events:
            state = {one.event_id for one in first.state_before(event_id)}
            for server in others:
                self.assertEqual({one.event_id for one in server.state_before(event_id)}, state)
                self.assertEqual(server.status(event_id) == REJECTED, first.status(event_id) == REJECTED)
                self.assertEqual(server.event(event_id).content, first.event(event_id).content)
        shown: dict[frozenset[str], State] = {}
        for server in (first, *others):
            ends = frozenset(server.room(play.room_id).head.extremities)
            self.assertEqual(shown.setdefault(ends, server.state(play.room_id)), server.state(play.room_id))

    def check_kept(self, play: Play) -> None:
        """What is in memory is what is on disk, and the members are those of the state."""
        for server in (*play.servers, *play.observers):
            state = server.state(play.room_id)
            head = server.room(play.room_id).head
            self.assertEqual(set(head.state.values()), {server.row(one).event_nid for one in state.values()})  # type: ignore[union-attr]
            joined = {key[1] for key, one in state.items() if server.event(one).membership == "join"}
            self.assertEqual(set(server.do(server.rooms.joined_users(play.room_id))), joined)
            self.assertEqual(head.joined, len(joined))
            self.assertEqual(head.local, len([one for one in joined if one.endswith(":" + server.name)]))
            servers = set(server.do(server.rooms.room_servers(play.room_id)))
            self.assertEqual(servers, {one.rpartition(":")[2] for one in joined})
            server.restart()
            self.assertEqual(server.room(play.room_id).head, head)

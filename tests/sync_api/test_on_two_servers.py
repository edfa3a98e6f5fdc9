"""Sync over real rooms that two servers share: what comes from the other, in what order it may, is seen once."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlencode

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.cache import CacheBudget
from dendrite_tw.database.outbox import OutboxRow
from dendrite_tw.federation_api.api import RawAnswer
from dendrite_tw.matrix.events import receive_event
from dendrite_tw.matrix.room_versions import ROOM_VERSIONS
from dendrite_tw.room_api.adoption import PartialJoin
from dendrite_tw.sync_api.component import SyncComponent
from tests.fakes import FakeQueue
from tests.harness import ALICE, BOB, CALLERS, serve
from tests.room_api.federated import Network, Server
from tests.sync_api.fakes import MEMBER, FakeKeys, FakeUsers
from tests.sync_api.scene import ids

A, B = ALICE.user_id, BOB.user_id
FAR = "@far:far"
MESSAGE = "m.room.message"
LAZY = {"room": {"state": {"lazy_load_members": True}}}


class Heard(Server):
    """A server whose rooms are told of on a queue."""

    queue: FakeQueue

    def _tell(self, rows: list[OutboxRow]) -> None:
        super()._tell(rows)
        for row in rows:
            headers = json.loads(row.headers)
            self.queue.send(row.stream, row.payload, headers=headers)


class OnTwoServers(SynchronousTestCase):
    def setUp(self) -> None:
        network = Network(self)
        self.clock = network.memory.clock
        self.world = network.memory.world
        self.far = network.server("far")
        self.queue = Heard.queue = FakeQueue()
        self.here = network.servers["test"] = Heard(network, "test")
        self.users = FakeUsers(self.queue)
        self.keys = FakeKeys(self.queue, self.users)
        self.database = network.memory.database()
        self.addCleanup(self.database.close)
        self.begin()

    def begin(self, cache_bytes: int = 1 << 24) -> None:
        """A sync component that has nothing in memory."""
        self.component = SyncComponent(
            self.here.rooms,
            self.users,  # type: ignore[arg-type]
            self.keys,  # type: ignore[arg-type]
            self.queue,
            self.database,
            self.world,
            CacheBudget(cache_bytes),
            "test",
        )
        self.component.prepare()
        self.successResultOf(Deferred.fromCoroutine(self.component.start()))
        self.web = serve(self.component.routes(), self.clock, CALLERS)

    def sync(self, who: str, since: str | None = None, **query: Any) -> Any:
        fields = {key: json.dumps(v) if isinstance(v, dict | bool) else v for key, v in query.items()}
        if since is not None:
            fields["since"] = since
        answer = self.web.get("/_matrix/client/v3/sync?" + urlencode(fields), who)
        for _ in range(5):
            self.clock.advance(0)
        self.assertTrue(answer.done)
        self.assertEqual(answer.status, 200, answer.body)
        return answer.json

    def shared(self) -> str:
        """A room of the other server that Alice has joined."""
        room_id = self.far.create(FAR, preset="public_chat", name="Den", room_version="10")
        self.far.let_join(self.here, room_id, A)
        return room_id

    def pass_on(self, room_id: str, *events: Any) -> None:
        self.assertEqual(self.here.receive(self.far, room_id, events), {})

    def test_joining_through_another_server(self) -> None:
        since = self.sync("alice")["next_batch"]
        room_id = self.shared()
        for _ in range(2):
            answer = self.sync("alice", since)
            room = answer["rooms"]["join"][room_id]
            self.assertEqual(room["timeline"]["limited"], True)
            self.assertEqual([event["state_key"] for event in room["timeline"]["events"]], [A])
            told = {(event["type"], event["state_key"]) for event in room["state"]["events"]}
            self.assertLessEqual({("m.room.name", ""), (MEMBER, FAR), ("m.room.create", "")}, told)
            self.assertEqual(room["summary"]["m.joined_member_count"], 2)
            self.assertEqual(answer["device_lists"]["changed"], [FAR])
            self.begin()
        said = self.far.say(room_id, FAR, "hello")
        self.pass_on(room_id, said)
        timeline = self.sync("alice", answer["next_batch"])["rooms"]["join"][room_id]["timeline"]
        self.assertEqual((ids(timeline), timeline["limited"]), ([said], False))

    def test_a_gap(self) -> None:
        room_id = self.shared()
        since = self.sync("alice")["next_batch"]
        first = self.far.say(room_id, FAR, "first")
        self.pass_on(room_id, first)
        for n in range(60):
            self.far.say(room_id, FAR, f"lost {n}")
        self.here.network.answers["far", "get_missing_events"] = lambda request: RawAnswer(404, b"{}")
        name = self.far.send(room_id, FAR, "m.room.name", {"name": "Cave"}, "")
        last = self.far.say(room_id, FAR, "last")
        self.pass_on(room_id, last)
        for cache_bytes in (1 << 24, 1):
            room = self.sync("alice", since, filter={"room": {"timeline": {"limit": 50}}})["rooms"]["join"][room_id]
            self.assertEqual((ids(room["timeline"]), room["timeline"]["limited"]), ([last], True))
            self.assertEqual(ids(room["state"]), [name])
            self.begin(cache_bytes)

    def test_a_gap_on_another_branch(self) -> None:
        """What was said here meanwhile lies above the first event after the gap, and is found by going back."""
        room_id = self.shared()
        since = self.sync("alice")["next_batch"]
        self.far.say(room_id, FAR, "lost")
        self.here.network.answers["far", "get_missing_events"] = lambda request: RawAnswer(404, b"{}")
        last = self.far.say(room_id, FAR, "last")
        said = [self.here.say(room_id, A, str(n)) for n in range(5)]
        self.pass_on(room_id, last)
        for cache_bytes in (1 << 24, 1):
            timeline = self.sync("alice", since)["rooms"]["join"][room_id]["timeline"]
            self.assertEqual((ids(timeline), timeline["limited"]), ([last], True))
            before = self.before(room_id, timeline["prev_batch"])
            self.assertEqual([event for event in before if event in said], said[::-1])
            self.begin(cache_bytes)

    def test_a_short_timeline_on_another_branch(self) -> None:
        room_id = self.shared()
        since = self.sync("alice")["next_batch"]
        theirs = [self.far.say(room_id, FAR, str(n)) for n in range(3)]
        said = [self.here.say(room_id, A, str(n)) for n in range(5)]
        self.pass_on(room_id, *theirs)
        for cache_bytes in (1 << 24, 1):
            answer = self.sync("alice", since, filter={"room": {"timeline": {"limit": 2}}})
            timeline = answer["rooms"]["join"][room_id]["timeline"]
            self.assertEqual((ids(timeline), timeline["limited"]), (theirs[1:], True))
            before = self.before(room_id, timeline["prev_batch"])
            self.assertEqual([event for event in before if event in said], said[::-1])
            self.assertIn(theirs[0], before)
            self.begin(cache_bytes)

    def before(self, room_id: str, token: str | None) -> list[str]:
        """The events of a few pages that go back from a place."""
        events: list[str] = []
        for _ in range(5):
            reading = self.here.rooms.messages(room_id, A, "b", token, None, 10, None, False)
            page = self.successResultOf(Deferred.fromCoroutine(reading))
            events += [event.event_id for event in page.events]
            token = page.end
            if token is None:
                break
        return events

    def test_branches(self) -> None:
        """Both set the topic at once; every client ends up with the same one."""
        room_id = self.shared()
        self.far.send(room_id, FAR, "m.room.power_levels", {"users": {FAR: 100, A: 50}}, "")
        self.pass_on(room_id, self.far.state(room_id)["m.room.power_levels", ""])
        since = self.sync("alice")["next_batch"]
        ours = self.here.send(room_id, A, "m.room.topic", {"topic": "ours"}, "")
        theirs = self.far.send(room_id, FAR, "m.room.topic", {"topic": "theirs"}, "")
        self.pass_on(room_id, theirs)
        self.assertEqual(self.far.receive(self.here, room_id, [ours]), {})
        said = self.far.say(room_id, FAR, "together")
        self.pass_on(room_id, said)
        wins = self.here.state(room_id)["m.room.topic", ""]
        self.assertEqual(wins, self.far.state(room_id)["m.room.topic", ""])
        for token in (since, None):
            for state_after in (False, True):
                room = self.sync("alice", token, use_state_after=state_after)["rooms"]["join"][room_id]
                state = {
                    (e["type"], e["state_key"]): e["event_id"]
                    for e in room["state_after" if state_after else "state"]["events"]
                }
                if not state_after:
                    shown = [event for event in room["timeline"]["events"] if "state_key" in event]
                    state.update({(event["type"], event["state_key"]): event["event_id"] for event in shown})
                self.assertEqual(state["m.room.topic", ""], wins)

    def test_members_that_come_later(self) -> None:
        room_id = self.far.create(FAR, preset="public_chat", room_version="10")
        users = [f"@user{number}:far" for number in range(12)]
        for user in users:
            self.far.change(room_id, user, "join")
        since, lazily = self.sync("alice")["next_batch"], self.sync("bob")["next_batch"]
        state = {key: self.far.event(one) for key, one in self.far.state(room_id).items()}
        join = self.here.make_on(self.far, room_id, A, MEMBER, {"membership": "join"}, A)
        self.far.take(room_id, [join], distribute=True)
        room = self.here.do(self.here.rooms.adoption.stub(room_id, ROOM_VERSIONS["10"]))
        part = {key: event for key, event in state.items() if key[0] != MEMBER or key[1] == FAR}
        chain = self.far.chain([*state.values(), join])
        partial = PartialJoin("far", ["far"])
        self.here.do(
            self.here.rooms.adoption.adopt(room, receive_event(join.pdu, join.version), part, chain, partial=partial)
        )
        answer = self.sync("alice", since)
        self.assertNotIn("rooms", answer)
        lazy = self.sync("alice", since, filter=LAZY)
        self.assertIn(room_id, lazy["rooms"]["join"])
        said = self.far.say(room_id, users[3], "hello")
        self.pass_on(room_id, said)
        room = self.here.room(room_id)
        self.here.do(self.here.rooms.adoption.complete(room, state, chain))
        for _ in range(2):
            late = self.sync("alice", answer["next_batch"])["rooms"]["join"][room_id]
            self.assertIn(said, ids(late["timeline"]))
            members = {event["state_key"] for event in late["state"]["events"] if event["type"] == MEMBER}
            self.assertLessEqual(set(users), members)
            told = self.sync("alice", lazy["next_batch"], filter=LAZY)["rooms"]["join"][room_id]
            self.assertEqual(ids(told["timeline"]), [said])
            self.assertIn(users[3], [event.get("state_key") for event in told["state"]["events"]])
            self.assertLess(len([e for e in told["state"]["events"] if e["type"] == MEMBER]), 10)
            self.begin()
        self.assertNotIn("rooms", self.sync("bob", lazily))

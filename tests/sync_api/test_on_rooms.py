"""Sync over the real room component and its database."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote, urlencode

from dendrite_tw.cache import CacheBudget
from dendrite_tw.database.outbox import OutboxRow
from dendrite_tw.room_api.api import NewEvent
from dendrite_tw.sync_api.component import SyncComponent
from tests.fakes import FakeQueue
from tests.harness import CALLERS, serve
from tests.room_api.story import ALICE, BOB, RoomStory
from tests.sync_api.fakes import FakeKeys, FakeUsers
from tests.sync_api.scene import ids, joined


class OnRooms(RoomStory):
    """Alice and Bob sync while they act in rooms."""

    def setUp(self) -> None:
        self.queue = FakeQueue()
        super().setUp()
        self.clock = self.memory.clock
        self.sync_users = FakeUsers(self.queue)
        self.keys = FakeKeys(self.queue, self.sync_users)
        self.sync_database = self.memory.database()
        self.addCleanup(self.sync_database.close)
        self.begin()

    def begin(self) -> None:
        """A sync component that has nothing in memory."""
        self.component_ = SyncComponent(
            self.rooms,
            self.sync_users,  # type: ignore[arg-type]
            self.keys,  # type: ignore[arg-type]
            self.queue,
            self.sync_database,
            self.memory.world,
            CacheBudget(1 << 24),
            "test",
        )
        self.component_.prepare()
        self.do(self.component_.start())
        self.web = serve(self.component_.routes(), self.clock, CALLERS)

    def _tell(self, rows: list[OutboxRow]) -> None:
        super()._tell(rows)
        for row in rows:
            self.queue.send(row.stream, row.payload)

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

    def get(self, who: str, path: str) -> Any:
        answer = self.web.get("/_matrix/client/v3/" + path, who)
        self.assertEqual(answer.status, 200, answer.body)
        return answer.json

    def test_from_invite_to_leaving(self) -> None:
        since = self.sync("bob")["next_batch"]
        room_id = self.create(name="Den", invite=[BOB], preset="private_chat")
        answer = self.sync("bob", since)
        invited = answer["rooms"]["invite"][room_id]["invite_state"]["events"]
        self.assertIn("m.room.create", [event["type"] for event in invited])
        self.assertIn(("m.room.member", BOB), [(event["type"], event["state_key"]) for event in invited])
        self.member(room_id, BOB, "join")
        hello = self.say(room_id, ALICE, "hello")
        answer = self.sync("bob", answer["next_batch"])
        room = joined(answer, room_id)
        self.assertEqual(ids(room["timeline"])[-1], hello)
        self.assertEqual(room["summary"]["m.joined_member_count"], 2)
        self.assertEqual(self.sync("bob", answer["next_batch"]).get("rooms"), None)
        self.member(room_id, ALICE, "kick", BOB)
        self.say(room_id, ALICE, "he is gone")
        answer = self.sync("bob", answer["next_batch"])
        left = answer["rooms"]["leave"][room_id]
        self.assertEqual([event["content"]["membership"] for event in left["timeline"]["events"]], ["leave"])

    def test_a_page_goes_on_where_the_timeline_begins(self) -> None:
        room_id = self.create()
        sent = [self.say(room_id, ALICE, str(n)) for n in range(30)]
        answer = self.sync("alice")
        timeline = joined(answer, room_id)["timeline"]
        self.assertEqual(ids(timeline), sent[-10:])
        path = f"rooms/{quote(room_id)}/messages?dir=b&limit=5&from={timeline['prev_batch']}"
        page = self.get("alice", path)
        self.assertEqual([event["event_id"] for event in page["chunk"]], sent[-11:-16:-1])
        self.say(room_id, ALICE, "new")
        page = self.get("alice", f"rooms/{quote(room_id)}/messages?dir=f&from={answer['next_batch']}")
        self.assertEqual([event["content"]["body"] for event in page["chunk"]], ["new"])
        members = self.get("alice", f"rooms/{quote(room_id)}/members?at={answer['next_batch']}")
        self.assertEqual([event["state_key"] for event in members["chunk"]], [ALICE])

    def test_state_is_the_same_from_memory_and_from_disk(self) -> None:
        room_id = self.create(name="1")
        since = self.sync("alice")["next_batch"]
        topic = self.set_state(room_id, ALICE, "m.room.topic", {"topic": "t"})
        for n in range(60):
            self.say(room_id, ALICE, str(n))
        second = self.set_state(room_id, ALICE, "m.room.name", {"name": "2"})
        rooms = []
        for _ in range(2):
            rooms.append(joined(self.sync("alice", since), room_id))
            rooms.append(joined(self.sync("alice", since, use_state_after=True), room_id))
            self.begin()
        for room in rooms:
            room.get("state_after", room.get("state"))["events"].sort(key=lambda event: event["event_id"])
        self.assertEqual(rooms[:2], rooms[2:])
        self.assertEqual(ids(rooms[0]["state"]), [topic])
        self.assertEqual(set(ids(rooms[1]["state_after"])), {topic, second})

    def test_hidden_history(self) -> None:
        room_id = self.create(preset="public_chat")
        self.set_state(room_id, ALICE, "m.room.history_visibility", {"history_visibility": "joined"})
        self.say(room_id, ALICE, "secret")
        since = self.sync("bob")["next_batch"]
        self.member(room_id, BOB, "join")
        seen = self.say(room_id, ALICE, "hello")
        for _ in range(2):
            for token in (since, None):
                answer = self.sync("bob", token)
                self.assertNotIn("secret", json.dumps(answer))
                self.assertEqual(ids(joined(answer, room_id)["timeline"])[-1], seen)
            self.begin()

    def test_redaction(self) -> None:
        room_id = self.create()
        event_id = self.say(room_id, ALICE, "secret")
        since = self.sync("alice")["next_batch"]
        self.redact(room_id, event_id)
        self.assertEqual(len(joined(self.sync("alice", since), room_id)["timeline"]["events"]), 1)
        shown = joined(self.sync("alice"), room_id)["timeline"]["events"]
        event = next(event for event in shown if event["event_id"] == event_id)
        self.assertEqual(event["content"], {})
        self.assertEqual(event["unsigned"]["redacted_because"]["type"], "m.room.redaction")

    def redact(self, room_id: str, event_id: str) -> None:
        event = NewEvent(
            room_id=room_id, sender=ALICE, type="m.room.redaction", content={"redacts": event_id}, redacts=event_id
        )
        self.do(self.rooms.send(event))

    def test_the_senders_transaction(self) -> None:
        room_id = self.create()
        self.say(room_id, ALICE, "hi", device_id="ALICEDEV", transaction_id="t1")
        event = joined(self.sync("alice"), room_id)["timeline"]["events"][-1]
        self.assertEqual(event["unsigned"]["transaction_id"], "t1")

    def test_every_endpoint_reads(self) -> None:
        room_id = self.create(name="Den")
        event_id = self.say(room_id, ALICE, "hi")
        room = f"rooms/{quote(room_id)}"
        self.assertEqual(self.get("alice", f"{room}/event/{event_id}")["room_id"], room_id)
        self.assertEqual(self.get("alice", f"{room}/context/{event_id}")["event"]["event_id"], event_id)
        self.assertEqual(self.get("alice", f"{room}/state/m.room.name"), {"name": "Den"})
        self.assertEqual(self.get("alice", "joined_rooms"), {"joined_rooms": [room_id]})
        self.assertIn(ALICE, self.get("alice", f"{room}/joined_members")["joined"])
        self.assertEqual(self.get("alice", f"{room}/initialSync")["room_id"], room_id)
        for path in ("timestamp_to_event?ts=0&dir=f", f"relations/{quote(event_id)}", "threads"):
            answer = self.web.get(f"/_matrix/client/v1/{room}/{path}", "alice")
            self.assertEqual(answer.status, 200, (path, answer.body))
        wanted = {"event_format": "federation", "room": {"timeline": {"limit": 1}}}
        event = joined(self.sync("alice", filter=wanted), room_id)["timeline"]["events"][0]
        self.assertIn("auth_events", event)

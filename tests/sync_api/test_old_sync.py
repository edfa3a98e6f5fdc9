"""The deprecated endpoints: ``/events``, ``/initialSync`` and that of one room."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote, urlencode

from tests.harness import Answer
from tests.sync_api.scene import ROOM, A, B, SyncCase


class OldSync(SyncCase):
    def setUp(self) -> None:
        super().setUp()
        self.rooms.create(ROOM, A, name="Den")
        self.rooms.join(ROOM, B)
        self.sent = [self.rooms.message(ROOM, B, str(n)).event_id for n in range(5)]

    def get(self, path: str, who: str = "alice", **query: Any) -> Answer:
        answer = self.web.get(f"/_matrix/client/v3/{path}?" + urlencode(query), who)
        self.settle()
        return answer

    def test_events_wait_for_events(self) -> None:
        first = self.get("events")
        self.assertEqual(first.json["chunk"], [])
        answer = self.get("events", **{"from": first.json["end"]}, timeout=30000)
        self.users.set_account_data(A, "m.direct", {})
        self.settle()
        self.assertFalse(answer.done)
        event = self.rooms.message(ROOM, B)
        self.settle()
        self.assertEqual([e["event_id"] for e in answer.json["chunk"]], [event.event_id])
        self.assertEqual(answer.json["chunk"][0]["room_id"], ROOM)
        self.assertEqual(answer.json["start"], first.json["end"])
        self.assertEqual(self.get("events", **{"from": answer.json["end"]}).json["chunk"], [])

    def test_events_tell_of_the_moment_and_of_invites(self) -> None:
        since = self.get("events").json["end"]
        self.users.read(ROOM, B, self.sent[0])
        self.rooms.create("!other:test", B)
        self.rooms.invite("!other:test", B, A)
        found = self.get("events", **{"from": since}).json["chunk"]
        self.assertEqual(
            [(event["type"], event["room_id"]) for event in found],
            [("m.room.member", "!other:test"), ("m.receipt", ROOM)],
        )

    def test_who_waits_for_events_is_online(self) -> None:
        since = self.sync("alice")["next_batch"]
        self.get("events", "bob")
        [shown] = self.sync("alice", since)["presence"]["events"]
        self.assertEqual((shown["sender"], shown["content"]["presence"]), (B, "online"))

    def test_events_end_with_the_time(self) -> None:
        answer = self.get("events", timeout=1000)
        self.clock.advance(1)
        self.assertEqual(answer.json["chunk"], [])

    def test_events_of_one_room(self) -> None:
        since = self.get("events").json["end"]
        other = self.rooms.create("!other:test", A)
        event = self.rooms.message(ROOM, B)
        found = self.get("events", room_id=ROOM, **{"from": since}).json["chunk"]
        self.assertEqual([e["event_id"] for e in found], [event.event_id])
        self.assertEqual(self.get("events", "bob", room_id=other).errcode, "M_FORBIDDEN")
        self.assertEqual(self.get("events", **{"from": "x"}).errcode, "M_INVALID_PARAM")

    def test_one_event(self) -> None:
        self.assertEqual(self.get(f"events/{self.sent[0]}").json["event_id"], self.sent[0])
        self.assertEqual(self.get("events/$e1", "carol").errcode, "M_NOT_FOUND")
        self.assertEqual(self.get("events/$none").errcode, "M_NOT_FOUND")

    def test_initial_sync(self) -> None:
        self.rooms.create("!invited:test", B)
        self.rooms.invite("!invited:test", B, A)
        self.rooms.create("!left:test", B)
        self.rooms.join("!left:test", A)
        self.rooms.leave("!left:test", A)
        self.users.set_account_data(A, "m.direct", {})
        self.users.set_account_data(A, "m.tag", {"tags": {}}, ROOM)
        found = self.get("initialSync", limit=2).json
        rooms = {room["room_id"]: room for room in found["rooms"]}
        self.assertEqual(
            {key: room["membership"] for key, room in rooms.items()}, {ROOM: "join", "!invited:test": "invite"}
        )
        self.assertEqual([e["event_id"] for e in rooms[ROOM]["messages"]["chunk"]], self.sent[-2:])
        self.assertEqual(rooms[ROOM]["account_data"], [{"type": "m.tag", "content": {"tags": {}}}])
        self.assertEqual(rooms["!invited:test"]["invite"]["content"], {"membership": "invite"})
        self.assertEqual([e["type"] for e in found["account_data"]], ["m.direct"])
        archived = self.get("initialSync", archived="true").json["rooms"]
        self.assertIn("!left:test", [room["room_id"] for room in archived])
        self.assertEqual(self.sync("alice", found["end"]).get("rooms"), None)

    def test_room_initial_sync(self) -> None:
        found = self.get(f"rooms/{quote(ROOM)}/initialSync", limit=3).json
        self.assertEqual([e["event_id"] for e in found["messages"]["chunk"]], self.sent[-3:])
        self.assertEqual(len(found["state"]), 4)
        self.assertEqual(self.get(f"rooms/{quote(ROOM)}/initialSync", limit=0).json["messages"]["chunk"], [])
        self.assertEqual((found["membership"], found["visibility"]), ("join", "private"))
        self.assertEqual(self.get(f"rooms/{quote(ROOM)}/initialSync", "carol").errcode, "M_FORBIDDEN")

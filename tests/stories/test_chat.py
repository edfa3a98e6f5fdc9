"""Two people talk: the whole server, from the first account to the last word."""

from __future__ import annotations

from tests.server import ServerTestCase


class ChatTests(ServerTestCase):
    def test_two_people_talk(self) -> None:
        alice, bob = self.register("alice"), self.register("bob")
        room_id = alice.create_room(name="Tea", invite=[bob.user_id])
        bob.join(room_id)
        alice.say(room_id, "hello Bob")
        bob.say(room_id, "hello Alice")
        page = alice.ok(alice.get(f"/rooms/{room_id}/messages?dir=b&limit=2"))
        self.assertEqual([event["content"]["body"] for event in page["chunk"]], ["hello Alice", "hello Bob"])

    def test_what_is_said_reaches_who_waits(self) -> None:
        alice, bob = self.register("alice"), self.register("bob")
        room_id = alice.create_room(preset="public_chat")
        bob.join(room_id)
        since = bob.sync()["next_batch"]
        self.assertEqual(bob.sync(since).get("rooms", {}), {})
        waiting = bob.start_sync(since, timeout=30_000)
        self.assertFalse(waiting.done)
        event_id = alice.say(room_id, "hello Bob")
        joined = bob.ok(waiting)["rooms"]["join"]
        self.assertEqual([event["event_id"] for event in joined[room_id]["timeline"]["events"]], [event_id])
        waiting = bob.start_sync(waiting.json["next_batch"], timeout=30_000)
        self.pump(31)
        self.assertEqual(bob.ok(waiting).get("rooms", {}), {})

    def test_a_client_may_send_without_a_transaction(self) -> None:
        alice = self.register("alice")
        room_id = alice.create_room(room_version="10")
        path = f"/rooms/{room_id}/send/m.room.message"
        sent = [alice.ok(alice.post(path, {"msgtype": "m.text", "body": "again"}))["event_id"] for _ in range(2)]
        self.assertNotEqual(*sent)
        for value in (2**53, 1.5):
            answer = alice.post(path, {"msgtype": "m.text", "body": "x", "number": value})
            self.assertEqual((answer.status, answer.errcode), (400, "M_BAD_JSON"))
        self.assertEqual(alice.post(path, {"body": "x" * 65536}).status, 413)

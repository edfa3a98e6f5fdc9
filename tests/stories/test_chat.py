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

"""What is unread, as a client's sync shows it: the same in the answer that brings the message."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from tests.server import Client, ServerTestCase


class UnreadStories(ServerTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.alice, self.bob = self.register("alice"), self.register("bob")
        self.room = self.alice.create_room(preset="public_chat")
        self.bob.join(self.room)

    def counts(self, shown: Any) -> tuple[int, int]:
        unread = shown["rooms"]["join"][self.room]["unread_notifications"]
        return unread["notification_count"], unread["highlight_count"]

    def reads(self, who: Client, event_id: str, **body: Any) -> None:
        who.ok(who.post(f"/rooms/{quote(self.room)}/receipt/m.read/{quote(event_id)}", body))

    def test_a_message_comes_with_its_count(self) -> None:
        since = self.bob.sync()["next_batch"]
        waiting = self.bob.start_sync(since, 30_000)
        self.assertFalse(waiting.done)
        event_id = self.alice.say(self.room, "hello", **{"m.mentions": {"user_ids": ["@bob:test"]}})
        self.pump()
        self.assertTrue(waiting.done)
        shown = self.bob.ok(waiting)
        self.assertEqual((1, 1), self.counts(shown))

        again = self.bob.start_sync(shown["next_batch"], 30_000)
        self.reads(self.bob, event_id)
        self.pump()
        self.assertEqual((0, 0), self.counts(self.bob.ok(again)))

    def test_a_muted_room_is_silent(self) -> None:
        rule = f"/pushrules/global/room/{quote(self.room)}"
        self.bob.ok(self.bob.put(rule, {"actions": []}))
        self.alice.say(self.room, "hello")
        self.pump(1)
        self.assertEqual((0, 0), self.counts(self.bob.sync()))

    def test_counts_outlive_the_server(self) -> None:
        self.alice.say(self.room, "hello")
        self.alice.say(self.room, "@room", **{"m.mentions": {"room": True}})
        self.pump(1)
        before = self.counts(self.bob.sync())
        self.assertEqual((2, 1), before)
        self.stop()
        self.server = self.start(1)
        self.assertEqual(before, self.counts(self.bob.sync()))

    def test_what_a_user_was_told_of(self) -> None:
        self.alice.say(self.room, "one")
        second = self.alice.say(self.room, "two")
        self.pump(1)
        shown = self.bob.ok(self.bob.get("/notifications?limit=1"))
        self.assertEqual([second], [one["event"]["event_id"] for one in shown["notifications"]])
        self.reads(self.bob, second)
        shown = self.bob.ok(self.bob.get("/notifications"))
        self.assertEqual([True, True], [one["read"] for one in shown["notifications"]])
        self.assertEqual([], self.alice.ok(self.alice.get("/notifications"))["notifications"])

    def test_a_thread_is_counted_apart(self) -> None:
        root = self.alice.say(self.room, "root")
        self.alice.say(self.room, "reply", **{"m.relates_to": {"rel_type": "m.thread", "event_id": root}})
        self.pump(1)
        filter = '{"room":{"timeline":{"unread_thread_notifications":true}}}'
        room = self.bob.sync(filter=filter)["rooms"]["join"][self.room]
        self.assertEqual(1, room["unread_notifications"]["notification_count"])
        self.assertEqual(1, room["unread_thread_notifications"][root]["notification_count"])
        self.reads(self.bob, root, thread_id="main")
        room = self.bob.sync(filter=filter)["rooms"]["join"][self.room]
        self.assertEqual(0, room["unread_notifications"]["notification_count"])

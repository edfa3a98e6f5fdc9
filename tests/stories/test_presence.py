"""Presence through the whole server: shown where the configuration says so, and only there."""

from __future__ import annotations

from tests.server import CONFIG, ServerTestCase


class PresenceStories(ServerTestCase):
    def write_config(self, folder: str) -> str:
        return super().write_config(folder).replace("global:\n", "global:\n  presence: {enable_outbound: true}\n", 1)

    def test_who_talks_is_seen(self) -> None:
        alice, bob, carol = (self.register(name) for name in ("alice", "bob", "carol"))
        room_id = alice.create_room(preset="public_chat")
        bob.join(room_id)
        path = f"/presence/{alice.user_id}/status"
        alice.ok(alice.put(path, {"presence": "unavailable", "status_msg": "at tea"}))
        self.assertEqual(bob.ok(bob.get(path))["status_msg"], "at tea")
        events = bob.sync()["presence"]["events"]
        shown = {event["sender"]: event["content"]["presence"] for event in events}
        self.assertEqual(shown[alice.user_id], "unavailable")
        alice.sync()
        self.assertEqual(bob.ok(bob.get(path))["presence"], "online")
        self.assertEqual(carol.get(path).status, 403)
        for _ in range(4):
            self.pump(60)
        self.assertEqual(bob.ok(bob.get(path))["presence"], "offline")


class WithoutPresence(ServerTestCase):
    def test_nobody_is_seen(self) -> None:
        self.assertNotIn("presence:", CONFIG)
        alice = self.register("alice")
        path = f"/presence/{alice.user_id}/status"
        alice.ok(alice.put(path, {"presence": "online"}))
        self.assertNotIn("presence", alice.sync())
        self.assertEqual(alice.ok(alice.get(path)), {"presence": "offline"})

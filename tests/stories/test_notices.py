"""The administrators have something to say."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from dendrite_tw.assemble import Server
from tests.server import ServerTestCase

SEND = "/_synapse/admin/v1/send_server_notice"
NOTICES = '  server_notices: {enabled: true, local_part: "_server", room_name: News, display_name: The server}\n'


class NoticeStories(ServerTestCase):
    def start(self, seed: int = 0) -> Server:
        if NOTICES not in self.config_text:
            self.config_text = self.config_text.replace("global:\n", f"global:\n{NOTICES}")
        return super().start(seed)

    def setUp(self) -> None:
        super().setUp()
        self.boss = self.register("boss", admin=True)
        self.alice = self.register("alice")

    def notice(self, text: str, **more: Any) -> dict[str, Any]:
        return {"user_id": "@alice:test", "content": {"msgtype": "m.text", "body": text}, **more}

    def test_a_user_is_invited_to_one_room_for_all_notices(self) -> None:
        first = self.boss.ok(self.boss.post(SEND, self.notice("We move on Sunday.")))["event_id"]
        invited = self.alice.sync()["rooms"]["invite"]
        (room_id,) = invited
        self.alice.join(room_id)
        second = self.boss.ok(self.boss.post(SEND, self.notice("We have moved.")))["event_id"]
        room = self.alice.sync()["rooms"]["join"][room_id]
        shown = [event["event_id"] for event in room["timeline"]["events"] if event["type"] == "m.room.message"]
        self.assertEqual(second, shown[-1])
        self.assertNotEqual(first, second)
        tags = self.alice.ok(self.alice.get(f"/user/@alice:test/rooms/{quote(room_id)}/tags"))["tags"]
        self.assertEqual({"m.server_notice": {}}, tags)
        name = self.alice.ok(self.alice.get("/profile/@_server:test/displayname"))
        self.assertEqual({"displayname": "The server"}, name)

    def test_who_left_is_invited_again(self) -> None:
        self.boss.ok(self.boss.post(SEND, self.notice("Hello.")))
        (room_id,) = self.alice.sync()["rooms"]["invite"]
        self.alice.join(room_id)
        self.alice.ok(self.alice.post(f"/rooms/{quote(room_id)}/leave"))
        self.boss.ok(self.boss.post(SEND, self.notice("Come back.")))
        self.assertEqual([room_id], list(self.alice.sync()["rooms"]["invite"]))

    def test_a_transaction_is_sent_once(self) -> None:
        sent = [self.boss.ok(self.boss.put(f"{SEND}/t1", self.notice("Once."))) for _ in range(2)]
        self.assertEqual(sent[0], sent[1])

    def test_what_is_no_notice(self) -> None:
        for body, status in [
            ({}, 400),
            ({"user_id": "@alice:test"}, 400),
            ({"user_id": "@alice:test", "content": {}}, 400),
            (self.notice("x", user_id="@nobody:test"), 404),
            (self.notice("x", user_id="@alice:far"), 404),
        ]:
            self.assertEqual(status, self.boss.post(SEND, body).status, body)
        self.assertEqual(403, self.alice.post(SEND, self.notice("x")).status)

    def test_nobody_can_be_the_server(self) -> None:
        self.boss.ok(self.boss.post(SEND, self.notice("Hello.")))
        answer = self.boss.post("/register", {"username": "_server", "password": "wonderland"})
        self.assertEqual(400, answer.status)
        login = {"type": "m.login.password", "user": "_server", "password": ""}
        self.assertEqual(403, self.boss.post("/login", login).status)


class WithoutNotices(ServerTestCase):
    def test_there_is_no_such_endpoint(self) -> None:
        boss = self.register("boss", admin=True)
        self.assertEqual(404, boss.post(SEND, {}).status)

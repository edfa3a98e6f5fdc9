"""What clients see of rooms, files, directories and people of another server."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

from twisted.internet.task import Clock

from tests.federation_api.network import Network
from tests.harness import Answer
from tests.server import Client, ServerTestCase
from tests.stories.test_two_houses import ADDRESSES, House

MEDIA = "/_matrix/client/v1/media"
V1 = "/_matrix/client/v1"


class RoomsOfOthers(ServerTestCase):
    """Alice's server is ``test``, Bob's is ``bobs.test``."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1_700_000_000)
        self.network = Network(self.clock)
        folder = Path(self.mktemp())
        folder.mkdir()
        self.here, self.there = (House(name, self.network, folder / name) for name in ADDRESSES)
        for house in (self.here, self.there):
            house.open()
            self.addCleanup(house.stop)
        self.alice, self.bob = self.here.register("alice"), self.there.register("bob")

    def settle(self, seconds: float = 2.0) -> None:
        """Let messages travel."""
        for _ in range(int(seconds / 0.25)):
            self.here.pump(0.25)

    def join(self, client: Client, room_id: str, server: str) -> None:
        client.ok(client.post(f"/join/{quote(room_id)}?server_name={server}"))
        self.settle()

    def refused(self, answer: Answer, status: int, errcode: str) -> None:
        self.assertEqual((answer.status, answer.errcode), (status, errcode), answer)

    def test_an_invite_is_seen_taken_back_and_taken(self) -> None:
        room = self.bob.create_room(name="Bob's den", preset="private_chat")
        since = self.alice.sync()["next_batch"]
        waiting = self.alice.start_sync(since, 60_000)
        self.bob.ok(self.bob.post(f"/rooms/{quote(room)}/invite", {"user_id": self.alice.user_id}))
        self.settle()
        shown = waiting.json["rooms"]["invite"][room]["invite_state"]["events"]
        self.assertIn("Bob's den", [event["content"].get("name") for event in shown])
        self.bob.ok(self.bob.post(f"/rooms/{quote(room)}/kick", {"user_id": self.alice.user_id}))
        self.settle()
        answer = self.alice.sync(waiting.json["next_batch"])
        self.assertIn(room, answer["rooms"]["leave"])
        self.bob.ok(self.bob.post(f"/rooms/{quote(room)}/invite", {"user_id": self.alice.user_id}))
        self.settle()
        since = self.alice.sync(answer["next_batch"])["next_batch"]
        self.join(self.alice, room, "bobs.test")
        answer = self.alice.sync(since)
        joined = answer["rooms"]["join"][room]
        self.assertTrue(joined["timeline"]["limited"])
        names = [event for event in joined["state"]["events"] if event["type"] == "m.room.name"]
        self.assertEqual(names[0]["content"], {"name": "Bob's den"})
        self.assertEqual(joined["summary"]["m.joined_member_count"], 2)
        self.assertEqual(answer["device_lists"]["changed"], [self.bob.user_id])
        self.assertNotIn("rooms", self.alice.sync(answer["next_batch"]))

    def test_each_message_is_seen_once(self) -> None:
        room = self.bob.create_room(preset="public_chat")
        self.join(self.alice, room, "bobs.test")
        since, said, seen = self.alice.sync()["next_batch"], list[str](), list[str]()
        for number in range(6):
            said.append(self.bob.say(room, f"b{number}"))
            said.append(self.alice.say(room, f"a{number}"))
            if number % 2:
                self.settle()
            answer = self.alice.sync(since)
            since = answer["next_batch"]
            for joined in answer.get("rooms", {}).get("join", {}).values():
                self.assertFalse(joined["timeline"]["limited"])
                seen += [event["event_id"] for event in joined["timeline"]["events"]]
        self.assertEqual(sorted(seen), sorted(said))

    def test_people_are_found_and_their_doings_seen(self) -> None:
        room = self.bob.create_room(preset="public_chat")
        self.bob.ok(self.bob.put(f"/profile/{self.bob.user_id}/displayname", {"displayname": "Robert"}))
        self.join(self.alice, room, "bobs.test")
        found = self.alice.ok(self.alice.post("/user_directory/search", {"search_term": "robert"}))
        self.assertEqual([user["user_id"] for user in found["results"]], [self.bob.user_id])
        since = self.alice.sync()["next_batch"]
        self.bob.ok(self.bob.put(f"/rooms/{quote(room)}/typing/{self.bob.user_id}", {"typing": True, "timeout": 30000}))
        self.bob.ok(self.bob.put(f"/presence/{self.bob.user_id}/status", {"presence": "online", "status_msg": "here"}))
        self.settle()
        typing = self.alice.sync(since)["rooms"]["join"][room]["ephemeral"]["events"]
        self.assertEqual([event["content"] for event in typing], [{"user_ids": [self.bob.user_id]}])
        self.settle(10)
        answer = self.alice.sync(since)
        told = {event["sender"]: event["content"].get("status_msg") for event in answer["presence"]["events"]}
        self.assertEqual(told.get(self.bob.user_id), "here")
        self.bob.ok(self.bob.post(f"/rooms/{quote(room)}/leave"))
        self.settle()
        self.assertEqual(self.alice.sync(answer["next_batch"])["device_lists"]["left"], [self.bob.user_id])

    def test_files(self) -> None:
        answer = self.bob.request(
            "POST", "/_matrix/media/v3/upload?filename=a.txt", b"words", headers={"Content-Type": "text/plain"}
        )
        name = self.bob.ok(answer)["content_uri"].removeprefix("mxc://")
        found = self.alice.get(f"{MEDIA}/download/{name}")
        self.assertEqual((found.status, found.body, found.headers["content-type"]), (200, b"words", "text/plain"))
        self.there.cut()
        self.assertEqual(self.alice.get(f"{MEDIA}/download/{name}").body, b"words")
        self.assertEqual(self.alice.get(f"{MEDIA}/download/bobs.test/other").status, 502)

    def test_directories(self) -> None:
        room = self.bob.create_room(name="Bob's club", preset="public_chat", visibility="public")
        self.bob.create_room(name="Others", preset="public_chat", visibility="public")
        page = self.alice.ok(self.alice.get("/publicRooms?server=bobs.test"))
        self.assertEqual(page["total_room_count_estimate"], 2)
        body = {"filter": {"generic_search_term": "club"}}
        page = self.alice.ok(self.alice.post("/publicRooms?server=bobs.test", body))
        self.assertEqual([row["room_id"] for row in page["chunk"]], [room])
        first = self.alice.ok(self.alice.get("/publicRooms?server=bobs.test&limit=1"))
        second = self.alice.ok(self.alice.get(f"/publicRooms?server=bobs.test&limit=1&since={first['next_batch']}"))
        self.assertNotEqual(first["chunk"], second["chunk"])

    def test_spaces_and_summaries(self) -> None:
        room = self.bob.create_room(name="Room", preset="public_chat")
        secret = self.bob.create_room(name="Secret", preset="private_chat")
        space: dict[str, Any] = {"name": "Bob's", "preset": "public_chat", "creation_content": {"type": "m.space"}}
        inner = self.bob.create_room(**space)
        for child in (room, secret):
            path = f"/rooms/{quote(inner)}/state/m.space.child/{quote(child)}"
            self.bob.ok(self.bob.put(path, {"via": ["bobs.test"]}))
        outer = self.alice.create_room(name="Alice's", creation_content={"type": "m.space"})
        path = f"/rooms/{quote(outer)}/state/m.space.child/{quote(inner)}"
        self.alice.ok(self.alice.put(path, {"via": ["bobs.test"]}))
        tree = self.alice.ok(self.alice.get(f"{V1}/rooms/{quote(outer)}/hierarchy"))
        self.assertEqual([one["room_id"] for one in tree["rooms"]], [outer, inner, room])
        self.assertEqual(len(tree["rooms"][1]["children_state"]), 2)
        summary = self.alice.ok(self.alice.get(f"{V1}/room_summary/{quote(room)}?via=bobs.test"))
        self.assertEqual((summary["name"], summary["num_joined_members"]), ("Room", 1))
        self.refused(self.alice.get(f"{V1}/room_summary/{quote(secret)}?via=bobs.test"), 404, "M_NOT_FOUND")

    def test_a_message_by_its_time(self) -> None:
        room = self.bob.create_room(preset="public_chat")
        self.settle(10)
        said, ts = self.bob.say(room, "early"), int(self.clock.seconds() * 1000)
        self.settle(10)
        self.bob.say(room, "late")
        self.settle(10)
        self.join(self.alice, room, "bobs.test")
        path = f"{V1}/rooms/{quote(room)}/timestamp_to_event?ts={ts}&dir=f"
        self.assertEqual(self.alice.ok(self.alice.get(path)), {"event_id": said, "origin_server_ts": ts})
        self.assertEqual(
            self.alice.ok(self.alice.get(f"/rooms/{quote(room)}/event/{said}"))["content"]["body"], "early"
        )

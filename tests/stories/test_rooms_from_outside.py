"""Scenes of rooms as a whole: upgraded, reported, walked, searched, deleted, over HTTP."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from tests.harness import Answer
from tests.server import CLIENT, Client, ServerTestCase

V1 = "/_matrix/client/v1"
NHEKO = "/_matrix/client/unstable/im.nheko.summary"


class RoomStories(ServerTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.alice, self.bob = self.register("alice"), self.register("bob")
        self.admin = self.register("root", admin=True)

    def refused(self, answer: Answer, status: int, errcode: str) -> None:
        self.assertEqual((answer.status, answer.errcode), (status, errcode), answer)

    def state(self, client: Client, room_id: str, type: str, key: str = "") -> Any:
        return client.ok(client.get(f"/rooms/{quote(room_id)}/state/{type}/{quote(key)}"))

    def test_an_upgrade(self) -> None:
        room_id = self.alice.create_room(preset="public_chat", room_version="11", room_alias_name="den")
        self.bob.join(room_id)
        path = f"/rooms/{quote(room_id)}/upgrade"
        self.refused(self.alice.post(path, {}), 400, "M_MISSING_PARAM")
        self.refused(self.alice.post(path, {"new_version": 12}), 400, "M_BAD_JSON")
        self.refused(self.alice.post(path, {"new_version": "0"}), 400, "M_UNSUPPORTED_ROOM_VERSION")
        self.refused(self.bob.post(path, {"new_version": "12"}), 403, "M_FORBIDDEN")
        direct = f"/user/{quote(self.bob.user_id)}/account_data/m.direct"
        self.bob.ok(self.bob.put(direct, {self.alice.user_id: [room_id]}))
        body = {"new_version": "12", "additional_creators": [self.bob.user_id]}
        new = self.alice.ok(self.alice.post(path, body))["replacement_room"]
        self.assertEqual(self.state(self.alice, room_id, "m.room.tombstone")["replacement_room"], new)
        self.bob.join("#den:test")
        self.assertIn(new, self.bob.sync()["rooms"]["join"])
        self.assertEqual(self.bob.ok(self.bob.get(direct)), {self.alice.user_id: [room_id, new]})

    def test_reports_reach_the_administrators(self) -> None:
        room_id = self.alice.create_room(preset="public_chat")
        said = self.alice.say(room_id, "rude")
        room = f"/rooms/{quote(room_id)}/report"
        self.refused(self.bob.post(f"{room}/{quote(said)}", {"reason": "rude"}), 404, "M_NOT_FOUND")
        self.bob.join(room_id)
        self.assertEqual(self.bob.ok(self.bob.post(f"{room}/{quote(said)}", {"score": "low"})), {})
        self.bob.ok(self.bob.post(room, {"reason": ""}))
        self.refused(self.bob.post(room, {}), 400, "M_MISSING_PARAM")
        self.bob.ok(self.bob.post(f"/users/{quote(self.alice.user_id)}/report", {"reason": "rude"}))
        self.refused(self.bob.post("/users/@none:test/report", {"reason": "rude"}), 404, "M_NOT_FOUND")
        admin = "/_synapse/admin/v1/event_reports"
        self.refused(self.bob.get(admin), 403, "M_FORBIDDEN")
        page = self.admin.ok(self.admin.get(f"{admin}?from=0&limit=5&dir=f"))
        (report,) = page["event_reports"]
        self.assertEqual((report["event_id"], report["user_id"], page["total"]), (said, self.bob.user_id, 1))
        details = self.admin.ok(self.admin.get(f"{admin}/{report['id']}"))
        self.assertEqual(details["event_json"]["content"]["body"], "rude")
        kinds = self.admin.ok(self.admin.get("/_dendrite/admin/reports?limit=2"))
        self.assertEqual(([found["kind"] for found in kinds["reports"]], kinds["next_token"]), (["user", "room"], 2))
        for query in ("dir=x", "from=-1", "limit=-1", "limit=x", f"from={2**70}"):
            self.refused(self.admin.get(f"{admin}?{query}"), 400, "M_INVALID_PARAM")
        self.admin.ok(self.admin.delete(f"{admin}/{report['id']}"))
        self.refused(self.admin.get(f"{admin}/{report['id']}"), 404, "M_NOT_FOUND")
        self.refused(self.admin.get(f"{admin}/x"), 404, "M_NOT_FOUND")

    def test_a_space_from_outside(self) -> None:
        space = self.alice.create_room(
            preset="public_chat", name="Space", creation_content={"type": "m.space"}, room_alias_name="space"
        )
        room = self.alice.create_room(preset="public_chat", name="Room")
        self.alice.ok(self.alice.put(f"/rooms/{quote(space)}/state/m.space.child/{quote(room)}", {"via": ["test"]}))
        path = f"{V1}/rooms/{quote(space)}/hierarchy"
        first = self.bob.ok(self.bob.get(f"{path}?limit=1&max_depth=2&suggested_only=false"))
        self.assertEqual([found["name"] for found in first["rooms"]], ["Space"])
        self.assertEqual(first["rooms"][0]["children_state"][0]["content"], {"via": ["test"]})
        again = f"{path}?max_depth=2&from={first['next_batch']}"
        self.assertEqual([found["name"] for found in self.bob.ok(self.bob.get(again))["rooms"]], ["Room"])
        self.refused(self.bob.get(f"{path}?limit=0"), 400, "M_INVALID_PARAM")
        self.refused(self.bob.get(f"{path}?max_depth=x"), 400, "M_INVALID_PARAM")
        self.refused(self.bob.get(f"{V1}/rooms/!none:test/hierarchy"), 403, "M_FORBIDDEN")
        for where in (f"{V1}/room_summary/{quote('#space:test')}", f"{NHEKO}/summary/{quote(space)}"):
            found = self.request("GET", where)
            self.assertEqual((found.status, found.json["room_type"]), (200, "m.space"))
            self.assertNotIn("membership", found.json)
        own = self.alice.ok(self.alice.get(f"{NHEKO}/rooms/{quote(space)}/summary"))
        self.assertEqual((own["membership"], own["im.nheko.summary.room_version"]), ("join", own["room_version"]))
        private = self.alice.create_room()
        self.refused(self.request("GET", f"{V1}/room_summary/{quote(private)}"), 404, "M_NOT_FOUND")
        self.refused(self.bob.get(f"{V1}/room_summary/nonsense"), 404, "M_NOT_FOUND")

    def test_rooms_and_users_in_common(self) -> None:
        room_id = self.alice.create_room(preset="public_chat")
        self.bob.join(room_id)
        path = f"{V1}/mutual_rooms"
        found = self.alice.ok(self.alice.get(f"{path}?user_id={quote(self.bob.user_id)}"))
        self.assertEqual(found, {"joined": [room_id], "count": 1})
        old = "/_matrix/client/unstable/uk.half-shot.msc2666/user/mutual_rooms"
        self.assertEqual(self.alice.ok(self.alice.get(f"{old}?user_id={self.bob.user_id}"))["joined"], [room_id])
        self.refused(self.alice.get(path), 400, "M_MISSING_PARAM")
        self.refused(self.alice.get(f"{path}?user_id={self.alice.user_id}"), 400, "M_INVALID_PARAM")
        self.bob.ok(self.bob.put(f"/profile/{self.bob.user_id}/displayname", {"displayname": "Robert"}))
        search = self.alice.ok(self.alice.post("/user_directory/search", {"search_term": "ROB"}))
        self.assertEqual(
            search, {"results": [{"user_id": self.bob.user_id, "display_name": "Robert"}], "limited": False}
        )
        self.refused(self.alice.post("/user_directory/search", {}), 400, "M_MISSING_PARAM")
        self.refused(self.alice.post("/user_directory/search", {"search_term": "x" * 501}), 400, "M_INVALID_PARAM")
        self.refused(
            self.alice.post("/user_directory/search", {"search_term": "x", "limit": -1}), 400, "M_INVALID_PARAM"
        )

    def test_a_room_is_deleted(self) -> None:
        room_id = self.alice.create_room(preset="public_chat")
        self.bob.join(room_id)
        self.alice.say(room_id, "hello")
        since = self.bob.sync()["next_batch"]
        admin = "/_dendrite/admin"
        self.refused(self.bob.post(f"{admin}/purgeRoom/{quote(room_id)}"), 403, "M_FORBIDDEN")
        kept = self.alice.create_room(preset="public_chat")
        self.bob.join(kept)
        self.assertEqual(
            self.admin.ok(self.admin.post(f"{admin}/evacuateUser/{quote(self.bob.user_id)}"))["affected"],
            [room_id, kept],
        )
        self.assertEqual(
            self.admin.ok(self.admin.post(f"{admin}/evacuateRoom/{quote(room_id)}"))["affected"], [self.alice.user_id]
        )
        self.assertEqual(self.admin.ok(self.admin.get(f"{admin}/emptyRooms"))["empty_rooms"], [room_id])
        self.assertIn(room_id, self.bob.sync(since)["rooms"]["leave"])
        self.assertEqual(self.admin.ok(self.admin.post(f"{admin}/purgeRoom/{quote(room_id)}")), {})
        self.refused(self.admin.post(f"{admin}/purgeRoom/{quote(room_id)}"), 404, "M_NOT_FOUND")
        later = self.bob.sync(since)
        self.assertNotIn(room_id, later.get("rooms", {}).get("join", {}))
        self.alice.say(kept, "still here")
        self.assertIn(kept, self.alice.sync()["rooms"]["join"])

    def test_what_comes_with_a_join_and_a_redaction(self) -> None:
        room_id = self.alice.create_room(preset="public_chat", room_version="10")
        self.bob.ok(self.bob.post(f"/join/{quote(room_id)}", {"foo": "bar", "reason": "hi"}))
        member = self.state(self.alice, room_id, "m.room.member", self.bob.user_id)
        self.assertEqual(
            {key: member[key] for key in ("foo", "reason", "membership")},
            {"foo": "bar", "reason": "hi", "membership": "join"},
        )
        self.refused(self.bob.post(f"/join/{quote(room_id)}", {"reason": 1}), 400, "M_BAD_JSON")
        self.refused(self.bob.post(f"/join/{quote(room_id)}", {"third_party_signed": 1}), 400, "M_BAD_JSON")
        said = self.bob.say(room_id, "secret")
        redaction = self.bob.send(room_id, "m.room.redaction", {"redacts": said, "reason": "oops"})
        event = self.bob.ok(self.bob.get(f"/rooms/{quote(room_id)}/event/{quote(redaction)}"))
        self.assertEqual(event["redacts"], said)
        said = self.bob.say(room_id, "another secret")
        redaction = self.bob.ok(self.bob.post(f"/rooms/{quote(room_id)}/redact/{quote(said)}", {}))["event_id"]
        event = self.bob.ok(self.bob.get(f"/rooms/{quote(room_id)}/event/{quote(said)}"))
        self.assertEqual((event["content"], event["unsigned"]["redacted_by"]), ({}, redaction))
        send = f"/rooms/{quote(room_id)}/send/m.room.redaction"
        self.refused(self.bob.put(f"{send}/a", {}), 400, "M_BAD_JSON")
        self.refused(
            self.bob.put(f"/rooms/{quote(room_id)}/redact/{quote(said)}/{'x' * 256}", {}), 400, "M_INVALID_PARAM"
        )

    def test_guests_are_sent_out(self) -> None:
        made = self.request("POST", f"{CLIENT}/register?kind=guest", {})
        guest = Client(self, made.json["user_id"], made.json["access_token"], made.json["device_id"])
        room_id = self.alice.create_room(preset="public_chat")
        access = f"/rooms/{quote(room_id)}/state/m.room.guest_access/"
        self.refused(guest.post(f"/join/{quote(room_id)}"), 403, "M_GUEST_ACCESS_FORBIDDEN")
        state = f"/rooms/{quote(room_id)}/state/m.room.member/{quote(guest.user_id)}"
        self.refused(guest.put(state, {"membership": "join"}), 403, "M_GUEST_ACCESS_FORBIDDEN")
        self.alice.ok(self.alice.put(access, {"guest_access": "can_join"}))
        guest.join(room_id)
        self.alice.ok(self.alice.put(access, {"guest_access": "forbidden"}))
        member = self.state(self.alice, room_id, "m.room.member", guest.user_id)
        self.assertEqual(member["membership"], "leave")

"""A whole server asked by another one, over TLS and HTTP: what needs no room that both are in."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from .whole import WholeServerTestCase

BOB = "@bob:stranger.test"


class WholeTests(WholeServerTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.alice = self.register("alice")
        self.other = self.stranger()
        self.other.get("/v1/query/nothing")
        for _ in range(4):
            self.pump(0.3)

    def transaction(self, *edus: Any) -> dict[str, Any]:
        return {"origin": "stranger.test", "origin_server_ts": 1, "pdus": [], "edus": list(edus)}

    def test_a_message_to_a_device_arrives_once(self) -> None:
        content = {
            "sender": BOB,
            "type": "m.room_key",
            "message_id": "one",
            "messages": {self.alice.user_id: {"*": {"key": "value"}}},
        }
        edu = {"edu_type": "m.direct_to_device", "content": content}
        for txn_id in ("1", "1", "2"):
            self.assertEqual(self.other.put(f"/v1/send/{txn_id}", self.transaction(edu)).json, {"pdus": {}})
        events = self.alice.sync()["to_device"]["events"]
        self.assertEqual(events, [{"type": "m.room_key", "sender": BOB, "content": {"key": "value"}}])

    def test_profiles(self) -> None:
        self.alice.ok(self.alice.put(f"/profile/{quote(self.alice.user_id)}/displayname", {"displayname": "Alice"}))
        path = f"/_matrix/federation/v1/query/profile?user_id={quote(self.alice.user_id)}"
        self.assertEqual(self.successResultOf(self.other.ask(path))["displayname"], "Alice")
        self.assertEqual(self.other.get("/v1/query/profile", user_id="@nobody:test").status, 404)

    def test_aliases_and_the_directory(self) -> None:
        room_id = self.alice.create_room(visibility="public", room_alias_name="here", name="A room")
        found = self.other.get("/v1/query/directory", room_alias="#here:test").json
        self.assertEqual(found, {"room_id": room_id, "servers": ["test"]})
        self.assertEqual(self.other.get("/v1/query/directory", room_alias="#there:test").status, 404)
        (listed,) = self.other.get("/v1/publicRooms").json["chunk"]
        self.assertEqual((listed["room_id"], listed["name"]), (room_id, "A room"))
        body = {"filter": {"generic_search_term": "nothing of the kind"}}
        self.assertEqual(self.other.post("/v1/publicRooms", body).json["chunk"], [])

    def test_keys_of_devices(self) -> None:
        device = self.alice.device_id
        keys = {
            "user_id": self.alice.user_id,
            "device_id": device,
            "algorithms": ["m.olm.v1.curve25519-aes-sha2"],
            "keys": {f"ed25519:{device}": "a", f"curve25519:{device}": "b"},
            "signatures": {self.alice.user_id: {f"ed25519:{device}": "c"}},
        }
        one_time = {"curve25519:AAAA": "key"}
        self.alice.ok(self.alice.post("/keys/upload", {"device_keys": keys, "one_time_keys": one_time}))
        listed = self.other.get(f"/v1/user/devices/{quote(self.alice.user_id)}").json
        self.assertEqual(
            [(one["device_id"], one["keys"]["keys"]) for one in listed["devices"]], [(device, keys["keys"])]
        )
        queried = self.other.post("/v1/user/keys/query", {"device_keys": {self.alice.user_id: []}}).json
        self.assertEqual(queried["device_keys"][self.alice.user_id][device]["keys"], keys["keys"])
        claim = {"one_time_keys": {self.alice.user_id: {device: "curve25519"}}}
        claimed = [self.other.post("/v1/user/keys/claim", claim).json["one_time_keys"] for _ in range(2)]
        self.assertEqual(claimed, [{self.alice.user_id: {device: {"curve25519:AAAA": "key"}}}, {}])

    def test_whom_a_token_stands_for(self) -> None:
        made = self.alice.post(f"/user/{quote(self.alice.user_id)}/openid/request_token").json
        path = "/_matrix/federation/v1/openid/userinfo?access_token="
        self.assertEqual(self.request("GET", path + made["access_token"]).json, {"sub": self.alice.user_id})
        answer = self.request("GET", path + "nobody's")
        self.assertEqual((answer.status, answer.errcode), (401, "M_UNKNOWN_TOKEN"))

    def test_metrics_of_what_came(self) -> None:
        self.test_a_message_to_a_device_arrives_once()
        counts = self.server.parts.inbound
        assert counts is not None
        self.assertEqual(dict(counts.edus), {("m.direct_to_device",): 2})

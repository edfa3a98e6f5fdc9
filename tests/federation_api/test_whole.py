"""A whole server asked by another one, over TLS and HTTP: what needs no room that both are in."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from dendrite_tw.matrix.events import Event

from .inbound_case import event_of
from .whole import WholeServerTestCase

BOB = "@bob:stranger.test"


class WholeCase(WholeServerTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.alice = self.register("alice")
        self.other = self.stranger()
        self.other.get("/v1/query/nothing")
        for _ in range(4):
            self.pump(0.3)

    def transaction(self, *edus: Any, pdus: Any = ()) -> dict[str, Any]:
        return {"origin": "stranger.test", "origin_server_ts": 1, "pdus": list(pdus), "edus": list(edus)}


class EventTests(WholeCase):
    """Bob of another server comes into a public room and speaks."""

    def setUp(self) -> None:
        super().setUp()
        self.room_id = self.alice.create_room(room_version="11", preset="public_chat")
        self.last = self.alice.say(self.room_id, "hello")
        state = self.alice.get(f"/rooms/{quote(self.room_id)}/state").json
        self.state = {event["type"]: event["event_id"] for event in state}
        self.depth = 100
        self.member = ""

    def event(self, type: str, content: dict[str, Any], auth: list[str], **fields: Any) -> Event:
        """The next event of bob's, after the last one."""
        self.depth += 1
        event = event_of(
            self.depth,
            room_id=self.room_id,
            sender=BOB,
            type=type,
            content=content,
            prev_events=[self.last],
            auth_events=[self.state[name] for name in auth] + ([self.member] if self.member else []),
            **fields,
        )
        self.last = event.event_id
        return event

    def send(self, txn_id: str, *events: Event, edus: Any = ()) -> None:
        body = self.transaction(*edus, pdus=[event.pdu_dict() for event in events])
        answer = self.other.put(f"/v1/send/{txn_id}", body)
        self.assertEqual(answer.json, {"pdus": {event.event_id: {} for event in events}})
        for _ in range(4):
            self.pump(0.3)

    def join(self) -> None:
        auth = ["m.room.create", "m.room.power_levels", "m.room.join_rules"]
        join = self.event("m.room.member", {"membership": "join"}, auth, state_key=BOB)
        self.send("join", join)
        self.member = join.event_id

    def say(self, text: str) -> Event:
        return self.event(
            "m.room.message", {"body": text, "msgtype": "m.text"}, ["m.room.create", "m.room.power_levels"]
        )

    def test_events_reach_our_users_in_order_and_once(self) -> None:
        since = self.alice.sync()["next_batch"]
        self.join()
        events = [self.say("one"), self.say("two"), self.say("three")]
        self.send("1", *events[:2])
        self.send("1", *events[:2])
        self.send("2", *events)
        timeline = self.alice.sync(since)["rooms"]["join"][self.room_id]["timeline"]["events"]
        shown = [event["content"].get("body") or event["content"]["membership"] for event in timeline]
        self.assertEqual(shown, ["join", "one", "two", "three"])
        assert self.server.parts.federating is not None
        self.assertEqual(self.server.parts.federating.inbound.inbox.waiting, 0)

    def test_typing_and_receipts_reach_our_users(self) -> None:
        self.join()
        said = self.say("one")
        read = {"event_ids": [said.event_id], "data": {"ts": 5}}
        edus = [
            {"edu_type": "m.typing", "content": {"room_id": self.room_id, "user_id": BOB, "typing": True}},
            {"edu_type": "m.receipt", "content": {self.room_id: {"m.read": {BOB: read}}}},
        ]
        since = self.alice.sync()["next_batch"]
        self.send("1", said, edus=edus)
        shown = self.alice.sync(since)["rooms"]["join"][self.room_id]["ephemeral"]["events"]
        by_type = {event["type"]: event["content"] for event in shown}
        self.assertEqual(by_type["m.typing"], {"user_ids": [BOB]})
        self.assertEqual(by_type["m.receipt"], {said.event_id: {"m.read": {BOB: {"ts": 5}}}})

    def test_a_server_that_the_room_keeps_out(self) -> None:
        self.join()
        acl = {"allow": ["*"], "deny": ["stranger.test"]}
        self.alice.ok(self.alice.put(f"/rooms/{quote(self.room_id)}/state/m.room.server_acl/", acl))
        event = self.say("let me in")
        answer = self.other.put("/v1/send/1", self.transaction(pdus=[event.pdu_dict()]))
        self.assertIn("error", answer.json["pdus"][event.event_id])
        timeline = self.alice.get(f"/rooms/{quote(self.room_id)}/messages?dir=b").json["chunk"]
        self.assertNotIn(event.event_id, [event["event_id"] for event in timeline])

    def test_a_crash_between_the_answer_and_the_room(self) -> None:
        self.join()
        event = self.say("still here")
        for one in self.federating():
            one.inbound.inbox.stop()
        self.assertEqual(self.other.put("/v1/send/1", self.transaction(pdus=[event.pdu_dict()])).status, 200)
        self.stop()
        self.server = self.start(1)
        for _ in range(4):
            self.pump(0.3)
        timeline = self.alice.get(f"/rooms/{quote(self.room_id)}/messages?dir=b").json["chunk"]
        self.assertEqual(timeline[0]["content"].get("body"), "still here")


class WholeTests(WholeCase):
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
        self.assertEqual(dict(self.counted("edus")), {"m.direct_to_device": 3})

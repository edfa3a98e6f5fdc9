"""Alice and her server, and Carol on another server: keys, messages between devices and profiles, over TLS."""

from __future__ import annotations

from typing import Any

import msgspec

from dendrite_tw.matrix.errors import not_found
from dendrite_tw.web.routes import Access, Route
from tests.federation_api.network import CONNECTION_REFUSED_SECONDS
from tests.federation_api.whole import WholeServerTestCase
from tests.harness import Answer
from tests.server import REMEMBERING
from tests.user_api.keys_support import Device, Identity

CAROL = "@carol:stranger.test"
SEND = "/v1/send/"


class ProfileQuery(msgspec.Struct, frozen=True):
    user_id: str
    field: str | None = None


class CarolsServer:
    """Serves what other servers may ask about Carol."""

    def __init__(self) -> None:
        self.laptop = Device(CAROL, "LAPTOP")
        self.identity = Identity(CAROL)
        self.asked: list[tuple[str, str]] = []

    def routes(self) -> list[Route]:
        base = "/_matrix/federation/v1"
        return [
            Route("POST", f"{base}/user/keys/query", self.query, Access.SERVER),
            Route("POST", f"{base}/user/keys/claim", self.claim, Access.SERVER),
            Route("GET", f"{base}/user/devices/{{user_id}}", self.devices, Access.SERVER),
            Route("GET", f"{base}/query/profile", self.profile, Access.SERVER),
        ]

    async def query(self, origin: str, body: dict[str, Any]) -> dict[str, Any]:
        self.asked.append((origin, "query"))
        return {
            "device_keys": {CAROL: {"LAPTOP": self.laptop.keys()}},
            "master_keys": {CAROL: self.identity.public("master")},
        }

    async def claim(self, origin: str, body: dict[str, Any]) -> dict[str, Any]:
        self.asked.append((origin, "claim"))
        return {"one_time_keys": {CAROL: {"LAPTOP": self.laptop.one_time("a")}}}

    async def devices(self, origin: str, user_id: str) -> dict[str, Any]:
        self.asked.append((origin, "devices"))
        entry = {"device_id": "LAPTOP", "keys": self.laptop.keys(), "device_display_name": "Carol's laptop"}
        return {"user_id": user_id, "stream_id": 7, "devices": [entry]}

    async def profile(self, origin: str, query: ProfileQuery) -> dict[str, Any]:
        self.asked.append((origin, "profile"))
        if query.user_id != CAROL:
            raise not_found("There is no such user.")
        return {"displayname": "Carol", "m.tz": "Europe/Paris"}


class KeysFromOutsideTests(WholeServerTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.there = CarolsServer()
        self.carols = self.stranger(routes=self.there.routes)
        self.alice = self.register("alice", admin=True)

    def write_config(self, folder: str) -> str:
        return super().write_config(folder).replace("global:\n", "global:\n  metrics: {enabled: true}\n")

    def request(self, *args: Any, **options: Any) -> Answer:
        """An answer for which other servers may be asked."""
        answer = super().request(*args, **options)
        for _ in range(8):
            if answer.done:
                break
            self.pump(CONNECTION_REFUSED_SECONDS)
        return answer

    def asked(self) -> list[str]:
        """What was asked of Carol's server since the last time; by ours alone."""
        asked, self.there.asked = self.there.asked, []
        self.assertLessEqual({origin for origin, _ in asked}, {"test"})
        return [what for _, what in asked]

    def test_keys_are_queried_and_claimed(self) -> None:
        found = self.alice.ok(self.alice.post("/keys/query", {"device_keys": {CAROL: []}}))
        self.assertEqual(found["device_keys"], {CAROL: {"LAPTOP": {**self.there.laptop.keys(), "unsigned": {}}}})
        self.assertEqual((found["master_keys"], found["failures"]), ({CAROL: self.there.identity.public("master")}, {}))
        claim = {"one_time_keys": {CAROL: {"LAPTOP": "signed_curve25519"}}}
        claimed = self.alice.ok(self.alice.post("/keys/claim", claim))
        self.assertEqual(claimed["one_time_keys"], {CAROL: {"LAPTOP": self.there.laptop.one_time("a")}})
        self.assertEqual(self.asked(), ["query", "claim"])

    def test_a_server_that_is_gone_is_a_failure(self) -> None:
        self.carols.server.go_offline()
        answer = self.alice.post("/keys/query", {"device_keys": {CAROL: [], self.alice.user_id: []}})
        self.pump(10)
        found = self.alice.ok(answer)
        self.assertEqual((set(found["failures"]), set(found["device_keys"])), ({"stranger.test"}, {"@alice:test"}))

    def test_profiles(self) -> None:
        path = f"/profile/{CAROL}"
        self.assertEqual(self.alice.ok(self.alice.get(path)), {"displayname": "Carol", "m.tz": "Europe/Paris"})
        self.assertEqual(self.alice.ok(self.alice.get(f"{path}/displayname")), {"displayname": "Carol"})
        self.assertEqual(self.alice.get(f"{path}/avatar_url").errcode, "M_NOT_FOUND")
        self.assertEqual(self.alice.get("/profile/@nobody:stranger.test").status, 404)
        asked = self.asked()
        self.assertEqual(set(asked), {"profile"})
        self.assertIn(len(asked), range(2, 2 * REMEMBERING + 1))
        self.assertEqual(self.alice.get("/profile/@x:nowhere.test").status, 502)

    def send(self, txn_id: str, edu_type: str, content: dict[str, Any]) -> None:
        edu = {"edu_type": edu_type, "content": content}
        body = {"origin": "stranger.test", "origin_server_ts": 1, "pdus": [], "edus": [edu]}
        self.assertEqual(self.carols.put(SEND + txn_id, body).status, 200)

    def test_a_message_to_her_devices_comes_once(self) -> None:
        tablet = self.login("alice")
        since = [client.sync()["next_batch"] for client in (self.alice, tablet)]
        content = {
            "sender": CAROL,
            "type": "m.secret",
            "message_id": "1",
            "messages": {"@alice:test": {"*": {"n": 1}}, "@nobody:test": {"*": {}}},
        }
        for txn_id in ("a", "b"):
            self.send(txn_id, "m.direct_to_device", content)
        self.send("c", "m.direct_to_device", {**content, "message_id": "2", "sender": "@dave:elsewhere.test"})
        for client, token in zip((self.alice, tablet), since, strict=True):
            events = client.sync(token)["to_device"]["events"]
            self.assertEqual(events, [{"sender": CAROL, "type": "m.secret", "content": {"n": 1}}])

    def test_changes_of_strangers_are_of_no_interest(self) -> None:
        since = self.alice.sync()["next_batch"]
        self.send("a", "m.device_list_update", {"user_id": CAROL, "device_id": "LAPTOP", "stream_id": 3})
        self.alice.ok(self.alice.post(f"/_dendrite/admin/refreshDevices/{CAROL}"))
        self.assertNotIn("device_lists", self.alice.sync(since))
        self.assertEqual(self.asked(), [])

    def test_metrics(self) -> None:
        text = self.figures()
        for name in ("device_list_update", "worker_backpressure", "worker_servers_retrying"):
            self.assertIn(f"\ndendrite_keyserver_{name} 0.0\n", text)

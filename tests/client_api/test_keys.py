"""Keys, messages between devices and backups as clients ask for them."""

from __future__ import annotations

from typing import Any

from dendrite_tw.client_api.keys import KeysRoutes
from dendrite_tw.client_api.room_keys import RoomKeysRoutes
from dendrite_tw.client_api.to_device import ToDeviceRoutes
from dendrite_tw.matrix.errors import MatrixError
from dendrite_tw.user_api.api import Caller
from dendrite_tw.web.resource import Exchange
from dendrite_tw.web.routes import client_paths
from tests.harness import CALLERS, Answer, serve
from tests.user_api.keys_support import ALICE, BOB, CAROL, Device, Identity, KeysCase

V3 = "/_matrix/client/v3"
BRIDGE = Caller(user_id=BOB, device_id=None, appservice_id="bridge")


class ClientCase(KeysCase):
    def setUp(self) -> None:
        super().setUp()
        self.phone = Device(ALICE, "ALICEDEV")
        routes = [
            *KeysRoutes(self.keys, self.require_uia).routes(),
            *ToDeviceRoutes(self.keys).routes(),
            *RoomKeysRoutes(self.keys).routes(),
        ]
        self.web = serve(client_paths(routes), self.memory.clock, {**CALLERS, "bridge": BRIDGE})

    async def require_uia(self, caller: Caller, request: Exchange, body: dict[str, Any]) -> None:
        if body.get("auth") != {"type": "m.login.dummy"}:
            raise MatrixError(401, "M_FORBIDDEN", "Prove who you are.", flows=[])

    def check(self, answer: Answer, status: int, errcode: str | None = None) -> Any:
        self.assertEqual(answer.status, status, answer)
        if errcode is not None:
            self.assertEqual(answer.errcode, errcode, answer)
        return answer.json

    def post(self, path: str, body: Any, token: str | None = "alice") -> Answer:
        return self.web.post(V3 + path, body, token)

    def put(self, path: str, body: Any, token: str | None = "alice") -> Answer:
        return self.web.put(V3 + path, body, token)


class KeysTests(ClientCase):
    def test_an_empty_object_stands_for_all_devices(self) -> None:
        self.check(self.post("/keys/upload", {"device_keys": self.phone.keys()}), 200)
        found = self.check(self.post("/keys/query", {"device_keys": {ALICE: {}}}), 200)
        self.assertEqual(set(found["device_keys"][ALICE]), {"ALICEDEV"})
        for wrong in ({"ALICEDEV": 1}, "ALICEDEV", [1], None):
            self.check(self.post("/keys/query", {"device_keys": {ALICE: wrong}}), 400)

    def test_other_servers_have_ten_seconds_where_the_client_does_not_say(self) -> None:
        for timeout in ({}, {"timeout": 0}, {"timeout": 5}):
            found = self.check(self.post("/keys/query", {"device_keys": {CAROL: []}, **timeout}), 200)
            self.assertEqual(found["failures"], {"elsewhere": {"status": 503, "message": "it is far away"}})
            claim = {"one_time_keys": {CAROL: {"D": "signed_curve25519"}}, **timeout}
            self.assertEqual(set(self.check(self.post("/keys/claim", claim), 200)["failures"]), {"elsewhere"})
        timeouts = [request.timeout_ms for request in self.federation.asked]
        self.assertEqual(timeouts, [10_000] * 4 + [5] * 2)

    def test_an_administrator_has_devices_fetched_anew(self) -> None:
        path = "/_dendrite/admin/refreshDevices/"
        self.rooms.put("!room:test", ALICE)
        self.rooms.put("!room:test", CAROL)
        self.check(self.web.post(path + CAROL, {}, "alice"), 403, "M_FORBIDDEN")
        self.check(self.web.post(path + ALICE, {}, "admin"), 400, "M_INVALID_PARAM")
        self.assertEqual(self.federation.asked, [])
        self.assertEqual(self.check(self.web.post(path + CAROL, {}, "admin"), 200), {})
        self.assertEqual(self.federation.paths(), ["%40carol%3Aelsewhere"])

    def test_upload_query_and_claim(self) -> None:
        keys, one_time = self.phone.keys(), self.phone.one_time("a")
        body = {
            "device_keys": keys,
            "one_time_keys": one_time,
            "fallback_keys": self.phone.one_time("f", fallback=True),
        }
        counts = self.check(self.post("/keys/upload", body), 200)
        self.assertEqual(counts, {"one_time_key_counts": {"signed_curve25519": 1}})
        self.assertEqual(self.check(self.post("/keys/upload", {}), 200), counts)
        found = self.check(self.post("/keys/query", {"device_keys": {ALICE: [], BOB: []}, "timeout": 1}, "bob"), 200)
        shown = {**keys, "unsigned": {"device_display_name": "Alice's phone"}}
        nothing: dict[str, Any] = {"failures": {}, "master_keys": {}, "self_signing_keys": {}, "user_signing_keys": {}}
        self.assertEqual(found, {"device_keys": {ALICE: {"ALICEDEV": shown}, BOB: {}}, **nothing})
        claim = {"one_time_keys": {ALICE: {"ALICEDEV": "signed_curve25519"}}}
        self.assertEqual(
            self.check(self.post("/keys/claim", claim, "bob"), 200),
            {"one_time_keys": {ALICE: {"ALICEDEV": one_time}}, "failures": {}},
        )
        fallback = self.check(self.post("/keys/claim", claim, "guest"), 200)["one_time_keys"][ALICE]["ALICEDEV"]
        self.assertEqual(fallback, body["fallback_keys"])

    def test_null_counts_as_absent(self) -> None:
        body = {"device_keys": None, "one_time_keys": None, "fallback_keys": None}
        self.check(self.post("/keys/upload", body), 200)

    def test_servers_that_cannot_be_asked_are_failures(self) -> None:
        found = self.check(self.post("/keys/query", {"device_keys": {CAROL: []}}), 200)
        self.assertEqual((set(found["failures"]), found["device_keys"]), ({"elsewhere"}, {}))

    def test_uploads_of_another_shape_are_refused(self) -> None:
        for body, errcode in [
            (b"[]", "M_BAD_JSON"),
            (b"{", "M_NOT_JSON"),
            ({"device_keys": []}, "M_BAD_JSON"),
            ({"device_keys": {"user_id": ALICE, "device_id": "ALICEDEV"}}, "M_BAD_JSON"),
            ({"one_time_keys": [1]}, "M_BAD_JSON"),
            ({"one_time_keys": {"a:b": 1}}, "M_BAD_JSON"),
            ({"fallback_keys": "x"}, "M_BAD_JSON"),
            ({"one_time_keys": {"a:b": {"key": "x", "signatures": {}, "n": 10**30, "deep": [[[]]]}}}, None),
        ]:
            self.check(self.post("/keys/upload", body), 400 if errcode else 200, errcode)
        self.check(self.post("/keys/upload", {}, "bridge"), 400, "M_INVALID_PARAM")
        self.check(self.post("/keys/upload", {}, None), 401, "M_MISSING_TOKEN")

    def test_queries_and_claims_of_another_shape_are_refused(self) -> None:
        for path, name in (("/keys/query", "device_keys"), ("/keys/claim", "one_time_keys")):
            self.check(self.post(path, {}), 400, "M_MISSING_PARAM")
            self.check(self.post(path, {name: {"bob": {}}}), 400)
            values: list[Any] = [[], {BOB: {"D": True}}, {BOB: 1}, {BOB: [1]}, 7]
            for value in values:
                self.check(self.post(path, {name: value}), 400, "M_BAD_JSON")
            for timeout in ("x", -1, 1.5, 10**30):
                self.check(self.post(path, {name: {}, "timeout": timeout}), 400, "M_BAD_JSON")
            self.check(self.post(path, {name: {}, "timeout": None}), 200)

    def test_cross_signing_keys_are_replaced_after_authentication(self) -> None:
        path, first, second = "/keys/device_signing/upload", Identity(ALICE).body(), Identity(ALICE, "new").body()
        self.assertEqual(self.check(self.post(path, first), 200), {})
        self.check(self.post(path, first), 200)
        self.check(self.post(path, second), 401, "M_FORBIDDEN")
        self.check(self.post(path, {**second, "auth": {"type": "m.login.dummy"}}), 200)
        found = self.check(self.post("/keys/query", {"device_keys": {ALICE: []}}), 200)
        for name in ("master", "self_signing", "user_signing"):
            self.assertEqual(found[f"{name}_keys"], {ALICE: second[f"{name}_key"]})

    def test_application_services_replace_keys_without(self) -> None:
        for seed in ("", "new"):
            self.check(self.post("/keys/device_signing/upload", Identity(BOB, seed).body(), "bridge"), 200)

    def test_cross_signing_uploads_of_another_shape_are_refused(self) -> None:
        path = "/keys/device_signing/upload"
        self.check(self.post(path, {}), 400, "M_MISSING_PARAM")
        self.check(self.post(path, {"master_key": 7}), 400, "M_BAD_JSON")
        self.check(self.post(path, {"master_key": {}}), 400, "M_INVALID_PARAM")
        unsigned = {**Identity(ALICE).body()["self_signing_key"], "signatures": {}}
        body = {**Identity(ALICE).body(), "self_signing_key": unsigned}
        self.check(self.post(path, body), 400, "M_INVALID_SIGNATURE")

    def test_signatures(self) -> None:
        alice = Identity(ALICE)
        self.check(self.post("/keys/device_signing/upload", alice.body()), 200)
        self.check(self.post("/keys/upload", {"device_keys": self.phone.keys()}), 200)
        signed = alice.self_signing.sign(self.phone.keys(), ALICE)
        body = {ALICE: {"ALICEDEV": signed, "NONE": signed}}
        answer = self.check(self.post("/keys/signatures/upload", body), 200)
        self.assertEqual(answer["failures"][ALICE].keys(), {"NONE"})
        self.assertEqual(answer["failures"][ALICE]["NONE"]["errcode"], "M_NOT_FOUND")
        found = self.check(self.post("/keys/query", {"device_keys": {ALICE: ["ALICEDEV"]}}, "bob"), 200)
        self.assertEqual(found["device_keys"][ALICE]["ALICEDEV"]["signatures"], signed["signatures"])
        self.check(self.post("/keys/signatures/upload", {ALICE: []}), 400, "M_BAD_JSON")
        self.check(self.post("/keys/signatures/upload", {ALICE: {"D": []}}), 400, "M_BAD_JSON")
        self.check(self.post("/keys/signatures/upload", {"alice": {}}), 400, "M_INVALID_PARAM")


class ToDeviceTests(ClientCase):
    def test_messages_are_sent_once(self) -> None:
        body = {"messages": {ALICE: {"*": {"n": 1}}, CAROL: {"D": {}}}}
        for _ in range(2):
            self.assertEqual(self.check(self.put("/sendToDevice/m.test/txn%2F1", body, "bob"), 200), {})
        self.assertEqual(len(self.told), 3)
        self.check(self.put("/sendToDevice/m.test/2", {"messages": {}}, "guest"), 200)
        self.check(self.put("/sendToDevice/m.test/3", body, "bridge"), 200)
        self.assertEqual(len(self.told), 6)

    def test_requests_of_another_shape_are_refused(self) -> None:
        path = "/sendToDevice/m.test/1"
        self.check(self.put(path, {}), 400, "M_MISSING_PARAM")
        shapes: list[Any] = [[], {ALICE: []}, {ALICE: {"D": []}}, {ALICE: {"D": "x"}}]
        for messages in shapes:
            self.check(self.put(path, {"messages": messages}), 400, "M_BAD_JSON")
        self.check(self.put(path, {"messages": {"alice": {"D": {}}}}), 400, "M_INVALID_PARAM")
        self.check(self.put("/sendToDevice/m.test/" + "x" * 300, {"messages": {}}), 400, "M_INVALID_PARAM")
        self.check(self.put("/sendToDevice/m.%00/1", {"messages": {}}), 400, "M_INVALID_PARAM")
        self.assertEqual(self.told, [])


class RoomKeysTests(ClientCase):
    KEY = {  # noqa: RUF012
        "first_message_index": 1,
        "forwarded_count": 0,
        "is_verified": True,
        "session_data": {"ephemeral": "a", "ciphertext": "b", "mac": "c"},
    }

    def setUp(self) -> None:
        super().setUp()
        self.backup = {"algorithm": "m.megolm_backup.v1.curve25519-aes-sha2", "auth_data": {"public_key": "abc"}}
        self.version = self.check(self.post("/room_keys/version", self.backup), 200)["version"]
        self.of_version = f"?version={self.version}"

    def get_json(self, path: str) -> Any:
        return self.check(self.web.get(V3 + path, "alice"), 200)

    def test_versions(self) -> None:
        info = {**self.backup, "count": 0, "etag": "0", "version": self.version}
        path = f"/room_keys/version/{self.version}"
        self.assertEqual([self.get_json("/room_keys/version"), self.get_json(path)], [info, info])
        changed = {**self.backup, "auth_data": {"public_key": "def"}, "version": self.version}
        self.assertEqual(self.check(self.put(path, changed), 200), {})
        self.assertEqual(self.get_json(path)["auth_data"], {"public_key": "def"})
        self.check(self.put(path, {**changed, "version": "other"}), 400, "M_INVALID_PARAM")
        self.check(self.put(path, {**changed, "algorithm": "other"}), 400, "M_INVALID_PARAM")
        self.check(self.put("/room_keys/version/99", self.backup), 404, "M_NOT_FOUND")
        for _ in range(2):
            self.assertEqual(self.check(self.web.delete(V3 + path, None, "alice"), 200), {})
        self.check(self.web.get(f"{V3}/room_keys/version", "alice"), 404, "M_NOT_FOUND")
        self.check(self.web.get(V3 + path, "alice"), 404, "M_NOT_FOUND")
        self.check(self.web.delete(f"{V3}/room_keys/version/99", None, "alice"), 404, "M_NOT_FOUND")

    def test_backups_of_another_shape_are_refused(self) -> None:
        for body, errcode in [
            ({}, "M_MISSING_PARAM"),
            ({"algorithm": "a"}, "M_MISSING_PARAM"),
            ({"algorithm": 1, "auth_data": {}}, "M_BAD_JSON"),
            ({"algorithm": "a", "auth_data": ["x"]}, "M_BAD_JSON"),
            ({"algorithm": "a", "auth_data": 5}, "M_BAD_JSON"),
        ]:
            self.check(self.post("/room_keys/version", body), 400, errcode)

    def test_an_algorithm_may_keep_text(self) -> None:
        version = self.check(self.post("/room_keys/version", {"algorithm": "a", "auth_data": "x"}), 200)["version"]
        self.assertEqual(self.get_json("/room_keys/version")["auth_data"], "x")
        one = f"/room_keys/keys/%21room%3Atest/s?version={version}"
        self.check(self.put(one, {**self.KEY, "session_data": "y"}), 200)
        self.assertEqual(self.get_json(one)["session_data"], "y")
        self.check(self.put(one, {**self.KEY, "session_data": 5}), 400, "M_BAD_JSON")

    def test_keys_at_all_three_levels(self) -> None:
        room = {"sessions": {"s/1": self.KEY}}
        every = f"/room_keys/keys{self.of_version}"
        one = f"/room_keys/keys/%21room%3Atest/s%2F1{self.of_version}"
        whole = f"/room_keys/keys/%21room%3Atest{self.of_version}"
        self.assertEqual(self.get_json(every), {"rooms": {}})
        self.assertEqual(self.get_json(whole), {"sessions": {}})
        self.check(self.web.get(V3 + one, "alice"), 404, "M_NOT_FOUND")
        self.assertEqual(self.check(self.put(one, self.KEY), 200), {"count": 1, "etag": "1"})
        self.assertEqual(self.check(self.put(whole, room), 200), {"count": 1, "etag": "1"})
        self.assertEqual(self.check(self.put(every, {"rooms": {"!room:test": room, "!b:test": room}}), 200)["count"], 2)
        self.assertEqual(self.get_json(one), self.KEY)
        self.assertEqual(self.get_json(whole), room)
        self.assertEqual(self.get_json(every), {"rooms": {"!room:test": room, "!b:test": room}})
        self.assertEqual(self.get_json("/room_keys/version")["count"], 2)
        for path, count in ((one, 1), (whole, 1), (every, 0)):
            self.assertEqual(self.check(self.web.delete(V3 + path, None, "alice"), 200)["count"], count)

    def test_the_version_must_be_the_newest_and_must_be_named(self) -> None:
        path = f"/room_keys/keys/!r:test/s{self.of_version}"
        newer = self.check(self.post("/room_keys/version", self.backup), 200)["version"]
        refused = self.check(self.put(path, self.KEY), 403, "M_WRONG_ROOM_KEYS_VERSION")
        self.assertEqual(refused["current_version"], newer)
        self.check(self.put("/room_keys/keys/!r:test/s?version=x", self.KEY), 404, "M_NOT_FOUND")
        for suffix in ("", "/!r:test", "/!r:test/s"):
            for method in ("GET", "PUT", "DELETE"):
                answer = self.web.request(method, f"{V3}/room_keys/keys{suffix}", {}, "alice")
                self.check(answer, 400, "M_MISSING_PARAM")

    def test_keys_of_another_shape_are_refused(self) -> None:
        one = f"/room_keys/keys/!r:test/s{self.of_version}"
        for name in self.KEY:
            lacking = {part: value for part, value in self.KEY.items() if part != name}
            self.check(self.put(one, lacking), 400, "M_MISSING_PARAM")
        wrong: list[dict[str, Any]] = [
            {"first_message_index": -1},
            {"first_message_index": 2**60},
            {"forwarded_count": 10**40},
            {"forwarded_count": 0.5},
            {"is_verified": 1},
            {"session_data": 5},
        ]
        for changes in wrong:
            self.check(self.put(one, {**self.KEY, **changes}), 400, "M_BAD_JSON")
        self.check(self.put(f"/room_keys/keys{self.of_version}", {"rooms": {"!r:test": {}}}), 400, "M_MISSING_PARAM")
        self.check(self.put(f"/room_keys/keys{self.of_version}", {"rooms": []}), 400, "M_BAD_JSON")
        self.check(self.put(f"/room_keys/keys/%00/s{self.of_version}", self.KEY), 400, "M_INVALID_PARAM")

    def test_a_body_may_be_large(self) -> None:
        session = {**self.KEY, "session_data": {"ciphertext": "x" * 1000}}
        rooms = {"rooms": {"!r:test": {"sessions": {str(number): session for number in range(2500)}}}}
        answer = self.check(self.put(f"/room_keys/keys{self.of_version}", rooms), 200)
        self.assertEqual(answer["count"], 2500)

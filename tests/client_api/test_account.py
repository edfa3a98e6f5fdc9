"""Accounts, devices, profiles and data, as clients ask for them."""

from __future__ import annotations

import base64
import hashlib
import hmac
from typing import Any

from dendrite_tw.client_api.settings import Turn
from dendrite_tw.sync_api.api import Typing
from tests.client_api.support import PASSWORD, V1, V3, ClientCase
from tests.user_api.fakes import room_event

ROOM = "!room:test"


class Passwords(ClientCase):
    def test_a_password_is_changed_with_the_old_one(self) -> None:
        (token,) = self.tokens("alice")
        other = self.make_other()
        path = f"{V3}/account/password"
        self.check(self.with_password(path, token, {"new_password": "short"}, "alice"), 400, "M_WEAK_PASSWORD")
        body = {"new_password": "another horse"}
        self.check(self.with_password(path, token, body, "alice", password="no"), 401, "M_FORBIDDEN")
        self.check(self.with_password(path, token, body, "alice"), 200)
        self.check(self.web.get(f"{V3}/account/whoami", token), 200)
        self.check(self.web.get(f"{V3}/account/whoami", other), 401)
        self.assertTrue(self.wait(self.api.check_password("@alice:test", "another horse")))

    def make_other(self) -> str:
        body = {"type": "m.login.password", "user": "alice", "password": PASSWORD}
        return str(self.web.post(f"{V3}/login", body).json["access_token"])

    def test_other_devices_may_stay(self) -> None:
        (token,) = self.tokens("alice")
        other = self.make_other()
        body = {"new_password": "another horse", "logout_devices": False}
        self.check(self.with_password(f"{V3}/account/password", token, body, "alice"), 200)
        self.check(self.web.get(f"{V3}/account/whoami", other), 200)

    def test_without_a_token(self) -> None:
        self.tokens("alice")
        path = f"{V3}/account/password"
        self.check(self.with_password(path, None, {"new_password": "another horse"}, "alice"), 200)
        self.assertTrue(self.wait(self.api.check_password("@alice:test", "another horse")))

    def test_with_anothers_password(self) -> None:
        alice, _ = self.tokens("alice", "bob")
        body = {"new_password": "another horse"}
        self.check(self.with_password(f"{V3}/account/password", alice, body, "bob"), 403, "M_FORBIDDEN")

    def test_a_session_is_for_one_user_and_operation(self) -> None:
        alice, bob = self.tokens("alice", "bob")
        path = f"{V3}/account/password"
        session = self.check(self.web.post(path, {"new_password": "another horse"}, alice), 401)["session"]
        auth = {"type": "m.login.password", "session": session, "user": "bob", "password": PASSWORD}
        self.check(self.web.post(path, {"new_password": "another horse", "auth": auth}, bob), 403, "M_FORBIDDEN")
        auth["user"] = "alice"
        self.check(self.web.post(f"{V3}/account/deactivate", {"auth": auth}, alice), 403, "M_FORBIDDEN")
        self.check(self.web.post(path, {"new_password": "another horse", "auth": auth}, alice), 200)
        self.check(self.web.post(path, {"new_password": "third horse", "auth": {"session": session}}, alice), 401)


class Closing(ClientCase):
    def test_deactivation(self) -> None:
        (token,) = self.tokens("alice")
        answer = self.check(self.with_password(f"{V3}/account/deactivate", token, {"erase": True}, "alice"), 200)
        self.assertEqual({"id_server_unbind_result": "success"}, answer)
        self.check(self.web.get(f"{V3}/account/whoami", token), 401, "M_UNKNOWN_TOKEN")
        login = {"type": "m.login.password", "user": "alice", "password": PASSWORD}
        self.check(self.web.post(f"{V3}/login", login), 403, "M_FORBIDDEN")
        self.check(self.web.get(f"{V3}/profile/@alice:test"), 404, "M_NOT_FOUND")


class Threepids(ClientCase):
    def test_there_are_none(self) -> None:
        (token,) = self.tokens("alice")
        self.assertEqual({"threepids": []}, self.check(self.web.get(f"{V3}/account/3pid", token), 200))
        self.check(self.web.post(f"{V3}/account/3pid/add", {}, token), 403, "M_THREEPID_AUTH_FAILED")
        gone = {"medium": "email", "address": "a@b.c"}
        answer = self.check(self.web.post(f"{V3}/account/3pid/delete", gone, token), 200)
        self.assertEqual({"id_server_unbind_result": "no-support"}, answer)
        self.check(self.web.post(f"{V3}/account/3pid/delete", {}, token), 400, "M_MISSING_PARAM")
        for path in ("register/email", "account/password/msisdn", "account/3pid/email"):
            self.check(self.web.post(f"{V3}/{path}/requestToken", {}), 403, "M_THREEPID_DENIED")


class Devices(ClientCase):
    def test_listing_and_naming(self) -> None:
        alice, bob = self.tokens("alice", "bob")
        self.check(self.web.put(f"{V3}/devices/PHONE", {"display_name": "Mine"}, alice), 200)
        devices = self.check(self.web.get(f"{V3}/devices", alice), 200)["devices"]
        self.assertEqual([{"device_id": "PHONE", "user_id": "@alice:test", "display_name": "Mine"}], devices)
        self.check(self.web.get(f"{V3}/devices/NONE", alice), 404, "M_NOT_FOUND")
        self.check(self.web.put(f"{V3}/devices/NONE", {"display_name": "x"}, alice), 404, "M_NOT_FOUND")
        self.check(self.web.put(f"{V3}/devices/PHONE", {"display_name": "x" * 600}, alice), 400)
        self.assertNotIn("display_name", self.check(self.web.get(f"{V3}/devices/PHONE", bob), 200))

    def test_deleting_takes_the_password(self) -> None:
        alice, bob = self.tokens("alice", "bob")
        login = {"type": "m.login.password", "user": "alice", "password": PASSWORD, "device_id": "LAPTOP"}
        laptop = self.web.post(f"{V3}/login", login).json["access_token"]
        self.check(self.with_password(f"{V3}/devices/LAPTOP", alice, {}, "alice", "DELETE"), 200)
        self.check(self.web.get(f"{V3}/account/whoami", laptop), 401, "M_UNKNOWN_TOKEN")
        wanted = {"devices": ["PHONE", "GONE"]}
        self.check(self.with_password(f"{V3}/delete_devices", alice, wanted, "alice"), 200)
        self.check(self.web.get(f"{V3}/account/whoami", alice), 401, "M_UNKNOWN_TOKEN")
        self.check(self.web.get(f"{V3}/account/whoami", bob), 200)
        self.check(self.web.post(f"{V3}/delete_devices", {"devices": ["x"] * 1001}, bob), 400, "M_INVALID_PARAM")
        self.check(self.web.post(f"{V3}/delete_devices", {}, bob), 400, "M_MISSING_PARAM")

    def test_what_a_session_was_begun_for_is_what_it_deletes(self) -> None:
        (alice,) = self.tokens("alice")
        session = self.check(self.web.request("DELETE", f"{V3}/devices/OLD", {}, alice), 401)["session"]
        auth = {"type": "m.login.password", "session": session, "user": "alice", "password": PASSWORD}
        other = self.web.request("DELETE", f"{V3}/devices/PHONE", {"auth": auth}, alice)
        self.check(other, 403, "M_FORBIDDEN")
        self.check(self.web.get(f"{V3}/devices/PHONE", alice), 200)
        self.check(self.web.request("DELETE", f"{V3}/devices/OLD", {"auth": auth}, alice), 200)

    def test_another_users_password_is_no_attempt(self) -> None:
        alice, _ = self.tokens("alice", "bob")
        answer = self.with_password(f"{V3}/devices/PHONE", alice, {}, "bob", "DELETE")
        self.assertNotIn("flows", self.check(answer, 403, "M_FORBIDDEN"))
        wrong = self.with_password(f"{V3}/devices/PHONE", alice, {}, "alice", "DELETE", "wrong")
        self.assertEqual([], self.check(wrong, 401, "M_FORBIDDEN")["completed"])


class Profiles(ClientCase):
    def test_fields(self) -> None:
        alice, bob = self.tokens("alice", "bob")
        mine = f"{V3}/profile/@alice:test"
        self.check(self.web.put(f"{mine}/displayname", {"displayname": "Alice"}, alice), 200)
        self.check(self.web.put(f"{mine}/org.example.n", {"org.example.n": [1]}, alice), 200)
        self.assertEqual({"displayname": "Alice", "org.example.n": [1]}, self.check(self.web.get(mine), 200))
        self.assertEqual({"displayname": "Alice"}, self.check(self.web.get(f"{mine}/displayname"), 200))
        self.check(self.web.delete(f"{mine}/displayname", None, alice), 200)
        self.check(self.web.get(f"{mine}/displayname"), 404, "M_NOT_FOUND")
        self.check(self.web.delete(f"{mine}/displayname", None, alice), 200)
        self.check(self.web.put(f"{mine}/displayname", {"displayname": "Bob"}, bob), 403, "M_FORBIDDEN")
        self.check(self.web.put(f"{mine}/displayname", {}, alice), 400, "M_MISSING_PARAM")
        self.check(self.web.put(f"{mine}/displayname", {"displayname": 5}, alice), 400, "M_INVALID_PARAM")
        self.check(self.web.put(f"{mine}/displayname", b"nonsense", alice), 400, "M_NOT_JSON")
        self.check(self.web.put(f"{mine}/m.tz", {"m.tz": "UTC", "other": 1}, alice), 400, "M_BAD_JSON")
        key = "x" * 256
        self.check(self.web.put(f"{mine}/{key}", {key: 1}, alice), 400, "M_KEY_TOO_LARGE")
        large = {"org.example": "x" * 65_536}
        self.check(self.web.put(f"{mine}/org.example", large, alice), 400, "M_PROFILE_TOO_LARGE")

    def test_an_administrator_may_change_others(self) -> None:
        self.tokens("alice")
        name = {"displayname": "Alice"}
        self.check(self.web.put(f"{V3}/profile/@alice:test/displayname", name, self.admin()), 200)

    def test_a_suspended_user_may_not(self) -> None:
        (alice,) = self.tokens("alice")
        self.wait(self.api.set_suspended("@alice:test", True))
        name = {"displayname": "Alice"}
        self.check(self.web.put(f"{V3}/profile/@alice:test/displayname", name, alice), 403, "M_USER_SUSPENDED")

    def test_those_of_other_servers_and_of_nobody(self) -> None:
        self.assertEqual({"displayname": "Eve"}, self.check(self.web.get(f"{V3}/profile/@eve:far"), 200))
        self.check(self.web.get(f"{V3}/profile/@eve:far/avatar_url"), 404, "M_NOT_FOUND")
        self.check(self.web.get(f"{V3}/profile/@nobody:far"), 404, "M_NOT_FOUND")
        self.check(self.web.get(f"{V3}/profile/@nobody:test"), 404, "M_NOT_FOUND")
        self.check(self.web.get(f"{V3}/profile/nonsense"), 400, "M_INVALID_PARAM")


class Data(ClientCase):
    def setUp(self) -> None:
        super().setUp()
        self.alice, self.bob = self.tokens("alice", "bob")
        self.mine = f"{V3}/user/@alice:test"

    def test_account_data(self) -> None:
        for path in (f"{self.mine}/account_data/org.example", f"{self.mine}/rooms/{ROOM}/account_data/org.example"):
            self.check(self.web.get(path, self.alice), 404, "M_NOT_FOUND")
            self.check(self.web.put(path, {"a": {"b": 1}}, self.alice), 200)
            self.assertEqual({"a": {"b": 1}}, self.check(self.web.get(path, self.alice), 200))
            self.check(self.web.get(path, self.bob), 403, "M_FORBIDDEN")
            self.check(self.web.put(path, {}, self.bob), 403, "M_FORBIDDEN")
            self.check(self.web.put(path, [], self.alice), 400, "M_BAD_JSON")
            self.check(self.web.put(path, b"nonsense", self.alice), 400, "M_NOT_JSON")
            self.check(self.web.put(path, b"", self.alice), 400, "M_BAD_JSON")
            self.check(self.web.put(path, b'{"a":' + b"[" * 500 + b"]" * 500 + b"}", self.alice), 400)

    def test_what_the_server_manages(self) -> None:
        for type in ("m.push_rules", "m.fully_read"):
            self.check(self.web.put(f"{self.mine}/account_data/{type}", {}, self.alice), 405, "M_BAD_JSON")
        rules = self.check(self.web.get(f"{self.mine}/account_data/m.push_rules", self.alice), 200)
        self.assertIn("override", rules["global"])
        room = f"{self.mine}/rooms/nonsense/account_data/a"
        self.check(self.web.put(room, {}, self.alice), 400, "M_INVALID_PARAM")

    def test_tags(self) -> None:
        tags = f"{self.mine}/rooms/{ROOM}/tags"
        self.assertEqual({"tags": {}}, self.check(self.web.get(tags, self.alice), 200))
        self.check(self.web.put(f"{tags}/m.favourite", {"order": 0.25}, self.alice), 200)
        self.check(self.web.put(f"{tags}/u.work", {}, self.alice), 200)
        self.assertEqual({"m.favourite": {"order": 0.25}, "u.work": {}}, self.web.get(tags, self.alice).json["tags"])
        self.check(self.web.delete(f"{tags}/u.work", None, self.alice), 200)
        self.assertEqual({"m.favourite": {"order": 0.25}}, self.web.get(tags, self.alice).json["tags"])
        self.check(self.web.put(f"{tags}/u.work", {"order": "first"}, self.alice), 400, "M_BAD_JSON")
        self.check(self.web.get(tags, self.bob), 403, "M_FORBIDDEN")
        self.check(self.web.put(f"{self.mine}/rooms/{ROOM}/account_data/m.tag", {"tags": 5}, self.alice), 200)
        self.assertEqual({"tags": {}}, self.check(self.web.get(tags, self.alice), 200))
        self.check(self.web.put(f"{tags}/u.work", {}, self.alice), 200)


class PushRules(ClientCase):
    def test_the_whole_life_of_a_rule(self) -> None:
        (token,) = self.tokens("alice")
        rule = f"{V3}/pushrules/global/content/tea"
        self.check(self.web.get(rule, token), 404, "M_NOT_FOUND")
        self.check(self.web.put(rule, {"actions": ["notify"], "pattern": "tea"}, token), 200)
        self.assertEqual(["notify"], self.check(self.web.get(f"{rule}/actions", token), 200)["actions"])
        self.check(self.web.put(f"{rule}/enabled", {"enabled": False}, token), 200)
        self.assertEqual({"enabled": False}, self.check(self.web.get(f"{rule}/enabled", token), 200))
        self.check(self.web.put(f"{rule}/actions", {"actions": []}, token), 200)
        shown = self.check(self.web.get(f"{V3}/pushrules/", token), 200)["global"]
        self.assertEqual(shown, self.check(self.web.get(f"{V3}/pushrules/global/", token), 200))
        self.assertEqual(["tea"], [one["rule_id"] for one in shown["content"]])
        self.check(self.web.put(f"{rule}?before=coffee", {"actions": [], "pattern": "tea"}, token), 400, "M_UNKNOWN")
        loud = {"actions": ["notify", {"set_tweak": "org.example.volume", "value": 10**40}]}
        self.check(self.web.put(f"{rule}/actions", loud, token), 200)
        self.check(self.web.delete(rule, None, token), 200)
        self.check(self.web.delete(rule, None, token), 404, "M_NOT_FOUND")

    def test_rules_of_one_kind(self) -> None:
        (token,) = self.tokens("alice")
        every = self.check(self.web.get(f"{V3}/pushrules/global/", token), 200)
        for kind, rules in every.items():
            self.assertEqual(rules, self.check(self.web.get(f"{V3}/pushrules/global/{kind}/", token), 200))
        self.check(self.web.get(f"{V3}/pushrules/global/duke/", token), 400, "M_INVALID_PARAM")

    def test_paths_that_name_no_rule(self) -> None:
        (token,) = self.tokens("alice")
        whole = "global/override/.m.rule.master"
        for method, path in [
            ("PUT", ""),
            ("PUT", "global"),
            ("GET", "global"),
            ("PUT", "global/room"),
            ("GET", "global/room"),
            ("PUT", "global/room/"),
            ("GET", "device/"),
            ("GET", "device/room/x"),
            ("PUT", "device/room/x"),
            ("DELETE", "device/room/x"),
            ("GET", f"{whole}/colour"),
            ("PUT", f"{whole}/colour"),
        ]:
            body = None if method == "GET" else {}
            self.check(self.web.request(method, f"{V3}/pushrules/{path}", body, token), 400, "M_INVALID_PARAM")
        self.check(self.web.get(f"{V3}/pushrules/{whole}", token), 200)

    def test_what_is_no_rule(self) -> None:
        (token,) = self.tokens("alice")
        one = f"{V3}/pushrules/global"
        for path, body in [
            ("content/tea", {"actions": ["notify"]}),
            ("content/tea", {"pattern": "tea"}),
            ("content/.tea", {"actions": [], "pattern": "tea"}),
            ("sideways/tea", {"actions": []}),
            ("override/tea", {"actions": [], "conditions": 5}),
            ("underride/.m.rule.message/enabled", {"enabled": "yes"}),
            ("underride/.m.rule.message/enabled", {}),
            ("underride/.m.rule.message/actions", {"actions": "notify"}),
            ("underride/.m.rule.message/actions", {}),
        ]:
            self.check(self.web.put(f"{one}/{path}", body, token), 400)
        self.check(self.web.put(f"{one}/room/!none:test/enabled", {"enabled": True}, token), 404, "M_NOT_FOUND")


class Reading(ClientCase):
    def setUp(self) -> None:
        super().setUp()
        (self.alice,) = self.tokens("alice")
        self.users.rooms.put(ROOM, "@alice:test")
        self.event = room_event(ROOM, 5, "@bob:test")
        self.users.rooms.stored[self.event.event_id] = self.event
        self.room = f"{V3}/rooms/{ROOM}"

    def test_receipts(self) -> None:
        path = f"{self.room}/receipt/m.read/{self.event.event_id}"
        self.check(self.web.request("POST", path, b"", self.alice), 200)
        self.check(self.web.post(path, {"thread_id": "main"}, self.alice), 200)
        found = self.wait(self.api.receipts_since([ROOM], 0, 10**9))
        self.assertEqual([None, "main"], [one.thread_id for one in found])
        for body in ({"thread_id": ""}, {"thread_id": 5}, {"thread_id": None}, {"thread_id": "$other"}):
            self.check(self.web.post(path, body, self.alice), 400, "M_INVALID_PARAM")
        fully = f"{self.room}/receipt/m.fully_read/{self.event.event_id}"
        self.check(self.web.post(fully, {"thread_id": "main"}, self.alice), 400, "M_INVALID_PARAM")
        self.check(self.web.post(fully, {}, self.alice), 200)
        marker = self.web.get(f"{V3}/user/@alice:test/rooms/{ROOM}/account_data/m.fully_read", self.alice)
        self.assertEqual({"event_id": self.event.event_id}, marker.json)
        bad = f"{self.room}/receipt/m.seen/{self.event.event_id}"
        self.check(self.web.post(bad, {}, self.alice), 400, "M_INVALID_PARAM")

    def test_markers(self) -> None:
        event_id = self.event.event_id
        body = {"m.fully_read": event_id, "m.read": event_id, "m.read.private": event_id}
        self.check(self.web.post(f"{self.room}/read_markers", body, self.alice), 200)
        self.assertEqual(2, len(self.wait(self.api.receipts_since([ROOM], 0, 10**9))))
        self.check(self.web.post(f"{self.room}/read_markers", {}, self.alice), 200)
        self.check(self.web.post(f"{self.room}/read_markers", {"m.read": 5}, self.alice), 400, "M_BAD_JSON")
        self.check(self.web.post(f"{V3}/rooms/!other:test/read_markers", body, self.alice), 403, "M_FORBIDDEN")

    def test_typing(self) -> None:
        path = f"{self.room}/typing/@alice:test"
        self.check(self.web.put(path, {"typing": True, "timeout": 5000}, self.alice), 200)
        told = self.last_published(Typing)
        self.assertEqual((ROOM, "@alice:test", True, 5000), (told.room_id, told.user_id, told.typing, told.timeout_ms))
        self.check(self.web.put(path, {"typing": True, "timeout": 10**30}, self.alice), 200)
        self.assertEqual(120_000, self.last_published(Typing).timeout_ms)
        self.check(self.web.put(path, {"typing": False}, self.alice), 200)
        self.assertFalse(self.last_published(Typing).typing)
        self.check(self.web.put(path, {}, self.alice), 400, "M_MISSING_PARAM")
        self.check(self.web.put(f"{self.room}/typing/@bob:test", {"typing": True}, self.alice), 403, "M_FORBIDDEN")
        other = f"{V3}/rooms/!other:test/typing/@alice:test"
        self.check(self.web.put(other, {"typing": True}, self.alice), 403, "M_FORBIDDEN")


class Pushers(ClientCase):
    def test_setting_and_removing(self) -> None:
        (token,) = self.tokens("alice")
        body: dict[str, Any] = {
            "pushkey": "key",
            "kind": "http",
            "app_id": "org.example",
            "app_display_name": "App",
            "device_display_name": "Phone",
            "lang": "en",
            "data": {"url": "https://push.example/_matrix/push/v1/notify", "brand": "x"},
        }
        self.check(self.web.post(f"{V3}/pushers/set", body, token), 200)
        self.assertEqual([body], self.check(self.web.get(f"{V3}/pushers", token), 200)["pushers"])
        without = {key: value for key, value in body.items() if key != "lang"}
        error = self.check(self.web.post(f"{V3}/pushers/set", without, token), 400, "M_MISSING_PARAM")
        self.assertIn("lang", error["error"])
        self.check(self.web.post(f"{V3}/pushers/set", body | {"kind": "pigeon"}, token), 400, "M_INVALID_PARAM")
        large = body | {"data": body["data"] | {"number": 10**40}}
        self.check(self.web.post(f"{V3}/pushers/set", large, token), 200)
        self.check(self.web.post(f"{V3}/pushers/set", body | {"lang": 5}, token), 400, "M_BAD_JSON")
        gone = {"pushkey": "key", "app_id": "org.example", "kind": None}
        self.check(self.web.post(f"{V3}/pushers/set", gone, token), 200)
        self.assertEqual([], self.check(self.web.get(f"{V3}/pushers", token), 200)["pushers"])

    def test_notifications(self) -> None:
        (token,) = self.tokens("alice")
        self.users.rooms.put(ROOM, "@alice:test")
        rows = []
        for position in range(1, 6):
            event = room_event(ROOM, position, "@bob:test")
            self.users.rooms.stored[event.event_id] = event
            rows.append((ROOM, position, "main", event.event_id, "@bob:test", position, 0))
        from dendrite_tw.user_api.tables.unread import insert_log

        self.successResultOf(self.users.database.write(insert_log, rows))
        first = self.check(self.web.get(f"{V3}/notifications?limit=3", token), 200)
        self.assertEqual([5, 4, 3], [one["ts"] for one in first["notifications"]])
        self.assertEqual("hello", first["notifications"][0]["event"]["content"]["body"])
        self.assertEqual("", first["notifications"][0]["profile_tag"])
        more = f"{V3}/notifications?limit=3&from={first['next_token']}"
        rest = self.check(self.web.get(more, token), 200)
        self.assertEqual([2, 1], [one["ts"] for one in rest["notifications"]])
        self.assertNotIn("next_token", rest)
        self.check(self.web.get(f"{V3}/notifications?from=nonsense", token), 400, "M_INVALID_PARAM")
        self.check(self.web.get(f"{V3}/notifications?limit=many", token), 400, "M_INVALID_PARAM")
        self.assertEqual([], self.web.get(f"{V3}/notifications?only=highlight", token).json["notifications"])


class OpenId(ClientCase):
    client = {"turn": Turn(uris=("turn:turn.test",), shared_secret="secret", lifetime_seconds=60)}  # noqa: RUF012

    def test_a_token_for_others(self) -> None:
        alice, bob = self.tokens("alice", "bob")
        path = f"{V3}/user/@alice:test/openid/request_token"
        made = self.check(self.web.post(path, {}, alice), 200)
        self.assertEqual(("Bearer", 3600, "test"), (made["token_type"], made["expires_in"], made["matrix_server_name"]))
        self.assertEqual("@alice:test", self.wait(self.api.owner_of_openid_token(made["access_token"])))
        self.check(self.web.get(f"{V3}/account/whoami", made["access_token"]), 401, "M_UNKNOWN_TOKEN")
        self.check(self.web.post(path, {}, bob), 403, "M_FORBIDDEN")

    def test_anybody_may_ask_whom_a_token_stands_for(self) -> None:
        (alice,) = self.tokens("alice")
        token = self.web.post(f"{V3}/user/@alice:test/openid/request_token", {}, alice).json["access_token"]
        info = "/_matrix/federation/v1/openid/userinfo"
        self.assertEqual({"sub": "@alice:test"}, self.check(self.web.get(f"{info}?access_token={token}"), 200))
        self.check(self.web.get(info), 401, "M_MISSING_TOKEN")
        for wrong in ("nonsense", alice, ""):
            self.check(self.web.get(f"{info}?access_token={wrong}"), 401, "M_UNKNOWN_TOKEN")
        self.users.clock.advance(3601)
        self.check(self.web.get(f"{info}?access_token={token}"), 401, "M_UNKNOWN_TOKEN")

    def test_credentials_for_a_turn_server(self) -> None:
        (token,) = self.tokens("alice")
        given = self.check(self.web.get(f"{V3}/voip/turnServer", token), 200)
        self.assertEqual((["turn:turn.test"], 60), (given["uris"], given["ttl"]))
        expiry, _, user_id = given["username"].partition(":")
        self.assertEqual((1_700_000_060, "@alice:test"), (int(expiry), user_id))
        mac = hmac.new(b"secret", given["username"].encode(), hashlib.sha1).digest()
        self.assertEqual(base64.b64encode(mac).decode(), given["password"])


class FixedTurn(ClientCase):
    client = {"turn": Turn(uris=("turn:turn.test",), username="u", password="p")}  # noqa: RUF012

    def test_a_fixed_name(self) -> None:
        (token,) = self.tokens("alice")
        given = self.check(self.web.get(f"{V3}/voip/turnServer", token), 200)
        self.assertEqual(("u", "p"), (given["username"], given["password"]))


class Discovery(ClientCase):
    def test_versions_and_capabilities(self) -> None:
        versions = self.check(self.web.get("/_matrix/client/versions"), 200)["versions"]
        self.assertEqual(("r0.0.1", "v1.1", "v1.19"), (versions[0], versions[8], versions[-1]))
        (token,) = self.tokens("alice")
        found = self.check(self.web.get(f"{V3}/capabilities", token), 200)["capabilities"]
        self.assertEqual({"default": "12", "available": {"12": "stable"}}, found["m.room_versions"])
        self.assertEqual({"enabled": True}, found["m.change_password"])
        self.assertNotIn("m.account_moderation", found)
        found = self.check(self.web.get(f"{V3}/capabilities", self.admin()), 200)["capabilities"]
        self.assertEqual({"suspend": True, "lock": True}, found["m.account_moderation"])

    def test_nothing_is_well_known(self) -> None:
        for name in ("client", "server", "support"):
            self.check(self.web.get(f"/.well-known/matrix/{name}"), 404, "M_NOT_FOUND")

    def test_no_turn_server(self) -> None:
        (token,) = self.tokens("alice")
        self.assertEqual({}, self.check(self.web.get(f"{V3}/voip/turnServer", token), 200))

    def test_pages(self) -> None:
        for path in ("/_matrix/static/", "/_matrix/static/client/login/"):
            answer = self.web.get(path)
            self.assertEqual((200, "text/html; charset=utf-8"), (answer.status, answer.headers["content-type"]))
            self.assertIn("frame-ancestors 'none'", answer.headers["content-security-policy"])


class WellKnown(ClientCase):
    client = {  # noqa: RUF012
        "well_known_client_name": "https://matrix.test",
        "well_known_server_name": "matrix.test:443",
        "well_known_sliding_sync_proxy": "https://slide.test",
        "support": {"support_page": "https://help.test"},
    }

    def test_what_is_told(self) -> None:
        told = self.check(self.web.get("/.well-known/matrix/client"), 200)
        self.assertEqual({"base_url": "https://matrix.test"}, told["m.homeserver"])
        self.assertEqual({"url": "https://slide.test"}, told["org.matrix.msc3575.proxy"])
        self.assertEqual({"m.server": "matrix.test:443"}, self.check(self.web.get("/.well-known/matrix/server"), 200))
        support = self.check(self.web.get("/.well-known/matrix/support"), 200)
        self.assertEqual({"support_page": "https://help.test"}, support)


class Administration(ClientCase):
    client = {"registration_requires_token": True}  # noqa: RUF012

    def setUp(self) -> None:
        super().setUp()
        self.boss = self.admin()
        (self.alice,) = self.tokens("alice")

    def test_whois(self) -> None:
        path = f"{V3}/admin/whois/@alice:test"
        found = self.check(self.web.get(path, self.boss), 200)
        self.assertEqual(("@alice:test", ["PHONE"]), (found["user_id"], list(found["devices"])))
        self.check(self.web.get(path, self.alice), 200)
        self.check(self.web.get(f"{V3}/admin/whois/@admin:test", self.alice), 403, "M_FORBIDDEN")
        self.check(self.web.get(f"{V3}/admin/whois/@nobody:test", self.boss), 404, "M_NOT_FOUND")
        self.check(self.web.get(f"{V3}/admin/whois/@a:far", self.boss), 404, "M_NOT_FOUND")

    def test_locking_and_suspending(self) -> None:
        for what, flag in (("lock", "locked"), ("suspend", "suspended")):
            path = f"{V1}/admin/{what}/@alice:test"
            self.assertEqual({flag: False}, self.check(self.web.get(path, self.boss), 200))
            self.assertEqual({flag: True}, self.check(self.web.put(path, {flag: True}, self.boss), 200))
            self.assertEqual({flag: True}, self.check(self.web.get(path, self.boss), 200))
            self.check(self.web.put(path, {flag: False}, self.boss), 200)
            self.check(self.web.put(path, {}, self.boss), 400, "M_MISSING_PARAM")
            self.check(self.web.put(path, {flag: True}, self.alice), 403, "M_FORBIDDEN")
            for user, status in [("@admin:test", 403), ("@nobody:test", 404), ("@a:far", 400)]:
                self.check(self.web.put(f"{V1}/admin/{what}/{user}", {flag: True}, self.boss), status)

    def test_resetting_a_password(self) -> None:
        path = "/_dendrite/admin/resetPassword"
        body = {"password": "another horse", "logout_devices": True}
        self.assertEqual({"password_updated": True}, self.check(self.web.post(f"{path}/alice", body, self.boss), 200))
        self.assertTrue(self.wait(self.api.check_password("@alice:test", "another horse")))
        self.check(self.web.get(f"{V3}/account/whoami", self.alice), 401)
        self.check(self.web.post(f"{path}/@alice:test", {"password": "third horse"}, self.boss), 200)
        self.check(self.web.post(f"{path}/@alice:far", body, self.boss), 400, "M_INVALID_PARAM")
        self.check(self.web.post(f"{path}/nobody", body, self.boss), 404, "M_NOT_FOUND")
        self.check(self.web.post(f"{path}/alice", {"password": "short"}, self.boss), 400, "M_WEAK_PASSWORD")
        self.check(self.web.post(f"{path}/alice", {}, self.boss), 400, "M_MISSING_PARAM")

    def test_registration_tokens(self) -> None:
        tokens = "/_dendrite/admin/registrationTokens"
        made = self.check(self.web.post(f"{tokens}/new", {"token": "welcome", "uses_allowed": 0}, self.boss), 200)
        self.assertEqual(
            {"token": "welcome", "uses_allowed": 0, "pending": 0, "completed": 0, "expiry_time": None}, made
        )
        self.assertEqual(16, len(self.check(self.web.post(f"{tokens}/new", {}, self.boss), 200)["token"]))
        self.check(self.web.post(f"{tokens}/new", {"token": "welcome"}, self.boss), 409)
        self.check(self.web.post(f"{tokens}/new", {"length": 65}, self.boss), 400, "M_INVALID_PARAM")
        self.check(self.web.post(f"{tokens}/new", {"uses_allowed": 10**40}, self.boss), 400)
        self.assertEqual(2, len(self.web.get(tokens, self.boss).json["registration_tokens"]))
        self.assertEqual(1, len(self.web.get(f"{tokens}?valid=true", self.boss).json["registration_tokens"]))
        invalid = self.web.get(f"{tokens}?valid=false", self.boss).json["registration_tokens"]
        self.assertEqual(["welcome"], [one["token"] for one in invalid])
        one = f"{tokens}/welcome"
        self.assertEqual(5, self.check(self.web.put(one, {"uses_allowed": 5}, self.boss), 200)["uses_allowed"])
        self.assertIsNone(self.check(self.web.put(one, {"uses_allowed": None}, self.boss), 200)["uses_allowed"])
        self.check(self.web.put(one, {}, self.boss), 400, "M_MISSING_PARAM")
        self.check(self.web.put(one, {"uses_allowed": "many"}, self.boss), 400, "M_BAD_JSON")
        self.check(self.web.put(one, {"expiry_time": 5}, self.boss), 400, "M_INVALID_PARAM")
        self.assertEqual("welcome", self.check(self.web.get(one, self.boss), 200)["token"])
        self.check(self.web.delete(one, None, self.boss), 200)
        for method in ("GET", "DELETE"):
            self.check(self.web.request(method, one, None, self.boss), 404, "M_NOT_FOUND")
        self.check(self.web.get(tokens, self.alice), 403, "M_FORBIDDEN")


class NoTokens(ClientCase):
    def test_tokens_that_nobody_would_ask_for(self) -> None:
        path = "/_dendrite/admin/registrationTokens/new"
        self.check(self.web.post(path, {}, self.admin()), 403, "M_FORBIDDEN")

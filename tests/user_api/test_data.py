"""Profiles, account data, tags, push rules and pushers."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from twisted.internet.defer import Deferred

from dendrite_tw.user_api.api import OUTPUT_CLIENT_DATA, AccountDataChange, NewLogin, Pusher
from dendrite_tw.user_api.settings import ACCOUNT_DATA_LIMIT, TAGS_LIMIT
from tests.user_api.harness import UsersCase

ALICE = "@alice:test"


class Profiles(UsersCase):
    def setUp(self) -> None:
        super().setUp()
        self.make("alice")

    def test_fields_are_set_read_and_deleted(self) -> None:
        values = {"avatar_url": "mxc://test/a", "m.tz": "Europe/Paris", "org.example.n": {"a": [1, None]}}
        for field, value in values.items():
            self.wait(self.api.set_profile_field(ALICE, field, value))
            self.assertEqual(value, self.wait(self.api.profile_fields(ALICE))[field])
        self.assertEqual({"displayname": "alice", "avatar_url": "mxc://test/a"}, self.wait(self.api.profile(ALICE)))
        self.wait(self.api.delete_profile_field(ALICE, "m.tz"))
        self.assertNotIn("m.tz", self.wait(self.api.profile_fields(ALICE)))

    def test_rooms_are_shown_names_and_avatars_alone(self) -> None:
        self.wait(self.api.set_profile_field(ALICE, "org.example", 1))
        self.assertEqual([], self.users.rooms.profiles)
        self.wait(self.api.set_profile_field(ALICE, "displayname", "Alice"))
        self.wait(self.api.set_profile_field(ALICE, "displayname", None))
        self.assertEqual([(ALICE, {"displayname": "Alice"}), (ALICE, {})], self.users.rooms.profiles)

    def test_rooms_end_with_the_newest_profile(self) -> None:
        slow: list[Deferred[None]] = []
        shown: list[dict[str, str]] = []

        async def update(user_id: str, profile: dict[str, str]) -> None:
            shown.append(profile)
            slow.append(Deferred())
            await slow[-1]

        self.users.rooms.update_profile = update
        for name in ("A", "B", "C"):
            self.wait(self.api.set_profile_field(ALICE, "displayname", name))
        self.assertEqual([{"displayname": "A"}], shown)
        slow[0].callback(None)
        self.assertEqual([{"displayname": "A"}, {"displayname": "C"}], shown)
        slow[1].callback(None)
        self.assertEqual(2, len(shown))

    def test_what_is_no_field_or_value(self) -> None:
        for field, value, errcode in [
            ("x" * 256, 1, "M_KEY_TOO_LARGE"),
            ("Upper", 1, "M_INVALID_PARAM"),
            ("", 1, "M_INVALID_PARAM"),
            ("displayname", 5, "M_INVALID_PARAM"),
            ("avatar_url", {}, "M_INVALID_PARAM"),
            ("displayname", "x" * 300, "M_PROFILE_TOO_LARGE"),
            ("org.example", "x" * 65_536, "M_PROFILE_TOO_LARGE"),
        ]:
            with self.subTest(field=field[:20]):
                self.assertEqual(errcode, self.refused(self.api.set_profile_field(ALICE, field, value)).errcode)

    def test_the_whole_profile_is_bounded(self) -> None:
        self.wait(self.api.set_profile_field(ALICE, "org.example.a", "x" * 40_000))
        error = self.refused(self.api.set_profile_field(ALICE, "org.example.b", "x" * 40_000))
        self.assertEqual((400, "M_PROFILE_TOO_LARGE"), (error.status, error.errcode))
        self.assertNotIn("org.example.b", self.wait(self.api.profile_fields(ALICE)))

    def test_nobody_has_no_profile(self) -> None:
        self.assertIsNone(self.wait(self.api.profile_fields("@nobody:test")))
        self.assertEqual({}, self.wait(self.api.profile("@nobody:test")))
        self.assertEqual(404, self.refused(self.api.set_profile_field("@nobody:test", "displayname", "N")).status)


class AccountData(UsersCase):
    def put(self, room_id: str, type: str, content: Any) -> None:
        self.wait(self.api.put_account_data(ALICE, room_id, type, json.dumps(content).encode()))

    def since(self, after: int) -> list[tuple[str, str]]:
        changes = self.wait(self.api.account_data_since(ALICE, after, self.wait(self.api.position())))
        return [(change.room_id, change.type) for change in changes]

    def test_a_sync_gets_what_changed(self) -> None:
        self.put("", "a", {"n": 1})
        self.put("!r:test", "a", {"n": 2})
        before = self.wait(self.api.position())
        self.assertEqual([("", "m.push_rules"), ("", "a"), ("!r:test", "a")], self.since(0))
        self.put("", "a", {"n": 3})
        self.assertEqual([("", "a")], self.since(before))
        self.assertEqual(b'{"n": 3}', self.wait(self.api.account_data(ALICE, "", "a")))
        self.assertIsNone(self.wait(self.api.account_data("@bob:test", "", "a")))

    def test_it_is_told_with_its_position(self) -> None:
        self.put("!r:test", "a", {"n": 1})
        row = self.users.told[-1]
        told = msgspec.msgpack.decode(row.payload, type=AccountDataChange)
        self.assertEqual((OUTPUT_CLIENT_DATA, row.id), (row.stream, told.position))
        self.assertEqual((ALICE, "!r:test", "a", b'{"n": 1}'), (told.user_id, told.room_id, told.type, told.content))

    def test_what_the_server_manages_is_not_set(self) -> None:
        for type in ("m.push_rules", "m.fully_read"):
            error = self.refused(self.api.put_account_data(ALICE, "", type, b"{}"))
            self.assertEqual((405, "M_BAD_JSON"), (error.status, error.errcode))

    def test_sizes_are_bounded(self) -> None:
        large = b" " * (ACCOUNT_DATA_LIMIT + 1)
        self.assertEqual(413, self.refused(self.api.put_account_data(ALICE, "", "a", large)).status)
        self.assertEqual(400, self.refused(self.api.put_account_data(ALICE, "", "a" * 256, b"{}")).status)
        self.patch(__import__("dendrite_tw.user_api.account_data", fromlist=["x"]), "ACCOUNT_DATA_COUNT_LIMIT", 2)
        self.put("", "a", {})
        self.put("", "b", {})
        self.put("", "b", {"changed": True})
        self.assertEqual(403, self.refused(self.api.put_account_data(ALICE, "", "c", b"{}")).status)

    def test_the_ignored_are_known_at_once(self) -> None:
        self.assertEqual(frozenset(), self.wait(self.api.ignored_users(ALICE)))
        self.put("", "m.ignored_user_list", {"ignored_users": {"@spam:evil": {}}})
        self.assertEqual({"@spam:evil"}, self.wait(self.api.ignored_users(ALICE)))
        for malformed in ({"ignored_users": ["@spam:evil"]}, {}, []):
            self.put("", "m.ignored_user_list", malformed)
            self.assertEqual(frozenset(), self.wait(self.api.ignored_users(ALICE)))


class Tags(UsersCase):
    def tags(self) -> Any:
        content = self.wait(self.api.account_data(ALICE, "!r:test", "m.tag"))
        return json.loads(content)["tags"]

    def test_tags_come_and_go(self) -> None:
        self.wait(self.api.put_tag(ALICE, "!r:test", "m.favourite", {"order": 0.5}))
        self.wait(self.api.put_tag(ALICE, "!r:test", "u.work", {}))
        self.assertEqual({"m.favourite": {"order": 0.5}, "u.work": {}}, self.tags())
        self.wait(self.api.put_tag(ALICE, "!r:test", "u.work", None))
        self.assertEqual({"m.favourite": {"order": 0.5}}, self.tags())
        told = len(self.users.told)
        self.wait(self.api.put_tag(ALICE, "!r:test", "u.work", None))
        self.assertEqual(told, len(self.users.told))

    def test_names_and_numbers_are_bounded(self) -> None:
        for tag in ("", "x" * 256, "ä" * 128):
            self.assertEqual(400, self.refused(self.api.put_tag(ALICE, "!r:test", tag, {})).status)
        for number in range(TAGS_LIMIT):
            self.wait(self.api.put_tag(ALICE, "!r:test", f"u.{number}", {}))
        self.assertEqual(400, self.refused(self.api.put_tag(ALICE, "!r:test", "u.more", {})).status)


class PushRules(UsersCase):
    def test_changed_rules_are_shown_synced_and_kept(self) -> None:
        self.wait(self.api.put_push_rule(ALICE, "room", "!r:test", {"actions": []}, None, None))
        rule = self.wait(self.api.push_rule(ALICE, "room", "!r:test"))
        self.assertEqual((True, False, []), (rule["enabled"], rule["default"], rule["actions"]))
        change = self.wait(self.api.account_data_since(ALICE, 0, self.wait(self.api.position())))[0]
        self.assertEqual("m.push_rules", change.type)
        self.assertEqual(self.wait(self.api.push_rules(ALICE)), json.loads(change.content))
        self.restart()
        self.assertEqual(rule, self.wait(self.api.push_rule(ALICE, "room", "!r:test")))
        self.wait(self.api.delete_push_rule(ALICE, "room", "!r:test"))
        self.assertEqual(404, self.refused(self.api.push_rule(ALICE, "room", "!r:test")).status)

    def test_default_rules_are_switched_and_given_actions(self) -> None:
        self.wait(self.api.set_push_rule_enabled(ALICE, "underride", ".m.rule.message", False))
        self.wait(self.api.set_push_rule_actions(ALICE, "underride", ".m.rule.call", ["notify"]))
        self.assertFalse(self.wait(self.api.push_rule(ALICE, "underride", ".m.rule.message"))["enabled"])
        self.assertEqual(["notify"], self.wait(self.api.push_rule(ALICE, "underride", ".m.rule.call"))["actions"])
        self.assertTrue(self.wait(self.api.push_rule("@bob:test", "underride", ".m.rule.message"))["enabled"])

    def test_errors_change_nothing(self) -> None:
        for refused in (
            self.api.delete_push_rule(ALICE, "room", "!none:test"),
            self.api.delete_push_rule(ALICE, "underride", ".m.rule.message"),
            self.api.set_push_rule_enabled(ALICE, "room", "!none:test", True),
            self.api.put_push_rule(ALICE, "sideways", "x", {"actions": []}, None, None),
            self.api.put_push_rule(ALICE, "override", ".dot", {"actions": [], "conditions": []}, None, None),
            self.api.put_push_rule(ALICE, "content", "x", {"actions": [], "pattern": "x"}, "nowhere", None),
        ):
            self.assertIn(self.refused(refused).status, (400, 404))
        self.assertEqual([], self.users.told)

    def test_an_upgraded_room_has_the_old_ones_rules(self) -> None:
        self.wait(self.api.put_push_rule(ALICE, "room", "!r:test", {"actions": []}, None, None))
        self.wait(self.api.copy_push_rules_to_room(ALICE, "!r:test", "!new:test"))
        self.assertEqual([], self.wait(self.api.push_rule(ALICE, "room", "!new:test"))["actions"])


def pusher(pushkey: str = "key", **changes: Any) -> Pusher:
    values: dict[str, Any] = {
        "app_id": "org.example.app",
        "pushkey": pushkey,
        "kind": "http",
        "app_display_name": "App",
        "device_display_name": "Phone",
        "lang": "en",
        "data": {"url": "https://push.example/_matrix/push/v1/notify", "format": "event_id_only"},
    }
    return Pusher(**(values | changes))


class Pushers(UsersCase):
    def setUp(self) -> None:
        super().setUp()
        self.login = self.make("alice", device_id="PHONE")
        self.session = self.wait(self.api.caller_of(self.login.access_token)).session_id

    def keys(self, user_id: str = ALICE) -> list[str]:
        return [one.pushkey for one in self.wait(self.api.pushers(user_id))]

    def test_one_is_set_changed_and_removed(self) -> None:
        self.wait(self.api.put_pusher(ALICE, self.session, pusher(), False))
        self.wait(self.api.put_pusher(ALICE, self.session, pusher(lang="fr"), False))
        self.assertEqual([pusher(lang="fr")], self.wait(self.api.pushers(ALICE)))
        self.wait(self.api.delete_pusher(ALICE, "org.example.app", "key"))
        self.assertEqual([], self.keys())

    def test_another_user_takes_a_key_over_unless_it_is_appended(self) -> None:
        bob = self.make("bob")
        session = self.wait(self.api.caller_of(bob.access_token)).session_id
        self.wait(self.api.put_pusher(ALICE, self.session, pusher(), False))
        self.wait(self.api.put_pusher("@bob:test", session, pusher(), True))
        self.assertEqual((["key"], ["key"]), (self.keys(), self.keys("@bob:test")))
        self.wait(self.api.put_pusher("@bob:test", session, pusher(), False))
        self.assertEqual(([], ["key"]), (self.keys(), self.keys("@bob:test")))

    def test_it_goes_with_its_session(self) -> None:
        self.wait(self.api.put_pusher(ALICE, self.session, pusher(), False))
        other = self.wait(self.api.log_in(NewLogin(user_id=ALICE, device_id="LAPTOP")))
        self.wait(self.api.delete_devices(ALICE, ["LAPTOP"], None))
        self.refused(self.api.caller_of(other.access_token))
        self.assertEqual(["key"], self.keys())
        self.wait(self.api.delete_devices(ALICE, ["PHONE"], None))
        self.assertEqual([], self.keys())

    def test_what_is_no_pusher(self) -> None:
        for bad in (
            pusher(app_id="x" * 65),
            pusher(""),
            pusher("x" * 513),
            pusher(kind="email"),
            pusher(data={}),
            pusher(data={"url": 5}),
            pusher(data={"url": "https://push.example/elsewhere"}),
            pusher(data={"url": "gopher://push.example/_matrix/push/v1/notify"}),
            pusher(data={"url": "https://[::1/_matrix/push/v1/notify"}),
            pusher(device_display_name="x" * 20_000),
        ):
            self.assertEqual(400, self.refused(self.api.put_pusher(ALICE, self.session, bad, False)).status)

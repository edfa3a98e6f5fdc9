"""Rooms replaced by others: what is carried over, what is left behind, and who may."""

from __future__ import annotations

import unittest.mock
from typing import Any

import msgspec

from dendrite_tw.matrix.errors import MatrixError
from dendrite_tw.matrix.room_versions import ROOM_VERSIONS
from dendrite_tw.room_api.api import NewEvent
from tests.room_api.story import ALICE, BOB, CAROL, RoomStory

CARRIED = {
    "m.room.server_acl": {"allow": ["*"], "deny": ["evil.example.org"]},
    "m.room.encryption": {"algorithm": "m.megolm.v1.aes-sha2"},
    "m.room.name": {"name": "name"},
    "m.room.avatar": {"url": "mxc://test/avatar"},
    "m.room.topic": {"topic": "topic"},
    "m.room.guest_access": {"guest_access": "forbidden"},
    "m.room.history_visibility": {"history_visibility": "joined"},
    "m.room.join_rules": {"join_rule": "public"},
}


class UpgradeTests(RoomStory):
    def upgrade(self, room_id: str, version: str, user: str = ALICE, creators: list[str] | None = None) -> str:
        return self.do(self.rooms.upgrade(user, room_id, version, creators))  # type: ignore[no-any-return]

    def levels(self, room_id: str) -> Any:
        return self.content(room_id, "m.room.power_levels")

    def test_every_version_can_follow_every_other(self) -> None:
        for old in ROOM_VERSIONS:
            for new in ("2", "9", "11", "12"):
                room_id = self.create(room_version=old, name="A")
                replacement = self.upgrade(room_id, new)
                create = self.content(replacement, "m.room.create")
                self.assertEqual(create["room_version"], new)
                self.assertEqual(create["predecessor"]["room_id"], room_id)
                tombstone = self.do(self.rooms.state_event(room_id, ALICE, "m.room.tombstone", ""))
                content = msgspec.json.decode(tombstone.client)["content"]
                self.assertEqual(content["replacement_room"], replacement)
                self.assertEqual(create["predecessor"].get("event_id", tombstone.event_id), tombstone.event_id)
                self.assertEqual("event_id" in create["predecessor"], new != "12")
                self.assertEqual(self.content(replacement, "m.room.name"), {"name": "A"})
                self.say(replacement, ALICE, f"{old} to {new}")

    def test_the_new_room_says_that_guests_stay_out(self) -> None:
        replacement = self.upgrade(self.create(preset="public_chat", room_version="10"), "11")
        self.assertEqual(self.content(replacement, "m.room.guest_access"), {"guest_access": "forbidden"})

    def test_what_is_carried_over(self) -> None:
        state = [{"type": type, "content": content} for type, content in CARRIED.items()]
        state += [{"type": "org.example.thing", "content": {"a": 1}}]
        room_id = self.create(room_version="11", initial_state=state, creation_content={"m.federate": False})
        self.member(room_id, BOB, "join")
        self.member(room_id, ALICE, "ban", CAROL, reason="noise")
        replacement = self.upgrade(room_id, "12")
        for type, content in CARRIED.items():
            self.assertEqual(self.content(replacement, type), content)
        self.refused(self.rooms.state_event(replacement, ALICE, "org.example.thing", ""), "M_NOT_FOUND", 404)
        self.refused(self.rooms.state_event(replacement, ALICE, "m.room.member", BOB), "M_NOT_FOUND", 404)
        ban = self.content(replacement, "m.room.member", CAROL)
        self.assertEqual(ban, {"membership": "ban", "reason": "noise"})
        self.assertIs(self.content(replacement, "m.room.create")["m.federate"], False)
        self.assertNotIn("type", self.content(replacement, "m.room.create"))

    def test_a_space_keeps_its_type_and_its_children(self) -> None:
        room_id = self.create(room_version="11", creation_content={"type": "m.space"})
        child, former = self.create(), self.create()
        self.set_state(room_id, ALICE, "m.space.child", {"via": ["test"], "order": "a"}, child)
        self.set_state(room_id, ALICE, "m.space.child", {"via": ["test"]}, former)
        self.set_state(room_id, ALICE, "m.space.child", {}, former)
        replacement = self.upgrade(room_id, "12")
        self.assertEqual(self.content(replacement, "m.room.create")["type"], "m.space")
        self.assertEqual(self.content(replacement, "m.space.child", child), {"via": ["test"], "order": "a"})
        self.refused(self.rooms.state_event(replacement, ALICE, "m.space.child", former), "M_NOT_FOUND", 404)

    def test_levels_from_11_to_12(self) -> None:
        room_id = self.create(room_version="11", preset="public_chat")
        self.member(room_id, BOB, "join")
        levels = self.levels(room_id)
        self.set_state(room_id, ALICE, "m.room.power_levels", levels | {"users": {ALICE: 100, BOB: 100, CAROL: 50}})
        replacement = self.upgrade(room_id, "12", creators=[BOB, ALICE, BOB])
        self.assertEqual(self.content(replacement, "m.room.create")["additional_creators"], [BOB])
        new = self.levels(replacement)
        self.assertEqual(new["users"], {CAROL: 50})
        self.assertEqual(new["events"], levels["events"] | {"m.room.tombstone": 150})
        self.member(replacement, BOB, "join")
        self.set_state(replacement, BOB, "m.room.name", {"name": "mine too"})

    def test_creators_of_12_keep_their_power_in_11(self) -> None:
        room_id = self.create(room_version="12", creation_content={"additional_creators": [BOB]})
        replacement = self.upgrade(room_id, "11", creators=["ignored: not an ID"])
        self.assertEqual(self.levels(replacement)["users"], {ALICE: 150, BOB: 150})
        self.assertNotIn("additional_creators", self.content(replacement, "m.room.create"))
        self.refused(self.rooms.upgrade(BOB, replacement, "12", None), "M_FORBIDDEN", 403)
        again = self.upgrade(replacement, "12")
        self.assertEqual(self.levels(again)["users"], {BOB: 150})

    def test_creators_are_not_taken_over(self) -> None:
        room_id = self.create(room_version="12", creation_content={"additional_creators": [BOB]})
        replacement = self.upgrade(room_id, "12")
        self.assertNotIn("additional_creators", self.content(replacement, "m.room.create"))

    def test_levels_as_text_become_numbers(self) -> None:
        room_id = self.create(room_version="9")
        content = {"users": {ALICE: "100", BOB: " 7 "}, "ban": "60", "events": {"m.room.name": "70"}, "x": [1]}
        self.set_state(room_id, ALICE, "m.room.power_levels", content)
        new = self.levels(self.upgrade(room_id, "11"))
        self.assertEqual(new, {"users": {ALICE: 100, BOB: 7}, "ban": 60, "events": {"m.room.name": 70}, "x": [1]})

    def test_a_moderator_fills_the_room_and_stays_one(self) -> None:
        room_id = self.create(room_version="10", preset="public_chat")
        self.member(room_id, BOB, "join")
        self.member(room_id, ALICE, "ban", CAROL)
        levels = self.levels(room_id)
        levels["users"] = {ALICE: 100, BOB: 50, CAROL: 50}
        levels["events"]["m.room.tombstone"] = 50
        self.set_state(room_id, ALICE, "m.room.power_levels", levels)
        replacement = self.upgrade(room_id, "11", BOB)
        self.assertEqual(self.do(self.rooms.membership(replacement, CAROL)).membership, "ban")
        shown = self.do(self.rooms.state_event(replacement, BOB, "m.room.power_levels", ""))
        self.assertEqual(msgspec.json.decode(shown.client)["content"], levels)
        self.assertEqual(self.levels(room_id), levels)
        self.refused(
            self.rooms.send(
                NewEvent(room_id=replacement, sender=BOB, type="m.room.encryption", content={}, state_key="")
            ),
            "M_FORBIDDEN",
            403,
        )

    def test_the_old_room_falls_silent(self) -> None:
        room_id = self.create(room_version="11", preset="public_chat")
        self.member(room_id, BOB, "join")
        self.upgrade(room_id, "12")
        levels = self.levels(room_id)
        self.assertEqual((levels["events_default"], levels["invite"]), (50, 50))
        message = NewEvent(room_id=room_id, sender=BOB, type="m.room.message", content={})
        self.refused(self.rooms.send(message), "M_FORBIDDEN", 403)
        unusual = self.create(room_version="11", power_level_content_override={"users_default": 80})
        self.upgrade(unusual, "12")
        levels = self.levels(unusual)
        self.assertEqual((levels["events_default"], levels["invite"]), (81, 81))

    def test_names_move(self) -> None:
        room_id = self.create(room_version="11", room_alias_name="one", visibility="public")
        self.do(self.rooms.create_alias("#two:test", room_id, ALICE))
        canonical = {"alias": "#one:test", "alt_aliases": ["#two:test"]}
        self.set_state(room_id, ALICE, "m.room.canonical_alias", canonical)
        replacement = self.upgrade(room_id, "12")
        for alias in ("#one:test", "#two:test"):
            self.assertEqual(self.do(self.rooms.resolve_alias(alias)).room_id, replacement)
        self.assertEqual(self.content(replacement, "m.room.canonical_alias"), canonical)
        self.assertEqual(self.content(room_id, "m.room.canonical_alias"), {})
        published = [self.do(self.rooms.published(room)) for room in (room_id, replacement)]
        self.assertEqual(published, [False, True])

    def test_personal_settings_follow_their_users(self) -> None:
        room_id = self.create(room_version="11", preset="public_chat")
        self.member(room_id, BOB, "join")
        for user in (ALICE, BOB):
            self.users.data[user, room_id, "m.tag"] = b'{"tags":{"m.favourite":{"order":0.5}}}'
            self.users.data[user, "", "m.direct"] = msgspec.json.encode({CAROL: [room_id], "@x:test": "nonsense"})
        replacement = self.upgrade(room_id, "12")
        self.assertEqual(self.users.copied_rules, [(ALICE, room_id, replacement)])
        self.assertNotIn((BOB, replacement, "m.tag"), self.users.data)
        self.member(replacement, BOB, "join")
        self.assertEqual(self.users.copied_rules[1:], [(BOB, room_id, replacement)])
        for user in (ALICE, BOB):
            tags = msgspec.json.decode(self.users.data[user, replacement, "m.tag"])
            self.assertEqual(tags, {"tags": {"m.favourite": {"order": 0.5}}})
            direct = msgspec.json.decode(self.users.data[user, "", "m.direct"])
            self.assertEqual(direct, {CAROL: [room_id, replacement], "@x:test": "nonsense"})
        self.member(replacement, CAROL, "join")
        self.assertEqual(len(self.users.copied_rules), 2)

    def test_a_tombstone_of_another_client_moves_names_too(self) -> None:
        old = self.create(room_version="11", room_alias_name="den", visibility="public")
        new = self.create(creation_content={"predecessor": {"room_id": old}})
        stranger = self.create()
        self.set_state(old, ALICE, "m.room.tombstone", {"body": "", "replacement_room": stranger})
        self.assertEqual(self.do(self.rooms.resolve_alias("#den:test")).room_id, old)
        self.set_state(old, ALICE, "m.room.tombstone", {"body": "", "replacement_room": new})
        self.assertEqual(self.do(self.rooms.resolve_alias("#den:test")).room_id, new)
        self.assertTrue(self.do(self.rooms.published(new)))

    def test_who_may_and_into_what(self) -> None:
        room_id = self.create(room_version="11", preset="public_chat")
        told = len(self.told)
        self.refused(self.rooms.upgrade(ALICE, room_id, "99", None), "M_UNSUPPORTED_ROOM_VERSION", 400)
        self.refused(self.rooms.upgrade(ALICE, "!fail:unknown", "12", None), "M_NOT_FOUND", 404)
        self.refused(self.rooms.upgrade(BOB, room_id, "12", None), "M_FORBIDDEN", 403)
        self.refused(self.rooms.upgrade(ALICE, room_id, "12", ["bob"]), "M_INVALID_PARAM", 400)
        many = [f"@{number}:test" for number in range(101)]
        self.refused(self.rooms.upgrade(ALICE, room_id, "12", many), "M_INVALID_PARAM", 400)
        self.member(room_id, BOB, "join")
        self.refused(self.rooms.upgrade(BOB, room_id, "12", None), "M_FORBIDDEN", 403)
        self.assertEqual(len(self.told), told + 1)

    def test_a_failure_on_the_way_leaves_the_room_as_it_was(self) -> None:
        async def profile(user_id: str) -> dict[str, str]:
            raise MatrixError(503, "M_UNKNOWN", "The database is not available.")

        for version in ("11", "12"):
            room_id = self.create(room_version="11", room_alias_name=f"den{version}")
            told = len(self.told)
            with self.patched(self.users, "profile", profile):
                self.refused(self.rooms.upgrade(ALICE, room_id, version, None), "M_UNKNOWN", 503)
            self.assertEqual(len(self.told), told)
            self.assertEqual(self.do(self.rooms.resolve_alias(f"#den{version}:test")).room_id, room_id)
            self.say(room_id, ALICE, "still here")

    def patched(self, target: Any, name: str, value: Any) -> Any:
        return unittest.mock.patch.object(target, name, value)

    def test_what_the_new_version_cannot_hold_is_left_behind(self) -> None:
        room_id = self.create(room_version="5", name="kept")
        self.set_state(room_id, ALICE, "m.room.topic", {"topic": "x", "weight": 1.5})
        replacement = self.upgrade(room_id, "11")
        self.assertEqual(self.content(replacement, "m.room.name"), {"name": "kept"})
        self.refused(self.rooms.state_event(replacement, ALICE, "m.room.topic", ""), "M_NOT_FOUND", 404)

    def test_many_bans_are_carried_over(self) -> None:
        room_id = self.create(room_version="11")
        for number in range(230):
            self.member(room_id, ALICE, "ban", f"@b{number}:test")
        replacement = self.upgrade(room_id, "12")
        members = self.do(self.rooms.members(replacement, ALICE, None, "ban", None))
        self.assertEqual(len(members), 230)


class GuestTests(RoomStory):
    def test_guests_leave_a_room_that_closes_to_them(self) -> None:
        guest = "@1:test"
        self.users.accounts = {guest: 2, BOB: 1}
        access = [{"type": "m.room.guest_access", "content": {"guest_access": "can_join"}}]
        room_id = self.create(preset="public_chat", initial_state=access)
        for user in (guest, BOB):
            self.member(room_id, user, "join", is_guest=user == guest)
        self.set_state(room_id, ALICE, "m.room.guest_access", {"guest_access": "can_join", "x": 1})
        self.assertEqual(self.do(self.rooms.membership(room_id, guest)).membership, "join")
        self.set_state(room_id, ALICE, "m.room.guest_access", {"guest_access": "forbidden"})
        self.assertEqual(self.do(self.rooms.membership(room_id, guest)).membership, "leave")
        self.assertEqual(sorted(self.do(self.rooms.joined_users(room_id))), [ALICE, BOB])

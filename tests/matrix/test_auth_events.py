"""Which events authorise an event, and what is wrong with those that an event names."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.matrix.auth_rules import (
    AuthError,
    auth_event_keys,
    auth_state,
    check_auth,
    check_event_auth_events,
    redaction_applies,
)
from dendrite_tw.matrix.power_levels import power_levels
from dendrite_tw.matrix.room_versions import (
    ROOM_V1,
    ROOM_V2,
    ROOM_V7,
    ROOM_V8,
    ROOM_V11,
    ROOM_V12,
    ROOM_VERSIONS,
)
from tests.matrix.builders import ALICE, BOB, CAROL, DAVE, RoomBuilder

ALL = list(ROOM_VERSIONS.values())
CREATE = ("m.room.create", "")
LEVELS = ("m.room.power_levels", "")
RULES = ("m.room.join_rules", "")
MEMBER_ALICE, MEMBER_BOB, MEMBER_CAROL = (("m.room.member", user) for user in (ALICE, BOB, CAROL))


class SelectionTests(SynchronousTestCase):
    def keys(self, version, type="m.room.member", sender=ALICE, state_key=BOB, **content):
        keys = auth_event_keys(version=version, type=type, sender=sender, state_key=state_key, content=content)
        self.assertEqual(len(keys), len(set(keys)))
        return set(keys)

    def test_create(self):
        for version in ALL:
            self.assertEqual(self.keys(version, "m.room.create", state_key=""), set())

    def test_message_and_state(self):
        for version in ALL:
            expected = {LEVELS, MEMBER_ALICE} | ({CREATE} if version.create_event_in_auth_events else set())
            self.assertEqual(self.keys(version, "m.room.message", state_key=None), expected)
            self.assertEqual(self.keys(version, "m.room.name", state_key="", membership="join"), expected)
        self.assertNotIn(CREATE, self.keys(ROOM_V12))
        self.assertIn(CREATE, self.keys(ROOM_V11))

    def test_memberships(self):
        base = {CREATE, LEVELS, MEMBER_ALICE, MEMBER_BOB}
        for membership in ("join", "invite", "knock"):
            self.assertEqual(self.keys(ROOM_V11, membership=membership), base | {RULES})
        for membership in ("leave", "ban", "other", 7, None):
            self.assertEqual(self.keys(ROOM_V11, membership=membership), base)
        self.assertEqual(self.keys(ROOM_V11, state_key=ALICE, membership="leave"), base - {MEMBER_BOB})
        self.assertEqual(self.keys(ROOM_V11, state_key=None, membership="join"), base - {MEMBER_BOB})

    def test_third_party_invite(self):
        invite = {"signed": {"token": "abc"}}
        token = ("m.room.third_party_invite", "abc")
        self.assertIn(token, self.keys(ROOM_V11, membership="invite", third_party_invite=invite))
        self.assertNotIn(token, self.keys(ROOM_V11, membership="join", third_party_invite=invite))
        plain = self.keys(ROOM_V11, membership="invite")
        for odd in (None, 7, {}, {"signed": None}, {"signed": {}}, {"signed": {"token": 7}}):
            self.assertEqual(self.keys(ROOM_V11, membership="invite", third_party_invite=odd), plain)

    def test_restricted_join(self):
        def keys(version, user, **content):
            content = {"membership": "join"} | content
            return self.keys(version, sender=BOB, join_authorised_via_users_server=user, **content)

        self.assertIn(MEMBER_CAROL, keys(ROOM_V8, CAROL))
        self.assertNotIn(MEMBER_CAROL, keys(ROOM_V7, CAROL))
        self.assertNotIn(MEMBER_CAROL, keys(ROOM_V8, CAROL, membership="invite"))
        self.assertEqual(keys(ROOM_V8, 7), keys(ROOM_V8, BOB))


class NamedAuthEventsTests(SynchronousTestCase):
    def setUp(self):
        self.rooms = [RoomBuilder(version) for version in ALL]
        for room in self.rooms:
            room.member(ALICE, "join")
            room.member(BOB, "join")
            room.put("m.room.power_levels", ALICE, {})
            room.put("m.room.join_rules", ALICE, {"join_rule": "public"})

    def named(self, room, *keys):
        events = [room.state[key] for key in keys]
        return [room.create, *events] if room.version.create_event_in_auth_events else events

    def message(self, room):
        return room.event("m.room.message", ALICE, {})

    def refused(self, reason, event, events, **more):
        error = self.assertRaises(AuthError, check_event_auth_events, event, events, **more)
        self.assertIn(reason, str(error))

    def test_expected(self):
        for room in self.rooms:
            event = self.message(room)
            check_event_auth_events(event, self.named(room, LEVELS, MEMBER_ALICE))
            check_event_auth_events(event, self.named(room))
            check_event_auth_events(event, self.named(room), rejected=["$other"])

    def test_create_needs_none(self):
        for room in self.rooms:
            check_event_auth_events(room.create, [])

    def test_duplicates(self):
        for room in self.rooms:
            other = room.event("m.room.power_levels", ALICE, {"ban": 1}, "")
            for twice in (other, room.state[LEVELS]):
                self.refused("two auth events", self.message(room), [*self.named(room, LEVELS), twice])

    def test_unexpected(self):
        for room in self.rooms:
            for key in (RULES, MEMBER_BOB):
                self.refused("not to be among", self.message(room), self.named(room, key))
            self.refused("not to be among", self.message(room), [*self.named(room), self.message(room)])

    def test_create_event_by_version(self):
        for room in self.rooms:
            event = self.message(room)
            if room.version.create_event_in_auth_events:
                self.refused("no create event", event, [room.state[MEMBER_ALICE]])
            else:
                self.refused("not to be among", event, [room.create, room.state[MEMBER_ALICE]])

    def test_rejected(self):
        for room in self.rooms:
            rejected = {room.state[MEMBER_ALICE].event_id}
            self.refused("was rejected", self.message(room), self.named(room, MEMBER_ALICE), rejected=rejected)

    def test_of_another_room(self):
        for room in self.rooms:
            other = "!" + "A" * 43 if room.version.room_ids_as_hashes else "!other:a.example"
            foreign = room.event("m.room.member", ALICE, {"membership": "join"}, ALICE, room_id=other)
            self.refused("another room", self.message(room), [*self.named(room), foreign])

    def test_state_of_auth_events(self):
        for room in self.rooms:
            create = None if room.version.create_event_in_auth_events else room.create
            state = auth_state([*self.named(room, LEVELS, MEMBER_ALICE), self.message(room)], create)
            self.assertEqual(state, {key: room.state[key] for key in (CREATE, LEVELS, MEMBER_ALICE)})
            check_auth(self.message(room), state)


class RedactionAppliesTests(SynchronousTestCase):
    def applies(self, version, sender, target_sender, levels=None, **more: Any):
        room = RoomBuilder(version)
        if levels:
            room.put("m.room.power_levels", ALICE, levels)
        target = room.event("m.room.message", target_sender, {}, event_id=f"$t:{target_sender.split(':')[1]}")
        fields = {"redacts": target.event_id, "event_id": f"$r:{sender.split(':')[1]}"} | more
        redaction = room.event("m.room.redaction", sender, {}, **fields)
        return redaction_applies(redaction, target, power_levels(room.state))

    def test_by_power_or_by_server(self):
        for version in ALL:
            self.assertTrue(self.applies(version, BOB, BOB))
            self.assertTrue(self.applies(version, DAVE, ALICE), "of the same server")
            self.assertFalse(self.applies(version, BOB, CAROL))
            self.assertTrue(self.applies(version, BOB, CAROL, {"users": {BOB: 50}}))
            self.assertFalse(self.applies(version, BOB, CAROL, {"users": {BOB: 50}, "redact": 51}))

    def test_server_of_the_event_id_counts_in_the_first_versions(self):
        for version in (ROOM_V1, ROOM_V2):
            self.assertFalse(self.applies(version, DAVE, ALICE, event_id="$r:elsewhere.example"))
            self.assertTrue(self.applies(version, BOB, ALICE, event_id="$r:a.example"))

    def test_other_target_or_room(self):
        for version in ALL:
            self.assertFalse(self.applies(version, BOB, BOB, redacts="$other:b.example"))
            other = "!" + "A" * 43 if version.room_ids_as_hashes else "!other:a.example"
            self.assertFalse(self.applies(version, BOB, BOB, room_id=other))

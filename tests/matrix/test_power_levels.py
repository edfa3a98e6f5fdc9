"""Power levels: defaults, forms of a level, creators."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.matrix.power_levels import (
    CREATOR_LEVEL,
    PowerLevels,
    parse_level,
    power_levels,
    room_creators,
)
from dendrite_tw.matrix.room_versions import (
    ROOM_V1,
    ROOM_V5,
    ROOM_V6,
    ROOM_V9,
    ROOM_V10,
    ROOM_V11,
    ROOM_V12,
    ROOM_VERSIONS,
)
from tests.matrix.builders import ALICE, BOB, CAROL, RoomBuilder
from tests.matrix.strategies import bounded, loose_json_values

ALL = list(ROOM_VERSIONS.values())


class LevelTests(SynchronousTestCase):
    def test_integers(self):
        for version in ALL:
            for level in (0, 50, -7, 2**53 - 1):
                self.assertEqual(parse_level(level, version), level)
            for bad in (
                None,
                True,
                False,
                [],
                {},
                "x",
                "",
                "1.5",
                "1e3",
                "٣",
                "1_0",
                "+",
                "- 1",
                math.nan,
                math.inf,
            ):
                self.assertIsNone(parse_level(bad, version), bad)

    def test_text(self):
        for text, level in (
            ("100", 100),
            ("000100", 100),
            ("+100", 100),
            ("-100", -100),
            (" \t-0100 \n", -100),
        ):
            for version in (ROOM_V1, ROOM_V5, ROOM_V9):
                self.assertEqual(parse_level(text, version), level)
            for version in (ROOM_V10, ROOM_V11, ROOM_V12):
                self.assertIsNone(parse_level(text, version))
        self.assertIsNone(parse_level("9" * 5000, ROOM_V1))

    def test_floats(self):
        for number, level in ((50.57, 50), (5.114698e4, 51146), (-1.9, -1)):
            for version in (ROOM_V1, ROOM_V5):
                self.assertEqual(parse_level(number, version), level)
            for version in (ROOM_V6, ROOM_V9, ROOM_V12):
                self.assertIsNone(parse_level(number, version))


class PowerLevelsTests(SynchronousTestCase):
    def levels(self, version, content=None, **create):
        room = RoomBuilder(version, **create)
        if content is not None:
            room.put("m.room.power_levels", ALICE, content)
        return power_levels(room.state)

    def test_without_event(self):
        for version in ALL:
            levels = self.levels(version)
            creator = CREATOR_LEVEL if version.privileged_creators else 100
            self.assertEqual(levels.user_level(ALICE), creator)
            self.assertEqual(levels.user_level(BOB), 0)
            self.assertEqual((levels.ban, levels.kick, levels.redact, levels.invite), (50, 50, 50, 0))
            self.assertEqual(levels.event_level("m.x", True), 50)
            self.assertEqual(levels.event_level("m.x", False), 0)
            self.assertEqual(levels.notification_level("room"), 50)

    def test_with_empty_event(self):
        for version in ALL:
            levels = self.levels(version, {})
            creator = CREATOR_LEVEL if version.privileged_creators else 0
            self.assertEqual((levels.user_level(ALICE), levels.user_level(BOB)), (creator, 0))
            self.assertEqual((levels.event_level("m.x", True), levels.event_level("m.x", False)), (50, 0))

    def test_with_event(self):
        content = {
            "users": {BOB: 7},
            "users_default": 1,
            "events": {"m.x": 2},
            "events_default": 3,
            "state_default": 4,
            "ban": 5,
            "kick": 6,
            "redact": 8,
            "invite": 9,
            "notifications": {"room": 10},
        }
        for version in ALL:
            levels = self.levels(version, content)
            self.assertEqual((levels.user_level(BOB), levels.user_level(CAROL)), (7, 1))
            self.assertEqual((levels.event_level("m.x", True), levels.event_level("m.x", False)), (2, 2))
            self.assertEqual((levels.event_level("m.y", True), levels.event_level("m.y", False)), (4, 3))
            self.assertEqual((levels.ban, levels.kick, levels.redact, levels.invite), (5, 6, 8, 9))
            self.assertEqual((levels.notification_level("room"), levels.notification_level("x")), (10, 50))

    def test_text_levels(self):
        content = {"users": {BOB: "7"}, "ban": " 5 ", "events": {"m.x": "+2"}}
        levels = self.levels(ROOM_V9, content)
        self.assertEqual((levels.user_level(BOB), levels.ban, levels.event_level("m.x", False)), (7, 5, 2))
        levels = self.levels(ROOM_V10, content)
        self.assertEqual((levels.user_level(BOB), levels.ban, levels.event_level("m.x", False)), (0, 50, 0))

    @bounded
    @given(
        st.sampled_from(ALL),
        st.dictionaries(
            st.sampled_from(["users", "events", "notifications", "ban", "invite", "users_default"]),
            loose_json_values | st.dictionaries(st.sampled_from([BOB, "m.x", "room"]), loose_json_values),
        ),
    )
    def test_malformed_levels_never_raise(self, version, content):
        room = RoomBuilder(version)
        event = room.event("m.x", ALICE, {}, "")
        event.content.update(content)
        levels = PowerLevels(room.create, event)
        for level in (
            levels.user_level(BOB),
            levels.event_level("m.x", True),
            levels.notification_level("room"),
            levels.ban,
            levels.invite,
        ):
            self.assertIs(type(level), int)


class CreatorTests(SynchronousTestCase):
    def test_creators(self):
        for version in ALL:
            room = RoomBuilder(version, additional_creators=[BOB, 7])
            expected = {ALICE, BOB} if version.privileged_creators else {ALICE}
            self.assertEqual(room_creators(room.create), expected)

    def test_named_creator_of_older_versions(self):
        self.assertEqual(room_creators(RoomBuilder(ROOM_V10, creator=BOB).create), {BOB})

    def test_malformed(self):
        room = RoomBuilder(ROOM_V10)
        odd = room.event("m.room.create", ALICE, {"creator": [7]}, "", [])
        self.assertEqual(room_creators(odd), frozenset())
        self.assertEqual(room_creators(RoomBuilder(ROOM_V12, additional_creators="x").create), {ALICE})

    def test_infinite_power(self):
        room = RoomBuilder(ROOM_V12, additional_creators=[BOB])
        room.put("m.room.power_levels", ALICE, {"users": {CAROL: 2**53 - 1}, "users_default": 7})
        levels = power_levels(room.state)
        self.assertEqual(levels.user_level(ALICE), levels.user_level(BOB))
        self.assertGreater(levels.user_level(BOB), levels.user_level(CAROL))

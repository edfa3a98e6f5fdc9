"""Filters: what is refused, what each key lets through, and the picking of fields."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.matrix.errors import MatrixError
from dendrite_tw.matrix.filters import (
    DEFAULT,
    MAX_ENTRIES,
    CompiledEventFilter,
    RoomEventFilter,
    is_inline,
    load_json,
    parse_filter,
    parse_room_event_filter,
    project_fields,
)

ALICE, BOB = "@alice:example.org", "@bob:example.org"
ROOM, OTHER = "!room:example.org", "!other:example.org"

EXAMPLE = {
    "room": {
        "state": {"types": ["m.room.*"], "not_rooms": ["!726s6s6q:example.com"]},
        "timeline": {
            "limit": 10,
            "types": ["m.room.message"],
            "not_rooms": ["!726s6s6q:example.com"],
            "not_senders": ["@spam:example.com"],
        },
        "ephemeral": {
            "types": ["m.receipt", "m.typing"],
            "not_rooms": ["!726s6s6q:example.com"],
            "not_senders": ["@spam:example.com"],
        },
    },
    "presence": {"types": ["m.presence"], "not_senders": ["@alice:example.com"]},
    "event_format": "client",
    "event_fields": ["type", "content", "sender"],
}


def compiled(**keys: Any) -> CompiledEventFilter:
    return CompiledEventFilter(parse_room_event_filter(keys))


class ParseTests(SynchronousTestCase):
    def refused(self, value: object, errcode: str = "M_BAD_JSON") -> None:
        error = self.assertRaises(MatrixError, parse_filter, value)
        self.assertEqual((error.status, error.errcode), (400, errcode), value)

    def test_the_example_of_the_specification(self) -> None:
        parsed = parse_filter(EXAMPLE)
        self.assertEqual(parsed.to_json(), EXAMPLE)
        self.assertEqual(parsed.definition.room.timeline.limit, 10)
        self.assertTrue(parsed.state.check("m.room.name", ALICE, ROOM))
        self.assertFalse(parsed.state.check("m.rooms", ALICE, ROOM))
        self.assertFalse(parsed.timeline.check("m.room.message", "@spam:example.com", ROOM))
        self.assertFalse(parsed.presence.check("m.presence", "@alice:example.com"))
        self.assertTrue(parsed.room_account_data.accepts_all)

    def test_all_switches(self) -> None:
        self.assertFalse(DEFAULT.lazy_load_members)
        self.assertFalse(DEFAULT.include_leave)
        self.assertFalse(DEFAULT.federation_format)
        self.assertIsNone(DEFAULT.projection)
        self.assertTrue(DEFAULT.allows_room(ROOM))
        self.assertEqual(DEFAULT.to_json(), {})
        parsed = parse_filter(
            {
                "event_format": "federation",
                "room": {
                    "include_leave": True,
                    "state": {"lazy_load_members": True, "include_redundant_members": True},
                    "timeline": {"unread_thread_notifications": True},
                },
            }
        )
        for name in ("federation_format", "include_leave", "lazy_load_members", "include_redundant_members"):
            self.assertTrue(getattr(parsed, name), name)
        self.assertTrue(parsed.unread_thread_notifications)

    def test_unknown_keys_are_kept_without_effect(self) -> None:
        uploaded = {"org.example": {"x": 1}, "room": {"timeline": {"types": None, "later": []}}}
        parsed = parse_filter(uploaded)
        self.assertEqual(parsed.to_json(), uploaded)
        self.assertTrue(parsed.timeline.accepts_all)

    def test_what_is_not_laid_out_as_it_must_be(self) -> None:
        for value in (
            [],
            "x",
            None,
            {"room": []},
            {"event_format": "xml"},
            {"event_fields": "type"},
            {"event_fields": [1]},
            {"presence": {"limit": "10"}},
            {"presence": {"limit": -1}},
            {"presence": {"limit": True}},
            {"room": {"include_leave": 1}},
            {"room": {"rooms": ["room"]}},
            {"room": {"timeline": {"senders": ["alice"]}}},
            {"room": {"timeline": {"types": "m.room.message"}}},
            {"room": {"timeline": {"contains_url": "yes"}}},
            {"room": {"timeline": {"not_rooms": [ROOM] * (MAX_ENTRIES + 1)}}},
            {"room": {"timeline": {"types": ["x" * 256]}}},
        ):
            self.refused(value)

    def test_size(self) -> None:
        self.refused({"org.example": "x" * 70_000}, "M_INVALID_PARAM")
        self.refused({"org.example": 2**80})
        error = self.assertRaises(MatrixError, load_json, "[" * 70_000)
        self.assertEqual(error.errcode, "M_INVALID_PARAM")

    def test_inline(self) -> None:
        self.assertTrue(is_inline('{"room":{}}'))
        self.assertFalse(is_inline("12"))
        self.assertEqual(load_json('{"room":{}}'), {"room": {}})
        self.assertEqual(self.assertRaises(MatrixError, load_json, "{").errcode, "M_NOT_JSON")

    def test_limits_are_bounded(self) -> None:
        for limit, expected in ((None, 10), (5, 5), (0, 0), (-1, 0), (100_000, 100)):
            self.assertEqual(RoomEventFilter(limit=limit).bounded_limit(10, 100), expected)


class CheckTests(SynchronousTestCase):
    def test_empty_filters_accept_all(self) -> None:
        for keys in ({}, {"not_types": []}, {"not_senders": []}, {"limit": 5}, {"lazy_load_members": True}):
            part = compiled(**keys)
            self.assertTrue(part.accepts_all, keys)
            self.assertTrue(part.check("x", ALICE, ROOM, True, "m.thread"))

    def test_an_empty_list_of_what_is_wanted_accepts_nothing(self) -> None:
        for name in ("types", "senders", "rooms"):
            part = compiled(**{name: []})
            self.assertTrue(part.accepts_nothing)
            self.assertFalse(part.check("x", ALICE, ROOM), name)

    def test_types(self) -> None:
        part = compiled(types=["m.room.*", "org.*.x", "a?"], not_types=["m.room.m*r"])
        for type_ in ("m.room.", "m.room.name", "org.example.x", "a?"):
            self.assertTrue(part.check(type_, ALICE, ROOM), type_)
        for type_ in ("m.room", "M.room.name", "m.room.member", "m.room.mr", "org.x", "ab"):
            self.assertFalse(part.check(type_, ALICE, ROOM), type_)
            self.assertFalse(part.check(type_, ALICE, ROOM), "the same when asked again")

    def test_senders(self) -> None:
        part = compiled(senders=[ALICE, BOB], not_senders=[BOB])
        self.assertTrue(part.check("x", ALICE, ROOM))
        self.assertFalse(part.check("x", BOB, ROOM))
        self.assertFalse(part.check("x", "@carol:example.org", ROOM))

    def test_rooms(self) -> None:
        part = compiled(rooms=[ROOM, OTHER], not_rooms=[OTHER])
        self.assertTrue(part.check("x", ALICE, ROOM))
        self.assertFalse(part.check("x", ALICE, OTHER))
        self.assertFalse(part.check("x", ALICE, "!third:example.org"))
        whole = parse_filter({"room": {"rooms": [ROOM, OTHER], "not_rooms": [OTHER]}})
        self.assertTrue(whole.allows_room(ROOM))
        self.assertFalse(whole.allows_room(OTHER))
        self.assertFalse(whole.allows_room("!third:example.org"))
        self.assertFalse(parse_filter({"room": {"rooms": []}}).allows_room(ROOM))

    def test_urls(self) -> None:
        self.assertTrue(compiled(contains_url=True).check("x", ALICE, ROOM, True))
        self.assertFalse(compiled(contains_url=True).check("x", ALICE, ROOM, False))
        self.assertTrue(compiled(contains_url=False).check("x", ALICE, ROOM, False))
        self.assertFalse(compiled(contains_url=False).check("x", ALICE, ROOM, True))

    def test_relations(self) -> None:
        part = compiled(related_by_senders=[ALICE], related_by_rel_types=["m.thread"])
        self.assertTrue(part.needs_relations)
        self.assertTrue(part.check_relations([(BOB, "m.thread"), (ALICE, "m.thread")]))
        self.assertFalse(part.check_relations([(BOB, "m.thread"), (ALICE, "m.reference")]))
        self.assertFalse(part.check_relations([]))
        self.assertTrue(compiled().check_relations([]))

    def test_own_relation(self) -> None:
        part = compiled(**{"org.matrix.msc3874.rel_types": ["m.thread"]})
        self.assertTrue(part.check("x", ALICE, ROOM, rel_type="m.thread"))
        self.assertFalse(part.check("x", ALICE, ROOM, rel_type="m.replace"))
        self.assertFalse(part.check("x", ALICE, ROOM))
        part = compiled(**{"org.matrix.msc3874.not_rel_types": ["m.thread"]})
        self.assertFalse(part.check("x", ALICE, ROOM, rel_type="m.thread"))
        self.assertTrue(part.check("x", ALICE, ROOM))


JSON_OBJECTS = st.recursive(
    st.one_of(st.integers(0, 3), st.text(alphabet="ab", max_size=2)),
    lambda inner: st.dictionaries(st.sampled_from(["a", "b", "a.b", "\\"]), inner, max_size=3),
    max_leaves=8,
)


class FieldTests(SynchronousTestCase):
    EVENT: ClassVar[dict[str, Any]] = {
        "type": "m.room.message",
        "content": {"body": "hi", "m.relates_to": {"event_id": "$x", "rel_type": "m.thread"}},
        "sender": ALICE,
    }

    def test_paths(self) -> None:
        for fields, expected in (
            ([], {}),
            (["type"], {"type": "m.room.message"}),
            (["content.body"], {"content": {"body": "hi"}}),
            ([r"content.m\.relates_to.event_id"], {"content": {"m.relates_to": {"event_id": "$x"}}}),
            (["content.body", "content"], {"content": self.EVENT["content"]}),
            (["content", "content.body"], {"content": self.EVENT["content"]}),
            (["content.none", "none", "type.none", "content.body.none"], {}),
        ):
            self.assertEqual(project_fields(self.EVENT, fields), expected, fields)

    def test_a_filter_projects(self) -> None:
        projection = parse_filter({"event_fields": ["sender"]}).projection
        assert projection is not None
        self.assertEqual(projection.apply(self.EVENT), {"sender": ALICE})

    @settings(max_examples=150, deadline=None, derandomize=True)
    @given(
        st.dictionaries(st.sampled_from(["a", "b", "a.b"]), JSON_OBJECTS, max_size=3),
        st.lists(st.sampled_from(["a", "b", "a.a", "a.b", r"a\.b", r"a\.b.a", "a.b.a", r"b.\\"]), max_size=4),
    )
    def test_only_parts_of_the_event_and_no_change_to_it(self, event: dict[str, Any], fields: list[str]) -> None:
        before = copy.deepcopy(event)
        projected = project_fields(event, fields)
        self.assertEqual(event, before)
        self.assertTrue(is_part(projected, event))
        self.assertEqual(project_fields(projected, fields), projected)


def is_part(part: object, whole: object) -> bool:
    if isinstance(part, dict) and isinstance(whole, dict):
        return all(key in whole and is_part(part[key], whole[key]) for key in part)
    return part == whole

"""Spaces walked, rooms seen from outside, rooms in common."""

from __future__ import annotations

from typing import Any

import msgspec

from dendrite_tw.room_api import hierarchy
from tests.room_api.story import ALICE, BOB, CAROL, RoomStory

ME, SPACE = {"via": ["test"]}, {"type": "m.space"}


class HierarchyTests(RoomStory):
    def space(self, *children: str, **options: Any) -> str:
        space = self.create(preset="public_chat", creation_content=SPACE, **options)
        for child in children:
            self.add(space, child)
        return space

    def room(self, **options: Any) -> str:
        return self.create(**{"preset": "public_chat", **options})

    def add(self, space: str, child: str, **content: Any) -> None:
        self.memory.clock.advance(1)
        self.set_state(space, ALICE, "m.space.child", ME | content, child)

    def walk(self, space: str, user: str = BOB, **options: Any) -> Any:
        given = {"suggested_only": False, "max_depth": None, "limit": None, "from_token": None}
        return self.rooms.hierarchy(user, space, **{**given, **options})

    def seen(self, space: str, user: str = BOB, **options: Any) -> list[str]:
        rooms, _ = self.do(self.walk(space, user, **options))
        return [room.summary.room_id for room in rooms]

    def test_depth_first_in_order(self) -> None:
        deep, leaf = self.room(), self.room()
        inner = self.space(deep)
        late, early, odd = self.room(), self.room(), self.room()
        space = self.space(leaf, inner)
        self.add(space, late, order="b")
        self.add(space, early, order="a")
        self.add(space, odd, order="\n")
        self.assertEqual(self.seen(space), [space, early, late, leaf, inner, deep, odd])
        rooms, token = self.do(self.walk(space))
        self.assertIsNone(token)
        children = [msgspec.json.decode(child) for child in rooms[0].children_state]
        self.assertEqual([child["state_key"] for child in children], [early, late, leaf, inner, odd])
        self.assertEqual(set(children[0]), {"type", "state_key", "content", "sender", "origin_server_ts"})
        self.assertEqual(rooms[1].children_state, [])

    def test_pages(self) -> None:
        rooms = [self.room() for _ in range(5)]
        space = self.space(*rooms)
        found, token = self.do(self.walk(space, limit=4))
        self.assertEqual([room.summary.room_id for room in found], [space, *rooms[:3]])
        for _ in range(2):
            self.assertEqual(self.seen(space, limit=4, from_token=token), rooms[3:])
        for user, options in (
            (CAROL, {}),
            (BOB, {"max_depth": 3}),
            (BOB, {"suggested_only": True}),
            (BOB, {"from_token": "nonsense"}),
        ):
            self.refused(self.walk(space, user, **{"from_token": token, **options}), "M_INVALID_PARAM", 400)
        self.refused(self.walk(rooms[0], from_token=token), "M_INVALID_PARAM", 400)
        self.memory.clock.advance(601)
        self.refused(self.walk(space, from_token=token), "M_INVALID_PARAM", 400)
        self.refused(self.walk(space, limit=0), "M_INVALID_PARAM", 400)
        self.refused(self.walk(space, max_depth=-1), "M_INVALID_PARAM", 400)

    def test_walks_that_are_remembered_are_bounded(self) -> None:
        self.patch(hierarchy, "WALKS_LIMIT", 2)
        space = self.space(self.room(), self.room())
        tokens = [self.do(self.walk(space, limit=1))[1] for _ in range(3)]
        self.refused(self.walk(space, from_token=tokens[0]), "M_INVALID_PARAM", 400)
        self.assertEqual(len(self.seen(space, from_token=tokens[2])), 2)

    def test_loops_end(self) -> None:
        space = self.space()
        inner = self.space(space)
        self.add(space, inner)
        self.add(space, space)
        self.assertEqual(self.seen(space), [space, inner])

    def test_depth_and_suggestions(self) -> None:
        leaf = self.room()
        inner = self.space(leaf)
        plain = self.room()
        space = self.space(plain)
        self.add(space, inner, suggested=True)
        self.assertEqual(self.seen(space, max_depth=0), [space])
        self.assertEqual(self.seen(space, max_depth=1), [space, plain, inner])
        self.assertEqual(self.seen(space, suggested_only=True), [space, inner])

    def test_what_is_no_child(self) -> None:
        room, removed, bad = self.room(), self.room(), self.room()
        space = self.space(room, removed)
        self.set_state(space, ALICE, "m.space.child", {}, removed)
        self.set_state(space, ALICE, "m.space.child", {"via": "test"}, bad)
        self.set_state(space, ALICE, "m.space.child", ME, "not a room")
        self.set_state(room, ALICE, "m.space.child", ME, bad)
        self.assertEqual(self.seen(space), [space, room])

    def test_rooms_that_are_not_for_everybody(self) -> None:
        rule = lambda **content: [{"type": "m.room.join_rules", "content": content}]  # noqa: E731
        private = self.create()
        readable = self.create(
            initial_state=[{"type": "m.room.history_visibility", "content": {"history_visibility": "world_readable"}}]
        )
        knock = self.create(initial_state=rule(join_rule="knock"))
        knock_old = self.create(room_version="6", initial_state=rule(join_rule="knock"))
        space = self.space()
        allow = [{"type": "m.room_membership", "room_id": space}]
        restricted = self.create(initial_state=rule(join_rule="restricted", allow=allow))
        invited = self.create(invite=[BOB])
        rooms = [private, readable, knock, knock_old, restricted, invited]
        for room_id in rooms:
            self.add(space, room_id)
        self.assertEqual(self.seen(space, ALICE), [space, *rooms])
        self.assertEqual(self.seen(space, BOB), [space, readable, knock, invited])
        self.member(space, BOB, "join")
        self.assertEqual(self.seen(space, BOB), [space, readable, knock, restricted, invited])
        self.refused(self.walk(private), "M_FORBIDDEN", 403)
        self.refused(self.walk("!none:test"), "M_FORBIDDEN", 403)
        self.refused(self.walk("none"), "M_FORBIDDEN", 403)
        self.member(space, ALICE, "ban", BOB)
        self.refused(self.walk(space), "M_FORBIDDEN", 403)


class SummaryTests(RoomStory):
    def test_a_summary_is_for_those_who_may_come_in(self) -> None:
        room_id = self.create(preset="public_chat", name="Den", creation_content={"type": "x"})
        for user, membership in ((None, None), (BOB, None), (ALICE, "join")):
            summary, found = self.do(self.rooms.room_summary_for(room_id, user, []))
            self.assertEqual((summary.name, summary.room_type, found), ("Den", "x", membership))
        private = self.create(invite=[BOB])
        self.assertEqual(self.do(self.rooms.room_summary_for(private, BOB, []))[1], "invite")
        for user in (None, CAROL):
            self.refused(self.rooms.room_summary_for(private, user, []), "M_NOT_FOUND", 404)
        self.refused(self.rooms.room_summary_for("!none:test", ALICE, []), "M_NOT_FOUND", 404)

    def test_mutual_rooms(self) -> None:
        self.patch(hierarchy, "MUTUAL_PAGE", 2)
        rooms = [self.create(preset="public_chat") for _ in range(5)]
        for room_id in rooms[:4]:
            self.member(room_id, BOB, "join")
        self.member(rooms[3], BOB, "leave")
        page, token, count = self.do(self.rooms.mutual_rooms(ALICE, BOB, None))
        self.assertEqual((page, count), (rooms[:2], 3))
        self.assertEqual(self.do(self.rooms.mutual_rooms(ALICE, BOB, token)), ([rooms[2]], None, 3))
        self.assertEqual(self.do(self.rooms.mutual_rooms(ALICE, "@none:test", None)), ([], None, 0))
        for other, token in ((ALICE, None), ("bob", None), (BOB, "x"), (BOB, "9" * 30)):
            self.refused(self.rooms.mutual_rooms(ALICE, other, token), "M_INVALID_PARAM", 400)

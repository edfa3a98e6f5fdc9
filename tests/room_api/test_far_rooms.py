"""Spaces and summaries of rooms that this server is not in, as others describe them."""

from __future__ import annotations

from typing import Any

import msgspec

from dendrite_tw.room_api.remote import spaces
from tests.room_api.story import ALICE, BOB, RoomStory

SPACE = {"type": "m.space"}
HIERARCHY = "/_matrix/federation/v1/hierarchy/"


def described(room_id: str, *children: str, **more: Any) -> dict[str, Any]:
    """A room as another server describes it; one with `children` is a space."""
    return {
        "room_id": room_id,
        "num_joined_members": 3,
        "world_readable": False,
        "guest_can_join": False,
        "join_rule": "public",
        "name": f"Room {room_id[1:]}",
        **({"room_type": "m.space"} if children else {}),
        "children_state": [child(room_id) for room_id in children],
        **more,
    }


def child(room_id: str, **content: Any) -> dict[str, Any]:
    return {
        "type": "m.space.child",
        "state_key": room_id,
        "sender": "@far:far.test",
        "origin_server_ts": 5,
        "content": {"via": ["far.test"], **content},
    }


class FarCase(RoomStory):
    def tell(self, room: dict[str, Any], *children: dict[str, Any], server: str = "far.test", **more: Any) -> None:
        """Have a server describe a room and its children."""
        answer = {"room": room, "children": list(children), "inaccessible_children": [], **more}
        self.others.answers[server, HIERARCHY + room["room_id"]] = answer

    def walk(self, space: str, user: str = BOB, **options: Any) -> tuple[list[str], str | None]:
        given = {"suggested_only": False, "max_depth": None, "limit": None, "from_token": None}
        found, token = self.do(self.rooms.hierarchy(user, space, **{**given, **options}))
        return [room.summary.room_id for room in found], token

    def summary(self, room_id: str, user: str | None = BOB, via: tuple[str, ...] = ("far.test",)) -> Any:
        return self.do(self.rooms.room_summary_for(room_id, user, list(via)))

    def space(self, *children: str, **content: Any) -> str:
        space = self.create(preset="public_chat", creation_content=SPACE)
        for room_id in children:
            self.memory.clock.advance(1)
            self.set_state(space, ALICE, "m.space.child", {"via": ["far.test"], **content}, room_id)
        return space


class TreeTests(FarCase):
    def test_the_tree_goes_on_elsewhere(self) -> None:
        own = self.create(preset="public_chat")
        self.tell(
            described("!inner:far.test", "!leaf:far.test", own, "!deep:far.test"),
            described("!leaf:far.test"),
            described(own, name="not to be believed"),
            described("!deep:far.test", "!bottom:far.test"),
        )
        self.tell(described("!deep:far.test", "!bottom:far.test"), described("!bottom:far.test"))
        space = self.space("!inner:far.test", own)
        rooms, token = self.walk(space)
        self.assertEqual(rooms, [space, "!inner:far.test", "!deep:far.test", "!bottom:far.test", "!leaf:far.test", own])
        self.assertIsNone(token)
        # Of rooms that are no spaces their space has told.
        self.assertEqual(len(self.others.asked), 2)
        found, _ = self.do(self.rooms.hierarchy(BOB, space, False, None, None, None))
        self.assertEqual(len(self.others.asked), 2)
        names = {room.summary.room_id: room.summary.name for room in found}
        self.assertIsNone(names[own])
        children = [msgspec.json.decode(one) for one in found[1].children_state]
        self.assertEqual([one["state_key"] for one in children], [own, "!deep:far.test", "!leaf:far.test"])

    def test_answers_are_forgotten_in_time(self) -> None:
        self.tell(described("!a:far.test"))
        space = self.space("!a:far.test")
        self.assertEqual(self.walk(space)[0], [space, "!a:far.test"])
        self.others.answers.clear()
        self.assertEqual(self.walk(space)[0], [space, "!a:far.test"])
        self.memory.clock.advance(spaces.KEPT_MS / 1000 + 1)
        self.assertEqual(self.walk(space)[0], [space])
        asked = len(self.others.asked)
        self.walk(space)
        self.assertEqual(len(self.others.asked), asked, "nobody is asked again at once")
        self.tell(described("!a:far.test"))
        self.memory.clock.advance(spaces.UNKNOWN_MS / 1000 + 1)
        self.assertEqual(self.walk(space)[0], [space, "!a:far.test"])

    def test_a_space_elsewhere_may_be_the_root(self) -> None:
        self.tell(described("!a:far.test", "!b:far.test", "!c:far.test"), described("!b:far.test"))
        self.tell(described("!c:far.test"))
        self.assertEqual(self.walk("!a:far.test")[0], ["!a:far.test", "!b:far.test", "!c:far.test"])
        self.assertEqual(self.walk("!a:far.test", max_depth=0)[0], ["!a:far.test"])
        self.refused(self.rooms.hierarchy(BOB, "!none:far.test", False, None, None, None), "M_FORBIDDEN", 403)

    def test_suggested_ones_only(self) -> None:
        room = described("!a:far.test", "!b:far.test")
        room["children_state"] = [child("!b:far.test"), child("!c:far.test", suggested=True)]
        self.tell(room, described("!b:far.test"), described("!c:far.test"))
        self.assertEqual(self.walk("!a:far.test", suggested_only=True)[0], ["!a:far.test", "!c:far.test"])

    def test_what_is_said_to_be_inaccessible_is_not_asked_for(self) -> None:
        self.tell(described("!a:far.test", "!b:far.test"), inaccessible_children=["!b:far.test"])
        self.assertEqual(self.walk("!a:far.test")[0], ["!a:far.test"])
        self.assertEqual(len(self.others.asked), 1)

    def test_loops_end(self) -> None:
        self.tell(described("!a:far.test", "!b:far.test"))
        self.tell(described("!b:far.test", "!a:far.test"))
        self.assertEqual(self.walk("!a:far.test")[0], ["!a:far.test", "!b:far.test"])

    def test_a_page_costs_only_so_many_questions(self) -> None:
        self.patch(spaces.Questions.__init__, "__defaults__", (2,))
        rooms = [f"!r{n}:far.test" for n in range(5)]
        for room_id in rooms:
            self.tell(described(room_id))
        space = self.space(*rooms)
        seen, token = self.walk(space)
        self.assertEqual(seen, [space, *rooms[:2]])
        seen, token = self.walk(space, from_token=token)
        self.assertEqual(seen, rooms[2:4])
        self.assertEqual(self.walk(space, from_token=token), (rooms[4:], None))

    def test_the_servers_of_a_child_are_tried_in_turn(self) -> None:
        self.tell(described("!a:far.test"), server="two.test")
        space = self.create(preset="public_chat", creation_content=SPACE)
        via = ["one.test", "test", "no server", "two.test", "three.test", "four.test"]
        self.set_state(space, ALICE, "m.space.child", {"via": via}, "!a:far.test")
        self.assertEqual(self.walk(space)[0], [space])
        self.set_state(space, ALICE, "m.space.child", {"via": ["one.test", "two.test"]}, "!a:far.test")
        self.memory.clock.advance(100)
        self.assertEqual(self.walk(space)[0], [space, "!a:far.test"])
        self.assertEqual(self.others.destinations[-2:], ["one.test", "two.test"])
        self.assertNotIn("test", self.others.destinations)

    def test_nonsense_is_left_out(self) -> None:
        good = described("!a:far.test", "!b:far.test")
        for answer in (
            {},
            [],
            b"no JSON",
            (404, {"errcode": "M_NOT_FOUND", "error": ""}),
            {"room": []},
            {"room": {**good, "room_id": "!other:far.test"}},
            {"room": {**good, "num_joined_members": "many"}},
            {"room": {**good, "name": 5}},
            {"room": {**good, "topic": "x" * 70_000}},
        ):
            self.others.answers["far.test", HIERARCHY + "!a:far.test"] = answer
            self.refused(self.rooms.hierarchy(BOB, "!a:far.test", False, None, None, None), "M_FORBIDDEN", 403)
            self.memory.clock.advance(100)
        good["children_state"] = [
            None,
            {},
            child("none"),
            child("!b:far.test", via=[]),
            child("!c:far.test", via=[5]),
            {**child("!d:far.test"), "origin_server_ts": "soon"},
            {**child("!e:far.test"), "sender": 5},
            {**child("!f:far.test"), "content": []},
            {**child("!g:far.test"), "type": "m.room.name"},
            child("!h:far.test"),
        ]
        self.tell(good, {}, described("!h:far.test"), described("!uninvited:far.test"))  # type: ignore[arg-type]
        self.assertEqual(self.walk("!a:far.test")[0], ["!a:far.test", "!h:far.test"])
        self.refused(self.rooms.room_summary_for("!uninvited:far.test", None, []), "M_NOT_FOUND", 404)


class SummaryTests(FarCase):
    def test_who_may_see_a_room_elsewhere(self) -> None:
        friends = self.create(preset="private_chat")
        for number, (rule, users) in enumerate(
            {
                "public": (None, ALICE, BOB),
                "knock": (None, ALICE, BOB),
                "knock_restricted": (None, ALICE, BOB),
                "restricted": (ALICE,),
                "invite": (),
                "private": (),
            }.items()
        ):
            room_id = f"!r{number}:far.test"
            self.tell(described(room_id, join_rule=rule, allowed_room_ids=[friends, "!x:y"]))
            for user in (ALICE, BOB, None):
                if user in users:
                    self.assertEqual(self.summary(room_id, user)[0].room_id, room_id)
                else:
                    self.refused(self.rooms.room_summary_for(room_id, user, ["far.test"]), "M_NOT_FOUND", 404)
        self.tell(described("!seen:far.test", join_rule="invite", world_readable=True))
        self.assertEqual(self.summary("!seen:far.test")[1], None)

    def test_nobody_is_asked_for_one_who_is_not_known(self) -> None:
        self.tell(described("!a:far.test"))
        self.refused(self.rooms.room_summary_for("!a:far.test", None, ["far.test"]), "M_NOT_FOUND", 404)
        self.assertEqual(self.others.asked, [])
        self.summary("!a:far.test", BOB)
        self.assertEqual(self.summary("!a:far.test", None)[0].name, "Room a:far.test")

    def test_what_is_here_comes_first(self) -> None:
        room_id = self.create(preset="public_chat", name="Here")
        self.tell(described(room_id))
        self.assertEqual(self.summary(room_id)[0].name, "Here")
        self.assertEqual(self.others.asked, [])

    def test_nobody_knows(self) -> None:
        self.refused(self.rooms.room_summary_for("!none:far.test", BOB, ["far.test"]), "M_NOT_FOUND", 404)
        self.refused(self.rooms.room_summary_for("nonsense", BOB, ["far.test"]), "M_NOT_FOUND", 404)
        self.assertEqual(self.others.destinations, ["far.test"])

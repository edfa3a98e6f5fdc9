"""What other servers are told of spaces."""

from __future__ import annotations

from typing import Any

import orjson

from dendrite_tw.room_api import hierarchy
from tests.room_api.history import ALICE, BOB, CAROL, MEMBER, HistoryStory


class SpaceTests(HistoryStory):
    def setUp(self) -> None:
        super().setUp()
        self.space = self.make_room("space", creation_content={"type": "m.space"})

    def make_room(self, name: str, rule: str = "public", **options: Any) -> str:
        rules = {"type": "m.room.join_rules", "state_key": "", "content": {"join_rule": rule}}
        allow = options.pop("allow", None)
        if allow is not None:
            rules["content"]["allow"] = [{"type": "m.room_membership", "room_id": room_id} for room_id in allow]
        return self.a.create(ALICE, name=name, room_version="10", initial_state=[rules], **options)

    def add(self, room_id: str, **content: Any) -> None:
        self.a.send(self.space, ALICE, "m.space.child", {"via": ["a"], **content}, room_id)

    def asked(self, origin: str = "b", **options: Any) -> Any:
        found = self.do(self.a.rooms.hierarchy_for_server(origin, self.space, options.get("suggested_only", False)))
        return orjson.loads(orjson.dumps(found))

    def names(self, origin: str = "b", **options: Any) -> list[str]:
        return [child["name"] for child in self.asked(origin, **options)["children"]]

    def member(self, room_id: str, user: str, membership: str, sender: str | None = None) -> None:
        server = self.network.servers[(sender or user).partition(":")[2]]
        event = server.make_on(self.a, room_id, sender or user, MEMBER, {"membership": membership}, user)
        self.assertEqual([one.verdict for one in self.a.take(room_id, [event])], ["accepted"])

    def test_children_that_a_server_may_know_of_and_others(self) -> None:
        rooms = {rule: self.make_room(rule, rule) for rule in ("public", "knock", "invite")}
        rooms["club"] = self.make_room("club", "restricted", allow=[rooms["invite"]])
        rooms["readable"] = self.make_room("readable", "invite")
        self.a.send(rooms["readable"], ALICE, "m.room.history_visibility", {"history_visibility": "world_readable"}, "")
        for room_id in rooms.values():
            self.add(room_id)
        self.add("!nobody_knows:c")
        found = self.asked()
        self.assertEqual({child["name"] for child in found["children"]}, {"public", "knock", "readable"})
        self.assertEqual(set(found["inaccessible_children"]), {rooms["invite"], rooms["club"]})
        self.assertEqual(found["room"]["room_id"], self.space)
        self.assertEqual(found["room"]["room_type"], "m.space")
        self.assertEqual(found["room"]["room_version"], "10")
        state = found["room"]["children_state"]
        self.assertEqual({child["state_key"] for child in state}, {*rooms.values(), "!nobody_knows:c"})
        self.assertEqual(set(state[0]), {"type", "state_key", "content", "sender", "origin_server_ts"})
        self.assertEqual([child.get("children_state") for child in found["children"]], [None] * 3)

    def test_members_and_guests_of_a_server_open_rooms_to_it(self) -> None:
        invite_only = self.make_room("invite only", "invite")
        club = self.make_room("club", "restricted", allow=["!unknown:c", invite_only])
        for room_id in (invite_only, club):
            self.add(room_id)
        self.assertEqual(self.names("b"), [])
        self.member(invite_only, BOB, "invite", ALICE)
        self.assertEqual(self.names("b"), ["invite only"])
        self.member(invite_only, BOB, "join")
        self.assertEqual(set(self.names("b")), {"invite only", "club"})
        [child] = [child for child in self.asked("b")["children"] if child["name"] == "club"]
        self.assertEqual(child["allowed_room_ids"], ["!unknown:c", invite_only])
        self.assertEqual(self.names("c"), [])

    def test_suggested_rooms_only(self) -> None:
        self.add(self.make_room("plain"))
        self.add(self.make_room("good"), suggested=True)
        self.assertEqual(set(self.names()), {"plain", "good"})
        found = self.asked(suggested_only=True)
        self.assertEqual([child["name"] for child in found["children"]], ["good"])
        self.assertEqual(len(found["room"]["children_state"]), 1)

    def test_a_room_that_is_not_for_the_server_is_unknown_to_it(self) -> None:
        secret = self.make_room("secret", "invite")
        for room_id in (secret, "!nowhere:a", "nonsense"):
            self.refused(self.a.rooms.hierarchy_for_server("b", room_id, False), "M_NOT_FOUND", 404)
        self.member(secret, CAROL, "invite", ALICE)
        self.assertEqual(self.do(self.a.rooms.hierarchy_for_server("c", secret, False))["children"], [])

    def test_a_space_with_many_children_is_described_in_pieces(self) -> None:
        self.patch(hierarchy, "SERVER_CHILDREN", 5)
        self.patch(hierarchy, "AT_ONCE", 2)
        for number in range(7):
            self.add(self.make_room(f"r{number}"), order=str(number))
        answers: list[Any] = []
        self.later(self.a.rooms.hierarchy_for_server("b", self.space, False), answers)
        self.assertEqual(answers, [])
        self.network.memory.clock.advance(0)
        self.assertEqual([child["name"] for child in answers[0]["children"]], [f"r{number}" for number in range(5)])
        self.assertEqual(len(answers[0]["room"]["children_state"]), 7)

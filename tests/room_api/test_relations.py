"""Edits, references and threads: listed, counted, and shown with their parents."""

from __future__ import annotations

import json
from typing import Any

from dendrite_tw.room_api.api import NewEvent
from tests.room_api.story import ALICE, BOB, RoomStory


class RelationTests(RoomStory):
    def setUp(self) -> None:
        super().setUp()
        self.room_id = self.create(preset="public_chat")
        self.member(self.room_id, BOB, "join")

    def relate(
        self, sender: str, parent: str, rel_type: str, body: str, type: str = "m.room.message", **more: Any
    ) -> str:
        content = {"body": body, "m.relates_to": {"rel_type": rel_type, "event_id": parent}, **more}
        event = NewEvent(room_id=self.room_id, sender=sender, type=type, content=content)
        return self.do(self.rooms.send(event))  # type: ignore[no-any-return]

    def shown(self, event_id: str, user: str = ALICE) -> Any:
        found = self.do(self.rooms.aggregations(self.room_id, [event_id], user))
        return json.loads(found[event_id]) if event_id in found else None

    def listed(self, event_id: str, **options: Any) -> Any:
        given: dict[str, Any] = {
            "rel_type": None,
            "event_type": None,
            "direction": "b",
            "from_token": None,
            "to_token": None,
            "limit": 50,
            "recurse": False,
        }
        return self.do(self.rooms.relations(self.room_id, ALICE, event_id, **{**given, **options}))

    def test_the_latest_edit_by_the_author_is_shown(self) -> None:
        said = self.say(self.room_id, ALICE, "helo")
        self.assertIsNone(self.shown(said))
        new = {"m.new_content": {"body": "hello"}}
        self.relate(ALICE, said, "m.replace", "* hell", **new)
        self.memory.clock.advance(1)
        edit = self.relate(ALICE, said, "m.replace", "* hello", **new)
        self.relate(BOB, said, "m.replace", "* bye", **new)
        self.assertEqual(self.shown(said)["m.replace"]["event_id"], edit)
        self.do(
            self.rooms.send(
                NewEvent(room_id=self.room_id, sender=ALICE, type="m.room.redaction", content={}, redacts=edit)
            )
        )
        self.assertNotEqual(self.shown(said)["m.replace"]["event_id"], edit)

    def test_references_are_listed(self) -> None:
        said = self.say(self.room_id, ALICE, "poll")
        ids = [self.relate(BOB, said, "m.reference", str(number)) for number in range(3)]
        self.assertEqual(self.shown(said), {"m.reference": {"chunk": [{"event_id": event_id} for event_id in ids]}})

    def test_a_thread_is_summarised(self) -> None:
        root = self.say(self.room_id, BOB, "root")
        self.relate(BOB, root, "m.thread", "one")
        last = self.relate(BOB, root, "m.thread", "two")
        edit = self.relate(BOB, last, "m.replace", "* 2", **{"m.new_content": {"body": "2"}})
        thread = self.shown(root)["m.thread"]
        self.assertEqual((thread["count"], thread["current_user_participated"]), (2, False))
        self.assertEqual(thread["latest_event"]["event_id"], last)
        self.assertEqual(thread["latest_event"]["unsigned"]["m.relations"]["m.replace"]["event_id"], edit)
        self.assertTrue(self.shown(root, BOB)["m.thread"]["current_user_participated"])
        self.users.ignored = frozenset([BOB])
        self.assertIsNone(self.shown(root))

    def test_threads_are_listed_by_their_latest_event(self) -> None:
        first, second = (self.say(self.room_id, sender, "root") for sender in (ALICE, BOB))
        for root in (second, first, second):
            self.relate(BOB, root, "m.thread", "reply")
        page = self.do(self.rooms.threads(self.room_id, ALICE, "all", None, 1))
        self.assertEqual([event.event_id for event in page.events], [second])
        rest = self.do(self.rooms.threads(self.room_id, ALICE, "all", page.end, 1))
        self.assertEqual(([event.event_id for event in rest.events], rest.end), ([first], None))
        mine = self.do(self.rooms.threads(self.room_id, ALICE, "participated", None, 9))
        self.assertEqual([event.event_id for event in mine.events], [first])
        self.refused(self.rooms.threads(self.room_id, ALICE, "some", None, 9), "M_INVALID_PARAM", 400)
        self.refused(self.rooms.threads(self.room_id, "@eve:test", "all", None, 9), "M_FORBIDDEN", 403)

    def test_children_are_paged_and_chosen(self) -> None:
        said = self.say(self.room_id, ALICE, "parent")
        ids = [self.relate(BOB, said, "m.reference", str(number)) for number in range(5)]
        reaction = self.relate(BOB, said, "m.annotation", "x", type="m.reaction")
        page = self.listed(said, limit=4)
        self.assertEqual([event.event_id for event in page.events], [reaction, *ids[:1:-1]])
        rest = self.listed(said, limit=4, from_token=page.end)
        self.assertEqual(([event.event_id for event in rest.events], rest.end), (ids[1::-1], None))
        self.assertEqual([e.event_id for e in self.listed(said, direction="f", limit=2).events], ids[:2])
        self.assertEqual([e.event_id for e in self.listed(said, rel_type="m.annotation").events], [reaction])
        self.assertEqual(self.listed(said, rel_type="m.annotation", event_type="m.x").events, [])
        self.refused(
            self.rooms.relations(self.room_id, ALICE, "$no", None, None, "b", None, None, 5, False), "M_NOT_FOUND", 404
        )

    def test_recursion_finds_what_relates_to_children(self) -> None:
        root = self.say(self.room_id, ALICE, "root")
        reply = self.relate(BOB, root, "m.thread", "reply")
        reaction = self.relate(ALICE, reply, "m.annotation", "x", type="m.reaction")
        self.assertEqual([e.event_id for e in self.listed(root).events], [reply])
        self.assertEqual([e.event_id for e in self.listed(root, recurse=True).events], [reaction, reply])

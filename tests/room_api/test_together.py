"""Questions about several things at once say what those about single ones say."""

from __future__ import annotations

from typing import Any

from dendrite_tw.room_api import queries as queries_module
from dendrite_tw.room_api.api import NewEvent
from tests.room_api.story import ALICE, BOB, CAROL, RoomStory


class TogetherTests(RoomStory):
    def setUp(self) -> None:
        super().setUp()
        self.ids = [self.create(preset="public_chat") for _ in range(3)]
        for room_id in self.ids[:2]:
            self.member(room_id, BOB, "join")
        self.member(self.ids[1], BOB, "leave")

    def edited(self, room_id: str) -> str:
        """A message that has been edited."""
        event_id = self.say(room_id, ALICE, "tea")
        content = {
            "msgtype": "m.text",
            "body": "coffee",
            "m.new_content": {"msgtype": "m.text", "body": "coffee"},
            "m.relates_to": {"rel_type": "m.replace", "event_id": event_id},
        }
        self.do(self.rooms.send(NewEvent(room_id=room_id, sender=ALICE, type="m.room.message", content=content)))
        return event_id

    def test_rooms_of_users(self) -> None:
        found = self.do(self.rooms.rooms_joined([ALICE, BOB, CAROL]))
        self.assertEqual(
            {user: set(rooms) for user, rooms in found.items()},
            {
                ALICE: set(self.ids),
                BOB: {self.ids[0]},
                CAROL: set(),
            },
        )

    def test_views_of_rooms(self) -> None:
        wanted = [self.ids[2], "!unknown:test", self.ids[0]]
        views = self.do(self.rooms.room_views(wanted, 5))
        self.assertEqual(views, [self.do(self.rooms.room_view(room_id, 5)) for room_id in (self.ids[2], self.ids[0])])

    def test_no_more_views_than_go_into_an_answer(self) -> None:
        self.assertEqual(len(self.do(self.rooms.room_views(self.ids[:1] * 80, 1))), 50)

    def test_aggregations_of_rooms(self) -> None:
        edited = {room_id: self.edited(room_id) for room_id in self.ids}
        plain = self.say(self.ids[0], ALICE, "water")
        found = self.do(self.rooms.aggregations_of({r: [e, plain] for r, e in edited.items()}, ALICE))
        self.assertEqual(set(found), set(edited.values()))
        for room_id, event_id in edited.items():
            self.assertEqual(found[event_id], self.do(self.rooms.aggregations(room_id, [event_id], ALICE))[event_id])

    def test_what_a_page_is_dressed_with(self) -> None:
        room_id = self.ids[1]
        event_id = self.edited(room_id)
        dressing = self.do(self.rooms.dressing(room_id, [event_id], BOB))
        self.assertEqual(dressing.membership, self.do(self.rooms.membership(room_id, BOB)))
        self.assertEqual(set(dressing.bundles), {event_id})
        self.assertIsNone(self.do(self.rooms.dressing(room_id, [], CAROL)).membership)

    def test_a_view_has_the_state_that_its_newest_event_left(self) -> None:
        """An event may be stored between two statements of the one who reads."""
        room_id = self.ids[0]
        newest_live = queries_module.event_table.newest_live
        before = [2]

        async def disturbed(*args: Any) -> Any:
            if before[0]:
                before[0] -= 1
                self.set_state(room_id, ALICE, "m.room.topic", {"topic": str(before[0])})
            return await newest_live(*args)

        self.patch(queries_module.event_table, "newest_live", disturbed)
        view = self.do(self.rooms.room_view(room_id, 10))
        topics = {event.event_id: event for event in view.state if event.type == "m.room.topic"}
        self.assertEqual(list(topics), [view.timeline[-1].event_id])

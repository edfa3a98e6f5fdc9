"""How rooms move between the sections of a sync: invite, knock, join, leave, ban, forget."""

from __future__ import annotations

from typing import Any

import msgspec

from dendrite_tw.room_api.api import PURGE_ROOM, RoomPurged
from tests.sync_api.scene import ROOM, A, B, SyncCase, ids, joined, timeline_ids

LEAVE = {"room": {"include_leave": True}}


def sections(answer: Any) -> dict[str, list[str]]:
    return {name: sorted(rooms) for name, rooms in answer.get("rooms", {}).items()}


class Joining(SyncCase):
    def setUp(self) -> None:
        super().setUp()
        self.since = self.sync("alice")["next_batch"]

    def test_a_new_room_is_told_in_full(self) -> None:
        self.rooms.create(ROOM, B, name="Den")
        for n in range(20):
            self.rooms.message(ROOM, B, str(n))
        join = self.rooms.join(ROOM, A)
        room = joined(self.sync("alice", self.since))
        self.assertTrue(room["timeline"]["limited"])
        self.assertEqual(ids(room["timeline"])[-1], join.event_id)
        self.assertEqual(len(room["timeline"]["events"]), 10)
        self.assertEqual(
            {(e["type"], e["state_key"]) for e in room["state"]["events"]},
            {("m.room.create", ""), ("m.room.name", ""), ("m.room.member", B)},
        )
        self.assertEqual(room["summary"]["m.joined_member_count"], 2)
        self.assertNotIn("m.heroes", room["summary"])

    def test_history_from_before_is_hidden_where_it_must_be(self) -> None:
        self.rooms.create(ROOM, B, visibility="joined")
        secret = self.rooms.message(ROOM, B, "secret")
        join = self.rooms.join(ROOM, A)
        after = self.rooms.message(ROOM, B)
        for token in (self.since, None):
            answer = self.sync("alice", token)
            self.assertEqual(timeline_ids(answer), ["$e1", "$e2", "$e3", join.event_id, after.event_id])
            self.assertNotIn(secret.event_id, str(answer))

    def test_what_is_current_state_is_shown_though_it_came_while_one_was_away(self) -> None:
        self.rooms.create(ROOM, B, visibility="joined")
        self.rooms.join(ROOM, A)
        since = self.sync("alice")["next_batch"]
        self.rooms.leave(ROOM, A)
        old = self.rooms.send(ROOM, B, "m.room.topic", {"topic": "old"}, "")
        topic = self.rooms.send(ROOM, B, "m.room.topic", {"topic": "new"}, "")
        for n in range(40):
            self.rooms.message(ROOM, B, str(n))
        join = self.rooms.join(ROOM, A)
        for restarted in (False, True):
            if restarted:
                self.restart()
            answer = self.sync("alice", since)
            self.assertEqual(timeline_ids(answer)[-2:], [topic.event_id, join.event_id])
            self.assertNotIn(old.event_id, timeline_ids(answer))
            self.assertLessEqual(len(timeline_ids(answer)), 10)
            self.assertTrue(joined(answer)["timeline"]["limited"])

    def test_membership_at_the_time_of_each_event(self) -> None:
        self.rooms.create(ROOM, B, visibility="shared")
        self.rooms.message(ROOM, B)
        self.rooms.invite(ROOM, B, A)
        self.rooms.join(ROOM, A)
        self.rooms.message(ROOM, B)
        events = joined(self.sync("alice", self.since))["timeline"]["events"]
        self.assertEqual(
            [event["unsigned"]["membership"] for event in events],
            ["leave", "leave", "leave", "leave", "invite", "join", "join"],
        )

    def test_a_change_of_profile_is_no_new_join(self) -> None:
        self.rooms.create(ROOM, A)
        for n in range(5):
            self.rooms.message(ROOM, A, str(n))
        since = self.sync("alice", self.since)["next_batch"]
        change = self.rooms.join(ROOM, A, displayname="Al")
        for restarted in (False, True):
            if restarted:
                self.restart()
            self.assertEqual(timeline_ids(self.sync("alice", since)), [change.event_id])

    def test_leaving_and_coming_back_is_a_new_join(self) -> None:
        self.rooms.create(ROOM, B, visibility="joined")
        self.rooms.join(ROOM, A)
        since = self.sync("alice", self.since)["next_batch"]
        self.rooms.leave(ROOM, A)
        missed = self.rooms.message(ROOM, B)
        back = self.rooms.join(ROOM, A)
        self.rooms.join(ROOM, A, displayname="Al")
        for restarted in (False, True):
            if restarted:
                self.restart()
            room = joined(self.sync("alice", since))
            self.assertTrue(room["timeline"]["limited"])
            self.assertIn(back.event_id, ids(room["timeline"]))
            self.assertNotIn(missed.event_id, ids(room["timeline"]))

    def test_a_join_on_disk_that_was_not_heard_yet_is_a_new_join(self) -> None:
        self.rooms.create(ROOM, B, name="Den")
        self.component.notifier.clear()
        self.rooms.held = []
        self.rooms.join(ROOM, A)
        self.rooms.join(ROOM, A, displayname="Al")
        answer = self.ask("alice", self.since)
        self.assertFalse(answer.done)
        self.rooms.release()
        self.settle()
        room = joined(answer.json)
        self.assertEqual(len(room["timeline"]["events"]), 5)
        self.assertEqual(room["summary"]["m.joined_member_count"], 2)

    def test_wakes_the_one_who_joins(self) -> None:
        self.rooms.create(ROOM, B)
        answer = self.ask("alice", self.since, timeout=30000)
        self.rooms.join(ROOM, A)
        self.settle()
        self.assertEqual(sections(answer.json), {"join": [ROOM]})


class Invites(SyncCase):
    def setUp(self) -> None:
        super().setUp()
        self.rooms.create(ROOM, B, name="Den")
        self.since = self.sync("alice")["next_batch"]

    def test_are_shown_once_with_stripped_state(self) -> None:
        answer = self.ask("alice", self.since, timeout=30000)
        self.rooms.invite(ROOM, B, A)
        self.settle()
        invite = answer.json["rooms"]["invite"][ROOM]["invite_state"]["events"]
        self.assertEqual({e["type"] for e in invite}, {"m.room.create", "m.room.name", "m.room.member"})
        self.assertEqual(set(invite[0]), {"type", "sender", "state_key", "content"})
        self.rooms.message(ROOM, B)
        self.assertEqual(sections(self.sync("alice", answer.json["next_batch"])), {})
        self.assertEqual(sections(self.sync("alice")), {"invite": [ROOM]})

    def test_of_ignored_users_are_not_shown(self) -> None:
        self.users.ignore(A, B)
        self.rooms.invite(ROOM, B, A)
        self.assertEqual(sections(self.sync("alice", self.since)), {})
        self.assertEqual(sections(self.sync("alice")), {})

    def test_that_are_taken_back_move_to_leave(self) -> None:
        self.rooms.invite(ROOM, B, A)
        since = self.sync("alice", self.since)["next_batch"]
        left = self.rooms.member(ROOM, B, A, "leave")
        answer = self.sync("alice", since)
        self.assertEqual(sections(answer), {"leave": [ROOM]})
        self.assertEqual(ids(answer["rooms"]["leave"][ROOM]["timeline"]), [left.event_id])

    def test_that_are_accepted_move_to_join(self) -> None:
        self.rooms.invite(ROOM, B, A)
        since = self.sync("alice", self.since)["next_batch"]
        self.rooms.join(ROOM, A)
        self.assertEqual(sections(self.sync("alice", since)), {"join": [ROOM]})

    def test_knocks_have_their_own_section(self) -> None:
        self.rooms.member(ROOM, A, A, "knock")
        answer = self.sync("alice", self.since)
        self.assertEqual(sections(answer), {"knock": [ROOM]})
        self.assertIn("knock_state", answer["rooms"]["knock"][ROOM])


class Leaving(SyncCase):
    def setUp(self) -> None:
        super().setUp()
        self.rooms.create(ROOM, B)
        self.rooms.join(ROOM, A)
        self.since = self.sync("alice")["next_batch"]

    def test_shows_what_came_before_and_nothing_after(self) -> None:
        before = self.rooms.message(ROOM, B)
        left = self.rooms.leave(ROOM, A)
        self.rooms.message(ROOM, B, "after")
        answer = self.sync("alice", self.since)
        self.assertEqual(sections(answer), {"leave": [ROOM]})
        room = answer["rooms"]["leave"][ROOM]
        self.assertEqual(ids(room["timeline"]), [before.event_id, left.event_id])
        self.assertEqual(room["state"]["events"], [])
        self.rooms.message(ROOM, B, "later")
        self.assertEqual(sections(self.sync("alice", answer["next_batch"])), {})

    def test_kicks_and_bans_are_told_with_their_event(self) -> None:
        for membership in ("leave", "ban"):
            with self.subTest(membership):
                since = self.since
                event = self.rooms.member(ROOM, B, A, membership)
                answer = self.sync("alice", since)
                self.assertEqual(ids(answer["rooms"]["leave"][ROOM]["timeline"])[-1], event.event_id)

    def test_in_a_gap_has_the_state_of_the_gap(self) -> None:
        topic = self.rooms.send(ROOM, B, "m.room.topic", {"topic": "t"}, "")
        for n in range(12):
            self.rooms.message(ROOM, B, str(n))
        self.rooms.leave(ROOM, A)
        self.rooms.send(ROOM, B, "m.room.topic", {"topic": "secret"}, "")
        room = self.sync("alice", self.since)["rooms"]["leave"][ROOM]
        self.assertTrue(room["timeline"]["limited"])
        self.assertEqual(ids(room["state"]), [topic.event_id])
        room = self.sync("alice", self.since, use_state_after=True)["rooms"]["leave"][ROOM]
        self.assertEqual(len(room["state_after"]["events"]), 2)

    def test_a_room_joined_and_left_between_is_told_in_full(self) -> None:
        other = self.rooms.create("!other:test", B, name="Other")
        self.rooms.join(other, A)
        self.rooms.leave(other, A)
        room = self.sync("alice", self.since)["rooms"]["leave"][other]
        self.assertEqual(len(room["timeline"]["events"]), 5)

    def test_initial_sync_shows_left_rooms_if_asked(self) -> None:
        self.rooms.send(ROOM, B, "m.room.topic", {"topic": "t"}, "")
        left = self.rooms.leave(ROOM, A)
        self.rooms.message(ROOM, B, "after")
        self.assertEqual(sections(self.sync("alice")), {})
        answer = self.sync("alice", filter=LEAVE)
        self.assertEqual(sections(answer), {"leave": [ROOM]})
        self.assertEqual(ids(answer["rooms"]["leave"][ROOM]["timeline"])[-1], left.event_id)

    def test_full_state_shows_left_rooms_if_asked(self) -> None:
        self.rooms.leave(ROOM, A)
        since = self.sync("alice", self.since)["next_batch"]
        self.assertEqual(sections(self.sync("alice", since, filter=LEAVE)), {})
        self.assertEqual(sections(self.sync("alice", since, filter=LEAVE, full_state=True)), {"leave": [ROOM]})
        self.assertEqual(sections(self.sync("alice", since, full_state=True)), {})

    def test_a_room_that_is_deleted_is_left(self) -> None:
        waiting = self.ask("alice", self.since, timeout=30000)
        for event in self.rooms.rooms.pop(ROOM).events:
            del self.rooms.by_id[event.event_id]
        self.rooms._position += 1
        payload = msgspec.msgpack.encode(RoomPurged(room_id=ROOM, position=self.rooms._position))
        self.queue.send("OutputRoomEvent", payload, headers={"output_room_event_type": PURGE_ROOM})
        self.settle()
        self.assertEqual(sections(waiting.json), {"leave": [ROOM]})
        self.assertEqual(waiting.json["rooms"]["leave"][ROOM]["timeline"]["events"], [])
        self.assertEqual(sections(self.sync("alice", waiting.json["next_batch"])), {})
        self.assertEqual(sections(self.sync("alice", filter=LEAVE)), {})

    def test_forgotten_rooms_are_hidden(self) -> None:
        self.rooms.leave(ROOM, A)
        self.rooms.forgotten.add((ROOM, A))
        self.assertEqual(sections(self.sync("alice", filter=LEAVE)), {})

    def test_others_leaving_changes_the_summary(self) -> None:
        self.rooms.leave(ROOM, B)
        room = joined(self.sync("alice", self.since))
        self.assertEqual(room["summary"], {"m.joined_member_count": 1, "m.invited_member_count": 0, "m.heroes": [B]})

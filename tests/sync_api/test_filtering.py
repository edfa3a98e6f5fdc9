"""Filters of /sync: what they leave out, lazy loading, ignored users, formats."""

from __future__ import annotations

from typing import Any

from tests.sync_api.scene import ROOM, A, B, C, SyncCase, ids, joined, timeline_ids

LAZY = {"room": {"state": {"lazy_load_members": True}}}
LAZY_ALL = {"room": {"state": {"lazy_load_members": True, "include_redundant_members": True}}}


def members(room: Any, key: str = "state") -> list[str]:
    return sorted(e["state_key"] for e in room[key]["events"] if e["type"] == "m.room.member")


class Filtering(SyncCase):
    def setUp(self) -> None:
        super().setUp()
        self.rooms.create(ROOM, A)
        self.rooms.join(ROOM, B)
        self.since = self.sync("alice")["next_batch"]

    def test_types_and_senders(self) -> None:
        mine = self.rooms.message(ROOM, A)
        yours = self.rooms.message(ROOM, B)
        other = self.rooms.send(ROOM, B, "org.x.y", {})
        for wanted, expected in (
            ({"types": ["m.room.*"]}, [mine, yours]),
            ({"not_types": ["m.*"]}, [other]),
            ({"senders": [A]}, [mine]),
            ({"not_senders": [A]}, [yours, other]),
        ):
            for restarted in (False, True):
                if restarted:
                    self.restart()
                answer = self.sync("alice", self.since, filter={"room": {"timeline": wanted}})
                self.assertEqual(timeline_ids(answer), [event.event_id for event in expected], wanted)

    def test_limit_counts_wanted_events_only(self) -> None:
        sent = []
        for n in range(4):
            sent.append(self.rooms.message(ROOM, A, str(n)).event_id)
            for _ in range(40):
                self.rooms.send(ROOM, B, "org.noise", {})
        wanted = {"room": {"timeline": {"types": ["m.room.message"], "limit": 3}}}
        room = joined(self.sync("alice", self.since, filter=wanted))
        self.assertEqual(ids(room["timeline"]), sent[1:])
        self.assertTrue(room["timeline"]["limited"])
        wanted["room"]["timeline"]["limit"] = 4
        room = joined(self.sync("alice", self.since, filter=wanted))
        self.assertEqual(ids(room["timeline"]), sent)
        self.assertFalse(room["timeline"]["limited"])

    def test_a_limit_of_nothing_leaves_the_state(self) -> None:
        none = {"room": {"timeline": {"limit": 0}, "state": {"types": ["m.room.member"]}}}
        for token in (None, self.since):
            sent = self.rooms.message(ROOM, A)
            room = joined(self.sync("alice", token, filter=none))
            self.assertEqual(ids(room["timeline"]), [])
            self.assertTrue(room["timeline"]["limited"])
            self.assertEqual(room["timeline"]["prev_batch"].split("_")[0], f"s{sent.position}")
            self.assertEqual(members(room) if token is None else [], [A, B] if token is None else [])

    def test_a_name_that_changes_out_of_sight_tells_nothing(self) -> None:
        self.rooms.join(ROOM, B, displayname="Boris")
        hidden = {"room": {"timeline": {"types": []}, "state": {"types": ["org.example"]}}}
        self.assertNotIn("rooms", self.sync("alice", self.since, filter=hidden))
        self.rooms.leave(ROOM, B)
        room = joined(self.sync("alice", self.since, filter=hidden))
        self.assertEqual(room["summary"]["m.joined_member_count"], 1)

    def test_a_room_that_is_named_has_no_heroes_any_more(self) -> None:
        self.rooms.send(ROOM, A, "m.room.name", {"name": "Den"}, "")
        answer = self.sync("alice", self.since)
        self.assertNotIn("m.heroes", joined(answer)["summary"])
        self.rooms.send(ROOM, A, "m.room.name", {}, "")
        self.assertEqual(joined(self.sync("alice", answer["next_batch"]))["summary"]["m.heroes"], [B])

    def test_rooms(self) -> None:
        other = self.rooms.create("!other:test", A)
        answer = self.sync("alice", filter={"room": {"rooms": [other]}})
        self.assertEqual(list(answer["rooms"]["join"]), [other])
        answer = self.sync("alice", filter={"room": {"not_rooms": [other]}})
        self.assertEqual(list(answer["rooms"]["join"]), [ROOM])

    def test_state_that_the_timeline_does_not_show_is_in_state(self) -> None:
        topic = self.rooms.send(ROOM, B, "m.room.topic", {"topic": "t"}, "")
        self.rooms.message(ROOM, B)
        wanted = {"room": {"timeline": {"types": ["m.room.message"]}}}
        room = joined(self.sync("alice", self.since, filter=wanted))
        self.assertEqual(ids(room["state"]), [topic.event_id])

    def test_state_filter(self) -> None:
        wanted = {"room": {"timeline": {"limit": 1}, "state": {"types": ["m.room.create"]}}}
        room = joined(self.sync("alice", filter=wanted))
        self.assertEqual([e["type"] for e in room["state"]["events"]], ["m.room.create"])

    def test_event_fields(self) -> None:
        self.rooms.message(ROOM, B, "hi")
        answer = self.sync("alice", self.since, filter={"event_fields": ["content.body", "type"]})
        self.assertEqual(joined(answer)["timeline"]["events"], [{"type": "m.room.message", "content": {"body": "hi"}}])

    def test_federation_format(self) -> None:
        self.rooms.message(ROOM, B, "hi")
        answer = self.sync("alice", self.since, filter={"event_format": "federation"})
        self.assertIn("auth_events", joined(answer)["timeline"]["events"][0])

    def test_stored_filters(self) -> None:
        self.rooms.message(ROOM, B)
        path = f"/_matrix/client/v3/user/{A}/filter"
        body = {"room": {"timeline": {"not_senders": [B]}}}
        filter_id = self.web.post(path, body, "alice").json["filter_id"]
        self.assertEqual(self.web.post(path, body, "alice").json["filter_id"], filter_id)
        self.restart()
        self.assertEqual(self.web.get(f"{path}/{filter_id}", "alice").json, body)
        self.assertNotIn("rooms", self.sync("alice", self.since, filter=filter_id))

    def test_filters_are_personal_and_must_exist(self) -> None:
        path = f"/_matrix/client/v3/user/{A}/filter"
        filter_id = self.web.post(path, {}, "alice").json["filter_id"]
        self.assertFalse(filter_id.startswith("{"))
        self.assertEqual(self.web.post(path, {}, "bob").status, 403)
        self.assertEqual(self.web.get(f"{path}/{filter_id}", "bob").status, 403)
        self.assertEqual(self.web.get(f"{path}/nothing", "alice").status, 404)
        self.assertEqual(self.ask("bob", filter=filter_id).errcode, "M_INVALID_PARAM")
        self.assertEqual(self.ask("alice", filter="{").errcode, "M_NOT_JSON")
        self.assertEqual(self.ask("alice", filter={"room": {"timeline": {"types": "x"}}}).errcode, "M_BAD_JSON")

    def test_old_filters_make_way(self) -> None:
        from dendrite_tw.sync_api.filters import store_filter
        from dendrite_tw.sync_api.tables.filters import delete_oldest, filter_content

        for number in range(5):
            self.database.write(store_filter, A, f"f{number}", b"{}", number)
        self.successResultOf(self.database.write(delete_oldest, A, 2))
        kept = [n for n in range(5) if self.run_now(self.database.read(filter_content, A, f"f{n}")) is not None]
        self.assertEqual(kept, [3, 4])


class IgnoredUsers(SyncCase):
    def setUp(self) -> None:
        super().setUp()
        self.rooms.create(ROOM, A)
        self.rooms.join(ROOM, B)
        self.since = self.sync("alice")["next_batch"]

    def test_their_messages_are_left_out_and_their_state_is_not(self) -> None:
        self.users.ignore(A, B)
        self.rooms.message(ROOM, B)
        topic = self.rooms.send(ROOM, B, "m.room.topic", {"topic": "t"}, "")
        mine = self.rooms.message(ROOM, A)
        self.assertEqual(timeline_ids(self.sync("alice", self.since)), [topic.event_id, mine.event_id])
        self.restart()
        self.assertEqual(timeline_ids(self.sync("alice", self.since)), [topic.event_id, mine.event_id])

    def test_they_do_not_wake_and_return_when_no_longer_ignored(self) -> None:
        self.users.ignore(A, B)
        since = self.sync("alice", self.since)["next_batch"]
        answer = self.ask("alice", since, timeout=30000)
        self.rooms.message(ROOM, B)
        self.settle()
        self.assertFalse(answer.done)
        self.users.ignore(A)
        self.settle()
        again = self.rooms.message(ROOM, B)
        self.assertEqual(timeline_ids(self.sync("alice", answer.json["next_batch"])), [again.event_id])


class LazyLoading(SyncCase):
    def setUp(self) -> None:
        super().setUp()
        self.rooms.create(ROOM, A, name="Den")
        self.rooms.join(ROOM, B)
        self.rooms.join(ROOM, C)
        for n in range(10):
            self.rooms.message(ROOM, B, str(n))

    def test_initial_sync_has_senders_and_oneself(self) -> None:
        self.assertEqual(members(joined(self.sync("alice", filter=LAZY))), [A, B])
        self.assertEqual(members(joined(self.sync("alice"))), [A, B, C])

    def test_heroes_of_a_nameless_room_come_too(self) -> None:
        other = self.rooms.create("!other:test", A)
        self.rooms.join(other, C)
        for _ in range(10):
            self.rooms.message(other, A)
        room = joined(self.sync("alice", filter=LAZY), other)
        self.assertEqual(room["summary"]["m.heroes"], [C])
        self.assertEqual(members(room), [A, C])

    def test_members_are_sent_once(self) -> None:
        since = self.sync("alice", filter=LAZY)["next_batch"]
        self.rooms.message(ROOM, B)
        answer = self.sync("alice", since, filter=LAZY)
        self.assertEqual(members(joined(answer)), [])
        self.rooms.message(ROOM, C)
        answer = self.sync("alice", answer["next_batch"], filter=LAZY)
        self.assertEqual(members(joined(answer)), [C])
        self.rooms.message(ROOM, C)
        again = self.sync("alice", answer["next_batch"], filter=LAZY)
        self.assertEqual(members(joined(again)), [])
        again = self.sync("alice", answer["next_batch"], filter=LAZY_ALL)
        self.assertEqual(members(joined(again)), [C])

    def test_an_answer_that_was_lost_does_not_count(self) -> None:
        since = self.sync("alice", filter=LAZY)["next_batch"]
        self.rooms.message(ROOM, C)
        for _ in range(2):
            self.assertEqual(members(joined(self.sync("alice", since, filter=LAZY))), [C])

    def test_each_device_has_its_own_memory(self) -> None:
        first = self.sync("alice", filter=LAZY)["next_batch"]
        second = self.sync("alice2", filter={"room": {"state": {"lazy_load_members": True}, "timeline": {"limit": 1}}})
        self.rooms.message(ROOM, C)
        self.assertEqual(members(joined(self.sync("alice", first, filter=LAZY))), [C])
        self.assertEqual(members(joined(self.sync("alice2", second["next_batch"], filter=LAZY))), [C])

    def test_a_gap_has_all_members_who_changed(self) -> None:
        since = self.sync("alice", filter=LAZY)["next_batch"]
        self.rooms.leave(ROOM, C)
        for n in range(12):
            self.rooms.message(ROOM, B, str(n))
        self.assertEqual(members(joined(self.sync("alice", since, filter=LAZY))), [C])

    def test_with_state_after(self) -> None:
        room = joined(self.sync("alice", filter=LAZY, use_state_after=True))
        self.assertEqual(members(room, "state_after"), [A, B])

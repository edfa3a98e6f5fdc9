"""``GET /sync`` for joined rooms: initial, incremental, long-polling."""

from __future__ import annotations

import json

import msgspec
from twisted.internet.defer import CancelledError, Deferred

from dendrite_tw.sync_api.syncing import SyncQuery
from tests.harness import ALICE
from tests.sync_api.scene import ROOM, A, B, SyncCase, ids, joined, timeline_ids


class InitialSync(SyncCase):
    def test_shows_timeline_and_state_at_its_start(self) -> None:
        self.rooms.create(ROOM, A)
        self.rooms.join(ROOM, B)
        sent = [self.rooms.message(ROOM, A, str(n)).event_id for n in range(12)]
        answer = self.sync("alice")
        room = joined(answer)
        self.assertEqual(ids(room["timeline"]), sent[-10:])
        self.assertTrue(room["timeline"]["limited"])
        self.assertEqual({e["type"] for e in room["state"]["events"]}, {"m.room.create", "m.room.member"})
        self.assertEqual(room["summary"], {"m.joined_member_count": 2, "m.invited_member_count": 0, "m.heroes": [B]})

    def test_of_a_small_room_is_all_timeline(self) -> None:
        self.rooms.create(ROOM, A)
        room = joined(self.sync("alice"))
        self.assertEqual(len(room["timeline"]["events"]), 2)
        self.assertFalse(room["timeline"]["limited"])
        self.assertEqual(room["state"]["events"], [])

    def test_of_a_user_without_rooms(self) -> None:
        answer = self.sync("alice")
        self.assertNotIn("rooms", answer)
        self.assertTrue(answer["next_batch"].startswith("s0_"))
        self.assertEqual(answer["device_one_time_keys_count"], {"signed_curve25519": 50})
        self.assertEqual(answer["device_unused_fallback_key_types"], ["signed_curve25519"])

    def test_does_not_wait(self) -> None:
        answer = self.ask("alice", timeout=30000)
        self.settle()
        self.assertTrue(answer.done)


class IncrementalSync(SyncCase):
    def setUp(self) -> None:
        super().setUp()
        self.rooms.create(ROOM, A)
        self.rooms.join(ROOM, B)
        self.since = self.sync("alice")["next_batch"]

    def test_tells_each_event_once(self) -> None:
        first = self.rooms.message(ROOM, B)
        answer = self.sync("alice", self.since)
        self.assertEqual(timeline_ids(answer), [first.event_id])
        self.assertFalse(joined(answer)["timeline"]["limited"])
        second = self.rooms.message(ROOM, B)
        answer = self.sync("alice", answer["next_batch"])
        self.assertEqual(timeline_ids(answer), [second.event_id])
        self.assertNotIn("rooms", self.sync("alice", answer["next_batch"]))

    def test_repeats_for_an_old_token(self) -> None:
        event = self.rooms.message(ROOM, B)
        for _ in range(2):
            self.assertEqual(timeline_ids(self.sync("alice", self.since)), [event.event_id])

    def test_a_token_outlives_the_process(self) -> None:
        event = self.rooms.message(ROOM, B)
        self.restart()
        self.assertEqual(timeline_ids(self.sync("alice", self.since)), [event.event_id])

    def test_an_empty_answer_asks_nobody(self) -> None:
        since = self.sync("alice", self.since)["next_batch"]
        self.rooms.asked.clear()
        self.users.asked.clear()
        self.assertEqual(self.sync("alice", since)["next_batch"], since)
        self.assertEqual((self.rooms.asked, self.users.asked), ([], []))

    def test_events_in_memory_need_no_question(self) -> None:
        self.rooms.message(ROOM, B)
        since = self.sync("alice", self.since)["next_batch"]
        self.rooms.message(ROOM, B)
        self.rooms.asked.clear()
        self.sync("alice", since)
        self.assertEqual(self.rooms.asked, [])

    def test_gap_has_the_state_changes_of_the_gap(self) -> None:
        name = self.rooms.send(ROOM, A, "m.room.name", {"name": "x"}, "")
        for n in range(10):
            self.rooms.message(ROOM, B, str(n))
        topic = self.rooms.send(ROOM, A, "m.room.topic", {"topic": "t"}, "")
        room = joined(self.sync("alice", self.since))
        self.assertTrue(room["timeline"]["limited"])
        self.assertEqual(len(room["timeline"]["events"]), 10)
        self.assertEqual(ids(room["timeline"])[-1], topic.event_id)
        self.assertEqual(ids(room["state"]), [name.event_id])

    def test_gap_after_a_restart_has_the_same_state(self) -> None:
        name = self.rooms.send(ROOM, A, "m.room.name", {"name": "x"}, "")
        for n in range(50):
            self.rooms.message(ROOM, B, str(n))
        self.restart()
        room = joined(self.sync("alice", self.since))
        self.assertEqual(ids(room["state"]), [name.event_id])

    def test_state_changed_in_gap_and_again_in_timeline(self) -> None:
        first = self.rooms.send(ROOM, A, "m.room.name", {"name": "1"}, "")
        for n in range(9):
            self.rooms.message(ROOM, B, str(n))
        second = self.rooms.send(ROOM, A, "m.room.name", {"name": "2"}, "")
        for restarted in (False, True):
            if restarted:
                self.restart()
            room = joined(self.sync("alice", self.since))
            self.assertIn(second.event_id, ids(room["timeline"]))
            self.assertEqual(ids(room["state"]), [first.event_id])
            room = joined(self.sync("alice", self.since, use_state_after=True))
            self.assertNotIn("state", room)
            self.assertEqual(ids(room["state_after"]), [second.event_id])

    def test_state_that_a_resolution_brought_back_is_told(self) -> None:
        old = self.rooms.send(ROOM, A, "m.room.topic", {"topic": "old"}, "")
        self.rooms.send(ROOM, B, "m.room.topic", {"topic": "new"}, "")
        since = self.sync("alice", self.since)["next_batch"]
        message = self.rooms.message(ROOM, B, also_replaced=[old])
        for query, key in (({}, "state"), ({"use_state_after": True}, "state_after")):
            room = joined(self.sync("alice", since, **query))
            self.assertEqual(ids(room["timeline"]), [message.event_id])
            self.assertEqual(ids(room[key]), [old.event_id])

    def test_full_state(self) -> None:
        room = joined(self.sync("alice", self.since, full_state=True, timeout=30000))
        self.assertEqual(room["timeline"]["events"], [])
        self.assertEqual(len(room["state"]["events"]), 3)

    def test_prev_batch_lies_before_the_first_event(self) -> None:
        event = self.rooms.message(ROOM, B)
        timeline = joined(self.sync("alice", self.since))["timeline"]
        self.assertEqual(timeline["prev_batch"], f"t{event.depth}_{event.position - 1}")


class LongPolling(SyncCase):
    def setUp(self) -> None:
        super().setUp()
        self.rooms.create(ROOM, A)
        self.rooms.join(ROOM, B)
        self.since = self.sync("alice")["next_batch"]

    def test_returns_when_something_happens(self) -> None:
        answer = self.ask("alice", self.since, timeout=30000)
        self.assertFalse(answer.done)
        self.clock.advance(10)
        event = self.rooms.message(ROOM, B)
        self.settle()
        self.assertEqual(timeline_ids(answer.json), [event.event_id])

    def test_returns_empty_when_the_time_is_over(self) -> None:
        answer = self.ask("alice", self.since, timeout=30000)
        self.clock.advance(29)
        self.assertFalse(answer.done)
        self.clock.advance(1)
        self.assertEqual(answer.json["next_batch"], self.since)
        self.assertNotIn("rooms", answer.json)

    def test_timeout_is_bounded(self) -> None:
        answer = self.ask("alice", self.since, timeout=10**9)
        self.clock.advance(301)
        self.assertTrue(answer.done)

    def test_is_not_woken_by_other_rooms(self) -> None:
        answer = self.ask("alice", self.since, timeout=30000)
        self.rooms.create("!other:test", B)
        self.rooms.message("!other:test", B)
        self.settle()
        self.assertFalse(answer.done)
        self.assertEqual(self.component.notifier.waiting, 1)

    def test_events_that_the_filter_leaves_out_do_not_end_it(self) -> None:
        wanted = {"room": {"timeline": {"types": ["m.room.message"]}}}
        answer = self.ask("alice", self.since, timeout=30000, filter=wanted)
        self.rooms.send(ROOM, B, "m.reaction", {})
        self.settle()
        self.assertFalse(answer.done)
        event = self.rooms.message(ROOM, B)
        self.settle()
        self.assertEqual(timeline_ids(answer.json), [event.event_id])

    def test_several_events_of_one_moment_come_together(self) -> None:
        answer = self.ask("alice", self.since, timeout=30000)
        sent = [self.rooms.message(ROOM, B).event_id for _ in range(3)]
        self.settle()
        self.assertEqual(timeline_ids(answer.json), sent)

    def test_a_token_of_another_process_is_waited_for(self) -> None:
        self.rooms.held = []
        event = self.rooms.message(ROOM, B)
        token = self.since
        ahead = "s" + str(event.position) + token[token.index("_") :]
        answer = self.ask("alice", ahead)
        self.assertFalse(answer.done)
        self.rooms.release()
        self.settle()
        self.assertEqual(answer.json["next_batch"], ahead)

    def test_a_token_ahead_of_everything_is_cut(self) -> None:
        answer = self.ask("alice", "s999_999_0_0")
        self.clock.advance(6)
        self.assertEqual(answer.json["next_batch"].split("_")[0], self.since.split("_")[0])

    def test_begins_anew_when_messages_were_missed(self) -> None:
        self.sync("alice", self.since)
        self.rooms.held = []
        event = self.rooms.message(ROOM, B)
        self.rooms.held = None
        self.assertNotIn("rooms", self.sync("alice", self.since))
        answer = self.ask("alice", self.since, timeout=60000)
        for _ in range(3):
            self.clock.advance(5)
        self.assertEqual(timeline_ids(answer.json), [event.event_id])

    def test_a_client_that_goes_away_is_forgotten(self) -> None:
        query = SyncQuery(since=self.since, timeout=30000, set_presence="offline")
        waiting = Deferred.fromCoroutine(self.component.handler.sync(ALICE, query))
        self.assertEqual((self.component.notifier.waiting, self.component.handler.active), (1, 1))
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        self.assertEqual((self.component.notifier.waiting, self.component.handler.active), (0, 0))

    def test_streams_of_those_who_are_gone_are_closed(self) -> None:
        self.ask("bob", self.sync("bob")["next_batch"], timeout=300_000)
        for _ in range(14):
            self.clock.advance(60)
            self.sync("bob", timeout=0)
        self.assertIsNone(self.component.notifier.active(A))
        self.assertIsNotNone(self.component.notifier.active(B))

    def test_waiting_requests_of_a_user_are_bounded(self) -> None:
        answers = [self.ask("alice", self.since, timeout=30000) for _ in range(101 * self.process_count)]
        self.settle()
        self.assertEqual(self.component.notifier.waiting, 100)
        self.assertEqual(sum(answer.done for answer in answers), self.process_count)

    def test_a_component_that_drains_answers_at_once_and_goes_on(self) -> None:
        waiting = self.ask("alice", self.since, timeout=30000)
        component = self.component
        component.drain()
        self.settle()
        self.assertEqual(waiting.json["next_batch"], self.since)
        event = self.rooms.message(ROOM, B)
        query = SyncQuery(since=self.since, timeout=30000, set_presence="offline")
        answers = []
        for _ in range(2):
            asked = Deferred.fromCoroutine(component.handler.sync(ALICE, query))
            self.settle()
            answers.append(json.loads(self.successResultOf(asked)))
            query = msgspec.structs.replace(query, since=answers[-1]["next_batch"])
        self.assertEqual(timeline_ids(answers[0]), [event.event_id])
        self.assertEqual(answers[1]["next_batch"], answers[0]["next_batch"])

    def test_a_component_that_stops_leaves_none_waiting(self) -> None:
        self.ask("alice", self.since, timeout=30000)
        self.assertEqual(self.component.notifier.waiting, 1)
        self.component.stop()
        self.settle()
        self.assertEqual(self.component.notifier.waiting, 0)

    def test_bad_tokens_are_refused(self) -> None:
        for bad in ("x", "s", "s-1", "s1_a", "1_2", "s1__2", "s" + "9" * 30, "s1_2_3_4_", "t1_2"):
            answer = self.ask("alice", bad)
            self.assertEqual((answer.status, answer.errcode), (400, "M_INVALID_PARAM"), bad)

    def test_bad_queries_are_refused(self) -> None:
        for query in ({"timeout": "x"}, {"timeout": -1}, {"set_presence": "busy"}, {"full_state": "maybe"}):
            answer = self.ask("alice", self.since, **query)
            self.assertEqual((answer.status, answer.errcode), (400, "M_INVALID_PARAM"), query)

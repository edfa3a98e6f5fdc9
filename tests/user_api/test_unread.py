"""Receipts, unread counts and notifications: scenes in a room, told to the component as the room tells them."""

from __future__ import annotations

import random
import re
from typing import Any

import msgspec

from dendrite_tw.matrix.errors import MatrixError
from dendrite_tw.room_api.api import OUTPUT_ROOM_EVENT, OutputRoomEvent, RoomEvent
from dendrite_tw.user_api.api import (
    OUTPUT_NOTIFICATION_DATA,
    OUTPUT_RECEIPT_EVENT,
    Receipt,
    UnreadChange,
)
from dendrite_tw.user_api.counts import WHOLE, Reader, RoomLog
from dendrite_tw.user_api.tables.unread import LogRow, MarkRow
from tests.harness import ask, trace
from tests.user_api.fakes import FakeMessage, room_event
from tests.user_api.harness import UsersCase

ROOM = "!room:test"
ALICE, BOB, CAROL = "@alice:test", "@bob:test", "@carol:test"


class RoomCase(UsersCase):
    """Alice, Bob and Carol in a room."""

    def setUp(self) -> None:
        super().setUp()
        self.position = 0
        self.previous = 0
        self.told: list[FakeMessage] = []
        for user_id in (ALICE, BOB, CAROL):
            self.joins(user_id)

    def tell(self, event: RoomEvent, version: str = "11", **more: Any) -> RoomEvent:
        """An event arrives; it is given to the durable consumer by `store`."""
        output = msgspec.structs.replace(self.users.rooms.output(event, version), **more)
        headers = {"Outbox-Id": str(output.event.position), "Outbox-Previous": str(self.previous)}
        self.previous = output.event.position
        message = FakeMessage(msgspec.msgpack.encode(output), self.previous, headers)
        self.told.append(message)
        for listener in self.users.queue.listeners.get(OUTPUT_ROOM_EVENT, []):
            listener(message)
        return event

    def store(self) -> None:
        """The durable consumer brings what was told since it last did."""
        told, self.told = self.told, []
        done = _start(self.users.queue.consumers[OUTPUT_ROOM_EVENT](told))
        self.users.clock.advance(1)
        self.successResultOf(done)

    def says(self, sender: str, text: str = "hello", room_id: str = ROOM, **content: Any) -> RoomEvent:
        self.position += 1
        content = {"msgtype": "m.text", "body": text, **content}
        return self.tell(room_event(room_id, self.position, sender, content=content))

    def joins(self, user_id: str, room_id: str = ROOM) -> RoomEvent:
        self.position += 1
        content = {"membership": "join"}
        event = self.tell(room_event(room_id, self.position, user_id, "m.room.member", content, user_id))
        self.store()
        return event

    def counts(self, user_id: str, room_id: str = ROOM) -> tuple[int, int]:
        found = self.wait(self.api.unread(user_id, [room_id], self.position))[room_id]
        return found.notification_count, found.highlight_count

    def threads(self, user_id: str) -> dict[str, tuple[int, int]]:
        return self.wait(self.api.unread(user_id, [ROOM], self.position))[ROOM].threads  # type: ignore[no-any-return]

    def reads(self, user_id: str, event: RoomEvent, type: str = "m.read", thread: str | None = None) -> None:
        self.wait(self.api.read_up_to(user_id, event.room_id, {type: event.event_id}, thread))


def _start(coroutine: Any) -> Any:
    from twisted.internet.defer import Deferred

    return Deferred.fromCoroutine(coroutine)


class Counting(RoomCase):
    def test_messages_count_for_all_but_the_sender(self) -> None:
        self.says(ALICE)
        self.says(ALICE)
        self.assertEqual([(0, 0), (2, 0), (2, 0)], [self.counts(user) for user in (ALICE, BOB, CAROL)])

    def test_what_notifies_nobody_does_not_count(self) -> None:
        self.says(ALICE, msgtype="m.notice")
        self.position += 1
        self.tell(room_event(ROOM, self.position, ALICE, "m.room.topic", {"topic": "tea"}, ""))
        self.assertEqual((0, 0), self.counts(BOB))

    def test_reading_and_sending_make_it_read(self) -> None:
        first, second = self.says(ALICE), self.says(ALICE)
        self.reads(BOB, first)
        self.assertEqual((1, 0), self.counts(BOB))
        self.reads(BOB, second, "m.read.private")
        self.assertEqual((0, 0), self.counts(BOB))
        self.assertEqual((2, 0), self.counts(CAROL))
        self.says(CAROL)
        self.assertEqual((0, 0), self.counts(CAROL))
        self.assertEqual((1, 0), self.counts(BOB))

    def test_an_older_receipt_does_not_rewind(self) -> None:
        first, second = self.says(ALICE), self.says(ALICE)
        self.reads(BOB, second, "m.read.private")
        self.reads(BOB, first, "m.read")
        self.assertEqual((0, 0), self.counts(BOB))

    def test_who_joins_later_has_nothing_unread_from_before(self) -> None:
        self.says(ALICE)
        self.joins("@dave:test")
        self.assertEqual((0, 0), self.counts("@dave:test"))
        self.says(ALICE)
        self.assertEqual((1, 0), self.counts("@dave:test"))

    def test_a_new_name_reads_nothing(self) -> None:
        self.says(ALICE)
        self.position += 1
        content = {"membership": "join", "displayname": "Bobby"}
        event = room_event(ROOM, self.position, BOB, "m.room.member", content, BOB)
        self.tell(msgspec.structs.replace(event, prev_content=b'{"membership":"join"}'))
        self.assertEqual((1, 0), self.counts(BOB))

    def test_a_mention_highlights_for_the_one_who_is_mentioned(self) -> None:
        self.says(ALICE, **{"m.mentions": {"user_ids": [BOB, "@nobody:test", "@far:elsewhere", ALICE]}})
        self.says(ALICE)
        self.assertEqual([(2, 1), (2, 0)], [self.counts(BOB), self.counts(CAROL)])
        self.store()
        rows = ask(self.users.database, "SELECT user_id FROM unread_personal")
        self.assertEqual([(BOB,)], rows)

    def test_the_room_is_mentioned_by_those_who_may(self) -> None:
        self.position += 1
        levels = {"users": {ALICE: 50}, "notifications": {"room": 50}}
        self.tell(room_event(ROOM, self.position, ALICE, "m.room.power_levels", levels, ""))
        self.position += 1
        self.tell(room_event(ROOM, self.position, ALICE, "m.room.create", {}, ""))
        self.says(ALICE, **{"m.mentions": {"room": True}})
        self.says(BOB, **{"m.mentions": {"room": True}})
        self.assertEqual((2, 1), self.counts(CAROL))

    def test_a_creator_of_a_version_12_room_may_always(self) -> None:
        self.position += 1
        self.tell(room_event(ROOM, self.position, ALICE, "m.room.create", {"additional_creators": [BOB]}, ""))
        self.position += 1
        levels = {"users": {}, "notifications": {"room": 9000}}
        self.tell(room_event(ROOM, self.position, ALICE, "m.room.power_levels", levels, ""))
        for sender, version in ((ALICE, "12"), (BOB, "12"), (ALICE, "11"), (ALICE, "no.such.version")):
            self.position += 1
            content = {"msgtype": "m.text", "body": "all", "m.mentions": {"room": True}}
            self.tell(room_event(ROOM, self.position, sender, content=content), version)
        self.assertEqual((4, 2), self.counts(CAROL))

    def test_an_invitation_notifies_who_is_invited(self) -> None:
        self.position += 1
        content = {"membership": "invite"}
        self.tell(room_event(ROOM, self.position, ALICE, "m.room.member", content, "@dave:test"))
        self.assertEqual((1, 0), self.counts("@dave:test"))
        self.assertEqual((0, 0), self.counts(BOB))

    def test_a_redacted_event_is_nothing_to_read(self) -> None:
        event = self.says(ALICE, **{"m.mentions": {"user_ids": [BOB]}})
        self.says(ALICE)
        self.store()
        self.assertEqual((2, 1), self.counts(BOB))
        self.position += 1
        content = {"redacts": event.event_id}
        redaction = room_event(ROOM, self.position, ALICE, "m.room.redaction", content)
        self.tell(redaction, redacts=event.event_id)
        self.assertEqual([(1, 0), (1, 0)], [self.counts(BOB), self.counts(CAROL)])
        self.store()
        self.restart()
        self.assertEqual([(1, 0), (1, 0)], [self.counts(BOB), self.counts(CAROL)])

    def test_a_purged_room_has_no_counts(self) -> None:
        event = self.says(ALICE, **{"m.mentions": {"user_ids": [BOB]}})
        self.reads(CAROL, event)
        self.store()
        self.assertLess(0, self.wait(self.api.forget_room(ROOM)))
        self.assertEqual((0, 0), self.counts(BOB))
        self.assertEqual([], self.wait(self.api.receipts_since([ROOM], 0, 10**9)))

    def test_old_events_are_pruned(self) -> None:
        self.says(ALICE, **{"m.mentions": {"user_ids": [BOB]}})
        self.store()
        self.users.clock.advance(91 * 86_400)
        for table in ("unread_log", "unread_personal"):
            self.assertEqual(0, ask(self.users.database, f"SELECT COUNT(*) FROM {table}")[0][0])


class ManyMembers(RoomCase):
    def test_an_event_costs_no_more_in_a_big_room(self) -> None:
        for number in range(2000):
            self.users.rooms.put(ROOM, f"@user{number}:test")
        self.says(ALICE)
        self.users.rooms.asked.clear()
        statements = trace(self.users.database)
        for _ in range(50):
            self.says(ALICE)
        self.store()
        self.assertEqual([], self.users.rooms.asked)
        changes = re.findall(r"\b(?:INSERT INTO|DELETE FROM|(?<!DO )UPDATE)\b", "\n".join(statements))
        self.assertGreater(len(changes), 0)
        self.assertLess(len(changes), 60)
        self.assertEqual((51, 0), self.counts("@user1234:test"))


class OwnRules(RoomCase):
    def rule(self, user_id: str, kind: str, rule_id: str, **rule: Any) -> None:
        self.wait(self.api.put_push_rule(user_id, kind, rule_id, rule, None, None))

    def test_a_muted_room_does_not_count_and_costs_no_rows(self) -> None:
        self.says(ALICE)
        self.rule(BOB, "room", ROOM, actions=[])
        self.says(ALICE)
        self.says(ALICE, **{"m.mentions": {"user_ids": [BOB]}})
        self.assertEqual([(2, 1), (3, 0)], [self.counts(BOB), self.counts(CAROL)])
        self.wait(self.api.delete_push_rule(BOB, "room", ROOM))
        self.assertEqual(1, self.counts(BOB)[0], "what came while the room was muted stays silent")
        self.says(ALICE)
        self.assertEqual((2, 1), self.counts(BOB))
        self.store()
        rows = ask(self.users.database, "SELECT COUNT(*) FROM unread_personal")[0][0]
        self.assertEqual(1, rows)

    def test_a_keyword_highlights(self) -> None:
        self.rule(BOB, "content", "tea", actions=["notify", {"set_tweak": "highlight"}], pattern="tea")
        self.says(ALICE, "time for tea")
        self.says(ALICE, "time for coffee")
        self.assertEqual([(2, 1), (2, 0)], [self.counts(BOB), self.counts(CAROL)])

    def test_a_silenced_sender_is_not_heard(self) -> None:
        self.rule(BOB, "sender", ALICE, actions=[])
        self.says(ALICE)
        self.says(CAROL)
        self.assertEqual((1, 0), self.counts(BOB))

    def test_a_changed_default_rule(self) -> None:
        self.says(ALICE)
        self.wait(self.api.set_push_rule_enabled(BOB, "underride", ".m.rule.message", False))
        self.says(ALICE)
        self.says(ALICE, **{"m.mentions": {"user_ids": [BOB]}})
        self.assertEqual([(2, 1), (3, 0)], [self.counts(BOB), self.counts(CAROL)])
        self.wait(self.api.set_push_rule_enabled(BOB, "underride", ".m.rule.message", True))
        self.says(ALICE)
        self.assertEqual((2, 1), self.counts(BOB))

    def test_rules_of_who_joins_or_leaves_are_minded(self) -> None:
        self.rule("@dave:test", "content", "tea", actions=["notify", {"set_tweak": "highlight"}], pattern="tea")
        self.says(ALICE, "tea")
        self.joins("@dave:test")
        self.says(ALICE, "tea")
        self.assertEqual((1, 1), self.counts("@dave:test"))
        self.position += 1
        left = {"membership": "leave"}
        self.tell(room_event(ROOM, self.position, "@dave:test", "m.room.member", left, "@dave:test"))
        before = self.counts("@dave:test")[1]
        self.says(ALICE, "tea")
        self.assertEqual(before, self.counts("@dave:test")[1])

    def told_besides(self, user_id: str, membership: str, **more: Any) -> None:
        """A message comes by which the state changes in another place: that of a user's membership."""
        self.users.rooms.put(ROOM, user_id, membership)
        self.position += 1
        self.tell(room_event(ROOM, self.position, "@eve:far"), **more)

    def test_memberships_that_change_with_another_event_are_minded(self) -> None:
        dave = "@dave:test"
        self.rule(dave, "content", "tea", actions=["notify", {"set_tweak": "highlight"}], pattern="tea")
        self.says("@eve:far", "tea")
        joined = room_event(ROOM, 0, dave, "m.room.member", {"membership": "join"}, dave)
        self.told_besides(dave, "join", also_replaced=[joined])
        self.says("@eve:far", "tea")
        self.assertEqual(1, self.counts(dave)[1])
        self.told_besides(dave, "leave", also_removed=[("m.room.member", dave), ("m.room.name", "")])
        self.says("@eve:far", "tea")
        self.assertEqual(1, self.counts(dave)[1])
        self.told_besides(dave, "join", rewrites_state=True)
        self.says("@eve:far", "tea")
        self.assertEqual(2, self.counts(dave)[1])

    def test_an_event_that_lost_against_another_changes_no_membership(self) -> None:
        self.rule(BOB, "content", "tea", actions=["notify", {"set_tweak": "highlight"}], pattern="tea")
        self.says("@eve:far", "tea")
        self.position += 1
        kicked = room_event(ROOM, self.position, "@eve:far", "m.room.member", {"membership": "leave"}, BOB)
        self.tell(kicked, state_changed=False)
        self.users.rooms.put(ROOM, BOB)
        self.says("@eve:far", "tea")
        self.assertEqual(2, self.counts(BOB)[1])

    def test_after_a_restart_all_is_as_before(self) -> None:
        self.says(ALICE)
        self.rule(BOB, "room", ROOM, actions=[])
        self.rule(CAROL, "content", "tea", actions=["notify", {"set_tweak": "highlight"}], pattern="tea")
        self.says(ALICE, "tea")
        before = [self.counts(user) for user in (ALICE, BOB, CAROL)]
        self.assertEqual([(0, 0), (1, 0), (2, 1)], before)
        self.store()
        self.restart()
        self.assertEqual(before, [self.counts(user) for user in (ALICE, BOB, CAROL)])


class Threads(RoomCase):
    def setUp(self) -> None:
        super().setUp()
        self.root = self.says(ALICE)
        self.reply = self.says(ALICE, **{"m.relates_to": {"rel_type": "m.thread", "event_id": self.root.event_id}})

    def test_threads_are_counted_apart(self) -> None:
        self.assertEqual((1, 0), self.counts(BOB))
        self.assertEqual({self.root.event_id: (1, 0)}, self.threads(BOB))

    def test_an_unthreaded_receipt_reads_all(self) -> None:
        self.reads(BOB, self.reply)
        self.assertEqual(((0, 0), {}), (self.counts(BOB), self.threads(BOB)))

    def test_a_threaded_one_reads_its_thread(self) -> None:
        self.reads(BOB, self.reply, thread=self.root.event_id)
        self.assertEqual(((1, 0), {}), (self.counts(BOB), self.threads(BOB)))
        self.reads(CAROL, self.root, thread="main")
        self.assertEqual(((0, 0), {self.root.event_id: (1, 0)}), (self.counts(CAROL), self.threads(CAROL)))

    def test_sending_reads_the_thread_it_is_sent_to(self) -> None:
        self.says(BOB, **{"m.relates_to": {"rel_type": "m.thread", "event_id": self.root.event_id}})
        self.assertEqual(((1, 0), {}), (self.counts(BOB), self.threads(BOB)))

    def test_relations_are_followed_to_their_thread(self) -> None:
        last = self.reply
        for _ in range(2):
            last = self.says(CAROL, **{"m.relates_to": {"rel_type": "m.reference", "event_id": last.event_id}})
        self.assertEqual({self.root.event_id: (3, 0)}, self.threads(BOB))
        self.reads(BOB, last, thread=self.root.event_id)
        self.assertEqual({}, self.threads(BOB))

    def test_a_receipt_names_the_right_thread(self) -> None:
        for event, thread in [(self.reply, "main"), (self.root, "$other"), (self.reply, "$other")]:
            receipts = {"m.read": event.event_id}
            error = self.refused(self.api.read_up_to(BOB, ROOM, receipts, thread))
            self.assertEqual((400, "M_INVALID_PARAM"), (error.status, error.errcode))
        self.reads(BOB, self.root, thread=self.root.event_id)


class Receipts(RoomCase):
    def since(self, after: int) -> list[tuple[str, str, str, str | None]]:
        found = self.wait(self.api.receipts_since([ROOM], after, self.wait(self.api.position())))
        return [(one.user_id, one.receipt_type, one.event_id, one.thread_id) for one in found]

    def test_each_user_type_and_thread_has_one(self) -> None:
        first, second = self.says(ALICE), self.says(ALICE)
        self.reads(BOB, first)
        before = self.wait(self.api.position())
        self.reads(BOB, second)
        self.reads(BOB, first, "m.read.private")
        self.reads(BOB, first, thread="main")
        expected = [
            (BOB, "m.read", second.event_id, None),
            (BOB, "m.read.private", first.event_id, None),
            (BOB, "m.read", first.event_id, "main"),
        ]
        self.assertEqual(expected, self.since(0))
        self.assertEqual(expected, self.since(before))
        self.assertEqual([], self.since(self.wait(self.api.position())))

    def test_it_is_told_once_and_with_its_position(self) -> None:
        event = self.says(ALICE)
        self.reads(BOB, event)
        self.reads(BOB, event)
        self.assertEqual([OUTPUT_RECEIPT_EVENT, OUTPUT_NOTIFICATION_DATA], self.users.streams())
        receipt = msgspec.msgpack.decode(self.users.told[0].payload, type=Receipt)
        change = msgspec.msgpack.decode(self.users.told[1].payload, type=UnreadChange)
        told = (receipt.position, receipt.user_id, receipt.event_id)
        self.assertEqual((self.users.told[0].id, BOB, event.event_id), told)
        self.assertEqual((self.users.told[1].id, BOB, ROOM), (change.position, change.user_id, change.room_id))

    def test_older_ones_are_dropped(self) -> None:
        first, second = self.says(ALICE), self.says(ALICE)
        self.reads(BOB, second)
        told = len(self.users.told)
        self.reads(BOB, first)
        self.assertEqual(told, len(self.users.told))
        self.assertEqual([(BOB, "m.read", second.event_id, None)], self.since(0))

    def test_the_marker_is_account_data(self) -> None:
        event = self.says(ALICE)
        both = {"m.fully_read": event.event_id, "m.read": event.event_id}
        self.wait(self.api.read_up_to(BOB, ROOM, both, None))
        marker = self.wait(self.api.account_data(BOB, ROOM, "m.fully_read"))
        self.assertEqual(b'{"event_id":"%s"}' % event.event_id.encode(), marker)
        self.assertEqual([(BOB, "m.read", event.event_id, None)], self.since(0))

    def test_who_may_and_what_there_is_to_read(self) -> None:
        event = self.says(ALICE)
        elsewhere = self.says(ALICE, room_id="!else:test")
        for user_id, event_id, status in [
            ("@dave:test", event.event_id, 403),
            (BOB, "$nothing", 404),
            (BOB, elsewhere.event_id, 404),
        ]:
            error = self.refused(self.api.read_up_to(user_id, ROOM, {"m.read": event_id}, None))
            self.assertEqual(status, error.status)
        self.assertEqual([], self.since(0))

    def remote(self, event_id: str, user_id: str = "@eve:far", **more: Any) -> Receipt:
        return Receipt(room_id=ROOM, user_id=user_id, event_id=event_id, **{"receipt_type": "m.read", "ts": 5, **more})

    def test_those_of_other_servers(self) -> None:
        event = self.says(ALICE)
        self.users.rooms.put(ROOM, "@eve:far")
        self.users.rooms.put(ROOM, "@fay:far")
        remote = self.remote(event.event_id)
        unknown = self.remote("$later", "@fay:far")
        nonsense = self.remote(event.event_id, receipt_type="m.nonsense")
        private = self.remote(event.event_id, receipt_type="m.read.private")
        self.wait(self.api.put_receipts([remote, unknown, nonsense, private, remote, unknown]))
        self.assertEqual(
            [("@eve:far", "m.read", event.event_id, None), ("@fay:far", "m.read", "$later", None)], self.since(0)
        )
        self.assertNotIn(OUTPUT_NOTIFICATION_DATA, self.users.streams())
        self.assertEqual(2, len(self.users.told))

    def test_who_is_not_in_the_room_reads_nothing(self) -> None:
        event = self.says(ALICE)
        self.users.rooms.put(ROOM, "@gus:far", "leave")
        nowhere = msgspec.structs.replace(self.remote("$x"), room_id="!nowhere:far")
        strangers = [self.remote(event.event_id, user_id) for user_id in ("@eve:far", "@gus:far")]
        self.wait(self.api.put_receipts([*strangers, nowhere]))
        self.assertEqual([], self.users.told)

    def test_threads_of_other_servers_are_those_of_the_room(self) -> None:
        root = self.says(ALICE)
        self.users.rooms.put(ROOM, "@eve:far")
        elsewhere = self.says(ALICE, room_id="!else:test")
        threads = [None, "main", root.event_id, "$unknown", elsewhere.event_id]
        self.wait(self.api.put_receipts([self.remote(root.event_id, thread_id=thread) for thread in threads]))
        self.assertEqual([None, "main", root.event_id], [thread for *_, thread in self.since(0)])

    def test_an_unknown_event_is_a_newer_one_until_it_arrives(self) -> None:
        first, second = self.says(ALICE), self.says(ALICE)
        self.users.rooms.put(ROOM, "@eve:far")
        for event_id in (second.event_id, "$later"):
            self.wait(self.api.put_receipts([self.remote(event_id)]))
        self.assertEqual([("@eve:far", "m.read", "$later", None)], self.since(0))
        third = self.says(ALICE)
        for event_id in (third.event_id, first.event_id, second.event_id):
            self.wait(self.api.put_receipts([self.remote(event_id)]))
        self.assertEqual([("@eve:far", "m.read", third.event_id, None)], self.since(0))

    def test_history_fetched_later_is_older(self) -> None:
        event = self.says(ALICE)
        self.users.rooms.put(ROOM, "@eve:far")
        old = room_event(ROOM, -3, ALICE)
        self.users.rooms.stored[old.event_id] = old
        for event_id in (old.event_id, event.event_id, old.event_id):
            self.wait(self.api.put_receipts([self.remote(event_id)]))
        self.assertEqual([("@eve:far", "m.read", event.event_id, None)], self.since(0))


class Memberships(RoomCase):
    """Who keeps something of memberships is told of each change before it counts as taken."""

    def setUp(self) -> None:
        super().setUp()
        self.heard: list[str] = []
        self.failing = False
        self.api.on_memberships.append(self.hear)

    async def hear(self, told: OutputRoomEvent) -> None:
        if self.failing:
            raise MatrixError(503, "M_UNKNOWN", "later")
        self.heard.append(told.event.event_id)

    def test_of_changes_and_of_nothing_else(self) -> None:
        event = self.joins("@eve:far")
        self.says(ALICE)
        self.position += 1
        self.tell(room_event(ROOM, self.position, ALICE), also_removed=[("m.room.member", "@eve:far")])
        self.store()
        self.assertEqual([event.event_id, f"$room{self.position}"], self.heard)

    def test_again_where_it_failed(self) -> None:
        self.failing = True
        self.position += 1
        event = room_event(ROOM, self.position, "@eve:far", "m.room.member", {"membership": "join"}, "@eve:far")
        self.tell(event)
        told = list(self.told)
        self.failureResultOf(_start(self.users.queue.consumers[OUTPUT_ROOM_EVENT](told)))
        self.flushLoggedErrors()
        self.assertEqual([], self.heard)
        self.failing = False
        self.store()
        self.assertEqual([event.event_id], self.heard)
        self.restart()
        self.told = told
        self.store()
        self.assertEqual([event.event_id], self.heard)


class Arrival(RoomCase):
    def test_a_question_waits_for_its_event(self) -> None:
        asked = _start(self.api.unread(BOB, [ROOM], self.position + 1))
        self.assertNoResult(asked)
        self.says(ALICE)
        self.assertEqual(1, self.successResultOf(asked)[ROOM].notification_count)

    def test_but_not_for_ever_and_not_twice(self) -> None:
        asked = _start(self.api.unread(BOB, [ROOM], self.position + 1))
        self.users.clock.advance(1)
        self.assertEqual(0, self.successResultOf(asked)[ROOM].notification_count)
        self.successResultOf(_start(self.api.unread(BOB, [ROOM], self.position + 1)))

    def test_what_was_answered_too_early_is_put_right(self) -> None:
        asked = [_start(self.api.unread(user, [ROOM], self.position + 1)) for user in (BOB, CAROL)]
        self.users.clock.advance(1)
        for one in asked:
            self.assertEqual(0, self.successResultOf(one)[ROOM].notification_count)
        self.users.told.clear()
        self.says(ALICE)
        for _ in range(2):
            self.store()
            changes = [msgspec.msgpack.decode(row.payload, type=UnreadChange) for row in self.users.told]
            self.assertEqual([(BOB, ROOM), (CAROL, ROOM)], [(change.user_id, change.room_id) for change in changes])
            self.assertEqual([row.id for row in self.users.told], [change.position for change in changes])
        self.assertEqual([(1, 0), (1, 0)], [self.counts(user) for user in (BOB, CAROL)])

    def test_who_stops_asking_is_not_answered(self) -> None:
        asked = _start(self.api.unread(BOB, [ROOM], self.position + 1))
        asked.cancel()
        self.failureResultOf(asked)
        self.says(ALICE)
        self.assertEqual([], self.api.counts._waiting)

    def test_a_repeated_delivery_changes_nothing(self) -> None:
        self.says(ALICE)
        again = list(self.told)
        self.store()
        self.told = again
        self.store()
        self.assertEqual((1, 0), self.counts(BOB))

    def test_what_was_not_stored_comes_again_after_a_crash(self) -> None:
        self.says(ALICE)
        self.store()
        self.says(ALICE, **{"m.mentions": {"user_ids": [BOB]}})
        self.assertEqual((2, 1), self.counts(BOB))
        self.users.queue.listeners.clear()
        self.restart()
        self.store()
        self.assertEqual((2, 1), self.counts(BOB))

    def test_a_stop_stores_what_is_in_memory(self) -> None:
        self.says(ALICE)
        self.wait(self.api.stop())
        self.users.queue.listeners.clear()
        self.told.clear()
        self.restart()
        self.assertEqual((1, 0), self.counts(BOB))

    def test_a_listener_that_missed_something_is_not_followed(self) -> None:
        listener = self.users.queue.listeners.pop(OUTPUT_ROOM_EVENT)
        self.says(ALICE)
        self.users.queue.listeners[OUTPUT_ROOM_EVENT] = listener
        self.says(ALICE)
        self.store()
        self.assertEqual((2, 0), self.counts(BOB))
        self.says(ALICE)
        self.assertEqual((3, 0), self.counts(BOB))

    def test_rooms_that_cannot_be_asked_now_are_asked_again(self) -> None:
        from dendrite_tw.matrix.errors import MatrixError

        async def away(room_id: str, user_id: str) -> None:
            raise MatrixError(503, "M_UNKNOWN", "not now")

        works, self.users.rooms.membership = self.users.rooms.membership, away
        self.says(ALICE, **{"m.mentions": {"user_ids": [BOB]}})
        self.says(ALICE)
        self.assertEqual(1, len(self.flushLoggedErrors(MatrixError)))
        self.users.rooms.membership = works
        self.store()
        self.assertEqual((2, 1), self.counts(BOB))

    def test_an_event_that_cannot_be_judged_holds_up_nothing(self) -> None:
        self.position += 1
        broken = msgspec.structs.replace(room_event(ROOM, self.position, ALICE), client=b"[]")
        self.tell(broken)
        self.says(ALICE)
        self.assertEqual(1, len(self.flushLoggedErrors()))
        self.assertEqual((1, 0), self.counts(BOB))


class Notifying(RoomCase):
    def shown(self, user_id: str, before: int | None = None, limit: int = 10, only: bool = False) -> list[Any]:
        found = self.wait(self.api.notifications(user_id, before, limit, only))
        return [(one.event_id, one.read, one.highlight) for one in found]

    def test_newest_first_with_what_is_read(self) -> None:
        first = self.says(ALICE)
        second = self.says(ALICE, **{"m.mentions": {"user_ids": [BOB]}})
        self.says(BOB)
        third = self.says(ALICE)
        self.store()
        expected = [(third.event_id, False, False), (second.event_id, True, True), (first.event_id, True, False)]
        self.assertEqual(expected, self.shown(BOB))
        self.assertEqual(expected[:2], self.shown(BOB, limit=2))
        self.assertEqual(expected[2:], self.shown(BOB, before=second.position))
        self.assertEqual(expected[1:2], self.shown(BOB, only=True))
        self.assertEqual([], self.shown("@dave:test"))


class Model(UsersCase):
    def test_the_counts_are_those_of_the_simple_way(self) -> None:
        for seed in range(40):
            chance = random.Random(seed)
            log, reader = RoomLog([]), Reader([], [])
            events: list[tuple[int, str]] = []
            marks: dict[str, int] = {}
            for position in range(1, chance.randrange(2, 120)):
                thread = chance.choice(["main", "main", "$a", "$b"])
                if chance.random() < 0.8:
                    events.append((position, thread))
                    log.add(thread, position, chance.random() < 0.2)
                elif events and chance.random() < 0.3:
                    gone = chance.choice(events)
                    events.remove(gone)
                    log.remove(gone[0])
                else:
                    which, upto = chance.choice(["", "main", "$a", "$b"]), chance.randrange(position)
                    reader.mark(which, upto)
                    marks[which] = max(upto, marks.get(which, 0))
                wanted: dict[str, int] = {}
                for at, where in events:
                    if at > max(marks.get("", 0), marks.get(where, 0)):
                        wanted[where] = wanted.get(where, 0) + 1
                found = reader.unread(ROOM, log, WHOLE)
                self.assertLessEqual(found.highlight_count, found.notification_count)
                shown = {thread: counts[0] for thread, counts in found.threads.items()}
                if found.notification_count:
                    shown["main"] = found.notification_count
                self.assertEqual(wanted, shown, f"seed {seed}, position {position}")

    def test_a_log_keeps_the_newest(self) -> None:
        self.patch(__import__("dendrite_tw.user_api.counts", fromlist=["x"]), "LOG_LIMIT", 10)
        threads = ["main" if position % 3 else "$t" for position in range(31)]
        log = RoomLog(LogRow(ROOM, position, threads[position], "$e", ALICE, 0, 0) for position in range(1, 31))
        self.assertEqual(20, log.trim())
        self.assertEqual(0, log.trim())
        self.assertEqual(10, log.size)
        self.assertEqual([21, 24, 27, 30], list(log.threads["$t"]))
        reader = Reader([MarkRow(BOB, ROOM, "", 25)], [])
        self.assertEqual(3, reader.unread(ROOM, log, WHOLE).notification_count)
        self.assertEqual({"$t": (2, 0)}, reader.unread(ROOM, log, WHOLE).threads)


class Trimming(RoomCase):
    def test_the_log_on_disk_is_trimmed_too(self) -> None:
        for module in ("counts", "unread_store"):
            self.patch(__import__(f"dendrite_tw.user_api.{module}", fromlist=["x"]), "LOG_LIMIT", 100)
        for _ in range(256):
            self.says(ALICE)
        self.store()
        rows = ask(self.users.database, "SELECT COUNT(*) FROM unread_log")[0][0]
        self.assertLess(rows, 164)
        self.assertEqual((rows, 0), self.counts(BOB))


class CountingWithoutMemory(Counting):
    """Nothing stays in any cache: the counts come from disk and from what is on its way there."""

    settings = {"cache_bytes": 1}  # noqa: RUF012


class OwnRulesWithoutMemory(OwnRules):
    settings = {"cache_bytes": 1}  # noqa: RUF012


class ThreadsWithoutMemory(Threads):
    settings = {"cache_bytes": 1}  # noqa: RUF012

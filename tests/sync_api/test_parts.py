"""The parts that sync is made of: tokens, rooms in memory, what is bounded."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.cache import CacheBudget
from dendrite_tw.matrix.errors import MatrixError
from dendrite_tw.sync_api import rooms as rooms_module
from dendrite_tw.sync_api import typing as typing_module
from dendrite_tw.sync_api.api import Presence, Typing
from dendrite_tw.sync_api.lazy import SentMembers
from dendrite_tw.sync_api.positions import Heard
from dendrite_tw.sync_api.presence import PresenceBoard
from dendrite_tw.sync_api.receipts import ReceiptLog, receipt_events
from dendrite_tw.sync_api.rooms import Room, RoomCache
from dendrite_tw.sync_api.splice import Renderer
from dendrite_tw.sync_api.tokens import SyncToken, parse_page_token, parse_sync_token
from dendrite_tw.sync_api.typing import USERS_KEPT, TypingBoard
from dendrite_tw.user_api.api import Receipt
from dendrite_tw.world import ReactorClock
from tests.fakes import FakeQueue
from tests.harness import ALICE
from tests.sync_api.fakes import FakeRooms
from tests.sync_api.scene import ROOM, A, B


class Tokens(SynchronousTestCase):
    def test_text_and_back(self) -> None:
        token = SyncToken(1, 22, 333, 4444)
        self.assertEqual(str(token), "s1_22_333_4444")
        self.assertEqual(parse_sync_token(str(token)), token)

    def test_missing_parts_are_zero_and_later_ones_left_out(self) -> None:
        self.assertEqual(parse_sync_token("s7"), SyncToken(7))
        self.assertEqual(parse_sync_token("s1_2_3_4_5_6"), SyncToken(1, 2, 3, 4))

    def test_pages_take_both_sorts(self) -> None:
        self.assertEqual(parse_page_token("t3_-5"), "t3_-5")
        self.assertEqual(parse_page_token("s9_8_7_6"), "s9")
        self.assertIsNone(parse_page_token(None))
        for bad in ("", "t", "t1", "t1_2_3", "x1_2", "s", "t٣_1"):
            self.assertRaises(MatrixError, parse_page_token, bad)


class RoomsInMemory(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.queue = FakeQueue()
        self.rooms = FakeRooms(self.queue, ReactorClock(self.clock))
        self.heard = Heard(self.clock)
        self.budget = CacheBudget(1 << 20)
        self.cache = RoomCache(self.rooms, self.heard, self.budget)  # type: ignore[arg-type]
        self.rooms._tell = self.hear  # type: ignore[method-assign]
        self.rooms.create(ROOM, A)

    def hear(self, output: Any) -> None:
        self.cache.apply(output)
        self.heard.room = output.event.position
        self.heard.advance()

    def get(self, room_id: str = ROOM) -> Deferred[Room]:
        return Deferred.fromCoroutine(self.cache.get(room_id))

    def slowly(self) -> Deferred[None]:
        """Make the next view of a room wait; it is of the time when it was asked for."""
        ask, gate = self.rooms.room_view, Deferred[None]()

        async def slow(room_id: str, limit: int) -> Any:
            self.rooms.room_view = ask  # type: ignore[method-assign]
            view = await ask(room_id, limit)
            await gate
            return view

        self.rooms.room_view = slow  # type: ignore[method-assign, assignment]
        return gate

    def test_events_that_come_while_a_room_is_loaded_are_not_lost(self) -> None:
        gate = self.slowly()
        first, second = self.get(), self.get()
        topic = self.rooms.send(ROOM, A, "m.room.topic", {"topic": "t"}, "")
        gate.callback(None)
        room = self.successResultOf(first)
        self.assertIs(self.successResultOf(second), room)
        self.assertEqual(room.get(("m.room.topic", "")), topic)
        self.assertEqual(room.timeline[-1], topic)
        self.assertEqual(self.rooms.asked.count("room_view"), 1)

    def test_a_view_from_before_all_was_forgotten_is_not_used(self) -> None:
        gate = self.slowly()
        waiting = self.get()
        self.cache.clear()
        gate.callback(None)
        self.successResultOf(waiting)
        self.assertEqual(self.rooms.asked.count("room_view"), 2)

    def test_one_who_goes_away_leaves_the_others_their_room(self) -> None:
        self.slowly()
        first, second = self.get(), self.get()
        first.cancel()
        self.failureResultOf(first)
        self.assertEqual(self.successResultOf(second).room_id, ROOM)

    def test_a_failure_is_told_and_tried_again(self) -> None:
        async def fail(room_id: str, limit: int) -> Any:
            raise MatrixError(503, "M_UNKNOWN", "not now")

        ask, self.rooms.room_view = self.rooms.room_view, fail  # type: ignore[method-assign, assignment]
        self.failureResultOf(self.get(), MatrixError)
        self.rooms.room_view = ask  # type: ignore[method-assign]
        self.successResultOf(self.get())

    def test_what_is_on_disk_but_was_not_heard_is_refused_after_a_while(self) -> None:
        self.heard.room = 0
        waiting = self.get()
        self.assertNoResult(waiting)
        self.clock.advance(11)
        self.assertEqual(self.failureResultOf(waiting, MatrixError).value.status, 503)

    def test_the_budget_is_kept(self) -> None:
        for number in range(30):
            self.rooms.create(f"!{number}:test", A)
            self.successResultOf(self.get(f"!{number}:test"))
        size = self.successResultOf(self.get()).size
        self.budget.max_bytes = 10 * size
        self.budget.keep()
        self.assertLessEqual(self.cache.cache.bytes, self.budget.max_bytes)
        self.assertGreater(len(self.cache.cache), 5)
        for n in range(500):
            self.rooms.message(ROOM, A, str(n))
        self.assertLessEqual(self.budget.used, self.budget.max_bytes)

    def test_timeline_and_changes_are_bounded(self) -> None:
        room = self.successResultOf(self.get())
        for n in range(rooms_module.CHANGES_KEPT + 50):
            self.rooms.send(ROOM, A, "m.room.topic", {"topic": str(n)}, "")
        self.assertEqual(len(room.timeline), rooms_module.TIMELINE_KEPT)
        self.assertEqual(room.floor, room.timeline[0].position - 1)
        self.assertEqual(len(room.changes), rooms_module.CHANGES_KEPT)
        self.assertIsNone(room.changed_after(room.changes_floor - 1))
        before = room.changed_after(room.changes_floor)
        self.assertEqual(list(before or {}), [("m.room.topic", "")])

    def test_size_follows_what_is_held(self) -> None:
        room = self.successResultOf(self.get())
        for n in range(300):
            self.rooms.send(ROOM, A, "m.room.topic", {"topic": "x" * n}, "")
        held = sum(len(e.client) + rooms_module.EVENT_OVERHEAD for e in (*room.timeline, *room.all_state()))
        self.assertEqual(room.size, held + 500)

    def test_heroes(self) -> None:
        room = self.successResultOf(self.get())
        for number in range(8):
            self.rooms.join(ROOM, f"@{number}:test")
        self.assertEqual(room.heroes(), [A, *(f"@{number}:test" for number in range(5))])
        for number in range(8):
            self.rooms.leave(ROOM, f"@{number}:test")
        self.assertEqual(room.heroes()[:2], [A, "@0:test"])


class Bounds(SynchronousTestCase):
    def test_sent_members(self) -> None:
        queue = FakeQueue()
        rooms = FakeRooms(queue, ReactorClock(Clock()))
        rooms.create(ROOM, A)
        events = [rooms.join(ROOM, f"@{number}:test") for number in range(5)]
        sent = SentMembers(CacheBudget(1 << 20), 3)
        sent.note((A, "D"), ROOM, events, SyncToken(10, 1))
        sent.acknowledge((A, "E"), SyncToken(10, 1))
        self.assertFalse(any(sent.has((A, "D"), event) for event in events))
        sent.acknowledge((A, "D"), SyncToken(10, 1))
        self.assertEqual([sent.has((A, "D"), event) for event in events], [False, False, True, True, True])
        self.assertFalse(sent.has((A, "E"), events[-1]))

    def test_members_of_an_answer_that_was_lost(self) -> None:
        rooms = FakeRooms(FakeQueue(), ReactorClock(Clock()))
        rooms.create(ROOM, A)
        sent = SentMembers(CacheBudget(1 << 20))
        first, second = rooms.join(ROOM, "@1:test"), rooms.join(ROOM, "@2:test")
        sent.note((A, "D"), ROOM, [first], SyncToken(10, 1))
        sent.note((A, "D"), ROOM, [second], SyncToken(11, 1))
        sent.acknowledge((A, "D"), SyncToken(11, 1))
        self.assertEqual([sent.has((A, "D"), event) for event in (first, second)], [False, True])
        sent.acknowledge((A, "D"), SyncToken(10, 1))
        self.assertFalse(sent.has((A, "D"), first))

    def test_typing(self) -> None:
        clock = Clock()
        changed: list[str] = []
        board = TypingBoard(clock, ReactorClock(clock), lambda room_id, position: changed.append(room_id))
        for number in range(USERS_KEPT + 10):
            board.hear(Typing(room_id=ROOM, user_id=f"@{number}:t", typing=True, timeout_ms=10**9), number + 1)
        self.assertEqual(len(changed), USERS_KEPT)
        clock.advance(121)
        self.assertEqual(board.since(ROOM, 1), b'{"type":"m.typing","content":{"user_ids":[]}}')
        self.assertEqual(clock.getDelayedCalls(), [])
        board.hear(Typing(room_id=ROOM, user_id=A, typing=True, timeout_ms=1000, ts=0), 9999)
        self.assertEqual(len(changed), USERS_KEPT + 2)

    def test_what_another_process_is_told_of_typing(self) -> None:
        self.patch(typing_module, "ROOMS_TOLD", 3)
        clock = Clock()
        board = TypingBoard(clock, ReactorClock(clock), lambda room_id, position: None)
        for number in (4, 2, 5, 1, 3):
            board.hear(Typing(room_id=f"!{number}:t", user_id=A, typing=True, timeout_ms=5000), 10)
        self.assertEqual([room.room_id for room in board.now()], ["!5:t", "!1:t", "!3:t"])
        clock.pump([6, 200])
        self.assertEqual(board.now(), [])

    def test_presence(self) -> None:
        board = PresenceBoard(kept=2)
        for number in range(4):
            state = Presence(user_id=f"@{number}:t", presence="online", last_active_ts=1, currently_active=True)
            self.assertTrue(board.hear(state, 2 * number + 1))
            self.assertFalse(board.hear(state, 2 * number + 2))
        self.assertEqual([p.user_id for p in board.since(0, 9)], ["@2:t", "@3:t"])
        self.assertEqual([p.user_id for p in board.since(5, 9)], ["@3:t"])

    def test_presence_of_a_stream_that_begins_anew(self) -> None:
        board = PresenceBoard()
        for user_id, sequence in (("@0:t", 1), ("@1:t", 7), ("@2:t", 1), ("@0:t", 2)):
            state = Presence(user_id=user_id, presence="online", last_active_ts=1, status_msg=str(sequence))
            self.assertTrue(board.hear(state, sequence))
        self.assertEqual(board.position, 9)
        self.assertEqual([p.user_id for p in board.since(7, 9)], ["@2:t", "@0:t"])

    def test_receipts(self) -> None:
        log = ReceiptLog(None, kept=3)  # type: ignore[arg-type]
        log.start(10)
        receipts = [
            Receipt(room_id=ROOM, user_id=A, receipt_type="m.read", event_id=f"${n}", ts=n, position=n)
            for n in range(9, 16)
        ]
        for receipt in (*receipts, *receipts):
            log.hear(receipt)
        self.assertEqual(log.floor, 12)
        self.assertEqual([r.position for r in log.recent(ROOM, 12, 99)], [13, 14, 15])
        self.assertEqual([r.position for r in log.recent(ROOM, 13, 14)], [14])
        made = log.events(ROOM, log.recent(ROOM, 12, 99), B)
        self.assertEqual(made, receipt_events(receipts[-1:]))
        self.assertIs(log.events(ROOM, log.recent(ROOM, 12, 99), A), made)

    def test_renderer(self) -> None:
        rooms = FakeRooms(FakeQueue(), ReactorClock(Clock()))
        rooms.create(ROOM, A)
        renderer = Renderer(CacheBudget(4000))
        events = [rooms.message(ROOM, A, str(n)) for n in range(4)]
        heads = [renderer.head(event) for event in events]
        self.assertIs(renderer.head(events[3]), heads[3])
        self.assertEqual(renderer.head(events[0]), heads[0])
        shown = renderer.render(events[0], 5, ALICE, "knock", b"{}")
        self.assertTrue(shown.endswith(b'"unsigned":{"age":5,"membership":"knock","m.relations":{}}}'), shown)

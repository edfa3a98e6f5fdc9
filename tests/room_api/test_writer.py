"""The writer of a room, whatever users do and whenever the database fails or the server dies.

Random acts of several users, some at the same time, over a database whose writes wait, fail, or are stored
without the word of it coming back.  In the end a new server reads the database, and what it holds must be one
history: every event on top of the one before and allowed there, state and memberships as the events say,
nothing lost that was acknowledged, nothing kept that was refused.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from dendrite_tw.database.engines import Unavailable
from dendrite_tw.database.statements import Transaction, many
from dendrite_tw.matrix.auth_rules import check_auth
from dendrite_tw.matrix.errors import MatrixError
from dendrite_tw.matrix.events import Event
from dendrite_tw.room_api.api import NewEvent, NewRoom, OutputRoomEvent
from dendrite_tw.room_api.store import stored_event
from dendrite_tw.room_api.tables.events import COLUMNS, FROM, EventRow
from tests.room_api.flaky import BROKEN, REFUSED, UNHEARD, FlakyDatabase
from tests.room_api.story import ALICE, BOB, CAROL, RoomStory

USERS = [ALICE, BOB, CAROL, "@dave:test"]
ACTIONS = ["join", "leave", "invite", "kick", "ban", "unban"]


@many(EventRow, f"SELECT {COLUMNS} {FROM} WHERE r.room_id = :room_id ORDER BY e.position")
def all_events(txn: Transaction, room_id: str) -> None: ...


@many(int, "SELECT id FROM room_api_outbox ORDER BY id")
def outbox_ids(txn: Transaction) -> None: ...


@many(bytes, "SELECT payload FROM room_api_outbox ORDER BY id")
def outbox_payloads(txn: Transaction) -> None: ...


user = st.integers(0, len(USERS) - 1)
act = st.one_of(
    st.tuples(st.just("say"), user, st.integers(0, 5)),
    st.tuples(st.just("topic"), user, st.integers(0, 3)),
    st.tuples(st.just("member"), user, st.tuples(st.sampled_from(ACTIONS), user)),
    st.tuples(st.just("redact"), user, st.integers(0, 30)),
    st.tuples(st.just("level"), user, st.tuples(user, st.sampled_from([0, 50, 100]))),
    st.tuples(st.just("rule"), user, st.sampled_from(["public", "invite", "knock"])),
    st.tuples(st.just("fault"), user, st.lists(st.sampled_from([REFUSED, BROKEN, UNHEARD, None]), max_size=3)),
    st.tuples(st.just("crash"), user, st.none()),
    st.tuples(st.just("evict"), user, st.none()),
)
scene = st.lists(st.lists(act, min_size=1, max_size=5), max_size=14)


class Performance:
    """One scene: what was tried, and what became of each try."""

    def __init__(self, story: WriterTests, version: str) -> None:
        self.story = story
        self.database = FlakyDatabase()
        self.rooms = story.component(self.database)
        self.acknowledged: set[str] = set()
        self.refused: set[str] = set()
        self.errors: list[BaseException] = []
        self.known: list[str] = []
        self.serial = 0
        created = Deferred.fromCoroutine(
            self.rooms.create_room(NewRoom(creator=ALICE, preset="public_chat", room_version=version))
        )
        self.database.run_all()
        self.room_id: str = story.successResultOf(created)
        self.first = len(self.events())

    def events(self) -> list[EventRow]:
        return self.database.prepare(all_events, self.room_id)

    def play(self, groups: list[list[Any]]) -> None:
        for group in groups:
            for kind, who, what in group:
                getattr(self, kind)(USERS[who], what)
            self.database.run_all()

    def try_to(self, action: Coroutine[Any, Any, Any], is_event: bool = True, mark: str = "") -> None:
        def done(result: Any) -> None:
            if isinstance(result, Failure):
                error = result.value
                if isinstance(error, MatrixError) and error.status < 500:
                    self.refused.add(mark)
                elif error is not None and not isinstance(error, Unavailable | ValueError):
                    self.errors.append(error)
            elif is_event:
                self.acknowledged.add(result)
                self.known.append(result)

        Deferred.fromCoroutine(action).addBoth(done)

    def send(self, sender: str, type: str, content: dict[str, Any], mark: str = "", **options: Any) -> None:
        event = NewEvent(room_id=self.room_id, sender=sender, type=type, content=content, **options)
        self.try_to(self.rooms.send(event), mark=mark)

    def say(self, sender: str, number: int) -> None:
        self.serial += 1
        body = f"message {self.serial}"
        transaction = {"device_id": "D", "transaction_id": f"{sender}{number}"}
        self.send(sender, "m.room.message", {"body": body}, mark=body, **transaction)

    def topic(self, sender: str, number: int) -> None:
        self.send(sender, "m.room.topic", {"topic": str(number)}, state_key="")

    def member(self, sender: str, what: tuple[str, int]) -> None:
        action, target = what[0], USERS[what[1]]
        own = action in ("join", "leave")
        change = self.story.change(self.room_id, sender, action, sender if own else target)
        self.try_to(change, is_event=False)

    def redact(self, sender: str, number: int) -> None:
        if self.known:
            target = self.known[number % len(self.known)]
            self.send(sender, "m.room.redaction", {}, redacts=target)

    def level(self, sender: str, what: tuple[int, int]) -> None:
        self.send(sender, "m.room.power_levels", {"users": {ALICE: 100, USERS[what[0]]: what[1]}}, state_key="")

    def rule(self, sender: str, rule: str) -> None:
        self.send(sender, "m.room.join_rules", {"join_rule": rule}, state_key="")

    def fault(self, _: str, faults: list[str | None]) -> None:
        self.database.faults.extend(faults)

    def crash(self, *_: Any) -> None:
        self.database.crash()
        self.rooms = self.story.rooms = self.story.component(self.database)

    def evict(self, *_: Any) -> None:
        cache = self.rooms.rooms._rooms
        while cache.evict_oldest():
            pass


class WriterTests(RoomStory):
    @settings(max_examples=80, deadline=None, derandomize=True)
    @given(scene, st.sampled_from(["2", "10"]))
    def test_there_is_one_history(self, groups: list[list[Any]], version: str) -> None:
        performance = Performance(self, version)
        self.rooms = performance.rooms
        performance.play(groups)
        performance.crash()
        try:
            self.check(performance)
        finally:
            performance.database.close()

    def check(self, performance: Performance) -> None:
        rows = performance.events()
        stored = {row.event_id for row in rows}
        self.assertEqual(performance.errors, [])
        self.assertLessEqual(performance.acknowledged, stored)
        bodies = {stored_event(row).content.get("body") for row in rows}
        self.assertFalse(bodies & performance.refused)
        self.check_outbox(performance, rows)
        state: dict[tuple[str, str], Event] = {}
        before: Event | None = None
        for row in rows:
            event = stored_event(row)
            self.assertEqual(event.prev_events, (before.event_id,) if before else ())
            self.assertEqual(event.depth, before.depth + 1 if before else 1)
            check_auth(event, state)
            at = self.do(performance.rooms.state_before(row.event_id))
            self.assertEqual({e.event_id for e in at}, {e.event_id for e in state.values()})
            if event.state_key is not None:
                state[event.type, event.state_key] = event
            before = event
        self.check_current(performance, state)
        self.say_after(performance)

    def check_outbox(self, performance: Performance, rows: list[EventRow]) -> None:
        ids = performance.database.prepare(outbox_ids)
        self.assertEqual([row.position for row in rows], ids)
        self.assertEqual(len(set(ids)), len(ids))
        payloads = performance.database.prepare(outbox_payloads)
        outputs = [msgspec.msgpack.decode(payload, type=OutputRoomEvent) for payload in payloads]
        self.assertEqual([output.event.event_id for output in outputs], [row.event_id for row in rows])

    def check_current(self, performance: Performance, state: dict[tuple[str, str], Event]) -> None:
        rooms, room_id = performance.rooms, performance.room_id
        view = self.do(rooms.room_view(room_id, 1))
        self.assertEqual({e.event_id for e in view.state}, {e.event_id for e in state.values()})
        shown = {(e.type, e.state_key): msgspec.json.decode(e.client)["content"] for e in view.state}
        self.assertEqual(shown, {key: event.content for key, event in state.items()})
        members = {key[1]: event.membership for key, event in state.items() if key[0] == "m.room.member"}
        for user_id in USERS:
            found = self.do(rooms.membership(room_id, user_id))
            self.assertEqual(found.membership if found else None, members.get(user_id))
        joined = sorted(user_id for user_id, membership in members.items() if membership == "join")
        self.assertEqual(sorted(self.do(rooms.joined_users(room_id))), joined)
        head = self.do(rooms.rooms.get(room_id)).head
        self.assertEqual((head.joined, head.local), (len(joined), len(joined)))

    def say_after(self, performance: Performance) -> None:
        """The room still works, and refusals left nothing behind."""
        total = len(performance.events())
        refused = NewEvent(room_id=performance.room_id, sender="@eve:test", type="m.x", content={})
        sent = Deferred.fromCoroutine(performance.rooms.send(refused))
        performance.database.run_all()
        self.assertEqual(self.failureResultOf(sent, MatrixError).value.errcode, "M_FORBIDDEN")
        self.assertEqual(len(performance.events()), total)

"""What sync processes have to agree on, and what each finds out about the others."""

from __future__ import annotations

from typing import Any

import msgspec
from twisted.internet.defer import Deferred

from dendrite_tw.matrix.errors import MatrixError
from dendrite_tw.room_api.api import OUTPUT_ROOM_EVENT, OutputRoomEvent
from dendrite_tw.sync_api.api import OUTPUT_PRESENCE_EVENT, OUTPUT_TYPING_EVENT, NowKnown, Presence, Typing
from dendrite_tw.sync_api.moments import HOLD_SECONDS
from dendrite_tw.user_api.api import KEY_COUNTS, OUTPUT_KEY_CHANGE_EVENT, DeviceName, KeyCounts, Unread
from tests.sync_api.scene import ROOM, A, B, C, SyncCase, joined, timeline_ids
from tests.sync_api.turns import ByTurns, Lagging

V3 = "/_matrix/client/v3"


class TwoProcesses(ByTurns):
    def setUp(self) -> None:
        super().setUp()
        self.rooms.create(ROOM, B)
        self.rooms.join(ROOM, A)
        self.since = self.sync("alice", self.sync("alice")["next_batch"])["next_batch"]

    def type(self, user: str = B, timeout: int = 20_000, room_id: str = ROOM, **more: Any) -> None:
        now = self.memory.world.clock.now_ms()
        typing = Typing(room_id=room_id, user_id=user, typing=True, timeout_ms=timeout, ts=now, **more)
        self.queue.tell(OUTPUT_TYPING_EVENT, typing)

    def typing(self, answer: Any) -> list[Any]:
        room = answer.get("rooms", {}).get("join", {}).get(ROOM, {})
        return [e["content"]["user_ids"] for e in room.get("ephemeral", {"events": []})["events"]]

    def be(self, user: str, presence: str = "online", ts: int = 1) -> None:
        told = Presence(user_id=user, presence=presence, last_active_ts=ts, currently_active=presence == "online")
        self.queue.tell(OUTPUT_PRESENCE_EVENT, told)

    def presence(self, answer: Any) -> list[tuple[str, str]]:
        events = answer.get("presence", {"events": []})["events"]
        return [(event["sender"], event["content"]["presence"]) for event in events]

    def status(self, user: str, token: str = "alice") -> str:
        answer = self.web.get(f"{V3}/presence/{user}/status", token)
        self.assertEqual(answer.status, 200, answer)
        return str(answer.json["presence"])


class WhoTypes(TwoProcesses):
    def test_a_client_that_goes_to_and_fro_is_told_once(self) -> None:
        self.type()
        answer = self.sync("alice", self.since)
        self.assertEqual(self.typing(answer), [[B]])
        for _ in range(3):
            waiting = self.ask("alice", answer["next_batch"], timeout=1000)
            self.settle()
            self.assertFalse(waiting.done, "there is nothing new")
            self.clock.advance(1)
            answer = waiting.json

    def test_lists_end_alike_in_whatever_order_it_is_noticed(self) -> None:
        self.rooms.create("!other:test", B)
        self.rooms.join("!other:test", A)
        self.type(timeout=5000)
        self.type(timeout=5000, room_id="!other:test")
        since = self.sync("alice", self.since)["next_batch"]
        self.clock.advance(6)
        answer = self.sync("alice", since)
        ended = {room_id: room["ephemeral"]["events"] for room_id, room in answer["rooms"]["join"].items()}
        self.assertEqual(set(ended), {ROOM, "!other:test"})
        self.assertNotIn("rooms", self.sync("alice", answer["next_batch"]))
        self.assertNotIn("rooms", self.sync("alice", answer["next_batch"]))

    def test_the_end_is_told_once(self) -> None:
        self.type(timeout=5000)
        before = len(self.queue.published)
        self.clock.advance(6)
        told = [msgspec.msgpack.decode(payload, type=Typing) for _, payload in self.queue.published[before:]]
        self.assertEqual([(typing.user_id, typing.typing) for typing in told], [(B, False)])
        self.clock.advance(60)
        self.assertEqual(len(self.queue.published), before + 1)

    def test_it_is_told_again_where_the_queue_was_away(self) -> None:
        self.type(timeout=5000)
        self.queue.silent = True
        self.clock.advance(6)
        self.queue.silent = False
        self.queue.forget_ids()
        self.assertEqual(self.typing(self.sync("alice", self.since)), [[B]])
        self.clock.advance(6)
        self.assertEqual(self.typing(self.sync("alice", self.since)), [[]])

    def test_who_goes_on_typing_is_not_ended_by_a_process_that_has_not_heard_it(self) -> None:
        self.type(timeout=5000)
        self.clock.advance(4)
        self.type(timeout=5000)
        end = self.memory.world.clock.now_ms() + 1000
        self.queue.tell(OUTPUT_TYPING_EVENT, Typing(room_id=ROOM, user_id=B, typing=False, ended=end))
        self.assertEqual(self.typing(self.sync("alice", self.since)), [[B]])

    def test_a_new_process_knows_who_types(self) -> None:
        self.type()
        self.type(C)
        for _ in range(2):
            self.restart()
            self.assertEqual(self.typing(self.sync("alice", self.since)), [[B, C]])
            self.assertEqual(self.typing(self.sync("alice")), [[B, C]])

    def test_what_is_heard_while_others_are_asked_is_not_lost(self) -> None:
        self.type()
        place = 1 - self.web.last
        gate: Deferred[None] = Deferred()
        other = self.processes[1 - place]
        known = other.typing_now

        async def slowly() -> NowKnown:
            answer = await known()
            await gate
            return answer

        self.patch(other, "typing_now", slowly)
        self.processes.pop(place).stop()
        self.processes[place] = self.process(True, self.beside(place), f"process {place}")
        self.clock.advance(0)
        self.type(C)
        component = self.processes[place]
        self.assertEqual(component.typing.now(), [])
        gate.callback(None)
        [room] = component.typing.now()
        self.assertEqual(list(room.until), [B, C])

    def test_others_who_do_not_answer_are_not_waited_for(self) -> None:
        place = 1 - self.web.last
        self.patch(self.processes[1 - place], "typing_now", lambda: Deferred())
        self.processes.pop(place).stop()
        self.processes[place] = self.process(True, self.beside(place), f"process {place}")
        self.type()
        self.assertEqual(self.processes[place].typing.now(), [])
        self.clock.advance(HOLD_SECONDS + 0.1)
        self.assertEqual(len(self.processes[place].typing.now()), 1)

    def test_a_process_that_knows_nothing_gives_no_less_than_a_token(self) -> None:
        self.type()
        since = self.sync("alice", self.since)["next_batch"]
        place = 1 - self.web.last
        self.processes.pop(place).stop()
        self.processes[place] = alone = self.process(True)
        self.web.webs[place] = self.serve(alone)
        self.assertEqual(self.sync("alice", since)["next_batch"], since)


class WhoIsThere(TwoProcesses):
    def test_a_new_process_knows_it(self) -> None:
        self.be(B)
        for _ in range(2):
            self.restart()
            self.assertEqual(self.status(B), "online")
            self.assertEqual(self.presence(self.sync("alice", self.since)), [(B, "online")])

    def test_many_are_asked_for_page_by_page(self) -> None:
        self.patch(__import__("dendrite_tw.sync_api.moments", fromlist=["x"]), "PAGE", 3)
        for number in range(10):
            self.be(f"@{number}:test")
        self.restart()
        self.assertEqual(len(self.component.presence.after(0, 100)), 10)

    def test_what_was_missed_is_asked_for(self) -> None:
        self.be(B)
        moments = self.component.moments
        deaf = self.patch(moments, "presence", lambda presence, position: None)
        self.be(B, "unavailable")
        deaf.restore()
        moments.begun()
        self.clock.advance(0.1)
        for _ in range(2):
            self.assertEqual(self.status(B), "unavailable")

    def test_those_who_answer_late_do_not_hide_others(self) -> None:
        """Whom two changes concern is found out in the other order than they came in."""
        gates: list[Deferred[None]] = []
        asked = self.rooms.rooms_joined

        async def slowly(user_ids: list[str]) -> dict[str, list[str]]:
            gates.append(Deferred())
            await gates[-1]
            return await asked(user_ids)

        self.patch(self.rooms, "rooms_joined", slowly)
        self.rooms.join(ROOM, C)
        self.processes.pop(1).stop()
        del self.web.webs[1]
        since = self.sync("alice", self.since)["next_batch"]
        self.be(C)
        self.be(B)
        first = self.ask("alice", since, timeout=1000)
        self.assertFalse(first.done)
        while gates:
            gates.pop().callback(None)
        self.settle()
        self.assertEqual(dict(self.presence(first.json)), {C: "online", B: "online"})

    def test_where_nobody_can_say_whom_it_concerns_all_look(self) -> None:
        async def fail(user_ids: list[str]) -> dict[str, list[str]]:
            raise MatrixError(503, "M_UNKNOWN", "away")

        self.patch(self.rooms, "rooms_joined", fail)
        waiting = self.ask("alice", self.since, timeout=1000)
        self.be(B)
        self.settle()
        self.assertEqual(self.presence(waiting.json), [(B, "online")])
        waiting = self.ask("alice", waiting.json["next_batch"], timeout=1000)
        self.keys.change(B)
        self.settle()
        self.assertEqual(waiting.json["device_lists"], {"changed": [B]})

    def test_questions_about_many_are_asked_together(self) -> None:
        gate: Deferred[None] = Deferred()
        asked: list[list[str]] = []

        async def slowly(user_ids: list[str]) -> dict[str, list[str]]:
            asked.append(user_ids)
            if len(asked) <= 2:
                await gate
            return {}

        self.patch(self.rooms, "rooms_joined", slowly)
        for number in range(50):
            self.be(f"@{number}:test")
        gate.callback(None)
        self.assertEqual([len(users) for users in asked], [1, 1, 49, 49])


class Online(TwoProcesses):
    def test_who_waits_in_one_process_is_not_gone_for_the_other(self) -> None:
        self.sync("bob", set_presence="online")
        since = self.sync("bob", self.sync("bob", set_presence="online")["next_batch"], set_presence="online")
        self.ask("bob", since["next_batch"], timeout=300_000, set_presence="online")
        for _ in range(28):
            self.clock.advance(10)
            self.assertEqual(self.status(B), "online")

    def test_those_of_a_process_that_was_killed_are_gone(self) -> None:
        self.sync("bob", set_presence="online")
        killed = self.web.last
        self.processes.pop(killed).stop()
        del self.web.webs[killed]
        self.assertEqual(self.status(B), "online")
        for _ in range(24):
            self.clock.advance(10)
        self.assertEqual(self.status(B), "offline")

    def test_it_is_told_once_that_somebody_is_gone(self) -> None:
        self.sync("bob", set_presence="online")
        for _ in range(60):
            self.clock.advance(10)
        told = [msgspec.msgpack.decode(p, type=Presence) for s, p in self.queue.published if s == OUTPUT_PRESENCE_EVENT]
        self.assertEqual([presence.presence for presence in told], ["online", "offline"])


class Arriving(TwoProcesses):
    def ahead(self) -> str:
        """A token that tells of an event which no process has heard of."""
        self.rooms.held = []
        event = self.rooms.message(ROOM, B)
        return f"s{event.position}{self.since[self.since.index('_') :]}"

    def test_a_token_that_was_not_heard_of_is_not_answered_with_less(self) -> None:
        token = self.ahead()
        for process in self.processes.values():
            self.patch(process.feed, "look", self.nothing)
        answer = self.ask("alice", token, timeout=20_000)
        self.clock.pump([1.0] * 19)
        self.assertFalse(answer.done)
        self.clock.pump([1.0] * 2)
        self.assertEqual((answer.status, answer.json["next_batch"]), (200, token))
        self.assertNotIn("rooms", answer.json)

    async def nothing(self) -> None:
        """Instead of a look at the disk."""

    def test_nor_are_changes_of_keys(self) -> None:
        token = self.ahead()
        for process in self.processes.values():
            self.patch(process.feed, "look", self.nothing)
        answer = self.web.get(f"{V3}/keys/changes?from={self.since}&to={token}", "alice")
        self.clock.advance(6)
        self.assertEqual(answer.status, 503)

    def test_keys_that_changed_up_to_a_token_of_the_other_process(self) -> None:
        token = self.ahead()
        answer = self.web.get(f"{V3}/keys/changes?from={self.since}&to={token}", "alice")
        self.assertFalse(answer.done)
        self.rooms.release()
        self.settle()
        self.assertEqual((answer.status, answer.json["changed"]), (200, []))

    def test_times_that_have_not_come_say_nothing(self) -> None:
        self.type()
        far = (self.memory.world.clock.now_ms() + 3_600_000) * 1000
        room, user, _, _ = self.since.split("_")
        answer = self.sync_any("alice", f"{room}_{user}_{far}_{far}")
        self.assertEqual(self.typing(answer), [[B]])

    def sync_any(self, token: str, since: str) -> Any:
        return SyncCase.sync(self, token, since)


class Missed(TwoProcesses):
    def output(self, body: str) -> tuple[str, bytes]:
        self.rooms.held = []
        event = self.rooms.message(ROOM, B, body)
        output = self.rooms.held.pop()
        self.rooms.held = None
        return event.event_id, msgspec.msgpack.encode(output)

    def test_the_next_message_tells_that_one_was_missed(self) -> None:
        waiting = [self.ask("alice", self.since, timeout=30_000) for _ in range(2)]
        missed, _ = self.output("missed")
        heard, payload = self.output("heard")
        position = msgspec.msgpack.decode(payload, type=OutputRoomEvent).event.position
        self.queue.send(OUTPUT_ROOM_EVENT, payload, headers={"Outbox-Previous": str(position - 1)})
        self.settle()
        for answer in waiting:
            self.assertEqual(timeline_ids(answer.json), [missed, heard])

    def test_a_number_that_was_never_given_is_not_missed(self) -> None:
        self.rooms._position += 5
        before = self.component.cache._cleared
        event_id, payload = self.output("heard")
        position = msgspec.msgpack.decode(payload, type=OutputRoomEvent).event.position
        self.queue.send(OUTPUT_ROOM_EVENT, payload, headers={"Outbox-Previous": str(position - 6)})
        self.assertEqual(timeline_ids(self.sync("alice", self.since)), [event_id])
        self.assertEqual(self.component.cache._cleared, before)

    def test_a_stream_that_begins_again_may_have_lost_something(self) -> None:
        waiting = self.ask("alice", self.since, timeout=30_000)
        missed, _ = self.output("missed")
        self.component.feed._begun()
        self.settle()
        self.assertEqual(timeline_ids(waiting.json), [missed])

    def test_a_process_starts_once_the_positions_can_be_read(self) -> None:
        async def away() -> int:
            raise MatrixError(503, "M_UNKNOWN", "nobody is there")

        position = self.rooms.position
        self.patch(self.rooms, "position", away)
        self.restart(wait=False)
        self.rooms.position = position  # type: ignore[method-assign]
        meanwhile = self.rooms.message(ROOM, B)
        self.clock.advance(1)
        event = self.rooms.message(ROOM, B)
        self.assertEqual(timeline_ids(self.sync("alice", self.since)), [meanwhile.event_id, event.event_id])

    def test_a_key_change_of_which_the_one_before_is_missing(self) -> None:
        self.keys.change(B)
        self.queue.silent = True
        self.keys.change(A)
        self.keys.change(B)
        self.queue.silent = False
        _, payload = self.queue.unheard.pop()
        before = self.users._position - 1
        waiting = self.ask("alice", self.since, timeout=30_000)
        answer = waiting.json if waiting.done else None
        assert answer is not None
        waiting = self.ask("alice", answer["next_batch"], timeout=30_000)
        self.queue.send(OUTPUT_KEY_CHANGE_EVENT, payload, headers={"Outbox-Previous": str(before)})
        self.assertFalse(waiting.done)
        self.clock.pump([1.0] * 3)
        self.assertEqual(waiting.json["device_lists"], {"changed": [A, B]})


class Asking(TwoProcesses):
    """How many questions a sync comes to, where whoever answers them is in another process."""

    def questions(self, since: str | None, **query: Any) -> dict[str, int]:
        self.rooms.asked.clear()
        self.sync("alice", since, **query)
        return {name: self.rooms.asked.count(name) for name in dict.fromkeys(self.rooms.asked)}

    def test_an_initial_sync_of_fifty_rooms(self) -> None:
        for number in range(50):
            room_id = self.rooms.create(f"!{number}:test", B)
            self.rooms.join(room_id, A)
            for _ in range(20):
                self.rooms.message(room_id, B)
        since = self.sync("alice")["next_batch"]
        self.restart()
        asked = self.questions(None)
        # The views are those that make up the answers to `room_views`, and one that is left.
        self.assertEqual((asked.pop("room_view"), asked.pop("room_views")), (51, 5))
        self.assertEqual(asked, {"memberships": 1, "aggregations_of": 1})
        self.assertEqual(self.questions(since), {})

    def test_an_incremental_sync(self) -> None:
        self.rooms.message(ROOM, B)
        for _ in range(2):
            since = self.sync("alice", self.since)["next_batch"]
        self.rooms.message(ROOM, B)
        self.assertEqual(self.questions(since), {})

    def test_a_page_of_messages(self) -> None:
        self.rooms.asked.clear()
        self.assertEqual(self.web.get(f"{V3}/rooms/{ROOM}/messages?dir=b", "alice").status, 200)
        self.assertEqual([name.split()[0] for name in self.rooms.asked], ["messages", "visible", "dressing"])


class Counting(TwoProcesses):
    """Unread counts and counts of keys, which the user component is asked for."""

    def setUp(self) -> None:
        super().setUp()
        self.user_api = self.hall.echoes()
        for _ in range(2):
            self.sync("alice", self.since)
        self.keys.asked.clear()
        self.users.asked.clear()

    def test_an_answer_with_nothing_asks_nobody(self) -> None:
        for _ in range(4):
            answer = self.sync("alice", self.since)
            self.assertEqual(answer["device_one_time_keys_count"], {"signed_curve25519": 50})
        self.assertEqual((self.keys.asked, self.users.asked), ([], []))

    def test_changed_counts_are_asked_for_again_by_both(self) -> None:
        self.keys.counts = KeyCounts(one_time_keys={"signed_curve25519": 49}, unused_fallback_types=[])
        self.user_api.tell(KEY_COUNTS, msgspec.msgpack.encode(DeviceName(A, "ALICEDEV")))
        for _ in range(4):
            answer = self.sync("alice", self.since)
            self.assertEqual(answer["device_one_time_keys_count"], {"signed_curve25519": 49})
        self.assertEqual(self.keys.asked, ["key_counts_of"] * 2)

    def test_nothing_is_remembered_for_long(self) -> None:
        self.clock.advance(61)
        self.sync("alice", self.since)
        self.assertEqual(self.keys.asked, ["key_counts_of"])

    def test_what_changes_while_it_is_asked_for_is_not_remembered(self) -> None:
        self.clock.advance(61)
        counts_of = self.keys.key_counts_of

        async def changing(devices: list[DeviceName]) -> list[KeyCounts]:
            found = await counts_of(devices)
            self.user_api.tell(KEY_COUNTS, msgspec.msgpack.encode(DeviceName(A, "ALICEDEV")))
            return found

        self.patch(self.keys, "key_counts_of", changing)
        for _ in range(4):
            self.sync("alice", self.since)
        self.assertEqual(self.keys.asked, ["key_counts_of"] * 4)

    def test_those_who_wake_together_ask_together(self) -> None:
        self.rooms.join(ROOM, C)
        del self.web.webs[1 - self.web.last]
        since = {name: self.sync(name)["next_batch"] for name in ("alice", "bob", "carol", "alice2")}
        waiting = [self.ask(name, token, timeout=30_000) for name, token in since.items()]
        self.users.asked.clear()
        self.users.counts[A, ROOM] = Unread(room_id=ROOM, notification_count=1)
        self.rooms.message(ROOM, B)
        self.settle()
        counts = [joined(answer.json)["unread_notifications"]["notification_count"] for answer in waiting]
        self.assertEqual(counts, [1, 0, 0, 1])
        self.assertEqual(self.users.asked.count("unread_of"), 1)

    def test_where_nobody_answers(self) -> None:
        async def fail(*args: Any) -> Any:
            raise MatrixError(503, "M_UNKNOWN", "away")

        self.patch(self.users, "unread_of", fail)
        self.rooms.message(ROOM, B)
        answers = [self.ask("alice", self.since) for _ in range(2)]
        self.settle()
        self.assertEqual([answer.status for answer in answers], [503, 503])
        self.clock.advance(61)
        self.patch(self.keys, "key_counts_of", fail)
        answer = self.ask("bob")
        self.settle()
        self.assertEqual(answer.status, 503)


class LaggingTyping(Lagging):
    """Clients that go to and fro between processes of which one is behind see the same as one who stays."""

    def test_what_is_typed(self) -> None:
        self.rooms.create(ROOM, B)
        self.rooms.join(ROOM, A)
        since = self.sync("alice")["next_batch"]
        shown: list[str] = []
        for step in range(300):
            now = self.memory.world.clock.now_ms()
            user, on = self.chance.choice([B, C]), self.chance.random() < 0.6
            if self.chance.random() < 0.4:
                typing = Typing(room_id=ROOM, user_id=user, typing=on, timeout_ms=4000 * on, ts=now)
                self.queue.tell(OUTPUT_TYPING_EVENT, typing)
            self.clock.advance(self.chance.random() * 2)
            if step % 50 == 49:
                # Whom the new process asks is not behind by more than a moment.
                for queue in self.queues.values():
                    queue.hear(10_000)
                self.restart()
            answer = self.sync("alice", since)
            since = answer["next_batch"]
            for event in (
                answer.get("rooms", {}).get("join", {}).get(ROOM, {}).get("ephemeral", {"events": []})["events"]
            ):
                shown = event["content"]["user_ids"]
        for queue in self.queues.values():
            queue.hear(10_000)
        self.clock.pump([1.0] * 12)
        for _ in range(2):
            for queue in self.queues.values():
                queue.hear(10_000)
            answer = self.sync("alice", since)
            since = answer["next_batch"]
            if "rooms" in answer:
                shown = joined(answer)["ephemeral"]["events"][0]["content"]["user_ids"]
        self.assertEqual(shown, [])

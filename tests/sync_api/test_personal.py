"""What a sync tells besides events: account data, receipts, typing, counts, devices, presence."""

from __future__ import annotations

from typing import Any

from dendrite_tw.sync_api.api import OUTPUT_TYPING_EVENT, Typing
from tests.sync_api.scene import ROOM, A, B, C, SyncCase, joined


def ephemeral(answer: Any, type_: str) -> list[Any]:
    return [e["content"] for e in joined(answer).get("ephemeral", {"events": []})["events"] if e["type"] == type_]


class PersonalCase(SyncCase):
    def setUp(self) -> None:
        super().setUp()
        self.rooms.create(ROOM, A)
        self.rooms.join(ROOM, B)
        self.since = self.sync("alice")["next_batch"]


class AccountData(PersonalCase):
    def test_is_told_once_and_in_initial_syncs(self) -> None:
        answer = self.ask("alice", self.since, timeout=30000)
        self.users.set_account_data(A, "m.direct", {B: [ROOM]})
        self.settle()
        self.assertEqual(answer.json["account_data"]["events"], [{"type": "m.direct", "content": {B: [ROOM]}}])
        self.assertNotIn("account_data", self.sync("alice", answer.json["next_batch"]))
        self.assertIn("account_data", self.sync("alice"))
        self.assertNotIn("account_data", self.sync("bob"))

    def test_of_rooms_is_in_the_room(self) -> None:
        self.users.set_account_data(A, "m.tag", {"tags": {}}, ROOM)
        for token in (self.since, None):
            answer = self.sync("alice", token)
            self.assertEqual(joined(answer)["account_data"]["events"], [{"type": "m.tag", "content": {"tags": {}}}])

    def test_filters(self) -> None:
        self.users.set_account_data(A, "m.direct", {})
        self.users.set_account_data(A, "m.tag", {"tags": {}}, ROOM)
        wanted = {"account_data": {"types": []}, "room": {"account_data": {"not_types": ["m.*"]}}}
        answer = self.sync("alice", self.since, filter=wanted)
        self.assertEqual(set(answer) & {"account_data", "rooms"}, set())

    def test_from_before_a_restart(self) -> None:
        self.users.set_account_data(A, "m.direct", {})
        self.restart()
        self.assertIn("account_data", self.sync("alice", self.since))


class Receipts(PersonalCase):
    def test_are_told_to_the_room(self) -> None:
        event = self.rooms.message(ROOM, A)
        since = self.sync("alice", self.since)["next_batch"]
        answer = self.ask("alice", since, timeout=30000)
        self.users.read(ROOM, B, event.event_id)
        self.settle()
        self.assertEqual(ephemeral(answer.json, "m.receipt"), [{event.event_id: {"m.read": {B: {"ts": 1000}}}}])
        self.assertEqual(self.users.asked.count("receipts_since"), 0)

    def test_private_ones_are_the_owners_alone(self) -> None:
        event = self.rooms.message(ROOM, A)
        since, other = (self.sync(who)["next_batch"] for who in ("alice", "bob"))
        waiting = self.ask("alice", since, timeout=30000)
        self.users.read(ROOM, B, event.event_id, "m.read.private")
        self.settle()
        self.assertFalse(waiting.done)
        self.assertEqual(
            ephemeral(self.sync("bob", other), "m.receipt"), [{event.event_id: {"m.read.private": {B: {"ts": 1000}}}}]
        )
        self.restart()
        self.assertNotIn("m.read.private", str(self.sync("alice", since)))
        self.assertNotIn("m.read.private", str(self.sync("alice")))
        self.assertIn("m.read.private", str(self.sync("bob")))

    def test_of_threads_come_apart(self) -> None:
        event = self.rooms.message(ROOM, A)
        self.users.read(ROOM, B, event.event_id)
        self.users.read(ROOM, B, event.event_id, thread_id="main")
        found = ephemeral(self.sync("alice", self.since), "m.receipt")
        data = [content[event.event_id]["m.read"][B] for content in found]
        self.assertEqual(data, [{"ts": 1000}, {"ts": 1000, "thread_id": "main"}])

    def test_a_later_receipt_takes_the_place_of_an_earlier_one(self) -> None:
        first, second = self.rooms.message(ROOM, A), self.rooms.message(ROOM, A)
        self.users.read(ROOM, B, first.event_id)
        self.users.read(ROOM, B, second.event_id)
        found = ephemeral(self.sync("alice", self.since), "m.receipt")
        self.assertEqual([list(content) for content in found], [[second.event_id]])

    def test_ephemeral_filter(self) -> None:
        event = self.rooms.message(ROOM, A)
        self.users.read(ROOM, B, event.event_id)
        answer = self.sync("alice", self.since, filter={"room": {"ephemeral": {"types": ["m.typing"]}}})
        self.assertEqual(ephemeral(answer, "m.receipt"), [])


class UnreadCounts(PersonalCase):
    def test_come_with_events_and_when_they_change(self) -> None:
        self.rooms.message(ROOM, B)
        self.users.set_unread(A, ROOM, 2, {"$root": (3, 1)})
        answer = self.sync("alice", self.since)
        counts = joined(answer)["unread_notifications"]
        self.assertEqual(counts, {"notification_count": 5, "highlight_count": 1})
        self.users.set_unread(A, ROOM, 0, {})
        answer = self.sync("alice", answer["next_batch"])
        self.assertEqual(joined(answer)["unread_notifications"]["notification_count"], 0)
        self.assertEqual(joined(answer)["timeline"]["events"], [])

    def test_by_thread(self) -> None:
        self.since = self.sync("alice", self.since)["next_batch"]
        self.users.set_unread(A, ROOM, 2, {"$root": (3, 1)})
        wanted = {"room": {"timeline": {"unread_thread_notifications": True}}}
        room = joined(self.sync("alice", self.since, filter=wanted))
        self.assertEqual(room["unread_notifications"], {"notification_count": 2, "highlight_count": 0})
        self.assertEqual(
            room["unread_thread_notifications"], {"$root": {"notification_count": 3, "highlight_count": 1}}
        )

    def test_ones_own_receipt_brings_them(self) -> None:
        event = self.rooms.message(ROOM, B)
        since = self.sync("alice", self.since)["next_batch"]
        self.users.read(ROOM, A, event.event_id, "m.read.private")
        for restarted in (False, True):
            if restarted:
                self.restart()
            self.assertIn("unread_notifications", joined(self.sync("alice", since)))


class TypingUsers(PersonalCase):
    def type(self, user: str, typing: bool = True, timeout: int = 20000) -> None:
        now = self.memory.world.clock.now_ms()
        typed = Typing(room_id=ROOM, user_id=user, typing=typing, timeout_ms=timeout, ts=now)
        self.queue.tell(OUTPUT_TYPING_EVENT, typed)

    def test_start_stop_and_expire(self) -> None:
        answer = self.ask("alice", self.since, timeout=60000)
        self.type(B)
        self.settle()
        self.assertEqual(ephemeral(answer.json, "m.typing"), [{"user_ids": [B]}])
        answer = self.ask("alice", answer.json["next_batch"], timeout=60000)
        self.type(B)
        self.settle()
        self.assertFalse(answer.done, "typing on is no news")
        self.type(B, False)
        self.settle()
        self.assertEqual(ephemeral(answer.json, "m.typing"), [{"user_ids": []}])
        self.type(B, timeout=5000)
        answer = self.sync("alice", answer.json["next_batch"])
        waiting = self.ask("alice", answer["next_batch"], timeout=60000)
        self.clock.advance(5)
        self.settle()
        self.assertEqual(ephemeral(waiting.json, "m.typing"), [{"user_ids": []}])
        again = self.ask("alice", waiting.json["next_batch"], timeout=60000)
        self.settle()
        self.assertFalse(again.done, "it was told already")

    def test_two_expiries_are_two_changes(self) -> None:
        self.type(B, timeout=5000)
        self.type(C, timeout=10000)
        since = self.sync("alice", self.since)["next_batch"]
        self.clock.advance(6)
        answer = self.sync("alice", since)
        self.assertEqual(ephemeral(answer, "m.typing"), [{"user_ids": [C]}])
        self.clock.advance(6)
        self.assertEqual(ephemeral(self.sync("alice", answer["next_batch"]), "m.typing"), [{"user_ids": []}])

    def test_is_told_after_a_restart_of_the_queue(self) -> None:
        for _ in range(3):
            self.type(B)
            self.type(B, False)
        since = self.sync("alice", self.since)["next_batch"]
        self.queue._sequences.clear()
        self.restart()
        self.type(B)
        self.assertEqual(ephemeral(self.sync("alice", since), "m.typing"), [{"user_ids": [B]}])

    def test_initial_sync_shows_who_types_now_or_that_the_last_has_just_stopped(self) -> None:
        self.assertEqual(ephemeral(self.sync("alice"), "m.typing"), [])
        self.type(B)
        self.assertEqual(ephemeral(self.sync("alice"), "m.typing"), [{"user_ids": [B]}])
        self.clock.advance(21)
        self.assertEqual(ephemeral(self.sync("alice"), "m.typing"), [{"user_ids": []}])
        self.clock.advance(11)
        self.assertEqual(ephemeral(self.sync("alice"), "m.typing"), [])


class ToDevice(PersonalCase):
    def bodies(self, answer: Any) -> list[int]:
        return [event["content"]["n"] for event in answer.get("to_device", {"events": []})["events"]]

    def test_messages_come_until_they_are_acknowledged(self) -> None:
        answer = self.ask("alice", self.since, timeout=30000)
        self.keys.send(A, "ALICEDEV", {"n": 1})
        self.settle()
        self.assertEqual(self.bodies(answer.json), [1])
        self.assertEqual(self.bodies(self.sync("alice", self.since)), [1])
        self.assertEqual(len(self.keys.messages), 1)
        self.assertEqual(self.bodies(self.sync("alice", answer.json["next_batch"])), [])
        self.assertEqual(self.keys.messages, [])

    def test_deletes_only_when_something_was_given(self) -> None:
        since = self.sync("alice", self.since)["next_batch"]
        self.keys.deleted.clear()
        self.rooms.message(ROOM, B)
        since = self.sync("alice", since)["next_batch"]
        self.rooms.message(ROOM, B)
        self.sync("alice", since)
        self.assertEqual(self.keys.deleted, [])

    def test_other_devices_are_not_told(self) -> None:
        self.keys.send(A, "SECOND", {"n": 1})
        self.assertEqual(self.bodies(self.sync("alice", self.since)), [])
        self.assertEqual(self.bodies(self.sync("alice2")), [1])

    def test_many_come_in_parts_without_loss(self) -> None:
        for n in range(250):
            self.keys.send(A, "ALICEDEV", {"n": n})
        self.users.set_account_data(A, "m.last", {})
        found: list[int] = []
        since, told = self.since, 0
        for _ in range(4):
            answer = self.sync("alice", since)
            found += self.bodies(answer)
            told += "account_data" in answer
            since = answer["next_batch"]
        self.assertEqual(found, list(range(250)))
        self.assertEqual(told, 1)

    def test_repeated_by_the_outbox(self) -> None:
        """What the queue tells once more moves no mark back behind what was not given yet."""
        self.keys.send(A, "ALICEDEV", {"n": 1})
        since = self.sync("alice", self.since)["next_batch"]
        first = self.queue.published[-1]
        self.keys.send(A, "ALICEDEV", {"n": 2})
        self.queue.send(*first)
        answer = self.sync("alice", since)
        self.assertEqual(self.bodies(answer), [2])
        self.assertEqual(self.bodies(self.sync("alice", answer["next_batch"])), [])

    def test_overtaken_by_another_stream(self) -> None:
        """No token goes beyond a message that was not heard yet."""
        since = self.sync("alice", self.since)["next_batch"]
        self.queue.silent = True
        self.keys.send(A, "ALICEDEV", {"n": 1})
        self.users.set_account_data(A, "m.other", {"n": 2})
        self.queue.silent = False
        message, change = self.queue.unheard
        position = self.keys.messages[-1].position
        self.queue.send(*change, headers={"Outbox-Previous": str(position)})
        answer = self.sync("alice", since)
        self.assertEqual((self.bodies(answer), "account_data" in answer), ([], False))
        self.queue.send(*message, headers={"Outbox-Previous": str(position - 1)})
        answer = self.sync("alice", answer["next_batch"])
        self.assertEqual((self.bodies(answer), "account_data" in answer), ([1], True))

    def test_overtaken_by_what_never_comes(self) -> None:
        since = self.sync("alice", self.since)["next_batch"]
        self.queue.silent = True
        self.keys.send(A, "ALICEDEV", {"n": 1})
        self.users.set_account_data(A, "m.other", {"n": 2})
        self.queue.silent = False
        _, change = self.queue.unheard
        self.queue.send(*change, headers={"Outbox-Previous": str(self.keys.messages[-1].position)})
        answer = self.ask("alice", since, timeout=30000)
        for _ in range(3):
            self.clock.advance(5)
            self.settle()
        self.assertEqual((self.bodies(answer.json), "account_data" in answer.json), ([1], True))

    def test_of_more_devices_than_are_remembered(self) -> None:
        answer = self.sync("alice", self.since)
        self.keys.send(A, "ALICEDEV", {"n": 1})
        for number in range(300):
            self.keys.send(A, f"OTHER{number}", {})
        self.assertEqual(self.bodies(self.sync("alice", answer["next_batch"])), [1])

    def test_after_a_restart(self) -> None:
        self.keys.send(A, "ALICEDEV", {"n": 1})
        self.restart()
        self.assertEqual(self.bodies(self.sync("alice", self.since)), [1])


class DeviceLists(PersonalCase):
    def lists(self, answer: Any) -> tuple[list[str], list[str]]:
        lists = answer.get("device_lists", {})
        return lists.get("changed", []), lists.get("left", [])

    def test_changed_keys_of_those_who_share_a_room(self) -> None:
        self.sync("bob")
        for user, expected in ((A, [A]), (B, [B]), ("@remote:far", []), (C, [])):
            since = self.sync("alice", self.since)["next_batch"]
            self.keys.change(user)
            self.assertEqual(self.lists(self.sync("alice", since)), (expected, []), user)

    def test_wakes_for_users_who_do_not_sync_here(self) -> None:
        self.rooms.join(ROOM, "@remote:far")
        since = self.sync("alice", self.since)["next_batch"]
        answer = self.ask("alice", since, timeout=30000)
        self.keys.change("@stranger:far")
        self.settle()
        self.assertFalse(answer.done)
        self.keys.change("@remote:far")
        self.settle()
        self.assertEqual(self.lists(answer.json), (["@remote:far"], []))

    def test_a_change_that_is_still_being_looked_up_is_not_lost(self) -> None:
        from twisted.internet.defer import Deferred

        self.rooms.join(ROOM, "@remote:far")
        since = self.sync("alice", self.since)["next_batch"]
        ask, gate = self.rooms.memberships, Deferred[None]()

        async def slow(user_id: str) -> Any:
            await gate
            return await ask(user_id)

        self.rooms.memberships = slow  # type: ignore[method-assign]
        self.keys.change("@remote:far")
        self.assertEqual(self.lists(self.sync("alice", since)), (["@remote:far"], []))
        gate.callback(None)

    def test_a_signature_is_told_to_the_signer_alone(self) -> None:
        since, others = (self.sync(who)["next_batch"] for who in ("alice", "bob"))
        answer = self.ask("alice", since, timeout=30000)
        self.keys.change(B, only_for=A)
        self.settle()
        self.assertEqual(self.lists(answer.json), ([B], []))
        self.assertNotIn("device_lists", self.sync("bob", others))

    def test_after_a_restart(self) -> None:
        self.keys.change(B)
        self.restart()
        self.assertEqual(self.lists(self.sync("alice", self.since)), ([B], []))

    def test_joining_and_leaving(self) -> None:
        self.rooms.join(ROOM, C)
        answer = self.sync("alice", self.since)
        self.assertEqual(self.lists(answer), ([C], []))
        self.rooms.leave(ROOM, C)
        answer = self.sync("alice", answer["next_batch"])
        self.assertEqual(self.lists(answer), ([], [C]))
        other = self.rooms.create("!other:test", C)
        self.rooms.join(other, A)
        answer = self.sync("alice", answer["next_batch"])
        self.assertEqual(self.lists(answer), ([C], []))
        self.rooms.leave(other, A)
        answer = self.sync("alice", answer["next_batch"])
        self.assertEqual(self.lists(answer), ([], [C]))

    def test_one_who_is_invited_is_told_of_before_they_come(self) -> None:
        self.rooms.member(ROOM, A, C, "invite")
        answer = self.sync("alice", self.since)
        self.assertEqual(answer["device_lists"], {"changed": [C]})
        self.rooms.message(ROOM, C)
        self.rooms.member(ROOM, A, C, "invite")
        answer = self.sync("alice", answer["next_batch"])
        self.assertNotIn("device_lists", answer)
        self.rooms.join(ROOM, C)
        answer = self.sync("alice", answer["next_batch"])
        self.assertEqual(self.lists(answer), ([C], []))

    def test_one_who_joins_is_told_of_those_who_are_invited(self) -> None:
        other = self.rooms.create("!other:test", C)
        self.rooms.member(other, C, "@dave:test", "invite")
        self.rooms.join(other, A)
        self.assertEqual(self.lists(self.sync("alice", self.since)), ([C, "@dave:test"], []))

    def test_one_who_comes_back_may_have_changed_meanwhile(self) -> None:
        self.rooms.leave(ROOM, B)
        self.keys.change(B)
        self.rooms.join(ROOM, B)
        self.assertEqual(self.lists(self.sync("alice", self.since)), ([B], []))

    def test_one_who_still_shares_another_room_has_not_left(self) -> None:
        other = self.rooms.create("!other:test", B)
        self.rooms.join(other, A)
        since = self.sync("alice", self.since)["next_batch"]
        self.rooms.leave(ROOM, B)
        self.assertEqual(self.lists(self.sync("alice", since)), ([], []))

    def test_joins_count_though_the_filter_hides_them(self) -> None:
        self.rooms.join(ROOM, C)
        wanted = {"room": {"timeline": {"not_types": ["m.room.member"]}, "state": {"types": []}}}
        self.assertEqual(self.lists(self.sync("alice", self.since, filter=wanted)), ([C], []))

    def test_initial_sync_has_none(self) -> None:
        self.keys.change(B)
        self.assertNotIn("device_lists", self.sync("alice"))

    def test_keys_changes_endpoint(self) -> None:
        self.keys.change(B)
        self.rooms.join(ROOM, C)
        upto = self.sync("alice", self.since)["next_batch"]
        path = f"/_matrix/client/v3/keys/changes?from={self.since}&to={upto}"
        self.assertEqual(self.web.get(path, "alice").json, {"changed": [B, C], "left": []})
        for query, errcode in (("", "M_MISSING_PARAM"), ("?from=x&to=y", "M_INVALID_PARAM")):
            answer = self.web.get("/_matrix/client/v3/keys/changes" + query, "alice")
            self.assertEqual((answer.status, answer.errcode), (400, errcode))


class PresenceOfOthers(PersonalCase):
    def test_syncing_makes_online_and_tells_those_who_share_a_room(self) -> None:
        answer = self.ask("alice", self.since, timeout=30000)
        self.sync("carol", set_presence="online")
        self.settle()
        self.assertFalse(answer.done)
        self.sync("bob", set_presence="online")
        self.settle()
        event = answer.json["presence"]["events"][0]
        self.assertEqual((event["sender"], event["content"]["presence"]), (B, "online"))
        self.sync("bob", set_presence="unavailable")
        answer = self.sync("alice", answer.json["next_batch"])
        self.assertEqual(answer["presence"]["events"][0]["content"]["presence"], "unavailable")

    def test_of_those_who_join_is_told(self) -> None:
        self.sync("carol", set_presence="online")
        since = self.sync("alice", self.since)["next_batch"]
        self.rooms.join(ROOM, C)
        answer = self.sync("alice", since)
        self.assertEqual([event["sender"] for event in answer["presence"]["events"]], [C])

    def test_a_room_of_few_strangers_shows_who_is_offline(self) -> None:
        since = self.sync("alice", self.since)["next_batch"]
        self.rooms.join(ROOM, C)
        self.rooms.join(ROOM, "@dora:elsewhere")
        answer = self.sync("alice", since)
        event = {"type": "m.presence", "sender": C, "content": {"presence": "offline"}}
        self.assertEqual(answer["presence"]["events"], [event])
        since = answer["next_batch"]
        self.assertNotIn("presence", self.sync("alice", since))
        for number in range(51):
            self.rooms.join(ROOM, f"@user{number}:test")
        self.assertNotIn("presence", self.sync("alice", since))

    def status(self, who: str, user_id: str, body: Any = None) -> Any:
        path = f"/_matrix/client/v3/presence/{user_id}/status"
        return self.web.get(path, who) if body is None else self.web.put(path, body, who)

    def test_is_set_and_asked_for(self) -> None:
        self.assertEqual(self.status("bob", B).json, {"presence": "offline"})
        self.assertEqual(self.status("bob", B, {"presence": "unavailable", "status_msg": "at tea"}).json, {})
        shown = {"presence": "unavailable", "last_active_ago": 0, "status_msg": "at tea"}
        self.assertEqual(self.status("alice", B).json, shown)
        self.assertEqual(self.sync("alice", self.since)["presence"]["events"][0]["content"], shown)
        self.status("bob", B, {"presence": "online"})
        self.clock.advance(2)
        shown = {"presence": "online", "last_active_ago": 2000, "status_msg": "at tea", "currently_active": True}
        self.assertEqual(self.status("alice", B).json, shown)
        self.status("bob", B, {"presence": "offline", "status_msg": None})
        self.assertEqual(self.status("alice", B).json, {"presence": "offline", "last_active_ago": 0})

    def test_who_set_it_and_never_syncs_goes_offline(self) -> None:
        self.status("bob", B, {"presence": "online"})
        self.clock.pump([30.0] * 5)
        self.assertEqual(self.status("alice", B).json["presence"], "offline")

    def test_whose_may_be_set_and_seen(self) -> None:
        for body, status in [
            ({"presence": "online"}, 403),
            ({"presence": "merry"}, 400),
            ({}, 400),
            ({"presence": "online", "status_msg": 5}, 400),
        ]:
            self.assertEqual(self.status("alice", B, body).status, status, body)
        self.assertEqual(self.status("bob", B, {"presence": "online", "status_msg": "x" * 1001}).status, 400)
        self.assertEqual(self.status("carol", B).errcode, "M_FORBIDDEN")
        self.assertEqual(self.status("bob", B).json, {"presence": "offline"})

    def test_is_published_seldom(self) -> None:
        for _ in range(5):
            self.sync("bob", set_presence="online")
        self.assertEqual([stream for stream, _ in self.queue.published].count("OutputPresenceEvent"), 1)

    def test_one_who_syncs_no_more_goes_offline(self) -> None:
        since = self.sync("bob", set_presence="online")["next_batch"]
        waiting = self.ask("bob", since, set_presence="online", timeout=200_000)
        self.clock.pump([30.0] * 6)
        answer = self.sync("alice", self.since)
        self.assertEqual(answer["presence"]["events"][0]["content"]["presence"], "online")
        self.clock.pump([30.0] * 5)
        self.assertTrue(waiting.done)
        answer = self.sync("alice", answer["next_batch"])
        self.assertEqual(answer["presence"]["events"][0]["content"]["presence"], "offline")

    def test_offline_leaves_it_alone(self) -> None:
        self.sync("bob", set_presence="offline")
        self.assertNotIn("OutputPresenceEvent", [stream for stream, _ in self.queue.published])


class Unsigned(PersonalCase):
    def event(self, who: str, since: str | None = None) -> Any:
        return joined(self.sync(who, since))["timeline"]["events"][-1]

    def test_transaction_id_is_the_sending_devices_alone(self) -> None:
        self.rooms.message(ROOM, A, transaction=("ALICEDEV", "t1"))
        self.assertEqual(self.event("alice")["unsigned"]["transaction_id"], "t1")
        self.assertNotIn("transaction_id", self.event("alice2")["unsigned"])
        self.assertNotIn("transaction_id", self.event("bob")["unsigned"])

    def test_age_and_membership(self) -> None:
        self.rooms.message(ROOM, B)
        self.clock.advance(3)
        self.assertEqual(self.event("alice")["unsigned"], {"age": 3000, "membership": "join"})

    def test_replaced_state(self) -> None:
        first = self.rooms.send(ROOM, A, "m.room.topic", {"topic": "1"}, "")
        self.rooms.send(ROOM, B, "m.room.topic", {"topic": "2"}, "")
        unsigned = self.event("alice")["unsigned"]
        self.assertEqual(unsigned["replaces_state"], first.event_id)
        self.assertEqual(unsigned["prev_content"], {"topic": "1"})
        self.assertEqual(unsigned["prev_sender"], A)

    def test_redacted_events_are_pruned_in_memory_too(self) -> None:
        event = self.rooms.message(ROOM, B, "secret")
        topic = self.rooms.send(ROOM, B, "m.room.topic", {"topic": "secret"}, "")
        self.sync("alice", self.since)
        self.rooms.redact(ROOM, B, event.event_id)
        redaction = self.rooms.redact(ROOM, B, topic.event_id)
        for answer in (self.sync("alice", self.since), self.sync("alice")):
            self.assertNotIn("secret", str(answer))
            shown = {e["event_id"]: e for e in joined(answer)["timeline"]["events"]}
            because = shown[topic.event_id]["unsigned"]["redacted_because"]
            self.assertEqual(because["event_id"], redaction.event_id)
            self.assertEqual(shown[topic.event_id]["unsigned"]["redacted_by"], redaction.event_id)
            self.assertEqual(shown[topic.event_id]["content"], {})

    def test_redacted_state_is_pruned_where_it_was_replaced_too(self) -> None:
        topic = self.rooms.send(ROOM, B, "m.room.topic", {"topic": "secret"}, "")
        for n in range(10):
            self.rooms.message(ROOM, B, str(n))
        self.rooms.send(ROOM, B, "m.room.topic", {"topic": "open"}, "")
        before = self.sync("alice", self.since)
        self.assertIn("secret", str(joined(before)["state"]))
        self.assertIn("secret", str(joined(before)["timeline"]))
        self.rooms.redact(ROOM, B, topic.event_id)
        answer = self.sync("alice", self.since)
        self.assertNotIn("secret", str(answer))
        self.assertEqual(joined(answer)["timeline"]["events"][-2]["content"], {"topic": "open"})

    def test_aggregations_come_with_gaps(self) -> None:
        events = [self.rooms.message(ROOM, B, str(n)) for n in range(11)]
        self.rooms.bundles[events[5].event_id] = b'{"m.thread":{"count":1}}'
        shown = {e["event_id"]: e for e in joined(self.sync("alice", self.since))["timeline"]["events"]}
        self.assertEqual(shown[events[5].event_id]["unsigned"]["m.relations"], {"m.thread": {"count": 1}})
        self.assertNotIn("m.relations", shown[events[6].event_id]["unsigned"])

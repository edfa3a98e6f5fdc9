"""Rooms that other servers take part in: gaps, states that are replaced, members who are missing, far invites."""

from __future__ import annotations

from typing import Any

import msgspec
from twisted.internet.defer import Deferred

from dendrite_tw.database.engines import Unavailable
from dendrite_tw.room_api.api import OUTPUT_ROOM_EVENT, RoomEvent
from dendrite_tw.sync_api import feed as feed_module
from dendrite_tw.sync_api.api import OUTPUT_PRESENCE_EVENT, OUTPUT_TYPING_EVENT, Presence, Typing
from tests.sync_api.fakes import MEMBER
from tests.sync_api.scene import ROOM, A, B, C, SyncCase, ids, joined, timeline_ids

FAR = "@far:far.test"
DAVE = "@dave:far.test"
LAZY: dict[str, Any] = {"room": {"state": {"lazy_load_members": True}}}


def limit(count: int, **timeline: Any) -> dict[str, Any]:
    return {"room": {"timeline": {"limit": count, **timeline}}}


class OtherServersCase(SyncCase):
    def setUp(self) -> None:
        super().setUp()
        self.rooms.create(ROOM, A)
        self.rooms.join(ROOM, B)

    def far_member(self, user: str = FAR, membership: str = "join", event_id: str = "$far") -> RoomEvent:
        """A member event that came with a state, not with the timeline."""
        return self.rooms.outlier(ROOM, user, MEMBER, {"membership": membership, "displayname": "Far"}, user, event_id)

    def members(self, answer: Any, name: str = "state") -> dict[str, str]:
        return {
            event["state_key"]: event["content"]["membership"]
            for event in joined(answer)[name]["events"]
            if event["type"] == MEMBER
        }


class Gaps(OtherServersCase):
    """Events before one are missing: no timeline goes on beyond it."""

    def history(self) -> tuple[str, list[str]]:
        token = self.sync("alice")["next_batch"]
        events = [self.rooms.message(ROOM, A, str(n), gap=n == 3) for n in range(6)]
        return token, [event.event_id for event in events]

    def test_a_timeline_is_cut_after_a_gap(self) -> None:
        token, events = self.history()
        answer = self.sync("alice", token)
        self.assertEqual(timeline_ids(answer), events[3:])
        timeline = joined(answer)["timeline"]
        self.assertTrue(timeline["limited"])
        depth, position = timeline["prev_batch"][1:].split("_")
        event = self.rooms.by_id[events[3]]
        self.assertEqual((int(depth), int(position)), (event.depth, event.position - 1))

    def test_so_is_one_that_is_read_from_disk(self) -> None:
        token, events = self.history()
        self.cache_bytes = 1
        self.restart()
        self.rooms.asked.clear()
        for wanted in (limit(500), limit(500, types=["m.room.message"]), limit(500, related_by_senders=[A])):
            timeline = joined(self.sync("alice", token, filter=wanted))["timeline"]
            self.assertEqual((ids(timeline), timeline["limited"]), (events[3:], True))
        self.assertIn("timeline", self.rooms.asked)

    def test_so_is_the_first_one(self) -> None:
        _, events = self.history()
        self.assertEqual(timeline_ids(self.sync("alice", filter=limit(50))), events[3:])

    def test_a_small_limit_comes_first(self) -> None:
        token, events = self.history()
        self.assertEqual(timeline_ids(self.sync("alice", token, filter=limit(2))), events[4:])
        self.assertEqual(timeline_ids(self.sync("alice", token, filter=limit(3))), events[3:])

    def test_a_gap_that_the_client_is_beyond_is_of_no_account(self) -> None:
        self.history()
        token = self.sync("alice")["next_batch"]
        more = self.rooms.message(ROOM, A, "more")
        timeline = joined(self.sync("alice", token))["timeline"]
        self.assertEqual((ids(timeline), timeline["limited"]), ([more.event_id], False))

    def test_an_event_after_a_gap_that_is_not_wanted_cuts_all_the_same(self) -> None:
        token = self.sync("alice")["next_batch"]
        self.rooms.send(ROOM, A, "org.wanted", {})
        self.rooms.message(ROOM, A, "not wanted", gap=True)
        wanted = limit(10, types=["org.wanted"])
        for _ in range(2):
            timeline = joined(self.sync("alice", token, filter=wanted))["timeline"]
            self.assertEqual((ids(timeline), timeline["limited"]), ([], True))
            self.assertTrue(timeline["prev_batch"].startswith("s"))
            self.cache_bytes = 1
            self.restart()
        later = self.rooms.send(ROOM, A, "org.wanted", {})
        self.assertEqual(timeline_ids(self.sync("alice", token, filter=wanted)), [later.event_id])

    def test_the_state_says_what_came_about_meanwhile(self) -> None:
        token = self.sync("alice")["next_batch"]
        name = self.rooms.outlier(ROOM, FAR, "m.room.name", {"name": "new"}, "", "$name")
        self.rooms.message(ROOM, FAR, "hello", gap=True, also_replaced=[name, self.far_member()])
        answer = self.sync("alice", token)
        self.assertEqual(set(ids(joined(answer)["state"])), {"$name", "$far"})
        self.assertEqual(joined(answer)["summary"]["m.joined_member_count"], 3)


class Resolutions(OtherServersCase):
    def test_state_that_is_no_more(self) -> None:
        topic = self.rooms.send(ROOM, A, "m.room.topic", {"topic": "x"}, "")
        token = self.sync("alice")["next_batch"]
        self.rooms.message(ROOM, A, also_removed=[("m.room.topic", "")])
        self.rooms.send(ROOM, A, "m.room.name", {"name": "x"}, "")
        answer = self.sync("alice", token, use_state_after=True)
        self.assertNotIn(topic.event_id, ids(joined(answer)["state_after"]))
        self.assertNotIn(topic.event_id, ids(joined(self.sync("bob"))["state"]))

    def test_a_far_member_who_is_no_more(self) -> None:
        self.rooms.message(ROOM, A, also_replaced=[self.far_member()])
        token = self.sync("alice")["next_batch"]
        self.rooms.message(ROOM, A, also_removed=[(MEMBER, FAR)])
        answer = self.sync("alice", token)
        self.assertEqual(answer["device_lists"], {"left": [FAR]})
        self.assertEqual(joined(answer)["summary"]["m.joined_member_count"], 2)

    def test_a_user_who_never_joined_after_all(self) -> None:
        before = self.sync("bob")["next_batch"]
        left = self.rooms.outlier(ROOM, A, MEMBER, {"membership": "leave"}, B, "$kick")
        said = self.rooms.message(ROOM, A, "you are out", also_replaced=[left])
        self.rooms.message(ROOM, A, "not for Bob")
        for _ in range(2):
            answer = self.sync("bob", before)
            self.assertNotIn("join", answer["rooms"])
            self.assertIn(ROOM, answer["rooms"]["leave"])
            self.restart()
        self.assertNotIn("rooms", self.sync("bob", answer["next_batch"]))
        self.assertTrue(said.position)

    def test_a_kick_that_the_user_knows_counts_again(self) -> None:
        """They came back on another branch of the room, and that came to nothing."""
        kick = self.rooms.member(ROOM, A, B, "leave")
        self.rooms.join(ROOM, B)
        token = self.sync("bob")["next_batch"]
        said = self.rooms.message(ROOM, A, "out again", also_replaced=[kick])
        self.rooms.message(ROOM, A, "not for Bob")
        for _ in range(2):
            answer = self.sync("bob", token)
            room = answer["rooms"]["leave"][ROOM]
            self.assertNotIn(kick.event_id, ids(room["timeline"]))
            self.assertLessEqual(set(ids(room["timeline"])), {said.event_id})
            self.assertIn(kick.event_id, ids(room["state"]))
            self.assertEqual(answer["device_lists"]["left"], [A])
            self.restart()

    def test_a_user_who_is_in_the_room_after_all(self) -> None:
        self.rooms.leave(ROOM, B)
        token = self.sync("bob")["next_batch"]
        back = self.rooms.outlier(ROOM, B, MEMBER, {"membership": "join"}, B, "$back")
        waiting = self.ask("bob", token, timeout=10_000)
        self.rooms.message(ROOM, A, "welcome", also_replaced=[back])
        self.settle()
        self.assertTrue(joined(waiting.json)["timeline"]["limited"])
        self.assertEqual(self.members(waiting.json), {A: "join", B: "join"})
        said = self.rooms.message(ROOM, A, "more")
        self.assertEqual(timeline_ids(self.sync("bob", waiting.json["next_batch"])), [said.event_id])

    def test_a_timeline_does_not_leave_a_client_with_state_that_lost(self) -> None:
        first = self.rooms.send(ROOM, A, "m.room.topic", {"topic": "one"}, "")
        token = self.sync("alice")["next_batch"]
        self.rooms.message(ROOM, A, "before")
        self.rooms.send(ROOM, A, "m.room.topic", {"topic": "two"}, "")
        said = self.rooms.message(ROOM, A, "branches meet", also_replaced=[first])
        answer = self.sync("alice", token)
        self.assertEqual(timeline_ids(answer), [said.event_id])
        self.assertTrue(joined(answer)["timeline"]["limited"])
        after = self.sync("alice", token, use_state_after=True)
        self.assertEqual(len(timeline_ids(after)), 3)

    def test_nor_with_state_that_never_was(self) -> None:
        token = self.sync("alice")["next_batch"]
        lost = self.rooms.send(ROOM, A, "m.room.topic", {"topic": "lost"}, "", becomes_state=False)
        said = self.rooms.message(ROOM, A, "after")
        answer = self.sync("alice", token)
        self.assertEqual((timeline_ids(answer), ids(joined(answer)["state"])), ([said.event_id], []))
        self.assertTrue(joined(answer)["timeline"]["limited"])
        self.assertIn(lost.event_id, timeline_ids(self.sync("alice", token, use_state_after=True)))


class Rewrites(OtherServersCase):
    """The state of a room is replaced as a whole."""

    def rewrite(self, *changes: RoomEvent) -> RoomEvent:
        return self.rooms.message(ROOM, A, "in a new light", gap=True, also_replaced=changes, rewrites=True)

    def test_the_new_state_is_shown_with_a_timeline_of_its_own(self) -> None:
        self.rooms.message(ROOM, A, "before")
        token = self.sync("alice")["next_batch"]
        self.rooms.message(ROOM, A, "meanwhile")
        name = self.rooms.outlier(ROOM, FAR, "m.room.name", {"name": "new"}, "", "$name")
        said = self.rewrite(name, self.far_member())
        answer = self.sync("alice", token)
        self.assertEqual(timeline_ids(answer), [said.event_id])
        self.assertTrue(joined(answer)["timeline"]["limited"])
        self.assertEqual(self.members(answer), {A: "join", B: "join", FAR: "join"})
        self.assertIn("$name", ids(joined(answer)["state"]))
        self.assertEqual(answer["device_lists"]["changed"], [B, FAR])
        self.assertEqual(joined(answer)["summary"]["m.joined_member_count"], 3)
        after = self.sync("alice", answer["next_batch"])
        self.assertNotIn("rooms", after)

    def test_who_loads_lazily_is_told_of_those_who_matter(self) -> None:
        self.rooms.join(ROOM, C)
        token = self.sync("alice", filter=LAZY)["next_batch"]
        others = [self.far_member(f"@u{n}:far.test", event_id=f"$u{n}") for n in range(20)]
        gone = self.rooms.outlier(ROOM, C, MEMBER, {"membership": "leave"}, C, "$gone")
        self.rewrite(*others, gone)
        answer = self.sync("alice", token, filter=LAZY)
        told = self.members(answer)
        self.assertEqual(told[C], "leave")
        self.assertLessEqual(len([user for user in told if user.endswith("far.test")]), 5)
        self.assertEqual(joined(answer)["summary"]["m.joined_member_count"], 22)
        self.assertEqual(answer["device_lists"]["left"], [C])

    def test_waiting_syncs_wake_and_local_users_come_and_go(self) -> None:
        self.rooms.join(ROOM, C)
        self.rooms.leave(ROOM, C)
        tokens = {name: self.sync(name)["next_batch"] for name in ("alice", "bob", "carol")}
        waiting = {name: self.ask(name, token, timeout=10_000) for name, token in tokens.items()}
        out = self.rooms.outlier(ROOM, A, MEMBER, {"membership": "ban"}, B, "$ban")
        back = self.rooms.outlier(ROOM, C, MEMBER, {"membership": "join"}, C, "$back")
        self.rewrite(out, back)
        self.settle()
        answers = {name: answer.json for name, answer in waiting.items()}
        self.assertIn(ROOM, answers["alice"]["rooms"]["join"])
        self.assertIn(ROOM, answers["bob"]["rooms"]["leave"])
        self.assertIn(ROOM, answers["carol"]["rooms"]["join"])
        said = self.rooms.message(ROOM, A, "after")
        self.assertEqual(timeline_ids(self.sync("carol", answers["carol"]["next_batch"])), [said.event_id])
        self.assertNotIn("rooms", self.sync("bob", answers["bob"]["next_batch"]))

    def test_what_follows_is_taken_in_after_it(self) -> None:
        """Asking who is in the room takes its time."""
        token = self.sync("alice")["next_batch"]
        gate: Deferred[None] = Deferred()
        ask = self.rooms.local_memberships

        async def slowly(room_id: str) -> Any:
            await gate
            return await ask(room_id)

        self.patch(self.rooms, "local_memberships", slowly)
        waiting = self.ask("alice", token, timeout=10_000)
        said = self.rewrite()
        self.rooms.create("!other:test", A)
        again = self.rewrite()
        self.settle()
        self.assertFalse(waiting.done)
        self.assertNotIn("rooms", self.sync("alice", token))
        gate.callback(None)
        self.settle()
        self.assertEqual(timeline_ids(waiting.json), [again.event_id])
        self.assertIn("!other:test", waiting.json["rooms"]["join"])
        self.assertNotEqual(said.event_id, again.event_id)

    def test_too_much_behind_it_is_looked_up(self) -> None:
        self.patch(feed_module, "HELD_LIMIT", 2)
        token = self.sync("alice")["next_batch"]
        gate: Deferred[None] = Deferred()
        ask = self.rooms.local_memberships

        async def slowly(room_id: str) -> Any:
            await gate
            return await ask(room_id)

        self.patch(self.rooms, "local_memberships", slowly)
        self.rewrite()
        events = [self.rooms.message(ROOM, A, str(n)).event_id for n in range(5)]
        gate.callback(None)
        self.settle()
        self.assertEqual(timeline_ids(self.sync("alice", token))[1:], events)

    def test_where_nobody_can_say_who_is_in_the_room_all_is_read_anew(self) -> None:
        token = self.sync("bob")["next_batch"]

        async def broken(room_id: str) -> Any:
            raise Unavailable("the database is away")

        self.patch(self.rooms, "local_memberships", broken)
        out = self.rooms.outlier(ROOM, A, MEMBER, {"membership": "ban"}, B, "$ban")
        self.rewrite(out)
        self.settle()
        self.assertEqual(len(self.flushLoggedErrors(Unavailable)), self.process_count)
        self.assertIn(ROOM, self.sync("bob", token)["rooms"]["leave"])

    def test_a_room_that_is_being_loaded_is_loaded_again(self) -> None:
        view = self.rooms.room_view
        gate: Deferred[None] = Deferred()

        async def slowly(room_id: str, count: int) -> Any:
            found = await view(room_id, count)
            if not gate.called:
                await gate
            return found

        self.patch(self.rooms, "room_view", slowly)
        waiting = self.ask("alice")
        self.rewrite(self.far_member())
        gate.callback(None)
        self.settle()
        self.assertIn(FAR, self.members(waiting.json))


class PartialRooms(OtherServersCase):
    """Members are missing yet: who loads them lazily is shown the room at once, others once it is whole."""

    def setUp(self) -> None:
        super().setUp()
        self.token = self.sync("carol")["next_batch"]
        self.rooms.create("!far:far.test", FAR)
        self.rooms.rooms["!far:far.test"].partial = True
        self.rooms.join("!far:far.test", C)
        self.missing = [
            self.rooms.outlier("!far:far.test", user, MEMBER, {"membership": "join"}, user, f"${user}")
            for user in (DAVE, "@eve:far.test")
        ]

    def rooms_of(self, answer: Any) -> dict[str, Any]:
        return answer.get("rooms", {}).get("join", {})  # type: ignore[no-any-return]

    def test_others_are_shown_it_once_it_is_whole(self) -> None:
        self.users.set_account_data(C, "m.tag", {"tags": {}}, "!far:far.test")
        answer = self.sync("carol", self.token)
        self.assertEqual(self.rooms_of(answer), {})
        self.assertNotIn("device_lists", answer)
        said = self.rooms.message("!far:far.test", FAR, "hello")
        answer = self.sync("carol", answer["next_batch"])
        self.assertEqual(self.rooms_of(answer), {})
        self.assertEqual(self.rooms_of(self.sync("carol")), {})
        waiting = self.ask("carol", answer["next_batch"], timeout=10_000)
        self.rooms.complete("!far:far.test", self.missing)
        self.settle()
        room = self.rooms_of(waiting.json)["!far:far.test"]
        self.assertIn(said.event_id, ids(room["timeline"]))
        self.assertTrue(room["timeline"]["limited"])
        told = {
            event["state_key"] for event in room["state"]["events"] + room["timeline"]["events"] if "state_key" in event
        }
        self.assertLessEqual({DAVE, C, FAR}, told)
        self.assertEqual(waiting.json["device_lists"]["changed"], [DAVE, "@eve:far.test", FAR])
        self.assertEqual([event["type"] for event in room["account_data"]["events"]], ["m.tag"])
        self.assertNotIn("rooms", self.sync("carol", waiting.json["next_batch"]))

    def test_a_process_that_begins_anew_shows_it_too(self) -> None:
        answer = self.sync("carol", self.token)
        self.rooms.complete("!far:far.test", self.missing)
        self.restart()
        self.assertIn("!far:far.test", self.rooms_of(self.sync("carol", answer["next_batch"])))

    def test_who_loads_lazily_is_shown_it_at_once(self) -> None:
        answer = self.sync("carol", self.token, filter=LAZY)
        room = self.rooms_of(answer)["!far:far.test"]
        self.assertIn("$e", str(ids(room["timeline"])))
        said = self.rooms.message("!far:far.test", DAVE, "hello")
        answer = self.sync("carol", answer["next_batch"], filter=LAZY)
        self.assertEqual(ids(self.rooms_of(answer)["!far:far.test"]["timeline"]), [said.event_id])
        self.rooms.complete("!far:far.test", self.missing)
        answer = self.sync("carol", answer["next_batch"], filter=LAZY)
        room = self.rooms_of(answer)["!far:far.test"]
        self.assertEqual(ids(room["timeline"]), [])
        told = {event["state_key"] for event in room["state"]["events"] if event["type"] == MEMBER}
        self.assertIn(DAVE, told)
        self.assertEqual(room["summary"]["m.joined_member_count"], 4)
        self.assertIn(DAVE, answer["device_lists"]["changed"])


class InvitesFromElsewhere(OtherServersCase):
    def test_an_invite_shows_what_came_with_it(self) -> None:
        token = self.sync("bob")["next_batch"]
        waiting = self.ask("bob", token, timeout=10_000)
        self.rooms.invite_from_elsewhere("!far:far.test", FAR, B)
        self.settle()
        for answer in (waiting.json, self.sync("bob"), self.sync("bob", token)):
            shown = answer["rooms"]["invite"]["!far:far.test"]["invite_state"]["events"]
            self.assertEqual([event["content"] for event in shown], [{"name": "Far"}])
        self.restart()
        self.assertIn("!far:far.test", self.sync("bob", token)["rooms"]["invite"])
        self.assertNotIn("rooms", self.sync("bob", waiting.json["next_batch"]))

    def test_an_invite_that_is_taken_back_or_refused_goes(self) -> None:
        invite = self.rooms.invite_from_elsewhere("!far:far.test", FAR, B)
        token = self.sync("bob")["next_batch"]
        self.rooms.invite_from_elsewhere("!far:far.test", FAR, B, "leave", invite)
        for _ in range(2):
            answer = self.sync("bob", token)
            self.assertNotIn("invite", answer["rooms"])
            room = answer["rooms"]["leave"]["!far:far.test"]
            self.assertEqual([event["content"]["membership"] for event in room["timeline"]["events"]], ["leave"])
            self.restart()
        self.assertNotIn("rooms", self.sync("bob", answer["next_batch"]))

    def test_a_knock_elsewhere(self) -> None:
        token = self.sync("bob")["next_batch"]
        self.rooms.invite_from_elsewhere("!far:far.test", B, B, "knock")
        self.assertIn("!far:far.test", self.sync("bob", token)["rooms"]["knock"])

    def test_an_invite_by_one_who_is_ignored_is_not_shown(self) -> None:
        self.users.ignore(B, FAR)
        self.rooms.invite_from_elsewhere("!far:far.test", FAR, B)
        self.assertNotIn("invite", self.sync("bob")["rooms"])


class FarUsers(OtherServersCase):
    def test_their_coming_and_going_changes_device_lists(self) -> None:
        token = self.sync("alice")["next_batch"]
        self.rooms.join(ROOM, FAR)
        answer = self.sync("alice", token)
        self.assertEqual(answer["device_lists"], {"changed": [FAR]})
        self.keys.change(FAR)
        answer = self.sync("alice", answer["next_batch"])
        self.assertEqual(answer["device_lists"]["changed"], [FAR])
        self.rooms.leave(ROOM, FAR)
        self.assertEqual(self.sync("alice", answer["next_batch"])["device_lists"], {"left": [FAR]})

    def test_they_count_and_give_names(self) -> None:
        self.rooms.join(ROOM, FAR)
        self.rooms.invite(ROOM, A, DAVE)
        summary = joined(self.sync("alice"))["summary"]
        self.assertEqual(summary, {"m.heroes": [B, FAR, DAVE], "m.joined_member_count": 3, "m.invited_member_count": 1})

    def test_they_type_and_are_there(self) -> None:
        self.rooms.join(ROOM, FAR)
        token = self.sync("alice")["next_batch"]
        self.queue.tell(OUTPUT_TYPING_EVENT, Typing(room_id=ROOM, user_id=FAR, typing=True, timeout_ms=9000))
        now = self.clock.seconds() * 1000
        self.queue.tell(OUTPUT_PRESENCE_EVENT, Presence(user_id=FAR, presence="online", last_active_ts=int(now)))
        self.queue.tell(OUTPUT_PRESENCE_EVENT, Presence(user_id=DAVE, presence="online", last_active_ts=int(now)))
        self.settle()
        answer = self.sync("alice", token)
        self.assertEqual(joined(answer)["ephemeral"]["events"][0]["content"], {"user_ids": [FAR]})
        self.assertEqual([event["sender"] for event in answer["presence"]["events"]], [FAR])

    def test_events_without_a_place_in_the_stream_are_not_shown(self) -> None:
        token = self.sync("alice")["next_batch"]
        said = self.rooms.message(ROOM, A, "said")
        output = msgspec.msgpack.decode(self.queue.published[-1][1])
        for position in (0, -5):
            output["event"]["position"] = position
            output["event"]["event_id"] = "$never"
            self.queue.send(OUTPUT_ROOM_EVENT, msgspec.msgpack.encode(output))
        self.assertEqual(timeline_ids(self.sync("alice", token)), [said.event_id])

"""Rooms shared by several processes: who answers for what, and what becomes of it when rooms change hands."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import msgspec

from dendrite_tw.matrix.errors import MatrixError
from dendrite_tw.room_api.api import MembershipChange, NewEvent, NewRoom
from dendrite_tw.room_api.room import Draft
from dendrite_tw.sharing.leases import NotMine
from tests.room_api.shared import Process, SharedCase

ALICE, BOB = "@alice:test", "@bob:test"
LATE = Draft(ALICE, "m.room.message", {"body": "late"})


class TwoProcesses(SharedCase):
    def setUp(self) -> None:
        super().setUp()
        self.one, self.two = self.process(), self.process()
        self.settle(0.5)

    def create(self, creator: str = ALICE, **options: Any) -> str:
        return self.do(self.rooms.create_room(NewRoom(creator=creator, **options)))  # type: ignore[no-any-return]

    def room_of(self, process: Process, **options: Any) -> str:
        """A new room that a process has."""
        for _ in range(64):
            room_id = self.do(process.rooms.create_room(NewRoom(creator=ALICE, **options)))
            if process.holds(room_id):
                return room_id  # type: ignore[no-any-return]
        raise AssertionError("it has no rooms")

    def say(self, room_id: str, body: str, sender: str = ALICE, **options: Any) -> str:
        return self.do(self.rooms.send(self.message(room_id, body, sender, **options)))  # type: ignore[no-any-return]

    def message(self, room_id: str, body: str, sender: str = ALICE, **options: Any) -> NewEvent:
        return NewEvent(room_id=room_id, sender=sender, type="m.room.message", content={"body": body}, **options)

    def set(self, room_id: str, type: str, content: dict[str, Any], state_key: str = "", sender: str = ALICE) -> str:
        event = NewEvent(room_id=room_id, sender=sender, type=type, content=content, state_key=state_key)
        return self.do(self.rooms.send(event))  # type: ignore[no-any-return]

    def join(self, room_id: str, user_id: str) -> None:
        self.do(
            self.rooms.change_membership(
                MembershipChange(room_id=room_id, sender=user_id, target=user_id, action="join")
            )
        )

    def bodies(self, room_id: str) -> list[str]:
        return [
            msgspec.json.decode(one.event.client)["content"]["body"]
            for one in self.events(room_id)
            if one.event.type == "m.room.message"
        ]

    def move(self, room_id: str) -> Process:
        """Have the other process hold a room: its present holder leaves, and a third one may come."""
        holder = self.holder(room_id)
        assert holder is not None
        other = self.other(holder)
        self.do(holder.stop())
        self.settle(1)
        self.assertIs(self.holder(room_id), other)
        return other


class SharingTests(TwoProcesses):
    def test_each_has_half_and_makes_rooms_of_its_own(self) -> None:
        for process in (self.one, self.two):
            for version in ("10", "12"):
                for _ in range(3):
                    room_id = self.do(process.rooms.create_room(NewRoom(creator=ALICE, room_version=version)))
                    self.assertTrue(process.holds(room_id), version)

    def test_both_write_one_stream(self) -> None:
        rooms = [self.room_of(self.one), self.room_of(self.two)]
        for number in range(20):
            self.say(rooms[number % 2], str(number))
        self.assertEqual(sorted(self.told), list(range(1, len(self.told) + 1)))
        for room_id, wanted in zip(rooms, (range(0, 20, 2), range(1, 20, 2)), strict=True):
            self.assertEqual(self.bodies(room_id), [str(number) for number in wanted])

    def test_who_does_not_have_a_room_says_so(self) -> None:
        room_id = self.room_of(self.one)
        self.say(room_id, "here")
        failed = self.failureResultOf(self.begin(self.two.rooms.send(self.message(room_id, "there"))), NotMine)
        self.assertEqual(failed.value.status, 503)
        self.assertEqual(self.bodies(room_id), ["here"])

    def test_anybody_reads_what_is_on_disk(self) -> None:
        room_id = self.room_of(self.one, name="First", preset="public_chat")
        for number in range(3):
            self.join(room_id, f"@user{number}:test")
            for process in (self.one, self.two):
                members = self.do(process.rooms.joined_users(room_id))
                self.assertEqual(len(members), number + 2)
                summary = self.do(process.rooms.room_summary(room_id))
                self.assertEqual(summary.num_joined_members, number + 2)
                self.assertEqual(self.do(process.rooms.room_servers(room_id)), ["test"])
        self.set(room_id, "m.room.name", {"name": "Second"})
        for process in (self.one, self.two):
            self.assertEqual(self.do(process.rooms.room_summary(room_id)).name, "Second")
            newest = max(self.told)
            self.assertEqual(self.do(process.rooms.position()), newest)
            view = self.do(process.rooms.room_view(room_id, 10))
            self.assertEqual(view.position, newest)
            self.assertEqual(view.timeline[-1].type, "m.room.name")

    def test_a_redaction_is_known_everywhere_at_once(self) -> None:
        room_id = self.room_of(self.one, preset="public_chat")
        named = self.set(room_id, "m.room.name", {"name": "Slander"})
        for process in (self.one, self.two):
            self.assertEqual(self.do(process.rooms.room_summary(room_id)).name, "Slander")
        self.do(
            self.rooms.send(NewEvent(room_id=room_id, sender=ALICE, type="m.room.redaction", content={}, redacts=named))
        )
        for process in (self.one, self.two):
            self.assertIsNone(self.do(process.rooms.room_summary(room_id)).name)

    def test_events_are_forgotten_where_an_echo_may_have_been_missed(self) -> None:
        room_id = self.room_of(self.one, preset="public_chat")
        named = self.set(room_id, "m.room.name", {"name": "Slander"})
        self.assertEqual(self.do(self.two.rooms.room_summary(room_id)).name, "Slander")
        self.two.echoes.leave()
        self.do(
            self.rooms.send(NewEvent(room_id=room_id, sender=ALICE, type="m.room.redaction", content={}, redacts=named))
        )
        self.two.echoes.miss()
        self.assertIsNone(self.do(self.two.rooms.room_summary(room_id)).name)

    def test_names_that_another_process_gave_numbers_to(self) -> None:
        room_id = self.room_of(self.one)
        failed = self.failureResultOf(self.begin(self.two.rooms.state_event(room_id, ALICE, "org.own", "")))
        self.assertEqual(failed.value.errcode, "M_NOT_FOUND")
        self.set(room_id, "org.own", {"a": 1})
        event = self.do(self.two.rooms.state_event(room_id, ALICE, "org.own", ""))
        self.assertEqual(msgspec.json.decode(event.client)["content"], {"a": 1})

    def test_a_profile_is_renewed_in_rooms_of_both(self) -> None:
        rooms = [self.room_of(process) for process in (self.one, self.two) for _ in range(2)]
        self.do(self.one.rooms.update_profile(ALICE, {"displayname": "Alice"}))
        for room_id in rooms:
            event = self.do(self.rooms.state_event(room_id, ALICE, "m.room.member", ALICE))
            self.assertEqual(msgspec.json.decode(event.client)["content"]["displayname"], "Alice")

    def test_a_user_leaves_rooms_of_both(self) -> None:
        rooms = [self.room_of(process, preset="public_chat") for process in (self.one, self.two)]
        for room_id in rooms:
            self.join(room_id, BOB)
        self.assertEqual(set(self.do(self.two.rooms.evacuate_user(BOB))), set(rooms))
        for room_id in rooms:
            self.assertEqual(self.do(self.rooms.joined_users(room_id)), [ALICE])

    def test_an_alias_is_given_once_and_taken_away_by_anybody(self) -> None:
        self.room_of(self.one, room_alias_name="taken")
        error = self.failureResultOf(
            self.begin(self.two.rooms.create_room(NewRoom(creator=BOB, room_alias_name="taken"))), MatrixError
        ).value
        self.assertEqual(error.errcode, "M_ROOM_IN_USE")
        room_id = self.room_of(self.one, room_alias_name="mine")
        event = self.do(self.rooms.state_event(room_id, ALICE, "m.room.canonical_alias", ""))
        self.assertEqual(msgspec.json.decode(event.client)["content"]["alias"], "#mine:test")
        self.do(self.two.rooms.delete_alias("#mine:test", ALICE, False))
        event = self.do(self.rooms.state_event(room_id, ALICE, "m.room.canonical_alias", ""))
        self.assertNotIn("alias", msgspec.json.decode(event.client)["content"])

    def test_the_directory_shows_the_rooms_of_both(self) -> None:
        rooms = [
            self.room_of(process, name=f"of {number}", visibility="public", preset="public_chat")
            for number, process in enumerate((self.one, self.two))
        ]
        for process in (self.one, self.two):
            found, _, _, total = self.do(process.rooms.public_rooms(10, None, None, None))
            self.assertEqual({room.room_id for room in found}, set(rooms))
            self.assertEqual(total, 2)
            [found_one], _, _, _ = self.do(process.rooms.public_rooms(10, None, "of 1", None))
            self.assertEqual(found_one.room_id, rooms[1])

    def test_members_of_a_room_of_one_may_join_a_room_of_the_other(self) -> None:
        club = self.room_of(self.one, preset="public_chat")
        rules = {"join_rule": "restricted", "allow": [{"type": "m.room_membership", "room_id": club}]}
        state = [{"type": "m.room.join_rules", "state_key": "", "content": rules}]
        room_id = self.room_of(self.two, initial_state=state)
        change = MembershipChange(room_id=room_id, sender=BOB, target=BOB, action="join")
        error = self.failureResultOf(self.begin(self.two.rooms.change_membership(change)), MatrixError).value
        self.assertEqual(error.errcode, "M_FORBIDDEN")
        self.join(club, BOB)
        self.join(room_id, BOB)
        self.assertEqual(set(self.do(self.rooms.joined_users(room_id))), {ALICE, BOB})

    def test_a_space_is_walked_through_rooms_of_both(self) -> None:
        space = self.room_of(self.one, preset="public_chat", creation_content={"type": "m.space"})
        children = [self.room_of(process, preset="public_chat") for process in (self.one, self.two)]
        for child in children:
            self.set(space, "m.space.child", {"via": ["test"]}, child)
        found, token = self.do(self.rooms.hierarchy(ALICE, space, False, None, None, None))
        self.assertEqual({room.summary.room_id for room in found}, {space, *children})
        self.assertIsNone(token)

    def test_an_upgrade(self) -> None:
        for process, version in ((self.one, "11"), (self.two, "12")):
            room_id = self.room_of(process, name="Old", visibility="public", preset="public_chat")
            self.join(room_id, BOB)
            new_id = self.do(self.rooms.upgrade(ALICE, room_id, version, None))
            self.assertIs(self.holder(new_id), process)
            self.join(new_id, BOB)
            event = self.do(self.rooms.state_event(new_id, BOB, "m.room.name", ""))
            self.assertEqual(msgspec.json.decode(event.client)["content"], {"name": "Old"})


class HandoverTests(TwoProcesses):
    def test_a_room_goes_on_where_it_was_left(self) -> None:
        room_id = self.room_of(self.one)
        self.say(room_id, "first")
        self.assertIs(self.move(room_id), self.two)
        self.say(room_id, "second")
        self.assertEqual(self.bodies(room_id), ["first", "second"])
        ids = [one.event.event_id for one in self.events(room_id)]
        pdus = self.do(self.rooms.pdus(ids))
        for before, after in pairwise(ids):
            self.assertEqual(msgspec.json.decode(pdus[after])["prev_events"], [before])

    def test_numbers_grow_along_a_room_that_goes_back_and_forth(self) -> None:
        """A-B-A: no event has a smaller number than those that authorise it."""
        room_id = self.room_of(self.one)
        for number in range(6):
            holder = self.holder(room_id)
            assert holder is not None
            self.set(room_id, "m.room.power_levels", {"users": {ALICE: 100}, "ban": number + 50})
            self.say(room_id, str(number))
            # Whoever does not have the room uses up numbers of its own block meanwhile.
            for process in self.processes:
                if not process.dead:
                    self.room_of(process)
            self.do(holder.stop())
            self.process()
            self.settle(1)
        rows = self.ask(
            "SELECT e.event_nid, e.pdu FROM events e JOIN rooms r ON r.room_nid = e.room_nid "
            f"WHERE r.room_id = '{room_id}' ORDER BY e.position"
        )
        nids = [row[0] for row in rows]
        self.assertEqual(nids, sorted(nids))
        self.assertEqual(len(nids), len(set(nids)))

    def test_what_is_being_made_is_waited_for(self) -> None:
        rooms = [self.room_of(self.one) for _ in range(8)]
        self.one.database.read_delay = lambda: 0.5
        for number, room_id in enumerate(rooms):
            event = NewEvent(room_id=room_id, sender=ALICE, type=f"org.own{number}", content={}, state_key="")
            self.begin(self.one.rooms.send(event))
        # The first read is over, which looks for the event that is there already; the second is the writer's.
        self.settle(0.6, 0.05)
        three = self.process()
        sent = [self.begin(self.rooms.send(self.message(room_id, "next"))) for room_id in rooms]
        self.settle(3, 0.05)
        self.assertTrue(any(three.holds(room_id) for room_id in rooms))
        for room_id, next_one in zip(rooms, sent, strict=True):
            ids = [one.event.event_id for one in self.events(room_id)]
            self.assertEqual(ids[-1], self.successResultOf(next_one))
            pdus = self.do(self.rooms.pdus(ids))
            self.assertEqual(msgspec.json.decode(pdus[ids[-2]])["type"].partition(".")[0], "org")
            for before, after in pairwise(ids):
                self.assertEqual(msgspec.json.decode(pdus[after])["prev_events"], [before])

    def test_a_transaction_is_known_by_whoever_has_the_room(self) -> None:
        room_id = self.room_of(self.one)
        sent = self.say(room_id, "once", device_id="D", transaction_id="t")
        self.move(room_id)
        self.assertEqual(self.say(room_id, "once", device_id="D", transaction_id="t"), sent)
        self.assertEqual(self.bodies(room_id), ["once"])

    def test_what_a_room_leaves_to_be_done_goes_with_it(self) -> None:
        room_id = self.room_of(self.one)
        self.say(room_id, "gone")
        failing = [True]

        async def forget_room(room: str) -> int:
            if failing[0]:
                raise MatrixError(503, "M_UNKNOWN", "not now")
            self.users.forgotten.append(room)
            return 0

        self.users.forget_room = forget_room  # type: ignore[method-assign]
        self.do(self.rooms.purge_room(room_id))
        self.assertEqual(self.users.forgotten, [])
        failing[0] = False
        self.do(self.one.stop())
        self.settle(1)
        self.assertEqual(self.users.forgotten, [room_id])
        left = "SELECT 1 FROM events e WHERE NOT EXISTS (SELECT 1 FROM rooms r WHERE r.room_nid = e.room_nid)"
        self.assertEqual(self.ask(left), [])
        self.assertEqual(self.ask("SELECT 1 FROM duties"), [])


class DeathTests(TwoProcesses):
    def test_the_rooms_of_a_killed_process_answer_again(self) -> None:
        room_id = self.room_of(self.one)
        self.say(room_id, "before")
        self.one.kill()
        begun = self.clock.seconds()
        self.say(room_id, "after")
        self.assertLess(self.clock.seconds() - begun, 5)
        self.assertEqual(self.bodies(room_id), ["before", "after"])

    def test_who_was_taken_for_dead_stores_nothing_and_forgets(self) -> None:
        room_id = self.room_of(self.one)
        self.say(room_id, "before")
        known = self.do(self.one.rooms.rooms.find(room_id))
        self.one.pause()
        self.settle(1)
        self.assertTrue(self.two.holds(room_id))
        event_id = self.do(self.two.rooms.send(self.message(room_id, "meanwhile")))
        for late in (self.one.rooms.send(self.message(room_id, "late")), self.one.rooms.writer.submit(known, [LATE])):
            self.assertEqual(self.failureResultOf(self.begin(late), MatrixError).value.status, 503)
        self.one.resume()
        self.settle(1)
        self.assertFalse(known.mine)
        self.assertEqual(self.bodies(room_id), ["before", "meanwhile"])
        self.say(room_id, "and on")
        self.assertEqual(self.bodies(room_id), ["before", "meanwhile", "and on"])
        last = self.events(room_id)[-1].event.event_id
        pdu = msgspec.json.decode(self.do(self.rooms.pdus([last]))[last])
        self.assertEqual(pdu["prev_events"], [event_id])
        self.assertEqual({self.one, self.two}, {self.holder(self.room_of(process)) for process in (self.one, self.two)})

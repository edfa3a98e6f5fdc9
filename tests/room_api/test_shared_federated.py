"""Rooms that other servers are in, shared by several processes: who fetches what, and what if rooms move meanwhile."""

from __future__ import annotations

from typing import Any

import orjson

from dendrite_tw.federation_api.api import FederationRequest, RawAnswer
from dendrite_tw.room_api.api import MembershipChange, StateComplete
from tests.room_api.federation import Net, Server, Wires
from tests.room_api.shared import KEY, Process
from tests.room_api.test_shared_rooms import ALICE, BOB, TwoProcesses

FAR = "@far:b.example"
MANY = [f"@member{number}:b.example" for number in range(8)]
NEVER = RawAnswer(404, b'{"errcode":"M_NOT_FOUND","error":"not now"}')


class OurFace(Server):
    """Both processes, as other servers see them."""

    def __init__(self, net: Net, house: FederatedCase) -> None:
        self.net, self.name, self.key = net, "test", KEY
        self.answers, self.asked = {}, []
        self.told, self.others, self.sent = [], [], 0
        self.rooms = house.rooms


class FederatedCase(TwoProcesses):
    def setUp(self) -> None:
        self.net = Net(self)
        super().setUp()
        self.net.memory.clock = self.clock
        self.net.memory.world = self.one.world
        self.net.servers["test"] = OurFace(self.net, self)
        self.far = self.net.add("b.example")
        for process in self.processes:
            process.federation.wires = Wires(self.net, "test")

    def process(self) -> Process:
        made = super().process()
        made.federation.wires = Wires(self.net, "test")
        return made

    def pdus_of(self, event_ids: list[str]) -> list[bytes]:
        found = self.net.do(self.far.rooms.pdus(event_ids))
        return [found[event_id] for event_id in event_ids]

    def timeline(self, room_id: str) -> list[str]:
        view = self.do(self.rooms.room_view(room_id, 1000))
        return [event.event_id for event in view.timeline]

    def move_before(self, endpoint: str, room_id: str, answer: Any = None) -> list[str]:
        """Have a room's process stop while the other server is asked something for the first time."""
        moved: list[str] = []

        def instead(request: FederationRequest) -> Any:
            holder = self.holder(room_id)
            if not moved and holder is not None:
                moved.append(endpoint)
                self.begin(holder.stop())
            return answer

        self.far.answers[endpoint] = instead
        return moved

    def joined_room(self) -> str:
        """A room of ours that a user of the other server has joined."""
        room_id = self.create(preset="public_chat")
        change = self.far.change(room_id, FAR, "join", via=["test"])
        self.do(change)
        return room_id


class ReceivingTests(FederatedCase):
    def test_a_room_moves_while_what_an_event_refers_to_is_fetched(self) -> None:
        room_id = self.joined_room()
        first = self.far.say(room_id, FAR, "first")
        second = self.far.say(room_id, FAR, "second")
        moved = self.move_before("get_missing_events", room_id)
        refused = self.do(self.rooms.receive("b.example", room_id, self.pdus_of([second])))
        self.assertEqual((moved, refused), (["get_missing_events"], {}))
        self.assertEqual(self.timeline(room_id)[-2:], [first, second])
        ids = [one.event.event_id for one in self.events(room_id)]
        self.assertEqual(ids[-2:], [first, second])
        self.assertEqual(len(ids), len(set(ids)))

    def test_a_list_of_servers_is_known_everywhere_at_once(self) -> None:
        room_id = self.joined_room()
        self.do(self.rooms.check_server(room_id, "b.example"))
        self.set(room_id, "m.room.server_acl", {"allow": ["*"], "deny": ["b.example"]})
        for process in self.processes:
            failed = self.failureResultOf(self.begin(process.rooms.check_server(room_id, "b.example")))
            self.assertEqual(failed.value.errcode, "M_FORBIDDEN")


class JoiningTests(FederatedCase):
    def far_room(self, **options: Any) -> str:
        room_id = self.far.create(FAR, preset="public_chat", **options)
        for user in MANY:
            self.far.member(room_id, user, "join")
        return room_id

    def join_far(self, room_id: str, user_id: str = ALICE) -> None:
        change = MembershipChange(room_id=room_id, sender=user_id, target=user_id, action="join", via=["b.example"])
        self.do(self.rooms.change_membership(change))

    def test_whoever_has_the_share_joins(self) -> None:
        for _ in range(4):
            room_id = self.far_room()
            self.join_far(room_id)
            self.join_far(room_id, BOB)
            self.assertEqual(len(self.do(self.rooms.joined_users(room_id))), 11)

    def test_a_room_moves_while_it_is_joined(self) -> None:
        room_id = self.far_room()
        moved = self.move_before("send_join", room_id)
        self.join_far(room_id)
        self.assertEqual(moved, ["send_join"])
        self.assertIn(ALICE, self.do(self.rooms.joined_users(room_id)))
        self.say(room_id, "hello")
        self.assertEqual(self.bodies(room_id), ["hello"])

    def test_missing_members_are_fetched_by_whoever_has_the_room(self) -> None:
        self.far.rooms.remote.answers.small = 0
        self.far.answers["state"] = lambda request: NEVER
        room_id = self.far_room(name="Large")
        self.join_far(room_id)
        self.assertEqual(self.do(self.rooms.joined_users(room_id)), [ALICE])
        waiting = self.begin(self.rooms.members(room_id, ALICE, None, None, None))
        self.settle(1)
        self.assertNoResult(waiting)
        holder = self.holder(room_id)
        assert holder is not None
        self.do(holder.stop())
        self.far.answers.pop("state")
        self.settle(20, 0.25)
        self.assertEqual(len(self.successResultOf(waiting)), 10)
        self.assertEqual(len(self.do(self.rooms.joined_users(room_id))), 10)
        [complete] = [one for one in self.told.values() if isinstance(one, StateComplete)]
        self.assertEqual(complete.room_id, room_id)
        self.assertEqual(self.ask("SELECT 1 FROM partial_rooms"), [])
        self.assertEqual(self.ask("SELECT 1 FROM duties"), [])
        self.say(room_id, "whole")

    def test_what_another_process_completed_is_seen_at_once(self) -> None:
        self.far.rooms.remote.answers.small = 0
        self.far.answers["state"] = lambda request: NEVER
        room_id = self.far_room(name="Large")
        self.join_far(room_id)
        for process in self.processes:
            self.assertEqual(len(self.do(process.rooms.current_state(room_id, ALICE))), len(self.state(room_id)))
        self.far.answers.pop("state")
        self.settle(30, 0.5)
        for process in self.processes:
            members = [
                event.state_key
                for event in self.do(process.rooms.current_state(room_id, ALICE))
                if event.type == "m.room.member"
            ]
            self.assertEqual(sorted(members), sorted([ALICE, FAR, *MANY]))

    def state(self, room_id: str) -> list[Any]:
        return self.do(self.rooms.room_view(room_id, 1)).state  # type: ignore[no-any-return]

    def test_an_invite_is_kept_by_the_share_of_the_room(self) -> None:
        for _ in range(4):
            room_id = self.far.create(FAR)
            self.far.member(room_id, FAR, "invite", ALICE)
            found = self.do(self.rooms.membership(room_id, ALICE))
            self.assertEqual(found.membership, "invite")
            for process in self.processes:
                shown = self.do(process.rooms.stripped_state(room_id, ALICE))
                self.assertIn("m.room.create", [orjson.loads(event)["type"] for event in shown])

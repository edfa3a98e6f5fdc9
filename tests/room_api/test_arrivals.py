"""Events of other servers come into a room: forks, what is rejected, whole states, history."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.harness import Memory
from tests.room_api.federated import Server

ALICE, BOB, CAROL = "@alice:a", "@bob:b", "@carol:c"


class ArrivalTests(SynchronousTestCase):
    def setUp(self) -> None:
        memory = Memory()
        self.a, self.b = Server(self, "a", memory), Server(self, "b", memory)

    def shared_room(self, **options: object) -> str:
        room_id = self.a.create(ALICE, preset="public_chat", **options)
        self.a.join(self.b, room_id, BOB)
        self.assertEqual(self.a.state(room_id), self.b.state(room_id))
        return room_id

    def test_a_room_is_adopted_and_goes_on(self) -> None:
        for version in ("1", "3", "6", "11", "12"):
            room_id = self.shared_room(room_version=version)
            said = self.b.say(room_id, BOB, "hello")
            self.assertEqual([one.verdict for one in self.a.take(room_id, [self.b.event(said)])], ["accepted"])
            self.assertEqual(self.a.bodies(room_id), ["hello"])
            self.assertEqual([one.verdict for one in self.a.take(room_id, [self.b.event(said)])], ["known"])
            self.assertEqual(self.a.bodies(room_id), ["hello"])
            self.assertTrue(self.b.told[-1].distribute)
            self.assertFalse(self.a.told[-1].distribute)
            self.assertEqual(sorted(self.a.do(self.a.rooms.room_servers(room_id))), ["a", "b"])
            self.b.restart()
            self.assertEqual(self.a.state(room_id), self.b.state(room_id))

    def test_a_fork_of_state_is_resolved_alike(self) -> None:
        for version in ("1", "2", "10", "12"):
            room_id = self.shared_room(room_version=version)
            levels = {"users": {BOB: 50} if version == "12" else {ALICE: 100, BOB: 50}, "state_default": 50}
            set_levels = self.a.send(room_id, ALICE, "m.room.power_levels", levels, "")
            self.b.take(room_id, [self.a.event(set_levels)])
            first = self.a.send(room_id, ALICE, "m.room.topic", {"topic": "of a"}, "")
            second = self.b.send(room_id, BOB, "m.room.topic", {"topic": "of b"}, "")
            name = self.b.send(room_id, BOB, "m.room.name", {"name": "n"}, "")
            self.a.take(room_id, [self.b.event(second), self.b.event(name)])
            self.b.take(room_id, [self.a.event(first)])
            self.assertEqual(self.a.state(room_id), self.b.state(room_id))
            self.assertIn(("m.room.name", ""), self.a.state(room_id))
            self.assertEqual(len(self.a.do(self.a.rooms.rooms.get(room_id)).head.extremities), 2)
            joined = self.a.say(room_id, ALICE, "together")
            self.assertEqual(len(self.a.event(joined).prev_events), 2)
            self.b.take(room_id, [self.a.event(joined)])
            self.a.restart()
            self.b.restart()
            self.assertEqual(self.a.state(room_id), self.b.state(room_id))
            for server in (self.a, self.b):
                self.assertEqual(server.do(server.rooms.rooms.get(room_id)).head.extremities, (joined,))

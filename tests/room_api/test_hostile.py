"""What a server may send to do harm: answers and events that are right by the letter, and too much of something."""

from __future__ import annotations

import orjson
from twisted.internet.defer import Deferred

from dendrite_tw.database.outbox import OutboxRow
from dendrite_tw.federation_api.api import RawAnswer
from dendrite_tw.matrix.errors import MatrixError
from tests.room_api.test_arrivals import ALICE, BOB, MEMBER, TOPIC, TwoServers

DEEP = b"[" * 100_000 + b"]" * 100_000


class AnswerTests(TwoServers):
    def test_an_answer_that_nests_without_end_is_none(self) -> None:
        room_id = self.shared_room()
        last = [self.a.say(room_id, ALICE, str(number)) for number in range(3)][-1]
        self.network.answers["a", "get_missing_events"] = lambda request: RawAnswer(200, b'{"events":[%b]}' % DEEP)
        self.network.answers["a", "event"] = lambda request: RawAnswer(200, b'{"pdus":[],"x":%b}' % DEEP)
        self.network.answers["a", "state_ids"] = lambda request: RawAnswer(200, DEEP)
        self.assertIn("missing", self.pass_on("a", room_id, [last])[last])

    def test_a_membership_that_nests_without_end_is_refused(self) -> None:
        room_id = self.shared_room()
        pdu = b'{"sender":"@x:b","content":{},"x":%b}' % DEEP
        taking = self.a.rooms.take_membership("join", room_id, "$x", "b", pdu)
        error = self.failureResultOf(Deferred.fromCoroutine(taking), MatrixError).value
        self.assertEqual((error.status, error.errcode), (400, "M_BAD_JSON"))


class LongNumberTests(TwoServers):
    def test_state_with_numbers_beyond_64_bits_can_be_replaced(self) -> None:
        for version in ("1", "5"):
            room_id = self.shared_room(version)
            for type, key, content in ((TOPIC, "", {"topic": "t"}), (MEMBER, BOB, {"membership": "join"})):
                event = self.b.make_on(self.a, room_id, BOB, type, {**content, "n": 10**30, "f": 1.5}, key)
                self.assertEqual(self.a.receive(self.b, room_id, [event]), {})
                self.assertEqual(self.a.state(room_id)[type, key], event.event_id)
            shown = self.a.do(self.a.rooms.stripped_state(room_id, ALICE))
            self.assertTrue(any(b"1000000000000000000000000000000" in one for one in shown))
            topic = self.a.send(room_id, ALICE, TOPIC, {"topic": "u"}, "")
            self.assertIn(b"1000000000000000000000000000000", self.a.told[-1].event.prev_content or b"")
            self.a.change(room_id, ALICE, "kick", BOB)
            self.assertEqual(self.a.state(room_id)[TOPIC, ""], topic)

    def test_a_space_may_have_such_children(self) -> None:
        space = self.a.create(ALICE, preset="public_chat", room_version="5", creation_content={"type": "m.space"})
        self.a.let_join(self.b, space, BOB)
        levels = self.a.send(space, ALICE, "m.room.power_levels", {"users": {ALICE: 100, BOB: 50}}, "")
        self.pass_on("a", space, [levels])
        child = self.b.make_on(self.a, space, BOB, "m.space.child", {"via": ["b"], "n": 10**30}, "!x:b")
        self.assertEqual(self.a.receive(self.b, space, [child]), {})
        self.network.deaf.add("b")
        found, _ = self.a.do(self.a.rooms.hierarchy(ALICE, space, False, None, None, None))
        self.assertEqual([room.summary.room_id for room in found], [space])
        self.assertEqual([orjson.loads(one)["state_key"] for one in found[0].children_state], ["!x:b"])


class MuchStateTests(TwoServers):
    def test_what_a_gap_brings_is_told_in_a_message_of_bounded_size(self) -> None:
        room_id = self.shared_room()
        others = [f"@user{number}:a" for number in range(20)]
        for user in others:
            self.a.change(room_id, user, "join")
        self.pass_on("a", room_id, [self.a.state(room_id)[MEMBER, user] for user in others])
        for user in others:
            self.network.memory.clock.advance(1)
            self.a.change(room_id, user, "leave")
        for number in range(20):
            self.a.send(room_id, ALICE, "m.large", {"text": "x" * 60_000}, str(number))
        for number in range(110):
            self.a.say(room_id, ALICE, str(number))
        sizes: list[int] = []
        tell = self.b.rooms.outbox.on_commit

        def on_commit(rows: list[OutboxRow]) -> None:
            sizes.extend(len(row.payload) for row in rows)
            tell(rows)

        self.b.rooms.outbox.on_commit = on_commit
        last = self.a.say(room_id, ALICE, "last")
        self.b.told.clear()
        self.assertEqual(self.pass_on("a", room_id, [last]), {})
        self.assert_same_state(room_id)
        self.assertLess(max(sizes), 1 << 20)
        [much] = [told for told in self.b.told if told.rewrites_state]
        self.assertEqual(much.also_replaced, [])
        self.assertEqual(sorted(much.also_removed), [(MEMBER, user) for user in sorted(others)])
        self.assertEqual(self.b.do(self.b.rooms.room_view(room_id, 1)).rewritten, much.event.position)

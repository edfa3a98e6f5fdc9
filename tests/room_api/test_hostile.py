"""What a server may send to do harm: answers and events that are right by the letter, and too much of something."""

from __future__ import annotations

from functools import partial
from typing import Any
from unittest.mock import patch

import orjson
from twisted.internet.defer import Deferred

from dendrite_tw.database.outbox import OutboxRow
from dendrite_tw.federation_api.api import RawAnswer
from dendrite_tw.matrix import event_format, events
from dendrite_tw.matrix.errors import MatrixError
from dendrite_tw.matrix.events import Event, receive_event
from dendrite_tw.matrix.room_versions import ROOM_VERSIONS
from dendrite_tw.room_api.room import Arrival, Outcome, Way
from dendrite_tw.room_api.tables.events import ACCEPTED
from tests.room_api.federated import count
from tests.room_api.test_arrivals import ALICE, BOB, CAROL, MEMBER, MESSAGE, TOPIC, TwoServers

DORA = "@dora:c"

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


class ChosenIdTests(TwoServers):
    def test_an_event_does_not_take_the_place_of_one_in_another_room(self) -> None:
        """Where servers choose IDs, one ID may be given twice; the first event with it stays what it is."""
        for version in ("1", "2"):
            room_id = self.shared_room(version)
            other = self.b.create(BOB, preset="public_chat", room_version=version)
            self.b.let_join(self.a, other, ALICE)
            name = f"chosen{version}"
            first = self.b.make_on(self.a, room_id, BOB, "m.x", {}, "k", event_id=name)
            self.a.do(self.a.rooms.adoption.store_outliers(self.a.room(room_id), [first]))
            second = self.b.make_on(self.b, other, BOB, MESSAGE, {"body": "from elsewhere"}, event_id=name)
            self.assertEqual(first.event_id, second.event_id)
            self.assertIn("another room", self.a.receive(self.b, other, [second])[second.event_id])
            self.assertNotIn("from elsewhere", [*self.a.bodies(room_id), *self.a.bodies(other)])
            third = self.b.make_on(self.b, other, BOB, "m.x", {}, "k", event_id=name)
            found = self.a.do(self.a.rooms.adoption.store_outliers(self.a.room(other), [third]))
            self.assertEqual(found, {})
            self.assertEqual(self.a.event(first.event_id).pdu, first.pdu)


class AsideTests(TwoServers):
    """Server c is not in the room yet when it is told of an invite there."""

    def setUp(self) -> None:
        super().setUp()
        self.c = self.network.server("c")
        self.room_id = self.shared_room()
        self.c.do(self.c.rooms.adoption.stub(self.room_id, ROOM_VERSIONS["10"]))

    def invite(self, **options: Any) -> Event:
        return self.a.make_on(self.a, self.room_id, ALICE, MEMBER, {"membership": "invite"}, DORA, **options)

    def test_an_invite_that_nothing_authorises_is_part_of_no_state(self) -> None:
        forged = self.invite(auth_events=["$unknown"])
        [outcome] = self.c.take(self.room_id, [forged], Way.ASIDE)
        self.assertEqual(outcome.verdict, "accepted")
        self.assertEqual(self.c.do(self.c.rooms.membership(self.room_id, DORA)).membership, "invite")
        self.a.let_join(self.c, self.room_id, CAROL)
        state = [self.a.event(event_id) for event_id in self.a.state(self.room_id).values()]
        before = self.b.make_on(self.a, self.room_id, BOB, MESSAGE, {"body": "before"})
        said = self.b.make(ROOM_VERSIONS["10"], self.room_id, BOB, MESSAGE, {}, prev=[before], state=state)
        ids = [event.event_id for event in (*state, forged)]
        self.network.answers["b", "get_missing_events"] = lambda request: RawAnswer(404, b"{}")
        self.network.answers["b", "event"] = lambda request: {"pdus": [orjson.loads(before.pdu)]}
        self.network.answers["b", "state_ids"] = lambda request: {"pdu_ids": ids, "auth_chain_ids": []}
        self.network.answers["b", "event_auth"] = lambda request: RawAnswer(404, b"{}")
        self.c.receive(self.b, self.room_id, [said])
        again = self.b.make_on(
            self.a, self.room_id, BOB, MEMBER, {"membership": "invite"}, DORA, state=[*state, forged]
        )
        self.assertIn(forged.event_id, again.auth_events)
        self.assertIn(again.event_id, self.c.receive(self.b, self.room_id, [again]))
        self.assertNotIn((MEMBER, DORA), self.c.state(self.room_id))
        name = self.a.send(self.room_id, ALICE, "m.room.name", {"name": "goes on"}, "")
        self.assertEqual(self.c.receive(self.a, self.room_id, [name]), {})
        self.assertEqual(self.c.state(self.room_id)["m.room.name", ""], name)

    def test_an_invite_is_numbered_behind_what_authorises_it(self) -> None:
        invite = self.invite()
        self.c.take(self.room_id, [invite], Way.ASIDE)
        self.a.let_join(self.c, self.room_id, CAROL)
        self.a.take(self.room_id, [invite])
        self.assertEqual(self.c.receive(self.a, self.room_id, [invite]), {})
        row = self.c.row(invite.event_id)
        assert row is not None
        self.assertEqual(row.status, ACCEPTED)
        for event_id in invite.auth_events:
            self.assertLess(self.c.row(event_id).event_nid, row.event_nid)  # type: ignore[union-attr]
        self.assertEqual(self.c.state(self.room_id), self.a.state(self.room_id))
        self.assertEqual(self.c.do(self.c.rooms.membership(self.room_id, DORA)).membership, "invite")
        self.c.restart()
        self.assertEqual(self.c.do(self.c.rooms.membership(self.room_id, DORA)).membership, "invite")

    def test_an_invite_to_a_room_that_was_joined_meanwhile_is_one_of_the_room(self) -> None:
        invite = self.invite()
        self.a.let_join(self.c, self.room_id, CAROL)
        arrival = Arrival(receive_event(invite.pdu, ROOM_VERSIONS["10"]), Way.ASIDE)
        late = Deferred.fromCoroutine(self.c.rooms.writer.take(self.c.room(self.room_id), [arrival]))
        self.assertEqual(self.failureResultOf(late, MatrixError).value.status, 503)
        self.assertIsNone(self.c.do(self.c.rooms.membership(self.room_id, DORA)))


class PurgeTests(TwoServers):
    def test_nothing_is_stored_of_a_room_that_was_deleted_meanwhile(self) -> None:
        room_id = self.shared_room()
        state = [self.a.event(event_id) for event_id in self.a.state(room_id).values()]
        room = self.b.room(room_id)
        self.b.do(self.b.rooms.purge_room(room_id))
        self.network.memory.clock.pump([1.0] * 20)
        self.assertEqual(self.b.database.prepare(count, "events"), 0)
        late = Deferred.fromCoroutine(self.b.rooms.adoption.store_outliers(room, state))
        self.assertEqual(self.failureResultOf(late, MatrixError).value.status, 404)
        self.assertEqual(self.b.database.prepare(count, "events"), 0)
        self.a.let_join(self.b, room_id, "@berta:b")
        self.assert_same_state(room_id)


class OldEventTests(TwoServers):
    def test_the_state_before_an_event_that_follows_very_many_is_taken_as_it_is_told(self) -> None:
        room_id = self.shared_room()
        said = [self.a.event(self.a.say(room_id, ALICE, str(number))) for number in range(110)]
        self.pass_on("a", room_id, said[:5])
        state = [self.a.event(event_id) for event_id in self.a.state(room_id).values()]
        with patch.object(events, "check_fields", partial(event_format.check_fields, limited=False)):
            old = self.b.make(ROOM_VERSIONS["10"], room_id, BOB, MESSAGE, {"body": "old"}, prev=said, state=state)
        received = receive_event(old.pdu, ROOM_VERSIONS["10"], limited=False)
        room = self.b.room(room_id)

        def take(**options: Any) -> Outcome:
            [outcome] = self.b.do(self.b.rooms.writer.take(room, [Arrival(received, Way.HISTORY, **options)]))
            return outcome  # type: ignore[no-any-return]

        self.assertEqual(take().verdict, "dropped")
        before = self.b.room(room_id).head.state
        self.assertEqual(take(before=before).verdict, "accepted")
        row = self.b.row(old.event_id)
        assert row is not None
        self.assertLess(row.position, 0)
        self.assertEqual(row.gap, 1)
        edges = self.b.database.prepare(count, "backward_edges")
        self.assertGreaterEqual(edges, 105)


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

"""Events of other servers come into a room: forks, what is not accepted, redactions, whole states, history."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.matrix.errors import MatrixError
from dendrite_tw.matrix.events import Event, receive_event
from dendrite_tw.matrix.room_versions import ROOM_VERSIONS
from dendrite_tw.room_api.adoption import PartialJoin
from dendrite_tw.room_api.room import Way
from dendrite_tw.room_api.tables.events import ACCEPTED, REJECTED, SOFT_FAILED
from tests.room_api.federated import Network, count

ALICE, BOB, BERTA, CAROL = "@alice:a", "@bob:b", "@berta:b", "@carol:c"

TOPIC, NAME, MEMBER, MESSAGE = "m.room.topic", "m.room.name", "m.room.member", "m.room.message"


class TwoServers(SynchronousTestCase):
    """A public room of two servers: alice of a has made it, bob of b has power 50."""

    def setUp(self) -> None:
        self.network = Network(self)
        self.a, self.b = self.network.server("a"), self.network.server("b")

    def shared_room(self, version: str = "10", **options: Any) -> str:
        room_id = self.a.create(ALICE, preset="public_chat", room_version=version, **options)
        self.a.let_join(self.b, room_id, BOB)
        users = {BOB: 50} if ROOM_VERSIONS[version].privileged_creators else {ALICE: 100, BOB: 50}
        levels = self.a.send(room_id, ALICE, "m.room.power_levels", {"users": users, "state_default": 50}, "")
        self.pass_on("a", room_id, [levels])
        return room_id

    def pass_on(self, origin: str, room_id: str, events: list[str | Event]) -> dict[str, str]:
        """Let the other server receive events."""
        one, other = (self.a, self.b) if origin == "a" else (self.b, self.a)
        return other.receive(one, room_id, events)

    def assert_same_state(self, room_id: str) -> None:
        self.assertEqual(self.a.state(room_id), self.b.state(room_id))


class ForkTests(TwoServers):
    def test_a_room_goes_on_between_servers(self) -> None:
        for version in ROOM_VERSIONS:
            room_id = self.shared_room(version)
            said = self.b.say(room_id, BOB, "hello")
            self.assertEqual(self.pass_on("b", room_id, [said]), {})
            self.assertEqual(self.a.bodies(room_id), ["hello"])
            self.assertTrue(self.b.told[-1].distribute)
            self.assertFalse(self.a.told[-1].distribute)
            self.assertEqual(self.pass_on("b", room_id, [said, said]), {})
            self.assertEqual(self.a.bodies(room_id), ["hello"])
            self.assertEqual(sorted(self.a.do(self.a.rooms.room_servers(room_id))), ["a", "b"])
            self.b.restart()
            self.assert_same_state(room_id)
            self.assertEqual(self.a.room(room_id).head.extremities, (said,))

    def test_state_of_two_branches_is_resolved_alike(self) -> None:
        for version in ROOM_VERSIONS:
            room_id = self.shared_room(version)
            first = self.a.send(room_id, ALICE, TOPIC, {"topic": "of a"}, "")
            second = self.b.send(room_id, BOB, TOPIC, {"topic": "of b"}, "")
            name = self.b.send(room_id, BOB, NAME, {"name": "n"}, "")
            self.assertEqual(self.pass_on("b", room_id, [second, name]), {})
            self.assertEqual(self.pass_on("a", room_id, [first]), {})
            self.assert_same_state(room_id)
            self.assertEqual(self.a.state(room_id)[NAME, ""], name)
            self.assertEqual(set(self.a.room(room_id).head.extremities), {first, name})
            together = self.a.say(room_id, ALICE, "together")
            self.assertEqual(set(self.a.event(together).prev_events), {first, name})
            self.assertEqual(self.pass_on("a", room_id, [together]), {})
            before = {event.event_id for event in self.b.state_before(together)}
            self.assertEqual(before, set(self.a.state(room_id).values()))
            self.a.restart()
            self.b.restart()
            self.assert_same_state(room_id)
            for server in (self.a, self.b):
                self.assertEqual(server.room(room_id).head.extremities, (together,))

    def test_a_long_line_of_power_levels(self) -> None:
        """Both branches change topics by authority that lies far back, with nothing of it in memory."""
        for version in ("3", "12"):
            room_id = self.shared_room(version)
            start = [self.a.event(one) for one in self.a.room(room_id).head.extremities]
            old = [self.a.event(one) for one in self.a.state(room_id).values()]
            users = {BOB: 50} if version == "12" else {ALICE: 100, BOB: 50}
            line = [
                self.a.send(room_id, ALICE, "m.room.power_levels", {"users": users, "state_default": 30 + step}, "")
                for step in range(12)
            ]
            own = self.a.send(room_id, ALICE, TOPIC, {"topic": "of alice"}, "")
            branch = self.b.make_on(self.a, room_id, BOB, TOPIC, {"topic": "of bob"}, "", prev=start, state=old)
            levels = {"users": users, "state_default": 50, "events": {"m.x": 50}}
            other = self.a.make_on(
                self.a, room_id, ALICE, "m.room.power_levels", levels, "", prev=[branch], state=[*old, branch]
            )
            self.a.restart()
            self.b.restart()
            self.a.take(room_id, [branch, other])
            self.assertEqual(self.pass_on("a", room_id, [branch, other, *line, own]), {})
            self.assert_same_state(room_id)
            for server in (self.a, self.b):
                server.restart()
                said = server.room(room_id)
                self.assertEqual(set(said.head.extremities), {own, other.event_id})
            together = self.a.say(room_id, ALICE, "together")
            self.pass_on("a", room_id, [together])
            self.assert_same_state(room_id)

    def test_what_is_told_of_state_that_changed_with_another_event(self) -> None:
        """A ban on one branch takes along what the banned user did on the other."""
        for version in ("2", "6", "12"):
            room_id = self.shared_room(version)
            before = self.a.state(room_id).get((TOPIC, ""))
            topic = self.b.send(room_id, BOB, TOPIC, {"topic": "of bob"}, "")
            self.pass_on("b", room_id, [topic])
            self.assertEqual(self.a.state(room_id)[TOPIC, ""], topic)
            # Made before alice knew of the topic, and heard of after it.
            ban = self.a.make_on(
                self.a,
                room_id,
                ALICE,
                MEMBER,
                {"membership": "ban"},
                BOB,
                prev=[self.a.event(one) for one in self.a.event(topic).prev_events],
            )
            for server in (self.a, self.b):
                server.told.clear()
                self.assertEqual([one.verdict for one in server.take(room_id, [ban])], ["accepted"])
                told = server.told[-1]
                self.assertTrue(told.state_changed)
                self.assertEqual(told.also_removed, [(TOPIC, "")] if before is None else [])
                self.assertEqual(server.state(room_id).get((TOPIC, "")), before)
                self.assertEqual((told.joined_members, told.local_members), (1, 1 if server is self.a else 0))
                membership = server.do(server.rooms.membership(room_id, BOB))
                self.assertEqual((membership.membership, membership.position), ("ban", told.event.position))
            self.assertEqual(self.a.do(self.a.rooms.room_servers(room_id)), ["a"])

    def test_a_local_join_may_be_undone_by_a_resolution(self) -> None:
        room_id = self.shared_room()
        start = [self.a.event(one) for one in self.a.room(room_id).head.extremities]
        close = self.a.send(room_id, ALICE, "m.room.join_rules", {"join_rule": "invite"}, "")
        join = self.b.change(room_id, BERTA, "join")
        self.assertEqual(self.b.do(self.b.rooms.membership(room_id, BERTA)).membership, "join")
        self.b.told.clear()
        self.assertEqual(self.pass_on("a", room_id, [close]), {})
        self.assertEqual(self.b.told[-1].also_removed, [(MEMBER, BERTA)])
        # Her client may have been told of the join: where she is out since is kept, though no event says so.
        out = self.b.do(self.b.rooms.membership(room_id, BERTA))
        self.assertEqual((out.membership, out.position), ("leave", self.b.told[-1].event.position))
        self.assertEqual(sorted(self.b.do(self.b.rooms.joined_users(room_id))), sorted([ALICE, BOB]))
        self.assertEqual((self.b.told[-1].joined_members, self.b.told[-1].local_members), (2, 1))
        self.assertIn("not allowed now", self.pass_on("b", room_id, [join])[join])
        self.assertEqual(self.a.status(join), SOFT_FAILED)
        self.assert_same_state(room_id)
        self.assertEqual(self.b.event(join).prev_events, tuple(event.event_id for event in start))

    def test_state_at_a_place_in_the_stream(self) -> None:
        room_id = self.shared_room()
        first = self.a.send(room_id, ALICE, TOPIC, {"topic": "of a"}, "")
        second = self.b.send(room_id, BOB, NAME, {"name": "of b"}, "")
        self.pass_on("b", room_id, [second])
        positions = {event: self.a.row(event).position for event in (first, second)}  # type: ignore[union-attr]
        at_first = {e.event_id for e in self.a.do(self.a.rooms.state_at(room_id, positions[first]))}
        at_second = {e.event_id for e in self.a.do(self.a.rooms.state_at(room_id, positions[second]))}
        self.assertEqual(at_second - at_first, {second})
        [change] = self.a.do(self.a.rooms.state_changes(room_id, positions[first], positions[second]))
        self.assertEqual((change.type, change.before, change.now.event_id), (NAME, None, second))
        # The name was set where the topic was not.
        self.assertNotIn(first, {e.event_id for e in self.a.state_before(second)})

    def test_messages_of_branches_store_no_states(self) -> None:
        room_id = self.shared_room()
        topic = self.a.send(room_id, ALICE, TOPIC, {"topic": "of a"}, "")
        said = [self.b.say(room_id, BOB, str(number)) for number in range(20)]
        before = self.a.database.prepare(count, "state_snapshots")
        self.assertEqual(self.pass_on("b", room_id, said), {})  # type: ignore[arg-type]
        self.assertEqual(self.a.database.prepare(count, "state_snapshots"), before)
        self.assertEqual(self.pass_on("a", room_id, [topic]), {})
        self.assert_same_state(room_id)

    def test_many_ends_are_brought_together(self) -> None:
        room_id = self.shared_room()
        start = [self.a.event(one) for one in self.a.room(room_id).head.extremities]
        said = [self.b.make_on(self.a, room_id, BOB, MESSAGE, {"body": str(n)}, prev=start) for n in range(25)]
        self.assertEqual(self.pass_on("b", room_id, list(said)), {})
        self.assertEqual(len(self.a.room(room_id).head.extremities), 25)
        for left in (16, 7, 1):
            event = self.a.event(self.a.say(room_id, ALICE, "x"))
            self.assertLessEqual(len(event.prev_events), 10)
            self.assertEqual(len(self.a.room(room_id).head.extremities), left)


class NotAcceptedTests(TwoServers):
    def test_rejected_by_its_auth_events(self) -> None:
        room_id = self.shared_room()
        event = self.b.make_on(self.a, room_id, BOB, "m.room.power_levels", {"users": {BOB: 100}}, "")
        self.assertIn(event.event_id, self.pass_on("b", room_id, [event]))
        self.assertEqual(self.a.status(event.event_id), REJECTED)
        self.assertNotEqual(self.a.state(room_id)["m.room.power_levels", ""], event.event_id)
        self.assertNotIn(event.event_id, self.a.room(room_id).head.extremities)
        # What comes after it is judged by itself, and the end before it is covered.
        after = self.b.make_on(self.a, room_id, BOB, MESSAGE, {"body": "after"}, prev=[event])
        self.assertEqual(self.pass_on("b", room_id, [after]), {})
        self.assertEqual(self.a.room(room_id).head.extremities, (after.event_id,))
        self.assertEqual(
            {one.event_id for one in self.a.state_before(after.event_id)}, set(self.a.state(room_id).values())
        )
        # What it authorises is rejected with it.
        state = [self.a.event(one) for key, one in self.a.state(room_id).items() if key[0] != "m.room.power_levels"]
        on_it = self.b.make_on(self.a, room_id, BOB, TOPIC, {"topic": "x"}, "", state=[*state, event])
        self.assertIn("was rejected", self.pass_on("b", room_id, [on_it])[on_it.event_id])

    def test_rejected_by_the_state_before(self) -> None:
        """The sender shows the authority that was taken from them."""
        room_id = self.shared_room()
        old = [self.a.event(one) for one in self.a.state(room_id).values()]
        levels = self.a.send(room_id, ALICE, "m.room.power_levels", {"users": {ALICE: 100}, "state_default": 50}, "")
        self.pass_on("a", room_id, [levels])
        event = self.b.make_on(self.a, room_id, BOB, TOPIC, {"topic": "x"}, "", state=old)
        self.pass_on("b", room_id, [event])
        self.assertEqual(self.a.status(event.event_id), REJECTED)
        self.assertNotIn((TOPIC, ""), self.a.state(room_id))

    def test_soft_failed_and_still_part_of_the_graph(self) -> None:
        room_id = self.shared_room()
        start = [self.a.event(one) for one in self.a.room(room_id).head.extremities]
        ban = self.a.change(room_id, ALICE, "ban", BOB)
        said = self.b.say(room_id, BOB, "evading")
        told = len(self.a.told)
        self.assertIn("not allowed now", self.pass_on("b", room_id, [said])[said])
        self.assertEqual((self.a.status(said), len(self.a.told)), (SOFT_FAILED, told))
        self.assertEqual(self.a.room(room_id).head.extremities, (ban,))
        self.assertEqual(self.a.bodies(room_id), [])
        self.a.do(self.a.rooms.pdus([said]))
        # Somebody who heard the message first refers to both: that is taken, and the state stays.
        carol = self.network.server("c")
        later = carol.make_on(self.a, room_id, ALICE, MESSAGE, {"body": "both"}, prev=[self.a.event(said)])
        self.assertEqual([one.verdict for one in self.a.take(room_id, [later])], ["accepted"])
        self.assertEqual(set(self.a.room(room_id).head.extremities), {ban, later.event_id})
        self.assertEqual(self.a.state(room_id)[MEMBER, BOB], ban)
        self.assertEqual(len(start), 1)

    def test_dropped(self) -> None:
        room_id = self.shared_room()
        other_room = self.shared_room()
        unsigned = self.b.make_on(self.a, room_id, ALICE, MESSAGE, {"body": "not by alice's server"})
        foreign = self.b.event(self.b.say(other_room, BOB, "elsewhere"))
        nul = self.b.make_on(self.a, room_id, BOB, "m.\0", {})
        refused = self.pass_on("b", room_id, [unsigned, foreign, nul])
        self.assertEqual(refused.keys(), {unsigned.event_id, foreign.event_id, nul.event_id})
        self.assertEqual([self.a.status(one) for one in refused], [None, None, None])
        self.assertEqual(len(self.a.do(self.a.rooms.receive("b", room_id, [b"{}", b"no", b'{"type":1}']))), 3)

    def test_a_second_create_event_is_dropped(self) -> None:
        for version in ("1", "10"):
            room_id = self.shared_room(version)
            content = {"creator": ALICE, "room_version": version}
            create = self.a.make_on(self.a, room_id, ALICE, "m.room.create", content, "", prev=[], depth=1)
            self.assertIn(create.event_id, self.pass_on("a", room_id, [create]))
            self.assertIsNone(self.b.status(create.event_id))

    def test_a_changed_event_is_redacted(self) -> None:
        room_id = self.shared_room()
        event = self.b.make_on(self.a, room_id, BOB, MESSAGE, {"body": "original"})
        changed = event.pdu.replace(b"original", b"changed!")
        self.assertEqual(self.a.do(self.a.rooms.receive("b", room_id, [changed])), {})
        self.assertEqual(self.a.event(event.event_id).content, {})

    def test_a_server_that_is_kept_out(self) -> None:
        room_id = self.shared_room()
        self.a.do(self.a.rooms.check_server(room_id, "b"))
        acl = self.a.send(room_id, ALICE, "m.room.server_acl", {"allow": ["*"], "deny": ["b"]}, "")
        self.pass_on("a", room_id, [acl])
        said = self.b.make_on(self.a, room_id, BOB, MESSAGE, {"body": "x"})
        self.assertIn("access control", self.pass_on("b", room_id, [said])[said.event_id])
        self.assertIsNone(self.a.status(said.event_id))
        # The list acts on requests: another server may pass the event on.
        self.assertEqual(self.a.receive("c", room_id, [said]), {})
        self.a.send(room_id, ALICE, "m.room.server_acl", {"allow": ["*"]}, "")
        self.a.do(self.a.rooms.check_server(room_id, "b"))


class RedactionTests(TwoServers):
    def test_in_either_order(self) -> None:
        for version in ("1", "3", "10", "11"):
            for order in (1, -1):
                room_id = self.shared_room(version)
                start = [self.a.event(one) for one in self.a.room(room_id).head.extremities]
                said = self.b.event(self.b.say(room_id, BOB, "regretted"))
                redaction = self.b.make_on(
                    self.a, room_id, BOB, "m.room.redaction", {}, prev=start, redacts=said.event_id
                )
                self.assertEqual(self.pass_on("b", room_id, [said, redaction][::order]), {})
                self.assertEqual(self.a.event(said.event_id).content, {})
                [shown] = self.a.do(self.a.rooms.events([said.event_id]))
                self.assertIn(redaction.event_id.encode(), shown.redacted_by)
                told = self.a.told[-1]
                if order == 1:
                    self.assertEqual(told.redacts, said.event_id)
                else:
                    self.assertIn(redaction.event_id.encode(), told.event.redacted_by or b"")

    def test_who_may_not(self) -> None:
        """Bob's server may not redact what alice said, in any order; the events stay as they are."""
        for order in (1, -1):
            room_id = self.shared_room("10")
            levels = self.a.send(room_id, ALICE, "m.room.power_levels", {"users": {ALICE: 100}, "redact": 50}, "")
            self.pass_on("a", room_id, [levels])
            start = [self.a.event(one) for one in self.a.room(room_id).head.extremities]
            said = self.a.make_on(self.a, room_id, ALICE, MESSAGE, {"body": "stays"})
            redaction = self.b.make_on(self.a, room_id, BOB, "m.room.redaction", {}, prev=start, redacts=said.event_id)
            self.assertEqual(
                [one.verdict for one in self.a.take(room_id, [said, redaction][::order])], ["accepted"] * 2
            )
            self.assertEqual(self.a.event(said.event_id).content, {"body": "stays"})
            self.assertEqual(self.a.told[-1].event.event_id, said.event_id, "the redaction is not shown")
            self.assertIsNone(self.a.told[-1].redacts)
            self.assertEqual(self.a.timeline(room_id)[-1], said.event_id)

    def test_who_hears_of_what_redacts_nothing(self) -> None:
        """What is not carried out is not shown, but part of the room: what follows it is taken, here and elsewhere."""
        for version, is_shown in (("2", True), ("3", False), ("12", False)):
            room_id, other = self.shared_room(version), self.shared_room(version)
            said = self.a.say(other, ALICE, "stays")
            redaction = self.b.make_on(self.a, room_id, BOB, "m.room.redaction", {}, redacts=said)
            self.a.told.clear()
            self.assertEqual(self.pass_on("b", room_id, [redaction]), {})
            self.assertEqual([one.event.event_id for one in self.a.told], [redaction.event_id] * is_shown)
            self.assertEqual(self.a.room(room_id).head.extremities, (redaction.event_id,))
            self.a.restart()
            after = self.a.say(room_id, ALICE, "after")
            self.assertEqual(self.a.event(after).prev_events, (redaction.event_id,))
            self.assertEqual(self.a.timeline(room_id)[-1], after)
            self.assertEqual(redaction.event_id in self.a.timeline(room_id), is_shown)
            self.assertEqual(self.pass_on("a", room_id, [redaction, after]), {})
            self.assertEqual(self.b.timeline(room_id)[-1], after)
            self.assert_same_state(room_id)
            self.assertEqual(self.a.event(said).content["body"], "stays")

    def test_a_redaction_that_is_not_shown_brings_branches_together(self) -> None:
        room_id = self.shared_room()
        start = [self.a.event(one) for one in self.a.room(room_id).head.extremities]
        state = [self.a.event(one) for one in self.a.state(room_id).values()]
        named = self.b.make_on(self.a, room_id, BOB, NAME, {"name": "n"}, "", prev=start)
        self.b.take(room_id, [named])
        topic = self.a.send(room_id, ALICE, TOPIC, {"topic": "t"}, "")
        self.assertEqual(self.pass_on("b", room_id, [named]), {})
        ends = [named, self.a.event(topic)]
        redaction = self.b.make(
            start[0].version, room_id, BOB, "m.room.redaction", {}, prev=ends, state=state, redacts="$" + "x" * 43
        )
        self.assertEqual(self.pass_on("b", room_id, [redaction]), {})
        self.assertEqual(self.a.room(room_id).head.extremities, (redaction.event_id,))
        after = self.a.say(room_id, ALICE, "after")
        self.assertEqual(self.a.timeline(room_id)[-2:], [named.event_id, after])


class WholeStateTests(TwoServers):
    def test_a_join_brings_the_state(self) -> None:
        room_id = self.a.create(ALICE, preset="public_chat", name="n")
        self.a.let_join(self.b, room_id, BOB)
        told = self.b.told[-1]
        self.assertTrue(told.rewrites_state and told.state_changed and told.event.gap)
        self.assertEqual((told.joined_members, told.local_members), (2, 1))
        self.assertEqual(sorted(self.b.do(self.b.rooms.joined_users(room_id))), [ALICE, BOB])
        self.assertEqual(sorted(self.b.do(self.b.rooms.servers_of_user(BOB))), ["a", "b"])
        view = self.b.do(self.b.rooms.room_view(room_id, 10))
        self.assertEqual([event.gap for event in view.timeline], [True])
        self.assertEqual((view.partial, view.rewritten), (False, view.position))
        members = self.b.do(self.b.rooms.local_memberships(room_id))
        self.assertEqual([(member.user_id, member.membership) for member in members], [(BOB, "join")])
        self.assertEqual(self.b.do(self.b.rooms.local_memberships("!none:b")), [])

    def test_what_is_known_apart_from_the_timeline_is_seen_as_state_only(self) -> None:
        room_id = self.a.create(ALICE, preset="public_chat", name="old")
        old = self.a.state(room_id)["m.room.power_levels", ""]
        levels = {**self.a.content(room_id, "m.room.power_levels"), "ban": 51}
        self.a.send(room_id, ALICE, "m.room.power_levels", levels, "")
        topic = self.a.send(room_id, ALICE, TOPIC, {"topic": "t"}, "")
        self.a.let_join(self.b, room_id, BOB)
        self.assertEqual(self.b.do(self.b.rooms.event(room_id, BOB, topic)).event_id, topic)
        self.assertIsNotNone(self.b.row(old))
        for user, event_id in ((BOB, old), (BERTA, topic)):
            asked = Deferred.fromCoroutine(self.b.rooms.event(room_id, user, event_id))
            self.assertEqual(self.failureResultOf(asked, MatrixError).value.status, 404)

    def test_a_join_again_after_all_had_left(self) -> None:
        room_id = self.shared_room()
        leave = self.b.change(room_id, BOB, "leave")
        self.pass_on("b", room_id, [leave])
        self.a.send(room_id, ALICE, TOPIC, {"topic": "meanwhile"}, "")
        self.b.restart()
        self.a.let_join(self.b, room_id, BERTA)
        self.assert_same_state(room_id)
        self.assertEqual(sorted(self.b.do(self.b.rooms.joined_users(room_id))), [ALICE, BERTA])
        self.assertEqual(self.b.do(self.b.rooms.membership(room_id, BOB)).membership, "leave")
        said = self.b.say(room_id, BERTA, "back")
        self.assertEqual(self.pass_on("b", room_id, [said]), {})

    def test_members_that_were_left_out_come_later(self) -> None:
        room_id = self.a.create(ALICE, preset="public_chat", room_version="10")
        users = [f"@user{number}:a" for number in range(30)]
        for user in users:
            self.a.change(room_id, user, "join")
        state = {key: self.a.event(one) for key, one in self.a.state(room_id).items()}
        join = self.b.make_on(self.a, room_id, BOB, MEMBER, {"membership": "join"}, BOB)
        self.a.take(room_id, [join], distribute=True)
        room = self.b.do(self.b.rooms.adoption.stub(room_id, ROOM_VERSIONS["10"]))
        part = {key: event for key, event in state.items() if key[0] != MEMBER or key[1] == ALICE}
        chain = self.a.chain([*state.values(), join])
        adopt = self.b.rooms.adoption.adopt(
            room, receive_event(join.pdu, join.version), part, chain, partial=PartialJoin("a", ["a"])
        )
        self.b.do(adopt)
        self.assertEqual(sorted(self.b.do(self.b.rooms.joined_users(room_id))), [ALICE, BOB])
        view = self.b.do(self.b.rooms.room_view(room_id, 10))
        self.assertEqual((view.partial, view.rewritten), (True, view.position))
        # Somebody speaks of whom is known only by what the event names.
        said = self.a.say(room_id, users[3], "hello")
        left = self.a.change(room_id, users[4], "leave")
        named = self.a.send(room_id, ALICE, NAME, {"name": "n"}, "")
        self.assertEqual(self.pass_on("a", room_id, [said, left, named]), {})
        self.b.restart()
        room = self.b.room(room_id)
        self.b.do(self.b.rooms.adoption.complete(room, state, chain))
        view = self.b.do(self.b.rooms.room_view(room_id, 10))
        self.assertEqual((view.partial, view.rewritten > view.position), (False, True))
        self.assertEqual(self.b.do(self.b.rooms.newest_positions([room_id])), {room_id: view.rewritten})
        for _ in range(2):
            self.assert_same_state(room_id)
            self.assertEqual(
                {e.event_id for e in self.b.state_before(named)}, {e.event_id for e in self.a.state_before(named)}
            )
            self.assertEqual(len(self.b.do(self.b.rooms.joined_users(room_id))), 31)
            self.assertEqual(self.b.do(self.b.rooms.membership(room_id, users[4])).membership, "leave")
            answer = self.b.say(room_id, BOB, "all here")
            self.assertEqual(self.pass_on("b", room_id, [answer]), {})
            self.b.restart()
        head = self.b.room(room_id).head
        self.assertEqual((head.joined, head.local, self.b.room(room_id).standing), (31, 1, 0))


class HistoryTests(TwoServers):
    def test_what_was_before_is_put_before(self) -> None:
        room_id = self.a.create(ALICE, preset="public_chat", room_version="10")
        said = [self.a.say(room_id, ALICE, str(number)) for number in range(5)]
        topic = self.a.send(room_id, ALICE, TOPIC, {"topic": "t"}, "")
        self.a.let_join(self.b, room_id, BOB)
        room = self.b.room(room_id)
        history = [self.a.event(one) for one in [*said, topic]]
        before = self.b.do(
            self.b.rooms.adoption.state_map(
                room, {(e.type, e.state_key): e for e in self.a.state_before(said[0]) if e.state_key is not None}
            )
        )
        told = len(self.b.told)
        [first] = self.b.take(room_id, history[:1], Way.HISTORY, before=before)
        rest = self.b.take(room_id, history[1:], Way.HISTORY)
        self.assertEqual({one.verdict for one in [first, *rest]}, {"accepted"})
        self.assertEqual(len(self.b.told), told)
        page = self.b.do(self.b.rooms.messages(room_id, BOB, "b", None, None, 50, None, False))
        expected = [self.b.state(room_id)[MEMBER, BOB], topic, *reversed(said)]
        self.assertEqual([event.event_id for event in page.events], expected)
        live = self.b.do(self.b.rooms.timeline(room_id, 0, 2**40, 50, None))
        self.assertEqual(([event.event_id for event in live.events], live.more, live.cut), (expected[:1], True, True))
        self.assertEqual([self.b.row(one).gap for one in expected], [2, 0, 0, 0, 0, 0, 1])  # type: ignore[union-attr]
        positions = [self.b.row(one).position for one in [*said[1:], topic]]  # type: ignore[union-attr]
        self.assertEqual(positions, sorted(positions))
        self.assertLess(positions[-1], 0)
        self.assert_same_state(room_id)
        after = self.b.do(self.b.rooms.placing.state_after(room, topic))
        self.assertEqual(len(after), len(self.a.state_before(topic)) + 1)
        self.assertEqual(self.b.status(topic), ACCEPTED)

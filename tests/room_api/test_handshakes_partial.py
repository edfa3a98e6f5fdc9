"""A room is joined without its members, who follow: what may be done meanwhile, and what comes in between."""

from __future__ import annotations

from typing import Any

import orjson
from twisted.internet.defer import Deferred

from dendrite_tw.federation_api.api import FederationRequest, RawAnswer
from tests.room_api.test_handshakes_joining import ALICE, BOB, CAROL, DAN, JoinStory

MANY = [f"@member{number}:a.example" for number in range(8)]
NEVER = RawAnswer(404, b'{"errcode":"M_NOT_FOUND","error":"not now"}')


class PartialStory(JoinStory):
    """a.example leaves out members of every room, and gives the whole state when ``open`` is true."""

    def setUp(self) -> None:
        super().setUp()
        self.open = False
        for server in (self.a, self.b, self.c):
            server.rooms.remote.answers.small = 0
        for server in (self.a, self.c):
            server.answers["state"] = lambda request: None if self.open else NEVER

    def large(self, version: str = "10", **options: Any) -> str:
        room_id = self.room(version, **options)
        for user in MANY:
            self.a.member(room_id, user, "join")
        return room_id

    def complete(self, seconds: float = 20.0) -> None:
        self.open = True
        self.net.memory.clock.advance(seconds)
        self.net.pause()

    def partial(self, room_id: str) -> bool:
        row = self.net.do(self.b.rooms.rooms.find(room_id))
        return bool(row.standing == 1)

    def whole(self, room_id: str, user: str = BOB) -> None:
        """Bob's server knows what Alice's does."""
        self.assertFalse(self.partial(room_id))
        self.same_state(room_id, (self.a, ALICE), (self.b, user))
        self.assertEqual(self.a.joined(room_id), self.b.joined(room_id))


class PartialTests(PartialStory):
    def test_every_version(self) -> None:
        for version in ("1", "6", "9", "10", "11", "12"):
            self.open = False
            room_id = self.large(version)
            self.join(self.b, room_id, BOB)
            self.assertTrue(self.partial(room_id))
            self.assertLess(len(self.b.joined(room_id)), 8)
            self.complete()
            self.whole(room_id)
            self.assertEqual(self.b.others[-1]["output_room_event_type"], "state_complete")

    def test_members_of_a_room_without_name_are_told_of(self) -> None:
        unnamed, named = self.large(), self.large(name="Verona")
        for room_id in (unnamed, named):
            self.join(self.b, room_id, BOB)
        self.assertEqual(len(self.b.joined(unnamed)), 6)
        self.assertEqual(self.b.joined(named), [BOB])

    def test_the_state_is_there_at_once(self) -> None:
        room_id = self.large(name="Verona")
        self.join(self.b, room_id, BOB)
        self.assertEqual(
            set(self.b.state(room_id, BOB)) - {("m.room.member", BOB)},
            {slot for slot in self.a.state(room_id, ALICE) if slot[0] != "m.room.member"},
        )
        self.assertEqual(set(self.net.do(self.b.rooms.room_servers(room_id))), {"a.example", "b.example"})

    def test_talking_meanwhile(self) -> None:
        for version in ("6", "12"):
            self.open = False
            room_id = self.large(version, name="Verona")
            self.join(self.b, room_id, BOB)
            self.b.say(room_id, BOB, "hello")
            self.assertTrue(self.b.told[-1].distribute)
            self.net.deliver()
            self.a.say(room_id, MANY[3], "hello Bob")
            self.a.set_state(room_id, ALICE, "m.room.topic", {"topic": "Bob"})
            self.a.member(room_id, MANY[4], "leave")
            self.a.member(room_id, ALICE, "kick", MANY[5])
            self.a.member(room_id, "@new:a.example", "join")
            self.net.deliver()
            self.assertEqual(self.b.bodies(room_id, BOB), ["hello", "hello Bob"])
            self.assertTrue(self.partial(room_id))
            self.complete()
            self.whole(room_id)
            self.assertEqual(self.b.membership(room_id, MANY[4]), "leave")
            self.assertEqual(self.b.membership(room_id, MANY[5]), "leave")
            self.b.say(room_id, BOB, "and now")
            self.net.deliver()
            self.assertEqual(self.a.bodies(room_id, ALICE)[-1], "and now")

    def test_state_at_what_came_meanwhile(self) -> None:
        room_id = self.large(name="Verona")
        self.join(self.b, room_id, BOB)
        said = self.b.say(room_id, BOB, "hello")
        self.net.deliver()
        self.complete()
        before = [event.event_id for event in self.net.do(self.b.rooms.state_before(said))]
        self.assertEqual(sorted(before), sorted(self.a.state(room_id, ALICE).values()))

    def test_who_asks_for_members_waits(self) -> None:
        room_id = self.large(power_level_content_override={"invite": 0})
        self.join(self.b, room_id, BOB)
        asking = [
            Deferred.fromCoroutine(self.b.rooms.members(room_id, BOB, None, None, None)),
            Deferred.fromCoroutine(self.b.rooms.joined_members(room_id, BOB)),
            Deferred.fromCoroutine(self.b.change(room_id, BOB, "invite", DAN)),
        ]
        self.net.pause()
        for one in asking:
            self.assertNoResult(one)
        self.complete()
        for one in asking[:2]:
            self.assertEqual(len(self.successResultOf(one)), 10)
        self.successResultOf(asking[2])

    def test_who_asks_for_members_does_not_wait_for_ever(self) -> None:
        room_id = self.large()
        self.join(self.b, room_id, BOB)
        asking = Deferred.fromCoroutine(self.b.rooms.members(room_id, BOB, None, None, None))
        self.net.pause()
        self.net.memory.clock.advance(26)
        error: Any = self.failureResultOf(asking).value
        self.assertEqual((error.status, error.extra["retry_after_ms"]), (503, 10_000))
        self.complete(100)
        self.assertEqual(len(self.net.do(self.b.rooms.members(room_id, BOB, None, None, None))), 10)

    def test_others_are_asked_too(self) -> None:
        room_id = self.large()
        self.join(self.c, room_id, CAROL)
        self.net.deliver()
        self.complete()
        self.open = False
        self.join(self.b, room_id, BOB)
        self.net.deliver()
        self.net.cut.add("a.example")
        self.complete()
        self.assertFalse(self.partial(room_id))
        self.same_state(room_id, (self.c, CAROL), (self.b, BOB))
        self.assertIn(("b.example", "state"), self.c.asked)

    def test_a_lie_about_the_state_is_not_believed(self) -> None:
        room_id = self.large()
        self.join(self.b, room_id, BOB)

        def banned(request: FederationRequest) -> Any:
            """A state without the rules that let Bob in."""
            del self.a.answers["state"]
            true = orjson.loads(self.net.do(self.net.answer("b.example", request)).body)
            true["pdus"] = [event for event in true["pdus"] if event["type"] != "m.room.join_rules"]
            return true

        self.a.answers["state"] = banned
        self.complete()
        self.assertTrue(self.partial(room_id))
        for nonsense in (b"", b"{}", b'{"pdus":[],"auth_chain":[]}'):
            self.a.answers["state"] = lambda request, nonsense=nonsense: RawAnswer(200, nonsense)  # type: ignore[misc]
            self.complete(1000)
            self.assertTrue(self.partial(room_id))
        del self.a.answers["state"]
        self.complete(1000)
        self.whole(room_id)

    def test_a_restart_in_the_middle(self) -> None:
        room_id = self.large(name="Verona")
        self.join(self.b, room_id, BOB)
        self.b.say(room_id, BOB, "hello")
        self.net.deliver()
        self.net.do(self.b.rooms.stop())
        self.open = True
        self.b.begin()
        self.net.pause()
        self.whole(room_id)
        self.assertEqual(self.b.bodies(room_id, BOB), ["hello"])

    def test_crashes_while_it_is_completed(self) -> None:
        """The server dies after each of its writes in turn."""
        for writes in range(8):
            self.open = False
            room_id = self.large()
            self.join(self.b, room_id, BOB)
            self.net.do(self.b.rooms.stop())
            left = writes
            write = self.b.database.write

            def failing(*args: Any, write: Any = write) -> Any:
                nonlocal left
                if left == 0:
                    return Deferred()
                left -= 1
                return write(*args)

            self.open = True
            self.b.database.write = failing  # type: ignore[assignment, method-assign]
            self.b.begin()
            self.net.pause()
            self.net.do(self.b.rooms.stop())
            self.b.database.write = write  # type: ignore[method-assign]
            self.b.begin()
            self.net.pause()
            self.whole(room_id)

    def test_leaving_meanwhile_and_coming_back(self) -> None:
        room_id = self.large(name="Verona")
        self.join(self.b, room_id, BOB)
        self.b.member(room_id, BOB, "leave")
        self.net.deliver()
        self.assertNotIn(BOB, self.a.joined(room_id))
        self.assertEqual(self.b.membership(room_id, BOB), "leave")
        self.a.member(room_id, MANY[0], "leave")
        self.join(self.b, room_id, BOB)
        self.assertTrue(self.partial(room_id))
        self.complete(40)
        self.whole(room_id)

    def test_a_second_user_joins_meanwhile(self) -> None:
        room_id = self.large(name="Verona")
        self.join(self.b, room_id, BOB)
        self.b.member(room_id, DAN, "join")
        self.net.deliver()
        self.assertIn(DAN, self.a.joined(room_id))
        self.complete()
        self.whole(room_id)

    def test_one_who_was_banned_does_not_come_in_meanwhile(self) -> None:
        room_id = self.large(name="Verona")
        self.a.member(room_id, ALICE, "ban", DAN)
        self.join(self.b, room_id, BOB)
        self.net.refused(self.b.change(room_id, DAN, "join"), "M_FORBIDDEN", 403)
        self.complete()
        self.whole(room_id)

    def test_nobody_is_let_in_meanwhile(self) -> None:
        room_id = self.large()
        self.join(self.b, room_id, BOB)
        template = self.b.rooms.make_membership("join", room_id, CAROL, "c.example", ["10"])
        self.net.refused(template, "M_NOT_FOUND", 404)

    def test_the_invited_see_the_state_they_are_in(self) -> None:
        """Dan was invited before Bob joined for the whole server; his invite is among the members that follow."""
        room_id = self.large()
        self.a.member(room_id, ALICE, "invite", DAN)
        self.join(self.b, room_id, BOB)
        self.complete()
        self.whole(room_id)
        self.assertEqual(self.b.membership(room_id, DAN), "invite")
        self.b.member(room_id, DAN, "join")
        self.net.deliver()
        self.whole(room_id, DAN)

    def test_an_invite_that_was_taken_back_unheard(self) -> None:
        room_id = self.large()
        self.a.member(room_id, ALICE, "invite", DAN)
        self.a.member(room_id, ALICE, "kick", DAN)
        self.assertEqual(self.b.membership(room_id, DAN), "invite")
        self.join(self.b, room_id, BOB)
        self.complete()
        self.whole(room_id)
        self.assertEqual(self.b.membership(room_id, DAN), "leave")


class BelievedTooMuch(PartialStory):
    """Carol was banned before Bob joined, which his server does not know yet."""

    def setUp(self) -> None:
        super().setUp()
        self.room_id = self.large(name="Verona", power_level_content_override={"state_default": 0, "events": {}})
        self.join(self.c, self.room_id, CAROL)
        self.open = True
        self.net.memory.clock.advance(60)
        self.net.pause()
        self.open = False
        self.joined = self.net.do(self.a.rooms.membership(self.room_id, CAROL)).event_id
        self.net.deliver()
        self.net.cut.add("c.example")
        self.a.member(self.room_id, ALICE, "ban", CAROL)
        self.net.deliver()
        self.net.cut.clear()
        self.join(self.b, self.room_id, BOB)
        state = self.b.state(self.room_id, BOB)
        self.authority = [state["m.room.create", ""], state["m.room.power_levels", ""], self.joined]
        chain = self.net.do(self.a.rooms.pdus([*self.authority, state["m.room.join_rules", ""]]))
        told = [orjson.Fragment(pdu) for pdu in chain.values()]
        self.c.answers["event_auth"] = lambda request: {"auth_chain": told}
        self.ends = [self.b.told[-1].event.event_id]
        self.depth = self.b.told[-1].event.depth

    def send(self, type: str, content: dict[str, Any], key: str | None = None, authority: Any = ()) -> str:
        """Carol's server sends what it should not, to Bob's; returns the event's ID."""
        self.depth += 1
        pdu = {
            "room_id": self.room_id,
            "sender": CAROL,
            "type": type,
            "content": content,
            "origin_server_ts": self.net.memory.world.clock.now_ms(),
            "depth": self.depth,
            "prev_events": self.ends,
            "auth_events": [*self.authority, *authority],
        }
        event = self.c.signed(pdu if key is None else {**pdu, "state_key": key}, "10")
        self.ends = [event.event_id]
        self.assertEqual(self.net.do(self.b.rooms.receive("c.example", self.room_id, [event.pdu])), {})
        return event.event_id

    def test_what_the_banned_said_is_taken_out(self) -> None:
        self.send("m.room.message", {"body": "I am here"})
        self.send("m.room.topic", {"topic": "Carol"}, "")
        self.b.say(self.room_id, BOB, "hello Carol")
        self.assertEqual(self.b.bodies(self.room_id, BOB), ["I am here", "hello Carol"])
        self.complete(60)
        self.assertEqual(self.b.bodies(self.room_id, BOB), ["hello Carol"])
        self.assertNotIn(("m.room.topic", ""), self.b.state(self.room_id, BOB))
        self.assertEqual(self.b.membership(self.room_id, CAROL), "ban")
        self.whole(self.room_id)

    def test_what_stood_on_it_is_taken_out_too(self) -> None:
        """She sets a name over another, and comes back as if she had left."""
        state = self.a.state(self.room_id, ALICE)
        self.send("m.room.name", {"name": "Carol's"}, "")
        self.send("m.room.member", {"membership": "leave"}, CAROL)
        self.complete(60)
        self.assertEqual(self.b.membership(self.room_id, CAROL), "ban")
        self.assertEqual(self.b.state(self.room_id, BOB)["m.room.name", ""], state["m.room.name", ""])
        self.whole(self.room_id)
        self.b.say(self.room_id, BOB, "she is gone")
        self.net.deliver()
        self.assertEqual(self.a.bodies(self.room_id, ALICE)[-1], "she is gone")

    def test_a_restart_reads_the_same(self) -> None:
        self.send("m.room.topic", {"topic": "Carol"}, "")
        self.complete(60)
        before = self.b.state(self.room_id, BOB)
        self.b.begin()
        self.assertEqual(self.b.state(self.room_id, BOB), before)
        self.whole(self.room_id)

    def test_crashes_while_it_is_taken_out(self) -> None:
        """The server dies after each of its writes in turn, from the complete state on."""
        for writes in range(1, 12, 2):
            self.setUp()
            self.send("m.room.topic", {"topic": "Carol"}, "")
            self.net.do(self.b.rooms.stop())
            left = writes
            write = self.b.database.write

            def failing(*args: Any, write: Any = write) -> Any:
                nonlocal left
                if left == 0:
                    return Deferred()
                left -= 1
                return write(*args)

            self.open = True
            self.b.database.write = failing  # type: ignore[assignment, method-assign]
            self.b.begin()
            self.net.pause()
            self.net.do(self.b.rooms.stop())
            self.b.database.write = write  # type: ignore[method-assign]
            self.b.begin()
            self.net.pause()
            self.assertNotIn(("m.room.topic", ""), self.b.state(self.room_id, BOB))
            self.whole(self.room_id)

"""Bob's server gets into Alice's room: join, leave and join again, in rooms of every version."""

from __future__ import annotations

from typing import Any

import orjson
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.federation_api.api import FederationRequest, RawAnswer
from dendrite_tw.room_api.api import NewEvent
from tests.room_api.federation import Net, Server

ALICE, BOB, CAROL, DAN = "@alice:a.example", "@bob:b.example", "@carol:c.example", "@dan:b.example"
VERSIONS = ["1", "2", "3", "6", "8", "9", "10", "11", "12"]


class JoinStory(SynchronousTestCase):
    """Three servers; Alice of the first has a room that everybody may join."""

    def setUp(self) -> None:
        self.net = Net(self)
        self.a, self.b, self.c = (self.net.add(f"{letter}.example") for letter in "abc")

    def room(self, version: str = "10", **options: Any) -> str:
        return self.a.create(ALICE, **{"preset": "public_chat", "room_version": version, **options})

    def join(self, server: Server, room_id: str, user: str, via: tuple[str, ...] = ("a.example",)) -> None:
        server.member(room_id, user, "join", via=list(via))

    def same_state(self, room_id: str, *seen: tuple[Server, str]) -> None:
        first, *others = (server.state(room_id, user) for server, user in seen)
        for other in others:
            self.assertEqual(first, other)


class JoinTests(JoinStory):
    def test_every_version(self) -> None:
        for version in VERSIONS:
            room_id = self.room(version, name="Verona")
            self.join(self.b, room_id, BOB)
            self.assertEqual(self.a.joined(room_id), [ALICE, BOB])
            self.assertEqual(self.b.joined(room_id), [ALICE, BOB])
            self.same_state(room_id, (self.a, ALICE), (self.b, BOB))
            self.assertTrue(self.a.told[-1].distribute)
            self.assertTrue(self.b.told[-1].rewrites_state)
            self.assertFalse(self.b.told[-1].distribute)

    def test_a_room_that_nobody_knows(self) -> None:
        self.net.refused(self.b.change("!nowhere:a.example", BOB, "join"), "M_NOT_FOUND", 404)
        self.net.refused(self.b.change("!nowhere:d.example", BOB, "join"), "M_UNKNOWN", 502)
        self.net.refused(self.b.change("!nowhere:b.example", BOB, "join"), "M_NOT_FOUND", 404)
        self.assertIsNone(self.b.membership("!nowhere:a.example", BOB))

    def test_a_room_that_lets_nobody_in(self) -> None:
        room_id = self.room(preset="private_chat")
        self.net.refused(self.b.change(room_id, BOB, "join", via=["a.example"]), "M_FORBIDDEN", 403)
        self.assertIsNone(self.b.membership(room_id, BOB))
        self.assertEqual(self.a.joined(room_id), [ALICE])

    def test_the_second_candidate(self) -> None:
        room_id = self.room()
        self.join(self.b, room_id, BOB)
        self.net.cut.add("a.example")
        self.join(self.c, room_id, CAROL, via=("a.example", "nonsense!", "b.example"))
        self.assertEqual(self.c.joined(room_id), [ALICE, BOB, CAROL])

    def test_the_last_event_is_one_that_is_not_shown(self) -> None:
        room_id = self.room()
        self.join(self.b, room_id, BOB)
        redaction = NewEvent(room_id=room_id, sender=BOB, type="m.room.redaction", content={}, redacts="$unknown")
        event_id = self.net.do(self.b.rooms.send(redaction))
        self.net.deliver()
        self.assertNotEqual(self.a.told[-1].event.event_id, event_id)
        self.join(self.c, room_id, CAROL)
        self.net.deliver()
        self.assertEqual([server.joined(room_id) for server in (self.a, self.b, self.c)], [[ALICE, BOB, CAROL]] * 3)
        self.same_state(room_id, (self.a, ALICE), (self.b, BOB), (self.c, CAROL))

    def test_two_users_join_once(self) -> None:
        room_id = self.room()
        held: Deferred[None] = Deferred()
        answer = self.net.answer

        async def slowly(origin: str, request: FederationRequest) -> RawAnswer:
            await held
            return await answer(origin, request)

        self.net.answer = slowly  # type: ignore[method-assign]
        both = [Deferred.fromCoroutine(self.b.change(room_id, user, "join", via=["a.example"])) for user in (BOB, DAN)]
        held.callback(None)
        self.net.pause()
        for one in both:
            self.successResultOf(one)
        self.assertEqual(self.b.joined(room_id), [ALICE, BOB, DAN])
        self.assertEqual([what for who, what in self.a.asked], ["make_join", "send_join"])

    def test_profile_and_reason_are_told(self) -> None:
        room_id = self.room()
        self.b.member(
            room_id,
            BOB,
            "join",
            via=["a.example"],
            profile={"displayname": "Bob"},
            reason="to see",
            content={"membership": "ban", "join_authorised_via_users_server": BOB},
        )
        event = self.net.do(self.a.rooms.state_event(room_id, ALICE, "m.room.member", BOB))
        expected = {"membership": "join", "displayname": "Bob", "reason": "to see"}
        self.assertEqual(orjson.loads(event.client)["content"], expected)

    def test_leaving_and_coming_back(self) -> None:
        for version in ("6", "12"):
            room_id = self.room(version)
            self.join(self.b, room_id, BOB)
            self.b.member(room_id, BOB, "leave")
            self.assertTrue(self.b.told[-1].distribute)
            self.net.deliver()
            self.a.set_state(room_id, ALICE, "m.room.topic", {"topic": "while Bob was away"})
            self.join(self.b, room_id, BOB, via=())
            self.same_state(room_id, (self.a, ALICE), (self.b, BOB))
            self.assertEqual(self.b.joined(room_id), [ALICE, BOB])

    def test_a_room_that_all_have_left_is_ours_alone(self) -> None:
        room_id = self.room()
        self.a.member(room_id, ALICE, "leave")
        self.a.member(room_id, ALICE, "join")
        self.assertEqual(self.a.joined(room_id), [ALICE])
        self.assertEqual(self.b.asked + self.c.asked, [])

    def test_a_room_that_all_have_left_may_live_elsewhere(self) -> None:
        """Alice's server believes that the room is empty, as it has not heard yet that Carol is in it."""
        room_id = self.room()
        self.join(self.b, room_id, BOB)
        self.net.deliver()
        self.join(self.c, room_id, CAROL, via=("b.example",))
        self.b.member(room_id, BOB, "leave")
        told = self.b.told[-1].event.event_id
        (pdu,) = self.net.do(self.b.rooms.pdus([told])).values()
        self.net.do(self.c.rooms.receive("b.example", room_id, [pdu]))
        self.b.answers["get_missing_events"] = lambda request: RawAnswer(404, b"")
        self.net.do(self.a.rooms.receive("b.example", room_id, [pdu]))
        self.a.member(room_id, ALICE, "leave")
        self.a.member(room_id, ALICE, "join", via=["c.example"])
        self.same_state(room_id, (self.a, ALICE), (self.c, CAROL))
        self.assertEqual(self.a.joined(room_id), [ALICE, CAROL])

    def test_a_room_that_is_nowhere_else_any_more(self) -> None:
        room_id = self.room()
        self.join(self.b, room_id, BOB)
        self.b.member(room_id, BOB, "leave")
        self.net.deliver()
        self.a.member(room_id, ALICE, "leave")
        for cut in (set(), {"b.example"}):
            self.net.cut = cut
            self.a.member(room_id, ALICE, "join")
            self.assertEqual(self.a.joined(room_id), [ALICE])
            self.a.member(room_id, ALICE, "leave")

    def test_who_is_not_there_lets_nobody_in(self) -> None:
        room_id = self.room()
        self.join(self.b, room_id, BOB)
        self.b.member(room_id, BOB, "leave")
        template = self.b.rooms.make_membership("join", room_id, CAROL, "c.example", ["10"])
        self.net.refused(template, "M_NOT_FOUND", 404)

    def test_servers_that_the_room_keeps_out(self) -> None:
        room_id = self.room()
        self.a.set_state(room_id, ALICE, "m.room.server_acl", {"allow": ["*"], "deny": ["b.example"]})
        self.net.refused(self.b.change(room_id, BOB, "join", via=["a.example"]), "M_FORBIDDEN", 403)

    def test_rooms_of_one_server_only(self) -> None:
        room_id = self.room(creation_content={"m.federate": False})
        self.net.refused(self.b.change(room_id, BOB, "join", via=["a.example"]), "M_FORBIDDEN", 403)

    def test_guests_come_by_invitation(self) -> None:
        room_id = self.room()
        guest = self.b.change(room_id, BOB, "join", via=["a.example"], is_guest=True)
        self.net.refused(guest, "M_GUEST_ACCESS_FORBIDDEN", 403)
        self.a.set_state(room_id, ALICE, "m.room.guest_access", {"guest_access": "can_join"})
        self.a.member(room_id, ALICE, "invite", BOB)
        for refuses in ({"room": {"room_id": "!other:a.example", "guest_can_join": True}}, [], {"room": 1}, None):
            self.a.answers["hierarchy"] = lambda request, answer=refuses: RawAnswer(200, orjson.dumps(answer))
            guest = self.b.change(room_id, BOB, "join", via=["a.example"], is_guest=True)
            self.net.refused(guest, "M_GUEST_ACCESS_FORBIDDEN", 403)
        del self.a.answers["hierarchy"]
        self.b.member(room_id, BOB, "join", is_guest=True)
        self.assertEqual(self.b.joined(room_id), [ALICE, BOB])

    def test_invited_guests_stay_out_where_the_room_is_closed_to_them(self) -> None:
        for access in ({"guest_access": "forbidden"}, {}):
            room_id = self.room(preset="private_chat")
            self.a.set_state(room_id, ALICE, "m.room.guest_access", access)
            self.a.member(room_id, ALICE, "invite", BOB)
            guest = self.b.change(room_id, BOB, "join", via=["a.example"], is_guest=True)
            self.net.refused(guest, "M_GUEST_ACCESS_FORBIDDEN", 403)
            self.assertEqual(self.a.membership(room_id, BOB), "invite")

    def test_a_room_that_was_left_shows_nobody_in_the_user_directory(self) -> None:
        room_id = self.room()

        def found(server: Server, user: str) -> list[str]:
            users, _ = self.net.do(server.rooms.search_users(user, "alice", 10))
            return [user.user_id for user in users]

        self.assertEqual(found(self.b, BOB), [])
        self.join(self.b, room_id, BOB)
        self.assertEqual((found(self.b, BOB), found(self.b, DAN)), ([ALICE], [ALICE]))
        self.b.member(room_id, BOB, "leave")
        self.net.deliver()
        self.assertEqual((found(self.b, BOB), found(self.b, DAN), found(self.a, ALICE)), ([], [], [ALICE]))
        self.join(self.b, room_id, DAN)
        self.assertEqual(found(self.b, BOB), [ALICE])

    def test_names_move_to_a_successor_once_it_is_joined(self) -> None:
        old = self.room()
        self.join(self.b, old, BOB)
        self.net.do(self.b.rooms.create_alias("#old:b.example", old, BOB))
        new = self.room(preset="private_chat", creation_content={"predecessor": {"room_id": old}})
        self.a.member(new, ALICE, "invite", BOB)
        self.a.set_state(old, ALICE, "m.room.tombstone", {"body": "", "replacement_room": new})
        self.net.deliver()
        self.assertEqual(self.net.do(self.b.rooms.resolve_alias("#old:b.example")).room_id, old)
        self.join(self.b, new, BOB)
        self.assertEqual(self.net.do(self.b.rooms.resolve_alias("#old:b.example")).room_id, new)

    def test_versions_that_the_other_does_not_know(self) -> None:
        room_id = self.room("12")
        templates = self.a.rooms.make_membership("join", room_id, BOB, "b.example", ["10"])
        error = self.net.refused(templates, "M_INCOMPATIBLE_ROOM_VERSION", 400)
        self.assertEqual(error.extra, {"room_version": "12"})

    def test_sending_the_join_twice(self) -> None:
        room_id = self.room()
        sent: list[FederationRequest] = []
        self.a.answers["send_join"] = sent.append  # type: ignore[assignment]
        self.join(self.b, room_id, BOB)
        count = len(self.a.told)
        again = self.net.do(self.net.answer("b.example", sent[0]))
        self.assertEqual(again.status, 200)
        self.assertEqual(len(orjson.loads(again.body)["state"]), len(self.a.state(room_id, ALICE)) - 1)
        self.assertEqual(len(self.a.told), count)

    def test_a_join_on_events_that_nobody_knows(self) -> None:
        room_id = self.room()
        template = self.net.do(self.a.rooms.make_membership("join", room_id, BOB, "b.example", ["10"]))
        pdu = {**template["event"], "prev_events": ["$" + "x" * 43]}
        event = self.b.signed(pdu, "10")
        taking = self.a.rooms.take_membership("join", room_id, event.event_id, "b.example", event.pdu)
        self.net.refused(taking, "M_INVALID_PARAM", 400)


class LyingResidents(JoinStory):
    """Whatever a.example answers, the room is as its events say, or the join fails and nothing is left of it."""

    def lie(self, change: Any) -> None:
        def answer(request: FederationRequest) -> Any:
            del self.a.answers["send_join"]
            true = orjson.loads(self.net.do(self.net.answer("b.example", request)).body)
            change(true)
            return true

        self.a.answers["send_join"] = answer

    def fails(self, change: Any) -> None:
        room_id = self.room()
        self.lie(change)
        self.net.refused(self.b.change(room_id, BOB, "join", via=["a.example"]), "M_UNKNOWN", 502)
        self.assertIsNone(self.b.membership(room_id, BOB))
        self.join(self.b, room_id, BOB)
        self.assertEqual(self.b.joined(room_id), [ALICE, BOB])

    def test_no_create_event(self) -> None:
        def without(answer: Any) -> None:
            for key in ("state", "auth_chain"):
                answer[key] = [event for event in answer[key] if event["type"] != "m.room.create"]

        self.fails(without)

    def test_another_event_comes_back(self) -> None:
        self.fails(lambda answer: answer["event"].update(depth=7))

    def test_an_empty_answer(self) -> None:
        self.fails(lambda answer: answer.clear())

    def test_members_left_out_without_servers(self) -> None:
        self.fails(lambda answer: answer.update(members_omitted=True))

    def test_forged_state_is_left_out(self) -> None:
        room_id = self.room(topic="true")

        def forge(answer: Any) -> None:
            for event in answer["state"]:
                if event["type"] == "m.room.topic":
                    event["content"] = {"topic": "false"}

        self.lie(forge)
        self.join(self.b, room_id, BOB)
        # What does not match its hash is redacted, as the specification has it.
        topic = self.net.do(self.b.rooms.state_event(room_id, BOB, "m.room.topic", ""))
        self.assertEqual(orjson.loads(topic.client)["content"], {})

    def test_state_signed_by_nobody_is_left_out(self) -> None:
        room_id = self.room(topic="true")

        def forge(answer: Any) -> None:
            for event in answer["state"]:
                if event["type"] == "m.room.topic":
                    event["signatures"] = {"a.example": {"ed25519:1": "A" * 86}}

        self.lie(forge)
        self.join(self.b, room_id, BOB)
        self.assertNotIn(("m.room.topic", ""), self.b.state(room_id, BOB))

    def test_nonsense(self) -> None:
        for body in (b"", b"[]", b"{", b'{"event": 7}', b"\xff"):
            for endpoint in ("make_join", "send_join"):
                room_id = self.room()
                self.a.answers = {endpoint: lambda request, body=body: RawAnswer(200, body)}  # type: ignore[misc]
                self.net.refused(self.b.change(room_id, BOB, "join", via=["a.example"]), "M_UNKNOWN", 502)


class Crashes(JoinStory):
    def test_a_join_that_was_cut_off_is_tried_again(self) -> None:
        """The server dies after each of its writes in turn; the next try succeeds."""
        for writes in range(12):
            room_id = self.room()
            left = writes
            write = self.b.database.write

            def failing(*args: Any, write: Any = write) -> Any:
                nonlocal left
                if left == 0:
                    return Deferred()
                left -= 1
                return write(*args)

            self.b.database.write = failing  # type: ignore[assignment, method-assign]
            Deferred.fromCoroutine(self.b.change(room_id, BOB, "join", via=["a.example"]))
            self.net.pause()
            self.b.database.write = write  # type: ignore[method-assign]
            self.b.begin()
            self.assertIn(self.b.membership(room_id, BOB), (None, "join"))
            self.join(self.b, room_id, BOB)
            self.assertEqual(self.b.joined(room_id), [ALICE, BOB])
            self.same_state(room_id, (self.a, ALICE), (self.b, BOB))

"""Users of one server are invited by those of another: taken, refused, taken back; and they knock."""

from __future__ import annotations

from typing import Any

import orjson

from dendrite_tw.federation_api.api import FederationRequest, RawAnswer
from dendrite_tw.room_api.store import stored_event
from tests.room_api.test_handshakes_joining import ALICE, BOB, CAROL, DAN, VERSIONS, JoinStory
from tests.room_api.test_writer import all_events


class InviteTests(JoinStory):
    def private(self, version: str = "10", **options: Any) -> str:
        return self.room(version, preset="private_chat", name="Verona", **options)

    def shown(self, server: Any, room_id: str, user: str) -> dict[str, Any]:
        """What a user is shown of a room: contents by type, and their own member event by their ID."""
        entries = [orjson.loads(one) for one in self.net.do(server.rooms.stripped_state(room_id, user))]
        return {one["state_key"] or one["type"]: one["content"] for one in entries}

    def test_taken_in_every_version(self) -> None:
        for version in VERSIONS:
            room_id = self.private(version)
            self.a.member(room_id, ALICE, "invite", BOB)
            self.assertEqual(self.b.membership(room_id, BOB), "invite")
            self.assertEqual(self.a.membership(room_id, BOB), "invite")
            shown = self.shown(self.b, room_id, BOB)
            self.assertEqual(shown["m.room.name"], {"name": "Verona"})
            self.assertEqual(shown[BOB]["membership"], "invite")
            self.assertEqual(shown[ALICE]["membership"], "join")
            told = self.b.told[-1]
            self.assertEqual((told.event.state_key, told.event.membership, told.state_changed), (BOB, "invite", True))
            self.assertTrue(self.a.told[-1].distribute)
            self.b.member(room_id, BOB, "join")
            self.assertEqual(self.b.joined(room_id), [ALICE, BOB])
            self.same_state(room_id, (self.a, ALICE), (self.b, BOB))

    def test_refused_in_every_version(self) -> None:
        for version in VERSIONS:
            room_id = self.private(version)
            self.a.member(room_id, ALICE, "invite", BOB)
            self.b.member(room_id, BOB, "leave", reason="no")
            self.assertEqual(self.b.membership(room_id, BOB), "leave")
            self.assertEqual(self.a.membership(room_id, BOB), "leave")
            self.assertEqual(self.b.told[-1].event.membership, "leave")
            self.assertTrue(self.a.told[-1].distribute)
            self.net.do(self.b.rooms.forget(BOB, room_id))
            self.assertTrue(self.net.do(self.b.rooms.membership(room_id, BOB)).forgotten)
            self.a.member(room_id, ALICE, "invite", BOB)
            self.assertFalse(self.net.do(self.b.rooms.membership(room_id, BOB)).forgotten)

    def test_refused_though_nobody_hears_of_it(self) -> None:
        for version in ("1", "6", "12"):
            room_id = self.private(version)
            self.a.member(room_id, ALICE, "invite", BOB)
            self.net.cut.add("a.example")
            self.b.member(room_id, BOB, "leave")
            self.assertEqual(self.b.membership(room_id, BOB), "leave")
            self.net.cut.clear()
            self.assertEqual(self.a.membership(room_id, BOB), "invite")
            self.b.member(room_id, BOB, "join", via=["a.example"])
            self.same_state(room_id, (self.a, ALICE), (self.b, BOB))

    def test_who_is_in_no_room_leaves_none(self) -> None:
        room_id = self.private()
        self.net.refused(self.b.change(room_id, BOB, "leave"), "M_NOT_FOUND", 404)
        self.a.member(room_id, ALICE, "invite", BOB)
        self.net.refused(self.b.change(room_id, DAN, "leave"), "M_NOT_FOUND", 404)
        self.net.refused(self.b.change(room_id, DAN, "invite", BOB), "M_FORBIDDEN", 403)

    def test_taken_back_by_who_invited(self) -> None:
        for version in ("2", "10", "12"):
            room_id = self.private(version)
            self.a.member(room_id, ALICE, "invite", BOB)
            self.a.member(room_id, ALICE, "kick", BOB)
            self.net.deliver()
            self.assertEqual(self.b.membership(room_id, BOB), "leave")
            self.assertEqual(self.b.told[-1].event.membership, "leave")
            self.assertEqual(self.b.asked, [("a.example", "invite")])
            self.b.asked.clear()

    def test_taken_back_by_one_who_may(self) -> None:
        room_id = self.private()
        self.a.set_state(room_id, ALICE, "m.room.power_levels", {"users": {ALICE: 100, CAROL: 50}})
        self.a.member(room_id, ALICE, "invite", CAROL)
        self.join(self.c, room_id, CAROL)
        self.a.member(room_id, ALICE, "invite", BOB)
        self.net.deliver()
        self.c.member(room_id, CAROL, "ban", BOB)
        self.net.deliver()
        self.assertEqual(self.b.membership(room_id, BOB), "ban")
        self.assertIn(("b.example", "event_auth"), self.c.asked)

    def test_not_taken_back_by_one_who_may_not(self) -> None:
        room_id = self.private()
        self.a.member(room_id, ALICE, "invite", BOB)
        invite = self.net.do(self.b.rooms.membership(room_id, BOB)).event_id
        pdus = self.net.do(self.a.rooms.pdus([invite]))
        for auth_events in ([invite], []):
            fields = orjson.loads(pdus[invite])
            content = {"membership": "leave"}
            fields |= {"sender": CAROL, "content": content, "auth_events": auth_events, "prev_events": [invite]}
            event = self.c.signed({key: fields[key] for key in fields if key not in ("hashes", "signatures")}, "10")
            self.net.do(self.b.rooms.receive("c.example", room_id, [event.pdu]))
            self.assertEqual(self.b.membership(room_id, BOB), "invite")

    def test_an_old_refusal_does_not_end_a_new_invite(self) -> None:
        room_id = self.private()
        self.a.member(room_id, ALICE, "invite", BOB)
        self.a.member(room_id, ALICE, "kick", BOB)
        kick = self.a.told[-1].event.event_id
        (pdu,) = self.net.do(self.a.rooms.pdus([kick])).values()
        self.a.member(room_id, ALICE, "invite", BOB)
        self.net.do(self.b.rooms.receive("a.example", room_id, [pdu]))
        self.assertEqual(self.b.membership(room_id, BOB), "invite")

    def test_other_events_of_a_room_elsewhere_are_not_taken(self) -> None:
        room_id = self.private()
        self.a.member(room_id, ALICE, "invite", BOB)
        said = self.a.say(room_id, ALICE, "is anybody there?")
        (pdu,) = self.net.do(self.a.rooms.pdus([said])).values()
        refused = self.net.do(self.b.rooms.receive("a.example", room_id, [pdu]))
        self.assertEqual(list(refused), [said])

    def test_a_server_that_does_not_answer(self) -> None:
        room_id = self.private()
        self.net.cut.add("b.example")
        self.net.refused(self.a.change(room_id, ALICE, "invite", BOB), "M_UNKNOWN", 502)
        self.assertIsNone(self.a.membership(room_id, BOB))

    def test_a_server_that_refuses(self) -> None:
        room_id = self.private()
        self.b.users.data[BOB, "", "m.invite_permission_config"] = b'{"default_action":"block"}'
        self.net.refused(self.a.change(room_id, ALICE, "invite", BOB), "M_INVITE_BLOCKED", 403)
        self.b.users.data.clear()
        self.assertIsNone(self.a.membership(room_id, BOB))
        self.assertIsNone(self.b.membership(room_id, BOB))

    def test_a_user_whom_a_bridge_has_yet_to_make(self) -> None:
        room_id = self.private()
        self.b.users.unknown.add(BOB)
        self.net.do(self.a.change(room_id, ALICE, "invite", BOB))
        self.assertEqual(self.b.membership(room_id, BOB), "invite")

    def test_no_more_invites_than_anybody_looks_through(self) -> None:
        self.b.rooms.remote.stubs.most = 2
        rooms = [self.private() for _ in range(3)]
        for room_id in rooms[:2]:
            self.a.member(room_id, ALICE, "invite", BOB)
        self.net.refused(self.a.change(rooms[2], ALICE, "invite", BOB), "M_FORBIDDEN", 403)
        self.b.member(rooms[0], BOB, "leave")
        self.a.member(rooms[2], ALICE, "invite", BOB)

    def test_a_server_that_does_not_sign(self) -> None:
        for answer in ({}, {"event": {}}, {"event": {"signatures": {"b.example": {"ed25519:1": "A" * 86}}}}, []):
            room_id = self.private()
            self.b.answers["invite"] = lambda request, answer=answer: RawAnswer(200, orjson.dumps(answer))  # type: ignore[misc]
            self.net.refused(self.a.change(room_id, ALICE, "invite", BOB), "M_UNKNOWN", 502)

    def test_what_the_room_does_not_allow_is_not_asked(self) -> None:
        room_id = self.private()
        self.net.refused(self.a.change(room_id, "@eve:a.example", "invite", BOB), "M_FORBIDDEN", 403)
        self.assertEqual(self.b.asked, [])

    def test_the_room_goes_on_while_a_server_thinks(self) -> None:
        """An invite that takes long is on a branch of its own, and the room is one again after it."""
        room_id = self.private("6")

        def meanwhile(request: FederationRequest) -> None:
            self.a.say(room_id, ALICE, "he is slow")

        self.b.answers["invite"] = meanwhile
        self.a.member(room_id, ALICE, "invite", BOB)
        self.assertEqual(self.a.membership(room_id, BOB), "invite")
        self.a.say(room_id, ALICE, "at last")
        self.b.member(room_id, BOB, "join")
        self.assertEqual(self.a.joined(room_id), [ALICE, BOB])
        self.same_state(room_id, (self.a, ALICE), (self.b, BOB))

    def test_a_room_made_for_others(self) -> None:
        self.net.cut.add("c.example")
        room_id = self.private(invite=[BOB, CAROL, "@ann:a.example"], is_direct=True)
        self.assertEqual(self.b.membership(room_id, BOB), "invite")
        self.assertEqual(self.a.membership(room_id, "@ann:a.example"), "invite")
        self.assertIsNone(self.a.membership(room_id, CAROL))
        self.assertTrue(self.shown(self.b, room_id, BOB)[BOB]["is_direct"])

    def test_invited_to_a_room_that_our_server_is_in(self) -> None:
        room_id = self.private()
        self.a.member(room_id, ALICE, "invite", BOB)
        self.b.member(room_id, BOB, "join")
        self.net.deliver()
        self.a.member(room_id, ALICE, "invite", DAN)
        self.assertEqual(self.b.membership(room_id, DAN), "invite")
        self.net.deliver()
        self.same_state(room_id, (self.a, ALICE), (self.b, BOB))
        self.b.member(room_id, DAN, "join")
        self.net.deliver()
        self.same_state(room_id, (self.a, ALICE), (self.b, BOB))

    def test_what_is_no_invite(self) -> None:
        room_id = self.private("12")
        bodies: list[dict[str, Any]] = []

        def keep(request: FederationRequest) -> None:
            assert request.body is not None
            bodies.append(orjson.loads(orjson.dumps(request.body)))

        self.b.answers["invite"] = keep
        self.a.member(room_id, ALICE, "invite", BOB)
        event_id = self.net.do(self.a.rooms.membership(room_id, BOB)).event_id
        (body,) = bodies
        wrong: list[dict[str, Any]] = [
            {**body, "invite_room_state": []},
            {**body, "room_version": "11"},
            {**body, "event": {**body["event"], "state_key": DAN}},
            {**body, "event": {**body["event"], "signatures": {}}},
        ]
        for one in wrong:
            taking = self.c.rooms.receive_invite(room_id, event_id, "a.example", one)
            self.assertIn(self.net.failure(taking).status, (400, 403))
        self.assertIsNone(self.c.membership(room_id, DAN))

    def test_a_room_is_left_and_its_user_invited_again(self) -> None:
        room_id = self.private()
        self.a.member(room_id, ALICE, "invite", BOB)
        self.b.member(room_id, BOB, "join")
        self.b.member(room_id, BOB, "leave")
        self.net.deliver()
        self.a.set_state(room_id, ALICE, "m.room.name", {"name": "Mantua"})
        self.a.member(room_id, ALICE, "invite", BOB)
        self.assertEqual(self.b.membership(room_id, BOB), "invite")
        self.assertEqual(self.shown(self.b, room_id, BOB)["m.room.name"], {"name": "Mantua"})
        self.b.member(room_id, BOB, "join")
        self.same_state(room_id, (self.a, ALICE), (self.b, BOB))

    def test_numbers_grow_along_the_graph(self) -> None:
        """An invite is known before what authorises it; once the room is, it stands behind that."""
        room_id = self.private()
        self.a.member(room_id, ALICE, "invite", BOB)
        self.a.member(room_id, ALICE, "invite", DAN)
        self.b.member(room_id, BOB, "join")
        rows = {row.event_id: row for row in self.b.database.prepare(all_events, room_id)}
        for row in rows.values():
            for auth_id in stored_event(row).auth_events:
                self.assertLess(rows[auth_id].event_nid, row.event_nid)
        self.assertEqual(self.b.membership(room_id, DAN), "invite")


class KnockTests(JoinStory):
    def knocking(self, version: str = "10", rule: str = "knock") -> str:
        room_id = self.room(version, preset="private_chat", name="Verona")
        self.a.set_state(room_id, ALICE, "m.room.join_rules", {"join_rule": rule})
        return room_id

    def knock(self, room_id: str) -> None:
        self.b.member(room_id, BOB, "knock", via=["a.example"], reason="let me in")

    def test_let_in(self) -> None:
        for version in ("7", "8", "10", "11", "12"):
            room_id = self.knocking(version)
            self.knock(room_id)
            self.assertEqual(self.b.membership(room_id, BOB), "knock")
            self.assertEqual(self.a.membership(room_id, BOB), "knock")
            shown = [orjson.loads(one) for one in self.net.do(self.b.rooms.stripped_state(room_id, BOB))]
            self.assertIn({"name": "Verona"}, [one["content"] for one in shown])
            self.a.member(room_id, ALICE, "invite", BOB)
            self.assertEqual(self.b.membership(room_id, BOB), "invite")
            self.b.member(room_id, BOB, "join")
            self.same_state(room_id, (self.a, ALICE), (self.b, BOB))

    def test_turned_away(self) -> None:
        room_id = self.knocking()
        self.knock(room_id)
        self.a.member(room_id, ALICE, "kick", BOB)
        self.net.deliver()
        self.assertEqual(self.b.membership(room_id, BOB), "leave")

    def test_taken_back(self) -> None:
        room_id = self.knocking()
        self.knock(room_id)
        self.b.member(room_id, BOB, "leave")
        self.assertEqual((self.a.membership(room_id, BOB), self.b.membership(room_id, BOB)), ("leave", "leave"))

    def test_where_nobody_knocks(self) -> None:
        for version, rule in (("6", "knock"), ("10", "invite"), ("10", "public")):
            room_id = self.room(version)
            self.a.set_state(room_id, ALICE, "m.room.join_rules", {"join_rule": rule})
            error = self.net.failure(self.b.change(room_id, BOB, "knock", via=["a.example"]))
            self.assertEqual((error.status, error.errcode), (403, "M_FORBIDDEN"))
            self.assertIsNone(self.b.membership(room_id, BOB))


class RestrictedTests(JoinStory):
    def restricted(self, version: str, rule: str = "restricted") -> tuple[str, str]:
        """A space, and a room that lets its members in."""
        space = self.room(version)
        room_id = self.room(version, preset="private_chat")
        allow = [{"type": "m.room_membership", "room_id": space}]
        self.a.set_state(room_id, ALICE, "m.room.join_rules", {"join_rule": rule, "allow": allow})
        return space, room_id

    def test_members_of_the_space(self) -> None:
        for version, rule in (("8", "restricted"), ("10", "knock_restricted"), ("12", "restricted")):
            space, room_id = self.restricted(version, rule)
            self.net.refused(self.b.change(room_id, BOB, "join", via=["a.example"]), "M_FORBIDDEN", 403)
            self.join(self.b, space, BOB)
            self.join(self.b, room_id, BOB)
            self.same_state(room_id, (self.a, ALICE), (self.b, BOB))
            event = self.net.do(self.b.rooms.state_event(room_id, BOB, "m.room.member", BOB))
            content = orjson.loads(event.client)["content"]
            self.assertEqual(content["join_authorised_via_users_server"], ALICE)

    def test_where_nobody_here_may_vouch(self) -> None:
        """Bob's server is in the room, but Bob may not invite: Alice's server vouches for Dan."""
        space, room_id = self.restricted("10")
        self.a.set_state(room_id, ALICE, "m.room.power_levels", {"users": {ALICE: 100}, "invite": 50})
        for user in (BOB, DAN):
            self.join(self.b, space, user)
            self.net.deliver()
        self.join(self.b, room_id, BOB)
        self.b.member(room_id, DAN, "join")
        self.assertEqual(self.b.joined(room_id), [ALICE, BOB, DAN])
        self.assertEqual(self.a.joined(room_id), [ALICE, BOB, DAN])
        self.net.deliver()
        self.same_state(room_id, (self.a, ALICE), (self.b, BOB))

    def test_a_server_that_may_not_vouch_sends_to_another(self) -> None:
        space, room_id = self.restricted("10")
        self.a.set_state(room_id, ALICE, "m.room.power_levels", {"users": {ALICE: 100}, "invite": 50})
        for server, user in ((self.b, BOB), (self.c, CAROL)):
            self.join(server, space, user)
            self.net.deliver()
        self.join(self.b, room_id, BOB)
        template = self.b.rooms.make_membership("join", room_id, CAROL, "c.example", ["10"])
        self.net.refused(template, "M_UNABLE_TO_GRANT_JOIN", 400)
        self.join(self.c, room_id, CAROL, via=("b.example", "a.example"))
        self.net.deliver()
        self.same_state(room_id, (self.a, ALICE), (self.b, BOB), (self.c, CAROL))

    def test_a_server_that_cannot_see(self) -> None:
        space, room_id = self.restricted("10")
        self.join(self.b, space, BOB)
        self.join(self.b, room_id, BOB)
        self.b.member(space, BOB, "leave")
        self.net.deliver()
        template = self.b.rooms.make_membership("join", room_id, CAROL, "c.example", ["10"])
        self.net.refused(template, "M_UNABLE_TO_AUTHORISE_JOIN", 400)


class AliasTests(JoinStory):
    def test_aliases_of_another_server(self) -> None:
        room_id = self.room(room_alias_name="verona")
        self.join(self.b, room_id, BOB)
        found = self.net.do(self.c.rooms.resolve_alias("#verona:a.example"))
        self.assertEqual((found.room_id, sorted(found.servers)), (room_id, ["a.example", "b.example"]))
        self.a.answers["query"] = lambda request: {"room_id": "!elsewhere:a.example", "servers": []}
        found = self.net.do(self.c.rooms.resolve_alias("#verona:a.example"))
        self.assertEqual((found.room_id, found.servers), ("!elsewhere:a.example", ["a.example"]))

    def test_what_is_not_there(self) -> None:
        self.net.refused(self.c.rooms.resolve_alias("#nowhere:a.example"), "M_NOT_FOUND", 404)
        self.net.refused(self.c.rooms.resolve_alias("#nowhere:d.example"), "M_UNKNOWN", 502)
        self.a.answers["query"] = lambda request: {"room_id": 7}
        self.net.refused(self.c.rooms.resolve_alias("#verona:a.example"), "M_UNKNOWN", 502)

    def test_a_canonical_alias_of_another_server(self) -> None:
        room_id = self.room(room_alias_name="verona")
        other = self.room(room_alias_name="mantua")
        self.join(self.b, room_id, BOB)
        self.a.set_state(room_id, ALICE, "m.room.power_levels", {"users": {ALICE: 100, BOB: 100}})
        self.net.deliver()
        self.b.set_state(room_id, BOB, "m.room.canonical_alias", {"alias": "#verona:a.example"})
        self.assertNotEqual(room_id, other)
        for alias in ("#mantua:a.example", "#nowhere:a.example"):
            with self.assertRaises(self.failureException):
                self.b.set_state(room_id, BOB, "m.room.canonical_alias", {"alias": alias})

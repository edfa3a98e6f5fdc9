"""Somebody is invited by an address, which turns out to be Bob's: the invite becomes his."""

from __future__ import annotations

from typing import Any

import orjson

from dendrite_tw.matrix.keys import signing_key
from dendrite_tw.matrix.signing import encode_base64, sign_json
from tests.room_api.test_handshakes_joining import ALICE, BOB, CAROL, DAN, JoinStory

IDENTITY = signing_key("ed25519:0", b"i" * 32)


class ThirdPartyTests(JoinStory):
    def invited(self, version: str = "10", token: str = "tok") -> str:
        """A room of Alice's in which an address was invited."""
        room_id = self.room(version, preset="private_chat")
        key = encode_base64(IDENTITY.verify_key)
        content = {"display_name": "b…@…", "key_validity_url": "https://id.example/", "public_key": key}
        self.a.set_state(room_id, ALICE, "m.room.third_party_invite", content, token)
        return room_id

    def signed(self, user: str = BOB, token: str = "tok", key: Any = IDENTITY) -> dict[str, Any]:
        return sign_json({"mxid": user, "token": token}, "id.example", key.key_id, key.secret)

    def bind(self, room_id: str, signed: dict[str, Any], user: str = BOB, sender: str = ALICE) -> None:
        """The identity server tells Bob's server whose the address is."""
        entry = {"mxid": user, "room_id": room_id, "sender": sender, "signed": signed}
        body = {"medium": "email", "address": "b@example.org", "mxid": user, "invites": [entry]}
        self.net.do(self.b.rooms.third_party_bound(body))

    def test_through_the_server_that_invited(self) -> None:
        for version in ("2", "6", "10", "12"):
            room_id = self.invited(version)
            self.bind(room_id, self.signed())
            self.assertEqual(self.b.membership(room_id, BOB), "invite")
            self.assertEqual(self.a.membership(room_id, BOB), "invite")
            event = self.net.do(self.a.rooms.state_event(room_id, ALICE, "m.room.member", BOB))
            invite = orjson.loads(event.client)["content"]["third_party_invite"]
            self.assertEqual(invite["display_name"], "b…@…")
            self.b.member(room_id, BOB, "join")
            self.same_state(room_id, (self.a, ALICE), (self.b, BOB))

    def test_in_a_room_that_we_are_in(self) -> None:
        """Bob's server makes the invite itself, in the name of Alice, who is of another server."""
        room_id = self.invited()
        self.a.member(room_id, ALICE, "invite", DAN)
        self.b.member(room_id, DAN, "join")
        self.net.deliver()
        self.a.asked.clear()
        self.bind(room_id, self.signed())
        self.assertEqual(self.b.membership(room_id, BOB), "invite")
        self.assertTrue(self.b.told[-1].distribute)
        self.assertEqual(self.b.told[-1].event.sender, ALICE)
        (pdu,) = self.net.do(self.b.rooms.pdus([self.b.told[-1].event.event_id])).values()
        self.assertEqual(self.net.do(self.a.rooms.receive("b.example", room_id, [pdu])), {})
        self.same_state(room_id, (self.a, ALICE), (self.b, DAN))

    def test_brought_along_with_a_join(self) -> None:
        room_id = self.invited()
        signed = {**self.signed(), "sender": ALICE}
        self.b.member(room_id, BOB, "join", third_party_signed=signed)
        self.assertEqual(self.b.joined(room_id), [ALICE, BOB])
        local = {**self.signed("@ann:a.example"), "sender": ALICE}
        self.a.member(room_id, "@ann:a.example", "join", third_party_signed=local)
        self.assertIn("@ann:a.example", self.a.joined(room_id))

    def test_what_was_not_signed_for_them(self) -> None:
        room_id = self.invited()
        forger = signing_key("ed25519:0", b"f" * 32)
        for signed in (self.signed(key=forger), self.signed(token="other"), {**self.signed(), "mxid": DAN}):
            self.bind(room_id, signed)
            self.assertIsNone(self.b.membership(room_id, BOB))
            claim = self.b.change(room_id, BOB, "join", third_party_signed={**signed, "sender": ALICE})
            self.assertIn(self.net.failure(claim).status, (400, 403, 502))
        self.bind(room_id, self.signed(), sender=CAROL)
        self.assertIsNone(self.b.membership(room_id, BOB))

    def test_once_only_for_who_has_not_been_turned_away(self) -> None:
        room_id = self.invited()
        self.a.member(room_id, ALICE, "ban", BOB)
        self.bind(room_id, self.signed())
        self.assertNotEqual(self.b.membership(room_id, BOB), "invite")

    def test_malformed_claims(self) -> None:
        room_id = self.invited()
        good = {**self.signed(), "sender": ALICE}
        for change in ({"sender": 7}, {"token": 7}, {"signatures": 7}):
            claim = self.b.change(room_id, BOB, "join", third_party_signed={**good, **change})
            self.net.refused(claim, "M_BAD_JSON", 400)

    def test_an_exchange_that_was_not_ours_to_make(self) -> None:
        room_id = self.invited()
        body = {"type": "m.room.member", "room_id": room_id, "sender": ALICE, "state_key": BOB}
        content = {"membership": "invite", "third_party_invite": {"display_name": "b", "signed": self.signed()}}
        exchange = self.c.rooms.exchange_third_party_invite(room_id, "b.example", {**body, "content": content})
        self.net.refused(exchange, "M_NOT_FOUND", 404)
        other = self.a.rooms.exchange_third_party_invite(
            room_id, "b.example", {**body, "sender": CAROL, "content": content}
        )
        self.net.refused(other, "M_FORBIDDEN", 403)

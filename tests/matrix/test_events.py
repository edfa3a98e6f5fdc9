"""Events: format and its limits, ids and hashes, building, and the forms in which they are shown."""

from __future__ import annotations

from typing import Any

import nacl.signing
import orjson
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.matrix import canonical_json, events, identifiers, signing
from dendrite_tw.matrix.event_format import MAX_UNSIGNED_BYTES
from dendrite_tw.matrix.events import EventFormatError, EventTooLargeError, parse_event
from dendrite_tw.matrix.redaction import redact
from dendrite_tw.matrix.room_versions import (
    ROOM_V1,
    ROOM_V2,
    ROOM_V3,
    ROOM_V4,
    ROOM_V5,
    ROOM_V6,
    ROOM_V10,
    ROOM_V11,
    ROOM_V12,
    ROOM_VERSIONS,
    RoomVersion,
)
from tests.matrix.builders import ALICE, KEY, SERVER, RoomBuilder
from tests.matrix.strategies import bounded, json_objects

SEED = signing.decode_base64("YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1")
HASH = "Rqnc-F-dvnEYJTyHq_iKxU2bZ1CI92-kuZq3a5lr5Zg"
ALL = list(ROOM_VERSIONS.values())


def valid_pdu(version: RoomVersion, **fields: Any) -> dict[str, Any]:
    """A well-formed PDU of that version; a field given as ``...`` is left out."""
    pdu: dict[str, Any] = {
        "room_id": f"!{HASH}" if version.room_ids_as_hashes else "!r:domain",
        "sender": "@a:domain",
        "type": "m.room.message",
        "content": {"body": "hello"},
        "origin_server_ts": 1000000,
        "depth": 3,
        "prev_events": [f"${HASH}"],
        "auth_events": [f"${HASH}"],
        "hashes": {"sha256": "x"},
        "signatures": {"domain": {"ed25519:1": "x"}},
    }
    if version.event_format == "pairs":
        pair = ["$1:domain", {"sha256": "x"}]
        pdu |= {"event_id": "$2:domain", "prev_events": [pair], "auth_events": [pair]}
    return {key: value for key, value in (pdu | fields).items() if value is not ...}


class VectorTests(SynchronousTestCase):
    """Appendices, "Event Signing": the vectors predate room versions and have the form of the first."""

    def hash_and_sign(self, event):
        digest = events.content_hash(event, ROOM_V1)
        event = event | {"hashes": {"sha256": signing.encode_base64(digest)}}
        redacted = redact(event, ROOM_V1)
        signed = signing.sign_json(redacted, "domain", "ed25519:1", SEED)
        self.assertEqual(
            signing.encode_base64(events.reference_hash(event, ROOM_V1)),
            signing.encode_base64(events._sha256(signing.signed_payload(redacted))),
        )
        return event["hashes"]["sha256"], signed["signatures"]["domain"]["ed25519:1"]

    def test_minimal_event(self):
        event = {
            "room_id": "!x:domain",
            "sender": "@a:domain",
            "origin": "domain",
            "origin_server_ts": 1000000,
            "signatures": {},
            "hashes": {},
            "type": "X",
            "content": {},
            "prev_events": [],
            "auth_events": [],
            "depth": 3,
            "unsigned": {"age_ts": 1000000},
        }
        expected = (
            "5jM4wQpv6lnBo7CLIghJuHdW+s2CMBJPUOGOC89ncos",
            "KxwGjPSDEtvnFgU00fwFz+l6d2pJM6XBIaMEn81SXPTRl16AqLAYqfIReFGZlHi5KLjAWbOoMszkwsQma+lYAg",
        )
        self.assertEqual(self.hash_and_sign(event), expected)
        built = events.finish_event(event, ROOM_V3, server_name="domain", key_id="ed25519:1", signing_key=SEED)
        pdu = built.pdu_dict()
        self.assertEqual((pdu["hashes"]["sha256"], pdu["signatures"]["domain"]["ed25519:1"]), expected)

    def test_event_with_redactable_content(self):
        event = {
            "content": {"body": "Here is the message content"},
            "event_id": "$0:domain",
            "origin": "domain",
            "origin_server_ts": 1000000,
            "type": "m.room.message",
            "room_id": "!r:domain",
            "sender": "@u:domain",
            "signatures": {},
            "unsigned": {"age_ts": 1000000},
        }
        expected = (
            "onLKD1bGljeBWQhWZ1kaP9SorVmRQNdN5aM2JYU2n/g",
            "Wm+VzmOUOz08Ds+0NTWb1d4CZrVsJSikkeRxh6aCcUwu6pNC78FunoD7KNWzqFn241eYHYMGCA5McEiVPdhzBA",
        )
        self.assertEqual(self.hash_and_sign(event), expected)


class FormatTests(SynchronousTestCase):
    def accepted(self, version, **fields):
        pdu = valid_pdu(version, **fields)
        from_dict, from_bytes = parse_event(pdu, version), parse_event(orjson.dumps(pdu), version)
        self.assertEqual(from_dict.pdu, from_bytes.pdu)
        self.assertEqual(from_dict.event_id, from_bytes.event_id)
        return from_dict

    def refused(self, version, reason, error=EventFormatError, **fields):
        pdu = valid_pdu(version, **fields)
        raised = self.assertRaises(error, parse_event, pdu, version)
        self.assertIn(reason, str(raised))

    def test_valid(self):
        for version in ALL:
            event = self.accepted(version, state_key="k", unsigned={"age": 1})
            self.assertEqual(event.sender, "@a:domain")
            self.assertEqual(event.type, "m.room.message")
            self.assertEqual(event.state_key, "k")
            self.assertTrue(event.is_state)
            self.assertEqual(event.content, {"body": "hello"})
            self.assertEqual(event.origin_server_ts, 1000000)
            self.assertEqual(event.depth, 3)
            self.assertEqual(event.unsigned, {"age": 1})
            pairs = version.event_format == "pairs"
            self.assertEqual(event.prev_events, ("$1:domain" if pairs else f"${HASH}",))
            self.assertEqual(event.auth_events, event.prev_events)
            self.assertEqual("event_id" in event.pdu_dict(), pairs)
            self.assertNotIn("unsigned", event.pdu_dict())

    def test_required_keys(self):
        required = ["sender", "type", "content", "origin_server_ts", "depth", "prev_events", "auth_events"]
        for version in ALL:
            for key in [*required, "hashes", "signatures", "room_id"]:
                self.refused(version, key, **{key: ...})
        for version in (ROOM_V1, ROOM_V2):
            self.refused(version, "event_id", event_id=...)

    def test_types(self):
        wrong: dict[str, list[Any]] = {
            "sender": [None, 1, "", "a:domain", "@a", "@a:", "@a:do main"],
            "type": [None, 1, {}],
            "content": [None, 1, "x", []],
            "origin_server_ts": [None, "1", True, [], 2**63],
            "depth": [None, "1", True, -1, 2**63],
            "prev_events": [None, {}, "x", [1], ["x"], [None], [[]], ["$"]],
            "auth_events": [None, {}, "x", [1], ["x"], [None], [[]], ["$"]],
            "hashes": [None, [], {}, {"sha256": 1}, {"md5": "x"}],
            "signatures": [None, [], {"domain": "x"}, {"domain": {"ed25519:1": 1}}, {"domain": None}],
            "room_id": [None, 1, "", "r:domain", "!", "@r:domain"],
            "state_key": [None, 1, []],
            "unsigned": [None, 1, []],
        }
        for version in ALL:
            for key, values in wrong.items():
                for value in values:
                    self.refused(version, key, **{key: value})

    def test_not_an_object(self):
        for data in (b"[]", b"1", b'"x"', b"", b"{", b"null"):
            for version in (ROOM_V1, ROOM_V12):
                self.assertRaises(EventFormatError, parse_event, data, version)

    def test_references_by_version(self):
        pair = ["$1:domain", {"sha256": "x"}]
        self.refused(ROOM_V2, "pairs", prev_events=["$1:domain"])
        self.refused(ROOM_V2, "pairs", prev_events=[[*pair, 1]])
        self.refused(ROOM_V2, "pairs", prev_events=[["$1:domain", "x"]])
        self.refused(ROOM_V3, "not an event id", prev_events=[pair])

    def test_number_of_references(self):
        for version in ALL:
            one = valid_pdu(version)["prev_events"]
            self.accepted(version, prev_events=one * 20, auth_events=one * 10)
            self.refused(version, "more than 20", prev_events=one * 21)
            self.refused(version, "more than 10", auth_events=one * 11)
            old = valid_pdu(version, prev_events=one * 21, auth_events=one * 11)
            self.assertRaises(EventFormatError, events.receive_event, old, version)
            self.assertEqual(len(events.receive_event(old, version, limited=False).event.prev_events), 21)

    def test_depth(self):
        for version in ALL:
            self.accepted(version, depth=0)
            self.accepted(version, depth=version.max_depth)
            self.refused(version, "depth", depth=version.max_depth + 1)
        self.assertEqual((ROOM_V5.max_depth, ROOM_V6.max_depth), (2**63 - 1, 2**53 - 1))

    def test_fields_of_255_bytes(self):
        for version in ALL:
            for key, prefix in (("type", ""), ("state_key", ""), ("sender", "@")):
                suffix = ":domain" if prefix else ""
                room = 255 - len(prefix + suffix)
                self.accepted(version, **{key: prefix + "a" * room + suffix})
                self.refused(version, key, EventTooLargeError, **{key: prefix + "a" * (room + 1) + suffix})
                self.refused(version, key, EventTooLargeError, **{key: prefix + "ä" * (room // 2 + 1) + suffix})
        self.accepted(ROOM_V11, room_id="!" + "a" * 247 + ":domain")
        self.refused(ROOM_V11, "room_id", EventTooLargeError, room_id="!" + "a" * 248 + ":domain")
        self.accepted(ROOM_V2, event_id="$" + "a" * 247 + ":domain")
        self.refused(ROOM_V2, "event_id", EventTooLargeError, event_id="$" + "a" * 248 + ":domain")

    def test_size_of_the_whole(self):
        for version in ALL:
            spare = events.MAX_PDU_BYTES - len(self.accepted(version, content={"body": ""}).pdu)
            self.assertEqual(len(self.accepted(version, content={"body": "a" * spare}).pdu), 65_536)
            self.refused(version, "65,536", EventTooLargeError, content={"body": "a" * (spare + 1)})
        huge = orjson.dumps(valid_pdu(ROOM_V12, unsigned={"x": "a" * 400_000}))
        self.assertRaises(EventTooLargeError, parse_event, huge, ROOM_V12)

    def test_excessive_unsigned_is_forgotten(self):
        deep: Any = []
        for _ in range(500):
            deep = [deep]
        for unsigned in ({"x": "a" * MAX_UNSIGNED_BYTES}, {"x": deep}):
            self.assertEqual(parse_event(valid_pdu(ROOM_V12, unsigned=unsigned), ROOM_V12).unsigned, {})

    def test_deep_content(self):
        deep: Any = []
        for _ in range(500):
            deep = [deep]
        for version in ALL:
            self.refused(version, "deep", content={"x": deep})

    def test_numbers(self):
        for version in ALL:
            for number in (1.5, 1e10, 2**53, -(2**53)):
                content = {"x": number}
                if version.strict_canonical_json:
                    self.refused(version, "", content=content)
                    self.refused(version, "", other=content)
                else:
                    self.assertEqual(self.accepted(version, content=content).content, content)

    def test_long_integers_survive_in_old_versions(self):
        data = orjson.dumps(valid_pdu(ROOM_V5)).replace(b'"hello"', b"123456789012345678901234567890")
        event = parse_event(data, ROOM_V5)
        self.assertIn(b"123456789012345678901234567890", event.pdu)
        self.assertEqual(event.content["body"], 123456789012345678901234567890)
        again = events.event_from_storage(event.pdu, ROOM_V5, event.event_id)
        self.assertEqual(again.content, event.content)
        self.assertIn(b"123456789012345678901234567890", events.client_json(again))
        self.assertRaises(EventFormatError, parse_event, data, ROOM_V6)

    def test_room_id_by_version(self):
        for version in ALL:
            hashed, domain = f"!{HASH}", "!r:domain"
            good, bad = (hashed, domain) if version.room_ids_as_hashes else (domain, hashed)
            self.accepted(version, room_id=good)
            self.refused(version, "room_id", room_id=bad)

    def test_room_id_of_create(self):
        create: dict[str, Any] = {
            "type": "m.room.create",
            "state_key": "",
            "prev_events": [],
            "auth_events": [],
        }
        event = self.accepted(ROOM_V12, room_id=..., **create)
        self.assertEqual(event.room_id, "!" + event.event_id[1:])
        self.assertNotIn("room_id", event.pdu_dict())
        self.refused(ROOM_V12, "room_id", room_id=f"!{HASH}", **create)
        self.refused(ROOM_V11, "room_id", room_id=..., **create)
        self.assertEqual(self.accepted(ROOM_V11, **create).room_id, "!r:domain")

    def test_unknown_keys_are_kept_and_signed(self):
        plain, more = self.accepted(ROOM_V10), self.accepted(ROOM_V10, org_example={"a": 1}, origin="domain")
        self.assertEqual(more.pdu_dict()["org_example"], {"a": 1})
        self.assertNotEqual(plain.event_id, more.event_id)  # ``origin`` survives redaction there

    def test_event_id_is_not_part_of_newer_pdus(self):
        self.assertEqual(self.accepted(ROOM_V12, event_id="$wrong").event_id, self.accepted(ROOM_V12).event_id)

    def test_redacts(self):
        redaction = {"type": "m.room.redaction", "redacts": "$target", "content": {"redacts": "$inside"}}
        for version in ALL:
            expected = "$inside" if version.redacts_in_content else "$target"
            self.assertEqual(self.accepted(version, **redaction).redacts, expected)
            self.assertIsNone(self.accepted(version, redacts="$target").redacts)
            for odd in (None, 7, {}, "", "x"):
                fields = redaction | {"redacts": odd, "content": {"redacts": odd}}
                self.assertIsNone(self.accepted(version, **fields).redacts)

    @bounded
    @given(st.data())
    def test_noise_is_refused_in_order(self, data):
        version = data.draw(st.sampled_from(ALL))
        pdu = valid_pdu(version)
        key = data.draw(st.sampled_from([*pdu, "state_key", "unsigned", "redacts", "event_id"]))
        noise = st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
            max_leaves=5,
        )
        pdu[key] = data.draw(noise)
        try:
            event = parse_event(pdu, version)
        except EventFormatError:
            return
        self.assertEqual(parse_event(event.pdu, version).event_id, event.event_id)
        events.client_json(event)


class IdentityTests(SynchronousTestCase):
    def test_form_of_event_ids(self):
        for version in ALL:
            event = RoomBuilder(version).event("m.room.message", ALICE, {"body": "x"})
            if version.event_id_format == "origin":
                self.assertEqual(event.event_id, "$event2:a.example")
            else:
                self.assertEqual(len(event.event_id), 44)
                digest = signing.decode_base64(event.event_id[1:], urlsafe=version.event_id_format == "urlsafe_hash")
                self.assertEqual(digest, events.reference_hash(event.pdu_dict(), version))
            self.assertEqual(events.compute_event_id(event.pdu_dict(), version), event.event_id)

    def test_alphabet_of_event_ids(self):
        room3, room4 = RoomBuilder(ROOM_V3), RoomBuilder(ROOM_V4)
        joined = {
            version: "".join(room.event("m.x", ALICE, {}).event_id for _ in range(40))
            for version, room in ((3, room3), (4, room4))
        }
        self.assertTrue({"+", "/"} <= set(joined[3]) and not {"-", "_"} & set(joined[3]))
        self.assertTrue({"-", "_"} <= set(joined[4]) and not {"+", "/"} & set(joined[4]))

    @bounded
    @given(st.sampled_from(ALL), json_objects, json_objects, st.sampled_from(["m.room.message", "m.room.create"]))
    def test_what_the_id_depends_on(self, version, content, unsigned, event_type):
        fields: dict[str, Any] = {"type": event_type, "content": content}
        if event_type == "m.room.create" and version.room_ids_as_hashes:
            fields["room_id"] = ...
        pdu = valid_pdu(version, **fields)
        plain = parse_event(pdu, version)
        dressed = parse_event(pdu | {"unsigned": unsigned, "signatures": {"x": {"ed25519:2": "y"}}}, version)
        self.assertEqual(plain.event_id, dressed.event_id)
        self.assertEqual(events.signed_bytes(plain), events.signed_bytes(dressed))
        redacted = events.redact_event(plain)
        self.assertEqual(events.compute_event_id(redacted.pdu_dict(), version), plain.event_id)
        later = parse_event(pdu | {"origin_server_ts": 7}, version)
        if version.event_id_format != "origin":
            self.assertNotEqual(later.event_id, plain.event_id)

    def test_storage(self):
        for version in ALL:
            room = RoomBuilder(version)
            for event in (
                room.create,
                room.event("m.room.redaction", ALICE, {"reason": "x"}, redacts="$target:x.example"),
            ):
                again = events.event_from_storage(event.pdu, version, event.event_id)
                for field in event.__struct_fields__:
                    self.assertEqual(getattr(again, field), getattr(event, field), field)

    def test_frozen(self):
        event = RoomBuilder(ROOM_V12).create
        self.assertRaises(AttributeError, setattr, event, "sender", "@x:y")


class BuildTests(SynchronousTestCase):
    @bounded
    @given(st.sampled_from(ALL), json_objects, st.none() | st.text("ab@", max_size=3))
    def test_built_events_pass_every_check(self, version, content, state_key):
        room = RoomBuilder(version)
        event = room.event("org.example.type", ALICE, content, state_key, prev_events=[room.create])
        self.assertTrue(events.check_content_hash(event))
        received = events.receive_event(event.pdu, version)
        self.assertFalse(received.redacted)
        self.assertEqual(received.event.event_id, event.event_id)
        self.assertEqual(received.event.pdu, event.pdu)
        self.assertEqual(received.signatures, events.signatures(event))
        signature = received.signatures[SERVER][KEY.key_id]
        signing.verify_bytes(received.signed_bytes, signature, KEY.verify_key)
        signing.verify_json(redact(event.pdu_dict(), version), SERVER, KEY.key_id, KEY.verify_key)
        for field in event.__struct_fields__:
            self.assertEqual(getattr(received.event, field), getattr(event, field), field)
        self.assertEqual(event.pdu, canonical_json.encode(event.pdu_dict()))

    def test_forms_of_a_key(self):
        pdu = valid_pdu(ROOM_V12)
        built = {
            events.finish_event(pdu, ROOM_V12, server_name="s", key_id="ed25519:1", signing_key=key).pdu
            for key in (KEY.secret, KEY.seed, nacl.signing.SigningKey(KEY.seed))
        }
        self.assertEqual(len(built), 1)

    def test_create_of_hashed_room(self):
        room = RoomBuilder(ROOM_V12)
        self.assertEqual(room.create.room_id, "!" + room.create.event_id[1:])
        self.assertTrue(identifiers.is_hash_room_id(room.create.room_id))
        self.assertNotIn("room_id", room.create.pdu_dict())
        self.assertRaises(EventFormatError, room.event, "m.room.create", ALICE, {}, "", [])
        self.assertRaises(EventFormatError, room.event, "m.x", ALICE, {}, room_id=None)

    def test_chosen_event_ids(self):
        for version in (ROOM_V1, ROOM_V2):
            room = RoomBuilder(version)
            self.assertEqual(room.event("m.x", ALICE, {}, event_id="abc").event_id, "$abc:a.example")
            self.assertEqual(room.event("m.x", ALICE, {}, event_id="$abc:b.example").event_id, "$abc:b.example")
            for missing in (None, "", "$abc"):
                self.assertRaises(EventFormatError, room.event, "m.x", ALICE, {}, event_id=missing)
        self.assertNotIn("event_id", RoomBuilder(ROOM_V3).event("m.x", ALICE, {}, event_id="abc").pdu_dict())

    def test_largest(self):
        for version in (ROOM_V5, ROOM_V12):
            room = RoomBuilder(version)
            spare = events.MAX_PDU_BYTES - len(room.event("m.x", ALICE, {"x": ""}).pdu)
            self.assertEqual(len(room.event("m.x", ALICE, {"x": "a" * spare}).pdu), 65_536)
            self.assertRaises(EventTooLargeError, room.event, "m.x", ALICE, {"x": "a" * (spare + 1)})

    def test_place_of_redacts(self):
        for version in ALL:
            content = {"reason": "spam"}
            event = RoomBuilder(version).event("m.room.redaction", ALICE, content, redacts="$t:x")
            pdu = event.pdu_dict()
            place = pdu["content"] if version.redacts_in_content else pdu
            self.assertEqual(place["redacts"], "$t:x")
            self.assertEqual(event.redacts, "$t:x")
            self.assertEqual(content, {"reason": "spam"})

    def test_pairs_need_hashes(self):
        room = RoomBuilder(ROOM_V2)
        event = room.event("m.x", ALICE, {}, prev_events=[room.create], auth_events=[room.create])
        digest = signing.encode_base64(events.reference_hash(room.create.pdu_dict(), ROOM_V2))
        self.assertEqual(event.pdu_dict()["prev_events"], [[room.create.event_id, {"sha256": digest}]])
        arguments: dict[str, Any] = {
            "room_id": "!r:a.example",
            "sender": ALICE,
            "type": "m.x",
            "content": {},
            "prev_events": ["$x:y"],
            "auth_events": [],
            "depth": 1,
            "origin_server_ts": 1,
        }
        self.assertRaises(ValueError, events.build_pdu, ROOM_V2, **arguments)
        self.assertEqual(events.build_pdu(ROOM_V3, **arguments)["prev_events"], ["$x:y"])

    def test_depth_stays_at_its_limit(self):
        for version in ALL:
            pdu = events.build_pdu(
                version,
                room_id="!r:a.example",
                sender=ALICE,
                type="m.x",
                content={},
                prev_events=[],
                auth_events=[],
                depth=version.max_depth + 1,
                origin_server_ts=1,
            )
            self.assertEqual(pdu["depth"], version.max_depth)

    def test_refusals(self):
        for version in ALL:
            room = RoomBuilder(version)
            refused = [
                (EventTooLargeError, {"type": "x" * 256}),
                (EventTooLargeError, {"state_key": "x" * 256}),
                (EventTooLargeError, {"content": {"x": "a" * 65_536}}),
                (EventFormatError, {"content": {"x": float("nan")}}),
                (EventFormatError, {"content": {"x": b"bytes"}}),
                (EventFormatError, {"content": {1: "x"}}),
                (EventFormatError, {"content": {"x": "\ud800"}}),
                (EventFormatError, {"sender": "alice"}),
            ]
            if version.strict_canonical_json:
                refused.append((EventFormatError, {"content": {"x": 1.5}}))
                refused.append((EventFormatError, {"content": {"x": 2**53}}))
            for error, fields in refused:
                arguments = {"type": "m.x", "sender": ALICE, "content": {}} | fields
                self.assertRaises(error, room.event, **arguments)


class ReceiveTests(SynchronousTestCase):
    def test_altered_content_is_redacted(self):
        for version in ALL:
            event = RoomBuilder(version).event("m.room.message", ALICE, {"body": "x"})
            received = events.receive_event(event.pdu_dict() | {"content": {"body": "y"}}, version)
            self.assertTrue(received.redacted)
            self.assertEqual(received.event.content, {})
            self.assertEqual(received.event.event_id, event.event_id)
            signing.verify_bytes(received.signed_bytes, received.signatures[SERVER][KEY.key_id], KEY.verify_key)

    def test_altered_essentials_break_the_signature(self):
        event = RoomBuilder(ROOM_V12).event("m.room.message", ALICE, {"body": "x"})
        for change in (
            {"sender": "@eve:a.example"},
            {"depth": 9},
            {"type": "m.x"},
            {"hashes": {"sha256": "x"}},
        ):
            received = events.receive_event(event.pdu_dict() | change, ROOM_V12)
            signature = received.signatures[SERVER][KEY.key_id]
            self.assertRaises(
                signing.SignatureError, signing.verify_bytes, received.signed_bytes, signature, KEY.verify_key
            )

    def test_hash_that_is_not_base64(self):
        event = parse_event(valid_pdu(ROOM_V12, hashes={"sha256": "?"}), ROOM_V12)
        self.assertFalse(events.check_content_hash(event))

    def test_forged_third_party_invite_does_not_excuse_the_sender(self):
        forged = valid_pdu(
            ROOM_V10,
            type="m.room.member",
            state_key="@b:domain",
            content={"membership": "invite", "third_party_invite": {"signed": {}}},
        )
        self.assertEqual(signing.required_signers(parse_event(forged, ROOM_V10)), frozenset())
        received = events.receive_event(forged, ROOM_V10)
        self.assertEqual(received.event.content, {"membership": "invite"})
        self.assertEqual(signing.required_signers(received.event), {"domain"})

    def test_redaction_of_an_event(self):
        room = RoomBuilder(ROOM_V12)
        event = room.event("m.room.member", ALICE, {"membership": "join", "displayname": "A"}, ALICE)
        redacted = events.redact_event(event)
        self.assertEqual(redacted.content, {"membership": "join"})
        self.assertEqual(redacted.membership, "join")
        self.assertEqual((redacted.event_id, redacted.room_id), (event.event_id, event.room_id))
        self.assertEqual(events.signatures(redacted), events.signatures(event))


class SignatureTests(SynchronousTestCase):
    def test_second_signature(self):
        for version in ALL:
            event = RoomBuilder(version).event("m.room.member", ALICE, {"membership": "invite"}, "@b:b.example")
            other = nacl.signing.SigningKey(b"\1" * 32)
            both = events.sign_event(event, "b.example", "ed25519:b", other)
            self.assertEqual(both.event_id, event.event_id)
            self.assertEqual(set(events.signatures(both)), {SERVER, "b.example"})
            self.assertEqual(set(events.signatures(event)), {SERVER})
            received = events.receive_event(both.pdu, version)
            self.assertFalse(received.redacted)
            for server, key_id, public in (
                (SERVER, KEY.key_id, KEY.verify_key),
                ("b.example", "ed25519:b", bytes(other.verify_key)),
            ):
                signing.verify_bytes(received.signed_bytes, received.signatures[server][key_id], public)

    def test_signature_that_makes_it_too_large(self):
        event = RoomBuilder(ROOM_V12).event("m.x", ALICE, {"x": "a" * 65_000})
        spare = 65_536 - len(events.add_signature(event, "s", "ed25519:1", "").pdu)
        self.assertEqual(len(events.add_signature(event, "s", "ed25519:1", "x" * spare).pdu), 65_536)
        self.assertRaises(EventTooLargeError, events.add_signature, event, "s", "ed25519:1", "x" * (spare + 1))


class ShownTests(SynchronousTestCase):
    def test_message(self):
        event = RoomBuilder(ROOM_V12).event("m.room.message", ALICE, {"body": "x"})
        expected = {
            "content": {"body": "x"},
            "event_id": event.event_id,
            "origin_server_ts": event.origin_server_ts,
            "sender": ALICE,
            "type": "m.room.message",
        }
        self.assertEqual(orjson.loads(events.client_json(event)), expected)
        self.assertEqual(events.client_dict(event, room_id=False), expected)
        self.assertEqual(events.client_dict(event), expected | {"room_id": event.room_id})
        spliced = events.client_json(event)[:-1] + b',"unsigned":{"age":1}}'
        self.assertEqual(orjson.loads(spliced), expected | {"unsigned": {"age": 1}})

    def test_state(self):
        for state_key in ("", "k"):
            event = RoomBuilder(ROOM_V12).event("m.x", ALICE, {"name": "x"}, state_key)
            self.assertEqual(orjson.loads(events.client_json(event))["state_key"], state_key)
            self.assertEqual(
                events.stripped(event),
                {"content": {"name": "x"}, "sender": ALICE, "state_key": state_key, "type": "m.x"},
            )

    def test_redaction_names_its_target_twice(self):
        for version in ALL:
            event = RoomBuilder(version).event("m.room.redaction", ALICE, {"reason": "x"}, redacts="$t:x")
            for shown in (orjson.loads(events.client_json(event)), events.client_dict(event)):
                self.assertEqual(shown["redacts"], "$t:x")
                self.assertEqual(shown["content"], {"reason": "x", "redacts": "$t:x"})
            self.assertEqual("redacts" in event.content, version.redacts_in_content)

    def test_membership(self):
        room = RoomBuilder(ROOM_V12)
        self.assertEqual(room.event("m.room.member", ALICE, {"membership": "join"}, ALICE).membership, "join")
        self.assertIsNone(room.event("m.room.member", ALICE, {"membership": 1}, ALICE).membership)
        self.assertIsNone(room.event("m.x", ALICE, {"membership": "join"}, ALICE).membership)

"""Signatures: the vectors of the specification, round trips, and everything that must not verify."""

from __future__ import annotations

import nacl.signing
import signedjson.key
import signedjson.sign
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.matrix import signing
from dendrite_tw.matrix.canonical_json import CanonicalJSONError
from dendrite_tw.matrix.events import parse_event
from dendrite_tw.matrix.room_versions import ROOM_V1, ROOM_V7, ROOM_V8, ROOM_V10, ROOM_V11
from dendrite_tw.matrix.signing import SignatureError, decode_base64, encode_base64, sign_json, verify_json
from tests.matrix.strategies import bounded, json_objects

SEED = decode_base64("YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1")
KEY = nacl.signing.SigningKey(SEED)
PUBLIC = bytes(KEY.verify_key)


class Base64Tests(SynchronousTestCase):
    def test_examples_of_the_specification(self):
        for plain, encoded in [("", ""), ("f", "Zg"), ("fo", "Zm8"), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]:
            self.assertEqual(encode_base64(plain.encode()), encoded)
            self.assertEqual(decode_base64(encoded), plain.encode())
            self.assertEqual(decode_base64(encoded + "=" * (-len(encoded) % 4)), plain.encode())

    def test_alphabets(self):
        self.assertEqual(encode_base64(b"\xfb\xff"), "+/8")
        self.assertEqual(encode_base64(b"\xfb\xff", urlsafe=True), "-_8")
        self.assertEqual(decode_base64("-_8", urlsafe=True), b"\xfb\xff")
        self.assertRaises(ValueError, decode_base64, "-_8")
        self.assertRaises(ValueError, decode_base64, "+/8", urlsafe=True)
        for either in ("-_8", "+/8"):
            self.assertEqual(signing.decode_base64_either(either), b"\xfb\xff")
        for either in ("-A", "+A"):
            self.assertEqual(signing.decode_base64_either(either), b"\xf8")
        for either in ("_A", "/A"):
            self.assertEqual(signing.decode_base64_either(either), b"\xfc")
        self.assertRaises(ValueError, signing.decode_base64_either, "-/8")

    def test_refusals(self):
        for bad in ("Z", "Zg===", "Z=g", "Zm 8", "Zm8\n", "Zm8!", "Zü", "===="):
            self.assertRaises(ValueError, decode_base64, bad)

    @bounded
    @given(st.binary(max_size=70), st.booleans())
    def test_round_trip(self, data, urlsafe):
        self.assertEqual(decode_base64(encode_base64(data, urlsafe=urlsafe), urlsafe=urlsafe), data)


class SignJSONTests(SynchronousTestCase):
    def test_vectors_of_the_specification(self):
        vectors = [
            ({}, "K8280/U9SSy9IVtjBuVeLr+HpOB4BQFWbg+UZaADMtTdGYI7Geitb76LTrr5QV/7Xg4ahLwYGYZzuHGZKM5ZAQ"),
            (
                {"one": 1, "two": "Two"},
                "KqmLSbO39/Bzb0QIYE82zqLwsA+PDzYIpIRA2sRQ4sL53+sN6/fpNSoqE7BP7vBZhG6kYdD13EIMJpvhJI+6Bw",
            ),
        ]
        for obj, signature in vectors:
            signed = sign_json(obj, "domain", "ed25519:1", KEY)
            self.assertEqual(signed, obj | {"signatures": {"domain": {"ed25519:1": signature}}})
            verify_json(signed, "domain", "ed25519:1", PUBLIC)

    def test_forms_of_a_key(self):
        secret = SEED + PUBLIC
        signed = [sign_json({"a": 1}, "s", "ed25519:1", key) for key in (KEY, SEED, secret)]
        self.assertEqual(signed[0], signed[1])
        self.assertEqual(signed[0], signed[2])
        self.assertRaises(ValueError, sign_json, {}, "s", "ed25519:1", b"short")

    @bounded
    @given(json_objects, json_objects)
    def test_agrees_with_signedjson(self, obj, unsigned):
        obj.pop("signatures", None)
        obj["unsigned"] = unsigned
        key = signedjson.key.decode_signing_key_base64("ed25519", "1", encode_base64(SEED))
        signed = sign_json(obj, "domain", "ed25519:1", KEY)
        self.assertEqual(signed, signedjson.sign.sign_json(dict(obj), "domain", key))
        signed["unsigned"] = {"other": 1}
        verify_json(signed, "domain", "ed25519:1", PUBLIC)

    def test_signatures_are_added_to_those_there(self):
        first = sign_json({"a": 1}, "one", "ed25519:1", KEY)
        other = nacl.signing.SigningKey(b"\1" * 32)
        both = sign_json(first, "two", "ed25519:x", other)
        self.assertEqual(list(first["signatures"]), ["one"])
        verify_json(both, "one", "ed25519:1", PUBLIC)
        verify_json(both, "two", "ed25519:x", bytes(other.verify_key))

    def test_what_must_not_verify(self):
        signed = sign_json({"a": 1}, "domain", "ed25519:1", KEY)
        signature = signed["signatures"]["domain"]["ed25519:1"]

        def refused(obj, server="domain", key_id="ed25519:1", key=PUBLIC):
            self.assertRaises(SignatureError, verify_json, obj, server, key_id, key)

        refused(signed | {"a": 2})
        refused(signed | {"b": 1})
        refused(signed, server="other")
        refused(signed, key_id="ed25519:2")
        refused(signed, key=bytes(nacl.signing.SigningKey(b"\1" * 32).verify_key))
        refused(signed, key=PUBLIC[:31])
        refused({"a": 1})
        refused(signed | {"f": 1.5})
        odd = ["", "x", signature[:-4], signature + "AAAA", "!" + signature[1:], 7, None, [], {}]
        for wrong in odd:
            refused(signed | {"signatures": {"domain": {"ed25519:1": wrong}}})
        for shape in (None, [], "x", {"domain": []}, {"domain": "x"}, {"domain": None}):
            refused(signed | {"signatures": shape})

    def test_only_canonical_json_is_signed(self):
        self.assertRaises(CanonicalJSONError, sign_json, {"a": 1.5}, "domain", "ed25519:1", KEY)


class RequiredSignersTests(SynchronousTestCase):
    def event(self, version, content, event_type="m.room.member", **fields):
        pdu = {
            "room_id": "!r:room.example",
            "sender": "@a:sender.example",
            "type": event_type,
            "state_key": "@b:target.example",
            "content": content,
            "depth": 1,
            "origin_server_ts": 1,
            "prev_events": [],
            "auth_events": [],
            "hashes": {"sha256": "x"},
            "signatures": {},
        }
        return parse_event(pdu | fields, version)

    def test_sender(self):
        event = self.event(ROOM_V10, {"body": "x"}, "m.room.message")
        self.assertEqual(signing.required_signers(event), {"sender.example"})

    def test_event_id_server(self):
        event = self.event(ROOM_V1, {}, "m.room.message", event_id="$1:id.example")
        self.assertEqual(signing.required_signers(event), {"sender.example", "id.example"})

    def test_restricted_join(self):
        content = {"membership": "join", "join_authorised_via_users_server": "@c:resident.example"}
        for version in (ROOM_V8, ROOM_V11):
            self.assertEqual(
                signing.required_signers(self.event(version, content)), {"sender.example", "resident.example"}
            )
        self.assertEqual(signing.required_signers(self.event(ROOM_V7, content)), {"sender.example"})
        message = self.event(ROOM_V8, content, "m.room.message")
        self.assertEqual(signing.required_signers(message), {"sender.example"})
        odd = self.event(ROOM_V8, content | {"join_authorised_via_users_server": ["x"]})
        self.assertEqual(signing.required_signers(odd), {"sender.example"})

    def test_third_party_invite(self):
        content = {"membership": "invite", "third_party_invite": {"signed": {}}}
        self.assertEqual(signing.required_signers(self.event(ROOM_V10, content)), frozenset())
        by_id = self.event(ROOM_V1, content, event_id="$1:id.example")
        self.assertEqual(signing.required_signers(by_id), {"id.example"})
        for not_exempt in ({"membership": "join", "third_party_invite": {}}, {"membership": "invite"}):
            self.assertEqual(signing.required_signers(self.event(ROOM_V10, not_exempt)), {"sender.example"})
        message = self.event(ROOM_V10, content, "m.room.message")
        self.assertEqual(signing.required_signers(message), {"sender.example"})

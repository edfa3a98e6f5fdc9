"""Signing keys: files of two formats, validity over time, the published document."""

from __future__ import annotations

import io

import signedjson.key
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.matrix import keys
from dendrite_tw.matrix.keys import DAY_MS, KeyFormatError, OldVerifyKey
from dendrite_tw.matrix.room_versions import ROOM_V4, ROOM_V5, ROOM_V12
from dendrite_tw.matrix.signing import SignatureError, decode_base64, verify_json
from tests.matrix.strategies import bounded

SEED = decode_base64("YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1")
PEM = """-----BEGIN MATRIX PRIVATE KEY-----
Key-ID: ed25519:Ab_1

YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA0=
-----END MATRIX PRIVATE KEY-----
"""


class PEMTests(SynchronousTestCase):
    def test_read(self):
        for text in (PEM, PEM.replace("\n", "\r\n"), "something before\n" + PEM + "and after"):
            key = keys.read_pem(text)
            self.assertEqual(key.key_id, "ed25519:Ab_1")
            self.assertEqual(key.seed, SEED)
            self.assertEqual(key.verify_key_base64, "XGX0JRS2Af3be3knz2fBiRbApjm2Dh61gXDJA8kcJNI")

    def test_write(self):
        self.assertEqual(keys.write_pem(keys.read_pem(PEM)), PEM)

    def test_refusals(self):
        for bad in (
            "",
            "MATRIX PRIVATE KEY",
            PEM.replace("MATRIX", "RSA"),
            PEM.replace("Key-ID: ed25519:Ab_1\n", ""),
            PEM.replace("Ab_1", "Ab-1"),
            PEM.replace("Ab_1", ""),
            PEM.replace("ed25519:", "curve25519:"),
            PEM.replace("YJDB", "!!!!"),
            PEM.replace("YJDB", ""),
            PEM.replace("YJDB", "YJDBYJDB"),
        ):
            self.assertRaises(KeyFormatError, keys.read_pem, bad)

    def test_old_keys_may_have_ids_of_any_form(self):
        text = PEM.replace("Ab_1", "Ab-1.x")
        self.assertEqual(keys.read_pem(text, check_id=False).key_id, "ed25519:Ab-1.x")
        self.assertRaises(KeyFormatError, keys.read_pem, text.replace("ed25519", "x"), check_id=False)

    def test_nothing_secret_is_shown(self):
        key = keys.read_pem(PEM)
        self.assertNotIn("YJDB", repr(key) + str(key))
        self.assertNotIn(repr(SEED)[2:10], repr(key))
        error = self.assertRaises(KeyFormatError, keys.read_pem, PEM.replace("YJDBA", "!!!!!"))
        self.assertNotIn("9Xnr2sVqXD9", str(error))


class SignedjsonTests(SynchronousTestCase):
    def test_round_trip_with_the_library(self):
        pair = [keys.signing_key("ed25519:a_1", SEED), keys.signing_key("ed25519:b", b"\1" * 32)]
        text = keys.write_signedjson(pair)
        self.assertEqual([bytes(k) for k in signedjson.key.read_signing_keys(io.StringIO(text))], [SEED, b"\1" * 32])
        self.assertEqual(keys.read_signedjson(text), pair)
        self.assertEqual(keys.read_key_file(text), pair)
        self.assertEqual(keys.read_key_file(PEM), [keys.read_pem(PEM)])

    def test_refusals(self):
        for bad in ("", "\n", "ed25519 a_1", "rsa a_1 AAAA", "ed25519 a_1 !!!!", "ed25519 a_1 AAAA", "x"):
            self.assertRaises(KeyFormatError, keys.read_signedjson, bad)
        self.assertRaises(KeyFormatError, keys.read_key_file, "-----BEGIN X-----")

    @bounded
    @given(st.binary(min_size=32, max_size=32), st.from_regex(r"[a-zA-Z0-9_]{1,10}", fullmatch=True))
    def test_both_formats_hold_any_key(self, seed, name):
        key = keys.signing_key(f"ed25519:{name}", seed)
        self.assertEqual(keys.read_key_file(keys.write_pem(key)), [key])
        self.assertEqual(keys.read_key_file(keys.write_signedjson([key])), [key])


class ValidityTests(SynchronousTestCase):
    NOW = 1_000 * DAY_MS

    def valid(self, ts, valid_until, version=ROOM_V12, **more):
        return keys.key_valid_at(ts, valid_until, now=self.NOW, version=version, **more)

    def test_valid_until(self):
        for version in (ROOM_V5, ROOM_V12):
            self.assertTrue(self.valid(500, 500, version))
            self.assertFalse(self.valid(501, 500, version))

    def test_ignored_by_older_versions(self):
        self.assertTrue(self.valid(501, 500, ROOM_V4))

    def test_cap_of_seven_days(self):
        far = self.NOW + 1000 * DAY_MS
        self.assertTrue(self.valid(self.NOW + 7 * DAY_MS, far))
        self.assertFalse(self.valid(self.NOW + 7 * DAY_MS + 1, far))
        self.assertTrue(self.valid(self.NOW + 7 * DAY_MS + 1, far, ROOM_V4))

    def test_expired_key(self):
        for version in (ROOM_V4, ROOM_V12):
            self.assertTrue(self.valid(300, 0, version, expired_ts=300))
            self.assertFalse(self.valid(301, self.NOW, version, expired_ts=300))


class DocumentTests(SynchronousTestCase):
    def test_document(self):
        new, second = keys.signing_key("ed25519:new", SEED), keys.signing_key("ed25519:two", b"\1" * 32)
        old = OldVerifyKey("ed25519:old", "AAAA", 1234)
        document = keys.server_keys_document("example.org", [new, second], [old], 99)
        self.assertEqual(
            {k: v for k, v in document.items() if k != "signatures"},
            {
                "server_name": "example.org",
                "verify_keys": {
                    "ed25519:new": {"key": new.verify_key_base64},
                    "ed25519:two": {"key": second.verify_key_base64},
                },
                "old_verify_keys": {"ed25519:old": {"key": "AAAA", "expired_ts": 1234}},
                "valid_until_ts": 99,
            },
        )
        for key in (new, second):
            verify_json(document, "example.org", key.key_id, key.verify_key)
        self.assertRaises(
            SignatureError,
            verify_json,
            document | {"valid_until_ts": 100},
            "example.org",
            new.key_id,
            new.verify_key,
        )

"""Canonical JSON: the examples of the specification, agreement with its reference library, refusals."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from enum import IntEnum
from typing import Any

import canonicaljson
from hypothesis import given
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.matrix import canonical_json
from dendrite_tw.matrix.canonical_json import MAX_DEPTH, MAX_INTEGER, CanonicalJSONError
from tests.matrix.strategies import bounded, json_values, loose_json_values

EXAMPLES = [
    ("{}", "{}"),
    ('{"one": 1, "two": "Two"}', '{"one":1,"two":"Two"}'),
    ('{"b": "2", "a": "1"}', '{"a":"1","b":"2"}'),
    ('{"b":"2","a":"1"}', '{"a":"1","b":"2"}'),
    (
        """{"auth": {"success": true, "mxid": "@john.doe:example.com", "profile": {
            "display_name": "John Doe", "three_pids": [
            {"medium": "email", "address": "john.doe@example.org"},
            {"medium": "msisdn", "address": "123456789"}]}}}""",
        '{"auth":{"mxid":"@john.doe:example.com","profile":{"display_name":"John Doe","three_pids":['
        '{"address":"john.doe@example.org","medium":"email"},{"address":"123456789","medium":"msisdn"}]},'
        '"success":true}}',
    ),
    ('{"a": "日本語"}', '{"a":"日本語"}'),
    ('{"本": 2, "日": 1}', '{"日":1,"本":2}'),
    ('{"a": "\\u65E5"}', '{"a":"日"}'),
    ('{"a": null}', '{"a":null}'),
    ('{"a": -0, "b": 10000000000}', '{"a":0,"b":10000000000}'),
]


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


class EncodeTests(SynchronousTestCase):
    def test_examples_of_the_specification(self):
        for source, canonical in EXAMPLES:
            for decode in (canonical_json.decode, canonical_json.decode_lenient):
                for encode in (canonical_json.encode, canonical_json.encode_lenient):
                    self.assertEqual(encode(decode(source.encode())), canonical.encode())

    def test_control_characters(self):
        self.assertEqual(
            canonical_json.encode('\b\t\n\f\r"\\\x00\x1f/\x7f\u2028'),
            b'"\\b\\t\\n\\f\\r\\"\\\\\\u0000\\u001f/\x7f\xe2\x80\xa8"',
        )

    @bounded
    @given(json_values)
    def test_agrees_with_the_reference_library(self, value):
        self.assertEqual(canonical_json.encode(value), canonicaljson.encode_canonical_json(value))
        self.assertEqual(canonical_json.encode_lenient(value), canonical_json.encode(value))
        self.assertEqual(canonical_json.decode(canonical_json.encode(value)), value)

    @bounded
    @given(loose_json_values)
    def test_lenient_agrees_with_the_reference_library(self, value):
        encoded = canonical_json.encode_lenient(value)
        self.assertEqual(encoded, canonicaljson.encode_canonical_json(value))
        self.assertEqual(canonical_json.decode_lenient(encoded), value)

    def test_integer_range(self):
        for good in (MAX_INTEGER, -MAX_INTEGER):
            self.assertEqual(canonical_json.encode([good]), b"[%d]" % good)
        for bad in (MAX_INTEGER + 1, -MAX_INTEGER - 1, 2**63, 2**64, 10**30):
            self.assertRaises(CanonicalJSONError, canonical_json.encode, {"a": [bad]})
            self.assertEqual(canonical_json.encode_lenient([bad]), b"[%d]" % bad)

    def test_refusals(self):
        class Level(IntEnum):
            ONE = 1

        values = [
            1.0,
            1e10,
            math.nan,
            math.inf,
            b"x",
            {1, 2},
            object(),
            datetime.now(UTC),
            Level.ONE,
            "\ud800",
        ]
        for bad in values:
            for place in (bad, [bad], {"a": {"b": bad}}):
                self.assertRaises(CanonicalJSONError, canonical_json.encode, place)
        for key in (1, None, True, 1.5, "\ud800"):
            self.assertRaises(CanonicalJSONError, canonical_json.encode, {key: 1})

    def test_lenient_refusals(self):
        for bad in (math.nan, math.inf, -math.inf, b"x", {1, 2}, object(), "\ud800", [1.5, "\ud800"]):
            self.assertRaises(CanonicalJSONError, canonical_json.encode_lenient, [bad])
        for key in (1, None, True, 1.5):
            self.assertRaises(CanonicalJSONError, canonical_json.encode_lenient, {key: 1.5})
        self.assertRaises(CanonicalJSONError, canonical_json.encode_lenient, 10**5000)

    def test_depth(self):
        deepest = nested(MAX_DEPTH)
        self.assertEqual(canonical_json.encode(deepest), json.dumps(deepest).encode())
        for depth in (MAX_DEPTH + 1, 253, 254, 255, 900, 5000):
            for encode in (canonical_json.encode, canonical_json.encode_lenient):
                self.assertRaises(CanonicalJSONError, encode, nested(depth))
        self.assertRaises(CanonicalJSONError, canonical_json.encode_lenient, [1.5, nested(MAX_DEPTH + 1)])


class DecodeTests(SynchronousTestCase):
    def test_refusals(self):
        bad = [b"", b"{", b"\xff", b"NaN", b"[Infinity]", b"01", b"[" * 100_000, b"{'a':1}"]
        for data in bad:
            self.assertRaises(CanonicalJSONError, canonical_json.decode, data)
            self.assertRaises(CanonicalJSONError, canonical_json.decode_lenient, data)

    def test_long_integers_do_not_pass_as_something_else(self):
        long = canonical_json.decode(b"[100000000000000000000000]")
        self.assertRaises(CanonicalJSONError, canonical_json.encode, long)
        self.assertEqual(canonical_json.decode_lenient(b"[100000000000000000000000]"), [10**23])
        self.assertRaises(CanonicalJSONError, canonical_json.decode_lenient, b"9" * 5000)

"""Subjects and their wildcards, and the tree that routes by them, held against the obvious slow way."""

from __future__ import annotations

import itertools
import random

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.jetstream.subjects import Interest, is_literal, is_subset, is_valid, matches, overlaps
from dendrite_tw.jetstream.transforms import Transform, TransformError

TOKENS = ("a", "b", "*")
PATTERNS = [
    ".".join((*tokens, *tail))
    for size in range(4)
    for tokens in itertools.product(TOKENS, repeat=size)
    for tail in ((), (">",))
    if tokens or tail
]
LITERALS = [".".join(tokens) for size in range(1, 5) for tokens in itertools.product("abc", repeat=size)]


def slow_match(pattern: str, subject: str) -> bool:
    wanted, given_ = pattern.split("."), subject.split(".")
    for position, token in enumerate(wanted):
        if token == ">":
            return len(given_) > position
        if position >= len(given_) or token not in ("*", given_[position]):
            return False
    return len(wanted) == len(given_)


class SubjectTests(SynchronousTestCase):
    def test_valid(self) -> None:
        for subject in ("a", "a.b", "*", ">", "a.*.>", "a*b", "a>b", "ü.x"):
            self.assertTrue(is_valid(subject), subject)
        for subject in (
            "",
            ".",
            "a.",
            ".a",
            "a..b",
            "a b",
            "a\tb",
            "a\r\n",
            ">.a",
            "a.>.b",
            "\0",
            "a." * 70 + "a",
        ):
            self.assertFalse(is_valid(subject), subject)

    def test_literal(self) -> None:
        self.assertEqual([s for s in ("a", "a.*", "a.>", "a*", "*") if is_literal(s)], ["a", "a*"])

    def test_matching(self) -> None:
        for pattern in PATTERNS:
            for subject in LITERALS:
                self.assertEqual(matches(pattern, subject), slow_match(pattern, subject), (pattern, subject))

    def test_overlap_and_subset_are_what_the_matches_say(self) -> None:
        belongs = {pattern: {s for s in LITERALS if slow_match(pattern, s)} for pattern in PATTERNS}
        small = [pattern for pattern in PATTERNS if pattern.count(".") < 2]
        for one, other in itertools.product(small, small):
            self.assertEqual(overlaps(one, other), bool(belongs[one] & belongs[other]), (one, other))
            if is_subset(one, other):
                self.assertLessEqual(belongs[one], belongs[other], (one, other))
            elif belongs[one]:
                self.assertFalse(one == other)

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(st.integers(0, 2**32))
    def test_routing_is_matching(self, seed: int) -> None:
        chance = random.Random(seed)
        interest: Interest[int] = Interest()
        members: dict[int, str] = {}
        for number in range(60):
            if members and chance.random() < 0.35:
                member = chance.choice(list(members))
                interest.remove(members.pop(member), member)
            else:
                members[number] = chance.choice(PATTERNS)
                interest.add(members[number], number)
            subject = chance.choice(LITERALS)
            expected = sorted(m for m, pattern in members.items() if slow_match(pattern, subject))
            self.assertEqual(sorted(interest.match(subject)), expected, f"seed {seed}")
        for member, pattern in members.items():
            interest.remove(pattern, member)
        self.assertEqual(len(interest), 0)
        self.assertTrue(interest._root.is_empty())

    def test_removing_a_stranger(self) -> None:
        interest: Interest[int] = Interest()
        interest.add("a.b", 1)
        for pattern, member in (("a.b", 2), ("a.c", 1), ("a.>", 1)):
            with self.assertRaises(KeyError):
                interest.remove(pattern, member)
        self.assertEqual(interest.match("a.b"), [1])


class TransformTests(SynchronousTestCase):
    def test_mappings(self) -> None:
        for source, destination, subject, expected in (
            (">", "x.>", "a.b", "x.a.b"),
            ("a.*.*", "z.$2.$1", "a.b.c", "z.c.b"),
            ("a.*.*", "z.{{wildcard(2)}}.{{ Wildcard( 1 ) }}", "a.b.c", "z.c.b"),
            ("a.*.>", "$1.>", "a.b.c.d", "b.c.d"),
            ("a", "b", "a", "b"),
            ("a", "b", "c", None),
            ("a.>", "", "a.b", "a.b"),
            ("", "x.>", "q", "x.q"),
        ):
            self.assertEqual(Transform(source, destination).apply(subject), expected)

    def test_partition_is_stable_and_bounded(self) -> None:
        mapping = Transform("o.*", "o.{{partition(3,1)}}.$1")
        found = {mapping.apply(f"o.{number}") for number in range(100)}
        self.assertEqual({subject.split(".")[1] for subject in found if subject}, {"0", "1", "2"})
        self.assertEqual(mapping.apply("o.7"), mapping.apply("o.7"))

    def test_nonsense(self) -> None:
        for source, destination in (
            ("a.*", "b.$2"),
            ("a.*", "b.{{nothing(1)}}"),
            ("a.*", "b.{{wildcard(0)}}"),
            ("a.*", "b.>"),
            ("a.>", "b"),
            ("a..b", "c"),
            ("a.*", "b.*"),
            ("a.*", "b.{{partition(0,1)}}"),
        ):
            with self.assertRaises(TransformError):
                Transform(source, destination)

"""Globs against a matcher too simple to be wrong, and dotted paths against the appendix."""

from __future__ import annotations

import time

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.matrix.globs import (
    ABSENT,
    compile_glob,
    literal_occurs,
    parse_path,
    property_at,
    words_of,
)

TEXTS = st.text(alphabet="aAb_ -*?.\n", max_size=12)
PATTERNS = st.text(alphabet="aAb_ -*?", max_size=7)


def naive_match(pattern: str, text: str) -> bool:
    """Glob matching as its definition has it."""
    if not pattern:
        return not text
    if pattern[0] == "*":
        return any(naive_match(pattern[1:], text[cut:]) for cut in range(len(text) + 1))
    return bool(text) and pattern[0] in ("?", text[0]) and naive_match(pattern[1:], text[1:])


def is_boundary(text: str, place: int) -> bool:
    def word(index: int) -> bool:
        return 0 <= index < len(text) and (text[index].isalnum() or text[index] == "_")

    return not (word(place - 1) and word(place))


def naive_occurs(pattern: str, text: str) -> bool:
    places = [place for place in range(len(text) + 1) if is_boundary(text, place)]
    return any(naive_match(pattern, text[start:end]) for start in places for end in places if start <= end)


class GlobTests(SynchronousTestCase):
    @settings(max_examples=300, deadline=None, derandomize=True)
    @given(PATTERNS, TEXTS)
    def test_whole_value(self, pattern: str, text: str) -> None:
        expected = naive_match(pattern.lower(), text.lower())
        self.assertEqual(compile_glob(pattern).matches(text), expected)

    @settings(max_examples=300, deadline=None, derandomize=True)
    @given(PATTERNS.filter(bool), TEXTS)
    def test_between_word_boundaries(self, pattern: str, text: str) -> None:
        expected = naive_occurs(pattern.lower(), text.lower())
        self.assertEqual(compile_glob(pattern).occurs_in(text), expected)

    @settings(max_examples=200, deadline=None, derandomize=True)
    @given(st.text(alphabet="abAB_1", min_size=1, max_size=3), TEXTS)
    def test_a_word_is_found_among_the_words(self, pattern: str, text: str) -> None:
        glob = compile_glob(pattern)
        self.assertEqual(glob.word in words_of(text), glob.occurs_in(text))

    @settings(max_examples=300, deadline=None, derandomize=True)
    @given(PATTERNS, TEXTS)
    def test_a_text_has_the_word_that_a_glob_needs(self, pattern: str, text: str) -> None:
        glob = compile_glob(pattern)
        if glob.needs is not None and glob.occurs_in(text):
            self.assertIn(glob.needs, words_of(text))

    def test_the_word_that_a_glob_needs(self) -> None:
        needs = {"Release notes": "release", "*foo bar": "bar", "ca?e": None, "日本": None, "a-bc*": "a"}
        self.assertEqual({pattern: compile_glob(pattern).needs for pattern in needs}, needs)

    def test_examples_of_the_specification(self) -> None:
        topic = compile_glob("lunc?*")
        self.assertTrue(topic.matches("Lunch plans"))
        self.assertTrue(topic.matches("LUNCH"))
        self.assertFalse(topic.matches(" lunch"))
        self.assertFalse(topic.matches("lunc"))
        body = compile_glob("ex*ple")
        for text in ("An example event.", "exple", "An exciting triple-whammy"):
            self.assertTrue(body.occurs_in(text), text)
        for text in ("An examples event", "annexple", "ex"):
            self.assertFalse(body.occurs_in(text), text)

    def test_an_empty_glob_is_the_empty_text(self) -> None:
        self.assertTrue(compile_glob("").matches(""))
        self.assertTrue(compile_glob("").occurs_in(""))
        self.assertFalse(compile_glob("").occurs_in("text"))

    def test_only_wildcards_are_special(self) -> None:
        self.assertTrue(compile_glob("a.[b]+").matches("a.[b]+"))
        self.assertFalse(compile_glob("a.").matches("ab"))

    def test_filters_know_the_star_alone_and_case(self) -> None:
        glob = compile_glob("m.room?*", fold_case=False, question_mark=False)
        self.assertTrue(glob.matches("m.room?x"))
        self.assertFalse(glob.matches("m.rooms"))
        self.assertFalse(glob.matches("M.room?x"))
        self.assertIsNone(glob.word)

    def test_hostile_patterns_end_soon(self) -> None:
        text = "a" * 65_000
        started = time.perf_counter()
        for pattern in ("*a" * 100 + "*b", "a?" * 120 + "b", "*" + "?" * 200 + "b", "a" * 250 + "b"):
            self.assertFalse(compile_glob(pattern).matches(text))
            self.assertFalse(compile_glob(pattern).occurs_in(text))
        self.assertLess(time.perf_counter() - started, 5)

    def test_a_literal_between_boundaries(self) -> None:
        self.assertTrue(literal_occurs("al*ice", "hello al*ice!"))
        self.assertFalse(literal_occurs("alice", "malice"))
        self.assertFalse(literal_occurs("alice", "alices"))
        self.assertTrue(literal_occurs("bob)", "(bob)"))


class PathTests(SynchronousTestCase):
    def test_escapes(self) -> None:
        cases = {
            "content.body": ("content", "body"),
            r"content.m\.relates_to": ("content", "m.relates_to"),
            r"content.m\\foo": ("content", r"m\foo"),
            r"content.\x": ("content", r"\x"),
            "type": ("type",),
            "a..b": ("a", "", "b"),
            "a\\": ("a\\",),
            r"a\\.b": ("a\\", "b"),
        }
        for path, names in cases.items():
            self.assertEqual(parse_path(path), names)

    @settings(max_examples=100, deadline=None, derandomize=True)
    @given(st.lists(st.text(alphabet="ab.\\", max_size=4), min_size=1, max_size=4))
    def test_escaped_names_come_back(self, names: list[str]) -> None:
        path = ".".join(name.replace("\\", "\\\\").replace(".", "\\.") for name in names)
        self.assertEqual(parse_path(path), tuple(names))

    def test_absent_is_not_null(self) -> None:
        event = {"content": {"a": None, "b": ["x"]}}
        self.assertIsNone(property_at(event, ("content", "a")))
        self.assertIs(property_at(event, ("content", "c")), ABSENT)
        self.assertIs(property_at(event, ("content", "b", "0")), ABSENT)
        self.assertIs(property_at(event, ("content", "a", "x")), ABSENT)

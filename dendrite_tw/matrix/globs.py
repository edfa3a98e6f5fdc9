"""Globs and dotted property paths: the two small notations that filters and push rules share.

A glob is cut at its ``*`` into pieces of fixed length, and the pieces are
looked for from left to right, each as early as it can be.  That finds every
match a backtracking matcher would find, and never tries a text twice: the
patterns are written by users and the texts by strangers.

Appendices, "Glob-style matching" and "Dot-separated property paths".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

_WORD: Final = "[0-9A-Za-z_]"
_STARTS: Final = f"(?:(?<!{_WORD})|(?!{_WORD}))"
_ENDS: Final = f"(?:(?!{_WORD})|(?<!{_WORD}))"
_PLAIN_WORD: Final = re.compile(r"[0-9a-z_]+")

ABSENT: Final = object()
"""What `property_at` answers where an event has no such property; JSON ``null`` is a value."""


class _Piece:
    """A stretch of a glob without ``*``: it matches texts of one length only."""

    __slots__ = ("_literal", "_pattern", "length", "source")

    def __init__(self, text: str, question_mark: bool) -> None:
        self.length = len(text)
        self._literal = None if question_mark and "?" in text else text
        parts = ("." if question_mark and char == "?" else re.escape(char) for char in text)
        self.source = "".join(parts)
        self._pattern = re.compile(self.source, re.DOTALL)

    def at(self, text: str, position: int) -> bool:
        if self._literal is not None:
            return text.startswith(self._literal, position)
        return self._pattern.match(text, position) is not None

    def find(self, text: str, start: int, end: int) -> int:
        """The first place between `start` and `end` where the piece lies wholly, or -1."""
        if self._literal is not None:
            return text.find(self._literal, start, end)
        found = self._pattern.search(text, start, end)
        return -1 if found is None else found.start()


class Glob:
    """A compiled glob; `compile_glob` makes and remembers them."""

    __slots__ = ("_first", "_fold", "_last", "_pieces", "_shortest", "_whole", "literal", "needs", "word")

    def __init__(self, pattern: str, fold_case: bool, question_mark: bool) -> None:
        self._fold = fold_case
        text = pattern.lower() if fold_case else pattern
        wild = "*" in text or (question_mark and "?" in text)
        self.literal: str | None = None if wild else text
        """The text this glob is, where it has no wildcard (lower case if case is folded)."""
        self.word: str | None = text if _PLAIN_WORD.fullmatch(text) and fold_case else None
        """The word this glob is, where it is nothing but one word."""
        self.needs: str | None = _needed_word(text) if fold_case else None
        """A word, in lower case, that every text has in which this glob occurs."""
        ends = text.split("*")
        kept = [ends[0], *filter(None, ends[1:-1]), ends[-1]] if len(ends) > 1 else ends
        self._pieces = [_Piece(piece, question_mark) for piece in kept]
        self._shortest = sum(piece.length for piece in self._pieces)
        first, last = self._pieces[0].source, self._pieces[-1].source
        self._whole = re.compile(_STARTS + first + _ENDS, re.DOTALL) if len(ends) == 1 else None
        self._first = re.compile(_STARTS + first, re.DOTALL)
        self._last = re.compile(last + _ENDS, re.DOTALL)

    def matches(self, text: str) -> bool:
        """Whether the glob matches the whole of `text`."""
        if self._fold:
            text = text.lower()
        if self.literal is not None:
            return text == self.literal
        if len(text) < self._shortest:
            return False
        head = self._pieces[0]
        if len(self._pieces) == 1:
            return len(text) == head.length and head.at(text, 0)
        tail = self._pieces[-1]
        end = len(text) - tail.length
        if not head.at(text, 0) or not tail.at(text, end):
            return False
        return self._inner(text, head.length, end) is not None

    def occurs_in(self, text: str) -> bool:
        """Whether the glob matches a part of `text` that starts and ends at a word boundary.

        A boundary is an end of the text, or a place next to a character outside
        ``[A-Za-z0-9_]``.  An empty glob matches the empty text only.
        """
        if self._fold:
            text = text.lower()
        if self.literal == "":
            return text == ""
        if self._whole is not None:
            return self._whole.search(text) is not None
        start = self._first.search(text)
        if start is None:
            return False
        position = self._inner(text, start.end(), len(text))
        return position is not None and self._last.search(text, position) is not None

    def _inner(self, text: str, start: int, end: int) -> int | None:
        """Find the pieces between the first and the last in order; where they end, or ``None``."""
        for piece in self._pieces[1:-1]:
            found = piece.find(text, start, end)
            if found < 0:
                return None
            start = found + piece.length
        return start if start <= end else None


def _needed_word(pattern: str) -> str | None:
    """The longest word of a glob that no wildcard can lengthen."""
    words = []
    for word in _PLAIN_WORD.finditer(pattern):
        around = pattern[max(word.start() - 1, 0) : word.end() + 1]
        if "*" not in around and "?" not in around:
            words.append(word[0])
    return max(words, key=len, default=None)


@lru_cache(maxsize=4096)
def compile_glob(pattern: str, *, fold_case: bool = True, question_mark: bool = True) -> Glob:
    """The compiled form of `pattern`.

    `fold_case`: compare in lower case, as push rules do.  `question_mark`: ``?``
    stands for one character; filters know ``*`` alone.
    """
    return Glob(pattern, fold_case, question_mark)


@lru_cache(maxsize=4096)
def parse_path(path: str) -> tuple[str, ...]:
    """The property names of a dotted path: ``content.m\\.mentions.room`` has three.

    ``\\.`` and ``\\\\`` stand for a dot and a backslash in a name; any other
    backslash is itself.
    """
    names, current = [], []
    characters = iter(range(len(path)))
    for index in characters:
        char = path[index]
        if char == "\\" and path[index + 1 : index + 2] in (".", "\\"):
            current.append(path[next(characters)])
        elif char == ".":
            names.append("".join(current))
            current = []
        else:
            current.append(char)
    names.append("".join(current))
    return tuple(names)


def property_at(value: Any, names: Sequence[str]) -> Any:
    """The property of a JSON object under `names`, or `ABSENT`."""
    for name in names:
        if not isinstance(value, dict) or name not in value:
            return ABSENT
        value = value[name]
    return value


def words_of(text: str) -> frozenset[str]:
    """The words of `text` in lower case: each is what a glob with that `Glob.word` occurs as."""
    return frozenset(_PLAIN_WORD.findall(text.lower()))


def literal_occurs(literal: str, text: str) -> bool:
    """Whether `literal` stands in `text` between word boundaries; case counts."""
    return _literal_pattern(literal).search(text) is not None


@lru_cache(maxsize=1024)
def _literal_pattern(literal: str) -> re.Pattern[str]:
    return re.compile(_STARTS + re.escape(literal) + _ENDS)

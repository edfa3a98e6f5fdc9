"""What happened, a line each, with short names: the same seed must write the same lines."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable

IDENTIFIER = re.compile(r"[$!][A-Za-z0-9_\-]+(?::[a-z0-9.\-]+)?")


class Trace:
    """The lines so far; ``problems`` are what must not happen."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._names: dict[str, str] = {}
        self._numbers = {"$": itertools.count(1), "!": itertools.count(1)}
        self.lines: list[str] = []
        self.problems: list[str] = []

    def note(self, who: str, text: str) -> None:
        """Somebody did something; ids of events and rooms are numbered as they come up."""
        line = f"{self._now():9.3f} {who:<10} {self.short(text)}"
        self.lines.append(line)

    def problem(self, who: str, text: str) -> None:
        """Something that must not happen, whatever the weather."""
        self.note(who, f"!! {text}")
        self.problems.append(self.short(f"{who}: {text}"))

    def short(self, text: str) -> str:
        """The text with short names for ids."""
        return IDENTIFIER.sub(lambda match: self.name(match[0]), text)

    def name(self, identifier: str) -> str:
        """``e7`` for an event, ``r2`` for a room."""
        found = self._names.get(identifier)
        if found is None:
            letter = "e" if identifier[0] == "$" else "r"
            found = self._names[identifier] = f"{letter}{next(self._numbers[identifier[0]])}"
        return found

    @property
    def digest(self) -> str:
        """A hash of all lines."""
        return hashlib.sha256("\n".join(self.lines).encode()).hexdigest()[:16]

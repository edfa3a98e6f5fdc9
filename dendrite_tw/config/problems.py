"""What is wrong with a configuration, said so that the reader can mend it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

Kind = Literal["error", "unknown", "duplicate", "old", "unavailable", "note"]


class Problem(msgspec.Struct, frozen=True):
    """One finding: where it is, what it is, and what to do.

    ``error`` stops the start.  ``unknown`` and ``duplicate`` keys are warnings at start and failures
    for ``check-config``.  ``old`` keys belong to former versions of Dendrite and have no effect;
    ``unavailable`` ones ask for a feature this version lacks; a ``note`` is advice.
    ``line`` counts from 1; 0 means the file does not mention the key.
    """

    kind: Kind
    key: str
    text: str
    remedy: str = ""
    line: int = 0

    def render(self, path: str) -> str:
        """``dendrite.yaml:12: global.cache: sentence remedy``: the form editors can jump to."""
        place = f"{path}:{self.line}" if self.line else path
        key = f"{self.key}: " if self.key else ""
        remedy = f" {self.remedy}" if self.remedy else ""
        return f"{place}: {key}{self.text}{remedy}"


class ConfigError(Exception):
    """The configuration cannot be used: `problems` says why, with file, line, key and remedy each."""

    def __init__(self, path: str, problems: Sequence[Problem]) -> None:
        self.path = path
        self.problems = tuple(problems)
        super().__init__("\n".join(problem.render(path) for problem in self.problems))

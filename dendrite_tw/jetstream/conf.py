"""The configuration language of nats-server, as far as this server goes: into plain dictionaries.

Keys and values are separated by ``=``, ``:`` or a space; maps stand in braces, lists in brackets; strings
may be bare; comments begin with ``#`` or ``//``; sizes may have a unit (``64MB``).
"""

from __future__ import annotations

import re
from typing import Any, Final

MAX_DEPTH: Final = 32

_TOKEN: Final = re.compile(
    r"""(?P<space>[\s,;]+|\#[^\n]*|//[^\n]*)
      | (?P<open>[\{\[])
      | (?P<close>[\}\]])
      | (?P<equals>[:=])
      | (?P<double>"(?:[^"\\]|\\.)*")
      | (?P<single>'[^']*')
      | (?P<bare>[^\s,;\{\}\[\]:="'\#](?:[^\s,;\{\}\[\]=\#'":]|:(?=[^\s]))*)
    """,
    re.VERBOSE,
)
_SIZE: Final = re.compile(r"(-?\d+)(?:(k|m|g|t)(i?b)?|b)?", re.IGNORECASE)
_POWERS: Final = {"k": 1, "m": 2, "g": 3, "t": 4}


class ConfigurationError(ValueError):
    """The text is not a configuration."""


def _tokens(text: str) -> list[tuple[str, str]]:
    found, at = [], 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise ConfigurationError(f"unexpected {text[at : at + 10]!r}")
        at = match.end()
        kind = str(match.lastgroup)
        if kind != "space":
            found.append((kind, match.group()))
    return found


def value_of(text: str) -> Any:
    """A bare word as what it says: a truth value, a number, a size in bytes, or itself."""
    lowered = text.lower()
    if lowered in ("true", "yes", "on"):
        return True
    if lowered in ("false", "no", "off"):
        return False
    match = _SIZE.fullmatch(text)
    if match is not None:
        power = _POWERS[match[2].lower()] if match[2] else 0
        base = 1024 if match[3] else 1000
        return int(match[1]) * base**power
    return text


class _Reader:
    def __init__(self, tokens: list[tuple[str, str]]) -> None:
        self._tokens = tokens
        self._at = 0

    def _peek(self) -> tuple[str, str]:
        return self._tokens[self._at] if self._at < len(self._tokens) else ("end", "")

    def _take(self) -> tuple[str, str]:
        token = self._peek()
        self._at += 1
        return token

    def map(self, closing: str, depth: int = 0) -> dict[str, Any]:
        if depth > MAX_DEPTH:
            raise ConfigurationError("nested too deeply")
        found: dict[str, Any] = {}
        while True:
            kind, text = self._take()
            if text == closing and kind in ("close", "end"):
                return found
            if kind not in ("bare", "double", "single"):
                raise ConfigurationError(f"expected a key, not {text!r}")
            key = text if kind == "bare" else text[1:-1]
            if self._peek()[0] == "equals":
                self._take()
            found[key] = self.value(depth + 1)

    def value(self, depth: int) -> Any:
        kind, text = self._take()
        if kind == "open":
            return self.map("}", depth) if text == "{" else self.list(depth)
        if kind == "double":
            return re.sub(r"\\(.)", lambda m: {"n": "\n", "t": "\t", "r": "\r"}.get(m[1], m[1]), text[1:-1])
        if kind == "single":
            return text[1:-1]
        if kind == "bare":
            return value_of(text)
        raise ConfigurationError(f"expected a value, not {text!r}")

    def list(self, depth: int) -> list[Any]:
        if depth > MAX_DEPTH:
            raise ConfigurationError("nested too deeply")
        found = []
        while self._peek() != ("close", "]"):
            found.append(self.value(depth + 1))
        self._take()
        return found


def parse(text: str) -> dict[str, Any]:
    """The settings in a configuration; raises `ConfigurationError`."""
    return _Reader(_tokens(text)).map("")

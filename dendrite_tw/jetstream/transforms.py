"""Subject transforms, pure: from the tokens of one subject to those of another.

Reference: NATS documentation, "Subject Mapping and Partitioning".
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from dendrite_tw.jetstream.subjects import is_valid, matches

_FUNCTION: Final = re.compile(r"\{\{\s*([a-zA-Z]+)\s*\(([\d\s,]*)\)\s*\}\}")
MAX_PARTITIONS: Final = 65_535


class TransformError(ValueError):
    """The mapping makes no sense."""


def _fnv1a(data: bytes) -> int:
    value = 0x811C9DC5
    for byte in data:
        value = ((value ^ byte) * 0x01000193) & 0xFFFFFFFF
    return value


class Transform:
    """A mapping of subjects: ``orders.*.*`` to ``shop.$2.{{wildcard(1)}}``.

    Raises `TransformError` for a mapping that cannot be.
    """

    def __init__(self, source: str, destination: str) -> None:
        self.source = source or ">"
        self.destination = destination
        if not is_valid(self.source):
            raise TransformError("invalid mapping source")
        tokens = self.source.split(".")
        self._wildcards = [position for position, token in enumerate(tokens) if token == "*"]  # noqa: S105
        self._tail = len(tokens) - 1 if tokens[-1] == ">" else -1
        self._parts = [self._part(token) for token in destination.split(".")] if destination else []
        if destination and (destination.split(".")[-1] == ">") != (self._tail >= 0):
            raise TransformError("invalid mapping destination: the wildcard > must be in both")

    def apply(self, subject: str) -> str | None:
        """The subject that this one becomes; ``None`` if the mapping is not about it."""
        if not matches(self.source, subject):
            return None
        if not self._parts:
            return subject
        tokens = subject.split(".")
        return ".".join(part(tokens) for part in self._parts)

    def _part(self, token: str) -> Callable[[list[str]], str]:
        """How one token of the destination is made."""
        if token == ">":  # noqa: S105
            tail = self._tail
            return lambda tokens: ".".join(tokens[tail:])
        if token.startswith("$") and token[1:].isdecimal():
            return self._wildcard(int(token[1:]), token)
        match = _FUNCTION.fullmatch(token)
        if match is None:
            if "{{" in token or token == "*":  # noqa: S105
                raise TransformError(f"invalid mapping destination: unknown function in {token}")
            return lambda tokens: token
        numbers = [int(word) for word in match[2].split(",") if word.strip()]
        name = match[1].lower()
        if name == "wildcard" and len(numbers) == 1:
            return self._wildcard(numbers[0], token)
        if name == "partition" and numbers and 0 < numbers[0] <= MAX_PARTITIONS:
            positions = [self._position(number, token) for number in numbers[1:]]
            return lambda tokens: str(
                _fnv1a("".join(tokens[at] for at in positions or range(len(tokens))).encode()) % numbers[0]
            )
        raise TransformError(f"invalid mapping destination: unknown function in {token}")

    def _position(self, number: int, token: str) -> int:
        if not 0 < number <= len(self._wildcards):
            raise TransformError(f"invalid mapping destination: wildcard index out of range in {token}: [{number}]")
        return self._wildcards[number - 1]

    def _wildcard(self, number: int, token: str) -> Callable[[list[str]], str]:
        position = self._position(number, token)
        return lambda tokens: tokens[position]

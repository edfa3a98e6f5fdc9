"""Command lines as Go's ``flag`` package reads them, since Dendrite's users and scripts write them so.

``-x v``, ``--x v``, ``-x=v`` and ``--x=v`` are the same; a boolean flag takes a value only behind ``=``.  The first
argument that is no flag, or ``--``, ends the flags.  An unknown flag or a bad value prints the usage and exits
with 2; ``-h`` and ``-help`` print it and exit with 0.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, Generic, NoReturn, TypeVar

from dendrite_tw.config.units import format_duration, parse_duration

T = TypeVar("T")

_BOOLEANS = {
    **dict.fromkeys(("1", "t", "T", "true", "TRUE", "True"), True),
    **dict.fromkeys(("0", "f", "F", "false", "FALSE", "False"), False),
}


class Flag(Generic[T]):
    """One flag; `value` is its default until the command line is parsed."""

    def __init__(self, name: str, default: T, usage: str, kind: str, parse: Callable[[str], T]) -> None:
        self.name = name
        self.default = default
        self.usage = usage
        self.kind = kind
        self.parse = parse
        self.value = default


class FlagSet:
    """The flags of one program.  Declare them, then `parse`; what follows the flags is returned."""

    def __init__(self, program: str, introduction: str = "") -> None:
        self.program = program
        self.introduction = introduction
        self._flags: dict[str, Flag[Any]] = {}

    def string(self, name: str, default: str, usage: str) -> Flag[str]:
        return self._add(Flag(name, default, usage, "string", str))

    def boolean(self, name: str, usage: str) -> Flag[bool]:
        """A flag that is off unless given."""
        return self._add(Flag(name, False, usage, "", _parse_boolean))

    def integer(self, name: str, default: int, usage: str) -> Flag[int]:
        return self._add(Flag(name, default, usage, "int", _parse_integer))

    def duration(self, name: str, default: float, usage: str) -> Flag[float]:
        """A Go duration, in seconds."""
        return self._add(Flag(name, default, usage, "duration", parse_duration))

    def _add(self, flag: Flag[T]) -> Flag[T]:
        self._flags[flag.name] = flag
        return flag

    def parse(self, arguments: Sequence[str]) -> list[str]:
        """Set the flags and return the arguments after them; `SystemExit` as described above."""
        rest = list(arguments)
        while rest and len(rest[0]) > 1 and rest[0].startswith("-"):
            word = rest.pop(0)
            if word == "--":
                break
            name, given, value = word.removeprefix("-").removeprefix("-").partition("=")
            if not name or name.startswith("-"):
                self.fail(f"bad flag syntax: {word}")
            flag = self._flags.get(name)
            if flag is None:
                if name in ("h", "help"):
                    self.print_usage()
                    raise SystemExit(0)
                self.fail(f"flag provided but not defined: -{name}")
            if not given and flag.kind:
                if not rest:
                    self.fail(f"flag needs an argument: -{name}")
                value = rest.pop(0)
            elif not given:
                value = "true"
            try:
                flag.value = flag.parse(value)
            except ValueError:
                kind = flag.kind or "boolean"
                self.fail(f'invalid value "{value[:80]}" for flag -{name}: not a {kind}')
        return rest

    def parse_only(self, arguments: Sequence[str]) -> None:
        """`parse` for a program that takes nothing but flags: anything else exits with 2."""
        rest = self.parse(arguments)
        if rest:
            self.fail(f"unexpected argument: {rest[0][:80]}")

    def fail(self, message: str) -> NoReturn:
        """Print the message and the usage; exit with 2."""
        print(message, file=sys.stderr)
        self.print_usage()
        raise SystemExit(2)

    def print_usage(self) -> None:
        """The program, what it is for, and its flags, on standard error."""
        print(f"Usage of {self.program}:", file=sys.stderr)
        if self.introduction:
            print(f"\n{self.introduction}\n", file=sys.stderr)
        for name in sorted(self._flags):
            flag = self._flags[name]
            kind = f" {flag.kind}" if flag.kind else ""
            print(f"  -{name}{kind}\n    \t{flag.usage}{_default(flag)}", file=sys.stderr)


def _default(flag: Flag[Any]) -> str:
    if not flag.default:
        return ""
    if flag.kind == "string":
        return f' (default "{flag.default}")'
    if flag.kind == "duration":
        return f" (default {format_duration(flag.default)})"
    return f" (default {flag.default})"


def _parse_boolean(text: str) -> bool:
    try:
        return _BOOLEANS[text]
    except KeyError:
        raise ValueError(text) from None


def _parse_integer(text: str) -> int:
    if len(text) > 40:
        raise ValueError("too long")
    return int(text, 0)

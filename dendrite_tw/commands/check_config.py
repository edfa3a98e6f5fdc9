"""``check-config``: is this configuration right?  Finds what the server itself forgives, too.

Exit code 1 for unknown keys, keys given twice, ill-typed values and everything that stops a start;
0 otherwise, though advice may be printed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

from dendrite_tw.commands.goflags import FlagSet
from dendrite_tw.components import SECTIONS, addresses
from dendrite_tw.config import Config, ConfigError, Problem, load

_FAILURES = frozenset({"error", "unknown", "duplicate"})


def main(arguments: list[str] | None = None) -> int:
    """Run the command; the exit code."""
    flags = FlagSet("check-config", "Looks for mistakes in a configuration: check-config [flags] [FILE]")
    path = flags.string("config", "dendrite.yaml", "The configuration file")
    allow = flags.boolean("really-enable-open-registration", "Do not object to open registration without any check")
    polylith = flags.boolean("polylith", "The components are to run as processes of their own")
    rest = flags.parse(sys.argv[1:] if arguments is None else arguments)
    if len(rest) > 1:
        flags.fail(f"unexpected argument: {rest[1][:80]}")
    name = rest[0] if rest else path.value
    problems: Sequence[Problem]
    try:
        config = load(name, allow_open_registration=allow.value, polylith=polylith.value)
        problems = [*config.problems, *(unheard(config) if polylith.value else ())]
    except ConfigError as error:
        problems = error.problems
    for problem in problems:
        print(problem.render(name))
    failures = sum(problem.kind in _FAILURES for problem in problems)
    if failures:
        print(f"{name}: {failures} mistake{'s' if failures > 1 else ''}.")
        return 1
    print(f"{name}: no mistakes.")
    return 0


def unheard(config: Config) -> Iterator[Problem]:
    """What is wrong with the addresses on which each process would listen."""
    taken: dict[str, str] = {}
    for section in SECTIONS:
        try:
            listening = addresses(config, [section])
        except ConfigError as error:
            yield from error.problems
            continue
        for one in listening:
            first = taken.setdefault(one.address, one.key)
            if first != one.key:
                text = f"{first} is the same address: on one machine only one of the two processes can have it."
                yield Problem("note", one.key, text, line=config.lines.get(one.key, 0))

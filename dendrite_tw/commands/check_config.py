"""``check-config``: is this configuration right?  Finds what the server itself forgives, too.

Exit code 1 for unknown keys, keys given twice, ill-typed values and everything that stops a start;
0 otherwise, though advice may be printed.
"""

from __future__ import annotations

import sys

from dendrite_tw.commands.goflags import FlagSet
from dendrite_tw.config import ConfigError, Problem, load

_FAILURES = frozenset({"error", "unknown", "duplicate"})


def main(arguments: list[str] | None = None) -> int:
    """Run the command; the exit code."""
    flags = FlagSet("check-config", "Looks for mistakes in a configuration: check-config [flags] [FILE]")
    path = flags.string("config", "dendrite.yaml", "The configuration file")
    allow = flags.boolean("really-enable-open-registration", "Do not object to open registration without any check")
    rest = flags.parse(sys.argv[1:] if arguments is None else arguments)
    if len(rest) > 1:
        flags.fail(f"unexpected argument: {rest[1][:80]}")
    name = rest[0] if rest else path.value
    problems: tuple[Problem, ...]
    try:
        problems = load(name, allow_open_registration=allow.value).problems
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

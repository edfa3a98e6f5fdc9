"""``python -m tests.simulation --seeds 1000 [--first N]``: storm after storm; a seed that fails prints itself."""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
from collections.abc import Sequence

from tests.simulation.storm import Outcome, Plan, run

SHOWN = 40


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    plan = Plan()
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=10, metavar="N", help="how many")
    parser.add_argument("--first", type=int, default=1, metavar="N", help="the first one")
    parser.add_argument("--servers", type=int, default=plan.servers)
    parser.add_argument("--people", type=int, default=plan.people, help="on each server")
    parser.add_argument("--rooms", type=int, default=plan.rooms)
    parser.add_argument(
        "--federating", type=int, default=plan.federating, help="processes of each server that federate"
    )
    parser.add_argument("--seconds", type=float, default=plan.storm_seconds, help="how long each storm lasts")
    parser.add_argument("--version", action="append", help="room versions to choose from (default: many)")
    parser.add_argument("--trace", action="store_true", help="print everything that happens")
    parser.add_argument("--stop", action="store_true", help="stop at the first seed that fails")
    return parser.parse_args(arguments)


def report(outcome: Outcome, options: argparse.Namespace, seconds: float) -> None:
    """A line for a seed, and what went wrong."""
    failed = f"  {len(outcome.problems)} PROBLEMS" if outcome.problems else ""
    digest, lines = outcome.trace.digest, len(outcome.trace.lines)
    print(f"seed {outcome.seed}: trace {digest}, {lines} lines, {outcome.events} events, {seconds:.1f} s{failed}")
    if options.trace:
        print("\n".join(outcome.trace.lines))
    for problem in outcome.problems[:SHOWN]:
        print(f"  {problem}")
    if len(outcome.problems) > SHOWN:
        print(f"  and {len(outcome.problems) - SHOWN} more")
    if outcome.problems:
        given = [argument for argument in sys.argv[1:] if argument != "--trace"]
        print(f"  again: python -m tests.simulation {' '.join(given)} --first {outcome.seed} --seeds 1 --trace")
    sys.stdout.flush()


def main(arguments: Sequence[str]) -> int:
    """Play the seeds; 1 if one of them failed."""
    options = parse(arguments)
    versions = {"versions": tuple(options.version)} if options.version else {}
    plan = Plan(options.servers, options.people, options.rooms, options.federating, options.seconds, **versions)
    failed = []
    for seed in range(options.first, options.first + options.seeds):
        before = time.perf_counter()
        outcome = run(seed, plan)
        report(outcome, options, time.perf_counter() - before)
        if outcome.problems:
            failed.append(seed)
            if options.stop:
                break
        gc.collect()
    print(f"{options.seeds} seeds from {options.first}: {f'failed {failed}' if failed else 'all is well'}")
    return int(bool(failed))


if __name__ == "__main__":
    if "PYTHONHASHSEED" not in os.environ:
        # The order of sets of strings is chance too, and a failure must repeat.
        os.execve(
            sys.executable,
            [sys.executable, "-m", "tests.simulation", *sys.argv[1:]],
            {**os.environ, "PYTHONHASHSEED": "0"},
        )
    sys.exit(main(sys.argv[1:]))

"""``python -m bench``: choose servers and scenarios, run them in turn, print the table."""

from __future__ import annotations

import argparse
import asyncio
import fnmatch
import os
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import orjson

from bench.postgresql import PostgreSQL
from bench.processes import cores
from bench.report import Figures, ServerFigures, as_json, machine, percentile, table
from bench.scenarios import QUICK, SCENARIOS, Outcome, Scale, Scenario, Site, Work
from bench.servers import SERVERS, ServerUnderTest

IDLE_SECONDS = 2.0
SETTLE_SECONDS = 0.5
REST_SECONDS = 30.0
"""How long the servers may rest before their memory at the end is read: what is only passing has passed."""

PREPARE_PATIENCE = 600.0
RUN_PATIENCE = 120.0


@dataclass(slots=True)
class Candidate:
    """A running server and its figures so far."""

    server: ServerUnderTest
    site: Site
    resident_at_start: float = 0.0
    idle: float = 0.0
    scenarios: dict[str, Figures] = field(default_factory=dict)

    def resident_mb(self) -> float:
        """Resident memory now."""
        return self.server.resident_bytes() / 2**20

    async def measure_idle(self) -> None:
        """Processor seconds that the server uses a second when nobody asks anything."""
        self.resident_at_start = self.resident_mb()
        before = self.server.processor_seconds()
        await asyncio.sleep(IDLE_SECONDS)
        self.idle = self.site.idle = (self.server.processor_seconds() - before) / IDLE_SECONDS

    async def run(self, scenario: Scenario) -> None:
        """Prepare and measure one scenario."""
        try:
            work = await asyncio.wait_for(scenario.prepare(self.site), PREPARE_PATIENCE)
            await self.site.quiet()
            self.scenarios[scenario.name] = await self._measure(work)
        except Exception as error:
            reason = repr(error)
            self.scenarios[scenario.name] = Figures(0, 1, reason, 0, 0, 0, 0, self.resident_mb())

    async def _measure(self, work: Work) -> Figures:
        """Measure; what the server does soon after its last answer (pushes, counters) counts too."""
        server = self.server
        server.look_for_children()
        started, before = time.perf_counter(), server.processor_seconds()
        outcome = await asyncio.wait_for(work(), RUN_PATIENCE)
        await asyncio.sleep(SETTLE_SECONDS)
        spent = server.processor_seconds() - before - self.idle * (time.perf_counter() - started)
        return figures(outcome, max(spent, 0.0), self.resident_mb())

    def result(self) -> ServerFigures:
        """The figures of the whole run."""
        return ServerFigures(
            version=self.server.version(),
            idle_cpu_percent=self.idle * 100,
            resident_mb_at_start=self.resident_at_start,
            resident_mb_at_end=self.resident_mb(),
            scenarios=self.scenarios,
        )


def figures(outcome: Outcome, cpu_seconds: float, resident_mb: float) -> Figures:
    """The line of the report that an outcome makes."""
    count = len(outcome.latencies)
    return Figures(
        operations=count,
        failures=len(outcome.failures),
        first_failure=outcome.failures[0] if outcome.failures else None,
        cpu_ms=1000 * cpu_seconds / max(count, 1),
        p50_ms=1000 * percentile(outcome.latencies, 0.50),
        p99_ms=1000 * percentile(outcome.latencies, 0.99),
        per_second=count / outcome.seconds if outcome.seconds else 0.0,
        resident_mb=resident_mb,
    )


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--server", choices=["ours", "synapse", "both"], default="both")
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite", help="its work counts too")
    parser.add_argument("--scenario", action="append", metavar="NAME", help="name or pattern; may be repeated")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter, a room of 200 for one of 2,000")
    parser.add_argument("--seconds", type=float, help="longest run of one scenario")
    parser.add_argument("--members", type=int, help="members of the big room")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there as JSON")
    parser.add_argument("--folder", type=Path, help="keep the servers' folders there (default: a temporary one)")
    parser.add_argument("--no-pin", action="store_true", help="do not give server and generator a core each")
    parser.add_argument("--list", action="store_true", help="list the scenarios")
    return parser.parse_args(arguments)


def chosen(patterns: Sequence[str] | None) -> list[Scenario]:
    """The scenarios that match one of the patterns, in their order."""
    return [
        scenario
        for scenario in SCENARIOS
        if not patterns or any(fnmatch.fnmatch(scenario.name, pattern) for pattern in patterns)
    ]


def scale_of(options: argparse.Namespace) -> Scale:
    """How much of everything the command line asks for."""
    scale = QUICK if options.quick else Scale()
    if options.seconds is not None:
        scale = replace(scale, seconds=options.seconds)
    if options.members is not None:
        scale = replace(scale, big_room=options.members)
    return scale


async def compare(candidates: Sequence[Candidate], scenarios: Sequence[Scenario]) -> None:
    """Every scenario on every server in turn, so that a noisy minute of the machine falls on both."""
    for candidate in candidates:
        await candidate.measure_idle()
    for scenario in scenarios:
        for candidate in candidates:
            await candidate.run(scenario)
            found = candidate.scenarios[scenario.name]
            failed = f"  {found.failures} FAILED: {found.first_failure}" if found.failures else ""
            line = f"{scenario.name:18} {candidate.server.name:8} {found.cpu_ms:9.3f} ms CPU  "
            print(f"{line}{found.operations:6} done{failed}", file=sys.stderr, flush=True)
    await asyncio.sleep(REST_SECONDS)


def main(arguments: Sequence[str]) -> int:
    """Run and report; 1 when an operation failed."""
    options = parse(arguments)
    scenarios = chosen(options.scenario)
    if options.list or not scenarios:
        print("\n".join(f"{scenario.name:18} {scenario.operation}" for scenario in SCENARIOS))
        return 0 if options.list else 2
    names = ["ours", "synapse"] if options.server == "both" else [options.server]
    for name in names:
        SERVERS[name].install()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    pinned = None if options.no_pin else cores()
    scale = scale_of(options)
    with ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        on_cores = pinned[0] if pinned else None
        databases = {name: PostgreSQL(folder / f"{name}-postgresql", on_cores) for name in names}
        servers = [
            SERVERS[name](
                folder / name,
                on_cores=on_cores,
                database=databases[name] if options.database == "postgresql" else None,
            )
            for name in names
        ]
        candidates = [Candidate(stack.enter_context(server), Site(server, scale)) for server in servers]
        if pinned:
            os.sched_setaffinity(0, pinned[1])
        load = machine()["load"]
        asyncio.run(compare(candidates, scenarios))
        results = {candidate.server.name: candidate.result() for candidate in candidates}
    print(table(results, {scenario.name: scenario.operation for scenario in scenarios}))
    if pinned:
        print("server and generator pinned to a core each")
    if options.database == "postgresql":
        print("each on a PostgreSQL server of its own, whose processor time is in the figures; memory is without it")
    print(f"load of the machine before: {load[0]:.1f}")
    if options.json:
        settings = {"quick": options.quick, "pinned": pinned is not None, "load_before": load}
        options.json.write_bytes(orjson.dumps(as_json(results, settings), option=orjson.OPT_INDENT_2))
    return int(any(found.failures for result in results.values() for found in result.scenarios.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

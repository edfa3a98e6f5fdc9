"""``python -m bench.scaling``: what a polylith costs against a monolith, and what more processes of each kind bring.

A monolith on PostgreSQL and polyliths of 1, 2 and 4 processes of each kind (with nats-server, PostgreSQL and nginx of
their own) play the same scenarios in turn.  Of each operation it says what processor time our processes took, and what
stands around them; and how many there were in a second, which more processes raise only where there are processors
for them.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from bench.__main__ import SETTLE_SECONDS, chosen
from bench.polylith import Polylith
from bench.postgresql import PostgreSQL
from bench.report import machine, percentile
from bench.scenarios import Outcome, Scale, Scenario, Site
from bench.servers import Ours, ServerUnderTest

EACH = (1, 2, 4)
SCENARIOS = ("send-1", "send-32", "busy-room", "fanout-50", "initial-sync", "empty-sync", "messages", "join")
IDLE_SECONDS = 5.0


@dataclass
class Line:
    """One scenario on one deployment: operations, and seconds by part."""

    outcome: Outcome
    parts: dict[str, float]

    def cells(self) -> list[str]:
        count = max(len(self.outcome.latencies), 1)
        times = [f"{1000 * percentile(self.outcome.latencies, share):.3g}" for share in (0.5, 0.99)]
        rate = count / self.outcome.seconds if self.outcome.seconds else 0.0
        costs = [f"{1000 * max(self.parts.get(part, 0.0), 0.0) / count:.2f}" for part in PARTS]
        mark = f" ({len(self.outcome.failures)} failed)" if self.outcome.failures else ""
        return [*costs, " / ".join(times), f"{rate:.3g}{mark}"]


PARTS = ("ours", "PostgreSQL", "NATS", "nginx")


@dataclass
class Deployment:
    """A running server, and how it did."""

    label: str
    server: ServerUnderTest
    site: Site
    idle: dict[str, float] = field(default_factory=dict)
    lines: dict[str, Line] = field(default_factory=dict)

    def seconds(self) -> dict[str, float]:
        """Processor seconds by part since the start."""
        if isinstance(self.server, Polylith):
            around = self.server.seconds_around()
        else:
            assert self.server.database is not None
            around = {"PostgreSQL": self.server.database.processor_seconds()}
        return {"ours": self.server.processor_seconds() - around["PostgreSQL"], **around}

    async def rest(self) -> None:
        """See what it does when nobody asks."""
        self.server.look_for_children()
        before = self.seconds()
        await asyncio.sleep(IDLE_SECONDS)
        self.idle = {part: (now - before[part]) / IDLE_SECONDS for part, now in self.seconds().items()}
        self.site.idle = self.idle["ours"] + self.idle["PostgreSQL"]

    async def run(self, scenario: Scenario) -> None:
        work = await scenario.prepare(self.site)
        await self.site.quiet()
        self.server.look_for_children()
        before, started = self.seconds(), time.perf_counter()
        outcome = await work()
        await asyncio.sleep(SETTLE_SECONDS)
        took, now = time.perf_counter() - started, self.seconds()
        parts = {part: now[part] - before[part] - took * self.idle[part] for part in now}
        self.lines[scenario.name] = Line(outcome, parts)


async def compare(deployments: Sequence[Deployment], scenarios: Sequence[Scenario]) -> None:
    for deployment in deployments:
        await deployment.rest()
    for scenario in scenarios:
        for deployment in deployments:
            await deployment.run(scenario)
            cells = " | ".join(deployment.lines[scenario.name].cells())
            print(f"{scenario.name:14} {deployment.label:14} {cells}", file=sys.stderr, flush=True)


def report(deployments: Sequence[Deployment], scenarios: Sequence[Scenario]) -> None:
    heads = ["scenario", "deployment", *(f"{part}: CPU ms" for part in PARTS), "p50 / p99 ms", "a second"]
    print("| " + " | ".join(heads) + " |")
    print("| " + " | ".join(["---"] * len(heads)) + " |")
    for scenario in scenarios:
        for deployment in deployments:
            row = [scenario.name, deployment.label, *deployment.lines[scenario.name].cells()]
            print("| " + " | ".join(row) + " |")
    print()
    for deployment in deployments:
        idle = ", ".join(f"{part} {100 * share:.1f} %" for part, share in deployment.idle.items())
        memory = deployment.server.resident_bytes() / 2**20
        print(f"{deployment.label}: {memory:.0f} MB resident in all; idle: {idle} of a core (taken off)")


def main(arguments: Sequence[str]) -> int:
    """Run and report; 1 when an operation failed."""
    parser = argparse.ArgumentParser(prog="python -m bench.scaling", description=__doc__)
    parser.add_argument("--each", type=int, action="append", help="processes of each kind; may be repeated")
    parser.add_argument("--scenario", action="append", metavar="NAME", help="name or pattern; may be repeated")
    parser.add_argument("--seconds", type=float, default=4.0, help="longest run of one scenario")
    options = parser.parse_args(arguments)
    scenarios = chosen(options.scenario or SCENARIOS)
    scale = Scale(seconds=options.seconds, operations=3000, rooms=30)
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        monolith = Ours(folder / "monolith", database=PostgreSQL(folder / "monolith-postgresql", None))
        servers: dict[str, ServerUnderTest] = {"monolith": monolith}
        for each in options.each or EACH:
            servers[f"polylith of {each}"] = Polylith(folder / f"polylith-{each}", each=each)
        deployments = [
            Deployment(label, stack.enter_context(server), Site(server, scale)) for label, server in servers.items()
        ]
        asyncio.run(compare(deployments, scenarios))
        report(deployments, scenarios)
    print(f"{os.cpu_count()} cores; load of the machine after: {machine()['load'][0]:.1f}")
    return int(any(line.outcome.failures for deployment in deployments for line in deployment.lines.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Figures of a run: measured, put in a table, and written as JSON."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Figures:
    """One scenario on one server; times in milliseconds.

    ``cpu_ms`` is the processor time of the server's process tree for one operation, with what it used idle
    taken off.
    """

    operations: int
    failures: int
    first_failure: str | None
    cpu_ms: float
    p50_ms: float
    p99_ms: float
    per_second: float
    resident_mb: float


@dataclass(frozen=True, slots=True)
class ServerFigures:
    """One server over the whole run."""

    version: str
    idle_cpu_percent: float
    resident_mb_at_start: float
    resident_mb_at_end: float
    scenarios: Mapping[str, Figures]


def percentile(values: Sequence[float], share: float) -> float:
    """The value that ``share`` of the values do not exceed; 0 for none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def machine() -> dict[str, Any]:
    """What the figures were made on."""
    models = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {"cores": os.cpu_count(), "processor": models[0] if models else "unknown", "load": os.getloadavg()}


def as_json(servers: Mapping[str, ServerFigures], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Everything, for machines."""
    figures = {name: asdict(server) for name, server in servers.items()}
    return {"machine": machine(), "settings": dict(settings), "servers": figures}


def table(servers: Mapping[str, ServerFigures], operations: Mapping[str, str]) -> str:
    """The report as a Markdown table: a line per scenario, servers side by side, the ratio if two."""
    names = list(servers)
    both = set(names) == {"ours", "synapse"}
    heads = ["scenario", "one operation is"]
    for name in names:
        heads += [f"{name}: CPU ms", "p50 / p99 ms", "a second"]
    if both:
        heads.append("CPU ratio")
    lines = [heads, ["---"] * len(heads)]
    for scenario, operation in operations.items():
        row = [scenario, operation]
        for name in names:
            row += cells(servers[name].scenarios.get(scenario))
        if both:
            row.append(ratio(servers["ours"].scenarios.get(scenario), servers["synapse"].scenarios.get(scenario)))
        lines.append(row)
    body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    ends = [summary(server) for server in servers.values()]
    if both:
        ends.append(memory_ratio(servers["ours"], servers["synapse"]))
    return body + "\n\n" + "\n".join(ends)


def cells(figures: Figures | None) -> list[str]:
    """CPU, latency and rate of one scenario."""
    if figures is None or not figures.operations:
        return ["failed" if figures else "", "", ""]
    mark = " (!)" if figures.failures else ""
    return [
        f"{figures.cpu_ms:.3g}{mark}",
        f"{figures.p50_ms:.3g} / {figures.p99_ms:.3g}",
        f"{figures.per_second:.3g}" if figures.per_second < 1000 else f"{figures.per_second:.0f}",
    ]


def ratio(ours: Figures | None, synapse: Figures | None) -> str:
    """How many times our processor time Synapse needs."""
    if ours is None or synapse is None or ours.cpu_ms <= 0 or not synapse.operations:
        return ""
    return f"{synapse.cpu_ms / ours.cpu_ms:.1f}"


def summary(server: ServerFigures) -> str:
    """Version, memory and idle load of one server."""
    return (
        f"{server.version}: {server.resident_mb_at_start:.0f} MB resident at start, "
        f"{server.resident_mb_at_end:.0f} MB after half a minute's rest at the end; "
        f"idle {server.idle_cpu_percent:.2f} % of a core (taken off)"
    )


def memory_ratio(ours: ServerFigures, synapse: ServerFigures) -> str:
    """What part of Synapse's memory ours is."""
    start = ours.resident_mb_at_start / max(synapse.resident_mb_at_start, 1.0)
    end = ours.resident_mb_at_end / max(synapse.resident_mb_at_end, 1.0)
    return f"memory, ours to Synapse's: {start:.2f} at start, {end:.2f} at the end"

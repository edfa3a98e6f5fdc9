"""``python -m bench.federation``: what it costs to take other servers' events, and to join big rooms of theirs.

The first part sends events to our server and to Synapse as another server does; an operation is a PDU, measured until a
local member can read the last one. The second starts two of our servers, fills a room of one, and joins it from the
other.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from urllib.parse import quote

import orjson

from bench.__main__ import Candidate, compare
from bench.authority import Authority
from bench.federating import Federating, FederatingOurs, FederatingSynapse
from bench.matrix import Account, RefusedError, each, register
from bench.processes import cores
from bench.remote import Remote
from bench.report import as_json, machine, table
from bench.scenarios import Outcome, Scale, Scenario, Site, Work

KINDS: dict[str, type[Federating]] = {"ours": FederatingOurs, "synapse": FederatingSynapse}
ROOMS = 20
AHEAD = 50
"""Events of a room that wait at most: Synapse drops those of a room in which more than a hundred do."""

POLL_SECONDS = 0.1
"""Between two looks whether an event is there: each costs the server something."""

READ_PATIENCE = 120.0
WHOLE_PATIENCE = 900.0
MEGABYTE = 1 << 20

Remotes = dict[str, Remote]


def inbound(remotes: Remotes, rooms: int, count: int, at_once: int) -> Callable[[Site], object]:
    """``count`` messages in each of some rooms, in transactions that have ``at_once`` of each room."""

    async def prepare(site: Site) -> Work:
        remote = remotes[site.server.name]
        member = await site.user()
        seats = [await remote.join(await member.create_room(room_version="10")) for _ in range(rooms)]
        events = [remote.messages(seat, count) for seat in seats]

        async def work() -> Outcome:
            outcome = Outcome()
            started = time.perf_counter()
            for first in range(0, count, at_once):
                batch = [event for said in events for event in said[first : first + at_once]]
                before = time.perf_counter()
                await remote.transaction(batch)
                outcome.latencies += [time.perf_counter() - before] * len(batch)
                if (first + at_once) % AHEAD == 0:
                    await readable(member, seats[0].room_id, events[0][first + at_once - 1].event_id)
            for seat in seats:
                await readable(member, seat.room_id, seat.last)
            outcome.seconds = time.perf_counter() - started
            return outcome

        return work

    return prepare


async def readable(member: Account, room_id: str, event_id: str) -> None:
    """Wait until a member can read an event."""
    deadline = time.monotonic() + READ_PATIENCE
    while True:
        try:
            await member.call("GET", f"/rooms/{quote(room_id)}/event/{quote(event_id)}")
            return
        except RefusedError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(POLL_SECONDS)


def scenarios_of(remotes: Remotes, quick: bool) -> list[Scenario]:
    """The lines of the report."""
    share = 4 if quick else 1
    rows = (
        ("inbound-1", "PDU, one in a transaction, 1 room", 1, 400 // share, 1),
        ("inbound-50", "PDU, 50 in a transaction, 1 room", 1, 1000 // share, 50),
        ("inbound-rooms", f"PDU, {ROOMS} in a transaction, {ROOMS} rooms", ROOMS, 50 // share, 1),
    )
    return [
        Scenario(name, operation, inbound(remotes, rooms, count, at_once))  # type: ignore[arg-type]
        for name, operation, rooms, count, at_once in rows
    ]


async def measure_inbound(candidates: Sequence[Candidate], folder: Path, quick: bool) -> list[Scenario]:
    """Run the first part; its scenarios."""
    async with AsyncExitStack() as stack:
        remotes: Remotes = {}
        for candidate in candidates:
            server = candidate.server
            assert isinstance(server, Federating)
            remotes[server.name] = await stack.enter_async_context(Remote(server, folder / f"remote-{server.name}"))
        scenarios = scenarios_of(remotes, quick)
        await compare(candidates, scenarios)
        return scenarios


async def measure_join(host: Federating, guest: Federating, members: int) -> str:
    """A line: how a user of one server comes into a room of so many members of the other."""
    owner = await register(host, f"owner{members}")
    room = await owner.create_room(room_version="10", name="Everybody")

    async def come(number: int) -> None:
        member = await register(host, f"m{members}_{number}")
        await member.join(room)
        member.connection.close()

    await each(range(members - 1), come, at_once=4)
    newcomer = await register(guest, f"newcomer{members}")
    guest.process.look_for_children()
    before = guest.process.resident_bytes() / MEGABYTE
    spent = guest.process.processor_seconds()
    started = time.perf_counter()
    await newcomer.call("POST", f"/join/{quote(room)}?via={host.server_name}&server_name={host.server_name}")
    await newcomer.send(room, "Here I am.")
    can_send = time.perf_counter() - started
    while True:
        told = await newcomer.call("GET", f"/rooms/{quote(room)}/joined_members")
        if len(told.json()["joined"]) == members + 1:
            break
        if time.perf_counter() - started > WHOLE_PATIENCE:
            raise TimeoutError(f"{len(told.json()['joined'])} members are known")
        await asyncio.sleep(0.2)
    whole = time.perf_counter() - started
    spent = guest.process.processor_seconds() - spent
    peak = peak_bytes(guest.process.pid) / MEGABYTE
    return f"| {members:,} | {can_send:.2f} s | {whole:.1f} s | {spent:.1f} s | {before:.0f} MB | {peak:.0f} MB |"


def peak_bytes(pid: int) -> int:
    """The most memory that a process ever had resident."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.federation", description=__doc__)
    parser.add_argument("part", choices=["inbound", "join"])
    parser.add_argument("--server", choices=["ours", "synapse", "both"], default="both", help="of inbound")
    parser.add_argument("--members", type=int, action="append", help="of the rooms to join (2,000 and 20,000)")
    parser.add_argument("--quick", action="store_true", help="a quarter of the events")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures of inbound there as JSON")
    parser.add_argument("--no-pin", action="store_true", help="do not give server and generator a core each")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Run and report; 1 when an operation failed."""
    options = parse(arguments)
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    pinned = None if options.no_pin else cores()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        authority = Authority.make(folder)
        print(f"load of the machine before: {machine()['load'][0]:.1f}")
        if options.part == "join":
            return join_part(stack, folder, authority, options.members or [2000, 20000])
        return inbound_part(stack, folder, authority, options, pinned)


def join_part(stack: ExitStack, folder: Path, authority: Authority, sizes: Sequence[int]) -> int:
    """Two of our servers, the joining one a new process for each size."""
    host = stack.enter_context(FederatingOurs(folder / "host", authority, "localhost"))
    print(
        "| members | can send after | whole after | CPU | memory before | peak |\n| --- | --- | --- | --- | --- | --- |"
    )
    for size in sizes:
        with FederatingOurs(folder / f"guest{size}", authority, "127.0.0.1") as guest:
            print(asyncio.run(measure_join(host, guest, size)), flush=True)
    return 0


def inbound_part(
    stack: ExitStack,
    folder: Path,
    authority: Authority,
    options: argparse.Namespace,
    pinned: tuple[set[int], set[int]] | None,
) -> int:
    """Each server in turn, as `bench` does."""
    names = list(KINDS) if options.server == "both" else [options.server]
    if "synapse" in names:
        FederatingSynapse.installed()
    on_cores = pinned[0] if pinned else None
    servers = [KINDS[name](folder / name, authority, "localhost", on_cores=on_cores) for name in names]
    candidates = [Candidate(stack.enter_context(server), Site(server, Scale())) for server in servers]
    if pinned:
        os.sched_setaffinity(0, pinned[1])
    scenarios = asyncio.run(measure_inbound(candidates, folder, options.quick))
    results = {candidate.server.name: candidate.result() for candidate in candidates}
    print(table(results, {scenario.name: scenario.operation for scenario in scenarios}))
    if options.json:
        options.json.write_bytes(orjson.dumps(as_json(results, {"quick": options.quick}), option=orjson.OPT_INDENT_2))
    return int(any(found.failures for result in results.values() for found in result.scenarios.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

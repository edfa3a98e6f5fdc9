"""``python -m bench.federation``: what events of other servers cost, and joins of big rooms on other servers.

The generator is another homeserver (:mod:`bench.remote`).  Without options it joins a room on our server and one on
Synapse and sends messages there, in transactions of one event and of fifty, by turns.  What is sent has arrived when a
local user can read it.  With ``--join N`` it has a room of N members instead, and a user of our server joins it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from bench.matrix import MESSAGE, Account, RefusedError, register
from bench.remote import VERSION, Link, Remote, State
from bench.resident import ResidentRoom
from bench.servers import SYNAPSE_LOG_YAML
from dendrite_tw.matrix.events import Event
from tests.interop.authority import Authority
from tests.interop.homeservers import Homeserver, OurHomeserver, SynapseHomeserver

SIZES = (1, 50)
"""Events in a transaction."""

TURNS = 4
BURST = 50
BURST_PATIENCE = 60.0
IDLE_SECONDS = 3.0
SETTLE_SECONDS = 0.5
LOOK_SECONDS = 0.02
QUIET_SHARE = 0.25
"""A server that uses less of a core than this is asked whether it has the last event; asking is work for it too."""

JOIN_PATIENCE = 300.0
LIMIT_MB = 300
"""What a server may need at most while it joins."""

REQUIRED_RATIO = 5.0


class QuietSynapse(SynapseHomeserver):
    """Synapse, without what it logs for the tests to read."""

    def prepare(self) -> None:
        super().prepare()
        (self.folder / "log.yaml").write_text(SYNAPSE_LOG_YAML)


# --- events that arrive ---------------------------------------------------------------------------


@dataclass(slots=True)
class Spent:
    """What the turns of one kind took so far."""

    events: int = 0
    cpu: float = 0.0
    seconds: float = 0.0

    @property
    def cpu_ms(self) -> float:
        """Processor time of one event."""
        return 1000 * self.cpu / self.events

    @property
    def per_second(self) -> float:
        return self.events / self.seconds


@dataclass(slots=True)
class Target:
    """A server under test, with a room that the generator's user is in."""

    server: Homeserver
    link: Link
    local: Account
    room_id: str
    newest: Event
    state: State
    idle: float = 0.0
    spent: dict[int, Spent] = field(default_factory=dict)

    @classmethod
    async def make(cls, remote: Remote, server: Homeserver, authority: Authority) -> Target:
        """Make the room and join it."""
        local = await register(server, "reader")
        room_id = await local.create_room(room_version=VERSION.identifier)
        link = Link(remote, server, authority)
        join, state = await link.join(room_id, f"@writer:{remote.name}")
        target = cls(server, link, local, room_id, join, state)
        await target.turn(remote, 50, 100)
        target.spent.clear()
        return target

    async def measure_idle(self) -> None:
        """Processor seconds that the server uses a second when nobody asks anything."""
        before = self.server.process.processor_seconds()
        await asyncio.sleep(IDLE_SECONDS)
        self.idle = (self.server.process.processor_seconds() - before) / IDLE_SECONDS

    def messages(self, remote: Remote, count: int) -> list[Event]:
        """The next messages of the generator's user, each after the one before."""
        made = []
        for number in range(count):
            self.newest = remote.build(
                self.room_id,
                self.state,
                f"@writer:{remote.name}",
                "m.room.message",
                {"msgtype": "m.text", "body": f"{MESSAGE} {number}"},
                after=[self.newest.event_id],
                depth=self.newest.depth + 1,
            )
            made.append(self.newest)
        return made

    async def turn(self, remote: Remote, size: int, count: int) -> None:
        """Send so many events in transactions of that size, one after the other.

        After each burst, wait until its last event is there: a server that is flooded may drop what it has not looked
        at, and ask for it later.
        """
        events = self.messages(remote, count)
        process = self.server.process
        process.look_for_children()
        begun, before, seconds = time.perf_counter(), process.processor_seconds(), 0.0
        for first in range(0, count, BURST):
            burst, burst_begun = events[first : first + BURST], time.perf_counter()
            for start in range(0, len(burst), size):
                await self.link.send(burst[start : start + size])
            ended = await asyncio.wait_for(self.arrived(burst[-1].event_id), BURST_PATIENCE)
            seconds += ended - burst_begun
        await asyncio.sleep(SETTLE_SECONDS)
        used = process.processor_seconds() - before - self.idle * (time.perf_counter() - begun)
        spent = self.spent.setdefault(size, Spent())
        spent.events += count
        spent.cpu += used
        spent.seconds += seconds

    async def arrived(self, event_id: str) -> float:
        """Wait until the local user can read the event; when the server had come to rest with it."""
        path = f"/rooms/{quote(self.room_id)}/event/{quote(event_id)}"
        process = self.server.process
        while True:
            since, before = time.perf_counter(), process.processor_seconds()
            await asyncio.sleep(LOOK_SECONDS)
            if process.processor_seconds() - before > QUIET_SHARE * LOOK_SECONDS:
                continue
            try:
                await self.local.call("GET", path)
            except RefusedError as error:
                if error.status != 404:
                    raise
            else:
                return since


async def compare(folder: Path, authority: Authority, servers: Sequence[Homeserver], count: int) -> bool:
    """Send to the servers by turns and print the table; whether ours is as much cheaper as it has to be."""
    remote = Remote(authority)
    await remote.start()
    targets = [await Target.make(remote, server, authority) for server in servers]
    for target in targets:
        await target.measure_idle()
    for size in SIZES:
        for number in range(TURNS):
            for target in targets:
                await target.turn(remote, size, count // TURNS)
                spent = target.spent[size]
                line = f"turn {number + 1}, {size} a transaction, {target.server.name}: {spent.cpu_ms:.3g} ms so far"
                print(line, file=sys.stderr, flush=True)
    await remote.stop()
    print("\n".join(table(targets)))
    return all(ratio(targets, size) >= REQUIRED_RATIO for size in SIZES)


def ratio(targets: Sequence[Target], size: int) -> float:
    """How many times the processor time of the first server the last one needs."""
    return targets[-1].spent[size].cpu_ms / targets[0].spent[size].cpu_ms


def table(targets: Sequence[Target]) -> list[str]:
    """The report as a Markdown table."""
    heads = ["events in a transaction", "events"]
    for target in targets:
        heads += [f"{target.server.name}: CPU ms an event", "events a second"]
    lines = [[*heads, "CPU ratio"], ["---"] * (len(heads) + 1)]
    for size in SIZES:
        row = [str(size), str(targets[0].spent[size].events)]
        for target in targets:
            row += [f"{target.spent[size].cpu_ms:.3g}", f"{target.spent[size].per_second:.3g}"]
        lines.append([*row, f"{ratio(targets, size):.1f}"])
    versions = [target.server.version() for target in targets]
    return ["| " + " | ".join(line) + " |" for line in lines] + ["", "; ".join(versions)]


# --- joins of big rooms ---------------------------------------------------------------------------


@dataclass(slots=True)
class Joined:
    """Seconds since the client asked to join, and what memory the server had needed."""

    members: int
    through: str
    """Who answered: the generator, or another server of ours that is in the room."""
    answered: float
    sent: float
    whole: float
    start_mb: float
    peak_mb: float
    cpu: float

    def cells(self) -> list[str]:
        """The line of the report."""
        times = [f"{seconds:.2f}" for seconds in (self.answered, self.sent, self.whole, self.cpu)]
        return [f"{self.members:,}", self.through, *times, f"{self.start_mb:.0f}", f"{self.peak_mb:.0f}"]


def peak_mb(pid: int) -> float:
    """The most resident memory that a process ever had."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


async def join(folder: Path, authority: Authority, members: int, omits: bool) -> list[Joined]:
    """A new server of ours joins a room of so many members, and another one through the first.

    `omits` as of `ResidentRoom`; servers of ours know how to omit members.
    """
    remote = Remote(authority)
    room = ResidentRoom.make(remote, members, omits)
    remote.answer = room.answer
    await remote.start()
    with (
        OurHomeserver(folder / f"first-{members}", authority, "localhost") as first,
        OurHomeserver(folder / f"second-{members}", authority, "localhost") as second,
    ):
        results = [
            await join_through("generator", remote.name, first, room.room_id, members + 1),
            await join_through("ours", first.server_name, second, room.room_id, members + 2),
        ]
    await remote.stop()
    asked = ", ".join(f"{path} {count}" for path, count in sorted(remote.asked.items()))
    print(f"{members} members; asked of the generator: {asked}", file=sys.stderr, flush=True)
    return results


async def join_through(through: str, via: str, server: OurHomeserver, room_id: str, members: int) -> Joined:
    """A user of a server joins a room by way of another server; done when `members` are told of."""
    user = await register(server, "joiner")
    pid, start = server.process.pid, peak_mb(server.process.pid)
    before, begun = server.process.processor_seconds(), time.perf_counter()
    await user.call("POST", f"/join/{quote(room_id)}?server_name={quote(via)}")
    answered = time.perf_counter() - begun
    await user.send(room_id)
    sent = time.perf_counter() - begun
    await asyncio.wait_for(whole(user, room_id, members), JOIN_PATIENCE)
    done = time.perf_counter() - begun
    used = server.process.processor_seconds() - before
    return Joined(members, through, answered, sent, done, start, peak_mb(pid), used)


async def whole(user: Account, room_id: str, members: int) -> None:
    """Wait until the server tells of so many members."""
    while True:
        try:
            told = (await user.call("GET", f"/rooms/{quote(room_id)}/members")).json()["chunk"]
        except RefusedError as error:
            if error.status < 500:
                raise
            told = []
        if len(told) == members:
            return
        await asyncio.sleep(0.25)


async def join_all(folder: Path, authority: Authority, sizes: Sequence[int], omits: bool) -> bool:
    """Join rooms of these sizes and print the table; whether memory stayed in its limit."""
    results = [result for members in sizes for result in await join(folder, authority, members, omits)]
    heads = ["members", "through", "join answered, s", "message sent, s", "members whole, s", "CPU s"]
    heads += ["MB before", "MB at most"]
    for line in (heads, ["---"] * len(heads), *(result.cells() for result in results)):
        print("| " + " | ".join(line) + " |")
    return all(result.peak_mb <= LIMIT_MB for result in results)


def main(arguments: Sequence[str]) -> int:
    """Run and report; 1 when a figure misses what is required."""
    parser = argparse.ArgumentParser(prog="python -m bench.federation", description=__doc__)
    parser.add_argument("--events", type=int, default=1000, help="events for each server and size of transaction")
    parser.add_argument("--join", type=int, action="append", metavar="N", help="join a room of N members instead")
    parser.add_argument("--full", action="store_true", help="the joined server does not know how to omit members")
    options = parser.parse_args(arguments)
    OurHomeserver.install()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        authority = Authority.make(folder)
        if options.join:
            good = asyncio.run(join_all(folder, authority, options.join, not options.full))
        else:
            SynapseHomeserver.installed()
            servers: list[Homeserver] = [
                stack.enter_context(OurHomeserver(folder / "ours", authority, "localhost")),
                stack.enter_context(QuietSynapse(folder / "synapse", authority, "localhost")),
            ]
            good = asyncio.run(compare(folder, authority, servers, options.events))
    print(f"load of the machine after: {os.getloadavg()[0]:.1f}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

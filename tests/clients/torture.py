"""A polylith under load while each kind of process, NATS and PostgreSQL are killed in turn, and what must hold.

Senders write numbered messages to rooms that users of another server are in too, couriers send to devices, watchers
sync on both servers.  Whoever is not answered repeats the request, with the transaction id it had.  Afterwards every
answered event is there once, in its sender's order; each watcher has seen each event once, in its server's order; the
other server has every event; each message to a device came once.  After each kill of a room process, every room
takes a new message within `ROOM_SECONDS`.

``python -m tests.clients.torture --kills 30 --seed 1`` is the whole of it.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bench.matrix import Account, each, register
from bench.polylith import COMPONENTS
from tests.clients.kill9 import (
    Courier,
    Ending,
    Load,
    Sender,
    Watcher,
    check_errands,
    check_history,
    expect,
    first_difference,
    history,
    insist,
)
from tests.interop.authority import Authority
from tests.interop.homeservers import OurHomeserver, PolylithHomeserver

ROOMS = 4
SENDERS = 6
COURIERS = 2
WATCHERS = 3
FAR_WATCHERS = 2
ROOM_SECONDS = 5.0
ENDING_SECONDS = 120.0
PAUSE_SECONDS = 0.1

KINDS = (*COMPONENTS, "nats", "postgresql")
PAUSED = tuple(f"paused {component}" for component in COMPONENTS)
PAUSES = 3.5, 8.0
"""Seconds for which a process stands still: longer than others wait for a sign of life."""


@dataclass
class Cast:
    """Who takes part, on the polylith and on the other server."""

    senders: list[Sender]
    couriers: list[Courier]
    watchers: list[Patient]
    far_senders: list[Sender]
    far_watchers: list[Patient]
    pulses: dict[str, Account]
    """For each room, who asks it after a kill whether it is there."""

    @property
    def rooms(self) -> list[str]:
        return list(self.pulses)


@dataclass
class Report:
    """What happened: how long rooms were away after kills of a room process, in seconds."""

    kills: list[str] = field(default_factory=list)
    room_gaps: list[float] = field(default_factory=list)
    messages: int = 0
    errands: int = 0
    complaints: list[str] = field(default_factory=list)
    """Faults that were logged, each once with how often."""

    def __str__(self) -> str:
        gaps = ", ".join(f"{gap:.1f}" for gap in self.room_gaps)
        return (
            f"{len(self.kills)} kills ({', '.join(self.kills)}); {self.messages} messages and {self.errands} errands, "
            f"each once; rooms were away for {gaps or 0} s at most; {len(self.complaints)} faults logged"
        )


@dataclass(slots=True)
class Patient(Watcher):
    """A watcher in rooms of several servers, where what came last need not follow what came before."""

    gaps: list[tuple[str, int, int]] = field(default_factory=list)
    """Of each gap that sync left: room, events before it, events in the answer."""

    async def _append(self, room: str, timeline: Any) -> None:
        events = [event["event_id"] for event in timeline["events"]]
        if timeline.get("limited"):
            self.gaps.append((room, len(self.events[room]), len(events)))
            events = await self._gap(room, timeline["prev_batch"], events) + events
        self.events[room].extend(events)

    async def _gap(self, room: str, before: str, told: Sequence[str]) -> list[str]:
        """Events that are not known nor among those just told, back to a page of nothing but known ones."""
        known, missed = {*self.events[room], *told}, list[str]()
        while True:
            path = f"/rooms/{quote(room)}/messages?dir=b&limit=100&from={quote(before)}"
            page = (await insist(partial(self.account.call, "GET", path))).json()
            new = [event["event_id"] for event in page["chunk"] if event["event_id"] not in known]
            missed += new
            if not new or "end" not in page:
                return missed[::-1]
            before = page["end"]


async def populate(polylith: PolylithHomeserver, peer: OurHomeserver) -> Cast:
    """Accounts on both servers, all in all rooms."""

    async def here(name: str) -> Account:
        return await register(polylith, name)

    async def there(name: str) -> Account:
        return await register(peer, name)

    owner = await here("owner")
    rooms = [await owner.create_room() for _ in range(ROOMS)]
    near = await each([f"sender{n}" for n in range(SENDERS)], here)
    readers = await each([f"watcher{n}" for n in range(WATCHERS)], here)
    carriers = await each([f"courier{n}" for n in range(COURIERS)], here)
    pulses = await each([f"pulse{n}" for n in range(ROOMS)], here)
    far_writers = await each([f"far{n}" for n in range(ROOMS)], there)
    far_readers = await each([f"farwatcher{n}" for n in range(FAR_WATCHERS)], there)
    for room in rooms:
        await each([*near, *readers, *pulses], partial(Account.join, room_id=room))
        for account in (*far_writers, *far_readers):
            path = f"/join/{quote(room)}?server_name={quote(polylith.server_name)}"
            await account.call("POST", path)
    watchers = [Patient(account, rooms) for account in readers]
    far_watchers = [Patient(account, rooms) for account in far_readers]
    for watcher in (*watchers, *far_watchers):
        await watcher.begin()
    return Cast(
        senders=[Sender(account, rooms[n % ROOMS]) for n, account in enumerate(near)],
        couriers=[Courier(account, [reader.user_id for reader in readers]) for account in carriers],
        watchers=watchers,
        far_senders=[Sender(account, rooms[n]) for n, account in enumerate(far_writers)],
        far_watchers=far_watchers,
        pulses=dict(zip(rooms, pulses, strict=True)),
    )


class Troubles:
    """Kills one thing after the other, and starts it again."""

    def __init__(self, polylith: PolylithHomeserver, cast: Cast, chance: random.Random, report: Report) -> None:
        self._polylith = polylith
        self._cast = cast
        self._chance = chance
        self._report = report
        self._began = time.monotonic()

    async def run(self, kinds: Sequence[str]) -> None:
        for number, kind in enumerate(kinds):
            await asyncio.sleep(self._chance.uniform(0.3, 1.0))
            print(f"torture: {time.monotonic() - self._began:5.1f} s: kill {number + 1}, {kind}", flush=True)
            self._report.kills.append(kind)
            if kind == "nats":
                await self._nats()
            elif kind == "postgresql":
                await self._postgresql()
            elif kind in PAUSED:
                await self._pause(kind.removeprefix("paused "))
            else:
                await self._member(kind, number)

    async def _member(self, component: str, number: int) -> None:
        member = self._chance.choice(self._polylith.of(component))
        member.kill()
        if component == "room-api":
            gap = await self._rooms_answer(number)
            self._report.room_gaps.append(gap)
            expect(gap <= ROOM_SECONDS, f"a room was away for {gap:.1f} s after a room-api was killed")
        else:
            await asyncio.sleep(self._chance.uniform(0.0, 2.0))
        await asyncio.to_thread(member.start)
        await asyncio.to_thread(member.wait)

    async def _pause(self, component: str) -> None:
        """Let a process stand still, and go on when others have taken over what it did."""
        member = self._chance.choice(self._polylith.of(component))
        member.process.pause()
        await asyncio.sleep(self._chance.uniform(*PAUSES))
        member.process.go_on()
        await asyncio.sleep(1.0)
        await asyncio.to_thread(member.wait)

    async def _rooms_answer(self, number: int) -> float:
        """Seconds until the last room has taken a message that was begun after now."""
        began = time.monotonic()

        async def pulse(room: str, account: Account) -> None:
            text = f"{account.user_id} pulse {number}"
            await insist(partial(account.send, room, text, f"pulse{number}"))

        async with asyncio.TaskGroup() as asking:
            for room, account in self._cast.pulses.items():
                asking.create_task(pulse(room, account))
        return time.monotonic() - began

    async def _nats(self) -> None:
        self._polylith.nats.kill()
        await asyncio.sleep(self._chance.uniform(0.0, 2.0))
        await asyncio.to_thread(self._polylith.nats.start)
        await self._all_healthy()

    async def _postgresql(self) -> None:
        self._polylith.store.kill()
        await asyncio.sleep(self._chance.uniform(0.0, 2.0))
        await asyncio.to_thread(self._polylith.store.start)
        await self._all_healthy()

    async def _all_healthy(self) -> None:
        for member in self._polylith.members:
            await asyncio.to_thread(member.wait)


async def story(polylith: PolylithHomeserver, peer: OurHomeserver, kinds: Sequence[str], seed: int) -> Report:
    """The whole of it on two started servers.  Raises :class:`AssertionError`."""
    report = Report()
    cast = await populate(polylith, peer)
    print("torture: everybody is in every room", flush=True)
    reader, far_reader = cast.senders[0].account, cast.far_senders[0].account
    before = {room: {event_id for event_id, _ in await history(reader, room)} for room in cast.rooms}
    load, ending, far_ending = Load(), Ending(cast.couriers), Ending(())
    watching: asyncio.TaskGroup
    async with asyncio.timeout(ENDING_SECONDS + 30 * len(kinds)), asyncio.TaskGroup() as watching:
        for watcher in cast.watchers:
            watching.create_task(watcher.run(ending.reached))
        for watcher in cast.far_watchers:
            watching.create_task(watcher.run(far_ending.reached))
        async with asyncio.TaskGroup() as writing:
            for sender in (*cast.senders, *cast.far_senders):
                writing.create_task(sender.run(load, PAUSE_SECONDS))
            for courier in cast.couriers:
                writing.create_task(courier.run(load, PAUSE_SECONDS))
            await Troubles(polylith, cast, random.Random(seed), report).run(kinds)
            load.going = False
        print("torture: all is up, and nobody writes any more", flush=True)
        await settled(cast, far_reader, ending, far_ending)
        print("torture: the other server has everything", flush=True)
    for watcher in (*cast.watchers, *cast.far_watchers):
        if watcher.gaps:
            print(f"torture: gaps of {watcher.account.user_id}: {watcher.gaps}", flush=True)
    await check(cast, before, far_reader)
    report.messages = sum(len(sender.answered) for sender in (*cast.senders, *cast.far_senders))
    report.errands = sum(len(courier.answered) for courier in cast.couriers)
    return report


async def settled(cast: Cast, far_reader: Account, ending: Ending, far_ending: Ending) -> None:
    """Wait until both servers have all that was answered, and then say the last word in each room."""
    said: dict[str, str] = {}
    for room, account in cast.pulses.items():
        for answered in (cast.senders, cast.far_senders):
            wanted = {event for sender in answered if sender.room == room for _, event in sender.answered}
            await known(account, room, wanted)
            await known(far_reader, room, wanted)
        said[room] = await insist(partial(account.send, room, "the end", "end"))
        await known(far_reader, room, {said[room]})
    ending.last = far_ending.last = said


async def known(account: Account, room: str, wanted: set[str]) -> None:
    """Return when the account's server has these events in the room's history."""
    deadline = time.monotonic() + ENDING_SECONDS
    while True:
        missing = wanted - {event_id for event_id, _ in await insist(partial(history, account, room))}
        if not missing:
            return
        expect(time.monotonic() < deadline, f"{account.user_id}: {len(missing)} of {len(wanted)} events never came")
        await asyncio.sleep(0.5)


async def check(cast: Cast, before: dict[str, set[str]], far_reader: Account) -> None:
    """What must hold at the end, on both sides."""
    senders = [*cast.senders, *cast.far_senders]
    for room in cast.rooms:
        events = await history(cast.senders[0].account, room)
        check_history(room, events, senders)
        check_seen(cast.watchers, room, events, before[room])
        far_events = await history(far_reader, room)
        check_history(room, far_events, senders)
        check_seen(cast.far_watchers, room, far_events, before[room])
    for watcher in cast.watchers:
        check_errands(watcher, cast.couriers, False)
    for courier in cast.couriers:
        await courier.check()


def check_seen(watchers: Sequence[Patient], room: str, events: Sequence[tuple[str, str]], before: set[str]) -> None:
    """All watchers of a server saw these events but those of before, in the same order, none twice, and each sender's
    in the sender's.

    That order is the one in which they came to the server; history, by which gaps of sync are filled, tells them as
    they follow each other in the room.
    """
    texts = dict(events)
    seamless = [watcher for watcher in watchers if not any(gap[0] == room for gap in watcher.gaps)]
    first = [event_id for event_id in seamless[0].events[room] if event_id not in before] if seamless else []
    for watcher in watchers:
        name = f"{watcher.account.user_id} in {room}"
        seen = [event_id for event_id in watcher.events[room] if event_id not in before]
        twice = len(seen) - len(set(seen))
        expect(not twice, f"{name}: {twice} events came twice")
        missing = sorted({*texts} - before - {*seen})
        expect(not missing, f"{name}: sync never told {[texts[event_id] for event_id in missing]}")
        unknown = {*seen} - {*texts}
        expect(not unknown, f"{name}: sync told what history has not: {unknown}")
        if watcher in seamless:
            difference = first_difference(seen, first)
            expect(difference is None, f"{name}: sync differs from that of {seamless[0].account.user_id} {difference}")
        numbers: dict[str, int] = {}
        for text in (texts[event] for event in seen):
            sender, _, number = text.partition(" m")
            if number:
                expect(int(number) == numbers.get(sender, -1) + 1, f"{name}: {text} comes after {numbers.get(sender)}")
                numbers[sender] = int(number)


def kinds_of(kills: int, chance: random.Random, kinds: Sequence[str] = KINDS) -> list[str]:
    """Each kind in turn, in rounds that are each in another order."""
    found: list[str] = []
    while len(found) < kills:
        found += chance.sample(kinds, len(kinds))
    return found[:kills]


def torture(
    folder: Path,
    kinds: Sequence[str],
    seed: int,
    each_component: int = 2,
    complain: Callable[[str], None] = print,
) -> Report:
    """Start both servers in `folder`, play, and stop them.  Raises :class:`AssertionError`.

    ``complain`` is given what was logged when something did not hold.
    """
    authority = Authority.make(folder)
    polylith = PolylithHomeserver(folder / "polylith", authority, "localhost", each=each_component)
    peer = OurHomeserver(folder / "peer", authority, "127.0.0.1")
    try:
        polylith.start()
        peer.start()
        report = asyncio.run(story(polylith, peer, kinds, seed))
        polylith.stop()
        report.complaints = summary(polylith.complaints(0))
        return report
    except BaseException:
        complain(f"--- the polylith\n{polylith.log_tail(120)}\n--- the peer\n{peer.log_tail(40)}")
        raise
    finally:
        peer.stop()
        polylith.stop()


def summary(lines: Sequence[str]) -> list[str]:
    """Log lines without their times, each once with how often it was there."""
    bare = Counter(re.sub(r'^time="[^"]*" ', "", line) for line in lines)
    return [f"{count} x {line}" for line, count in bare.most_common()]


def main(arguments: Sequence[str]) -> int:
    """Run it once; 1 when something did not hold."""
    parser = argparse.ArgumentParser(prog="python -m tests.clients.torture", description=__doc__)
    parser.add_argument("--kills", type=int, default=30, help="how many kills, each kind in turn")
    parser.add_argument("--seed", type=int, default=1, help="which process is killed, and when")
    parser.add_argument("--each", type=int, default=2, help="processes of each component")
    parser.add_argument("--pauses", action="store_true", help="let processes stand still, too")
    options = parser.parse_args(arguments)
    kinds = kinds_of(options.kills, random.Random(options.seed), KINDS + PAUSED * options.pauses)
    with tempfile.TemporaryDirectory(prefix="torture-") as folder:
        try:
            report = torture(Path(folder), kinds, options.seed, options.each)
            print("\n".join([*report.complaints, str(report)]))
        except Exception as error:
            traceback.print_exception(error)
            print(f"failed with seed {options.seed}")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

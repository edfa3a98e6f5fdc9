"""``kill -9`` under load, and what must hold afterwards.

Senders write messages, couriers write to-device messages, watchers sync. The process is killed at moments
that a seed decides and started again on the same folder; everybody repeats the request that was not
answered, with the transaction id it had, as clients do. Afterwards every answered write is there once, in
the order of its sender, and each watcher has seen each event and each to-device message once, in order.

``python -m tests.clients.kill9 --seeds 20`` runs twenty seeds; each is printed with its moments.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import sys
import tempfile
import traceback
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from bench.http import ConnectionLostError
from bench.matrix import Account, RefusedError, each, register
from bench.polylith import Polylith
from bench.servers import SERVERS, Ours, ServerUnderTest

SENDERS = 8
COURIERS = 2
WATCHERS = 4
ROOMS = 2
KILLS = 2
SOONEST, LATEST = 0.02, 0.8
PAUSE_SECONDS = 0.002
FILTER = '{"room":{"timeline":{"limit":200}},"presence":{"types":[]}}'
STORY_SECONDS = 50.0

Answer = TypeVar("Answer")


AWAY = (502, 503, 504)
"""What a server says, or a proxy before it, that cannot answer now."""


async def insist(ask: Callable[[], Awaitable[Answer]]) -> Answer:
    """The answer to a request, repeated as long as the server is away; what it refuses is raised."""
    while True:
        try:
            return await ask()
        except (ConnectionLostError, OSError):
            await asyncio.sleep(0.02)
        except RefusedError as error:
            if error.status not in AWAY:
                raise
            await asyncio.sleep(0.1)


@dataclass(slots=True)
class Load:
    """Whether to go on, for everybody who writes."""

    going: bool = True


@dataclass(slots=True)
class Sender:
    """Writes numbered messages to one room; ``answered`` has texts and event ids in order."""

    account: Account
    room: str
    answered: list[tuple[str, str]] = field(default_factory=list)

    async def run(self, load: Load, pause: float = PAUSE_SECONDS) -> None:
        """Send until the load ends; what was begun is brought to its answer."""
        for number in itertools.count():
            if not load.going:
                return
            transaction = f"m{number}"
            send = partial(self.account.send, self.room, f"{self.name} {transaction}", transaction)
            event_id = await insist(send)
            self.answered.append((f"{self.name} {transaction}", event_id))
            await asyncio.sleep(pause)

    @property
    def name(self) -> str:
        """What its messages begin with."""
        return self.account.user_id


@dataclass(slots=True)
class Courier:
    """Writes numbered to-device messages to all watchers, and the number to its account data."""

    account: Account
    addressees: Sequence[str]
    answered: list[str] = field(default_factory=list)

    async def run(self, load: Load, pause: float = PAUSE_SECONDS) -> None:
        """Send until the load ends; what was begun is brought to its answer."""
        for number in itertools.count():
            if not load.going:
                return
            text = f"{self.account.user_id} {number}"
            body = {"messages": {user: {"*": {"text": text}} for user in self.addressees}}
            path = f"/sendToDevice/org.example.errand/d{number}"
            await insist(partial(self.account.call, "PUT", path, body))
            self.answered.append(text)
            path = f"/user/{quote(self.account.user_id)}/account_data/org.example.last"
            await insist(partial(self.account.call, "PUT", path, {"text": text}))
            await asyncio.sleep(pause)

    async def check(self) -> None:
        """The account data is what was written last."""
        path = f"/user/{quote(self.account.user_id)}/account_data/org.example.last"
        kept = (await self.account.call("GET", path)).json()["text"]
        expect(kept == self.answered[-1], f"account data says {kept}, the last answered was {self.answered[-1]}")


@dataclass(slots=True)
class Watcher:
    """Syncs without end, and keeps the order in which its client would show things."""

    account: Account
    rooms: Sequence[str]
    events: dict[str, list[str]] = field(default_factory=dict)
    errands: list[str] = field(default_factory=list)

    async def begin(self) -> None:
        """The first sync; what happened before it does not count."""
        await self.account.catch_up()
        self.events = {room: [] for room in self.rooms}

    async def run(self, complete: Callable[[Watcher], bool]) -> None:
        """Sync until ``complete``; an unanswered sync is repeated from the same position."""
        while not complete(self):
            body = (await insist(self._sync)).json()
            for message in body.get("to_device", {}).get("events", ()):
                self.errands.append(message["content"]["text"])
            for room, update in body.get("rooms", {}).get("join", {}).items():
                await self._append(room, update["timeline"])
            self.account.since = body["next_batch"]

    async def _sync(self) -> Any:
        return await self.account.sync(wait_ms=3000, since=self.account.since, filter=FILTER)

    async def _append(self, room: str, timeline: Any) -> None:
        events = [event["event_id"] for event in timeline["events"]]
        if timeline.get("limited"):
            events = await self._gap(room, timeline["prev_batch"]) + events
        self.events[room].extend(events)

    async def _gap(self, room: str, before: str) -> list[str]:
        """Event ids between the last one known (or the position of the first sync) and ``before``."""
        query = f"dir=b&limit=100&to={quote(self.account.since)}"
        missed: list[str] = []
        known = set(self.events[room])
        while True:
            path = f"/rooms/{quote(room)}/messages?{query}&from={quote(before)}"
            page = (await insist(partial(self.account.call, "GET", path))).json()
            for event in page["chunk"]:
                if event["event_id"] in known:
                    return missed[::-1]
                missed.append(event["event_id"])
            if "end" not in page or not page["chunk"]:
                return missed[::-1]
            before = page["end"]


def expect(holds: bool, otherwise: str) -> None:
    """Raise an :class:`AssertionError` unless something holds."""
    if not holds:
        raise AssertionError(otherwise)


async def history(account: Account, room: str) -> list[tuple[str, str]]:
    """All events of a room, oldest first: event id and text."""
    events: list[tuple[str, str]] = []
    path = f"/rooms/{quote(room)}/messages?dir=f&limit=500"
    end = ""
    while True:
        page = (await account.call("GET", path + (f"&from={quote(end)}" if end else ""))).json()
        events += [(event["event_id"], event["content"].get("body", "")) for event in page["chunk"]]
        end = page.get("end", "")
        if not end or not page["chunk"]:
            return events


def check_history(room: str, events: Sequence[tuple[str, str]], senders: Sequence[Sender]) -> None:
    """Each sender's messages are there once, in order, under the ids that were answered."""
    for sender in senders:
        if sender.room == room:
            kept = [(text, event_id) for event_id, text in events if text.startswith(f"{sender.name} ")]
            difference = first_difference(kept, sender.answered)
            expect(difference is None, f"{room}, {sender.name}: history and answers differ {difference}")


def check_watcher(watcher: Watcher, room: str, events: Sequence[tuple[str, str]]) -> None:
    """The watcher saw these events: none skipped, none twice, none in another order."""
    seen = watcher.events[room]
    expected = [event_id for event_id, _ in events]
    difference = first_difference(seen, expected)
    tail = [text for _, text in events[-5:]]
    expect(difference is None, f"{watcher.account.user_id} in {room}: sync and history differ {difference}; {tail}")


def check_errands(watcher: Watcher, couriers: Sequence[Courier], repeats: bool) -> None:
    """Each to-device message arrived once (or, with ``repeats``, at least once), in its sender's order."""
    for courier in couriers:
        arrived = [text for text in watcher.errands if text.startswith(f"{courier.account.user_id} ")]
        if repeats:
            arrived = list(dict.fromkeys(arrived))
        difference = first_difference(arrived, courier.answered)
        expect(difference is None, f"{watcher.account.user_id}: to-device messages differ {difference}")


def first_difference(found: Sequence[object], expected: Sequence[object]) -> str | None:
    """Where two sequences part, or None."""
    for index, (one, other) in enumerate(itertools.zip_longest(found, expected)):
        if one != other:
            return f"at {index} of {len(found)} and {len(expected)}: {one!r} instead of {other!r}"
    return None


async def populate(server: ServerUnderTest) -> tuple[list[Sender], list[Courier], list[Watcher]]:
    """Accounts in rooms, and the watchers' first syncs."""

    async def account(name: str) -> Account:
        return await register(server, name)

    host = await account("host")
    rooms = [await host.create_room() for _ in range(ROOMS)]
    writers = await each([f"sender{n}" for n in range(SENDERS)], account)
    readers = await each([f"watcher{n}" for n in range(WATCHERS)], account)
    errand_boys = await each([f"courier{n}" for n in range(COURIERS)], account)
    senders = [Sender(user, rooms[n % ROOMS]) for n, user in enumerate(writers)]
    for sender in senders:
        await sender.account.join(sender.room)
    for reader in readers:
        for room in rooms:
            await reader.join(room)
    watchers = [Watcher(user, rooms) for user in readers]
    for watcher in watchers:
        await watcher.begin()
    return senders, [Courier(user, [r.user_id for r in readers]) for user in errand_boys], watchers


@dataclass(slots=True)
class Ending:
    """The last message of each room, once there is one, and what must have arrived beside it."""

    couriers: Sequence[Courier]
    last: dict[str, str] = field(default_factory=dict)

    def reached(self, watcher: Watcher) -> bool:
        """Whether a watcher has seen everything."""
        if not self.last or any(watcher.events[room][-1:] != [event] for room, event in self.last.items()):
            return False
        return all(courier.answered[-1] in watcher.errands for courier in self.couriers)


async def story(server: ServerUnderTest, seed: int, meanwhile: Callable[[], None] = lambda: None) -> str:
    """The whole of it on a started server; what was done, in a sentence. Raises :class:`AssertionError`.

    ``meanwhile`` is called between each kill and the start that follows it.
    """
    moments = [random.Random(seed * KILLS + kill).uniform(SOONEST, LATEST) for kill in range(KILLS)]
    print(f"kill9: seed {seed}, killed after {', '.join(f'{moment:.3f}' for moment in moments)} s of load")
    senders, couriers, watchers = await populate(server)
    reader = watchers[0].account
    before = {room: len(await history(reader, room)) for room in watchers[0].rooms}
    load, ending = Load(), Ending(couriers)
    async with asyncio.TaskGroup() as watching:
        for watcher in watchers:
            watching.create_task(watcher.run(ending.reached))
        async with asyncio.TaskGroup() as writing:
            for sender in senders:
                writing.create_task(sender.run(load))
            for courier in couriers:
                writing.create_task(courier.run(load))
            await kill_and_restart(server, moments, meanwhile)
            load.going = False
        ending.last = {
            sender.room: await sender.account.send(sender.room, "the end", "end") for sender in senders[:ROOMS]
        }
    for room in watchers[0].rooms:
        events = await history(reader, room)
        check_history(room, events, senders)
        for watcher in watchers:
            check_watcher(watcher, room, events[before[room] :])
    for watcher in watchers:
        check_errands(watcher, couriers, server.repeats_to_device)
    for courier in couriers:
        await courier.check()
    messages = sum(len(sender.answered) for sender in senders)
    return f"{messages} messages and {sum(len(courier.answered) for courier in couriers)} errands, each once"


async def kill_and_restart(server: ServerUnderTest, moments: Sequence[float], meanwhile: Callable[[], None]) -> None:
    """Kill the server after each of the moments of load, and leave it running."""
    for moment in moments:
        await asyncio.sleep(moment)
        server.kill()
        meanwhile()
        await asyncio.to_thread(server.start)
    await asyncio.sleep(SOONEST)


def main(arguments: Sequence[str]) -> int:
    """Run the seeds one after the other; 1 when one of them failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.clients.kill9", description=__doc__)
    parser.add_argument("--seeds", type=int, default=20, help="how many seeds")
    parser.add_argument("--first", type=int, default=1, help="the first seed")
    servers = SERVERS | {Polylith.name: Polylith}
    parser.add_argument("--server", choices=sorted(servers), default=Ours.name)
    options = parser.parse_args(arguments)
    failed = []
    for seed in range(options.first, options.first + options.seeds):
        with (
            tempfile.TemporaryDirectory(prefix="kill9-") as folder,
            servers[options.server](Path(folder) / "server") as server,
        ):
            try:
                print(asyncio.run(asyncio.wait_for(story(server, seed), STORY_SECONDS)), flush=True)
            except Exception as error:
                failed.append(seed)
                traceback.print_exception(error)
                print(server.log_tail())
    print(f"failed: {failed}" if failed else "all held")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

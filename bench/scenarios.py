"""The scenarios: each prepares its rooms and users on a server, then does its operation over and over.

A row of :data:`SCENARIOS` is one line of the report. ``prepare`` is not measured; what it returns is. Rooms
and users are never shared between scenarios, except those of the big room, which are too dear to make three
times.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from urllib.parse import quote

from bench.matrix import Account, each, register
from bench.servers import ServerUnderTest


@dataclass(frozen=True, slots=True)
class Scale:
    """How much of everything: ``seconds`` and ``operations`` end a run, whichever comes first."""

    seconds: float = 5.0
    operations: int = 4000
    rooms: int = 50
    big_room: int = 2000
    wakes: int = 15
    joiners: int = 20


QUICK = Scale(seconds=1.5, operations=600, rooms=20, big_room=200, wakes=4, joiners=8)


@dataclass(slots=True)
class Outcome:
    """What a run did: the seconds each operation took, and how many more had failed."""

    latencies: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(slots=True)
class Site:
    """A started server with what scenarios made on it."""

    server: ServerUnderTest
    scale: Scale
    idle: float = 0.0
    """Processor seconds that the server uses a second when nobody asks anything."""
    big_room: tuple[str, Sequence[Account]] | None = None
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    async def users(self, count: int) -> Sequence[Account]:
        """New accounts."""
        return await each([f"user{next(self._numbers)}" for _ in range(count)], self._register)

    async def user(self) -> Account:
        """A new account."""
        return (await self.users(1))[0]

    async def _register(self, localpart: str) -> Account:
        return await register(self.server, localpart)

    async def quiet(self, patience: float = 10.0) -> None:
        """Wait until the server has nothing left to do: 60 ms with under 2 ms of work beside what it does when idle."""
        deadline = time.monotonic() + patience
        before = self.server.processor_seconds()
        while time.monotonic() < deadline:
            await asyncio.sleep(0.06)
            now = self.server.processor_seconds()
            if now - before < 0.002 + 0.12 * self.idle:
                return
            before = now


Work = Callable[[], Awaitable[Outcome]]
Prepare = Callable[[Site], Awaitable[Work]]


@dataclass(frozen=True, slots=True)
class Scenario:
    """A line of the report: its name, what one operation is, and how it is prepared."""

    name: str
    operation: str
    prepare: Prepare


async def hammer(scale: Scale, workers: Sequence[Callable[[], Awaitable[object]]]) -> Outcome:
    """Each worker repeats its operation until time or count is up, or it raises ``StopAsyncIteration``."""
    outcome = Outcome()
    started = time.perf_counter()
    deadline = started + scale.seconds

    async def work(operation: Callable[[], Awaitable[object]]) -> None:
        while (before := time.perf_counter()) < deadline and len(outcome.latencies) < scale.operations:
            try:
                await operation()
            except StopAsyncIteration:
                return
            except Exception as error:
                outcome.failures.append(repr(error))
                return
            outcome.latencies.append(time.perf_counter() - before)

    await asyncio.gather(*(work(worker) for worker in workers))
    outcome.seconds = time.perf_counter() - started
    return outcome


def send_in_own_rooms(senders: int) -> Prepare:
    """``senders`` users, each in a room of their own, each waiting for the answer before the next message."""

    async def prepare(site: Site) -> Work:
        users = await site.users(senders)
        rooms = await each(users, Account.create_room)
        workers = [partial(user.send, room) for user, room in zip(users, rooms, strict=True)]
        return lambda: hammer(site.scale, workers)

    return prepare


async def send_in_one_room(site: Site) -> Work:
    """32 users who all talk at once in the same room."""
    users = await site.users(32)
    room = await users[0].create_room()
    await each(users[1:], lambda user: user.join(room), at_once=2)
    return lambda: hammer(site.scale, [partial(user.send, room) for user in users])


class Fanout:
    """Members of one room who long-poll; each message must reach all of them, and all of them poll again."""

    def __init__(self, site: Site, room: str, sender: Account, members: Sequence[Account]) -> None:
        self._site = site
        self._room = room
        self._sender = sender
        self._members = members
        self._expected = b""
        self._arrived = 0
        self._everyone = asyncio.Event()

    async def run(self) -> Outcome:
        """Wake everybody as often as the scale says; the latency is until the last member has the message."""
        outcome = Outcome()
        failures = outcome.failures
        polls = [asyncio.create_task(self._poll(member, failures)) for member in self._members]
        await self._site.quiet()
        try:
            for wake in range(self._site.scale.wakes):
                text = f"wake {wake} of many"
                self._expected, self._arrived = text.encode(), 0
                self._everyone.clear()
                before = time.perf_counter()
                await self._sender.send(self._room, text)
                await asyncio.wait_for(self._everyone.wait(), 60)
                outcome.latencies.append(time.perf_counter() - before)
                await self._site.quiet()
        except Exception as error:
            failures.append(repr(error))
        outcome.seconds = sum(outcome.latencies)
        for poll in polls:
            poll.cancel()
        await asyncio.gather(*polls, return_exceptions=True)
        return outcome

    async def _poll(self, member: Account, failures: list[str]) -> None:
        try:
            while True:
                response = await member.sync(wait_ms=30000, since=member.since)
                member.since = response.json()["next_batch"]
                if self._expected and self._expected in response.body:
                    self._arrived += 1
                    if self._arrived == len(self._members):
                        self._everyone.set()
        except Exception as error:
            failures.append(repr(error))
            self._everyone.set()


def fan_out(count: int) -> Prepare:
    """``count`` members who wait in ``/sync`` for what one more member sends."""

    async def prepare(site: Site) -> Work:
        sender, *members = await site.users(count + 1)
        room = await sender.create_room()
        await each(members, lambda member: member.join(room), at_once=2)
        await each(members, Account.catch_up)
        return Fanout(site, room, sender, members).run

    return prepare


async def user_in_rooms(site: Site) -> Account:
    """A user in many rooms, each with a second member and a conversation of ten messages."""
    reader, talker = await site.users(2)

    async def converse(_: int) -> None:
        room = await talker.create_room(name="A room with a name")
        await reader.join(room)
        for _ in range(5):
            await talker.send(room)
            await reader.send(room)

    await each(range(site.scale.rooms), converse, at_once=2)
    return reader


async def initial_sync(site: Site) -> Work:
    """The first ``/sync`` of a user in many rooms."""
    reader = await user_in_rooms(site)
    return lambda: hammer(site.scale, [reader.sync])


async def empty_sync(site: Site) -> Work:
    """``/sync`` with ``timeout=0`` of a user in many rooms when nothing has happened."""
    reader = await user_in_rooms(site)
    await reader.catch_up()
    await site.quiet()
    await reader.catch_up()
    return lambda: hammer(site.scale, [lambda: reader.sync(since=reader.since)])


async def messages(site: Site) -> Work:
    """A page of 100 events, from the newest backwards, in a room of 250 messages."""
    user = await site.user()
    room = await user.create_room()
    for _ in range(250):
        await user.send(room)
    path = f"/rooms/{quote(room)}/messages?dir=b&limit=100"
    return lambda: hammer(site.scale, [lambda: user.call("GET", path)])


async def join(site: Site) -> Work:
    """Users who join small public rooms, each room once."""
    host, *joiners = await site.users(1 + site.scale.joiners)
    rooms = await each(range(site.scale.joiners), lambda _: host.create_room(), at_once=2)
    pairs = iter([(user, room) for room in rooms for user in joiners])

    async def next_join() -> None:
        pair = next(pairs, None)
        if pair is None:
            raise StopAsyncIteration
        await pair[0].join(pair[1])

    return lambda: hammer(site.scale, [next_join])


async def create_room(site: Site) -> Work:
    """A private room with a name, as clients make them."""
    user = await site.user()
    options = {"preset": "private_chat", "name": "Plans", "topic": "What we will do"}
    return lambda: hammer(site.scale, [lambda: user.create_room(**options)])


async def big_room(site: Site) -> tuple[str, Sequence[Account]]:
    """The room of very many members, made at first use."""
    if site.big_room is None:
        host, *members = await site.users(site.scale.big_room)
        room = await host.create_room()
        await each(members, lambda member: member.join(room), at_once=2)
        site.big_room = room, [host, *members]
        await site.quiet()
    return site.big_room


async def big_room_send(site: Site) -> Work:
    """Messages of one member, nobody syncing."""
    room, members = await big_room(site)
    return lambda: hammer(site.scale, [lambda: members[1].send(room)])


async def big_room_join(site: Site) -> Work:
    """New members, one after the other."""
    room, _ = await big_room(site)
    newcomers = iter(await site.users(site.scale.joiners * 2))

    async def next_join() -> None:
        newcomer = next(newcomers, None)
        if newcomer is None:
            raise StopAsyncIteration
        await newcomer.join(room)

    return lambda: hammer(site.scale, [next_join])


async def big_room_initial_sync(site: Site) -> Work:
    """The first ``/sync`` of a member who is in no other room: the whole membership list."""
    _, members = await big_room(site)
    return lambda: hammer(site.scale, [members[2].sync])


SCENARIOS = (
    Scenario("send-1", "message, 1 sender", send_in_own_rooms(1)),
    Scenario("send-8", "message, 8 senders, 8 rooms", send_in_own_rooms(8)),
    Scenario("send-32", "message, 32 senders, 32 rooms", send_in_own_rooms(32)),
    Scenario("busy-room", "message, 32 senders, 1 room", send_in_one_room),
    Scenario("fanout-50", "message to 50 long polls, and their next polls", fan_out(50)),
    Scenario("fanout-200", "message to 200 long polls, and their next polls", fan_out(200)),
    Scenario("initial-sync", "initial sync, 50 rooms", initial_sync),
    Scenario("empty-sync", "incremental sync with nothing new, 50 rooms", empty_sync),
    Scenario("messages", "/messages, 100 events", messages),
    Scenario("join", "join of a small room", join),
    Scenario("create-room", "private room with name and topic", create_room),
    Scenario("big-send", "message in the room of 2,000", big_room_send),
    Scenario("big-join", "join of the room of 2,000", big_room_join),
    Scenario("big-initial-sync", "initial sync of a member of the room of 2,000", big_room_initial_sync),
)

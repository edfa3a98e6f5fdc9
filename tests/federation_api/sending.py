"""What the tests of the queues stand on: rooms that know what they are told, and servers that answer as they are told.

`Sending` is everything between a parcel and the requests that come of it, on a database that outlives it: `crash`
makes it anew, as a process that was killed is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from random import Random
from typing import Any

import orjson
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from dendrite_tw.database.migrate import migrate, steps_of
from dendrite_tw.federation_api.api import RemoteRefused, Unreachable
from dendrite_tw.federation_api.destinations import Destinations
from dendrite_tw.federation_api.post import Parcel, Post
from dendrite_tw.federation_api.queue import Numbers, OutgoingEdu, OutgoingEvent
from dendrite_tw.federation_api.senders import Senders
from dendrite_tw.room_api.api import Membership
from dendrite_tw.world import test_world
from tests.harness import empty_database

OWN = "here.test"


def names(count: int, prefix: str = "$") -> list[str]:
    return [f"{prefix}{number}" for number in range(count)]


class Rooms:
    """The part of `RoomAPI` that the senders ask; by default every event exists."""

    def __init__(self) -> None:
        self.servers: dict[str, list[str]] = {}
        self.of_users: dict[str, list[str]] = {}
        self.ends: dict[str, list[str]] = {}
        self.missing: set[str] = set()
        self.members: dict[str, set[str]] = {}

    async def pdus(self, event_ids: Iterable[str]) -> dict[str, bytes]:
        return {one: orjson.dumps({"id": one}) for one in event_ids if one not in self.missing}

    async def room_servers(self, room_id: str) -> list[str]:
        return self.servers.get(room_id, [])

    async def servers_of_user(self, user_id: str) -> list[str]:
        return self.of_users.get(user_id, [])

    async def memberships(self, user_id: str) -> list[Membership]:
        return [self._membership(room_id, user_id) for room_id, users in self.members.items() if user_id in users]

    async def local_memberships(self, room_id: str) -> list[Membership]:
        users = self.members.get(room_id, set())
        return [self._membership(room_id, user_id) for user_id in sorted(users) if user_id.endswith(f":{OWN}")]

    def _membership(self, room_id: str, user_id: str) -> Membership:
        return Membership(
            room_id=room_id, user_id=user_id, membership="join", event_id="$member", sender=user_id, position=1
        )

    async def newest_events(self, room_ids: Iterable[str]) -> dict[str, list[str]]:
        return {room_id: self.ends[room_id] for room_id in room_ids if room_id in self.ends}


class Sent:
    """A transaction as a server got it."""

    def __init__(self, server: str, txn_id: str, body: bytes) -> None:
        self.server = server
        self.txn_id = txn_id
        self.body = body
        content = orjson.loads(body)
        self.pdus: list[str] = [pdu["id"] for pdu in content["pdus"]]
        self.edus: list[dict[str, Any]] = content["edus"]
        self.ts: int = content["origin_server_ts"]
        self.answer: Deferred[RemoteRefused | None] = Deferred()


class World:
    """All other servers: each request is answered by ``answer``; `None` for an answer leaves it waiting."""

    def __init__(self) -> None:
        self.sent: list[Sent] = []
        self.down: set[str] = set()
        self.slow: set[str] = set()
        self.answer: Callable[[Sent], RemoteRefused | None] = lambda sent: None

    def to(self, server: str) -> list[Sent]:
        return [sent for sent in self.sent if sent.server == server]

    def events_to(self, server: str) -> list[str]:
        return [pdu for sent in self.to(server) for pdu in sent.pdus]

    def edus_to(self, server: str) -> list[dict[str, Any]]:
        return [edu for sent in self.to(server) for edu in sent.edus]


class SlowDatabase:
    """A database that takes its time: before each commit, and again until an answer arrives.

    `die` is the end of the process that uses it: what is not committed is lost, what is not answered never is.
    """

    def __init__(self, clock: Clock, chance: Random) -> None:
        self._database = empty_database()
        self._clock = clock
        self._chance = chance
        self._last = 0.0
        self._life = 0
        self.dialect = self._database.dialect
        self.prepare = self._database.prepare

    def write(self, function: Any, *args: Any) -> Deferred[Any]:
        answer: Deferred[Any] = Deferred()
        # One after the other, as one writer does.
        self._last = max(self._last, self._clock.seconds() + self._chance.uniform(0, 0.02))
        self._clock.callLater(self._last - self._clock.seconds(), self._commit, self._life, function, args, answer)
        return answer

    async def read(self, function: Any, *args: Any) -> Any:
        """What is read is what was there at some time between question and answer."""
        await self._moment()
        found = await self._database.read(function, *args)
        await self._moment()
        return found

    def _moment(self) -> Deferred[Any]:
        passed: Deferred[Any] = Deferred()
        self._answer(None, self._life, passed)
        return passed

    read_long = read

    def _commit(self, life: int, function: Any, args: Any, answer: Deferred[Any]) -> None:
        if life == self._life:
            self._database.write(function, *args).addBoth(self._answer, life, answer)

    def _answer(self, result: Any, life: int, answer: Deferred[Any]) -> None:
        def arrive() -> None:
            if life == self._life:
                answer.callback(result)

        self._clock.callLater(self._chance.uniform(0, 0.02), arrive)

    def die(self) -> None:
        self._life += 1


class Sending:
    """Queues, senders and their database."""

    def __init__(self, clock: Clock, max_retries: int = 3, database: Any = None, seed: int = 0, **options: Any) -> None:
        self.clock = clock
        self.database = database or empty_database()
        self.rooms = Rooms()
        self.world = World()
        self._options = options
        self._max_retries = max_retries
        self._seed = seed
        self.position = 0
        self.begin()

    def begin(self) -> None:
        """A process starts on the database."""
        self._seed += 1
        world = test_world(self.clock, self._seed)
        self.database.prepare(migrate, "federation_api", steps_of("dendrite_tw.federation_api"))
        self.destinations = Destinations(self.database, world.clock, self._max_retries)
        self.destinations.prepare()
        self.numbers = Numbers(world.clock, world.random)
        rooms: Any = self.rooms
        self.post = Post(self.database, rooms, self.destinations, self.numbers)
        self.post.prepare()
        self.senders = Senders(
            OWN,
            self.post,
            self.destinations,
            rooms,
            self.numbers,
            self._send_of(self),
            self.clock,
            world.clock,
            **self._options,
        )
        self.senders.start()

    def crash(self) -> None:
        """The process is killed, and another starts: nothing that was under way is heard of again."""
        if isinstance(self.database, SlowDatabase):
            self.database.die()
        # Nobody in the old process goes on because another was forgotten.
        self.post._lock.waiting.clear()
        self.senders._started = False
        for queue in self.post.queues.values():
            queue.cancel()
        self.clock.advance(0.01)
        self.begin()

    def _send_of(self, sending: Sending) -> Any:
        """Sends in the name of one process: of one that was killed nothing is sent any more, and nothing answered."""

        async def send(server: str, txn_id: str, body: bytes, seconds: float) -> RemoteRefused | None:
            senders, destinations = sending.senders, sending.destinations
            destinations.check(server)
            sent = Sent(server, txn_id, body)
            if server in self.world.down:
                await destinations.failed(server, "nobody is there")
                raise Unreachable("nobody is there")
            self.world.sent.append(sent)
            if server in self.world.slow:
                await sent.answer
                if senders is not sending.senders:
                    await Deferred()
            try:
                refusal = self.world.answer(sent)
            except Unreachable as error:
                await destinations.failed(server, error.reason)
                raise
            await destinations.reached(server)
            return refusal

        return send

    def put(self, parcel: Parcel) -> Deferred[None]:
        self.position += 1
        return Deferred.fromCoroutine(self.senders.put(parcel, "consumer", self.position))

    def event(self, event_id: str, servers: Iterable[str], room_id: str = "!r") -> None:
        """An event is to be sent."""
        self.events([event_id], servers, room_id)

    def events(self, event_ids: Iterable[str], servers: Iterable[str], room_id: str = "!r") -> None:
        parcel = Parcel()
        for number, event_id in enumerate(event_ids):
            position = (self.position + 1) * 10_000 + number
            parcel.add_event(OutgoingEvent(position, room_id, event_id, list(servers)))
        self.put(parcel)

    def edu(
        self,
        edu_type: str,
        content: Any,
        servers: Iterable[str],
        collapse_key: str = "",
        linger: float = 0.0,
    ) -> None:
        parcel = Parcel()
        parcel.add_edu(OutgoingEdu(edu_type, orjson.dumps(content), list(servers), collapse_key, linger))
        self.put(parcel)

    def count(self, name: str, server: str) -> int:
        """How many rows a table holds for a server."""
        rows = self.database.prepare(_count, name, server)
        return int(rows[0][0])

    def hear_of(self, server: str) -> None:
        Deferred.fromCoroutine(self.destinations.reached(server))

    def pass_time(self, seconds: float, step: float = 0.5) -> None:
        """Let time pass in steps, so that what a step causes has its own time."""
        while seconds > 0:
            self.clock.advance(min(step, seconds))
            seconds -= step


async def _count(txn: Any, name: str, server: str) -> Any:
    sql, _, _ = txn.dialect.translate(f"SELECT COUNT(*) FROM {name} WHERE destination = :server")
    return await txn.fetch(sql, [server])

"""What others tell this server, taken by several processes: each event is handed to its room, in its server's order.

A room may be given an event again (it knows it then), but none before those that came earlier.
"""

from __future__ import annotations

from random import Random
from typing import Any

import orjson
from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.database.engines import Unavailable
from dendrite_tw.federation_api import inbox
from dendrite_tw.federation_api.ephemeral import Ephemeral
from dendrite_tw.federation_api.inbox import DRAIN_SECONDS, SURVEY_SECONDS, Inbox
from dendrite_tw.federation_api.shares import share_of
from dendrite_tw.federation_api.transactions import TransactionRoutes
from dendrite_tw.matrix.errors import MatrixError
from dendrite_tw.world import test_world
from tests.fakes import FakeQueue
from tests.harness import ask

from .inbound_case import Keys, Users, event_of
from .several import EXPIRY, Deployment, Process

ROOMS = [f"!room{number}:alpha.test" for number in range(12)]
SERVERS = ["beta.test", "gamma.test", "delta.test"]


class Rooms:
    """The rooms of all processes: what each was given, and what it had not known."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self.known: dict[str, list[str]] = {room_id: [] for room_id in ROOMS}
        self.handed: list[tuple[str, str, list[str]]] = []
        self.away = False
        self.gate: Deferred[None] | None = None

    async def room_version(self, room_id: str) -> str | None:
        return "11" if room_id in self.known else None

    async def check_server(self, room_id: str, server: str) -> None:
        """Nobody is kept out."""

    async def receive(self, process: Process, origin: str, room_id: str, pdus: list[bytes]) -> dict[str, str]:
        await self._pass(process)
        if self.gate is not None:
            await self.gate
        bodies = [orjson.loads(pdu)["content"]["body"] for pdu in pdus]
        self.handed.append((process.name, room_id, bodies))
        self.known[room_id] += [body for body in bodies if body not in self.known[room_id]]
        await self._pass(process)
        if process.dead:
            await process.forever()
        return {}

    async def _pass(self, process: Process) -> None:
        if process.dead:
            await process.forever()
        if self.away:
            raise MatrixError(503, "M_UNKNOWN", "The room is between two processes.")
        passed: Deferred[None] = Deferred()
        self.deployment.clock.callLater(process.moment(), passed.callback, None)
        await passed


class RoomsSeen:
    """`RoomAPI` as one process has it."""

    def __init__(self, rooms: Rooms, process: Process) -> None:
        self.room_version = rooms.room_version
        self.check_server = rooms.check_server
        self._rooms, self._process = rooms, process

    async def receive(self, origin: str, room_id: str, pdus: list[bytes]) -> dict[str, str]:
        return await self._rooms.receive(self._process, origin, room_id, pdus)


class Taker(Process):
    """A process that takes transactions."""

    def __init__(self, deployment: TakingProcesses, name: str, seed: int) -> None:
        super().__init__(deployment, name)
        world = test_world(self.clock, seed)
        rooms: Any = RoomsSeen(deployment.rooms, self)
        users: Any = deployment.users
        keys: Any = deployment.keys
        self.inbox = Inbox(self.database, rooms, self.clock, world.clock, echoes=self.echoes, leases=self.leases)
        ephemeral = Ephemeral(rooms, users, keys, FakeQueue(), world.clock, True)
        self.routes = TransactionRoutes(self.database, rooms, self.inbox, ephemeral, self.clock, world.clock)
        Deferred.fromCoroutine(self.inbox.start()).addErrback(deployment.failures.append)

    def send(self, origin: str, txn_id: str, *events: Any, edus: Any = ()) -> Deferred[bytes]:
        body = {
            "origin": origin,
            "origin_server_ts": 1,
            "pdus": [event.pdu_dict() for event in events],
            "edus": list(edus),
        }

        async def sent() -> bytes:
            answer = await self.routes.send(origin, txn_id, orjson.dumps(body))
            if self.dead:
                await self.forever()
            return answer.body

        return Deferred.fromCoroutine(sent())


class TakingProcesses(Deployment):
    def __init__(self, clock: Clock, seed: int, count: int = 2, **options: Any) -> None:
        super().__init__(clock, seed, **options)
        self.rooms = Rooms(self)
        self.users, self.keys = Users(), Keys()
        self.started = 0
        for _ in range(count):
            self.begin()

    def begin(self) -> Taker:
        self.started += 1
        process = Taker(self, f"p{self.started}", self.chance.randint(0, 1 << 30))
        self.deal()
        return process

    def holder_of(self, room_id: str) -> Taker:
        holder = self.holders[f"i{share_of(room_id)}"]
        assert isinstance(holder, Taker)
        return holder

    def other_than(self, process: Process) -> Taker:
        other = next(one for one in self.living if one is not process)
        assert isinstance(other, Taker)
        return other

    def staged(self) -> int:
        ((count,),) = ask(self.database, "SELECT COUNT(*) FROM staged_pdus")
        return int(count)


class SeveralCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1_700_000_000)

    def deployment(self, seed: int = 0, count: int = 2, **options: Any) -> TakingProcesses:
        made = TakingProcesses(self.clock, seed, count, **options)
        made.pass_time(0.3)
        return made


class StoryTests(SeveralCase):
    def test_the_process_of_the_room_is_told(self) -> None:
        made = self.deployment()
        holder = made.holder_of(ROOMS[0])
        answer = made.other_than(holder).send("beta.test", "1", event_of(1, ROOMS[0]))
        made.pass_time(SURVEY_SECONDS / 2)
        self.assertIn(event_of(1, ROOMS[0]).event_id.encode(), self.successResultOf(answer))
        self.assertEqual(made.rooms.handed, [(holder.name, ROOMS[0], ["message 1"])])
        self.assertEqual(made.staged(), 0)

    def test_rooms_are_spread(self) -> None:
        made = self.deployment()
        self.assertEqual(len({made.holder_of(f"!r{number}:alpha.test") for number in range(50)}), 2)

    def test_the_same_transaction_at_two_processes_at_once(self) -> None:
        made = self.deployment()
        room_id = ROOMS[0]
        one, other = made.processes
        assert isinstance(one, Taker)
        assert isinstance(other, Taker)
        message = {"sender": "@bob:beta.test", "type": "m.x", "message_id": "1", "messages": {}}
        edus = [{"edu_type": "m.direct_to_device", "content": message}]
        answers = [process.send("beta.test", "1", event_of(1, room_id), edus=edus) for process in (one, other)]
        made.pass_time(1)
        self.assertEqual(self.successResultOf(answers[0]), self.successResultOf(answers[1]))
        self.assertEqual([bodies for _, _, bodies in made.rooms.handed], [["message 1"]])
        again = [process.send("beta.test", "1", event_of(2, room_id)) for process in (one, other)]
        made.pass_time(1)
        self.assertEqual(self.successResultOf(again[0]), self.successResultOf(again[1]))
        self.assertEqual(len(made.rooms.handed), 1)

    def test_two_servers_tell_of_one_room_at_two_processes(self) -> None:
        made = self.deployment()
        one, other = made.processes
        assert isinstance(one, Taker)
        assert isinstance(other, Taker)
        for number in range(20):
            one.send("beta.test", f"b{number}", event_of(number, ROOMS[1]))
            other.send("gamma.test", f"c{number}", event_of(100 + number, ROOMS[1], sender="@c:gamma.test"))
            made.pass_time(0.1)
        made.pass_time(2)
        known = made.rooms.known[ROOMS[1]]
        self.assertEqual(len(known), 40)
        for first in (0, 100):
            of_server = [f"message {first + number}" for number in range(20)]
            self.assertEqual([body for body in known if body in of_server], of_server)
        self.assertEqual(len({name for name, _, _ in made.rooms.handed}), 1)

    def test_what_a_killed_process_had_staged_goes_on_within_five_seconds(self) -> None:
        made = self.deployment()
        made.rooms.gate = Deferred()
        holder = made.holder_of(ROOMS[0])
        answers = [holder.send("beta.test", f"{number}", event_of(number, ROOMS[0])) for number in range(3)]
        made.pass_time(1)
        for answer in answers:
            self.successResultOf(answer)
        made.kill(holder)
        made.rooms.gate = None
        made.pass_time(5)
        self.assertEqual(made.rooms.known[ROOMS[0]], ["message 0", "message 1", "message 2"])
        self.assertNotIn(holder.name, [name for name, _, _ in made.rooms.handed])
        self.assertLess(EXPIRY, 5)

    def test_who_was_killed_before_it_told_is_not_missed_for_long(self) -> None:
        made = self.deployment()
        holder = made.holder_of(ROOMS[0])
        other = made.other_than(holder)
        other.echoes.tell = lambda topic, payload: None
        other.send("beta.test", "1", event_of(1, ROOMS[0]))
        made.pass_time(0.2)
        made.kill(other)
        made.pass_time(SURVEY_SECONDS + 0.2)
        self.assertEqual(made.rooms.known[ROOMS[0]], ["message 1"])

    def test_rooms_move_to_a_process_that_comes(self) -> None:
        made = self.deployment(count=1)
        (first,) = made.processes
        assert isinstance(first, Taker)
        made.rooms.gate = Deferred()
        for number, room_id in enumerate(ROOMS):
            first.send("beta.test", f"{number}", event_of(number, room_id))
            made.pass_time(0.1)
        made.pass_time(0.5)
        made.begin()
        made.pass_time(DRAIN_SECONDS / 2)
        self.assertEqual({made.holder_of(room_id) for room_id in ROOMS}, {first})
        gate, made.rooms.gate = made.rooms.gate, None
        gate.callback(None)
        made.pass_time(1)
        self.assertEqual(len({made.holder_of(room_id) for room_id in ROOMS}), 2)
        self.assertEqual({room_id: len(known) for room_id, known in made.rooms.known.items()}, dict.fromkeys(ROOMS, 1))
        for process in made.processes:
            assert isinstance(process, Taker)
            self.assertEqual((process.inbox.waiting, process.inbox._waiting), (0, {}))

    def test_a_room_that_takes_long_does_not_hold_up_a_move(self) -> None:
        made = self.deployment(count=1)
        (first,) = made.processes
        assert isinstance(first, Taker)
        made.rooms.gate = Deferred()
        for number, room_id in enumerate(ROOMS):
            first.send("beta.test", f"{number}", event_of(number, room_id))
            made.pass_time(0.1)
        made.pass_time(0.5)
        made.begin()
        made.rooms.gate = None
        made.pass_time(DRAIN_SECONDS + 0.5)
        moved = [room_id for room_id in ROOMS if made.holder_of(room_id) is not first]
        self.assertTrue(moved)
        for room_id in moved:
            self.assertEqual(len(made.rooms.known[room_id]), 1)

    def test_all_processes_together_take_no_more_of_one_server_than_one(self) -> None:
        self.patch(inbox, "WAITING_OF_SERVER", 4)
        made = self.deployment()
        made.rooms.away = True
        one, other = made.processes
        assert isinstance(one, Taker)
        assert isinstance(other, Taker)
        for number in range(4):
            one.send("beta.test", f"{number}", event_of(number, ROOMS[number]))
            made.pass_time(0.1)
        made.pass_time(2 * SURVEY_SECONDS)
        for process in (one, other):
            refused = process.send("beta.test", "x", event_of(9, ROOMS[0]))
            made.pass_time(0.2)
            self.failureResultOf(refused, MatrixError)
            process.send("gamma.test", f"of {process.name}", event_of(9, ROOMS[0], sender="@c:gamma.test"))
        made.rooms.away = False
        made.pass_time(10)
        taken = other.send("beta.test", "y", event_of(10, ROOMS[0]))
        made.pass_time(1)
        self.successResultOf(taken)
        self.assertEqual(made.staged(), 0)


class ChanceTests(SeveralCase):
    SEEDS = range(8)

    def test_whoever_is_killed_each_event_comes_and_in_order(self) -> None:
        for seed in self.SEEDS:
            self.run_with(seed)

    def run_with(self, seed: int) -> None:
        chance = Random(seed)
        made = self.deployment(seed, count=chance.choice([1, 2, 3]), slowest=chance.choice([0.002, 0.02, 0.1]))
        origins = [Origin(made, server, chance) for server in SERVERS]
        for _ in range(120):
            what = chance.random()
            if what < 0.5:
                chance.choice(origins).say()
            elif what < 0.56:
                made.kill(chance.choice(made.living))
                if not made.living or chance.random() < 0.5:
                    made.begin()
            elif what < 0.60:
                made.cut_off(chance.choice(made.living))
            elif what < 0.65 and len(made.living) < 5:
                made.begin()
            elif what < 0.68:
                chance.choice(made.living).echoes.lose(chance.uniform(0.1, 3))
            elif what < 0.72:
                made.rooms.away = not made.rooms.away
            else:
                made.pass_time(chance.choice([0.05, 0.2, 1, 4]), 0.05)
        made.rooms.away = False
        made.begin()
        for _ in range(200):
            made.pass_time(1, 0.1)
            if all(origin.done for origin in origins) and not made.staged():
                break
        self.assertEqual(made.staged(), 0, seed)
        self.assertEqual(made.failures, [], seed)
        for origin in origins:
            for room_id in ROOMS:
                known = [body for body in made.rooms.known[room_id] if body in origin.said[room_id]]
                self.assertEqual(known, origin.said[room_id], (seed, origin.name, room_id))
            self.assertEqual(origin.changed, [], seed)


class Origin:
    """Another server: sends one transaction after the other, to whatever process, until it is answered."""

    def __init__(self, deployment: TakingProcesses, name: str, chance: Random) -> None:
        self.name = name
        self.said: dict[str, list[str]] = {room_id: [] for room_id in ROOMS}
        self.changed: list[str] = []
        self._deployment = deployment
        self._chance = chance
        self._queue: list[list[Any]] = []
        self._number = 0
        self._sending = False

    @property
    def done(self) -> bool:
        return not (self._queue or self._sending)

    def say(self) -> None:
        events = []
        for _ in range(self._chance.choice([1, 1, 4])):
            self._number += 1
            number, room_id = SERVERS.index(self.name) * 10_000 + self._number, self._chance.choice(ROOMS)
            self.said[room_id].append(f"message {number}")
            events.append(event_of(number, room_id, sender=f"@u:{self.name}"))
        self._queue.append(events)
        self._go_on()

    def _go_on(self) -> None:
        if self._queue and not self._sending:
            self._sending = True
            Deferred.fromCoroutine(self._send(self._queue[0])).addErrback(self._deployment.failures.append)

    async def _send(self, events: list[Any]) -> None:
        txn_id, answers = str(len(self._queue) + 1_000 * self._number), set[bytes]()
        while True:
            living: list[Any] = self._deployment.living
            if living:
                answer = self._chance.choice(living).send(self.name, txn_id, *events)
                try:
                    answers.add(await answer.addTimeout(2.0, self._deployment.clock))
                    if self._chance.random() < 0.8:
                        break
                except (MatrixError, Unavailable, TimeoutError):
                    pass
            pause: Deferred[None] = Deferred()
            self._deployment.clock.callLater(0.3, pause.callback, None)
            await pause
        if len(answers) > 1:
            self.changed.append(f"{txn_id}: {answers}")
        del self._queue[0]
        self._sending = False
        self._go_on()

"""What this server tells others, by several processes: whoever is killed, they hear each thing once and in order."""

from __future__ import annotations

from random import Random
from typing import Any

import orjson
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.database.engines import Unavailable
from dendrite_tw.federation_api.api import RemoteRefused, Unreachable
from dendrite_tw.federation_api.destinations import Destinations
from dendrite_tw.federation_api.post import Parcel
from dendrite_tw.federation_api.queue import Moment, OutgoingEdu, OutgoingEvent
from dendrite_tw.federation_api.senders import Senders
from dendrite_tw.federation_api.shared_post import shared_post
from dendrite_tw.federation_api.shares import share_of
from dendrite_tw.federation_api.tables.queues import consumer_position
from dendrite_tw.world import test_world
from tests.harness import ask

from .sending import OWN, Rooms, Sent
from .several import Deployment, Process

EVENTS, MESSAGES = "events", "messages"
SERVERS = ["a.test", "b.test", "c.test", "d.test"]


class Peers:
    """All other servers; a transaction that is sent again must be what it was."""

    def __init__(self) -> None:
        self.sent: list[Sent] = []
        self.down: set[str] = set()
        self.slow: set[str] = set()
        self.names: dict[tuple[str, str], tuple[Any, Any]] = {}
        self.changed: list[str] = []
        self.events: dict[str, list[str]] = {server: [] for server in SERVERS}
        self.edus: dict[str, list[Any]] = {server: [] for server in SERVERS}
        self.typing: dict[str, list[Any]] = {server: [] for server in SERVERS}

    def take(self, sent: Sent) -> None:
        self.sent.append(sent)
        durable = [edu for edu in sent.edus if edu["edu_type"] != "m.typing"]
        what = (sent.pdus, durable)
        before = self.names.setdefault((sent.server, sent.txn_id), what)
        if before is not what:
            if before != what:
                self.changed.append(f"{sent.server} {sent.txn_id}: {before} {what}")
            return
        self.events[sent.server] += sent.pdus
        self.edus[sent.server] += [edu["content"] for edu in durable]
        self.typing[sent.server] += [edu["content"] for edu in sent.edus if edu["edu_type"] == "m.typing"]


class Stream:
    """What a consumer reads: parcels, each at its position."""

    def __init__(self) -> None:
        self.parcels: list[tuple[list[OutgoingEvent], list[OutgoingEdu]]] = []


class Sender(Process):
    """A process that reads and sends."""

    def __init__(self, deployment: SendingProcesses, name: str, seed: int) -> None:
        super().__init__(deployment, name)
        self.all = deployment
        world = test_world(self.clock, seed)
        self.destinations = Destinations(self.database, world.clock, 60, self.echoes)
        rooms: Any = deployment.rooms
        consumers = [EVENTS, MESSAGES]
        self.post = shared_post(self.database, rooms, self.destinations, world, self.echoes, consumers)
        self.senders = Senders(
            OWN,
            self.post,
            self.destinations,
            rooms,
            self.post.numbers,
            self._send,
            self.clock,
            world.clock,
            spread=self.post.spread,
        )
        self.reading: dict[str, Deferred[None]] = {}
        self.post.on_waiting = lambda lingers: deployment.watch(self.senders.arrived(lingers))
        self.post.spread.shares.lease(self.leases, self._more, self.senders.leave)
        self.leases.want(consumers, self._begin, self._end)
        self.senders.start()
        deployment.watch(self.destinations.load())

    async def _more(self) -> None:
        self.post.survey()

    async def _begin(self, stream: str) -> None:
        await self.post.begin(stream)
        life = self.reading[stream] = Deferred[None]()
        self.all.watch(self._read(stream, life))

    async def _end(self, stream: str, kept: bool) -> None:
        life = self.reading.pop(stream, None)
        if life is not None:
            await life

    async def _read(self, stream: str, life: Deferred[None]) -> None:
        """Put what is in a stream behind the stored position, again and again."""
        parcels = self.all.streams[stream].parcels
        position = None
        while self.reading.get(stream) is life and not self.dead:
            try:
                if position is None:
                    position = await self.database.read(consumer_position, stream) or 0
                if position < len(parcels):
                    parcel = Parcel()
                    upto = min(len(parcels), position + self.all.chance.choice([1, 1, 5]))
                    for events, edus in parcels[position:upto]:
                        for event in events:
                            parcel.add_event(event)
                        for edu in edus:
                            parcel.add_edu(edu)
                    await self.senders.put(parcel, stream, upto)
                    position = upto
                    continue
            except Unavailable:
                position = None
            await self._pause()
        life.callback(None)

    def _pause(self) -> Deferred[None]:
        pause: Deferred[None] = Deferred()
        self.clock.callLater(0.05, pause.callback, None)
        return pause

    async def _send(self, server: str, txn_id: str, body: bytes, seconds: float) -> RemoteRefused | None:
        if self.dead:
            await self.forever()
        self.destinations.check(server)
        peers, sent = self.all.peers, Sent(server, txn_id, body)
        if server in peers.down:
            await self.destinations.failed(server, "nobody is there")
            raise Unreachable("nobody is there")
        if server in peers.slow:
            await sent.answer
            if self.dead:
                await self.forever()
        peers.take(sent)
        if self.all.chance.random() < self.all.answers_lost:
            await self.destinations.failed(server, "the answer was lost")
            raise Unreachable("the answer was lost")
        await self.destinations.reached(server)
        return None


class SendingProcesses(Deployment):
    """All processes that send."""

    def __init__(self, clock: Clock, seed: int, count: int = 2, **options: Any) -> None:
        super().__init__(clock, seed, **options)
        self.rooms = Rooms()
        self.peers = Peers()
        self.streams = {EVENTS: Stream(), MESSAGES: Stream()}
        self.answers_lost = 0.0
        self.started = 0
        for _ in range(count):
            self.begin()

    def begin(self) -> Sender:
        self.started += 1
        process = Sender(self, f"p{self.started}", self.chance.randint(0, 1 << 30))
        self.deal()
        return process

    def watch(self, work: Any) -> None:
        Deferred.fromCoroutine(work).addErrback(self._unexpected)

    def _unexpected(self, failure: Any) -> None:
        if not failure.check(Unavailable):
            self.failures.append(failure)

    def say(self, event_ids: list[str], servers: list[str], room_id: str = "!r") -> None:
        parcels = self.streams[EVENTS].parcels
        events = [
            OutgoingEvent(len(parcels) * 1000 + number, room_id, event_id, servers)
            for number, event_id in enumerate(event_ids)
        ]
        parcels.append((events, []))

    def write_to(self, number: int, servers: list[str]) -> None:
        edu = OutgoingEdu("m.direct_to_device", orjson.dumps({"n": number}), servers)
        self.streams[MESSAGES].parcels.append(([], [edu]))

    def receipt(self, number: int, servers: list[str], linger: float = 0.5) -> None:
        edu = OutgoingEdu("m.receipt", orjson.dumps({"upto": number}), servers, "receipt !r @a", linger)
        self.streams[MESSAGES].parcels.append(([], [edu]))

    def sender_of(self, server: str) -> Sender:
        holder = self.holders[f"d{share_of(server)}"]
        assert isinstance(holder, Sender)
        return holder

    def rows(self) -> int:
        ((count,),) = ask(
            self.database,
            "SELECT (SELECT COUNT(*) FROM destination_events) + (SELECT COUNT(*) FROM destination_edus) "
            "+ (SELECT COUNT(*) FROM destination_rooms)",
        )
        return int(count)


class SeveralTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1_700_000_000)

    def deployment(self, seed: int = 0, count: int = 2, **options: Any) -> SendingProcesses:
        made = SendingProcesses(self.clock, seed, count, **options)
        made.pass_time(0.5)
        return made

    def check(self, made: SendingProcesses) -> None:
        self.assertEqual(made.failures, [])
        self.assertEqual(made.peers.changed, [])


class StoryTests(SeveralTestCase):
    def test_several_processes_send_and_each_to_its_servers(self) -> None:
        made = self.deployment()
        senders = {made.sender_of(f"s{number}.test") for number in range(40)}
        self.assertEqual(len(senders), 2)
        made.say(["$1"], SERVERS)
        made.pass_time(1)
        self.assertEqual(made.peers.events, {server: ["$1"] for server in SERVERS})
        self.assertEqual(made.rows(), 0)
        self.check(made)

    def test_what_came_while_a_transaction_was_under_way_goes_together(self) -> None:
        made = self.deployment()
        made.peers.slow.add("a.test")
        for number in range(120):
            made.say([f"${number}"], ["a.test"])
            made.pass_time(0.06)
        made.peers.slow.clear()
        self.wake(made)
        made.pass_time(3)
        self.assertEqual(made.peers.events["a.test"], [f"${number}" for number in range(120)])
        self.assertLessEqual(len(made.peers.sent), 5)
        self.check(made)

    def wake(self, made: SendingProcesses) -> None:
        """Let those answer who were slow."""
        for process in made.processes:
            for running in list(process.senders._running.values()) if isinstance(process, Sender) else ():
                waited: Any = running
                while getattr(waited, "_chainedTo", None) is not None:
                    waited = waited._chainedTo
                waited.callback(None)

    def test_receipts_that_wait_together_are_told_once(self) -> None:
        made = self.deployment()
        for number in range(6):
            made.receipt(number, ["a.test"])
            made.pass_time(0.06)
        made.pass_time(2)
        self.assertEqual(made.peers.edus["a.test"], [{"upto": 5}])
        self.assertEqual(made.rows(), 0)
        self.check(made)

    def test_a_killed_sender_is_followed_within_five_seconds_and_repeats_what_it_sent(self) -> None:
        made = self.deployment()
        made.answers_lost = 1.0
        made.say(["$1"], ["a.test"])
        made.pass_time(0.3)
        made.answers_lost = 0.0
        self.assertEqual(len(made.peers.sent), 1)
        made.kill(made.sender_of("a.test"))
        made.pass_time(0.2)
        made.say(["$2"], ["a.test"])
        made.pass_time(5)
        self.assertEqual(made.peers.events["a.test"], ["$1", "$2"])
        first, again, rest = made.peers.sent
        self.assertEqual((first.txn_id, first.body), (again.txn_id, again.body))
        self.assertNotEqual(rest.txn_id, first.txn_id)
        self.check(made)

    def test_a_killed_reader_told_nobody_what_it_stored(self) -> None:
        made = self.deployment()
        reader = made.holders[EVENTS]
        server = next(server for server in SERVERS if made.sender_of(server) is not reader)
        self.patch(reader.echoes, "tell", lambda topic, payload: None)
        made.say(["$1"], [server])
        made.pass_time(1)
        self.assertEqual(made.peers.events[server], [])
        made.kill(reader)
        made.pass_time(4.5)
        self.assertEqual(made.peers.events[server], ["$1"])
        self.check(made)

    def test_who_missed_something_looks(self) -> None:
        made = self.deployment()
        reader = made.holders[EVENTS]
        server = next(server for server in SERVERS if made.sender_of(server) is not reader)
        made.sender_of(server).echoes.lose(2.0)
        made.say(["$1"], [server])
        made.pass_time(1.5)
        self.assertEqual(made.peers.events[server], [])
        made.pass_time(1)
        self.assertEqual(made.peers.events[server], ["$1"])
        self.check(made)

    def test_shares_move_in_the_middle_of_sending(self) -> None:
        made = self.deployment(count=1)
        for number in range(200):
            made.say([f"${number}"], SERVERS)
            if number in (20, 60, 100):
                made.begin()
            made.pass_time(0.05)
        made.pass_time(5)
        self.assertEqual(len({made.sender_of(server) for server in SERVERS}) > 1, True)
        for server in SERVERS:
            self.assertEqual(made.peers.events[server], [f"${number}" for number in range(200)], server)
        self.check(made)

    def test_a_server_is_heard_of_at_another_process(self) -> None:
        made = self.deployment()
        made.peers.down.add("a.test")
        made.say(["$1"], ["a.test"])
        made.pass_time(60)
        made.peers.down.clear()
        holder = made.sender_of("a.test")
        other = next(process for process in made.processes if process is not holder)
        assert isinstance(other, Sender)
        self.assertGreater(other.destinations.failures("a.test"), 4)
        self.assertEqual(other.destinations.trouble("a.test"), holder.destinations.trouble("a.test"))
        made.watch(other.destinations.reached("a.test"))
        made.pass_time(0.5)
        self.assertEqual(made.peers.events["a.test"], ["$1"])
        self.assertEqual(holder.destinations.failures("a.test"), 0)
        made.peers.down.add("a.test")
        made.say(["$2"], ["a.test"])
        made.pass_time(60)
        made.peers.down.clear()
        made.watch(other.senders.retry("a.test"))
        made.pass_time(0.5)
        self.assertEqual(made.peers.events["a.test"], ["$1", "$2"])
        self.check(made)

    def test_what_is_of_the_moment_goes_by_whoever_sends(self) -> None:
        made = self.deployment()
        for number, process in enumerate(made.processes):
            assert isinstance(process, Sender)
            process.senders.add_moment(SERVERS, f"typing {number}", Moment("m.typing", b'{"n":%d}' % number))
        made.pass_time(1)
        for server in SERVERS:
            self.assertEqual(sorted(one["n"] for one in made.peers.typing[server]), [0, 1], server)
        self.check(made)

    def test_far_behind(self) -> None:
        made = self.deployment()
        self.patch_kept(20)
        made.rooms.ends = {"!r": ["$end"], "!x": ["$xend"]}
        made.rooms.servers = {"!r": [OWN, "a.test"], "!x": [OWN, "a.test"]}
        made.peers.down.add("a.test")
        for number in range(60):
            made.say([f"${number}"], ["a.test"], "!r" if number % 2 else "!x")
            made.pass_time(0.1)
        self.assertLess(made.rows(), 25)
        for process in made.processes:
            assert isinstance(process, Sender)
            self.assertEqual(process.post._behind, {"a.test"})
        made.peers.down.clear()
        made.watch(made.sender_of("a.test").destinations.reached("a.test"))
        made.pass_time(2)
        told = made.peers.events["a.test"]
        self.assertEqual(sorted(told[-2:]), ["$end", "$xend"])
        self.assertLess(len(told), 5)
        made.say(["$new"], ["a.test"])
        made.pass_time(1)
        self.assertEqual(made.peers.events["a.test"][-1], "$new")
        self.assertEqual(made.rows(), 0)
        self.check(made)

    def patch_kept(self, count: int) -> None:
        from dendrite_tw.federation_api import post, senders

        self.patch(post, "EVENTS_KEPT", count)
        self.patch(senders, "EVENTS_KEPT", count)

    def test_alone_again_all_that_waits_has_a_name(self) -> None:
        """A deployment of several processes becomes one process on the same database."""
        from .sending import Sending

        made = self.deployment()
        made.peers.down |= set(SERVERS)
        for number in range(5):
            made.say([f"${number}"], ["a.test"])
            made.write_to(number, ["a.test"])
            made.pass_time(0.3)
        for process in made.processes:
            made.kill(process)
        alone = Sending(self.clock, database=made.database)
        alone.hear_of("a.test")
        alone.event("$5", ["a.test"])
        alone.pass_time(30)
        self.assertEqual(alone.world.events_to("a.test"), [f"${number}" for number in range(6)])
        self.assertEqual([edu["content"]["n"] for edu in alone.world.edus_to("a.test")], list(range(5)))
        for sent in alone.world.sent:
            self.assertLess(abs(sent.ts / 1000 - self.clock.seconds()), 100)


class ChanceTests(SeveralTestCase):
    """Whatever happens to processes, a server gets every event and message, in order, each in one transaction."""

    SEEDS = range(6)

    def test_nothing_is_lost_or_out_of_order(self) -> None:
        for seed in self.SEEDS:
            self.run_with(seed)

    def run_with(self, seed: int) -> None:
        chance = Random(seed)
        made = self.deployment(seed, count=chance.choice([1, 2, 3]), slowest=chance.choice([0.002, 0.02, 0.1]))
        expected: dict[str, list[str]] = {server: [] for server in SERVERS}
        messages: dict[str, list[int]] = {server: [] for server in SERVERS}
        for number in range(150):
            what = chance.random()
            some = [server for server in SERVERS if chance.random() < 0.6]
            if what < 0.4:
                event_ids = [f"${number}-{one}" for one in range(chance.choice([1, 1, 2, 30]))]
                made.say(event_ids, some, chance.choice(["!x", "!y"]))
                for server in some:
                    expected[server] += event_ids
            elif what < 0.55:
                made.write_to(number, some)
                for server in some:
                    messages[server].append(number)
            elif what < 0.62:
                made.peers.down ^= {chance.choice(SERVERS)}
            elif what < 0.66:
                made.answers_lost = chance.choice([0.0, 0.3])
            elif what < 0.70:
                made.kill(chance.choice(made.living))
                if len(made.living) < 1 or chance.random() < 0.5:
                    made.begin()
            elif what < 0.74:
                made.cut_off(chance.choice(made.living))
            elif what < 0.77 and len(made.living) < 5:
                made.begin()
            elif what < 0.80:
                chance.choice(made.living).echoes.lose(chance.uniform(0.1, 3))
            elif what < 0.85:
                process = chance.choice(made.living)
                assert isinstance(process, Sender)
                made.watch(process.destinations.reached(chance.choice(SERVERS)))
            else:
                made.pass_time(chance.choice([0.1, 1, 5, 40]), 0.1)
        made.peers.down.clear()
        made.answers_lost = 0.0
        made.begin()
        made.pass_time(10, 0.1)
        for server in SERVERS:
            process = made.living[-1]
            assert isinstance(process, Sender)
            made.watch(process.senders.retry(server))
        made.pass_time(30, 0.1)
        for server in SERVERS:
            self.assertEqual(made.peers.events[server], expected[server], (seed, server))
            self.assertEqual([one["n"] for one in made.peers.edus[server]], messages[server], (seed, server))
        self.assertEqual(made.rows(), 0, seed)
        self.assertEqual((made.failures, made.peers.changed), ([], []), seed)

"""The queues of destinations under chance: whatever happens, nothing is lost, doubled or out of order."""

from __future__ import annotations

import random

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.federation_api import post
from dendrite_tw.federation_api.api import Unreachable
from dendrite_tw.federation_api.queue import Moment, OutgoingEvent
from dendrite_tw.federation_api.tables import queues

from .sending import Sending, Sent, SlowDatabase, names


class ChanceTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1_700_000_000)


class ChanceTests(ChanceTestCase):
    """Whatever happens, a server that comes back before it is given up gets every event, in order."""

    def test_nothing_is_lost_or_out_of_order(self) -> None:
        for seed in range(40):
            self.run_with(seed)

    def run_with(self, seed: int) -> None:
        chance = random.Random(seed)
        sending = Sending(self.clock, max_retries=60, seed=seed * 1000)
        world, servers = sending.world, ["a.test", "b.test", "c.test"]
        expected: dict[str, list[str]] = {server: [] for server in servers}
        messages: dict[str, list[int]] = {server: [] for server in servers}

        def answer(sent: Sent) -> None:
            if chance.random() < 0.2:
                raise Unreachable("the answer was lost")

        world.answer = answer
        for number in range(120):
            what = chance.random()
            some = [server for server in servers if chance.random() < 0.6]
            if what < 0.5:
                event_ids = names(chance.choice([1, 1, 2, 30]), f"${number}-")
                sending.events(event_ids, some, chance.choice(["!x", "!y"]))
                for server in some:
                    expected[server] += event_ids
            elif what < 0.65:
                sending.edu("m.direct_to_device", {"n": number}, some)
                for server in some:
                    messages[server].append(number)
            elif what < 0.72:
                world.down ^= {chance.choice(servers)}
            elif what < 0.8:
                world.slow ^= {chance.choice(servers)}
            elif what < 0.85:
                sending.crash()
            elif what < 0.9:
                sending.hear_of(chance.choice(servers))
            else:
                sending.pass_time(chance.choice([1, 5, 40]))
            for sent in world.sent:
                if not sent.answer.called and chance.random() < 0.3:
                    sent.answer.callback(None)
        world.down.clear()
        world.slow.clear()
        world.answer = lambda sent: None
        sending.crash()
        sending.pass_time(10)
        for server in servers:
            sending.hear_of(server)
        sending.pass_time(100)
        for server in servers:
            self.assertEqual(self.received(world.to(server)), (expected[server], messages[server]), (seed, server))
            self.assertEqual(sending.count("destination_events", server), 0, seed)

    def received(self, sent: list[Sent]) -> tuple[list[str], list[int]]:
        """What a server makes of the transactions it got: each once, and the same each time."""
        known: dict[str, bytes] = {}
        events: list[str] = []
        messages: list[int] = []
        for one in sent:
            if one.txn_id in known:
                self.assertEqual(known[one.txn_id], one.body)
                continue
            known[one.txn_id] = one.body
            events += one.pdus
            messages += [edu["content"]["n"] for edu in one.edus]
        return events, messages


class KilledTests(ChanceTestCase):
    """The same over a database that takes its time, with kills before and after commits, and a stream that repeats."""

    def test_nothing_is_lost_doubled_or_out_of_order(self) -> None:
        for seed in range(30):
            self.run_with(seed)

    def run_with(self, seed: int) -> None:
        chance = random.Random(seed)
        sending = Sending(self.clock, max_retries=60, seed=seed * 1000, database=SlowDatabase(self.clock, chance))
        servers = ["a.test", "b.test"]
        stream = [self.parcel(number, servers, chance) for number in range(1, 80)]
        sending.world.answer = lambda sent: self.lose(chance)
        rounds = 0
        while self.stored(sending) < len(stream):
            # What a consumer does: what comes after the stored position, one after the other.
            rounds += 1
            reading = Deferred.fromCoroutine(self.consume(sending, stream, self.stored(sending)))
            for _ in range(chance.randrange(10, 400)):
                self.clock.advance(chance.uniform(0, 0.005))
                for sent in sending.world.sent:
                    if not sent.answer.called and chance.random() < 0.1:
                        sent.answer.callback(None)
                if chance.random() < 0.1:
                    sending.world.slow ^= {chance.choice(servers)}
                if chance.random() < 0.1:
                    sending.hear_of(chance.choice(servers))
                if chance.random() < 0.5:
                    # This makes it look for what there is when there may be nothing.
                    sending.senders.add_moment(servers, "typing", Moment("m.typing", b"{}"))
            sending.crash()
            reading.addErrback(lambda failure: None)
        sending.world.answer = lambda sent: None
        sending.world.slow.clear()
        for sent in sending.world.sent:
            if not sent.answer.called:
                sent.answer.callback(None)
        for server in servers:
            sending.hear_of(server)
        sending.pass_time(20, 0.01)
        for server in servers:
            expected = [event.event_id for parcel in stream for event in parcel.events if server in event.servers]
            self.assertEqual(self.once(sending.world.to(server)), expected, (seed, server))
        self.assertGreater(rounds, 1)

    def parcel(self, position: int, servers: list[str], chance: random.Random) -> post.Parcel:
        parcel = post.Parcel()
        some = [server for server in servers if chance.random() < 0.7]
        for number in range(chance.choice([1, 1, 3, 40])):
            parcel.add_event(OutgoingEvent(position * 100 + number, "!r", f"${position}-{number}", some))
        return parcel

    def lose(self, chance: random.Random) -> None:
        if chance.random() < 0.1:
            raise Unreachable("the answer was lost")

    async def consume(self, sending: Sending, stream: list[post.Parcel], after: int) -> None:
        senders = sending.senders
        for position in range(after + 1, len(stream) + 1):
            await senders.put(stream[position - 1], "consumer", position)

    def stored(self, sending: Sending) -> int:
        return sending.database.prepare(queues.consumer_position, "consumer") or 0

    def once(self, sent: list[Sent]) -> list[str]:
        """The events of transactions that came for the first time, as a server takes them."""
        known: dict[str, list[str]] = {}
        events = []
        for one in sent:
            if known.setdefault(one.txn_id, one.pdus) is one.pdus:
                events += one.pdus
            self.assertEqual(known[one.txn_id], one.pdus)
        return events

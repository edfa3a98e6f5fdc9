"""One outbox, several processes that write to it: its relay publishes in order, wherever it is and whoever dies."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dendrite_tw.database.outbox import OutboxRow
from dendrite_tw.jetstream.client import QueueClient
from dendrite_tw.jetstream.messages import Message
from dendrite_tw.jetstream.shared_relay import BATCH_BYTES, SharedRelay
from tests.jetstream.support import Bench, DiskCase

STREAM, OTHER = "OutputRoomEvent", "OutputClientData"
DURABLES = {STREAM: ("Sync",)}


class SharedTable:
    """An outbox table, and what is on its way to whoever hears of commits."""

    name = "room"

    def __init__(self) -> None:
        self.rows: dict[int, OutboxRow] = {}
        self.reads = 0
        self.last = 0
        self.on_commit: Callable[[Any], None] = lambda rows: None

    def add(self, payload: bytes = b"", stream: str = STREAM) -> OutboxRow:
        self.last += 1
        row = self.rows[self.last] = OutboxRow(self.last, stream, "", b"{}", payload, self.last - 1)
        return row

    async def newest(self) -> int:
        return self.last

    async def read_after(self, after: int, count: int, upto: int | None = None) -> list[OutboxRow]:
        self.reads += 1
        rows = sorted(self.rows.items())
        return [row for number, row in rows if number > after and (upto is None or number <= upto)][:count]

    async def delete_upto(self, upto: int) -> None:
        for number in [number for number in self.rows if number <= upto and number < self.last]:
            del self.rows[number]


class Air:
    """Carries echoes between the relays of a test."""

    def __init__(self) -> None:
        self.hearers: list[tuple[object, str, Callable[[bytes], None]]] = []


class AirEchoes:
    hearing = True

    def __init__(self, air: Air) -> None:
        self._air = air

    def tell(self, topic: str, payload: bytes) -> None:
        for echoes, of, call in self._air.hearers:
            if echoes is not self and of == topic:
                call(payload)

    def hear(self, topic: str, call: Callable[[bytes], None]) -> None:
        self._air.hearers.append((self, topic, call))

    def on_missed(self, call: Callable[[], None]) -> None:
        """Nothing is missed here."""


class SharedRelayTests(DiskCase):
    def setUp(self) -> None:
        super().setUp()
        self.bench = Bench(Path(self.mktemp()))
        self.table = SharedTable()
        self.air = Air()
        self.relays = [self.relay() for _ in range(3)]
        self.holder = self.relays[0]
        self.heard: list[tuple[int, int, bytes]] = []
        for stream in (STREAM, OTHER):
            self.bench.client.listen(stream, self.hear)
        self.consumer = self.bench.client.consume(STREAM, "Sync", self.consume)
        self.consumed = 0
        self.gain(self.holder)

    def relay(self, client: QueueClient | None = None) -> SharedRelay:
        return SharedRelay(self.table, client or self.bench.client, AirEchoes(self.air), self.bench.clock, DURABLES)

    def gain(self, relay: SharedRelay) -> None:
        self.holder = relay
        self.bench.result(relay.gained("relay"))
        self.bench.settle()

    def lose(self, kept: bool = True) -> None:
        self.bench.result(self.holder.lost("relay", kept))

    def hear(self, message: Message) -> None:
        self.heard.append((int(message.headers["Outbox-Id"]), int(message.headers["Outbox-Previous"]), message.payload))

    async def consume(self, messages: list[Message]) -> None:
        self.consumed = max(self.consumed, *(int(message.headers["Outbox-Id"]) for message in messages))

    def ids(self) -> list[int]:
        return [number for number, _, _ in self.heard]

    def assert_in_order(self, upto: int) -> None:
        self.assertEqual(self.ids(), list(range(1, upto + 1)))
        self.assertEqual([previous for _, previous, _ in self.heard], list(range(upto)))

    def test_rows_of_all_processes_in_order_and_without_a_read(self) -> None:
        for stream in (STREAM, OTHER):
            self.holder.committed([self.table.add(b"first", stream)])
            self.bench.settle()
        reads = self.table.reads
        for number in range(30):
            rows = [self.table.add(b"%d" % number, STREAM if number % 3 else OTHER) for _ in range(4)]
            self.relays[2].committed([rows[3]])
            self.relays[1].committed([rows[1]])
            self.relays[0].committed([rows[0]])
            self.relays[1].committed([rows[2]])
            self.bench.settle()
        self.assert_in_order(122)
        self.assertEqual(self.table.reads, reads)

    def test_a_row_that_is_not_told_of_is_waited_for_and_then_read(self) -> None:
        lost, later = self.table.add(b"lost"), self.table.add(b"later")
        self.relays[1].committed([later])
        self.bench.advance(0.4, 0.1)
        self.assertEqual(self.ids(), [])
        self.bench.advance(0.3, 0.1)
        self.assertEqual(self.heard, [(lost.id, 0, b"lost"), (later.id, lost.id, b"later")])

    def test_a_tail_that_nobody_tells_of_is_found(self) -> None:
        self.table.add(b"a")
        self.table.add(b"b")
        self.bench.advance(2.2, 0.1)
        self.assert_in_order(2)
        row = self.table.add(b"c")
        self.relays[2].committed([row])
        self.bench.settle()
        self.assert_in_order(3)

    def test_a_row_that_is_too_large_for_a_message_is_read(self) -> None:
        rows = [self.table.add(b"a"), self.table.add(b"x" * (BATCH_BYTES + 1)), self.table.add(b"c")]
        self.relays[1].committed(rows)
        self.bench.settle()
        self.assert_in_order(3)
        self.assertEqual(len(self.heard[1][2]), BATCH_BYTES + 1)

    def test_the_relay_moves_while_rows_come(self) -> None:
        chance = random.Random(5)
        for number in range(200):
            row = self.table.add(b"%d" % number, chance.choice([STREAM, OTHER]))
            if chance.random() < 0.9:
                chance.choice(self.relays).committed([row])
            if chance.random() < 0.1:
                self.lose(chance.random() < 0.5)
                self.gain(chance.choice(self.relays))
            if chance.random() < 0.5:
                self.bench.advance(chance.choice([0.0, 0.05, 0.7]), 0.05)
        self.bench.advance(4, 0.1)
        self.assertEqual(list(dict.fromkeys(self.ids())), list(range(1, 201)))
        # What comes a second time was published by both, under the same message id.
        self.assertEqual(len(self.ids()), 200)

    def test_two_that_think_they_have_the_relay_publish_nothing_twice(self) -> None:
        stale = self.holder
        self.gain(self.relays[1])
        for number in range(40):
            row = self.table.add(b"%d" % number)
            stale.committed([row])
            self.relays[1].committed([row])
            self.bench.advance(0.1, 0.05)
        self.bench.advance(3, 0.1)
        self.assert_in_order(40)

    def test_positions_of_consumers_reach_whoever_has_the_relay(self) -> None:
        for _ in range(10):
            self.holder.committed([self.table.add()])
        self.bench.settle()
        self.bench.advance(2)
        self.assertEqual(len(self.table.rows), 10)
        self.relays[2].positions.tell("Sync", 7)
        self.bench.advance(2)
        self.assertEqual(sorted(self.table.rows), [8, 9, 10])
        self.lose()
        self.gain(self.relays[1])
        self.relays[2].positions.tell("Sync", 9)
        self.bench.advance(2)
        self.assertEqual(sorted(self.table.rows), [10])

    def test_who_comes_later_hears_the_positions_again(self) -> None:
        self.relays[2].positions.tell("Sync", 5)
        late = self.relay()
        for _ in range(8):
            self.holder.committed([self.table.add()])
        self.bench.settle()
        self.lose(kept=False)
        self.bench.advance(11)
        self.gain(late)
        self.bench.advance(2)
        self.assertEqual(sorted(self.table.rows), [6, 7, 8])

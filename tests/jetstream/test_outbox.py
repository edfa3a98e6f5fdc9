"""The outbox relay: in order, nothing lost, whatever happens to the queue; rows go when all have consumed
them.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred

from dendrite_tw.database.engines import Unavailable
from dendrite_tw.jetstream.errors import ApiError
from dendrite_tw.jetstream.messages import Message
from dendrite_tw.jetstream.outbox import OutboxRelay, OutboxRow
from dendrite_tw.jetstream.worker import Worker
from tests.jetstream.support import Bench, DiskCase


class Table:
    """An ``outbox`` table."""

    def __init__(self) -> None:
        self.rows: dict[int, OutboxRow] = {}
        self.reads = 0
        self.failing = False
        self.away = False
        self._last = 0

    def add(self, stream: str, payload: bytes = b"", suffix: str = "", headers: bytes = b"") -> OutboxRow:
        self._last += 1
        row = self.rows[self._last] = OutboxRow(self._last, stream, suffix, headers, payload)
        return row

    async def read_after(self, after: int, limit: int) -> list[OutboxRow]:
        self.reads += 1
        if self.away:
            raise Unavailable("it is away")
        if self.failing:
            raise OSError("the database is away")
        return [row for number, row in sorted(self.rows.items()) if number > after][:limit]

    async def delete_upto(self, upto: int) -> None:
        if self.away:
            raise Unavailable("it is away")
        for number in [number for number in self.rows if number <= upto]:
            del self.rows[number]


class Consumer:
    """A component that stores its position with its effects, and passes over what it has seen."""

    def __init__(self, name: str, relay: OutboxRelay | None = None) -> None:
        self.name = name
        self.position = 0
        self.effects: list[bytes] = []
        self.relay = relay

    async def __call__(self, messages: list[Message]) -> None:
        for message in messages:
            number = int(message.headers["Outbox-Id"])
            if number > self.position:
                self.effects.append(message.payload)
                self.position = number
        if self.relay is not None:
            self.relay.consumed(self.name, self.position)


STREAM = "OutputRoomEvent"


class OutboxTests(DiskCase):
    def setUp(self) -> None:
        super().setUp()
        self.folder = Path(self.mktemp())
        self.table = Table()
        self.bench = Bench(self.folder)
        self.consumers = {name: Consumer(name) for name in ("Sync", "Federation")}
        self.workers: dict[str, Worker] = {}
        self.begin()

    def begin(self) -> None:
        """Start relay and consumers as a component does."""
        self.relay = OutboxRelay(
            "room",
            self.table.read_after,
            self.table.delete_upto,
            self.bench.client,
            self.bench.clock,
            {STREAM: tuple(self.consumers)},
        )
        for consumer in self.consumers.values():
            self.relay.consumed(consumer.name, consumer.position)
            consumer.relay = self.relay
            self.workers[consumer.name] = self.bench.client.consume(STREAM, consumer.name, consumer)
        self.bench.result(self.relay.start())

    def restart(self, *, crash: bool = True, wipe: bool = False) -> None:
        self.relay.stop()
        if crash:
            self.bench.crash()
        else:
            self.bench.stop()
        if wipe:
            shutil.rmtree(self.folder)
        self.bench = Bench(self.folder, clock=self.bench.clock)
        self.begin()
        self.bench.settle()

    def effects(self) -> list[list[bytes]]:
        return [consumer.effects for consumer in self.consumers.values()]

    def test_offered_rows_are_not_read_back(self) -> None:
        self.relay.offer([self.table.add(STREAM, b"0")])
        self.bench.settle()
        reads = self.table.reads
        for number in range(1, 50):
            self.relay.offer([self.table.add(STREAM, b"%d" % number)])
        self.bench.settle()
        self.assertEqual(self.table.reads, reads)
        self.assertEqual(self.effects(), [[b"%d" % n for n in range(50)]] * 2)

    def test_rows_that_were_read_before_they_are_offered(self) -> None:
        """A read sees a commit that is offered a moment later; nothing goes twice, or out of order between streams."""
        heard: list[int] = []
        for stream in (STREAM, "OutputClientData"):
            self.bench.client.listen(stream, lambda message: heard.append(int(message.headers["Outbox-Id"])))
        self.bench.settle()
        published: list[str] = []
        send = self.bench.client.send

        def note(*arguments: Any, **options: Any) -> Any:
            published.append(options["msg_id"])
            return send(*arguments, **options)

        self.patch(self.bench.client, "send", note)
        self.relay.offer([self.table.add(STREAM)])
        self.bench.settle()
        for _ in range(20):
            rows = [self.table.add(STREAM) for _ in range(4)] + [self.table.add("OutputClientData")]
            self.relay.notify(rows[0].id)
            for row in rows:
                self.relay.offer([row])
            self.bench.settle()
        self.assertEqual(heard, list(range(1, 102)))
        self.assertEqual(published, [f"room:{number}" for number in heard])

    def test_each_row_names_the_one_before(self) -> None:
        """Across streams, read or offered, and again after a failure."""
        heard: dict[int, int] = {}

        def hear(message: Message) -> None:
            heard[int(message.headers["Outbox-Id"])] = int(message.headers["Outbox-Previous"])

        for stream in (STREAM, "OutputClientData"):
            self.bench.client.listen(stream, hear)
        self.bench.settle()
        rows = [self.table.add(STREAM if n % 3 else "OutputClientData") for n in range(30)]
        self.relay.notify(rows[9].id)
        self.bench.settle()
        for number in range(40):
            self.relay.offer([self.table.add(STREAM if number % 2 else "OutputClientData")])
        self.bench.advance(1)
        numbers = sorted(heard)
        self.assertEqual(heard, dict(zip(numbers, [0, *numbers], strict=False)))

    def test_notified_rows_are_read(self) -> None:
        rows = [self.table.add(STREAM, b"%d" % n, "r", b'{"room_id":"!x"}') for n in range(700)]
        self.relay.notify(rows[-1].id)
        self.bench.advance(1)
        self.assertEqual(self.effects(), [[b"%d" % n for n in range(700)]] * 2)

    def test_message_carries_id_and_headers(self) -> None:
        seen: list[Message] = []
        self.bench.client.listen(STREAM, seen.append)
        self.bench.settle()
        self.relay.offer([self.table.add(STREAM, b"x", "r", b'{"room_id":"!x"}')])
        self.bench.settle()
        [message] = seen
        self.assertEqual(message.subject, "DendriteOutputRoomEvent.r")
        wanted = {"room_id": "!x", "Outbox-Id": "1", "Nats-Msg-Id": "room:1"}
        self.assertEqual({key: message.headers[key] for key in wanted}, wanted)

    def test_rows_go_when_all_have_consumed(self) -> None:
        gate: Deferred[None] = Deferred()
        slow = self.consumers["Federation"]
        original = slow.__class__.__call__

        async def wait(self_: Consumer, messages: list[Message]) -> None:
            if self_ is slow:
                await gate
            await original(self_, messages)

        self.patch(Consumer, "__call__", wait)
        for number in range(10):
            self.relay.offer([self.table.add(STREAM, b"%d" % number)])
        self.bench.advance(5)
        self.assertEqual(len(self.table.rows), 10)
        gate.callback(None)
        self.bench.advance(3)
        self.assertEqual(self.table.rows, {})

    def test_a_database_that_is_away_is_waited_for_without_a_fuss(self) -> None:
        self.relay.offer([self.table.add(STREAM, b"0")])
        self.bench.settle()
        self.table.away = True
        self.relay.notify(self.table.add(STREAM, b"1").id)
        self.bench.advance(5)
        self.assertEqual((len(self.table.rows), self.effects()), (2, [[b"0"]] * 2))
        self.table.away = False
        self.bench.advance(15)
        self.assertEqual((self.table.rows, self.effects()), ({}, [[b"0", b"1"]] * 2))

    def test_rows_of_streams_without_durables_go_when_published(self) -> None:
        self.relay.offer([self.table.add("OutputClientData", b"x")])
        self.bench.advance(3)
        self.assertEqual(self.table.rows, {})

    def test_quiet_stream_does_not_hold_back_the_others(self) -> None:
        self.relay.offer([self.table.add(STREAM, b"x")])
        self.bench.settle()
        for _ in range(20):
            self.relay.offer([self.table.add("OutputClientData", b"y")])
        self.bench.advance(3)
        self.assertEqual(self.table.rows, {})

    def test_lost_queue_is_filled_again(self) -> None:
        for number in range(30):
            self.relay.offer([self.table.add(STREAM, b"%d" % number)])
        # The queue is lost before anybody has consumed.
        self.restart(wipe=True)
        self.bench.advance(2)
        self.assertEqual(self.effects(), [[b"%d" % n for n in range(30)]] * 2)

    def test_rows_committed_while_the_queue_was_away(self) -> None:
        self.relay.stop()
        for number in range(5):
            self.table.add(STREAM, b"%d" % number)
        self.restart(crash=False)
        self.assertEqual(self.effects(), [[b"%d" % n for n in range(5)]] * 2)

    def test_what_the_queue_holds_is_not_published_again(self) -> None:
        self.bench.result(self.workers["Sync"].stop())
        for number in range(5):
            self.relay.offer([self.table.add(STREAM, b"%d" % number)])
        self.bench.settle()
        self.restart()
        self.assertEqual(self.effects(), [[b"%d" % n for n in range(5)]] * 2)
        info = self.bench.result(self.bench.client.stream_info(STREAM))
        self.assertEqual(info["state"]["last_seq"], 5)

    def test_no_row_overtakes_a_refused_one(self) -> None:
        self.relay.offer([self.table.add(STREAM, b"first")])
        self.bench.settle()
        hosted = self.bench.queue.engine.streams[f"Dendrite{STREAM}"]
        original = hosted._check_disk
        calls: list[int] = []

        def refuse_once(files: Any) -> None:
            calls.append(1)
            if len(calls) == 3:
                raise ApiError(503, 10077, "no")
            original(files)

        hosted._check_disk = refuse_once  # type: ignore[method-assign]
        self.relay.offer([self.table.add(STREAM, b"%d" % number) for number in range(10)])
        self.bench.advance(5)
        self.assertEqual(self.effects(), [[b"first", *(b"%d" % n for n in range(10))]] * 2)
        self.bench.advance(3)
        self.assertEqual(self.table.rows, {})

    def test_other_publishers_only_cause_another_attempt(self) -> None:
        for number in range(5):
            self.relay.offer([self.table.add(STREAM, b"%d" % number)])
            self.bench.client.send(STREAM, b"other", headers={"Outbox-Id": "0"})
            self.bench.advance(1)
        self.assertEqual(self.effects(), [[b"%d" % n for n in range(5)]] * 2)

    def test_database_away(self) -> None:
        self.table.failing = True
        self.table.add(STREAM, b"x")
        self.relay.notify(1)
        self.bench.advance(1)
        self.assertGreater(len(self.flushLoggedErrors(OSError)), 0)
        self.table.failing = False
        self.bench.advance(20)
        self.flushLoggedErrors(OSError)
        self.assertEqual(self.effects(), [[b"x"]] * 2)

    def test_connection_lost_and_found(self) -> None:
        client, send = self.bench.client, self.bench.client._send
        assert send is not None
        self.relay.offer([self.table.add(STREAM, b"0")])
        self.bench.settle()
        client.disconnected("cut")
        self.relay.offer([self.table.add(STREAM, b"1")])
        self.bench.advance(1)
        self.assertEqual(self.effects(), [[b"0"]] * 2)
        client.connected(send)
        self.bench.result(client.declare())
        self.bench.advance(2)
        self.assertEqual(self.effects(), [[b"0", b"1"]] * 2)

    def test_random_histories(self) -> None:
        for seed in range(12):
            with self.subTest(seed=seed):
                self.setUp()
                self.run_history(random.Random(seed))

    def run_history(self, chance: random.Random) -> None:
        expected: list[bytes] = []
        for _ in range(40):
            action = chance.random()
            if action < 0.75:
                rows = [self.table.add(STREAM, b"%d" % (len(expected) + n)) for n in range(chance.randint(1, 6))]
                expected.extend(row.payload for row in rows)
                if chance.random() < 0.8:
                    self.relay.offer(rows)
                else:
                    self.relay.notify(rows[-1].id)
            elif action < 0.85:
                self.restart(crash=chance.random() < 0.5, wipe=chance.random() < 0.5)
            elif action < 0.95:
                self.bench.clock.advance(chance.choice((0, 0, 0.01, 1.5)))
            else:
                self.bench.settle()
        self.relay.notify(len(expected))
        self.bench.advance(20)
        self.assertEqual(self.effects(), [expected] * 2)
        self.assertEqual(self.table.rows, {})

"""A queue moved into another one: messages, headers, order, and how far each consumer is."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock

from dendrite_tw.jetstream import moving
from dendrite_tw.jetstream.embedded import EmbeddedQueue
from dendrite_tw.jetstream.moving import Moved, MoveError, move
from tests.jetstream.support import START, Bench, Collector, DiskCase, inline

STREAM = "OutputRoomEvent"
STREAMS = [STREAM, "OutputTypingEvent"]


class Other(Bench):
    """Where a queue is moved to: another one, on the same clock, with a prefix of its own."""

    def __init__(self, clock: Clock, prefix: str = "Dendrite") -> None:
        self.clock = clock
        self.queue = EmbeddedQueue(clock, inline, "", True, prefix)
        self.client = self.queue.client
        self.result(self.queue.start())


class MoveTests(DiskCase):
    def setUp(self) -> None:
        super().setUp()
        self.clock = Clock()
        self.clock.advance(START)
        self.here = Bench(in_memory=True, clock=self.clock)
        self.there = Other(self.clock)

    def fill(self, count: int, first: int = 1) -> None:
        for number in range(first, first + count):
            self.here.publish(
                STREAM,
                b"event %d" % number,
                subject_suffix=f"room{number % 3}",
                headers={"Outbox-Previous": str(number - 1), "Room": "!a:b"},
                msg_id=f"rooms.{number}",
            )

    def consume(self, bench: Bench, name: str) -> list[bytes]:
        """What a consumer is given from here on."""
        collector = Collector()
        worker = bench.client.consume(STREAM, name, collector)
        bench.settle()
        bench.result(worker.stop())
        bench.settle()
        return collector.payloads

    def take(self, bench: Bench, name: str, count: int) -> None:
        """Let a consumer take and acknowledge so many messages, one by one."""
        client, taken = bench.client, []
        inbox = f"{client.inbox}.test.{client.next_number()}"
        client.subscribe(inbox, taken.append)
        request = f"{client.api_prefix}.CONSUMER.MSG.NEXT.{client.prefix}{STREAM}.{client.prefix}{name}"
        client.tell(request, b'{"batch": %d}' % count, reply=inbox)
        bench.settle()
        for message in taken:
            bench.result(client.ask(message.reply, b"+ACK"))
        self.assertEqual(len(taken), count)

    def declare(self, *names: str) -> None:
        for name in names:
            self.here.result(self.here.client.declare_consumer(STREAM, name))

    def move(self) -> list[Moved]:
        found: list[Moved] = self.there.result(move(self.here.client, self.there.client, STREAMS))
        return found

    def stored(self, bench: Bench) -> list[tuple[int, str, bytes, Any]]:
        async def read() -> list[tuple[int, str, bytes, Any]]:
            return [
                (message.stream_seq, message.subject, message.payload, dict(message.headers))
                async for message in moving._messages(bench.client, bench.client.prefix + STREAM)
            ]

        found: list[tuple[int, str, bytes, Any]] = bench.result(read())
        return found

    def test_what_nobody_has_read(self) -> None:
        self.declare("A", "B")
        self.fill(150)
        self.assertEqual(
            self.move(), [Moved("DendriteOutputRoomEvent", 150, 150, 2), Moved("DendriteOutputTypingEvent", 0, 0, 0)]
        )
        stored = self.stored(self.there)
        self.assertEqual([number for number, *_ in stored], list(range(1, 151)))
        self.assertEqual(stored[4][1:3], ("DendriteOutputRoomEvent.room2", b"event 5"))
        self.assertEqual(
            stored[4][3],
            {
                "Outbox-Previous": "4",
                "Room": "!a:b",
                "Nats-Msg-Id": "rooms.5",
                "Nats-Expected-Last-Sequence": "4",
            },
        )
        for name in ("A", "B"):
            self.assertEqual(self.consume(self.there, name), [b"event %d" % n for n in range(1, 151)])
        self.assertEqual(self.stored(self.there), [])

    def test_each_consumer_goes_on_where_it_is(self) -> None:
        self.declare("A", "B", "C")
        self.fill(20)
        for name, count in (("A", 12), ("B", 20), ("C", 5)):
            self.take(self.here, name, count)
        self.assertEqual(self.move()[0], Moved("DendriteOutputRoomEvent", 15, 15, 3))
        self.fill_there(21)
        self.assertEqual(self.consume(self.there, "A"), [b"event %d" % n for n in range(13, 22)])
        self.assertEqual(self.consume(self.there, "B"), [b"event 21"])
        self.assertEqual(self.consume(self.there, "C"), [b"event %d" % n for n in range(6, 22)])

    def fill_there(self, number: int) -> None:
        self.there.publish(STREAM, b"event %d" % number, msg_id=f"rooms.{number}")

    def test_a_second_time_there_is_nothing_to_do(self) -> None:
        self.declare("A", "B")
        self.fill(10)
        self.take(self.here, "A", 3)
        self.move()
        before = self.stored(self.there)
        self.assertEqual(self.move()[0], Moved("DendriteOutputRoomEvent", 10, 0, 2))
        self.assertEqual(self.stored(self.there), before)

    def test_a_move_that_broke_off(self) -> None:
        """At any request: the next one finishes it, and nothing is there twice."""
        for after in range(5, 400, 7):
            self.here, self.there = Bench(in_memory=True, clock=self.clock), Other(self.clock)
            self.declare("A", "B")
            self.fill(12)
            self.take(self.here, "A", 7)
            broken = self.broken_off(after)
            self.move()
            self.assertEqual(len(self.stored(self.there)), 12)
            self.assertEqual(self.consume(self.there, "A"), [b"event %d" % n for n in range(8, 13)])
            self.assertEqual(len(self.consume(self.there, "B")), 12)
            if not broken:
                return
        self.fail("it never came to an end")

    def broken_off(self, after: int) -> bool:
        """Move, and fail at the target's request of this number; whether it came to that."""
        client, left = self.there.client, after
        ask = client.ask

        def failing(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left <= 0:
                raise ConnectionError("broken off")
            return ask(*arguments, **options)

        client.ask = failing  # type: ignore[method-assign]
        try:
            self.move()
        except ConnectionError:
            return True
        finally:
            client.ask = ask  # type: ignore[method-assign]
        return False

    def test_another_prefix(self) -> None:
        self.there = Other(self.clock, "Ours")
        self.declare("A")
        self.fill(3)
        self.assertEqual(self.move()[0].stream, "OursOutputRoomEvent")
        self.assertEqual(self.stored(self.there)[0][1], "OursOutputRoomEvent.room1")
        self.assertEqual(len(self.consume(self.there, "A")), 3)

    def test_a_target_in_use_is_left_alone(self) -> None:
        self.declare("A")
        self.fill(3)
        self.there.result(self.there.client.declare_consumer(STREAM, "A"))
        self.there.publish(STREAM, b"something else")
        error = self.assertRaises(MoveError, self.move)
        self.assertIn("DendriteOutputRoomEvent there has been in use", str(error))
        self.assertEqual(len(self.stored(self.there)), 1)
        for number in range(5):
            self.there.publish(STREAM, b"%d" % number)
        self.assertRaises(MoveError, self.move)

    def test_a_message_that_is_too_large(self) -> None:
        self.declare("A")
        self.here.publish(STREAM, b"x" * 5000)
        self.there.client.max_payload = 4096
        error = self.assertRaises(MoveError, self.move)
        self.assertIn("max_payload: 16777216", str(error))

    def test_a_consumer_that_somebody_else_moves_is_noticed(self) -> None:
        self.declare("A", "B")
        self.fill(4)
        self.move()
        self.take(self.there, "A", 2)
        error = self.assertRaises(MoveError, self.move)
        self.assertIn("DendriteA is at message 2 of DendriteOutputRoomEvent and not at 0", str(error))

    def test_other_ways_to_acknowledge(self) -> None:
        config = {"durable_name": "DendriteX", "ack_policy": "explicit", "deliver_policy": "all"}
        request = "CONSUMER.DURABLE.CREATE.DendriteOutputRoomEvent.DendriteX"
        self.here.result(self.here.client.api(request, {"stream_name": "DendriteOutputRoomEvent", "config": config}))
        self.declare("A")
        self.fill(6)
        self.take(self.here, "X", 4)
        self.move()
        info = self.there.result(self.there.client.api("CONSUMER.INFO.DendriteOutputRoomEvent.DendriteX"))
        self.assertEqual((info["ack_floor"]["stream_seq"], info["num_pending"], info["num_ack_pending"]), (4, 2, 0))
        self.assertEqual(info["config"]["ack_policy"], "explicit")

"""Two workers of one durable consumer: a process that was taken for dead and is not, and its successor."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.jetstream.catalogue import CATALOGUE
from dendrite_tw.jetstream.client import QueueClient
from dendrite_tw.jetstream.embedded import Link
from dendrite_tw.jetstream.worker import Worker
from tests.jetstream.support import Collector, ServerBench, settle

STREAM, DURABLE = "OutputRoomEvent", "A"


def numbered(*numbers: int) -> list[bytes]:
    return [b"%d" % number for number in numbers]


class TwoWorkersTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.bench = ServerBench(None)
        self.writer = self.client("writer")

    def client(self, name: str) -> QueueClient:
        client = QueueClient(self.bench.clock, inbox=f"PRIVATE.{name}", streams=CATALOGUE)
        Link(self.bench.server, client, self.bench.clock, self.bench.syncer)
        declared = Deferred.fromCoroutine(client.declare())
        self.settle()
        self.successResultOf(declared)
        return client

    def settle(self) -> None:
        settle(self.bench.clock, 200)

    def work(self, name: str, handler: Any, **more: Any) -> Worker:
        worker = self.client(name).consume(STREAM, DURABLE, handler, **more)
        self.settle()
        return worker

    def publish(self, *payloads: bytes) -> None:
        for payload in payloads:
            published = Deferred.fromCoroutine(self.writer.publish(STREAM, payload))
            self.settle()
            self.successResultOf(published)

    def pause(self, worker: Worker) -> None:
        """The worker's process hears nothing any more, and is connected all the same."""
        worker._client.handle = lambda op: None  # type: ignore[method-assign]

    def test_what_a_paused_process_was_sent_is_not_acknowledged_unseen(self) -> None:
        for batch in (1, 5, 64):
            for before in (0, 1):
                with self.subTest(batch=batch, before=before):
                    self.bench = ServerBench(None)
                    self.writer = self.client("writer")
                    paused, following = Collector(), Collector()
                    self.pause(self.work("paused", paused, batch=batch))
                    self.publish(*numbered(*range(1, before + 1)))
                    self.work("following", following, batch=10)
                    self.publish(*numbered(*range(before + 1, 200)))
                    self.bench.advance(5)
                    self.assertEqual(paused.payloads, [])
                    self.assertEqual(following.payloads, numbered(*range(1, 200)))

    def test_of_two_that_both_go_on_each_sees_no_message_after_one_that_was_not_seen(self) -> None:
        both: list[Any] = []

        async def take(messages: list[Any]) -> None:
            both.extend(message.payload for message in messages)

        self.work("one", take, batch=3)
        self.work("two", take, batch=3)
        self.publish(*numbered(*range(1, 50)))
        self.bench.advance(5)
        firsts = list(dict.fromkeys(both))
        self.assertEqual(firsts, numbered(*range(1, 50)))

    def test_one_after_the_other_goes_on_where_it_left_off(self) -> None:
        one, two = Collector(), Collector()
        worker = self.work("one", one)
        self.publish(b"1", b"2")
        worker.stop()
        self.work("two", two)
        self.publish(b"3")
        self.assertEqual((one.payloads, two.payloads), (numbered(1, 2), [b"3"]))

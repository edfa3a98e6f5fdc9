"""The embedded queue as the components use it: publish, consume, listen, ask."""

from __future__ import annotations

import shutil
from pathlib import Path

from twisted.internet.defer import Deferred, fail

from dendrite_tw.database.engines import Unavailable
from dendrite_tw.jetstream.catalogue import CATALOGUE
from dendrite_tw.jetstream.errors import ApiError, UnavailableError
from dendrite_tw.jetstream.messages import Message
from tests.jetstream.support import Bench, Collector, DiskCase, settle


class EmbeddedCase(DiskCase):
    in_memory = False

    def setUp(self) -> None:
        super().setUp()
        self.folder = Path(self.mktemp())
        self.bench = Bench(self.folder, in_memory=self.in_memory)

    def restart(self, *, crash: bool = False) -> None:
        if crash:
            self.bench.crash()
        else:
            self.bench.stop()
        self.bench = Bench(self.folder, in_memory=self.in_memory, clock=self.bench.clock)


class PublishTests(EmbeddedCase):
    def test_catalogue_is_declared(self) -> None:
        for name in CATALOGUE:
            info = self.bench.result(self.bench.client.stream_info(name))
            self.assertEqual(info["config"]["subjects"], [f"Dendrite{name}", f"Dendrite{name}.>"])
            self.assertEqual(info["config"]["retention"], "interest")

    def test_publish_tells_the_sequence(self) -> None:
        self.bench.client.consume("OutputRoomEvent", "A", Collector())
        self.bench.settle()
        self.assertEqual(self.bench.publish("OutputRoomEvent", b"one").seq, 1)
        ack = self.bench.publish("OutputRoomEvent", b"two", subject_suffix="room", headers={"type": "x"})
        self.assertEqual((ack.seq, ack.stream, ack.duplicate), (2, "DendriteOutputRoomEvent", False))

    def test_same_id_is_stored_once(self) -> None:
        collector = Collector()
        self.bench.client.consume("OutputRoomEvent", "A", collector)
        self.bench.settle()
        first = self.bench.publish("OutputRoomEvent", b"one", msg_id="x:1")
        again = self.bench.publish("OutputRoomEvent", b"one", msg_id="x:1")
        self.assertEqual((first.duplicate, again.duplicate, again.seq), (False, True, 1))
        self.assertEqual(collector.payloads, [b"one"])

    def test_unknown_stream(self) -> None:
        with self.assertRaises(UnavailableError):
            self.bench.publish("Nothing", b"")

    def test_headers_cannot_break_out(self) -> None:
        for headers in ({"a": "b\r\nc: d"}, {"a:b": "c"}, {"": "x"}):
            with self.assertRaises(ValueError):
                self.bench.publish("OutputRoomEvent", b"", headers=headers)
        for suffix in ("a..b", "a b", "*", ">", "a\r\n"):
            with self.assertRaises(ValueError):
                self.bench.publish("OutputRoomEvent", b"", subject_suffix=suffix)

    def test_acknowledged_only_when_on_disk(self) -> None:
        if self.in_memory:
            return
        self.bench.client.consume("OutputRoomEvent", "A", Collector())
        self.bench.settle()
        gate: Deferred[None] = Deferred()
        run = self.bench.queue.syncer._run
        self.bench.queue.syncer._run = lambda call, *args: gate.addCallback(lambda _: call(*args))
        acks: list[object] = []
        self.bench.client.send("OutputRoomEvent", b"x").addCallback(acks.append)
        self.bench.settle()
        self.assertEqual(acks, [])
        self.bench.queue.syncer._run = run
        gate.callback(None)
        self.bench.settle()
        self.assertEqual(len(acks), 1)

    def test_full_disk(self) -> None:
        """What is under way waits; what is new is refused; all goes on by itself when there is room again."""
        if self.in_memory:
            return
        collector = Collector()
        self.bench.client.consume("OutputRoomEvent", "A", collector)
        self.bench.settle()
        syncer = self.bench.queue.syncer
        run = syncer._run
        syncer._run = lambda call, *args: fail(OSError("No space left on device"))
        acks: list[object] = []
        self.bench.client.send("OutputRoomEvent", b"1").addCallback(acks.append)
        self.bench.advance(3)
        with self.assertRaises(UnavailableError) as caught:
            self.bench.publish("OutputRoomEvent", b"2")
        self.assertEqual((caught.exception.status, acks), (503, []))
        self.assertIn("No space left on device", caught.exception.error)
        self.assertEqual(self.bench.queue.degraded, ["disk: No space left on device"])
        syncer._run = run
        self.bench.advance(3)
        self.assertEqual((len(acks), self.bench.queue.degraded), (1, []))
        self.assertEqual(self.bench.publish("OutputRoomEvent", b"3").seq, 2)
        self.assertEqual(collector.payloads, [b"1", b"3"])


class ConsumeTests(EmbeddedCase):
    def test_every_durable_gets_everything_in_order(self) -> None:
        one, two = Collector(), Collector()
        self.bench.client.consume("OutputRoomEvent", "A", one)
        self.bench.client.consume("OutputRoomEvent", "B", two, batch=3)
        self.bench.settle()
        expected = [b"%d" % number for number in range(200)]
        for payload in expected:
            self.bench.client.send("OutputRoomEvent", payload)
        self.bench.settle()
        self.assertEqual(one.payloads, expected)
        self.assertEqual(two.payloads, expected)
        self.assertLessEqual(max(map(len, two.batches)), 3)
        state = self.bench.result(self.bench.client.stream_info("OutputRoomEvent"))["state"]
        self.assertEqual((state["messages"], state["last_seq"]), (0, 200))

    def test_messages_carry_headers_and_numbers(self) -> None:
        collector = Collector()
        self.bench.client.consume("OutputRoomEvent", "A", collector)
        self.bench.settle()
        self.bench.publish("OutputRoomEvent", b"x", subject_suffix="r", headers={"room_id": "!a:b"})
        [[message]] = collector.batches
        self.assertEqual(dict(message.headers), {"room_id": "!a:b"})
        self.assertEqual(
            (message.subject, message.stream_seq, message.num_delivered), ("DendriteOutputRoomEvent.r", 1, 1)
        )

    def test_failure_repeats_the_same_messages(self) -> None:
        collector = Collector()
        collector.failures = 3
        worker = self.bench.client.consume("OutputRoomEvent", "A", collector)
        self.bench.settle()
        for number in range(5):
            self.bench.client.send("OutputRoomEvent", b"%d" % number)
        self.bench.settle()
        self.assertEqual(collector.batches, [])
        self.assertEqual(worker.failures, 1)
        self.bench.advance(10)
        self.assertEqual(collector.payloads, [b"%d" % number for number in range(5)])
        self.assertEqual(collector.batches[0][0].num_delivered, 4)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 3)

    def test_slow_handler_sees_each_message_once(self) -> None:
        collector = Collector()
        collector.gate = gate = Deferred()
        self.bench.client.consume("OutputRoomEvent", "A", collector, ack_wait=6.0)
        self.bench.settle()
        for number in range(300):
            self.bench.client.send("OutputRoomEvent", b"%d" % number)
        self.bench.advance(60)
        self.assertEqual(collector.batches, [])
        collector.gate = None
        gate.callback(None)
        self.bench.settle()
        self.assertEqual(collector.payloads, [b"%d" % number for number in range(300)])

    def test_stopped_worker_goes_on_where_it_was(self) -> None:
        one, two = Collector(), Collector()
        worker = self.bench.client.consume("OutputRoomEvent", "A", one)
        self.bench.settle()
        self.bench.publish("OutputRoomEvent", b"1")
        self.bench.result(worker.stop())
        self.bench.publish("OutputRoomEvent", b"2")
        self.bench.client.consume("OutputRoomEvent", "A", two)
        self.bench.settle()
        self.bench.publish("OutputRoomEvent", b"3")
        self.assertEqual((one.payloads, two.payloads), ([b"1"], [b"2", b"3"]))

    def test_stop_waits_for_the_handler(self) -> None:
        collector = Collector()
        collector.gate = gate = Deferred()
        worker = self.bench.client.consume("OutputRoomEvent", "A", collector)
        self.bench.settle()
        self.bench.publish("OutputRoomEvent", b"1")
        stopped = worker.stop()
        self.assertNoResult(stopped)
        collector.gate = None
        gate.callback(None)
        self.successResultOf(stopped)
        self.assertEqual(collector.payloads, [b"1"])

    def test_stop_during_the_pause_after_a_failure(self) -> None:
        collector = Collector()
        collector.failures = 1
        worker = self.bench.client.consume("OutputRoomEvent", "A", collector)
        self.bench.settle()
        self.bench.publish("OutputRoomEvent", b"1")
        self.successResultOf(worker.stop())
        again = Collector()
        self.bench.client.consume("OutputRoomEvent", "A", again)
        self.bench.settle()
        self.assertEqual(again.payloads, [b"1"])
        self.flushLoggedErrors(RuntimeError)

    def test_without_consumers_nothing_is_kept(self) -> None:
        self.assertEqual(self.bench.publish("OutputRoomEvent", b"x").seq, 1)
        state = self.bench.result(self.bench.client.stream_info("OutputRoomEvent"))["state"]
        self.assertEqual((state["messages"], state["last_seq"]), (0, 1))


class ListenTests(EmbeddedCase):
    def test_listener_hears_only_what_is_new(self) -> None:
        self.bench.client.consume("OutputTypingEvent", "A", Collector())
        self.bench.settle()
        self.bench.publish("OutputTypingEvent", b"old")
        heard: list[Message] = []
        subscription = self.bench.client.listen("OutputTypingEvent", heard.append)
        self.bench.settle()
        self.bench.publish("OutputTypingEvent", b"new", headers={"room_id": "!r:x"})
        self.assertEqual([(m.payload, m.headers["room_id"]) for m in heard], [(b"new", "!r:x")])
        subscription.stop()
        self.bench.settle()
        self.bench.publish("OutputTypingEvent", b"unheard")
        self.assertEqual(len(heard), 1)

    def test_a_message_tells_when_the_stream_took_it(self) -> None:
        heard: list[Message] = []
        self.bench.client.listen("OutputTypingEvent", heard.append)
        self.bench.settle()
        self.bench.publish("OutputTypingEvent", b"1")
        self.bench.advance(2)
        self.bench.publish("OutputTypingEvent", b"2")
        self.assertEqual(heard[1].time_us - heard[0].time_us, 2_000_000)
        self.assertEqual(Message("", b"", b"", reply="$JS.ACK.d.a.s.c.1.7.8.1234567.0.x").time_us, 1234)
        self.assertEqual(Message("plain", b"", b"").time_us, 0)

    def test_a_listener_is_told_when_it_begins_to_hear(self) -> None:
        begun: list[int] = []
        self.bench.client.listen("OutputTypingEvent", lambda message: None, lambda: begun.append(1))
        self.assertEqual(begun, [])
        self.bench.settle()
        self.assertEqual(begun, [1])

    def test_all_listeners_hear_all(self) -> None:
        heard: list[tuple[int, bytes]] = []
        for number in range(3):
            self.bench.client.listen("OutputRoomEvent", lambda m, n=number: heard.append((n, m.payload)))
        self.bench.settle()
        self.bench.publish("OutputRoomEvent", b"x")
        self.assertEqual(sorted(heard), [(0, b"x"), (1, b"x"), (2, b"x")])

    def test_a_consumer_whose_database_is_away_waits(self) -> None:
        taken: list[bytes] = []
        reasons = [Unavailable("the disk is full")]

        async def take(messages: list[Message]) -> None:
            if reasons:
                raise reasons.pop()
            taken.extend(message.payload for message in messages)

        self.bench.client.consume("OutputRoomEvent", "Waiting", take)
        self.bench.settle()
        self.bench.publish("OutputRoomEvent", b"x")
        self.assertEqual(taken, [])
        self.bench.advance(5)
        self.assertEqual((taken, self.flushLoggedErrors()), ([b"x"], []))

    def test_a_failing_listener_harms_nobody(self) -> None:
        heard: list[bytes] = []

        def fail(message: Message) -> None:
            raise RuntimeError("told to fail")

        self.bench.client.listen("OutputRoomEvent", fail)
        self.bench.client.listen("OutputRoomEvent", lambda message: heard.append(message.payload))
        self.bench.settle()
        self.bench.publish("OutputRoomEvent", b"x")
        self.assertEqual(heard, [b"x"])
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)


class RequestTests(EmbeddedCase):
    def test_one_of_the_group_answers(self) -> None:
        served: list[str] = []

        def responder(name: str) -> None:
            async def serve(message: Message) -> bytes:
                served.append(name)
                return b"got " + message.payload

            self.bench.client.respond("GetPresence", "sync", serve)

        responder("one")
        responder("two")
        self.bench.settle()
        for _ in range(4):
            answer = self.bench.result(self.bench.client.request("GetPresence", b"x"))
            self.assertEqual(answer.payload, b"got x")
        self.assertEqual(sorted(served), ["one", "one", "two", "two"])

    def test_nobody_there(self) -> None:
        with self.assertRaises(UnavailableError):
            self.bench.result(self.bench.client.request("GetPresence", b"x"))

    def test_failing_service(self) -> None:
        async def serve(message: Message) -> bytes:
            raise RuntimeError("told to fail")

        self.bench.client.respond("GetPresence", "sync", serve)
        self.bench.settle()
        with self.assertRaises(ApiError) as caught:
            self.bench.result(self.bench.client.request("GetPresence", b"x"))
        self.assertEqual(caught.exception.code, 500)
        self.flushLoggedErrors(RuntimeError)

    def test_silence_ends_with_the_timeout(self) -> None:
        async def serve(message: Message) -> bytes:
            await Deferred()
            return b""

        self.bench.client.respond("Slow", "g", serve)
        self.bench.settle()
        waiting = Deferred.fromCoroutine(self.bench.client.request("Slow", b"", timeout=2.0))
        self.bench.advance(1.5)
        self.assertNoResult(waiting)
        self.bench.advance(1)
        self.failureResultOf(waiting, UnavailableError)


class InMemoryPublishTests(PublishTests):
    in_memory = True


class InMemoryConsumeTests(ConsumeTests):
    in_memory = True


class RestartTests(EmbeddedCase):
    def test_messages_and_positions_survive(self) -> None:
        for crash in (False, True):
            with self.subTest(crash=crash):
                one = Collector()
                worker = self.bench.client.consume("OutputRoomEvent", "A", one)
                self.bench.settle()
                self.bench.publish("OutputRoomEvent", b"seen")
                self.bench.result(worker.stop())
                self.bench.advance(2)
                for number in range(20):
                    self.bench.publish("OutputRoomEvent", b"%d" % number, headers={"n": str(number)})
                self.restart(crash=crash)
                two = Collector()
                worker = self.bench.client.consume("OutputRoomEvent", "A", two)
                self.bench.settle()
                self.assertEqual(two.payloads, [b"%d" % number for number in range(20)])
                self.assertEqual(two.batches[-1][-1].headers["n"], "19")
                self.bench.result(worker.stop())
                self.bench.advance(2)

    def test_sequences_go_on(self) -> None:
        self.bench.client.consume("OutputRoomEvent", "A", Collector())
        self.bench.settle()
        for _ in range(5):
            self.bench.publish("OutputRoomEvent", b"x")
        self.restart()
        self.assertEqual(self.bench.publish("OutputRoomEvent", b"y").seq, 6)

    def test_deduplication_survives(self) -> None:
        worker = self.bench.client.consume("OutputRoomEvent", "A", Collector())
        self.bench.settle()
        self.bench.result(worker.stop())
        self.bench.publish("OutputRoomEvent", b"x", msg_id="a:1")
        self.restart(crash=True)
        self.assertTrue(self.bench.publish("OutputRoomEvent", b"x", msg_id="a:1").duplicate)

    def test_damaged_stream_is_set_aside(self) -> None:
        worker = self.bench.client.consume("OutputRoomEvent", "A", Collector())
        self.bench.settle()
        self.bench.result(worker.stop())
        for number in range(5):
            self.bench.publish("OutputRoomEvent", b"payload %d" % number)
        self.bench.stop()
        [segment] = (self.folder / "streams").glob("DendriteOutputRoomEvent~*/*.seg")
        data = bytearray(segment.read_bytes())
        data[data.index(b"payload 1")] ^= 1
        segment.write_bytes(data)
        self.bench = Bench(self.folder, clock=self.bench.clock)
        self.assertEqual(self.bench.queue.degraded, ["DendriteOutputRoomEvent"])
        self.assertEqual(len(list((self.folder / "damaged").iterdir())), 1)
        self.assertEqual(self.bench.publish("OutputRoomEvent", b"y").seq, 1)

    def test_folder_may_be_deleted(self) -> None:
        self.bench.client.consume("OutputRoomEvent", "A", Collector())
        self.bench.settle()
        self.bench.publish("OutputRoomEvent", b"x")
        self.bench.stop()
        shutil.rmtree(self.folder)
        self.bench = Bench(self.folder, clock=self.bench.clock)
        self.assertEqual(self.bench.publish("OutputRoomEvent", b"y").seq, 1)

    def test_many_segments_are_read_back_and_removed(self) -> None:
        worker = self.bench.client.consume("OutputRoomEvent", "A", Collector())
        self.bench.settle()
        self.bench.result(worker.stop())
        files = self.bench.queue.engine.streams["DendriteOutputRoomEvent"].files
        assert files is not None
        files._segment_bytes = 4096
        for number in range(100):
            self.bench.publish("OutputRoomEvent", b"%d " % number * 100)
        self.assertGreater(len(list(files.folder.glob("*.seg"))), 5)
        self.restart(crash=True)
        collector = Collector()
        self.bench.client.consume("OutputRoomEvent", "A", collector)
        settle(self.bench.clock, 500)
        self.assertEqual(collector.payloads, [b"%d " % number * 100 for number in range(100)])
        self.assertEqual(len(list(files.folder.glob("*.seg"))), 1)

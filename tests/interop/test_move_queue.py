"""``dendrite-move-queue``, from a queue as a server leaves it to a real nats-server, as its users run it."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from twisted.internet import reactor as _reactor
from twisted.internet.defer import maybeDeferred
from twisted.trial.unittest import TestCase

from dendrite_tw.commands import move_queue
from dendrite_tw.jetstream.embedded import EmbeddedQueue
from dendrite_tw.jetstream.remote import RemoteQueue
from dendrite_tw.jetstream.wire import Msg
from dendrite_tw.locks import Locks
from tests.interop.test_jetstream import until
from tests.interop.test_nats_server import Broker
from tests.test_config import MINIMAL

reactor: Any = _reactor
STREAM = "OutputRoomEvent"


class MoveQueueTests(TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory(prefix="move-")
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.config = self.folder / "dendrite.yaml"
        jetstream = f"  jetstream: {{storage_path: {self.folder}/queue, js_domain: hub, topic_prefix: Ours}}\n"
        self.config.write_text(MINIMAL.replace("  private_key", f"{jetstream}  private_key"))

    def broker(self) -> Broker:
        broker = Broker(self.folder / "broker")
        broker.start()
        self.addCleanup(broker.kill)
        return broker

    def run_command(self, *words: str) -> tuple[int, str]:
        """Exit code and output of the command as a program of its own."""
        command = [str(Path(sys.executable).parent / "dendrite-move-queue"), "-config", str(self.config), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout + done.stderr

    async def leave_a_queue(self) -> None:
        """What a server leaves that is stopped while one of two consumers has all and the other 300 of 700."""
        queue = EmbeddedQueue(reactor, maybeDeferred, self.folder / "queue", topic_prefix="Ours")
        await queue.start()
        client = queue.client
        for name in ("A", "B"):
            await client.declare_consumer(STREAM, name)
        publishing = [
            client.send(STREAM, b"event %d" % number, subject_suffix="room", msg_id=f"rooms.{number}")
            for number in range(1, 701)
        ]
        for one in publishing:
            await one
        for name, count in (("A", 300), ("B", 700)):
            taken: list[Msg] = []
            inbox = f"{client.inbox}.test.{name}"
            client.subscribe(inbox, taken.append)
            client.tell(f"$JS.API.CONSUMER.MSG.NEXT.Ours{STREAM}.Ours{name}", b'{"batch": %d}' % count, reply=inbox)
            await until(lambda taken=taken, count=count: len(taken) == count)  # type: ignore[misc]
            await client.ask(taken[-1].reply, b"+ACK")
        await queue.stop()

    async def test_goes_on_at_the_other_server(self) -> None:
        await self.leave_a_queue()
        broker = self.broker()
        for copied in (400, 0):
            code, said = self.run_command("-to", broker.address)
            self.assertEqual(code, 0, said)
            self.assertIn(f"OursOutputRoomEvent              400 messages ({copied} copied now), 2 consumers", said)
            self.assertIn(f'addresses: ["nats://***@127.0.0.1:{broker.port}"]', said)
            self.assertNotIn("sesame", said)
        remote = RemoteQueue(
            reactor, [broker.address], inbox="_INBOX.test", chance=lambda: 0.0, topic_prefix="Ours", domain="hub"
        )
        await remote.start()
        try:
            await until(lambda: remote.client.ready)
            taken: dict[str, list[bytes]] = {"A": [], "B": []}

            async def take(name: str, messages: list[Any]) -> None:
                taken[name] += [message.payload for message in messages]

            workers = [
                remote.client.consume(STREAM, name, lambda messages, name=name: take(name, messages)) for name in taken
            ]
            await remote.client.publish(STREAM, b"event 701")
            await until(lambda: all(found[-1:] == [b"event 701"] for found in taken.values()))
            self.assertEqual(taken["A"], [b"event %d" % number for number in range(301, 702)])
            self.assertEqual(taken["B"], [b"event 701"])
            for worker in workers:
                await worker.stop()
        finally:
            await remote.stop()

    async def test_what_is_in_the_way(self) -> None:
        code, said = self.run_command("-to", "nats://127.0.0.1:1")
        self.assertEqual(code, 1)
        self.assertIn("there is no queue to move", said)
        await self.leave_a_queue()
        code, said = self.run_command()
        self.assertEqual((code, "-to nats://host:4222" in said), (1, True), said)
        code, said = self.run_command("-to", "http://127.0.0.1")
        self.assertEqual((code, "must be the address of a NATS server" in said), (1, True), said)
        code, said = self.run_command("-to", "nats://127.0.0.1:1")
        self.assertEqual((code, "no NATS server could be used" in said), (1, True), said)
        locks = Locks()
        locks.take(self.folder / "queue" / "lock")
        try:
            code, said = self.run_command("-to", "nats://127.0.0.1:1")
        finally:
            locks.release()
        self.assertEqual((code, "the server is running (process" in said), (1, True), said)

    def test_words(self) -> None:
        err = io.StringIO()
        with contextlib.redirect_stderr(err):
            self.assertRaises(SystemExit, move_queue.main, ["-from"])
        self.assertIn("Copies the built-in queue", err.getvalue())
        for address, shown in (
            ("nats://token@h:1", "nats://***@h:1"),
            ("tls://user:pass@h", "tls://***@h"),
            ("h:4222", "h:4222"),
            ("nats://h", "nats://h"),
        ):
            self.assertEqual(move_queue.without_secret(address), shown)

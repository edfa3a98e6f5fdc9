"""Calls and echoes between processes over a real nats-server, which is killed in between.

The processes are clients of their own in one Python process; the broker is real, with a payload limit as an operator
may set it.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from dendrite_tw.jetstream import remote
from dendrite_tw.jetstream.remote import RemoteQueue
from dendrite_tw.links.echoes import NatsEchoes
from dendrite_tw.links.errors import Unanswered
from dendrite_tw.links.handle import handle
from dendrite_tw.links.nats import Calls
from dendrite_tw.matrix.errors import MatrixError
from dendrite_tw.sharing.shares import share_of
from tests.interop.test_jetstream import free_port, pause, real_server, scene, until, wait_for_port
from tests.links.support import Desk, DeskAPI

reactor: Any = _reactor

CONF = """\
listen: 127.0.0.1:{port}
max_payload: {max_payload}
authorization {{ token: sesame }}
jetstream {{ store_dir: "{folder}" }}
"""
MAX_PAYLOAD = 32768


class Process:
    """One process: its own connection to the broker, its calls, its echoes, and what it answers with."""

    def __init__(self, port: int, name: str) -> None:
        self.queue = RemoteQueue(
            reactor, [f"nats://sesame@127.0.0.1:{port}"], inbox=f"_INBOX.{name}", chance=lambda: 0.5
        )
        self.held: set[int] = set()
        self.calls = Calls(self.queue.client, reactor, lambda interface, share: share in self.held)
        self.echoes = NatsEchoes(self.queue.client, name)
        self.desk = Desk(name)
        self.asks = handle(DeskAPI, self.calls.transport(DeskAPI, None))

    async def start(self) -> None:
        await self.queue.start()
        await until(lambda: self.echoes.hearing)

    async def serve(self, *rooms: str) -> None:
        self.calls.serve(DeskAPI, self.desk)
        for share in map(share_of, rooms):
            self.held.add(share)
            self.calls.serve_share(DeskAPI, self.desk, share)
        await self.queue.client.settled()

    async def stop(self) -> None:
        self.calls.stop()
        await self.queue.stop()

    def vanish(self) -> None:
        """As if the process were killed: the connection ends, and nothing begins anew."""
        self.queue._running = False
        connection: Any = self.queue._connection
        connection.abort()


class CallsTests(TestCase):
    timeout = 60

    def setUp(self) -> Deferred[None]:
        self.patch(remote, "RETRY_SECONDS", 0.2)
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()
        self.port = free_port()
        self.broker: subprocess.Popen[bytes] | None = None
        return Deferred.fromCoroutine(self.begin())

    async def begin(self) -> None:
        settings = CONF.format(port=self.port, folder=self.folder / "store", max_payload=MAX_PAYLOAD)
        (self.folder / "nats.conf").write_text(settings)
        await deferToThread(self.start_broker)
        self.caller, self.one, self.two = (Process(self.port, name) for name in ("caller", "one", "two"))
        for process in (self.caller, self.one, self.two):
            await process.start()

    def start_broker(self) -> None:
        command = [real_server(), "-c", str(self.folder / "nats.conf")]
        self.broker = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for_port(self.port)

    def kill_broker(self) -> None:
        if self.broker is not None:
            self.broker.kill()
            self.broker.wait()
            self.broker = None

    def tearDown(self) -> Deferred[None]:
        async def end() -> None:
            for process in (self.caller, self.one, self.two):
                await process.stop()
            await deferToThread(self.kill_broker)

        return Deferred.fromCoroutine(end())

    @scene
    async def test_two_share_the_calls_and_each_has_its_rooms(self) -> None:
        await self.one.serve("!a:x")
        await self.two.serve("!b:x")
        answers = await gatherResults([Deferred.fromCoroutine(self.caller.asks.act(str(n))) for n in range(50)])
        self.assertEqual({answer.partition(" ")[0] for answer in answers}, {"one", "two"})
        self.assertEqual(sorted(self.one.desk.done + self.two.desk.done), sorted(map(str, range(50))))
        self.assertEqual(await self.caller.asks.write("!a:x"), "one !a:x")
        self.assertEqual(await self.caller.asks.write("!b:x"), "two !b:x")
        with self.assertRaises(MatrixError) as caught:
            await self.caller.asks.act("refused")
        self.assertEqual(caught.exception.extra, {"left": 3})

    @scene
    async def test_long_messages_go_in_parts_that_the_broker_takes(self) -> None:
        await self.one.serve()
        self.assertEqual(self.caller.queue.client.max_payload, MAX_PAYLOAD)
        short = Deferred.fromCoroutine(self.caller.asks.act("short"))
        for length, size in ((3_000_000, 10), (10, 3_000_000), (MAX_PAYLOAD, MAX_PAYLOAD)):
            self.assertEqual(len(await self.caller.asks.replace(bytes(length), size)), size)
        self.assertEqual(await short, "one short")
        self.assertEqual((self.caller.calls.budget.bytes, self.one.calls.budget.bytes), (0, 0))

    @scene
    async def test_a_share_moves_without_a_call_lost_or_done_twice(self) -> None:
        await self.one.serve("!a:x")
        calls = []
        for number in range(300):
            calls.append(Deferred.fromCoroutine(self.caller.asks.write("!a:x", str(number))))
            if number == 100:
                given = self.one.calls.withdraw_share(DeskAPI, share_of("!a:x"))
            if number == 200:
                await given
                await self.two.serve("!a:x")
            if number % 20 == 0:
                await pause(0)
        await gatherResults(calls)
        self.assertEqual(sorted(self.one.desk.done + self.two.desk.done), sorted(map(str, range(300))))
        self.assertTrue(self.one.desk.done)
        self.assertTrue(self.two.desk.done)

    @scene
    async def test_one_drains_while_calls_come(self) -> None:
        await self.one.serve()
        await self.two.serve()
        calls = [Deferred.fromCoroutine(self.caller.asks.act(str(number))) for number in range(50)]
        await self.one.calls.drain()
        done = len(self.one.desk.done)
        calls += [Deferred.fromCoroutine(self.caller.asks.act(str(number))) for number in range(50, 100)]
        await gatherResults(calls)
        self.assertEqual(len(self.one.desk.done), done)
        self.assertEqual(sorted(self.one.desk.done + self.two.desk.done), sorted(map(str, range(100))))

    @scene
    async def test_one_dies_in_the_middle(self) -> None:
        await self.one.serve("!a:x")
        action = Deferred.fromCoroutine(self.caller.asks.write("!a:x", "wait"))
        question = Deferred.fromCoroutine(self.caller.asks.ask("wait"))
        await until(lambda: self.one.desk.begun == ["wait", "wait"])
        self.one.vanish()
        await self.two.serve("!a:x")
        self.assertEqual(await self.caller.asks.write("!a:x"), "two !a:x")
        await self.assertFailure(action, Unanswered)
        await until(lambda: "wait" in self.two.desk.begun)
        self.two.desk.open()
        self.assertEqual(await question, "two wait")

    @scene
    async def test_a_caller_that_dies_stops_its_questions(self) -> None:
        await self.one.serve()
        question = Deferred.fromCoroutine(self.caller.asks.ask("wait"))
        await until(lambda: self.one.desk.begun == ["wait"])
        self.caller.vanish()
        await until(lambda: self.one.calls.answering.under_way == 0)
        question.cancel()
        await self.assertFailure(question, Exception)

    @scene
    async def test_the_broker_dies_and_comes_back(self) -> None:
        await self.one.serve()
        missed: list[str] = []
        self.two.echoes.on_missed(lambda: missed.append("missed"))
        action = Deferred.fromCoroutine(self.caller.asks.act("wait"))
        question = Deferred.fromCoroutine(self.caller.asks.ask("wait"))
        await until(lambda: len(self.one.desk.begun) == 2)
        await deferToThread(self.kill_broker)
        await self.assertFailure(action, Unanswered)
        await until(lambda: not self.two.echoes.hearing)
        self.assertEqual(len(missed), 1)
        later = Deferred.fromCoroutine(self.caller.asks.act("later"))
        await deferToThread(self.start_broker)
        self.assertEqual(await later, "one later")
        await until(lambda: self.one.desk.begun.count("wait") == 3)
        self.one.desk.open()
        self.assertEqual(await question, "one wait")
        await until(lambda: self.two.echoes.hearing)
        self.assertGreaterEqual(len(missed), 2)

    @scene
    async def test_echoes_come_before_the_answers_that_follow_them(self) -> None:
        heard: list[str] = []
        self.caller.echoes.hear("change", lambda payload: heard.append(payload.decode()))
        await self.caller.queue.client.settled()

        async def act(word: str, times: int = 1) -> str:
            self.one.echoes.tell("change", word.encode())
            return word

        self.one.desk.act = act  # type: ignore[method-assign]
        await self.one.serve()
        for number in range(200):
            word = await self.caller.asks.act(str(number))
            self.assertEqual(heard[-1], word)

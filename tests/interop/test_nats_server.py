"""The whole server as users start it: over a real nats-server that is killed and emptied under load; and the built-in
queue, looked into by a real client.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import tempfile
import urllib.request
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote

import nats
from nats.errors import Error
from twisted.trial.unittest import SynchronousTestCase

from bench.matrix import Account, RefusedError, register
from bench.processes import free_port
from bench.servers import Ours
from tests.clients.kill9 import Courier, Load, Watcher, check_errands, check_watcher, expect, history
from tests.interop.test_jetstream import real_server, wait_for_port

SECONDS = 80.0
NATS_CONF = """\
listen: 127.0.0.1:{port}
authorization {{ token: sesame }}
jetstream {{ store_dir: "{folder}", domain: hub }}
"""


class Broker:
    """A real nats-server, with a domain and a token."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.address = f"nats://sesame@127.0.0.1:{self.port}"
        self._store = folder / "store"
        self._settings = folder / "nats.conf"
        folder.mkdir()
        self._settings.write_text(NATS_CONF.format(port=self.port, folder=self._store))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [real_server(), "-c", str(self._settings)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for_port(self.port)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def empty(self) -> None:
        """Delete all that was stored."""
        shutil.rmtree(self._store)


class WithQueue(Ours):
    """Our server with a queue of the test's choice."""

    queue = ""

    def prepare(self) -> None:
        super().prepare()
        path = self.folder / "dendrite.yaml"
        queue = self.queue.format(folder=self.folder)
        text = path.read_text().replace(f"jetstream: {{storage_path: {self.folder}/jetstream}}", f"jetstream: {queue}")
        path.write_text(text.replace("enable_outbound: false", "enable_outbound: true"))


async def unmoved(error: Exception) -> None:
    """Takes what nats-py would print."""


def health(server: Ours) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(f"{server.url}/_dendrite/monitor/health", timeout=5) as answer:
            return answer.status, json.load(answer)
    except HTTPError as error:
        return error.code, json.load(error)


class QueueCase(SynchronousTestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory(prefix="queue-")
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.server = WithQueue(self.folder / "server")
        self.addCleanup(self.server.stop)

    def play(self, acting: Any) -> Any:
        try:
            return asyncio.run(asyncio.wait_for(acting, SECONDS))
        except Exception as error:
            self.fail(f"{error!r}\n{self.server.log_tail()}")

    async def healthy(self) -> None:
        for _ in range(200):
            status, _ = await asyncio.to_thread(health, self.server)
            if status == 200:
                return
            await asyncio.sleep(0.1)
        raise AssertionError("it does not recover")


class NatsTests(QueueCase):
    def setUp(self) -> None:
        super().setUp()
        self.broker = Broker(self.folder / "broker")
        self.addCleanup(self.broker.kill)
        self.server.queue = f'{{{{addresses: ["{self.broker.address}"], js_domain: hub, topic_prefix: Ours}}}}'

    def test_starts_without_nats(self) -> None:
        self.server.start()
        self.assertEqual(health(self.server), (503, {"warnings": ["no connection to NATS"]}))
        self.play(self._starts_without())

    async def _starts_without(self) -> None:
        alice = await register(self.server, "alice")
        room = await alice.create_room()
        typing = f"/rooms/{quote(room)}/typing/{quote(alice.user_id)}"
        for path, body in (
            (typing, {"typing": True}),
            (f"/presence/{quote(alice.user_id)}/status", {"presence": "online"}),
        ):
            with self.assertRaises(RefusedError) as caught:
                await alice.call("PUT", path, body)
            self.assertEqual(caught.exception.status, 503)
        early = await alice.send(room, "early", "1")
        await alice.catch_up()
        await asyncio.to_thread(self.broker.start)
        await self.healthy()
        await alice.call("PUT", typing, {"typing": True})
        watcher = Watcher(alice, [room], {room: []})
        late = await alice.send(room, "late", "2")
        await watcher.run(lambda watcher: watcher.events[room] == [late])
        self.assertEqual([text for _, text in await history(alice, room)][-2:], ["early", "late"])
        self.assertNotEqual(early, late)

    def test_killed_and_emptied_under_load(self) -> None:
        self.broker.start()
        self.server.start()
        self.play(self._emptied())

    async def _emptied(self) -> None:
        alice = await register(self.server, "alice")
        room = await alice.create_room()
        writers = [await register(self.server, f"writer{number}") for number in range(4)]
        for writer in writers:
            await writer.join(room)
        watcher = Watcher(await register(self.server, "bob"), [room])
        await watcher.account.join(room)
        await watcher.begin()
        courier = Courier(alice, [watcher.account.user_id])
        quiet = await writers[0].create_room()
        await watcher.account.join(quiet)
        watcher.events[quiet] = []
        before = len(await history(alice, room))
        load, refused = Load(), 0
        said: list[str] = []
        answered: list[list[tuple[str, str]]] = [[] for _ in writers]

        async def write(writer: Account, told: list[tuple[str, str]]) -> None:
            while load.going:
                text = f"{writer.user_id} {len(told)}"
                told.append((await writer.send(room, text, quote(text)), text))
                await asyncio.sleep(0.01)

        async def types(writer: Account) -> None:
            nonlocal refused
            while load.going:
                try:
                    said.append(await writer.send(quiet, "a word", f"quiet{len(said)}"))
                    await writer.call("PUT", f"/rooms/{quote(room)}/typing/{quote(writer.user_id)}", {"typing": True})
                except RefusedError as error:
                    expect(error.status == 503, f"typing is answered with {error.status}")
                    refused += 1
                await asyncio.sleep(0.05)

        watching = asyncio.create_task(watcher.run(lambda watcher: last in watcher.events[room]))
        last = "none yet"
        async with asyncio.TaskGroup() as tasks:
            for writer, told in zip(writers, answered, strict=True):
                tasks.create_task(write(writer, told))
            tasks.create_task(types(writers[0]))
            tasks.create_task(courier.run(load))
            for empties in (True, False, True):
                await asyncio.sleep(1.0)
                await asyncio.to_thread(self.broker.kill)
                if empties:
                    await asyncio.to_thread(self.broker.empty)
                await asyncio.sleep(0.7)
                await asyncio.to_thread(self.broker.start)
                await self.healthy()
            await asyncio.sleep(0.5)
            load.going = False
        expect(refused > 0, "typing was never refused")
        last = await alice.send(room, "the end", "end")
        await watching
        await watcher.run(lambda watcher: len(watcher.errands) >= len(courier.answered))
        events = (await history(alice, room))[before:]
        for writer, told in zip(writers, answered, strict=True):
            self.assertEqual([event for event in events if event[1].startswith(f"{writer.user_id} ")], told)
        check_watcher(watcher, room, events)
        check_errands(watcher, [courier], False)
        await self._unread(watcher.account, quiet, len(said))

    async def _unread(self, account: Account, room: str, count: int) -> None:
        """Who read nothing has everything unread, each once."""
        found = 0
        for _ in range(100):
            body = (await account.sync(wait_ms=0, since="")).json()
            found = body["rooms"]["join"][room]["unread_notifications"]["notification_count"]
            if found >= count:
                break
            await asyncio.sleep(0.1)
        expect(found == count, f"{found} unread of {count}")


class PortTests(QueueCase):
    def test_a_client_of_nats_looks_into_the_built_in_queue(self) -> None:
        port = free_port()
        port_of_it = f"listen: '127.0.0.1:{port}', listen_token: sesame"
        self.server.queue = f"{{{{storage_path: {{folder}}/jetstream, {port_of_it}}}}}"
        self.server.start()
        self.play(self._looks(port))

    async def _looks(self, port: int) -> None:
        with self.assertRaises(Error) as caught:
            await nats.connect(f"nats://127.0.0.1:{port}", allow_reconnect=False, error_cb=unmoved)
        self.assertIn("Authorization Violation", str(caught.exception))
        client = await nats.connect(f"nats://sesame@127.0.0.1:{port}")
        heard = await client.subscribe("DendriteOutputRoomEvent")
        await client.flush()
        alice = await register(self.server, "alice")
        room = await alice.create_room()
        event_id = await alice.send(room, "hello", "1")
        found = b""
        while event_id.encode() not in found:
            found = (await heard.next_msg(timeout=5)).data
        stream = client.jetstream()
        names = {info.config.name for info in await stream.streams_info()}
        self.assertIn("DendriteOutputRoomEvent", names)
        info = await stream.consumer_info("DendriteOutputRoomEvent", "DendriteUserAPIRoomServerConsumer")
        self.assertGreater(info.delivered.stream_seq, 5)
        account = await stream.account_info()
        self.assertGreaterEqual(account.streams, 12)
        # What a curious client deletes is made again, and nothing is lost by it.
        watcher = Watcher(alice, [room])
        await watcher.begin()
        await stream.delete_stream("DendriteOutputRoomEvent")
        sent = [await alice.send(room, f"more {number}", f"more{number}") for number in range(5)]
        await watcher.run(lambda watcher: watcher.events[room] == sent)
        for _ in range(200):
            state = (await stream.stream_info("DendriteOutputRoomEvent")).state
            if state.last_seq >= len(sent):
                break
            await asyncio.sleep(0.1)
        self.assertGreaterEqual(state.last_seq, len(sent))
        await client.close()

"""The whole server over PostgreSQL, as users start it: killed under load, and its database crashed under load."""

from __future__ import annotations

import asyncio
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from twisted.trial.unittest import SynchronousTestCase

from bench.http import ConnectionLostError
from bench.matrix import Account, RefusedError, register
from bench.processes import free_port
from bench.servers import Ours
from tests.clients.kill9 import Watcher, check_watcher, history, story
from tests.database.cluster import Cluster

SECONDS = 55.0


class OnPostgreSQL(Ours):
    """Our server, with all components in one database."""

    def __init__(self, folder: Path, connection_string: str) -> None:
        super().__init__(folder)
        self.connection_string = connection_string

    def prepare(self) -> None:
        super().prepare()
        path = self.folder / "dendrite.yaml"
        lines = [line for line in path.read_text().splitlines() if "connection_string" not in line]
        lines.insert(2, f'  database: {{connection_string: "{self.connection_string}", max_open_conns: 12}}')
        bare = [line for line in lines if line not in EMPTIED]
        path.write_text("\n".join(bare) + "\n")


EMPTIED = ("federation_api:", "room_server:", "sync_api:", "key_server:", "relay_api:", "mscs:")
"""Sections of which nothing is left."""


class Stage(SynchronousTestCase):
    """A server that runs, and people who use it."""

    def begin(self, connection_string: str) -> None:
        folder = tempfile.TemporaryDirectory(prefix="stage-")
        self.addCleanup(folder.cleanup)
        self.server = OnPostgreSQL(Path(folder.name) / "server", connection_string)
        self.addCleanup(self.server.stop)
        self.server.start()

    def play(self, acting: Any) -> Any:
        try:
            return asyncio.run(asyncio.wait_for(acting, SECONDS))
        except Exception as error:
            self.fail(f"{error!r}\n{self.server.log_tail()}")

    async def _under_load(self, disturbances: Sequence[Callable[[], None]]) -> None:
        alice = await register(self.server, "alice")
        room = await alice.create_room()
        writers = [await register(self.server, f"writer{number}") for number in range(6)]
        for writer in writers:
            await writer.join(room)
        watcher = Watcher(await register(self.server, "bob"), [room])
        await watcher.account.join(room)
        await watcher.begin()
        before = len(await history(alice, room))
        going = True
        answered: list[list[tuple[str, str]]] = [[] for _ in writers]

        async def write(writer: Account, told: list[tuple[str, str]]) -> None:
            while going:
                text = f"{writer.user_id} {len(told)}"
                try:
                    told.append((await writer.send(room, text, quote(text)), text))
                except RefusedError as error:
                    if error.status != 503:
                        raise
                    await asyncio.sleep(0.05)
                except ConnectionLostError:
                    await asyncio.sleep(0.05)

        async with asyncio.TaskGroup() as tasks:
            for writer, told in zip(writers, answered, strict=True):
                tasks.create_task(write(writer, told))
            for disturb in disturbances:
                await asyncio.sleep(0.5)
                await asyncio.to_thread(disturb)
                reached = sum(map(len, answered))
                for _ in range(200):
                    await asyncio.sleep(0.05)
                    if sum(map(len, answered)) > reached + 20:
                        break
                self.assertGreater(sum(map(len, answered)), reached)
            going = False
        self.assertIn("lost a connection to PostgreSQL", self.server.log_tail(1000))
        last = await alice.send(room, "the end", "end")
        await watcher.run(lambda watcher: watcher.events[room][-1:] == [last])
        events = (await history(alice, room))[before:]
        for writer, told in zip(writers, answered, strict=True):
            self.assertEqual([event for event in events if event[1].startswith(f"{writer.user_id} ")], told)
        check_watcher(watcher, room, events)


class ServerTests(Stage):
    def setUp(self) -> None:
        self.cluster = Cluster()
        self.addCleanup(self.cluster.remove)
        self.begin(self.cluster.new())

    def test_killed_under_load(self) -> None:
        print(self.play(story(self.server, 1)))

    def test_a_second_server_is_kept_away(self) -> None:
        folder = tempfile.TemporaryDirectory(prefix="stage-")
        self.addCleanup(folder.cleanup)
        second = OnPostgreSQL(Path(folder.name) / "server", self.server.connection_string)
        self.addCleanup(second.stop)
        with self.assertRaises(Exception) as caught:
            second.start()
        self.assertIn("another server uses this database", str(caught.exception))

    def test_the_database_crashes_under_load(self) -> None:
        def restart(how: signal.Signals) -> None:
            self.cluster.stop(how)
            time.sleep(0.3)
            self.cluster.start()

        self.play(self._under_load([lambda: restart(signal.SIGQUIT), lambda: restart(signal.SIGINT)]))


class FailoverTests(Stage):
    """The configuration names a primary and its standby."""

    def setUp(self) -> None:
        self.primary = Cluster(free_port())
        self.addCleanup(self.primary.remove)
        self.standby = Cluster(free_port(), self.primary)
        self.addCleanup(self.standby.remove)
        self.primary.wait_for_standby()
        hosts = f"127.0.0.1:{self.primary.port},127.0.0.1:{self.standby.port}"
        self.begin(f"postgresql://postgres@{hosts}/postgres?target_session_attrs=read-write&sslmode=disable")

    def test_a_standby_takes_over_under_load(self) -> None:
        def fail_over() -> None:
            self.primary.stop(signal.SIGQUIT)
            time.sleep(0.3)
            self.standby.promote()

        self.play(self._under_load([fail_over]))

"""A polylith of two processes of each component, set up as documented: stories, old nginx files, restarts, kills."""

from __future__ import annotations

import asyncio
import atexit
import os
import random
import tempfile
import time
import traceback
from collections.abc import Coroutine
from functools import lru_cache, partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from twisted.trial.unittest import SynchronousTestCase

from bench.http import Connection
from bench.matrix import Account, register
from bench.nginx import Nginx
from bench.polylith import BEHIND_NGINX, Polylith
from bench.processes import free_port
from tests.clients import test_nio, torture
from tests.clients.kill9 import (
    Courier,
    Ending,
    Load,
    Sender,
    Watcher,
    check_errands,
    check_history,
    check_watcher,
    history,
    insist,
)
from tests.clients.stage import PASSWORD

SECONDS = 240.0
KILLS = int(os.environ.get("TORTURE_KILLS", "8"))
SEED = 1

OLD_NGINX = """\
server {{
    listen 127.0.0.1:{port};
    client_max_body_size 20M;
    proxy_read_timeout 600;
    proxy_set_header Host $host;

    location ~ {sync_paths} {{ proxy_pass http://127.0.0.1:{sync}; }}
    location /_matrix/client {{ proxy_pass http://127.0.0.1:{client}; }}
    location /_matrix/federation {{ proxy_pass http://127.0.0.1:{federation}; }}
    location /_matrix/key {{ proxy_pass http://127.0.0.1:{federation}; }}
    location /_matrix/media {{ proxy_pass http://127.0.0.1:{media}; }}
    location / {{ proxy_pass http://127.0.0.1:{client}; }}
}}
"""
"""The routing of Dendrite's last release with a polylith, which knows nothing of media that ask for a token."""

OLD_SYNC_PATHS = (
    "/_matrix/client/.*?/(sync|user/.*?/filter/?.*|keys/changes|"
    "rooms/.*?/(messages|.*?_?members|context/.*?|relations/.*?|event/.*?))$"
)


@lru_cache(maxsize=1)
def deployment() -> Polylith:
    """The one that the tests of this process share; it ends with the process."""
    folder = tempfile.TemporaryDirectory(prefix="polylith-")
    atexit.register(folder.cleanup)
    made = Polylith(Path(folder.name) / "server")
    atexit.register(made.stop)
    made.start()
    return made


class PolylithCase(SynchronousTestCase):
    names = 0

    def setUp(self) -> None:
        self.server = deployment()
        self.addCleanup(self.check_log, self.server.log.stat().st_size)

    def check_log(self, offset: int) -> None:
        """Nothing went wrong that only the processes' log tells of."""
        with self.server.log.open("rb") as log:
            log.seek(offset)
            lines = log.read().decode(errors="replace").splitlines()
        wrong = [line for line in lines if "level=error" in line or "level=fatal" in line or "Traceback" in line]
        self.assertEqual(wrong, [])

    def play(self, acting: Coroutine[Any, Any, None]) -> None:
        try:
            asyncio.run(asyncio.wait_for(acting, SECONDS))
        except Exception as error:
            told = "".join(traceback.format_exception(error))
            self.fail(f"{told}\n{self.server.log_tail(100)}")

    async def person(self, name: str) -> Account:
        """A new account; names are used once in a deployment."""
        PolylithCase.names += 1
        return await register(self.server, f"{name}{PolylithCase.names}", PASSWORD)


class EveningTests(test_nio.NioTests):
    """The evening of two users of matrix-nio."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory(prefix="stage-")
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.server = deployment()


class ListenerTests(PolylithCase):
    """Whoever is asked answers, whether by itself or by asking another process."""

    async def everything(self, port: int) -> None:
        """What a client does, on this port alone."""
        alice = await self.person("alice")
        account = Account(Connection("127.0.0.1", port, alice.token), alice.user_id, alice.token)
        room = await account.create_room()
        event = await account.send(room, "hello")
        await account.catch_up()
        for path in (
            f"/rooms/{quote(room)}/messages?dir=b",
            f"/rooms/{quote(room)}/event/{quote(event)}",
            f"/rooms/{quote(room)}/state/m.room.create/",
            f"/rooms/{quote(room)}/members",
            f"/profile/{quote(alice.user_id)}",
            "/account/whoami",
            f"/keys/changes?from={quote(account.since)}&to={quote(account.since)}",
        ):
            await account.call("GET", path)
        uploaded = await account.connection.request("POST", "/_matrix/media/v3/upload", b"x" * 300_000)
        self.assertEqual(uploaded.status, 200, uploaded)
        media = uploaded.json()["content_uri"].removeprefix("mxc://")
        fetched = await account.connection.request("GET", f"/_matrix/client/v1/media/download/{media}")
        self.assertEqual((fetched.status, fetched.body), (200, b"x" * 300_000))
        waiting = asyncio.create_task(account.sync(10_000, account.since))
        await asyncio.sleep(0.2)
        other = Account(Connection("127.0.0.1", self.server.port, alice.token), alice.user_id, alice.token)
        said = await other.send(room, "wake up", "wake")
        timeline = (await waiting).json()["rooms"]["join"][room]["timeline"]["events"]
        self.assertEqual([one["event_id"] for one in timeline], [said])
        for used in (account, other, alice):
            used.connection.close()

    def test_the_generated_file(self) -> None:
        self.play(self.everything(self.server.port))

    def test_each_process_by_itself(self) -> None:
        async def story() -> None:
            for component in (*BEHIND_NGINX, "room-api"):
                await self.everything(self.server.of(component)[0].port)

        self.play(story())

    def test_an_old_file(self) -> None:
        port = free_port()
        ports = {name.partition("-")[0]: self.server.of(name)[0].port for name in BEHIND_NGINX}
        text = OLD_NGINX.format(port=port, sync_paths=f'"{OLD_SYNC_PATHS}"', **ports)
        with tempfile.TemporaryDirectory(prefix="nginx-") as folder:
            nginx = Nginx(Path(folder), text, port)
            nginx.start()
            try:
                self.play(self.everything(port))
            finally:
                nginx.stop()

    def test_every_process_tells_of_itself(self) -> None:
        for member in self.server.members:
            self.assertEqual(member.health(), (200, []), member.name)


class RestartTests(PolylithCase):
    """A rolling upgrade."""

    def test_one_process_after_the_other(self) -> None:
        """All messages and errands arrive once and in order, and nobody waits long."""
        self.play(self._rolling())

    async def _rolling(self) -> None:
        owner = await self.person("owner")
        rooms = [await owner.create_room() for _ in range(3)]
        senders = [Sender(await self.person("sender"), room) for room in rooms for _ in range(2)]
        readers = [await self.person("reader") for _ in range(2)]
        couriers = [Courier(await self.person("courier"), [reader.user_id for reader in readers])]
        for sender in senders:
            await sender.account.join(sender.room)
        for reader in readers:
            for room in rooms:
                await reader.join(room)
        watchers = [Watcher(reader, rooms) for reader in readers]
        for watcher in watchers:
            await watcher.begin()
        before = {room: len(await history(owner, room)) for room in rooms}
        load, ending = Load(), Ending(couriers)
        async with asyncio.TaskGroup() as watching:
            for watcher in watchers:
                watching.create_task(watcher.run(ending.reached))
            async with asyncio.TaskGroup() as writing:
                for writer in (*senders, *couriers):
                    writing.create_task(writer.run(load, 0.1))
                longest = await self._restart_all(senders)
                load.going = False
            ending.last = {room: await insist(partial(owner.send, room, "the end", "end")) for room in rooms}
        print(f"longest wait of a room {longest:.1f} s, {sum(len(one.answered) for one in senders)} messages")
        self.assertLess(longest, 5.0)
        for room in rooms:
            events = await history(owner, room)
            check_history(room, events, senders)
            for watcher in watchers:
                check_watcher(watcher, room, events[before[room] :])
        for watcher in watchers:
            check_errands(watcher, couriers, False)

    async def _restart_all(self, senders: list[Sender]) -> float:
        """Drain and start each process; the longest time in seconds in which some sender was not answered."""
        longest, last = 0.0, {sender.name: (0, time.monotonic()) for sender in senders}

        async def watch() -> None:
            nonlocal longest
            while True:
                now = time.monotonic()
                for sender in senders:
                    count, since = last[sender.name]
                    if len(sender.answered) > count:
                        last[sender.name] = (len(sender.answered), now)
                    longest = max(longest, now - since)
                await asyncio.sleep(0.05)

        watching = asyncio.create_task(watch())
        for member in self.server.members:
            await asyncio.to_thread(member.drain)
            self.assertEqual(member.process.exit_code, 0, f"{member.name} did not end by itself")
            await asyncio.to_thread(member.start)
            await asyncio.to_thread(member.wait)
        watching.cancel()
        return longest


class TortureTests(SynchronousTestCase):
    """Every kind of process, NATS and PostgreSQL killed under load: the short form of `torture`."""

    def test_all_that_was_answered_arrives_once(self) -> None:
        folder = tempfile.TemporaryDirectory(prefix="torture-")
        self.addCleanup(folder.cleanup)
        said: list[str] = []
        try:
            kinds = torture.kinds_of(KILLS, random.Random(SEED))
            print(torture.torture(Path(folder.name), kinds, SEED, complain=said.append))
        except Exception as error:
            self.fail("\n".join(["".join(traceback.format_exception(error)), *said]))

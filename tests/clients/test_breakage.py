"""What an operator's day may bring: a full disk, a stop, a damaged or deleted queue, a second server, mistakes."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bench.http import ConnectionLostError, Response
from bench.matrix import CLIENT, Account, RefusedError, register
from bench.processes import free_port
from tests.clients.kill9 import Watcher, check_watcher, history, story
from tests.clients.stage import Stage

STOP_SECONDS = 5.0


async def attempt(account: Account, method: str, path: str, body: Any = None) -> Response:
    """The answer, whatever its status."""
    return await account.connection.request(method, CLIENT + path, None if body is None else json.dumps(body).encode())


def corrupt_newest_segment(queue: Path) -> None:
    """Cut the end of the newest file that holds messages, and put noise in its place."""
    segments = [path for path in queue.rglob("*") if path.is_file() and path.stat().st_size > 100]
    newest = max(segments, key=lambda path: path.stat().st_mtime)
    data = newest.read_bytes()
    newest.write_bytes(data[:-20] + b"\xff" * 40)


class BreakageCase(Stage):
    """A test with one user in one room."""

    async def begin(self) -> None:
        self.alice = await register(self.server, "alice")
        self.room = await self.alice.create_room()
        self.watcher = Watcher(await register(self.server, "bob"), [self.room])
        await self.watcher.account.join(self.room)
        await self.watcher.begin()
        self.before = len(await history(self.alice, self.room))
        self.sent: list[tuple[str, str]] = []

    async def say(self, text: str) -> None:
        self.sent.append((await self.alice.send(self.room, text, quote(text)), text))

    async def check(self) -> None:
        """The room holds what was answered, once and in order, and so does what the watcher saw."""
        last = self.sent[-1][0]
        await self.watcher.run(lambda watcher: watcher.events[self.room][-1:] == [last])
        events = (await history(self.alice, self.room))[self.before :]
        self.assertEqual(events, self.sent)
        check_watcher(self.watcher, self.room, events)

    def health(self) -> tuple[int, Any]:
        try:
            with urllib.request.urlopen(f"{self.server.url}/_dendrite/monitor/health", timeout=5) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)


class QueueTests(BreakageCase):
    """The queue's files go; nothing else does."""

    def test_deleted_between_kill_and_restart(self) -> None:
        def deleted() -> None:
            shutil.rmtree(self.server.folder / "jetstream")

        self.play(self._held(deleted))

    def test_damaged_between_kill_and_restart(self) -> None:
        self.play(self._held(lambda: corrupt_newest_segment(self.server.folder / "jetstream")))

    async def _held(self, meanwhile: Any) -> None:
        print(await story(self.server, 4, meanwhile))


class StopTests(BreakageCase):
    """An orderly end."""

    def test_while_requests_wait(self) -> None:
        """Long polls are answered, what was sent is stored or not answered, and the process ends soon."""

        async def act() -> None:
            await self.begin()
            dave = await register(self.server, "dave")
            await dave.catch_up()
            waiting = asyncio.create_task(dave.sync(30000, since=dave.since))
            carols = [await register(self.server, f"carol{number}") for number in range(4)]
            for carol in carols:
                await carol.join(self.room)
            answered: list[str] = []
            sends = [asyncio.create_task(self._send_until_gone(carol, answered)) for carol in carols]
            await asyncio.sleep(0.3)
            self.assertFalse(waiting.done())
            began = time.monotonic()
            await asyncio.to_thread(self.server.stop)
            self.assertLess(time.monotonic() - began, STOP_SECONDS)
            self.assertIn("next_batch", (await asyncio.wait_for(waiting, 1)).json())
            await asyncio.gather(*sends)
            await asyncio.to_thread(self.server.start)
            kept = {event for event, _ in await history(self.alice, self.room)}
            self.assertTrue(answered)
            self.assertEqual([event for event in answered if event not in kept], [])

        self.play(act())

    async def _send_until_gone(self, account: Account, answered: list[str]) -> None:
        while True:
            try:
                answered.append(await account.send(self.room))
            except (ConnectionLostError, OSError):
                return
            except RefusedError as error:
                self.assertEqual(error.status, 503)
                return

    def test_right_after_the_start(self) -> None:
        self.server.stop()
        for wait in (0.2, 0.4, 0.6, 0.8):
            process = subprocess.Popen(
                self.server.command(),
                cwd=self.server.folder,
                env=self.server.environment(),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            time.sleep(wait)
            process.send_signal(signal.SIGTERM)
            output, _ = process.communicate(timeout=STOP_SECONDS)
            self.assertNotIn("Traceback", output)
            self.assertIn(process.returncode, (0, -signal.SIGTERM), output)


class DaemonTests(BreakageCase):
    """`twistd` without ``--nodaemon``: the server goes on in a process that was forked after it was put together."""

    def test_daemon(self) -> None:
        self.server.stop()
        pid_file, log = self.folder / "pid", self.folder / "daemon.log"
        twistd, (_, _, _, *options) = self.server.command()[0], self.server.command()[1:]
        command = [twistd, "--pidfile", str(pid_file), "--logfile", str(log), *options]
        subprocess.run(command, cwd=self.server.folder, env=self.server.environment(), check=True, timeout=20)

        async def act() -> None:
            await self.begin()
            for number in range(5):
                await self.say(f"{number}")
            await self.check()

        try:
            self.play(act())
        finally:
            pid = int(pid_file.read_text())
            os.kill(pid, signal.SIGTERM)
        for _ in range(int(STOP_SECONDS * 10)):
            if not pid_file.exists():
                break
            time.sleep(0.1)
        self.assertFalse(pid_file.exists())
        self.assertNotIn("Traceback", log.read_text())


class FullDiskTests(BreakageCase):
    """The disk takes nothing for a while."""

    @contextmanager
    def full_disk(self) -> Any:
        pid = self.server.process.pid
        _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, hard))
        try:
            yield
        finally:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))

    def test_requests_fail_clearly_and_service_resumes(self) -> None:
        async def act() -> None:
            await self.begin()
            for number in range(20):
                await self.say(f"before {number}")
            with self.full_disk():
                for method, path, body in self._changes():
                    answer = await attempt(self.alice, method, path, body)
                    self.assertEqual(answer.status, 503, (path, answer.body))
                    self.assertGreater(answer.json()["retry_after_ms"], 0)
                self.assertEqual((await attempt(self.alice, "GET", "/account/whoami")).status, 200)
                self.assertEqual(len(await history(self.alice, self.room)), self.before + 20)
                self.assertEqual((await attempt(self.alice, "GET", "/sync")).status, 200)
                self.assertEqual(self.health()[0], 503)
                self.assertTrue(self.health()[1]["warnings"])
            for _ in range(30):
                if self.health() == (200, {}):
                    break
                await asyncio.sleep(0.5)
            self.assertEqual(self.health(), (200, {}))
            for number in range(20):
                await self.say(f"after {number}")
            await self.check()
            self.server.kill()
            await asyncio.to_thread(self.server.start)
            await self.say("the end")
            await self.check()

        self.play(act())

    def _changes(self) -> Sequence[tuple[str, str, Any]]:
        room, alice = quote(self.room), quote(self.alice.user_id)
        return (
            ("PUT", f"/rooms/{room}/send/m.room.message/x", {"msgtype": "m.text", "body": "lost"}),
            ("PUT", f"/rooms/{room}/state/m.room.name", {"name": "lost"}),
            ("POST", "/createRoom", {}),
            ("PUT", "/sendToDevice/m.x/y", {"messages": {self.alice.user_id: {"*": {}}}}),
            ("PUT", f"/user/{alice}/account_data/m.x", {}),
            ("PUT", f"/profile/{alice}/displayname", {"displayname": "lost"}),
            ("POST", "/login", {"type": "m.login.password", "user": "alice", "password": "bench-password"}),
        )


class RefusedStartTests(BreakageCase):
    """What cannot be started says why, in a sentence, and ends with 1."""

    def start_refused(self, config: str = "dendrite.yaml", port: int | None = None) -> str:
        """What both ways of starting print; they have to end by themselves."""
        twistd = [*self.server.command()[:5], "--config", config]
        main = "import sys; from dendrite_tw.commands.server import main; sys.exit(main())"
        direct = [sys.executable, "-c", main, "--config", config]
        printed = []
        for command in (twistd, direct):
            ended = subprocess.run(
                [*command, "--http-bind-address", f"127.0.0.1:{port or free_port()}"],
                cwd=self.server.folder,
                env=self.server.environment(),
                capture_output=True,
                text=True,
                timeout=20,
            )
            output = ended.stdout + ended.stderr
            self.assertEqual(ended.returncode, 1, output)
            self.assertNotIn("Traceback", output)
            printed.append(output)
        return "\n".join(printed)

    def test_second_server_on_the_same_files(self) -> None:
        printed = self.start_refused()
        self.assertEqual(printed.count("Another server (process"), 2, printed)
        self.play(self.begin())

    def test_port_in_use(self) -> None:
        self.assertEqual(self.start_refused(port=self.server.port).count("Address already in use"), 2)

    def test_mistakes(self) -> None:
        self.server.stop()
        folder = self.server.folder
        good = (folder / "dendrite.yaml").read_text()
        (folder / "text").write_text("text")
        for name, text, sentence in (
            ("yaml", good + "global: {", "yaml.yaml:"),
            ("name", good.replace("server_name: localhost", "server_name: 'not a name'"), "global.server_name: "),
            ("key", good.replace("matrix_key.pem", "missing.pem"), "missing.pem cannot be read"),
            ("database", good.replace("room_server.db", "text/room.db"), "room_server.database.connection_string: "),
            ("queue", good.replace(f"{folder}/jetstream", f"{folder}/text/queue"), "global.jetstream.storage_path: "),
        ):
            bad = folder / f"{name}.yaml"
            bad.write_text(text)
            printed = self.start_refused(str(bad))
            self.assertEqual(printed.count(sentence), 2, printed)

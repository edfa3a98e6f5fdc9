"""``dendrite-move-database``: a server with a history moves from SQLite to PostgreSQL, and goes on where it was."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

from twisted.internet.task import Clock
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from dendrite_tw.commands import move_database
from dendrite_tw.locks import Locks
from tests.database.cluster import cluster
from tests.federation_api.network import Network
from tests.harness import ask
from tests.server import POLYLITH, Client
from tests.stories.test_two_houses import ADDRESSES, House
from tests.user_api.keys_support import Device

MEDIA = "/_matrix/media/v3/upload"


def ageless(value: Any) -> Any:
    """An answer without what says how long ago something was."""
    if isinstance(value, dict):
        return {key: ageless(inside) for key, inside in value.items() if key != "age"}
    return [ageless(inside) for inside in value] if isinstance(value, list) else value


class Moving(SynchronousTestCase):
    """Alice's server, which moves, and Bob's, which it knows."""

    def setUp(self) -> None:
        if POLYLITH or os.environ.get("TEST_POSTGRESQL"):
            raise SkipTest("this begins with SQLite")
        self.clock = Clock()
        self.clock.advance(1_700_000_000)
        self.network = Network(self.clock)
        self.folder = Path(self.mktemp()).resolve()
        self.folder.mkdir()
        self.here, self.there = (House(name, self.network, self.folder / name) for name in ADDRESSES)
        for house in (self.here, self.there):
            house.open()
            self.addCleanup(house.stop)
        self.config = self.folder / "dendrite.yaml"
        self.config.write_text(self.here.config_text)

    def settle(self, seconds: float = 2.0) -> None:
        for _ in range(int(seconds / 0.25)):
            self.here.pump(0.25)

    def run_command(self, *words: str) -> tuple[int, str]:
        """Exit code and output."""
        told = io.StringIO()
        with contextlib.redirect_stderr(told), contextlib.redirect_stdout(told):
            code = move_database.main(["-config", str(self.config), *words])
        return code, told.getvalue()


class StoryTests(Moving):
    def begin(self) -> None:
        """Encrypted devices, a room with somebody elsewhere, files, receipts, account data, and what waits."""
        self.alice, self.bob = self.here.register("alice"), self.there.register("bob")
        self.carol = self.here.register("carol")
        self.room = self.alice.create_room(preset="public_chat", room_alias_name="square", name="The square")
        self.carol.join(self.room)
        self.bob.ok(self.bob.post(f"/join/{quote(self.room)}?server_name=test"))
        self.settle()
        device = Device(self.carol.user_id, self.carol.device_id)
        keys = {"device_keys": device.keys(), "one_time_keys": device.one_time("a")}
        self.carol.ok(self.carol.post("/keys/upload", keys))
        for number in range(30):
            self.alice.say(self.room, f"before {number}")
        self.settle()
        self.read = self.bob.say(self.room, "from far away")
        self.settle()
        self.carol.ok(self.carol.post(f"/rooms/{quote(self.room)}/receipt/m.read/{quote(self.read)}"))
        self.carol.ok(self.carol.put("/user/%40carol:test/account_data/org.colours", {"sky": "blue"}))
        self.uploaded = self.carol.ok(self.carol.request("POST", MEDIA, b"a file of Carol's"))["content_uri"]
        self.since = self.carol.sync()["next_batch"]
        messages = {self.carol.user_id: {self.carol.device_id: {"secret": "for Carol"}}}
        self.alice.ok(self.alice.put("/sendToDevice/m.test/1", {"messages": messages}))
        self.there.cut()
        for number in range(40):
            self.alice.say(self.room, f"after {number}")
        self.settle(20)

    def move(self) -> str:
        self.here.stop()
        files = {path: path.read_bytes() for path in (self.folder / "test").glob("*.db")}
        self.target = cluster().new()
        code, said = self.run_command("-to", self.target)
        self.assertEqual(code, 0, said)
        self.assertEqual({path: path.read_bytes() for path in files}, files)
        self.assertEqual({path.suffix for path in (self.folder / "test").glob("*.db-*")}, {".db-lock"})
        self.here.config_text = re.sub(r'"file:[^"]+"', f'"{self.target}"', self.here.config_text)
        self.here.open()
        self.settle()
        return said

    def texts(self, client: Client) -> list[str]:
        page = client.ok(client.get(f"/rooms/{quote(self.room)}/messages?dir=b&limit=200"))
        return [event["content"]["body"] for event in reversed(page["chunk"]) if event["type"] == "m.room.message"]

    def test_it_goes_on_where_it_was(self) -> None:
        self.begin()
        waiting = ask(self.here.server.parts.databases.of("federation_api"), "SELECT COUNT(*) FROM destination_events")
        self.assertEqual(waiting, [(40,)])
        told = self.carol.sync(self.since)
        page = self.carol.ok(self.carol.get(f"/rooms/{quote(self.room)}/messages?dir=b&limit=5"))
        older = f"/rooms/{quote(self.room)}/messages?dir=b&limit=200&from={page['end']}"
        expected = self.carol.ok(self.carol.get(older))
        self.move()
        again = self.carol.sync(self.since)
        for part in ("rooms", "to_device", "device_one_time_keys_count"):
            self.assertEqual(ageless(again[part]), ageless(told[part]), part)
        self.assertEqual([event["content"] for event in again["to_device"]["events"]], [{"secret": "for Carol"}])
        self.assertEqual(ageless(self.carol.ok(self.carol.get(older))), ageless(expected))
        caught_up = self.carol.sync(told["next_batch"])
        self.assertNotIn("join", caught_up.get("rooms", {}))
        self.alice.say(self.room, "in the new house")
        joined = self.carol.sync(again["next_batch"])["rooms"]["join"][self.room]
        self.assertEqual([event["content"]["body"] for event in joined["timeline"]["events"]], ["in the new house"])
        self.assertEqual(
            self.carol.sync(told["next_batch"])["rooms"]["join"][self.room]["timeline"], joined["timeline"]
        )
        self.there.connect()
        self.settle(400)
        said = [f"before {n}" for n in range(30)] + ["from far away"]
        said += [f"after {n}" for n in range(40)] + ["in the new house"]
        self.assertEqual(self.texts(self.bob), said)
        self.bob.say(self.room, "welcome")
        self.settle()
        self.assertEqual(self.texts(self.carol), [*said, "welcome"])

    def test_what_accounts_have_is_there(self) -> None:
        self.begin()
        self.move()
        colours = self.carol.get("/user/%40carol:test/account_data/org.colours")
        self.assertEqual(self.carol.ok(colours), {"sky": "blue"})
        name, _, media_id = self.uploaded.removeprefix("mxc://").partition("/")
        file = self.carol.get(f"/_matrix/client/v1/media/download/{name}/{media_id}")
        self.assertEqual((file.status, file.body), (200, b"a file of Carol's"))
        claim = {"one_time_keys": {self.carol.user_id: {self.carol.device_id: "signed_curve25519"}}}
        for expected in (1, 0):
            found = self.alice.ok(self.alice.post("/keys/claim", claim))["one_time_keys"]
            self.assertEqual(len(found.get(self.carol.user_id, {})), expected)
        alias = self.alice.ok(self.alice.get("/directory/room/%23square:test"))
        self.assertEqual(alias["room_id"], self.room)
        self.here.login("alice")
        dave = self.here.register("dave")
        dave.join(self.room)
        self.assertEqual(self.texts(dave)[-1], "after 39")

    def test_what_is_printed(self) -> None:
        self.begin()
        said = self.move()
        self.assertRegex(said, r"events: \d\d+ rows\n")
        self.assertIn("tables are the same on both sides", said)
        self.assertIn(f'    connection_string: "{self.target}"', said)
        lines = self.config.read_text().splitlines()
        line = next(number for number, text in enumerate(lines, 1) if "room.db" in text)
        self.assertIn(f"  room_server.database.connection_string   (line {line})", said)
        self.assertIn(f"  {self.folder}/test/room.db", said)


class CommandTests(Moving):
    """As a program of its own, and what it refuses."""

    def test_as_its_users_run_it_and_again(self) -> None:
        self.here.register("alice")
        self.here.stop()
        program = [str(Path(sys.executable).parent / "dendrite-move-database"), "-config", str(self.config)]
        target = cluster().new()
        for expected in ("rows: moved.", "rows: there already, the same on both sides."):
            done = subprocess.run([*program, "-to", target], capture_output=True, text=True, timeout=60)
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertIn(expected, done.stdout)

    def test_each_component_where_the_new_file_has_it(self) -> None:
        self.here.stop()
        new = self.folder / "new.yaml"
        text = self.config.read_text()
        targets: dict[str, str] = {}
        for name in re.findall(r'"file:([^"]+)"', text):
            targets[name] = cluster().new()
            text = text.replace(f"file:{name}", targets[name])
        new.write_text(text)
        code, said = self.run_command("-to-config", str(new))
        self.assertEqual(code, 0, said)
        self.assertIn(f"Start the server with {new} from now on.", said)
        self.here.config_text = text
        self.here.open()
        self.here.register("alice")

    def refused(self, *words: str) -> str:
        code, said = self.run_command(*words)
        self.assertEqual(code, 1, said)
        self.assertNotIn("hunter2", said)
        return said

    def test_a_server_that_runs_is_refused(self) -> None:
        locks = Locks()
        self.here.stop()
        locks.take(self.folder / "test" / "user.db-lock")
        self.addCleanup(locks.release)
        self.assertIn("the server is running", self.refused("-to", cluster().new()))

    def test_what_is_no_target_is_refused(self) -> None:
        self.here.stop()
        self.assertIn("no address of a database", self.refused("-to", "mysql://u:hunter2@h/d"))
        told = self.refused("-to", f"host={cluster().folder} user=nobody password=hunter2")
        self.assertIn('role "nobody" does not exist', told)
        self.assertIn("has no PostgreSQL database in", self.refused("-to-config", str(self.config)))
        for words in ([], ["-to", "x", "-to-config", "y"]):
            with contextlib.redirect_stderr(io.StringIO()):
                self.assertRaises(SystemExit, move_database.main, words)

    def test_a_new_file_of_another_server_is_refused(self) -> None:
        new = self.folder / "new.yaml"
        text = re.sub(r'"file:[^"]+"', f'"{cluster().new()}"', self.config.read_text())
        new.write_text(text.replace("server_name: test", "server_name: other.test"))
        self.assertIn("different servers", self.refused("-to-config", str(new)))

    def test_one_that_is_on_postgresql_has_nothing_to_move(self) -> None:
        self.config.write_text(re.sub(r'"file:[^"]+"', f'"{cluster().new()}"', self.config.read_text()))
        self.assertIn("no component of this configuration is on SQLite", self.refused("-to", cluster().new()))

    def test_passwords_are_not_shown(self) -> None:
        cases: dict[str, str] = {
            "postgresql://u:hunter2@h/d": "postgresql://u:***@h/d",
            "postgres://u@h/d?password=hunter2&sslmode=disable": "postgres://u@h/d?password=***&sslmode=disable",
            "host=h password='hunter2 more' user=u": "host=h password=*** user=u",
            "postgresql://u@h/d": "postgresql://u@h/d",
        }
        for given, shown in cases.items():
            self.assertEqual(move_database.without_password(given), shown)

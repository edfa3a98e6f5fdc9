"""One server for its files."""

from __future__ import annotations

from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.assemble import monolith
from dendrite_tw.config import ConfigError, loads
from dendrite_tw.locks import InUseError, Locks
from dendrite_tw.world import test_world
from tests.server import ServerTestCase


class LockTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = Path(self.mktemp()) / "a-lock"
        self.first, self.second = Locks(), Locks()
        self.addCleanup(self.first.release)
        self.addCleanup(self.second.release)

    def test_one_holds_it(self) -> None:
        self.first.take(self.path)
        self.first.take(self.path)
        error = self.assertRaises(InUseError, self.second.take, self.path)
        self.assertRegex(error.holder, r"^process \d+$")

    def test_is_given_back(self) -> None:
        self.first.take(self.path)
        self.first.release()
        self.second.take(self.path)
        self.assertRaises(InUseError, self.first.take, self.path)

    def test_what_cannot_be_written(self) -> None:
        self.path.parent.parent.mkdir(exist_ok=True)
        self.path.parent.write_text("a file")
        self.assertRaises(OSError, self.first.take, self.path)


class SecondServerTests(ServerTestCase):
    def refused(self, text: str) -> str:
        config = loads(text, "dendrite.yaml", allow_open_registration=True)
        return str(self.assertRaises(ConfigError, monolith, config, test_world(self.clock)))

    def test_on_the_same_files(self) -> None:
        self.assertRegex(
            self.refused(self.config_text),
            r"user_api.account_database.connection_string: Another server \(process \d+\) uses it. Stop that one",
        )

    def test_on_the_same_queue(self) -> None:
        text = self.config_text.replace("in_memory: true, ", "")
        one = Locks()
        self.addCleanup(one.release)
        config = loads(text, "dendrite.yaml", allow_open_registration=True)
        one.take(Path(config.global_.jetstream.storage_path) / "lock")
        self.assertIn("global.jetstream.storage_path: Another server", self.refused(text))

    def test_on_what_is_no_database(self) -> None:
        text = self.config_text.replace("/user.db", "/matrix_key.pem")
        self.assertIn("matrix_key.pem cannot be opened: file is not a database", self.refused(text))

"""Reading and writing without a pause while a test disturbs the database, and what must be true afterwards."""

from __future__ import annotations

from collections.abc import Awaitable, Coroutine
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from dendrite_tw.database.addresses import dsn_of
from dendrite_tw.database.engines import Unavailable
from dendrite_tw.database.groups import Unacknowledged
from dendrite_tw.database.migrate import migrate
from dendrite_tw.database.postgresql import PostgreSQLDatabase
from dendrite_tw.database.statements import Transaction, many
from tests.database.cluster import Cluster
from tests.database.test_engines import STEP, insert, value_of


@many(str, "SELECT key FROM pairs ORDER BY key")
def keys(txn: Transaction) -> None: ...


def run(coroutine: Coroutine[Any, Any, Any]) -> Deferred[Any]:
    return Deferred.fromCoroutine(coroutine)


def pause(seconds: float) -> Deferred[None]:
    return deferLater(reactor, seconds, lambda: None)  # type: ignore[arg-type]


class Case(TestCase):
    timeout = 60

    def open(self, server: Cluster, **options: Any) -> PostgreSQLDatabase:
        """A database in a schema of its own, with the table of `STEP`."""
        self.schema = server.new()
        return self.join(self.schema, **options)

    def join(self, connection_string: str, **options: Any) -> PostgreSQLDatabase:
        """Another process of the same database, which must be shared then."""
        database = PostgreSQLDatabase(dsn_of(connection_string), reactor, **options)
        database.prepare(migrate, "pairs", [STEP])
        self.addCleanup(database.close)
        return database


class Load(Case):
    """Writes go through each of the databases, which stand for processes."""

    def begin(self, databases: list[PostgreSQLDatabase]) -> None:
        self.databases = databases
        self.numbers = iter(range(1_000_000))
        self.stored: list[set[str]] = [set() for _ in databases]
        self.unknown: set[str] = set()
        self.refused = 0
        self.over = False

    async def load(self, index: int) -> None:
        """Write and read until told to stop; note which writes were promised."""
        database = self.databases[index]
        while not self.over:
            key = str(next(self.numbers))
            try:
                await database.write(insert, 1, key)
                self.stored[index].add(key)
                await database.read(value_of, key)
            except Unacknowledged:
                self.unknown.add(key)
            except Unavailable:
                self.refused += 1
                await pause(0.02)

    async def under_load(self, disturb: Awaitable[Any], each: int = 12) -> None:
        """Every database must go on by itself; what was promised is there, what was refused is not."""
        working = gatherResults([run(self.load(index)) for index in range(len(self.databases)) for _ in range(each)])
        await pause(0.3)
        await disturb
        before = [len(stored) for stored in self.stored]
        for _ in range(400):
            await pause(0.05)
            if all(len(stored) > reached + 50 for stored, reached in zip(self.stored, before, strict=True)):
                break
        else:
            self.fail("service did not resume")
        self.over = True
        await working
        found = set(await self.databases[0].read(keys))
        promised = set[str]().union(*self.stored)
        self.assertEqual(promised - found, set())
        self.assertEqual(found - promised - self.unknown, set())

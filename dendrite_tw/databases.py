"""The databases that a configuration names, opened and locked; what is wrong with one stops the start."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred

from .config import Component, Config
from .config import Database as DatabaseSection
from .database.engines import Database, SQLiteDatabase, Unavailable
from .locks import InUseError, Locks
from .world import World

if TYPE_CHECKING:
    from .database.postgresql import InlinePostgreSQL, PostgreSQLDatabase


UNLIMITED = 1000
"""More connections than are ever opened."""


class Databases:
    """The databases that the configuration names: one object for each connection string.

    Where several processes share them (`shared`), one for each component, which takes turns with that
    component in the other processes.
    """

    def __init__(self, config: Config, world: World, shared: bool = False) -> None:
        self._config = config
        self._world = world
        self._shared = shared
        self._open: dict[str, SQLiteDatabase | PostgreSQLDatabase | InlinePostgreSQL] = {}
        self._locks = Locks()

    def of(self, component: Component) -> Database:
        """The database of a component, as ``dendrite.yaml`` names it."""
        wanted = self._config.database_of(component)
        name = wanted.sqlite_path if wanted.is_sqlite else wanted.connection_string
        name = component if self._shared else name
        if name not in self._open:
            make = self._sqlite if wanted.is_sqlite else self._postgresql
            self._open[name] = make(self._config.key_of_database(component), wanted, component)
        return self._open[name]

    def _sqlite(self, key: str, wanted: DatabaseSection, component: Component) -> SQLiteDatabase:
        path = wanted.sqlite_path
        if self._shared:
            advice = "Write postgresql://user:password@host/name, or run all components in one process."
            raise self._config.error(key, f"Several processes cannot share {path}: they need PostgreSQL.", advice)
        if path != ":memory:":
            self.lock(key, Path(f"{path}-lock"))
        try:
            return SQLiteDatabase(path, self._world.threads)
        except (sqlite3.Error, OSError) as error:
            raise self._config.error(
                key, f"{path} cannot be opened: {error}.", "Check the file and the permissions of its directory."
            ) from None

    def _postgresql(
        self, key: str, wanted: DatabaseSection, component: Component
    ) -> PostgreSQLDatabase | InlinePostgreSQL:
        # The driver is of no use, and five megabytes of memory, to a server on SQLite.
        from .database.addresses import dsn_of
        from .database.connections import said_by
        from .database.groups import InUse
        from .database.postgresql import InlinePostgreSQL, PostgreSQLDatabase

        try:
            dsn = dsn_of(wanted.connection_string)
        except ValueError as error:
            advice = "Write postgresql://user:password@host/name?sslmode=disable, or file:name.db for SQLite."
            raise self._config.error(key, f"This is no address of a database: {error}.", advice) from None
        most, kept = pool_size(wanted)
        shared = component if self._shared else ""
        try:
            if self._world.threads is None:
                return InlinePostgreSQL(dsn, shared)
            return PostgreSQLDatabase(dsn, self._world.time, most, kept, lifetime_of(wanted), shared)
        except InUse as error:
            advice = "One process with all components keeps a database to itself. "
            advice += "Stop what runs, or give each deployment a database of its own."
            raise self._config.error(key, f"PostgreSQL: {error.reason}.", advice) from None
        except Unavailable as error:
            advice = "Start PostgreSQL, and see that the user may connect to the database (psql with the same string)."
            raise self._config.error(key, f"PostgreSQL cannot be used: {said_by(error.__cause__)}.", advice) from None

    def begin(self) -> None:
        """Called when the reactor runs, which may be in another process than the one that opened them."""
        for database in self._open.values():
            database.begin()

    def lock(self, key: str, path: Path) -> None:
        """Keep other servers away from what the configuration names under `key`."""
        try:
            self._locks.take(path)
        except InUseError as error:
            by = f" ({error.holder})" if error.holder else ""
            raise self._config.error(
                key, f"Another server{by} uses it.", "Stop that one, or give each server files of its own."
            ) from None
        except OSError as error:
            raise self._config.error(key, f"{path} cannot be written: {error.strerror or error}.") from None

    @property
    def degraded(self) -> list[str]:
        """The databases that do not take changes at the moment."""
        failing = [database for database in self._open.values() if database.failing]
        return [f"{database.label}: {database.failing}" for database in failing]

    async def probe(self) -> None:
        """Find out whether databases that failed take changes again."""
        for database in self._open.values():
            if database.failing:
                await database.probe()

    def rest(self) -> None:
        """Let the databases that are not used at the moment give back memory."""
        for database in self._open.values():
            if isinstance(database, SQLiteDatabase):
                database.rest()

    async def close(self) -> None:
        for database in self._open.values():
            await ended(database.close())
        self._locks.release()


def pool_size(wanted: DatabaseSection) -> tuple[int, int]:
    """The most connections and the most idle ones, as Go's `database/sql` means them.

    0 and negative numbers are no limit for the ones and none for the others.
    """
    most = wanted.max_open_conns if wanted.max_open_conns > 0 else UNLIMITED
    return most, min(max(0, wanted.max_idle_conns), most)


def lifetime_of(wanted: DatabaseSection) -> float:
    """Seconds after which a connection is replaced, 0 for never."""
    return max(0.0, float(wanted.conn_max_lifetime))


async def ended(stopping: Any) -> None:
    """Wait for the end of what may take its time: a coroutine, a `Deferred`, or nothing."""
    if isinstance(stopping, Deferred) or hasattr(stopping, "__await__"):
        await stopping

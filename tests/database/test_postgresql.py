"""PostgreSQL without a reactor: the contracts of every engine, and what only it can do wrong."""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path
from typing import Any

import psycopg2
from psycopg2 import errors
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.assemble import monolith
from dendrite_tw.config import Config, ConfigError, loads
from dendrite_tw.config import Database as DatabaseSection
from dendrite_tw.database.addresses import dsn_of
from dendrite_tw.database.connections import is_lost
from dendrite_tw.database.dialects import POSTGRESQL
from dendrite_tw.database.engines import Unavailable, _Job, run_inline
from dendrite_tw.database.groups import ATTEMPTS, Unacknowledged, commit_group
from dendrite_tw.database.migrate import migrate, steps_of
from dendrite_tw.database.postgresql import InlinePostgreSQL
from dendrite_tw.database.statements import Statement, Transaction
from dendrite_tw.databases import UNLIMITED, Databases, lifetime_of, pool_size
from dendrite_tw.matrix.errors import MatrixError
from dendrite_tw.matrix.keys import signing_key, write_pem
from dendrite_tw.world import test_world
from tests.database.cluster import cluster
from tests.database.test_engines import (
    STEP,
    OutboxContract,
    TransactionContract,
    count,
    insert,
    insert_each,
    value_of,
)
from tests.server import CONFIG

COMPONENTS = ["federation_api", "media_api", "room_api", "sync_api", "user_api"]


class Engine:
    def make_database(self) -> InlinePostgreSQL:
        return InlinePostgreSQL(dsn_of(cluster().new()))


class PostgreSQLTests(Engine, TransactionContract, SynchronousTestCase):
    def test_text_with_nul_is_refused_with_a_reason(self) -> None:
        error = self.failureResultOf(self.database.write(insert, 1, "a\0b"), MatrixError).value
        self.assertEqual((error.status, error.errcode), (400, "M_INVALID_PARAM"))
        error = self.failureResultOf(self.database.write(insert_each, [("a\0b", 1)]), MatrixError).value
        self.assertEqual(error.status, 400)
        self.assertEqual(self.read(count), 0)

    def test_going_on_after_a_failed_statement_is_refused(self) -> None:
        async def careless(txn: Transaction) -> None:
            await insert(txn, 1, "a")
            try:
                await insert(txn, 1, "a")
            except psycopg2.IntegrityError:
                pass

        self.failureResultOf(self.database.write(careless), RuntimeError)
        self.assertEqual(self.read(count), 0)


class PostgreSQLOutboxTests(Engine, OutboxContract, SynchronousTestCase):
    pass


class GroupTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.database = Engine().make_database()
        self.addCleanup(self.database.close)
        self.database.prepare(migrate, "pairs", [STEP])

    def group(self, *functions: Any) -> list[_Job]:
        jobs = [_Job(function, args, {}, Deferred()) for function, *args in functions]
        run_inline(commit_group(self.database._session(), jobs))
        return jobs

    def outcomes(self, jobs: list[_Job]) -> list[Any]:
        return [job.failure.type if job.failure else job.result for job in jobs]

    def count(self) -> int:
        return run_inline(self.database.read(count))

    def test_a_failure_takes_back_only_itself(self) -> None:
        async def nothing(txn: Transaction) -> str:
            return "idle"

        async def late(txn: Transaction) -> None:
            await insert(txn, 9, "late")
            raise KeyError

        jobs = self.group(
            (insert, 1, "a"),
            (insert, 2, "a"),
            (nothing,),
            (insert, 3, "\0"),
            (late,),
            (insert, 4, "b"),
            (insert, 5, "b"),
        )
        expected = [1, errors.UniqueViolation, "idle", MatrixError, KeyError, 1, errors.UniqueViolation]
        self.assertEqual(self.outcomes(jobs), expected)
        self.assertEqual(self.count(), 2)

    def test_what_nobody_waits_for_goes_along_with_what_follows(self) -> None:
        asked: list[Any] = []
        session = self.database._session()
        query = session.query
        session.query = lambda sql, values: asked.append(sql) or query(sql, values)  # type: ignore

        async def many_steps(txn: Transaction, name: str) -> tuple[int | None, int]:
            await insert_each(txn, [(f"{name} 50 % %s :x", 1), (f"{name} b", 2)])
            await insert_each(txn, [(f"{name} c", 3)])
            found = await value_of(txn, f"{name} 50 % %s :x")
            await insert_each(txn, [(f"{name} d", 4)])
            await insert_each(txn, [(f"{name} e", 5)])
            return found, await count(txn)

        async def only_stores(txn: Transaction, *names: str) -> None:
            for name in names:
                await insert_each(txn, [(name, 1)])

        jobs = self.group((many_steps, "x"), (only_stores, "y", "z"), (many_steps, "z"))
        self.assertEqual(self.outcomes(jobs), [(1, 5), None, (1, 12)])
        self.assertEqual(len(asked), 1 + 2 + 1 + 2 + 1)
        asked.clear()
        jobs = self.group((only_stores, "f", "y"), (only_stores, "g"), (many_steps, "x"), (insert, 1, "h"))
        self.assertEqual(self.outcomes(jobs), [errors.UniqueViolation, None, errors.UniqueViolation, 1])
        self.assertEqual(self.count(), 14)

    def test_much_is_not_put_off(self) -> None:
        async def store_much(txn: Transaction) -> int:
            for number in range(10):
                await insert_each(txn, [(f"{number} {index}" + "x" * 2000, 1) for index in range(100)])
            return await count(txn)

        (job,) = self.group((store_much,))
        self.assertEqual((job.result, self.count()), (1000, 1000))

    def test_a_defect_that_ends_the_transaction_tells_all_of_them(self) -> None:
        async def nonsense(txn: Transaction) -> None:
            await txn.execute("SELECT FROM WHERE", ())

        outcomes = self.outcomes(self.group((insert, 1, "a"), (nonsense,), (insert, 2, "b")))
        self.assertTrue(all(isinstance(one, type) and issubclass(one, Exception) for one in outcomes), outcomes)
        self.assertEqual(self.count(), 0)
        self.assertEqual(self.outcomes(self.group((insert, 1, "a"))), [1])

    def test_what_the_server_takes_back_is_tried_again(self) -> None:
        tries: list[int] = []

        async def crossing(txn: Transaction, failures: int) -> str:
            tries.append(1)
            txn.after_commit(lambda: None)
            await insert(txn, len(tries), f"key {len(tries)}")
            if len(tries) <= failures:
                raise errors.DeadlockDetected
            return "done"

        (job,) = self.group((crossing, 2))
        self.assertEqual((job.result, job.failure, len(job.hooks)), ("done", None, 1))
        self.assertEqual((len(tries), self.count()), (3, 1))
        (job,) = self.group((crossing, 100))
        assert job.failure is not None
        self.assertEqual(len(tries), 3 + ATTEMPTS)
        self.assertEqual((job.failure.type, self.count()), (Unavailable, 1))


class Breaking:
    """A session whose connection breaks at a query that holds a text, before or after it was carried out."""

    pending = None
    failed = False

    def __init__(self, session: Any, text: str, after: bool) -> None:
        self._session = session
        self._text = text
        self._after = after
        self.alive = True

    async def query(self, sql: Any, values: Any) -> Any:
        text = sql if isinstance(sql, str) else sql.decode()
        breaks = re.search(rf"\b{self._text}\b", text) is not None
        if breaks and not self._after:
            self.close()
            raise psycopg2.OperationalError("gone")
        result = await self._session.query(sql, values)
        if breaks:
            self.close()
            raise psycopg2.OperationalError("gone")
        return result

    def mogrify(self, sql: Any, values: Any) -> Any:
        return self._session.mogrify(sql, values)

    def close(self) -> None:
        self.alive = False
        self._session.close()


class LostTests(SynchronousTestCase):
    def outcome(self, text: str, after: bool) -> tuple[Any, int]:
        database = Engine().make_database()
        self.addCleanup(database.close)
        database.prepare(migrate, "pairs", [STEP])
        database._connection = Breaking(database._session(), text, after)  # type: ignore[assignment]
        failure = self.failureResultOf(database.write(insert, 1, "a"))
        return failure.type, run_inline(database.read(count))

    def test_before_the_commit_nothing_is_stored(self) -> None:
        self.assertEqual(self.outcome("BEGIN", False), (Unavailable, 0))
        self.assertEqual(self.outcome("INSERT", False), (Unavailable, 0))
        self.assertEqual(self.outcome("INSERT", True), (Unavailable, 0))

    def test_during_the_commit_nobody_knows(self) -> None:
        self.assertEqual(self.outcome("COMMIT", False), (Unacknowledged, 0))
        self.assertEqual(self.outcome("COMMIT", True), (Unacknowledged, 1))

    def test_which_errors_mean_that_the_connection_is_gone(self) -> None:
        self.assertTrue(is_lost(psycopg2.OperationalError("server closed the connection")))
        self.assertTrue(is_lost(psycopg2.InterfaceError("connection already closed")))
        self.assertFalse(is_lost(psycopg2.ProgrammingError("can't adapt type")))
        self.assertFalse(is_lost(ValueError("NUL")))


class AddressTests(SynchronousTestCase):
    def test_forms_of_the_go_driver(self) -> None:
        cases = {
            "postgres://u:p@h:5433/d?sslmode=disable": ["host=h", "port=5433", "user=u", "dbname=d", "sslmode=disable"],
            "postgresql://u@h/d?binary_parameters=yes": ["host=h", "user=u", "dbname=d"],
            "user=u dbname=d binary_parameters=yes sslmode=disable": ["host=localhost", "user=u", "sslmode=disable"],
            "user=u password='with space' host=/run/x": ["host=/run/x", "password='with space'"],
            "postgresql:///d": ["host=localhost", "dbname=d"],
        }
        for given, parts in cases.items():
            for part in parts:
                self.assertIn(part, dsn_of(given), given)

    def test_what_is_neither_is_refused_without_its_secrets(self) -> None:
        for wrong in ("hunter2", "user=u password='hunter2", "mysql://u:hunter2@h/d"):
            with self.assertRaises(ValueError) as caught:
                dsn_of(wrong)
            self.assertNotIn("hunter2", str(caught.exception))
        with self.assertRaises(ValueError) as caught:
            dsn_of("postgres://u@h/d?colour=red")
        self.assertIn("colour", str(caught.exception))


class PoolSizeTests(SynchronousTestCase):
    def test_the_keys_mean_what_they_mean_to_go(self) -> None:
        cases = {
            (10, 5): (10, 5),
            (3, 5): (3, 3),
            (0, 0): (UNLIMITED, 0),
            (-1, -1): (UNLIMITED, 0),
        }
        for (most, kept), expected in cases.items():
            self.assertEqual(pool_size(DatabaseSection(max_open_conns=most, max_idle_conns=kept)), expected)
        self.assertEqual(pool_size(DatabaseSection()), (90, 2))

    def test_a_lifetime_is_in_seconds_and_none_below_one(self) -> None:
        self.assertEqual(lifetime_of(DatabaseSection(conn_max_lifetime=60)), 60.0)
        self.assertEqual(lifetime_of(DatabaseSection(conn_max_lifetime=0)), 0.0)
        self.assertEqual(lifetime_of(DatabaseSection()), 0.0)


class StartTests(SynchronousTestCase):
    """What the operator hears of a database that cannot be used."""

    def config(self, connection_string: str = "") -> Config:
        folder = Path(self.mktemp())
        folder.mkdir()
        (folder / "matrix_key.pem").write_text(write_pem(signing_key("ed25519:1", b"k" * 32)))
        text = CONFIG.format(folder=folder.resolve(), secret="s")
        if connection_string:
            text = re.sub(r'"file:[^"]+"', f'"{connection_string}"', text)
        return loads(text, "dendrite.yaml", allow_open_registration=True)

    def refusal(self, connection_string: str) -> str:
        with self.assertRaises(ConfigError) as caught:
            monolith(self.config(connection_string), test_world(Clock()))
        return str(caught.exception)

    def test_the_key_and_the_reason_are_named_and_no_password(self) -> None:
        socket = cluster().folder
        for given, reason in {
            "postgres://u:hunter2@h/d?colour=red": "colour",
            "hunter2": "neither a URI nor key=value",
            "host=/nowhere user=u password=hunter2": "No such file or directory",
            f"host={socket} user=nobody password=hunter2": 'role "nobody" does not exist',
        }.items():
            told = self.refusal(given)
            self.assertIn("user_api.account_database.connection_string", told)
            self.assertIn(reason, told)
            self.assertNotIn("hunter2", told)

    def opened(self, config: Config, shared: bool) -> Databases:
        databases = Databases(config, test_world(Clock()), shared)
        self.addCleanup(lambda: self.successResultOf(Deferred.fromCoroutine(databases.close())))
        return databases

    def test_processes_that_share_have_an_object_for_each_component(self) -> None:
        config = self.config(cluster().new())
        one, other = self.opened(config, shared=True), self.opened(config, shared=True)
        self.assertTrue(one.of("room_server").shared)
        self.assertIs(one.of("room_server"), one.of("room_server"))
        self.assertIsNot(one.of("room_server"), one.of("user_api"))
        other.of("room_server").prepare(migrate, "room_api", steps_of("dendrite_tw.room_api"))
        with self.assertRaises(ConfigError) as caught:
            self.opened(config, shared=False).of("sync_api")
        told = str(caught.exception)
        self.assertIn("sync_api.database.connection_string", told)
        self.assertIn("processes of a polylith use this database", told)

    def test_one_with_everything_shares_with_nobody(self) -> None:
        config = self.config(cluster().new())
        one = self.opened(config, shared=False)
        self.assertIs(one.of("room_server"), one.of("user_api"))
        self.assertFalse(one.of("user_api").shared)
        with self.assertRaises(ConfigError) as caught:
            self.opened(config, shared=True).of("room_server")
        self.assertIn("another server uses this database", str(caught.exception))

    def test_files_cannot_be_shared(self) -> None:
        with self.assertRaises(ConfigError) as caught:
            self.opened(self.config(), shared=True).of("media_api")
        self.assertIn("media_api.database.connection_string", str(caught.exception))
        self.assertIn("they need PostgreSQL", str(caught.exception))


def statements_of(component: str) -> list[tuple[str, Statement]]:
    """Every statement of a component's tables, by its name."""
    package = importlib.import_module(f"dendrite_tw.{component}.tables")
    found = []
    for entry in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{entry.name}")
        for name, value in vars(module).items():
            statement = getattr(value, "statement", None)
            if isinstance(statement, Statement):
                found.append((f"{entry.name}.{name}", statement))
    return found


def prepared(statement: Statement) -> str:
    """The statement with numbered parameters, whose types the server then has to find."""
    order = iter(statement.order(POSTGRESQL))
    names = list(dict.fromkeys(statement.order(POSTGRESQL)))
    text = re.sub("%s", lambda _: f"${names.index(next(order)) + 1}", statement.text(POSTGRESQL))
    return text.replace("%%", "%")


class DialectTests(SynchronousTestCase):
    def test_every_statement_and_migration_is_understood(self) -> None:
        database = Engine().make_database()
        self.addCleanup(database.close)

        async def prepare(txn: Transaction, sql: str) -> None:
            await txn.execute(f"PREPARE one AS {sql.replace('%', '%%')}", ())
            await txn.execute("DEALLOCATE one", ())

        for component in COMPONENTS:
            database.prepare(migrate, component, steps_of(f"dendrite_tw.{component}"))
            found = statements_of(component)
            self.assertTrue(found)
            for name, statement in found:
                try:
                    database.prepare(prepare, prepared(statement))
                except psycopg2.Error:
                    self.fail(f"{component}.{name}: {Failure().getErrorMessage()}")

    def test_a_statement_of_another_dialect_is_noticed(self) -> None:
        database = Engine().make_database()
        self.addCleanup(database.close)
        with self.assertRaises(psycopg2.Error):
            database.prepare(lambda txn: txn.execute("INSERT OR IGNORE INTO pairs VALUES (1)", ()))

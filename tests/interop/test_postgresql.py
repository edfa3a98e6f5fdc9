"""PostgreSQL over the real reactor: many writers, a server that restarts under load, connections that are killed."""

from __future__ import annotations

import signal
from typing import Any

from psycopg2.errors import DivisionByZero
from psycopg2.extensions import parse_dsn
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, DeferredList, gatherResults

from bench.processes import free_port
from dendrite_tw.database import pool
from dendrite_tw.database.addresses import dsn_of, places_of
from dendrite_tw.database.connections import ReactorConnection
from dendrite_tw.database.engines import Unavailable
from dendrite_tw.database.groups import Unacknowledged
from dendrite_tw.database.migrate import migrate
from dendrite_tw.database.outbox import Outbox
from dendrite_tw.database.postgresql import PostgreSQLDatabase
from dendrite_tw.database.statements import Transaction, many, none, one
from dendrite_tw.matrix.errors import MatrixError
from dendrite_tw.world import SeededRandom
from tests.database.cluster import Cluster, cluster
from tests.database.test_engines import VALUES, count, insert, insert_each, store, stored, value_of
from tests.interop.database_load import Case, Load, keys, pause, run


@one(int, "SELECT COUNT(*) FROM pg_sleep(0.05)")
def slow(txn: Transaction) -> None: ...


END = "SELECT pg_terminate_backend(pg_backend_pid()); SELECT pg_sleep(5)"


@none(END)
def end_oneself(txn: Transaction) -> None: ...


def random_text(length: int) -> str:
    """Text that cannot be compressed much."""
    return SeededRandom(0).token(length)


class ReactorTests(Case):
    def setUp(self) -> None:
        self.database = self.open(cluster())

    async def test_writes_are_read(self) -> None:
        self.assertEqual(await self.database.write(insert, 1, "a"), 1)
        self.assertEqual(await self.database.read(value_of, "a"), 1)
        self.assertEqual(await self.database.read_long(count), 1)
        await self.database.write(insert_each, [(f"k{number}", number) for number in range(1000)])
        self.assertEqual(await self.database.read(count), 1001)

    async def test_large_values_go_both_ways(self) -> None:
        self.database.prepare(migrate, "values", [VALUES])
        data = bytes(range(256)) * 4096
        await gatherResults([self.database.write(store, n, "ä" * n, data * n, n) for n in range(1, 6)])
        rows = await self.database.read(stored)
        self.assertEqual([len(row.data) for row in rows], [n << 20 for n in range(1, 6)])
        self.assertEqual(rows[4].data, data * 5)
        error = await self.assertFailure(self.database.write(insert, 1, random_text(100_000)), MatrixError)
        self.assertEqual((error.status, error.errcode), (413, "M_TOO_LARGE"))

    async def test_each_of_many_writers_is_told_its_own_outcome(self) -> None:
        writes = [self.database.write(insert, number, f"key {number % 150}") for number in range(300)]
        outcomes = await DeferredList(writes, consumeErrors=True)
        self.assertEqual([done for done, _ in outcomes], [True] * 150 + [False] * 150)
        self.assertEqual(await self.database.read(count), 150)

    async def test_positions_grow_in_the_order_of_commits(self) -> None:
        outbox = Outbox("room_api", self.database)
        self.database.prepare(outbox.create)
        seen: list[int] = []
        outbox.on_commit = lambda rows: seen.extend(row.id for row in rows)
        given = await gatherResults([self.database.write(outbox.append, "S", b"x") for _ in range(200)])
        self.assertEqual(seen, given)
        self.assertEqual(seen, list(range(1, 201)))
        self.assertEqual([row.id for row in await outbox.read_after(0, 1000)], seen)

    async def test_waiting_for_anything_but_sql_is_refused(self) -> None:
        async def waits(txn: Transaction) -> None:
            await insert(txn, 1, "a")
            await pause(0)

        await self.assertFailure(self.database.write(waits), RuntimeError)
        await self.assertFailure(self.database.read_long(waits), RuntimeError, MatrixError, Exception)
        self.assertEqual(await self.database.read(count), 0)

    async def test_reading_cannot_write(self) -> None:
        await self.assertFailure(self.database.read_long(insert, 1, "a"), Exception)
        self.assertEqual(await self.database.read(count), 0)

    async def test_who_cancels_leaves_quietly(self) -> None:
        reading = self.database.read_long(slow)
        writing = self.database.write(insert, 1, "a")
        reading.cancel()
        writing.cancel()
        await self.assertFailure(reading, CancelledError)
        await self.assertFailure(writing, CancelledError)
        await pause(0.1)
        self.assertEqual(await self.database.read(count), 1)

    async def test_closing_finishes_what_waits(self) -> None:
        writes = [self.database.write(insert, number, f"{number}") for number in range(100)]
        await self.database.close()
        self.assertEqual(await gatherResults(writes), [1] * 100)
        await self.assertFailure(self.database.write(insert, 1, "late"), Unavailable)
        await self.assertFailure(self.database.read_long(count), Unavailable)


@many(str, "SELECT key FROM pairs WHERE key = ANY(:keys) AND (:least IS NULL OR value >= :least) ORDER BY key")
def keys_from(txn: Transaction, keys: list[str], least: int | None) -> None: ...


@many(str, "SELECT name FROM pg_prepared_statements ORDER BY name")
def prepared(txn: Transaction) -> None: ...


@many(str, "SELECT key FROM pairs WHERE key = ANY(:keys) AND key LIKE 'k%' ORDER BY key")
def keys_that_begin(txn: Transaction, keys: list[str]) -> None: ...


@one(int, "SELECT 10 / :number")
def divided(txn: Transaction, number: int) -> None: ...


class PreparedTests(Case):
    """What is read again and again is planned once."""

    def setUp(self) -> None:
        self.database = self.open(cluster())

    async def test_the_answers_stay_the_same(self) -> None:
        await self.database.write(insert_each, [(f"k{number}", number) for number in range(5)])
        for wanted in ([], ["k1"], ["k1", "k3", "k7"], ["'; --", "%s", "k4"]):
            found = await self.database.read(keys_that_begin, wanted)
            self.assertEqual(found, [key for key in wanted if key.startswith("k") and key != "k7"])
        self.assertEqual(await self.database.read(prepared), ["s1"])

    async def test_what_cannot_be_prepared_is_asked_all_the_same(self) -> None:
        await self.database.write(insert_each, [(f"k{number}", number) for number in range(5)])
        for least in (None, 3, None, 4):
            found = await self.database.read(keys_from, ["k2", "k3"], least)
            self.assertEqual(found, [key for key in ("k2", "k3") if int(key[1]) >= (least or 0)])

    async def test_errors_are_those_of_the_statement(self) -> None:
        for number in (5, 2, 0, 1):
            if number:
                self.assertEqual(await self.database.read(divided, number), 10 // number)
            else:
                await self.assertFailure(self.database.read_long(divided, number), DivisionByZero)


class PoolTests(Case):
    def backends(self) -> int:
        """How many connections the database under test has."""
        (row,) = cluster().ask("SELECT COUNT(*) FROM pg_stat_activity WHERE application_name = 'dendrite_tw'")
        return int(str(row[0]))

    async def test_no_more_connections_than_allowed(self) -> None:
        before = self.backends()
        database = self.open(cluster(), most=4)
        reads = [database.read_long(slow) for _ in range(20)]
        writing = database.write(insert, 1, "a")
        await pause(0.1)
        self.assertEqual(self.backends() - before, 4)
        self.assertEqual(await gatherResults(reads), [1] * 20)
        await writing

    async def test_fewer_than_allowed_will_do(self) -> None:
        """The server lets in fewer than the configuration says."""
        database = self.open(cluster(), most=10)
        await database.write(insert, 1, "a")
        cluster().ask("CREATE ROLE few LOGIN CONNECTION LIMIT 4")
        self.addCleanup(cluster().ask, "DROP OWNED BY few; DROP ROLE few")
        name = self.schema.rpartition("%3D")[2].partition("&")[0]
        cluster().ask(f"GRANT ALL ON SCHEMA {name} TO few; GRANT ALL ON ALL TABLES IN SCHEMA {name} TO few")
        await database.close()
        few = PostgreSQLDatabase(dsn_of(self.schema.replace("postgres@", "few@")), reactor, most=10)
        self.addCleanup(few.close)
        await few.write(insert, 1, "b")
        self.assertEqual(await gatherResults([few.read_long(count) for _ in range(40)]), [2] * 40)

    async def test_there_is_always_one_to_read_and_one_to_write(self) -> None:
        database = self.open(cluster(), most=1)
        await gatherResults([database.read_long(slow), database.write(insert, 1, "a"), database.read_long(count)])
        self.assertEqual(database._pool.size, 1)

    async def test_a_shared_database_has_two_to_write(self) -> None:
        before = self.backends()
        database = self.open(cluster(), most=4, shared="pairs")
        reads = [database.read_long(slow) for _ in range(20)]
        await gatherResults([*reads, database.write(insert, 1, "a"), database.apart(insert, 1, "b")])
        self.assertEqual(database._pool.size, 2)
        self.assertEqual(self.backends() - before, 4)

    async def test_idle_connections_are_closed_in_time(self) -> None:
        self.patch(pool, "IDLE_SECONDS", 0.6)
        for kept in (0, 2):
            database = self.open(cluster(), most=6, kept=kept)
            await gatherResults([database.read_long(slow) for _ in range(5)])
            self.assertEqual(database._pool.size, 5)
            await pause(1.0)
            self.assertEqual(database._pool.size, kept)
            self.assertEqual(await database.read(count), 0)

    async def test_old_connections_are_replaced(self) -> None:
        database = self.open(cluster(), lifetime=1.0)

        @one(int, "SELECT pg_backend_pid()")
        def backend(txn: Transaction) -> None: ...

        first, writer = await database.read(backend), await database.write(backend)
        self.assertEqual(await database.read(backend), first)
        self.assertEqual(await database.write(backend), writer)
        await pause(1.5)
        self.assertEqual(database._pool.size, 0)
        self.assertNotEqual(await database.read(backend), first)
        self.assertNotEqual(await database.write(backend), writer)

    async def test_without_a_lifetime_they_stay(self) -> None:
        self.patch(pool, "IDLE_SECONDS", 0.05)
        database = self.open(cluster(), kept=1)

        @one(int, "SELECT pg_backend_pid()")
        def backend(txn: Transaction) -> None: ...

        first, writer = await database.read(backend), await database.write(backend)
        await pause(0.2)
        self.assertEqual((await database.read(backend), await database.write(backend)), (first, writer))


class AddressTests(Case):
    """Names are looked up without holding up the reactor."""

    async def places(self, connection_string: str) -> list[dict[str, str]]:
        return [parse_dsn(place) for place in await places_of(dsn_of(connection_string), reactor)]

    async def test_a_name_becomes_its_addresses(self) -> None:
        found = await self.places("postgresql://u@localhost/d")
        self.assertEqual({place["host"] for place in found}, {"localhost"})
        self.assertIn("127.0.0.1", [place["hostaddr"] for place in found])

    async def test_addresses_and_sockets_stay(self) -> None:
        for given in ("postgresql://u@127.0.0.1/d", "postgresql://u@[::1]/d", "host=/run/x dbname=d"):
            self.assertEqual(await self.places(given), [parse_dsn(dsn_of(given))])

    async def test_several_servers_are_tried_one_by_one(self) -> None:
        found = await self.places("postgresql://u@192.0.2.1:1,localhost:2,192.0.2.3/d?target_session_attrs=read-write")
        self.assertEqual({place["target_session_attrs"] for place in found}, {"read-write"})
        self.assertEqual(len({place["host"] for place in found}), 3)
        self.assertEqual([place["port"] for place in found if place["host"] == "localhost"][:1], ["2"])
        found = await self.places("host=192.0.2.1,192.0.2.2 port=5433 dbname=d user=u")
        self.assertEqual(
            [(place["host"], place["port"]) for place in found], [("192.0.2.1", "5433"), ("192.0.2.2", "5433")]
        )
        found = await self.places("host=a,nowhere.invalid hostaddr=192.0.2.1,192.0.2.2 dbname=d")
        self.assertEqual([place["hostaddr"] for place in found], ["192.0.2.1", "192.0.2.2"])

    async def test_a_name_that_is_not_known_leaves_the_others(self) -> None:
        found = await self.places("postgresql://u@nowhere.invalid,192.0.2.3/d")
        self.assertEqual([place["host"] for place in found], ["192.0.2.3"])

    async def test_an_unknown_name_is_tried_again(self) -> None:
        connection = ReactorConnection(reactor, dsn_of("postgresql://u@nowhere.invalid/d"), "")
        connection.open()
        for _ in range(100):
            await pause(0.02)
            if connection.detector.connectionIsDead:
                break
        self.assertTrue(connection.detector.connectionIsDead)
        connection.close_for_good()


class KilledTests(Case):
    def setUp(self) -> None:
        self.database = self.open(cluster())

    def kill_all(self) -> None:
        cluster().ask("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'dendrite_tw'")

    async def test_idle_connections_that_were_killed_are_not_met_again(self) -> None:
        await self.database.write(insert, 1, "a")
        await gatherResults([self.database.read_long(slow) for _ in range(3)])
        self.kill_all()
        self.assertEqual(await gatherResults([self.database.read_long(count) for _ in range(10)]), [1] * 10)
        await pause(0.3)
        await self.database.write(insert, 2, "b")
        self.assertEqual(await self.database.read(count), 2)

    async def test_reads_that_are_killed_are_asked_again(self) -> None:
        reads = [self.database.read_long(slow) for _ in range(5)]
        await pause(0.03)
        self.kill_all()
        self.assertEqual(await gatherResults(reads), [1] * 5)

    async def test_a_write_that_is_killed_leaves_nothing_and_says_so(self) -> None:
        async def dies(txn: Transaction) -> None:
            await insert(txn, 1, "a")
            await end_oneself(txn)

        failed = await self.assertFailure(self.database.write(dies), Unavailable)
        self.assertNotIsInstance(failed, Unacknowledged)
        self.assertEqual(failed.status, 503)
        self.assertEqual(failed.extra, {"retry_after_ms": 5000})
        await self.database.write(insert, 2, "b")
        self.assertEqual(await self.database.read(keys), ["b"])

    async def test_a_commit_whose_answer_is_lost_is_looked_up(self) -> None:
        for kept in (True, False):
            writer = self.database._writer._connection
            await self.database.write(insert, 0, f"before {kept}")
            await pause(0)  # so that what follows does not share a commit
            query = writer.query

            def breaking(sql: Any, values: Any, writer: Any = writer, kept: bool = kept, query: Any = query) -> Any:
                if not str(sql).endswith("COMMIT"):
                    return query(sql, values)
                del writer.query
                if kept:
                    return query(f"{sql}; {END}", values)
                return query(END, None)

            writer.query = breaking
            hooks: list[str] = []

            async def hooked(txn: Transaction, key: str, hooks: list[str] = hooks) -> str:
                await insert(txn, 1, key)
                txn.after_commit(lambda: hooks.append("ran"))
                return "stored"

            writing = self.database.write(hooked, f"doubtful {kept}")
            later = self.database.write(insert, 2, f"later {kept}")
            if kept:
                self.assertEqual(await writing, "stored")
                self.assertEqual(hooks, ["ran"])
            else:
                self.assertNotIsInstance(await self.assertFailure(writing, Unavailable), Unacknowledged)
                self.assertEqual(hooks, [])
            self.assertEqual(await later, 1)
        expected = ["before False", "before True", "doubtful True", "later False", "later True"]
        self.assertEqual(await self.database.read(keys), expected)


class RestartTests(Load):
    """On a server of its own, for others would notice; it is found by its name."""

    def setUp(self) -> None:
        self.server = Cluster(free_port())
        self.addCleanup(self.server.remove)
        self.database = self.open(self.server)
        self.begin([self.database])

    async def restart(self, how: signal.Signals) -> None:
        self.server.stop(how)
        await pause(0.2)
        self.server.start()

    def test_restart_in_the_middle_of_load(self) -> Deferred[Any]:
        return run(self.under_load(self.restart(signal.SIGINT)))

    def test_crash_in_the_middle_of_load(self) -> Deferred[Any]:
        return run(self.under_load(self.restart(signal.SIGQUIT)))

    def test_many_processes_are_told_the_truth_after_a_crash(self) -> Deferred[Any]:
        """The server then gives numbers again that it gave before, to whoever comes first."""
        dsn = self.server.new()
        self.begin([self.join(dsn, shared=name) for name in ("pairs", "pairs", "others", "more")])
        return run(self.under_load(self.restart(signal.SIGQUIT), each=4))

    async def test_a_server_that_stays_away_refuses_and_comes_back(self) -> None:
        await self.database.write(insert, 1, "a")
        await self.database.read(count)
        module = __import__("dendrite_tw.database.connections", fromlist=["x"])
        self.patch(module, "PATIENCE", 0.2)
        self.patch(__import__("dendrite_tw.database.postgresql", fromlist=["x"]), "PATIENCE", 0.2)
        self.server.stop()
        await self.assertFailure(self.database.write(insert, 1, "b"), Unavailable)
        await self.assertFailure(self.database.read_long(count), Unavailable)
        self.assertTrue(self.database.failing)
        await self.assertFailure(self.database.write(insert, 1, "c"), Unavailable)
        self.server.start()
        for _ in range(200):
            await pause(0.05)
            if not self.database.failing:
                break
        await self.database.write(insert, 1, "d")
        self.assertEqual(await self.database.read(keys), ["a", "d"])

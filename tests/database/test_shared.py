"""A database that several processes write to: turns, fences, positions.  Each object below is a process."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.database.addresses import dsn_of
from dendrite_tw.database.connections import WRITING_WITH_OTHERS, BlockingConnection
from dendrite_tw.database.engines import Fenced, SQLiteDatabase, Unavailable, _Job, run_inline
from dendrite_tw.database.groups import InUse, commit_group
from dendrite_tw.database.migrate import migrate
from dendrite_tw.database.outbox import Outbox, OutboxRow
from dendrite_tw.database.postgresql import InlinePostgreSQL
from dendrite_tw.database.statements import Transaction, none, one
from tests.database.cluster import cluster
from tests.database.test_engines import STEP, OutboxContract, TransactionContract, count, insert


@none("CREATE TABLE IF NOT EXISTS alive (name TEXT PRIMARY KEY)")
def make_alive(txn: Transaction) -> None: ...


@none("INSERT INTO alive (name) VALUES (:name)")
def begin_to_live(txn: Transaction, name: str) -> None: ...


@none("DELETE FROM alive WHERE name = :name")
def bury(txn: Transaction, name: str) -> None: ...


@one(str, "SHOW transaction_isolation")
def isolation(txn: Transaction) -> None: ...


class Engine:
    def make_database(self) -> InlinePostgreSQL:
        return InlinePostgreSQL(dsn_of(cluster().new()), "pairs")


class SharedTests(Engine, TransactionContract, SynchronousTestCase):
    pass


class SharedOutboxTests(Engine, OutboxContract, SynchronousTestCase):
    """The same promises as to one process, but that what may be read is for the reader to know."""

    def test_rows_are_read_once_all_that_follows_from_them_has_begun(self) -> None:
        database = self.make_database()
        self.addCleanup(database.close)
        outbox = Outbox("room_api", database)
        database.prepare(outbox.create)
        for _ in range(3):
            database.prepare(outbox.append, "S", b"1")
        self.assertEqual([row.id for row in run_inline(outbox.read_after(0, 10))], [1, 2, 3])
        self.assertEqual([row.id for row in run_inline(outbox.read_after(1, 10, upto=2))], [2])


class Processes(SynchronousTestCase):
    """Two processes of one component."""

    def setUp(self) -> None:
        self.dsn = dsn_of(cluster().new())
        self.first, self.second = self.process(), self.process()
        self.first.prepare(migrate, "pairs", [STEP])

    def process(self, component: str = "pairs") -> InlinePostgreSQL:
        database = InlinePostgreSQL(self.dsn, component)
        self.addCleanup(database.close)
        return database

    def outbox(self, database: InlinePostgreSQL) -> Outbox:
        outbox = Outbox("room_api", database)
        database.prepare(outbox.create)
        return outbox


class PositionTests(Processes):
    def setUp(self) -> None:
        super().setUp()
        self.outboxes = [self.outbox(self.first), self.outbox(self.second)]
        self.told: list[OutboxRow] = []
        for outbox in self.outboxes:
            outbox.on_commit = self.told.extend

    def test_each_goes_on_from_where_the_other_stopped(self) -> None:
        given = [
            database.prepare(outbox.append, "S", b"x")
            for database, outbox in zip([self.first, self.second] * 2, self.outboxes * 2, strict=True)
        ]
        self.assertEqual(given, [1, 2, 3, 4])
        self.assertEqual([(row.previous, row.id) for row in self.told], [(0, 1), (1, 2), (2, 3), (3, 4)])
        for outbox in self.outboxes:
            self.assertEqual(run_inline(outbox.newest()), 4)
            rows = run_inline(outbox.read_after(1, 10))
            self.assertEqual([(row.previous, row.id) for row in rows], [(1, 2), (2, 3), (3, 4)])

    def test_what_is_taken_back_leaves_no_gap(self) -> None:
        outbox = self.outboxes[0]

        async def twice(txn: Transaction, fail: bool) -> list[int]:
            given = [await outbox.append(txn, "S", b"1"), await outbox.append(txn, "S", b"2")]
            if fail:
                raise KeyError
            return given

        jobs = [_Job(twice, (fail,), {}, Deferred()) for fail in (False, True, False)]
        run_inline(commit_group(self.first._session(), jobs, self.first._sharing))
        self.assertEqual([job.result for job in jobs], [[1, 2], None, [3, 4]])
        self.assertEqual(self.second.prepare(self.outboxes[1].append, "S", b"x"), 5)

    def test_the_newest_row_stays_and_so_does_the_count(self) -> None:
        for _ in range(3):
            self.first.prepare(self.outboxes[0].append, "S", b"x")
        self.successResultOf(Deferred.fromCoroutine(self.outboxes[1].delete_upto(3)))
        self.assertEqual(self.second.prepare(self.outboxes[1].append, "S", b"x"), 4)

    def test_a_group_takes_two_round_trips_more_than_its_statements(self) -> None:
        asked: list[str] = []
        session = self.first._session()
        query = session.query

        def counted(sql: Any, values: Any) -> Any:
            asked.append(str(sql))
            return query(sql, values)

        session.query = counted  # type: ignore[method-assign]
        outbox = self.outboxes[0]
        self.first.fence("SELECT true", lambda: None)
        jobs = [_Job(outbox.append, ("S", b"x"), {}, Deferred()) for _ in range(5)]
        run_inline(commit_group(session, jobs, self.first._sharing))
        self.assertEqual([job.result for job in jobs], [1, 2, 3, 4, 5])
        self.assertEqual(len(asked), 7)


class FenceTests(Processes):
    def setUp(self) -> None:
        super().setUp()
        self.first.prepare(make_alive)
        self.first.prepare(begin_to_live, "first")
        self.fenced: list[str] = []
        self.first.fence(self.lives("first"), lambda: self.fenced.append("first"))

    def lives(self, name: str) -> str:
        return f"SELECT EXISTS (SELECT 1 FROM alive WHERE name = '{name}')"

    def count(self) -> int:
        return run_inline(self.second.read(count))

    def test_who_is_buried_stores_nothing(self) -> None:
        self.first.prepare(insert, 1, "a")
        self.second.prepare(bury, "first")
        for _ in range(2):
            failed = self.failureResultOf(self.first.write(insert, 2, "b"), Fenced).value
            self.assertEqual((failed.status, failed.extra), (503, {"retry_after_ms": 5000}))
        self.assertEqual((self.count(), self.fenced), (1, ["first", "first"]))
        self.second.prepare(insert, 3, "c")

    def test_it_may_begin_anew_under_another_name(self) -> None:
        self.second.prepare(bury, "first")
        self.failureResultOf(self.first.write(insert, 1, "a"), Fenced)
        self.first.fence(self.lives("first again"), lambda: self.fenced.append("again"))
        self.failureResultOf(self.first.write(insert, 1, "a"), Fenced)
        self.successResultOf(self.first.apart(begin_to_live, "first again"))
        self.successResultOf(self.first.write(insert, 1, "a"))
        self.assertEqual((self.count(), self.fenced), (1, ["first", "again"]))

    def test_each_job_of_a_group_is_told(self) -> None:
        self.second.prepare(bury, "first")
        jobs = [_Job(insert, (1, key), {}, Deferred()) for key in "abc"]
        run_inline(commit_group(self.first._session(), jobs, self.first._sharing))
        self.assertEqual([job.failure and job.failure.type for job in jobs], [Fenced] * 3)
        self.assertEqual((self.count(), self.fenced), (0, ["first"]))

    def test_nobody_is_fenced_off_a_database_of_one_process(self) -> None:
        alone = SQLiteDatabase(":memory:", None)
        self.addCleanup(alone.close)
        alone.fence("SELECT false", lambda: self.fenced.append("alone"))
        alone.prepare(migrate, "pairs", [STEP])
        self.successResultOf(alone.apart(insert, 1, "a"))
        self.assertEqual((alone.shared, self.fenced), (False, []))


class TurnsTests(Processes):
    """Groups of one component follow each other, whatever they touch; those of others do not wait."""

    def test_a_group_waits_for_the_one_before_it(self) -> None:
        holder = BlockingConnection(self.dsn, WRITING_WITH_OTHERS)
        self.addCleanup(holder.close)
        sharing = self.first._sharing
        assert sharing is not None
        run_inline(sharing.begin(holder))
        other = self.process("others")
        other.prepare(insert, 1, "a")
        session = self.second._session()
        run_inline(session.query("SET lock_timeout = '100ms'", None))
        self.failureResultOf(self.second.write(insert, 2, "b"), Unavailable)
        run_inline(holder.query("COMMIT", None))
        self.successResultOf(self.second.write(insert, 2, "b"))

    def test_a_group_sees_what_was_committed_while_it_waited(self) -> None:
        run_inline(self.first._session().query("SET default_transaction_isolation = 'serializable'", None))
        self.assertEqual(self.first.prepare(isolation), "read committed")


class ModesTests(SynchronousTestCase):
    """One process with everything, or many: never both on one database."""

    def refused(self, *components: str) -> str:
        with self.assertRaises(InUse) as caught:
            InlinePostgreSQL(self.dsn, *components)
        return caught.exception.reason

    def setUp(self) -> None:
        self.dsn = dsn_of(cluster().new())

    def test_many_keep_out_the_one(self) -> None:
        many = [InlinePostgreSQL(self.dsn, name) for name in ("a", "a", "b")]
        self.assertEqual(self.refused(), "processes of a polylith use this database")
        for database in many:
            database.close()
        InlinePostgreSQL(self.dsn).close()

    def test_the_one_keeps_out_all_others(self) -> None:
        alone = InlinePostgreSQL(self.dsn)
        self.addCleanup(alone.close)
        self.assertEqual(self.refused("a"), "another server uses this database")
        self.assertEqual(self.refused(), "another server uses this database")

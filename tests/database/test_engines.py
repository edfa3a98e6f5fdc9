"""Transactions: results, group commit, failures that take back only themselves.

The classes named …Contract hold for every engine; test_postgresql runs them on PostgreSQL.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.database.engines import SQLiteDatabase, Unavailable, run_inline
from dendrite_tw.database.migrate import Step, migrate
from dendrite_tw.database.outbox import Outbox
from dendrite_tw.database.statements import Transaction, each, many, maybe, none, one


class Pair(msgspec.Struct, frozen=True):
    key: str
    value: int


@none("INSERT INTO pairs (key, value) VALUES (:key, :value)")
def insert(txn: Transaction, value: int, key: str) -> None: ...


@each("INSERT INTO pairs (key, value) VALUES (:key, :value)", row="key value")
def insert_each(txn: Transaction, rows: Any) -> None: ...


@many(Pair, "SELECT key, value FROM pairs WHERE key = ANY(:keys) ORDER BY key")
def pairs(txn: Transaction, keys: Sequence[str]) -> None: ...


@maybe(int, "SELECT value FROM pairs WHERE key = :key AND ':x' = ':x'")
def value_of(txn: Transaction, key: str) -> None: ...


@one(int, "SELECT COUNT(*) FROM pairs")
def count(txn: Transaction) -> None: ...


@each(
    "INSERT INTO pairs (key, value) VALUES (:key, :value) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
    row="key value",
)
def put_each(txn: Transaction, rows: Any) -> None: ...


@each("INSERT INTO pairs (key, value) VALUES (:key, :value) ON CONFLICT DO NOTHING", row="key value")
def offer_each(txn: Transaction, rows: Any) -> None: ...


@each('INSERT INTO "values" (id, text, data, number) VALUES (:id, :text, :data, :number)', row="id text data number")
def store_each(txn: Transaction, rows: Any) -> None: ...


@none('INSERT INTO "values" (id, text, data, number) VALUES (:id, :text, :data, :number)')
def store(txn: Transaction, id: bool, text: str | None, data: bytes | None, number: int) -> None: ...


class Values(NamedTuple):
    id: int
    text: str | None
    data: bytes | None
    number: int | None


@many(Values, 'SELECT id, text, data, number FROM "values" ORDER BY id, text IS NOT NULL')
def stored(txn: Transaction) -> None: ...


@one(int, 'SELECT SUM(number) FROM "values"')
def total(txn: Transaction) -> None: ...


@many(str, 'SELECT text FROM "values" ORDER BY text')
def texts(txn: Transaction) -> None: ...


@many(int, 'SELECT id FROM "values" WHERE id = ANY(:ids) OR text = ANY(:texts) ORDER BY id')
def among(txn: Transaction, ids: Sequence[int], texts: Sequence[str]) -> None: ...


VALUES = Step(1, 'CREATE TABLE "values" (id BIGINT NOT NULL, text TEXT, data BYTES, number BIGINT)')

STEP = Step(1, "CREATE TABLE pairs (key TEXT PRIMARY KEY, value BIGINT NOT NULL); -- a comment; with one\n")


class HeldThreads:
    """Lets jobs pile up behind a gate, so that they share one commit."""

    def __init__(self) -> None:
        self.delivered: list[Any] = []
        self.done = threading.Event()

    def call_in_thread(self, function: Any, *args: Any) -> None:
        function(*args)

    def call_from_thread(self, function: Any, *args: Any) -> None:
        self.delivered.append((function, args))
        self.done.set()

    def flush(self) -> None:
        self.done.wait(10)
        self.done.clear()
        while self.delivered:
            function, args = self.delivered.pop(0)
            function(*args)


class Engine:
    """An engine that runs all at once, for the contracts below."""

    def make_database(self) -> Any:
        return SQLiteDatabase(":memory:", None)


class TransactionContract:
    """What every engine promises of a transaction."""

    def setUp(self: Any) -> None:
        self.database = self.make_database()
        self.addCleanup(self.database.close)
        self.successResultOf(self.database.write(migrate, "pairs", [STEP]))

    def read(self: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
        return self.successResultOf(Deferred.fromCoroutine(self.database.read(function, *args, **kwargs)))

    def test_statements_return_what_they_declare(self: Any) -> None:
        self.assertEqual(self.successResultOf(self.database.write(insert, 1, "a")), 1)
        self.successResultOf(self.database.write(insert_each, [("b", 2), ("c", 3)]))
        self.assertEqual(self.read(pairs, ["a", "c", "z"]), [Pair("a", 1), Pair("c", 3)])
        self.assertEqual(self.read(value_of, "b"), 2)
        self.assertIsNone(self.read(value_of, "z"))
        self.assertEqual(self.read(count), 3)

    def test_keyword_arguments_bind_by_name(self: Any) -> None:
        self.successResultOf(self.database.write(insert, key="k", value=9))
        self.assertEqual(self.read(value_of, key="k"), 9)

    def test_placeholders_are_held_against_the_signature(self: Any) -> None:
        with self.assertRaises(TypeError):

            @none("DELETE FROM pairs WHERE key = :key")
            def wrong(txn: Transaction, kye: str) -> None: ...

    def test_a_failed_transaction_leaves_nothing(self: Any) -> None:
        async def fails(txn: Transaction) -> None:
            await insert(txn, 1, "a")
            raise ValueError("after all")

        self.failureResultOf(self.database.write(fails), ValueError)
        self.assertEqual(self.read(count), 0)

    def test_waiting_for_anything_but_sql_is_refused(self: Any) -> None:
        async def waits(txn: Transaction) -> None:
            await Deferred()

        self.failureResultOf(self.database.write(waits), RuntimeError)

    def test_hooks_run_after_the_commit_and_not_without_it(self: Any) -> None:
        ran: list[str] = []

        async def hooked(txn: Transaction, fail: bool) -> None:
            txn.after_commit(lambda: ran.append("yes"))
            if fail:
                raise ValueError

        self.failureResultOf(self.database.write(hooked, True), ValueError)
        self.assertEqual(ran, [])
        self.successResultOf(self.database.write(hooked, False))
        self.assertEqual(ran, ["yes"])

    def test_migrations_run_once_and_refuse_a_newer_database(self: Any) -> None:
        self.assertEqual(self.successResultOf(self.database.write(migrate, "pairs", [STEP])), [])
        self.failureResultOf(self.database.write(migrate, "pairs", []), RuntimeError)

    def test_values_come_back_as_they_were_given(self: Any) -> None:
        self.successResultOf(self.database.write(migrate, "values", [VALUES]))
        rows = [
            (1, "", b"", None),
            (2, "naïve % %s :name 'quoted' \\ 🐈", bytes(range(256)), -(2**63)),
            (3, "a;b--", b"\\x00'", 2**63 - 1),
        ]
        self.successResultOf(self.database.write(store_each, rows))
        self.successResultOf(self.database.write(store, True, None, None, 5))
        self.assertEqual(self.read(stored), [(1, None, None, 5), *rows])
        self.assertIs(type(self.read(stored)[1][2]), bytes)

    def test_sums_are_numbers_and_text_is_ordered_by_its_bytes(self: Any) -> None:
        self.successResultOf(self.database.write(migrate, "values", [VALUES]))
        rows = [(number, text, None, number) for number, text in enumerate(["b", "B", "ä", "a", "_", "Z"])]
        self.successResultOf(self.database.write(store_each, rows))
        self.assertIs(type(self.read(total)), int)
        self.assertEqual(self.read(total), 15)
        self.assertEqual(self.read(texts), ["B", "Z", "_", "a", "b", "ä"])

    def test_lists_of_every_type_may_be_empty(self: Any) -> None:
        self.successResultOf(self.database.write(migrate, "values", [VALUES]))
        self.successResultOf(self.database.write(store_each, [(1, "a", b"", 1), (2, "b", b"", 2)]))
        self.assertEqual(self.read(among, [], []), [])
        self.assertEqual(self.read(among, [1], ["b"]), [1, 2])

    def test_many_rows_at_once(self: Any) -> None:
        self.successResultOf(self.database.write(insert_each, [(f"k{number}", number) for number in range(1000)]))
        self.assertEqual(self.read(count), 1000)
        self.successResultOf(self.database.write(put_each, [("k1", 7), ("new", 1), ("k1", 8)]))
        self.assertEqual(self.read(value_of, "k1"), 8)
        self.successResultOf(self.database.write(offer_each, [("k1", 9), ("newer", 1), ("newer", 2)]))
        self.assertEqual((self.read(value_of, "k1"), self.read(value_of, "newer")), (8, 1))

    def test_a_broken_rule_takes_back_the_transaction(self: Any) -> None:
        async def twice(txn: Transaction) -> None:
            await insert(txn, 1, "a")
            await insert(txn, 2, "a")

        self.failureResultOf(self.database.write(twice))
        self.assertEqual(self.read(count), 0)
        self.successResultOf(self.database.write(insert, 1, "a"))

    def test_preparing_waits_for_the_result(self: Any) -> None:
        self.assertEqual(self.database.prepare(insert, 1, "a"), 1)
        with self.assertRaises(Exception):
            self.database.prepare(insert, 1, "a")
        self.assertEqual(self.read(count), 1)

    def test_long_reads(self: Any) -> None:
        self.assertEqual(self.successResultOf(self.database.read_long(count)), 0)


class SQLiteTests(Engine, TransactionContract, SynchronousTestCase):
    def test_run_inline_returns_the_result(self) -> None:
        async def answer() -> int:
            return 42

        self.assertEqual(run_inline(answer()), 42)


class GroupCommitTests(SynchronousTestCase):
    def test_a_failure_in_a_group_takes_back_only_itself(self) -> None:
        threads = HeldThreads()
        database = SQLiteDatabase(self.mktemp() + ".db", threads)
        made = database.write(migrate, "pairs", [STEP])
        threads.flush()
        self.successResultOf(made)
        gate = threading.Event()

        async def blocks(txn: Transaction) -> None:
            gate.wait(10)

        first = database.write(blocks)
        good = database.write(insert, 1, "a")
        twice = database.write(insert, 2, "a")
        later = database.write(insert, 3, "b")
        gate.set()
        database.close()
        threads.flush()
        self.successResultOf(first)
        self.assertEqual(self.successResultOf(good), 1)
        self.failureResultOf(twice)
        self.assertEqual(self.successResultOf(later), 1)
        self.failureResultOf(database.write(insert, 4, "c"), Unavailable)


class OutboxContract:
    """What an outbox promises on every engine."""

    def test_rows_are_read_once_all_that_follows_from_them_has_begun(self: Any) -> None:
        database = self.make_database()
        outbox = Outbox("room_api", database)
        database.prepare(outbox.create)
        seen: list[list[int]] = []

        def look() -> None:
            seen.append([row.id for row in run_inline(outbox.read_after(0, 10))])

        async def append(txn: Transaction) -> None:
            txn.after_commit(look)
            await outbox.append(txn, "S", b"1")
            txn.after_commit(look)

        self.successResultOf(database.write(append))
        self.assertEqual(seen, [[], [1]])

    def test_rows_are_announced_in_the_order_of_their_commits(self: Any) -> None:
        database = self.make_database()
        self.addCleanup(database.close)
        outbox = Outbox("room_api", database)
        self.successResultOf(database.write(outbox.create))
        seen: list[int] = []
        outbox.on_commit = lambda rows: seen.extend(row.id for row in rows)

        async def two(txn: Transaction) -> list[int]:
            return [
                await outbox.append(txn, "S", b"1"),
                await outbox.append(txn, "S", b"2", headers={"a": "b"}),
            ]

        first = self.successResultOf(database.write(two))
        second = self.successResultOf(database.write(two))
        self.assertEqual(seen, first + second)
        self.assertEqual(seen, sorted(seen))
        self.assertEqual(outbox.position, second[-1])
        rows = self.successResultOf(Deferred.fromCoroutine(outbox.read_after(first[0], 10)))
        self.assertEqual([row.id for row in rows], (first + second)[1:])
        self.assertEqual(rows[0].headers, b'{"a":"b"}')

    def test_a_position_is_never_given_twice(self: Any) -> None:
        database = self.make_database()
        self.addCleanup(database.close)
        outbox = Outbox("room_api", database)
        self.successResultOf(database.write(outbox.create))
        first = self.successResultOf(database.write(outbox.append, "S", b"1"))
        self.successResultOf(Deferred.fromCoroutine(outbox.delete_upto(first)))
        again = Outbox("room_api", database)
        self.successResultOf(database.write(again.create))
        self.assertEqual(again.position, first)
        self.assertGreater(self.successResultOf(database.write(again.append, "S", b"2")), first)

    def test_a_payload_may_hold_its_position(self: Any) -> None:
        database = self.make_database()
        self.addCleanup(database.close)
        outbox = Outbox("room_api", database)
        database.prepare(outbox.create)
        position = self.successResultOf(database.write(outbox.append, "S", lambda position: b"%d" % position))
        rows = self.successResultOf(Deferred.fromCoroutine(outbox.read_after(0, 10)))
        self.assertEqual([row.payload for row in rows], [b"%d" % position])


class OutboxTests(Engine, OutboxContract, SynchronousTestCase):
    pass


class FullDiskTests(SynchronousTestCase):
    def setUp(self) -> None:
        path = self.mktemp()
        self.database = SQLiteDatabase(path, None)
        self.addCleanup(self.database.close)
        self.database.prepare(migrate, "test", [STEP])

    def fill(self) -> None:
        """Let the file have no more pages than it has, as on a disk that is full."""
        writer = self.database._writer
        (pages,) = writer.execute("PRAGMA page_count").fetchone()
        writer.execute(f"PRAGMA max_page_count = {pages}")

    def free(self) -> None:
        self.database._writer.execute("PRAGMA max_page_count = 1000000")

    def test_is_told_and_gets_well_by_itself(self) -> None:
        self.fill()
        rows = [(f"{n}" * 100, n) for n in range(200)]
        self.failureResultOf(self.database.write(insert_each, rows), Unavailable)
        self.assertIn("full", self.database.failing)
        self.assertEqual(self.successResultOf(Deferred.fromCoroutine(self.database.read(count))), 0)
        self.free()
        self.assertIsNone(self.successResultOf(Deferred.fromCoroutine(self.database.probe())))
        self.assertEqual(self.database.failing, "")
        self.successResultOf(self.database.write(insert_each, rows))

    def test_a_mistake_in_one_transaction_is_none_of_the_disk(self) -> None:
        self.successResultOf(self.database.write(insert, 1, "a"))
        self.failureResultOf(self.database.write(insert, 1, "a"))
        self.assertEqual(self.database.failing, "")

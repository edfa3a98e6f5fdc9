"""Tables from SQLite to PostgreSQL: every kind of value, what does not fit, and what is there already."""

from __future__ import annotations

import importlib
import sqlite3
import tracemalloc
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.database.addresses import dsn_of
from dendrite_tw.database.engines import SQLiteDatabase, run_inline
from dendrite_tw.database.migrate import migrate, steps_of
from dendrite_tw.database.moving import Moved, MoveError, Part, Source, Target, copy_line, digest, move
from dendrite_tw.database.outbox import Outbox
from dendrite_tw.database.postgresql import InlinePostgreSQL
from dendrite_tw.room_api.tables import events as event_table
from dendrite_tw.room_api.tables import names as name_table
from tests.database.cluster import cluster
from tests.harness import ask

PACKAGES = ["federation_api", "media_api", "room_api", "sync_api", "user_api"]


def rows_for(connection: sqlite3.Connection, table: str, count: int) -> None:
    """Fill a table with rows that differ in every column, by the types of its columns."""
    columns = connection.execute(f'PRAGMA table_info("{table}")').fetchall()
    marks = ", ".join("?" for _ in columns)
    for number in range(1, count + 1):
        values: list[Any] = []
        for _, name, kind, *_ in columns:
            if kind == "TEXT":
                values.append(f"{name} {number}\t\\N 'ä' \n🐈%s\r")
            elif kind == "BLOB":
                values.append(bytes(range(256)) + b"\\x" + b"%d" % number)
            else:
                values.append(number if number % 2 else -(2**62) - number)
        connection.execute(f'INSERT INTO "{table}" VALUES ({marks})', values)


class Moving(SynchronousTestCase):
    def setUp(self) -> None:
        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        self.dsn = dsn_of(cluster().new())
        self.said: list[str] = []

    def file(self, package: str) -> Path:
        return self.folder / f"{package}.db"

    def make(self, package: str, outbox: bool = False, steps: int | None = None) -> SQLiteDatabase:
        database = SQLiteDatabase(str(self.file(package)), None)
        self.addCleanup(database.close)
        database.prepare(migrate, package, steps_of(f"dendrite_tw.{package}")[:steps])
        if outbox:
            database.prepare(Outbox(package, database).create)
        return database

    def move(self, *packages: str, commits: bool = True) -> list[Moved]:
        sources = {package: Source(str(self.file(package))) for package in packages}
        target = Target(self.dsn)
        try:
            moved = move([Part(package, source) for package, source in sources.items()], target, self.said.append)
            if commits:
                target.commit()
            return moved
        finally:
            target.close()
            for source in sources.values():
                source.close()

    def refusal(self, *packages: str) -> str:
        with self.assertRaises(MoveError) as caught:
            self.move(*packages)
        return str(caught.exception)

    def tables(self) -> list[Any]:
        database = self.opened()
        found = ask(database, "SELECT tablename FROM pg_tables WHERE schemaname = current_schema()")
        database.rest()
        return found

    def opened(self) -> InlinePostgreSQL:
        database = InlinePostgreSQL(self.dsn)
        self.addCleanup(database.close)
        return database


class CopyTests(Moving):
    def test_every_table_of_every_component(self) -> None:
        everything: dict[str, list[Any]] = {}
        for package in PACKAGES:
            database = self.make(package, outbox=package in ("room_api", "user_api"))
            importlib.import_module(f"dendrite_tw.{package}.tables")
            found = ask(database, "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
            for (table,) in found:
                if table != "schema_steps":
                    rows_for(database._writer, table, 25)
                    everything[table] = ask(database, f'SELECT * FROM "{table}" ORDER BY 1')
            database.close()
        moved = self.move(*PACKAGES)
        self.assertEqual({(one.table, one.rows, one.copied) for one in moved}, {(t, 25, True) for t in everything})
        database = self.opened()
        for table, rows in everything.items():
            self.assertEqual(sorted(ask(database, f'SELECT * FROM "{table}"'), key=repr), sorted(rows, key=repr), table)
        for package in PACKAGES:
            self.assertEqual(database.prepare(migrate, package, steps_of(f"dendrite_tw.{package}")), [])

    def test_numbers_go_on_where_they_were(self) -> None:
        source = self.make("room_api", outbox=True)
        outbox = Outbox("room_api", source)
        source.prepare(outbox.create)
        for number in range(5):
            source.prepare(name_table.insert_name, f"name {number}")
            source.prepare(outbox.append, "S", b"x")
        source.prepare(lambda txn: txn.execute("DELETE FROM names WHERE name = 'name 4'", ()))
        self.successResultOf(source.write(event_table.take_block, "event", 1000))
        source.close()
        self.move("room_api")
        database = self.opened()
        self.assertEqual(database.prepare(name_table.insert_name, "new"), 6)
        self.assertEqual(database.prepare(event_table.take_block, "event", 1), 1001)
        again = Outbox("room_api", database)
        database.prepare(again.create)
        self.assertEqual((again.position, database.prepare(again.append, "S", b"x")), (5, 6))
        self.assertEqual([row.id for row in run_inline(again.read_after(2, 10))], [3, 4, 5, 6])

    def test_text_with_nul_is_moved_and_said(self) -> None:
        source = self.make("room_api")
        source.prepare(name_table.insert_name, "with \0 inside")
        source.close()
        self.move("room_api")
        self.assertEqual(ask(self.opened(), "SELECT name FROM names"), [("with \ufffd inside",)])
        self.assertTrue([line for line in self.said if line.startswith("names: 1 texts had the character U+0000")])

    def test_an_older_schema_moves_as_it_is(self) -> None:
        self.make("room_api", steps=2).close()
        self.move("room_api")
        ran = self.opened().prepare(migrate, "room_api", steps_of("dendrite_tw.room_api"))
        self.assertEqual(ran, [step.number for step in steps_of("dendrite_tw.room_api")][2:])

    def test_memory_does_not_grow_with_the_table(self) -> None:
        source = self.make("sync_api")
        rows = ((f"@user{number}:test", "filter", b"x" * 2000, number) for number in range(6_000))
        source._writer.execute("BEGIN")
        source._writer.executemany("INSERT INTO sync_filters VALUES (?, ?, ?, ?)", rows)
        source._writer.execute("COMMIT")
        source.close()
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        self.move("sync_api")
        _, peak = tracemalloc.get_traced_memory()
        self.assertLess(peak, 4 << 20)

    def test_the_file_stays_as_it_is(self) -> None:
        source = self.make("room_api")
        source.prepare(name_table.insert_name, "name")
        source.close()
        before = self.file("room_api").read_bytes()
        self.move("room_api")
        self.assertEqual(self.file("room_api").read_bytes(), before)
        self.assertEqual([path.name for path in self.folder.iterdir()], ["room_api.db"])


class RefusedTests(Moving):
    def test_what_is_broken_off_leaves_nothing_and_is_done_again(self) -> None:
        self.make("room_api").close()
        self.make("user_api").close()
        self.move("room_api", "user_api", commits=False)
        self.assertEqual(self.tables(), [])
        self.assertTrue(all(one.copied for one in self.move("room_api", "user_api")))
        self.assertFalse(any(one.copied for one in self.move("room_api", "user_api")))

    def test_what_is_there_must_be_the_same(self) -> None:
        source = self.make("room_api")
        source.prepare(name_table.insert_name, "name")
        source.close()
        self.move("room_api")
        database = self.opened()
        database.prepare(lambda txn: txn.execute("UPDATE names SET name = 'other'", ()))
        database.rest()
        told = self.refusal("room_api")
        self.assertIn("names differs: 1 rows in", told)
        self.assertIn("with other content", told)
        database.prepare(name_table.insert_name, "more")
        database.rest()
        self.assertIn("1 rows in", self.refusal("room_api"))

    def test_a_target_with_anything_else_is_refused(self) -> None:
        self.make("room_api").close()
        database = self.opened()
        database.prepare(lambda txn: txn.execute("CREATE TABLE something (id BIGINT)", ()))
        database.rest()
        self.assertIn("not empty: it has the table something", self.refusal("room_api"))

    def test_a_target_in_use_is_refused(self) -> None:
        self.make("room_api").close()
        self.opened()
        self.assertIn("another server uses this database", self.refusal("room_api"))

    def test_a_newer_file_is_refused(self) -> None:
        source = self.make("room_api")
        source.prepare(lambda txn: txn.execute("INSERT INTO schema_steps VALUES ('room_api', 999)", ()))
        source.close()
        self.assertIn("of a newer version (steps [999])", self.refusal("room_api"))

    def test_a_table_that_nobody_knows_is_refused(self) -> None:
        source = self.make("room_api")
        source.prepare(lambda txn: txn.execute("CREATE TABLE extra (id BIGINT)", ()))
        source.close()
        self.assertIn("extra belongs to no component", self.refusal("room_api"))

    def test_what_is_no_database_of_ours_is_refused(self) -> None:
        self.assertIn("there is no database", self.refusal("room_api"))
        sqlite3.connect(self.file("room_api")).execute("CREATE TABLE x (y)")
        self.assertIn("is no database of this server", self.refusal("room_api"))
        self.file("user_api").write_bytes(b"hello" * 1000)
        self.assertIn("cannot be read", self.refusal("user_api"))

    def test_what_does_not_fit_its_column_is_refused(self) -> None:
        source = self.make("sync_api")
        source.prepare(lambda txn: txn.execute("INSERT INTO sync_filters VALUES ('a', 'b', x'00', 'many')", ()))
        source.close()
        self.assertIn("sync_filters: a row does not fit", self.refusal("sync_api"))

    def test_what_postgresql_does_not_take_is_refused(self) -> None:
        source = self.make("room_api")
        source.prepare(name_table.insert_name, "".join(chr(0x4E00 + n * 7919 % 20000) for n in range(9000)))
        source.close()
        self.assertIn("PostgreSQL does not take what is in names", self.refusal("room_api"))


class DigestTests(SynchronousTestCase):
    def test_the_order_of_rows_does_not_count_and_all_else_does(self) -> None:
        rows = [(1, "a", b"x", None), (2, "b", b"y", 3)]
        self.assertEqual(digest(rows), digest(reversed(rows)))
        others: list[list[tuple[Any, ...]]] = [
            rows[:1],
            [(1, "a", b"x", 0), rows[1]],
            [(1, "a", "x", None), rows[1]],
            [(1, "ax", b"", None), rows[1]],
            [rows[0], rows[0]],
            [*rows, rows[1]],
        ]
        for other in others:
            self.assertNotEqual(digest(rows), digest(other), other)

    def test_lines_are_what_copy_reads(self) -> None:
        line = copy_line([1, "a\tb\\c\nd\re", b"\x00\xff", None, -(2**63)])
        self.assertEqual(line, b"1\ta\\tb\\\\c\\nd\\re\t\\\\x00ff\t\\N\t-9223372036854775808\n")

"""Several writers of one database over real connections: who waits for whom, what is tried again, who is kept out."""

from __future__ import annotations

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.threads import deferToThread

from dendrite_tw.database.addresses import dsn_of
from dendrite_tw.database.connections import HELD_SECONDS
from dendrite_tw.database.engines import Unavailable
from dendrite_tw.database.groups import ATTEMPTS
from dendrite_tw.database.migrate import migrate, steps_of
from dendrite_tw.database.outbox import Outbox, OutboxRow
from dendrite_tw.database.postgresql import InlinePostgreSQL
from dendrite_tw.database.statements import Transaction, none, one
from tests.database.cluster import cluster
from tests.database.test_engines import count, insert, value_of
from tests.database.test_postgresql import COMPONENTS
from tests.database.test_shared import begin_to_live, bury, make_alive
from tests.interop.database_load import Case, keys, pause, run


@none("UPDATE pairs SET value = :value WHERE key = :key")
def put(txn: Transaction, key: str, value: int) -> None: ...


@one(int, "SELECT COUNT(*) FROM pg_sleep(0.7)")
def slow(txn: Transaction) -> None: ...


FAILING = """
CREATE SEQUENCE tries;
CREATE FUNCTION fail_until(last BIGINT) RETURNS BIGINT LANGUAGE plpgsql AS $$
BEGIN
    IF nextval('tries') < last THEN
        RAISE SQLSTATE '40001';
    END IF;
    RETURN 1;
END
$$
"""


class Two(Case):
    """Two processes of one component."""

    def setUp(self) -> None:
        self.first = self.open(cluster(), shared="pairs")
        self.second = self.join(self.schema, shared="pairs")
        self.both = [self.first, self.second]


class IsolationTests(Two):
    async def test_nothing_is_lost_between_reading_and_writing(self) -> None:
        """What one process reads in a transaction no other changes before it has written."""

        async def more(txn: Transaction) -> int:
            value = await value_of(txn, "sum")
            assert value is not None
            await put(txn, "sum", value + 1)
            return value + 1

        await self.first.write(insert, 0, "sum")
        results = await gatherResults([database.write(more) for _ in range(150) for database in self.both])
        self.assertEqual(sorted(results), list(range(1, 301)))
        self.assertEqual(await self.second.read(value_of, "sum"), 300)

    async def test_make_where_there_is_none_happens_once(self) -> None:
        async def find_or_make(txn: Transaction, key: str) -> bool:
            if await value_of(txn, key) is None:
                await insert(txn, 1, key)
                return True
            return False

        names = [f"name {number}" for number in range(40)]
        made = await gatherResults([database.write(find_or_make, name) for name in names for database in self.both])
        self.assertEqual(sum(made), len(names))

    async def test_positions_are_in_the_order_of_commits_for_everybody(self) -> None:
        """Whoever reads on from the last row that it saw misses none, at any moment."""
        outboxes = [Outbox("room_api", database) for database in self.both]
        told: list[list[OutboxRow]] = [[], []]
        for database, outbox, rows in zip(self.both, outboxes, told, strict=True):
            database.prepare(outbox.create)
            outbox.on_commit = rows.extend

        async def two(txn: Transaction, outbox: Outbox, fails: bool) -> list[int]:
            given = [await outbox.append(txn, "S", b"x"), await outbox.append(txn, "S", b"y")]
            if fails:
                raise KeyError
            return given

        seen: list[OutboxRow] = []
        over = False

        async def watch() -> None:
            while not over or await outboxes[0].newest() > len(seen):
                seen.extend(await outboxes[0].read_after(seen[-1].id if seen else 0, 50))

        watching = run(watch())
        writing = [
            database.write(two, outbox, number % 7 == 0).addErrback(lambda failure: failure.trap(KeyError) and [])
            for number in range(200)
            for database, outbox in zip(self.both, outboxes, strict=True)
        ]
        given = [position for pair in await gatherResults(writing) for position in pair]
        over = True
        await watching
        self.assertEqual([row.id for row in seen], list(range(1, len(given) + 1)))
        self.assertEqual(sorted(given), [row.id for row in seen])
        self.assertEqual([row.previous for row in seen], list(range(len(given))))
        self.assertEqual(sorted(told[0] + told[1], key=lambda row: row.id), seen)
        for rows in told:
            self.assertEqual([row.id for row in rows], sorted(row.id for row in rows))
            self.assertTrue(rows)

    async def test_components_do_not_wait_for_each_other(self) -> None:
        other = self.join(self.schema, shared="others")
        await gatherResults([other.write(insert, 1, "first"), self.first.write(insert, 1, "second")])
        busy = self.first.write(slow)
        quick = other.write(insert, 1, "a")
        await quick
        self.assertFalse(busy.called)
        await busy


class TryAgainTests(Two):
    def options(self) -> str:
        return self.schema.replace("options=", "options=-cdeadlock_timeout%3D20ms%20")

    async def test_a_deadlock_is_undone_and_done_again(self) -> None:
        first, second = [self.join(self.options(), shared=name) for name in ("pairs", "others")]
        tries: list[str] = []

        async def crossing(txn: Transaction, one: str, other: str) -> None:
            tries.append(one)
            await put(txn, one, ord(other))
            await slow(txn)
            await put(txn, other, ord(one))

        await gatherResults([first.write(insert, 0, "a"), second.write(insert, 0, "b")])
        await gatherResults([first.write(crossing, "a", "b"), second.write(crossing, "b", "a")])
        self.assertGreater(len(tries), 2)
        found = (await first.read(value_of, "a"), await first.read(value_of, "b"))
        self.assertEqual(found, (ord("b"), ord("a")))

    async def test_a_serialisation_failure_is_tried_again_a_few_times(self) -> None:
        await self.first.write(lambda txn: txn.execute(FAILING, ()))
        tries: list[int] = []

        async def failing(txn: Transaction, last: int, key: str) -> None:
            tries.append(last)
            await insert(txn, 1, key)
            await txn.fetch("SELECT fail_until(%s)", (last,))

        together = [self.first.write(insert, 1, "before"), self.first.write(failing, 3, "a")]
        together.append(self.first.write(insert, 1, "after"))
        await gatherResults(together)
        self.assertEqual(len(tries), 3)
        together = [self.first.write(failing, 1000, "b"), self.first.write(insert, 1, "beside")]
        await self.assertFailure(together[0], Unavailable)
        await together[1]
        self.assertEqual(len(tries), 3 + ATTEMPTS)
        self.assertEqual(await self.second.read(keys), ["a", "after", "before", "beside"])


class PausedTests(Two):
    """A process that is stopped in the middle of a transaction, taken for dead, and goes on later."""

    timeout = 90

    def setUp(self) -> None:
        super().setUp()
        self.first.prepare(make_alive)
        self.first.prepare(begin_to_live, "paused")
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.interop.paused", self.schema],
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            text=True,
        )
        self.addCleanup(self.end)
        self.reading = deferToThread(self.listen)

    def end(self) -> Deferred[Any]:
        self.process.kill()
        self.process.wait()
        return self.reading

    def listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.strip())
        self.process.stdout.close()

    async def until(self, line: str) -> None:
        for _ in range(600):
            if line in self.lines:
                return
            await pause(0.02)
        self.fail(f"the process never said {line!r} but {self.lines[-5:]}")

    async def test_who_is_stopped_holds_up_nobody_for_long_and_stores_nothing_afterwards(self) -> None:
        await self.until("begun 2")
        await pause(0.3)
        self.process.send_signal(signal.SIGSTOP)
        before = reactor.seconds()  # type: ignore[attr-defined]
        await self.second.write(bury, "paused")
        self.assertLess(reactor.seconds() - before, HELD_SECONDS + 4)  # type: ignore[attr-defined]
        found = await self.second.read(keys)
        self.process.send_signal(signal.SIGCONT)
        await self.until("fenced")
        await pause(0.5)
        self.assertEqual(await self.second.read(keys), found)
        stored = [line.split()[1] for line in self.lines if line.startswith("stored")]
        expected = sorted(f"paused {number} {part}" for number in stored for part in ("first", "second"))
        self.assertEqual(found, expected)

    async def test_who_is_buried_in_its_work_is_told(self) -> None:
        await self.until("stored 1")
        await self.second.write(bury, "paused")
        found = await self.second.read(keys)
        await self.until("fenced")
        self.assertEqual(await self.second.read(keys), found)


class StartTests(Two):
    async def test_ten_processes_may_start_at_once(self) -> None:
        """On an empty database; each finds or makes all tables of its component."""
        dsn = dsn_of(cluster().new())
        ran: list[tuple[str, int]] = []

        def start(component: str) -> None:
            database = InlinePostgreSQL(dsn, component)
            steps = database.prepare(migrate, component, steps_of(f"dendrite_tw.{component}"))
            ran.extend((component, step) for step in steps)
            database.prepare(Outbox(component, database).create)
            database.prepare(Outbox("all", database).create)
            database.close()

        with ThreadPoolExecutor(10) as pool:
            starting = [pool.submit(start, component) for component in COMPONENTS * 2]
            for one_of_them in starting:
                one_of_them.result()
        self.assertEqual(len(ran), len(set(ran)))
        steps = {(component, step.number) for component in COMPONENTS for step in steps_of(f"dendrite_tw.{component}")}
        self.assertEqual(set(ran), steps)

    async def test_a_process_may_come_while_others_work(self) -> None:
        writing = gatherResults([self.first.write(insert, number, f"{number}") for number in range(300)])
        third = self.join(self.schema, shared="pairs")
        await third.write(insert, 1, "third")
        await writing
        self.assertEqual(await third.read(count), 301)

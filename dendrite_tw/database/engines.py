"""What runs transactions: the interface, and SQLite behind it.

A transaction is an ``async def`` that waits for nothing but its `Transaction`.
So the same function runs inline on a short read, on SQLite's writer thread, or
natively over an asynchronous PostgreSQL connection.

SQLite: one writer thread takes whatever transactions wait, runs them one
after the other under savepoints and commits them together (group commit), so
that many share one fsync.  Short reads run on the reactor thread, where a hop
to another thread would cost ten times the read; long ones go to the pool.
"""

from __future__ import annotations

import os
import queue
import sqlite3
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar
from urllib.parse import unquote

from twisted.internet.defer import Deferred, fail, succeed
from twisted.python.failure import Failure

from ..matrix.errors import MatrixError
from ..world import ThreadRunner
from .dialects import SQLITE, Dialect
from .statements import Transaction

P = ParamSpec("P")
T = TypeVar("T")

GROUP_LIMIT = 256
"""How many transactions may share one commit: bounds what one failure takes back."""

LONG_READERS = 2

DISK_ERRORS = {
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_BUSY,
}
"""Primary result codes that tell of the disk, and not of one transaction."""


class Unavailable(MatrixError):
    """The database cannot take this transaction now; nothing of it was stored."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            503,
            "M_UNKNOWN",
            f"The server's database is not available: {reason}. Try again later.",
            retry_after_ms=5000,
        )


class Fenced(Unavailable):
    """Other processes have taken this one for dead and taken over what it had; nothing of this was stored."""

    def __init__(self) -> None:
        super().__init__("another process has taken over what this one did")


class Database(Protocol):
    """A database of one or more components."""

    dialect: Dialect
    shared: bool
    """Whether other processes write to it too, so that what was read from it may be out of date."""

    def write(
        self, function: Callable[Concatenate[Transaction, P], Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> Deferred[T]:
        """Run `function` in a transaction; fires with its result once that is on disk."""

    def apart(
        self, function: Callable[Concatenate[Transaction, P], Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> Deferred[T]:
        """As `write`, but in a shared database out of the order of the others and on either side of the fence.

        For what must not wait for its turn: that this process lives, or joins the others anew.
        """

    def fence(self, sql: str, on_fenced: Callable[[], None]) -> None:
        """From now on write only while `sql` says so, a question without placeholders whose answer is one boolean.

        It is asked in each transaction, after those of all other processes of the component that were
        under way have ended: what these changed before is seen, and who waits for the answer is too
        late.  Where it says no, writes fail as `Fenced` and `on_fenced` is called, again each time.
        A database that is not shared has one process, which nobody can take for dead: nothing is asked.
        """

    def count(self, name: str, sql: str) -> None:
        """In a shared database, read a number with `sql` in each transaction, for `Transaction.counters`.

        It is read after those of all other processes have ended, at no round trip of its own.
        """

    def prepare(
        self, function: Callable[Concatenate[Transaction, P], Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run `function` in a transaction and wait for it: for the start, before the reactor runs."""

    async def read(
        self, function: Callable[Concatenate[Transaction, P], Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run `function`, which only reads and touches few rows."""

    def read_long(
        self, function: Callable[Concatenate[Transaction, P], Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> Deferred[T]:
        """Run `function`, which only reads but may take many milliseconds."""

    def close(self) -> Deferred[None] | None:
        """Finish what waits, then close; done when this returns, or when what it returns fires."""


def run_inline(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that never has to wait; `RuntimeError` if it does."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    coroutine.close()
    raise RuntimeError("a transaction waited for something other than its SQL")


class SQLiteTransaction:
    """`Transaction` over a connection; its methods never have to wait."""

    dialect = SQLITE

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.counters: dict[str, int] = {}
        self.hooks: list[Callable[[], None]] = []

    async def fetch(self, sql: str, values: Sequence[Any]) -> list[Any]:
        return self._connection.execute(sql, values).fetchall()

    async def execute(self, sql: str, values: Sequence[Any]) -> int:
        return self._connection.execute(sql, values).rowcount

    async def execute_many(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        self._connection.executemany(sql, rows)

    def after_commit(self, function: Callable[[], None]) -> None:
        self.hooks.append(function)


@dataclass
class _Job:
    """A transaction on its way: what to run, and what came of it."""

    function: Callable[..., Awaitable[Any]]
    args: Any
    kwargs: Any
    answer: Deferred[Any]
    result: Any = None
    failure: Failure | None = None
    hooks: list[Callable[[], None]] = field(default_factory=list)


def sqlite_path(connection_string: str) -> str:
    """The file that a ``file:`` connection string names; query parameters are Go's driver's and are left out."""
    path = connection_string.removeprefix("file:").split("?", 1)[0]
    return unquote(path.removeprefix("//") if path.startswith("///") else path)


class SQLiteDatabase:
    """One SQLite file: a writer with group commit, a reader on the reactor thread, long readers beside."""

    dialect: Dialect = SQLITE
    shared = False

    def __init__(self, path: str, threads: ThreadRunner | None, cache_bytes: int = 256 << 10) -> None:
        """Open the file at `path` (made where there is none); `threads` `None` runs all inline."""
        self._path = path
        self._threads = threads
        self._cache_bytes = cache_bytes
        if path != ":memory:":
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        self._writer = self._connect()
        self._reader = self._connect(query_only=True) if threads and path != ":memory:" else self._writer
        self._long_readers: queue.SimpleQueue[sqlite3.Connection | None] = queue.SimpleQueue()
        for _ in range(LONG_READERS):
            self._long_readers.put(None)
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._opened_by = os.getpid()
        self._closed = False
        self._read_lately = self._wrote_lately = self._read_long_lately = False
        self._shrunk = False
        self.label = path
        self.failing = ""
        """Why the last change was not taken by the disk; empty when all is well."""

    def begin(self) -> None:
        """Called when the reactor runs: a server that became a daemon since it was put together is another process.

        Neither threads nor SQLite's locks come along, so connections are opened anew.
        """
        if self._path != ":memory:" and self._opened_by != os.getpid():
            for connection in {self._writer, self._reader}:
                connection.close()
            self._writer = self._connect()
            self._reader = self._connect(query_only=True) if self._threads else self._writer
            self._opened_by = os.getpid()

    def _start_thread(self) -> None:
        self._thread = threading.Thread(target=self._write_for_ever, name=f"sqlite-writer {self._path}", daemon=True)
        self._thread.start()

    def _connect(self, query_only: bool = False) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path, isolation_level=None, check_same_thread=False, cached_statements=160, timeout=10
        )
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute(f"PRAGMA cache_size=-{self._cache_bytes // 1024}")
        connection.execute("PRAGMA temp_store=MEMORY")
        if query_only:
            connection.execute("PRAGMA query_only=ON")
        return connection

    def write(
        self, function: Callable[Concatenate[Transaction, P], Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> Deferred[T]:
        if self._closed:
            return fail(Unavailable("it is being closed"))
        self._wrote_lately = True
        job = _Job(function, args, kwargs, Deferred())
        if self._threads is None:
            self._commit([job])
            _deliver([job])
        else:
            if self._thread is None:
                self._start_thread()
            self._jobs.put(job)
        return job.answer

    def apart(
        self, function: Callable[Concatenate[Transaction, P], Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> Deferred[T]:
        return self.write(function, *args, **kwargs)

    def fence(self, sql: str, on_fenced: Callable[[], None]) -> None:
        """Nothing to ask: nobody else writes to the file."""

    def count(self, name: str, sql: str) -> None:
        """Nothing to read: who counts knows the last number."""

    def prepare(
        self, function: Callable[Concatenate[Transaction, P], Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        job = _Job(function, args, kwargs, Deferred())
        self._commit([job])
        if job.failure is not None:
            job.failure.raiseException()
        for hook in job.hooks:
            hook()
        return job.result  # type: ignore[no-any-return]

    async def read(
        self, function: Callable[Concatenate[Transaction, P], Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        self._read_lately = True
        try:
            return run_inline(function(SQLiteTransaction(self._reader), *args, **kwargs))  # type: ignore[arg-type]
        except sqlite3.OperationalError as error:
            raise Unavailable(str(error)) from error

    def read_long(
        self, function: Callable[Concatenate[Transaction, P], Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> Deferred[T]:
        if self._threads is None or self._path == ":memory:":
            try:
                return succeed(run_inline(function(SQLiteTransaction(self._reader), *args, **kwargs)))  # type: ignore[arg-type]
            except Exception:
                return fail()
        job = _Job(function, args, kwargs, Deferred())
        self._threads.call_in_thread(self._read_in_thread, job, self._threads.call_from_thread)
        return job.answer

    def _read_in_thread(self, job: _Job, call_from_thread: Callable[..., Any]) -> None:
        self._read_long_lately = True
        connection = self._long_readers.get()
        try:
            connection = connection or self._connect(query_only=True)
            self._run(job, SQLiteTransaction(connection))
        except sqlite3.Error as error:
            job.failure = Failure(Unavailable(str(error)))
        finally:
            self._long_readers.put(connection)
        call_from_thread(_deliver, [job])

    def _write_for_ever(self) -> None:
        """The writer thread: what waits at the moment becomes one commit."""
        assert self._threads is not None
        while True:
            first = self._jobs.get()
            jobs = [] if first is None else [first]
            while first is not None and len(jobs) < GROUP_LIMIT:
                try:
                    first = self._jobs.get_nowait()
                except queue.Empty:
                    break
                if first is not None:
                    jobs.append(first)
            if jobs:
                self._commit(jobs)
                self._threads.call_from_thread(_deliver, jobs)
            if first is None:
                return

    def _commit(self, jobs: list[_Job]) -> None:
        """Run `jobs` in order and commit them together; a job that fails takes back only itself."""
        connection = self._writer
        try:
            connection.execute("BEGIN IMMEDIATE")
            for job in jobs:
                if len(jobs) > 1:
                    connection.execute("SAVEPOINT job")
                self._run(job, SQLiteTransaction(connection))
                if not connection.in_transaction:
                    raise sqlite3.OperationalError("the disk is full or failing")
                if job.failure is not None and len(jobs) == 1:
                    connection.execute("ROLLBACK")
                    return
                if len(jobs) > 1:
                    if job.failure is not None:
                        connection.execute("ROLLBACK TO job")
                    connection.execute("RELEASE job")
            connection.execute("COMMIT")
            self.failing = ""
        except sqlite3.Error as error:
            self._note(error)
            for job in jobs:
                job.failure = job.failure or Failure(Unavailable(str(error)))
            try:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
            except sqlite3.Error as second:
                self._note(second)

    def _run(self, job: _Job, txn: SQLiteTransaction) -> None:
        try:
            job.result = run_inline(job.function(txn, *job.args, **job.kwargs))  # type: ignore[arg-type]
            job.hooks = txn.hooks
        except sqlite3.OperationalError as error:
            self._note(error)
            job.failure = Failure(Unavailable(str(error)))
        except BaseException:
            job.failure = Failure()

    def _note(self, error: sqlite3.Error) -> None:
        """Remember what the disk complains of."""
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in DISK_ERRORS:
            self.failing = str(error)

    async def probe(self) -> None:
        """Change nothing in a transaction that has to reach the disk; `failing` says what came of it."""

        async def touch(txn: Transaction) -> None:
            [(version,)] = await txn.fetch("PRAGMA user_version", ())
            await txn.execute(f"PRAGMA user_version = {version}", ())

        try:
            await self.write(touch)
        except Unavailable:
            return

    def rest(self) -> None:
        """Called now and then: what was not used since the last call gives back its memory.

        Pages that connections hold are read again from the file, long readers are opened again.
        """
        if self._closed or self._path == ":memory:":
            return
        if not self._read_long_lately:
            self._close_long_readers(put_back=True)
        busy = self._read_lately or self._wrote_lately
        self._read_lately = self._wrote_lately = self._read_long_lately = False
        if busy or self.failing:
            self._shrunk = False
        elif not self._shrunk:
            self._shrunk = True
            if self._thread is None:
                self._writer.execute("PRAGMA shrink_memory")
            else:
                self.write(_shrink).addErrback(lambda failure: failure.trap(Unavailable))
                self._wrote_lately = False
            if self._reader is not self._writer:
                self._reader.execute("PRAGMA shrink_memory")

    def _close_long_readers(self, *, put_back: bool) -> None:
        """Close those that nobody uses now."""
        for _ in range(LONG_READERS):
            try:
                connection = self._long_readers.get_nowait()
            except queue.Empty:
                return
            if connection is not None:
                connection.close()
            if put_back:
                self._long_readers.put(None)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
        self._writer.close()
        if self._reader is not self._writer:
            self._reader.close()
        self._close_long_readers(put_back=False)


async def _shrink(txn: Transaction) -> None:
    """Let a connection give up the pages that it holds."""
    await txn.execute("PRAGMA shrink_memory", ())


def _deliver(jobs: list[_Job]) -> None:
    """On the reactor thread: first what follows from the commits, in their order, then the answers."""
    for job in jobs:
        if job.failure is None:
            for hook in job.hooks:
                try:
                    hook()
                except Exception:
                    job.failure = Failure()
    for job in jobs:
        if job.failure is not None:
            job.answer.errback(job.failure)
        else:
            job.answer.callback(job.result)

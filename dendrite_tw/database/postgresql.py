"""PostgreSQL behind the interface of `engines`.

The writes of a database go through one connection, so that they are committed
in one order: whatever waits becomes one transaction, each write a savepoint in
it, and what begins and ends savepoints travels with the next statement, at no
round trip of its own.  Reads use a pool.  Nothing blocks the reactor.

A lost server: what was not yet committed is certainly not stored, and fails
as `Unavailable`.  Where the connection breaks while a commit is under way, the
server is asked what became of it as soon as it is back; who cannot wait for
that is told `Unacknowledged`.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable, Sequence
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import psycopg2
from psycopg2 import errors
from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..matrix.errors import MatrixError
from .connections import PATIENCE, WRITING, BlockingConnection, Pool, ReactorConnection, is_lost
from .dialects import POSTGRESQL, Dialect
from .engines import Unavailable, _deliver, _Job, run_inline
from .statements import Transaction

P = ParamSpec("P")
T = TypeVar("T")

log = Logger()

GROUP_LIMIT = 60
"""How many writes may share one commit; beyond 64 savepoints a backend's memory for them is full."""

ATTEMPTS = 4
"""How often a write is tried that the server takes back because of another one."""

READ_ATTEMPTS = 3
"""How often a read is tried whose connection dies under it."""

ROWS_AT_ONCE = 200
BYTES_AT_ONCE = 256 * 1024
"""How much of `execute_many` travels in one message."""

READERS = 20
"""More connections for reading gain nothing: reads are short, and each is a process of the server's."""

_LIMIT_EXCEEDED = "54"
"""The class of errors that tell of text too long for an index."""

_ONE_ROW = re.compile(
    r"(INSERT INTO \w+ \([\w, ]+\) VALUES )(\((?:%s|\d+|, )+\))((?: ON CONFLICT(?: \([\w, ]+\))? DO NOTHING)?)"
)


class Unacknowledged(Unavailable):
    """The connection broke during the commit: it is not known whether this transaction was stored."""


class Session(Protocol):
    """A connection as transactions use it."""

    pending: Deferred[Any] | None

    @property
    def failed(self) -> bool: ...

    def query(self, sql: str | bytes, values: Sequence[Any] | None) -> Awaitable[Any]: ...

    def mogrify(self, sql: str, values: Sequence[Any]) -> bytes: ...


class OnlySQL:
    """Runs a transaction's coroutine and refuses it to wait for anything but its own connection."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], session: Session) -> None:
        self._coroutine = coroutine
        self._session = session

    def __await__(self) -> Generator[Any, Any, Any]:
        step: Callable[[Any], Any] = self._coroutine.send
        argument: Any = None
        try:
            while True:
                waited = step(argument)
                if waited is not self._session.pending:
                    self._coroutine.close()
                    raise RuntimeError("a transaction waited for something other than its SQL")
                try:
                    step, argument = self._coroutine.send, (yield waited)
                except BaseException as error:
                    step, argument = self._coroutine.throw, error
        except StopIteration as stop:
            return stop.value


class PostgreSQLTransaction:
    """`Transaction` over a session; `first` is SQL without values that is sent ahead of the next statement."""

    dialect = POSTGRESQL

    def __init__(self, session: Session, first: str = "") -> None:
        self._session = session
        self.first = first
        self.hooks: list[Callable[[], None]] = []

    async def fetch(self, sql: str, values: Sequence[Any]) -> list[Any]:
        return (await self._query(sql, values)).fetchall()  # type: ignore[no-any-return]

    async def execute(self, sql: str, values: Sequence[Any]) -> int:
        return (await self._query(sql, values)).rowcount  # type: ignore[no-any-return]

    async def execute_many(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        one_row = _ONE_ROW.fullmatch(sql)
        head, row, tail = one_row.groups() if one_row else ("", sql, "")
        parts: list[bytes] = []
        size = 0
        for values in rows:
            part = self._written(row, values)
            parts.append(part)
            size += len(part)
            if len(parts) == ROWS_AT_ONCE or size > BYTES_AT_ONCE:
                await self._send(head, parts, tail)
                parts, size = [], 0
        if parts:
            await self._send(head, parts, tail)

    async def _send(self, head: str, parts: list[bytes], tail: str) -> None:
        text = head.encode() + b", ".join(parts) + tail.encode() if head else b"; ".join(parts)
        await self._query(text, None)

    def _written(self, sql: str, values: Sequence[Any]) -> bytes:
        try:
            return self._session.mogrify(sql, values)
        except ValueError as error:
            raise _unfit(error) from error

    async def _query(self, sql: str | bytes, values: Sequence[Any] | None) -> Any:
        first, self.first = self.first, ""
        try:
            if first:
                sql = first.encode() + sql if isinstance(sql, bytes) else first + sql
            return await self._session.query(sql, values)
        except psycopg2.Error as error:
            if error.pgcode is None or isinstance(error, errors.SyntaxError):
                self.first = first  # it was not even begun
            raise
        except ValueError as error:
            self.first = first
            raise _unfit(error) from error

    def after_commit(self, function: Callable[[], None]) -> None:
        self.hooks.append(function)


def _unfit(error: ValueError) -> Exception:
    """What psycopg2 says of text that PostgreSQL cannot hold, for the one who sent it."""
    if "NUL" in str(error):
        return MatrixError(400, "M_INVALID_PARAM", "Text with the character U+0000 cannot be stored.")
    return error


def _told(error: Exception) -> Failure:
    """A failure as callers are to see it: what the server cannot do now is `Unavailable`."""
    if isinstance(error, psycopg2.Error) and (error.pgcode or "").startswith(_LIMIT_EXCEEDED):
        return Failure(MatrixError(413, "M_TOO_LARGE", "This is longer than the server's database can index."))
    if isinstance(error, psycopg2.OperationalError | psycopg2.InterfaceError):
        return Failure(_unavailable(error))
    return Failure(error)


LOST = "the connection to PostgreSQL was lost"
NOT_THERE = "there is no connection to PostgreSQL"


def _unavailable(error: Exception) -> Unavailable:
    """For clients; the server's own words, which may name files and addresses, are for the log."""
    log.warn("PostgreSQL: {error}", error=str(error).strip() or type(error).__name__)
    if is_lost(error):
        return Unavailable(LOST)
    if isinstance(error, errors.DiskFull):
        return Unavailable("the disk is full")
    return Unavailable("it cannot do that now")


class _InDoubt(Exception):
    """The connection broke during the commit of the transaction with this number."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


async def commit_group(session: Session, jobs: list[_Job]) -> None:
    """Run `jobs` in order in one transaction; a job that fails takes back only itself.

    Results and failures are left in the jobs.  Raises `_InDoubt`, and what `is_lost` knows
    where nothing was committed.
    """
    begun = await session.query("BEGIN; SELECT txid_current()", None)
    number = int(begun.fetchone()[0])
    first = ""
    for index, job in enumerate(jobs):
        first = await _run_job(session, job, f"job_{index}", first)
    try:
        done = await session.query(first + "COMMIT", None)
    except Exception as error:
        if is_lost(error):
            raise _InDoubt(number) from error
        await session.query("ROLLBACK", None)
        _fail_all(jobs, _told(error))
        return
    if done.statusmessage != "COMMIT":
        _fail_all(jobs, Failure(Unavailable("the transaction was taken back")))


async def _run_job(session: Session, job: _Job, name: str, first: str) -> str:
    """Run one job within a savepoint; returns what has to be sent ahead of what follows.

    No two savepoints of a group share a name: taking back a job can never take back another one's.
    """
    begin = first + f"SAVEPOINT {name}; "
    release = f"RELEASE SAVEPOINT {name}; "
    for attempt in range(ATTEMPTS):
        txn = PostgreSQLTransaction(session, begin)
        job.failure = None
        again = False
        try:
            job.result = await OnlySQL(job.function(txn, *job.args, **job.kwargs), session)  # type: ignore[arg-type]
            job.hooks = txn.hooks
            if txn.first != begin and session.failed:
                raise RuntimeError("a transaction went on after a statement of it had failed")
        except Exception as error:
            if is_lost(error):
                raise
            again = isinstance(error, errors.SerializationFailure | errors.DeadlockDetected)
            job.failure = _told(error)
        if txn.first == begin:
            return first
        end = release if job.failure is None else f"ROLLBACK TO SAVEPOINT {name}; {release}"
        if not again or attempt + 1 == ATTEMPTS:
            return end
        begin = end + f"SAVEPOINT {name}; "
    raise AssertionError("the last attempt returns")


def _fail_all(jobs: Iterable[_Job], failure: Failure) -> None:
    for job in jobs:
        job.failure = job.failure or failure


class InlinePostgreSQL:
    """The interface of `Database` over a connection that blocks: for the start, and for tests without a reactor."""

    dialect: Dialect = POSTGRESQL
    label = "PostgreSQL"

    def __init__(self, dsn: str) -> None:
        """Connect to `dsn`; raises `Unavailable`."""
        self._dsn = dsn
        self._connection: BlockingConnection | None = None
        self._closed = False
        self.failing = ""
        self._session()

    def _session(self) -> BlockingConnection:
        if self._closed:
            raise Unavailable("it is being closed")
        if self._connection is None or not self._connection.alive:
            try:
                self._connection = BlockingConnection(self._dsn)
            except psycopg2.Error as error:
                self.failing = NOT_THERE
                raise _unavailable(error) from error
            self.failing = ""
        return self._connection

    def begin(self) -> None:
        """As `SQLiteDatabase.begin`; a connection that another process opened is left to it."""

    async def probe(self) -> None:
        """Find out whether the server is back."""
        try:
            self._session()
        except Unavailable:
            return

    def _commit(self, jobs: list[_Job]) -> None:
        try:
            run_inline(commit_group(self._session(), jobs))
        except _InDoubt:
            self.rest()
            _fail_all(jobs, Failure(Unacknowledged(LOST)))
        except Unavailable:
            _fail_all(jobs, Failure())
        except psycopg2.Error as error:
            self.rest()
            _fail_all(jobs, Failure(_unavailable(error)))

    def rest(self) -> None:
        """Give up the connection; the next question opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def write(
        self, function: Callable[Concatenate[Transaction, P], Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> Deferred[T]:
        job = _Job(function, args, kwargs, Deferred())
        self._commit([job])
        _deliver([job])
        return job.answer

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
        try:
            return run_inline(function(PostgreSQLTransaction(self._session()), *args, **kwargs))  # type: ignore[arg-type]
        except (psycopg2.OperationalError, psycopg2.InterfaceError) as error:
            raise _unavailable(error) from error

    def read_long(
        self, function: Callable[Concatenate[Transaction, P], Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> Deferred[T]:
        try:
            return succeed(run_inline(self.read(function, *args, **kwargs)))
        except Exception:
            return fail()

    def close(self) -> None:
        self._closed = True
        self.rest()


class Writer:
    """The connection through which all writes go, and what waits for it."""

    def __init__(self, reactor: Any, dsn: str, lifetime: float) -> None:
        self._reactor = reactor
        self._lifetime = lifetime
        self._connection = ReactorConnection(reactor, dsn, WRITING)
        self._connection.on_ready = lambda _: self._wake()
        self._connection.on_lost = lambda _: self._begin_to_wait()
        self._opened = False
        self._waiting: deque[_Job] = deque()
        self._doubtful: tuple[int, list[_Job]] | None = None
        self._running = False
        self._closing: Deferred[None] | None = None
        self._patience: Any = None
        self._gave_up = False

    @property
    def lost(self) -> bool:
        """Whether there has been no server for a while."""
        return self._gave_up

    def add(self, job: _Job) -> None:
        """Take a job; it is answered in its turn, or once nobody is expected to wait for the server any longer."""
        if self._closing is not None:
            job.answer.errback(Unavailable("it is being closed"))
            return
        if self._gave_up:
            job.answer.errback(Unavailable(NOT_THERE))
            return
        self._waiting.append(job)
        if not self._opened:
            self._opened = True
            self._begin_to_wait()
            self._connection.open()
        self._wake()

    def _begin_to_wait(self) -> None:
        if self._patience is None and not self._gave_up:
            self._patience = self._reactor.callLater(PATIENCE, self._give_up)

    def _give_up(self) -> None:
        """Nobody waits for this server any longer: tell them, and those who come, until it is back."""
        self._patience = None
        if self._connection.alive and not self._doubtful:
            return
        self._gave_up = True
        waiting, self._waiting = list(self._waiting), deque()
        if self._doubtful is not None:
            _, jobs = self._doubtful
            self._doubtful = None
            _fail_all(jobs, Failure(Unacknowledged(LOST)))
            waiting = jobs + waiting
        _fail_all(waiting, Failure(Unavailable(NOT_THERE)))
        _deliver(waiting)
        self._finish()

    def _wake(self) -> None:
        if self._connection.alive:
            self._gave_up = False
        if not self._running and self._connection.alive:
            self._running = True
            Deferred.fromCoroutine(self._run()).addErrback(self._defect)

    def _defect(self, failure: Failure) -> None:
        log.failure("the writer failed", failure=failure)
        self._running = False
        self._connection.renew()

    async def _run(self) -> None:
        """Write until nothing waits or the server goes."""
        connection = self._connection
        while connection.alive and (self._waiting or self._doubtful):
            if self._doubtful is not None:
                await self._settle()
                continue
            jobs = [self._waiting.popleft() for _ in range(min(GROUP_LIMIT, len(self._waiting)))]
            await self._commit(jobs)
        self._running = False
        if connection.alive:
            if self._patience is not None:
                self._patience.cancel()
                self._patience = None
            if 0 < self._lifetime < self._reactor.seconds() - connection.opened_at:
                connection.renew()
        self._finish()

    async def _commit(self, jobs: list[_Job]) -> None:
        try:
            await commit_group(self._connection, jobs)
        except _InDoubt as error:
            self._doubtful = (error.number, jobs)
            return
        except Exception as error:
            if self._connection.alive:
                self._connection.renew()
            _fail_all(jobs, Failure(_unavailable(error)))
        _deliver(jobs)

    async def _settle(self) -> None:
        """Learn what became of a commit whose answer was lost."""
        assert self._doubtful is not None
        number, _ = self._doubtful
        try:
            status = (await self._connection.query("SELECT txid_status(%s)", (number,))).fetchone()[0]
        except psycopg2.Error as error:
            if is_lost(error):
                return
            status = None
        if self._doubtful is None:
            return
        if status == "in progress":
            await self._moment()
            return
        _, jobs = self._doubtful
        self._doubtful = None
        if status == "aborted":
            _fail_all(jobs, Failure(Unavailable(LOST)))
        elif status != "committed":
            _fail_all(jobs, Failure(Unacknowledged(LOST)))
        _deliver(jobs)

    def _moment(self) -> Deferred[None]:
        passed: Deferred[None] = Deferred()
        self._reactor.callLater(0.05, passed.callback, None)
        return passed

    def close(self) -> Deferred[None]:
        """Fires when what waits has been written or given up."""
        if self._closing is None:
            self._closing = Deferred()
            self._finish()
        return self._closing

    def _finish(self) -> None:
        if self._closing is None or self._closing.called:
            return
        if self._running or self._doubtful or self._waiting:
            return
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        if self._opened:
            self._connection.close_for_good()
        self._closing.callback(None)


class PostgreSQLDatabase:
    """One PostgreSQL database: a writer with group commit, and a pool of readers."""

    dialect: Dialect = POSTGRESQL
    label = "PostgreSQL"

    def __init__(self, dsn: str, reactor: Any, most: int = 10, kept: int = 2, lifetime: float = 0.0) -> None:
        """Connect to `dsn` once, to see that it works: raises `Unavailable`.

        `most` counts the writer's connection too; `lifetime` is in seconds, 0 for ever.
        """
        self._start: InlinePostgreSQL | None = InlinePostgreSQL(dsn)
        self._dsn = dsn
        self._writer = Writer(reactor, dsn, lifetime)
        self._pool = Pool(reactor, dsn, max(1, min(most - 1, READERS)), kept, lifetime)

    @property
    def failing(self) -> str:
        """Why changes are not taken; empty when all is well."""
        return NOT_THERE if self._writer.lost else ""

    def begin(self) -> None:
        """Called when the reactor runs, which may be in another process: the start's connection is of no more use."""
        self._started()

    async def probe(self) -> None:
        """Connections try by themselves to be there again."""

    def prepare(
        self, function: Callable[Concatenate[Transaction, P], Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        if self._start is None:
            self._start = InlinePostgreSQL(self._dsn)
        return self._start.prepare(function, *args, **kwargs)

    def _started(self) -> None:
        """The start is over with the first question that does not block."""
        if self._start is not None:
            self._start.close()
            self._start = None

    def write(
        self, function: Callable[Concatenate[Transaction, P], Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> Deferred[T]:
        self._started()
        job = _Job(function, args, kwargs, Deferred())
        self._writer.add(job)
        return job.answer

    async def read(
        self, function: Callable[Concatenate[Transaction, P], Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        return await self.read_long(function, *args, **kwargs)

    def read_long(
        self, function: Callable[Concatenate[Transaction, P], Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> Deferred[T]:
        """Who loses interest gets `CancelledError` at once; what was asked runs to its end unheard."""
        self._started()
        answer: Deferred[T] = Deferred()
        Deferred.fromCoroutine(self._read(function, args, kwargs)).addBoth(_pass_on, answer)
        return answer

    async def _read(self, function: Callable[..., Awaitable[T]], args: Any, kwargs: Any) -> T:
        attempt = 1
        while True:
            connection = await self._pool.borrow()
            try:
                return await OnlySQL(function(PostgreSQLTransaction(connection), *args, **kwargs), connection)  # type: ignore
            except (psycopg2.OperationalError, psycopg2.InterfaceError) as error:
                if not is_lost(error) or attempt == READ_ATTEMPTS:
                    raise _unavailable(error) from error
                attempt += 1
            finally:
                self._pool.give_back(connection)

    def close(self) -> Deferred[None]:
        """Fires when the writes that wait are done and all connections are closed."""
        self._started()
        self._pool.close()
        return self._writer.close()


def _pass_on(result: Any, answer: Deferred[Any]) -> None:
    (answer.errback if isinstance(result, Failure) else answer.callback)(result)

"""PostgreSQL behind the interface of `engines`.

The writes of a database go through one connection, so that they are committed
in one order, in groups (`groups.py`).  Reads use a pool.  Nothing blocks the reactor.
Where several processes write, their groups take turns.

A lost server: what was not yet committed is certainly not stored, and fails
as `Unavailable`.  Where the connection breaks while a commit is under way, the
server is asked what became of it as soon as it is back; who cannot wait for
that is told `Unacknowledged`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

import psycopg2
from twisted.internet.defer import Deferred, DeferredList, fail, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from .connections import (
    PATIENCE,
    WRITING,
    WRITING_WITH_OTHERS,
    BlockingConnection,
    ReactorConnection,
    is_lost,
)
from .dialects import POSTGRESQL, Dialect
from .engines import Unavailable, _deliver, _Job, run_inline
from .groups import (
    LOST,
    NOT_THERE,
    OUTCOME,
    Mark,
    OnlySQL,
    PostgreSQLTransaction,
    Sharing,
    Unacknowledged,
    _fail_all,
    _InDoubt,
    _unavailable,
    commit_group,
)
from .pool import Pool
from .statements import Transaction

P = ParamSpec("P")
T = TypeVar("T")

log = Logger()

GROUP_LIMIT = 60
"""How many writes may share one commit; beyond 64 savepoints a backend's memory for them is full."""

READ_ATTEMPTS = 3
"""How often a read is tried whose connection dies under it."""

READERS = 20
"""More connections for reading gain nothing: reads are short, and each is a process of the server's."""


class _Shared:
    """What both of the classes below have of a database that several processes write to."""

    dialect: Dialect = POSTGRESQL
    label = "PostgreSQL"

    def __init__(self, sharing: Sharing | None) -> None:
        self._sharing = sharing
        self.shared = sharing is not None
        self._settings = WRITING if sharing is None else WRITING_WITH_OTHERS

    def fence(self, sql: str, on_fenced: Callable[[], None]) -> None:
        if self._sharing is not None:
            self._sharing.fence(sql, on_fenced)

    def count(self, name: str, sql: str) -> None:
        if self._sharing is not None:
            self._sharing.count(name, sql)


class InlinePostgreSQL(_Shared):
    """The interface of `Database` over a connection that blocks: for the start, and for tests without a reactor."""

    def __init__(self, dsn: str, shared: str | Sharing = "") -> None:
        """Connect to `dsn`; raises `Unavailable`.  For `shared` see `PostgreSQLDatabase`."""
        super().__init__(_sharing(shared))
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
                self._connection = BlockingConnection(self._dsn, self._settings)
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

    def _commit(self, jobs: list[_Job], sharing: Sharing | None) -> None:
        try:
            run_inline(commit_group(self._session(), jobs, sharing))
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
        self._commit([job], self._sharing)
        _deliver([job])
        return job.answer

    def apart(
        self, function: Callable[Concatenate[Transaction, P], Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> Deferred[T]:
        job = _Job(function, args, kwargs, Deferred())
        self._commit([job], None)
        _deliver([job])
        return job.answer

    def prepare(
        self, function: Callable[Concatenate[Transaction, P], Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        job = _Job(function, args, kwargs, Deferred())
        self._commit([job], self._sharing)
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

    def __init__(self, reactor: Any, dsn: str, lifetime: float, settings: str, sharing: Sharing | None) -> None:
        self._reactor = reactor
        self._lifetime = lifetime
        self._sharing = sharing
        self._connection = ReactorConnection(reactor, dsn, settings)
        self._connection.on_ready = lambda _: self._ready()
        self._connection.on_lost = lambda _: self._begin_to_wait()
        self._opened = False
        self._waiting: deque[_Job] = deque()
        self._doubtful: tuple[Mark, list[_Job]] | None = None
        self._running = False
        self._closing: Deferred[None] | None = None
        self._patience: Any = None
        self._aging: Any = None
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

    def _ready(self) -> None:
        if self._lifetime > 0:
            self._stop_aging()
            self._aging = self._reactor.callLater(self._lifetime, self._renew_old)
        self._wake()

    def _renew_old(self) -> None:
        """The connection is old; if it is busy, it is renewed when it has nothing to do."""
        self._aging = None
        if self._connection.alive and not self._running:
            self._connection.renew()

    def _stop_aging(self) -> None:
        if self._aging is not None:
            self._aging.cancel()
            self._aging = None

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
            if 0 < self._lifetime <= self._reactor.seconds() - connection.opened_at:
                connection.renew()
        self._finish()

    async def _commit(self, jobs: list[_Job]) -> None:
        try:
            await commit_group(self._connection, jobs, self._sharing)
        except _InDoubt as error:
            self._doubtful = (error.mark, jobs)
            return
        except Exception as error:
            if self._connection.alive:
                self._connection.renew()
            _fail_all(jobs, Failure(_unavailable(error)))
        _deliver(jobs)

    async def _settle(self) -> None:
        """Learn what became of a commit whose answer was lost."""
        assert self._doubtful is not None
        mark, _ = self._doubtful
        try:
            status = (await self._connection.query(OUTCOME, mark._asdict())).fetchone()[0]
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
        self._stop_aging()
        if self._opened:
            self._connection.close_for_good()
        self._closing.callback(None)


def _sharing(shared: str | Sharing) -> Sharing | None:
    if isinstance(shared, Sharing):
        return shared
    return Sharing(shared) if shared else None


class PostgreSQLDatabase(_Shared):
    """One PostgreSQL database: a writer with group commit, and a pool of readers."""

    def __init__(
        self, dsn: str, reactor: Any, most: int = 10, kept: int = 2, lifetime: float = 0.0, shared: str = ""
    ) -> None:
        """Connect to `dsn` once, to see that it works: raises `Unavailable`.

        `most` counts the connections for writing too: one, and in a shared database one for what is
        done `apart`; there is always one for reading.  `lifetime` is in seconds, 0 for ever.  `shared` is
        the name of the component whose processes all write here; without it this is the only writer.
        """
        super().__init__(_sharing(shared))
        self._start: InlinePostgreSQL | None = self._blocking(dsn)
        self._dsn = dsn
        self._writer = Writer(reactor, dsn, lifetime, self._settings, self._sharing)
        self._apart = Writer(reactor, dsn, lifetime, self._settings, None) if shared else self._writer
        readers = most - (2 if shared else 1)
        self._pool = Pool(reactor, dsn, max(1, min(readers, READERS)), kept, lifetime)

    def _blocking(self, dsn: str) -> InlinePostgreSQL:
        return InlinePostgreSQL(dsn, self._sharing or "")

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
            self._start = self._blocking(self._dsn)
        return self._start.prepare(function, *args, **kwargs)

    def _started(self) -> None:
        """The start is over with the first question that does not block."""
        if self._start is not None:
            self._start.close()
            self._start = None

    def write(
        self, function: Callable[Concatenate[Transaction, P], Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> Deferred[T]:
        return self._add(self._writer, _Job(function, args, kwargs, Deferred()))

    def apart(
        self, function: Callable[Concatenate[Transaction, P], Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> Deferred[T]:
        return self._add(self._apart, _Job(function, args, kwargs, Deferred()))

    def _add(self, writer: Writer, job: _Job) -> Deferred[Any]:
        self._started()
        writer.add(job)
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
        closing = [writer.close() for writer in {self._writer, self._apart}]
        return DeferredList(closing).addCallback(lambda _: None)


def _pass_on(result: Any, answer: Deferred[Any]) -> None:
    (answer.errback if isinstance(result, Failure) else answer.callback)(result)

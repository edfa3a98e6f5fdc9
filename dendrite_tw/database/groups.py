"""Transactions of PostgreSQL: how a group of them is begun, run and committed.

Whatever waits becomes one transaction, each write a savepoint in it; what begins
and ends savepoints travels with the next statement, at no round trip of its own.

A database that several processes share begins each group under a lock of the
component's, so that their groups follow each other, and positions grow in the
order of the commits whichever process gives them.  What a group has to know of
the others is read in the same message: whether this process may still write
(the *fence*), and the counters that it goes on from.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import psycopg2
from psycopg2 import errors
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..matrix.errors import MatrixError
from .connections import is_lost
from .dialects import POSTGRESQL
from .engines import Fenced, Unavailable, _Job

log = Logger()

ATTEMPTS = 4
"""How often a write is tried that the server takes back because of another one."""

ROWS_AT_ONCE = 200
BYTES_AT_ONCE = 256 * 1024
"""How much of `execute_many` travels in one message."""

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
    """`Transaction` over a session; `first` is SQL without values that is sent ahead of the next statement.

    With `puts_off`, what `execute_many` has to store goes along with the next statement, for nobody waits for
    its result; at the end `send_rest` sends what is left.  An error of it comes to light there.
    """

    dialect = POSTGRESQL

    def __init__(
        self,
        session: Session,
        first: str = "",
        counters: dict[str, int] | None = None,
        puts_off: bool = False,
    ) -> None:
        self._session = session
        self.first = first
        self.counters = {} if counters is None else counters
        self._puts_off = puts_off
        self._later: list[bytes] = []
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
        if parts and self._puts_off and size + sum(map(len, self._later)) < BYTES_AT_ONCE:
            self._later.append(_joined(head, parts, tail))
        elif parts:
            await self._send(head, parts, tail)

    async def _send(self, head: str, parts: list[bytes], tail: str) -> None:
        await self._query(_joined(head, parts, tail), None)

    async def send_rest(self) -> None:
        """Send what was put off and nothing was sent after."""
        if self._later:
            await self._query(self._later.pop(), None)

    def _written(self, sql: str, values: Sequence[Any]) -> bytes:
        try:
            return self._session.mogrify(sql, values)
        except ValueError as error:
            raise _unfit(error) from error

    async def _query(self, sql: str | bytes, values: Sequence[Any] | None) -> Any:
        first, self.first = self.first, ""
        try:
            if self._later:
                later, self._later = self._later, []
                sql, values = b"; ".join([*later, self._plain(sql, values)]), None
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

    def _plain(self, sql: str | bytes, values: Sequence[Any] | None) -> bytes:
        """A statement with its values written into it."""
        if isinstance(sql, bytes):
            return sql
        return sql.encode() if values is None else self._session.mogrify(sql, values)

    def after_commit(self, function: Callable[[], None]) -> None:
        self.hooks.append(function)


def _joined(head: str, parts: list[bytes], tail: str) -> bytes:
    """One statement with many rows, or many statements."""
    return head.encode() + b", ".join(parts) + tail.encode() if head else b"; ".join(parts)


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


class InUse(Unavailable):
    """Somebody else has the database with whom it cannot be shared; `reason` says who."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def _unavailable(error: Exception) -> Unavailable:
    """For clients; the server's own words, which may name files and addresses, are for the log."""
    log.warn("PostgreSQL: {error}", error=str(error).strip() or type(error).__name__)
    if isinstance(error, errors.ObjectInUse):
        return InUse(error.diag.message_primary or LOST)
    if is_lost(error):
        return Unavailable(LOST)
    if isinstance(error, errors.DiskFull):
        return Unavailable("the disk is full")
    return Unavailable("it cannot do that now")


class Sharing:
    """What the groups of a database begin with that several processes write to; one for each component.

    Two components in one database do not wait for each other.
    """

    def __init__(self, component: str) -> None:
        key = f"hashtext('dendrite_tw {component}'), hashtext(current_schema())"
        self._lock = f"SELECT pg_advisory_xact_lock({key})"
        self._fence = ""
        self._on_fenced: Callable[[], None] = lambda: None
        self._counters: dict[str, str] = {}

    def fence(self, sql: str, on_fenced: Callable[[], None]) -> None:
        """Let only groups pass for which `sql` gives true; where it does not, `on_fenced` is called."""
        self._fence, self._on_fenced = sql, on_fenced

    def count(self, name: str, sql: str) -> None:
        """Read a number at the beginning of each group, for `Transaction.counters`."""
        self._counters[name] = sql

    async def begin(self, session: Session) -> tuple[Mark, bool, dict[str, int]]:
        """Begin a group: its transaction's mark, whether it may write, and the counters.

        Each statement of the message sees what was committed when it began, so what follows the
        lock sees all that was committed under it.
        """
        asked = [_MARK, f"({self._fence})" if self._fence else "true"]
        asked += [f"({sql})" for sql in self._counters.values()]
        names = list(self._counters)
        begun = await session.query(f"{_BEGIN}; {self._lock}; SELECT {', '.join(asked)}", None)
        number, timeline, flushed, passes, *counts = begun.fetchone()
        return Mark(number, timeline, flushed), bool(passes), dict(zip(names, counts, strict=True))

    def fenced(self) -> None:
        """Tell whose place was taken."""
        self._on_fenced()


_BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED"
"""Whatever the server's default: a group must see what others commit while it waits."""


class Mark(NamedTuple):
    """By which a transaction is known after its connection broke.

    Its number alone is not enough: a server that crashed, or a standby in place of one, may give it again if
    nothing of the transaction had reached the disk.  So it counts together with the server's timeline, and with
    how far the log was on disk at the transaction's beginning: a crash is followed by a checkpoint behind that,
    which says what number came next.
    """

    number: int
    timeline: str
    flushed: str | None


_MARK = (
    "txid_current(), current_setting('dendrite_tw.timeline'), "
    "CASE WHEN current_setting('dendrite_tw.timeline') <> '' THEN pg_current_wal_flush_lsn()::text END"
)

OUTCOME = """
SELECT CASE
    WHEN current_setting('dendrite_tw.timeline') <> %(timeline)s THEN 'unknown'
    WHEN %(flushed)s IS NULL OR checkpoint_lsn <= %(flushed)s::pg_lsn OR %(number)s < next_number
        THEN txid_status(%(number)s)
    ELSE 'aborted'
END
FROM (
    SELECT checkpoint_lsn, split_part(next_xid, ':', 1)::bigint * 4294967296 + split_part(next_xid, ':', 2)::bigint
    AS next_number FROM pg_control_checkpoint()
) AS checkpoint
"""
"""What became of the transaction of a mark."""


class _InDoubt(Exception):
    """The connection broke during the commit of the transaction with this mark."""

    def __init__(self, mark: Mark) -> None:
        super().__init__(mark)
        self.mark = mark


async def commit_group(session: Session, jobs: list[_Job], sharing: Sharing | None = None) -> None:
    """Run `jobs` in order in one transaction; a job that fails takes back only itself.

    Results and failures are left in the jobs.  Raises `_InDoubt`, and what `is_lost` knows
    where nothing was committed.
    """
    counters: dict[str, int] = {}
    passes = True
    if sharing is None:
        begun = await session.query(f"{_BEGIN}; SELECT {_MARK}", None)
        mark = Mark(*begun.fetchone())
    else:
        mark, passes, counters = await sharing.begin(session)
    first = ""
    if sharing is not None and not passes:
        await session.query("ROLLBACK", None)
        _fail_all(jobs, Failure(Fenced()))
        sharing.fenced()
        return
    for index, job in enumerate(jobs):
        first = await _run_job(session, job, f"job_{index}", first, counters)
    await _end_group(session, jobs, first, mark)


async def _end_group(session: Session, jobs: list[_Job], first: str, mark: Mark) -> None:
    try:
        done = await session.query(first + "COMMIT", None)
    except Exception as error:
        if is_lost(error):
            raise _InDoubt(mark) from error
        await session.query("ROLLBACK", None)
        _fail_all(jobs, _told(error))
        return
    if done.statusmessage != "COMMIT":
        _fail_all(jobs, Failure(Unavailable("the transaction was taken back")))


async def _run_job(session: Session, job: _Job, name: str, first: str, counters: dict[str, int]) -> str:
    """Run one job within a savepoint; returns what has to be sent ahead of what follows.

    No two savepoints of a group share a name: taking back a job can never take back another one's.
    What a job counted that is taken back counts for nothing.
    """
    begin = first + f"SAVEPOINT {name}; "
    release = f"RELEASE SAVEPOINT {name}; "
    for attempt in range(ATTEMPTS):
        counted = dict(counters)
        txn = PostgreSQLTransaction(session, begin, counted, puts_off=True)
        job.failure = None
        again = False
        try:
            job.result = await OnlySQL(_whole(job, txn), session)
            job.hooks = txn.hooks
            if txn.first != begin and session.failed:
                raise RuntimeError("a transaction went on after a statement of it had failed")
            counters.update(counted)
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


async def _whole(job: _Job, txn: PostgreSQLTransaction) -> Any:
    result = await job.function(txn, *job.args, **job.kwargs)
    await txn.send_rest()
    return result


def _fail_all(jobs: Iterable[_Job], failure: Failure) -> None:
    for job in jobs:
        job.failure = job.failure or failure

"""Connections to PostgreSQL: one that blocks, and one for the reactor.

Both run one query at a time and give back psycopg2's cursor with its result.
`ReactorConnection` is txpostgres's, changed where that costs time or loses
sight of a server that went away: its descriptor stays registered, its one
cursor is used again, results are handed on as they are read, and a detector
notices that it died and connects again for as long as it takes.
"""

from __future__ import annotations

import os
from binascii import unhexlify
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import psycopg2
import psycopg2.extensions
from psycopg2.extensions import POLL_OK, POLL_WRITE, AsIs, new_type
from twisted.internet.defer import Deferred, fail, maybeDeferred
from twisted.internet.error import TimeoutError
from twisted.logger import Logger
from twisted.python.failure import Failure
from txpostgres.reconnection import DeadConnectionDetector
from txpostgres.txpostgres import Connection

from .addresses import CONNECT_SECONDS, each_server, places_of
from .prepared import Prepared

log = Logger()

FIRST_DELAY, DELAY_FACTOR, LONGEST_DELAY = 0.1, 1.7, 5.0
"""Seconds between attempts to reconnect."""

PATIENCE = 5.0
"""Seconds that work waits for a connection before it is refused."""

_SHUTTING_DOWN = ("57P01", "57P02", "57P03", "57P05", "25P03")
"""Ended by the administrator, a crash, a start that is not over, or because it was idle for too long."""


def said_by(error: object) -> str:
    """What PostgreSQL, or libpq, says is wrong, without the context that it adds; never a password."""
    primary = error.diag.message_primary if isinstance(error, psycopg2.Error) else None
    return (primary or str(error).strip() or type(error).__name__).rstrip(".")


def is_lost(error: object) -> bool:
    """Whether an error of psycopg2 says that the connection is gone, rather than what was asked is wrong."""
    if not isinstance(error, psycopg2.Error):
        return isinstance(error, TimeoutError)
    if error.pgcode is not None:
        return error.pgcode in _SHUTTING_DOWN or error.pgcode.startswith("08")
    return type(error) in (psycopg2.OperationalError, psycopg2.InterfaceError, psycopg2.DatabaseError)


# --- types as SQLite gives and takes them ---

_BYTES = new_type((17,), "BYTES", lambda text, cursor: None if text is None else unhexlify(text[2:]))
_WHOLE = new_type((1700,), "WHOLE", lambda text, cursor: None if text is None else int(text))
_FLAG = new_type((16,), "FLAG", lambda text, cursor: None if text is None else int(text == "t"))

psycopg2.extensions.register_adapter(bool, lambda flag: AsIs(int(flag)))


def _learn_types(connection: Any) -> None:
    for kind in (_BYTES, _WHOLE, _FLAG):
        psycopg2.extensions.register_type(kind, connection)


_SETTINGS = (
    "SET standard_conforming_strings = on; SET bytea_output = 'hex'; "
    "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
)
"""What was answered has to be on disk, whatever the server's default; a stricter one stays."""

_PRIMARY = """;
DO $$
BEGIN
    IF pg_is_in_recovery() THEN
        RAISE EXCEPTION 'this server is a standby' USING ERRCODE = 'read_only_sql_transaction';
    END IF;
END
$$;
"""
"""Only a primary will do, for reading too: a standby does not yet have what was just written."""

READING = _SETTINGS + _PRIMARY + "SET default_transaction_read_only = on"
HELD_SECONDS = 4
"""How long a process may keep the others of its component waiting by a transaction in which it does nothing.

A killed one gives up its transaction at once; one that was stopped, or whose machine is cut off, does not.
"""

_LOCK = """
DO $$
BEGIN
    BEGIN
        PERFORM set_config('dendrite_tw.timeline', substr(pg_walfile_name(pg_current_wal_flush_lsn()), 1, 8), false);
    EXCEPTION WHEN OTHERS THEN
        PERFORM set_config('dendrite_tw.timeline', '', false);
    END;
    PERFORM set_config('lock_timeout', '3s', true);
    PERFORM {function}(hashtext('dendrite_tw'), hashtext(current_schema()));
EXCEPTION WHEN lock_not_available THEN
    IF EXISTS (
        SELECT FROM pg_locks JOIN pg_database d ON d.oid = database
        WHERE locktype = 'advisory' AND objsubid = 2 AND granted AND mode = 'ExclusiveLock'
        AND datname = current_database() AND classid = hashtext('dendrite_tw')::oid
        AND objid = hashtext(current_schema())::oid
    ) THEN
        RAISE EXCEPTION 'another server uses this database' USING ERRCODE = 'object_in_use';
    END IF;
    RAISE EXCEPTION 'processes of a polylith use this database' USING ERRCODE = 'object_in_use';
END
$$"""

"""The timeline, which changes when a standby is promoted, helps to tell later what became of a commit
(`groups.Mark`); servers that only look like PostgreSQL need not have one.
"""

WRITING = _SETTINGS + _PRIMARY + _LOCK.format(function="pg_advisory_lock")
"""Positions are given by one writer, so there may be no second one: it waits until the first has gone.

A connection that was just closed may hold the lock for some more milliseconds.
"""

WRITING_WITH_OTHERS = (
    f"{_SETTINGS}{_PRIMARY}SET idle_in_transaction_session_timeout = '{HELD_SECONDS}s';"
    + _LOCK.format(function="pg_advisory_lock_shared")
)
"""Where several processes write, each takes its turn with every group; they keep out who writes without."""


class BlockingConnection:
    """A connection on which a query is answered before `query` returns."""

    pending: Deferred[Any] | None = None

    def __init__(self, dsn: str, settings: str = WRITING) -> None:
        """Connect for writing to the first server that takes it; raises `psycopg2.Error` where that cannot be."""
        refused: psycopg2.Error | None = None
        for place in each_server(dsn):
            try:
                self._connect(place, settings)
                return
            except psycopg2.errors.ObjectInUse:
                raise
            except psycopg2.Error as error:
                if refused is None or isinstance(refused, psycopg2.errors.ReadOnlySqlTransaction):
                    refused = error
        assert refused is not None
        raise refused

    def _connect(self, dsn: str, settings: str) -> None:
        self._connection = psycopg2.connect(dsn)
        self._connection.autocommit = True
        _learn_types(self._connection)
        self._cursor = self._connection.cursor()
        try:
            self._cursor.execute(settings)
        except psycopg2.Error:
            self._connection.close()
            raise

    @property
    def failed(self) -> bool:
        """Whether the transaction can only be rolled back."""
        return bool(self._connection.get_transaction_status() == psycopg2.extensions.TRANSACTION_STATUS_INERROR)

    @property
    def alive(self) -> bool:
        return not self._connection.closed

    async def query(self, sql: str | bytes, values: Sequence[Any] | None) -> Any:
        self._cursor.execute(sql, values)
        return self._cursor

    def copy(self, sql: str, file: Any) -> None:
        """Run a ``COPY … FROM STDIN`` that reads `file`; an error that this raises goes on to the caller."""
        self._cursor.copy_expert(sql, file)

    def mogrify(self, sql: str, values: Sequence[Any]) -> bytes:
        return self._cursor.mogrify(sql, values)  # type: ignore[no-any-return]

    def close(self) -> None:
        self._connection.close()


class Detector(DeadConnectionDetector):  # type: ignore[misc]
    """Notices that a connection died and connects it again, for as long as it takes or until it is stopped."""

    def __init__(self, reactor: Any) -> None:
        super().__init__(lambda failure: is_lost(failure.value), reactor=reactor)
        self._next: Any = None
        self._stopped = False

    def startReconnecting(self, failure: Failure) -> None:
        log.warn("lost a connection to PostgreSQL: {reason}", reason=_reason(failure))
        self._attempt(FIRST_DELAY)

    def _attempt(self, delay: float) -> None:
        self._next = None
        if not self._stopped:
            trying: Deferred[Any] = self.reconnect()
            trying.addCallbacks(lambda _: self._recovered(), lambda _: self._later(delay))

    def _recovered(self) -> None:
        log.info("connected to PostgreSQL again")
        self.connectionRecovered()

    def _later(self, delay: float) -> None:
        if not self._stopped:
            longer = min(delay * DELAY_FACTOR, LONGEST_DELAY)
            self._next = self.reactor.callLater(delay, self._attempt, longer)

    def stop(self) -> None:
        self._stopped = True
        if self._next is not None:
            self._next.cancel()
            self._next = None


def _reason(failure: Failure) -> str:
    """The first line of an error; libpq names the server in it, never the password."""
    return (str(failure.value).strip() or type(failure.value).__name__).splitlines()[0]


class ReactorConnection(Connection):  # type: ignore[misc]
    """A connection whose answers come through the reactor.

    It has a detector of its own: once it was opened it is connected again whenever it dies;
    `on_ready` is called each time that it can be used.
    """

    def __init__(self, reactor: Any, dsn: str, settings: str, prepares: bool = False) -> None:
        """`prepares`: each message is a statement of its own, and what comes again is prepared (`prepared`)."""
        super().__init__(reactor, detector=Detector(reactor))
        self.detector.addRecoveryHandler(self._ready)
        self.detector.setReconnectable(self)
        self._ended = False
        self._dsn = dsn
        self._settings = settings
        self._prepares = prepares
        self._prepared = Prepared()
        self._fd: int | None = None
        self._writing = False
        self._one_cursor: Any = None
        self._pollingD: Any = None
        self.pending: Deferred[Any] | None = None
        self.alive = False
        self.opened_at = self.used_at = 0.0
        self.on_ready: Callable[[ReactorConnection], None] = lambda connection: None
        self.on_lost: Callable[[ReactorConnection], None] = lambda connection: None

    def open(self) -> None:
        """Connect, and stay connected until `close_for_good`."""
        self.connect(self._dsn).addCallbacks(lambda _: self._ready(), self._refused)

    def _refused(self, failure: Failure) -> None:
        if not self.detector.connectionIsDead:
            self.detector.connectionIsDead = True
            self.detector.startReconnecting(failure)

    def _ready(self) -> None:
        self.opened_at = self.used_at = self.reactor.seconds()
        self.on_ready(self)

    def connect(self, *args: Any, **kwargs: Any) -> Deferred[Any]:
        return Deferred.fromCoroutine(self._connect_somewhere())

    async def _connect_somewhere(self) -> None:
        """Try one address after the other, each with its part of the time; raises what the last one says."""
        places = await places_of(self._dsn, self.reactor)
        for index, place in enumerate(places):
            try:
                await self._connect(place, CONNECT_SECONDS / len(places))
                return
            except Exception:
                if self._connection is not None:
                    self.close()
                if index == len(places) - 1 or self._ended:
                    raise

    def _connect(self, dsn: str, seconds: float) -> Deferred[Any]:
        if self._ended:
            return fail(psycopg2.OperationalError("the connection is not wanted any more"))
        timer = self.reactor.callLater(seconds, self.close)

        def over(result: Any) -> Any:
            if timer.active():
                timer.cancel()
            return result

        opening: Deferred[Any] = maybeDeferred(super().connect, dsn)
        return opening.addCallback(self._opened).addBoth(over)

    def _opened(self, _: Any) -> Deferred[Any]:
        """Watch a descriptor of our own: libpq closes its behind the reactor's back when the server goes."""
        self.reactor.removeReader(self)
        self._fd = os.dup(self._connection.fileno())
        self.reactor.addReader(self)
        _learn_types(self._connection)
        self._one_cursor = self._connection.cursor()
        self._prepared = Prepared()
        return self._ask(self._settings, None).addCallback(self._settled)

    def _settled(self, _: Any) -> None:
        self.alive = True

    @property
    def failed(self) -> bool:
        """Whether the transaction can only be rolled back."""
        return bool(self._connection.get_transaction_status() == psycopg2.extensions.TRANSACTION_STATUS_INERROR)

    def query(self, sql: str | bytes, values: Sequence[Any] | Mapping[str, Any] | None) -> Deferred[Any]:
        """Run `sql`; fires with the cursor, whose rows are there until the next query."""
        if not self.alive:
            return fail(psycopg2.OperationalError("there is no connection"))
        if self._prepares and values and isinstance(sql, str):
            message = self._prepared.message(sql, len(values))
            if message is not None:
                return self._ask(message, values).addErrback(self._as_text, self._prepared, sql, values)
        return self._ask(sql, values)

    def _as_text(self, failure: Failure, prepared: Prepared, sql: str, values: Any) -> Any:
        """Run a statement as text after all, where it may be the preparing that the server did not want."""
        if not (failure.check(psycopg2.ProgrammingError, psycopg2.errors.InvalidSqlStatementName) and self.alive):
            return failure
        prepared.give_up(sql)
        return self._ask(sql, values)

    def _ask(self, sql: str | bytes, values: Sequence[Any] | Mapping[str, Any] | None) -> Deferred[Any]:
        try:
            self._one_cursor.execute(sql, values)
        except Exception as error:
            failure = Failure()
            if is_lost(error):
                self._lost(failure)
            return fail(failure)
        answer = self.pending = Deferred()
        self._advance()
        return answer

    def mogrify(self, sql: str, values: Sequence[Any]) -> bytes:
        return self._one_cursor.mogrify(sql, values)  # type: ignore[no-any-return]

    def _advance(self) -> None:
        """Let libpq read and write what it can; hand on the answer when it is there."""
        try:
            state = self._connection.poll()
        except Exception as error:
            failure = Failure()
            waiting, self.pending = self.pending, None
            if is_lost(error):
                self._lost(failure)
            if waiting is not None:
                waiting.errback(failure)
            return
        if (state == POLL_WRITE) != self._writing:
            self._writing = state == POLL_WRITE
            (self.reactor.addWriter if self._writing else self.reactor.removeWriter)(self)
        if state == POLL_OK and self.pending is not None:
            waiting, self.pending = self.pending, None
            waiting.callback(self._one_cursor)

    def _lost(self, failure: Failure) -> None:
        """The server is gone: let go of the descriptor, tell the owner, begin to connect again."""
        self._let_go()
        self.on_lost(self)
        self.detector.checkForDeadConnection(failure)

    def _let_go(self) -> None:
        self.alive = False
        if self._fd is not None:
            self.reactor.removeReader(self)
            self.reactor.removeWriter(self)
            os.close(self._fd)
            self._fd = None
            self._writing = False

    def fileno(self) -> int:
        return super().fileno() if self._fd is None else self._fd

    def _go_on_opening(self, step: Callable[[], None]) -> None:
        """libpq may wait for a server that is gone, on a socket that it has closed: no number of one, and no error."""
        try:
            step()
        except ValueError:
            waiting, self._pollingD = self._pollingD, None
            if waiting is not None:
                waiting.errback(Failure(psycopg2.OperationalError("the server went away")))

    def doRead(self) -> None:
        if self._fd is None:
            self._go_on_opening(super().doRead)
        else:
            self._advance()

    def doWrite(self) -> None:
        if self._fd is None:
            self._go_on_opening(super().doWrite)
        else:
            self._advance()

    def connectionLost(self, reason: Failure) -> None:
        """The reactor or `close` says that the descriptor is of no use any more."""
        if self._fd is not None:
            self._lost(Failure(psycopg2.OperationalError("the connection was closed")))
        waiting, self._pollingD = self._pollingD, None
        if waiting is not None:
            waiting.errback(Failure(psycopg2.OperationalError("the server did not answer")))
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.errback(Failure(psycopg2.OperationalError("the connection was closed")))

    def close(self) -> None:
        self._let_go()
        if self._connection is not None:
            super().close()

    def renew(self) -> None:
        """Close and connect again: it is too old, or in a state that nobody knows."""
        self.close()
        self.on_lost(self)
        self.detector.checkForDeadConnection(Failure(psycopg2.OperationalError("it is being replaced")))

    def close_for_good(self) -> None:
        self._ended = True
        self.detector.stop()
        self.close()

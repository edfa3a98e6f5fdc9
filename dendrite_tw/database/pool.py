"""Connections for reading: opened when all are busy, lent one task at a time, the dead left out."""

from __future__ import annotations

from collections import deque
from typing import Any

from twisted.internet.defer import Deferred

from .connections import PATIENCE, READING, ReactorConnection
from .engines import Unavailable

IDLE_SECONDS = 30.0
"""How long a connection above the number that is kept may be idle."""


class Pool:
    """Connections for reading: opened when all are busy, lent one task at a time, the dead left out."""

    def __init__(self, reactor: Any, dsn: str, most: int, kept: int, lifetime: float) -> None:
        """At most `most` connections; `kept` stay when idle; `lifetime` in seconds, 0 for ever.

        One that is idle beside those gets `IDLE_SECONDS` of grace: to open one costs more than many reads.
        """
        self._reactor = reactor
        self._dsn = dsn
        self._most = most
        self._kept = kept
        self._lifetime = lifetime
        self._all: set[ReactorConnection] = set()
        self._busy: set[ReactorConnection] = set()
        self._idle: list[ReactorConnection] = []
        self._waiting: deque[Deferred[ReactorConnection]] = deque()
        self._tidying: Any = None
        self._closed = False

    @property
    def size(self) -> int:
        """How many connections there are, those that are being opened included."""
        return len(self._all)

    async def borrow(self) -> ReactorConnection:
        """A living connection, to be given back; raises `Unavailable` where there is none for too long."""
        if self._closed:
            raise Unavailable("it is being closed")
        while self._idle:
            connection = self._idle.pop()
            if connection.alive:
                self._busy.add(connection)
                return connection
        if len(self._all) < self._most:
            self._open()
        asking: Deferred[ReactorConnection] = Deferred()
        self._waiting.append(asking)
        timer = self._reactor.callLater(PATIENCE, self._refuse, asking)
        try:
            return await asking
        finally:
            if timer.active():
                timer.cancel()

    def _refuse(self, asking: Deferred[ReactorConnection]) -> None:
        self._waiting.remove(asking)
        asking.errback(Unavailable("no connection to PostgreSQL is free"))

    def _open(self) -> None:
        connection = ReactorConnection(self._reactor, self._dsn, READING, prepares=True)
        connection.on_ready = self._offer
        self._all.add(connection)
        connection.open()

    def give_back(self, connection: ReactorConnection) -> None:
        """Let others have a connection; one that died comes back by itself when it is connected again."""
        self._busy.discard(connection)
        if not connection.alive:
            return
        if self._closed or self._is_old(connection):
            self._drop(connection)
            if self._waiting and len(self._all) < self._most and not self._closed:
                self._open()
            return
        connection.used_at = self._reactor.seconds()
        self._offer(connection)

    def _offer(self, connection: ReactorConnection) -> None:
        if connection in self._busy or connection not in self._all:
            return
        if self._waiting:
            self._busy.add(connection)
            self._waiting.popleft().callback(connection)
            return
        if connection not in self._idle:
            self._idle.append(connection)
        self._plan()

    def _plan(self) -> None:
        """See to it that what is idle is closed in time, also if nobody comes any more."""
        due = self._idle[0].used_at + IDLE_SECONDS if len(self._idle) > self._kept else None
        if self._lifetime > 0 and self._idle:
            oldest = min(connection.opened_at for connection in self._idle) + self._lifetime
            due = oldest if due is None else min(due, oldest)
        if due is None or self._closed or (self._tidying is not None and self._tidying.getTime() <= due):
            return
        self._stop_tidying()
        self._tidying = self._reactor.callLater(max(0.0, due - self._reactor.seconds()), self._tidy)

    def _tidy(self) -> None:
        self._tidying = None
        now = self._reactor.seconds()
        for connection in list(self._idle):
            is_spare = len(self._idle) > self._kept and now - connection.used_at >= IDLE_SECONDS
            if is_spare or self._is_old(connection):
                self._drop(connection)
        self._plan()

    def _is_old(self, connection: ReactorConnection) -> bool:
        return self._lifetime > 0 and bool(self._reactor.seconds() - connection.opened_at >= self._lifetime)

    def _stop_tidying(self) -> None:
        if self._tidying is not None:
            self._tidying.cancel()
            self._tidying = None

    def _drop(self, connection: ReactorConnection) -> None:
        self._all.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        connection.close_for_good()

    def close(self) -> None:
        self._closed = True
        self._stop_tidying()
        while self._waiting:
            self._waiting.popleft().errback(Unavailable("it is being closed"))
        for connection in list(self._all):
            self._drop(connection)

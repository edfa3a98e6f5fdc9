"""Processes in one test process: a database whose clock the test holds, its fence, and echoes between them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock

from dendrite_tw.database.engines import SQLiteDatabase, Unavailable
from dendrite_tw.sharing.database import DatabaseLeases
from dendrite_tw.world import SeededRandom


class Shore:
    """What all processes share: one database in memory, and the air that carries echoes."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.database = SQLiteDatabase(":memory:", None)
        self.database._writer.create_function("julianday", 1, lambda _: clock.seconds() / 86400 + 2440587.5)
        self.hearers: dict[object, dict[str, list[Callable[[bytes], None]]]] = {}

    def ask(self, sql: str) -> list[tuple[Any, ...]]:
        return self.database._writer.execute(sql).fetchall()

    def alive(self, process: str) -> bool:
        return bool(self.ask(f"SELECT 1 FROM test_processes WHERE process = '{process}'"))

    def holders(self) -> dict[str, str]:
        """Lease to process, as the database has it."""
        return dict(self.ask("SELECT lease, process FROM test_leases"))


class FencedDatabase:
    """The shared database as one process has it: behind a fence, and away now and then."""

    def __init__(self, shore: Shore) -> None:
        self.shore = shore
        self.dialect = shore.database.dialect
        self.away = False
        self.delay: Callable[[], float] = lambda: 0.0
        """How many seconds a question takes to get there."""
        self._fence: tuple[str, Callable[[], None]] | None = None
        self.fenced_writes = 0

    def fence(self, sql: str, on_fenced: Callable[[], None]) -> None:
        self._fence = (sql, on_fenced)

    def _is_fenced(self) -> bool:
        if self._fence is None or self.shore.ask(self._fence[0]) == [(1,)]:
            return False
        self.fenced_writes += 1
        self._fence[1]()
        return True

    def _later(self, call: Callable[[], Deferred[Any]]) -> Deferred[Any]:
        delay = self.delay()
        if not delay:
            return call()
        answer: Deferred[Any] = Deferred()
        self.shore.clock.callLater(delay, lambda: call().chainDeferred(answer))
        return answer

    def write(self, function: Any, *args: Any, **kwargs: Any) -> Deferred[Any]:
        def run() -> Deferred[Any]:
            if self.away or self._is_fenced():
                return fail(Unavailable("away" if self.away else "fenced"))
            return self.shore.database.write(function, *args, **kwargs)

        return self._later(run)

    def apart(self, function: Any, *args: Any, **kwargs: Any) -> Deferred[Any]:
        def run() -> Deferred[Any]:
            if self.away:
                return fail(Unavailable("away"))
            return self.shore.database.write(function, *args, **kwargs)

        return self._later(run)

    async def read(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        return await self.read_long(function, *args, **kwargs)

    def read_long(self, function: Any, *args: Any, **kwargs: Any) -> Deferred[Any]:
        def run() -> Deferred[Any]:
            if self.away:
                return fail(Unavailable("away"))
            return self.shore.database.read_long(function, *args, **kwargs)

        return self._later(run)

    def prepare(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        return self.shore.database.prepare(function, *args, **kwargs)

    def close(self) -> None:
        """The shore stays."""


class ShoreEchoes:
    """`Echoes` between the processes of a shore."""

    hearing = True

    def __init__(self, shore: Shore) -> None:
        self._shore = shore
        self._own: dict[str, list[Callable[[bytes], None]]] = {}
        shore.hearers[self] = self._own

    def tell(self, topic: str, payload: bytes) -> None:
        for echoes, topics in list(self._shore.hearers.items()):
            if echoes is not self:
                for call in topics.get(topic, ()):
                    self._shore.clock.callLater(0, call, payload)

    def hear(self, topic: str, call: Callable[[bytes], None]) -> None:
        self._own.setdefault(topic, []).append(call)

    def on_missed(self, call: Callable[[], None]) -> None:
        """Nothing is missed here."""

    def leave(self) -> None:
        self._shore.hearers.pop(self, None)


class ProcessClock(Clock):
    """The clock of one process: stands still while the process is stopped, then catches up."""

    def __init__(self, shore: Shore) -> None:
        super().__init__()
        self._shore = shore
        self.rightNow = shore.clock.seconds()

    def seconds(self) -> float:
        return self._shore.clock.seconds()

    def run(self) -> None:
        """Do what is due."""
        self.advance(0)

    def advance(self, amount: float) -> None:
        self.rightNow = self._shore.clock.seconds()
        self._sortCalls()
        while self.calls and self.calls[0].getTime() <= self.seconds():
            call = self.calls.pop(0)
            call.called = 1
            call.func(*call.args, **call.kw)


class Process:
    """A process with leases; ``log`` is what was told of them."""

    def __init__(self, shore: Shore, seed: int, names: list[str]) -> None:
        self.shore = shore
        self.clock = ProcessClock(shore)
        self.database = FencedDatabase(shore)
        self.echoes = ShoreEchoes(shore)
        self.log: list[tuple[str, ...]] = []
        self.draining: dict[str, Deferred[None]] = {}
        self.slow = False
        self.dead = False
        self.paused = False
        self.names = names
        self.leases = DatabaseLeases("test", self.database, self.echoes, self.clock, SeededRandom(seed))
        self.leases.want(names, self.gained, self.lost)

    async def gained(self, name: str) -> None:
        self.log.append(("gained", name))

    async def lost(self, name: str, kept: bool) -> None:
        self.log.append(("drained" if kept else "taken", name))
        if self.slow and kept:
            self.draining[name] = Deferred()
            await self.draining[name]

    def finish_draining(self) -> None:
        while self.draining:
            self.draining.popitem()[1].callback(None)

    def start(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self.leases.start())

    def stop(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self.leases.stop())

    def kill(self) -> None:
        self.dead = True
        self.echoes.leave()
        self.database.away = True

    def held(self) -> set[str]:
        """What this process would act on now."""
        if self.dead or self.paused:
            return set()
        return {name for name in self.names if self.leases.holds(name)}

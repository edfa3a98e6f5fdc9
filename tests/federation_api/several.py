"""Several processes of the federation component over one database, in one test: their leases, echoes and deaths.

Each `Process` has a view of the database that takes its time and keeps the order of its own writes, echoes that take
theirs and keep the order in which one process tells, and leases that a `Deployment` deals out.  A process that is
killed does nothing more: what it had not committed is lost, and so is what it told and nobody heard yet.  One that is
*cut off* is taken for dead and goes on: what it wants to store is refused, and in a while it notices and begins anew.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import Any

from twisted.internet.defer import Deferred, DeferredList, DeferredLock, succeed
from twisted.python.failure import Failure

from dendrite_tw.database.engines import Fenced
from dendrite_tw.database.migrate import migrate, steps_of
from dendrite_tw.sharing.shares import spread
from tests.harness import empty_database

EXPIRY = 3.5
"""Seconds after which the leases of one who was killed are taken."""


class View:
    """The database as one process has it."""

    shared = True

    def __init__(self, process: Process) -> None:
        self._process = process
        self._database = process.deployment.database
        self._last = 0.0
        self.dialect = self._database.dialect
        self.prepare = self._database.prepare

    def write(self, function: Any, *args: Any, **kwargs: Any) -> Deferred[Any]:
        process, answer = self._process, Deferred[Any]()
        now = process.clock.seconds()
        self._last = max(self._last, now + process.moment())
        process.clock.callLater(self._last - now, self._commit, function, args, kwargs, answer)
        return answer

    def _commit(self, function: Any, args: Any, kwargs: Any, answer: Deferred[Any]) -> None:
        if self._process.dead:
            return
        if self._process.fenced:
            self._process.learn()
            self._answer(Failure(Fenced()), answer)
            return
        self._database.write(function, *args, **kwargs).addBoth(self._answer, answer)

    def _answer(self, result: Any, answer: Deferred[Any]) -> None:
        def arrive() -> None:
            if not self._process.dead and not answer.called:
                answer.callback(result)

        self._process.clock.callLater(self._process.moment(), arrive)

    async def read(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        """What is read is what was there at some time between question and answer."""
        await self._passed()
        found = await self._database.read(function, *args, **kwargs)
        await self._passed()
        return found

    def read_long(self, function: Any, *args: Any, **kwargs: Any) -> Deferred[Any]:
        return Deferred.fromCoroutine(self.read(function, *args, **kwargs))

    def _passed(self) -> Deferred[None]:
        passed: Deferred[None] = Deferred()
        self._answer(None, passed)
        return passed


class Air:
    """`Echoes` of one process."""

    def __init__(self, process: Process) -> None:
        self.hearing = True
        self._process = process
        self._hearers: dict[str, list[Callable[[bytes], None]]] = {}
        self._missed: list[Callable[[], None]] = []
        self._last = 0.0

    def tell(self, topic: str, payload: bytes) -> None:
        process = self._process
        now = process.clock.seconds()
        self._last = max(self._last, now + process.moment())
        if not process.dead:
            process.clock.callLater(self._last - now, self._arrive, topic, payload)

    def _arrive(self, topic: str, payload: bytes) -> None:
        for other in self._process.deployment.processes:
            if other is not self._process and not self._process.dead and not other.dead:
                other.echoes.heard(topic, payload)

    def heard(self, topic: str, payload: bytes) -> None:
        for call in self._hearers.get(topic, ()) if self.hearing else ():
            call(payload)

    def hear(self, topic: str, call: Callable[[bytes], None]) -> None:
        self._hearers.setdefault(topic, []).append(call)

    def on_missed(self, call: Callable[[], None]) -> None:
        self._missed.append(call)

    def lose(self, seconds: float) -> None:
        """Nothing is heard for so long."""
        self.hearing = False
        self._tell_missed()
        self._process.clock.callLater(seconds, self._hear_again)

    def _hear_again(self) -> None:
        self.hearing = True
        self._tell_missed()

    def _tell_missed(self) -> None:
        if not self._process.dead:
            for call in self._missed:
                call()


class Held:
    """`Leases` of one process, dealt out by the deployment."""

    def __init__(self, process: Process) -> None:
        self.process = process.name
        self._deployment = process.deployment
        self.wanted: dict[str, tuple[Callable[[str], Awaitable[None]], Callable[[str, bool], Awaitable[None]]]] = {}
        self.held: set[str] = set()
        self._turns: dict[str, DeferredLock] = {}

    def want(self, names: Sequence[str], gained: Any, lost: Any) -> None:
        for name in names:
            self.wanted[name] = (gained, lost)
            self._turns[name] = DeferredLock()

    def holds(self, name: str) -> bool:
        return name in self.held

    async def start(self) -> None:
        self._deployment.deal()

    async def stop(self) -> None:
        """Never called: processes end otherwise here."""

    def gain(self, name: str) -> Deferred[None]:
        self.held.add(name)
        return self._turns[name].run(_begun, self.wanted[name][0](name))

    def lose(self, name: str, kept: bool) -> Deferred[None]:
        if not kept and name not in self.held and not self._turns[name].locked:
            return succeed(None)
        self.held.discard(name)
        return self._turns[name].run(_begun, self.wanted[name][1](name, kept))


def _begun(work: Awaitable[None]) -> Deferred[None]:
    return Deferred.fromCoroutine(_awaited(work))


async def _awaited(work: Awaitable[None]) -> None:
    await work


class Process:
    """One process: what it stands on.  ``dead`` and ``fenced`` are for what a test puts on it to look at."""

    def __init__(self, deployment: Deployment, name: str) -> None:
        self.deployment = deployment
        self.name = name
        self.clock = deployment.clock
        self.dead = False
        self.fenced = False
        self.learning = False
        self.database: Any = View(self)
        self.echoes: Any = Air(self)
        self.leases = Held(self)
        deployment.processes.append(self)

    def moment(self) -> float:
        return self.deployment.chance.uniform(0, self.deployment.slowest)

    def learn(self) -> None:
        """It was taken for dead, and notices."""
        if self.fenced and not self.dead and not self.learning:
            self.learning = True
            self.deployment.failed(Deferred.fromCoroutine(self._begin_anew()))

    async def _begin_anew(self) -> None:
        """Forget everything; only then what it writes is taken again."""
        await DeferredList([self.leases.lose(name, False) for name in list(self.leases.wanted)])
        self.fenced = self.learning = False
        self.deployment.deal()

    async def forever(self) -> None:
        await Deferred()


class Deployment:
    """The database, and who holds what."""

    def __init__(self, clock: Any, seed: int | str, slowest: float = 0.02, database: Any = None) -> None:
        self.clock = clock
        self.chance = Random(seed)
        self.slowest = slowest
        self.database = empty_database() if database is None else database
        self.database.prepare(migrate, "federation_api", steps_of("dendrite_tw.federation_api"))
        self.processes: list[Process] = []
        self.holders: dict[str, Process] = {}
        self.moving: dict[str, object] = {}
        self.failures: list[Failure] = []

    @property
    def living(self) -> list[Process]:
        return [process for process in self.processes if not process.dead]

    def failed(self, work: Deferred[None]) -> Deferred[None]:
        return work.addErrback(self.failures.append)

    def deal(self) -> None:
        """Give each lease to the process that is to have it; from those that hold it otherwise, once they are done."""
        able = {one.name: one for one in self.living if not one.fenced}
        chosen = spread({name: list(one.leases.wanted) for name, one in able.items()})
        for lease, name in chosen.items():
            holder = self.holders.get(lease)
            if lease in self.moving or holder is able[name] or (holder is not None and holder.dead):
                continue
            if holder is not None and holder.fenced:
                continue
            self._move(lease, holder, able[name])

    def _move(self, lease: str, holder: Process | None, to: Process) -> None:
        move = self.moving[lease] = object()

        def given(_: Any) -> Deferred[None] | None:
            if self.moving.get(lease) is not move:
                return None
            del self.moving[lease]
            if to.dead or to.fenced:
                self.holders.pop(lease, None)
                return None
            self.holders[lease] = to
            return self.failed(to.leases.gain(lease))

        if holder is None:
            given(None)
        else:
            self.failed(holder.leases.lose(lease, True)).addCallback(given)

    def kill(self, process: Process) -> None:
        process.dead = True
        self.clock.callLater(EXPIRY, self._expire, process)

    def cut_off(self, process: Process) -> None:
        """Others think that it is dead."""
        process.fenced = True
        self._expire(process)
        self.clock.callLater(self.chance.uniform(0, 2), process.learn)

    def _expire(self, process: Process) -> None:
        for lease in [lease for lease, holder in self.holders.items() if holder is process]:
            del self.holders[lease]
            self.moving.pop(lease, None)
        self.deal()

    def pass_time(self, seconds: float, step: float = 0.01) -> None:
        while seconds > 0:
            self.clock.advance(min(step, seconds))
            seconds -= step

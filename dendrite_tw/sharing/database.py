"""Leases that are kept in the component's database, by any number of processes.

**Life.**  A process has a row that expires `LASTING` seconds after it was last renewed, by the database's clock.  It
counts from the moment before it asked, by its own clock, so it stops to act on its leases (`DatabaseLeases.holds`)
before anybody else may take them.  Comes the database back in time, it goes on: nobody else can have had them.

**Death.**  Whoever takes leases of an expired process deletes its row in the same transaction, and that is a *fence*:
every group of writes looks for the row first, and all groups of a component follow each other.  So what a process
that was taken for dead still wants to store, from what it knew when it held its leases, is refused.  It forgets all
of that, and joins again under another name.

**Turns.**  Everybody looks at the tables every `LOOKING` seconds, and at once when another process tells of a change.
`spread` says who is to have what; who holds something that is another's finishes what is under way, gives it back and
tells, and the other takes it.  A lease that is held is never taken, however slow its holder is to give it back.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from enum import Enum
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from ..database.engines import Database, Unavailable
from ..database.statements import Transaction
from ..links.echoes import Echoes
from ..world import Random
from .leases import Gained, Lost, together
from .shares import spread
from .tables import LeaseRow, LeaseTables, ProcessRow

P = ParamSpec("P")
T = TypeVar("T")

LASTING = 3.0
"""Seconds that a process lives without renewing."""
RENEWING = 0.75
LOOKING = 0.5

log = Logger()


class SharedDatabase(Database, Protocol):
    """A database that processes share; `PostgreSQLDatabase` is one."""

    def fence(self, sql: str, on_fenced: Callable[[], None]) -> None:
        """Take writes only while `sql` is true, and call once when it no longer is; in place of an earlier fence."""

    def apart(
        self, function: Callable[Concatenate[Transaction, P], Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> Deferred[T]:
        """Run `function` in a transaction out of the order of the others, and on either side of the fence."""


class State(Enum):
    """What a lease is to this process."""

    NONE = "none"
    GAINING = "gaining"
    HELD = "held"
    LOSING = "losing"
    DRAINED = "drained"
    """Nothing is under way; it waits to be given back."""


class Lease:
    """One lease as this process sees it; ``turn`` keeps the calls for it one after the other."""

    def __init__(self, name: str, gained: Gained, lost: Lost) -> None:
        self.name = name
        self.gained = gained
        self.lost = lost
        self.state = State.NONE
        self.turn = DeferredLock()


class DatabaseLeases:
    """`Leases` of one process; ``component`` names the tables."""

    def __init__(
        self, component: str, database: SharedDatabase, echoes: Echoes, time: IReactorTime, random: Random
    ) -> None:
        self.process = ""
        self._component = component
        self._tables = LeaseTables(component)
        self._database = database
        self._echoes = echoes
        self._time = time
        self._random = random
        self._leases: dict[str, Lease] = {}
        self._since = self._until = 0.0
        """From when and up to when, by this process's clock, nobody else can have taken its leases."""
        self._joined = False
        self._stopping = False
        self._fencing: Deferred[None] | None = None
        self._looking = False
        self._look_again = False
        self._given = 0
        """How often leases were given back: what was read before is out of date."""
        self._giving = False
        self._renewing = False
        self._timers: dict[str, IDelayedCall] = {}
        self._topic = f"leases_{component}"

    # --- what the component says and asks ---

    def want(self, names: Sequence[str], gained: Gained, lost: Lost) -> None:
        for name in names:
            self._leases[name] = Lease(name, gained, lost)

    def holds(self, name: str) -> bool:
        lease = self._leases.get(name)
        return lease is not None and lease.state is State.HELD and self._is_sure()

    def _is_sure(self) -> bool:
        """Whether nobody else can have taken what this process holds; not so when its clock was set back."""
        return self._since <= self._time.seconds() < self._until

    async def start(self) -> None:
        """Join the others; raises what the database does.  Leases come once the others have given theirs back."""
        await self._database.write(self._tables.create)
        self._echoes.hear(self._topic, lambda payload: self._look())
        self._echoes.on_missed(self._look)
        await self._join()
        await self._look_now()
        self._plan_renewal()
        self._plan_look()

    async def stop(self) -> None:
        """Finish what is under way, give everything back, and leave."""
        self._stopping = True
        for timer in self._timers.values():
            if timer.active():
                timer.cancel()
        if self._fencing is not None:
            return
        try:
            await self._database.write(self._tables.want_nothing, self.process)
        except Unavailable as error:
            self._complain("cannot say that it stops", error)
        await together(self._drain(lease) for lease in self._leases.values() if lease.state is not State.NONE)
        await self._give_back()
        self._until = 0.0
        try:
            await self._database.write(self._tables.leave, self.process)
        except Unavailable as error:
            self._complain("leaves without giving back its leases, which expire", error)
        self._joined = False
        self._tell()

    # --- life ---

    async def _join(self) -> None:
        self.process = self._random.token(20)
        wants = " ".join(sorted(self._leases))
        sent = self._time.seconds()
        await self._database.apart(self._tables.join, self.process, int(LASTING * 1000), wants)
        self._since, self._until = sent, sent + LASTING
        self._database.fence(self._tables.alive.format(self.process), self._fenced)
        self._joined = True
        self._tell()

    def _plan_renewal(self) -> None:
        self._later("renew", RENEWING, self._renew)

    def _renew(self) -> None:
        self._plan_renewal()
        if not self._renewing and self._joined:
            self._renewing = True
            self._detach(self._renew_now())

    async def _renew_now(self) -> None:
        sent, process = self._time.seconds(), self.process
        try:
            renewed = await self._database.apart(self._tables.renew, process, int(LASTING * 1000))
        except Unavailable as error:
            if not self._is_sure():
                self._complain("cannot be renewed", error)
            return
        finally:
            self._renewing = False
        if process != self.process or self._fencing is not None:
            return
        if renewed:
            self._since, self._until = sent, sent + LASTING
        else:
            self._fenced()

    def _fenced(self) -> None:
        """This process was taken for dead: nothing that it knows of its leases is true any longer."""
        if self._fencing is not None or not self._joined:
            return
        log.warn(
            "{component}: this process did not renew its leases in time and lost them; it begins anew",
            component=self._component,
        )
        self._joined = False
        self._until = 0.0
        self._fencing = Deferred()
        self._detach(self._begin_anew())

    async def _begin_anew(self) -> None:
        await together(self._forget(lease) for lease in self._leases.values() if lease.state is not State.NONE)
        while not self._stopping:
            try:
                await self._join()
                break
            except Unavailable as error:
                self._complain("cannot join the others again", error)
                await self._moment()
        fencing, self._fencing = self._fencing, None
        if fencing is not None:
            fencing.callback(None)
        self._look()

    async def _moment(self) -> None:
        passed: Deferred[None] = Deferred()
        self._time.callLater(LOOKING, passed.callback, None)
        await passed

    # --- turns ---

    def _plan_look(self) -> None:
        self._later("look", LOOKING, self._look_regularly)

    def _look_regularly(self) -> None:
        self._plan_look()
        self._look()

    def _look(self) -> None:
        if self._joined and not self._stopping:
            self._detach(self._look_now())

    async def _look_now(self) -> None:
        """See what has changed, and do what follows for this process; one look at a time."""
        if self._looking:
            self._look_again = True
            return
        self._looking = self._look_again = True
        try:
            while self._look_again and self._joined and not self._stopping:
                given, self._look_again = self._given, False
                processes, leases = await self._database.read(self._tables.now)
                if given == self._given:
                    await self._turn(processes, leases)
                else:
                    self._look_again = True
        except Unavailable as error:
            if not self._is_sure():
                self._complain("cannot be read", error)
        finally:
            self._looking = False

    async def _turn(self, processes: list[ProcessRow], leases: list[LeaseRow]) -> None:
        living = {row.process: row.wants.split() for row in processes if row.left >= 0}
        if self.process not in living:
            # Perhaps taken for dead, perhaps only late: what comes of the next renewal or write says which.
            return
        mine = {name for name, process in spread(living).items() if process == self.process}
        held = {row.lease: row.process for row in leases}
        free = [name for name in sorted(mine) if held.get(name) not in living]
        if (free or len(living) < len(processes)) and self._is_sure():
            await self._settle(free)
            self._look_again = True
            return
        for name, lease in self._leases.items():
            owned = held.get(name) == self.process
            if owned and lease.state is State.NONE and self._joined:
                lease.state = State.GAINING
                self._detach(self._gain(lease))
            elif lease.state is State.HELD and not owned:
                self._detach(self._forget(lease))
            elif lease.state is State.HELD and name not in mine:
                self._detach(self._hand_over(lease))
        if any(lease.state is State.DRAINED for lease in self._leases.values()):
            self._detach(self._give_back())

    async def _settle(self, names: list[str]) -> None:
        await self._database.write(self._tables.settle, self.process, names)

    async def _gain(self, lease: Lease) -> None:
        process = self.process
        await lease.turn.acquire()
        try:
            if lease.state is not State.GAINING or process != self.process:
                return
            if await self._call_gained(lease):
                lease.state = State.HELD
                self._look()
            elif lease.state is State.GAINING:
                lease.state = State.NONE
        finally:
            lease.turn.release()

    async def _call_gained(self, lease: Lease) -> bool:
        """Whether the lease was taken up, and is still to be."""
        try:
            await lease.gained(lease.name)
        except Unavailable as error:
            self._complain(f"{lease.name} has to wait", error)
            return False
        except Exception:
            log.failure("{component}: lease {name} cannot be taken up", component=self._component, name=lease.name)
            return False
        return lease.state is State.GAINING

    async def _hand_over(self, lease: Lease) -> None:
        await self._drain(lease)
        await self._give_back()

    async def _drain(self, lease: Lease) -> None:
        """Have what is under way finished."""
        if lease.state is State.DRAINED:
            return
        lease.state = State.LOSING
        await lease.turn.acquire()
        try:
            if lease.state is State.LOSING:
                await self._call_lost(lease, True)
            if lease.state is State.LOSING:
                lease.state = State.DRAINED
        finally:
            lease.turn.release()

    async def _forget(self, lease: Lease) -> None:
        """It was taken away."""
        lease.state = State.NONE
        await lease.turn.acquire()
        try:
            await self._call_lost(lease, False)
        finally:
            lease.turn.release()

    async def _call_lost(self, lease: Lease, kept: bool) -> None:
        try:
            await lease.lost(lease.name, kept)
        except Exception:
            log.failure("{component}: lease {name} was lost with trouble", component=self._component, name=lease.name)

    async def _give_back(self) -> None:
        """Give back what is drained, all that is at a time."""
        while not self._giving and (drained := self._drained()):
            self._giving = True
            process = self.process
            try:
                await self._database.write(self._tables.give_back, [lease.name for lease in drained], process)
            except Unavailable as error:
                self._complain("cannot be given back", error)
                return
            finally:
                self._giving = False
            self._given += 1
            for lease in drained:
                if lease.state is State.DRAINED and process == self.process:
                    lease.state = State.NONE
            self._tell()

    def _drained(self) -> list[Lease]:
        return [lease for lease in self._leases.values() if lease.state is State.DRAINED]

    # --- means ---

    def _tell(self) -> None:
        self._echoes.tell(self._topic, b"")

    def _later(self, name: str, seconds: float, call: Callable[[], None]) -> None:
        if not self._stopping:
            self._timers[name] = self._time.callLater(seconds, call)

    def _complain(self, what: str, error: Unavailable) -> None:
        log.warn("{component}: its leases: {what}: {error}", component=self._component, what=what, error=str(error))

    def _detach(self, work: Awaitable[Any]) -> None:
        async def run() -> None:
            await work

        Deferred.fromCoroutine(run()).addErrback(
            lambda failure: log.failure("{component}: leases", failure, component=self._component)
        )

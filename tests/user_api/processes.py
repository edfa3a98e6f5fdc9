"""Several processes of the user component in one: over one database, with echoes and leases that the test holds.

`Deployment` is what they share.  `ByTurns` makes a test of one component a test of two that answer by turns: what the
one has done the other knows at once.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

from twisted.internet.defer import Deferred, fail

from dendrite_tw.database.addresses import dsn_of
from dendrite_tw.database.engines import Fenced, SQLiteDatabase, SQLiteTransaction
from dendrite_tw.database.postgresql import InlinePostgreSQL
from dendrite_tw.links.codec import methods_of
from dendrite_tw.links.routing import routing_of
from dendrite_tw.user_api.api import KeyAPI, UserAPI
from dendrite_tw.user_api.component import UserComponent
from dendrite_tw.user_api.keys_component import KeyComponent
from tests.database.cluster import cluster
from tests.harness import keep_few_open
from tests.user_api.harness import Users, UsersCase
from tests.user_api.keys_support import KeysCase

Gained = Callable[[str], Awaitable[None]]
Lost = Callable[[str, bool], Awaitable[None]]


class SharedSQLite(SQLiteDatabase):
    """A database in memory that counts as one which processes share, as only PostgreSQL is in earnest."""

    shared = True

    def _run(self, job: Any, txn: SQLiteTransaction) -> None:
        txn.counters = {}
        super()._run(job, txn)


class ProcessDatabase:
    """The shared database as one process has it, which stores nothing any more once it was taken for dead."""

    shared = True

    def __init__(self, database: Any) -> None:
        self.shared_one = database
        self.dialect = database.dialect
        self.is_dead = False

        self._held: list[tuple[Deferred[Any], Callable[[], Deferred[Any]]]] | None = None

    def write(self, function: Any, *args: Any, **kwargs: Any) -> Deferred[Any]:
        def run() -> Deferred[Any]:
            if self.is_dead:
                return fail(Fenced())
            return self.shared_one.write(function, *args, **kwargs)  # type: ignore[no-any-return]

        if self._held is None:
            return run()
        answer: Deferred[Any] = Deferred()
        self._held.append((answer, run))
        return answer

    def hold(self) -> None:
        """Let writes wait until `release`."""
        self._held = []

    def release(self) -> None:
        held, self._held = self._held or [], None
        for answer, run in held:
            run().chainDeferred(answer)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.shared_one, name)


class Deployment:
    """What processes share: a database, the air that carries echoes, and who holds which lease."""

    def __init__(self) -> None:
        self._dsn = dsn_of(cluster().new()) if os.environ.get("TEST_POSTGRESQL") else None
        self._sqlite = SharedSQLite(":memory:", None) if self._dsn is None else None
        self.processes: list[Process] = []
        self.holders: dict[str, Process] = {}
        self.is_silent = False
        """Whether echoes wait in ``waiting`` until `deliver`."""
        self.waiting: list[tuple[Process, str, bytes]] = []

    def database(self) -> ProcessDatabase:
        """A connection of another process."""
        if self._dsn is None:
            return ProcessDatabase(self._sqlite)
        return ProcessDatabase(keep_few_open(InlinePostgreSQL(self._dsn, shared="user_api")))

    def process(self) -> Process:
        made = Process(self)
        self.processes.append(made)
        return made

    def deliver(self) -> None:
        """What was told is heard, in order."""
        waiting, self.waiting = self.waiting, []
        for process, topic, payload in waiting:
            process.tell_others(topic, payload)

    def end(self) -> None:
        """All processes are gone at once."""
        for process in self.processes:
            process.database.is_dead = True
        self.processes.clear()
        self.holders.clear()

    async def hand(self, lease: str, to: Process) -> None:
        """Give a lease to another process: the one that has it finishes what is under way."""
        holder = self.holders.pop(lease, None)
        if holder is not None:
            await holder.wanted[lease][1](lease, True)
        await to.wanted[lease][0](lease)
        self.holders[lease] = to

    async def kill(self, process: Process) -> None:
        """A process is gone, and its leases are taken by another."""
        process.database.is_dead = True
        self.processes.remove(process)
        for lease, holder in list(self.holders.items()):
            if holder is process:
                del self.holders[lease]
                await self.hand(lease, self.processes[0])


class Process:
    """One process as a component in it sees it: `Echoes`, `Leases` and a database."""

    hearing = True

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self.process = f"process {len(deployment.processes)}"
        self.database = deployment.database()
        self.wanted: dict[str, tuple[Gained, Lost]] = {}
        self._hearers: dict[str, list[Callable[[bytes], None]]] = {}
        self._missed: list[Callable[[], None]] = []

    # --- echoes ---

    def tell(self, topic: str, payload: bytes) -> None:
        if self.database.is_dead:
            return
        if self.deployment.is_silent:
            self.deployment.waiting.append((self, topic, payload))
        else:
            self.tell_others(topic, payload)

    def tell_others(self, topic: str, payload: bytes) -> None:
        for process in list(self.deployment.processes):
            if process is not self:
                for call in process._hearers.get(topic, ()):
                    call(payload)

    def hear(self, topic: str, call: Callable[[bytes], None]) -> None:
        self._hearers.setdefault(topic, []).append(call)

    def on_missed(self, call: Callable[[], None]) -> None:
        self._missed.append(call)

    def miss(self) -> None:
        """Something may have been missed."""
        for call in self._missed:
            call()

    # --- leases ---

    def want(self, names: Sequence[str], gained: Gained, lost: Lost) -> None:
        for name in names:
            self.wanted[name] = (gained, lost)

    def holds(self, name: str) -> bool:
        return self.deployment.holders.get(name) is self

    async def start(self) -> None:
        for name in self.wanted:
            if name not in self.deployment.holders:
                await self.deployment.hand(name, self)

    async def stop(self) -> None:
        if self in self.deployment.processes:
            self.deployment.processes.remove(self)
        for name in [name for name in self.wanted if self.holds(name)]:
            del self.deployment.holders[name]
            await self.wanted[name][1](name, True)
            for other in self.deployment.processes[:1]:
                await self.deployment.hand(name, other)


class ForAll:
    """A list of hooks of each of some components."""

    def __init__(self, lists: Sequence[list[Any]]) -> None:
        self._lists = lists

    def append(self, hook: Any) -> None:
        for one in self._lists:
            one.append(hook)


class Turns:
    """Components of several processes as one: each call is answered by the next of them.

    What only the holder of a lease answers goes to that one.  What is no call is looked up at the first.
    """

    def __init__(self, interface: type, components: Sequence[Any], processes: Sequence[Process]) -> None:
        self._interface = interface
        self._components = list(components)
        self._processes = list(processes)
        self._calls = set(methods_of(interface))
        self._next = 0
        self._is_started = False

    def component(self, process: Process) -> Any:
        return self._components[self._processes.index(process)]

    def __getattr__(self, name: str) -> Any:
        if name.startswith(("on_", "is_device")):
            return ForAll([getattr(component, name) for component in self._components])
        if name not in self._calls:
            return getattr(self._components[0], name)

        def call(*args: Any, **kwargs: Any) -> Coroutine[Any, Any, Any]:
            return getattr(self._answerer(name, kwargs), name)(*args, **kwargs)  # type: ignore[no-any-return]

        return call

    def _answerer(self, name: str, kwargs: dict[str, Any]) -> Any:
        if routing_of(self._interface, name).share == "lease":
            holder = self._processes[0].deployment.holders.get("unread" if self._interface is UserAPI else "resync")
            if holder is not None:
                return self.component(holder)
        self._next = (self._next + 1) % len(self._components)
        return self._components[self._next]

    async def start(self) -> None:
        if self._is_started:
            return
        self._is_started = True
        for component, process in zip(self._components, self._processes, strict=True):
            await component.start()
            await process.start()

    async def stop(self) -> None:
        self._is_started = False
        for component, process in zip(self._components, self._processes, strict=True):
            await component.stop()
            await process.stop()


class UsersOfMany(Users):
    """Two user components of one deployment."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.deployment = Deployment()
        super().__init__(*args, **kwargs)

    def opened(self) -> Any:
        return self.deployment.database()

    def made(self) -> Any:
        self.deployment.end()
        self.processes = [self.deployment.process() for _ in range(2)]
        components = [self.component_of(process) for process in self.processes]
        self.database = self.processes[0].database
        return Turns(UserAPI, components, self.processes)

    def component_of(self, process: Process) -> UserComponent:
        return self.make(process.database, echoes=process, leases=process)


class UsersByTurns(UsersCase):
    """Runs the tests of one component on two that answer by turns."""

    def make_users(self) -> Users:
        return UsersOfMany(**self.settings)


class KeysByTurns(KeysCase):
    """As `UsersByTurns`, for keys."""

    def make_database(self) -> Any:
        self.deployment = Deployment()
        return self.deployment.database()

    def make(self, exclusive: bool | None = None) -> Any:
        for process in list(self.deployment.processes):
            self.get(process.stop())
        processes = [self.deployment.process() for _ in range(2)]
        self.turns = Turns(KeyAPI, [self.component_of(process) for process in processes], processes)
        self.get(self.turns.start())
        return self.turns

    def component_of(self, process: Process) -> KeyComponent:
        keys: Any = EveryProcess(lambda: self.turns)
        outbox = self.make_outbox(process.database)
        return self.make_keys(process.database, outbox, echoes=process, leases=process, keys=keys)


class EveryProcess:
    """A handle that exists before what answers it."""

    def __init__(self, answerer: Callable[[], Any]) -> None:
        self._answerer = answerer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._answerer(), name)

"""One server's federation by several processes, which come and are killed while the rest of the server goes on.

`SeveralFederating` stands where a server has its one `Federating`: it holds several, each with a clock of its own that
ends with it, and with the database, the echoes and the leases of `tests.federation_api.several`.  What is asked of the
server, and what it asks of others, goes to those that live, as chance has it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
from twisted.internet.defer import Deferred

from dendrite_tw.cache import CacheBudget
from dendrite_tw.config import Config
from dendrite_tw.federating import Federating
from dendrite_tw.metrics import Metrics
from dendrite_tw.web.internet import Unreachable
from dendrite_tw.web.routes import Route
from dendrite_tw.world import SeededRandom, World
from tests.federation_api.several import Deployment, Process
from tests.simulation.network import Connection
from tests.simulation.timing import Lifetime

if TYPE_CHECKING:
    from tests.simulation.host import Host

SLOWEST = 0.01
"""Seconds that a question to the database, or an echo, takes at the most."""


class OneProcess(Process):
    """A process that federates, and does nothing else."""

    def __init__(self, all: SeveralFederating, name: str) -> None:
        super().__init__(all.deployment, name)
        self._host = all.host
        lifetime = self.lifetime = Lifetime(all.host.clock, all.host.failed)
        self.clock: Any = lifetime
        self._workers: list[Any] = []
        self._queue = all.queue
        connection: Any = Connection(all.host.network, all.host, lambda: lifetime.alive)
        world = World(lifetime, all.world.clock, SeededRandom(f"{all.host.name} {name}"), None, connection)
        rooms, users, keys = all.others
        self.federating = Federating(
            all.config,
            world,
            self.database,
            Metrics(CacheBudget(1 << 20)),
            rooms,
            users,
            keys,
            self,
            all.on_stored,
            self.echoes,
            self.leases,
        )
        for part in self.federating.parts:
            part.prepare()
        self.routes = [route for part in self.federating.parts for route in part.routes()]

    async def start(self) -> None:
        for part in self.federating.parts:
            await part.start()

    # --- the queue as this process has it ---

    def consume(self, *args: Any, **kwargs: Any) -> Any:
        return self._kept(self._queue.consume(*args, **kwargs))

    def listen(self, *args: Any, **kwargs: Any) -> Any:
        return self._kept(self._queue.listen(*args, **kwargs))

    def publish(self, *args: Any, **kwargs: Any) -> Any:
        return self._queue.publish(*args, **kwargs)

    def _kept(self, worker: Any) -> Any:
        self._workers.append(worker)
        return worker

    def kill(self) -> None:
        self._host.network.trace.note(self._host.name, f"{self.name} is killed")
        self.lifetime.alive = False
        for worker in self._workers:
            worker.stop()
        self.deployment.kill(self)

    async def outcome(self, work: Any) -> Any:
        """What comes of something that the process does; nothing ever if it is killed meanwhile."""
        try:
            result = await work
        except Exception:
            if self.dead:
                await self.forever()
            raise
        if self.dead:
            await self.forever()
        return result


class SeveralFederating:
    """Has the face of `Federating`."""

    def __init__(
        self,
        host: Host,
        count: int,
        seed: str,
        config: Config,
        world: World,
        database: Any,
        metrics: Metrics,
        rooms: Any,
        users: Any,
        keys: Any,
        queue: Any,
        on_stored: Callable[[str, int], None],
        *more: Any,
    ) -> None:
        self.host = host
        self.config, self.world, self.queue, self.on_stored = config, world, queue, on_stored
        self.others = rooms, users, keys
        self.deployment = Deployment(world.time, seed, SLOWEST, database)  # type: ignore[arg-type]
        self._began = 0
        self._count = count
        first = self._begin()
        for _ in range(count - 1):
            self._begin()
        self.component: Any = Component(self)
        self._rows = [self._by_turns(number, route) for number, route in enumerate(first.routes)]
        self.parts = (self,)

    def _begin(self) -> OneProcess:
        self._began += 1
        return OneProcess(self, f"p{self._began}")

    @property
    def living(self) -> list[Any]:
        return self.deployment.living

    def any(self) -> OneProcess:
        found: OneProcess = self.deployment.chance.choice(self.living)
        return found

    # --- as a part of the server ---

    def prepare(self) -> None:
        """Each process did so when it was made."""

    async def start(self) -> None:
        for process in list(self.living):
            await process.start()

    async def stop(self) -> None:
        self.end()

    def end(self) -> None:
        """All processes end at whatever they are."""
        for process in list(self.living):
            process.kill()

    def routes(self) -> list[Route]:
        return self._rows

    def _by_turns(self, number: int, route: Route) -> Route:
        """A row that is answered by any process."""

        @functools.wraps(route.handler)
        async def handler(*args: Any, **kwargs: Any) -> Any:
            process = self.any()
            return await process.outcome(process.routes[number].handler(*args, **kwargs))

        return msgspec.structs.replace(route, handler=handler)

    # --- trouble ---

    def trouble(self) -> None:
        """Kill a process, which is replaced in a while."""
        if len(self.living) > 1:
            self.any().kill()
            self.world.time.callLater(self.deployment.chance.uniform(0, 20), self._replace)

    def _replace(self) -> None:
        if self.living and len(self.living) < self._count:
            process = self._begin()
            self.host.network.trace.note(self.host.name, f"{process.name} begins")
            Deferred.fromCoroutine(process.start()).addErrback(lambda failure: self.host.failed(failure.value))


class Component:
    """`FederationAPI` and who says which server asks, by any process."""

    def __init__(self, all: SeveralFederating) -> None:
        self._all = all
        self.servers = self

    async def origin_of(self, exchange: Any) -> str:
        process = self._all.any()
        origin: str = await process.outcome(process.federating.component.servers.origin_of(exchange))
        return origin

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            process = self._all.any()
            work = Deferred.fromCoroutine(getattr(process.federating.component, name)(*args, **kwargs))
            gone: Deferred[Any] = Deferred()
            work.addBoth(lambda result: None if gone.called or process.dead else gone.callback(result))
            self._watch(process, gone)
            return await gone

        return call

    def _watch(self, process: OneProcess, gone: Deferred[Any]) -> None:
        """A call to a process that is killed fails after a moment."""
        if gone.called:
            return
        if process.dead:
            gone.errback(Unreachable("the process is gone"))
            return
        self._all.world.time.callLater(1.0, self._watch, process, gone)

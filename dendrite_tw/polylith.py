"""One process of a deployment: how it starts, what it says while it does, and how it leaves.

It listens at once and says of itself how it is; everything else is answered with 503 until the broker is there and its
components have started.  When it is told to stop it takes nothing new, finishes what it has for a while, and gives back
what only one process may do.  Loaded only where the components run as processes of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.logger import Logger

from .assemble import Parts, Server
from .components import COMPONENTS
from .databases import ended
from .front.serving import Inner
from .front.site import FrontSite, when_empty
from .front.tunnel import Tunnels
from .web.site import QuietSite
from .wiring.between import Between

if TYPE_CHECKING:
    from .wiring.basis import Basis

log = Logger()

DRAIN_SECONDS = 25.0
"""How long what is under way may take when the process is to stop."""


class Process(Server):
    """A process with some of the components.

    ``serves`` fires when its sockets may be served, ``started`` when all of it has started.
    """

    def __init__(self, parts: Parts, components: frozenset[str]) -> None:
        super().__init__(parts)
        self.serves = Deferred()
        basis = parts.basis
        self._time: Any = basis.world.time
        self._components = components
        self._ways = cast(Between, basis.ways)
        self._tunnels = Tunnels(basis.client, self._time, basis.ways.echoes, self._ways.process)
        self._inner = Inner(self._tunnels, self.site, self._time)
        self._fronts: list[FrontSite] = []
        self._starting: Deferred[None] | None = None
        self._ready = False
        parts.warnings.append(lambda: [] if self._ready else ["the components of this process have not started"])

    def factory(self, reactor: Any) -> QuietSite:
        front = FrontSite(self.site, reactor, self._components | nobodys(self.parts.basis), self._tunnels)
        front.ready = self._ready
        self._fronts.append(front)
        return front

    # --- start ---

    def startService(self) -> None:
        super(Server, self).startService()
        self._starting = Deferred.fromCoroutine(self._start())
        self._starting.addErrback(lambda failure: failure.trap(CancelledError))
        self._starting.chainDeferred(self.started)

    async def _start(self) -> None:
        if not self._components:
            log.warn("There is nothing yet for this process to do; it says only that it is there.")
        await self.parts.begin()
        self.serves.callback(None)
        await self._connected()
        await self.parts.live()
        self._ready = True
        for front in self._fronts:
            front.ready = True
        for component in COMPONENTS:
            if component in self._components:
                self._inner.serve(component)

    async def _connected(self) -> None:
        """Wait for the broker."""
        client = self.parts.basis.client
        if client.ready:
            return
        log.info("Waiting for NATS")
        there: Deferred[None] = Deferred()

        def ready() -> None:
            if not there.called:
                there.callback(None)

        client.on_ready.append(ready)
        try:
            await there
        finally:
            client.on_ready.remove(ready)

    # --- stop ---

    def stopService(self) -> Deferred[Any]:
        stopped = maybeDeferred(super(Server, self).stopService)
        return stopped.addCallback(lambda _: Deferred.fromCoroutine(self._stop()))

    async def _stop(self) -> None:
        if self._starting is not None and not self._starting.called:
            self._starting.cancel()
        await self.drain()
        self._tunnels.stop()
        await self.parts.stop()
        self._ways.stop()

    async def drain(self) -> None:
        """Take nothing new, and finish what is under way, within `DRAIN_SECONDS`.

        The listening sockets are closed by who opened them.
        """
        for front in self._fronts:
            front.drain()
        for living in self.parts.living:
            await ended(getattr(living, "drain", nothing)())
        await self._tunnels.withdraw()
        if not await when_empty(self._time, self._under_way, DRAIN_SECONDS):
            log.warn("{count} requests are given up", count=self._under_way())
        await self._ways.drain()

    def _under_way(self) -> int:
        return self._inner.busy + sum(front.busy for front in self._fronts)


nothing: Callable[[], None] = lambda: None  # noqa: E731


def nobodys(basis: Basis) -> frozenset[str]:
    """Components that run nowhere: their paths are unknown to every process."""
    return frozenset() if basis.federates else frozenset(["federation_api"])

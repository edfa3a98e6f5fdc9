"""All wiring on one page: every component made, then introduced to the others.

A process is a `Basis`, what it opened of the configuration and the world, and the parts of the components that run in
it (`wiring/`).  Components call each other through handles, which exist before they do; what a component tells the
others leaves its outbox through a relay to the queue.  `monolith` puts all components into one process, with the queue
that is built in or over a NATS server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.web.resource import Resource

from .client_api.last_seen import LastSeen
from .components import COMPONENTS
from .config import Config
from .databases import ended
from .jetstream.outbox import OutboxRelay
from .monitor import MonitorRoutes
from .settings import limiter, metrics_resource
from .web.auth import TokenAuthenticator, WhoAsks
from .web.routes import Route
from .web.site import make_root
from .wiring.basis import Basis, Living, Part, Ways, Within
from .wiring.chores import Chores
from .world import World

if TYPE_CHECKING:
    from .federating import Federating
    from .media_api.component import MediaComponent
    from .room_api.component import RoomComponent
    from .sync_api.component import SyncComponent
    from .user_api.component import UserComponent
    from .user_api.keys_component import KeyComponent

PARTS = {
    "user_api": ("users", "UserPart"),
    "room_server": ("rooms", "RoomPart"),
    "sync_api": ("sync", "SyncPart"),
    "media_api": ("media", "MediaPart"),
    "federation_api": ("federation", "FederationPart"),
    "client_api": ("client", "ClientPart"),
}
"""The components in the order in which they start: the module of `wiring` and the class in it."""


class Server(MultiService):
    """A process of a homeserver as a service; ``site`` is the root of what it serves."""

    site: Resource

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.parts = parts
        self.site = parts.root
        self.started: Deferred[None] = Deferred()
        """Fires when everything has started."""

    def startService(self) -> None:
        super().startService()
        Deferred.fromCoroutine(self.parts.start()).chainDeferred(self.started)

    def stopService(self) -> Deferred[Any]:
        stopped = maybeDeferred(super().stopService)
        return stopped.addCallback(lambda _: Deferred.fromCoroutine(self.parts.stop()))


class Parts:
    """Everything that a process is made of: its basis, the parts of its components, and what they serve."""

    def __init__(self, basis: Basis, components: Iterable[str]) -> None:
        self.basis = basis
        self.databases, self.queue, self.others = basis.databases, basis.queue, basis.others
        self.of = {name: made(name, basis) for name in PARTS if name in components and is_wanted(name, basis)}
        """The parts of this process by component, in the order in which they start."""
        for part in self.of.values():
            part.prepare()
        self.last_seen = LastSeen(basis.users, basis.world)
        self.rows = {name: part.rows() for name, part in self.of.items()}
        """What is served, by component; of no component is what every process says of itself."""
        self.rows[""] = MonitorRoutes([lambda: self.queue.degraded, lambda: self.databases.degraded]).routes()
        self.routes = [row for rows in self.rows.values() for row in rows]
        self.root = root_of(self, self.routes)

    def life(self) -> list[Living]:
        """What is started and stopped besides database and queue: who consumes before what is told to them."""
        found: list[Living] = [living for part in self.of.values() for living in part.life]
        found += self.relays
        found += [living for part in self.of.values() for living in part.later]
        return [*found, self.last_seen, Chores(self.basis)]

    async def start(self) -> None:
        """The queue first, then who consumes from it, then what is told to it."""
        self.databases.begin()
        await self.queue.start()
        self._living = self.life()
        for living in self._living:
            await ended(living.start())

    async def stop(self) -> None:
        """In the reverse order; what was accepted is on disk when this returns."""
        for living in reversed(self._living):
            await ended(living.stop())
        await self.queue.stop()
        await self.databases.close()

    _living: list[Living] = []  # noqa: RUF012

    # --- what is in here, for those who look at a whole server ---

    @property
    def relays(self) -> list[OutboxRelay]:
        return self.basis.relays.all

    @property
    def users(self) -> UserComponent:
        return cast("UserComponent", self._part("user_api").users)

    @property
    def keys(self) -> KeyComponent:
        return cast("KeyComponent", self._part("user_api").keys)

    @property
    def rooms(self) -> RoomComponent:
        return cast("RoomComponent", self._part("room_server").rooms)

    @property
    def sync(self) -> SyncComponent:
        return cast("SyncComponent", self._part("sync_api").sync)

    @property
    def media(self) -> MediaComponent:
        return cast("MediaComponent", self._part("media_api").media)

    @property
    def federating(self) -> Federating | None:
        return self._part("federation_api").federating if "federation_api" in self.of else None

    def _part(self, component: str) -> Any:
        return self.of[component]


def is_wanted(component: str, basis: Basis) -> bool:
    return basis.federates or component != "federation_api"


def made(component: str, basis: Basis) -> Part:
    """The part of a component; what it takes is loaded now."""
    module, name = PARTS[component]
    part: Part = getattr(import_module(f"{__package__}.wiring.{module}"), name)(basis)
    return part


def who_asks(parts: Parts) -> WhoAsks:
    """Knows whose access tokens are: the user component, or what is remembered of it where that is elsewhere."""
    basis = parts.basis
    if "user_api" in parts.of:
        return basis.users
    from .web.callers import RememberedCallers

    return RememberedCallers(basis.users, basis.ways.echoes, basis.budget, basis.world.clock)


def root_of(parts: Parts, routes: list[Route]) -> Resource:
    """The tree of what a process serves."""
    basis = parts.basis
    return make_root(
        routes,
        TokenAuthenticator(who_asks(parts), parts.last_seen),
        limiter(basis.config, basis.world),
        basis.metrics.observe,
        metrics_resource(basis.config, basis.metrics),
        basis.config.sync_api.real_ip_header,
        parts.federating.component.servers if parts.federating else None,
    )


def process(config: Config, world: World, components: Iterable[str], ways: Callable[[Basis], Ways]) -> Server:
    """A process with these components.

    Opens databases and files at once, so that what is wrong with them stops the start: `ConfigError` where the
    operator can mend it.
    """
    return Server(Parts(Basis(config, world, ways), components))


def monolith(config: Config, world: World) -> Server:
    """All components in one process."""
    return process(config, world, COMPONENTS, lambda basis: Within())

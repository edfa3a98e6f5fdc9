"""All wiring on one page: every component made, then introduced to the others.

A process is a `Basis`, what it opened of the configuration and the world, and the parts of the components that run in
it (`wiring/`).  Components call each other through handles, which exist before they do; what a component tells the
others leaves its outbox through a relay to the queue.  `monolith` puts all components into one process, with the queue
that is built in or over a NATS server.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import Logger
from twisted.web.resource import Resource

from .client_api.last_seen import LastSeen
from .components import COMPONENTS
from .config import Config
from .database.engines import Unavailable
from .databases import ended
from .jetstream.outbox import OutboxRelay
from .monitor import MonitorRoutes, Warnings
from .settings import limiter, metrics_resource
from .web.auth import TokenAuthenticator, WhoAsks
from .web.resource import ServerAuthenticator
from .web.routes import Route
from .web.site import QuietSite, make_root, make_site
from .wiring.basis import Basis, Living, Part, Ways, Within
from .wiring.chores import Chores
from .wiring.relays import OwnRelays
from .world import World

if TYPE_CHECKING:
    from .federating import Federating
    from .media_api.component import MediaComponent
    from .room_api.component import RoomComponent
    from .sync_api.component import SyncComponent
    from .user_api.component import UserComponent
    from .user_api.keys_component import KeyComponent

log = Logger()

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
        self.serves = self.started
        """Fires when its sockets may be served."""

    def factory(self, reactor: Any) -> QuietSite:
        """What serves on its listeners."""
        return make_site(self.site, reactor)

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
        self.warnings: list[Warnings] = [lambda: self.queue.degraded, lambda: self.databases.degraded]
        """What may be wrong with it, for whoever watches over it."""
        self.rows[""] = MonitorRoutes(self.warnings).routes()
        self.routes = [row for rows in self.rows.values() for row in rows]
        self.root = root_of(self, self.routes)

    def life(self) -> list[Living]:
        """What is started and stopped besides database and queue: who consumes before what is told to them."""
        found: list[Living] = []
        for name, part in self.of.items():
            found += [*part.life, Opened(self.basis.ways, name)]
        found.append(self.basis.relays)
        found += [living for part in self.of.values() for living in part.later]
        return [*found, self.last_seen, Chores(self.basis)]

    async def start(self) -> None:
        """The queue first, then who consumes from it, then what is told to it."""
        await self.begin()
        await self.live()

    async def begin(self) -> None:
        """Open what everything stands on."""
        self.databases.begin()
        await self.queue.start()

    async def live(self) -> None:
        self.living = self.life()
        for living in self.living:
            await ended(living.start())

    async def stop(self) -> None:
        """In the reverse order; what was accepted is on disk when this returns."""
        for living in reversed(self.living):
            try:
                await ended(living.stop())
            except Unavailable as error:
                log.warn("{name} could not finish: {error}", name=type(living).__name__, error=str(error))
        await self.queue.stop()
        await self.databases.close()

    living: list[Living] = []  # noqa: RUF012
    """What was started, in order."""

    # --- what is in here, for those who look at a whole server ---

    @property
    def relays(self) -> list[OutboxRelay]:
        """Of a process with all components: those of rooms and of users."""
        relays = cast(OwnRelays, self.basis.relays)
        return [relays.of["room_api"], relays.of["user_api"]]

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


class Opened:
    """A component that has started may be called, and nobody is any more before it stops."""

    def __init__(self, ways: Ways, component: str) -> None:
        self._ways = ways
        self._component = component

    def start(self) -> None:
        self._ways.open(self._component)

    def stop(self) -> None:
        """`Ways.drain` was called before."""


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
        servers_of(parts),
    )


def servers_of(parts: Parts) -> ServerAuthenticator | None:
    """Who says which other server made a request, where this one talks to others."""
    if parts.federating is not None:
        return parts.federating.component.servers
    if not parts.basis.federates:
        return None
    from .wiring.servers import AskedServers

    return AskedServers(parts.others)


def monolith(config: Config, world: World) -> Server:
    """All components in one process.

    Opens databases and files at once, so that what is wrong with them stops the start: `ConfigError` where the
    operator can mend it.
    """
    return Server(Parts(Basis(config, world, lambda basis: Within()), COMPONENTS))


def polylith(config: Config, world: World, components: frozenset[str]) -> Server:
    """A process of a deployment with some of the components; otherwise as `monolith`."""
    from .polylith import Process
    from .wiring.between import Between

    def ways(basis: Basis) -> Between:
        return Between(basis, components)

    basis = Basis(config, world, ways, shared=True)
    return Process(Parts(basis, components), components)

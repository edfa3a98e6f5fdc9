"""What all components of a process are made from, and what every component is once it is wired in.

Components know each other by handles, which exist before any component does.  Where the one behind a handle runs is
the business of `Ways`: in the same process (`Within`), or in any process of the deployment (`between.Between`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from ..cache import CacheBudget
from ..config import Config
from ..database.engines import Database
from ..databases import Databases
from ..federation_api.api import FederationAPI, NoFederation
from ..links.echoes import Echoes, NoEchoes
from ..links.handle import Direct, handle
from ..metrics import Metrics
from ..queues import queue_of
from ..room_api.api import RoomAPI
from ..settings import federates
from ..sharing.leases import Leases
from ..user_api.api import KeyAPI, UserAPI
from ..web.routes import Route
from ..world import World
from .relays import MakeRelays, OwnRelays, relays_of

T = TypeVar("T")


class Living(Protocol):
    """What is started and stopped with its process; both may take their time: a coroutine or a `Deferred`."""

    def start(self) -> Any: ...

    def stop(self) -> Any: ...


class Part(Protocol):
    """A component, wired into a process.

    ``life`` is what is started of it, in this order, and stopped in the reverse one; ``later`` is started when that of
    all components is, and the relays of their outboxes.
    """

    life: Sequence[Living]
    later: Sequence[Living]

    def prepare(self) -> None:
        """Bring databases to their newest step, before the reactor runs."""

    def rows(self) -> list[Route]:
        """What it serves over HTTP."""


class Ways(Protocol):
    """Where components are, and how those that are elsewhere are reached and told."""

    echoes: Echoes
    relays: MakeRelays
    process: str
    """The name of this process, which no other has."""

    several: bool
    """Whether other processes may run the same components."""

    def to(self, interface: type[T]) -> T:
        """The handle of an interface, for all who call it."""

    def beside(self, interface: type[T]) -> T | None:
        """The handle of an interface that is answered by other processes, or (see its answers) this one over the
        queue; `None` where there are no others.
        """

    def here(self, interface: type, target: object) -> None:
        """The component that answers an interface runs in this process: calls may go to this object."""

    def leases(self, component: str, database: Database) -> Leases | None:
        """What this process may do alone of a component, over the database of that; `None` where it has no others
        beside it.
        """

    def open(self, component: str) -> None:
        """A component of this process has started, and may be called."""

    async def drain(self) -> None:
        """Take no more calls of others, and finish those under way."""


class Within:
    """All components are in this process."""

    def __init__(self) -> None:
        self.echoes: Echoes = NoEchoes()
        self.relays: MakeRelays = OwnRelays
        self.process = ""
        self.several = False
        self._direct: dict[type, Direct] = {}

    def _way(self, interface: type) -> Direct:
        return self._direct.setdefault(interface, Direct())

    def to(self, interface: type[T]) -> T:
        return handle(interface, self._way(interface))

    def beside(self, interface: type[T]) -> T | None:
        return None

    def here(self, interface: type, target: object) -> None:
        self._way(interface).connect(target)

    def leases(self, component: str, database: Database) -> None:
        return None

    def open(self, component: str) -> None:
        """Who calls it is in this process."""

    async def drain(self) -> None:
        """There are no others."""


class Basis:
    """The configuration and the world of a process, what it opened of them, and the handles of all components."""

    def __init__(self, config: Config, world: World, ways: Callable[[Basis], Ways], shared: bool = False) -> None:
        """`shared`: other processes use the same databases."""
        self.config = config
        self.world = world
        self.server_name = config.global_.server_name
        self.budget = CacheBudget(config.global_.cache.max_size_estimated)
        self.metrics = Metrics(self.budget)
        self.databases = Databases(config, world, shared)
        self.queue = queue_of(config, world, self.databases.lock)
        self.client = self.queue.client
        self.federates = federates(config, world)
        self.ways = ways(self)
        self.relays = relays_of(self.ways.relays, self.client, world, self.federates)
        self.rooms = self.ways.to(RoomAPI)
        self.users = self.ways.to(UserAPI)
        self.keys = self.ways.to(KeyAPI)
        self.others: FederationAPI = self.ways.to(FederationAPI) if self.federates else NoFederation()
        """Asks other servers, for whoever has a question; without federation nobody is to be reached."""

    def database(self, component: Any) -> Database:
        """The database of a component, as ``dendrite.yaml`` names it."""
        return self.databases.of(component)

    def leases(self, component: Any) -> Leases | None:
        """The leases of a component, which it starts and stops; `None` where it has all to itself."""
        return self.ways.leases(component, self.database(component))

"""Components in any process of a deployment: called over NATS unless they are in this one.

Loaded only where the components run as processes of their own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeVar, cast

from twisted.internet.defer import Deferred

from ..database.engines import Database
from ..federation_api.api import FederationAPI
from ..links.echoes import Echoes, NatsEchoes
from ..links.handle import Direct, handle
from ..links.nats import Calls
from ..media_api.api import MediaAPI
from ..room_api.api import RoomAPI
from ..sharing.database import DatabaseLeases, SharedDatabase
from ..sharing.leases import Gained, Leases, Lost
from ..user_api.api import KeyAPI, UserAPI
from .basis import Basis

T = TypeVar("T")

ANSWERED_BY: dict[type, str] = {
    RoomAPI: "room_server",
    UserAPI: "user_api",
    KeyAPI: "user_api",
    FederationAPI: "federation_api",
    MediaAPI: "media_api",
}
"""The component that answers each interface."""

SHARED: dict[str, type] = {"room_server": RoomAPI}
"""The components that are cut into shares, each of which one process answers for, and by which interface."""

_SHARE = re.compile(r"r([0-9]+)\Z")
"""The lease of a share, and its number."""


class Between:
    """`Ways` of a process with some of the components."""

    def __init__(self, basis: Basis, components: frozenset[str]) -> None:
        self._basis = basis
        self._components = components
        self.process = basis.world.random.token(16)
        """The name of this process, which no other has."""
        self.echoes: Echoes = NatsEchoes(basis.client, self.process)
        self.calls = Calls(basis.client, basis.world.time, self._holds)
        self._direct: dict[type, Direct] = {}
        self._targets: dict[type, object] = {}
        self._leases: dict[str, Leases] = {}

    def to(self, interface: type[T]) -> T:
        local = None
        if ANSWERED_BY[interface] in self._components:
            local = handle(interface, self._direct.setdefault(interface, Direct()))
        return handle(interface, self.calls.transport(interface, local))

    def here(self, interface: type, target: object) -> None:
        self._direct.setdefault(interface, Direct()).connect(target)
        self._targets[interface] = target

    def leases(self, component: str, database: Database) -> Leases:
        """What this process holds of a component's leases; holding a share of rooms is to answer for it."""
        if component not in self._leases:
            world = self._basis.world
            shared = cast(SharedDatabase, database)
            found: Leases = DatabaseLeases(component, shared, self.echoes, world.time, world.random)
            if component in SHARED:
                found = Answering(found, self.calls, SHARED[component], self._targets)
            self._leases[component] = found
        return self._leases[component]

    def _holds(self, interface: str, share: int) -> bool:
        for component, answered in SHARED.items():
            if answered.__name__ == interface and component in self._leases:
                return self._leases[component].holds(f"r{share}")
        return False

    def open(self, component: str) -> None:
        """A component has started: answer the calls of other processes to it, but for those of its shares."""
        for interface, target in self._targets.items():
            if ANSWERED_BY[interface] == component:
                self.calls.serve(interface, target)

    async def drain(self) -> None:
        """Take no more calls, and finish those under way."""
        await self.calls.drain()


class Answering:
    """`Leases` that answer calls to the shares that are held.

    A share is answered for once it was taken up, and no longer when it begins to be given back: what was under way is
    done before the component is told.
    """

    def __init__(self, leases: Leases, calls: Calls, interface: type, targets: dict[type, object]) -> None:
        self._leases = leases
        self._calls = calls
        self._interface = interface
        self._targets = targets
        self.holds = leases.holds
        self.start = leases.start
        self.stop = leases.stop

    @property
    def process(self) -> str:
        return self._leases.process

    def want(self, names: Sequence[str], gained: Gained, lost: Lost) -> None:
        shares = [name for name in names if _SHARE.match(name)]
        self._leases.want([name for name in names if name not in shares], gained, lost)

        async def take(name: str) -> None:
            await gained(name)
            self._calls.serve_share(self._interface, self._targets[self._interface], share_number(name))

        async def give(name: str, kept: bool) -> None:
            withdrawn: Deferred[None] = self._calls.withdraw_share(self._interface, share_number(name))
            if kept:
                await withdrawn
            await lost(name, kept)

        self._leases.want(shares, take, give)


def share_number(name: str) -> int:
    """The number of the share whose lease this is."""
    found = _SHARE.match(name)
    assert found is not None
    return int(found[1])

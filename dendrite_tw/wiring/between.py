"""Components in any process of a deployment: called over NATS unless they are in this one.

Loaded only where the components run as processes of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TypeVar

from twisted.internet.defer import Deferred

from ..database.engines import Database
from ..database.outbox import Outbox
from ..federation_api.api import FederationAPI
from ..jetstream.client import QueueClient
from ..jetstream.shared_relay import Positions, SharedRelay
from ..links.echoes import Echoes, NatsEchoes
from ..links.handle import Direct, handle
from ..links.nats import Calls
from ..media_api.api import MediaAPI
from ..room_api.api import RoomAPI
from ..sharing.database import DatabaseLeases
from ..sharing.leases import Gained, Leases, Lost
from ..sharing.shares import SHARES, share_of
from ..sync_api.api import SyncAPI
from ..user_api.api import KeyAPI, UserAPI
from ..world import World
from .basis import Basis
from .relays import MakeRelays, durables_of, outbox_of

T = TypeVar("T")

ANSWERED_BY: dict[type, str] = {
    RoomAPI: "room_server",
    UserAPI: "user_api",
    KeyAPI: "user_api",
    FederationAPI: "federation_api",
    MediaAPI: "media_api",
    SyncAPI: "sync_api",
}
"""The component that answers each interface."""

ALONE: dict[str, dict[str, tuple[type, int]]] = {
    "room_server": {f"r{share}": (RoomAPI, share) for share in range(SHARES)},
    "user_api": {name: (api, share_of(name)) for name, api in (("unread", UserAPI), ("resync", KeyAPI))},
}
"""The leases whose holder alone answers something: the interface and the share of it, by component and lease."""


_LEASE_OF = {
    (interface.__name__, share): (component, lease)
    for component, leases in ALONE.items()
    for lease, (interface, share) in leases.items()
}


class Between:
    """`Ways` of a process with some of the components."""

    def __init__(self, basis: Basis, components: frozenset[str]) -> None:
        self._basis = basis
        self._components = components
        self.process = basis.world.random.token(16)
        self.several = True
        self.echoes: Echoes = NatsEchoes(basis.client, self.process)
        self.calls = Calls(basis.client, basis.world.time, self._holds)
        outcomes = ["method", "outcome"]
        basis.metrics.counter("dendrite_tw_calls", "Calls of other processes.", outcomes, self.calls.counts)
        self.relays: MakeRelays = partial(SharedRelays, self.echoes)
        self._direct: dict[type, Direct] = {}
        self._targets: dict[type, object] = {}
        self._leases: dict[str, Leases] = {}

    def to(self, interface: type[T]) -> T:
        local = None
        if ANSWERED_BY[interface] in self._components:
            local = handle(interface, self._direct.setdefault(interface, Direct()))
        return handle(interface, self.calls.transport(interface, local))

    def beside(self, interface: type[T]) -> T | None:
        return handle(interface, self.calls.transport(interface, None))

    def here(self, interface: type, target: object) -> None:
        self._direct.setdefault(interface, Direct()).connect(target)
        self._targets[interface] = target

    def leases(self, component: str, database: Database) -> Leases:
        """What this process holds of a component's leases; holding a share of rooms is to answer for it."""
        if component not in self._leases:
            world = self._basis.world
            found: Leases = DatabaseLeases(component, database, self.echoes, world.time, world.random)
            if component in ALONE:
                found = Answering(found, self.calls, ALONE[component], self._targets)
            self._leases[component] = found
        return self._leases[component]

    def _holds(self, interface: str, share: int) -> bool:
        component, lease = _LEASE_OF.get((interface, share), ("", ""))
        return component in self._leases and self._leases[component].holds(lease)

    def open(self, component: str) -> None:
        """A component has started: answer the calls of other processes to it, but for those of its shares."""
        for interface, target in self._targets.items():
            if ANSWERED_BY[interface] == component:
                self.calls.serve(interface, target)

    async def drain(self) -> None:
        """Take no more calls that others may answer, and finish those under way."""
        await self.calls.drain()

    def stop(self) -> None:
        """Nothing is called any more."""
        self.calls.stop()


class Answering:
    """`Leases` that answer calls to the shares that are held.

    A share is answered for once it was taken up, and no longer when it begins to be given back: what was under way is
    done before the component is told.
    """

    def __init__(
        self, leases: Leases, calls: Calls, alone: dict[str, tuple[type, int]], targets: dict[type, object]
    ) -> None:
        """`alone` says what the holder of a lease answers alone."""
        self._leases = leases
        self._calls = calls
        self._alone = alone
        self._targets = targets
        self.holds = leases.holds
        self.start = leases.start
        self.stop = leases.stop

    @property
    def process(self) -> str:
        return self._leases.process

    def want(self, names: Sequence[str], gained: Gained, lost: Lost) -> None:
        self._leases.want([name for name in names if name not in self._alone], gained, lost)

        async def take(name: str) -> None:
            await gained(name)
            interface, share = self._alone[name]
            self._calls.serve_share(interface, self._targets[interface], share)

        async def give(name: str, kept: bool) -> None:
            withdrawn: Deferred[None] = self._calls.withdraw_share(*self._alone[name])
            if kept:
                await withdrawn
            await lost(name, kept)

        self._leases.want([name for name in names if name in self._alone], take, give)


class SharedRelays:
    """`Relays` of a process beside others: an outbox is relayed by one of them at a time."""

    def __init__(self, echoes: Echoes, client: QueueClient, world: World, durables: dict[str, list[str]]) -> None:
        self._echoes = echoes
        self._client = client
        self._time = world.time
        self._durables = durables
        self._of: dict[str, SharedRelay] = {}
        self._positions: dict[str, Positions] = {}

    def add(self, outbox: Outbox, leases: Leases | None) -> None:
        assert leases is not None
        relay = SharedRelay(outbox, self._client, self._echoes, self._time, durables_of(outbox.name, self._durables))
        leases.want(["relay"], relay.gained, relay.lost)
        self._of[outbox.name] = relay
        self._positions[outbox.name] = relay.positions

    def consumed(self, durable: str, position: int) -> None:
        outbox = outbox_of(durable, self._durables)
        if outbox not in self._positions:
            self._positions[outbox] = Positions(outbox, self._echoes, self._time)
        self._positions[outbox].tell(durable, position)

    async def start(self) -> None:
        """They begin when they are given the lease."""

    def stop(self) -> None:
        for relay in self._of.values():
            relay.stop()
        for positions in self._positions.values():
            positions.stop()

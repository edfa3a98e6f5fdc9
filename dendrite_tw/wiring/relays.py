"""The ways of the components' outboxes to the queue, and who of the consumers has come how far."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from ..database.outbox import Outbox
from ..federation_api.api import DURABLES as FEDERATION_DURABLES
from ..jetstream.client import QueueClient
from ..jetstream.outbox import OutboxRelay
from ..queues import without_consumers
from ..sharing.leases import Leases
from ..world import World

DURABLES = {"OutputRoomEvent": ["UserAPIRoomServerConsumer"]}
"""The durable consumers of each stream, whose positions hold back the pruning of outboxes; without federation."""

STREAMS = {
    "room_api": ("OutputRoomEvent",),
    "user_api": (
        "OutputClientData",
        "OutputKeyChangeEvent",
        "OutputNotificationData",
        "OutputReceiptEvent",
        "OutputSendToDeviceEvent",
    ),
}
"""The outboxes, and the streams that each is published to."""


class Relays(Protocol):
    """The relays of a process."""

    def add(self, outbox: Outbox, leases: Leases | None) -> None:
        """Make the way of a component's outbox to the queue; the leases are that component's."""

    def consumed(self, durable: str, position: int) -> None:
        """A durable consumer of this process has stored all that follows from its stream up to this position."""

    async def start(self) -> None: ...

    def stop(self) -> None: ...


class OwnRelays:
    """The relays of a process that has all components: each publishes its outbox alone."""

    def __init__(self, client: QueueClient, world: World, durables: dict[str, list[str]]) -> None:
        self._client = client
        self._world = world
        self._durables = durables
        self.of: dict[str, OutboxRelay] = {}
        """By the name of the outbox."""

    def add(self, outbox: Outbox, leases: Leases | None) -> None:
        durables = durables_of(outbox.name, self._durables)
        read: Any = outbox.read_after
        made = OutboxRelay(outbox.name, read, outbox.delete_upto, self._client, self._world.time, durables)
        offer: Any = made.offer
        outbox.on_commit = offer
        self.of[outbox.name] = made

    def consumed(self, durable: str, position: int) -> None:
        self.of[outbox_of(durable, self._durables)].consumed(durable, position)

    async def start(self) -> None:
        for name in sorted(self.of):
            await self.of[name].start()

    def stop(self) -> None:
        for name in sorted(self.of, reverse=True):
            self.of[name].stop()


MakeRelays = Callable[[QueueClient, World, dict[str, list[str]]], Relays]


def relays_of(make: MakeRelays, client: QueueClient, world: World, federates: bool) -> Relays:
    """The relays of a server that federates or does not; the queue keeps nothing for consumers that there are not."""
    if not federates:
        without_consumers(client, FEDERATION_DURABLES)
        return make(client, world, DURABLES)
    return make(client, world, joined(DURABLES, FEDERATION_DURABLES))


def durables_of(outbox: str, durables: dict[str, list[str]]) -> dict[str, list[str]]:
    """Those of the streams that an outbox is published to."""
    return {stream: durables[stream] for stream in STREAMS[outbox] if stream in durables}


def outbox_of(durable: str, durables: dict[str, list[str]]) -> str:
    """The outbox behind the stream that a durable consumer reads."""
    stream = next(stream for stream, names in durables.items() if durable in names)
    return next(outbox for outbox, streams in STREAMS.items() if stream in streams)


def joined(some: dict[str, list[str]], more: dict[str, list[str]]) -> dict[str, list[str]]:
    """Both together, the lists of what is in both one after the other."""
    return {key: [*some.get(key, []), *more.get(key, [])] for key in {**some, **more}}

"""The ways of the components' outboxes to the queue, and who of the consumers has come how far."""

from __future__ import annotations

from typing import Any

from ..database.outbox import Outbox
from ..federation_api.api import DURABLES as FEDERATION_DURABLES
from ..jetstream.client import QueueClient
from ..jetstream.outbox import OutboxRelay
from ..queues import without_consumers
from ..world import World

DURABLES = {"OutputRoomEvent": ["UserAPIRoomServerConsumer"]}
"""The durable consumers of each stream, whose positions hold back the pruning of outboxes; without federation."""


class Relays:
    """The relays of this process, by the name of the outbox."""

    def __init__(self, client: QueueClient, world: World, federates: bool) -> None:
        self._client = client
        self._world = world
        self._durables = joined(DURABLES, FEDERATION_DURABLES) if federates else DURABLES
        self._of: dict[str, OutboxRelay] = {}
        if not federates:
            without_consumers(client, FEDERATION_DURABLES)

    @property
    def all(self) -> list[OutboxRelay]:
        return [self._of[name] for name in sorted(self._of)]

    def add(self, outbox: Outbox, streams: tuple[str, ...]) -> None:
        """Make the way of a component's outbox, which writes to these streams, to the queue."""
        durables = {stream: self._durables[stream] for stream in streams if stream in self._durables}
        read: Any = outbox.read_after
        made = OutboxRelay(outbox.name, read, outbox.delete_upto, self._client, self._world.time, durables)
        offer: Any = made.offer
        outbox.on_commit = offer
        self._of[outbox.name] = made

    def consumed(self, durable: str, position: int) -> None:
        """A durable consumer has stored all that follows from its stream up to this position."""
        for relay in self._of.values():
            if relay.knows(durable):
                relay.consumed(durable, position)


def joined(some: dict[str, list[str]], more: dict[str, list[str]]) -> dict[str, list[str]]:
    """Both together, the lists of what is in both one after the other."""
    return {key: [*some.get(key, []), *more.get(key, [])] for key in {**some, **more}}

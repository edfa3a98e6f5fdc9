"""What this server tells others, put together: queues, who fills them, and what an administrator sees of them.

Where several processes share the database, each stream is read by one of them, under a lease, and each server is sent
to by one of them (`spread`).  What is of the moment is told by the one that reads the events of rooms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..database.engines import Database
from ..links.echoes import Echoes, NoEchoes
from ..room_api.api import RoomAPI
from ..sharing.leases import Leases, Sole
from ..user_api.api import KeyAPI
from ..web.routes import Route
from ..world import World
from .consumers import Consumer, RoomConsumer
from .destinations import Destinations
from .destinations_admin import DestinationRoutes
from .edu_consumers import KeyChangeConsumer, ReceiptConsumer, SendToDeviceConsumer
from .introductions import Introductions
from .moments import PresenceTeller, TypingTeller
from .post import Post
from .queue import Numbers
from .senders import Senders, SendTransaction

if TYPE_CHECKING:
    from .shared_post import SharedPost

log = Logger()

PRUNE_SECONDS = 3600

CONSUMERS: list[type[Consumer]] = [RoomConsumer, SendToDeviceConsumer, KeyChangeConsumer, ReceiptConsumer]

EVENTS = "events"
LEASES = [EVENTS, "to_device", "keys", "receipts"]
"""The leases under which they are run, in the same order."""


class OutboundComponent:
    """Sends to other servers what they are to know.

    `on_stored` is told by each durable consumer, with its name, up to which position all is stored.
    The tables are those of the federation component, which is prepared before this one.
    """

    def __init__(
        self,
        server_name: str,
        database: Database,
        destinations: Destinations,
        send: SendTransaction,
        rooms: RoomAPI,
        keys: KeyAPI,
        queue: Any,
        world: World,
        presence_enabled: bool = False,
        on_stored: Callable[[str, int], None] = lambda consumer, position: None,
        echoes: Echoes | None = None,
        leases: Leases | None = None,
    ) -> None:
        self._queue = queue
        self._clock = world.clock
        self._shared: SharedPost | None = None
        if database.shared:
            from .shared_post import shared_post

            names = [consumer.name for consumer in CONSUMERS]
            self._shared = shared_post(database, rooms, destinations, world, echoes or NoEchoes(), names)
        self.post = self._shared or Post(database, rooms, destinations, Numbers(world.clock, world.random))
        self.senders = Senders(
            server_name,
            self.post,
            destinations,
            rooms,
            self.post.numbers,
            send,
            world.time,
            world.clock,
            spread=self._shared.spread if self._shared else None,
        )

        def needs(consumer: type[Consumer]) -> tuple[Any, ...]:
            def stored(position: int) -> None:
                on_stored(consumer.name, position)

            return database, self.senders, rooms, server_name, world.time, stored

        self.tellers: list[TypingTeller | PresenceTeller] = [TypingTeller(self.senders, rooms, server_name)]
        presence = None
        if presence_enabled:
            presence = PresenceTeller(self.senders, rooms, server_name, world.time, world.clock)
            self.tellers.append(presence)
        introductions = Introductions(rooms, keys, server_name, presence)
        self.consumers: list[Consumer] = [
            RoomConsumer(self.post, introductions, *needs(RoomConsumer)),
            SendToDeviceConsumer(*needs(SendToDeviceConsumer)),
            KeyChangeConsumer(keys, *needs(KeyChangeConsumer)),
            ReceiptConsumer(*needs(ReceiptConsumer)),
        ]
        if self._shared is not None:
            self._share(self._shared, leases or Sole())
        self._routes = DestinationRoutes(database, self.post, self.senders, destinations, world.clock)
        self._pruning = LoopingCall(lambda: Deferred.fromCoroutine(self.prune()).addErrback(_unpruned))
        self._pruning.clock = world.time

    def _share(self, post: SharedPost, leases: Leases) -> None:
        """Do only what this process holds the leases for."""

        async def more() -> None:
            post.survey()

        async def begin(name: str) -> None:
            consumer = self.consumers[LEASES.index(name)]
            await post.begin(consumer.name)
            await consumer.start(self._queue)
            if name == EVENTS:
                self._tell_moments(True)

        async def end(name: str, kept: bool) -> None:
            if name == EVENTS:
                self._tell_moments(False)
            await self.consumers[LEASES.index(name)].stop()

        def waiting(lingers: Mapping[str, float]) -> None:
            Deferred.fromCoroutine(self.senders.arrived(lingers)).addErrback(_unseen)

        post.on_waiting = waiting
        post.spread.shares.lease(leases, more, self.senders.leave)
        leases.want(LEASES, begin, end)
        self._tell_moments(False)

    def _tell_moments(self, telling: bool) -> None:
        for teller in self.tellers:
            teller.telling = telling

    def prepare(self) -> None:
        """Read for whom anything waits."""
        self.post.prepare()

    async def start(self) -> None:
        self.senders.start()
        if self._shared is None:
            for consumer in self.consumers:
                await consumer.start(self._queue)
        for teller in self.tellers:
            teller.start(self._queue)
        self._pruning.start(PRUNE_SECONDS, now=False)

    async def stop(self) -> None:
        if self._pruning.running:
            self._pruning.stop()
        for teller in self.tellers:
            teller.stop()
        for consumer in self.consumers:
            await consumer.stop()
        await self.senders.stop()

    def routes(self) -> list[Route]:
        return self._routes.routes()

    async def prune(self) -> None:
        """Forget what waits for servers that nobody could reach for months."""
        for server in await self.post.prune(self._clock.now_ms()):
            log.warn("{server} could not be reached for long: what was to be sent there is forgotten", server=server)


def _unseen(failure: Failure) -> None:
    log.failure("what waits for other servers could not be seen to", failure)


def _unpruned(failure: Failure) -> None:
    log.failure("what waits for servers that are gone could not be deleted", failure)

"""What this server tells others, put together: queues, who fills them, and what an administrator sees of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..database.engines import Database
from ..room_api.api import RoomAPI
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

log = Logger()

PRUNE_SECONDS = 3600

CONSUMERS: list[type[Consumer]] = [RoomConsumer, SendToDeviceConsumer, KeyChangeConsumer, ReceiptConsumer]


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
    ) -> None:
        self._queue = queue
        self._clock = world.clock
        numbers = Numbers(world.clock, world.random)
        self.post = Post(database, rooms, destinations, numbers)
        self.senders = Senders(server_name, self.post, destinations, rooms, numbers, send, world.time, world.clock)

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
        self._routes = DestinationRoutes(database, self.post, self.senders, destinations, world.clock)
        self._pruning = LoopingCall(lambda: Deferred.fromCoroutine(self.prune()).addErrback(_unpruned))
        self._pruning.clock = world.time

    def prepare(self) -> None:
        """Read for whom anything waits."""
        self.post.prepare()

    async def start(self) -> None:
        self.senders.start()
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


def _unpruned(failure: Failure) -> None:
    log.failure("what waits for servers that are gone could not be deleted", failure)

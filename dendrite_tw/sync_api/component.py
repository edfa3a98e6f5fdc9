"""The sync component: what it is made of, and how the parts are introduced."""

from __future__ import annotations

from twisted.internet.task import deferLater

from ..cache import CacheBudget
from ..database.engines import Database
from ..database.migrate import migrate, steps_of
from ..links.echoes import Echoes
from ..room_api.api import RoomAPI
from ..user_api.api import KeyAPI, UserAPI
from ..web.routes import Access, Route
from ..world import World
from .api import NowKnown, SyncAPI
from .arriving import Arriving
from .counting import Counting, CountingElsewhere, CountingHere
from .feed import Feed, Queue
from .filters import Filters
from .joined import JoinedReader
from .key_changes import KeyChanges
from .lazy import SentMembers
from .model import LOADED_AT_ONCE, SyncModel
from .moments import PAGE, Ending, Moments, Others
from .notifier import Notifier
from .old_sync import OldSync
from .online import OnlineMarker
from .positions import Heard
from .presence import PresenceBoard
from .presence_status import PresenceStatus
from .reading import EventReader
from .receipts import ReceiptLog
from .room_state import StateReader
from .rooms import RoomCache
from .sharers import Sharers
from .splice import Renderer
from .syncing import SyncHandler
from .typing import TypingBoard
from .view import SyncView


class SyncComponent:
    """Serves sync and the endpoints that read rooms, and answers `SyncAPI`.

    ``budget`` is shared by all caches; ``presence_enabled`` says whether users show their presence.  ``others`` are the
    other processes that serve syncs, among which this one is called ``process``; `None` where there can be none, and
    there are ``echoes`` of theirs.
    """

    def __init__(
        self,
        rooms: RoomAPI,
        users: UserAPI,
        keys: KeyAPI,
        queue: Queue,
        database: Database,
        world: World,
        budget: CacheBudget,
        server_name: str,
        presence_enabled: bool = False,
        others: SyncAPI | None = None,
        process: str = "",
        echoes: Echoes | None = None,
    ) -> None:
        self._database = database
        self._queue = queue
        self._world = world
        self._process = process
        self.server_name = server_name
        self.heard = Heard(world.time)
        self.cache = RoomCache(rooms, self.heard, budget)
        self.notifier = Notifier(rooms, users, self.heard, world.time)
        self.receipts = ReceiptLog(users)
        self.sharers = Sharers(rooms, self.notifier)
        self.typing = TypingBoard(world.time, world.clock, self._typing_changed, Ending(queue) if others else None)
        self.presence = PresenceBoard(server_name if presence_enabled else "")
        self.moments = Moments(
            self.heard,
            self.notifier,
            self.sharers,
            self.typing,
            self.presence,
            world.time,
            Others(others, process, world.time) if others else None,
        )
        self.feed = Feed(
            rooms,
            users,
            self.heard,
            self.cache,
            self.notifier,
            self.receipts,
            self.moments,
            self.sharers,
            world.time,
        )
        self.arriving = Arriving(self.heard, rooms, users, world.clock)
        self.filters = Filters(database, world.clock, budget)
        self.renderer = Renderer(budget)
        self.counting: Counting = CountingHere(users, keys)
        if others is not None and echoes is not None:
            self.counting = CountingElsewhere(users, keys, echoes, world.time, budget)
        self.model = SyncModel(
            rooms,
            users,
            keys,
            self.notifier,
            JoinedReader(rooms, self.cache, SentMembers(budget)),
            self.receipts,
            self.typing,
            self.presence,
            self.counting,
            self._pause,
            LOADED_AT_ONCE if others else 0,
        )
        self.view = SyncView(rooms, self.renderer, self.receipts, self._pause)
        self.online = OnlineMarker(
            self.presence, queue, self.notifier, world.time, world.clock, presence_enabled, alone=others is None
        )
        self.status = PresenceStatus(self.presence, self.online, rooms, world.clock)
        self.handler = SyncHandler(
            self.counting,
            self.heard,
            self.arriving,
            self.notifier,
            self.filters,
            self.model,
            self.view,
            self.online,
            world.time,
            world.clock,
        )
        self.events = EventReader(rooms, users, self.notifier, self.renderer, world.clock)
        self.state = StateReader(rooms, self.renderer, world.clock)
        self.old = OldSync(
            rooms,
            users,
            self.heard,
            self.notifier,
            self.model,
            self.handler,
            self.events,
            self.receipts,
            self.online,
            world.clock,
        )
        self.key_changes = KeyChanges(self.model, self.notifier, self.arriving, world.clock)

    def _typing_changed(self, room_id: str, position: int) -> None:
        self.moments.typing_changed(room_id, position)

    async def typing_now(self) -> NowKnown:
        """`SyncAPI.typing_now`."""
        return NowKnown(by=self._process, settled=self.moments.settled, typing=self.typing.now())

    async def presences_after(self, position: int, limit: int) -> NowKnown:
        """`SyncAPI.presences_after`."""
        found = self.presence.after(position, min(limit, PAGE))
        return NowKnown(by=self._process, settled=self.moments.settled, presences=found)

    async def _pause(self) -> None:
        """Let others have their turn in the middle of a long answer."""
        await deferLater(self._world.time, 0)

    def prepare(self) -> None:
        """Bring the schema up to date, before the reactor runs."""
        self._database.prepare(migrate, "sync_api", steps_of("dendrite_tw.sync_api"))

    async def start(self) -> None:
        """Begin to listen; requests may be served once this is done."""
        self.notifier.start()
        self.online.start()
        await self.feed.start(self._queue)

    def drain(self) -> None:
        """Answer all who wait, and from now on at once, so that clients go on at another process."""
        self.notifier.release()

    def stop(self) -> None:
        """Stop listening and answer all who wait."""
        self.feed.stop()
        self.online.stop()
        self.notifier.stop()

    def routes(self) -> list[Route]:
        return [
            Route("GET", "/_matrix/client/v3/sync", self.handler.sync, Access.GUEST),
            *self.filters.routes(),
            *self.events.routes(),
            *self.state.routes(),
            *self.key_changes.routes(),
            *self.status.routes(),
            *self.old.routes(),
        ]

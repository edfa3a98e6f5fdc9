"""What this server answers to others: a file for each section of the specification, put together here.

Server-Server API.  `component` is the way out; this is the way in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..database.engines import Database
from ..links.echoes import Echoes
from ..room_api.api import RoomAPI
from ..sharing.leases import Leases
from ..user_api.api import KeyAPI, UserAPI
from ..web.routes import Access, Limit, Route
from ..world import World
from .devices import DeviceRoutes
from .ephemeral import Ephemeral
from .history import HistoryRoutes
from .inbox import Inbox
from .invites import InviteRoutes
from .memberships import MembershipRoutes
from .queries import QueryRoutes
from .streams import EventStreams
from .transactions import TransactionRoutes

log = Logger()

PRUNE_SECONDS = 3600

QUESTIONS = Limit("federation", factor=20)
"""How often one server may ask: it does so for all of its users."""


class Inbound:
    """Answers other servers, over the database of the federation component, which is brought up to date there."""

    def __init__(
        self,
        database: Database,
        rooms: RoomAPI,
        users: UserAPI,
        keys: KeyAPI,
        queue: Any,
        world: World,
        server_name: str,
        takes_presence: bool,
        echoes: Echoes | None = None,
        leases: Leases | None = None,
    ) -> None:
        self._pdus: Counter[tuple[str, ...]] = Counter()
        self._edus: Counter[tuple[str, ...]] = Counter()
        self.inbox = Inbox(database, rooms, world.time, world.clock, self._count_pdus, echoes, leases)
        ephemeral = Ephemeral(rooms, users, keys, queue, world.clock, takes_presence, self._count_edu)
        streams = EventStreams(rooms)
        self._transactions = TransactionRoutes(
            database, rooms, self.inbox, ephemeral, world.time, world.clock, self._count_pdus
        )
        self._sections: list[Any] = [
            MembershipRoutes(rooms, streams, server_name),
            InviteRoutes(rooms),
            HistoryRoutes(rooms, streams, world.clock, server_name),
            QueryRoutes(rooms, users, server_name),
            DeviceRoutes(keys, server_name),
        ]
        self._pruning = LoopingCall(lambda: Deferred.fromCoroutine(self.inbox.prune()).addErrback(_unpruned))
        self._pruning.clock = world.time

    @property
    def pdus(self) -> Mapping[tuple[str, ...], int]:
        """How many events came, by what became of them."""
        return self._pdus

    @property
    def edus(self) -> Mapping[tuple[str, ...], int]:
        """How many EDUs came, by type."""
        return self._edus

    def _count_pdus(self, outcome: str, count: int) -> None:
        if count:
            self._pdus[(outcome,)] += count

    def _count_edu(self, edu_type: str) -> None:
        self._edus[(edu_type,)] += 1

    def routes(self) -> list[Route]:
        """The rows of all sections: questions have a limit; transactions have a pace."""
        rows = [row for section in self._sections for row in section.routes()]
        return [
            msgspec.structs.replace(row, limit=QUESTIONS) if row.access is Access.SERVER else row for row in rows
        ] + self._transactions.routes()

    def prepare(self) -> None:
        """Nothing of its own: the federation component brings the database up to date."""

    async def start(self) -> None:
        """Go on with what an earlier run left."""
        await self.inbox.start()
        self._pruning.start(PRUNE_SECONDS, now=False)

    async def stop(self) -> None:
        if self._pruning.running:
            self._pruning.stop()
        self.inbox.stop()


def _unpruned(failure: Failure) -> None:
    log.failure("answers to other servers that are kept for a while only could not be deleted", failure=failure)

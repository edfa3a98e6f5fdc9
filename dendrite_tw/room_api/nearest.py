"""The event nearest to a time, also where it is not here.

Client-Server API and Server-Server API, ``timestamp_to_event``.  Where the nearest event that is here lies beyond a
gap, or there is none, other servers are asked; an event of theirs that is nearer is fetched with the state before it
and kept as history, so that a client can go on from it.
"""

from __future__ import annotations

from typing import NamedTuple

from twisted.internet.interfaces import IReactorTime

from ..database.engines import Database
from ..matrix.errors import MatrixError
from ..matrix.identifiers import server_name_of
from .input import RoomWriter
from .missing import Missing
from .pages import Pages
from .peers import Deadline, Peers
from .room import Arrival, Room, Rooms, Way
from .servers import Servers
from .store import EventStore, stored_event
from .tables import events as event_table
from .tables.events import ACCEPTED
from .verifying import Verifying
from .viewing import Viewer

SECONDS = 25.0
"""How long others may take altogether."""

SERVERS_ASKED = 3

AT_ONCE = 4
"""How many such questions may be put to others at a time; to further ones only what is here is answered."""


class Nearby(NamedTuple):
    event_id: str
    ts: int


class Nearest:
    """Answers `RoomAPI.timestamp_to_event`."""

    def __init__(
        self,
        *,
        database: Database,
        rooms: Rooms,
        store: EventStore,
        viewer: Viewer,
        pages: Pages,
        writer: RoomWriter,
        servers: Servers,
        peers: Peers,
        verifying: Verifying,
        missing: Missing,
        time: IReactorTime,
        server_name: str,
    ) -> None:
        self._database = database
        self._rooms = rooms
        self._store = store
        self._viewer = viewer
        self._pages = pages
        self._writer = writer
        self._servers = servers
        self._peers = peers
        self._verifying = verifying
        self._missing = missing
        self._time = time
        self._server_name = server_name
        self._asking = 0

    async def timestamp_to_event(self, room_id: str, user_id: str, ts: int, direction: str) -> tuple[str, int]:
        """The event nearest to a time in a direction that the user may see: its ID and its time."""
        here: Nearby | None = None
        problem: MatrixError | None = None
        try:
            here = Nearby(*await self._pages.timestamp_to_event(room_id, user_id, ts, direction))
        except MatrixError as error:
            if error.status != 404:
                raise
            problem = error
        room = await self._rooms.find(room_id)
        if room is not None and room.is_here and await self._may_be_nearer(room, here, ts, direction):
            here = await self._elsewhere(room, user_id, here, ts, direction) or here
        if here is None:
            assert problem is not None
            raise problem
        return here

    async def _may_be_nearer(self, room: Room, here: Nearby | None, ts: int, direction: str) -> bool:
        """Whether events may be missing between a time and the nearest event that is here."""
        if here is None:
            return True
        if direction == "f":
            row = await self._store.row(here.event_id)
            return row is not None and row.gap == 1
        return await self._database.read(event_table.gap_after, room.room_nid, ts) == 1

    async def _elsewhere(self, room: Room, user_id: str, here: Nearby | None, ts: int, direction: str) -> Nearby | None:
        """A nearer event that another server knows of, fetched; `None` if there is none to be had."""
        if self._asking >= AT_ONCE:
            return None
        self._asking += 1
        try:
            deadline = Deadline(self._time, SECONDS)
            for server in await self._candidates(room):
                told = await self._peers.nearest(server, room.room_id, ts, direction, deadline)
                if told is None or not _is_nearer(told.origin_server_ts, here, ts, direction):
                    continue
                found = await self._fetched(room, server, told.event_id, user_id, deadline)
                if found is not None and _is_nearer(found.ts, here, ts, direction):
                    return found
            return None
        finally:
            self._asking -= 1

    async def _candidates(self, room: Room) -> list[str]:
        """Whom to ask: the server that made the room, if it is known by that, then others that are in it."""
        there = set(await self._servers.of(room.room_nid)) - {self._server_name}
        maker = server_name_of(room.room_id) if ":" in room.room_id else ""
        return sorted(there, key=lambda server: (server != maker, server))[:SERVERS_ASKED]

    async def _fetched(self, room: Room, server: str, event_id: str, user_id: str, deadline: Deadline) -> Nearby | None:
        """The event once it is here, if the user may see it."""
        row = await self._store.row(event_id)
        if row is None or not row.position:
            await self._fetch(room, server, event_id, deadline)
            row = await self._store.row(event_id)
        if row is None or row.room_nid != room.room_nid or row.status != ACCEPTED or not row.position:
            return None
        if not await self._viewer.visible_rows(user_id, [row]):
            return None
        return Nearby(event_id, stored_event(row).origin_server_ts)

    async def _fetch(self, room: Room, server: str, event_id: str, deadline: Deadline) -> None:
        """Fetch an event with the state before it, and keep it as history if it is good."""
        pdu = await self._peers.event(server, event_id, deadline)
        received = await self._verifying.read(room, [] if pdu is None else [pdu], {})
        for one in received:
            if one.event.event_id != event_id or not await self._missing.authority(room, server, one.event, deadline):
                return
            before = await self._missing.state_before(room, server, event_id, deadline)
            if before is not None:
                await self._writer.take(room, [Arrival(one, Way.HISTORY, before=before)])


def _is_nearer(found: int, here: Nearby | None, ts: int, direction: str) -> bool:
    """Whether a time is on the right side of `ts`, and nearer to it than the event that is here."""
    if direction == "f":
        return found >= ts and (here is None or found < here.ts)
    return found <= ts and (here is None or found > here.ts)

"""What other servers ask of rooms: events, their state and authority, what came before them.

Server-Server API, "Retrieving events", "Retrieving event authorisation information", "Backfilling and retrieving
missing events".  Who asks has, or had, a user in the room (403 else); what of it they may see, `ServerViewer` says.
Every walk through the graph is bounded, and runs where it does not keep the reactor.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Sequence
from heapq import heappop, heappush

from pyroaring import BitMap

from ..database.engines import Database
from ..database.statements import Transaction
from ..matrix.errors import MatrixError, forbidden, not_found
from ..matrix.events import Event
from ..matrix.ordering import parents_first
from .graph import AuthChains
from .participation import Participation
from .room import Room, Rooms
from .server_view import ServerViewer
from .snapshots import Snapshots
from .store import EventStore, stored_event
from .tables import events as event_table
from .tables.events import REJECTED, EventRow
from .tables.rooms import ELSEWHERE, PARTIAL

BACKFILL_LIMIT = 100
MISSING_LIMIT = 20
"""How many events one answer may have."""

ROWS_EACH = 5
"""How many rows are read for each event wanted, where some of them are not to be given."""

NEAREST = 50
"""Events nearest to a time of which the first one that may be seen is told."""

PIECE = 500
"""Numbers that one look-up names."""


class Serving:
    """Answers the questions of `RoomAPI` that end in ``for_server``, but for that about spaces."""

    def __init__(
        self,
        *,
        database: Database,
        rooms: Rooms,
        store: EventStore,
        snapshots: Snapshots,
        chains: AuthChains,
        participation: Participation,
        viewer: ServerViewer,
    ) -> None:
        self._database = database
        self._rooms = rooms
        self._store = store
        self._snapshots = snapshots
        self._chains = chains
        self._participation = participation
        self._viewer = viewer

    # --- events ---

    async def events_for_server(self, origin: str, event_ids: list[str]) -> dict[str, bytes]:
        """The PDUs of events of any rooms, by ID; absent are those that are not here or not for that server."""
        rows = await self._store.rows(event_ids)
        found: dict[str, bytes] = {}
        for room_id in dict.fromkeys(row.room_id for row in rows):
            room = await self._rooms.find(room_id)
            if room is None or not await self._is_let_in(room_id, origin):
                continue
            found.update(await self._viewer.shown(room, origin, [row for row in rows if row.room_id == room_id]))
        return found

    async def _is_let_in(self, room_id: str, server: str) -> bool:
        """Whether the room's access control list lets a server in."""
        try:
            await self._participation.check_server(room_id, server)
        except MatrixError:
            return False
        return True

    async def timestamp_to_event_for_server(
        self, origin: str, room_id: str, ts: int, direction: str
    ) -> tuple[str, int]:
        """The event nearest to a time that a server may be given: its ID and its time in milliseconds; 404 else."""
        room = await self._room(room_id)
        await self._viewer.require(room, origin)
        read = event_table.first_at_or_after if direction == "f" else event_table.last_at_or_before
        rows = await self._database.read(read, room.room_nid, ts, NEAREST)
        shown = await self._viewer.shown(room, origin, rows)
        for row in rows:
            if row.event_id in shown:
                return row.event_id, stored_event(row).origin_server_ts
        raise not_found(f"There is no event {'after' if direction == 'f' else 'before'} that time.")

    # --- state and authority ---

    async def state_ids_for_server(self, origin: str, room_id: str, event_id: str) -> tuple[list[str], list[str]]:
        """The state before an event and its auth chain, by ID.

        ``M_NOT_FOUND`` where the event or the whole state before it is not known here.
        """
        room, row = await self._event(origin, room_id, event_id)
        is_known = row.position or row.snapshot_nid
        if not is_known or room.standing == PARTIAL:
            raise not_found("This server does not know the state of the room before that event.")
        state = list((await self._database.read_long(self._snapshots.state, row.snapshot_nid)).values())
        chain = await self._chains.union(state)
        ids = await self._database.read_long(self._ids, [*state, *(chain - BitMap(state))])
        return [ids[nid] for nid in state], [ids[nid] for nid in chain]

    async def event_auth_for_server(self, origin: str, room_id: str, event_id: str) -> list[str]:
        """The events that authorise an event, near and far, by ID.

        A server that is not in the room may ask about what concerns a user of its own: an invite was taken back, say.
        """
        event = await self._member_event(origin, room_id, event_id)
        if event is None:
            _, row = await self._event(origin, room_id, event_id)
            event = stored_event(row)
        wanted = list(event.auth_events)
        if not event.version.create_event_in_auth_events and event.type != "m.room.create":
            wanted.append("$" + event.room_id[1:])
        nids = [one.event_nid for one in (await self._store.standings(wanted)).values()]
        chain = await self._chains.union(nids) | BitMap(nids)
        ids = await self._database.read_long(self._ids, chain)
        return [ids[nid] for nid in chain]

    async def _member_event(self, origin: str, room_id: str, event_id: str) -> Event | None:
        """A member event of a user of `origin`; `None` if the event is another."""
        room = await self._room(room_id)
        row = await self._store.row(event_id)
        if row is None or row.room_nid != room.room_nid or row.status == REJECTED:
            return None
        event = stored_event(row)
        user_id = event.state_key if event.membership is not None else None
        return event if user_id is not None and user_id.partition(":")[2] == origin else None

    async def _event(self, origin: str, room_id: str, event_id: str) -> tuple[Room, EventRow]:
        """A room and an event of it, for a server that may ask about both."""
        room = await self._room(room_id)
        is_in = await self._viewer.require(room, origin)
        row = await self._store.row(event_id)
        if row is None or row.room_nid != room.room_nid or row.status == REJECTED:
            raise not_found("This server does not know the event.")
        if not is_in and not await self._viewer.shown(room, origin, [row]):
            raise forbidden("Your server has left the room.")
        return room, row

    async def _room(self, room_id: str) -> Room:
        room = await self._rooms.get(room_id)
        if room.standing == ELSEWHERE:
            raise not_found("This server is not in the room.")
        return room

    async def _ids(self, txn: Transaction, nids: Iterable[int]) -> dict[int, str]:
        every, found = list(nids), dict[int, str]()
        for start in range(0, len(every), PIECE):
            rows = await event_table.ids_of(txn, every[start : start + PIECE])
            found.update((row.event_nid, row.event_id) for row in rows)
        return found

    # --- what came before ---

    async def missing_events_for_server(
        self, origin: str, room_id: str, earliest: list[str], latest: list[str], limit: int, min_depth: int
    ) -> list[bytes]:
        """Events before `latest`, breadth first, without `earliest` and what is known by them; oldest first."""
        room = await self._room(room_id)
        await self._viewer.require(room, origin)
        limit = min(limit, MISSING_LIMIT)
        rows = await self._database.read_long(self._between, room.room_nid, earliest, latest, limit, min_depth)
        shown = await self._viewer.shown(room, origin, rows)
        ordered = parents_first(stored_event(row) for row in rows)
        return [shown[event.event_id] for event in ordered if event.event_id in shown]

    async def _between(
        self,
        txn: Transaction,
        room_nid: int,
        earliest: Collection[str],
        latest: Sequence[str],
        limit: int,
        min_depth: int,
    ) -> list[EventRow]:
        """Events of the timeline before some and not before others, the nearest first."""
        seen = {*earliest, *latest}
        named = await self._timeline(txn, room_nid, latest)
        waiting = deque(prev_id for row in named for prev_id in stored_event(row).prev_events)
        found: list[EventRow] = []
        left = ROWS_EACH * limit
        while waiting and left and len(found) < limit:
            event_id = waiting.popleft()
            if event_id in seen:
                continue
            seen.add(event_id)
            left -= 1
            for row in await self._timeline(txn, room_nid, [event_id]):
                if row.depth < min_depth:
                    continue
                if row.status != REJECTED:
                    found.append(row)
                waiting.extend(stored_event(row).prev_events)
        return found

    async def backfill_for_server(self, origin: str, room_id: str, event_ids: list[str], limit: int) -> list[bytes]:
        """Some events and those before them, at most `limit` in all, the latest first; empty if none is known."""
        room = await self._room(room_id)
        await self._viewer.require(room, origin)
        limit = min(limit, BACKFILL_LIMIT)
        rows = await self._database.read_long(self._back, room.room_nid, event_ids, limit)
        shown = await self._viewer.shown(room, origin, rows)
        return [shown[row.event_id] for row in rows if row.event_id in shown]

    async def _back(self, txn: Transaction, room_nid: int, event_ids: Sequence[str], limit: int) -> list[EventRow]:
        """Events of the timeline and those before them, of all that are known the deepest first."""
        seen = set(event_ids)
        heap: list[tuple[int, int, EventRow, Event]] = []
        found: list[EventRow] = []

        async def read(ids: Sequence[str]) -> None:
            for row in await self._timeline(txn, room_nid, ids):
                heappush(heap, (-row.depth, -row.event_nid, row, stored_event(row)))

        await read(event_ids)
        left = ROWS_EACH * limit
        while heap and left and len(found) < limit:
            _, _, row, event = heappop(heap)
            left -= 1
            if row.status != REJECTED:
                found.append(row)
            fresh = [prev_id for prev_id in event.prev_events if prev_id not in seen]
            seen.update(fresh)
            if fresh:
                await read(fresh)
        return found

    async def _timeline(self, txn: Transaction, room_nid: int, event_ids: Sequence[str]) -> list[EventRow]:
        """Those of some events that are part of the room's timeline here, whatever was judged of them."""
        rows = await event_table.events_by_id(txn, event_ids)
        return [row for row in rows if row.room_nid == room_nid and (row.position or row.snapshot_nid)]

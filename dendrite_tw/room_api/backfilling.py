"""What is missing in the history of a room is fetched from the servers that are in it.

Server-Server API, "Backfilling and retrieving missing events".  A gap is an event that refers to others which are not
here.  Servers that are likely to have them are asked, one after the other, a bounded number of them at a time and in
all; each answer is at most a hundred events, whose oldest may have a gap before them again.  Nothing in an answer is
believed: only events count that the gap refers to, directly or by way of each other, signed and authorised as others.
The state before the oldest is taken from another server's word (`Missing.state_before`).

Each room has at most one such search at a time.  Who waits for it waits for a bounded time; the search goes on.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..database.engines import Database
from ..matrix.errors import MatrixError
from ..matrix.events import ReceivedEvent
from ..matrix.identifiers import server_name_of
from ..matrix.ordering import oldest_first
from ..matrix.power_levels import PowerLevels
from .current import CurrentState
from .input import RoomWriter
from .missing import Missing
from .peers import Deadline, Peers
from .room import FOLLOWED, Arrival, Room, Way
from .servers import Servers
from .snapshots import StateMap
from .steps import CREATE, POWER_LEVELS
from .tables import edges as edge_table
from .tables.edges import GapRow
from .verifying import Verifying

log = Logger()

SEARCH_SECONDS = 60.0
"""How long one search may take."""

ASKED_EACH = 4
"""Servers that one search asks."""

ASKED_IN_ALL = 12
"""Servers that are asked about a gap; if none of them helps, it is left for a while."""

FAILED_SECONDS = 600.0
"""How long a server is not asked about a gap again after it did not help."""

GAPS_REMEMBERED = 2000

AT_ONCE = 8
"""Searches that are under way at the same time."""

WANTED = 20
"""Events that one question names."""

STATES_FETCHED = 8
"""Branches of one answer whose states are fetched; of an answer with more, only the newer part is taken."""

STATE_SERVERS = 3
"""Servers that are asked for the state before an event."""

PIECE = 10
"""Events that the room's writer takes in one go."""


class _Search(NamedTuple):
    """What is being searched for in a room, and who waits for it."""

    event_nid: int
    waiting: list[Deferred[None]]


class Backfilling:
    """Fills gaps."""

    def __init__(
        self,
        *,
        database: Database,
        writer: RoomWriter,
        servers: Servers,
        current: CurrentState,
        missing: Missing,
        peers: Peers,
        verifying: Verifying,
        time: IReactorTime,
        server_name: str,
    ) -> None:
        self._database = database
        self._writer = writer
        self._servers = servers
        self._current = current
        self._missing = missing
        self._peers = peers
        self._verifying = verifying
        self._time = time
        self._server_name = server_name
        self._failed: OrderedDict[int, dict[str, float]] = OrderedDict()
        self._searches: dict[int, _Search] = {}
        self._running: set[Deferred[None]] = set()
        self._stopped = False
        self._places = DeferredSemaphore(AT_ONCE)

    def stop(self) -> None:
        """Give up what is being searched for, and search no more."""
        self._stopped = True
        for search in list(self._running):
            search.cancel()

    # --- whether and whom to ask ---

    async def candidates(self, room: Room, gap: GapRow) -> list[str]:
        """The servers to ask about a gap now, the likeliest to know first; none if it is to be left for a while."""
        failed = self._failed_of(gap)
        ranked = dict.fromkeys([server_name_of(gap.sender), *await self._powerful(room)])
        ranked.update(dict.fromkeys(await self._servers.largest(room.room_nid)))
        ranked.pop(self._server_name, None)
        return [server for server in islice(ranked, ASKED_IN_ALL) if server not in failed]

    async def _powerful(self, room: Room) -> list[str]:
        """The servers of users who have power in the room, and are in it."""
        state = await self._current(room, CREATE, POWER_LEVELS)
        if CREATE not in state:
            return []
        levels = PowerLevels(state[CREATE], state.get(POWER_LEVELS))
        named = [server_name_of(user_id) for user_id in levels.named if ":" in user_id]
        return [server for server in named if await self._servers.has(room.room_nid, server)]

    def _failed_of(self, gap: GapRow) -> dict[str, float]:
        """The servers that did not help with a gap lately."""
        now = self._time.seconds()
        failed = {server: until for server, until in self._failed.get(gap.event_nid, {}).items() if until > now}
        if not failed:
            self._failed.pop(gap.event_nid, None)
        return failed

    def _note_failed(self, gap: GapRow, server: str) -> None:
        self._failed[gap.event_nid] = {**self._failed_of(gap), server: self._time.seconds() + FAILED_SECONDS}
        self._failed.move_to_end(gap.event_nid)
        while len(self._failed) > GAPS_REMEMBERED:
            self._failed.popitem(last=False)

    # --- searches ---

    async def search(self, room: Room, gap: GapRow, seconds: float) -> bool:
        """Search for what is missing before an event, and wait at most for `seconds`.

        If something else is already being searched for in the room, wait for that instead, and return `False`.
        """
        search = self._searches.get(room.room_nid)
        if search is None:
            if self._stopped:
                return True
            search = self._searches[room.room_nid] = _Search(gap.event_nid, [])
            running = Deferred.fromCoroutine(self._search(room, gap))
            self._running.add(running)
            running.addBoth(self._ended, room.room_nid, running)
            if running.called:
                return True
        waiter: Deferred[None] = Deferred()
        waiter.addTimeout(seconds, self._time, lambda result, timeout: None)
        search.waiting.append(waiter)
        await waiter
        return search.event_nid == gap.event_nid

    def _ended(self, result: Failure | None, room_nid: int, running: Deferred[None]) -> None:
        if isinstance(result, Failure) and result.check(CancelledError) is None:
            log.failure("a search for history failed", failure=result)
        self._running.discard(running)
        for waiter in self._searches.pop(room_nid).waiting:
            if not waiter.called:
                waiter.callback(None)

    async def _search(self, room: Room, gap: GapRow) -> None:
        await self._places.acquire()
        try:
            deadline = Deadline(self._time, SEARCH_SECONDS)
            candidates = await self.candidates(room, gap)
            for server in candidates[:ASKED_EACH]:
                others = [other for other in candidates if other != server]
                if await self._ask(room, gap, [server, *others], deadline) or not deadline.left_ms():
                    break
                self._note_failed(gap, server)
        except MatrixError as error:
            # The room is being deleted, or the database is away.
            log.info("history of {room} is not stored: {why}", room=room.room_id, why=error.error)
        finally:
            self._places.release()

    async def _ask(self, room: Room, gap: GapRow, servers: Sequence[str], deadline: Deadline) -> bool:
        """Ask the first of some servers for what is missing before an event; whether some of it is here now."""
        wanted = await self._database.read(edge_table.missing_before, gap.event_nid, WANTED)
        if not wanted:
            return True
        pdus = await self._peers.backfill(servers[0], room.room_id, wanted, deadline)
        if not pdus:
            return False
        received = await self._verifying.read(room, pdus, {}, limited=False)
        chosen = await self._chosen(room, wanted, received)
        await self._take(room, chosen, servers, deadline)
        return not set(wanted) <= set(await self._database.read(edge_table.missing_before, gap.event_nid, WANTED))

    # --- what came ---

    async def _chosen(
        self, room: Room, wanted: Sequence[str], received: Sequence[ReceivedEvent]
    ) -> list[ReceivedEvent]:
        """Those of the events received which are wanted, or come before such, and are not here; oldest first.

        Where they begin on many branches, only as many of the newest as begin on few.
        """
        by_id = {one.event.event_id: one for one in received}
        found: dict[str, ReceivedEvent] = {}
        waiting = list(wanted)
        while waiting:
            event_id = waiting.pop()
            if event_id in by_id and event_id not in found and not await self._missing.is_here(room, event_id):
                found[event_id] = by_id[event_id]
                waiting += by_id[event_id].event.prev_events
        chosen = sorted(found.values(), key=lambda one: one.event.depth, reverse=True)
        while len(chosen) > 1 and len(await self._missing.loose(room, chosen)) > STATES_FETCHED:
            chosen = chosen[: len(chosen) // 2]
        return oldest_first(chosen)

    async def _take(
        self, room: Room, chosen: Sequence[ReceivedEvent], servers: Sequence[str], deadline: Deadline
    ) -> None:
        """Let events come into the history of the room."""
        among = {one.event.event_id for one in chosen}
        loose = {one.event.event_id for one in await self._missing.loose(room, chosen)}
        for start in range(0, len(chosen), PIECE):
            arrivals = []
            for one in chosen[start : start + PIECE]:
                await self._missing.authority(room, servers[0], one.event, deadline, among)
                before = None
                if one.event.event_id in loose or len(one.event.prev_events) > FOLLOWED:
                    before = await self._state_before(room, one, servers, deadline)
                arrivals.append(Arrival(one, Way.HISTORY, before))
            await self._writer.take(room, arrivals)

    async def _state_before(
        self, room: Room, one: ReceivedEvent, servers: Sequence[str], deadline: Deadline
    ) -> StateMap | None:
        """The state before an event, from the first server that tells it."""
        for server in servers[:STATE_SERVERS]:
            state = await self._missing.state_before(room, server, one.event.event_id, deadline)
            if state is not None:
                return state
        return None

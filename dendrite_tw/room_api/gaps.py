"""Pages of history reach places before which events are missing here, and do not silently go on beyond them.

History is read in the order of depth and then of position.  What an event refers to has less depth, so a page that
goes back has to have what is missing before an event once it has come to that event.  If nobody gives it in time the
page ends there, and the client may try again; once all servers worth asking have been, it goes on with what is here.
A page that goes on through time does without.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from twisted.internet.interfaces import IReactorTime

from ..database.engines import Database
from ..matrix.errors import MatrixError
from .backfilling import WANTED, Backfilling
from .paging import Place
from .peers import Deadline
from .room import Room
from .tables import edges as edge_table
from .tables import events as event_table
from .tables.edges import GapRow
from .tables.rooms import PARTIAL
from .viewing import Viewer

ROUNDS = 3
"""Searches that one page may wait for."""

PAGE_SECONDS = 20.0
"""How long one page may wait for all of them."""

GAPS_LOOKED_AT = 20
"""Gaps in a row that are passed over before a page looks no further for others."""


class Gaps:
    """Begins walks through the histories of rooms."""

    def __init__(
        self,
        *,
        database: Database,
        backfilling: Backfilling,
        viewer: Viewer,
        whole: Callable[[Room], Awaitable[None]],
        time: IReactorTime,
    ) -> None:
        self.database = database
        self.whole = whole
        """Waits until the whole state of a room is here; `MatrixError` if that takes too long."""
        self.backfilling = backfilling
        self.viewer = viewer
        self.time = time

    def walk(self, room: Room, user_id: str, direction: str, stop: Place | None = None) -> Walk:
        """A walk on which a user reads, in a direction, not beyond `stop`."""
        return Walk(self, room, user_id, direction, stop)


class Walk:
    """One page's way through a history."""

    def __init__(self, gaps: Gaps, room: Room, user_id: str, direction: str, stop: Place | None) -> None:
        self._database = gaps.database
        self._backfilling = gaps.backfilling
        self._viewer = gaps.viewer
        self._whole = gaps.whole
        self._room = room
        self._user_id = user_id
        self._direction = direction
        self._stop = stop
        self._deadline = Deadline(gaps.time, PAGE_SECONDS)
        self.rounds = 0
        """How often something was searched for."""
        self._passed: set[int] = set()
        self.is_over = False
        """Whether something is missing that the page cannot go beyond."""

    async def reach(self, place: Place, count: int | None) -> Place | None:
        """Have the next `count` events from a place here (`None`: all up to the stop), as far as they can be had.

        Returns the place of the event at which the page has to end, if there is one.
        """
        if not await self._database.read(edge_table.any_edge, self._room.room_nid):
            return None
        while (gap := await self._next(place, count)) is not None:
            if not await self._is_worth_it(gap):
                self._passed.add(gap.event_nid)
            elif self.rounds >= ROUNDS or not self._deadline.left_ms() or not await self._is_whole(place, gap):
                break
            elif not await self._search(gap):
                if self._direction == "b":
                    break
                self._passed.add(gap.event_nid)
        if gap is None or self._direction == "f":
            return None
        self.is_over = True
        return Place(gap.depth, gap.position)

    async def _search(self, gap: GapRow) -> bool:
        """Search for what is missing before an event; `False` if there was nothing to be had."""
        self.rounds += 1
        missing = await self._database.read(edge_table.missing_before, gap.event_nid, WANTED)
        if not await self._backfilling.search(self._room, gap, self._deadline.left_ms() / 1000):
            return True
        return missing != await self._database.read(edge_table.missing_before, gap.event_nid, WANTED)

    async def _is_whole(self, place: Place, gap: GapRow) -> bool:
        """Whether the state is here on which history can be placed; a page that would be empty waits for it."""
        if self._room.standing != PARTIAL:
            return True
        if self._direction == "f" or place >= Place(gap.depth, gap.position):
            return False
        try:
            await self._whole(self._room)
        except MatrixError:
            return False
        return True

    async def _is_worth_it(self, gap: GapRow) -> bool:
        """Whether the user may see what came before an event, and there is somebody to ask."""
        if not self._room.is_here or not await self._viewer.may_see_before(self._user_id, gap, self._room.room_nid):
            return False
        return bool(await self._backfilling.candidates(self._room, gap))

    async def _next(self, place: Place, count: int | None) -> GapRow | None:
        """The first gap on the way that is not passed over."""
        if len(self._passed) >= GAPS_LOOKED_AT:
            return None
        return await (self._back(place, count) if self._direction == "b" else self._on(place, count))

    async def _back(self, place: Place, count: int | None) -> GapRow | None:
        room_nid = self._room.room_nid
        above = await self._database.read(event_table.place_on, room_nid, *place, 0)
        first = Place(above.depth, above.position) if above is not None else None
        for gap in await self._database.read(edge_table.gaps_on, room_nid, *place, GAPS_LOOKED_AT):
            # What is missing before the event just passed comes next.
            if (first is None or Place(gap.depth, gap.position) <= first) and gap.event_nid not in self._passed:
                return gap
        last = None
        if count is not None:
            # If there are more events than wanted, those beyond are another page's concern.
            last = await self._database.read(event_table.place_back, room_nid, *place, count)
        for gap in await self._database.read(edge_table.gaps_back, room_nid, *place, GAPS_LOOKED_AT):
            here = Place(gap.depth, gap.position)
            if self._stop is not None and here <= self._stop:
                return None
            if last is not None and here <= Place(last.depth, last.position):
                return None
            if gap.event_nid not in self._passed:
                return gap
        return None

    async def _on(self, place: Place, count: int | None) -> GapRow | None:
        room_nid = self._room.room_nid
        last = None
        if count is not None:
            last = await self._database.read(event_table.place_on, room_nid, *place, count)
        for gap in await self._database.read(edge_table.gaps_on, room_nid, *place, GAPS_LOOKED_AT):
            here = Place(gap.depth, gap.position)
            if self._stop is not None and here > self._stop:
                return None
            if last is not None and here >= Place(last.depth, last.position):
                return None
            if gap.event_nid not in self._passed:
                return gap
        return None

"""Pages of the history of a room, as far as a user may see it.

Client-Server API, "Syncing", "Event context", "Jumping to a specific point in the timeline".  What is missing here is
fetched from other servers on the way (`gaps`).
"""

from __future__ import annotations

from collections.abc import Sequence

from ..database.engines import Database
from ..matrix.errors import MatrixError, forbidden, invalid_param, not_found
from .api import Context, EventFilter, Page, RoomEvent, timeline_token
from .gaps import Gaps, Walk
from .paging import Place, chosen, parse_token
from .queries import MEMBER, Queries
from .room import Room, Rooms
from .store import RoomEvents, stored_event
from .tables import events as event_table
from .tables import rooms as room_table
from .tables.events import PlacedRow
from .viewing import Seen, Viewer

PAGE_LIMIT = 1000
"""Events in one page at the most."""

SCAN_LIMIT = 5
"""How many times the wanted events a filtered page reads before it is given up as a page with fewer."""

BRANCHES_LOOKED_AT = 100
"""Events up to a place in the stream among which the one is looked for that lies highest in history: going back from
there, none is left out that came on another branch."""

NEAREST = 50
"""Events nearest to a time of which the first one that may be seen is told."""


class Pages:
    """Answers the questions of `RoomAPI` about parts of a room's history."""

    def __init__(
        self,
        *,
        database: Database,
        rooms: Rooms,
        shown: RoomEvents,
        viewer: Viewer,
        queries: Queries,
        gaps: Gaps,
    ) -> None:
        self._database = database
        self._rooms = rooms
        self._shown = shown
        self._viewer = viewer
        self._queries = queries
        self._gaps = gaps

    async def messages(
        self,
        room_id: str,
        user_id: str,
        direction: str,
        from_token: str | None,
        to_token: str | None,
        limit: int,
        filter: EventFilter | None,
        lazy_load_members: bool,
    ) -> Page:
        """A page of the room's history."""
        if direction not in ("b", "f"):
            raise invalid_param("dir must be b or f.")
        room = await self._rooms.find(room_id)
        if room is None:
            raise forbidden("You are not in this room.")
        membership = await self._viewer.require_member(room.room_nid, user_id)
        start = await self._begin(room.room_nid, direction, from_token)
        if membership is not None and membership.membership != "join" and direction == "b":
            left = await self._place_of(room.room_nid, membership.position)
            start = min(start, left)
        rows, following = await self._page_rows(room, user_id, direction, start, to_token, limit, filter)
        events = await self._shown.show_placed(rows)
        state = await self._senders_of(room.room_nid, rows, events) if lazy_load_members else []
        if following is None and rows and direction == "f" and to_token is None and _is_in(membership):
            # The newest event for now: more will come after it.
            following = _after(rows[-1], direction)
        end = following and timeline_token(*following)
        return Page(events=events, start=timeline_token(*start), end=end, state=state)

    async def _begin(self, room_nid: int, direction: str, token: str | None) -> Place:
        """As `start`; who goes back from a place in the stream comes upon what is on other branches, too."""
        if token is not None and direction == "b" and (place := parse_token(token)).depth is None:
            above = await self._database.read(event_table.highest_live, room_nid, place.position, BRANCHES_LOOKED_AT)
            if above is not None:
                return Place(above.depth, above.position)
        return await self.start(room_nid, direction, token)

    async def start(self, room_nid: int, direction: str, token: str | None) -> Place:
        """Where a page begins: after a token, or at the newest or the first event."""
        if token is None:
            return Place(2**62, 2**62) if direction == "b" else Place(0, -(2**62))
        place = parse_token(token)
        if place.depth is not None:
            return Place(place.depth, place.position)
        return await self._place_of(room_nid, place.position)

    async def _place_of(self, room_nid: int, position: int) -> Place:
        """The place in history of the newest event up to a stream position."""
        found = await self._database.read(event_table.last_live, room_nid, position)
        if found is not None:
            return Place(found.depth, found.position)
        following = await self._database.read(event_table.first_live, room_nid, position)
        return Place(following.depth, following.position - 1) if following is not None else Place(0, 0)

    async def _page_rows(
        self,
        room: Room,
        user_id: str,
        direction: str,
        start: Place,
        to_token: str | None,
        limit: int,
        filter: EventFilter | None,
    ) -> tuple[list[PlacedRow], Place | None]:
        """Visible, chosen events from `start` on, and the place to go on from; `None` at the end."""
        limit = max(1, min(limit, PAGE_LIMIT))
        stop = await self.start(room.room_nid, direction, to_token) if to_token is not None else None
        walk = self._gaps.walk(room, user_id, direction, stop)
        kept: list[PlacedRow] = []
        place = start
        for _ in range(SCAN_LIMIT):
            batch, following = await self._batch(walk, room.room_nid, direction, place, limit, stop)
            visible = await self._viewer.visible_rows(user_id, batch)
            wanted = visible if filter is None else await self._chosen(visible, filter)
            room_left = limit - len(kept)
            kept += wanted[:room_left]
            if len(wanted) > room_left:
                return kept, _after(kept[-1], direction)
            if following is None or walk.is_over or len(kept) >= limit:
                return kept, following
            place = following
        return kept, place

    async def _batch(
        self, walk: Walk, room_nid: int, direction: str, place: Place, limit: int, stop: Place | None
    ) -> tuple[list[PlacedRow], Place | None]:
        """At most `limit` events from a place on, and the place to go on from; `None` at the end."""
        edge = await walk.reach(place, limit)
        read = event_table.history_back if direction == "b" else event_table.history_on
        rows = await self._database.read(read, room_nid, *place, limit + 1)
        batch = rows[:limit]
        if stop is not None:
            within = [row for row in batch if before_stop(row, stop, direction)]
            if len(within) < len(batch):
                return within, None
        if edge is not None:
            within = [row for row in batch if Place(row.depth, row.position) >= edge]
            return within, Place(edge.depth, edge.position - 1)
        return batch, _after(batch[-1], direction) if len(rows) > limit else None

    async def _chosen(self, rows: Sequence[PlacedRow], filter: EventFilter) -> list[PlacedRow]:
        """Those of the rows whose events a filter lets through."""
        return [
            row for row, event in zip(rows, await self._shown.show_placed(rows), strict=True) if chosen(event, filter)
        ]

    async def _senders_of(
        self, room_nid: int, rows: Sequence[PlacedRow], events: Sequence[RoomEvent]
    ) -> list[RoomEvent]:
        """The member events of the senders of a page, as of its events."""
        if not rows:
            return []
        senders = list(dict.fromkeys(event.sender for event in events))
        newest = max(rows, key=lambda row: (row.depth, row.position))
        snapshot = await self._queries.snapshot_after(room_nid, newest.position)
        return await self._shown.by_nid(await self._queries.look_up(snapshot, [(MEMBER, sender) for sender in senders]))

    async def context(
        self, room_id: str, user_id: str, event_id: str, limit: int, filter: EventFilter | None, lazy_load_members: bool
    ) -> Context:
        """An event with what came before and after it; `limit` counts both sides together."""
        room = await self._rooms.find(room_id)
        if room is None:
            raise forbidden("You are not in this room.")
        await self._viewer.require_member(room.room_nid, user_id)
        row = await self._viewer.event_row(room_id, event_id)
        if row is None or row.status != event_table.ACCEPTED or not row.position:
            raise not_found("There is no such event in the timeline of this server.")
        if not await self._viewer.visible_rows(user_id, [row]):
            raise not_found("There is no such event that you may see.")
        here = Place(row.depth, row.position)
        just_before = Place(row.depth, row.position - 1)
        half = max(0, min(limit, PAGE_LIMIT)) // 2
        before = after = ([], None)  # type: tuple[list[PlacedRow], Place | None]
        if half:
            before = await self._page_rows(room, user_id, "b", just_before, None, half, filter)
        if limit - half > 0:
            after = await self._page_rows(room, user_id, "f", here, None, limit - half, filter)
        last: Seen = after[0][-1] if after[0] else row
        state = await self._queries.state_at(room_id, last.position)
        shown_before = await self._shown.show_placed(before[0])
        shown_after = await self._shown.show_placed(after[0])
        event = (await self._shown.show([row]))[0]
        if lazy_load_members:
            senders = {other.sender for other in [event, *shown_before, *shown_after]}
            state = [item for item in state if item.type != MEMBER or item.state_key in senders]
        first: Seen = before[0][-1] if before[0] else row
        return Context(
            event=event,
            events_before=shown_before,
            events_after=shown_after,
            start=timeline_token(first.depth, first.position - 1),
            end=timeline_token(last.depth, last.position),
            state=state,
        )

    async def timestamp_to_event(self, room_id: str, user_id: str, ts: int, direction: str) -> tuple[str, int]:
        """The nearest event in a direction: its ID and time in milliseconds."""
        if direction not in ("b", "f"):
            raise invalid_param("dir must be b or f.")
        room = await self._rooms.find(room_id)
        if room is None:
            raise forbidden("You are not in this room.")
        await self._viewer.require_member(room.room_nid, user_id)
        read = event_table.first_at_or_after if direction == "f" else event_table.last_at_or_before
        rows = await self._database.read(read, room.room_nid, ts, NEAREST)
        seen = await self._viewer.visible_rows(user_id, rows)
        if not seen:
            raise MatrixError(404, "M_NOT_FOUND", "There is no event at that time or beyond it.")
        return seen[0].event_id, stored_event(seen[0]).origin_server_ts


def _is_in(membership: room_table.MembershipRow | None) -> bool:
    return membership is not None and membership.membership == "join"


def _after(row: Seen, direction: str) -> Place:
    """The place just beyond an event in a direction: reading goes on there."""
    return Place(row.depth, row.position - 1) if direction == "b" else Place(row.depth, row.position)


def before_stop(row: Seen, stop: Place, direction: str) -> bool:
    place = Place(row.depth, row.position)
    return place > stop if direction == "b" else place <= stop

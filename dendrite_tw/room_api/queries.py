"""Questions about rooms: who is in them, what they hold, what happened.

Every method only reads.  Short reads run where they are asked; what may touch
many rows goes to a reader thread.
"""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from ..database.engines import Database
from ..database.statements import Transaction
from ..matrix.errors import MatrixError, forbidden, invalid_param, not_found
from ..matrix.events import stripped
from .api import ChangedSlot, Context, EventFilter, LiveEvents, Membership, Page, RoomEvent, RoomView, timeline_token
from .current import STRIPPED_STATE
from .paging import Place, chosen, parse_token
from .remote.rooms import RemoteRooms
from .room import Rooms
from .snapshots import Snapshots
from .store import EventStore, RoomEvents, stored_event
from .tables import events as event_table
from .tables import rooms as room_table
from .tables.events import EventRow
from .tables.names import Names, Slot
from .viewing import Viewer

MEMBER = "m.room.member"

PAGE_LIMIT = 1000
"""Events in one page at the most."""

SCAN_LIMIT = 5
"""How many times the wanted events a filtered page reads before it is given up as a page with fewer."""


NEAREST = 50
"""Events nearest to a time of which the first one that may be seen is told."""


class Queries:
    """Answers the questions of `RoomAPI` about events, state and members."""

    def __init__(
        self,
        *,
        database: Database,
        names: Names,
        rooms: Rooms,
        snapshots: Snapshots,
        store: EventStore,
        shown: RoomEvents,
        viewer: Viewer,
        remote: RemoteRooms,
    ) -> None:
        self._database = database
        self._names = names
        self._rooms = rooms
        self._snapshots = snapshots
        self._store = store
        self._shown = shown
        self._viewer = viewer
        self._remote = remote

    # --- memberships ---

    async def memberships(self, user_id: str) -> list[Membership]:
        """Every room in which the user has a membership."""
        user_nid = await self._database.read(self._names.find, user_id)
        if user_nid is None:
            return []
        return [_membership(row) for row in await self._database.read(room_table.memberships_of, user_nid)]

    async def membership(self, room_id: str, user_id: str) -> Membership | None:
        room = await self._rooms.find(room_id)
        row = await self._viewer.membership(room.room_nid, user_id) if room else None
        return _membership(row) if row else None

    async def local_memberships(self, room_id: str) -> list[Membership]:
        """The memberships of this server's users in a room."""
        room = await self._rooms.find(room_id)
        rows = await self._database.read(room_table.local_memberships, room.room_nid) if room else []
        return [_membership(row) for row in rows]

    async def joined_users(self, room_id: str) -> list[str]:
        room = await self._rooms.find(room_id)
        return await self._database.read(room_table.joined_users, room.room_nid) if room else []

    async def shares_room(self, user_id: str, others: list[str]) -> list[str]:
        """Those of `others` who are joined to a room that the user is joined to."""
        return await self._database.read(self._sharing, user_id, others)

    async def _sharing(self, txn: Transaction, user_id: str, others: list[str]) -> list[str]:
        user_nid = await self._names.find(txn, user_id)
        nids = [nid for other in others if (nid := await self._names.find(txn, other)) is not None]
        return await room_table.sharing_a_room(txn, user_nid, nids) if user_nid is not None and nids else []

    # --- for sync ---

    async def room_view(self, room_id: str, timeline_limit: int) -> RoomView:
        """A room's current state and the newest part of its timeline."""
        room = await self._rooms.get(room_id)
        return await self._database.read_long(self._view, room.room_nid, timeline_limit)

    async def _view(self, txn: Transaction, room_nid: int, limit: int) -> RoomView:
        row = await room_table.room_by_nid(txn, room_nid)
        assert row is not None
        newest = await event_table.newest_live(txn, room_nid, 0, 2**62, limit + 1)
        state = await self._snapshots.state(txn, row.snapshot_nid)
        state_rows = await event_table.events_by_nid(txn, list(state.values()))
        return RoomView(
            room_id=row.room_id,
            room_version=row.version,
            position=newest[0].position if newest else 0,
            state=await self._shown.show_in(txn, state_rows),
            timeline=await self._shown.show_in(txn, newest[:limit][::-1]),
            complete=len(newest) <= limit,
            partial=row.standing == room_table.PARTIAL,
            rewritten=row.rewritten,
        )

    async def newest_positions(self, room_ids: Sequence[str]) -> dict[str, int]:
        """The position of the newest that is to be told of each of these rooms."""
        rows = await self._database.read(room_table.newest_positions, room_ids)
        return {row.room_id: max(row.position, row.rewritten) for row in rows}

    async def newest_events(self, room_ids: Sequence[str]) -> dict[str, list[str]]:
        """The events at the ends of the history of each of these rooms."""
        rows = await self._database.read(room_table.extremities_of, room_ids)
        return {row.room_id: orjson.loads(row.extremities) for row in rows}

    async def stripped_state(self, room_id: str, user_id: str) -> list[bytes]:
        """What one who is invited or knocks is shown of a room."""
        room = await self._rooms.get(room_id)
        told = await self._remote.stubs.shown(room, user_id)
        if told is not None:
            return told
        slots = [*STRIPPED_STATE, (MEMBER, user_id)]
        nids = await self._look_up(room.head.snapshot_nid, slots)
        events = await self._store.by_nid(nids)
        inviter = next((event.sender for event in events.values() if event.state_key == user_id), None)
        if inviter is not None and inviter != user_id:
            found = await self._look_up(room.head.snapshot_nid, [(MEMBER, inviter)])
            events |= await self._store.by_nid(found)
        return [orjson.dumps(stripped(event)) for event in events.values()]

    async def pdus(self, event_ids: Sequence[str]) -> dict[str, bytes]:
        """Stored events as they travel between servers."""
        return {row.event_id: row.pdu for row in await self._store.rows(event_ids)}

    async def timeline(self, room_id: str, after: int, upto: int, limit: int, filter: EventFilter | None) -> LiveEvents:
        """The newest `limit` live events in (after, upto], none of them from before a gap."""
        room = await self._rooms.get(room_id)
        rows = await self._database.read(
            event_table.newest_live,
            room.room_nid,
            after,
            upto,
            min(limit, PAGE_LIMIT) * (SCAN_LIMIT if filter else 1) + 1,
        )
        gap = next((place for place, row in enumerate(rows, 1) if row.gap), None)
        shown = await self._shown.show(rows[:gap])
        kept = [event for event in shown if chosen(event, filter)]
        more = len(kept) > limit or (len(shown) > limit and len(kept) < len(shown))
        return LiveEvents(events=kept[:limit][::-1], more=more or gap is not None, cut=not more and gap is not None)

    async def state_at(self, room_id: str, position: int) -> list[RoomEvent]:
        """The state of the room after the last live event up to `position`."""
        room = await self._rooms.get(room_id)
        nid = await self._snapshot_after(room.room_nid, position)
        return await self._database.read_long(self._state_events, nid)

    async def state_changes(self, room_id: str, after: int, upto: int) -> list[ChangedSlot]:
        """What differs between the states at two places of the live stream."""
        room = await self._rooms.get(room_id)
        before = await self._snapshot_after(room.room_nid, after)
        now = await self._snapshot_after(room.room_nid, upto)
        return await self._database.read_long(self._changed_slots, before, now) if before != now else []

    async def _changed_slots(self, txn: Transaction, before_nid: int, now_nid: int) -> list[ChangedSlot]:
        before, now = await self._snapshots.state(txn, before_nid), await self._snapshots.state(txn, now_nid)
        slots = [slot for slot in {**before, **now} if before.get(slot) != now.get(slot)]
        nids = {nid for slot in slots for nid in (before.get(slot), now.get(slot)) if nid is not None}
        rows = await event_table.events_by_nid(txn, list(nids))
        shown = {event.event_id: event for event in await self._shown.show_in(txn, rows)}
        events = {row.event_nid: shown[row.event_id] for row in rows}
        changes = []
        for slot in slots:
            pair = (events.get(before.get(slot, 0)), events.get(now.get(slot, 0)))
            event = pair[1] or pair[0]
            assert event is not None
            changes.append(ChangedSlot(type=event.type, state_key=event.state_key or "", before=pair[0], now=pair[1]))
        return changes

    async def state_before(self, event_id: str) -> list[RoomEvent]:
        row = await self._store.row(event_id)
        return await self._database.read_long(self._state_events, row.snapshot_nid) if row else []

    async def _snapshot_after(self, room_nid: int, position: int) -> int:
        """The snapshot that holds after the last event up to a position."""
        last = await self._database.read(event_table.last_place, room_nid, position)
        return last.current_nid if last is not None else 0

    async def _state_events(self, txn: Transaction, snapshot_nid: int) -> list[RoomEvent]:
        state = await self._snapshots.state(txn, snapshot_nid)
        return await self._shown.show_in(txn, await event_table.events_by_nid(txn, list(state.values())))

    # --- state and members for a user ---

    async def _state_for(self, room_id: str, user_id: str) -> tuple[int, int]:
        """The room's number and the snapshot that the user may see: the current one, or that of their leaving."""
        room = await self._rooms.find(room_id)
        if room is None:
            raise forbidden("You are not in this room.")
        membership = await self._viewer.require_member(room.room_nid, user_id)
        if membership is None or membership.membership == "join":
            return room.room_nid, room.head.snapshot_nid
        return room.room_nid, await self._snapshot_after(room.room_nid, membership.position)

    async def current_state(self, room_id: str, user_id: str) -> list[RoomEvent]:
        """The state that the user may see: current, or as it was when they left."""
        _, snapshot_nid = await self._state_for(room_id, user_id)
        return await self._database.read_long(self._state_events, snapshot_nid)

    async def state_event(self, room_id: str, user_id: str, type: str, state_key: str) -> RoomEvent:
        _, snapshot_nid = await self._state_for(room_id, user_id)
        found = await self._look_up(snapshot_nid, [(type, state_key)])
        if not found:
            raise not_found("The room has no such state.")
        return (await self._shown.by_nid(found))[0]

    async def _look_up(self, snapshot_nid: int, slots: Sequence[Slot]) -> list[int]:
        return list((await self._database.read(self._look_up_in, snapshot_nid, slots)).values())

    async def _look_up_in(self, txn: Transaction, snapshot_nid: int, slots: Sequence[Slot]) -> dict[int, int]:
        nids = [nid for slot in slots if (nid := await self._names.find_slot(txn, slot)) is not None]
        return await self._snapshots.look_up(txn, snapshot_nid, nids)

    async def members(
        self, room_id: str, user_id: str, at: str | None, membership: str | None, not_membership: str | None
    ) -> list[RoomEvent]:
        """Member events, at a point of the timeline or as the user may see them now."""
        await self._all_members(room_id)
        room_nid, snapshot_nid = await self._state_for(room_id, user_id)
        if at is not None:
            place = parse_token(at)
            snapshot_nid = await self._snapshot_after(room_nid, place.position)
        events = await self._database.read_long(self._state_events, snapshot_nid)
        return [
            event
            for event in events
            if event.type == MEMBER and _is_wanted(event.membership, membership, not_membership)
        ]

    async def _all_members(self, room_id: str) -> None:
        """Wait for the members of a room that was only just joined through another server."""
        room = await self._rooms.find(room_id)
        if room is not None:
            await self._remote.completing.whole(room)

    async def joined_members(self, room_id: str, user_id: str) -> list[RoomEvent]:
        room = await self._rooms.find(room_id)
        current = await self._viewer.membership(room.room_nid, user_id) if room else None
        if current is None or current.membership != "join":
            raise forbidden("You are not in this room.")
        return await self.members(room_id, user_id, None, "join", None)

    # --- events ---

    async def event(self, room_id: str, user_id: str, event_id: str) -> RoomEvent:
        """An event that the user may see; ``M_NOT_FOUND`` where it is not there for them."""
        row = await self._viewer.event_row(room_id, event_id)
        if row is None or row.status != event_table.ACCEPTED or not await self._may_see(user_id, row):
            raise not_found("There is no such event that you may see.")
        return (await self._shown.show([row]))[0]

    async def _may_see(self, user_id: str, row: EventRow) -> bool:
        """Whether a user may see an event; one known apart from the timeline, where it is part of the state."""
        if row.position:
            return bool(await self._viewer.visible_rows(user_id, [row]))
        if row.slot_nid is None:
            return False
        try:
            _, snapshot_nid = await self._state_for(row.room_id, user_id)
        except MatrixError:
            return False
        state = await self._database.read(self._snapshots.look_up, snapshot_nid, [row.slot_nid])
        return state.get(row.slot_nid) == row.event_nid

    async def events(self, event_ids: list[str]) -> list[RoomEvent]:
        return await self._shown.show(await self._store.rows(event_ids))

    async def visible(self, user_id: str, events: Sequence[RoomEvent]) -> list[RoomEvent]:
        """Those of `events` that history visibility lets the user see."""
        rows = {row.event_id: row for row in await self._store.rows([event.event_id for event in events])}
        seen: set[str] = set()
        for room_id in {row.room_id for row in rows.values()}:
            of_room = [row for row in rows.values() if row.room_id == room_id]
            seen.update(row.event_id for row in await self._viewer.visible_rows(user_id, of_room))
        return [event for event in events if event.event_id in seen]

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
        start = await self.start(room.room_nid, direction, from_token)
        if membership is not None and membership.membership != "join" and direction == "b":
            left = await self._place_of(room.room_nid, membership.position)
            start = min(start, left)
        rows, following = await self._page_rows(room.room_nid, user_id, direction, start, to_token, limit, filter)
        events = await self._shown.show(rows)
        state = await self._senders_of(room.room_nid, rows, events) if lazy_load_members else []
        if following is None and rows and direction == "f" and to_token is None and _is_in(membership):
            # The newest event for now: more will come after it.
            following = _after(rows[-1], direction)
        end = following and timeline_token(*following)
        return Page(events=events, start=timeline_token(*start), end=end, state=state)

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
        found = await self._database.read(event_table.last_place, room_nid, position)
        return Place(found.depth, found.position) if found else Place(0, 0)

    async def _page_rows(
        self,
        room_nid: int,
        user_id: str,
        direction: str,
        start: Place,
        to_token: str | None,
        limit: int,
        filter: EventFilter | None,
    ) -> tuple[list[EventRow], Place | None]:
        """Visible, chosen events from `start` on, and the place to go on from; `None` at the end."""
        limit = max(1, min(limit, PAGE_LIMIT))
        stop = await self.start(room_nid, direction, to_token) if to_token is not None else None
        read = event_table.history_back if direction == "b" else event_table.history_on
        kept: list[EventRow] = []
        place = start
        for _ in range(SCAN_LIMIT):
            batch = await self._database.read(read, room_nid, *place, limit + 1)
            more = len(batch) > limit
            batch = batch[:limit]
            if stop is not None:
                within = [row for row in batch if before_stop(row, stop, direction)]
                more, batch = more and len(within) == len(batch), within
            visible = await self._viewer.visible_rows(user_id, batch)
            wanted = [row for row in visible if filter is None or await self._is_chosen(row, filter)]
            room_left = limit - len(kept)
            kept += wanted[:room_left]
            if len(wanted) > room_left:
                return kept, _after(kept[-1], direction)
            if not more:
                return kept, None
            place = _after(batch[-1], direction)
            if len(kept) >= limit:
                return kept, place
        return kept, place

    async def _is_chosen(self, row: EventRow, filter: EventFilter) -> bool:
        return chosen((await self._shown.show([row]))[0], filter)

    async def _senders_of(
        self, room_nid: int, rows: Sequence[EventRow], events: Sequence[RoomEvent]
    ) -> list[RoomEvent]:
        """The member events of the senders of a page, as of its events."""
        if not rows:
            return []
        senders = list(dict.fromkeys(event.sender for event in events))
        newest = max(rows, key=lambda row: (row.depth, row.position))
        snapshot = await self._snapshot_after(room_nid, newest.position)
        return await self._shown.by_nid(await self._look_up(snapshot, [(MEMBER, sender) for sender in senders]))

    async def context(
        self, room_id: str, user_id: str, event_id: str, limit: int, filter: EventFilter | None, lazy_load_members: bool
    ) -> Context:
        """An event with what came before and after it; `limit` counts both sides together."""
        room = await self._rooms.find(room_id)
        if room is None:
            raise forbidden("You are not in this room.")
        await self._viewer.require_member(room.room_nid, user_id)
        row = await self._viewer.event_row(room_id, event_id)
        if row is None or not await self._viewer.visible_rows(user_id, [row]):
            raise not_found("There is no such event that you may see.")
        here = Place(row.depth, row.position)
        just_before = Place(row.depth, row.position - 1)
        half = max(0, min(limit, PAGE_LIMIT)) // 2
        before = after = ([], None)  # type: tuple[list[EventRow], Place | None]
        if half:
            before = await self._page_rows(room.room_nid, user_id, "b", just_before, None, half, filter)
        if limit - half > 0:
            after = await self._page_rows(room.room_nid, user_id, "f", here, None, limit - half, filter)
        last = after[0][-1] if after[0] else row
        state = await self.state_at(room_id, last.position)
        shown_before, shown_after = await self._shown.show(before[0]), await self._shown.show(after[0])
        event = (await self._shown.show([row]))[0]
        if lazy_load_members:
            senders = {other.sender for other in [event, *shown_before, *shown_after]}
            state = [item for item in state if item.type != MEMBER or item.state_key in senders]
        first = before[0][-1] if before[0] else row
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


def _membership(row: room_table.MembershipRow) -> Membership:
    return Membership(
        room_id=row.room_id,
        user_id=row.user_id,
        membership=row.membership,
        event_id=row.event_id,
        sender=row.sender,
        position=row.position,
        forgotten=bool(row.forgotten),
    )


def _is_in(membership: room_table.MembershipRow | None) -> bool:
    return membership is not None and membership.membership == "join"


def _after(row: EventRow, direction: str) -> Place:
    """The place just beyond an event in a direction: reading goes on there."""
    return Place(row.depth, row.position - 1) if direction == "b" else Place(row.depth, row.position)


def before_stop(row: EventRow, stop: Place, direction: str) -> bool:
    place = Place(row.depth, row.position)
    return place > stop if direction == "b" else place <= stop


def _is_wanted(membership: str | None, wanted: str | None, unwanted: str | None) -> bool:
    """Whether a filter by membership lets a member through; given both ways, either is enough."""
    if wanted is None and unwanted is None:
        return True
    return (wanted is not None and membership == wanted) or (unwanted is not None and membership != unwanted)

"""Questions about rooms: who is in them, what they hold, what happened.

Every method only reads.  Short reads run where they are asked; what may touch
many rows goes to a reader thread.
"""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from ..database.engines import Database
from ..database.statements import Transaction
from ..matrix.errors import MatrixError, forbidden, not_found
from ..matrix.events import shown_json, stripped
from .api import ChangedSlot, EventFilter, LiveEvents, Membership, RoomEvent, RoomView
from .current import STRIPPED_STATE
from .paging import TokenPlace, chosen, parse_token
from .remote.rooms import RemoteRooms
from .room import Rooms
from .snapshots import Snapshots
from .store import EventStore, RoomEvents
from .tables import events as event_table
from .tables import rooms as room_table
from .tables.events import EventRow
from .tables.names import Names, Slot
from .viewing import Viewer

MEMBER = "m.room.member"

TIMELINE_LIMIT = 1000
"""Live events that are told at once, at the most."""

SCANNED_EACH = 5
"""How many events are read for each one wanted, where a filter lets only some through."""


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
        room = await self._rooms.place(room_id)
        row = await self._viewer.membership(room.room_nid, user_id) if room else None
        return _membership(row) if row else None

    async def local_memberships(self, room_id: str) -> list[Membership]:
        """The memberships of this server's users in a room."""
        room = await self._rooms.place(room_id)
        rows = await self._database.read(room_table.local_memberships, room.room_nid) if room else []
        return [_membership(row) for row in rows]

    async def joined_users(self, room_id: str) -> list[str]:
        room = await self._rooms.place(room_id)
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
        room = await self._rooms.known(room_id)
        return await self._database.read_long(self._view, room.room_nid, timeline_limit)

    async def _view(self, txn: Transaction, room_nid: int, limit: int) -> RoomView:
        row, newest = await self._newest_with_state(txn, room_nid, limit + 1)
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

    async def _newest_with_state(
        self, txn: Transaction, room_nid: int, count: int
    ) -> tuple[room_table.RoomRow, list[EventRow]]:
        """The newest live events, and the room with the state that it has after them.

        PostgreSQL may store an event between two statements: then the state is not that after the newest one.
        """
        row = await room_table.room_by_nid(txn, room_nid)
        while True:
            newest = await event_table.newest_live(txn, room_nid, 0, 2**62, count)
            now = await room_table.room_by_nid(txn, room_nid)
            if row is None or now is None:
                raise not_found("There is no such room here.")
            if (row.snapshot_nid, row.rewritten, row.standing) == (now.snapshot_nid, now.rewritten, now.standing):
                return row, newest
            row = now

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
        room = await self._rooms.known(room_id)
        told = await self._remote.stubs.shown(room.room_nid, user_id)
        if told is not None:
            return told
        slots = [*STRIPPED_STATE, (MEMBER, user_id)]
        nids = await self.look_up(room.snapshot_nid, slots)
        events = await self._store.by_nid(nids)
        inviter = next((event.sender for event in events.values() if event.state_key == user_id), None)
        if inviter is not None and inviter != user_id:
            found = await self.look_up(room.snapshot_nid, [(MEMBER, inviter)])
            events |= await self._store.by_nid(found)
        return [shown_json(stripped(event), event.version) for event in events.values()]

    async def pdus(self, event_ids: Sequence[str]) -> dict[str, bytes]:
        """Stored events as they travel between servers."""
        return {row.event_id: row.pdu for row in await self._store.rows(event_ids)}

    async def timeline(self, room_id: str, after: int, upto: int, limit: int, filter: EventFilter | None) -> LiveEvents:
        """The newest `limit` live events in (after, upto], none of them from before a gap."""
        room = await self._rooms.known(room_id)
        rows = await self._database.read(
            event_table.newest_live,
            room.room_nid,
            after,
            upto,
            min(limit, TIMELINE_LIMIT) * (SCANNED_EACH if filter else 1) + 1,
        )
        gap = next((place for place, row in enumerate(rows, 1) if row.gap), None)
        shown = await self._shown.show(rows[:gap])
        kept = [event for event in shown if chosen(event, filter)]
        more = len(kept) > limit or (len(shown) > limit and len(kept) < len(shown))
        return LiveEvents(events=kept[:limit][::-1], more=more or gap is not None, cut=not more and gap is not None)

    async def state_at(self, room_id: str, position: int) -> list[RoomEvent]:
        """The state of the room after the last live event up to `position`."""
        room = await self._rooms.known(room_id)
        nid = await self.snapshot_after(room.room_nid, position)
        return await self._database.read_long(self._state_events, nid)

    async def state_changes(self, room_id: str, after: int, upto: int) -> list[ChangedSlot]:
        """What differs between the states at two places of the live stream."""
        room = await self._rooms.known(room_id)
        before = await self.snapshot_after(room.room_nid, after)
        now = await self.snapshot_after(room.room_nid, upto)
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

    async def snapshot_after(self, room_nid: int, position: int) -> int:
        """The snapshot that holds after the last event up to a position."""
        last = await self._database.read(event_table.last_place, room_nid, position)
        return last.current_nid if last is not None else 0

    async def _snapshot_at(self, room_nid: int, place: TokenPlace) -> int:
        """The snapshot that holds at the place of a token; history fetched later is not in the order of positions."""
        if place.depth is None or place.position > 0:
            return await self.snapshot_after(room_nid, place.position)
        found = await self._database.read(event_table.place_back, room_nid, place.depth, place.position, 0)
        return found.current_nid if found is not None else 0

    async def _state_events(self, txn: Transaction, snapshot_nid: int) -> list[RoomEvent]:
        state = await self._snapshots.state(txn, snapshot_nid)
        return await self._shown.show_in(txn, await event_table.events_by_nid(txn, list(state.values())))

    # --- state and members for a user ---

    async def _state_for(self, room_id: str, user_id: str) -> tuple[int, int]:
        """The room's number and the snapshot that the user may see: the current one, or that of their leaving.

        Who is banned has not just left: they are shown what the world is, or what /sync told them.
        """
        room = await self._rooms.place(room_id)
        if room is None:
            raise forbidden("You are not in this room.")
        membership = await self._viewer.require_member(room.room_nid, user_id)
        if membership is not None and membership.membership == "ban":
            await self._viewer.require_open(room.room_nid)
        if membership is None or membership.membership == "join":
            return room.room_nid, room.snapshot_nid
        return room.room_nid, await self.snapshot_after(room.room_nid, membership.position)

    async def current_state(self, room_id: str, user_id: str) -> list[RoomEvent]:
        """The state that the user may see: current, or as it was when they left."""
        _, snapshot_nid = await self._state_for(room_id, user_id)
        return await self._database.read_long(self._state_events, snapshot_nid)

    async def state_event(self, room_id: str, user_id: str, type: str, state_key: str) -> RoomEvent:
        _, snapshot_nid = await self._state_for(room_id, user_id)
        found = await self.look_up(snapshot_nid, [(type, state_key)])
        if not found:
            raise not_found("The room has no such state.")
        return (await self._shown.by_nid(found))[0]

    async def look_up(self, snapshot_nid: int, slots: Sequence[Slot]) -> list[int]:
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
            snapshot_nid = await self._snapshot_at(room_nid, parse_token(at))
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


def _is_wanted(membership: str | None, wanted: str | None, unwanted: str | None) -> bool:
    """Whether a filter by membership lets a member through; given both ways, either is enough."""
    if wanted is None and unwanted is None:
        return True
    return (wanted is not None and membership == wanted) or (unwanted is not None and membership != unwanted)

"""Which events a user may see, decided from the state at each.

The two parts of the state that count, history visibility and the user's own
membership, are looked up in the snapshot that each event stands on; events on
the same snapshot share the look-up (Client-Server API, "Room History
Visibility").

Where history is shared, it counts too whether the user has joined since: one who is joined has,
whatever the event.  For others that is a matter of positions in the live stream; events that
were fetched later, or are known apart from the timeline, are compared by their depth.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol, TypeVar

import orjson

from ..database.engines import Database
from ..database.statements import Transaction
from ..matrix.errors import forbidden
from ..matrix.events import Event
from ..matrix.visibility import HISTORY_VISIBILITY, MEMBER, Visibility, may_see, may_see_event, visibility_from
from .snapshots import Snapshots
from .store import EventStore
from .tables.edges import GapRow
from .tables.events import EventRow, event_by_id
from .tables.names import Names
from .tables.rooms import MemberEventRow, MembershipRow, member_events_of, membership_in, room_by_nid


class Joined(NamedTuple):
    """The newest join of a user: its place, and whether it is current."""

    depth: int
    position: int
    is_current: bool = False

    def follows(self, row: Seen) -> bool:
        """Whether the join happened after an event.

        What happened on another branch before the room heard of the join counts as earlier for one who is joined.
        """
        if self.is_current:
            return True
        if row.position > 0 and self.position > 0:
            return row.position < self.position
        return row.depth < self.depth


class Seen(Protocol):
    """What decides who may see an event: fields as of `tables.events.EventRow`."""

    @property
    def event_nid(self) -> int: ...
    @property
    def room_nid(self) -> int: ...
    @property
    def depth(self) -> int: ...
    @property
    def position(self) -> int: ...
    @property
    def snapshot_nid(self) -> int: ...
    @property
    def slot_nid(self) -> int | None: ...


S = TypeVar("S", bound=Seen)


class Viewer:
    """Decides for one database of rooms."""

    def __init__(self, database: Database, names: Names, snapshots: Snapshots, store: EventStore) -> None:
        self._database = database
        self._names = names
        self._snapshots = snapshots
        self._store = store

    async def visible_rows(self, user_id: str, rows: Sequence[S]) -> list[S]:
        """Those of `rows`, all of one room, that the user may see."""
        if not rows:
            return []
        room_nid = rows[0].room_nid
        current = await self.membership(room_nid, user_id)
        forgotten = current is not None and current.forgotten
        sides = await self._sides({row.snapshot_nid for row in rows}, user_id)
        setting = await self._setting(rows, user_id)
        last_join = await self._last_join(room_nid, user_id, current)
        if forgotten:
            last_join = None
        visible = []
        verdicts: dict[tuple[int, bool], bool] = {}
        for row in rows:
            joined_since = last_join is not None and last_join.follows(row)
            after = _after(setting[row.event_nid]) if row.event_nid in setting else None
            # What changes neither side is judged like all others on the same snapshot.
            verdict = verdicts.get((row.snapshot_nid, joined_since)) if after is None else None
            if verdict is None:
                visibility, membership = sides[row.snapshot_nid]
                visibility_after, membership_after = after or (None, None)
                verdict = may_see_event(
                    visibility=visibility,
                    membership=None if forgotten else membership,
                    joined_since=joined_since,
                    visibility_after=visibility_after,
                    membership_after=None if forgotten else membership_after,
                )
                if after is None:
                    verdicts[row.snapshot_nid, joined_since] = verdict
            if verdict:
                visible.append(row)
        return visible

    async def may_see_before(self, user_id: str, gap: GapRow, room_nid: int) -> bool:
        """Whether a user may see events just before one, so that it is of use to fetch them."""
        current = await self.membership(room_nid, user_id)
        if current is None or current.forgotten or await self._last_join(room_nid, user_id, current) is None:
            return False
        visibility, membership = (await self._sides([gap.snapshot_nid], user_id))[gap.snapshot_nid]
        return may_see(visibility, membership, joined_since=True)

    async def membership(self, room_nid: int, user_id: str) -> MembershipRow | None:
        """The user's current membership in a room."""
        user_nid = await self._database.read(self._names.find, user_id)
        if user_nid is None:
            return None
        return await self._database.read(membership_in, user_nid, room_nid)

    async def require_member(self, room_nid: int, user_id: str, peek: bool = True) -> MembershipRow | None:
        """The user's membership, for one who may look into the room: who is or was joined and has not forgotten
        it, or anybody if the room is readable by the world.  ``M_FORBIDDEN`` for others."""
        membership = await self.membership(room_nid, user_id)
        if membership is not None and membership.forgotten:
            membership = None
        if membership is not None and membership.membership == "join":
            return membership
        if membership is not None and await self._last_join(room_nid, user_id, membership) is not None:
            return membership
        if peek and await self._world_readable(room_nid):
            return None
        raise forbidden("You are not in this room.")

    async def require_open(self, room_nid: int) -> None:
        """``M_FORBIDDEN`` unless the room is readable by the world."""
        if not await self._world_readable(room_nid):
            raise forbidden("You are banned from this room.")

    async def _world_readable(self, room_nid: int) -> bool:
        return await self._database.read(self._current_visibility, room_nid) is Visibility.WORLD_READABLE

    async def _current_visibility(self, txn: Transaction, room_nid: int) -> Visibility:
        room = await room_by_nid(txn, room_nid)
        slot = await self._names.find_slot(txn, (HISTORY_VISIBILITY, ""))
        if room is None or slot is None:
            return Visibility.SHARED
        found = await self._snapshots.look_up(txn, room.snapshot_nid, [slot])
        events = await self._store.by_nid(found.values())
        return visibility_from(events[found[slot]].content if slot in found else None)

    async def _sides(self, snapshot_nids: Iterable[int], user_id: str) -> dict[int, tuple[Visibility, str | None]]:
        """For each snapshot, the visibility and the user's membership in it."""
        slots = await self._database.read(self._slots, user_id)
        found = await self._database.read(self._look_up_all, snapshot_nids, [slot for slot in slots if slot])
        events = await self._store.by_nid({nid for state in found.values() for nid in state.values()})
        sides = {}
        for snapshot_nid, state in found.items():
            visibility_nid, member_nid = (state.get(slot or 0) for slot in slots)
            sides[snapshot_nid] = (
                visibility_from(events[visibility_nid].content if visibility_nid else None),
                events[member_nid].membership if member_nid else None,
            )
        return sides

    async def _setting(self, rows: Sequence[Seen], user_id: str) -> dict[int, Event]:
        """Those events that set one of the two sides themselves, by number."""
        slots = [slot for slot in await self._database.read(self._slots, user_id) if slot]
        nids = [row.event_nid for row in rows if row.slot_nid in slots]
        return await self._store.by_nid(nids) if nids else {}

    async def _slots(self, txn: Transaction, user_id: str) -> tuple[int | None, int | None]:
        visibility = await self._names.find_slot(txn, (HISTORY_VISIBILITY, ""))
        return visibility, await self._names.find_slot(txn, (MEMBER, user_id))

    async def _look_up_all(
        self, txn: Transaction, snapshot_nids: Iterable[int], slots: Sequence[int]
    ) -> dict[int, dict[int, int]]:
        return {nid: await self._snapshots.look_up(txn, nid, slots) for nid in snapshot_nids}

    async def _last_join(self, room_nid: int, user_id: str, current: MembershipRow | None) -> Joined | None:
        """The newest join of the user, `None` where there never was one."""
        if current is None:
            return None
        if current.membership == "join":
            return Joined(0, current.position, is_current=True)
        slot = await self._database.read(self._names.find_slot, (MEMBER, user_id))
        if slot is None:
            return None
        return newest_join(await self._database.read(member_events_of, room_nid, [slot]))

    async def event_row(self, room_id: str, event_id: str) -> EventRow | None:
        """A stored event of the room."""
        row = await self._database.read(event_by_id, event_id)
        return row if row is not None and row.room_id == room_id else None


def newest_join(rows: Iterable[MemberEventRow]) -> Joined | None:
    """The first join among member events, which come newest first."""
    for row in rows:
        if orjson.loads(row.pdu)["content"].get("membership") == "join":
            return Joined(row.depth, row.position)
    return None


def _after(event: Event) -> tuple[Visibility | None, str | None]:
    """What an event sets of the two sides."""
    if event.type == HISTORY_VISIBILITY:
        return visibility_from(event.content), None
    return None, event.membership

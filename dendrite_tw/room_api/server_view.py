"""Which events other servers may be given, decided from the state at each.

Server-Server API, "Backfilling and retrieving missing events"; Client-Server API, "Room History Visibility".
A server may see what one of its users may.  Of an event that it may not see, one that is in the room is given the
redacted form, so that it can go on to what came before; one that has left is given nothing.  Events of a user of
this server who wanted to be erased are redacted for servers that were not in the room when they were sent
(Client-Server API, "Account deactivation").
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from ..database.engines import Database
from ..database.statements import Transaction
from ..matrix.errors import forbidden
from ..matrix.events import Event, redact_event
from ..matrix.identifiers import server_name_of
from ..matrix.visibility import HISTORY_VISIBILITY, MEMBER, Visibility, server_may_see_event, visibility_from
from ..user_api.api import UserAPI
from .room import Room
from .servers import Servers
from .snapshots import Snapshots
from .steps import is_local
from .store import stored_event
from .tables.events import REJECTED, EventRow, events_by_nid
from .tables.names import Names
from .tables.rooms import PARTIAL, member_events_of, member_slots
from .viewing import Joined, newest_join

SLOTS_AT_ONCE = 200
"""Members whose places are looked up in a state before it is asked whether one of them was joined."""

OPEN = (Visibility.WORLD_READABLE, Visibility.SHARED)


class Sight(NamedTuple):
    """How an event looks to a server: whether it may see it, and whether it was in the room at the time."""

    visible: bool
    was_in: bool


class ServerViewer:
    """Decides for the rooms of one database."""

    def __init__(
        self,
        *,
        database: Database,
        names: Names,
        snapshots: Snapshots,
        servers: Servers,
        users: UserAPI,
        server_name: str,
    ) -> None:
        self._database = database
        self._names = names
        self._snapshots = snapshots
        self._servers = servers
        self._users = users
        self._server_name = server_name

    async def is_in(self, room: Room, server: str) -> bool:
        """Whether the server has a joined user in the room now."""
        return await self._servers.has(room.room_nid, server)

    async def require(self, room: Room, server: str) -> bool:
        """Whether the server is in the room now; 403 where it neither is nor ever was."""
        if await self.is_in(room, server):
            return True
        if await self._database.read_long(self._left, room.room_nid, server) is None:
            raise forbidden("Your server is not in this room.")
        return False

    async def shown(self, room: Room, server: str, rows: Sequence[EventRow]) -> dict[str, bytes]:
        """Those of `rows`, all of the room, that a server may be given, as PDUs by ID; rejected ones never."""
        events = [(row, stored_event(row)) for row in rows if row.status != REJECTED]
        if not events:
            return {}
        is_in = await self.is_in(room, server)
        erased = await self._erased(event for _, event in events)
        sights = await self._database.read_long(self._sights, room.room_nid, server, is_in, events, erased)
        found = {}
        for row, event in events:
            sight = sights[row.event_nid]
            if sight.visible and (event.sender not in erased or sight.was_in):
                found[row.event_id] = row.pdu
            elif sight.visible or (is_in and room.standing != PARTIAL):
                found[row.event_id] = redact_event(event).pdu
        return found

    async def _erased(self, events: Iterable[Event]) -> frozenset[str]:
        """Those of the senders who wanted to be erased."""
        local = {event.sender for event in events if is_local(event.sender, self._server_name)}
        accounts = [await self._users.account(user_id) for user_id in local]
        return frozenset(account.user_id for account in accounts if account is not None and account.erased)

    # --- looking ---

    async def _sights(
        self,
        txn: Transaction,
        room_nid: int,
        server: str,
        is_in: bool,
        events: Sequence[tuple[EventRow, Event]],
        erased: Collection[str],
    ) -> dict[int, Sight]:
        """How each event looks to a server, by number."""
        visibilities = await self._visibilities(txn, {row.snapshot_nid for row, _ in events})
        asked = {
            row.snapshot_nid
            for row, event in events
            if not is_in or visibilities[row.snapshot_nid] not in OPEN or event.sender in erased
        }
        slots = await self._slots(txn, room_nid, server) if asked else []
        memberships = await self._memberships(txn, asked, slots)
        left = None if is_in or not slots else newest_join(await member_events_of(txn, room_nid, slots))
        return {
            row.event_nid: _sight(
                row, event, server, is_in, left, visibilities[row.snapshot_nid], memberships.get(row.snapshot_nid, ())
            )
            for row, event in events
        }

    async def _left(self, txn: Transaction, room_nid: int, server: str) -> Joined | None:
        """The newest join of a user of a server."""
        slots = await self._slots(txn, room_nid, server)
        return newest_join(await member_events_of(txn, room_nid, slots)) if slots else None

    async def _slots(self, txn: Transaction, room_nid: int, server: str) -> list[int]:
        """The places of the member events of a server's users, those who are joined first."""
        rows = await member_slots(txn, room_nid, f"%:{server}")
        rows = [row for row in rows if ":" in row.user_id and server_name_of(row.user_id) == server]
        rows.sort(key=lambda row: row.membership != "join")
        return [row.slot_nid for row in rows]

    async def _visibilities(self, txn: Transaction, snapshot_nids: Collection[int]) -> dict[int, Visibility]:
        """The history visibility in each state."""
        slot = await self._names.find_slot(txn, (HISTORY_VISIBILITY, ""))
        held = dict.fromkeys(snapshot_nids, 0)
        for nid in snapshot_nids if slot is not None else ():
            held[nid] = (await self._snapshots.look_up(txn, nid, [slot or 0])).get(slot or 0, 0)
        rows = await events_by_nid(txn, list(set(held.values()) - {0}))
        set_by = {row.event_nid: visibility_from(stored_event(row).content) for row in rows}
        return {nid: set_by.get(event_nid, Visibility.SHARED) for nid, event_nid in held.items()}

    async def _memberships(
        self, txn: Transaction, snapshot_nids: Collection[int], slots: Sequence[int]
    ) -> dict[int, set[str]]:
        """In each state, the memberships of the users with these slots; ``join`` alone if one of them has that."""
        order = list(slots)
        known: dict[int, str] = {}
        found: dict[int, set[str]] = {}
        for snapshot_nid in snapshot_nids:
            memberships: set[str] = set()
            found[snapshot_nid] = memberships
            for start in range(0, len(order), SLOTS_AT_ONCE):
                held = await self._snapshots.look_up(txn, snapshot_nid, order[start : start + SLOTS_AT_ONCE])
                unread = [nid for nid in held.values() if nid not in known]
                for row in await events_by_nid(txn, unread) if unread else ():
                    known[row.event_nid] = stored_event(row).membership or ""
                memberships.update(known.get(nid, "") for nid in held.values())
                if "join" in memberships:
                    # Who was joined here is likely to have been in the other states.
                    witness = next(slot for slot, nid in held.items() if known.get(nid) == "join")
                    order.remove(witness)
                    order.insert(0, witness)
                    break
        return found


def _sight(
    row: EventRow,
    event: Event,
    server: str,
    is_in: bool,
    left: Joined | None,
    visibility: Visibility,
    memberships: Collection[str],
) -> Sight:
    if not row.position and not row.snapshot_nid:
        # State known apart from the timeline: who is in the room has a right to its state.
        return Sight(is_in, is_in)
    visibility_after, membership_after = _after(event, server)
    visible = server_may_see_event(
        visibility=visibility,
        memberships=memberships,
        joined_since=left is not None and left.follows(row),
        in_room_now=is_in,
        visibility_after=visibility_after,
        membership_after=membership_after,
    )
    return Sight(visible, "join" in memberships or membership_after == "join")


def _after(event: Event, server: str) -> tuple[Visibility | None, str | None]:
    """What the event itself sets of what counts."""
    if event.type == HISTORY_VISIBILITY and event.state_key == "":
        return visibility_from(event.content), None
    if event.type == MEMBER and event.state_key is not None and is_local(event.state_key, server):
        return None, event.membership
    return None, None

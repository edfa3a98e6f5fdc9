"""What a server is told of a room when it comes in: the state, and what authorises it.

Server-Server API, ``PUT /send_join`` with ``omit_members``, ``PUT /send_knock``.  Events are named here
by their IDs; whoever makes the answer reads their bodies in pieces.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from pyroaring import BitMap

from ...database.engines import Database
from ...database.statements import Transaction
from ...matrix.events import Event
from ...matrix.identifiers import server_name_of
from ..api import TakenMembership
from ..current import STRIPPED_STATE
from ..graph import AuthChains
from ..room import Room
from ..snapshots import Snapshots
from ..store import EventStore
from ..tables import events as event_table
from ..tables import rooms as room_table
from ..tables.names import SlotRow, slots_by_nid
from .reading import StateReader

MEMBER = "m.room.member"

HEROES = 5
"""Members by whom clients name a room that has no name."""

SMALL = 100
"""Members with whom a room is told whole, though members might be left out: the rest would only be asked for next."""

NAMES = (("m.room.name", ""), ("m.room.canonical_alias", ""))

PIECE = 500


class JoinAnswers:
    """Makes the answers."""

    def __init__(
        self,
        *,
        database: Database,
        state: StateReader,
        snapshots: Snapshots,
        store: EventStore,
        chains: AuthChains,
        small: int = SMALL,
    ) -> None:
        self._database = database
        self._state = state
        self._snapshots = snapshots
        self._store = store
        self._chains = chains
        self.small = small

    async def joined(self, room: Room, event: Event, omit_members: bool) -> TakenMembership:
        """The state before a join that was taken, and its authority."""
        row = await self._store.row(event.event_id)
        assert row is not None
        state = await self._database.read_long(self._snapshots.state, row.snapshot_nid)
        servers: list[str] = []
        omitted: set[int] = set()
        if omit_members:
            omitted = await self._to_omit(room, event, state)
        if omitted:
            users = await self._database.read_long(room_table.joined_users, room.room_nid)
            servers = sorted({server_name_of(user_id) for user_id in users if user_id != event.sender})
        shown = [nid for slot, nid in state.items() if slot not in omitted]
        chain = await self._chains.union([*shown, row.event_nid])
        if omit_members:
            chain = chain - BitMap(shown)
        ids = await self._database.read_long(self._ids, {*shown, *chain})
        return TakenMembership(
            event=event.pdu,
            state=[ids[nid] for nid in sorted(shown)],
            auth_chain=[ids[nid] for nid in chain],
            members_omitted=bool(omitted),
            servers_in_room=servers,
        )

    async def _to_omit(self, room: Room, event: Event, state: Mapping[int, int]) -> set[int]:
        """The slots of members who are left out: all but whom the join concerns, and by whom the room is named."""
        slots = await self._database.read_long(self._slots, state.keys())
        members = {row.slot_nid: row.state_key for row in slots if row.type == MEMBER}
        if len(members) <= self.small:
            return set()
        told = {event.sender}
        if not any((row.type, row.state_key) in NAMES for row in slots):
            told.update(await self._database.read(self._heroes, room.room_nid, event.sender))
        return {slot for slot, user_id in members.items() if user_id not in told}

    async def _heroes(self, txn: Transaction, room_nid: int, but: str) -> list[str]:
        """The first members, or if there are none, the first of those who were."""
        for memberships in (["join", "invite"], ["leave", "ban"]):
            users = await room_table.first_members(txn, room_nid, memberships, HEROES + 1)
            if heroes := [user_id for user_id in users if user_id != but][:HEROES]:
                return heroes
        return []

    async def _slots(self, txn: Transaction, nids: Iterable[int]) -> list[SlotRow]:
        return [row for piece in _pieces(nids) for row in await slots_by_nid(txn, piece)]

    async def _ids(self, txn: Transaction, nids: Iterable[int]) -> dict[int, str]:
        rows = [row for piece in _pieces(nids) for row in await event_table.ids_of(txn, piece)]
        return {row.event_nid: row.event_id for row in rows}

    async def shown(self, room: Room) -> list[bytes]:
        """What one who is not in the room is shown of it, as whole events."""
        return [event.pdu for event in (await self._state(room, *STRIPPED_STATE)).values()]


def _pieces(nids: Iterable[int]) -> Iterator[list[int]]:
    every = list(nids)
    for start in range(0, len(every), PIECE):
        yield every[start : start + PIECE]

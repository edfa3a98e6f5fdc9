"""Memberships of our users in rooms that this server is not in: invites, knocks, and how they end.

Of such a room no state is known and no history, only the member event itself, which is kept apart
from any timeline, and what the room shows of itself.  It takes its turn among whatever else waits
for the room, so it never crosses a join that is being stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import orjson

from ...database.engines import Database
from ...database.statements import Transaction
from ...matrix.errors import MatrixError, forbidden
from ...matrix.events import Event, receive_event, stripped
from ...matrix.room_versions import RoomVersion
from ..adoption import Adoption
from ..input import RoomWriter
from ..room import Also, Arrival, Room, Way
from ..store import stored_event
from ..tables import elsewhere as table
from ..tables import events as event_table
from ..tables import rooms as room_table
from ..tables.names import Names

MOST = 1000
"""Invites and knocks to rooms elsewhere that one user may have: each keeps a room, and strangers send them."""


class Known(msgspec.Struct, frozen=True, eq=False):
    """A membership of one of our users as it stands, in whatever room."""

    membership: str
    event: Event
    via: str
    """Who can be asked about the room; empty if nothing is kept of it."""


class Stubs:
    """Stores them and finds them."""

    def __init__(self, *, database: Database, names: Names, writer: RoomWriter, adoption: Adoption) -> None:
        self._database = database
        self._names = names
        self._writer = writer
        self._adoption = adoption
        self.most = MOST

    async def room(self, room_id: str, version: RoomVersion) -> Room:
        """The room, made known as one that this server is not in if it was unknown.

        Raises `MatrixError` if it is known as one of another version, which would be another room.
        """
        room = await self._adoption.stub(room_id, version)
        if room.version is not version:
            raise MatrixError(400, "M_BAD_JSON", "The room is known as one of another version.")
        return room

    async def known(self, room: Room, user_id: str) -> Known | None:
        """The membership of a user."""
        return await self._database.read(self._known, room.room_nid, user_id)

    async def _known(self, txn: Transaction, room_nid: int, user_id: str) -> Known | None:
        user_nid = await self._names.find(txn, user_id)
        row = await room_table.membership_in(txn, user_nid, room_nid) if user_nid is not None else None
        if user_nid is None or row is None:
            return None
        (event,) = await event_table.events_by_nid(txn, [row.event_nid])
        kept = await table.invite_of(txn, user_nid, room_nid)
        return Known(row.membership, stored_event(event), kept.via if kept is not None else "")

    async def shown(self, room_nid: int, user_id: str) -> list[bytes] | None:
        """What the user is shown of a room elsewhere; `None` if nothing was kept for them."""
        user_nid = await self._database.read(self._names.find, user_id)
        kept = await self._database.read(table.invite_of, user_nid, room_nid) if user_nid is not None else None
        return None if kept is None else [orjson.dumps(one) for one in orjson.loads(kept.stripped)]

    async def check_crowd(self, user_id: str) -> None:
        """Raise 403 where a user has more invites and knocks elsewhere than anybody will look through."""
        user_nid = await self._database.read(self._names.find, user_id)
        if user_nid is not None and await self._database.read(table.count_invites, user_nid) >= self.most:
            raise forbidden(f"{user_id} has too many invites already.")

    async def put(self, event: Event, state: Sequence[Mapping[str, Any]], via: str) -> None:
        """Keep the invite or knock of a user of ours, with the stripped state that came with it."""
        shown = orjson.dumps([*state, stripped(event)])
        user_id = event.state_key or ""

        async def keep(txn: Transaction, room_nid: int) -> None:
            names = await self._names.intern(txn, [user_id])
            await table.put_invite(txn, names[user_id], room_nid, shown, via)

        await self._take(event, keep)

    async def end(self, event: Event) -> None:
        """Keep the leave or ban that ends an invite or a knock."""
        user_id = event.state_key or ""

        async def drop(txn: Transaction, room_nid: int) -> None:
            names = await self._names.intern(txn, [user_id])
            await table.delete_invite(txn, names[user_id], room_nid)

        await self._take(event, drop)

    async def _take(self, event: Event, also: Also) -> None:
        room = await self.room(event.room_id, event.version)
        known = await self.known(room, event.state_key or "")
        if known is None or known.event.event_id != event.event_id:
            received = receive_event(event.pdu, event.version)
            await self._writer.take(room, [Arrival(received, Way.ASIDE)], also=also)

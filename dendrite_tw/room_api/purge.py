"""Rooms are emptied and deleted.

A room goes through its own writer: in one transaction it stops to exist for
everybody, others are told on the stream, and the duty is noted to delete the
rest, which happens a bounded number of rows at a time and goes on after a
crash.  Media stay.
"""

from __future__ import annotations

import msgspec
from twisted.internet.defer import Deferred, DeferredList
from twisted.logger import Logger

from ..database.engines import Database
from ..database.outbox import Outbox
from ..database.statements import Transaction
from ..matrix.errors import invalid_param, not_found
from ..matrix.identifiers import is_user_id, server_name_of
from ..user_api.api import UserAPI
from .api import OUTPUT_ROOM_EVENT, PURGE_ROOM, MembershipChange, RoomAPI, RoomPurged
from .duties import PURGE, Duties
from .input import RoomWriter
from .room import Room, Rooms
from .tables import purging as table
from .tables import rooms as room_table
from .tables.duties import DutyRow
from .tables.names import Names

log = Logger()

ROWS_AT_ONCE = 500
LEAVES_AT_ONCE = 50


class Purges:
    """What administrators do to rooms as a whole."""

    def __init__(
        self,
        *,
        database: Database,
        outbox: Outbox,
        names: Names,
        rooms: Rooms,
        writer: RoomWriter,
        everywhere: RoomAPI,
        duties: Duties,
        users: UserAPI,
        server_name: str,
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._names = names
        self._rooms = rooms
        self._writer = writer
        self._everywhere = everywhere
        self._duties = duties
        self._users = users
        self._server_name = server_name

    async def evacuate_room(self, room_id: str) -> list[str]:
        """Make all users of this server leave a room; returns those who left."""
        room = await self._rooms.get(room_id)
        users = await self._database.read_long(room_table.local_members, room.room_nid)
        return await self._leave([(room_id, user_id) for user_id in users], room_first=False)

    async def evacuate_user(self, user_id: str) -> list[str]:
        """Make a user of this server leave all rooms, and decline what they are invited to; returns the rooms."""
        if not is_user_id(user_id) or server_name_of(user_id) != self._server_name:
            raise invalid_param("That is not a user of this server.")
        user_nid = await self._database.read(self._names.find, user_id)
        rows = await self._database.read(room_table.memberships_of, user_nid) if user_nid is not None else []
        wanted = [(row.room_id, user_id) for row in rows if row.membership in ("join", "invite", "knock")]
        return await self._leave(wanted, room_first=True)

    async def _leave(self, pairs: list[tuple[str, str]], room_first: bool) -> list[str]:
        """Let each user leave the room beside them; returns the rooms or the users for whom it succeeded."""
        affected = []
        for start in range(0, len(pairs), LEAVES_AT_ONCE):
            part = pairs[start : start + LEAVES_AT_ONCE]
            leaving = [Deferred.fromCoroutine(self._everywhere.change_membership(_leave_of(*pair))) for pair in part]
            for pair, (left, result) in zip(part, await DeferredList(leaving, consumeErrors=True), strict=True):
                if left:
                    affected.append(pair[0] if room_first else pair[1])
                else:
                    log.warn("{user} does not leave {room}: {why}", user=pair[1], room=pair[0], why=result)
        return affected

    async def empty_rooms(self) -> list[str]:
        """Rooms in which no user of this server is joined."""
        return await self._database.read_long(room_table.rooms_without_local_members)

    async def purge_room(self, room_id: str) -> None:
        """Delete a room, after all users of this server have left it; ``M_NOT_FOUND`` where it is unknown.

        Returns when the room is gone for everybody; the deletion goes on in the background.
        """
        room = await self._rooms.find(room_id)
        if room is None:
            raise not_found("This server does not know the room.")
        await self.evacuate_room(room_id)
        if room.closed:
            return

        async def begin(txn: Transaction, room_nid: int) -> None:
            await self._begin(txn, room)

        purged = Deferred.fromCoroutine(self._writer.submit(room, [], also=begin))
        room.closed = True
        try:
            await purged
        except BaseException:
            room.closed = False
            raise

    async def _begin(self, txn: Transaction, room: Room) -> None:
        await table.delete_room(txn, room.room_nid)
        await table.delete_aliases(txn, room.room_nid)
        await room_table.unpublish(txn, room.room_nid)
        await table.delete_open(txn, room.room_nid)
        await table.delete_invites(txn, room.room_nid)
        await room_table.delete_partial(txn, room.room_nid)
        await self._duties.note(txn, PURGE, room.room_nid, room.room_id)
        txn.after_commit(lambda: self._rooms.forget(room))
        await self._outbox.append(
            txn,
            OUTPUT_ROOM_EVENT,
            lambda position: msgspec.msgpack.encode(RoomPurged(room_id=room.room_id, position=position)),
            headers={"output_room_event_type": PURGE_ROOM, "room_id": room.room_id},
        )

    async def delete_rest(self, duty: DutyRow) -> None:
        """Delete what is left of a room, here and with the users' data."""
        freed = await self._users.forget_room(duty.subject)
        while done := await self._database.write(table.delete_some, duty.room_nid, ROWS_AT_ONCE):
            freed += done
        log.info("the room {room} is deleted: {freed} rows", room=duty.subject, freed=freed)


def _leave_of(room_id: str, user_id: str) -> MembershipChange:
    return MembershipChange(room_id=room_id, sender=user_id, target=user_id, action="leave")

"""Guests leave a room that closes to them.

Client-Server API, "Guest Access": if ``m.room.guest_access`` no longer says
``can_join``, the server makes its guests leave.
"""

from __future__ import annotations

from ..database.engines import Database
from ..matrix.errors import MatrixError
from ..user_api.api import TYPE_GUEST, UserAPI
from .actions import Actions
from .api import MembershipChange
from .room import Rooms
from .tables import rooms as room_table
from .tables.duties import DutyRow

GUEST_ACCESS = ("m.room.guest_access", "")


class Guests:
    """Sends guests out."""

    def __init__(self, *, database: Database, rooms: Rooms, actions: Actions, users: UserAPI) -> None:
        self._database = database
        self._rooms = rooms
        self._actions = actions
        self._users = users

    async def access_changed(self, duty: DutyRow) -> None:
        """Make all guests leave, unless the room lets them in by now."""
        row = await self._database.read(room_table.room_by_nid, duty.room_nid)
        room = await self._rooms.find(row.room_id) if row else None
        if room is None:
            return
        event = (await self._actions.state(room, GUEST_ACCESS)).get(GUEST_ACCESS)
        if event is not None and event.content.get("guest_access") == "can_join":
            return
        for user_id in await self._database.read_long(room_table.local_members, room.room_nid):
            account = await self._users.account(user_id)
            if account is None or account.account_type != TYPE_GUEST:
                continue
            change = MembershipChange(
                room_id=room.room_id,
                sender=user_id,
                target=user_id,
                action="leave",
                reason="Guests may not be in this room any more.",
            )
            try:
                await self._actions.change_membership(change)
            except MatrixError as error:
                if error.status >= 500:
                    raise

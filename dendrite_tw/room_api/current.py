"""The current state of rooms, and who wants to be invited: what several parts ask before they act."""

from __future__ import annotations

import orjson

from ..database.engines import Database
from ..matrix.errors import MatrixError, not_found
from ..matrix.events import Event
from ..matrix.identifiers import server_name_of
from ..user_api.api import UserAPI
from .room import Room
from .store import EventStore
from .tables.names import Names, Slot

MEMBER = "m.room.member"

STRIPPED_STATE = tuple(
    (type, "")
    for type in (
        "m.room.create",
        "m.room.join_rules",
        "m.room.canonical_alias",
        "m.room.avatar",
        "m.room.name",
        "m.room.topic",
        "m.room.encryption",
    )
)
"""What the specification recommends to show of a room before it is joined."""


class CurrentState:
    """Reads state events that are current."""

    def __init__(self, database: Database, names: Names, store: EventStore) -> None:
        self._database = database
        self._names = names
        self._store = store

    async def __call__(self, room: Room, *keys: Slot) -> dict[Slot, Event]:
        """The current state events at `keys`, where set."""
        nids = {}
        state = room.head.state
        for key in keys:
            slot = self._names.remembered_slot(key)
            if slot is None:
                slot = await self._database.read(self._names.find_slot, key)
            nid = state.get(slot) if slot else None
            if nid is not None:
                nids[key] = nid
        events = await self._store.by_nid(nids.values())
        return {key: events[nid] for key, nid in nids.items()}

    async def membership(self, room: Room, user_id: str) -> str | None:
        """A user's current membership."""
        event = (await self(room, (MEMBER, user_id))).get((MEMBER, user_id))
        return event.membership if event else None


class InvitePermission:
    """Whether users of this server may be invited; what those of others want, their servers say."""

    def __init__(self, users: UserAPI, server_name: str) -> None:
        self._users = users
        self._server_name = server_name

    async def check(self, user_id: str) -> None:
        """Raise 403 ``M_INVITE_BLOCKED`` where a user wants no invitations."""
        if server_name_of(user_id) != self._server_name:
            return
        blocked = await self._users.account_data(user_id, "", "m.invite_permission_config")
        if blocked is not None and orjson.loads(blocked).get("default_action") == "block":
            raise MatrixError(403, "M_INVITE_BLOCKED", f"{user_id} takes no invitations.")

    async def check_from_outside(self, user_id: str) -> None:
        """As `check`; 404 ``M_NOT_FOUND`` where there is no such user."""
        if not await self._users.is_local_account(user_id):
            raise not_found(f"There is no user {user_id}.")
        await self.check(user_id)

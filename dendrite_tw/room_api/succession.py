"""What goes over from a room to the one that takes its place.

Client-Server API, "Room Upgrades": local aliases and the place in the
directory, whoever sent the tombstone; and, when one of our users joins the new
room, the user's tags, push rules and direct chats.  A room takes another's
place if the tombstone of the old one and ``predecessor`` of the new one name
each other.
"""

from __future__ import annotations

from typing import Any

import orjson

from ..database.engines import Database
from ..database.statements import Transaction
from ..user_api.api import UserAPI
from .actions import MEMBER, Actions
from .room import Room, Rooms
from .steps import CREATE
from .tables import rooms as room_table
from .tables.duties import DutyRow

TOMBSTONE = ("m.room.tombstone", "")


class Succession:
    """Lets a new room inherit."""

    def __init__(self, *, database: Database, rooms: Rooms, actions: Actions, users: UserAPI) -> None:
        self._database = database
        self._rooms = rooms
        self._actions = actions
        self._users = users

    async def predecessor(self, room: Room) -> Room | None:
        """The room that `room` replaces, if this server knows it."""
        create = (await self._actions.state(room, CREATE)).get(CREATE)
        # Of a room that our users are only invited to no state is known.
        named = create.content.get("predecessor") if create is not None else None
        room_id = named.get("room_id") if isinstance(named, dict) else None
        if not isinstance(room_id, str) or room_id == room.room_id:
            return None
        return await self._rooms.find(room_id)

    async def _successor_id(self, room: Room) -> str | None:
        event = (await self._actions.state(room, TOMBSTONE)).get(TOMBSTONE)
        room_id = event.content.get("replacement_room") if event else None
        return room_id if isinstance(room_id, str) else None

    async def buried(self, duty: DutyRow) -> None:
        """A room has a tombstone: move its names, if the new room is known."""
        row = await self._database.read(room_table.room_by_nid, duty.room_nid)
        old = await self._rooms.find(row.room_id) if row else None
        new_id = await self._successor_id(old) if old else None
        new = await self._rooms.find(new_id) if new_id else None
        if (
            old is not None
            and new is not None
            and (before := await self.predecessor(new))
            and before.room_id == old.room_id
        ):
            await self.move_names(old, new)

    async def move_names(self, old: Room, new: Room) -> None:
        """Let the local aliases of the old room and its place in the directory be the new one's."""

        async def move(txn: Transaction) -> None:
            await room_table.move_aliases(txn, old.room_nid, new.room_nid)
            if await room_table.is_published(txn, old.room_nid) is not None:
                await room_table.publish(txn, new.room_nid)
                await room_table.unpublish(txn, old.room_nid)

        await self._database.write(move)

    async def joined(self, room: Room, user_id: str) -> None:
        """A local user has joined a room: bring along what they had in its predecessor."""
        old = await self.predecessor(room)
        if old is None:
            return
        if await self._successor_id(old) == room.room_id:
            await self.move_names(old, room)
        member = (await self._actions.state(old, (MEMBER, user_id))).get((MEMBER, user_id))
        if member is not None and member.membership in ("join", "leave"):
            await self._bring_along(user_id, old.room_id, room.room_id)

    async def _bring_along(self, user_id: str, old: str, new: str) -> None:
        await self._users.copy_push_rules_to_room(user_id, old, new)
        tags = _object(_object(await self._users.account_data(user_id, old, "m.tag")).get("tags"))
        have = _object(_object(await self._users.account_data(user_id, new, "m.tag")).get("tags"))
        for tag, content in tags.items():
            if tag not in have and isinstance(content, dict):
                await self._users.put_tag(user_id, new, tag, content)
        direct = _object(await self._users.account_data(user_id, "", "m.direct"))
        renewed = {
            other: [*rooms, new] if isinstance(rooms, list) and old in rooms and new not in rooms else rooms
            for other, rooms in direct.items()
        }
        if renewed != direct:
            await self._users.put_account_data(user_id, "", "m.direct", orjson.dumps(renewed))


def _object(value: Any) -> dict[str, Any]:
    """A JSON object in whatever form, empty where it is none."""
    if isinstance(value, bytes):
        value = orjson.loads(value)
    return value if isinstance(value, dict) else {}

"""Names of rooms and the public directory: aliases, publication, and what a room shows of itself.

Client-Server API, "Room Aliases", "Published Room Directory".
"""

from __future__ import annotations

from typing import Any

from ..database.engines import Database
from ..matrix.errors import MatrixError, forbidden, invalid_param, not_found
from ..matrix.identifiers import is_room_alias, server_name_of
from ..matrix.power_levels import PowerLevels
from ..world import Clock
from .actions import Actions
from .api import Alias, NewEvent, PublicRoom, RoomAPI
from .remote.aliases import RemoteAliases
from .remote.reading import ServersOf
from .room import Room, Rooms
from .tables import rooms as room_table
from .viewing import Viewer

SHOWN_STATE = tuple(
    (type, "")
    for type in (
        "m.room.create",
        "m.room.join_rules",
        "m.room.history_visibility",
        "m.room.guest_access",
        "m.room.name",
        "m.room.topic",
        "m.room.avatar",
        "m.room.canonical_alias",
        "m.room.encryption",
    )
)

PAGE_LIMIT = 500
ALIASES_OF_A_ROOM = 1000

SERVERS_TOLD = 50
"""Servers that are told with an alias."""


class Directory:
    """The aliases of this server and the rooms that it publishes."""

    def __init__(
        self,
        *,
        database: Database,
        rooms: Rooms,
        actions: Actions,
        everywhere: RoomAPI,
        viewer: Viewer,
        elsewhere: RemoteAliases,
        servers_of: ServersOf,
        clock: Clock,
        server_name: str,
    ) -> None:
        self._database = database
        self._elsewhere = elsewhere
        self._servers_of = servers_of
        self._rooms = rooms
        self._actions = actions
        self._everywhere = everywhere
        self._viewer = viewer
        self._clock = clock
        self._server_name = server_name

    # --- aliases ---

    async def resolve_alias(self, alias: str) -> Alias:
        """The room that an alias names; ``M_NOT_FOUND`` where none.  The alias may be one of another server."""
        if not is_room_alias(alias):
            raise invalid_param("That is not a room alias.")
        if server_name_of(alias) != self._server_name:
            return await self._elsewhere.resolve(alias)
        row = await self._database.read(room_table.alias_row, alias)
        if row is None:
            raise not_found(f"The alias {alias} names no room.")
        servers = dict.fromkeys([self._server_name, *await self._servers_of(row.room_id)])
        return Alias(row.alias, row.room_id, list(servers)[:SERVERS_TOLD], row.creator)

    async def aliases(self, room_id: str, user_id: str) -> list[str]:
        """The local aliases of a room, for one who is in it or may look into it."""
        room = await self._rooms.place(room_id)
        if room is None:
            raise forbidden("You are not in this room.")
        membership = await self._viewer.require_member(room.room_nid, user_id)
        if membership is not None and membership.membership != "join":
            raise forbidden("You are not in this room.")
        return await self._database.read(room_table.aliases_of, room.room_nid)

    async def create_alias(self, alias: str, room_id: str, creator: str) -> None:
        """Name a room; ``M_UNKNOWN`` (409) where the alias is taken."""
        if not is_room_alias(alias):
            raise invalid_param("That is not a room alias.")
        if server_name_of(alias) != self._server_name:
            raise invalid_param(f"Aliases of this server end in :{self._server_name}.")
        room = await self._known(room_id)
        if await self._actions.membership(room, creator) != "join":
            raise forbidden("You are not in this room.")
        if len(await self._database.read(room_table.aliases_of, room.room_nid)) >= ALIASES_OF_A_ROOM:
            raise forbidden("The room has too many aliases already.")
        made = await self._database.write(room_table.insert_alias, alias, room.room_nid, creator, self._clock.now_ms())
        if not made:
            raise MatrixError(409, "M_UNKNOWN", f"The alias {alias} is taken.")

    async def delete_alias(self, alias: str, user_id: str, is_admin: bool) -> None:
        """Take an alias away; for who made it, for who may change the room's canonical alias, and administrators."""
        row = await self._database.read(room_table.alias_row, alias)
        if row is None:
            raise not_found(f"The alias {alias} names no room.")
        room = await self._rooms.find(row.room_id)
        if not is_admin and user_id != row.creator and not (room and await self._may_name(room, user_id)):
            raise forbidden("You may not delete this alias.")
        await self._database.write(room_table.delete_alias, alias)
        if room is not None:
            await self._drop_canonical(room, alias, user_id)

    async def _may_name(self, room: Room, user_id: str) -> bool:
        """Whether the user may send ``m.room.canonical_alias``."""
        if await self._actions.membership(room, user_id) != "join":
            return False
        keys = ("m.room.create", ""), ("m.room.power_levels", "")
        state = await self._actions.state(room, *keys)
        levels = PowerLevels(state[keys[0]], state.get(keys[1]))
        return levels.user_level(user_id) >= levels.event_level("m.room.canonical_alias", True)

    async def _drop_canonical(self, room: Room, alias: str, user_id: str) -> None:
        """Leave a deleted alias out of the canonical alias event, where the user may."""
        key = ("m.room.canonical_alias", "")
        event = (await self._actions.state(room, key)).get(key)
        if event is None:
            return
        content = dict(event.content)
        if content.get("alias") == alias:
            del content["alias"]
        others = content.get("alt_aliases")
        if isinstance(others, list):
            content["alt_aliases"] = [other for other in others if other != alias]
        if content != event.content and await self._may_name(room, user_id):
            renamed = NewEvent(
                room_id=room.room_id, sender=user_id, type="m.room.canonical_alias", content=content, state_key=""
            )
            await self._everywhere.send(renamed)

    # --- the directory ---

    async def published(self, room_id: str) -> bool:
        room = await self._rooms.known(room_id)
        return await self._database.read(room_table.is_published, room.room_nid) is not None

    async def set_published(self, room_id: str, user_id: str, visible: bool, is_admin: bool) -> None:
        """List a room in the directory or take it out; for those who may name it, and administrators."""
        room = await self._known(room_id)
        if not is_admin and not await self._may_name(room, user_id):
            raise forbidden("You may not change whether this room is listed.")
        await self._database.write(room_table.publish if visible else room_table.unpublish, room.room_nid)

    async def public_rooms(
        self, limit: int, since: str | None, search: str | None, room_types: list[str | None] | None
    ) -> tuple[list[PublicRoom], str | None, str | None, int]:
        """A page of the directory, the largest rooms first; a token tells the number of rows before the page."""
        start = _place(since)
        limit = max(1, min(limit, PAGE_LIMIT))
        rows = await self._database.read_long(room_table.directory)
        if search is None and room_types is None:
            found = await self._entries([row.room_id for row in rows[start : start + limit]])
            total = len(rows)
        else:
            entries = await self._entries([row.room_id for row in rows])
            matching = [room for room in entries if _matches(room, search, room_types)]
            found, total = matching[start : start + limit], len(matching)
        following = f"r{start + limit}" if start + limit < total else None
        previous = f"r{max(0, start - limit)}" if start > 0 else None
        return found, following, previous, total

    async def _entries(self, room_ids: list[str]) -> list[PublicRoom]:
        return [await self.describe(room) for room in (await self._rooms.find_many(room_ids)).values()]

    async def _entry(self, room_id: str) -> PublicRoom | None:
        room = await self._rooms.find(room_id)
        return await self.describe(room) if room is not None else None

    async def room_version(self, room_id: str) -> str | None:
        """The version of a room; `None` where this server does not know it."""
        room = await self._rooms.place(room_id)
        return None if room is None else room.version

    async def room_summary(self, room_id: str) -> PublicRoom | None:
        """What a room shows of itself; `None` where this server does not know it."""
        return await self._entry(room_id)

    async def describe(self, room: Room) -> PublicRoom:
        """What a room shows of itself."""
        snapshot_nid = room.head.snapshot_nid
        if room.summary is None or room.summary[0] != snapshot_nid:
            room.summary = (snapshot_nid, await self._described(room))
        return room.summary[1]

    async def _described(self, room: Room) -> PublicRoom:
        state = await self._actions.state(room, *SHOWN_STATE)
        content = {type: event.content for (type, _), event in state.items()}
        rules = content.get("m.room.join_rules", {})
        return PublicRoom(
            room_id=room.room_id,
            num_joined_members=room.head.joined,
            world_readable=content.get("m.room.history_visibility", {}).get("history_visibility") == "world_readable",
            guest_can_join=content.get("m.room.guest_access", {}).get("guest_access") == "can_join",
            name=_text(content, "m.room.name", "name"),
            topic=_text(content, "m.room.topic", "topic"),
            canonical_alias=_text(content, "m.room.canonical_alias", "alias"),
            avatar_url=_text(content, "m.room.avatar", "url"),
            join_rule=_text(content, "m.room.join_rules", "join_rule") or "invite",
            room_type=_text(content, "m.room.create", "type"),
            room_version=room.version.identifier,
            encryption=_text(content, "m.room.encryption", "algorithm"),
            allowed_room_ids=_allowed(rules),
        )

    async def _known(self, room_id: str) -> Room:
        return await self._rooms.get(room_id)


def _text(content: dict[str, dict[str, Any]], type: str, key: str) -> str | None:
    value = content.get(type, {}).get(key)
    return value if isinstance(value, str) and value else None


def _allowed(rules: dict[str, Any]) -> list[str] | None:
    """The rooms whose members a restricted room lets in."""
    allow = rules.get("allow")
    if rules.get("join_rule") not in ("restricted", "knock_restricted") or not isinstance(allow, list):
        return None
    return [
        rule["room_id"]
        for rule in allow
        if isinstance(rule, dict) and rule.get("type") == "m.room_membership" and isinstance(rule.get("room_id"), str)
    ]


def _matches(room: PublicRoom, search: str | None, room_types: list[str | None] | None) -> bool:
    if room_types is not None and room.room_type not in room_types:
        return False
    if not search:
        return True
    needle = search.casefold()
    return any(needle in (text or "").casefold() for text in (room.name, room.topic, room.canonical_alias))


def _place(since: str | None) -> int:
    """The number of rows before the page that a token stands for; a letter before it tells clients that it is text."""
    if since is None:
        return 0
    if not (since.startswith("r") and since[1:].isascii() and since[1:].isdigit() and len(since) <= 10):
        raise invalid_param("since is not a token of this directory.")
    return int(since[1:])

"""A room is replaced by one of another version.

Client-Server API, "Room Upgrades".  The replacement is complete, with what is
carried over and the bans, before the tombstone is stored: a failure on the way
leaves the old room as it was.  Where the new room names the tombstone as its
predecessor's last event, the tombstone is made first and waits for the room
(`RoomWriter.submit`, ``before``).

What of the content of power levels has to change from version to version is
decided by `carried_levels`, which is pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from twisted.internet.defer import DeferredLock
from twisted.logger import Logger

from ..database.engines import Database, Unavailable
from ..matrix import canonical_json
from ..matrix.errors import MatrixError, forbidden, invalid_param, not_found
from ..matrix.events import Event
from ..matrix.identifiers import is_room_id, is_user_id
from ..matrix.power_levels import PowerLevels, parse_level, room_creators
from ..matrix.room_versions import ROOM_VERSIONS, RoomVersion
from ..user_api.api import UserAPI
from . import creation
from .actions import CANONICAL_ALIAS, MEMBER, Actions
from .api import NewRoom
from .input import RoomWriter
from .room import Draft, Room, Rooms
from .steps import CREATE, POWER_LEVELS
from .store import EventStore
from .succession import Succession
from .tables import names as name_table
from .tables import rooms as room_table

log = Logger()

CARRIED = (
    "m.room.server_acl",
    "m.room.encryption",
    "m.room.name",
    "m.room.avatar",
    "m.room.topic",
    "m.room.guest_access",
    "m.room.history_visibility",
    "m.room.join_rules",
)
"""State that the specification recommends to carry over; power levels apart."""

GUESTS_KEPT_OUT = {"m.room.guest_access": {"guest_access": "forbidden"}}
"""What a new room says where the old one is silent: the same, in so many words."""

TOMBSTONE = "m.room.tombstone"
SPACE = "m.space"
SPACE_CHILD = "m.space.child"
CREATORS_LIMIT = 100
CHUNK = 100
"""Events that are sent to the new room at a time: bans and the children of a space may be many."""

MAX_LEVEL = 2**53 - 1

_NAMED = ("users_default", "events_default", "state_default", "ban", "redact", "kick", "invite")


class Upgrades:
    """Carries out `RoomAPI.upgrade`; one at a time, so that nobody upgrades a room twice at once."""

    def __init__(
        self,
        *,
        database: Database,
        rooms: Rooms,
        actions: Actions,
        writer: RoomWriter,
        store: EventStore,
        succession: Succession,
        users: UserAPI,
    ) -> None:
        self._database = database
        self._rooms = rooms
        self._actions = actions
        self._writer = writer
        self._store = store
        self._succession = succession
        self._users = users
        self._lock = DeferredLock()

    async def upgrade(self, user_id: str, room_id: str, new_version: str, additional_creators: list[str] | None) -> str:
        """Replace a room; returns the new room's ID.

        ``M_UNSUPPORTED_ROOM_VERSION`` and ``M_INVALID_PARAM`` (400), ``M_FORBIDDEN`` (403) for those who may
        not send a tombstone, ``M_NOT_FOUND`` (404) for a room that is unknown.
        """
        version = ROOM_VERSIONS.get(new_version)
        if version is None:
            raise creation.unsupported_version(new_version)
        creators = _checked_creators(additional_creators, user_id) if version.privileged_creators else []
        room = await self._rooms.find(room_id) if is_room_id(room_id) else None
        if room is None:
            raise not_found("This server does not know the room.")
        async with self._lock:
            await self._check_permission(room, user_id)
            return await self._replace(room, user_id, version, creators)

    async def _check_permission(self, room: Room, user_id: str) -> None:
        state = await self._actions.state(room, CREATE, POWER_LEVELS)
        levels = PowerLevels(state[CREATE], state.get(POWER_LEVELS))
        joined = await self._actions.membership(room, user_id) == "join"
        if not joined or levels.user_level(user_id) < levels.event_level(TOMBSTONE, True):
            raise forbidden("You may not upgrade this room.")

    async def _replace(self, room: Room, user_id: str, version: RoomVersion, creators: list[str]) -> str:
        new = self._actions.fresh_room(version)
        if version.room_ids_as_hashes:
            await self._fill(room, new, user_id, creators, None)
            await self._writer.submit(room, [_tombstone(user_id, new.room_id)])
        else:

            async def fill(events: list[Event]) -> None:
                await self._fill(room, new, user_id, creators, events[0].event_id)

            await self._writer.submit(room, [_tombstone(user_id, new.room_id)], before=fill)
        try:
            await self._hand_down(room, new, user_id)
        except Unavailable as error:
            # The room has been replaced, and its names follow as a duty.
            log.warn("{old} is replaced without more: {error}", old=room.room_id, error=error.error)
        return new.room_id

    async def _hand_down(self, old: Room, new: Room, user_id: str) -> None:
        """What follows once the old room has its tombstone."""
        await self._succession.move_names(old, new)
        await self._move_canonical_alias(old, new, user_id)
        await self._silence(old, user_id)
        await self._succession.joined(new, user_id)

    # --- the new room ---

    async def _fill(self, old: Room, new: Room, user_id: str, creators: list[str], tombstone_id: str | None) -> None:
        """Make the new room, with everything that is carried over."""
        keys = [(type, "") for type in CARRIED]
        state = await self._actions.state(old, CREATE, POWER_LEVELS, *keys)
        nids = await self._database.read_long(room_table.member_events_with, old.room_nid, "ban")
        banned = [event for event in (await self._store.by_nid(nids)).values() if event.state_key is not None]
        is_space = state[CREATE].content.get("type") == SPACE
        children = [event for event in await self._current(old, SPACE_CHILD) if event.content] if is_space else []
        carried = {key: event for key, event in state.items() if key in keys and _storable(event, new.version)}

        def draft(type: str, content: Mapping[str, Any], state_key: str = "") -> Draft:
            return Draft(sender=user_id, type=type, content=dict(content), state_key=state_key)

        create = _create_content(old.room_id, tombstone_id, state[CREATE], new.version, user_id, creators)
        levels = carried_levels(state[CREATE], state.get(POWER_LEVELS), new.version, user_id, creators)
        contents = GUESTS_KEPT_OUT | {key[0]: event.content for key, event in carried.items()}
        types = [*contents, *([SPACE_CHILD] if children else [])]
        needed = needed_level(levels, types, [event.state_key or "" for event in banned])
        at_first = raised(levels, user_id, needed, new.version)
        first = [
            await self._actions.first_draft(new, draft(CREATE[0], create)),
            draft(MEMBER, {**await self._users.profile(user_id), "membership": "join"}, user_id),
            draft(POWER_LEVELS[0], at_first),
            *(draft(type, contents[type]) for type in CARRIED if type in contents),
        ]
        rest = [
            draft(event.type, event.content, event.state_key or "")
            for event in (*banned, *children)
            if _storable(event, new.version) and event.state_key not in {user_id, *creators}
        ]
        await self._writer.submit(new, first)
        for start in range(0, len(rest), CHUNK):
            await self._writer.submit(new, rest[start : start + CHUNK])
        if at_first != levels:
            await self._writer.submit(new, [draft(POWER_LEVELS[0], levels)])

    async def _current(self, room: Room, type: str) -> Sequence[Event]:
        """The current state events of a type, by their keys."""
        slots = await self._database.read_long(name_table.slots_of_type_in, type, room.room_nid)
        nids = [room.head.state[slot] for slot in slots if slot in room.head.state]
        return list((await self._store.by_nid(nids)).values())

    # --- the old room ---

    async def _move_canonical_alias(self, old: Room, new: Room, user_id: str) -> None:
        key = (CANONICAL_ALIAS, "")
        event = (await self._actions.state(old, key)).get(key)
        if event is None or not event.content:
            return
        await self._if_allowed(new, Draft(user_id, CANONICAL_ALIAS, event.content, ""))
        await self._if_allowed(old, Draft(user_id, CANONICAL_ALIAS, {}, ""))

    async def _silence(self, old: Room, user_id: str) -> None:
        """Raise what it takes to speak and to invite above what everybody has, where the user may."""
        state = await self._actions.state(old, CREATE, POWER_LEVELS)
        event = state.get(POWER_LEVELS)
        if event is None:
            return
        levels = PowerLevels(state[CREATE], event)
        quiet = max(50, levels.users_default + 1)
        content = dict(event.content)
        if levels.events_default < quiet:
            content["events_default"] = quiet
        if levels.invite < quiet:
            content["invite"] = quiet
        if content != event.content:
            await self._if_allowed(old, Draft(user_id, POWER_LEVELS[0], content, ""))

    async def _if_allowed(self, room: Room, draft: Draft) -> None:
        """Send what the upgrade can do without."""
        try:
            await self._writer.submit(room, [draft])
        except MatrixError as error:
            if error.status >= 500:
                log.error("{type} of {room} stays as it was: {error}", type=draft.type, room=room.room_id, error=error)


def _checked_creators(given: list[str] | None, user_id: str) -> list[str]:
    creators = list(dict.fromkeys(given or []))
    if len(creators) > CREATORS_LIMIT:
        raise invalid_param(f"A room may have {CREATORS_LIMIT} additional creators at most.")
    if not all(map(is_user_id, creators)):
        raise invalid_param("additional_creators holds something that is not a user ID.")
    return [creator for creator in creators if creator != user_id]


def _storable(event: Event, version: RoomVersion) -> bool:
    """Whether the content can be JSON of this room version, which may be stricter than the old one."""
    try:
        if version.strict_canonical_json:
            canonical_json.check(event.content)
    except canonical_json.CanonicalJSONError:
        return False
    return True


def _tombstone(user_id: str, room_id: str) -> Draft:
    content: dict[str, object] = {"body": "This room has been replaced.", "replacement_room": room_id}
    return Draft(user_id, TOMBSTONE, content, "")


def _create_content(
    old_room_id: str, tombstone_id: str | None, old: Event, version: RoomVersion, user_id: str, creators: list[str]
) -> dict[str, Any]:
    predecessor = {"room_id": old_room_id}
    if tombstone_id is not None:
        predecessor["event_id"] = tombstone_id
    content: dict[str, Any] = {"room_version": version.identifier, "predecessor": predecessor}
    content |= {key: old.content[key] for key in ("type", "m.federate") if key in old.content}
    if not version.implicit_room_creator:
        content["creator"] = user_id
    if creators:
        content["additional_creators"] = creators
    return content


# --- power levels ---


def carried_levels(
    create: Event, event: Event | None, version: RoomVersion, user_id: str, creators: Iterable[str]
) -> dict[str, Any]:
    """The content of power levels for the new room, by `create` and power levels `event` of the old one.

    Creators keep their power in both directions: where the new version gives it to its creators they are
    not listed, and where only the old one did they are listed with a level that suffices for everything.
    """
    if event is None:
        room = NewRoom(creator=user_id)
        content = creation.power_levels(room, version, creation.preset_of(room))
    else:
        content = _in_version(event.content, version)
    users: dict[str, Any] = dict(content.get("users", {}))
    events: dict[str, Any] = dict(content.get("events", {}))
    if version.privileged_creators:
        for creator in (user_id, *creators):
            users.pop(creator, None)
        default = parse_level(content.get("state_default", 50), version)
        least = max(150, (50 if default is None else default) + 1)
        level = parse_level(events.get(TOMBSTONE), version)
        events[TOMBSTONE] = least if level is None else max(least, level)
    elif create.version.privileged_creators:
        highest = max([100, *levels_in(content, version)])
        users |= dict.fromkeys(sorted(room_creators(create)), highest)
    content["users"] = users
    if events or "events" in content:
        content["events"] = events
    return content


def _in_version(content: Mapping[str, Any], version: RoomVersion) -> dict[str, Any]:
    """Power levels as a version takes them: text that means a number becomes one, and nonsense is left out."""
    if not version.integer_power_levels:
        return dict(content)
    lenient = ROOM_VERSIONS["1"]

    def number(value: object) -> int | None:
        level = parse_level(value, lenient)
        return None if level is None else max(-MAX_LEVEL, min(level, MAX_LEVEL))

    carried: dict[str, Any] = {}
    for key, value in content.items():
        if key in _NAMED:
            if (level := number(value)) is not None:
                carried[key] = level
        elif key in ("users", "events", "notifications"):
            entries = value if isinstance(value, dict) else {}
            carried[key] = {name: level for name, given in entries.items() if (level := number(given)) is not None}
        else:
            carried[key] = value
    return carried


def levels_in(content: Mapping[str, Any], version: RoomVersion) -> list[int]:
    """Every level that a content of power levels names."""
    values = [content[key] for key in _NAMED if key in content]
    for key in ("users", "events"):
        values += content.get(key, {}).values()
    return [level for value in values if (level := parse_level(value, version)) is not None]


def needed_level(content: Mapping[str, Any], types: Iterable[str], banned: Iterable[str]) -> int:
    """What it takes under these levels to send state of `types`, to ban these users and to change the levels."""

    def level(value: object, default: int) -> int:
        found = parse_level(value, ROOM_VERSIONS["1"])
        return default if found is None else found

    events, users = content.get("events", {}), content.get("users", {})
    default = level(content.get("state_default"), 50)
    needed = [level(events.get(type), default) for type in (*types, POWER_LEVELS[0])]
    users_default = level(content.get("users_default"), 0)
    for target in banned:
        needed += [level(content.get("ban"), 50), level(users.get(target), users_default) + 1]
    return max(needed)


def raised(content: Mapping[str, Any], user_id: str, needed: int, version: RoomVersion) -> dict[str, Any]:
    """The levels with which the user can fill the room: the same, if they suffice as they are."""
    users = content["users"]
    own = parse_level(users.get(user_id, content.get("users_default", 0)), version)
    if version.privileged_creators or (own is not None and own >= needed):
        return dict(content)
    everything = max([needed, *levels_in(content, version)])
    return {**content, "users": {**users, user_id: everything}}

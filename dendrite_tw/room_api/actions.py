"""What local users do to rooms: create, send, join, leave, invite, kick, ban, knock, forget.

Each action becomes drafts for the room's writer, which has the last word on
whether they are allowed; what is checked here is what the authorisation rules
leave to the server (Client-Server API, "Room membership").
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import orjson
from twisted.internet.defer import Deferred

from ..database.engines import Database
from ..matrix.errors import MatrixError, forbidden, invalid_param, not_found
from ..matrix.events import Event
from ..matrix.identifiers import is_room_alias, is_room_id, is_user_id, server_name_of
from ..matrix.power_levels import PowerLevels
from ..matrix.room_versions import ROOM_VERSIONS
from ..user_api.api import UserAPI
from ..world import Clock, Random
from . import creation
from .api import MembershipChange, NewEvent, NewRoom
from .input import RoomWriter
from .room import Draft, Room, Rooms
from .store import EventStore
from .tables import rooms as room_table
from .tables.events import event_of_transaction
from .tables.names import Names, Slot

MEMBER = "m.room.member"


class Actions:
    """Carries out what local users ask of rooms."""

    def __init__(
        self,
        *,
        database: Database,
        names: Names,
        rooms: Rooms,
        writer: RoomWriter,
        store: EventStore,
        users: UserAPI,
        clock: Clock,
        random: Random,
        server_name: str,
        default_room_version: str,
    ) -> None:
        self._database = database
        self._names = names
        self._rooms = rooms
        self._writer = writer
        self._store = store
        self._users = users
        self._clock = clock
        self._random = random
        self._server_name = server_name
        self._default_room_version = default_room_version
        self._aliases_in_the_making: set[str] = set()
        self._last_creation = 0
        self._under_way: dict[tuple[str, str, str, str, str], list[Deferred[str]]] = {}

    # --- reading the current state ---

    async def state(self, room: Room, *keys: Slot) -> dict[Slot, Event]:
        """The current state events at `keys`, where set."""
        nids = {}
        for key in keys:
            slot = self._names.remembered_slot(key) or await self._database.read(self._names.find_slot, key)
            nid = room.head.state.get(slot) if slot else None
            if nid is not None:
                nids[key] = nid
        events = await self._store.by_nid(nids.values())
        return {key: events[nid] for key, nid in nids.items()}

    async def membership(self, room: Room, user_id: str) -> str | None:
        """A user's current membership."""
        event = (await self.state(room, (MEMBER, user_id))).get((MEMBER, user_id))
        return event.membership if event else None

    async def joined_users(self, room_id: str) -> list[str]:
        """The joined users of a room that is known."""
        room = await self._rooms.get(room_id)
        return await self._database.read(room_table.joined_users, room.room_nid)

    async def send_state(self, room: Room, sender: str, type: str, state_key: str, content: dict[str, Any]) -> str:
        """Set state on behalf of a user; returns the event's ID."""
        return await self.send(
            NewEvent(room_id=room.room_id, sender=sender, type=type, content=content, state_key=state_key)
        )

    # --- creating ---

    async def create_room(self, room: NewRoom) -> str:
        """Make a room with its first events; returns its ID.

        ``M_UNSUPPORTED_ROOM_VERSION``, ``M_ROOM_IN_USE`` for a taken alias, ``M_INVALID_ROOM_STATE``
        where the first events contradict each other.
        """
        identifier = room.room_version or self._default_room_version
        version = ROOM_VERSIONS.get(identifier)
        if version is None:
            raise creation.unsupported_version(identifier)
        creation.check(room)
        alias = await self._new_alias(room.room_alias_name)
        try:
            fresh = Room(
                "" if version.room_ids_as_hashes else f"!{self._random.token(18)}:{self._server_name}", version
            )
            drafts = creation.first_events(room, version, alias)
            drafts[0] = replace(drafts[0], timestamp=self._creation_time())
            drafts += [
                Draft(sender=room.creator, type=MEMBER, content=content, state_key=user_id)
                for user_id in creation.invitations(room)
                for content in [await self._invitation(user_id, room.creator, None, {}, room.is_direct)]
            ]
            try:
                await self._writer.submit(fresh, drafts)
            except MatrixError as error:
                if error.errcode in ("M_FORBIDDEN", "M_BAD_JSON"):
                    raise MatrixError(400, "M_INVALID_ROOM_STATE", error.error) from None
                raise
            self._rooms.add(fresh)
            if alias is not None:
                await self._database.write(
                    room_table.insert_alias, alias, fresh.room_nid, room.creator, self._clock.now_ms()
                )
            if room.visibility == "public":
                await self._database.write(room_table.publish, fresh.room_nid)
        finally:
            self._aliases_in_the_making.discard(alias or "")
        return fresh.room_id

    def _creation_time(self) -> int:
        """Now, in milliseconds, but never twice: where a room is named by the hash of its create event,
        two that are alike would be one room."""
        self._last_creation = max(self._clock.now_ms(), self._last_creation + 1)
        return self._last_creation

    async def _new_alias(self, localpart: str | None) -> str | None:
        """The full alias for a room in the making, held until it is made."""
        if localpart is None:
            return None
        alias = f"#{localpart}:{self._server_name}"
        if not is_room_alias(alias) or ":" in localpart:
            raise invalid_param(f"{localpart!r} cannot be the name of an alias.")
        stored = await self._database.read(room_table.alias_row, alias)
        if stored is not None or alias in self._aliases_in_the_making:
            raise MatrixError(400, "M_ROOM_IN_USE", f"The alias {alias} is taken.")
        self._aliases_in_the_making.add(alias)
        return alias

    # --- sending ---

    async def send(self, event: NewEvent) -> str:
        """Send an event of a local user; returns its ID, the first one's where the transaction is known."""
        if not is_room_id(event.room_id):
            raise invalid_param("That is not a room ID.")
        room = await self._rooms.find(event.room_id)
        if room is None:
            raise forbidden("You are not in this room.")
        if event.transaction_id is None or event.device_id is None:
            return await self._send(room, event)
        transaction = (event.sender, event.device_id, event.transaction_id, event.room_id, event.type)
        if transaction in self._under_way:
            same: Deferred[str] = Deferred()
            self._under_way[transaction].append(same)
            return await same
        self._under_way[transaction] = []
        try:
            event_id = await self._known_transaction(room, event) or await self._send(room, event)
        except Exception as error:
            for same in self._under_way.pop(transaction):
                same.errback(error)
            raise
        for same in self._under_way.pop(transaction):
            same.callback(event_id)
        return event_id

    async def _known_transaction(self, room: Room, event: NewEvent) -> str | None:
        """The ID of the event that this transaction made already."""
        sender = await self._database.read(self._names.find, event.sender)
        type_nid = await self._database.read(self._names.find, event.type)
        if sender is None or type_nid is None or event.device_id is None or event.transaction_id is None:
            return None
        return await self._database.read(
            event_of_transaction, sender, event.device_id, event.transaction_id, room.room_nid, type_nid
        )

    async def _send(self, room: Room, event: NewEvent) -> str:
        if event.state_key is not None:
            same = await self._unchanged(room, event)
            if same is not None:
                return same
            await self._check_state(room, event)
        draft = Draft(
            sender=event.sender,
            type=event.type,
            content=event.content,
            state_key=event.state_key,
            redacts=event.redacts,
            timestamp=event.timestamp,
            device_id=event.device_id if event.transaction_id is not None else None,
            transaction_id=event.transaction_id,
        )
        return (await self._writer.submit(room, [draft]))[0]

    async def _unchanged(self, room: Room, event: NewEvent) -> str | None:
        """The ID of the current state event, where sending this one would change nothing."""
        key = (event.type, event.state_key or "")
        current = (await self.state(room, key)).get(key)
        if current is not None and current.sender == event.sender and current.content == event.content:
            return current.event_id
        return None

    async def _check_state(self, room: Room, event: NewEvent) -> None:
        """What the server checks of state events beyond the authorisation rules."""
        if event.type == "m.room.create":
            raise forbidden("A room is created once.")
        if event.type == "m.room.canonical_alias" and event.state_key == "":
            await self._check_canonical_alias(room, event.content)

    async def _check_canonical_alias(self, room: Room, content: dict[str, Any]) -> None:
        """Aliases that the event adds must point to the room (``M_BAD_ALIAS``)."""
        key = ("m.room.canonical_alias", "")
        current = (await self.state(room, key)).get(key)
        known = set(_aliases(current.content)) if current else set()
        for alias in _aliases(content):
            if not isinstance(alias, str) or not is_room_alias(alias):
                raise MatrixError(400, "M_INVALID_PARAM", f"{alias!r} is not a room alias.")
            if alias in known:
                continue
            row = await self._database.read(room_table.alias_row, alias)
            if row is None or row.room_id != room.room_id:
                raise MatrixError(400, "M_BAD_ALIAS", f"{alias} does not point to this room.")

    # --- membership ---

    async def change_membership(self, change: MembershipChange) -> str:
        """Carry out a change of membership; returns the room's ID."""
        if not is_room_id(change.room_id):
            raise invalid_param("That is not a room ID.")
        if not is_user_id(change.target):
            raise invalid_param("That is not a user ID.")
        room = await self._rooms.find(change.room_id)
        if room is None:
            if change.action in ("join", "knock", "leave"):
                raise not_found("No server that knows this room can be reached.")
            raise forbidden("You are not in this room.")
        action = getattr(self, f"_{change.action}")
        content = await action(room, change)
        if content is None:
            return room.room_id
        if change.reason is not None:
            content["reason"] = change.reason
        event = NewEvent(
            room_id=room.room_id, sender=change.sender, type=MEMBER, content=content, state_key=change.target
        )
        await self.send(event)
        return room.room_id

    async def _join(self, room: Room, change: MembershipChange) -> dict[str, Any] | None:
        current = await self.membership(room, change.target)
        if current == "join" and not change.content:
            return None
        if change.is_guest:
            await self._check_guest(room)
        content = {**change.content, **change.profile, "membership": "join"}
        if change.third_party_signed is not None:
            content["third_party_invite"] = {"signed": change.third_party_signed}
        if current not in ("join", "invite"):
            authoriser = await self._join_authoriser(room, change.target)
            if authoriser is not None:
                content["join_authorised_via_users_server"] = authoriser
        return content

    async def _check_guest(self, room: Room) -> None:
        key = ("m.room.guest_access", "")
        event = (await self.state(room, key)).get(key)
        if event is None or event.content.get("guest_access") != "can_join":
            raise MatrixError(403, "M_GUEST_ACCESS_FORBIDDEN", "Guests may not join this room.")

    async def _join_authoriser(self, room: Room, user_id: str) -> str | None:
        """Who vouches for a join to a restricted room; `None` where the rule is another one.

        ``M_FORBIDDEN`` where the user is in none of the rooms that would allow it,
        ``M_UNABLE_TO_GRANT_JOIN`` where nobody here may vouch.
        """
        rules_key, levels_key, create_key = (
            ("m.room.join_rules", ""),
            ("m.room.power_levels", ""),
            ("m.room.create", ""),
        )
        state = await self.state(room, rules_key, levels_key, create_key)
        rules = state[rules_key].content if rules_key in state else {}
        if rules.get("join_rule") not in ("restricted", "knock_restricted"):
            return None
        if not await self._in_allowed_room(rules.get("allow"), user_id):
            raise forbidden("You are in none of the rooms whose members may join this one.")
        levels = PowerLevels(state[create_key], state.get(levels_key))
        for member in await self._database.read(room_table.joined_users, room.room_nid):
            if server_name_of(member) == self._server_name and levels.user_level(member) >= levels.invite:
                return member
        raise MatrixError(400, "M_UNABLE_TO_GRANT_JOIN", "No user of this server may let others into the room.")

    async def _in_allowed_room(self, allow: object, user_id: str) -> bool:
        for rule in allow if isinstance(allow, list) else []:
            if not isinstance(rule, dict) or rule.get("type") != "m.room_membership":
                continue
            room_id = rule.get("room_id")
            allowed = await self._rooms.find(room_id) if isinstance(room_id, str) else None
            if allowed is not None and await self.membership(allowed, user_id) == "join":
                return True
        return False

    async def _leave(self, room: Room, change: MembershipChange) -> dict[str, Any]:
        if await self.membership(room, change.target) is None:
            raise not_found("You are not in this room.")
        return {"membership": "leave"}

    async def _invite(self, room: Room, change: MembershipChange) -> dict[str, Any]:
        is_direct = change.content.get("is_direct") is True
        return await self._invitation(change.target, change.sender, change.reason, change.profile, is_direct)

    async def _invitation(
        self, target: str, sender: str, reason: str | None, profile: dict[str, str], is_direct: bool
    ) -> dict[str, Any]:
        """The content of an invitation; ``M_INVITE_BLOCKED`` where the invited user wants none."""
        if server_name_of(target) != self._server_name:
            raise MatrixError(502, "M_UNKNOWN", f"The server of {target} cannot be reached.")
        blocked = await self._users.account_data(target, "", "m.invite_permission_config")
        if blocked is not None and orjson.loads(blocked).get("default_action") == "block":
            raise MatrixError(403, "M_INVITE_BLOCKED", f"{target} takes no invitations.")
        content: dict[str, Any] = {**(profile or await self._users.profile(target)), "membership": "invite"}
        if is_direct:
            content["is_direct"] = True
        return content

    async def _kick(self, room: Room, change: MembershipChange) -> dict[str, Any]:
        if await self.membership(room, change.target) not in ("join", "invite", "knock"):
            raise forbidden(f"{change.target} is not in the room.")
        return {"membership": "leave"}

    async def _ban(self, room: Room, change: MembershipChange) -> dict[str, Any]:
        return {"membership": "ban"}

    async def _unban(self, room: Room, change: MembershipChange) -> dict[str, Any]:
        if await self.membership(room, change.target) != "ban":
            raise forbidden(f"{change.target} is not banned.")
        return {"membership": "leave"}

    async def _knock(self, room: Room, change: MembershipChange) -> dict[str, Any]:
        if not room.version.knocking:
            raise forbidden("Rooms of this version have no knocking.")
        return {**change.profile, "membership": "knock"}

    async def forget(self, user_id: str, room_id: str) -> None:
        """Hide a room that the user has left; ``M_UNKNOWN`` while they are in it."""
        room = await self._rooms.find(room_id)
        membership = await self.membership(room, user_id) if room else None
        if room is None or membership is None:
            raise not_found("You were never in this room.")
        if membership in ("join", "invite", "knock"):
            raise MatrixError(400, "M_UNKNOWN", "Leave the room before you forget it.")
        user_nid = await self._database.read(self._names.find, user_id)
        if user_nid is not None:
            await self._database.write(room_table.forget, user_nid, room.room_nid)

    async def update_profile(self, user_id: str, profile: dict[str, str]) -> None:
        """Renew the user's member events in all rooms that they are joined to."""
        user_nid = await self._database.read(self._names.find, user_id)
        if user_nid is None:
            return
        for row in await self._database.read(room_table.memberships_of, user_nid):
            if row.membership != "join":
                continue
            room = await self._rooms.get(row.room_id)
            current = (await self.state(room, (MEMBER, user_id)))[(MEMBER, user_id)].content
            kept = {key: value for key, value in current.items() if key not in ("displayname", "avatar_url")}
            event = NewEvent(
                room_id=row.room_id, sender=user_id, type=MEMBER, content={**kept, **profile}, state_key=user_id
            )
            await self.send(event)


def _aliases(content: dict[str, Any]) -> list[Any]:
    """Every alias that a canonical alias event names."""
    alternatives = content.get("alt_aliases")
    named = [content["alias"]] if content.get("alias") else []
    return named + (alternatives if isinstance(alternatives, list) else [])

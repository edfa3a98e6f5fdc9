"""What local users do to rooms: create, send, join, leave, invite, kick, ban, knock, forget.

Each action becomes drafts for the room's writer, which has the last word on
whether they are allowed; what is checked here is what the authorisation rules
leave to the server (Client-Server API, "Room membership").
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from typing import Any, ParamSpec, TypeVar

import msgspec
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..database.engines import Database
from ..database.statements import Transaction
from ..matrix.errors import MatrixError, forbidden, invalid_param, not_found
from ..matrix.events import Event
from ..matrix.identifiers import is_event_id, is_historical_user_id, is_room_alias, is_room_id, server_name_of
from ..matrix.relations import relation_of
from ..matrix.room_versions import ROOM_VERSIONS, RoomVersion
from ..sharing.leases import NotMine
from ..world import Clock, Random
from . import creation
from .api import MembershipChange, NewEvent, NewRoom, RoomAPI
from .current import CurrentState, InvitePermission
from .input import RoomWriter
from .memberships import Memberships
from .remote.rooms import RemoteRooms
from .room import Draft, Room, Rooms
from .store import EventStore
from .tables import relations as relation_table
from .tables import rooms as room_table
from .tables.events import event_of_transaction
from .tables.names import Names, Slot
from .user_directory import UserDirectory

log = Logger()

MEMBER = "m.room.member"
CANONICAL_ALIAS = "m.room.canonical_alias"

NOT_KEPT = ("displayname", "avatar_url", "join_authorised_via_users_server", "third_party_invite", "reason")
"""What of a member event is not told again when the profile in it is renewed."""

P = ParamSpec("P")
T = TypeVar("T")


def to_the_end(action: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """`action`, which goes on to its end even if the caller is cancelled while it waits, as when a client goes."""

    @functools.wraps(action)
    async def call(*args: P.args, **kwargs: P.kwargs) -> T:
        answer: Deferred[T] = Deferred()

        def pass_on(result: T | Failure) -> None:
            if isinstance(result, Failure):
                if not answer.called:
                    answer.errback(result)
            elif not answer.called:
                answer.callback(result)

        Deferred.fromCoroutine(action(*args, **kwargs)).addBoth(pass_on)
        return await answer

    return call


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
        current: CurrentState,
        permission: InvitePermission,
        memberships: Memberships,
        remote: RemoteRooms,
        user_directory: UserDirectory,
        everywhere: RoomAPI,
        clock: Clock,
        random: Random,
        server_name: str,
        default_room_version: str,
    ) -> None:
        self._database = database
        self._current = current
        self._permission = permission
        self._memberships = memberships
        self._remote = remote
        self._names = names
        self._rooms = rooms
        self._writer = writer
        self._events = store
        self._user_directory = user_directory
        self._everywhere = everywhere
        self._clock = clock
        self._random = random
        self._server_name = server_name
        self._default_room_version = default_room_version
        self.after_join: Callable[[Room, str], Awaitable[None]] | None = None
        """Is told when a local user has joined a room by `change_membership`."""
        self._aliases_in_the_making: set[str] = set()
        self._last_creation = 0
        self._annotating: set[tuple[str, str, str, str]] = set()
        self._under_way: dict[tuple[str, str, str, str, str], list[Deferred[str]]] = {}

    # --- reading the current state ---

    async def state(self, room: Room, *keys: Slot) -> dict[Slot, Event]:
        """The current state events at `keys`, where set."""
        return await self._current(room, *keys)

    async def membership(self, room: Room, user_id: str) -> str | None:
        """A user's current membership."""
        return await self._current.membership(room, user_id)

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
            await self._check_initial_state(room, alias)
            fresh = self.fresh_room(version)
            drafts = creation.first_events(room, version, alias)
            drafts[0] = await self.first_draft(fresh, drafts[0])
            invites = [
                Draft(sender=room.creator, type=MEMBER, content=content, state_key=user_id)
                for user_id in creation.invitations(room)
                for content in [await self._memberships.invitation(user_id, {}, room.is_direct)]
            ]
            drafts += [invite for invite in invites if not self._is_abroad(invite.state_key)]

            async def name_and_list(txn: Transaction, room_nid: int) -> None:
                if alias is not None and not await room_table.insert_alias(
                    txn, alias, room_nid, room.creator, self._clock.now_ms()
                ):
                    raise _alias_taken(alias)
                if room.visibility == "public":
                    await room_table.publish(txn, room_nid)

            try:
                await self._writer.submit(fresh, drafts, also=name_and_list)
            except MatrixError as error:
                if error.errcode in ("M_FORBIDDEN", "M_BAD_JSON"):
                    raise MatrixError(400, "M_INVALID_ROOM_STATE", error.error) from None
                raise
        finally:
            self._aliases_in_the_making.discard(alias or "")
        await self._remote.invite_all(fresh, [invite for invite in invites if self._is_abroad(invite.state_key)])
        return fresh.room_id

    def fresh_room(self, version: RoomVersion) -> Room:
        """A room in the making, by an ID that makes it one of this process's; `NotMine` where that has none."""
        if not self._rooms.ownership.holds_any():
            raise NotMine
        if version.room_ids_as_hashes:
            return Room("", version)
        while True:
            room_id = f"!{self._random.token(18)}:{self._server_name}"
            if self._rooms.ownership.holds(room_id) or not self._rooms.ownership.holds_any():
                return Room(room_id, version)

    async def first_draft(self, fresh: Room, create: Draft) -> Draft:
        """The create event of a room in the making, of a time that makes the room one of this process's."""
        create = replace(create, timestamp=self.creation_time())
        if fresh.version.room_ids_as_hashes and self._rooms.ownership.shared:
            while self._rooms.ownership.holds_any():
                event = await self._writer.compose(Room("", fresh.version), create)
                if self._rooms.ownership.holds(event.room_id):
                    break
                create = replace(create, timestamp=self.creation_time())
        return create

    def _is_abroad(self, user_id: str | None) -> bool:
        """Whether a user is one of another server."""
        return is_historical_user_id(user_id) and server_name_of(user_id) != self._server_name

    async def _check_initial_state(self, room: NewRoom, alias: str | None) -> None:
        """Hold ``initial_state`` to what `send` holds state to."""
        for event in room.initial_state:
            content, target = event["content"], event.get("state_key", "")
            if event["type"] == MEMBER and content.get("membership") == "invite" and is_historical_user_id(target):
                await self._permission.check(target)
            if event["type"] == CANONICAL_ALIAS and target == "":
                for named in _aliases(content):
                    _check_alias_syntax(named)
                    if named != alias:
                        raise _bad_alias(named)

    def creation_time(self) -> int:
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
            raise _alias_taken(alias)
        self._aliases_in_the_making.add(alias)
        return alias

    # --- sending ---

    async def send(self, event: NewEvent) -> str:
        """Send an event of a local user; returns its ID, the first one's where the transaction is known."""
        if not is_room_id(event.room_id):
            raise invalid_param("That is not a room ID.")
        if event.redacts is not None and not is_event_id(event.redacts):
            raise invalid_param("That is not an event ID.")
        if "\0" in (event.transaction_id or ""):
            raise invalid_param("A transaction ID has no NUL characters.")
        room = await self._rooms.find(event.room_id)
        if room is None or room.standing == room_table.ELSEWHERE:
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
        if event.type == "m.room.tombstone" and event.content.get("replacement_room") == room.room_id:
            raise invalid_param("A room cannot take its own place.")
        if event.type == MEMBER and event.state_key != event.sender:
            await self._remote.completing.whole(room)
        if event.state_key is not None:
            return await self._deliver(room, replace_content(event, await self._checked_state(room, event)))
        relation = relation_of(event.content)
        if relation is None or relation.rel_type != "m.annotation" or relation.key is None:
            return await self._deliver(room, event)
        key = (event.sender, event.type, relation.event_id, relation.key)
        if key in self._annotating or await self._is_annotated(room, event, relation.event_id, relation.key):
            raise MatrixError(400, "M_DUPLICATE_ANNOTATION", "You have annotated this event so already.")
        self._annotating.add(key)
        try:
            return await self._deliver(room, event)
        finally:
            self._annotating.discard(key)

    async def _is_annotated(self, room: Room, event: NewEvent, parent_id: str, key: str) -> bool:
        """Whether the sender has annotated a parent by the same type and key."""
        sender = await self._database.read(self._names.find, event.sender)
        type_nid = await self._database.read(self._names.find, event.type)
        if sender is None or type_nid is None:
            return False
        nids = await self._database.read(relation_table.annotations_by, parent_id, room.room_nid, sender, type_nid)
        events = await self._events.by_nid(nids)
        return any((found := relation_of(other.content)) and found.key == key for other in events.values())

    async def _deliver(self, room: Room, event: NewEvent) -> str:
        """Hand a checked event to the room's writer, unless it is state that would change nothing."""
        if event.state_key is not None:
            same = await self._unchanged(room, event)
            if same is not None:
                return same
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
        if event.type == MEMBER and event.content.get("membership") == "invite" and self._is_abroad(event.state_key):
            return await self._remote.invite(room, draft)
        return (await self._writer.submit(room, [draft]))[0]

    async def _unchanged(self, room: Room, event: NewEvent) -> str | None:
        """The ID of the current state event, where sending this one would change nothing."""
        key = (event.type, event.state_key or "")
        current = (await self.state(room, key)).get(key)
        if current is not None and current.sender == event.sender and current.content == event.content:
            return current.event_id
        return None

    async def _checked_state(self, room: Room, event: NewEvent) -> dict[str, Any]:
        """The content of a state event, after what the server checks beyond the authorisation rules."""
        if event.type == "m.room.create":
            raise forbidden("A room is created once.")
        if event.type == CANONICAL_ALIAS and event.state_key == "":
            await self._check_canonical_alias(room, event.content)
        if event.type != MEMBER:
            return event.content
        membership = event.content.get("membership")
        if membership == "invite" and is_historical_user_id(event.state_key):
            await self._permission.check(event.state_key)
        if membership == "join" and event.state_key == event.sender:
            return await self._memberships.join(room, event.sender, event.content, event.is_guest)
        return event.content

    async def _check_canonical_alias(self, room: Room, content: dict[str, Any]) -> None:
        """Aliases that the event adds must point to the room (``M_BAD_ALIAS``)."""
        key = ("m.room.canonical_alias", "")
        current = (await self.state(room, key)).get(key)
        known = set(_aliases(current.content)) if current else set()
        for alias in _aliases(content):
            _check_alias_syntax(alias)
            if alias in known:
                continue
            if await self._room_of_alias(alias) != room.room_id:
                raise _bad_alias(alias)

    async def _room_of_alias(self, alias: str) -> str | None:
        """The room that an alias names, as this server or that of the alias knows."""
        if server_name_of(alias) == self._server_name:
            row = await self._database.read(room_table.alias_row, alias)
            return row.room_id if row is not None else None
        try:
            return (await self._remote.aliases.resolve(alias)).room_id
        except MatrixError:
            return None

    # --- membership ---

    async def change_membership(self, change: MembershipChange) -> str:
        """Carry out a change of membership; returns the room's ID."""
        if not is_room_id(change.room_id):
            raise invalid_param("That is not a room ID.")
        if not is_historical_user_id(change.target):
            raise invalid_param("That is not a user ID.")
        if change.third_party_signed is not None and change.action == "join":
            await self._claim_invite(change, change.third_party_signed)
        room = await self._rooms.find(change.room_id)
        own = change.action in ("join", "knock", "leave") and change.sender == change.target
        if own and (room is None or not room.is_here or not room.head.local) and await self._remote.change(change):
            room = await self._rooms.get(change.room_id)
        else:
            room = await self._rooms.find(change.room_id)
            if room is None:
                raise forbidden("You are not in this room.")
            if not await self._change_here(room, change):
                return room.room_id
        if change.action == "join" and self.after_join is not None:
            try:
                await self.after_join(room, change.target)
            except MatrixError as error:
                log.warn(
                    "{user} has joined {room} without more: {error}", user=change.target, room=room.room_id, error=error
                )
        return room.room_id

    async def _claim_invite(self, change: MembershipChange, signed: dict[str, Any]) -> None:
        """Let a user be invited who has shown that an invited address is theirs."""
        room = await self._rooms.find(change.room_id)
        if room is None or await self.membership(room, change.target) not in ("join", "invite"):
            await self._remote.claim_invite(change.room_id, change.target, signed)

    async def _change_here(self, room: Room, change: MembershipChange) -> bool:
        """Carry out a change in a room that this server is in; `False` if there is nothing to change."""
        if not room.is_here:
            raise forbidden("You are not in this room.")
        if change.target != change.sender:
            await self._remote.completing.whole(room)
        unknown = change.action == "join" and await self._is_unknown(room, change.target)
        if unknown and await self._remote.join_through_another(room, change):
            return True
        try:
            content = await self._memberships.of(room, change)
        except MatrixError as error:
            unable = change.action == "join" and error.errcode == "M_UNABLE_TO_GRANT_JOIN"
            if not unable or not await self._remote.join_through_another(room, change):
                raise
            return True
        if content is None:
            return False
        event = NewEvent(
            room_id=room.room_id, sender=change.sender, type=MEMBER, content=content, state_key=change.target
        )
        await self._deliver(room, event)
        return True

    async def _is_unknown(self, room: Room, user_id: str) -> bool:
        """Whether only others can say what the user is in the room, as members are still missing here."""
        return room.standing == room_table.PARTIAL and await self.membership(room, user_id) is None

    async def forget(self, user_id: str, room_id: str) -> None:
        """Hide a room that the user has left; ``M_UNKNOWN`` while they are in it."""
        room = await self._rooms.find(room_id)
        user_nid = await self._database.read(self._names.find, user_id)
        if room is None or user_nid is None:
            raise not_found("You were never in this room.")
        row = await self._database.read(room_table.membership_in, user_nid, room.room_nid)
        if row is None:
            raise not_found("You were never in this room.")
        if row.membership in ("join", "invite", "knock"):
            raise MatrixError(400, "M_UNKNOWN", "Leave the room before you forget it.")
        await self._database.write(room_table.forget, user_nid, room.room_nid)

    async def update_profile(self, user_id: str, profile: dict[str, str]) -> None:
        """Renew the user's member events in all rooms that they are joined to."""
        user_nid = await self._database.read(self._names.find, user_id)
        if user_nid is None:
            return
        await self._user_directory.renew(user_id, profile)
        for row in await self._database.read(room_table.memberships_of, user_nid):
            if row.membership != "join":
                continue
            try:
                await self._everywhere.renew_member(user_id, row.room_id, profile)
            except MatrixError as error:
                # One room that does not take it must not keep it from the others.
                if error.status >= 500:
                    raise

    async def renew_member(self, user_id: str, room_id: str, profile: dict[str, str]) -> None:
        """Renew the user's member event in one room, if they are joined to it."""
        room = await self._rooms.find(room_id)
        current = (await self.state(room, (MEMBER, user_id))).get((MEMBER, user_id)) if room else None
        if room is None or current is None or current.membership != "join":
            return
        kept = {key: value for key, value in current.content.items() if key not in NOT_KEPT}
        event = NewEvent(room_id=room_id, sender=user_id, type=MEMBER, content={**kept, **profile}, state_key=user_id)
        await self._deliver(room, event)


def replace_content(event: NewEvent, content: dict[str, Any]) -> NewEvent:
    return event if content is event.content else msgspec.structs.replace(event, content=content)


def _check_alias_syntax(alias: object) -> None:
    if not is_room_alias(alias):
        raise invalid_param(f"{alias!r} is not a room alias.")


def _bad_alias(alias: str) -> MatrixError:
    return MatrixError(400, "M_BAD_ALIAS", f"{alias} does not point to this room.")


def _alias_taken(alias: str) -> MatrixError:
    return MatrixError(400, "M_ROOM_IN_USE", f"The alias {alias} is taken.")


def _aliases(content: dict[str, Any]) -> list[Any]:
    """Every alias that a canonical alias event names."""
    alternatives = content.get("alt_aliases")
    named = [content["alias"]] if content.get("alias") else []
    return named + (alternatives if isinstance(alternatives, list) else [])

"""Rooms, as clients act on them: create, join, leave, send, redact, name, list.

Client-Server API, "Rooms", "Room membership", "Sending events to a room",
"Redactions", "Room Aliases", "Published Room Directory".
"""

from __future__ import annotations

from typing import Any

import msgspec

from ..federation_api.api import FederationAPI
from ..matrix.errors import MatrixError, bad_json, forbidden, invalid_param
from ..matrix.identifiers import is_room_alias, is_room_id
from ..room_api.api import MembershipChange, NewEvent, NewRoom, RoomAPI
from ..user_api.api import Caller, UserAPI
from ..web.routes import Access, Limit, Route
from ..world import Clock
from .far_directory import HIDDEN, FarDirectory, FarQuery

CLIENT = "/_matrix/client/v3"
SENDING = Limit("send")
JOINING = Limit("join")
CREATING = Limit("create_room")

MAX_BODY = 1 << 17
"""An event has 64 KiB at most; its body may be written with spaces."""

TRANSACTION_LIMIT = 255


class CreateRoomBody(msgspec.Struct):
    visibility: str | None = None
    room_alias_name: str | None = None
    name: str | None = None
    topic: str | None = None
    invite: list[str] | None = None
    invite_3pid: list[dict[str, Any]] | None = None
    room_version: str | None = None
    creation_content: dict[str, Any] | None = None
    initial_state: list[dict[str, Any]] | None = None
    preset: str | None = None
    is_direct: bool | None = None
    power_level_content_override: dict[str, Any] | None = None


class ReasonBody(msgspec.Struct):
    reason: str | None = None


class TargetBody(msgspec.Struct):
    user_id: str
    reason: str | None = None


class InviteBody(msgspec.Struct):
    user_id: str | None = None
    reason: str | None = None
    medium: str | None = None


class ViaQuery(msgspec.Struct):
    via: list[str] = []
    server_name: list[str] = []


class SendQuery(msgspec.Struct):
    ts: int | None = None


class UpgradeBody(msgspec.Struct):
    new_version: str
    additional_creators: list[str] | None = None


class AliasBody(msgspec.Struct):
    room_id: str


class VisibilityBody(msgspec.Struct):
    visibility: str = "public"


class DirectoryQuery(msgspec.Struct):
    limit: int = 100
    since: str | None = None
    server: str | None = None


class SearchQuery(msgspec.Struct):
    server: str | None = None


class DirectoryFilter(msgspec.Struct):
    generic_search_term: str | None = None
    room_types: list[str | None] | None = None


class DirectoryBody(msgspec.Struct):
    limit: int = 100
    since: str | None = None
    filter: DirectoryFilter | None = None
    include_all_networks: bool = False
    third_party_instance_id: str | None = None


class RoomRoutes:
    """The endpoints by which clients change rooms and find them."""

    def __init__(
        self, rooms: RoomAPI, users: UserAPI, federation: FederationAPI, clock: Clock, server_name: str
    ) -> None:
        self._others = FarDirectory(federation)
        self._rooms = rooms
        self._users = users
        self._clock = clock
        self._server_name = server_name

    def routes(self) -> list[Route]:
        room = f"{CLIENT}/rooms/{{room_id}}"
        return [
            Route("POST", f"{CLIENT}/createRoom", self.create_room, Access.USER, CREATING),
            Route("POST", f"{CLIENT}/join/{{room_id_or_alias}}", self.join_any, Access.GUEST, JOINING),
            Route("POST", f"{CLIENT}/knock/{{room_id_or_alias}}", self.knock, Access.USER, JOINING),
            Route("POST", f"{room}/join", self.join, Access.GUEST, JOINING),
            Route("POST", f"{room}/leave", self.leave, Access.GUEST, JOINING),
            Route("POST", f"{room}/invite", self.invite, Access.USER, SENDING),
            Route("POST", f"{room}/kick", self.kick, Access.USER, SENDING),
            Route("POST", f"{room}/ban", self.ban, Access.USER, SENDING),
            Route("POST", f"{room}/unban", self.unban, Access.USER, SENDING),
            Route("POST", f"{room}/upgrade", self.upgrade, Access.USER, CREATING),
            Route("POST", f"{room}/forget", self.forget, Access.USER, SENDING),
            Route("POST", f"{room}/send/{{event_type}}", self.send_untracked, Access.GUEST, SENDING, MAX_BODY),
            Route("PUT", f"{room}/send/{{event_type}}/{{txn_id}}", self.send, Access.GUEST, SENDING, MAX_BODY),
            Route("PUT", f"{room}/state/{{event_type}}", self.set_state, Access.GUEST, SENDING, MAX_BODY),
            Route(
                "PUT",
                f"{room}/state/{{event_type}}/{{state_key}}",
                self.set_keyed_state,
                Access.GUEST,
                SENDING,
                MAX_BODY,
            ),
            Route("POST", f"{room}/redact/{{event_id}}", self.redact_untracked, Access.GUEST, SENDING),
            Route("PUT", f"{room}/redact/{{event_id}}/{{txn_id}}", self.redact, Access.GUEST, SENDING),
            Route("GET", f"{room}/aliases", self.aliases, Access.USER, SENDING),
            Route("GET", f"{CLIENT}/directory/room/{{room_alias}}", self.resolve_alias, Access.PUBLIC, SENDING),
            Route("PUT", f"{CLIENT}/directory/room/{{room_alias}}", self.create_alias, Access.USER, SENDING),
            Route("DELETE", f"{CLIENT}/directory/room/{{room_alias}}", self.delete_alias, Access.USER, SENDING),
            Route("GET", f"{CLIENT}/directory/list/room/{{room_id}}", self.visibility, Access.PUBLIC, SENDING),
            Route("PUT", f"{CLIENT}/directory/list/room/{{room_id}}", self.set_visibility, Access.USER, SENDING),
            Route("GET", f"{CLIENT}/publicRooms", self.public_rooms, Access.OPTIONAL, SENDING),
            Route("POST", f"{CLIENT}/publicRooms", self.search_public_rooms, Access.USER, SENDING),
        ]

    # --- creating and membership ---

    async def create_room(self, caller: Caller, body: CreateRoomBody) -> dict[str, str]:
        room = NewRoom(
            creator=caller.user_id,
            room_version=body.room_version,
            preset=body.preset,
            visibility=body.visibility or "private",
            room_alias_name=body.room_alias_name,
            name=body.name,
            topic=body.topic,
            invite=body.invite or [],
            invite_3pid=body.invite_3pid or [],
            creation_content=body.creation_content or {},
            initial_state=body.initial_state or [],
            power_level_content_override=body.power_level_content_override,
            is_direct=body.is_direct or False,
            creator_profile=await self._users.profile(caller.user_id),
        )
        if room.invite_3pid:
            raise forbidden("This server has no identity server to invite by address.")
        return {"room_id": await self._rooms.create_room(room)}

    async def _room_of(self, room_id_or_alias: str, query: ViaQuery) -> tuple[str, list[str]]:
        """The ID of a room named either way, and servers that may let users into it."""
        via = query.via or query.server_name
        if is_room_id(room_id_or_alias):
            return room_id_or_alias, via
        if not is_room_alias(room_id_or_alias):
            raise invalid_param("That is neither a room ID nor a room alias.")
        found = await self._rooms.resolve_alias(room_id_or_alias)
        return found.room_id, [*via, *found.servers]

    async def _enter(
        self,
        caller: Caller,
        room_id: str,
        action: str,
        body: dict[str, Any],
        via: list[str],
    ) -> dict[str, str]:
        reason = _reason(body)
        signed = body.get("third_party_signed")
        if signed is not None and not isinstance(signed, dict):
            raise bad_json("third_party_signed must be an object.")
        change = MembershipChange(
            room_id=room_id,
            sender=caller.user_id,
            target=caller.user_id,
            action=action,
            reason=reason,
            content={key: value for key, value in body.items() if key not in ("reason", "third_party_signed")},
            profile=await self._users.profile(caller.user_id),
            via=via,
            third_party_signed=signed,
            is_guest=caller.is_guest,
        )
        return {"room_id": await self._rooms.change_membership(change)}

    async def join_any(
        self, caller: Caller, room_id_or_alias: str, body: dict[str, Any], query: ViaQuery
    ) -> dict[str, str]:
        room_id, via = await self._room_of(room_id_or_alias, query)
        return await self._enter(caller, room_id, "join", body, via)

    async def join(self, caller: Caller, room_id: str, body: dict[str, Any]) -> dict[str, str]:
        return await self._enter(caller, room_id, "join", body, [])

    async def knock(self, caller: Caller, room_id_or_alias: str, body: ReasonBody, query: ViaQuery) -> dict[str, str]:
        room_id, via = await self._room_of(room_id_or_alias, query)
        given = {} if body.reason is None else {"reason": body.reason}
        return await self._enter(caller, room_id, "knock", given, via)

    async def _change(
        self, caller: Caller, room_id: str, target: str, action: str, reason: str | None
    ) -> dict[str, str]:
        await self._rooms.change_membership(
            MembershipChange(room_id=room_id, sender=caller.user_id, target=target, action=action, reason=reason)
        )
        return {}

    async def leave(self, caller: Caller, room_id: str, body: ReasonBody) -> dict[str, str]:
        return await self._change(caller, room_id, caller.user_id, "leave", body.reason)

    async def invite(self, caller: Caller, room_id: str, body: InviteBody) -> dict[str, str]:
        if body.user_id is None:
            if body.medium is not None:
                raise forbidden("This server has no identity server to invite by address.")
            raise bad_json("user_id is missing.")
        return await self._change(caller, room_id, body.user_id, "invite", body.reason)

    async def kick(self, caller: Caller, room_id: str, body: TargetBody) -> dict[str, str]:
        return await self._change(caller, room_id, body.user_id, "kick", body.reason)

    async def ban(self, caller: Caller, room_id: str, body: TargetBody) -> dict[str, str]:
        return await self._change(caller, room_id, body.user_id, "ban", body.reason)

    async def unban(self, caller: Caller, room_id: str, body: TargetBody) -> dict[str, str]:
        return await self._change(caller, room_id, body.user_id, "unban", body.reason)

    async def forget(self, caller: Caller, room_id: str) -> None:
        await self._rooms.forget(caller.user_id, room_id)

    async def upgrade(self, caller: Caller, room_id: str, body: UpgradeBody) -> dict[str, str]:
        replacement = await self._rooms.upgrade(caller.user_id, room_id, body.new_version, body.additional_creators)
        return {"replacement_room": replacement}

    # --- sending ---

    async def send(
        self,
        caller: Caller,
        room_id: str,
        event_type: str,
        txn_id: str,
        body: dict[str, Any],
        query: SendQuery,
    ) -> dict[str, str]:
        if len(txn_id) > TRANSACTION_LIMIT:
            raise invalid_param("The transaction ID is too long.")
        return await self._send(caller, room_id, event_type, txn_id, body, query)

    async def send_untracked(
        self, caller: Caller, room_id: str, event_type: str, body: dict[str, Any], query: SendQuery
    ) -> dict[str, str]:
        """``POST …/send/{eventType}``, without a transaction, as clients of the first years send."""
        return await self._send(caller, room_id, event_type, None, body, query)

    async def _send(
        self,
        caller: Caller,
        room_id: str,
        event_type: str,
        txn_id: str | None,
        body: dict[str, Any],
        query: SendQuery,
    ) -> dict[str, str]:
        redacts = None
        if event_type == "m.room.redaction":
            redacts = body.get("redacts")
            if not isinstance(redacts, str):
                raise bad_json("A redaction names the event that it redacts.")
            body = {key: value for key, value in body.items() if key != "redacts"}
        event = NewEvent(
            room_id=room_id,
            sender=caller.user_id,
            type=event_type,
            content=body,
            redacts=redacts,
            device_id=caller.device_id or f"appservice {caller.appservice_id}",
            transaction_id=txn_id,
            timestamp=query.ts if caller.appservice_id is not None else None,
        )
        return {"event_id": await self._rooms.send(event)}

    async def set_state(
        self, caller: Caller, room_id: str, event_type: str, body: dict[str, Any], query: SendQuery
    ) -> dict[str, str]:
        return await self.set_keyed_state(caller, room_id, event_type, "", body, query)

    async def set_keyed_state(
        self,
        caller: Caller,
        room_id: str,
        event_type: str,
        state_key: str,
        body: dict[str, Any],
        query: SendQuery,
    ) -> dict[str, str]:
        event = NewEvent(
            room_id=room_id,
            sender=caller.user_id,
            type=event_type,
            content=body,
            state_key=state_key,
            timestamp=query.ts if caller.appservice_id is not None else None,
            is_guest=caller.is_guest,
        )
        return {"event_id": await self._rooms.send(event)}

    async def redact(
        self, caller: Caller, room_id: str, event_id: str, txn_id: str, body: dict[str, Any]
    ) -> dict[str, str]:
        if len(txn_id) > TRANSACTION_LIMIT:
            raise invalid_param("The transaction ID is too long.")
        return await self._redact(caller, room_id, event_id, txn_id, body)

    async def redact_untracked(
        self, caller: Caller, room_id: str, event_id: str, body: dict[str, Any]
    ) -> dict[str, str]:
        """``POST …/redact/{eventId}``, without a transaction, as clients of the first years redact."""
        return await self._redact(caller, room_id, event_id, None, body)

    async def _redact(
        self, caller: Caller, room_id: str, event_id: str, txn_id: str | None, body: dict[str, Any]
    ) -> dict[str, str]:
        reason = _reason(body)
        event = NewEvent(
            room_id=room_id,
            sender=caller.user_id,
            type="m.room.redaction",
            content={} if reason is None else {"reason": reason},
            redacts=event_id,
            device_id=caller.device_id or f"appservice {caller.appservice_id}",
            transaction_id=txn_id,
        )
        return {"event_id": await self._rooms.send(event)}

    # --- names and the directory ---

    async def aliases(self, caller: Caller, room_id: str) -> dict[str, list[str]]:
        return {"aliases": await self._rooms.aliases(room_id, caller.user_id)}

    async def resolve_alias(self, room_alias: str) -> dict[str, Any]:
        found = await self._rooms.resolve_alias(room_alias)
        return {"room_id": found.room_id, "servers": found.servers}

    async def create_alias(self, caller: Caller, room_alias: str, body: AliasBody) -> None:
        await self._rooms.create_alias(room_alias, body.room_id, caller.user_id)

    async def delete_alias(self, caller: Caller, room_alias: str) -> None:
        await self._rooms.delete_alias(room_alias, caller.user_id, caller.is_admin)

    async def visibility(self, room_id: str) -> dict[str, str]:
        return {"visibility": "public" if await self._rooms.published(room_id) else "private"}

    async def set_visibility(self, caller: Caller, room_id: str, body: VisibilityBody) -> None:
        if body.visibility not in ("public", "private"):
            raise invalid_param("visibility must be public or private.")
        await self._rooms.set_published(room_id, caller.user_id, body.visibility == "public", caller.is_admin)

    async def public_rooms(self, caller: Caller | None, query: DirectoryQuery) -> dict[str, Any]:
        if query.server is None or query.server == self._server_name:
            return await self._page(query.limit, query.since, None)
        if caller is None:
            raise MatrixError(401, "M_MISSING_TOKEN", "The directories of other servers are shown to users only.")
        return await self._others.page(query.server, FarQuery(limit=query.limit, since=query.since))

    async def search_public_rooms(self, caller: Caller, body: DirectoryBody, query: SearchQuery) -> dict[str, Any]:
        if body.third_party_instance_id and body.include_all_networks:
            raise invalid_param("third_party_instance_id asks for one network, include_all_networks for all of them.")
        if query.server is not None and query.server != self._server_name:
            filter = {} if body.filter is None else msgspec.to_builtins(body.filter)
            asked = FarQuery(
                limit=body.limit,
                since=body.since,
                filter={key: value for key, value in filter.items() if value is not None},
                include_all_networks=body.include_all_networks,
                third_party_instance_id=body.third_party_instance_id,
            )
            return await self._others.page(query.server, asked)
        if body.third_party_instance_id:
            return {"chunk": [], "total_room_count_estimate": 0}
        return await self._page(body.limit, body.since, body.filter)

    async def _page(self, limit: int, since: str | None, filter: DirectoryFilter | None) -> dict[str, Any]:
        search = filter.generic_search_term if filter else None
        room_types = filter.room_types if filter else None
        chunk, following, previous, total = await self._rooms.public_rooms(limit, since, search, room_types)
        page: dict[str, Any] = {
            "chunk": [_listed(room) for room in msgspec.to_builtins(chunk)],
            "total_room_count_estimate": total,
        }
        if following is not None:
            page["next_batch"] = following
        if previous is not None:
            page["prev_batch"] = previous
        return page


def _reason(body: dict[str, Any]) -> str | None:
    reason = body.get("reason")
    if reason is not None and not isinstance(reason, str):
        raise bad_json("The reason must be a string.")
    return reason


def _listed(room: dict[str, Any]) -> dict[str, Any]:
    """A row of the directory, without what only summaries show."""
    return {key: value for key, value in room.items() if key not in HIDDEN}

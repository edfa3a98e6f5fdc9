"""What a change of membership puts into the member event, and what the server checks before.

Client-Server API, "Room membership", "Restricted rooms", "Guest access".  The room's writer has the last word on
whether a change is allowed; what is checked here is what the authorisation rules leave to the server.
"""

from __future__ import annotations

from typing import Any

from ..database.engines import Database
from ..matrix.errors import MatrixError, forbidden, not_found
from ..matrix.identifiers import server_name_of
from ..matrix.power_levels import PowerLevels
from ..user_api.api import UserAPI
from .api import MembershipChange
from .current import CurrentState, InvitePermission
from .room import Room, Rooms
from .tables import rooms as room_table

SET_BY_SERVERS = ("membership", "join_authorised_via_users_server", "third_party_invite")
"""What a client does not decide about its own join: with it, it could vouch for itself."""


class Memberships:
    """Makes the contents of member events."""

    def __init__(
        self,
        *,
        database: Database,
        rooms: Rooms,
        current: CurrentState,
        permission: InvitePermission,
        users: UserAPI,
        server_name: str,
    ) -> None:
        self._database = database
        self._rooms = rooms
        self._current = current
        self._permission = permission
        self._users = users
        self._server_name = server_name

    async def of(self, room: Room, change: MembershipChange) -> dict[str, Any] | None:
        """The content of the member event for a change; `None` if there is nothing to change."""
        content: dict[str, Any] | None = await getattr(self, f"_{change.action}")(room, change)
        if content is not None and change.reason is not None:
            content["reason"] = change.reason
        return content

    async def _join(self, room: Room, change: MembershipChange) -> dict[str, Any] | None:
        current = await self._current.membership(room, change.target)
        if current == "join" and not change.content:
            return None
        return await self.join(room, change.target, {**change.profile, **change.content}, change.is_guest)

    async def join(self, room: Room, user_id: str, wanted: dict[str, Any], is_guest: bool) -> dict[str, Any]:
        """The content of a join of a local user who `wanted` this: without what is not theirs to say."""
        current = await self._current.membership(room, user_id)
        if is_guest and current != "join":
            await self._check_guest(room)
        content = {key: value for key, value in wanted.items() if key not in SET_BY_SERVERS} | {"membership": "join"}
        if current not in ("join", "invite"):
            authoriser = await self._join_authoriser(room, user_id)
            if authoriser is not None:
                content["join_authorised_via_users_server"] = authoriser
        return content

    async def _check_guest(self, room: Room) -> None:
        key = ("m.room.guest_access", "")
        event = (await self._current(room, key)).get(key)
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
        state = await self._current(room, rules_key, levels_key, create_key)
        rules = state[rules_key].content if rules_key in state else {}
        if rules.get("join_rule") not in ("restricted", "knock_restricted"):
            return None
        if not await self.in_allowed_room(rules.get("allow"), user_id):
            raise forbidden("You are in none of the rooms whose members may join this one.")
        levels = PowerLevels(state[create_key], state.get(levels_key))
        if levels.users_default >= levels.invite:
            for member in await self._database.read(room_table.some_local_members, room.room_nid, 100):
                if levels.user_level(member) >= levels.invite:
                    return member
        for member in levels.named:
            if (
                levels.user_level(member) >= levels.invite
                and ":" in member
                and server_name_of(member) == self._server_name
                and await self._current.membership(room, member) == "join"
            ):
                return member
        raise MatrixError(400, "M_UNABLE_TO_GRANT_JOIN", "No user of this server may let others into the room.")

    async def in_allowed_room(self, allow: object, user_id: str) -> bool:
        """Whether a user is joined to one of the rooms that ``allow`` of restricted join rules names."""
        for rule in allow if isinstance(allow, list) else []:
            if not isinstance(rule, dict) or rule.get("type") != "m.room_membership":
                continue
            room_id = rule.get("room_id")
            allowed = await self._rooms.find(room_id) if isinstance(room_id, str) else None
            if allowed is not None and await self._current.membership(allowed, user_id) == "join":
                return True
        return False

    async def _leave(self, room: Room, change: MembershipChange) -> dict[str, Any] | None:
        membership = await self._current.membership(room, change.target)
        if membership is None:
            raise not_found("You are not in this room.")
        return None if membership == "leave" else {"membership": "leave"}

    async def _invite(self, room: Room, change: MembershipChange) -> dict[str, Any]:
        is_direct = change.content.get("is_direct") is True
        return await self.invitation(change.target, change.profile, is_direct)

    async def invitation(self, target: str, profile: dict[str, str], is_direct: bool) -> dict[str, Any]:
        """The content of an invitation; ``M_INVITE_BLOCKED`` where the invited user wants none."""
        await self._permission.check(target)
        if not profile and server_name_of(target) == self._server_name:
            profile = await self._users.profile(target)
        content: dict[str, Any] = {**profile, "membership": "invite"}
        if is_direct:
            content["is_direct"] = True
        return content

    async def _kick(self, room: Room, change: MembershipChange) -> dict[str, Any]:
        if await self._current.membership(room, change.target) not in ("join", "invite", "knock"):
            raise forbidden(f"{change.target} is not in the room.")
        return {"membership": "leave"}

    async def _ban(self, room: Room, change: MembershipChange) -> dict[str, Any]:
        return {"membership": "ban"}

    async def _unban(self, room: Room, change: MembershipChange) -> dict[str, Any]:
        if await self._current.membership(room, change.target) != "ban":
            raise forbidden(f"{change.target} is not banned.")
        return {"membership": "leave"}

    async def _knock(self, room: Room, change: MembershipChange) -> dict[str, Any]:
        if not room.version.knocking:
            raise forbidden("Rooms of this version have no knocking.")
        return {**change.profile, "membership": "knock"}

"""Endpoints that read a room's state and members, and the list of joined rooms.

Client-Server API, "Getting events for a room", "Room membership".
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from ..matrix.errors import forbidden
from ..room_api.api import RoomAPI, RoomEvent
from ..user_api.api import Caller
from ..web.routes import Access, Route
from ..world import Clock
from .splice import Renderer, array, content_of
from .tokens import parse_page_token

MembershipName = Literal["join", "invite", "knock", "leave", "ban"]


class MembersQuery(msgspec.Struct, frozen=True):
    at: str | None = None
    membership: MembershipName | None = None
    not_membership: MembershipName | None = None


class StateQuery(msgspec.Struct, frozen=True):
    format: Literal["content", "event"] = "content"


class StateReader:
    """Answers the endpoints that read state."""

    def __init__(self, rooms: RoomAPI, renderer: Renderer, clock: Clock) -> None:
        self._rooms = rooms
        self._renderer = renderer
        self._clock = clock

    def routes(self) -> list[Route]:
        room = "/_matrix/client/v3/rooms/{room_id}"
        return [
            Route("GET", room + "/state", self.state, Access.GUEST),
            Route("GET", room + "/state/{event_type}", self.state_event_without_key, Access.GUEST),
            Route("GET", room + "/state/{event_type}/{state_key}", self.state_event, Access.GUEST),
            Route("GET", room + "/members", self.members, Access.GUEST),
            Route("GET", room + "/joined_members", self.joined_members, Access.GUEST),
            Route("GET", "/_matrix/client/v3/joined_rooms", self.joined_rooms, Access.GUEST),
        ]

    def _render(self, caller: Caller, events: list[RoomEvent]) -> bytes:
        return array(self._renderer.render_full(events, self._clock.now_ms(), caller, {}, {}))

    async def state(self, room_id: str, caller: Caller) -> bytes:
        """``GET /rooms/{roomId}/state``."""
        return self._render(caller, await self._rooms.current_state(room_id, caller.user_id))

    async def state_event(
        self, room_id: str, event_type: str, state_key: str, caller: Caller, query: StateQuery
    ) -> bytes | dict[str, object]:
        """``GET /rooms/{roomId}/state/{eventType}/{stateKey}``."""
        event = await self._rooms.state_event(room_id, caller.user_id, event_type, state_key)
        if query.format == "event":
            [shown] = self._renderer.render_full([event], self._clock.now_ms(), caller, {}, {})
            return shown
        return content_of(event)

    async def state_event_without_key(
        self, room_id: str, event_type: str, caller: Caller, query: StateQuery
    ) -> bytes | dict[str, object]:
        """``GET /rooms/{roomId}/state/{eventType}``: the state key is empty."""
        return await self.state_event(room_id, event_type, "", caller, query)

    async def members(self, room_id: str, caller: Caller, query: MembersQuery) -> bytes:
        """``GET /rooms/{roomId}/members``."""
        events = await self._rooms.members(
            room_id, caller.user_id, parse_page_token(query.at), query.membership, query.not_membership
        )
        return b'{"chunk":%b}' % self._render(caller, events)

    async def joined_members(self, room_id: str, caller: Caller) -> dict[str, Any]:
        """``GET /rooms/{roomId}/joined_members``, for those who are in the room."""
        member = await self._rooms.membership(room_id, caller.user_id)
        if member is None or member.membership != "join":
            raise forbidden("You are not in this room.")
        joined = {}
        for event in await self._rooms.joined_members(room_id, caller.user_id):
            content = content_of(event)
            profile = {"display_name": content.get("displayname"), "avatar_url": content.get("avatar_url")}
            joined[event.state_key or ""] = {key: value for key, value in profile.items() if isinstance(value, str)}
        return {"joined": joined}

    async def joined_rooms(self, caller: Caller) -> dict[str, list[str]]:
        """``GET /joined_rooms``."""
        members = await self._rooms.memberships(caller.user_id)
        return {"joined_rooms": [member.room_id for member in members if member.membership == "join"]}

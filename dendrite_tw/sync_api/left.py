"""A left room in a sync: what the user saw of it up to leaving, and nothing after.

Client-Server API, ``GET /sync``, "Left Room".
"""

from __future__ import annotations

import msgspec

from ..room_api.api import Membership, RoomAPI, RoomEvent
from .request import SyncRequest
from .rooms import MEMBER
from .splice import previous_membership
from .timeline import Timeline, before_event
from .tokens import SyncToken


class LeftRoom(msgspec.Struct, frozen=True, kw_only=True):
    """What is told of a room that the user left or was removed from.

    ``was_joined``: they were in it since the token, so others may no longer share a room with them.
    """

    room_id: str
    timeline: Timeline
    state: list[RoomEvent] = []
    was_joined: bool = False


class LeftReader:
    """Reads left rooms; seldom needed, so all of it comes from the room component."""

    def __init__(self, rooms: RoomAPI) -> None:
        self._rooms = rooms

    async def read(
        self, request: SyncRequest, member: Membership, since: SyncToken | None, empty_token: str
    ) -> LeftRoom | None:
        """The room up to the event that ended the membership; `None` where the user has forgotten it.

        Of a room that was deleted nothing is left to tell but that the user is out of it.
        """
        room_id = member.room_id
        current = await self._rooms.membership(room_id, request.user_id)
        if current is not None and current.forgotten:
            return None
        found = await self._rooms.events([member.event_id])
        if not found:
            return None if since is None else LeftRoom(room_id=room_id, timeline=Timeline([], False, empty_token))
        event = found[0]
        was_joined = previous_membership(event) == "join"
        if since is None:
            return await self._archived(request, member, was_joined)
        if 0 < event.position <= since.room:
            return await self._resolved(request, member, event, since.room, empty_token)
        if not was_joined:
            return LeftRoom(room_id=room_id, timeline=only(request, event, empty_token))
        before = await self._member_before(event, since.room)
        if before is None or before.membership != "join":
            return msgspec.structs.replace(await self._archived(request, member, True), was_joined=True)
        events, limited = await self._newest(request, room_id, since.room, member.position)
        state: list[RoomEvent] = []
        if limited or request.state_after:
            state = await self._delta(request, room_id, since.room, events, member.position)
        timeline = Timeline(events, limited, before_event(events[0]) if events else empty_token)
        return LeftRoom(room_id=room_id, timeline=timeline, state=state, was_joined=True)

    async def _resolved(
        self, request: SyncRequest, member: Membership, event: RoomEvent, since: int, empty_token: str
    ) -> LeftRoom:
        """The room, where branches that met made an event which the client may know end the membership after all."""
        changes = await self._rooms.state_changes(member.room_id, since, member.position)
        own = next((one for one in changes if (one.type, one.state_key) == (MEMBER, request.user_id)), None)
        if own is None or own.before is None or own.before.membership != "join":
            return LeftRoom(room_id=member.room_id, timeline=Timeline([], False, empty_token), state=[event])
        events, limited = await self._newest(request, member.room_id, since, member.position)
        shown = {event.event_id for event in events}
        state = [one.now for one in changes if one.now is not None and one.now.event_id not in shown]
        return LeftRoom(
            room_id=member.room_id,
            timeline=Timeline(events, limited, before_event(events[0]) if events else empty_token),
            state=[event for event in state if request.wants_in_state(event)],
            was_joined=True,
        )

    async def _member_before(self, event: RoomEvent, since: int) -> RoomEvent | None:
        """The user's member event that was current at `since`; `None` where they left or rejoined in between."""
        while event.position > since:
            if event.replaces is None:
                return None
            found = await self._rooms.events([event.replaces])
            if not found or (found[0].position > since and found[0].membership != "join"):
                return None
            event = found[0]
        return event

    async def _newest(self, request: SyncRequest, room_id: str, after: int, upto: int) -> tuple[list[RoomEvent], bool]:
        """The newest visible events up to leaving; the event of leaving is seen in any case."""
        found = await self._rooms.timeline(room_id, after, upto, request.timeline_limit, None)
        seen = await self._rooms.visible(request.user_id, found.events)
        hidden = len(seen) < len(found.events)
        return [event for event in seen if request.wants_in_timeline(event)], found.more or hidden

    async def _delta(
        self, request: SyncRequest, room_id: str, since: int, events: list[RoomEvent], upto: int
    ) -> list[RoomEvent]:
        end = upto if request.state_after or not events else events[0].position - 1
        changed = [change.now for change in await self._rooms.state_changes(room_id, since, end)]
        return [event for event in changed if event is not None and request.wants_in_state(event)]

    async def _archived(self, request: SyncRequest, member: Membership, was_joined: bool) -> LeftRoom:
        """All that may still be seen of a room: its last events and the state before them."""
        room_id = member.room_id
        events: list[RoomEvent] = []
        limited = False
        state: list[RoomEvent] = []
        if was_joined:
            events, limited = await self._newest(request, room_id, 0, member.position)
            end = member.position if request.state_after or not events else events[0].position - 1
            state = [e for e in await self._rooms.state_at(room_id, end) if request.wants_in_state(e)]
            if request.filter.lazy_load_members:
                users = {event.sender for event in events} | {request.user_id}
                state = [event for event in state if event.type != MEMBER or event.state_key in users]
        else:
            events = await self._rooms.events([member.event_id])
        return LeftRoom(
            room_id=room_id,
            timeline=Timeline(events, limited, before_event(events[0]) if events else ""),
            state=state,
            was_joined=False,
        )


def only(request: SyncRequest, event: RoomEvent, empty_token: str) -> Timeline:
    """A timeline of the event that ended an invite, a knock or a ban."""
    if not request.wants_in_timeline(event):
        return Timeline([], False, empty_token)
    return Timeline([event], False, before_event(event) if event.position > 0 else empty_token)

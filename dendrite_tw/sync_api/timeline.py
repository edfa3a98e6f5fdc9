"""The timeline of a room in a sync: the newest events that the user may see and wants.

Client-Server API, "Syncing" and "Room History Visibility".
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from ..matrix.visibility import HISTORY_VISIBILITY, Visibility, visibility_from
from ..room_api.api import Membership, RoomAPI, RoomEvent, timeline_token
from .request import SyncRequest, database_filter
from .rooms import MEMBER, Room, RoomCache
from .splice import content_of, previous_membership
from .tokens import SyncToken

ROUNDS = 5
"""How often more is asked for where what came was not to be shown."""

HIDDEN_ALLOWANCE = 10
"""How many times the wanted events are looked at in memory where some of them may be hidden from the user."""


class Timeline(msgspec.Struct, frozen=True):
    """Events of a room, oldest first; ``limited`` where older ones of the span are left out."""

    events: list[RoomEvent] = []
    limited: bool = False
    prev_batch: str = ""


def before_event(event: RoomEvent) -> str:
    """The token of the place just before an event."""
    return timeline_token(event.depth, event.position - 1)


class TimelineReader:
    """Reads timelines from memory where it can, from the room component where it must."""

    def __init__(self, rooms: RoomAPI, cache: RoomCache) -> None:
        self._rooms = rooms
        self._cache = cache

    async def read(
        self, request: SyncRequest, room: Room, after: int, upto: int, check_visibility: bool, empty_token: str
    ) -> Timeline:
        """What the user sees of (after, upto]; ``empty_token`` is the place of a timeline that is empty."""
        limit = request.timeline_limit
        wanted = request.filter.timeline
        if wanted.accepts_nothing or not wanted.check_room(room.room_id):
            return Timeline([], False, empty_token)
        found = None if wanted.needs_relations else room.newest(after, upto, limit, request.wants_in_timeline)
        if found is None:
            return await self._from_disk(request, room, after, upto, limit, check_visibility, empty_token)
        events, limited = found
        if check_visibility and events and not all_visible(room, request.stream.memberships.get(room.room_id), events):
            wide = room.newest(after, upto, limit * HIDDEN_ALLOWANCE, request.wants_in_timeline)
            if wide is None:
                return await self._from_disk(request, room, after, upto, limit, check_visibility, empty_token)
            events, limited = wide
            seen = await self._visible(request, room, events)
            limited = limited or len(seen) < len(events) or len(seen) > limit
            events = seen[-limit:]
        left_out = (event for event in room.timeline if event.position > after) if limited else ()
        return Timeline(events, limited, start_of(events, limited, upto, empty_token, left_out))

    async def _visible(self, request: SyncRequest, room: Room, events: list[RoomEvent]) -> list[RoomEvent]:
        """Those of `events` that the user may see: what is current state is shown in any case."""
        seen = {event.event_id for event in await self._rooms.visible(request.user_id, events)}
        return [event for event in events if event.event_id in seen or is_current(room, event)]

    async def _from_disk(
        self,
        request: SyncRequest,
        room: Room,
        after: int,
        upto: int,
        limit: int,
        check_visibility: bool,
        empty_token: str,
    ) -> Timeline:
        wanted = database_filter(request.filter.definition.room.timeline)
        events: list[RoomEvent] = []
        more, hidden, end = True, False, upto
        for _ in range(ROUNDS):
            found = await self._rooms.timeline(room.room_id, after, upto, limit - len(events), wanted)
            page, more = found.events, found.more
            if not page:
                break
            upto = page[0].position - 1
            page = [event for event in page if request.wants_in_timeline(event)]
            if check_visibility and page:
                seen = await self._visible(request, room, page)
                hidden = hidden or len(seen) < len(page)
                page = seen
            events = page + events
            if len(events) >= limit or not more or found.cut:
                break
        limited = more or hidden
        if limited and events:
            return Timeline(events, limited, str(SyncToken(events[0].position - 1)))
        return Timeline(events, limited, start_of(events, limited, end, empty_token))


def start_of(
    events: list[RoomEvent], limited: bool, end: int, empty_token: str, left_out: Iterable[RoomEvent] = ()
) -> str:
    """Where the events begin, ``prev_batch``; ``end`` is the position at which the timeline ends.

    A client that goes back from there has to come upon the events before, ``left_out`` (later ones among them do not
    count).  History goes by depth: on another branch an event that came earlier may lie above the first one here.
    """
    if events:
        first = events[0]
        above = max(((e.depth, e.position) for e in left_out if e.position < first.position), default=(0, 0))
        return timeline_token(*max((first.depth, first.position - 1), above))
    return str(SyncToken(end, 0, 0, 0)) if limited else empty_token


def is_current(room: Room, event: RoomEvent) -> bool:
    """Whether an event is part of the room's current state, which every member is told of."""
    if event.state_key is None:
        return False
    current = room.get((event.type, event.state_key))
    return current is not None and current.event_id == event.event_id


def all_visible(room: Room, member: Membership | None, events: list[RoomEvent]) -> bool:
    """Whether a joined user sees all of `events` for a reason that needs no look at each.

    They joined before the first of them, or history was shared all along.
    """
    if member is None or member.membership != "join":
        return False
    first = events[0].position
    if member.position <= first:
        return True
    setting = room.state.get((HISTORY_VISIBILITY, ""))
    if setting is None:
        return True
    if setting.position > first:
        return False
    return visibility_from(content_of(setting)) in (Visibility.SHARED, Visibility.WORLD_READABLE)


def memberships_at(user_id: str, member: Membership | None, events: list[RoomEvent]) -> list[str | None]:
    """The user's membership at each of `events` (oldest first), changes by the event included.

    `None` where that cannot be told from the events and the current membership.
    """
    if member is None:
        return [None] * len(events)
    if not events or member.position <= events[0].position:
        return [member.membership] * len(events)
    found: list[str | None] = []
    current: str | None = None
    for event in reversed(events):
        if event.position >= member.position and current is None:
            found.append(member.membership)
            if event.event_id == member.event_id:
                current = previous_membership(event)
            continue
        if event.type == MEMBER and event.state_key == user_id:
            found.append(event.membership)
            current = previous_membership(event)
            continue
        found.append(current)
    found.reverse()
    return found

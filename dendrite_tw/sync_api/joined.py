"""A joined room in a sync: what is new in it, or all of it where it is new to the client.

Client-Server API, ``GET /sync``, "Joined Room".
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from ..room_api.api import Membership, RoomAPI, RoomEvent
from .lazy import SentMembers
from .request import SyncRequest
from .rooms import MEMBER, Room, RoomCache, Slot
from .splice import content_of, previous_membership
from .state import StateSpan, fill_in, full_state, state_delta
from .timeline import Timeline, TimelineReader, start_of
from .tokens import SyncToken

HEROES = 5
NAMES = {"m.room.name": "name", "m.room.canonical_alias": "alias"}
"""The types of state that name a room, and where in their content."""

COMPARED_MEMBERS = 2000
"""Members of a room up to whom it is looked at who is not in it any more after its state was replaced as a whole."""

WALK_LIMIT = 50
"""How many changes of a profile are followed back to find when a user joined."""


class Summary(msgspec.Struct, frozen=True):
    """``summary``: whom to name the room after, where it has no name, and how many are in it."""

    heroes: list[str] | None
    joined: int
    invited: int


class JoinedRoom(msgspec.Struct, frozen=True, kw_only=True):
    """What a client is told of a room's events.

    ``newly_joined``: the user joined since the token, or the room could not be shown to
    the client before.  ``arrived`` and ``departed`` are the other users who joined or left,
    ``invited`` those who were invited, for the device lists.
    """

    room_id: str
    timeline: Timeline
    state: list[RoomEvent] = []
    summary: Summary | None = None
    newly_joined: bool = False
    arrived: list[str] = []
    departed: list[str] = []
    invited: list[str] = []


class JoinedReader:
    """Reads joined rooms for syncs."""

    def __init__(self, rooms: RoomAPI, cache: RoomCache, sent: SentMembers) -> None:
        self._rooms = rooms
        self._cache = cache
        self._sent = sent
        self._timelines = TimelineReader(rooms, cache)

    async def prepare(self, members: Iterable[Membership]) -> None:
        """Load rooms that are about to be read, with one question."""
        await self._cache.load(member.room_id for member in members)

    def acknowledge(self, request: SyncRequest) -> None:
        """The device has what it was told up to its token."""
        self._sent.acknowledge(request.device_key, request.acknowledged)

    async def newly_joined(self, request: SyncRequest, member: Membership, since: int) -> bool:
        """Whether the user, who is in the room, was not in it all the time since position `since`."""
        stream = request.stream
        if member.position <= since:
            return False
        joined_from = stream.joined_from.get(member.room_id)
        if joined_from is not None:
            return joined_from > since
        if since >= stream.tracked_from:
            return False
        event_id: str | None = member.event_id
        for _ in range(WALK_LIMIT):
            found = await self._rooms.events([event_id]) if event_id is not None else []
            if not found or (found[0].position > since and previous_membership(found[0]) != "join"):
                return True
            if found[0].position <= since:
                return False
            event_id = found[0].replaces
        return True

    async def read(
        self, request: SyncRequest, member: Membership, since: SyncToken | None, upto: SyncToken
    ) -> JoinedRoom | None:
        """What happened in a room in (since, upto]; all of it where `since` is `None` or the user is new.

        One who is new may have been there before and know some of its timeline; ``limited`` says that
        this one stands alone.  A room some of whose members are still missing is shown to those alone who
        load members lazily (`None` for others), and to the others once it is whole.
        """
        room_id = member.room_id
        newly = since is None or await self.newly_joined(request, member, since.room)
        room = self._cache.peek(room_id) or await self._cache.get(room_id)
        if room.partial and not request.filter.lazy_load_members:
            return None
        rewritten = since is not None and room.rewritten > since.room
        newly = newly or (rewritten and not request.filter.lazy_load_members)
        full = newly or rewritten or request.full_state
        after = 0 if newly or since is None else since.room
        timeline = await self._timelines.read(request, room, after, upto.room, newly, str(since or upto))
        if since is not None and (newly or rewritten):
            timeline = msgspec.structs.replace(timeline, limited=True)
        changed = None if full else room.changed_after(after)
        if changed is not None and not changed and not has_state(timeline):
            if not request.filter.lazy_load_members:
                return JoinedRoom(room_id=room_id, timeline=timeline)
            state = self._with_senders(request, room, StateSpan(room, upto.room, timeline.events), [], timeline, upto)
            return JoinedRoom(room_id=room_id, timeline=timeline, state=await fill_in(self._rooms, state))
        told = since.room if since is not None else upto.room
        return await self._with_state(request, room_id, upto, timeline, full, newly, told, rewritten)

    async def _with_state(
        self,
        request: SyncRequest,
        room_id: str,
        upto: SyncToken,
        timeline: Timeline,
        full: bool,
        newly: bool,
        told: int,
        rewritten: bool,
    ) -> JoinedRoom:
        """The room with what changed of its state; ``told`` is how far the client was told of anything.

        Where the state was replaced as a whole, a look at all that changed by it is worth while in rooms of few only.
        """
        room = await self._cache.get(room_id)
        compared = len(room.members) <= COMPARED_MEMBERS if rewritten else not newly
        base = room.changed_after(told) if compared else {}
        known: dict[Slot, RoomEvent | None] = {}
        if base is None:
            changes = await self._rooms.state_changes(room_id, told, upto.room)
            base = {(change.type, change.state_key): change.before for change in changes}
            known = {(change.type, change.state_key): change.now for change in changes}
            room = await self._cache.get(room_id)
        span = StateSpan(room, upto.room, timeline.events, known)
        void = 0 if request.state_after else void_upto(span, timeline)
        if void:
            timeline = after_position(timeline, void, upto.room)
            span = StateSpan(room, upto.room, timeline.events, known)
        arrived, departed = moved(span, base)
        if newly or rewritten:
            arrived, invited = everybody(span, "join"), everybody(span, "invite")
        else:
            invited = newly_invited(span, base)
        if newly:
            departed = []
        summary = self._summary(request, span, full or summary_changes(span, base))
        if full:
            also = known_members(room, base) if rewritten else ()
            slots = self._wanted_slots(request, span, timeline, summary, told, also)
            values = full_state(span, slots, request.state_after)
        else:
            values = state_delta(span, base, request.state_after)
            values = self._with_senders(request, room, span, values, timeline, upto, summary)
        state = await fill_in(self._rooms, values)
        if request.filter.lazy_load_members:
            self._sent.note(request.device_key, room_id, members_in((*state, *timeline.events)), upto)
        return JoinedRoom(
            room_id=room_id,
            timeline=timeline,
            state=[event for event in state if request.wants_in_state(event)],
            summary=summary,
            newly_joined=newly,
            arrived=arrived,
            departed=departed,
            invited=invited,
        )

    def _summary(self, request: SyncRequest, span: StateSpan, wanted: bool) -> Summary | None:
        if not wanted:
            return None
        room = span.room
        heroes = None if is_named(room) else [user for user in room.heroes() if user != request.user_id][:HEROES]
        return Summary(heroes, room.joined_count, room.invited_count)

    def _wanted_slots(
        self,
        request: SyncRequest,
        span: StateSpan,
        timeline: Timeline,
        summary: Summary | None,
        told: int,
        also: Iterable[str],
    ) -> Iterable[Slot]:
        """The slots of a full state: with lazy loading, of the members who matter only.

        These are also all who changed after `told`, for the client may know them from an earlier time, and `also`.
        """
        slots = span.slots_at_end()
        if not request.filter.lazy_load_members:
            return slots
        users = relevant_members(request, timeline, summary)
        users.setdefault(request.user_id)
        users.update((user, None) for user in also)
        users.update((user, None) for user, event in span.room.members.items() if event.position > told)
        return [slot for slot in slots if slot[0] != MEMBER or slot[1] in users]

    def _with_senders(
        self,
        request: SyncRequest,
        room: Room,
        span: StateSpan,
        values: list[RoomEvent | str | None],
        timeline: Timeline,
        upto: SyncToken,
        summary: Summary | None = None,
    ) -> list[RoomEvent | str | None]:
        """`values` and, with lazy loading, the senders' member events that the device may not have."""
        if not request.filter.lazy_load_members or not (timeline.events or summary):
            return values
        told = {value.event_id if isinstance(value, RoomEvent) else value for value in values if value is not None}
        added: list[RoomEvent] = []
        for user in relevant_members(request, timeline, summary):
            slot = (MEMBER, user)
            in_timeline = slot in span.first_in_timeline and not request.state_after
            value = span.replaced_by(slot) if in_timeline else span.at_end(slot)
            if not isinstance(value, RoomEvent) or value.event_id in told:
                continue
            redundant = self._sent.has(request.device_key, value)
            if not redundant or request.filter.include_redundant_members:
                added.append(value)
        self._sent.note(request.device_key, room.room_id, members_in((*added, *timeline.events)), upto)
        return [*values, *added]


def relevant_members(request: SyncRequest, timeline: Timeline, summary: Summary | None) -> dict[str, None]:
    """The users whose member events lazy loading is to give: senders and heroes."""
    users = dict.fromkeys(event.sender for event in timeline.events)
    if summary is not None and summary.heroes is not None:
        users.update(dict.fromkeys(summary.heroes))
    return users


def known_members(room: Room, base: dict[Slot, RoomEvent | None]) -> Iterable[str]:
    """Whom lazy loading has to give of a room whose state was replaced as a whole.

    Those whom the client may know as what they were before, and those who sent what it may have been shown
    without them.
    """
    yield from (slot[1] for slot, old in base.items() if slot[0] == MEMBER and old is not None)
    yield from (event.sender for event in room.timeline)


def has_state(timeline: Timeline) -> bool:
    return any(event.state_key is not None for event in timeline.events)


def void_upto(span: StateSpan, timeline: Timeline) -> int:
    """The position of the newest state event in a timeline that is not what it would leave a client with; 0 for none.

    It lost against another branch of the room, now or later.  A client takes what a timeline shows of the state
    for the newest, so the timeline has to begin after it.
    """
    last = {(event.type, event.state_key): event for event in timeline.events if event.state_key is not None}
    void = 0
    for (type_, key), event in last.items():
        current = span.at_end((type_, key or ""))
        if current is None or current.event_id != event.event_id:
            void = max(void, event.position)
    return void


def after_position(timeline: Timeline, position: int, end: int) -> Timeline:
    """What of a timeline that ends at `end` comes after a position."""
    events = [event for event in timeline.events if event.position > position]
    if timeline.limited and events:
        return Timeline(events, True, str(SyncToken(events[0].position - 1)))
    return Timeline(events, True, start_of(events, True, end, "", timeline.events))


def members_in(events: Iterable[RoomEvent]) -> Iterable[RoomEvent]:
    return (event for event in events if event.type == MEMBER and event.state_key is not None)


def summary_changes(span: StateSpan, base: dict[Slot, RoomEvent | None]) -> bool:
    """Whether, among the slots that changed, there is one on which a summary depends."""
    for slot, old in base.items():
        if slot[0] in NAMES and slot[1] == "":
            return True
        if slot[0] == MEMBER:
            event = span.at_end(slot)
            before = old.membership if old is not None else event and previous_membership(event)
            if event is None or event.membership != before:
                return True
    return False


def is_named(room: Room) -> bool:
    """Whether a room has a name or a main alias, so that it is not named after its members."""
    for type_, key in NAMES.items():
        event = room.state.get((type_, ""))
        if event is not None and content_of(event).get(key):
            return True
    return False


def everybody(span: StateSpan, membership: str) -> list[str]:
    """All who have a membership in the room."""
    return [user for user, event in span.room.members.items() if event.membership == membership]


def moved(span: StateSpan, base: dict[Slot, RoomEvent | None]) -> tuple[list[str], list[str]]:
    """The users who joined and those who left, among the slots that changed; who came back has joined."""
    arrived: list[str] = []
    departed: list[str] = []
    for slot, old in base.items():
        if slot[0] != MEMBER:
            continue
        event = span.at_end(slot)
        if event is None:
            if old is not None and old.membership == "join":
                departed.append(slot[1])
            continue
        before = old.membership if old is not None else previous_membership(event)
        if event.membership == "join" and (before != "join" or previous_membership(event) != "join"):
            arrived.append(slot[1])
        elif event.membership != "join" and before == "join":
            departed.append(slot[1])
    return arrived, departed


def newly_invited(span: StateSpan, base: dict[Slot, RoomEvent | None]) -> list[str]:
    """The users who are invited, among the slots that changed, and were not before."""
    found = []
    for slot, old in base.items():
        event = span.at_end(slot) if slot[0] == MEMBER else None
        if event is not None and event.membership == "invite":
            before = old.membership if old is not None else previous_membership(event)
            if before != "invite":
                found.append(slot[1])
    return found

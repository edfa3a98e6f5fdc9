"""Rooms, users and keys in memory: small, honest, and without a database.

`FakeRooms` gives every event a position, keeps the state after each, and
applies history visibility by the specification's rule; it tells what happens
on the queue as the room component does, unless `held` is set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import immutables
import msgspec
import orjson

from dendrite_tw.matrix.errors import forbidden, not_found
from dendrite_tw.matrix.visibility import may_see_event, sides_of_event, visibility_from
from dendrite_tw.room_api.api import (
    OUTPUT_ROOM_EVENT,
    STATE_COMPLETE,
    ChangedSlot,
    Context,
    Dressing,
    EventFilter,
    LiveEvents,
    Membership,
    OutputRoomEvent,
    Page,
    RoomEvent,
    RoomView,
    StateComplete,
    timeline_token,
)
from dendrite_tw.user_api.api import (
    OUTPUT_CLIENT_DATA,
    OUTPUT_KEY_CHANGE_EVENT,
    OUTPUT_NOTIFICATION_DATA,
    OUTPUT_RECEIPT_EVENT,
    OUTPUT_SEND_TO_DEVICE_EVENT,
    AccountDataChange,
    DeviceName,
    KeyChange,
    KeyCounts,
    Receipt,
    ToDeviceMessage,
    Unread,
    UnreadChange,
)
from dendrite_tw.world import Clock
from tests.fakes import FakeQueue

State = immutables.Map  # slot -> RoomEvent
MEMBER = "m.room.member"


@dataclass
class FakeRoom:
    room_id: str
    events: list[RoomEvent] = field(default_factory=list)
    partial: bool = False
    rewritten: int = 0
    invited: dict[str, tuple[RoomEvent, int, list[bytes]]] = field(default_factory=dict)
    """Who is invited to a room that this server is not in: the event, when it came, and what the room shows."""
    before: dict[str, Any] = field(default_factory=dict)
    after: list[tuple[int, Any]] = field(default_factory=list)

    @property
    def state(self) -> Any:
        return self.after[-1][1] if self.after else immutables.Map()

    def since(self, slot: tuple[str, str]) -> int:
        """The position since which the event at a slot is current."""
        current, found = self.state[slot], 0
        for position, state in reversed(self.after):
            if state.get(slot) is not current:
                break
            found = position
        return found

    def state_at(self, position: int) -> Any:
        found: Any = immutables.Map()
        for at, state in self.after:
            if at > position:
                break
            found = state
        return found


def content(event: RoomEvent) -> dict[str, Any]:
    value = orjson.loads(event.client)["content"]
    assert isinstance(value, dict)
    return value


class FakeRooms:
    """`RoomAPI`, the questions of it, over events that tests send by `send`, `join` and so on."""

    def __init__(self, queue: FakeQueue, clock: Clock) -> None:
        self.rooms: dict[str, FakeRoom] = {}
        self.by_id: dict[str, RoomEvent] = {}
        self.forgotten: set[tuple[str, str]] = set()
        self.bundles: dict[str, bytes] = {}
        self.held: list[OutputRoomEvent] | None = None
        self.asked: list[str] = []
        self._queue = queue
        self._clock = clock
        self._position = 0

    # --- making history ---

    def create(self, room_id: str, creator: str, visibility: str | None = None, name: str | None = None) -> str:
        self.rooms[room_id] = FakeRoom(room_id)
        self.send(room_id, creator, "m.room.create", {"room_version": "12"}, "")
        self.join(room_id, creator)
        if visibility is not None:
            self.send(room_id, creator, "m.room.history_visibility", {"history_visibility": visibility}, "")
        if name is not None:
            self.send(room_id, creator, "m.room.name", {"name": name}, "")
        return room_id

    def send(
        self,
        room_id: str,
        sender: str,
        type_: str,
        body: dict[str, Any],
        state_key: str | None = None,
        *,
        transaction: tuple[str, str] | None = None,
        also_replaced: Sequence[RoomEvent] = (),
        also_removed: Sequence[tuple[str, str]] = (),
        becomes_state: bool = True,
        gap: bool = False,
        rewrites: bool = False,
    ) -> RoomEvent:
        """Add an event.

        ``transaction`` is (device, transaction ID), ``also_replaced`` and ``also_removed`` a resolution's outcome;
        with ``rewrites`` they are not told of.
        """
        room = self.rooms[room_id]
        self._position += 1
        number = self._position
        slot = (type_, state_key)
        before = room.state
        for other in also_replaced:
            before = before.set((other.type, other.state_key), other)
            self.by_id[other.event_id] = other
        for gone in also_removed:
            before = before.delete(gone)
        old = before.get(slot) if state_key is not None else None
        client: dict[str, Any] = {
            "event_id": f"$e{number}",
            "type": type_,
            "sender": sender,
            "origin_server_ts": self._clock.now_ms(),
            "content": body,
        }
        if state_key is not None:
            client["state_key"] = state_key
        event = RoomEvent(
            event_id=f"$e{number}",
            room_id=room_id,
            sender=sender,
            type=type_,
            state_key=state_key,
            origin_server_ts=self._clock.now_ms(),
            position=number,
            depth=len(room.events) + 1,
            client=orjson.dumps(client),
            membership=body.get("membership") if type_ == MEMBER else None,
            has_url="url" in body,
            replaces=old.event_id if old is not None else None,
            prev_content=orjson.dumps(content(old)) if old is not None else None,
            prev_sender=old.sender if old is not None else None,
            transaction_device=transaction[0] if transaction else None,
            transaction_id=transaction[1] if transaction else None,
            gap=gap,
        )
        room.before[event.event_id] = before
        state = before.set(slot, event) if state_key is not None and becomes_state else before
        if rewrites:
            room.rewritten = number
        room.events.append(event)
        room.after.append((number, state))
        self.by_id[event.event_id] = event
        joined = [e for (t, _), e in state.items() if t == MEMBER and e.membership == "join"]
        self._tell(
            OutputRoomEvent(
                event=event,
                state_changed=state_key is not None and becomes_state,
                joined_members=len(joined),
                local_members=len(joined),
                room_version="12",
                also_replaced=[] if rewrites else list(also_replaced),
                also_removed=[] if rewrites else list(also_removed),
                rewrites_state=rewrites,
            )
        )
        return event

    def outlier(
        self, room_id: str, sender: str, type_: str, body: dict[str, Any], state_key: str, event_id: str
    ) -> RoomEvent:
        """A state event that is known apart from the timeline; `send` may be told that it is current."""
        event = RoomEvent(
            event_id=event_id,
            room_id=room_id,
            sender=sender,
            type=type_,
            state_key=state_key,
            origin_server_ts=self._clock.now_ms(),
            position=0,
            depth=1,
            client=orjson.dumps(
                {
                    "event_id": event_id,
                    "type": type_,
                    "sender": sender,
                    "origin_server_ts": self._clock.now_ms(),
                    "state_key": state_key,
                    "content": body,
                }
            ),
            membership=body.get("membership") if type_ == MEMBER else None,
        )
        self.by_id[event_id] = event
        return event

    def invite_from_elsewhere(
        self, room_id: str, sender: str, target: str, membership: str = "invite", prev: RoomEvent | None = None
    ) -> RoomEvent:
        """A membership in a room that this server is not in: told with a position, kept without."""
        room = self.rooms.setdefault(room_id, FakeRoom(room_id))
        self._position += 1
        event = self.outlier(room_id, sender, MEMBER, {"membership": membership}, target, f"$aside{self._position}")
        if prev is not None:
            event = msgspec.structs.replace(event, prev_content=orjson.dumps(content(prev)), replaces=prev.event_id)
            self.by_id[event.event_id] = event
        shown = [orjson.dumps({"type": "m.room.name", "sender": sender, "state_key": "", "content": {"name": "Far"}})]
        room.invited[target] = (event, self._position, shown)
        self._tell(
            OutputRoomEvent(
                event=msgspec.structs.replace(event, position=self._position),
                state_changed=True,
                joined_members=0,
                local_members=0,
                room_version="12",
            )
        )
        return event

    def complete(self, room_id: str, members: Sequence[RoomEvent]) -> None:
        """The missing members of a partial room arrive, and are in all of its states since then."""
        room = self.rooms[room_id]
        self._position += 1
        missing = {(MEMBER, event.state_key): event for event in members}
        room.after = [(position, state.update(missing)) for position, state in room.after]
        room.partial, room.rewritten = False, self._position
        told = StateComplete(room_id=room_id, position=self._position)
        headers = {"output_room_event_type": STATE_COMPLETE}
        self._queue.send(OUTPUT_ROOM_EVENT, msgspec.msgpack.encode(told), headers=headers)

    def _tell(self, output: OutputRoomEvent) -> None:
        if self.held is not None:
            self.held.append(output)
        else:
            self._queue.tell(OUTPUT_ROOM_EVENT, output)

    def release(self, count: int | None = None) -> None:
        """Tell what was held back: the first `count`, or all and hold back no more."""
        held = self.held or []
        self.held = None if count is None else held[count:]
        for output in held[:count]:
            self._queue.tell(OUTPUT_ROOM_EVENT, output)

    def redact(self, room_id: str, sender: str, event_id: str) -> RoomEvent:
        redaction = self.rooms[room_id]
        self._position += 1
        number = self._position
        client = orjson.dumps(
            {
                "event_id": f"$e{number}",
                "type": "m.room.redaction",
                "sender": sender,
                "origin_server_ts": self._clock.now_ms(),
                "content": {"redacts": event_id},
            }
        )
        event = RoomEvent(
            event_id=f"$e{number}",
            room_id=room_id,
            sender=sender,
            type="m.room.redaction",
            state_key=None,
            origin_server_ts=self._clock.now_ms(),
            position=number,
            depth=len(redaction.events) + 1,
            client=client,
        )
        target = self.by_id[event_id]
        kept = {"membership": target.membership} if target.membership else {}
        pruned = orjson.dumps({**orjson.loads(target.client), "content": kept})
        self._replace(msgspec.structs.replace(target, client=pruned, redacted_by=client))
        for later in list(self.by_id.values()):
            if later.replaces == event_id:
                self._replace(msgspec.structs.replace(later, prev_content=orjson.dumps(kept)))
        redaction.before[event.event_id] = redaction.state
        redaction.events.append(event)
        redaction.after.append((number, redaction.state))
        self.by_id[event.event_id] = event
        self._tell(
            OutputRoomEvent(
                event=event, state_changed=False, joined_members=0, local_members=0, room_version="12", redacts=event_id
            )
        )
        return event

    def _replace(self, event: RoomEvent) -> None:
        room = self.rooms[event.room_id]
        self.by_id[event.event_id] = event
        room.events = [event if known.event_id == event.event_id else known for known in room.events]

        def renew(state: Any) -> Any:
            slot = (event.type, event.state_key)
            current = state.get(slot)
            return state.set(slot, event) if current is not None and current.event_id == event.event_id else state

        room.after = [(position, renew(state)) for position, state in room.after]
        room.before = {event_id: renew(state) for event_id, state in room.before.items()}

    def message(self, room_id: str, sender: str, body: str = "hello", **extra: Any) -> RoomEvent:
        return self.send(room_id, sender, "m.room.message", {"msgtype": "m.text", "body": body}, **extra)

    def member(self, room_id: str, sender: str, target: str, membership: str, **body: Any) -> RoomEvent:
        return self.send(room_id, sender, MEMBER, {"membership": membership, **body}, target)

    def join(self, room_id: str, user: str, **body: Any) -> RoomEvent:
        return self.member(room_id, user, user, "join", **body)

    def leave(self, room_id: str, user: str) -> RoomEvent:
        return self.member(room_id, user, user, "leave")

    def invite(self, room_id: str, sender: str, target: str) -> RoomEvent:
        return self.member(room_id, sender, target, "invite")

    # --- questions ---

    async def position(self) -> int:
        return self._position

    async def memberships(self, user_id: str) -> list[Membership]:
        self.asked.append("memberships")
        found = [await self.membership(room_id, user_id) for room_id in self.rooms]
        return [member for member in found if member is not None]

    async def rooms_joined(self, user_ids: Sequence[str]) -> dict[str, list[str]]:
        self.asked.append("rooms_joined")
        found: dict[str, list[str]] = {}
        for user_id in user_ids:
            members = await self.memberships(user_id)
            found[user_id] = [member.room_id for member in members if member.membership == "join"]
        return found

    async def membership(self, room_id: str, user_id: str) -> Membership | None:
        room = self.rooms.get(room_id)
        event = room.state.get((MEMBER, user_id)) if room is not None else None
        position = room.since((MEMBER, user_id)) if room is not None and event is not None else 0
        if room is not None and user_id in room.invited:
            event, position, _ = room.invited[user_id]
        if event is None:
            return None
        return Membership(
            room_id=room_id,
            user_id=user_id,
            membership=event.membership,
            event_id=event.event_id,
            sender=event.sender,
            position=position,
            forgotten=(room_id, user_id) in self.forgotten,
        )

    async def local_memberships(self, room_id: str) -> list[Membership]:
        users = [key for type_, key in self.rooms[room_id].state if type_ == MEMBER and key.endswith(":test")]
        found = [await self.membership(room_id, user) for user in users]
        return [member for member in found if member is not None]

    async def joined_users(self, room_id: str) -> list[str]:
        state = self.rooms[room_id].state
        return [key for (type_, key), event in state.items() if type_ == MEMBER and event.membership == "join"]

    async def shares_room(self, user_id: str, others: list[str]) -> list[str]:
        shared: set[str] = set()
        for room_id in self.rooms:
            users = set(await self.joined_users(room_id))
            if user_id in users:
                shared |= users
        return [user for user in others if user in shared]

    async def room_view(self, room_id: str, timeline_limit: int) -> RoomView:
        self.asked.append("room_view")
        room = self.rooms[room_id]
        return RoomView(
            room_id=room_id,
            room_version="12",
            position=room.events[-1].position,
            state=list(room.state.values()),
            timeline=room.events[-timeline_limit:],
            complete=len(room.events) <= timeline_limit,
            partial=room.partial,
            rewritten=room.rewritten,
        )

    async def room_views(self, room_ids: Sequence[str], timeline_limit: int) -> list[RoomView]:
        self.asked.append("room_views")
        return [await self.room_view(room_id, timeline_limit) for room_id in room_ids if room_id in self.rooms]

    async def newest_positions(self, room_ids: Sequence[str]) -> dict[str, int]:
        rooms = [self.rooms[room_id] for room_id in room_ids]
        return {room.room_id: max(room.events[-1].position, room.rewritten) for room in rooms}

    async def stripped_state(self, room_id: str, user_id: str) -> list[bytes]:
        if user_id in self.rooms[room_id].invited:
            return self.rooms[room_id].invited[user_id][2]
        state = self.rooms[room_id].state
        slots = [("m.room.create", ""), ("m.room.name", ""), (MEMBER, user_id)]
        return [
            orjson.dumps(
                {"type": e.type, "sender": e.sender, "state_key": e.state_key, "content": content(e)},
            )
            for slot in slots
            if (e := state.get(slot)) is not None
        ]

    async def pdus(self, event_ids: Sequence[str]) -> dict[str, bytes]:
        return {
            event_id: orjson.dumps({**orjson.loads(self.by_id[event_id].client), "auth_events": []})
            for event_id in event_ids
        }

    async def timeline(self, room_id: str, after: int, upto: int, limit: int, filter: EventFilter | None) -> LiveEvents:
        self.asked.append("timeline")
        events = [e for e in self.rooms[room_id].events if after < e.position <= upto]
        gap = next((place for place in reversed(range(len(events))) if events[place].gap), None)
        events = events[gap or 0 :]
        if filter is not None:
            events = [e for e in events if filter.types is None or e.type in filter.types]
            events = [e for e in events if e.type not in filter.not_types and e.sender not in filter.not_senders]
        more = len(events) > limit
        return LiveEvents(events=events[-limit:], more=more or gap is not None, cut=gap is not None and not more)

    async def state_at(self, room_id: str, position: int) -> list[RoomEvent]:
        self.asked.append("state_at")
        return list(self.rooms[room_id].state_at(position).values())

    async def state_changes(self, room_id: str, after: int, upto: int) -> list[ChangedSlot]:
        self.asked.append("state_changes")
        before, now = (self.rooms[room_id].state_at(position) for position in (after, upto))
        slots = {**dict(before), **dict(now)}
        return [
            ChangedSlot(type=slot[0], state_key=slot[1], before=before.get(slot), now=now.get(slot))
            for slot in slots
            if before.get(slot) != now.get(slot)
        ]

    async def current_state(self, room_id: str, user_id: str) -> list[RoomEvent]:
        if room_id not in self.rooms:
            raise forbidden("You are not in this room.")
        room = self.rooms[room_id]
        member = room.state.get((MEMBER, user_id))
        if member is None or member.membership in ("invite", "knock"):
            raise forbidden("You are not in this room.")
        if member.membership == "join":
            return list(room.state.values())
        return list(room.state_at(member.position).values())

    async def state_event(self, room_id: str, user_id: str, type: str, state_key: str) -> RoomEvent:
        for event in await self.current_state(room_id, user_id):
            if (event.type, event.state_key) == (type, state_key):
                return event
        raise not_found("There is no such state.")

    async def members(
        self, room_id: str, user_id: str, at: str | None, membership: str | None, not_membership: str | None
    ) -> list[RoomEvent]:
        self.asked.append(f"members {at} {membership} {not_membership}")
        return [event for event in await self.current_state(room_id, user_id) if event.type == MEMBER]

    async def joined_members(self, room_id: str, user_id: str) -> list[RoomEvent]:
        return [e for e in await self.members(room_id, user_id, None, None, None) if e.membership == "join"]

    async def event(self, room_id: str, user_id: str, event_id: str) -> RoomEvent:
        event = self.by_id.get(event_id)
        if event is None or event.room_id != room_id or not await self.visible(user_id, [event]):
            raise not_found("There is no such event.")
        return event

    async def events(self, event_ids: list[str]) -> list[RoomEvent]:
        self.asked.append("events")
        return [self.by_id[event_id] for event_id in event_ids if event_id in self.by_id]

    async def messages(
        self,
        room_id: str,
        user_id: str,
        direction: str,
        from_token: str | None,
        to_token: str | None,
        limit: int,
        filter: EventFilter | None,
        lazy_load_members: bool,
    ) -> Page:
        self.asked.append(f"messages {direction} {from_token} {to_token} {limit}")
        await self.current_state(room_id, user_id)
        events = list(self.rooms[room_id].events)
        start = events[-1].position if from_token is None else page_position(from_token)
        if direction == "b":
            events = [event for event in reversed(events) if event.position <= start]
        else:
            events = [event for event in events if event.position > start]
        seen = await self.visible(user_id, events[:limit])
        end = None
        if len(events) > limit:
            last = events[limit - 1]
            end = timeline_token(last.depth, last.position - 1 if direction == "b" else last.position)
        members = await self.members(room_id, user_id, None, None, None) if lazy_load_members else []
        state = [event for event in members if event.state_key in {e.sender for e in seen}]
        return Page(events=seen, start=from_token or timeline_token(0, start), end=end, state=state)

    async def context(
        self, room_id: str, user_id: str, event_id: str, limit: int, filter: EventFilter | None, lazy_load_members: bool
    ) -> Context:
        self.asked.append(f"context {limit}")
        event = await self.event(room_id, user_id, event_id)
        events = self.rooms[room_id].events
        index = events.index(event)
        before, after = events[max(0, index - limit // 2) : index][::-1], events[index + 1 : index + 1 + limit // 2]
        return Context(
            event=event,
            events_before=before,
            events_after=after,
            start=timeline_token(1, event.position - 1),
            end=timeline_token(1, event.position),
            state=list(self.rooms[room_id].state.values()),
        )

    async def relations(
        self,
        room_id: str,
        user_id: str,
        event_id: str,
        rel_type: str | None,
        event_type: str | None,
        direction: str,
        from_token: str | None,
        to_token: str | None,
        limit: int,
        recurse: bool,
    ) -> Page:
        self.asked.append(f"relations {rel_type} {event_type} {direction} {from_token} {to_token} {limit} {recurse}")
        await self.event(room_id, user_id, event_id)
        children = [
            event
            for event in reversed(self.rooms[room_id].events)
            if content(event).get("m.relates_to", {}).get("event_id") == event_id
        ]
        end = timeline_token(1, children[limit - 1].position - 1) if len(children) > limit else None
        return Page(events=children[:limit], start=from_token or "", end=end)

    async def threads(self, room_id: str, user_id: str, include: str, from_token: str | None, limit: int) -> Page:
        self.asked.append(f"threads {include} {from_token} {limit}")
        await self.current_state(room_id, user_id)
        return Page(events=self.rooms[room_id].events[-limit:], start="", end=None)

    async def aggregations(self, room_id: str, event_ids: Sequence[str], user_id: str) -> dict[str, bytes]:
        self.asked.append("aggregations")
        return {event_id: self.bundles[event_id] for event_id in event_ids if event_id in self.bundles}

    async def aggregations_of(self, events: Mapping[str, Sequence[str]], user_id: str) -> dict[str, bytes]:
        self.asked.append("aggregations_of")
        return {
            event_id: self.bundles[event_id]
            for of_room in events.values()
            for event_id in of_room
            if event_id in self.bundles
        }

    async def dressing(self, room_id: str, event_ids: Sequence[str], user_id: str) -> Dressing:
        self.asked.append("dressing")
        bundles = {event_id: self.bundles[event_id] for event_id in event_ids if event_id in self.bundles}
        return Dressing(membership=await self.membership(room_id, user_id), bundles=bundles)

    async def timestamp_to_event(self, room_id: str, user_id: str, ts: int, direction: str) -> tuple[str, int]:
        await self.current_state(room_id, user_id)
        events = self.rooms[room_id].events
        found = [e for e in events if (e.origin_server_ts >= ts if direction == "f" else e.origin_server_ts <= ts)]
        if not found:
            raise not_found("There is no event in this direction.")
        event = found[0] if direction == "f" else found[-1]
        return event.event_id, event.origin_server_ts

    async def published(self, room_id: str) -> bool:
        return False

    async def visible(self, user_id: str, events: Sequence[RoomEvent]) -> list[RoomEvent]:
        self.asked.append("visible")
        return [event for event in events if self._may_see(user_id, event)]

    def _may_see(self, user_id: str, event: RoomEvent) -> bool:
        room = self.rooms[event.room_id]
        before = room.before[event.event_id]
        setting, member = before.get(("m.room.history_visibility", "")), before.get((MEMBER, user_id))
        visibility_after, membership_after = sides_of_event(event.type, event.state_key, content(event), user_id)
        return may_see_event(
            visibility=visibility_from(content(setting) if setting is not None else None),
            membership=member.membership if member is not None else None,
            joined_since=any(
                later.position > event.position
                and (later.type, later.state_key, later.membership) == (MEMBER, user_id, "join")
                for later in room.events
            ),
            visibility_after=visibility_after,
            membership_after=membership_after,
        )


def page_position(token: str) -> int:
    return int(token.split("_")[-1]) if token.startswith("t") else int(token[1:])


class FakeUsers:
    """`UserAPI`, the part that sync asks, and what changes the answers."""

    def __init__(self, queue: FakeQueue) -> None:
        self._queue = queue
        self._position = 0
        self.data: dict[tuple[str, str, str], AccountDataChange] = {}
        self.receipts: list[Receipt] = []
        self.counts: dict[tuple[str, str], Unread] = {}
        self.asked: list[str] = []

    def next(self) -> int:
        self._position += 1
        return self._position

    def set_account_data(self, user_id: str, type_: str, value: dict[str, Any], room_id: str = "") -> None:
        change = AccountDataChange(
            user_id=user_id, room_id=room_id, type=type_, content=orjson.dumps(value), position=self.next()
        )
        self.data[user_id, room_id, type_] = change
        self._queue.tell(OUTPUT_CLIENT_DATA, change)

    def ignore(self, user_id: str, *ignored: str) -> None:
        self.set_account_data(user_id, "m.ignored_user_list", {"ignored_users": {other: {} for other in ignored}})

    def read(
        self,
        room_id: str,
        user_id: str,
        event_id: str,
        receipt_type: str = "m.read",
        thread_id: str | None = None,
    ) -> None:
        receipt = Receipt(
            room_id=room_id,
            user_id=user_id,
            receipt_type=receipt_type,
            event_id=event_id,
            ts=1000,
            thread_id=thread_id,
            position=self.next(),
        )
        self.receipts.append(receipt)
        self._queue.tell(OUTPUT_RECEIPT_EVENT, receipt)

    def set_unread(self, user_id: str, room_id: str, count: int, threads: dict[str, tuple[int, int]]) -> None:
        self.counts[user_id, room_id] = Unread(room_id=room_id, notification_count=count, threads=threads)
        self._queue.tell(OUTPUT_NOTIFICATION_DATA, UnreadChange(user_id=user_id, room_id=room_id, position=self.next()))

    # --- questions ---

    async def position(self) -> int:
        return self._position

    async def account_data_since(self, user_id: str, after: int, upto: int) -> list[AccountDataChange]:
        self.asked.append("account_data_since")
        return [c for c in self.data.values() if c.user_id == user_id and after < c.position <= upto]

    async def account_data(self, user_id: str, room_id: str, type: str) -> bytes | None:
        known = self.data.get((user_id, room_id, type))
        return None if known is None else known.content

    async def receipts_since(self, room_ids: list[str], after: int, upto: int) -> list[Receipt]:
        self.asked.append("receipts_since")
        newest: dict[tuple[str, str, str, str | None], Receipt] = {}
        for r in self.receipts:
            newest[r.room_id, r.user_id, r.receipt_type, r.thread_id] = r
        return [r for r in newest.values() if r.room_id in room_ids and after < r.position <= upto]

    async def unread(self, user_id: str, room_ids: list[str], room_position: int) -> dict[str, Unread]:
        return {room_id: self.counts.get((user_id, room_id), Unread(room_id=room_id)) for room_id in room_ids}

    async def unread_of(self, rooms_of: dict[str, list[str]], room_position: int) -> dict[str, dict[str, Unread]]:
        self.asked.append("unread_of")
        return {user: await self.unread(user, room_ids, room_position) for user, room_ids in rooms_of.items()}

    async def ignored_users(self, user_id: str) -> frozenset[str]:
        known = self.data.get((user_id, "", "m.ignored_user_list"))
        return frozenset(orjson.loads(known.content)["ignored_users"]) if known is not None else frozenset()


class FakeKeys:
    """`KeyAPI`, the part that sync asks; positions are those of `FakeUsers`."""

    def __init__(self, queue: FakeQueue, users: FakeUsers) -> None:
        self._queue = queue
        self._users = users
        self.messages: list[ToDeviceMessage] = []
        self.changes: list[KeyChange] = []
        self.counts = KeyCounts(one_time_keys={"signed_curve25519": 50}, unused_fallback_types=["signed_curve25519"])
        self.deleted: list[tuple[str, str, int]] = []
        self.asked: list[str] = []

    def send(self, user_id: str, device_id: str, body: dict[str, Any]) -> None:
        event = orjson.dumps({"type": "m.test", "sender": "@sender:test", "content": body})
        message = ToDeviceMessage(user_id=user_id, device_id=device_id, event=event, position=self._users.next())
        self.messages.append(message)
        self._queue.tell(OUTPUT_SEND_TO_DEVICE_EVENT, message)

    def change(self, user_id: str, only_for: str = "") -> None:
        change = KeyChange(user_id=user_id, position=self._users.next(), only_for=only_for)
        self.changes.append(change)
        self._queue.tell(OUTPUT_KEY_CHANGE_EVENT, change)

    async def to_device_since(
        self, user_id: str, device_id: str, after: int, upto: int, limit: int
    ) -> list[ToDeviceMessage]:
        mine = [m for m in self.messages if (m.user_id, m.device_id) == (user_id, device_id)]
        return [m for m in mine if after < m.position <= upto][:limit]

    async def delete_to_device(self, user_id: str, device_id: str, upto: int) -> None:
        self.deleted.append((user_id, device_id, upto))
        self.messages = [
            m for m in self.messages if (m.user_id, m.device_id) != (user_id, device_id) or m.position > upto
        ]

    async def key_changes_since(self, after: int, upto: int) -> list[str]:
        return [c.user_id for c in self.changes if not c.only_for and after < c.position <= upto]

    async def signatures_since(self, user_id: str, after: int, upto: int) -> list[str]:
        return [c.user_id for c in self.changes if c.only_for == user_id and after < c.position <= upto]

    async def key_counts(self, user_id: str, device_id: str) -> KeyCounts:
        self.asked.append("key_counts")
        return self.counts

    async def key_counts_of(self, devices: list[DeviceName]) -> list[KeyCounts]:
        self.asked.append("key_counts_of")
        return [self.counts for _ in devices]

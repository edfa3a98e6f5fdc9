"""The answer of sync v2: the model laid out as ``GET /sync`` has it, in bytes.

Events, account data and receipts are JSON already and are only put together.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import orjson

from ..room_api.api import Membership, RoomAPI, RoomEvent
from ..user_api.api import AccountDataChange, KeyCounts, Unread
from .device_lists import DeviceLists
from .joined import JoinedRoom, Summary
from .left import LeftRoom
from .model import ROOMS_BETWEEN_PAUSES, RoomExtras, StrippedRoom, SyncChanges
from .presence import presence_event
from .receipts import ReceiptLog
from .request import SyncRequest
from .splice import Renderer, events_object, mapping, project
from .timeline import Timeline, memberships_at

NO_EXTRAS = RoomExtras()


def answer_json(token: str, sections: bytes, counts: bytes) -> bytes:
    """A whole answer; `sections` and `counts` are members of the object, each with a comma before it."""
    return b'{"next_batch":"%b"%b%b}' % (token.encode(), sections, counts)


def counts_json(counts: KeyCounts | None) -> bytes:
    """The members about a device's keys, with a comma before each; nothing for a caller without a device."""
    if counts is None:
        return b""
    return b',"device_one_time_keys_count":%b,"device_unused_fallback_key_types":%b' % (
        orjson.dumps(counts.one_time_keys),
        orjson.dumps(counts.unused_fallback_types),
    )


class SyncView:
    """Writes answers of ``GET /sync``."""

    def __init__(
        self, rooms: RoomAPI, renderer: Renderer, receipts: ReceiptLog, pause: Callable[[], Awaitable[None]]
    ) -> None:
        self._rooms = rooms
        self._renderer = renderer
        self._receipts = receipts
        self._pause = pause

    async def write(self, request: SyncRequest, changes: SyncChanges) -> bytes:
        """The members of the answer that tell something, each with a comma before it; empty where none does."""
        sections: list[bytes] = []
        rooms = await self._write_rooms(request, changes)
        if rooms:
            sections.append(b',"rooms":' + rooms)
        if changes.account_data:
            sections.append(b',"account_data":' + events_object(map(account_data_event, changes.account_data)))
        if changes.to_device:
            sections.append(b',"to_device":' + events_object(message.event for message in changes.to_device))
        if changes.device_lists:
            sections.append(b',"device_lists":' + device_lists_json(changes.device_lists))
        if changes.presence:
            events = (presence_event(presence, request.now) for presence in changes.presence)
            sections.append(b',"presence":' + events_object(events))
        return b"".join(sections)

    async def _write_rooms(self, request: SyncRequest, changes: SyncChanges) -> bytes:
        sections: list[tuple[str, bytes]] = []
        joined: list[tuple[str, bytes]] = []
        relations = await self._relations(request, changes)
        for number, room in enumerate(changes.joined, 1):
            extras = changes.extras.get(room.room_id, NO_EXTRAS)
            written = await self._write_joined(request, room, extras, relations)
            if written is not None:
                joined.append((room.room_id, written))
            if number % ROOMS_BETWEEN_PAUSES == 0:
                await self._pause()
        if joined:
            sections.append(("join", mapping(joined)))
        if changes.invited:
            sections.append(("invite", stripped_json(changes.invited, b"invite_state")))
        if changes.knocked:
            sections.append(("knock", stripped_json(changes.knocked, b"knock_state")))
        if changes.left:
            left = [(room.room_id, await self._write_left(request, room, relations)) for room in changes.left]
            sections.append(("leave", mapping(left)))
        return mapping(sections) if sections else b""

    async def _relations(self, request: SyncRequest, changes: SyncChanges) -> dict[str, bytes]:
        """The aggregations of the messages in limited timelines, by event."""
        wanted: dict[str, list[str]] = {}
        timelines = [(room.room_id, room.timeline) for room in changes.joined if room.timeline.limited]
        timelines += [(room.room_id, room.timeline) for room in changes.left if room.timeline.limited]
        for room_id, timeline in timelines:
            messages = [event.event_id for event in timeline.events if event.state_key is None]
            if messages:
                wanted[room_id] = messages
        return await self._rooms.aggregations_of(wanted, request.user_id) if wanted else {}

    async def _write_joined(
        self, request: SyncRequest, room: JoinedRoom, extras: RoomExtras, relations: dict[str, bytes]
    ) -> bytes | None:
        timeline = room.timeline
        news = timeline.events or timeline.limited or room.state or room.summary is not None
        if not news and not extras and not request.full_state:
            return None
        member = request.stream.memberships.get(room.room_id)
        parts = [await self._write_timeline(request, timeline, member, relations)]
        parts.append(await self._write_state(request, room.state))
        if room.summary is not None:
            parts.append(b',"summary":' + summary_json(room.summary))
        ephemeral = self._receipts.events(room.room_id, extras.receipts, request.user_id)
        if extras.typing is not None:
            ephemeral = [extras.typing, *ephemeral]
        if ephemeral:
            parts.append(b',"ephemeral":' + events_object(ephemeral))
        if extras.account_data:
            parts.append(b',"account_data":' + events_object(map(account_data_event, extras.account_data)))
        if extras.unread is not None:
            parts.append(unread_json(extras.unread, request.filter.unread_thread_notifications))
        return b"{" + b"".join(parts) + b"}"

    async def _write_left(self, request: SyncRequest, room: LeftRoom, relations: dict[str, bytes]) -> bytes:
        timeline = await self._write_timeline(request, room.timeline, None, relations)
        return b"{" + timeline + await self._write_state(request, room.state) + b"}"

    async def _write_timeline(
        self, request: SyncRequest, timeline: Timeline, member: Membership | None, relations: dict[str, bytes]
    ) -> bytes:
        """The member ``timeline``; a limited one has the aggregations of its events bundled."""
        memberships = memberships_at(request.user_id, member, timeline.events)
        if request.filter.federation_format:
            events = await self._as_pdus(timeline.events)
        else:
            render, now, caller = self._renderer.render, request.now, request.caller
            events = [
                render(event, now, caller, membership, relations.get(event.event_id))
                for event, membership in zip(timeline.events, memberships, strict=True)
            ]
        return b'"timeline":{"events":[%b],"limited":%b,"prev_batch":"%b"}' % (
            b",".join(self._projected(request, events)),
            b"true" if timeline.limited else b"false",
            timeline.prev_batch.encode(),
        )

    async def _write_state(self, request: SyncRequest, state: list[RoomEvent]) -> bytes:
        name = b',"state_after":' if request.state_after else b',"state":'
        if not state:
            return name + b'{"events":[]}'
        if request.filter.federation_format:
            events = await self._as_pdus(state)
        else:
            events = [self._renderer.render(event, request.now, request.caller) for event in state]
        return name + events_object(self._projected(request, events))

    async def _as_pdus(self, events: list[RoomEvent]) -> list[bytes]:
        """The events as they came over federation, for ``event_format``."""
        pdus = await self._rooms.pdus([event.event_id for event in events])
        return [pdus[event.event_id] for event in events if event.event_id in pdus]

    def _projected(self, request: SyncRequest, events: list[bytes]) -> list[bytes]:
        projection = request.filter.projection
        return events if projection is None else [project(event, projection) for event in events]


def account_data_event(change: AccountDataChange) -> bytes:
    return b'{"type":%b,"content":%b}' % (orjson.dumps(change.type), change.content)


def device_lists_json(lists: DeviceLists) -> bytes:
    shown = {"changed": lists.changed, "left": lists.left}
    return orjson.dumps({name: users for name, users in shown.items() if users})


def summary_json(summary: Summary) -> bytes:
    shown: dict[str, object] = {
        "m.joined_member_count": summary.joined,
        "m.invited_member_count": summary.invited,
    }
    if summary.heroes is not None:
        shown["m.heroes"] = summary.heroes
    return orjson.dumps(shown)


def unread_json(unread: Unread, by_thread: bool) -> bytes:
    """The unread counts, of the main timeline and each thread or of all together, with a comma before."""
    total, highlights = unread.notification_count, unread.highlight_count
    if not by_thread:
        total += sum(counts[0] for counts in unread.threads.values())
        highlights += sum(counts[1] for counts in unread.threads.values())
    shown = b',"unread_notifications":{"notification_count":%d,"highlight_count":%d}' % (total, highlights)
    if by_thread and unread.threads:
        threads = {
            root: {"notification_count": counts[0], "highlight_count": counts[1]}
            for root, counts in unread.threads.items()
        }
        shown += b',"unread_thread_notifications":' + orjson.dumps(threads)
    return shown


def stripped_json(rooms: list[StrippedRoom], name: bytes) -> bytes:
    return mapping((room.room_id, b'{"%b":%b}' % (name, events_object(room.state))) for room in rooms)

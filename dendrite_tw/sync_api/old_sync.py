"""Endpoints from before /sync, which old clients and previews of rooms still use.

The same model as /sync shows, laid out as ``/initialSync`` and ``/events`` had
it.  Client-Server API, "Syncing" (deprecated endpoints), "Room Previews".
"""

from __future__ import annotations

from typing import Any

import msgspec
import orjson

from ..matrix.errors import forbidden, not_found
from ..matrix.filters import Filter, parse_filter
from ..room_api.api import Membership, RoomAPI
from ..user_api.api import AccountDataChange, Caller, UserAPI
from ..web.routes import Access, Route
from ..world import Clock
from .model import SyncChanges, SyncModel
from .notifier import Notifier
from .online import OnlineMarker
from .positions import Heard
from .presence import presence_event
from .reading import EventReader, page_limit
from .receipts import ReceiptLog
from .request import MAX_TIMELINE_LIMIT, SyncRequest
from .splice import array
from .syncing import SyncHandler
from .tokens import SyncToken, parse_sync_token
from .view import account_data_event

DEFAULT_LIMIT = 20
MAX_LIMIT = 100


class EventsQuery(msgspec.Struct, frozen=True):
    from_token: str | None = msgspec.field(name="from", default=None)
    timeout: int = 0
    room_id: str | None = None


class InitialSyncQuery(msgspec.Struct, frozen=True):
    limit: int = DEFAULT_LIMIT
    archived: bool = False


class OldSync:
    """Answers the deprecated endpoints."""

    def __init__(
        self,
        rooms: RoomAPI,
        users: UserAPI,
        heard: Heard,
        notifier: Notifier,
        model: SyncModel,
        handler: SyncHandler,
        events: EventReader,
        receipts: ReceiptLog,
        online: OnlineMarker,
        clock: Clock,
    ) -> None:
        self._rooms = rooms
        self._users = users
        self._heard = heard
        self._notifier = notifier
        self._model = model
        self._handler = handler
        self._events = events
        self._receipts = receipts
        self._online = online
        self._clock = clock

    def routes(self) -> list[Route]:
        v3 = "/_matrix/client/v3"
        return [
            Route("GET", v3 + "/events", self.events, Access.GUEST),
            Route("GET", v3 + "/events/{event_id}", self.event, Access.USER),
            Route("GET", v3 + "/initialSync", self.initial_sync, Access.USER),
            Route("GET", v3 + "/rooms/{room_id}/initialSync", self.room_initial_sync, Access.GUEST),
        ]

    async def _request(self, caller: Caller, wanted: Filter, since: SyncToken) -> SyncRequest:
        return SyncRequest(
            caller=caller,
            stream=await self._notifier.open(caller.user_id),
            filter=wanted,
            acknowledged=since,
            full_state=False,
            state_after=False,
            now=self._clock.now_ms(),
        )

    # --- /events ---

    async def events(self, caller: Caller, query: EventsQuery) -> bytes:
        """``GET /events``: what is new in the user's rooms, or in one that they are in, waiting for some."""
        rooms: dict[str, Any] = {"timeline": {"limit": MAX_TIMELINE_LIMIT}}
        if query.room_id is not None:
            member = await self._rooms.membership(query.room_id, caller.user_id)
            if member is None or member.membership != "join":
                raise forbidden("You are not in this room.")
            rooms["rooms"] = [query.room_id]
        wanted = parse_filter({"room": rooms})
        await self._online.mark(caller, "online")
        since = parse_sync_token(query.from_token) if query.from_token else self._heard.token()
        request = await self._request(caller, wanted, since)
        changes = await self._handler.changes(request, since, query.timeout)
        chunk = await self._chunk(caller, request, changes, since) if changes is not None else []
        heard = self._heard.token().with_moments(since) if self._heard.has(since.room, since.user) else since
        end = changes.upto if changes is not None else heard
        return b'{"start":"%b","end":"%b","chunk":%b}' % (str(since).encode(), str(end).encode(), array(chunk))

    async def _chunk(self, caller: Caller, request: SyncRequest, changes: SyncChanges, since: SyncToken) -> list[bytes]:
        """All that changed as one list of events, those of rooms with their ``room_id``."""
        chunk: list[bytes] = []
        timelines = [(room.room_id, room.timeline) for room in changes.joined]
        timelines += [(room.room_id, room.timeline) for room in changes.left]
        for room_id, timeline in timelines:
            events = [event for event in timeline.events if event.position > since.room]
            chunk += await self._events.dress(caller, room_id, events)
        for invited in changes.invited:
            member = request.stream.memberships[invited.room_id]
            chunk += await self._events.dress(caller, invited.room_id, await self._rooms.events([member.event_id]))
        for room_id, extras in changes.extras.items():
            events_of_moment = self._receipts.events(room_id, extras.receipts, caller.user_id)
            if extras.typing is not None:
                events_of_moment = [extras.typing, *events_of_moment]
            named = b',"room_id":' + orjson.dumps(room_id) + b"}"
            chunk += [event[:-1] + named for event in events_of_moment]
        return chunk + [presence_event(presence, request.now) for presence in changes.presence]

    async def event(self, event_id: str, caller: Caller) -> bytes:
        """``GET /events/{eventId}``."""
        found = await self._rooms.events([event_id])
        if not found:
            raise not_found("There is no such event that you may see.")
        return await self._events.event(found[0].room_id, event_id, caller)

    # --- /initialSync ---

    async def initial_sync(self, caller: Caller, query: InitialSyncQuery) -> bytes:
        """``GET /initialSync``."""
        limit = page_limit(query.limit, MAX_LIMIT, 0)
        wanted = parse_filter({"room": {"timeline": {"limit": 1}, "state": {"types": []}}})
        request = await self._request(caller, wanted, SyncToken())
        upto = self._heard.token()
        changes = await self._model.collect(request, None, upto)
        shown = ("join", "invite", "leave", "ban") if query.archived else ("join", "invite")
        rooms = [
            await self._room_info(caller, member, limit, changes)
            for member in list(request.stream.memberships.values())
            if member.membership in shown and not member.forgotten
        ]
        presence = array(presence_event(presence, request.now) for presence in changes.presence)
        data = array(map(account_data_event, changes.account_data))
        return b'{"end":"%b","presence":%b,"rooms":%b,"account_data":%b}' % (
            str(upto).encode(),
            presence,
            array(rooms),
            data,
        )

    async def _room_info(self, caller: Caller, member: Membership, limit: int, changes: SyncChanges) -> bytes:
        """A room of the user; of one they are invited to, the invite alone."""
        if member.membership == "invite":
            events = await self._rooms.events([member.event_id])
            invite = (await self._events.dress(caller, member.room_id, events))[0] if events else b"{}"
            return b'{"room_id":%b,"membership":"invite","invite":%b}' % (orjson.dumps(member.room_id), invite)
        extras = changes.extras.get(member.room_id)
        return await self._room(caller, member.room_id, member, limit, extras.account_data if extras else [])

    async def room_initial_sync(self, room_id: str, caller: Caller, query: InitialSyncQuery) -> bytes:
        """``GET /rooms/{roomId}/initialSync``, also for a room that anybody may look into."""
        member = await self._rooms.membership(room_id, caller.user_id)
        changes = await self._users.account_data_since(caller.user_id, 0, self._heard.user)
        data = [change for change in changes if change.room_id == room_id]
        return await self._room(caller, room_id, member, page_limit(query.limit, MAX_LIMIT, 0), data)

    async def _room(
        self, caller: Caller, room_id: str, member: Membership | None, limit: int, data: list[AccountDataChange]
    ) -> bytes:
        state = await self._rooms.current_state(room_id, caller.user_id)
        page = await self._rooms.messages(room_id, caller.user_id, "b", None, None, max(1, limit), None, False)
        chunk = await self._events.dress(caller, room_id, page.events[:limit][::-1])
        messages: dict[str, Any] = {"end": page.start, "chunk": orjson.Fragment(array(chunk))}
        if page.end is not None:
            messages["start"] = page.end
        info: dict[str, Any] = {
            "room_id": room_id,
            "visibility": "public" if await self._rooms.published(room_id) else "private",
            "messages": messages,
            "state": orjson.Fragment(array(await self._events.dress(caller, room_id, state))),
            "account_data": [orjson.Fragment(account_data_event(change)) for change in data],
        }
        if member is not None:
            info["membership"] = member.membership
        return orjson.dumps(info)

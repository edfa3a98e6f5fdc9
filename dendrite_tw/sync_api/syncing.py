"""``GET /sync``: read what is asked, wait until there is something to tell, answer.

An answer that tells nothing is made without asking anybody but the keys' counts:
a comparison of the token with the user's stream.  Client-Server API, "Syncing".
"""

from __future__ import annotations

from typing import Literal

import msgspec
from twisted.internet.interfaces import IReactorTime

from ..matrix.errors import invalid_param
from ..user_api.api import Caller
from ..world import Clock
from .arriving import Arriving
from .counting import Counting
from .filters import Filters
from .model import SyncChanges, SyncModel
from .notifier import Notifier
from .online import OnlineMarker
from .positions import Heard
from .request import SyncRequest
from .tokens import SyncToken, parse_sync_token
from .view import SyncView, answer_json, counts_json

MAX_TIMEOUT_MS = 300_000


class SyncQuery(msgspec.Struct, frozen=True):
    """The query of ``GET /sync``."""

    filter: str | None = None
    since: str | None = None
    full_state: bool = False
    set_presence: Literal["offline", "online", "unavailable"] = "online"
    timeout: int = 0
    use_state_after: bool = False
    unstable_state_after: bool = msgspec.field(name="org.matrix.msc4222.use_state_after", default=False)


class SyncHandler:
    """Answers ``GET /sync``."""

    def __init__(
        self,
        counting: Counting,
        heard: Heard,
        arriving: Arriving,
        notifier: Notifier,
        filters: Filters,
        model: SyncModel,
        view: SyncView,
        online: OnlineMarker,
        time: IReactorTime,
        clock: Clock,
    ) -> None:
        self._counting = counting
        self._heard = heard
        self._arriving = arriving
        self._notifier = notifier
        self._filters = filters
        self._model = model
        self._view = view
        self._online = online
        self._time = time
        self._clock = clock
        self.active = 0
        """How many requests are being answered or wait."""

    async def sync(self, caller: Caller, query: SyncQuery) -> bytes:
        """``GET /sync``."""
        if query.timeout < 0:
            raise invalid_param("timeout must not be negative.")
        since = parse_sync_token(query.since) if query.since else None
        wanted = await self._filters.resolve(caller.user_id, query.filter)
        await self._online.mark(caller, query.set_presence)
        seconds = min(query.timeout, MAX_TIMEOUT_MS) / 1000
        self.active += 1
        try:
            stream = await self._notifier.open(caller.user_id)
            if since is not None:
                since, heard = await self._arriving.take(since, seconds)
                if not heard:
                    return answer_json(str(since), b"", await self._counts(caller))
            request = SyncRequest(
                caller=caller,
                stream=stream,
                filter=wanted,
                acknowledged=since or SyncToken(),
                full_state=query.full_state,
                state_after=query.use_state_after or query.unstable_state_after,
                now=self._clock.now_ms(),
            )
            await self._model.acknowledge(request)
            return await self.answer(request, since, seconds)
        finally:
            self.active -= 1

    async def answer(self, request: SyncRequest, since: SyncToken | None, seconds: float) -> bytes:
        """What there is to tell after `since`, waiting for something for `seconds` at most."""
        deadline = self._time.seconds() + seconds
        while True:
            await self._renew(request)
            upto = self._upto(since)
            if since is None or request.full_state or self._notifier.may_have_changed(request.stream, since):
                request.now = self._clock.now_ms()
                changes = await self._model.collect(request, since, upto)
                upto = changes.upto
                sections = await self._view.write(request, changes)
                if sections or since is None or request.full_state:
                    return answer_json(str(upto), sections, await self._counts(request.caller))
                since = upto
            if not await self._wait(request, since, deadline):
                return answer_json(str(upto), b"", await self._counts(request.caller))

    async def changes(self, request: SyncRequest, since: SyncToken, timeout_ms: int) -> SyncChanges | None:
        """The next changes after `since` that old clients are told of; `None` where the time is over."""
        since, heard = await self._arriving.take(since)
        if not heard:
            return None
        deadline = self._time.seconds() + max(0, min(timeout_ms, MAX_TIMEOUT_MS)) / 1000
        while True:
            await self._renew(request)
            upto = self._upto(since)
            if self._notifier.may_have_changed(request.stream, since):
                found = await self._model.collect(request, since, upto)
                if found.presence or found.extras or found.invited or found.left:
                    return found
                if any(room.timeline.events for room in found.joined):
                    return found
                since = found.upto
            if not await self._wait(request, since, deadline):
                return None

    def _upto(self, since: SyncToken | None) -> SyncToken:
        """How far an answer goes: as far as was heard, and in no part less far than `since`."""
        heard = self._heard.token()
        return heard if since is None else heard.with_moments(since)

    async def _wait(self, request: SyncRequest, since: SyncToken, deadline: float) -> bool:
        """Wait until something may have changed after `since`; `False` where the request has waited enough."""
        left = deadline - self._time.seconds()
        if left <= 0 or self._notifier.stopped:
            return False
        stream = request.stream
        if not self._notifier.may_have_changed(stream, since):
            return await stream.wait(self._time, left)
        return True

    async def _renew(self, request: SyncRequest) -> None:
        """Take the user's new stream where the one that the request began with has been given up."""
        stream = request.stream
        if self._notifier.active(stream.user_id) is not stream and not self._notifier.stopped:
            request.stream = await self._notifier.open(stream.user_id)

    async def _counts(self, caller: Caller) -> bytes:
        if caller.device_id is None:
            return b""
        return counts_json(await self._counting.keys(caller.user_id, caller.device_id))

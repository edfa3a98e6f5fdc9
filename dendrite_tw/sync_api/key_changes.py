"""``GET /keys/changes``: whose devices to look at again, between two sync tokens.

Client-Server API, "Tracking the device list for a user".
"""

from __future__ import annotations

import msgspec

from ..database.engines import Unavailable
from ..matrix.errors import invalid_param
from ..matrix.filters import DEFAULT
from ..user_api.api import Caller
from ..web.routes import Access, Route
from ..world import Clock
from .arriving import Arriving
from .model import SyncModel
from .notifier import Notifier
from .request import SyncRequest
from .tokens import parse_sync_token


class KeyChangesQuery(msgspec.Struct, frozen=True):
    from_token: str = msgspec.field(name="from")
    to: str


class KeyChanges:
    """Answers ``GET /keys/changes`` from the model of sync."""

    def __init__(self, model: SyncModel, notifier: Notifier, arriving: Arriving, clock: Clock) -> None:
        self._model = model
        self._notifier = notifier
        self._arriving = arriving
        self._clock = clock

    def routes(self) -> list[Route]:
        return [Route("GET", "/_matrix/client/v3/keys/changes", self.changes, Access.USER)]

    async def changes(self, caller: Caller, query: KeyChangesQuery) -> dict[str, list[str]]:
        """``GET /keys/changes``."""
        since, upto = parse_sync_token(query.from_token), parse_sync_token(query.to)
        upto, heard = await self._arriving.take(upto)
        known, heard_since = await self._arriving.take(since)
        if (known.room, known.user) != (since.room, since.user):
            raise invalid_param("from is not a token that this server has given.")
        if not (heard and heard_since):
            raise Unavailable("events are not being passed on")
        request = SyncRequest(
            caller=caller,
            stream=await self._notifier.open(caller.user_id),
            filter=DEFAULT,
            acknowledged=since,
            full_state=False,
            state_after=False,
            now=self._clock.now_ms(),
        )
        lists = await self._model.device_lists(request, since, upto)
        return {"changed": lists.changed, "left": lists.left}

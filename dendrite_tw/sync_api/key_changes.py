"""``GET /keys/changes``: whose devices to look at again, between two sync tokens.

Client-Server API, "Tracking the device list for a user".
"""

from __future__ import annotations

import msgspec

from ..matrix.errors import invalid_param
from ..matrix.filters import DEFAULT
from ..user_api.api import Caller
from ..web.routes import Access, Route
from ..world import Clock
from .model import SyncModel
from .notifier import Notifier
from .positions import Heard
from .request import SyncRequest
from .tokens import SyncToken, parse_sync_token


class KeyChangesQuery(msgspec.Struct, frozen=True):
    from_token: str = msgspec.field(name="from")
    to: str


class KeyChanges:
    """Answers ``GET /keys/changes`` from the model of sync."""

    def __init__(self, model: SyncModel, notifier: Notifier, heard: Heard, clock: Clock) -> None:
        self._model = model
        self._notifier = notifier
        self._heard = heard
        self._clock = clock

    def routes(self) -> list[Route]:
        return [Route("GET", "/_matrix/client/v3/keys/changes", self.changes, Access.USER)]

    async def changes(self, caller: Caller, query: KeyChangesQuery) -> dict[str, list[str]]:
        """``GET /keys/changes``."""
        since, upto = parse_sync_token(query.from_token), parse_sync_token(query.to)
        heard = self._heard
        upto = SyncToken(min(upto.room, heard.room), min(upto.user, heard.user))
        if since.room > heard.room or since.user > heard.user:
            raise invalid_param("from is not a token that this server has given.")
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

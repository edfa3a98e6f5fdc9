"""Pushers: where users want to hear of events (Client-Server API, "Push Notifications")."""

from __future__ import annotations

from urllib.parse import urlsplit

import msgspec

from ..database.engines import Database
from ..database.statements import Transaction
from ..matrix.errors import MatrixError, invalid_param, missing_param
from ..world import World
from .api import Pusher
from .settings import PUSHERS_LIMIT
from .tables import pushers as table

APP_ID_LIMIT = 64
PUSHKEY_LIMIT = 512
DETAILS_LIMIT = 16_384
GATEWAY_PATH = "/_matrix/push/v1/notify"


class Pushers:
    """The pushers of local users."""

    def __init__(self, database: Database, world: World) -> None:
        self._database = database
        self._clock = world.clock

    async def pushers(self, user_id: str) -> list[Pusher]:
        rows = await self._database.read(table.pushers, user_id)
        return [msgspec.json.decode(row.details, type=Pusher) for row in rows]

    async def put_pusher(self, user_id: str, session_id: int, pusher: Pusher, append: bool) -> None:
        check(pusher)
        details = msgspec.json.encode(pusher)
        if len(details) > DETAILS_LIMIT:
            raise invalid_param(f"A pusher may have {DETAILS_LIMIT} bytes at most.")
        await self._database.write(self._put, user_id, session_id, pusher, append, details)

    async def _put(
        self, txn: Transaction, user_id: str, session_id: int, pusher: Pusher, append: bool, details: bytes
    ) -> None:
        if not append:
            await table.delete_of_others(txn, pusher.app_id, pusher.pushkey, user_id)
        now = self._clock.now_ms()
        await table.put(txn, user_id, pusher.app_id, pusher.pushkey, session_id, pusher.kind, now, details)
        if await table.count(txn, user_id) > PUSHERS_LIMIT:
            raise MatrixError(403, "M_FORBIDDEN", f"A user may have {PUSHERS_LIMIT} pushers at most.")

    async def delete_pusher(self, user_id: str, app_id: str, pushkey: str) -> None:
        await self._database.write(table.delete, user_id, app_id, pushkey)


def check(pusher: Pusher) -> None:
    """Raise ``M_INVALID_PARAM`` or ``M_MISSING_PARAM`` for a pusher that the specification does not allow."""
    if not 0 < len(pusher.app_id) <= APP_ID_LIMIT:
        raise invalid_param(f"app_id has 1 to {APP_ID_LIMIT} characters.")
    if not 0 < len(pusher.pushkey.encode("utf-8", "replace")) <= PUSHKEY_LIMIT:
        raise invalid_param(f"pushkey has 1 to {PUSHKEY_LIMIT} bytes.")
    if pusher.kind != "http":
        raise invalid_param("This server has pushers of the kind http only.")
    url = pusher.data.get("url")
    if url is None:
        raise missing_param("data.url is required.")
    try:
        parts = urlsplit(url) if isinstance(url, str) else None
    except ValueError:
        parts = None
    if parts is None or parts.scheme not in ("http", "https") or not parts.netloc or parts.path != GATEWAY_PATH:
        raise invalid_param(f"data.url must be an https:// URL with the path {GATEWAY_PATH}.")

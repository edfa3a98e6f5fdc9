"""Proofs on their way, for processes that share them (Client-Server API, "User-Interactive Authentication API").

The stages are judged by the component that serves clients; here is what it remembers between two of them.
"""

from __future__ import annotations

import msgspec

from ..database.engines import Database
from ..database.statements import Transaction
from ..matrix.errors import too_large
from ..world import Clock
from .api import UIASession
from .tables import uia_sessions as table

CONTENT_LIMIT = 16 << 10
"""Bytes of one session."""

MAKE_ROOM_EVERY = 100
"""After how many new sessions those beyond the limit, and those that have expired, are looked for."""


class UIASessions:
    """The sessions of all processes."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._stored = 0

    async def uia_session(self, id: str) -> UIASession | None:
        content = await self._database.read(table.session, id, self._clock.now_ms())
        return msgspec.json.decode(content, type=UIASession) if content is not None else None

    async def put_uia_session(self, session: UIASession) -> None:
        content = msgspec.json.encode(session)
        if len(content) > CONTENT_LIMIT:
            raise too_large("This authentication takes too much to remember.")
        await self._database.write(self._put, session.id, session.expires_ts, content)

    async def _put(self, txn: Transaction, id: str, expires_ts: int, content: bytes) -> None:
        await table.put(txn, id, expires_ts, content)
        if self._stored % MAKE_ROOM_EVERY == 0:
            await table.make_room(txn, self._clock.now_ms())
        self._stored += 1

    async def end_uia_session(self, id: str) -> bool:
        return await self._database.write(table.delete, id) > 0

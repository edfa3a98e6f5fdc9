"""Who is behind an access token, remembered in processes that do not run the user component.

Every request of a client asks for it.  What is remembered is forgotten by the echo that the user component tells after
it has stored a change and before it answers for it (`SESSIONS`), so no request that follows from that answer is served
on what was before.  A process that was killed between the two has told nobody: so nothing is remembered for longer
than `LIFETIME_MS`.  Refusals are not remembered.
"""

from __future__ import annotations

import hashlib

import msgspec
from twisted.logger import Logger

from ..cache import Cache, CacheBudget
from ..links.echoes import Echoes
from ..user_api.api import SESSIONS, Caller, SessionsChanged, UserAPI
from ..world import Clock

LIFETIME_MS = 60_000
ENTRY_BYTES = 700
"""What a caller takes in memory, about."""

log = Logger()


class RememberedCallers:
    """Answers as `UserAPI` does who a token belongs to."""

    def __init__(self, users: UserAPI, echoes: Echoes, budget: CacheBudget, clock: Clock) -> None:
        self._users = users
        self._echoes = echoes
        self._clock = clock
        self._known: Cache[bytes, tuple[Caller, int]] = Cache("callers", budget, lambda entry: ENTRY_BYTES)
        self._forgotten = 0
        """How often something was forgotten: what was asked for before may be old when it comes."""
        echoes.hear(SESSIONS, self._heard)
        echoes.on_missed(self._forget_all)

    async def caller_of(self, access_token: str) -> Caller:
        """As `UserAPI.caller_of`."""
        hashed = hashlib.sha256(access_token.encode("utf-8", "replace")).digest()
        known = self._known.get(hashed)
        if known is not None and self._clock.now_ms() < known[1]:
            return known[0]
        forgotten = self._forgotten
        caller = await self._users.caller_of(access_token)
        if forgotten == self._forgotten and self._echoes.hearing:
            upto = self._clock.now_ms() + LIFETIME_MS
            self._known.put(hashed, (caller, min(upto, caller.expires_ts) if caller.expires_ts else upto))
        return caller

    async def acting_as(self, appservice_id: str, user_id: str, device_id: str | None) -> Caller:
        """As `UserAPI.acting_as`, which is not remembered."""
        return await self._users.acting_as(appservice_id, user_id, device_id)

    def _heard(self, payload: bytes) -> None:
        try:
            changed = msgspec.msgpack.decode(payload, type=SessionsChanged)
        except msgspec.DecodeError:
            # Of a newer release maybe; that something changed is certain.
            log.warn("An echo of changed sessions cannot be understood: asking for all again")
            self._forget_all()
            return
        self._forgotten += 1
        for hashed in changed.hashes:
            self._known.pop(hashed)

    def _forget_all(self) -> None:
        self._forgotten += 1
        self._known.clear()

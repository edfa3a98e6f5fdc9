"""Marking users as online because they sync, and as offline when they no longer do.

Told on the stream ``OutputPresenceEvent`` when it makes a difference, and then
at most once a while; nothing where presence is switched off.  Where there are
several processes, each tells again and again of those who wait in it, and who was not told of
for a while is gone, wherever that is noticed first.  Client-Server
API, "Presence", and ``set_presence`` of ``GET /sync``.
"""

from __future__ import annotations

from hashlib import blake2b

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..matrix.errors import MatrixError
from ..user_api.api import Caller
from ..world import Clock
from .api import OUTPUT_PRESENCE_EVENT, Presence
from .feed import Queue
from .notifier import Notifier
from .presence import PresenceBoard

log = Logger()

REPEAT_MS = 60_000
"""How often a user's activity is told again while nothing else changes."""

OFFLINE_AFTER_MS = 90_000
"""How long after the last sync a user counts as gone; more than `REPEAT_MS`, as others tell of them too."""

SWEEP_SECONDS = 30.0

GONE_AFTER_MS = 150_000
"""How long after a user was last told to be there they count as gone, where another process may have told it: what
passes between two times of telling of one who waits, and some more."""


class OnlineMarker:
    """Publishes the presence of users who sync in this process, when ``enabled``."""

    def __init__(
        self,
        board: PresenceBoard,
        queue: Queue,
        notifier: Notifier,
        time: IReactorTime,
        clock: Clock,
        enabled: bool,
        alone: bool = True,
    ) -> None:
        """`alone`: no other process serves syncs."""
        self._board = board
        self._queue = queue
        self._notifier = notifier
        self._time = time
        self._clock = clock
        self._enabled = enabled
        self._alone = alone
        self._seen: dict[str, int] = {}
        self._sweep: IDelayedCall | None = None

    def start(self) -> None:
        if self._enabled:
            self._sweep = self._time.callLater(SWEEP_SECONDS, self._start_sweep)

    def stop(self) -> None:
        if self._sweep is not None and self._sweep.active():
            self._sweep.cancel()

    async def mark(self, caller: Caller, state: str) -> None:
        """The caller syncs with ``set_presence`` `state`; ``offline`` leaves their presence as it is."""
        if not self._enabled or state == "offline":
            return
        now = self._clock.now_ms()
        self._seen[caller.user_id] = now
        known = self._board.get(caller.user_id)
        if known is not None and known.presence == state and now - known.last_active_ts < REPEAT_MS:
            return
        try:
            await self._publish(caller.user_id, state, now, known.status_msg if known is not None else None)
        except MatrixError as error:
            # A sync is not worth less for it; the next one tries again.
            log.debug("{user} is not told to be {state}: {error}", user=caller.user_id, state=state, error=error.error)

    async def set(self, user_id: str, state: str, status_msg: str | None) -> None:
        """A user says what their presence is; who is then seen no more goes offline as others do."""
        if not self._enabled:
            return
        now = self._clock.now_ms()
        self._seen[user_id] = now
        await self._publish(user_id, state, now, status_msg)

    async def _publish(
        self, user_id: str, state: str, last_active_ts: int, status_msg: str | None, msg_id: str | None = None
    ) -> None:
        presence = Presence(
            user_id=user_id,
            presence=state,
            last_active_ts=last_active_ts,
            status_msg=status_msg,
            currently_active=state == "online",
        )
        await self._queue.publish(OUTPUT_PRESENCE_EVENT, msgspec.msgpack.encode(presence), msg_id=msg_id)

    def _start_sweep(self) -> None:
        sweeping = Deferred.fromCoroutine(self.sweep())
        sweeping.addErrback(self._not_swept)
        self._sweep = self._time.callLater(SWEEP_SECONDS, self._start_sweep)

    def _not_swept(self, failure: Failure) -> None:
        """The next sweep tells what this one could not."""
        if isinstance(failure.value, MatrixError):
            log.warn("presence could not be told: {error}", error=failure.value.error)
        else:
            log.failure("presence could not be told", failure=failure)

    async def sweep(self) -> None:
        """Tell who is gone: neither waiting in a sync nor seen, here or elsewhere, for a while."""
        now = self._clock.now_ms()
        for user_id, seen in list(self._seen.items()):
            stream = self._notifier.active(user_id)
            known = self._board.get(user_id)
            if stream is not None and stream.waiting:
                self._seen[user_id] = now
                if not self._alone and known is not None:
                    await self._tell_again(known, now)
            elif now - seen >= OFFLINE_AFTER_MS:
                if self._alone and known is not None and known.presence != "offline" and known.last_active_ts <= seen:
                    await self._publish(user_id, "offline", known.last_active_ts, known.status_msg)
                if self._seen.get(user_id) == seen:
                    del self._seen[user_id]
        if not self._alone:
            await self._tell_gone(now)

    async def _tell_again(self, known: Presence, now: int) -> None:
        """Of one who waits here the others shall know that they are still there."""
        if known.presence != "offline" and now - known.last_active_ts >= REPEAT_MS:
            await self._publish(known.user_id, known.presence, now, known.status_msg)

    async def _tell_gone(self, now: int) -> None:
        """Tell of those of whom no process told for a while, each once however many processes notice it."""
        for known in [known for known in self._board.present() if now - known.last_active_ts >= GONE_AFTER_MS]:
            name = blake2b(msgspec.msgpack.encode(known), digest_size=16).hexdigest()
            await self._publish(known.user_id, "offline", known.last_active_ts, known.status_msg, f"gone:{name}")

"""How far this process has heard the streams, and waiting for the rest.

A sync answers only up to positions that were heard, for until then the
notifier cannot say whom a change concerns.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from .tokens import SyncToken


class Heard:
    """The newest position heard on each stream."""

    def __init__(self, time: IReactorTime) -> None:
        self.room = 0
        self.user = 0
        self.typing = 0
        self.presence = 0
        self._time = time
        self._waiting: list[tuple[int, int, Deferred[bool]]] = []

    def token(self) -> SyncToken:
        return SyncToken(self.room, self.user, self.typing, self.presence)

    def has(self, room: int, user: int) -> bool:
        return self.room >= room and self.user >= user

    def advance(self) -> None:
        """Let those go on whose positions have been reached; to be called after a change."""
        if not self._waiting:
            return
        ready = [entry for entry in self._waiting if self.has(entry[0], entry[1])]
        if ready:
            self._waiting = [entry for entry in self._waiting if not self.has(entry[0], entry[1])]
            for _, _, waiter in ready:
                waiter.callback(True)

    async def reach(self, room: int, user: int, seconds: float) -> bool:
        """Wait until both positions are heard, `seconds` at most; says whether they are."""
        if self.has(room, user):
            return True
        waiter: Deferred[bool] = Deferred(self._forget)
        self._waiting.append((room, user, waiter))
        return await with_timeout(self._time, waiter, seconds, lambda: self._give_up(waiter))

    def _forget(self, waiter: Deferred[bool]) -> None:
        self._waiting = [entry for entry in self._waiting if entry[2] is not waiter]

    def _give_up(self, waiter: Deferred[bool]) -> None:
        self._forget(waiter)
        waiter.callback(False)


async def with_timeout(time: IReactorTime, waiter: Deferred[bool], seconds: float, give_up: Callable[[], None]) -> bool:
    """Wait for `waiter`; after `seconds` call `give_up`, which has to fire it."""
    timer = time.callLater(seconds, give_up)
    try:
        return await waiter
    finally:
        if timer.active():
            timer.cancel()

"""Typing and presence as they are heard: whom they concern, and what was said before this process listened.

A stream keeps nothing of them, so a process asks another one when it begins to
listen, and again where it may have missed something.  Until that is answered,
what is heard waits for a moment.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from hashlib import blake2b
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from ..matrix.errors import MatrixError
from .api import OUTPUT_TYPING_EVENT, NowKnown, Presence, SyncAPI, Typing
from .notifier import Notifier, UserStream
from .positions import Heard
from .presence import PresenceBoard
from .sharers import Sharers
from .typing import TypingBoard

PAGE = 1000
"""Users whose presence is asked for at once."""

ATTEMPTS = 8
ATTEMPT_SECONDS = 0.1
"""How often, and after which pauses, another process is asked for where this one answered itself."""

SETTLING_SECONDS = 1.0
"""What is told while connections are being made anew may be missed by all; so it is asked for again after this."""

HOLD_SECONDS = 2.0
HELD_LIMIT = 10_000
"""For how long what is heard waits for another process's answer, and how much of it."""

log = Logger()


class Others:
    """The other sync processes, of which one is asked; ``process`` is the name of this one."""

    def __init__(self, api: SyncAPI, process: str, time: IReactorTime) -> None:
        self._api = api
        self._process = process
        self._time = time

    async def typing(self) -> NowKnown | None:
        return await self._ask(lambda: self._api.typing_now())

    async def presences(self, position: int) -> NowKnown | None:
        return await self._ask(lambda: self._api.presences_after(position, PAGE))

    async def _ask(self, question: Callable[[], Coroutine[Any, Any, NowKnown]]) -> NowKnown | None:
        """What another process answers, one that has listened for a while if there is one; `None` without any."""
        found = None
        for _ in range(ATTEMPTS):
            try:
                answer = await question()
            except MatrixError:
                break
            if answer.by != self._process:
                found = answer
                if answer.settled:
                    break
            await deferLater(self._time, ATTEMPT_SECONDS, lambda: None)
        return found


class Moments:
    """Takes in the two streams.  Without ``others`` this is the only process."""

    def __init__(
        self,
        heard: Heard,
        notifier: Notifier,
        sharers: Sharers,
        typing: TypingBoard,
        presence: PresenceBoard,
        time: IReactorTime,
        others: Others | None = None,
    ) -> None:
        self._heard = heard
        self._notifier = notifier
        self._sharers = sharers
        self._typing = typing
        self._presence = presence
        self._time = time
        self._others = others
        self._held: list[Callable[[], None]] | None = None
        """What was heard while another process is being asked."""
        self._asking = self._ask_again = False
        self.settled = others is None
        """Whether this process knows what others know."""
        self._release_call: IDelayedCall | None = None
        self._settling: IDelayedCall | None = None
        self._showing: dict[int, Iterable[UserStream] | None] = {}
        """Positions of presence that is not told yet, with whom to tell once that is known."""

    # --- what is heard ---

    def typing(self, typing: Typing, position: int) -> None:
        if self._held is not None:
            self._hold(lambda: self.typing(typing, position))
            return
        self._typing.hear(typing, position)
        self._heard.typing = self._typing.position

    def typing_changed(self, room_id: str, position: int) -> None:
        """Who types in a room changed: `TypingBoard` says so."""
        self._heard.typing = self._typing.position
        self._notifier.typing(room_id, position)

    def presence(self, presence: Presence, position: int) -> None:
        if self._held is not None:
            self._hold(lambda: self.presence(presence, position))
            return
        if not self._presence.hear(presence, position):
            return
        position = self._presence.position
        self._showing[position] = streams = self._sharers.at_once(presence.user_id)
        if streams is not None:
            self._show()
        else:
            _begin(self._find_sharers(presence.user_id, position))

    async def _find_sharers(self, user_id: str, position: int) -> None:
        streams = await self._sharers.of(user_id)
        if position in self._showing:
            self._showing[position] = streams
            self._show()

    def _show(self) -> None:
        """Tell what can be told, in order: a token may tell of one only when all before it have been told."""
        while self._showing:
            position, streams = next(iter(self._showing.items()))
            if streams is None:
                return
            del self._showing[position]
            self._heard.presence = position
            self._notifier.presence(streams, position)

    def _hold(self, take: Callable[[], None]) -> None:
        assert self._held is not None
        if len(self._held) < HELD_LIMIT:
            self._held.append(take)

    # --- what was said before ---

    def begun(self) -> None:
        """One of the streams has begun to be heard, perhaps after something was missed: ask another process."""
        if self._others is None:
            return
        if self._held is None:
            self._held = []
            self._release_call = self._time.callLater(HOLD_SECONDS, self._release)
        self.settled = False
        self._ask_again = True
        if not self._asking:
            self._asking = True
            _begin(self._ask(self._others))

    async def _ask(self, others: Others) -> None:
        try:
            while self._ask_again:
                # Both streams begin at the same time.
                await deferLater(self._time, 0, lambda: None)
                self._ask_again = False
                await self._take(others)
        finally:
            self._asking = False
            self.settled = True
            self._release()
        if self._settling is None or not self._settling.active():
            self._settling = self._time.callLater(SETTLING_SECONDS, lambda: _begin(self._take(others)))

    def _release(self) -> None:
        """What was heard waits no longer."""
        if self._release_call is not None and self._release_call.active():
            self._release_call.cancel()
        held, self._held = self._held or [], None
        for take in held:
            take()

    def stop(self) -> None:
        for call in (self._release_call, self._settling):
            if call is not None and call.active():
                call.cancel()

    async def _take(self, others: Others) -> None:
        """Take up what another process knows."""
        known = await others.typing()
        if known is None:
            return
        self._typing.take(known.typing)
        self._heard.typing = self._typing.position
        presences: list[tuple[int, Presence]] = []
        position = 0
        while (known := await others.presences(position)) is not None and known.presences:
            presences += known.presences
            position = known.presences[-1][0]
            if len(known.presences) < PAGE:
                break
        self._presence.take(presences)
        self._showing.clear()
        self._heard.presence = self._presence.position
        self._notifier.moments_renewed(self._heard.token())


class Ending:
    """Tells the other processes on the stream where somebody's time to type is over; all do, one is heard."""

    def __init__(self, queue: Any) -> None:
        self._queue = queue

    def __call__(self, typing: Typing) -> None:
        payload = msgspec.msgpack.encode(typing)
        _begin(self._publish(payload, blake2b(payload, digest_size=16).hexdigest()))

    async def _publish(self, payload: bytes, name: str) -> None:
        try:
            await self._queue.publish(OUTPUT_TYPING_EVENT, payload, msg_id=name)
        except MatrixError as error:
            # The board tries again.
            log.debug("the end of typing is not told: {error}", error=error.error)


def _begin(work: Coroutine[Any, Any, None]) -> None:
    Deferred.fromCoroutine(work).addErrback(
        lambda failure: log.failure("typing and presence cannot be followed", failure=failure)
    )

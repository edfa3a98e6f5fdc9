"""One clock for everybody, and the part of it that a server has, which ends with the server."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from typing import Any

from twisted.internet.base import DelayedCall
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from zope.interface import implementer

EPOCH = 1_700_000_000.0

CALLS_AT_ONCE = 100_000
"""So many calls at one moment are a loop that never ends."""


@implementer(IReactorTime)
class SharedClock:
    """Goes from one scheduled call to the next; calls of the same moment happen in the order they were asked for."""

    def __init__(self) -> None:
        self._now = EPOCH
        self._calls: list[tuple[float, int, DelayedCall]] = []
        self._order = itertools.count()

    def seconds(self) -> float:
        return self._now

    def callLater(self, delay: float, function: Callable[..., Any], *args: Any, **kwargs: Any) -> DelayedCall:
        call = DelayedCall(self._now + delay, function, args, kwargs, _ignore, self._schedule, self.seconds)
        self._schedule(call)
        return call

    def _schedule(self, call: DelayedCall) -> None:
        """Also called when a call was put off; then the place it had is found to be too early."""
        heapq.heappush(self._calls, (call.getTime(), next(self._order), call))

    def getDelayedCalls(self) -> list[DelayedCall]:
        return [call for _, _, call in sorted(self._calls) if call.active()]

    def run(self, seconds: float) -> None:
        """Let time pass; whatever is scheduled happens at its own moment."""
        self.run_until(lambda: False, seconds)

    def run_until(self, over: Callable[[], bool], seconds: float) -> bool:
        """The same, until `over` holds; whether it does."""
        end = self._now + seconds
        at_once, last = 0, self._now
        while not over():
            call = self._next()
            if call is None or call.getTime() > end:
                self._now = end
                return over()
            heapq.heappop(self._calls)
            self._now = max(self._now, call.getTime())
            at_once = at_once + 1 if self._now == last else 0
            last = self._now
            if at_once > CALLS_AT_ONCE:
                raise AssertionError(f"an endless loop: {call!r}")
            call.called = 1
            call.func(*call.args, **call.kw)
        return True

    def _next(self) -> DelayedCall | None:
        """The next call, left where it is."""
        while self._calls:
            time, _, call = self._calls[0]
            if call.active() and call.getTime() <= time:
                return call
            heapq.heappop(self._calls)
            if call.active():
                self._schedule(call)
        return None

    def sleep(self, seconds: float) -> Deferred[None]:
        """Fires after a while."""
        waking: Deferred[None] = Deferred()
        self.callLater(seconds, waking.callback, None)
        return waking


def _ignore(call: DelayedCall) -> None:
    """A call that was cancelled is passed over when its time comes."""


@implementer(IReactorTime)
class Lifetime:
    """The clock as one run of a server has it: after the end nothing that it scheduled happens."""

    def __init__(self, clock: SharedClock, failed: Callable[[BaseException], None]) -> None:
        """`failed` is told what a scheduled call raises."""
        self._clock = clock
        self._failed = failed
        self.alive = True

    def seconds(self) -> float:
        return self._clock.seconds()

    def callLater(self, delay: float, function: Callable[..., Any], *args: Any, **kwargs: Any) -> IDelayedCall:
        return self._clock.callLater(delay, self._call, function, args, kwargs)

    def _call(self, function: Callable[..., Any], args: Any, kwargs: Any) -> None:
        if not self.alive:
            return
        try:
            function(*args, **kwargs)
        except Exception as error:
            self._failed(error)

    def getDelayedCalls(self) -> list[IDelayedCall]:
        return list(self._clock.getDelayedCalls())


class SkewedClock:
    """Matrix timestamps of a server whose clock is a little wrong."""

    def __init__(self, clock: SharedClock, skew_ms: int) -> None:
        self._clock = clock
        self._skew_ms = skew_ms

    def now_ms(self) -> int:
        return int(self._clock.seconds() * 1000) + self._skew_ms

"""One clock for everybody, and the part of it that a server has, which ends with the server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import Clock
from zope.interface import implementer

EPOCH = 1_700_000_000.0

CALLS_AT_ONCE = 100_000
"""So many calls at one moment are a loop that never ends."""


class SharedClock(Clock):
    """Goes from one scheduled call to the next."""

    def __init__(self) -> None:
        super().__init__()
        self.rightNow = EPOCH

    def run(self, seconds: float) -> None:
        """Let time pass; whatever is scheduled happens at its own moment."""
        self.run_until(lambda: False, seconds)

    def run_until(self, over: Callable[[], bool], seconds: float) -> bool:
        """The same, until `over` holds; whether it does."""
        end = self.rightNow + seconds
        at_once, last = 0, self.rightNow
        while not over():
            if not self.calls or self.calls[0].getTime() > end:
                self.rightNow = end
                return over()
            call = self.calls.pop(0)
            self.rightNow = max(self.rightNow, call.getTime())
            at_once = at_once + 1 if self.rightNow == last else 0
            last = self.rightNow
            if at_once > CALLS_AT_ONCE:
                raise AssertionError(f"an endless loop: {call!r}")
            call.called = 1
            call.func(*call.args, **call.kw)
        return True

    def sleep(self, seconds: float) -> Deferred[None]:
        """Fires after a while."""
        waking: Deferred[None] = Deferred()
        self.callLater(seconds, waking.callback, None)
        return waking


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
        return self._clock.getDelayedCalls()  # type: ignore[return-value]


class SkewedClock:
    """Matrix timestamps of a server whose clock is a little wrong."""

    def __init__(self, clock: SharedClock, skew_ms: int) -> None:
        self._clock = clock
        self._skew_ms = skew_ms

    def now_ms(self) -> int:
        return int(self._clock.seconds() * 1000) + self._skew_ms

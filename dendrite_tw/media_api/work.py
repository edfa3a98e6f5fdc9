"""Work beside the reactor: in a thread, once for all who want it, whether or not they stay."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Hashable
from typing import Any, ParamSpec, TypeVar

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from ..world import ThreadRunner

P = ParamSpec("P")
T = TypeVar("T")


def in_thread(threads: ThreadRunner | None, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
    """The result of `function`, run in one of `threads`, or at once where there are none."""
    if threads is None:
        try:
            return succeed(function(*args, **kwargs))
        except Exception:
            return fail()
    answer: Deferred[T] = Deferred()
    deliver = threads.call_from_thread

    def work() -> None:
        try:
            result = function(*args, **kwargs)
        except BaseException:
            deliver(answer.errback, Failure())
        else:
            deliver(answer.callback, result)

    threads.call_in_thread(work)
    return answer


class Shared:
    """Work under way, by key: who asks for what is being done already waits for the same result.

    Whoever waits may go away: the work goes on for the others, and to its end.
    """

    def __init__(self) -> None:
        self._waiting: dict[Hashable, list[Deferred[Any]]] = {}
        self._idle: list[Deferred[None]] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._waiting

    def run(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, T]]) -> Deferred[T]:
        """The result of the work that is known by `key`, begun now if nobody has."""
        answer: Deferred[T] = Deferred()
        if key in self._waiting:
            self._waiting[key].append(answer)
            return answer
        self._waiting[key] = [answer]
        Deferred.fromCoroutine(work()).addBoth(self._done, key)
        return answer

    def _done(self, result: Any, key: Hashable) -> None:
        for waiter in self._waiting.pop(key):
            if isinstance(result, Failure):
                waiter.errback(result)
            else:
                waiter.callback(result)
        if not self._waiting:
            idle, self._idle = self._idle, []
            for waiter in idle:
                waiter.callback(None)

    def idle(self) -> Deferred[None]:
        """Fires when nothing is under way."""
        if not self._waiting:
            return succeed(None)
        self._idle.append(Deferred())
        return self._idle[-1]


class Arrivals:
    """Requests that wait for something of a name to arrive."""

    def __init__(self, time: IReactorTime, limit: int) -> None:
        self._time = time
        self._limit = limit
        self._waiting: dict[Hashable, set[Deferred[None]]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    async def wait(self, name: Hashable, seconds: float) -> bool:
        """Wait until `name` arrives or the time is over; `False` at once where too many wait already."""
        if self._count >= self._limit:
            return False
        arrived: Deferred[None] = Deferred()
        self._waiting.setdefault(name, set()).add(arrived)
        self._count += 1
        call = self._time.callLater(seconds, _fire, arrived)
        try:
            await arrived
        finally:
            self._count -= 1
            waiting = self._waiting.get(name)
            if waiting is not None:
                waiting.discard(arrived)
                if not waiting:
                    del self._waiting[name]
            if call.active():
                call.cancel()
        return True

    def tell(self, name: Hashable) -> None:
        """`name` has arrived."""
        for waiter in list(self._waiting.get(name, ())):
            _fire(waiter)


def _fire(waiter: Deferred[None]) -> None:
    if not waiter.called:
        waiter.callback(None)

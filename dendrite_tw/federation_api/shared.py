"""Work that several wait for: begun once, and carried on whoever goes away."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class SharedCalls(Generic[K, T]):
    """Calls under way, by key: who asks for one that is under way waits for the same result."""

    def __init__(self) -> None:
        self._waiting: dict[K, list[Deferred[T]]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, key: K) -> bool:
        return key in self._waiting

    def run(self, key: K, begin: Callable[[], Coroutine[Any, Any, T]]) -> Deferred[T]:
        """The result of the call known by `key`, begun now unless it is under way."""
        answer: Deferred[T] = Deferred()
        waiting = self._waiting.get(key)
        if waiting is not None:
            waiting.append(answer)
            return answer
        self._waiting[key] = [answer]
        Deferred.fromCoroutine(begin()).addBoth(self._done, key)
        return answer

    def _done(self, result: Any, key: K) -> None:
        for waiter in self._waiting.pop(key):
            if waiter.called:
                continue
            if isinstance(result, Failure):
                waiter.errback(result)
            else:
                waiter.callback(result)

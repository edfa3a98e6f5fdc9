"""One budget of bytes for all caches together.

Reader threads use caches too, so changes are made under the budget's lock.

``global.cache.max_size_estimated`` bounds the sum of what every `Cache` of a
process holds.  When the sum exceeds it, the cache that holds most gives up
what it has not used for longest.  Sizes are estimates that the cache's owner
makes; each cache reports its share.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class CacheBudget:
    """The bytes that all caches of a process share."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.used = 0
        self.lock = threading.RLock()
        self.caches: list[Cache[object, object]] = []

    def keep(self) -> None:
        """Let the largest cache forget until the sum is within the budget."""
        while self.used > self.max_bytes:
            largest = max(self.caches, key=lambda cache: cache.bytes)
            if not largest.evict_oldest():
                return


class Cache(Generic[K, V]):
    """Least recently used values under a budget; ``hits`` and ``misses`` count look-ups.

    ``size`` estimates a value's bytes; ``may_evict`` can hold back a value that is in use.
    """

    def __init__(
        self,
        name: str,
        budget: CacheBudget,
        size: Callable[[V], int],
        may_evict: Callable[[V], bool] = lambda value: True,
    ) -> None:
        self.name = name
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        self._budget = budget
        self._size = size
        self._may_evict = may_evict
        self._values: OrderedDict[K, tuple[V, int]] = OrderedDict()
        budget.caches.append(self)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: K) -> V | None:
        with self._budget.lock:
            found = self._values.get(key)
            if found is None:
                self.misses += 1
                return None
            self.hits += 1
            self._values.move_to_end(key)
            return found[0]

    def peek(self, key: K) -> V | None:
        """The value at `key`, without counting that as a use of it."""
        found = self._values.get(key)
        return None if found is None else found[0]

    def put(self, key: K, value: V) -> None:
        """Remember `value`, in place of what stood at `key`."""
        size = self._size(value)
        with self._budget.lock:
            old = self._values.pop(key, None)
            change = size - (old[1] if old else 0)
            self._values[key] = (value, size)
            self.bytes += change
            self._budget.used += change
            if self._budget.used > self._budget.max_bytes:
                self._budget.keep()

    def pop(self, key: K) -> V | None:
        with self._budget.lock:
            found = self._values.pop(key, None)
            if found is None:
                return None
            self.bytes -= found[1]
            self._budget.used -= found[1]
            return found[0]

    def evict_oldest(self) -> bool:
        """Forget one value that may go; `False` where there is none."""
        for key, (value, _) in self._values.items():
            if self._may_evict(value):
                self.pop(key)
                return True
        return False

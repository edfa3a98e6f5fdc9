"""One budget of bytes for all caches together.

``global.cache.max_size_estimated`` bounds the sum of what every `Cache` of a
process holds.  When the sum exceeds it, the cache that holds most gives up
what it has not used for longest.  Sizes are estimates that the cache's owner
makes; each cache reports its share.

A value is *fresh* until it is asked for again, then it is *kept*.  Fresh
values have little room: what is used once (a room that was only just created)
makes way for the next of its kind, and memory goes to what is used again.
Kept values that nobody asks for during ``global.cache.max_age`` are forgotten.

Reader threads use caches too, so changes are made under the budget's lock.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

FRESH_BYTES = 1 << 20
"""Room for the fresh values of one cache."""

_MARK: Any = object()
"""The key that parts what was used since the last sweep from what was not."""


class CacheBudget:
    """The bytes that all caches of a process share."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.used = 0
        self.lock = threading.RLock()
        self.caches: list[Cache[Any, Any]] = []

    def keep(self) -> None:
        """Let the largest cache forget until the sum is within the budget."""
        while self.used > self.max_bytes:
            if not any(
                cache.evict_oldest() for cache in sorted(self.caches, key=lambda cache: cache.bytes, reverse=True)
            ):
                return

    def sweep(self) -> None:
        """Forget the kept values that were not asked for since the sweep before."""
        for cache in self.caches:
            cache.sweep()


class Cache(Generic[K, V]):
    """Values under a budget; ``hits`` and ``misses`` count look-ups.

    ``size`` estimates a value's bytes; ``may_evict`` can hold back a value that is in use.
    ``fresh_bytes`` is the room for values that were not asked for again yet.
    """

    def __init__(
        self,
        name: str,
        budget: CacheBudget,
        size: Callable[[V], int],
        may_evict: Callable[[V], bool] = lambda value: True,
        fresh_bytes: int = FRESH_BYTES,
    ) -> None:
        self.name = name
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        self._budget = budget
        self._size = size
        self._may_evict = may_evict
        self._room = fresh_bytes
        self._fresh_used = 0
        self._fresh: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._kept: OrderedDict[K, tuple[V, int]] = OrderedDict()
        budget.caches.append(self)

    def __len__(self) -> int:
        return len(self._fresh) + len(self._kept) - (_MARK in self._kept)

    def get(self, key: K) -> V | None:
        with self._budget.lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
                self.hits += 1
                return found[0]
            if key not in self._fresh:
                self.misses += 1
                return None
            self.hits += 1
            return self._promote(key)

    def get_many(self, keys: Iterable[K]) -> list[V | None]:
        """As `get` for each of `keys`, for a fraction of its cost."""
        kept, fresh = self._kept, self._fresh
        values: list[V | None] = []
        missed = 0
        with self._budget.lock:
            for key in keys:
                found = kept.get(key)
                if found is not None:
                    kept.move_to_end(key)
                    values.append(found[0])
                elif key in fresh:
                    values.append(self._promote(key))
                else:
                    values.append(None)
                    missed += 1
            self.hits += len(values) - missed
            self.misses += missed
        return values

    def _promote(self, key: K) -> V:
        """Count a fresh value among the kept ones."""
        found = self._kept[key] = self._fresh.pop(key)
        self._fresh_used -= found[1]
        return found[0]

    def peek(self, key: K) -> V | None:
        """The value at `key`, without counting that as a use of it."""
        found = self._kept.get(key) or self._fresh.get(key)
        return None if found is None else found[0]

    def put(self, key: K, value: V) -> None:
        """Remember `value`, in place of what stood at `key`."""
        size = self._size(value)
        with self._budget.lock:
            if key in self._kept:
                self._account(size - self._kept[key][1])
                self._kept[key] = (value, size)
                self._kept.move_to_end(key)
            else:
                self.pop(key)
                self._fresh[key] = (value, size)
                self._fresh_used += size
                self._account(size)
                self._make_room()
            if self._budget.used > self._budget.max_bytes:
                self._budget.keep()

    def _account(self, change: int) -> None:
        self.bytes += change
        self._budget.used += change

    def _make_room(self) -> None:
        """Let the oldest fresh values go for the newest."""
        while self._fresh_used > self._room and len(self._fresh) > 1:
            oldest = next(iter(self._fresh))
            if self._may_evict(self._fresh[oldest][0]):
                self.pop(oldest)
            else:
                self._promote(oldest)

    def pop(self, key: K) -> V | None:
        with self._budget.lock:
            found = self._fresh.pop(key, None)
            if found is not None:
                self._fresh_used -= found[1]
            else:
                found = self._kept.pop(key, None)
            if found is None:
                return None
            self._account(-found[1])
            return found[0]

    def clear(self) -> None:
        """Forget everything."""
        with self._budget.lock:
            self._account(-self.bytes)
            self._fresh_used = 0
            self._fresh.clear()
            self._kept.clear()

    def evict_oldest(self) -> bool:
        """Forget one value that may go; `False` where there is none."""
        with self._budget.lock:
            order = [self._fresh, self._kept] if len(self._fresh) > 1 else [self._kept, self._fresh]
            for values in order:
                for key, (value, _) in values.items():
                    if key is not _MARK and self._may_evict(value):
                        self.pop(key)
                        return True
            return False

    def sweep(self) -> None:
        """Forget the kept values that were not asked for since the last call."""
        with self._budget.lock:
            if _MARK in self._kept:
                for key in list(self._kept):
                    if key is _MARK:
                        break
                    if self._may_evict(self._kept[key][0]):
                        self.pop(key)
                del self._kept[_MARK]
            self._kept[_MARK] = (_MARK, 0)

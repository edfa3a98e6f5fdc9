"""What was asked for last, kept exact across loads that take their time."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from ..cache import Cache, CacheBudget

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Recent(Generic[K, V]):
    """A cache of what the database says, under the budget of all caches.

    Whoever loads a value from the database notes `generation` before and gives
    it back to `keep`: if anything was forgotten or changed in between, the
    loaded value may be old already and is not kept.  ``entry_bytes`` is what an
    entry takes, about.
    """

    def __init__(self, name: str, budget: CacheBudget, entry_bytes: int) -> None:
        self._cache: Cache[K, V] = Cache(name, budget, lambda value: entry_bytes)
        self.generation = 0

    def get(self, key: K) -> V | None:
        return self._cache.get(key)

    def keep(self, key: K, value: V, generation: int) -> None:
        """Remember a value that was loaded when `generation` was the newest."""
        if generation == self.generation:
            self._cache.put(key, value)

    def change(self, key: K, function: Callable[[V], V]) -> None:
        """Change the value of `key` where it is remembered; what is being loaded now is not kept."""
        self.generation += 1
        value = self._cache.pop(key)
        if value is not None:
            self._cache.put(key, function(value))

    def forget(self, key: K) -> None:
        self.generation += 1
        self._cache.pop(key)

    def forget_all(self) -> None:
        self.generation += 1
        self._cache.clear()

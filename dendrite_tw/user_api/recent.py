"""A bounded memory of what was asked for last, kept exact across loads that take their time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Recent(Generic[K, V]):
    """The newest `limit` entries by use.

    Whoever loads a value from the database notes `generation` before and gives
    it back to `keep`: if anything was forgotten or changed in between, the
    loaded value may be old already and is not kept.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._entries: OrderedDict[K, V] = OrderedDict()
        self.generation = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: K) -> V | None:
        value = self._entries.get(key)
        if value is not None:
            self._entries.move_to_end(key)
        return value

    def keep(self, key: K, value: V, generation: int) -> None:
        """Remember a value that was loaded when `generation` was the newest."""
        if generation == self.generation:
            self._entries[key] = value
            self._entries.move_to_end(key)
            if len(self._entries) > self._limit:
                self._entries.popitem(last=False)

    def change(self, key: K, function: Callable[[V], V]) -> None:
        """Change the value of `key` where it is remembered; what is being loaded now is not kept."""
        self.generation += 1
        if key in self._entries:
            self._entries[key] = function(self._entries[key])

    def forget(self, key: K) -> None:
        self.generation += 1
        self._entries.pop(key, None)

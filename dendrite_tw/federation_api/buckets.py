"""How often something happened lately: a leaky bucket for each key, and so many keys."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

from ..world import Clock

K = TypeVar("K", bound=Hashable)


class Buckets(Generic[K]):
    """Each bucket takes ``burst`` at once and loses one every ``leak_ms``; those filled longest ago are forgotten."""

    def __init__(self, clock: Clock, burst: int, leak_ms: float, remembered: int) -> None:
        self._clock = clock
        self._burst = burst
        self._leak_ms = leak_ms
        self._remembered = remembered
        self._levels: OrderedDict[K, tuple[float, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._levels)

    def _level(self, key: K) -> float:
        level, since = self._levels.get(key, (0.0, 0))
        return max(0.0, level - max(0, self._clock.now_ms() - since) / self._leak_ms)

    def wait_ms(self, key: K) -> int:
        """How long until there is room for one more; 0 if there is."""
        above = self._level(key) + 1 - self._burst
        return max(1, int(above * self._leak_ms)) if above > 0 else 0

    def add(self, key: K) -> None:
        """One more, which may be one too many."""
        self._levels[key] = (min(self._level(key) + 1, float(self._burst)), self._clock.now_ms())
        self._levels.move_to_end(key)
        if len(self._levels) > self._remembered:
            self._levels.popitem(last=False)

    def empty(self, key: K) -> None:
        self._levels.pop(key, None)

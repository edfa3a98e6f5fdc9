"""What is remembered for a while and not for ever: nonces, and what a registration on its way has said."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

from ..world import Clock

Value = TypeVar("Value")


class Remembered(Generic[Value]):
    """A mapping whose entries go after `lifetime_ms`, and the oldest where there are more than `limit`."""

    def __init__(self, clock: Clock, lifetime_ms: int, limit: int) -> None:
        self._clock = clock
        self._lifetime_ms = lifetime_ms
        self._limit = limit
        self._entries: OrderedDict[str, tuple[int, Value]] = OrderedDict()

    def put(self, key: str, value: Value) -> None:
        """Remember `value`, from now on for the whole lifetime."""
        now = self._clock.now_ms()
        self._entries.pop(key, None)
        while self._entries and (len(self._entries) >= self._limit or next(iter(self._entries.values()))[0] <= now):
            self._entries.popitem(last=False)
        self._entries[key] = (now + self._lifetime_ms, value)

    def get(self, key: str) -> Value | None:
        expires, value = self._entries.get(key, (0, None))
        return value if expires > self._clock.now_ms() else None

    def pop(self, key: str) -> Value | None:
        """The value, which is forgotten with this."""
        value = self.get(key)
        self._entries.pop(key, None)
        return value

"""What every process does from time to time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall

from .basis import Basis

PROBE_SECONDS = 5
REST_SECONDS = 10


class Chores:
    """Databases that failed are looked at again, idle ones give back memory, and so do caches."""

    def __init__(self, basis: Basis) -> None:
        self._time = basis.world.time
        databases, budget = basis.databases, basis.budget
        self._loops: list[tuple[LoopingCall, float]] = []
        self._every(PROBE_SECONDS, lambda: Deferred.fromCoroutine(databases.probe()))
        self._every(REST_SECONDS, databases.rest)
        self._every(max(60.0, basis.config.global_.cache.max_age), budget.sweep)

    def _every(self, seconds: float, chore: Callable[[], Any]) -> None:
        loop = LoopingCall(chore)
        loop.clock = self._time
        self._loops.append((loop, seconds))

    def start(self) -> None:
        for loop, seconds in self._loops:
            loop.start(seconds, now=False)

    def stop(self) -> None:
        for loop, _ in self._loops:
            if loop.running:
                loop.stop()

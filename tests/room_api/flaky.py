"""A database whose writes wait until the test lets them run, and may fail in each way that a real one can."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred

from dendrite_tw.database.engines import SQLiteDatabase, Unavailable, _deliver, _Job

REFUSED, BROKEN, UNHEARD = "refused", "broken", "unheard"
"""Nothing is stored and the caller told so; the transaction raises; all is stored, but the word of it is lost."""


class FlakyDatabase(SQLiteDatabase):
    """Runs one write at a time, when told to; `faults` say how the next ones fail, `None` that one does not."""

    def __init__(self) -> None:
        super().__init__(":memory:", None)
        self.faults: deque[str | None] = deque()
        self.waiting: deque[_Job] = deque()

    def write(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Deferred[Any]:
        job = _Job(function, args, kwargs, Deferred())
        self.waiting.append(job)
        return job.answer

    def run_one(self) -> None:
        job = self.waiting.popleft()
        fault = self.faults.popleft() if self.faults else None
        if fault == REFUSED:
            job.answer.errback(Unavailable("the disk is full"))
            return
        if fault == BROKEN:
            job.answer.errback(ValueError("a constraint is broken"))
            return
        self._commit([job])
        if fault == UNHEARD:
            job.answer.errback(Unavailable("the connection was lost"))
            return
        _deliver([job])

    def run_all(self) -> None:
        while self.waiting:
            self.run_one()

    def crash(self) -> None:
        """What waits is never stored, nor heard of."""
        self.waiting.clear()
        self.faults.clear()

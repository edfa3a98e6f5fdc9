"""Brings what streams append to disk, batch after batch, off the reactor thread.

What is appended while a sync is under way forms the next batch: no lingering, and one `fdatasync` for as many
messages as arrived meanwhile.  One `Syncer` does this for all streams of a server.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeVar

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from dendrite_tw.jetstream.segments import Write

if TYPE_CHECKING:
    from dendrite_tw.jetstream.store import FileStorage

log = Logger(namespace="dendrite_tw.jetstream.store")


T = TypeVar("T")


Run = Callable[..., "Deferred[T]"]
"""Runs a function with its arguments elsewhere (a thread) and promises its result, as `deferToThread`
does.
"""


RETRY_SECONDS: Final = 1.0


class Syncer:
    """Brings all that was appended to disk, batch after batch, and runs what must come between two batches.

    A batch that fails is tried again until it succeeds; meanwhile nothing is acknowledged and ``failing``
    says why.
    """

    def __init__(self, run: Run[None], call_later: Callable[[float, Callable[[], None]], object]) -> None:
        self._run = run
        self._call_later = call_later
        self._wanting: dict[FileStorage, None] = {}
        self._jobs: list[Callable[[], object]] = []
        self._waiting: list[Callable[[], None]] = []
        self._busy = False
        self._scheduled = False
        self.after_batch: Callable[[], None] = lambda: None
        """Called when those who waited for a batch have been told."""
        self.failing = ""
        self.batches = 0

    def want(self, storage: FileStorage) -> None:
        """The storage has something to write."""
        self._wanting[storage] = None
        if not self._busy and not self._scheduled:
            self._schedule()

    def later(self, job: Callable[..., object], *args: object) -> None:
        """Run a job in the thread, after all that was appended until now is on disk."""
        self._jobs.append((lambda: job(*args)) if args else job)
        if not self._busy and not self._scheduled:
            self._schedule()

    def when_synced(self, call: Callable[[], None]) -> None:
        """Call back when all that was appended until now is on disk: at once if it is."""
        if self._busy or self._wanting or self._jobs:
            self._waiting.append(call)
        else:
            call()

    def is_idle(self) -> bool:
        return not (self._busy or self._wanting or self._jobs)

    def _schedule(self) -> None:
        """Start when the present turn of the reactor is over: what it still appends joins the batch."""
        self._scheduled = True
        self._call_later(0, self._start)

    def kick(self) -> None:
        """A turn's work is done: sync now what it appended."""
        if not self._busy and (self._wanting or self._jobs):
            self._start()

    def _start(self) -> None:
        self._scheduled = False
        if self._busy or not (self._wanting or self._jobs):
            return
        storages, self._wanting = list(self._wanting), {}
        jobs, self._jobs = self._jobs, []
        waiting, self._waiting = self._waiting, []
        batch = [(storage, storage.take()) for storage in storages]
        # Taking may have noted a floor, which is part of this batch.
        self._wanting.clear()
        self._busy = True
        self._attempt(batch, jobs, waiting)

    def _attempt(
        self,
        batch: list[tuple[FileStorage, list[Write]]],
        jobs: list[Callable[[], object]],
        waiting: list[Callable[[], None]],
    ) -> None:
        writes = [write for _, part in batch for write in part]

        def succeeded(ignored: None) -> None:
            self.failing = ""
            self.batches += 1
            self._busy = False
            for storage, part in batch:
                storage.written(part)
            satisfied = waiting
            if self._wanting or self._jobs:
                self._start()
            else:
                # Who asked during this batch, with nothing appended since, has waited for it alone.
                satisfied = [*waiting, *self._waiting]
                self._waiting = []
            for call in satisfied:
                call()
            self.after_batch()

        def failed(failure: Failure) -> None:
            if not self.failing:
                log.error("The queue cannot write: {error}", error=failure.getErrorMessage())
            self.failing = failure.getErrorMessage() or "unknown error"
            self._call_later(RETRY_SECONDS, lambda: self._attempt(batch, jobs, waiting))

        self._run(perform, writes, jobs).addCallbacks(succeeded, failed)


def perform(writes: list[Write], jobs: list[Callable[[], object]]) -> None:
    """In the thread: all writes, each synced, then the jobs.  Only a failed write fails the batch."""
    for write in writes:
        write.perform()
    for job in jobs:
        try:
            job()
        except OSError as error:
            log.error("The queue cannot tidy up: {error}", error=str(error))

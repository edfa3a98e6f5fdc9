"""One thread for the disk: what `deferToThread` does, for a single customer and at a fraction of the cost."""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

_Job = tuple[Callable[..., Any], tuple[Any, ...], "Deferred[Any]"]
_NAME: Final = "queue-disk"


class DiskThread:
    """Runs functions one after the other, off the reactor thread; begins with the first one.

    ``call_from_thread`` is the reactor's `callFromThread`.
    """

    def __init__(self, call_from_thread: Callable[..., object]) -> None:
        self._call_from_thread = call_from_thread
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread: Thread | None = None

    def run(self, function: Callable[..., Any], *args: Any) -> Deferred[Any]:
        """Promise the result of a function that runs in the thread."""
        if self._thread is None:
            self._thread = Thread(target=self._work, name=_NAME, daemon=True)
            self._thread.start()
        deferred: Deferred[Any] = Deferred()
        self._jobs.put((function, args, deferred))
        return deferred

    def stop(self) -> None:
        """End the thread when it has done what it was given."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._jobs.put(None)
            thread.join()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            function, args, deferred = job
            try:
                result = function(*args)
            except Exception:
                self._call_from_thread(deferred.errback, Failure())
            else:
                self._call_from_thread(deferred.callback, result)

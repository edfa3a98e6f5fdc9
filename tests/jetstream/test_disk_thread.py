"""The disk's thread: results and failures come back on the reactor's side, in order."""

from __future__ import annotations

from queue import Queue
from threading import current_thread
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.jetstream.disk_thread import DiskThread


class DiskThreadTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.calls: Queue[tuple[Any, ...]] = Queue()
        self.thread = DiskThread(lambda *call: self.calls.put(call))
        self.addCleanup(self.thread.stop)

    def turn(self) -> None:
        call, *args = self.calls.get(timeout=10)
        call(*args)

    def test_results_in_order(self) -> None:
        deferreds = [self.thread.run(pow, number, 2) for number in range(5)]
        for deferred in deferreds:
            self.assertNoResult(deferred)
            self.turn()
        self.assertEqual([self.successResultOf(deferred) for deferred in deferreds], [0, 1, 4, 9, 16])

    def test_elsewhere(self) -> None:
        deferred = self.thread.run(current_thread)
        self.turn()
        self.assertIsNot(self.successResultOf(deferred), current_thread())

    def test_failures(self) -> None:
        deferred = self.thread.run(int, "x")
        self.turn()
        self.failureResultOf(deferred, ValueError)

    def test_stops_when_done(self) -> None:
        deferred = self.thread.run(pow, 2, 3)
        self.thread.stop()
        self.turn()
        self.assertEqual(self.successResultOf(deferred), 8)
        again = self.thread.run(pow, 3, 2)
        self.turn()
        self.assertEqual(self.successResultOf(again), 9)

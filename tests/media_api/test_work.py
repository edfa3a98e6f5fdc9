"""Work in threads, work that is shared, requests that wait."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.media_api.work import Arrivals, Shared, in_thread


class Threads:
    """Threads that run when the test says so."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], Any]] = []

    def call_in_thread(self, function: Callable[..., Any], *args: Any) -> None:
        self.calls.append(lambda: function(*args))

    def call_from_thread(self, function: Callable[..., Any], *args: Any) -> None:
        function(*args)


class ThreadTests(SynchronousTestCase):
    def test_results_and_errors_come_back(self) -> None:
        threads = Threads()
        good, bad = in_thread(threads, divmod, 7, 2), in_thread(threads, divmod, 7, 0)
        self.assertNoResult(good)
        for call in threads.calls:
            call()
        self.assertEqual(self.successResultOf(good), (3, 1))
        self.failureResultOf(bad, ZeroDivisionError)
        self.assertEqual(self.successResultOf(in_thread(None, divmod, 7, 2)), (3, 1))
        self.failureResultOf(in_thread(None, divmod, 7, 0), ZeroDivisionError)

    def test_nobody_need_wait(self) -> None:
        threads = Threads()
        answer = in_thread(threads, divmod, 7, 2)
        answer.cancel()
        threads.calls[0]()
        self.failureResultOf(answer, CancelledError)


class SharedTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.shared = Shared()
        self.gate: Deferred[int] = Deferred()
        self.begun = 0

    async def work(self) -> int:
        self.begun += 1
        return await self.gate

    def test_it_is_done_once_for_all(self) -> None:
        answers = [self.shared.run("key", self.work) for _ in range(3)]
        self.assertIn("key", self.shared)
        idle = self.shared.idle()
        self.assertNoResult(idle)
        self.gate.callback(5)
        self.assertEqual([self.successResultOf(answer) for answer in answers], [5, 5, 5])
        self.assertEqual((self.begun, len(self.shared)), (1, 0))
        self.successResultOf(idle)
        self.successResultOf(self.shared.idle())
        self.gate = Deferred()
        self.gate.callback(6)
        self.assertEqual(self.successResultOf(self.shared.run("key", self.work)), 6)

    def test_it_goes_on_without_who_went_away(self) -> None:
        first, second = self.shared.run("key", self.work), self.shared.run("key", self.work)
        first.cancel()
        self.failureResultOf(first, CancelledError)
        self.gate.callback(5)
        self.assertEqual(self.successResultOf(second), 5)

    def test_all_hear_of_a_failure(self) -> None:
        answers = [self.shared.run("key", self.work) for _ in range(2)]
        self.gate.errback(ValueError("no"))
        for answer in answers:
            self.failureResultOf(answer, ValueError)


class ArrivalTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.arrivals = Arrivals(self.clock, 2)

    def wait(self, name: str, seconds: float) -> Deferred[bool]:
        return Deferred.fromCoroutine(self.arrivals.wait(name, seconds))

    def test_waiting_ends_by_arrival_or_time(self) -> None:
        one, other = self.wait("one", 10), self.wait("other", 10)
        self.arrivals.tell("one")
        self.assertTrue(self.successResultOf(one))
        self.assertNoResult(other)
        self.clock.advance(10)
        self.assertTrue(self.successResultOf(other))
        self.assertEqual((len(self.arrivals), self.clock.getDelayedCalls()), (0, []))
        self.arrivals.tell("one")

    def test_few_may_wait(self) -> None:
        waiting = [self.wait("x", 10), self.wait("x", 10)]
        self.assertFalse(self.successResultOf(self.wait("x", 10)))
        waiting[0].cancel()
        self.failureResultOf(waiting[0], CancelledError)
        self.assertNoResult(self.wait("x", 10))

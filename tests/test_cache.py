"""What caches keep, and what they let go, under one budget."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.cache import Cache, CacheBudget


class CacheTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.budget = CacheBudget(100)
        self.cache: Cache[int, int] = Cache("numbers", self.budget, lambda value: value, fresh_bytes=40)

    def test_values_are_found_and_forgotten(self) -> None:
        self.cache.put(1, 10)
        self.assertEqual((self.cache.get(1), self.cache.get(2)), (10, None))
        self.assertEqual((self.cache.hits, self.cache.misses, self.cache.bytes), (1, 1, 10))
        self.assertEqual((self.cache.pop(1), self.cache.pop(1)), (10, None))
        self.assertEqual((len(self.cache), self.budget.used), (0, 0))

    def test_what_is_used_once_makes_way(self) -> None:
        self.cache.put(0, 10)
        self.cache.get(0)
        for key in range(1, 10):
            self.cache.put(key, 10)
        self.assertEqual(len(self.cache), 5)
        self.assertEqual([key for key in range(10) if self.cache.get(key)], [0, 6, 7, 8, 9])

    def test_a_single_value_may_be_larger_than_the_room(self) -> None:
        self.cache.put(1, 60)
        self.assertEqual(self.cache.get(1), 60)

    def test_the_largest_cache_gives_up_first(self) -> None:
        other: Cache[int, int] = Cache("others", self.budget, lambda value: value)
        other.put(1, 30)
        other.get(1)
        for key in range(9):
            self.cache.put(key, 10)
            self.cache.get(key)
        self.assertLessEqual(self.budget.used, 100)
        self.assertEqual(other.get(1), 30)
        self.assertIsNone(self.cache.get(0))

    def test_values_in_use_stay(self) -> None:
        held: Cache[int, int] = Cache("held", self.budget, lambda value: 50, lambda value: value > 5, fresh_bytes=50)
        for key in range(4):
            held.put(key, key)
        self.assertEqual([key for key in range(4) if held.get(key) is not None], [0, 1, 2, 3])

    def test_a_sweep_forgets_what_was_not_asked_for(self) -> None:
        for key in (1, 2):
            self.cache.put(key, 10)
            self.cache.get(key)
        self.budget.sweep()
        self.cache.get(2)
        self.budget.sweep()
        self.assertEqual((self.cache.get(1), self.cache.get(2), len(self.cache)), (None, 10, 1))

    def test_all_is_forgotten_at_once(self) -> None:
        self.cache.put(1, 10)
        self.cache.get(1)
        self.budget.sweep()
        self.cache.put(2, 10)
        self.cache.clear()
        self.assertEqual((self.cache.get(1), self.cache.get(2), self.cache.bytes, self.budget.used), (None, None, 0, 0))
        self.budget.sweep()
        self.cache.put(3, 10)
        self.assertEqual((self.cache.get(3), self.budget.used), (10, 10))

    @settings(max_examples=100, deadline=None, derandomize=True)
    @given(st.lists(st.tuples(st.sampled_from("gppxsc"), st.integers(0, 9), st.integers(1, 60)), max_size=80))
    def test_the_books_are_right(self, steps: list[tuple[str, int, int]]) -> None:
        budget = CacheBudget(100)
        cache: Cache[int, int] = Cache("numbers", budget, lambda value: value, fresh_bytes=40)
        for what, key, value in steps:
            if what == "g":
                cache.get(key)
            elif what == "p":
                cache.put(key, value)
                self.assertEqual(cache.get(key), value)
            elif what == "x":
                cache.pop(key)
            elif what == "c" and key == 0:
                cache.clear()
            else:
                budget.sweep()
            self.assertLessEqual(budget.used, 100)
            self.assertEqual(budget.used, cache.bytes)
        held = [value for key in range(10) if (value := cache.pop(key)) is not None]
        self.assertEqual((cache.bytes, len(cache)), (0, 0), held)

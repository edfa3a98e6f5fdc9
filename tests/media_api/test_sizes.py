"""Thumbnail sizes: never smaller than wished for, never larger than the original."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.media_api.api import Method, ThumbnailSize
from dendrite_tw.media_api.sizes import choose, scaled, shrinks, thumbnail_name

CROP, SCALE = Method.CROP, Method.SCALE
SIZES = [
    ThumbnailSize(32, 32, CROP),
    ThumbnailSize(96, 96, CROP),
    ThumbnailSize(320, 240, SCALE),
    ThumbnailSize(640, 480, SCALE),
]
LENGTH = st.integers(1, 20_000)


class SizeTests(SynchronousTestCase):
    def test_scaling_keeps_the_aspect_and_covers_the_wish(self) -> None:
        self.assertEqual(scaled(1000, 500, ThumbnailSize(100, 100)), (200, 100))
        self.assertEqual(scaled(500, 1000, ThumbnailSize(100, 100)), (100, 200))
        self.assertEqual(scaled(1000, 1000, ThumbnailSize(640, 480)), (640, 640))
        self.assertEqual(scaled(1999, 1000, ThumbnailSize(100, 100)), (200, 100))

    @settings(max_examples=100, deadline=None, derandomize=True)
    @given(LENGTH, LENGTH, LENGTH, LENGTH)
    def test_scaling_is_between_wish_and_original(self, width: int, height: int, wide: int, high: int) -> None:
        wish = ThumbnailSize(wide, high)
        if shrinks(width, height, wish):
            result = scaled(width, height, wish)
            self.assertTrue(wide <= result[0] <= width and high <= result[1] <= height, result)
            self.assertTrue(wide == result[0] or high == result[1], result)

    def test_what_cannot_be_made_smaller(self) -> None:
        self.assertTrue(shrinks(100, 100, ThumbnailSize(99, 100)))
        for wish in (ThumbnailSize(100, 100), ThumbnailSize(101, 1), ThumbnailSize(1, 101)):
            self.assertFalse(shrinks(100, 100, wish))

    def test_the_least_sufficient_size_is_chosen(self) -> None:
        for wish, expected in [
            (ThumbnailSize(30, 30, CROP), SIZES[0]),
            (ThumbnailSize(32, 33, CROP), SIZES[1]),
            (ThumbnailSize(97, 97, CROP), SIZES[2]),
            (ThumbnailSize(30, 30, SCALE), SIZES[2]),
            (ThumbnailSize(320, 241, SCALE), SIZES[3]),
            (ThumbnailSize(641, 1, SCALE), None),
        ]:
            self.assertEqual(choose(SIZES, wish), expected, wish)
        self.assertIsNone(choose(SIZES[:2], ThumbnailSize(10, 10, SCALE)))
        self.assertIsNone(choose([], ThumbnailSize(10, 10, CROP)))

    def test_names_tell_sizes_apart(self) -> None:
        names = {thumbnail_name(size, animated) for size in SIZES for animated in (False, True)}
        self.assertEqual(len(names), 8)
        self.assertIn("thumbnail-32x32-crop", names)

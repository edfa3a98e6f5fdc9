"""Images made small: sizes, colours, orientation, animation; and every hostile file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.media_api import thumbnails
from dendrite_tw.media_api.api import Method, ThumbnailSize
from dendrite_tw.media_api.thumbnails import Facts, NotAnImage, Thumbnail, TooManyPixels, TooSlow, look, make
from tests.media_api.images import bomb_gif, bomb_png, bomb_webp, film, frame_count, opened, picture, turned

CROP, SCALE = Method.CROP, Method.SCALE


def still() -> int:
    return 0


class Ticking:
    """A clock that moves on with every look at it."""

    def __init__(self, step: int) -> None:
        self.now, self.step = 0, step

    def __call__(self) -> int:
        self.now += self.step
        return self.now


class ThumbnailTests(SynchronousTestCase):
    def write(self, data: bytes) -> Path:
        path = Path(self.mktemp())
        path.write_bytes(data)
        return path

    def make(self, data: bytes, *sizes: ThumbnailSize, animated: bool = False) -> list[Thumbnail]:
        path = self.write(data)
        return make(path, look(path, still), sizes, animated, still)

    def one(self, data: bytes, width: int, height: int, method: Method = SCALE, animated: bool = False) -> Any:
        return opened(self.make(data, ThumbnailSize(width, height, method), animated=animated)[0].data)

    def near(self, image: Any, at: tuple[int, int], colour: tuple[int, ...]) -> bool:
        pixel = image.convert("RGB").getpixel(at)
        return all(abs(a - b) < 40 for a, b in zip(pixel, colour, strict=True))

    def test_facts(self) -> None:
        facts = look(self.write(picture(30, 20, "PNG")), still)
        self.assertEqual(facts, Facts("image/png", 30, 20, 1, False, False))
        self.assertEqual(look(self.write(turned(30, 20, 6)), still), Facts("image/jpeg", 20, 30, 6, False, False))
        for kind in ("GIF", "WEBP", "PNG"):
            facts = look(self.write(film(30, 20, 3, kind)), still)
            self.assertEqual((facts.content_type, facts.animated), (f"image/{kind.lower()}", True))

    def test_scale_and_crop(self) -> None:
        for kind in ("JPEG", "PNG", "GIF", "WEBP"):
            data = picture(400, 200, kind)
            self.assertEqual(self.one(data, 100, 100).size, (200, 100), kind)
            cropped = self.one(data, 64, 64, CROP)
            self.assertEqual((cropped.size, cropped.format), ((64, 64), "JPEG"), kind)
            self.assertTrue(self.near(cropped, (10, 10), (255, 0, 0)), kind)
            self.assertTrue(self.near(cropped, (54, 54), (0, 0, 255)), kind)

    def test_all_sizes_from_one_decoding(self) -> None:
        sizes = [ThumbnailSize(32, 32, CROP), ThumbnailSize(320, 240), ThumbnailSize(800, 600)]
        made = self.make(picture(3000, 1500), *sizes)
        self.assertEqual([opened(item.data).size for item in made], [(32, 32), (480, 240), (1200, 600)])

    def test_what_shows_through_stays_so(self) -> None:
        made = self.one(picture(100, 100, "PNG", "RGBA"), 50, 50)
        self.assertEqual((made.format, made.mode), ("PNG", "RGBA"))
        self.assertEqual((made.getpixel((5, 5))[3], made.getpixel((45, 45))[3]), (255, 0))
        palette = Image.new("P", (100, 100), 1)
        path = Path(self.mktemp())
        palette.save(path, "GIF", transparency=1)
        self.assertEqual(self.one(path.read_bytes(), 50, 50).format, "PNG")
        opaque = Image.new("RGBA", (100, 100), (1, 2, 3, 255))
        opaque.save(path, "PNG")
        self.assertEqual(self.one(path.read_bytes(), 50, 50).format, "JPEG")

    def test_every_mode(self) -> None:
        for kind, mode in [("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "L"), ("PNG", "I;16"), ("WEBP", "RGBA")]:
            made = self.one(picture(100, 100, kind, mode), 50, 50)
            self.assertEqual(made.size, (50, 50))
        sixteen = self.one(picture(100, 100, "PNG", "I;16"), 50, 50)
        self.assertTrue(self.near(sixteen, (5, 5), (255, 255, 255)))
        self.assertTrue(self.near(sixteen, (45, 45), (0, 0, 0)))
        bits = Image.new("1", (100, 100), 1)
        path = Path(self.mktemp())
        bits.save(path, "PNG")
        self.assertEqual(self.one(path.read_bytes(), 50, 50).mode, "L")

    def test_orientation(self) -> None:
        """The red quarter is where the viewer is meant to see it."""
        corners = {1: (0, 0), 2: (1, 0), 3: (1, 1), 4: (0, 1), 5: (0, 0), 6: (1, 0), 7: (1, 1), 8: (0, 1)}
        for orientation, (right, low) in corners.items():
            for method, expected in ((CROP, (50, 40)), (SCALE, (50, 50))):
                made = self.one(turned(200, 200, orientation), 50, expected[1], method)
                self.assertEqual(made.size, expected, (orientation, method))
                spot = (40 if right else 10, int(expected[1] * (0.8 if low else 0.2)))
                self.assertTrue(self.near(made, spot, (255, 0, 0)), (orientation, method))
            wide = self.one(turned(400, 200, orientation), 50, 50)
            self.assertEqual(wide.size, (100, 50) if orientation < 5 else (50, 100), orientation)

    def test_nothing_of_the_metadata_is_kept(self) -> None:
        exif = Image.Exif()
        exif[0x010E] = "where I live"
        for kind in ("JPEG", "PNG", "WEBP"):
            data = picture(100, 100, kind, "RGB" if kind == "JPEG" else "RGBA", exif=exif)
            self.assertIn(b"where I live", data)
            self.assertNotIn(b"where I live", self.make(data, ThumbnailSize(50, 50))[0].data)

    def test_animations_move_only_when_asked(self) -> None:
        for kind in ("GIF", "WEBP", "PNG"):
            data = film(100, 60, 4, kind)
            moving = self.make(data, ThumbnailSize(50, 30), animated=True)[0]
            self.assertEqual((moving.content_type, frame_count(moving.data)), ("image/webp", 4), kind)
            self.assertEqual(opened(moving.data).size, (50, 30))
            frozen = self.make(data, ThumbnailSize(50, 30))[0]
            self.assertEqual((frozen.content_type, frame_count(frozen.data)), ("image/jpeg", 1), kind)
        self.assertEqual(
            self.make(picture(100, 60), ThumbnailSize(50, 30), animated=True)[0].content_type, "image/jpeg"
        )

    def test_a_long_animation_is_shown_by_its_first_frame(self) -> None:
        for limit in ("ANIMATION_PIXEL_LIMIT", "ANIMATED_OUTPUT_LIMIT"):
            self.patch(thumbnails, limit, 1000)
            made = self.make(film(100, 60, 4), ThumbnailSize(50, 30), animated=True)[0]
            self.assertEqual((made.content_type, frame_count(made.data)), ("image/jpeg", 1))

    def test_bombs_are_not_lit(self) -> None:
        for data in (bomb_png(9000, 9000), bomb_png(100_000, 100_000), bomb_gif(60_000, 60_000), bomb_gif(8000, 8000)):
            self.check_refused(TooManyPixels, data)
        with self.assertRaises((TooManyPixels, NotAnImage)):
            self.make(bomb_webp(16_383, 16_383), ThumbnailSize(50, 50))

    def check_refused(self, error: type[Exception], data: bytes, now: Callable[[], int] = still) -> None:
        path = self.write(data)
        with self.assertRaises(error):
            make(path, look(path, now), [ThumbnailSize(50, 50)], True, now)

    def test_a_large_jpeg_is_decoded_small(self) -> None:
        self.patch(thumbnails, "PIXEL_LIMIT", 10_000)
        self.patch(thumbnails, "JPEG_PIXEL_LIMIT", 1_000_000)
        self.assertEqual(self.one(picture(900, 900), 50, 50).size, (50, 50))
        self.check_refused(TooManyPixels, picture(1100, 1000))
        self.check_refused(TooManyPixels, picture(900, 900, "PNG"))

    def test_what_is_no_image(self) -> None:
        whole = picture(200, 200, "PNG")
        for data in (
            b"",
            b"GIF8",
            b"RIFF0000WEBP",
            b"<svg xmlns='http://www.w3.org/2000/svg'/>",
            b"%PDF-1.4",
            b"\xff\xd8\xff",
            b"\x89PNG\r\n\x1a\n" + b"\0" * 100,
            whole[: len(whole) // 2],
            picture(200, 200)[:400],
            b"BM" + bytes(100),
        ):
            self.check_refused(NotAnImage, data)

    def test_other_formats_are_not_even_tried(self) -> None:
        for kind in ("BMP", "TIFF", "PPM", "ICO", "TGA"):
            self.check_refused(NotAnImage, picture(64, 64, kind))

    def test_decoding_that_takes_too_long_is_given_up(self) -> None:
        noise = Image.effect_noise((500, 500), 100)
        for kind, options in (("PNG", {}), ("JPEG", {"progressive": True, "quality": 95})):
            path = Path(self.mktemp())
            noise.save(path, kind, **options)
            facts = look(path, still)
            with self.assertRaises(TooSlow):
                make(path, facts, [ThumbnailSize(400, 400)], False, Ticking(thumbnails.DECODE_LIMIT_MS // 5))
        self.check_refused(TooSlow, film(50, 50, 30), Ticking(thumbnails.DECODE_LIMIT_MS // 20))

    def test_a_file_that_changed_is_not_taken_for_the_other(self) -> None:
        facts = look(self.write(picture(100, 100)), still)
        with self.assertRaises(NotAnImage):
            make(self.write(picture(300, 100)), facts, [ThumbnailSize(50, 50)], False, still)

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(
        st.sampled_from(["JPEG", "PNG", "GIF", "WEBP"]),
        st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 255)), min_size=1, max_size=20),
        st.booleans(),
    )
    def test_no_damage_is_a_surprise(self, kind: str, damage: list[tuple[int, int]], animated: bool) -> None:
        data = bytearray(film(60, 60, 3, kind) if kind != "JPEG" else picture(60, 60))
        for place, value in damage:
            data[place % len(data)] = value
        path = self.write(bytes(data))
        try:
            facts = look(path, still)
            make(path, facts, [ThumbnailSize(30, 30)], animated, still)
        except (NotAnImage, TooManyPixels):
            pass

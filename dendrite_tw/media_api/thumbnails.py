"""Images made small, with limits on what a hostile file can cost.

Runs in threads and knows nothing of requests or databases.  Pillow is imported
when the first image comes.  Only four decoders are open to strangers; a file's
pixels are counted from its head before one is decoded; large JPEGs are decoded
at an eighth to a half of their size where that suffices; and reading stops
where decoding takes too long, so that no file holds a thread for ever.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from .api import Method, ThumbnailSize
from .sizes import scaled

if TYPE_CHECKING:
    from PIL.Image import Image

PIXEL_LIMIT = 40_000_000
"""Pixels of an image that is decoded whole."""

JPEG_PIXEL_LIMIT = 80_000_000
"""Pixels of a JPEG, which can be decoded at a fraction of its size."""

ANIMATION_PIXEL_LIMIT = 400_000_000
"""Pixels of all frames of an animation together; with more, its first frame stands for it."""

ANIMATED_OUTPUT_LIMIT = 16_000_000
"""Pixels of all frames of an animated thumbnail together, which are held at once."""

DECODE_LIMIT_MS = 10_000

FORMATS = {"JPEG": "image/jpeg", "PNG": "image/png", "GIF": "image/gif", "WEBP": "image/webp"}

_HEAD = {b"\xff\xd8\xff": "JPEG", b"\x89PNG\r\n\x1a\n": "PNG", b"GIF8": "GIF", b"RIFF": "WEBP"}
_PIECE = 1 << 14
_PROFILE_LIMIT = 8192
_ORIENTATION = 0x0112


class NotAnImage(Exception):
    """No image that a thumbnail can be made of: another format, or broken."""


class TooManyPixels(Exception):
    """An image that would cost too much to decode."""


class TooSlow(Exception):
    """An image that takes too long to decode."""


class Facts(msgspec.Struct, frozen=True):
    """What the head of an image says: its size as it is to be seen, i.e. turned as its camera said."""

    content_type: str
    width: int
    height: int
    orientation: int
    animated: bool
    too_large: bool

    @property
    def pixels(self) -> int:
        return self.width * self.height


class Thumbnail(msgspec.Struct, frozen=True):
    content_type: str
    data: bytes


class _Watched:
    """A file that stops being readable when the time is over."""

    def __init__(self, path: Path, now_ms: Callable[[], int]) -> None:
        self._file = path.open("rb")
        self._now_ms = now_ms
        self._deadline = now_ms() + DECODE_LIMIT_MS
        self.seek = self._file.seek
        self.tell = self._file.tell

    def __enter__(self) -> _Watched:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def check(self) -> None:
        if self._now_ms() > self._deadline:
            raise TooSlow

    def read(self, size: int = -1) -> bytes:
        self.check()
        return self._file.read(size)


def look(path: Path, now_ms: Callable[[], int]) -> Facts:
    """The facts of the image in the file `path`, from its head alone.

    Raises `NotAnImage`, `TooManyPixels` (beyond what may even be looked at) or `TooSlow`.
    """
    with _Watched(path, now_ms) as file:
        image = _open(file)
        try:
            orientation = _orientation(image)
            width, height = image.size
            limit = JPEG_PIXEL_LIMIT if image.format in ("JPEG", "MPO") else PIXEL_LIMIT
            if orientation >= 5:
                width, height = height, width
            return Facts(
                content_type=_content_type(image),
                width=width,
                height=height,
                orientation=orientation,
                animated=image.format != "MPO" and bool(getattr(image, "is_animated", False)),
                too_large=width * height > limit,
            )
        except (TooSlow, MemoryError):
            raise
        except Exception as error:
            raise NotAnImage(str(error)) from error


def _content_type(image: Image) -> str:
    return FORMATS["JPEG" if image.format == "MPO" else str(image.format)]


def _open(file: Any) -> Any:
    """The image whose head `file` begins with, not decoded yet."""
    head = file.read(16)
    kind = next((name for magic, name in _HEAD.items() if head.startswith(magic)), None)
    if kind is None:
        raise NotAnImage("no known image format")
    file.seek(0)
    from PIL import Image

    try:
        image = Image.open(file, formats=(kind,))
    except Image.DecompressionBombError as error:
        raise TooManyPixels from error
    except (TooSlow, MemoryError):
        raise
    except Exception as error:
        # A decoder may stumble over a broken file in any way.
        raise NotAnImage(str(error)) from error
    image.decodermaxblock = _PIECE
    return image


def _orientation(image: Image) -> int:
    """How the camera was held, 1 to 8; 1 where that cannot be read."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except TooSlow:
        raise
    except Exception:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def make(
    path: Path, facts: Facts, sizes: Sequence[ThumbnailSize], animated: bool, now_ms: Callable[[], int]
) -> list[Thumbnail]:
    """A thumbnail for each of `sizes`, each of which the image covers, decoding it once.

    With ``animated``, of an animation, they move; unless that would cost too much.
    Raises `NotAnImage`, `TooManyPixels` or `TooSlow`.
    """
    if facts.too_large:
        raise TooManyPixels
    with _Watched(path, now_ms) as file:
        image = _open(file)
        if image.size not in ((facts.width, facts.height), (facts.height, facts.width)):
            raise NotAnImage("not the image that was looked at")
        try:
            if animated and facts.animated:
                return [_make_animated(image, facts, size, file) or _make_still(image, facts, size) for size in sizes]
            _draft(image, facts, sizes)
            base = _plain(image)
            return [_encode(_shrink(base, facts, size), image.info.get("icc_profile")) for size in sizes]
        except (TooSlow, MemoryError):
            raise
        except Exception as error:
            raise NotAnImage(str(error)) from error


def _draft(image: Image, facts: Facts, sizes: Sequence[ThumbnailSize]) -> None:
    """Have a JPEG decoded no larger than the largest of `sizes` needs."""
    if image.format not in ("JPEG", "MPO"):
        return
    wanted = [scaled(facts.width, facts.height, size) for size in sizes]
    width, height = max(w for w, _ in wanted), max(h for _, h in wanted)
    image.draft(None, (height, width) if facts.orientation >= 5 else (width, height))


def _plain(image: Image) -> Image:
    """The image in one of the modes L, RGB and RGBA, which can be made smaller and written."""
    image.load()
    if image.mode.startswith(("I", "F")):
        # Sixteen bits a pixel, of which a thumbnail shows the upper eight.
        return image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        return image.convert("RGBA")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _shrink(image: Image, facts: Facts, size: ThumbnailSize) -> Image:
    """The image in the wanted size, the right way up."""
    from PIL.Image import Resampling

    width, height = image.size
    turned = facts.orientation >= 5
    if size.method is Method.CROP:
        target = (size.height, size.width) if turned else (size.width, size.height)
        cut_width = min(width, height * target[0] / target[1])
        cut_height = min(height, width * target[1] / target[0])
        left, top = (width - cut_width) / 2, (height - cut_height) / 2
        box = (left, top, left + cut_width, top + cut_height)
    else:
        seen = scaled(facts.width, facts.height, size)
        target = (seen[1], seen[0]) if turned else seen
        box = (0, 0, width, height)
    small = image.resize(target, Resampling.LANCZOS, box=box, reducing_gap=2.0)
    return _turn(small, facts.orientation)


def _turn(image: Image, orientation: int) -> Image:
    """Turn and mirror as EXIF's orientation says."""
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    return image.transpose(turns[orientation]) if orientation in turns else image


def _encode(image: Image, profile: bytes | None) -> Thumbnail:
    """PNG where something shows through, JPEG where not; nothing of the original's metadata but a colour profile."""
    image.info = {}
    out = io.BytesIO()
    if image.mode == "RGBA":
        if image.getchannel("A").getextrema() != (255, 255):
            image.save(out, "PNG", compress_level=6)
            return Thumbnail("image/png", out.getvalue())
        image = image.convert("RGB")
    kept = profile if profile and len(profile) <= _PROFILE_LIMIT and profile[16:20] == b"RGB " else None
    image.save(out, "JPEG", quality=82, optimize=False, icc_profile=kept if image.mode == "RGB" else None)
    return Thumbnail("image/jpeg", out.getvalue())


def _make_still(image: Image, facts: Facts, size: ThumbnailSize) -> Thumbnail:
    image.seek(0)
    return _encode(_shrink(_plain(image), facts, size), image.info.get("icc_profile"))


def _make_animated(image: Any, facts: Facts, size: ThumbnailSize, file: _Watched) -> Thumbnail | None:
    """The animation in the wanted size, as WebP; `None` where it is too long for that."""
    count = image.n_frames
    target = (size.width, size.height) if size.method is Method.CROP else scaled(facts.width, facts.height, size)
    if count * facts.pixels > ANIMATION_PIXEL_LIMIT or count * target[0] * target[1] > ANIMATED_OUTPUT_LIMIT:
        return None
    frames, durations = [], []
    for number in range(count):
        file.check()
        image.seek(number)
        frames.append(_shrink(image.convert("RGBA"), facts, size))
        durations.append(max(10, min(60_000, int(image.info.get("duration") or 100))))
    for frame in frames:
        frame.info = {}
    loop = image.info.get("loop", 1)
    out = io.BytesIO()
    frames[0].save(
        out,
        "WEBP",
        save_all=True,
        append_images=frames[1:],
        duration=durations,
        loop=loop if isinstance(loop, int) and 0 <= loop <= 65535 else 0,
        quality=80,
        method=2,
    )
    return Thumbnail("image/webp", out.getvalue())

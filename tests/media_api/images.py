"""Images made for the tests."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

from PIL import Image, ImageSequence


def picture(width: int, height: int, kind: str = "JPEG", mode: str = "RGB", **options: Any) -> bytes:
    """An image whose upper left quarter is red and whose rest is blue."""
    colours: dict[str, tuple[Any, Any]] = {
        "RGB": ((255, 0, 0), (0, 0, 255)),
        "RGBA": ((255, 0, 0, 255), (0, 0, 255, 0)),
        "L": (255, 0),
        "CMYK": ((0, 255, 255, 0), (255, 255, 0, 0)),
        "I;16": (65535, 0),
    }
    red, blue = colours[mode]
    image = Image.new(mode, (width, height), blue)
    image.paste(red, (0, 0, width // 2, height // 2))
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def film(width: int, height: int, frames: int, kind: str = "GIF") -> bytes:
    """An animation, each frame of another grey, 50 ms each."""
    images = [Image.new("RGB", (width, height), (step * 255 // frames,) * 3) for step in range(frames)]
    out = io.BytesIO()
    images[0].save(out, kind, save_all=True, append_images=images[1:], duration=50, loop=0)
    return out.getvalue()


def turned(width: int, height: int, orientation: int) -> bytes:
    """A JPEG whose EXIF says how the camera was held."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return picture(width, height, "JPEG", exif=exif, quality=95)


def bomb_png(width: int, height: int) -> bytes:
    """A small file that says it is a huge image."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1 << 20), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def bomb_gif(width: int, height: int) -> bytes:
    """A GIF of one pixel that says its canvas is huge."""
    data = film(1, 1, 2)
    return data[:6] + struct.pack("<HH", width, height) + data[10:]


def bomb_webp(width: int, height: int) -> bytes:
    """An extended WebP head with a huge canvas."""
    canvas = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + canvas
    return b"RIFF" + struct.pack("<I", len(body)) + body


def opened(data: bytes) -> Any:
    return Image.open(io.BytesIO(data))


def frame_count(data: bytes) -> int:
    return sum(1 for _ in ImageSequence.Iterator(opened(data)))

"""Which thumbnail answers a wish: arithmetic only.

Client-Server API, "Thumbnails": a thumbnail is never smaller than asked for,
and never larger than the original; where both cannot be, the original is the
answer.  ``scale`` keeps the aspect and covers the wanted rectangle; ``crop``
has exactly the wanted size, cut from the middle.
"""

from __future__ import annotations

from collections.abc import Iterable

from .api import Method, ThumbnailSize


def scaled(width: int, height: int, size: ThumbnailSize) -> tuple[int, int]:
    """The least size of the original's aspect that covers `size`."""
    if size.width * height >= size.height * width:
        return size.width, max(1, -(-height * size.width // width))
    return max(1, -(-width * size.height // height)), size.height


def shrinks(width: int, height: int, size: ThumbnailSize) -> bool:
    """Whether the original can be made smaller and still be no smaller than `size`."""
    return size.width <= width and size.height <= height and (size.width, size.height) != (width, height)


def choose(offered: Iterable[ThumbnailSize], wish: ThumbnailSize) -> ThumbnailSize | None:
    """The least of the sizes on offer that satisfies `wish`; `None` where none does.

    A wish for ``crop`` may be answered with a ``scale`` that covers it, which the
    client can cut; not the other way round, where parts would be missing.
    """
    fitting = [size for size in offered if size.width >= wish.width and size.height >= wish.height]
    same = [size for size in fitting if size.method == wish.method]
    if not same and wish.method is Method.CROP:
        same = fitting
    return min(same, key=lambda size: (size.width * size.height, size.width), default=None)


def thumbnail_name(size: ThumbnailSize, animated: bool) -> str:
    """The name of a thumbnail's file beside its original."""
    return f"thumbnail-{size.width}x{size.height}-{size.method.value}{'-animated' if animated else ''}"

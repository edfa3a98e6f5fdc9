"""What may be asked of the media component: store bytes, find a file, find its thumbnail.

A `MediaFile` names a file of the store, a folder that all processes of the
media and the federation component share; whoever serves it may open it.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

import msgspec

from ..links.routing import routed

DEFAULT_TIMEOUT_MS = 20_000
"""How long a request waits for content that is not uploaded yet, unless it says otherwise."""


class Method(enum.Enum):
    """How a thumbnail is made of an image of another aspect."""

    CROP = "crop"
    SCALE = "scale"


class ThumbnailSize(msgspec.Struct, frozen=True):
    """A size in pixels, as ``media_api.thumbnail_sizes`` and requests give it."""

    width: int
    height: int
    method: Method = Method.SCALE


class MediaFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file to be served: ``etag`` changes with its bytes; ``name`` is the uploader's, if any."""

    path: str
    size: int
    content_type: str
    etag: str
    name: str | None = None


class MediaQuestion(msgspec.Struct, frozen=True, kw_only=True):
    """Which media is wanted, and on what terms.

    ``allow_remote`` `False`: do not ask other servers.  ``anonymous``: the one who
    asks is not known, and gets nothing that was uploaded for the known only.
    """

    server_name: str
    media_id: str
    timeout_ms: int = DEFAULT_TIMEOUT_MS
    allow_remote: bool = True
    anonymous: bool = False


class RemoteMedia(msgspec.Struct, frozen=True, kw_only=True):
    """Media that another server sent, and what it said of it; ``sha256`` is in hexadecimal."""

    size: int
    sha256: str
    content_type: str | None = None
    name: str | None = None


RemoteFetcher = Callable[[str, str, str, int, int], Coroutine[Any, Any, RemoteMedia]]
"""Fetches media of another server: ``(server_name, media_id, into, limit, timeout_ms)``.

It writes the file ``into``, with ``limit`` bytes at most, or raises ``M_TOO_LARGE`` (502), ``M_NOT_FOUND`` or another
`MatrixError` where there is no media.
"""


class MediaAPI(Protocol):
    """Everything that other components may ask of media."""

    async def upload(self, uploader: str, content_type: str, name: str | None, content: bytes) -> str:
        """Store `content` for a local user; its ``mxc://`` URI.  ``M_TOO_LARGE`` (413)."""

    @routed(repeat=True)
    async def media(self, question: MediaQuestion) -> MediaFile:
        """The file behind an ``mxc://`` URI.

        ``M_NOT_FOUND``; ``M_NOT_YET_UPLOADED`` (504) after the wait; ``M_TOO_LARGE`` (502).
        """

    @routed(repeat=True)
    async def thumbnail(self, question: MediaQuestion, size: ThumbnailSize, animated: bool = False) -> MediaFile:
        """A thumbnail, or the original where none can be made smaller.

        The errors of `media`, and ``M_UNKNOWN`` (400) for what is no image, ``M_TOO_LARGE``
        (413, of other servers' media 502) for images of too many pixels.
        """

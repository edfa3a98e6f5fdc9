"""The headers that media are served with, so that no file can do harm as a page.

Client-Server API, "Content repository": "Serving inline content" and the
descriptions of ``Content-Disposition``; file names by RFC 6266 and RFC 8187.
"""

from __future__ import annotations

import re
from urllib.parse import quote, unquote

from ..matrix.errors import invalid_param

DEFAULT_CONTENT_TYPE = "application/octet-stream"

NAME_BYTES = 1024
"""Longer file names are refused."""

INLINE_TYPES = frozenset(
    f"{kind}/{subtype}"
    for kind, subtypes in {
        "text": ("css", "plain", "csv"),
        "application": ("json", "ld+json"),
        "image": ("jpeg", "gif", "png", "apng", "webp", "avif"),
        "video": ("mp4", "webm", "ogg", "quicktime"),
        "audio": ("mp4", "webm", "aac", "mpeg", "ogg", "wave", "wav", "x-wav", "x-pn-wav", "flac", "x-flac"),
    }.items()
    for subtype in subtypes
)
"""Types that a browser may show in its window; it is told to take no file for another type than it is sent as."""

POLICY = (
    "sandbox; default-src 'none'; script-src 'none'; plugin-types application/pdf; "
    "style-src 'unsafe-inline'; object-src 'self';"
)

CACHE_SECONDS = 86400

_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_CONTENT_TYPE = re.compile(rf"{_WORD}/{_WORD}(?:[ \t]*;[\x20-\x7e\t]*)?\Z")
_QUOTABLE = re.compile(r"[\x20-\x7e]*\Z")
_FILENAME = re.compile(
    r""";\s*(?:filename\*\s*=\s*utf-8'[^']{0,40}'(?P<extended>[^;\s]+)
    |filename\s*=\s*(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<bare>[^;\s"]+)))""",
    re.IGNORECASE | re.VERBOSE,
)
_ESCAPED = re.compile(r"\\(.)")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def clean_content_type(value: str | None) -> str:
    """A client's ``Content-Type`` if it is well formed, else ``application/octet-stream``."""
    value = (value or "").strip()
    return value if len(value) <= 255 and _CONTENT_TYPE.match(value) else DEFAULT_CONTENT_TYPE


def clean_name(name: str | None) -> str | None:
    """A file's name without control characters and outer blanks; `None` where nothing is left.

    `ValueError` where it is too long.
    """
    name = _CONTROL.sub("", name or "").strip()
    if len(name.encode()) > NAME_BYTES:
        raise ValueError(f"A file name may have {NAME_BYTES} bytes at most")
    return name or None


def checked_name(name: str | None) -> str | None:
    """`clean_name` for what a client sent: ``M_INVALID_PARAM`` where it is too long."""
    try:
        return clean_name(name)
    except ValueError as error:
        raise invalid_param(f"{error}.") from None


def name_in_disposition(value: str | None) -> str | None:
    """The file's name in another server's ``Content-Disposition``: the extended form of it, if it is there."""
    plain = extended = None
    for match in _FILENAME.finditer(value or ""):
        if match["extended"] is not None:
            extended = extended or unquote(match["extended"], "utf-8", "replace")
        elif match["quoted"] is not None:
            plain = plain or _ESCAPED.sub(r"\1", match["quoted"])
        else:
            plain = plain or match["bare"]
    return extended or plain


def is_inline(content_type: str) -> bool:
    """Whether a browser may show content of this type in its window."""
    return content_type.partition(";")[0].strip().lower() in INLINE_TYPES


def content_disposition(content_type: str, name: str | None) -> bytes:
    """``inline`` or ``attachment`` by the type, and the file's name where there is one.

    A name of plain ASCII is quoted; any other is written as UTF-8 in the extended form.
    """
    kind = "inline" if is_inline(content_type) else "attachment"
    if not name:
        return kind.encode()
    if _QUOTABLE.match(name) and not any(sign in name for sign in '"\\%'):
        return f'{kind}; filename="{name}"'.encode()
    return f"{kind}; filename*=utf-8''{quote(name, safe='')}".encode()


def media_headers(content_type: str, name: str | None, etag: str, private: bool) -> list[tuple[bytes, bytes]]:
    """All headers of an answer that is media, but its type and length.

    ``private`` answers were given to somebody who is known, and may be kept by
    their own cache only.  What an ``mxc://`` URI names never changes.
    """
    cache = f"{'private' if private else 'public'}, max-age={CACHE_SECONDS}, immutable"
    return [
        (b"Content-Disposition", content_disposition(content_type, name)),
        (b"Content-Security-Policy", POLICY.encode()),
        (b"X-Content-Type-Options", b"nosniff"),
        (b"Cross-Origin-Resource-Policy", b"cross-origin"),
        (b"Referrer-Policy", b"no-referrer"),
        (b"X-Robots-Tag", b"noindex"),
        (b"Cache-Control", cache.encode()),
        (b"ETag", f'"{etag}"'.encode()),
    ]

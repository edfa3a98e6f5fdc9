"""Times and durations as the JetStream API and its headers write them; inside they are nanoseconds."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

_RFC3339: Final = re.compile(r"(\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d)(?:\.(\d{1,9})\d*)?(Z|z|[+-]\d\d:\d\d)")
SECOND: Final = 1_000_000_000
NEVER: Final = "0001-01-01T00:00:00Z"


def format_time(nanoseconds: int) -> str:
    """An instant, given in nanoseconds since the epoch."""
    seconds, fraction = divmod(nanoseconds, 1_000_000_000)
    text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    digits = f".{fraction:09d}".rstrip("0") if fraction else ""
    return f"{text}{digits}Z"


def parse_time(text: str) -> int:
    """Nanoseconds since the epoch; 0 for the zero time.  Raises `ValueError` for what is not a time."""
    match = _RFC3339.fullmatch(text)
    if match is None:
        raise ValueError(f"not a time: {text!r}")
    zone = "+00:00" if match[3] in "Zz" else match[3]
    moment = datetime.fromisoformat(match[1].upper() + zone)
    if moment.year <= 1:
        return 0
    whole = int((moment - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds())
    return whole * 1_000_000_000 + int((match[2] or "").ljust(9, "0"))


_UNITS: Final = {"h": 3600 * SECOND, "m": 60 * SECOND, "s": SECOND, "ms": SECOND // 1000, "us": 1000, "ns": 1}
_DURATION: Final = re.compile(r"(\d{1,12}(?:\.\d{1,9})?)(h|ms|m|s|us|ns)", re.ASCII)


def parse_duration(text: str) -> int:
    """Nanoseconds of a duration such as ``1h30m`` or ``2.5s``; 0 when it is not one."""
    total, position = 0.0, 0
    while position < len(text):
        part = _DURATION.match(text, position)
        if part is None:
            return 0
        total += float(part[1]) * _UNITS[part[2]]
        position = part.end()
    return int(total)

"""Durations and sizes, as Go and Dendrite write them.

A duration is a signed run of decimal numbers, each with a unit: ``168h0m0s``, ``1.5h``, ``300ms``
(the grammar of Go's ``time.ParseDuration``).  A size is a number with an optional ``kb``, ``mb``, ``gb``
or ``tb``, in steps of 1024, in any case of letters.
"""

from __future__ import annotations

import math
import re

_NANOSECONDS = {
    "ns": 1,
    "us": 10**3,
    "µs": 10**3,  # U+00B5 micro sign
    "μs": 10**3,  # U+03BC Greek small letter mu
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
}
_TERM = re.compile(r"([0-9]*)(?:\.([0-9]*))?([^0-9.]+)")
_LONGEST_DURATION = 2**63 - 1
_LONGEST_TEXT = 64

_SIZE_UNITS = {"tb": 1024**4, "gb": 1024**3, "mb": 1024**2, "kb": 1024}


def parse_nanoseconds(text: str) -> int:
    """Nanoseconds of a Go duration; `ValueError` with a sentence for anything Go refuses."""
    body = text[1:] if text[:1] in ("+", "-") else text
    if body == "0":
        return 0
    if not body or len(body) > _LONGEST_TEXT:
        raise ValueError(f"{text[:_LONGEST_TEXT]!r} is not a duration")
    total = 0
    position = 0
    while position < len(body):
        term = _TERM.match(body, position)
        if term is None or not (term[1] or term[2]):
            raise ValueError(f"{text!r} is not a duration, or lacks a unit (h, m, s, ms, us or ns)")
        unit = _NANOSECONDS.get(term[3])
        if unit is None:
            raise ValueError(f"{text!r} has the unknown unit {term[3]!r}; use h, m, s, ms, us or ns")
        fraction = term[2] or ""
        total += int(term[1] or "0") * unit + int(fraction or "0") * unit // 10 ** len(fraction)
        position = term.end()
    negative = text.startswith("-")
    if total > _LONGEST_DURATION + negative:
        raise ValueError(f"{text!r} is longer than a duration can be (about 292 years)")
    return -total if negative else total


def parse_duration(text: str) -> float:
    """Seconds of a Go duration; `ValueError` with a sentence for anything Go refuses."""
    return parse_nanoseconds(text) / 1e9


def format_duration(seconds: float) -> str:
    """The way Go prints a duration: ``168h0m0s``, ``5m0s``, ``300ms``, ``0s``."""
    nanoseconds = round(seconds * 1e9)
    sign = "-" if nanoseconds < 0 else ""
    nanoseconds = abs(nanoseconds)
    if nanoseconds == 0:
        return "0s"
    if nanoseconds < 10**9:
        for unit in ("ms", "us", "ns"):
            if nanoseconds >= _NANOSECONDS[unit]:
                return f"{sign}{_decimal(nanoseconds, _NANOSECONDS[unit])}{unit}"
    minutes, rest = divmod(nanoseconds, 60 * 10**9)
    hours, minutes = divmod(minutes, 60)
    text = f"{_decimal(rest, 10**9)}s"
    if hours or minutes:
        text = f"{minutes}m{text}"
    if hours:
        text = f"{hours}h{text}"
    return sign + text


def _decimal(value: int, unit: int) -> str:
    """``value / unit`` in exact decimal digits without trailing zeros."""
    whole, rest = divmod(value, unit)
    if not rest:
        return str(whole)
    digits = len(str(unit)) - 1
    return f"{whole}.{rest:0{digits}d}".rstrip("0")


def parse_size(text: str) -> int:
    """Bytes of ``1gb``, ``1.5MB`` or ``10485760``; `ValueError` with a sentence otherwise."""
    lowered = text.lower()
    factor = _SIZE_UNITS.get(lowered[-2:], 1)
    number = lowered[:-2] if factor != 1 else lowered
    if not re.fullmatch(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)(e[+-]?[0-9]{1,3})?", number):
        raise ValueError(f"{text[:_LONGEST_TEXT]!r} is not a size such as 512mb, 1.5gb or 10485760")
    value = float(number) * factor
    if not math.isfinite(value) or abs(value) >= 2**63:
        raise ValueError(f"{text[:_LONGEST_TEXT]!r} is larger than a size can be")
    return int(value)


def format_size(size: int) -> str:
    """The shortest exact spelling of a size: ``1gb``, ``512mb``, ``10485761``."""
    for unit, factor in _SIZE_UNITS.items():
        if size and size % factor == 0:
            return f"{size // factor}{unit}"
    return str(size)

"""Bytes that all servers agree on: canonical JSON.

Specification: appendices, "Canonical JSON".  Hashes and signatures cover these
bytes, so there is one encoding for a value: keys sorted by code point, no white
space, UTF-8, integers within 53 bits and nothing else that is a number.

Room versions before 6 did not enforce that.  `encode_lenient` and
`decode_lenient` carry their floats and long integers unharmed, in the form
that Python's `json` gives them, which is what the servers that made those events used.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

import orjson

MAX_INTEGER = 2**53 - 1
MIN_INTEGER = -MAX_INTEGER

# orjson parses 1024 levels but writes only 254, and an event is itself written
# inside of responses.  Nobody honest comes near this.
MAX_DEPTH = 200

_OPTIONS = orjson.OPT_SORT_KEYS | orjson.OPT_STRICT_INTEGER


class CanonicalJSONError(ValueError):
    """The value has no canonical JSON, or the bytes are not JSON."""


def _check_scalar(value: object) -> None:
    kind = type(value)
    if kind is int:
        raise CanonicalJSONError("integer is beyond 53 bits")
    if kind is float:
        raise CanonicalJSONError("numbers must be integers")
    raise CanonicalJSONError(f"{kind.__name__} is not a JSON type")


def _check_values(values: Any, depth: int) -> None:
    # The hot loop: plain type identity, the commonest first, and a call only for containers.
    for value in values:
        kind = type(value)
        if kind is str or value is None or kind is bool:
            continue
        if kind is int:
            if MIN_INTEGER <= value <= MAX_INTEGER:
                continue
        elif kind is dict:
            if depth >= MAX_DEPTH:
                raise CanonicalJSONError("nested too deeply")
            _check_values(value.values(), depth + 1)
            continue
        elif kind is list or kind is tuple:
            if depth >= MAX_DEPTH:
                raise CanonicalJSONError("nested too deeply")
            _check_values(value, depth + 1)
            continue
        _check_scalar(value)


def check(value: Any) -> None:
    """Raise `CanonicalJSONError` for what canonical JSON forbids and orjson would let pass.

    That is floats, integers beyond 53 bits, types that are not JSON, and excessive
    depth.  Keys and surrogates are left to the encoder, which refuses them itself.
    """
    _check_values((value,), 0)


def encode_checked(value: Any) -> bytes:
    """Encode a value that `check` has passed already, or that is made of such values."""
    try:
        return orjson.dumps(value, option=_OPTIONS)
    except TypeError as error:
        raise CanonicalJSONError(str(error)) from None


def encode(value: Any) -> bytes:
    """The canonical JSON of ``value``; raises `CanonicalJSONError` if it has none."""
    _check_values((value,), 0)
    return encode_checked(value)


def _check_lenient(value: Any, depth: int = 0) -> None:
    kind = type(value)
    if kind is dict:
        if not all(type(key) is str for key in value):
            raise CanonicalJSONError("keys must be strings")
        items = value.values()
    elif kind is list or kind is tuple:
        items = value
    elif value is None or kind in (str, bool, int, float):
        return
    else:
        raise CanonicalJSONError(f"{kind.__name__} is not a JSON type")
    if depth >= MAX_DEPTH:
        raise CanonicalJSONError("nested too deeply")
    for item in items:
        _check_lenient(item, depth + 1)


def encode_lenient(value: Any) -> bytes:
    """Like `encode`, but floats and integers of any length are written as Python writes them.

    For room versions 1 to 5.  NaN, infinities, lone surrogates and depth are refused all the same.
    """
    try:
        return encode(value)
    except CanonicalJSONError:
        _check_lenient(value)
    try:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True, allow_nan=False)
        return text.encode()
    except ValueError as error:
        raise CanonicalJSONError(f"not representable: {error}") from None


def decode(data: bytes | bytearray | memoryview | str) -> Any:
    """Parse JSON.  Integers beyond 64 bits come back as floats, which `encode` then refuses."""
    try:
        return orjson.loads(data)
    except ValueError:
        raise CanonicalJSONError("not valid JSON") from None


def _refuse_constant(name: str) -> NoReturn:
    raise CanonicalJSONError(f"{name} is not JSON")


def decode_lenient(data: bytes | str) -> Any:
    """Parse JSON and keep integers of any length exact, for room versions 1 to 5."""
    try:
        return json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise CanonicalJSONError("not valid JSON") from None


def tight(data: bytes) -> bytes:
    """The same bytes in memory of just their size.

    What orjson returns may own a buffer several times as large, which matters for bytes that are kept.
    """
    return memoryview(data).tobytes()

"""Tokens of pages, and which events a page wants.

A timeline token ``t{depth}_{position}`` names the place just after an event
in a room's history, which is ordered by depth and then by position.  A sync
token serves as well: its room part is a place in the stream.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from ..matrix.errors import invalid_param
from .api import EventFilter, RoomEvent

_TOKEN = re.compile(r"^(?:t(?P<depth>-?\d{1,19})_(?P<position>-?\d{1,19})|s(?P<stream>\d{1,19})(?:_.*)?)$")


class Place(NamedTuple):
    """A point in a room's history."""

    depth: int
    position: int


class TokenPlace(NamedTuple):
    """What a token says; ``depth`` is `None` for a sync token."""

    depth: int | None
    position: int


def parse_token(token: str) -> TokenPlace:
    """Read a token of either sort; ``M_INVALID_PARAM`` where it is neither."""
    match = _TOKEN.match(token)
    if match is None:
        raise invalid_param("That is not a token of this server.")
    if match["stream"] is not None:
        return TokenPlace(None, int(match["stream"]))
    return TokenPlace(int(match["depth"]), int(match["position"]))


def chosen(event: RoomEvent, filter: EventFilter | None) -> bool:
    """Whether a filter lets an event through."""
    if filter is None:
        return True
    if filter.types is not None and not _any_match(filter.types, event.type):
        return False
    if _any_match(filter.not_types, event.type) or event.sender in filter.not_senders:
        return False
    if filter.senders is not None and event.sender not in filter.senders:
        return False
    if filter.contains_url is not None and event.has_url != filter.contains_url:
        return False
    return filter.rel_types is None or event.rel_type in filter.rel_types


def _any_match(patterns: list[str], type: str) -> bool:
    """Whether a pattern, in which ``*`` stands for anything, fits a type."""
    return any(_fits(pattern, type) for pattern in patterns)


def _fits(pattern: str, type: str) -> bool:
    if "*" not in pattern:
        return pattern == type
    first, *rest = pattern.split("*")
    if not type.startswith(first):
        return False
    at = len(first)
    for part in rest[:-1]:
        found = type.find(part, at)
        if found < 0:
            return False
        at = found + len(part)
    return type.endswith(rest[-1]) and len(type) - len(rest[-1]) >= at

"""Sync tokens: how far a client has been told, as a vector of stream positions.

    s{room}_{user}_{typing}_{presence}

Every position is one that all processes share (an outbox id, or a time of the
queue's clock), so a token of any process works on any other.  A token
with fewer parts has 0 for the rest; parts that a later version adds are left
out of account.  Client-Server API, "Syncing".
"""

from __future__ import annotations

import re
from typing import NamedTuple

from ..matrix.errors import invalid_param

_TOKEN = re.compile(r"s[0-9]{1,18}(?:_[0-9]{1,18}){0,11}", re.ASCII)
_TIMELINE_TOKEN = re.compile(r"t-?[0-9]{1,18}_-?[0-9]{1,18}", re.ASCII)


class SyncToken(NamedTuple):
    """Positions up to which everything was told."""

    room: int = 0
    user: int = 0
    typing: int = 0
    presence: int = 0

    def with_moments(self, other: SyncToken) -> SyncToken:
        """The token, with the later position of both of what is in memory only: typing and presence."""
        if self.typing >= other.typing and self.presence >= other.presence:
            return self
        return self._replace(typing=max(self.typing, other.typing), presence=max(self.presence, other.presence))

    def __str__(self) -> str:
        return f"s{self.room}_{self.user}_{self.typing}_{self.presence}"


def parse_sync_token(text: str) -> SyncToken:
    """The token that `text` spells; 400 ``M_INVALID_PARAM`` where it spells none."""
    if _TOKEN.fullmatch(text) is None:
        raise invalid_param("This is not a token that /sync has given.")
    return SyncToken(*map(int, text[1:].split("_")[:4]))


def parse_page_token(text: str | None) -> str | None:
    """A token for the room component: of a timeline as it is, of a sync cut to its room part.

    400 ``M_INVALID_PARAM`` where `text` is neither.
    """
    if text is None or _TIMELINE_TOKEN.fullmatch(text) is not None:
        return text
    return f"s{parse_sync_token(text).room}"

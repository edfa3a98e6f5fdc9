"""What the sync component is told by others.

Typing lives in memory only: whoever learns that a user types publishes a
`Typing` on the stream ``OutputTypingEvent``; the stream's sequence number is
the typing part of a sync token.
"""

from __future__ import annotations

import msgspec

OUTPUT_TYPING_EVENT = "OutputTypingEvent"
OUTPUT_PRESENCE_EVENT = "OutputPresenceEvent"


class Typing(msgspec.Struct, frozen=True, kw_only=True):
    """A user began to type in a room, for ``timeout_ms`` from ``ts`` on, or stopped."""

    room_id: str
    user_id: str
    typing: bool
    timeout_ms: int = 0
    ts: int = 0


class Presence(msgspec.Struct, frozen=True, kw_only=True):
    """A user's presence: ``online``, ``unavailable`` or ``offline``; ``last_active_ts`` in milliseconds."""

    user_id: str
    presence: str
    last_active_ts: int
    status_msg: str | None = None
    currently_active: bool = False

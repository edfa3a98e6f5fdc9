"""What a client asks of a sync, made ready: the same for every view of it."""

from __future__ import annotations

from dataclasses import dataclass

from ..matrix.filters import Filter, RoomEventFilter
from ..room_api.api import EventFilter, RoomEvent
from ..user_api.api import Caller
from .notifier import UserStream
from .tokens import SyncToken

DEFAULT_TIMELINE_LIMIT = 10
MAX_TIMELINE_LIMIT = 500


@dataclass
class SyncRequest:
    """A caller's sync.

    ``acknowledged`` is the token that the client gave: what it was told up to
    there, it has.  ``state_after`` asks for the state at the end of a timeline
    instead of at its start.
    """

    caller: Caller
    stream: UserStream
    filter: Filter
    acknowledged: SyncToken
    full_state: bool
    state_after: bool
    now: int

    @property
    def user_id(self) -> str:
        return self.caller.user_id

    @property
    def device_key(self) -> tuple[str, str]:
        return self.caller.user_id, self.caller.device_id or ""

    @property
    def timeline_limit(self) -> int:
        return self.filter.definition.room.timeline.bounded_limit(DEFAULT_TIMELINE_LIMIT, MAX_TIMELINE_LIMIT)

    def wants_in_timeline(self, event: RoomEvent) -> bool:
        """Whether the filter and the user's list of ignored users let an event into a timeline."""
        if event.state_key is None and event.sender in self.stream.ignored:
            return False
        wanted = self.filter.timeline
        return wanted.accepts_all or wanted.check(
            event.type, event.sender, event.room_id, event.has_url, event.rel_type
        )

    def wants_in_state(self, event: RoomEvent) -> bool:
        wanted = self.filter.state
        return wanted.accepts_all or wanted.check(event.type, event.sender, event.room_id, event.has_url)


def database_filter(wanted: RoomEventFilter) -> EventFilter | None:
    """The part of a filter that the room component applies."""
    made = EventFilter(
        types=wanted.types,
        not_types=wanted.not_types or [],
        senders=wanted.senders,
        not_senders=wanted.not_senders or [],
        contains_url=wanted.contains_url,
        rel_types=wanted.rel_types,
        related_by_senders=wanted.related_by_senders,
    )
    return None if made == EventFilter() else made

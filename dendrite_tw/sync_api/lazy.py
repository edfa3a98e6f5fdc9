"""Which member events a device has already, so that they need not be sent again.

A member event is redundant only if it was part of an answer that the device
has acknowledged by coming back with its token: an answer that was lost on the
way counts for nothing.  Client-Server API, "Lazy-loading room members".
"""

from __future__ import annotations

from collections.abc import Iterable

from ..cache import Cache, CacheBudget
from ..room_api.api import RoomEvent

MEMBERS_KEPT = 1000
"""Members of a room that are remembered for a device."""

ENTRY_SIZE = 300

DeviceKey = tuple[str, str]


class SentMembers:
    """The newest member event that each device was sent of a member, and in which answer."""

    def __init__(self, budget: CacheBudget, members_kept: int = MEMBERS_KEPT) -> None:
        self._kept = members_kept
        self._sent: Cache[tuple[DeviceKey, str], dict[str, tuple[str, int]]] = Cache(
            "sync_lazy_members", budget, lambda members: ENTRY_SIZE * (1 + len(members))
        )

    def has(self, device: DeviceKey, event: RoomEvent, acknowledged: int) -> bool:
        """Whether the device is known to have the event, having come back with room position `acknowledged`."""
        members = self._sent.get((device, event.room_id))
        sent = members.get(event.state_key or "") if members is not None else None
        return sent is not None and sent[0] == event.event_id and sent[1] <= acknowledged

    def note(self, device: DeviceKey, room_id: str, events: Iterable[RoomEvent], upto: int) -> None:
        """The device is being sent these member events of a room in an answer up to room position `upto`."""
        members = self._sent.get((device, room_id)) or {}
        for event in events:
            user_id = event.state_key or ""
            members.pop(user_id, None)
            members[user_id] = (event.event_id, upto)
        while len(members) > self._kept:
            del members[next(iter(members))]
        if members:
            self._sent.put((device, room_id), members)

"""Which member events a device has already, so that they need not be sent again.

A member event is redundant only if it was part of an answer that the device
has acknowledged by coming back with its token: an answer that was lost on the
way counts for nothing.  Client-Server API, "Lazy-loading room members".
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from ..room_api.api import RoomEvent

ENTRIES_KEPT = 100_000

DeviceKey = tuple[str, str]


class SentMembers:
    """The newest member event that each device was sent of a member, and in which answer."""

    def __init__(self, kept: int = ENTRIES_KEPT) -> None:
        self._kept = kept
        self._sent: OrderedDict[tuple[DeviceKey, str, str], tuple[str, int]] = OrderedDict()

    def has(self, device: DeviceKey, event: RoomEvent, acknowledged: int) -> bool:
        """Whether the device is known to have the event, having come back with room position `acknowledged`."""
        sent = self._sent.get((device, event.room_id, event.state_key or ""))
        return sent is not None and sent[0] == event.event_id and sent[1] <= acknowledged

    def note(self, device: DeviceKey, events: Iterable[RoomEvent], upto: int) -> None:
        """The device is being sent these member events in an answer up to room position `upto`."""
        for event in events:
            key = (device, event.room_id, event.state_key or "")
            self._sent[key] = (event.event_id, upto)
            self._sent.move_to_end(key)
        while len(self._sent) > self._kept:
            self._sent.popitem(last=False)

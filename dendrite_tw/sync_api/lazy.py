"""Which member events a device has already, so that they need not be sent again.

A member event is redundant only if it was part of an answer whose very token
the device has come back with: an answer that was lost on the way counts for
nothing, and nor does one after which the device went on from another one, as it does
where several processes answer in turn.  Client-Server API, "Lazy-loading room members".
"""

from __future__ import annotations

from collections.abc import Iterable

from ..cache import Cache, CacheBudget
from ..room_api.api import RoomEvent
from .tokens import SyncToken

MEMBERS_KEPT = 1000
"""Members of a room that are remembered for a device."""

ANSWERS_KEPT = 3
"""Answers to a device of which it is not known yet whether they arrived."""

ENTRY_SIZE = 300

DeviceKey = tuple[str, str]
Sent = list[tuple[str, str, str]]
"""Room, user and event ID of each member event."""


class SentMembers:
    """The newest member event that each device is known to have of a member."""

    def __init__(self, budget: CacheBudget, members_kept: int = MEMBERS_KEPT) -> None:
        self._kept = members_kept
        self._has: Cache[tuple[DeviceKey, str], dict[str, str]] = Cache(
            "sync_lazy_members", budget, lambda members: ENTRY_SIZE * (1 + len(members))
        )
        self._under_way: Cache[DeviceKey, dict[SyncToken, Sent]] = Cache(
            "sync_lazy_answers", budget, lambda answers: ENTRY_SIZE * (1 + sum(map(len, answers.values())))
        )

    def has(self, device: DeviceKey, event: RoomEvent) -> bool:
        """Whether the device is known to have the event."""
        members = self._has.get((device, event.room_id))
        return members is not None and members.get(event.state_key or "") == event.event_id

    def note(self, device: DeviceKey, room_id: str, events: Iterable[RoomEvent], upto: SyncToken) -> None:
        """The device is being sent these member events of a room in an answer that leads to `upto`."""
        sent: Sent = [(room_id, event.state_key or "", event.event_id) for event in events]
        if not sent:
            return
        answers = self._under_way.get(device) or {}
        answers.setdefault(upto, []).extend(sent)
        while len(answers) > ANSWERS_KEPT:
            del answers[next(iter(answers))]
        self._under_way.put(device, answers)

    def acknowledge(self, device: DeviceKey, token: SyncToken) -> None:
        """The device comes with a token: it has what was in that answer; other answers were lost."""
        answers = self._under_way.pop(device)
        for room_id, user_id, event_id in answers.get(token, ()) if answers is not None else ():
            members = self._has.get((device, room_id)) or {}
            members.pop(user_id, None)
            members[user_id] = event_id
            while len(members) > self._kept:
                del members[next(iter(members))]
            self._has.put((device, room_id), members)

"""Receipts: the newest in memory, older ones asked of the user component.

Private receipts are shown to their owner alone.  One ``m.receipt`` event a
room and thread holds what changed; the bytes of the public part are shared
between all who were told up to the same place.  Client-Server API, "Receipts".
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

import orjson

from ..user_api.api import Receipt, UserAPI

RECEIPTS_KEPT = 50_000
PRIVATE = "m.read.private"


class ReceiptLog:
    """The receipts heard since a position, and where to ask for earlier ones."""

    def __init__(self, users: UserAPI, kept: int = RECEIPTS_KEPT) -> None:
        self._users = users
        self._kept = kept
        self._order: deque[Receipt] = deque()
        self._rooms: dict[str, deque[Receipt]] = {}
        self._made: dict[str, tuple[tuple[int, int, int], list[bytes]]] = {}
        self.floor = 0
        """Every receipt after this position is here."""

    def start(self, position: int) -> None:
        """Begin to keep what is heard after `position`."""
        self._order.clear()
        self._rooms.clear()
        self.floor = position

    def hear(self, receipt: Receipt) -> None:
        """Keep a receipt; one that was heard before, or is on disk already, is let go."""
        if receipt.position <= (self._order[-1].position if self._order else self.floor):
            return
        self._order.append(receipt)
        self._rooms.setdefault(receipt.room_id, deque()).append(receipt)
        if len(self._order) > self._kept:
            oldest = self._order.popleft()
            self.floor = oldest.position
            of_room = self._rooms[oldest.room_id]
            of_room.popleft()
            if not of_room:
                del self._rooms[oldest.room_id]
                self._made.pop(oldest.room_id, None)

    def recent(self, room_id: str, after: int, upto: int) -> list[Receipt]:
        """The receipts of a room in (after, upto], where `after` is not before `floor`."""
        found: list[Receipt] = []
        for receipt in reversed(self._rooms.get(room_id, ())):
            if receipt.position <= after:
                break
            if receipt.position <= upto:
                found.append(receipt)
        found.reverse()
        return found

    async def since(self, room_ids: Sequence[str], after: int, upto: int) -> dict[str, list[Receipt]]:
        """The receipts of each of the rooms that has any in (after, upto]."""
        if after >= self.floor:
            return {room_id: found for room_id in room_ids if (found := self.recent(room_id, after, upto))}
        rooms: dict[str, list[Receipt]] = {}
        for receipt in await self._users.receipts_since(list(room_ids), after, upto):
            rooms.setdefault(receipt.room_id, []).append(receipt)
        return rooms

    def events(self, room_id: str, receipts: Sequence[Receipt], user_id: str) -> list[bytes]:
        """The ``m.receipt`` events of a room that `user_id` is shown."""
        if any(receipt.receipt_type == PRIVATE for receipt in receipts):
            return receipt_events(r for r in receipts if r.receipt_type != PRIVATE or r.user_id == user_id)
        if not receipts:
            return []
        key = (receipts[0].position, receipts[-1].position, len(receipts))
        made = self._made.get(room_id)
        if made is None or made[0] != key:
            made = (key, receipt_events(receipts))
            if room_id in self._rooms:
                self._made[room_id] = made
        return made[1]


def receipt_events(receipts: Iterable[Receipt]) -> list[bytes]:
    """One ``m.receipt`` event for each thread that occurs, as JSON."""
    threads: dict[str | None, dict[str, dict[str, dict[str, dict[str, object]]]]] = {}
    for receipt in receipts:
        data: dict[str, object] = {"ts": receipt.ts}
        if receipt.thread_id is not None:
            data["thread_id"] = receipt.thread_id
        content = threads.setdefault(receipt.thread_id, {})
        for by_type in content.values():
            by_type.get(receipt.receipt_type, {}).pop(receipt.user_id, None)
        content.setdefault(receipt.event_id, {}).setdefault(receipt.receipt_type, {})[receipt.user_id] = data
    return [orjson.dumps({"type": "m.receipt", "content": without_empty(content)}) for content in threads.values()]


def without_empty(content: dict[str, dict[str, dict[str, dict[str, object]]]]) -> dict[str, object]:
    """What is left of the content where a receipt moved on to a later event."""
    by_event = {event: {kind: users for kind, users in kinds.items() if users} for event, kinds in content.items()}
    return {event: kinds for event, kinds in by_event.items() if kinds}

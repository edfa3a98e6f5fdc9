"""Answers with many events: read a few hundred at a time, while they are sent.

The state of a room with 20,000 members is tens of megabytes, of which a piece is in memory at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ..matrix.errors import limit_exceeded
from ..room_api.api import RoomAPI
from ..web.pieces import Pieces
from ..web.routes import Response

EVENTS_AT_ONCE = 200
OF_SERVER = 4
IN_ALL = 64
"""How many such answers one server, and all together, may be sent at the same time."""

BUSY_MS = 5_000


class EventStreams:
    """Makes answers of events that are known by their ids."""

    def __init__(self, rooms: RoomAPI) -> None:
        self._rooms = rooms
        self._under_way: Counter[str] = Counter()

    def check(self, origin: str) -> None:
        """Raise ``M_LIMIT_EXCEEDED`` if too much is being sent already; before anything is looked up."""
        if self._under_way[origin] >= OF_SERVER or self._under_way.total() >= IN_ALL:
            raise limit_exceeded(BUSY_MS)

    def response(
        self, origin: str, before: bytes, lists: Sequence[tuple[str, Sequence[str]]], after: bytes = b"}"
    ) -> Response:
        """``before``, then for each of `lists` a member of that name with the events of those ids, then ``after``.

        `before` begins the JSON object, with a comma at its end if there is anything in it.
        """
        return Response(200, pieces=self._pieces(origin, before, lists, after))

    async def _pieces(
        self, origin: str, before: bytes, lists: Sequence[tuple[str, Sequence[str]]], after: bytes
    ) -> Pieces:
        self._under_way[origin] += 1
        try:
            yield before
            for number, (name, event_ids) in enumerate(lists):
                yield b'%s"%s":[' % (b"," if number else b"", name.encode())
                async for piece in self._events(event_ids):
                    yield piece
                yield b"]"
            yield after
        finally:
            self._under_way[origin] -= 1
            if not self._under_way[origin]:
                del self._under_way[origin]

    async def _events(self, event_ids: Sequence[str]) -> Pieces:
        is_first = True
        for start in range(0, len(event_ids), EVENTS_AT_ONCE):
            wanted = event_ids[start : start + EVENTS_AT_ONCE]
            found = await self._rooms.pdus(wanted)
            pdus = [found[event_id] for event_id in wanted if event_id in found]
            if pdus:
                yield (b"" if is_first else b",") + b",".join(pdus)
                is_first = False

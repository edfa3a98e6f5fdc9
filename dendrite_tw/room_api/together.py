"""Questions that ask several things at once: who is in another process makes one call of what would be many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..database.engines import Database
from ..matrix.errors import MatrixError
from .api import Dressing, RoomView
from .queries import Queries
from .relations import Relations
from .tables import rooms as room_table

VIEWS_LIMIT = 50
"""Rooms that are shown as a whole in one answer, at the most."""


class Together:
    """Answers them from the questions that ask one thing."""

    def __init__(self, database: Database, queries: Queries, relations: Relations) -> None:
        self._database = database
        self._queries = queries
        self._relations = relations

    async def rooms_joined(self, user_ids: Sequence[str]) -> dict[str, list[str]]:
        """The rooms that each of these users is joined to."""
        rooms: dict[str, list[str]] = {user_id: [] for user_id in user_ids}
        for row in await self._database.read(room_table.rooms_joined, list(rooms)):
            rooms[row.user_id].append(row.room_id)
        return rooms

    async def room_views(self, room_ids: Sequence[str], timeline_limit: int) -> list[RoomView]:
        """As `room_view` for each of these rooms, without those that are not here."""
        views = []
        for room_id in room_ids[:VIEWS_LIMIT]:
            try:
                views.append(await self._queries.room_view(room_id, timeline_limit))
            except MatrixError as error:
                if error.status != 404:
                    raise
        return views

    async def aggregations_of(self, events: Mapping[str, Sequence[str]], user_id: str) -> dict[str, bytes]:
        """As `aggregations` for the events of several rooms."""
        found: dict[str, bytes] = {}
        for room_id, event_ids in events.items():
            found |= await self._relations.aggregations(room_id, event_ids, user_id)
        return found

    async def dressing(self, room_id: str, event_ids: Sequence[str], user_id: str) -> Dressing:
        """A user's membership in a room, and what is shown with some of its events."""
        membership = await self._queries.membership(room_id, user_id)
        bundles = await self._relations.aggregations(room_id, event_ids, user_id) if event_ids else {}
        return Dressing(membership=membership, bundles=bundles)

"""What a user was notified of: the logs of the user's rooms and the user's own events, merged.

Client-Server API, "Listing Notifications".
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson

from ..database.engines import Database
from ..matrix.push_defaults import DEFAULT_RULES
from ..room_api.api import RoomAPI
from .api import Notification
from .counts import FOREVER, Reader, Special, span_in
from .tables import unread as table
from .tables.unread import LogRow, PersonalRow
from .unread_store import UnreadStore

LOG_ACTIONS: list[Any] = list(DEFAULT_RULES["underride"][-1].actions)
"""What the log's events do to users: the action of the last default rule, which notifies without a sound."""


class Notifications:
    """Answers ``/notifications``."""

    def __init__(self, database: Database, store: UnreadStore, rooms: RoomAPI) -> None:
        self._database = database
        self._store = store
        self._rooms = rooms

    async def notifications(
        self, user_id: str, before: int | None, limit: int, only_highlight: bool
    ) -> list[Notification]:
        start = FOREVER if before is None else before
        own = await self._database.read(table.newest_personal, user_id, start, int(only_highlight), limit)
        rooms = [found.room_id for found in await self._rooms.memberships(user_id) if found.membership == "join"]
        logged = await self._database.read(table.newest_logged, rooms, start, user_id, int(only_highlight), limit)
        spans = await self._store.stored_spans(user_id)
        readers = await self._store.marked(user_id, _rooms_of(logged, own))
        shown: dict[tuple[str, int], Notification] = {}
        for row in logged:
            after, upto = span_in(spans, row.room_id)
            if after < row.position <= upto:
                shown[row.room_id, row.position] = self._of_log(readers[row.room_id], row)
        for special in own:
            shown.pop((special.room_id, special.position), None)
            if special.notify and special.room_id in rooms:
                shown[special.room_id, special.position] = self._of_user(readers[special.room_id], special)
        return _newest(shown.values(), limit)

    def _of_log(self, reader: Reader, row: LogRow) -> Notification:
        return Notification(
            room_id=row.room_id,
            event_id=row.event_id,
            position=row.position,
            ts=row.ts,
            read=_is_read(reader, row.position, row.thread_id),
            highlight=bool(row.highlight),
            actions=[*LOG_ACTIONS, {"set_tweak": "highlight"}] if row.highlight else LOG_ACTIONS,
        )

    def _of_user(self, reader: Reader, row: PersonalRow) -> Notification:
        return Notification(
            room_id=row.room_id,
            event_id=row.event_id,
            position=row.position,
            ts=row.ts,
            read=_is_read(reader, row.position, row.thread_id),
            highlight=bool(row.highlight),
            actions=orjson.loads(row.actions),
        )


def _rooms_of(logged: Iterable[LogRow], own: Iterable[PersonalRow]) -> list[str]:
    return sorted({row.room_id for row in logged} | {row.room_id for row in own})


def _is_read(reader: Reader, position: int, thread_id: str) -> bool:
    return reader.has_read(Special(position, thread_id, 1, 0, 0))


def _newest(shown: Iterable[Notification], limit: int) -> list[Notification]:
    return sorted(shown, key=lambda one: one.position, reverse=True)[:limit]

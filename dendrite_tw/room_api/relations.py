"""Events that relate to others: children of an event, threads of a room, and what is shown with a parent.

Client-Server API, "Forming relationships between events", "Threading".
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import orjson

from ..database.engines import Database
from ..matrix.errors import forbidden, invalid_param, not_found
from ..matrix.events import Event, client_json
from ..matrix.relations import REPLACE, THREAD, ThreadSummary, bundle, latest_replacement, relation_of
from ..user_api.api import UserAPI
from .api import Page, timeline_token
from .gaps import Gaps
from .pages import PAGE_LIMIT, Pages, before_stop
from .paging import Place, parse_token
from .queries import Queries
from .room import Rooms
from .store import EventStore, RoomEvents, stored_event
from .tables import relations as relation_table
from .tables.events import EventRow
from .tables.names import Names
from .tables.relations import ChildRow
from .viewing import Viewer

HOPS = 3
"""How far ``recurse`` follows relations."""

CHILDREN_LIMIT = 5000
"""Children that are read to summarise the events of one page."""


class Relations:
    """Answers the questions of `RoomAPI` about relations."""

    def __init__(
        self,
        *,
        database: Database,
        names: Names,
        rooms: Rooms,
        store: EventStore,
        shown: RoomEvents,
        viewer: Viewer,
        queries: Queries,
        pages: Pages,
        gaps: Gaps,
        users: UserAPI,
    ) -> None:
        self._database = database
        self._names = names
        self._rooms = rooms
        self._store = store
        self._shown = shown
        self._viewer = viewer
        self._queries = queries
        self._pages = pages
        self._gaps = gaps
        self._users = users

    async def relations(
        self,
        room_id: str,
        user_id: str,
        event_id: str,
        rel_type: str | None,
        event_type: str | None,
        direction: str,
        from_token: str | None,
        to_token: str | None,
        limit: int,
        recurse: bool,
    ) -> Page:
        """A page of the events that relate to one that the user may see."""
        if direction not in ("b", "f"):
            raise invalid_param("dir must be b or f.")
        parent = await self._queries.event(room_id, user_id, event_id)
        room = await self._rooms.get(room_id)
        parents = await self._parents(room.room_nid, event_id, recurse)
        limit = max(1, min(limit, PAGE_LIMIT))
        start = await self._pages.start(room.room_nid, direction, from_token)
        stop = await self._pages.start(room.room_nid, direction, to_token) if to_token is not None else None
        read = relation_table.related_back if direction == "b" else relation_table.related_on

        async def rows_from_start() -> list[EventRow]:
            wanted = rel_type or "", event_type or ""
            rows = await self._database.read(read, parents, room.room_nid, *wanted, *start, limit + 1)
            return rows if stop is None else [row for row in rows if before_stop(row, stop, direction)]

        rows = await rows_from_start()
        edge = None
        if direction == "b" and len(rows) <= limit:
            # What relates to an event comes after it.
            floor = Place(parent.depth, parent.position)
            walk = self._gaps.walk(room, user_id, direction, floor if stop is None else max(floor, stop))
            edge = await walk.reach(start, None)
            if walk.rounds:
                rows = await rows_from_start()
        if edge is not None:
            rows = [row for row in rows if Place(row.depth, row.position) >= edge]
        more, rows = len(rows) > limit, rows[:limit]
        following = edge and Place(edge.depth, edge.position - 1)
        if more:
            following = Place(rows[-1].depth, rows[-1].position - (direction == "b"))
        visible = await self._viewer.visible_rows(user_id, rows)
        return Page(
            events=await self._shown.show(visible),
            start=timeline_token(*start),
            end=timeline_token(*following) if following is not None else None,
        )

    async def _parents(self, room_nid: int, event_id: str, recurse: bool) -> list[str]:
        """The event, and with ``recurse`` those that relate to it over some hops."""
        found = [event_id]
        layer = [event_id]
        for _ in range(HOPS - 1 if recurse else 0):
            layer = await self._database.read(relation_table.child_ids, layer, room_nid, PAGE_LIMIT)
            if not layer:
                break
            found += layer
        return found

    async def threads(self, room_id: str, user_id: str, include: str, from_token: str | None, limit: int) -> Page:
        """The roots of a room's threads, that with the latest event first."""
        if include not in ("all", "participated"):
            raise invalid_param("include must be all or participated.")
        room = await self._rooms.find(room_id)
        if room is None:
            raise forbidden("You are not in this room.")
        await self._viewer.require_member(room.room_nid, user_id)
        limit = max(1, min(limit, PAGE_LIMIT))
        before = parse_token(from_token).position if from_token is not None else 2**62
        if include == "all":
            rows = await self._database.read_long(relation_table.threads, room.room_nid, before, limit + 1)
        else:
            user_nid = await self._database.read(self._names.find, user_id) or 0
            rows = await self._database.read_long(
                relation_table.threads_with, room.room_nid, user_nid, before, limit + 1
            )
        page = rows[:limit]
        roots = {row.event_id: row for row in await self._store.rows([row.parent_id for row in page])}
        known = [roots[row.parent_id] for row in page if row.parent_id in roots]
        visible = await self._viewer.visible_rows(user_id, [row for row in known if row.room_id == room_id])
        end = timeline_token(0, page[-1].latest) if len(rows) > limit else None
        return Page(events=await self._shown.show(visible), start=from_token or "", end=end)

    async def aggregations(self, room_id: str, event_ids: Sequence[str], user_id: str) -> dict[str, bytes]:
        """For each event that has any, the JSON of ``unsigned.m.relations`` as the user sees it."""
        return await self._aggregate(room_id, event_ids, user_id, nested=True)

    async def _aggregate(self, room_id: str, event_ids: Sequence[str], user_id: str, nested: bool) -> dict[str, bytes]:
        room = await self._rooms.place(room_id)
        if room is None or not event_ids:
            return {}
        rows = await self._database.read(relation_table.children, event_ids, room.room_nid, CHILDREN_LIMIT)
        if not rows:
            return {}
        ignored = await self._users.ignored_users(user_id)
        by_parent: dict[str, list[ChildRow]] = defaultdict(list)
        for row in rows:
            if row.sender not in ignored:
                by_parent[row.parent_id].append(row)
        parents = {row.event_id: row for row in await self._store.rows(list(by_parent))}
        shown = {}
        for parent_id, children in by_parent.items():
            if parent_id in parents:
                found = await self._bundle(parents[parent_id], children, user_id, nested)
                if found:
                    shown[parent_id] = found
        return shown

    async def _bundle(self, row: EventRow, children: list[ChildRow], user_id: str, nested: bool) -> bytes:
        """What is shown with one parent; empty where nothing is.  `children` come newest first."""
        parent = stored_event(row)
        if parent.state_key is not None:
            return b""
        edit = await self._latest_edit(parent, children)
        references = [child.event_id for child in reversed(children) if child.rel_type == "m.reference"]
        thread, latest = await self._thread(parent, children, user_id, nested)
        found = bundle(
            replacement=orjson.Fragment(_whole(edit, b"")) if edit else None,
            references=references,
            thread=thread,
            thread_latest=orjson.Fragment(latest) if latest else None,
            redacted=row.redacted_by_nid is not None,
        )
        return orjson.dumps(found) if found else b""

    async def _latest_edit(self, parent: Event, children: list[ChildRow]) -> Event | None:
        likely = [
            child
            for child in children
            if child.rel_type == REPLACE and child.sender == parent.sender and child.type == parent.type
        ]
        likely.sort(key=lambda child: (child.origin_server_ts, child.event_id), reverse=True)
        events = await self._store.by_nid([child.event_nid for child in likely[:5]])
        found = latest_replacement(parent, events.values())
        return found if isinstance(found, Event) else None

    async def _thread(
        self, root: Event, children: list[ChildRow], user_id: str, nested: bool
    ) -> tuple[ThreadSummary | None, bytes]:
        """The summary of a thread, and its latest event as clients see it."""
        inside = [child for child in children if child.rel_type == THREAD]
        if not inside or not nested or relation_of(root.content) is not None:
            return None, b""
        participated = root.sender == user_id or any(child.sender == user_id for child in inside)
        summary = ThreadSummary(inside[0].event_id, len(inside), participated)
        latest = (await self._store.by_nid([inside[0].event_nid])).get(inside[0].event_nid)
        if latest is None:
            raise not_found("The latest event of the thread is gone.")
        own = await self._aggregate(root.room_id, [latest.event_id], user_id, nested=False)
        return summary, _whole(latest, own.get(latest.event_id, b""))


def _whole(event: Event, relations: bytes) -> bytes:
    """An event in the client format, with its room and with relations of its own."""
    unsigned = b',"unsigned":{"m.relations":' + relations + b"}" if relations else b""
    return client_json(event)[:-1] + b',"room_id":' + orjson.dumps(event.room_id) + unsigned + b"}"

"""Stored events: as the protocol sees them, and as callers are shown them.

`EventStore` reads events by number or ID through a memory; `RoomEvents` makes
`RoomEvent`s, with what a state event replaced and what redacted it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ..cache import Cache, CacheBudget
from ..database.engines import Database
from ..database.statements import Transaction
from ..links.echoes import Echoes
from ..matrix.events import Event, client_json, event_from_storage, shared, shown_json
from ..matrix.relations import relation_of
from ..matrix.room_versions import ROOM_VERSIONS
from .api import RoomEvent
from .ownership import Changes
from .tables.events import (
    ASIDE,
    REJECTED,
    EventRow,
    PlacedRow,
    event_by_id,
    events_by_id,
    events_by_nid,
    known_events,
)

if TYPE_CHECKING:
    from .steps import Batch

FEW = 100
"""Events that are read on the reactor thread."""


FEW = 200
"""Rows that are read on the reactor thread."""


def stored_event(row: EventRow) -> Event:
    """The event in a row."""
    return event_from_storage(row.pdu, ROOM_VERSIONS[row.version], row.event_id)


class Standing(NamedTuple):
    """An event as one that others name as their authority."""

    event_nid: int
    rejected: bool


class EventStore:
    """Events by number, remembered: those that authorise others are asked for again and again."""

    def __init__(self, database: Database, budget: CacheBudget, echoes: Echoes) -> None:
        self._database = database
        self._echoes = echoes
        self._events: Cache[int, Event] = Cache("events", budget, lambda event: 2500 + 4 * len(event.pdu))
        self._forgotten = 0
        """How often something was forgotten: what was being read meanwhile may be out of date."""
        self._changes = Changes("events", echoes, self._forget, self.forget_all)

    def remember(self, event_nid: int, event: Event) -> None:
        """Keep an event whose transaction is on disk."""
        self._events.put(event_nid, event)

    def forget(self, event_nid: int) -> None:
        """An event is another on disk than it was: read it anew when it is next asked for, here and elsewhere."""
        self._forget([event_nid])
        self._changes.tell([event_nid])

    def _forget(self, nids: Iterable[int]) -> None:
        self._forgotten += 1
        for nid in nids:
            self._events.pop(nid)

    def forget_all(self) -> None:
        """Others may have changed any event."""
        self._forgotten += 1
        self._events.clear()

    async def by_nid(self, nids: Iterable[int]) -> dict[int, Event]:
        """The events with these numbers."""
        found: dict[int, Event] = {}
        missing: list[int] = []
        for nid in nids:
            event = self._events.get(nid)
            if event is None:
                missing.append(nid)
            else:
                found[nid] = event
        if missing:
            # Many are read by another thread, so that the reactor has its turn between the pieces that callers read.
            read = self._database.read if len(missing) <= FEW else self._database.read_long
            forgotten = self._forgotten
            rows = await read(events_by_nid, missing)
            kept = forgotten == self._forgotten and self._echoes.hearing
            for row in rows:
                event = stored_event(row)
                found[row.event_nid] = event
                if kept:
                    self._events.put(row.event_nid, event)
        return found

    async def events(self, nids: Iterable[int], fresh: Mapping[int, Event]) -> dict[int, Event]:
        """As `by_nid`; `fresh` are events that are not on disk yet."""
        if not fresh:
            return await self.by_nid(nids)
        wanted = list(nids)
        found = {nid: fresh[nid] for nid in wanted if nid in fresh}
        if len(found) < len(wanted):
            found.update(await self.by_nid([nid for nid in wanted if nid not in found]))
        return found

    async def standings(self, event_ids: Iterable[str], batch: Batch | None = None) -> dict[str, Standing]:
        """The numbers of events by their IDs, of those that are here and were judged."""
        found: dict[str, Standing] = {}
        wanted = []
        for event_id in event_ids:
            nid = batch.nids.get(event_id) if batch is not None else None
            if batch is None or nid is None:
                wanted.append(event_id)
            else:
                placed = batch.placed.get(event_id)
                found[event_id] = Standing(nid, placed is not None and placed.status == REJECTED)
        if wanted:
            read = self._database.read if len(wanted) <= FEW else self._database.read_long
            for row in await read(known_events, wanted):
                if row.status != ASIDE:
                    found[row.event_id] = Standing(row.event_nid, row.status == REJECTED)
        return found

    async def row(self, event_id: str) -> EventRow | None:
        return await self._database.read(event_by_id, event_id)

    async def rows(self, event_ids: Sequence[str]) -> list[EventRow]:
        return await self._database.read(events_by_id, event_ids)


def room_event(
    event: Event,
    *,
    position: int,
    replaced: Event | None = None,
    txn_device: str | None = None,
    txn_id: str | None = None,
    redacted_by: bytes | None = None,
    gap: bool = False,
) -> RoomEvent:
    """What callers are shown of an event; ``replaced`` is the state that it took the place of."""
    relation = relation_of(event.content)
    membership = event.membership if event.state_key is not None else None
    return RoomEvent(
        event_id=event.event_id,
        room_id=event.room_id,
        sender=event.sender,
        type=event.type,
        state_key=event.state_key,
        origin_server_ts=event.origin_server_ts,
        position=position,
        depth=event.depth,
        client=client_json(event),
        membership=None if membership is None else shared(membership),
        has_url=isinstance(event.content.get("url"), str),
        rel_type=relation.rel_type if relation else None,
        relates_to=relation.event_id if relation else None,
        replaces=replaced.event_id if replaced else None,
        prev_content=shown_json(replaced.content, replaced.version) if replaced else None,
        prev_sender=replaced.sender if replaced else None,
        transaction_id=txn_id,
        transaction_device=txn_device,
        redacted_by=redacted_by,
        gap=gap,
    )


class RoomEvents:
    """Makes rows into what callers are shown, and remembers those that no later event can change but by redaction."""

    def __init__(self, database: Database, store: EventStore, budget: CacheBudget) -> None:
        self._database = database
        self._store = store
        self._shown: Cache[int, RoomEvent] = Cache("room_events", budget, lambda event: 900 + len(event.client))

    def forget(self, event_nid: int) -> None:
        """An event has another place than before."""
        self._shown.pop(event_nid)

    def forget_all(self) -> None:
        """Events may have been given other places by other processes."""
        self._shown.clear()

    async def show(self, rows: Sequence[EventRow]) -> list[RoomEvent]:
        """`RoomEvent`s of `rows`, in their order."""
        wanted = {nid for row in rows for nid in (row.replaces_nid, row.redacted_by_nid) if nid}
        others = await self._store.by_nid(wanted) if wanted else {}
        known = self._shown.get_many(row.event_nid for row in rows)
        return [
            found if found is not None and _is_as_remembered(row, found) else self._show(row, others)
            for found, row in zip(known, rows, strict=True)
        ]

    async def show_placed(self, rows: Sequence[PlacedRow]) -> list[RoomEvent]:
        """As `show`, of rows that are read whole only where the events are not in memory."""
        known = self._shown.get_many(row.event_nid for row in rows)
        found = {
            row.event_nid: event
            for row, event in zip(rows, known, strict=True)
            if event is not None and _is_in_place(row, event)
        }
        absent = [row.event_nid for row in rows if row.event_nid not in found]
        if absent:
            whole = await self._database.read(events_by_nid, absent)
            found.update(zip([row.event_nid for row in whole], await self.show(whole), strict=True))
        return [found[row.event_nid] for row in rows if row.event_nid in found]

    def _show(self, row: EventRow, others: Mapping[int, Event]) -> RoomEvent:
        shown = _shown(row, others)
        if _may_remember(row):
            self._shown.put(row.event_nid, shown)
        return shown

    async def by_nid(self, nids: Sequence[int]) -> list[RoomEvent]:
        """The events with these numbers, in the order of the numbers given."""
        rows = {row.event_nid: row for row in await self._database.read(events_by_nid, nids)}
        return await self.show([rows[nid] for nid in nids if nid in rows])

    async def show_in(self, txn: Transaction, rows: Sequence[EventRow]) -> list[RoomEvent]:
        """As `show`, inside a transaction that may run in another thread."""
        wanted = {nid for row in rows for nid in (row.replaces_nid, row.redacted_by_nid) if nid}
        others = {row.event_nid: stored_event(row) for row in await events_by_nid(txn, list(wanted))} if wanted else {}
        return [_shown(row, others) for row in rows]


def _may_remember(row: EventRow | PlacedRow) -> bool:
    """Whether nothing but a redaction changes how the event is shown; one that was redacted may be remembered as
    it was before."""
    return row.redacted_by_nid is None and row.replaces_nid is None


def _is_in_place(row: EventRow | PlacedRow, event: RoomEvent) -> bool:
    """Whether an event is where it was when it was remembered, and nothing has changed how it is shown."""
    return event.position == row.position and _may_remember(row)


def _is_as_remembered(row: EventRow, event: RoomEvent) -> bool:
    return event.gap == bool(row.gap) and _is_in_place(row, event)


def _shown(row: EventRow, others: Mapping[int, Event]) -> RoomEvent:
    """A row as callers are shown it; `others` holds what it replaced and what redacted it."""
    redaction = others.get(row.redacted_by_nid) if row.redacted_by_nid else None
    return room_event(
        stored_event(row),
        position=row.position,
        replaced=others.get(row.replaces_nid) if row.replaces_nid else None,
        txn_device=row.txn_device,
        txn_id=row.txn_id,
        redacted_by=client_json(redaction) if redaction else None,
        gap=bool(row.gap),
    )

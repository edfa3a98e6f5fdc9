"""Which event a redaction empties, and whether it may.

A redaction and its target may come in either order.  Whether the target loses its content is decided when
both are here, by the power levels before the redaction (room version 3, "Handling redactions").
"""

from __future__ import annotations

from typing import NamedTuple

from ..database.engines import Database
from ..matrix.auth_rules import redaction_applies
from ..matrix.errors import forbidden, invalid_param
from ..matrix.events import Event, redact_event
from .snapshots import Snapshots, StateMap
from .states import States
from .steps import CREATE, POWER_LEVELS, Batch
from .store import EventStore, stored_event
from .tables import events as event_table
from .tables.names import Slot

NEVER_REDACTED = ("m.room.create", "m.room.server_acl")
"""State that would shut everybody out if its content were gone."""


class Target(NamedTuple):
    """The event that a redaction empties: its number and what is left of it."""

    event_nid: int | None = None
    redacted: Event | None = None


class Redaction(NamedTuple):
    """What empties an event."""

    event_nid: int
    event: Event


class Redactions:
    """Brings redactions and their targets together."""

    def __init__(self, database: Database, states: States, store: EventStore, snapshots: Snapshots) -> None:
        self._database = database
        self._states = states
        self._store = store
        self._snapshots = snapshots

    async def of_draft(self, batch: Batch, event: Event, authority: dict[Slot, Event]) -> Target:
        """The target of an event of this server, which must be allowed to empty it if it is here."""
        target_nid, target = await self._find(batch, event)
        if target_nid is None or target is None:
            return Target()
        if target.room_id != event.room_id:
            raise invalid_param("The event to be redacted is of another room.")
        if target.type in NEVER_REDACTED and target.state_key == "":
            raise forbidden(f"An event of type {target.type} is never redacted: the room could not be used any more.")
        levels = self._states.power_levels(authority)
        if levels is None or not redaction_applies(event, target, levels):
            raise forbidden("You may not redact this event.")
        if target.sender != event.sender and levels.user_level(event.sender) < levels.redact:
            # The rules between servers let a server speak for all its users; the server does not.
            raise forbidden("You may not redact the events of others.")
        return Target(target_nid, redact_event(target))

    async def of_arrival(self, batch: Batch, event: Event, before: StateMap) -> Target:
        """The target of an accepted event of another server, if it is here and may be emptied."""
        target_nid, target = await self._find(batch, event)
        if target_nid is None or target is None or not await self._applies(batch, event, target, before):
            return Target()
        return Target(target_nid, redact_event(target))

    async def waiting_for(self, batch: Batch, event: Event) -> Redaction | None:
        """The redaction that came before its target, this event, and may empty it."""
        nids = await self._database.read(event_table.waiting_redactions, event.event_id, batch.room.room_nid)
        nids += batch.redactions.get(event.event_id, [])
        events = await self._states.events(nids, batch)
        for nid in nids:
            redaction = events.get(nid)
            if redaction is None:
                continue
            before = await self._before(batch, redaction)
            if await self._applies(batch, redaction, event, before):
                return Redaction(nid, redaction)
        return None

    async def _before(self, batch: Batch, redaction: Event) -> StateMap:
        """The parts of the state before a redaction that its power depends on."""
        row = await self._store.row(redaction.event_id)
        if row is None:
            # It came in the same turn: what is current now has seen it.
            return batch.head.state
        slots = [await self._states.slot_nid(key) for key in (CREATE, POWER_LEVELS)]
        return StateMap(await self._database.read(self._snapshots.look_up, row.snapshot_nid, slots))

    async def _applies(self, batch: Batch, redaction: Event, target: Event, before: StateMap) -> bool:
        if target.type == "m.room.create":
            return False
        levels = self._states.power_levels(await self._states.at(before, [CREATE, POWER_LEVELS], batch))
        return levels is not None and redaction_applies(redaction, target, levels)

    async def _find(self, batch: Batch, redaction: Event) -> tuple[int | None, Event | None]:
        """The event that a redaction names, where it is here."""
        if redaction.type != "m.room.redaction" or redaction.redacts is None:
            return None, None
        nid = batch.nids.get(redaction.redacts)
        if nid is not None:
            return nid, batch.events[nid]
        row = await self._store.row(redaction.redacts)
        return (None, None) if row is None else (row.event_nid, stored_event(row))

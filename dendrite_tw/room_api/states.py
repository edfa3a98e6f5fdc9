"""What a room's writer reads: events by number, state by slot, power levels; what is not on disk yet first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ..database.engines import Database
from ..matrix.events import Event
from ..matrix.power_levels import PowerLevels
from .servers import Servers
from .snapshots import StateMap
from .steps import CREATE, POWER_LEVELS, Batch
from .store import EventStore
from .tables.names import Names, Slot

LEVELS_REMEMBERED = 300
"""Power levels, as they are of use, that are kept beside the events which set them."""


class _Levels(NamedTuple):
    """Power levels and the very events that they were made from."""

    create: Event
    levels: Event | None
    made: PowerLevels


class States:
    """Reads for the writer."""

    def __init__(self, database: Database, names: Names, store: EventStore, servers: Servers) -> None:
        self._database = database
        self._names = names
        self._store = store
        self._servers = servers
        self._levels: OrderedDict[tuple[str, str], _Levels] = OrderedDict()

    async def at(self, state: StateMap, keys: Sequence[Slot], batch: Batch) -> dict[Slot, Event]:
        """The events of `state` at `keys`, where set."""
        nids = {}
        for key in keys:
            slot_nid = self._names.remembered_slot(key)
            if slot_nid is None:
                slot_nid = await self._database.read(self._names.find_slot, key)
            event_nid = state.get(slot_nid) if slot_nid else None
            if event_nid is not None:
                nids[key] = event_nid
        events = await self.events(nids.values(), batch)
        return {key: events[nid] for key, nid in nids.items()}

    async def events(self, nids: Iterable[int], batch: Batch) -> dict[int, Event]:
        """The events with these numbers."""
        return await self._store.events(nids, batch.events)

    async def slot_nid(self, slot: Slot) -> int:
        """The number of a slot, a new one where needed."""
        known = self._names.remembered_slot(slot) or await self._database.read(self._names.find_slot, slot)
        if not known:
            known = (await self._database.write(self._names.intern_slots, [slot]))[slot]
        return known

    async def has_member_of(self, batch: Batch, server_name: str) -> bool:
        """Whether a server has a joined user in the room, as far as that is on disk."""
        return await self._servers.has(batch.room.room_nid, server_name)

    def power_levels(self, authority: dict[Slot, Event]) -> PowerLevels | None:
        """The power levels of a state, made once for each power levels event."""
        create, levels = authority.get(CREATE), authority.get(POWER_LEVELS)
        if create is None:
            return None
        key = (create.event_id, levels.event_id if levels else "")
        known = self._levels.get(key)
        if known is None or known.create is not create or known.levels is not levels:
            # New, or one of the events has been redacted or was read anew.
            known = self._levels[key] = _Levels(create, levels, PowerLevels(create, levels))
            if len(self._levels) > LEVELS_REMEMBERED:
                self._levels.popitem(last=False)
        return known.made

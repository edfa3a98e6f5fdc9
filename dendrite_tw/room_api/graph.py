"""Auth chains of stored events, and the graph that state resolution walks.

A chain is made from those of the event's auth events when it is first asked for, and kept.

`Graph` holds what was loaded.  The algorithm (`matrix.state_res`) is pure and cannot wait for the
database, so it is run on what is likely to be enough; where something lacks it stops with `Lacking`,
that is loaded, and it is run again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import reduce
from operator import or_

from pyroaring import BitMap

from ..cache import Cache, CacheBudget
from ..database.engines import Database
from ..matrix.events import Event
from ..matrix.room_versions import RoomVersion
from ..matrix.state_res import resolve_conflicts
from .snapshots import StateMap
from .steps import Batch
from .store import FEW, EventStore
from .tables import auth_chains as chain_table
from .tables import events as event_table
from .tables import names as name_table
from .tables.names import Names, Slot

ROUNDS = 4
"""Rounds in which only what lacks is loaded; after them, all that is behind it."""

AT_ONCE = 1000
"""Chains that are made or put together before the reactor may do something else."""


class AuthChains:
    """Auth chains by event number."""

    def __init__(self, database: Database, store: EventStore, budget: CacheBudget) -> None:
        self._database = database
        self._store = store
        self._chains: Cache[int, BitMap] = Cache("auth_chains", budget, lambda chain: 300 + 2 * len(chain))

    async def chains(self, nids: Collection[int], batch: Batch | None = None) -> dict[int, BitMap]:
        """The chain of each event, the event itself excluded; they are not to be changed."""
        found = await self._known(nids)
        missing = [nid for nid in nids if nid not in found]
        if not missing:
            return found
        made = await self._make(missing, batch)
        return found | {nid: made[nid] for nid in missing if nid in made}

    async def union(self, nids: Collection[int]) -> BitMap:
        """All events that some stand on, without those themselves unless others stand on them."""
        every, chain = list(nids), BitMap()
        for start in range(0, len(every), AT_ONCE):
            found = await self.chains(every[start : start + AT_ONCE])
            chain |= BitMap.union(BitMap(), *found.values())
        return chain

    async def _known(self, nids: Iterable[int]) -> dict[int, BitMap]:
        """Those that were made before."""
        found: dict[int, BitMap] = {}
        unread: list[int] = []
        for nid in nids:
            chain = self._chains.get(nid)
            if chain is None:
                unread.append(nid)
            else:
                found[nid] = chain
        if unread:
            read = self._database.read if len(unread) <= FEW else self._database.read_long
            for row in await read(chain_table.chains, unread):
                chain = found[row.event_nid] = BitMap.deserialize(row.chain)
                self._chains.put(row.event_nid, chain)
        return found

    async def _make(self, nids: Iterable[int], batch: Batch | None) -> dict[int, BitMap]:
        """Make chains, and first those that they are made from."""
        chains: dict[int, BitMap] = {}
        above: dict[int, list[int]] = {}
        layer = set(nids)
        while layer:
            waiting = list(layer)
            for start in range(0, len(waiting), FEW):
                above.update(await self._authorities(waiting[start : start + FEW], batch))
            further = {number for nid in layer for number in above.get(nid, ())} - above.keys() - chains.keys()
            ready = await self._known(further)
            chains.update(ready)
            layer = further - ready.keys()
        made = {}
        # An event has a greater number than those that it stands on.
        for nid in sorted(above):
            chain = BitMap(above[nid])
            for number in above[nid]:
                chain |= chains.get(number, BitMap())
            chains[nid] = made[nid] = chain
        await self._keep(made)
        return made

    async def _authorities(self, nids: list[int], batch: Batch | None) -> dict[int, list[int]]:
        """The numbers of the auth events of each event, of those that are here."""
        events = await self._store.events(nids, batch.events if batch else {})
        ids = {auth_id for event in events.values() for auth_id in event.auth_events}
        known = await self._store.standings(ids, batch)
        return {
            nid: [known[auth_id].event_nid for auth_id in event.auth_events if auth_id in known]
            for nid, event in events.items()
        }

    async def _keep(self, made: Mapping[int, BitMap]) -> None:
        for nid, chain in made.items():
            self._chains.put(nid, chain)
        nids = list(made)
        for start in range(0, len(nids), AT_ONCE):
            piece = nids[start : start + AT_ONCE]
            # Those of events that are not on disk yet are made again after the next start.
            read = self._database.read if len(piece) <= FEW else self._database.read_long
            rows = await read(event_table.rooms_of, piece)
            stored = [(row.event_nid, row.room_nid, made[row.event_nid].serialize()) for row in rows]
            if stored:
                await self._database.write(chain_table.insert_chains, stored)


class Lacking(Exception):
    """The graph does not have something: numbers of events or of chains, IDs of events, or places of the state."""

    def __init__(
        self, *, event: int | None = None, chain: int | None = None, event_id: str = "", slot: Slot | None = None
    ) -> None:
        super().__init__("not loaded")
        self.event = event
        self.chain = chain
        self.event_id = event_id
        self.slot = slot


class Graph:
    """A `matrix.state_res.AuthGraph` of what was loaded."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}
        self.events: dict[int, Event] = {}
        self.chains: dict[int, BitMap] = {}
        self.rejected: dict[int, bool] = {}

    def number(self, event_id: str, /) -> int:
        if event_id not in self.numbers:
            raise Lacking(event_id=event_id)
        return self.numbers[event_id]

    def event(self, number: int, /) -> Event:
        if number not in self.events:
            raise Lacking(event=number)
        return self.events[number]

    def auth_chain(self, number: int, /) -> BitMap:
        if number not in self.chains:
            raise Lacking(chain=number)
        return self.chains[number]

    def is_rejected(self, number: int, /) -> bool:
        return self.rejected.get(number, False)


class Common(Mapping[Slot, int]):
    """What states have in common: one of them, without the places in which they differ.  Looked up by type and key."""

    def __init__(self, state: StateMap, differing: Collection[int]) -> None:
        self._state = state
        self._differing = differing
        self.slots: dict[Slot, int] = {}
        """The numbers of slots that were looked up, 0 for one that nothing stored has."""

    def __getitem__(self, key: Slot) -> int:
        if key not in self.slots:
            raise Lacking(slot=key)
        slot = self.slots[key]
        if slot in self._differing:
            raise KeyError(key)
        return self._state[slot]

    def values(self) -> list[int]:  # type: ignore[override]
        return [event for slot, event in self._state.items() if slot not in self._differing]

    def __iter__(self) -> Iterator[Slot]:
        raise NotImplementedError("a state is looked up and not walked")

    def __len__(self) -> int:
        return len(self._state) - sum(slot in self._state for slot in self._differing)


class Resolver:
    """Resolves states of stored events."""

    def __init__(self, database: Database, names: Names, store: EventStore, chains: AuthChains) -> None:
        self._database = database
        self._names = names
        self._store = store
        self._chains = chains

    async def resolve(self, version: RoomVersion, states: list[StateMap], batch: Batch) -> StateMap:
        """The resolution of two or more states of a room."""
        differing = _differing(states)
        if not differing:
            return states[0]
        rows = await self._database.read(name_table.slots_by_nid, list(differing))
        keys: dict[int, Slot] = {row.slot_nid: (row.type, row.state_key) for row in rows}
        slots = {key: slot for slot, key in keys.items()}
        common = Common(states[0], differing)
        common.slots.update(slots)
        conflicted = [{keys[slot]: state[slot] for slot in differing if slot in state} for state in states]
        found = await self._resolve(version, common, conflicted, batch)
        changing = states[0].mutate()
        for slot in differing:
            event = found.get(keys[slot])
            if event is not None:
                changing[slot] = event
            elif slot in changing:
                del changing[slot]
        return changing.finish()

    async def _resolve(
        self, version: RoomVersion, common: Common, conflicted: list[dict[Slot, int]], batch: Batch
    ) -> dict[Slot, int]:
        graph = Graph()
        numbers = {number for state in conflicted for number in state.values()}
        graph.chains.update(await self._chains.chains(numbers, batch))
        await self._load(graph, numbers, batch)
        rounds = 0
        while True:
            try:
                return resolve_conflicts(version, common, conflicted, graph)
            except Lacking as lacking:
                rounds += 1
                await self._supply(graph, common, lacking, rounds > ROUNDS, batch)

    async def _supply(self, graph: Graph, common: Common, lacking: Lacking, thoroughly: bool, batch: Batch) -> None:
        """Load what the algorithm asked for, and what it is likely to ask for next."""
        if lacking.slot is not None:
            found = await self._database.read(self._names.find_slot, lacking.slot)
            common.slots[lacking.slot] = found or 0
        elif lacking.chain is not None:
            behind: BitMap = reduce(or_, graph.chains.values(), BitMap())
            wanted = behind if lacking.chain in behind else BitMap(common.values())
            wanted.add(lacking.chain)
            needed = [nid for nid in wanted if nid >= lacking.chain and nid not in graph.chains]
            graph.chains.update(await self._chains.chains(needed, batch))
        elif lacking.event is not None:
            wanted = BitMap([lacking.event])
            if thoroughly:
                wanted |= (await self._chains.chains([lacking.event], batch))[lacking.event]
            await self._load(graph, wanted, batch)
        else:
            await self._load_ids(graph, [lacking.event_id], batch)

    async def _load(self, graph: Graph, nids: Iterable[int], batch: Batch) -> None:
        """Load events, and those that authorise them."""
        events = await self._store.events([nid for nid in nids if nid not in graph.events], batch.events)
        graph.events.update(events)
        ids = {event.event_id for event in events.values()}
        ids |= {auth_id for event in events.values() for auth_id in event.auth_events}
        ids |= {"$" + event.room_id[1:] for event in events.values() if not event.version.create_event_in_auth_events}
        await self._load_ids(graph, [event_id for event_id in ids if event_id not in graph.numbers], batch)

    async def _load_ids(self, graph: Graph, event_ids: Collection[str], batch: Batch) -> None:
        found = await self._store.standings(event_ids, batch)
        missing = [event_id for event_id in event_ids if event_id not in found]
        if missing:
            raise LookupError(f"{missing[0]}, which authorises others, is not stored")
        for event_id, standing in found.items():
            graph.numbers[event_id] = standing.event_nid
            graph.rejected[standing.event_nid] = standing.rejected
        graph.events.update(await self._store.events(graph.rejected.keys() - graph.events.keys(), batch.events))


def _differing(states: list[StateMap]) -> set[int]:
    """The slots in which not all states hold the same event."""
    first, *others = states
    differing: set[int] = set()
    for other in others:
        if other is first:
            continue
        look_up = first.get
        fresh = 0
        for slot, event in other.items():
            held = look_up(slot)
            if held != event:
                differing.add(slot)
                fresh += held is None
        if len(first) + fresh != len(other):
            differing.update(slot for slot in first if slot not in other)
    return differing

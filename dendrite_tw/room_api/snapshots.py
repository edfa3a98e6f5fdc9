"""State on disk: deltas in chains whose length is the number of digits of a step.

Every change of a room's state makes a snapshot.  Snapshots of a room are
numbered by *step*, and the step is read as a number in base four: the base of
a snapshot is the one whose step has the lowest digit that is not zero cleared
(1203 stands on 1200, that on 1000, that on nothing).  So a chain has at most
`LEVELS` links, a link has on average a few changes, and nothing is stored
whole but every 4^`LEVELS`-th state.

`Chain` is what a room's writer keeps to make the next link without comparing
states: for each level, what changed since the checkpoint of that level.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from threading import Lock
from typing import NamedTuple

import msgspec
from immutables import Map

from ..cache import Cache, CacheBudget
from ..database.statements import Transaction
from ..links.echoes import Echoes
from .ownership import Changes
from .tables.state import snapshot

LEVELS = 8
RADIX = 4

StateMap = Map[int, int]
"""State slot to the number of the event that holds it."""

EMPTY: StateMap = Map()


class Level(NamedTuple):
    """A checkpoint, and what changed since."""

    base_nid: int
    changes: StateMap


class Chain(NamedTuple):
    """The newest snapshot of a room and its checkpoints, lowest level first."""

    snapshot_nid: int
    step: int
    levels: tuple[Level, ...]


class Link(NamedTuple):
    """A snapshot to be stored."""

    snapshot_nid: int
    step: int
    base_nid: int
    changes: StateMap


class Tape(NamedTuple):
    """The stored states of a room follow each other on one tape: the newest one, and what the next stands on."""

    state: StateMap
    chain: Chain

    def store(
        self, state: StateMap, snapshot_nid: int, changes: Mapping[int, int] | None = None
    ) -> tuple[Tape, Link | None]:
        """The tape with `state` as its newest, and the link to be stored; none where it is the newest already.

        ``changes`` are what leads there from the newest state, if the caller knows.
        """
        if changes is None:
            changes = difference(self.state, state)
        if not changes:
            return self, None
        chain, link = advance(self.chain, changes, state, snapshot_nid)
        return Tape(state, chain), link

    def renew(self, state: StateMap, snapshot_nid: int) -> tuple[Tape, Link]:
        """The tape with `state` as its newest, stored whole, so that nothing after it stands on anything before."""
        whole: int = RADIX**LEVELS
        step = (self.chain.step // whole + 1) * whole
        chain = Chain(snapshot_nid, step, (Level(snapshot_nid, EMPTY),) * LEVELS)
        return Tape(state, chain), Link(snapshot_nid, step, 0, state)


NEW_CHAIN = Chain(0, 0, (Level(0, EMPTY),) * LEVELS)
NEW_TAPE = Tape(EMPTY, NEW_CHAIN)


def advance(chain: Chain, changes: Mapping[int, int], state: StateMap, snapshot_nid: int) -> tuple[Chain, Link]:
    """The chain and the link for `changes` that led to `state`; an event number 0 takes a slot away."""
    step = chain.step + 1
    digit = _lowest_digit(step)
    updated = {id(level.changes): level.changes for level in chain.levels}
    updated = {key: known.update(changes) for key, known in updated.items()}
    levels = [Level(level.base_nid, updated[id(level.changes)]) for level in chain.levels]
    if digit < LEVELS:
        link = Link(snapshot_nid, step, *levels[digit])
    else:
        link = Link(snapshot_nid, step, 0, state)
    for index in range(min(digit, LEVELS)):
        levels[index] = Level(snapshot_nid, EMPTY)
    return Chain(snapshot_nid, step, tuple(levels)), link


def difference(old: StateMap, new: StateMap) -> dict[int, int]:
    """What leads from one state to another, as `advance` takes it: 0 for a slot that is empty in the new one."""
    if old is new:
        return {}
    look_up = old.get
    changes = {slot: event for slot, event in new.items() if look_up(slot) != event}
    if len(old) + sum(slot not in old for slot in changes) != len(new):
        changes.update((slot, 0) for slot in old if slot not in new)
    return changes


def overlaid(old: StateMap, new: Mapping[int, int]) -> StateMap:
    """The state `new` as a map that shares what it can with `old`."""
    changing = old.mutate()
    for slot in old:
        if slot not in new:
            del changing[slot]
    for slot, event in new.items():
        if old.get(slot) != event:
            changing[slot] = event
    return changing.finish()


def _lowest_digit(step: int) -> int:
    """The place of the lowest digit that is not zero."""
    place = 0
    while step % RADIX == 0:
        step //= RADIX
        place += 1
    return place


def encode_changes(changes: Mapping[int, int]) -> bytes:
    return msgspec.msgpack.encode([number for pair in changes.items() for number in pair])


_decoder = msgspec.msgpack.Decoder(list[int])


def decode_changes(delta: bytes) -> dict[int, int]:
    numbers = _decoder.decode(delta)
    return dict(zip(numbers[::2], numbers[1::2], strict=True))


class StoredLink(NamedTuple):
    """A snapshot as it was read."""

    snapshot_nid: int
    step: int
    base_nid: int
    changes: dict[int, int]


class Snapshots:
    """Reads snapshots, through a memory of links."""

    def __init__(self, budget: CacheBudget, echoes: Echoes) -> None:
        self._echoes = echoes
        self._links: Cache[int, StoredLink] = Cache("room_state", budget, lambda link: 200 + 100 * len(link.changes))
        self._rewritten = 0
        self._lock = Lock()
        self._changes = Changes("states", echoes, self._forget, self._forget_all)

    async def links(self, txn: Transaction, snapshot_nid: int) -> list[StoredLink]:
        """The chain from a snapshot down to the empty state."""
        chain = []
        while snapshot_nid:
            link = self._links.get(snapshot_nid)
            if link is None:
                rewritten = self._rewritten
                row = await snapshot(txn, snapshot_nid)
                if row is None:
                    raise LookupError(f"there is no state snapshot {snapshot_nid}")
                link = StoredLink(row.snapshot_nid, row.step, row.base_nid, decode_changes(row.delta))
                self._remember(link, rewritten)
            chain.append(link)
            snapshot_nid = link.base_nid
        return chain

    def forget(self, snapshot_nids: Collection[int]) -> None:
        """These snapshots were rewritten: read them anew when they are next asked for, here and elsewhere."""
        self._forget(snapshot_nids)
        self._changes.tell(snapshot_nids)

    def _forget(self, snapshot_nids: Iterable[int]) -> None:
        with self._lock:
            self._rewritten += 1
            for snapshot_nid in snapshot_nids:
                self._links.pop(snapshot_nid)

    def _forget_all(self) -> None:
        with self._lock:
            self._rewritten += 1
            self._links.clear()

    def _remember(self, link: StoredLink, rewritten: int) -> None:
        """Keep what was read, in whatever thread, unless snapshots were rewritten meanwhile."""
        with self._lock:
            if rewritten == self._rewritten and self._echoes.hearing:
                self._links.put(link.snapshot_nid, link)

    async def state(self, txn: Transaction, snapshot_nid: int) -> dict[int, int]:
        """Every slot of a state with its event."""
        state: dict[int, int] = {}
        for link in reversed(await self.links(txn, snapshot_nid)):
            state.update(link.changes)
        return {slot: event for slot, event in state.items() if event}

    async def look_up(self, txn: Transaction, snapshot_nid: int, slots: Iterable[int]) -> dict[int, int]:
        """Some slots of a state, those that are set."""
        links = await self.links(txn, snapshot_nid)
        found = {}
        for slot in slots:
            event = next((link.changes[slot] for link in links if slot in link.changes), 0)
            if event:
                found[slot] = event
        return found

    async def chain(self, txn: Transaction, snapshot_nid: int) -> tuple[Chain, StateMap]:
        """What a room's writer needs to go on from a stored snapshot, and its state."""
        if not snapshot_nid:
            return NEW_CHAIN, EMPTY
        links = await self.links(txn, snapshot_nid)
        step = links[0].step
        levels = tuple(_level(links, step - step % RADIX ** (place + 1)) for place in range(LEVELS))
        return Chain(snapshot_nid, step, levels), Map(await self.state(txn, snapshot_nid))


def _level(links: Sequence[StoredLink], checkpoint: int) -> Level:
    """The checkpoint with that step, and what the links above it changed."""
    changes: dict[int, int] = {}
    for link in links:
        if link.step == checkpoint:
            return Level(link.snapshot_nid, Map(changes))
        changes = {**link.changes, **changes}
    return Level(0, Map(changes))

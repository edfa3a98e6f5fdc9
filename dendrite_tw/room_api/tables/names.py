"""Numbers for names: event types, users, and state slots (a type with a state key).

Numbers are looked up inside a transaction and remembered once it is on disk;
the memory is dropped whole when it grows beyond its bound.

RETENTION: a name is as long-lived as the events that use it; names are few
(users and types ever seen) and are not pruned.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from ...database.statements import Transaction, many, maybe, one

REMEMBERED = 100_000

Slot = tuple[str, str]
"""A type and a state key."""


class NameRow(msgspec.Struct, frozen=True):
    name_nid: int
    name: str


class SlotRow(msgspec.Struct, frozen=True):
    slot_nid: int
    type: str
    state_key: str


@maybe(int, "SELECT name_nid FROM names WHERE name = :name")
def name_nid(txn: Transaction, name: str) -> None: ...


@one(int, "INSERT INTO names (name) VALUES (:name) RETURNING name_nid")
def insert_name(txn: Transaction, name: str) -> None: ...


@many(NameRow, "SELECT name_nid, name FROM names WHERE name_nid = ANY(:nids)")
def names_by_nid(txn: Transaction, nids: Sequence[int]) -> None: ...


@many(NameRow, "SELECT name_nid, name FROM names WHERE name = ANY(:names)")
def nids_by_name(txn: Transaction, names: Sequence[str]) -> None: ...


@maybe(int, "SELECT slot_nid FROM state_slots WHERE type = :type AND state_key = :state_key")
def slot_nid(txn: Transaction, type: str, state_key: str) -> None: ...


@one(int, "INSERT INTO state_slots (type, state_key) VALUES (:type, :state_key) RETURNING slot_nid")
def insert_slot(txn: Transaction, type: str, state_key: str) -> None: ...


@many(SlotRow, "SELECT slot_nid, type, state_key FROM state_slots WHERE slot_nid = ANY(:nids)")
def slots_by_nid(txn: Transaction, nids: Sequence[int]) -> None: ...


@many(
    int,
    "SELECT s.slot_nid FROM state_slots s WHERE s.type = :type AND EXISTS "
    "(SELECT 1 FROM events e WHERE e.room_nid = :room_nid AND e.slot_nid = s.slot_nid)",
)
def slots_of_type_in(txn: Transaction, type: str, room_nid: int) -> None:
    """The slots of a type that a room ever had, in no order."""


class Names:
    """The numbers of names and slots, through a memory."""

    def __init__(self, shared: bool = False) -> None:
        """``shared``: other processes give numbers too, so that what has none now may have one at any time."""
        self._shared = shared
        self._nids: dict[str, int] = {}
        self._slots: dict[Slot, int] = {}
        self._commits = 0

    def _remember(self, nids: dict[str, int], slots: dict[Slot, int]) -> None:
        self._commits += 1
        self._bound()
        self._nids.update(nids)
        self._slots.update(slots)

    def _bound(self) -> None:
        if len(self._nids) + len(self._slots) > REMEMBERED:
            self._nids, self._slots = {}, {}

    async def find(self, txn: Transaction, name: str) -> int | None:
        """The number of a name, `None` if nothing stored ever had it."""
        known = self._nids.get(name)
        if known is None and (known := await name_nid(txn, name)) is not None:
            self._nids[name] = known
        return known

    def remembered_slot(self, slot: Slot) -> int | None:
        """The number of a slot, 0 if nothing stored ever had it; `None` if that is not in memory."""
        return self._slots.get(slot)

    async def find_slot(self, txn: Transaction, slot: Slot) -> int | None:
        """The number of a slot, `None` if nothing stored ever had it."""
        known = self._slots.get(slot)
        if known is None:
            commits = self._commits
            known = await slot_nid(txn, *slot)
            if known is not None:
                self._slots[slot] = known
            elif commits == self._commits and not self._shared:
                # Whoever stores it writes over this once it is on disk.
                self._bound()
                self._slots.setdefault(slot, 0)
        return known or None

    async def intern(self, txn: Transaction, names: Iterable[str]) -> dict[str, int]:
        """Numbers for all of `names`, new ones where needed; for a writing transaction."""
        wanted = set(names)
        known = {name: nid for name in wanted if (nid := self._nids.get(name)) is not None}
        fresh: dict[str, int] = {}
        for name in wanted - known.keys():
            found = await name_nid(txn, name)
            fresh[name] = await insert_name(txn, name) if found is None else found
        if fresh:
            txn.after_commit(lambda: self._remember(fresh, {}))
        return known | fresh

    async def intern_slots(self, txn: Transaction, slots: Iterable[Slot]) -> dict[Slot, int]:
        """As `intern`, for state slots."""
        wanted = set(slots)
        known = {slot: nid for slot in wanted if (nid := self._slots.get(slot))}
        fresh: dict[Slot, int] = {}
        for slot in wanted - known.keys():
            found = await slot_nid(txn, *slot)
            fresh[slot] = await insert_slot(txn, *slot) if found is None else found
        if fresh:
            txn.after_commit(lambda: self._remember({}, fresh))
        return known | fresh

"""State chains: what is read back is what was written, by short chains of small links."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from immutables import Map
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.cache import CacheBudget
from dendrite_tw.database.engines import SQLiteDatabase
from dendrite_tw.database.migrate import migrate, steps_of
from dendrite_tw.links.echoes import NoEchoes
from dendrite_tw.room_api import snapshots
from dendrite_tw.room_api.snapshots import (
    LEVELS,
    NEW_CHAIN,
    NEW_TAPE,
    Chain,
    Link,
    Snapshots,
    StateMap,
    advance,
    difference,
    overlaid,
)
from dendrite_tw.room_api.tables.state import insert_snapshots


def store(database: SQLiteDatabase, links: list[Link]) -> None:
    rows = [(link.snapshot_nid, 1, link.step, link.base_nid, snapshots.encode_changes(link.changes)) for link in links]
    database.prepare(insert_snapshots, rows)


class SnapshotTests(SynchronousTestCase):
    def make(self) -> tuple[SQLiteDatabase, Snapshots]:
        database = SQLiteDatabase(":memory:", None)
        database.prepare(migrate, "room_api", steps_of("dendrite_tw.room_api"))
        return database, Snapshots(CacheBudget(1 << 24), NoEchoes())

    @settings(max_examples=40, deadline=None, derandomize=True)
    @given(st.lists(st.tuples(st.integers(1, 12), st.integers(0, 50)), max_size=150), st.integers(0, 150))
    def test_every_state_is_read_back(self, changes: list[tuple[int, int]], reload_at: int) -> None:
        database, store_of = self.make()
        chain, state = NEW_CHAIN, Map()
        history: dict[int, dict[int, int]] = {}
        for number, (slot, event) in enumerate(changes, start=1):
            if number == reload_at:
                chain, state = database.prepare(Snapshots(CacheBudget(1 << 20), NoEchoes()).chain, chain.snapshot_nid)
            state = state.set(slot, event) if event else state.delete(slot) if slot in state else state
            chain, link = advance(chain, {slot: event}, state, number)
            store(database, [link])
            history[number] = dict(state)
        for number, expected in history.items():
            self.assertEqual(database.prepare(store_of.state, number), expected)
            self.assertEqual(database.prepare(store_of.look_up, number, range(1, 13)), expected)
            self.assertLessEqual(len(database.prepare(store_of.links, number)), LEVELS + 1)
        database.close()

    def test_a_large_room_costs_few_changes_a_step(self) -> None:
        chain: Chain = NEW_CHAIN
        state: StateMap = Map()
        total = 0
        for number in range(1, 5001):
            state = state.set(number, number)
            chain, link = advance(chain, {number: number}, state, number)
            total += len(link.changes)
        self.assertLess(total / 5000, 14)

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(st.lists(st.dictionaries(st.integers(1, 9), st.integers(1, 30)), max_size=40))
    def test_states_of_any_kind_follow_each_other_on_a_tape(self, states: list[dict[int, int]]) -> None:
        database, store_of = self.make()
        tape, stored = NEW_TAPE, {0: dict[int, int]()}
        for number, wanted in enumerate(states, start=1):
            state = overlaid(tape.state, wanted)
            self.assertEqual(dict(state), wanted)
            changes = difference(tape.state, state)
            self.assertEqual(changes, difference(tape.state, Map(wanted)))
            tape, link = tape.store(state, number)
            self.assertEqual(link is None, not changes)
            if link is not None:
                store(database, [link])
            stored[tape.chain.snapshot_nid] = wanted
        for number, wanted in stored.items():
            self.assertEqual(database.prepare(store_of.state, number), wanted)
        database.close()

    def test_an_unknown_snapshot_is_an_error(self) -> None:
        database, store_of = self.make()
        self.addCleanup(database.close)
        with self.assertRaises(LookupError):
            database.prepare(store_of.state, 7)

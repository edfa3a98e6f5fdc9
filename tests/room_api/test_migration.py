"""Rooms of before other servers took part keep what they knew, in the columns that tell it now."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.database.migrate import migrate, steps_of
from dendrite_tw.database.statements import Transaction
from tests.harness import Memory


async def run(txn: Transaction, *statements: str) -> None:
    for sql in statements:
        await txn.execute(sql, ())


async def fetch(txn: Transaction, sql: str) -> list[Any]:
    return [tuple(row) for row in await txn.fetch(sql, ())]


class FederationMigrationTests(SynchronousTestCase):
    def test_states_and_memberships_find_their_places(self) -> None:
        database = Memory().database()
        self.addCleanup(database.close)
        steps = steps_of("dendrite_tw.room_api")
        database.prepare(migrate, "room_api", [step for step in steps if step.number <= 3])

        def event(nid: int, room: int, position: int, snapshot: int, status: int = 0) -> str:
            return (
                "INSERT INTO events (event_nid, event_id, room_nid, type_nid, sender_nid, depth, position, "
                "origin_server_ts, snapshot_nid, status, pdu) VALUES "
                f"({nid}, '${nid}', {room}, 1, 1, {nid}, {position}, 0, {snapshot}, {status}, '')"
            )

        database.prepare(
            run,
            "INSERT INTO rooms (room_id, version, depth, extremities, snapshot_nid) VALUES ('!a', '10', 3, '[]', 12)",
            "INSERT INTO rooms (room_id, version, depth, extremities, snapshot_nid) VALUES ('!b', '10', 3, '[]', 20)",
            event(1, 1, 101, 0),
            event(2, 1, 102, 10),
            event(3, 2, 103, 19),
            event(4, 1, 104, 11),
            "INSERT INTO memberships (user_nid, room_nid, membership, event_nid, local, forgotten) "
            "VALUES (7, 1, 'join', 2, 1, 0)",
        )
        database.prepare(migrate, "room_api", steps)
        found = database.prepare(fetch, "SELECT event_nid, current_nid, gap FROM events ORDER BY event_nid")
        self.assertEqual(found, [(1, 10, 0), (2, 11, 0), (3, 20, 0), (4, 12, 0)])
        self.assertEqual(database.prepare(fetch, "SELECT user_nid, position FROM memberships"), [(7, 102)])
        rooms = database.prepare(fetch, "SELECT tape_nid, standing FROM rooms ORDER BY room_nid")
        self.assertEqual(rooms, [(12, 0), (20, 0)])

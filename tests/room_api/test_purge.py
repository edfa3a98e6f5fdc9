"""Rooms emptied and deleted: for everybody at once, and on disk bit by bit."""

from __future__ import annotations

from typing import Any

from dendrite_tw.database.statements import Transaction, many
from dendrite_tw.room_api import purge
from dendrite_tw.room_api.api import NewEvent
from dendrite_tw.room_api.tables.purging import delete_some
from tests.room_api.story import ALICE, BOB, CAROL, RoomStory

TABLES = ["events", "state_snapshots", "memberships", "relations", "redactions", "aliases", "published", "open_rooms"]


async def rows_of(txn: Transaction) -> dict[str, int]:
    """How many rows each table has."""
    return {table: (await txn.fetch(f"SELECT COUNT(*) FROM {table}", ()))[0][0] for table in [*TABLES, "rooms"]}


@many(str, "SELECT kind FROM duties")
def duties(txn: Transaction) -> None: ...


class PurgeTests(RoomStory):
    def furnished(self) -> str:
        room_id = self.create(preset="public_chat", room_alias_name="den", visibility="public")
        self.member(room_id, BOB, "join")
        said = [self.say(room_id, ALICE, str(number)) for number in range(20)]
        relation = {"rel_type": "m.reference", "event_id": said[0]}
        self.say(room_id, BOB, "x")
        content = {"m.relates_to": relation}
        self.do(self.rooms.send(NewEvent(room_id=room_id, sender=BOB, type="m.room.message", content=content)))
        redaction = NewEvent(room_id=room_id, sender=ALICE, type="m.room.redaction", content={}, redacts=said[1])
        self.do(self.rooms.send(redaction))
        return room_id

    def test_nothing_is_left(self) -> None:
        kept = self.create(name="kept")
        before = self.database.prepare(rows_of)
        self.patch(purge, "ROWS_AT_ONCE", 3)
        room_id = self.furnished()
        self.do(self.rooms.purge_room(room_id))
        self.assertEqual(self.database.prepare(rows_of), before)
        self.assertEqual(self.database.prepare(duties), [])
        self.assertEqual(self.users.forgotten, [room_id])
        self.assertEqual([purged.room_id for purged in self.purged], [room_id])
        self.assertGreater(self.purged[0].position, self.told[-1].event.position)
        self.assertEqual(self.do(self.rooms.position()), self.purged[0].position)
        self.assertEqual(self.content(kept, "m.room.name"), {"name": "kept"})

    def test_nobody_finds_it_any_more(self) -> None:
        room_id = self.furnished()
        said = self.say(room_id, ALICE, "last")
        held = self.do(self.rooms.rooms.find(room_id))
        self.do(self.rooms.purge_room(room_id))
        left = [output.event.state_key for output in self.told if output.event.membership == "leave"]
        self.assertEqual(sorted(str(user) for user in left), [ALICE, BOB])
        self.refused(self.rooms.purge_room(room_id), "M_NOT_FOUND", 404)
        self.refused(self.change(room_id, ALICE, "join"), "M_NOT_FOUND", 404)
        self.refused(self.page(room_id, ALICE), "M_FORBIDDEN", 403)
        self.refused(self.rooms.event(room_id, ALICE, said), "M_NOT_FOUND", 404)
        self.refused(self.rooms.resolve_alias("#den:test"), "M_NOT_FOUND", 404)
        self.refused(self.rooms.writer.submit(held, []), "M_NOT_FOUND", 404)
        self.assertEqual(self.do(self.rooms.memberships(ALICE)), [])
        self.assertEqual(self.do(self.rooms.events([said])), [])
        self.create(room_alias_name="den")

    def test_a_crash_does_not_stop_it(self) -> None:
        self.patch(purge, "ROWS_AT_ONCE", 3)
        room_id = self.furnished()
        write, steps = self.database.write, 0

        def fail_later(function: Any, *args: Any) -> Any:
            nonlocal steps
            steps += function is delete_some
            return write(_broken if function is delete_some and steps > 2 else function, *args)

        self.database.write = fail_later  # type: ignore
        self.do(self.rooms.purge_room(room_id))
        self.assertEqual(self.database.prepare(duties), ["purge"])
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
        self.database.write = write  # type: ignore[method-assign]
        self.do(self.rooms.stop())
        self.rooms = self.component(self.database)
        self.do(self.rooms.start())
        self.assertEqual(self.database.prepare(duties), [])
        self.assertEqual(set(self.database.prepare(rows_of).values()), {0})

    def test_a_duty_that_fails_is_tried_again(self) -> None:
        room_id = self.create()
        calls = []

        async def forget_room(room_id: str) -> int:
            calls.append(room_id)
            if len(calls) == 1:
                raise ValueError("not now")
            return 0

        self.users.forget_room = forget_room  # type: ignore[method-assign]
        self.do(self.rooms.purge_room(room_id))
        self.flushLoggedErrors(ValueError)
        self.assertEqual(self.database.prepare(duties), ["purge"])
        self.memory.clock.advance(61)
        self.assertEqual((calls, self.database.prepare(duties)), ([room_id, room_id], []))

    def test_rooms_and_users_are_evacuated(self) -> None:
        first, second = (self.create(preset="public_chat") for _ in range(2))
        invited = self.create(ALICE, invite=[BOB])
        for room_id in (first, second):
            self.member(room_id, BOB, "join")
        self.member(first, CAROL, "join")
        self.assertEqual(sorted(self.do(self.rooms.evacuate_room(first))), [ALICE, BOB, CAROL])
        self.assertEqual(self.do(self.rooms.evacuate_room(first)), [])
        self.assertEqual(self.do(self.rooms.empty_rooms()), [first])
        self.assertEqual(self.do(self.rooms.evacuate_user(BOB)), [second, invited])
        self.assertEqual({m.membership for m in self.do(self.rooms.memberships(BOB))}, {"leave"})
        self.assertEqual(self.do(self.rooms.evacuate_user("@nobody:test")), [])
        self.refused(self.rooms.evacuate_user("@x:elsewhere"), "M_INVALID_PARAM", 400)
        self.refused(self.rooms.evacuate_room("!none:test"), "M_NOT_FOUND", 404)


async def _broken(txn: Transaction, *args: object) -> int:
    raise ValueError("the disk is on fire")

"""Users act in rooms whose processes come, stop, die and stand still: what was answered is there once, in one line."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Coroutine
from itertools import pairwise
from typing import Any

import msgspec

from dendrite_tw.database.engines import Unavailable
from dendrite_tw.matrix.errors import MatrixError
from dendrite_tw.room_api.api import MembershipChange, NewEvent, NewRoom, OutputRoomEvent
from tests.room_api.shared import SharedCase

SEEDS = (1, 2)
USERS = [f"@user{number}:test" for number in range(4)]
SECONDS = 6
TRIES = 20


class StormTests(SharedCase):
    def test_storms(self) -> None:
        for seed in SEEDS:
            with self.subTest(seed=seed):
                self.setUp()
                self.storm(seed)

    def storm(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.answered: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        for _ in range(2):
            self.join_process()
        self.settle(1)
        options: dict[str, Any] = {"preset": "public_chat"}
        rooms = [
            self.do(self.rooms.create_room(NewRoom(creator=USERS[0], room_version=version, **options)))
            for version in ("10", "12", "11", "12")
        ]
        self.over = False
        acting = [self.begin(self.act(user_id, rooms)) for user_id in USERS]
        until = self.clock.seconds() + SECONDS
        while self.clock.seconds() < until:
            self.something_happens()
            self.settle(self.chance.choice([0.1, 0.3, 1.0]), 0.01)
        self.over = True
        self.settle(10, 0.05)
        for one in acting:
            self.successResultOf(one)
        for room_id in rooms:
            self.check(room_id, seed)
        # What those who were killed had begun comes to nothing.
        self.flushLoggedErrors(Unavailable)

    def join_process(self) -> None:
        process = self.process()
        process.database.delay = lambda: self.chance.choice([0.0, 0.0, 0.01, 0.05])
        process.database.read_delay = lambda: self.chance.choice([0.0] * 9 + [0.02])

    def something_happens(self) -> None:
        living = [process for process in self.processes if not process.dead]
        chosen = self.chance.choice(living)
        match self.chance.randrange(5):
            case 0 if len(living) < 4:
                self.join_process()
            case 1 if len(living) > 1:
                self.begin(chosen.stop())
            case 2 if len(living) > 1:
                chosen.kill()
            case 3:
                # It stands still for a moment too long.
                self.expire(chosen)

    # --- the users ---

    async def act(self, user_id: str, rooms: list[str]) -> None:
        """One thing after the other, each until it is answered."""
        number = 0
        for room_id in rooms:
            await self.surely(lambda room_id=room_id: self.membership(room_id, user_id, "join"))  # type: ignore[misc]
        while not self.over:
            number += 1
            room_id = self.chance.choice(rooms)
            if self.chance.random() < 0.1:
                for action in ("leave", "join"):
                    await self.surely(
                        lambda room_id=room_id, action=action: self.membership(room_id, user_id, action)  # type: ignore[misc]
                    )
                continue
            event = NewEvent(
                room_id=room_id,
                sender=user_id,
                type="m.room.message",
                content={"body": f"{user_id} {number}"},
                device_id="D",
                transaction_id=f"t{number}",
            )
            event_id = await self.surely(lambda event=event: self.rooms.send(event))  # type: ignore[misc]
            self.answered[room_id][user_id].append(event_id)

    def membership(self, room_id: str, user_id: str, action: str) -> Coroutine[Any, Any, str]:
        change = MembershipChange(room_id=room_id, sender=user_id, target=user_id, action=action)
        return self.rooms.change_membership(change)  # type: ignore[no-any-return]

    async def surely(self, call: Any) -> Any:
        """What a client does: try again with the same transaction while it is told to."""
        for _ in range(TRIES):
            try:
                return await call()
            except MatrixError as error:
                if error.status != 503:
                    raise
        raise AssertionError("it is not answered")

    # --- what came of it ---

    def check(self, room_id: str, seed: int) -> None:
        rows = self.ask("SELECT id, payload FROM room_api_outbox ORDER BY id")
        self.assertEqual([row[0] for row in rows], list(range(1, len(rows) + 1)))
        told = [msgspec.msgpack.decode(bytes(row[1]), type=OutputRoomEvent) for row in rows]
        ids = [one.event.event_id for one in told if one.event.room_id == room_id]
        self.assertEqual(len(ids), len(set(ids)))
        pdus = self.do(self.rooms.pdus(ids))
        for before, after in pairwise(ids):
            self.assertEqual(
                msgspec.json.decode(pdus[after])["prev_events"], [before], f"seed {seed}: {room_id} forked"
            )
        for user_id, answered in self.answered[room_id].items():
            self.assertEqual([event_id for event_id in ids if event_id in set(answered)], answered)
            said = [one for one in told if one.event.sender == user_id and one.event.type == "m.room.message"]
            ours = [one.event.event_id for one in said if one.event.room_id == room_id]
            self.assertEqual(ours, answered, "something was sent twice, or never answered")
        nids = [
            row[0]
            for row in self.ask(
                "SELECT e.event_nid FROM events e JOIN rooms r ON r.room_nid = e.room_nid "
                f"WHERE r.room_id = '{room_id}' ORDER BY e.position"
            )
        ]
        self.assertEqual(nids, sorted(nids))
        joined = {
            state.state_key
            for state in self.do(self.rooms.current_state(room_id, USERS[0]))
            if state.type == "m.room.member" and state.membership == "join"
        }
        self.assertEqual(set(self.do(self.rooms.joined_users(room_id))), joined)

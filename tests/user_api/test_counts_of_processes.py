"""Unread counts of processes that come, go and are killed, held against those of one that does nothing of the kind."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import msgspec

from dendrite_tw.room_api.api import OUTPUT_ROOM_EVENT, RoomEvent
from dendrite_tw.user_api.api import UNREAD
from tests.user_api.fakes import FakeMessage, room_event
from tests.user_api.harness import Users
from tests.user_api.several import ALICE, BOB, CAROL, ROOM, SeveralCase

OTHER = "!other:test"
USERS = (ALICE, BOB, CAROL)
STEPS = 70
SEEDS = 25


class Reference:
    """One process that has the database to itself and hears each event at once."""

    def __init__(self, case: SeveralCase) -> None:
        self._case = case
        self.users = Users()
        case.wait(self.users.component.start())
        self._previous = 0

    def tell(self, event: RoomEvent, **more: Any) -> None:
        output = msgspec.structs.replace(self.users.rooms.output(event), **more)
        headers = {"Outbox-Id": str(event.position), "Outbox-Previous": str(self._previous)}
        message = FakeMessage(msgspec.msgpack.encode(output), event.position, headers)
        self._previous = event.position
        done = self._case.begin(self.users.queue.consumers[OUTPUT_ROOM_EVENT]([message]))
        self.users.clock.advance(1)
        self._case.successResultOf(done)


class CountsTests(SeveralCase):
    def setUp(self) -> None:
        super().setUp()
        self.one = Reference(self)
        self.sent: list[RoomEvent] = []
        for room_id in (ROOM, OTHER):
            for user_id in USERS:
                self.both(self.member(user_id, room_id))

    def member(self, user_id: str, room_id: str) -> RoomEvent:
        self.position += 1
        return room_event(room_id, self.position, user_id, "m.room.member", {"membership": "join"}, user_id)

    def both(self, event: RoomEvent, **more: Any) -> None:
        self.tell(event, **more)
        self.one.tell(event, **more)

    # --- what may happen ---

    def say(self, chance: random.Random) -> None:
        content: dict[str, Any] = {"msgtype": "m.text", "body": chance.choice(["hello", "time for tea"])}
        if chance.random() < 0.3:
            content["m.mentions"] = {"user_ids": chance.sample(USERS, 2)}
        if self.sent and chance.random() < 0.3:
            root = self.sent[0]
            content["m.relates_to"] = {"rel_type": "m.thread", "event_id": root.event_id}
            room_id = root.room_id
        else:
            room_id = chance.choice([ROOM, ROOM, OTHER])
        self.position += 1
        event = room_event(room_id, self.position, chance.choice(USERS), content=content)
        self.sent.append(event)
        self.both(event)

    def redact(self, chance: random.Random) -> None:
        if self.sent:
            gone = chance.choice(self.sent)
            self.position += 1
            content = {"redacts": gone.event_id}
            event = room_event(gone.room_id, self.position, gone.sender, "m.room.redaction", content)
            self.both(event, redacts=gone.event_id)

    def read(self, chance: random.Random) -> None:
        if self.sent:
            event, user_id = chance.choice(self.sent), chance.choice(USERS)
            for users in (chance.choice(self.all).users, self.one.users.component):
                self.wait(users.read_up_to(user_id, event.room_id, {"m.read": event.event_id}, None))

    def change_rules(self, chance: random.Random) -> None:
        user_id = chance.choice(USERS)
        enabled = chance.random() < 0.5
        change: Callable[[Any], Any] = chance.choice(
            [
                lambda users: users.put_push_rule(user_id, "room", ROOM, {"actions": []}, None, None),
                lambda users: users.delete_push_rule(user_id, "room", ROOM),
                lambda users: users.put_push_rule(
                    user_id, "content", "tea", {"actions": ["notify", {"set_tweak": "highlight"}], "pattern": "tea"},
                    None, None,
                ),
                lambda users: users.set_push_rule_enabled(user_id, "underride", ".m.rule.message", enabled),
                lambda users: users.set_push_rule_enabled(user_id, "override", ".m.rule.master", enabled),
            ]
        )  # fmt: skip
        outcomes = []
        for users in (chance.choice(self.all).users, self.one.users.component):
            outcome: list[Any] = []
            self.begin(change(users)).addErrback(lambda failure: failure.value.errcode).addCallback(outcome.append)
            outcomes.append(outcome)
        self.assertEqual(outcomes[0], outcomes[1])

    def store(self, chance: random.Random) -> None:
        self.redeliver(chance.choice([None, 1, 3]))

    def give_on(self, chance: random.Random) -> None:
        self.hand(UNREAD, chance.choice(self.all))

    def die(self, chance: random.Random) -> None:
        if len(self.all) > 1:
            self.kill(chance.choice(self.all))
        if len(self.all) < 3:
            self.join()

    # --- and what must be true ---

    def check(self, what: str) -> None:
        for room_id in (ROOM, OTHER):
            for user_id in USERS:
                asked = self.begin(self.holder.users.unread_of({user_id: [room_id]}, self.position))
                if not asked.called:
                    self.redeliver()
                reference = self.wait(self.one.users.component.unread(user_id, [room_id], self.position))
                self.assertEqual(reference, self.successResultOf(asked)[user_id], f"{what}: {user_id} in {room_id}")

    def test_they_are_the_same(self) -> None:
        steps = [self.say] * 8 + [self.read] * 3 + [self.change_rules] * 2
        steps += [self.redact, self.store, self.store, self.give_on, self.die]
        for seed in range(SEEDS):
            if seed:
                self.doCleanups()
                self.setUp()
            chance = random.Random(seed)
            for number in range(STEPS):
                step = chance.choice(steps)
                step(chance)
                if chance.random() < 0.5:
                    self.check(f"seed {seed}, step {number} ({step.__name__})")
            self.check(f"seed {seed}, at the end")

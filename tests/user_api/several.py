"""Users and their keys in several processes of one deployment, wired as in earnest, and a stream of room events."""

from __future__ import annotations

from typing import Any

import msgspec

from dendrite_tw.room_api.api import OUTPUT_ROOM_EVENT, RoomEvent
from dendrite_tw.user_api.api import UNREAD, KeyAPI, Unread
from dendrite_tw.user_api.component import UserComponent
from dendrite_tw.user_api.keys_component import KeyComponent
from tests.user_api.fakes import FakeMessage, FakeQueue, room_event
from tests.user_api.harness import Users, UsersCase
from tests.user_api.processes import Deployment, EveryProcess, Process, Turns

ROOM = "!room:test"
ALICE, BOB, CAROL = "@alice:test", "@bob:test", "@carol:test"


class One:
    """A process with what runs in it."""

    def __init__(self, process: Process, users: UserComponent, keys: KeyComponent, queue: FakeQueue) -> None:
        self.process = process
        self.users = users
        self.keys = keys
        self.queue = queue


class Parts(Users):
    """Makes what the processes of a deployment are made of."""

    def __init__(self, deployment: Deployment, **settings: Any) -> None:
        self.deployment = deployment
        super().__init__(**settings)

    def opened(self) -> Any:
        return self.deployment.database()

    def made(self) -> None:
        """Nothing before there is a process."""

    def one(self, keys: Any) -> One:
        process, queue = self.deployment.process(), FakeQueue()
        users = self.make(process.database, echoes=process, leases=process, queue=queue)
        world, outbox = self.memory.world, users.outbox
        made = KeyComponent(
            process.database, outbox, world, "test", self.budget, self.rooms, self.federation, 2,
            echoes=process, leases=process, keys=keys,
        )  # fmt: skip
        users.on_device_deleted.append(made.device_deleted)
        users.on_device_changed.append(made.device_changed)
        users.is_device_id_taken.append(made.is_key_of)
        users.on_account_deactivated.append(made.account_deactivated)
        users.on_memberships.append(made.memberships_changed)
        return One(process, users, made, queue)


class SeveralCase(UsersCase):
    """Two processes, ``here`` and ``there``; the first holds all leases."""

    def setUp(self) -> None:
        self.deployment = Deployment()
        self.users: Any = Parts(self.deployment, **self.settings)
        self.clock = self.users.clock
        self.all: list[One] = []
        self.here, self.there = self.join(), self.join()
        self.api = self.here.users
        self.messages: list[FakeMessage] = []
        self.position = 0

    def join(self) -> One:
        """A process more."""
        one = self.users.one(EveryProcess(lambda: self.every_keys))
        self.all.append(one)
        self.wait(one.users.start())
        self.wait(one.keys.start())
        return one  # type: ignore[no-any-return]

    @property
    def every_keys(self) -> Turns:
        """`KeyAPI` as any process of the deployment calls it."""
        return Turns(KeyAPI, [one.keys for one in self.all], [one.process for one in self.all])

    def kill(self, one: One) -> None:
        """A process is gone at once, and its leases go to another."""
        self.all.remove(one)
        one.queue.consumers.clear()
        one.queue.listeners.clear()
        self.wait(self.deployment.kill(one.process))
        self.redeliver()

    def hand(self, lease: str, to: One) -> None:
        self.wait(self.deployment.hand(lease, to.process))
        if lease == UNREAD:
            self.redeliver()

    # --- events ---

    @property
    def holder(self) -> One:
        """Who counts what is unread."""
        return next(one for one in self.all if self.deployment.holders[UNREAD] is one.process)

    def tell(self, event: RoomEvent, **more: Any) -> RoomEvent:
        """An event arrives at whoever counts."""
        output = msgspec.structs.replace(self.users.rooms.output(event), **more)
        previous = self.messages[-1].stream_seq if self.messages else 0
        headers = {"Outbox-Id": str(event.position), "Outbox-Previous": str(previous)}
        message = FakeMessage(msgspec.msgpack.encode(output), event.position, headers)
        self.messages.append(message)
        for listener in self.holder.queue.listeners.get(OUTPUT_ROOM_EVENT, []):
            listener(message)
        return event

    def says(self, sender: str, text: str = "hello", room_id: str = ROOM, **content: Any) -> RoomEvent:
        self.position += 1
        content = {"msgtype": "m.text", "body": text, **content}
        return self.tell(room_event(room_id, self.position, sender, content=content))

    def joins(self, user_id: str, room_id: str = ROOM) -> RoomEvent:
        self.position += 1
        content = {"membership": "join"}
        return self.tell(room_event(room_id, self.position, user_id, "m.room.member", content, user_id))

    def redeliver(self, count: int | None = None) -> None:
        """The durable consumer brings what is not stored yet, or the first of it."""
        stored = self.wait(self.holder.users.unread_store.stored_position())
        waiting = [message for message in self.messages if message.stream_seq > stored][:count]
        if waiting:
            done = self.begin(self.holder.queue.consumers[OUTPUT_ROOM_EVENT](waiting))
            self.clock.advance(1)
            self.successResultOf(done)

    def unread(self, user_id: str, room_id: str = ROOM) -> Unread:
        return self.wait(self.holder.users.unread(user_id, [room_id], self.position))[room_id]  # type: ignore[no-any-return]

    def counts(self, user_id: str, room_id: str = ROOM) -> tuple[int, int]:
        found = self.unread(user_id, room_id)
        return found.notification_count, found.highlight_count

    def reads(self, one: One, user_id: str, event: RoomEvent) -> None:
        self.wait(one.users.read_up_to(user_id, event.room_id, {"m.read": event.event_id}, None))

"""A room component in memory, and users to act in it."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.cache import CacheBudget
from dendrite_tw.database.engines import SQLiteDatabase
from dendrite_tw.database.outbox import OutboxRow
from dendrite_tw.matrix.errors import MatrixError
from dendrite_tw.matrix.keys import signing_key
from dendrite_tw.room_api.api import PURGE_ROOM, MembershipChange, NewEvent, NewRoom, OutputRoomEvent, RoomPurged
from dendrite_tw.room_api.component import RoomComponent
from dendrite_tw.user_api.api import Account
from tests.fakes import FakeFederation
from tests.harness import Memory

ALICE, BOB, CAROL = "@alice:test", "@bob:test", "@carol:test"


class PlainUsers:
    """The user component as far as rooms ask it."""

    def __init__(self) -> None:
        self.data: dict[tuple[str, str, str], bytes] = {}
        self.profiles: dict[str, dict[str, str]] = {}
        self.ignored: frozenset[str] = frozenset()
        self.forgotten: list[str] = []
        self.accounts: dict[str, int] = {}
        self.copied_rules: list[tuple[str, str, str]] = []

    async def account_data(self, user_id: str, room_id: str, type: str) -> bytes | None:
        return self.data.get((user_id, room_id, type))

    async def profile(self, user_id: str) -> dict[str, str]:
        return self.profiles.get(user_id, {})

    async def account(self, user_id: str) -> Account | None:
        if user_id not in self.accounts:
            return None
        return Account(user_id=user_id, account_type=self.accounts[user_id], created_ts=0)

    async def put_account_data(self, user_id: str, room_id: str, type: str, content: bytes) -> None:
        self.data[user_id, room_id, type] = content

    async def put_tag(self, user_id: str, room_id: str, tag: str, content: dict[str, Any] | None) -> None:
        tags = msgspec.json.decode(self.data.get((user_id, room_id, "m.tag"), b'{"tags":{}}'))
        tags["tags"][tag] = content
        self.data[user_id, room_id, "m.tag"] = msgspec.json.encode(tags)

    async def forget_room(self, room_id: str) -> int:
        self.forgotten.append(room_id)
        return 0

    async def copy_push_rules_to_room(self, user_id: str, old_room: str, new_room: str) -> None:
        self.copied_rules.append((user_id, old_room, new_room))

    async def ignored_users(self, user_id: str) -> frozenset[str]:
        return self.ignored


class RoomStory(SynchronousTestCase):
    """A test that acts out what users do in rooms; `told` is what the component told others."""

    def setUp(self) -> None:
        self.memory = Memory()
        self.others = FakeFederation()
        self.users = PlainUsers()
        self.told: list[OutputRoomEvent] = []
        self.purged: list[RoomPurged] = []
        self.database = self.memory.database()
        self.addCleanup(self.database.close)
        self.rooms = self.component(self.database)

    def component(self, database: SQLiteDatabase) -> RoomComponent:
        rooms: Any = RoomComponent(
            database=database,
            users=self.users,  # type: ignore[arg-type]
            federation=self.others,
            world=self.memory.world,
            budget=CacheBudget(1 << 24),
            server_name="test",
            key=signing_key("ed25519:1", b"k" * 32),
            default_room_version="12",
        )
        rooms.prepare()
        rooms.outbox.on_commit = self._tell
        return rooms  # type: ignore[no-any-return]

    def _tell(self, rows: list[OutboxRow]) -> None:
        for row in rows:
            if msgspec.json.decode(row.headers).get("output_room_event_type") == PURGE_ROOM:
                self.purged.append(msgspec.msgpack.decode(row.payload, type=RoomPurged))
            else:
                self.told.append(msgspec.msgpack.decode(row.payload, type=OutputRoomEvent))

    def content(self, room_id: str, type: str, state_key: str = "", user: str = ALICE) -> Any:
        """The content of a current state event."""
        return msgspec.json.decode(self.do(self.rooms.state_event(room_id, user, type, state_key)).client)["content"]

    def do(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.successResultOf(Deferred.fromCoroutine(coroutine))

    def refused(self, coroutine: Coroutine[Any, Any, Any], errcode: str, status: int | None = None) -> MatrixError:
        error: MatrixError = self.failureResultOf(Deferred.fromCoroutine(coroutine), MatrixError).value
        self.assertEqual(error.errcode, errcode, error)
        if status is not None:
            self.assertEqual(error.status, status, error)
        return error

    def create(self, creator: str = ALICE, **options: Any) -> str:
        return self.do(self.rooms.create_room(NewRoom(creator=creator, **options)))  # type: ignore[no-any-return]

    def say(self, room_id: str, sender: str, body: str, **options: Any) -> str:
        content = {"msgtype": "m.text", "body": body}
        return self.do(  # type: ignore[no-any-return]
            self.rooms.send(NewEvent(room_id=room_id, sender=sender, type="m.room.message", content=content, **options))
        )

    def set_state(self, room_id: str, sender: str, type: str, content: dict[str, Any], state_key: str = "") -> str:
        return self.do(  # type: ignore[no-any-return]
            self.rooms.send(NewEvent(room_id=room_id, sender=sender, type=type, content=content, state_key=state_key))
        )

    def change(self, room_id: str, sender: str, action: str, target: str | None = None, **options: Any) -> Any:
        return self.rooms.change_membership(
            MembershipChange(room_id=room_id, sender=sender, target=target or sender, action=action, **options)
        )

    def member(self, room_id: str, sender: str, action: str, target: str | None = None, **options: Any) -> None:
        self.do(self.change(room_id, sender, action, target, **options))

    def bodies(self, room_id: str, user: str, direction: str = "b", **options: Any) -> list[str]:
        page = self.do(self.page(room_id, user, direction, **options))
        texts = [msgspec.json.decode(event.client)["content"] for event in page.events]
        return [text["body"] for text in texts if "body" in text]

    def page(self, room_id: str, user: str, direction: str = "b", **options: Any) -> Any:
        given: dict[str, Any] = {
            "from_token": None,
            "to_token": None,
            "limit": 1000,
            "filter": None,
            "lazy_load_members": False,
        }
        return self.rooms.messages(room_id, user, direction, **{**given, **options})

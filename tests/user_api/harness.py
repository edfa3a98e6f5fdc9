"""The user component in memory, with rooms and a queue that stand in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.cache import CacheBudget
from dendrite_tw.database.outbox import Outbox, OutboxRow
from dendrite_tw.user_api.api import Login, NewAccount, NewLogin
from dendrite_tw.user_api.appservices import AppService, AppServices
from dendrite_tw.user_api.component import UserComponent
from dendrite_tw.user_api.settings import UserSettings
from tests.harness import Memory
from tests.user_api.fakes import FakeFederation, FakeQueue, FakeRooms


class Users:
    """A running user component, and what it told."""

    def __init__(self, appservices: Sequence[AppService] = (), cache_bytes: int = 1 << 20, **settings: Any) -> None:
        self.budget = CacheBudget(cache_bytes)
        self.memory = Memory()
        self.clock = self.memory.clock
        self.database = self.opened()
        self.told: list[OutboxRow] = []
        self.queue = FakeQueue()
        self.rooms: Any = FakeRooms()
        self.federation = FakeFederation()
        self.settings = UserSettings(server_name="test", bcrypt_cost=4, **settings)
        self.appservices = AppServices(appservices)
        self.component = self.made()

    def opened(self) -> Any:
        """An empty database."""
        return self.memory.database()

    def made(self) -> Any:
        """A component on the database as it is, as after a start."""
        return self.make(self.database)

    def make(self, database: Any, **more: Any) -> UserComponent:
        self.outbox = Outbox("user_api", database)
        self.outbox.on_commit = self.told.extend
        component = UserComponent(
            self.settings,
            database,
            self.outbox,
            more.pop("queue", self.queue),
            self.memory.world,
            self.rooms,
            self.budget,
            self.federation,
            self.appservices,
            **more,
        )
        component.prepare()
        return component

    def streams(self) -> list[str]:
        """The names of the streams that were told, in order."""
        return [row.stream for row in self.told]


class UsersCase(SynchronousTestCase):
    """A test with a component of its own."""

    settings: dict[str, Any] = {}  # noqa: RUF012

    def setUp(self) -> None:
        self.users = self.make_users()
        self.api = self.users.component
        self.wait(self.api.start())

    def make_users(self) -> Users:
        return Users(**self.settings)

    def restart(self) -> None:
        """Start anew on what is on disk, as after a kill."""
        self.api = self.users.component = self.users.made()
        self.wait(self.api.start())

    def wait(self, coroutine: Any) -> Any:
        """The result of something that is done at once."""
        return self.successResultOf(deferred(coroutine))

    def begin(self, coroutine: Any) -> Any:
        """Something that may take its time."""
        return deferred(coroutine)

    def refused(self, coroutine: Any) -> Any:
        """The `MatrixError` of something that is refused at once."""
        from dendrite_tw.matrix.errors import MatrixError

        return self.failureResultOf(deferred(coroutine), MatrixError).value

    def make(self, localpart: str, password: str = "correct horse", **login: Any) -> Login:
        """An account with a session."""
        account = NewAccount(localpart=localpart, password=password)
        _, made = self.wait(self.api.register(account, NewLogin(**login)))
        assert made is not None
        return made  # type: ignore[no-any-return]


def deferred(coroutine: Any) -> Any:
    from twisted.internet.defer import Deferred

    return Deferred.fromCoroutine(coroutine)

"""Users, and the keys of users and their devices, over one database and one outbox."""

from __future__ import annotations

from functools import partial

from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..database.outbox import Outbox
from ..figures import show_resyncs
from ..settings import user_settings
from ..user_api.api import KeyAPI, UserAPI
from ..user_api.component import UserComponent
from ..user_api.keys_component import KeyComponent
from ..web.routes import Route
from .basis import Basis, Living

log = Logger()

PRUNE_SECONDS = 3600

CONSUMER = "UserAPIRoomServerConsumer"


class UserPart:
    """Answers `UserAPI` and `KeyAPI`."""

    def __init__(self, basis: Basis) -> None:
        database = basis.database("user_api")
        outbox = Outbox("user_api", database)
        self.users = users_of(basis, outbox)
        self.keys = keys_of(basis, outbox)
        introduce(self.users, self.keys)
        basis.ways.here(UserAPI, self.users)
        basis.ways.here(KeyAPI, self.keys)
        show_resyncs(basis.metrics, self.keys.resyncs)
        basis.relays.add(outbox, basis.leases("user_api"))
        self.users.unread_store.on_stored = partial(basis.relays.consumed, CONSUMER)
        self.life: list[Living] = [self.users]
        self.later: list[Living] = [self.keys, KeyPruning(basis, self.keys)]
        self.prepare = self.users.prepare

    def rows(self) -> list[Route]:
        """What is served of users is in the client API."""
        return []


def users_of(basis: Basis, outbox: Outbox) -> UserComponent:
    return UserComponent(
        user_settings(basis.config),
        basis.database("user_api"),
        outbox,
        basis.client,
        basis.world,
        basis.rooms,
        basis.budget,
        basis.others,
        echoes=basis.ways.echoes,
        leases=basis.leases("user_api"),
    )


def keys_of(basis: Basis, outbox: Outbox) -> KeyComponent:
    return KeyComponent(
        basis.database("user_api"),
        outbox,
        basis.world,
        basis.server_name,
        basis.budget,
        basis.rooms,
        basis.others,
        basis.config.user_api.worker_count,
        echoes=basis.ways.echoes,
        leases=basis.leases("user_api"),
        keys=basis.keys,
    )


def introduce(users: UserComponent, keys: KeyComponent) -> None:
    """What happens to devices, accounts and memberships happens to their keys, in the same transaction."""
    users.on_device_deleted.append(keys.device_deleted)
    users.on_device_changed.append(keys.device_changed)
    users.is_device_id_taken.append(keys.is_key_of)
    users.on_account_deactivated.append(keys.account_deactivated)
    users.on_memberships.append(keys.memberships_changed)


class KeyPruning:
    """Deletes what is kept of keys for a while only, once an hour."""

    def __init__(self, basis: Basis, keys: KeyComponent) -> None:
        self._loop = LoopingCall(lambda: Deferred.fromCoroutine(keys.prune()).addErrback(unpruned))
        self._loop.clock = basis.world.time

    def start(self) -> None:
        self._loop.start(PRUNE_SECONDS, now=False)

    def stop(self) -> None:
        if self._loop.running:
            self._loop.stop()


def unpruned(failure: Failure) -> None:
    log.failure("what is kept for a while only could not be deleted", failure=failure)

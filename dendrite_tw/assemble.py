"""All wiring on one page: every component made, then introduced to the others.

`monolith` puts all components into one process, with the queue that is built in or over a NATS server.
Components call each other through handles, which exist before they do; what a
component tells the others leaves its outbox through a relay to the queue.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.resource import Resource

from .cache import CacheBudget
from .client_api.keys import KeysRoutes, RequireUIA
from .client_api.last_seen import LastSeen
from .client_api.reports import ReportRoutes
from .client_api.room_admin import RoomAdminRoutes
from .client_api.room_keys import RoomKeysRoutes
from .client_api.rooms import RoomRoutes
from .client_api.routes import account_routes
from .client_api.spaces import SpaceRoutes
from .client_api.to_device import ToDeviceRoutes
from .client_api.uia import PASSWORD, InteractiveAuth
from .client_api.user_directory import UserDirectoryRoutes
from .config import Config
from .config.key_files import signing_key
from .database.outbox import Outbox
from .databases import Databases, ended
from .federation_api.api import DURABLES as FEDERATION_DURABLES
from .federation_api.api import FederationAPI, NoFederation
from .figures import show_resyncs, show_syncs
from .jetstream.outbox import OutboxRelay
from .links.handle import Direct, handle
from .media_api.api import Method, ThumbnailSize
from .media_api.component import MediaComponent
from .media_api.remote import RemoteFiles
from .metrics import Metrics
from .monitor import MonitorRoutes
from .queues import queue_of, without_consumers
from .room_api.api import RoomAPI
from .room_api.component import RoomComponent
from .settings import (
    captcha,
    client_settings,
    federates,
    limiter,
    metrics_resource,
    user_settings,
)
from .sync_api.component import SyncComponent
from .user_api.api import Caller, KeyAPI, UserAPI
from .user_api.component import UserComponent
from .user_api.keys_component import KeyComponent
from .web.auth import TokenAuthenticator
from .web.resource import Exchange
from .web.routes import client_paths
from .web.site import make_root
from .world import World

if TYPE_CHECKING:
    from .federating import Federating

log = Logger()

PRUNE_SECONDS = 3600
PROBE_SECONDS = 5
REST_SECONDS = 10

DURABLES = {"OutputRoomEvent": ["UserAPIRoomServerConsumer"]}
"""The durable consumers of each stream, whose positions hold back the pruning of outboxes; without federation."""


class Component(Protocol):
    """What every component can be told."""

    def prepare(self) -> None: ...

    async def start(self) -> None: ...

    def stop(self) -> Any:
        """May take its time: a coroutine or a `Deferred`."""


class Server(MultiService):
    """The whole of a homeserver as a service; ``site`` is the root of what it serves."""

    site: Resource

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.parts = parts
        self.site = parts.root
        self.started: Deferred[None] = Deferred()
        """Fires when everything has started."""

    def startService(self) -> None:
        super().startService()
        Deferred.fromCoroutine(self.parts.start()).chainDeferred(self.started)

    def stopService(self) -> Deferred[Any]:
        stopped = maybeDeferred(super().stopService)
        return stopped.addCallback(lambda _: Deferred.fromCoroutine(self.parts.stop()))


class Parts:
    """Everything that a monolith is made of."""

    def __init__(self, config: Config, world: World) -> None:
        server_name = config.global_.server_name
        budget = CacheBudget(config.global_.cache.max_size_estimated)
        metrics = Metrics(budget)
        self.databases = Databases(config, world)
        self.queue = queue_of(config, world, self.databases.lock)
        client = self.queue.client

        to_rooms, to_users, to_keys, to_federation = Direct(), Direct(), Direct(), Direct()
        rooms, users, keys = handle(RoomAPI, to_rooms), handle(UserAPI, to_users), handle(KeyAPI, to_keys)
        self.others = handle(FederationAPI, to_federation)
        """Asks other servers, for whoever has a question; without federation nobody is to be reached."""

        user_database = self.databases.of("user_api")
        self.users = UserComponent(
            user_settings(config),
            user_database,
            Outbox("user_api", user_database),
            client,
            world,
            rooms,
            budget,
            self.others,
        )
        self.rooms = RoomComponent(
            database=self.databases.of("room_server"),
            users=users,
            federation=self.others,
            world=world,
            budget=budget,
            server_name=server_name,
            key=signing_key(config),
            default_room_version=config.room_server.default_room_version,
        )
        self.keys = KeyComponent(
            user_database,
            self.users.outbox,
            world,
            server_name,
            budget,
            rooms,
            self.others,
            config.user_api.worker_count,
        )
        self.users.on_device_deleted.append(self.keys.device_deleted)
        self.users.on_device_changed.append(self.keys.device_changed)
        self.users.is_device_id_taken.append(self.keys.is_key_of)
        self.users.on_account_deactivated.append(self.keys.account_deactivated)
        self.users.on_memberships.append(self.keys.memberships_changed)
        self.sync = SyncComponent(
            rooms,
            users,
            keys,
            client,
            self.databases.of("sync_api"),
            world,
            budget,
            server_name,
            presence_enabled=config.global_.presence.enable_outbound,
        )
        self.media = MediaComponent(
            self.databases.of("media_api"),
            config.media_api.base_path,
            config.media_api.max_file_size_bytes,
            [ThumbnailSize(size.width, size.height, Method(size.method)) for size in config.media_api.thumbnail_sizes],
            config.media_api.dynamic_thumbnails,
            config.media_api.max_thumbnail_generators,
            world,
            server_name,
            RemoteFiles(self.others).fetch if federates(config, world) else None,
            remote_lifetime_ms=int(config.media_api.remote_media_lifetime * 1000),
        )
        to_rooms.connect(self.rooms)
        to_users.connect(self.users)
        to_keys.connect(self.keys)
        self.components: list[Component] = [self.users, self.rooms, self.sync, self.media]
        self.federating: Federating | None = None
        durables = DURABLES
        if federates(config, world):
            from .federating import Federating

            self.federating = Federating(
                config,
                world,
                self.databases.of("federation_api"),
                metrics,
                rooms,
                users,
                keys,
                client,
                self._told_others,
            )
            self.components += self.federating.parts
            durables = joined(DURABLES, FEDERATION_DURABLES)
        else:
            without_consumers(client, FEDERATION_DURABLES)
        to_federation.connect(self.federating.component if self.federating else NoFederation())
        self.relays = [relay(outbox, client, world, durables) for outbox in (self.rooms.outbox, self.users.outbox)]
        self._prune_keys = LoopingCall(lambda: Deferred.fromCoroutine(self.keys.prune()).addErrback(unpruned))
        self._prune_keys.clock = world.time
        self._probe = LoopingCall(lambda: Deferred.fromCoroutine(self.databases.probe()))
        self._probe.clock = world.time
        self._rest = LoopingCall(self.databases.rest)
        self._rest.clock = world.time
        self._sweep = LoopingCall(budget.sweep)
        self._sweep.clock = world.time
        self._sweep_seconds = max(60.0, config.global_.cache.max_age)
        for component in self.components:
            component.prepare()

        settings = client_settings(config)
        auth = InteractiveAuth(users, world, settings, captcha(settings, world))
        sections: list[Any] = [
            RoomRoutes(rooms, users, self.others, world.clock, server_name),
            RoomAdminRoutes(rooms),
            SpaceRoutes(rooms),
            UserDirectoryRoutes(rooms),
            ReportRoutes(rooms),
            KeysRoutes(keys, password_again(auth)),
            RoomKeysRoutes(keys),
            ToDeviceRoutes(keys),
            self.sync,
            self.media,
            MonitorRoutes([lambda: self.queue.degraded, lambda: self.databases.degraded]),
        ]
        sections += self.federating.parts if self.federating else ()
        self.last_seen = LastSeen(users, world)
        show_syncs(metrics, self.sync)
        show_resyncs(metrics, self.keys.resyncs)
        self.routes = client_paths(row for section in sections for row in section.routes())
        self.routes += account_routes(settings, users, rooms, client, world, auth)
        self.root = make_root(
            self.routes,
            TokenAuthenticator(users, self.last_seen),
            limiter(config, world),
            metrics.observe,
            metrics_resource(config, metrics),
            config.sync_api.real_ip_header,
            self.federating.component.servers if self.federating else None,
        )

    async def start(self) -> None:
        """The queue first, then who consumes from it, then what is told to it."""
        self.databases.begin()
        await self.queue.start()
        for component in self.components:
            await component.start()
        self.users.unread_store.on_stored = self._users_reached
        self._users_reached(await self.users.unread_store.stored_position())
        for relay in self.relays:
            await relay.start()
        await self.keys.start()
        self.last_seen.start()
        self._prune_keys.start(PRUNE_SECONDS, now=False)
        self._probe.start(PROBE_SECONDS, now=False)
        self._rest.start(REST_SECONDS, now=False)
        self._sweep.start(self._sweep_seconds, now=False)

    def _users_reached(self, position: int) -> None:
        """The user component has stored what follows from room events up to this position."""
        self.relays[0].consumed("UserAPIRoomServerConsumer", position)

    def _told_others(self, consumer: str, position: int) -> None:
        """The federation has stored what other servers are to be told of a stream up to this position."""
        of_rooms = consumer in FEDERATION_DURABLES["OutputRoomEvent"]
        self.relays[0 if of_rooms else 1].consumed(consumer, position)

    async def stop(self) -> None:
        """In the reverse order; what was accepted is on disk when this returns."""
        for loop in (self._prune_keys, self._sweep, self._rest, self._probe):
            if loop.running:
                loop.stop()
        await self.last_seen.stop()
        await self.keys.stop()
        for relay in self.relays:
            relay.stop()
        for component in reversed(self.components):
            await ended(component.stop())
        await self.queue.stop()
        await self.databases.close()


def unpruned(failure: Failure) -> None:
    log.failure("what is kept for a while only could not be deleted", failure=failure)


def monolith(config: Config, world: World) -> Server:
    """All components in one process.

    Opens databases and files at once, so that what is wrong with them stops the start:
    `ConfigError` where the operator can mend it.
    """
    return Server(Parts(config, world))


def joined(some: dict[str, list[str]], more: dict[str, list[str]]) -> dict[str, list[str]]:
    """Both together, the lists of what is in both one after the other."""
    return {key: [*some.get(key, []), *more.get(key, [])] for key in {**some, **more}}


def relay(outbox: Outbox, client: Any, world: World, durables: dict[str, list[str]]) -> OutboxRelay:
    """The way of a component's outbox to the queue."""
    read: Any = outbox.read_after
    made = OutboxRelay(outbox.name, read, outbox.delete_upto, client, world.time, durables)
    offer: Any = made.offer
    outbox.on_commit = offer
    return made


def password_again(auth: InteractiveAuth) -> RequireUIA:
    """Asks a user for the password before their cross-signing keys are replaced."""

    async def require(caller: Caller, request: Exchange, body: dict[str, Any]) -> object:
        purpose = "POST /keys/device_signing/upload"
        return await auth.require(request, purpose, caller.user_id, body.get("auth"), [[PASSWORD]])

    return require

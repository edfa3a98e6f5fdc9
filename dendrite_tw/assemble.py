"""All wiring on one page: every component made, then introduced to the others.

`monolith` puts all components into one process with the embedded queue.
Components call each other through handles, which exist before they do; what a
component tells the others leaves its outbox through a relay to the queue.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.resource import IResource, Resource

from .cache import CacheBudget
from .client_api.keys import KeysRoutes, RequireUIA
from .client_api.last_seen import LastSeen
from .client_api.reports import ReportRoutes
from .client_api.room_admin import RoomAdminRoutes
from .client_api.room_keys import RoomKeysRoutes
from .client_api.rooms import RoomRoutes
from .client_api.routes import account_routes
from .client_api.settings import CaptchaSettings, ClientSettings, Notices, Turn
from .client_api.spaces import SpaceRoutes
from .client_api.to_device import ToDeviceRoutes
from .client_api.uia import PASSWORD, Captcha, InteractiveAuth
from .client_api.user_directory import UserDirectoryRoutes
from .config import Component as DatabaseOwner
from .config import Config
from .config import Database as DatabaseSection
from .config.key_files import signing_key
from .database.engines import Database, SQLiteDatabase, Unavailable
from .database.outbox import Outbox
from .jetstream.disk_thread import DiskThread
from .jetstream.embedded import EmbeddedQueue
from .jetstream.outbox import OutboxRelay
from .links.handle import Direct, handle
from .locks import InUseError, Locks
from .matrix.room_versions import ROOM_VERSIONS
from .media_api.api import Method, ThumbnailSize
from .media_api.component import MediaComponent
from .metrics import Metrics, MetricsResource
from .monitor import MonitorRoutes
from .room_api.api import RoomAPI
from .room_api.component import RoomComponent
from .sync_api.component import SyncComponent
from .user_api.api import Caller, KeyAPI, UserAPI
from .user_api.component import UserComponent
from .user_api.keys_component import KeyComponent
from .user_api.settings import UserSettings
from .web.auth import TokenAuthenticator
from .web.limits import SlotLimiter
from .web.resource import Exchange
from .web.routes import client_paths
from .web.site import make_root
from .world import World

if TYPE_CHECKING:
    from .database.postgresql import InlinePostgreSQL, PostgreSQLDatabase

log = Logger()

PRUNE_SECONDS = 3600
PROBE_SECONDS = 5
REST_SECONDS = 10

DURABLES = {"OutputRoomEvent": ["UserAPIRoomServerConsumer"]}
"""The durable consumers of each stream, whose positions hold back the pruning of outboxes."""


class Component(Protocol):
    """What every component can be told."""

    def prepare(self) -> None: ...

    async def start(self) -> None: ...

    def stop(self) -> Any:
        """May take its time: a coroutine or a `Deferred`."""


class Databases:
    """The databases that the configuration names: one object for each connection string."""

    def __init__(self, config: Config, world: World) -> None:
        self._config = config
        self._world = world
        self._open: dict[str, SQLiteDatabase | PostgreSQLDatabase | InlinePostgreSQL] = {}
        self._locks = Locks()

    def of(self, component: DatabaseOwner) -> Database:
        """The database of a component, as ``dendrite.yaml`` names it."""
        wanted = self._config.database_of(component)
        name = wanted.sqlite_path if wanted.is_sqlite else wanted.connection_string
        if name not in self._open:
            make = self._sqlite if wanted.is_sqlite else self._postgresql
            self._open[name] = make(self._config.key_of_database(component), wanted)
        return self._open[name]

    def _sqlite(self, key: str, wanted: DatabaseSection) -> SQLiteDatabase:
        path = wanted.sqlite_path
        if path != ":memory:":
            self.lock(key, Path(f"{path}-lock"))
        try:
            return SQLiteDatabase(path, self._world.threads)
        except (sqlite3.Error, OSError) as error:
            raise self._config.error(
                key, f"{path} cannot be opened: {error}.", "Check the file and the permissions of its directory."
            ) from None

    def _postgresql(self, key: str, wanted: DatabaseSection) -> PostgreSQLDatabase | InlinePostgreSQL:
        # The driver is of no use, and five megabytes of memory, to a server on SQLite.
        from .database.connections import dsn_of
        from .database.postgresql import InlinePostgreSQL, PostgreSQLDatabase

        try:
            dsn = dsn_of(wanted.connection_string)
        except ValueError as error:
            advice = "Write postgresql://user:password@host/name?sslmode=disable, or file:name.db for SQLite."
            raise self._config.error(key, f"This is no address of a database: {error}.", advice) from None
        most, kept = pool_size(wanted)
        try:
            if self._world.threads is None:
                return InlinePostgreSQL(dsn)
            return PostgreSQLDatabase(dsn, self._world.time, most, kept, max(0.0, wanted.conn_max_lifetime))
        except Unavailable as error:
            advice = "Start PostgreSQL, and see that the user may connect to the database (psql with the same string)."
            raise self._config.error(key, f"PostgreSQL cannot be used: {error.__cause__}".strip(), advice) from None

    def begin(self) -> None:
        """Called when the reactor runs, which may be in another process than the one that opened them."""
        for database in self._open.values():
            database.begin()

    def lock(self, key: str, path: Path) -> None:
        """Keep other servers away from what the configuration names under `key`."""
        try:
            self._locks.take(path)
        except InUseError as error:
            by = f" ({error.holder})" if error.holder else ""
            raise self._config.error(
                key, f"Another server{by} uses it.", "Stop that one, or give each server files of its own."
            ) from None
        except OSError as error:
            raise self._config.error(key, f"{path} cannot be written: {error.strerror or error}.") from None

    @property
    def degraded(self) -> list[str]:
        """The databases that do not take changes at the moment."""
        failing = [database for database in self._open.values() if database.failing]
        return [f"{database.label}: {database.failing}" for database in failing]

    async def probe(self) -> None:
        """Find out whether databases that failed take changes again."""
        for database in self._open.values():
            if database.failing:
                await database.probe()

    def rest(self) -> None:
        """Let the databases that are not used at the moment give back memory."""
        for database in self._open.values():
            if isinstance(database, SQLiteDatabase):
                database.rest()

    async def close(self) -> None:
        for database in self._open.values():
            await _ended(database.close())
        self._locks.release()


def pool_size(wanted: DatabaseSection) -> tuple[int, int]:
    """The most connections and the most idle ones, with Go's meaning of 0 and of negative numbers."""
    unlimited = 1000
    most, kept = wanted.max_open_conns or type(wanted)().max_open_conns, wanted.max_idle_conns or 2
    return (unlimited if most < 0 else most), (unlimited if kept < 0 else kept)


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
        self.databases = Databases(config, world)
        queue_folder = config.global_.jetstream.storage_path
        if not config.global_.jetstream.in_memory:
            self.databases.lock("global.jetstream.storage_path", Path(queue_folder) / "lock")
        self._disk = DiskThread(world.threads.call_from_thread) if world.threads else None
        self.queue = EmbeddedQueue(
            world.time,
            self._disk.run if self._disk else runner(world),
            queue_folder,
            config.global_.jetstream.in_memory,
            config.global_.jetstream.topic_prefix,
        )
        client = self.queue.client

        to_rooms, to_users, to_keys = Direct(), Direct(), Direct()
        rooms, users, keys = handle(RoomAPI, to_rooms), handle(UserAPI, to_users), handle(KeyAPI, to_keys)

        user_database = self.databases.of("user_api")
        self.users = UserComponent(
            user_settings(config), user_database, Outbox("user_api", user_database), client, world, rooms, budget
        )
        self.rooms = RoomComponent(
            database=self.databases.of("room_server"),
            users=users,
            world=world,
            budget=budget,
            server_name=server_name,
            key=signing_key(config),
            default_room_version=config.room_server.default_room_version,
        )
        self.keys = KeyComponent(user_database, self.users.outbox, world.clock, world.random, server_name, budget)
        self.users.on_device_deleted.append(self.keys.device_deleted)
        self.users.on_device_changed.append(self.keys.device_changed)
        self.users.is_device_id_taken.append(self.keys.is_key_of)
        self.users.on_account_deactivated.append(self.keys.account_deactivated)
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
        )
        to_rooms.connect(self.rooms)
        to_users.connect(self.users)
        to_keys.connect(self.keys)
        self.components: list[Component] = [self.users, self.rooms, self.sync, self.media]
        self.relays = [relay(self.rooms.outbox, client, world), relay(self.users.outbox, client, world)]
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
            RoomRoutes(rooms, users, world.clock, server_name),
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
        self.last_seen = LastSeen(users, world)
        metrics = Metrics(budget)
        notifier = self.sync.notifier
        metrics.gauge("dendrite_syncapi_active_sync_requests", "Syncs that are being answered.", self._active_syncs)
        metrics.gauge("dendrite_syncapi_waiting_sync_requests", "Syncs that wait for news.", lambda: notifier.waiting)
        metrics.gauge("dendrite_syncapi_active_users", "Users who sync.", lambda: notifier.streams)
        self.routes = client_paths(row for section in sections for row in section.routes())
        self.routes += account_routes(settings, users, rooms, client, world, auth)
        self.root = make_root(
            self.routes,
            TokenAuthenticator(users, self.last_seen),
            limiter(config, world),
            metrics.observe,
            metrics_resource(config, metrics),
            config.sync_api.real_ip_header,
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
        self.last_seen.start()
        self._prune_keys.start(PRUNE_SECONDS, now=False)
        self._probe.start(PROBE_SECONDS, now=False)
        self._rest.start(REST_SECONDS, now=False)
        self._sweep.start(self._sweep_seconds, now=False)

    def _active_syncs(self) -> int:
        return self.sync.handler.active

    def _users_reached(self, position: int) -> None:
        """The user component has stored what follows from room events up to this position."""
        self.relays[0].consumed("UserAPIRoomServerConsumer", position)

    async def stop(self) -> None:
        """In the reverse order; what was accepted is on disk when this returns."""
        for loop in (self._prune_keys, self._sweep, self._rest, self._probe):
            if loop.running:
                loop.stop()
        await self.last_seen.stop()
        for relay in self.relays:
            relay.stop()
        for component in reversed(self.components):
            await _ended(component.stop())
        await self.queue.stop()
        if self._disk is not None:
            self._disk.stop()
        await self.databases.close()


def unpruned(failure: Failure) -> None:
    log.failure("what is kept for a while only could not be deleted", failure=failure)


async def _ended(stopping: Any) -> None:
    """Wait for what `Component.stop` returned."""
    if isinstance(stopping, Deferred) or hasattr(stopping, "__await__"):
        await stopping


def monolith(config: Config, world: World) -> Server:
    """All components in one process, over the embedded queue.

    Opens databases and files at once, so that what is wrong with them stops the start:
    `ConfigError` where the operator can mend it.
    """
    return Server(Parts(config, world))


def relay(outbox: Outbox, client: Any, world: World) -> OutboxRelay:
    """The way of a component's outbox to the queue."""
    read: Any = outbox.read_after
    made = OutboxRelay(outbox.name, read, outbox.delete_upto, client, world.time, DURABLES)
    offer: Any = made.offer
    outbox.on_commit = offer
    return made


def runner(world: World) -> Callable[..., Deferred[Any]]:
    """Runs blocking work in a thread, or at once where the world has none."""

    def run(function: Callable[..., Any], *args: Any) -> Deferred[Any]:
        threads = world.threads
        if threads is None:
            return maybeDeferred(function, *args)
        answer: Deferred[Any] = Deferred()

        def work() -> None:
            try:
                result = function(*args)
            except Exception as error:
                threads.call_from_thread(answer.errback, error)
            else:
                threads.call_from_thread(answer.callback, result)

        threads.call_in_thread(work)
        return answer

    return run


def password_again(auth: InteractiveAuth) -> RequireUIA:
    """Asks a user for the password before their cross-signing keys are replaced."""

    async def require(caller: Caller, request: Exchange, body: dict[str, Any]) -> object:
        purpose = "POST /keys/device_signing/upload"
        return await auth.require(request, purpose, caller.user_id, body.get("auth"), [[PASSWORD]])

    return require


# --- configuration, cut to what each part needs ---


def user_settings(config: Config) -> UserSettings:
    notices = config.global_.server_notices
    return UserSettings(
        server_name=config.global_.server_name,
        bcrypt_cost=config.user_api.bcrypt_cost,
        openid_token_lifetime_ms=config.user_api.openid_token_lifetime_ms,
        auto_join_rooms=tuple(config.user_api.auto_join_rooms),
        reserved_localparts=frozenset([notices.local_part] if notices.local_part else []),
    )


def client_settings(config: Config) -> ClientSettings:
    api, turn = config.client_api, config.client_api.turn
    captcha = CaptchaSettings(
        public_key=api.recaptcha_public_key,
        private_key=api.recaptcha_private_key,
        siteverify_api=api.recaptcha_siteverify_api,
        api_js_url=api.recaptcha_api_js_url,
        form_field=api.recaptcha_form_field,
        sitekey_class=api.recaptcha_sitekey_class,
        bypass_secret=api.recaptcha_bypass_secret,
    )
    return ClientSettings(
        server_name=config.global_.server_name,
        registration_disabled=api.registration_disabled,
        registration_requires_token=api.registration_requires_token,
        guests_disabled=api.guests_disabled,
        registration_shared_secret=api.registration_shared_secret,
        captcha=captcha if api.enable_registration_captcha else None,
        turn=Turn(
            uris=tuple(turn.turn_uris),
            lifetime_seconds=int(turn.turn_user_lifetime or 300),
            shared_secret=turn.turn_shared_secret,
            username=turn.turn_username,
            password=turn.turn_password,
        ),
        well_known_client_name=config.global_.well_known_client_name,
        well_known_server_name=config.global_.well_known_server_name,
        well_known_sliding_sync_proxy=config.global_.well_known_sliding_sync_proxy,
        default_room_version=config.room_server.default_room_version,
        notices=notices_settings(config),
        room_versions={name: "stable" if version.stable else "unstable" for name, version in ROOM_VERSIONS.items()},
    )


def notices_settings(config: Config) -> Notices | None:
    notices = config.global_.server_notices
    if not notices.enabled:
        return None
    return Notices(
        local_part=notices.local_part or "_server",
        display_name=notices.display_name,
        avatar_url=notices.avatar_url,
        room_name=notices.room_name,
    )


def captcha(settings: ClientSettings, world: World) -> Captcha | None:
    """Who judges captchas, where they are asked for."""
    if settings.captcha is None:
        return None
    from treq.client import HTTPClient
    from twisted.web.client import Agent

    from .client_api.captcha import HttpCaptcha

    return HttpCaptcha(settings.captcha, HTTPClient(Agent(world.time)), world.time)


def limiter(config: Config, world: World) -> SlotLimiter:
    limits = config.client_api.rate_limiting
    return SlotLimiter(world.clock, limits.enabled, limits.threshold, limits.cooloff_ms, limits.exempt_user_ids)


def metrics_resource(config: Config, metrics: Metrics) -> dict[bytes, IResource]:
    if not config.global_.metrics.enabled:
        return {}
    auth = config.global_.metrics.basic_auth
    return {b"metrics": MetricsResource(metrics, auth.username, auth.password)}

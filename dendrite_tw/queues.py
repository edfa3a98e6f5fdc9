"""The queue that a configuration names: the one that is built in, or a NATS server elsewhere.

Both have the same client, so nobody behind it knows which one it is.  The built-in one is ready when it has started;
with a NATS server the server starts, and answers what needs no queue, whether that is there or not.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.logger import Logger

from .config import Config
from .jetstream.addresses import parse_listen
from .jetstream.client import QueueClient
from .jetstream.disk_thread import DiskThread
from .jetstream.embedded import EmbeddedQueue
from .world import World

if TYPE_CHECKING:
    from .jetstream.credentials import Credentials

log = Logger()

Lock = Callable[[str, Path], None]
"""Keeps other servers away from a file that the configuration names under a key."""


class Queue(Protocol):
    """What carries messages between components, within the process or through another one."""

    client: QueueClient

    @property
    def degraded(self) -> list[str]:
        """What is wrong with it at the moment."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...


def queue_of(config: Config, world: World, lock: Lock) -> Queue:
    """The queue of this configuration; `ConfigError` where its files cannot be used."""
    return nats_queue(config, world) if config.global_.jetstream.addresses else BuiltInQueue(config, world, lock)


def without_consumers(client: QueueClient, durables: dict[str, list[str]]) -> None:
    """See to it that there are none of these consumers, as soon as the queue is there: streams keep what a consumer
    has not read, also one of a time when the server was set up otherwise.
    """

    async def delete() -> None:
        for stream, names in durables.items():
            for name in names:
                await client.delete_consumer(stream, name)

    def begin() -> None:
        deleting = Deferred.fromCoroutine(delete())
        deleting.addErrback(lambda failure: log.warn("{reason}", reason=failure.getErrorMessage()))

    client.on_ready.append(begin)


# --- a NATS server ---


def nats_queue(config: Config, world: World) -> Queue:
    # TLS takes some megabytes, of no use to a server with a queue of its own.
    from .jetstream.remote import RemoteQueue

    wanted = config.global_.jetstream
    return RemoteQueue(
        world.time,
        wanted.addresses,
        inbox=f"_INBOX.{world.random.token(22)}",
        chance=lambda: world.random.uniform(0.0, 1.0),
        topic_prefix=wanted.topic_prefix,
        credentials=credentials(config) if wanted.credentials_path else None,
        verify_tls=not wanted.disable_tls_validation,
        domain=wanted.js_domain,
        tcp=world.tcp,
    )


def credentials(config: Config) -> Credentials:
    from .jetstream.credentials import CredentialsError, read_credentials

    path = config.global_.jetstream.credentials_path
    try:
        return read_credentials(path)
    except OSError as error:
        reason = error.strerror or "it cannot be read"
    except (CredentialsError, UnicodeDecodeError) as error:
        reason = str(error) if isinstance(error, CredentialsError) else "it is not text"
    raise config.error(
        "global.jetstream.credentials_path",
        f"There are no credentials to be had from {path}: {reason}.",
        "Name a .creds file of a user, as nsc makes it.",
    )


# --- the one that is built in ---


class BuiltInQueue:
    """The embedded queue with its folder, its thread, and the port that it may have."""

    def __init__(self, config: Config, world: World, lock: Lock) -> None:
        wanted = config.global_.jetstream
        if not wanted.in_memory:
            lock("global.jetstream.storage_path", Path(wanted.storage_path) / "lock")
        self._config = config
        self._tcp = world.tcp
        self._disk = DiskThread(world.threads.call_from_thread) if world.threads else None
        self._queue = EmbeddedQueue(
            world.time,
            self._disk.run if self._disk else maybeDeferred,
            wanted.storage_path,
            wanted.in_memory,
            wanted.topic_prefix,
            wanted.listen_token,
        )
        self.client = self._queue.client
        self._port: Any = None

    @property
    def degraded(self) -> list[str]:
        return self._queue.degraded

    async def start(self) -> None:
        """Recover what is on disk, and serve; `ConfigError` where the port cannot be had."""
        await self._queue.start()
        listen = self._config.global_.jetstream.listen
        if not listen:
            return
        host, port = parse_listen(listen)
        try:
            self._port = self._tcp.listenTCP(port, self._queue.server_factory(), interface=host)
        except (CannotListenError, OSError) as error:
            reason = getattr(error, "socketError", error)
            key, text = "global.jetstream.listen", f"Nothing can listen on {listen}: {reason}."
            raise self._config.error(key, text, "Name a port that is free, on an address of this machine.") from None
        log.info("Serving NATS clients on {listen}", listen=listen)

    async def stop(self) -> None:
        """What was accepted is on disk when this returns."""
        if self._port is not None:
            await maybeDeferred(self._port.stopListening)
        await self._queue.stop()
        if self._disk is not None:
            self._disk.stop()

"""``dendrite-move-queue``: from the queue that is built in to a NATS server.

The databases hold all that the queue does, so a server may also begin with an empty NATS; what is moved is what
consumers are still to do, at once instead of by and by.  The server must be down meanwhile: its lock is taken.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from dendrite_tw.commands.goflags import FlagSet
from dendrite_tw.config import Config, ConfigError, load
from dendrite_tw.locks import InUseError, Locks

if TYPE_CHECKING:
    from dendrite_tw.jetstream.embedded import EmbeddedQueue
    from dendrite_tw.jetstream.moving import Moved
    from dendrite_tw.jetstream.remote import RemoteQueue
    from dendrite_tw.world import World

CONNECT_SECONDS = 10.0

_INTRODUCTION = """\
Copies the built-in queue, while the server is down, into a NATS server with JetStream:

    dendrite-move-queue -config dendrite.yaml -to nats://localhost:4222

Nothing is deleted. It can be run again, and then copies what is missing. At the end it holds both sides against each
other, and says what to change in the configuration."""


class StopError(Exception):
    """Why nothing could be moved: a sentence."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; the exit code."""
    flags = FlagSet("dendrite-move-queue", _INTRODUCTION)
    path = flags.string("config", "dendrite.yaml", "The configuration file of the server")
    to = flags.string("to", "", "Addresses of NATS servers, separated by commas; by default those of the file")
    flags.parse_only(sys.argv[1:] if arguments is None else arguments)
    locks = Locks()
    try:
        config = load(path.value, allow_open_registration=True)
        addresses = [one.strip() for one in to.value.split(",") if one.strip()] or [*config.global_.jetstream.addresses]
        _take(config, locks)
        moved = run(config, addresses)
    except (ConfigError, StopError) as error:
        print(f"dendrite-move-queue: {error}", file=sys.stderr)
        return 1
    finally:
        locks.release()
    print(report(config, addresses, moved))
    return 0


def _take(config: Config, locks: Locks) -> None:
    """Keep the server away; `StopError` if it runs, or there is no queue."""
    wanted = config.global_.jetstream
    folder = Path(wanted.storage_path)
    if wanted.in_memory or not any(folder.glob("streams/*/stream.json")):
        where = "in memory only" if wanted.in_memory else f"and there is none in {folder}"
        raise StopError(f"there is no queue to move: it is kept {where}. Begin with NATS as it is.")
    try:
        locks.take(folder / "lock")
    except InUseError as error:
        raise StopError(f"the server is running ({error.holder}). Stop it first.") from None
    except OSError as error:
        raise StopError(f"{folder / 'lock'} cannot be written: {error.strerror or error}.") from None


def run(config: Config, addresses: Sequence[str]) -> list[Moved]:
    """Move the queue of this configuration to these servers; `StopError` with the reason if that fails."""
    from twisted.internet import reactor
    from twisted.internet.defer import Deferred

    from dendrite_tw.world import system_world

    outcome: list[Any] = []

    def begin() -> None:
        moving = Deferred.fromCoroutine(_move(config, addresses, system_world(reactor)))
        moving.addBoth(outcome.append)
        moving.addBoth(lambda _: reactor.stop())

    reactor.callWhenRunning(begin)
    reactor.run()
    if not outcome:
        raise StopError("it was broken off; run it again.")
    if isinstance(outcome[0], list):
        return outcome[0]
    raise reason_of(outcome[0].value)


def reason_of(error: Exception) -> Exception:
    """The sentence for what an operator can mend; any other error as it is."""
    from dendrite_tw.jetstream.errors import ApiError, UnavailableError
    from dendrite_tw.jetstream.moving import MoveError

    if isinstance(error, ApiError):
        return StopError(f"the NATS server refuses: {error}. Is JetStream switched on?")
    if isinstance(error, MoveError | UnavailableError | StopError):
        return StopError(f"{error}")
    return error


async def _move(config: Config, addresses: Sequence[str], world: World) -> list[Moved]:
    from dendrite_tw.jetstream.catalogue import CATALOGUE
    from dendrite_tw.jetstream.moving import move

    target = _target(config, addresses, world)
    await target.start()
    try:
        await _ready(target, world)
        source = _source(config, world)
        await source.start()
        try:
            return await move(source.client, target.client, CATALOGUE)
        finally:
            await source.stop()
    finally:
        await target.stop()


def _source(config: Config, world: World) -> EmbeddedQueue:
    from twisted.internet.defer import maybeDeferred

    from dendrite_tw.jetstream.embedded import EmbeddedQueue

    wanted = config.global_.jetstream
    return EmbeddedQueue(world.time, maybeDeferred, wanted.storage_path, topic_prefix=wanted.topic_prefix)


def _target(config: Config, addresses: Sequence[str], world: World) -> RemoteQueue:
    """The client of the NATS servers; `StopError` where their addresses are none."""
    import msgspec

    from dendrite_tw.jetstream.addresses import parse_address
    from dendrite_tw.queues import nats_queue

    if not addresses:
        raise StopError("no NATS server is named. Give -to nats://host:4222.")
    for address in addresses:
        try:
            parse_address(address)
        except ValueError:
            raise StopError("-to must be the address of a NATS server, such as nats://host:4222.") from None
    jetstream = msgspec.structs.replace(config.global_.jetstream, addresses=tuple(addresses))
    general = msgspec.structs.replace(config.global_, jetstream=jetstream)
    return cast("RemoteQueue", nats_queue(msgspec.structs.replace(config, global_=general), world))


async def _ready(queue: RemoteQueue, world: World) -> None:
    """Wait for the connection and the streams; `StopError` after `CONNECT_SECONDS`."""
    from twisted.internet.defer import CancelledError, Deferred

    if queue.client.ready:
        return
    ready: Deferred[None] = Deferred()
    queue.client.on_ready.append(lambda: None if ready.called else ready.callback(None))
    timer = world.time.callLater(CONNECT_SECONDS, ready.cancel)
    try:
        await ready
    except CancelledError:
        reason = "; ".join(queue.degraded) or "no answer"
        raise StopError(f"no NATS server could be used within {CONNECT_SECONDS:.0f} seconds: {reason}.") from None
    if timer.active():
        timer.cancel()


def report(config: Config, addresses: Sequence[str], moved: Sequence[Moved]) -> str:
    """What was done, and what is to be changed."""
    width = max(len(one.stream) for one in moved)
    lines = [
        f"{one.stream:<{width}}  {one.messages:>7} messages ({one.copied} copied now), {one.consumers} consumers"
        for one in moved
    ]
    shown = ", ".join(f'"{without_secret(address)}"' for address in addresses)
    lines += ["", "Both sides hold the same. Now change this in the configuration, and start the server:", ""]
    lines += ["global:", "  jetstream:", f"    addresses: [{shown}]"]
    if any(without_secret(address) != address for address in addresses):
        lines.append("    # with the user or token that you gave, in place of ***")
    lines += ["", f"The files in {config.global_.jetstream.storage_path} are not used any more then."]
    return "\n".join(lines)


def without_secret(address: str) -> str:
    """The address of a NATS server without who we are there."""
    parts = urlsplit(address)
    user, at, rest = parts.netloc.rpartition("@")
    return address.replace(f"{user}@{rest}", f"***@{rest}", 1) if at else address

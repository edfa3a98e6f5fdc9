"""JetStream within the server: holds the streams and consumers, feeds them, keeps their clocks, and saves
them.

The promises are made in `streams` and `consumers`; here they meet subjects, timers and files.  On disk,
each stream with file storage has a folder ``streams/NAME~CREATED`` with its configuration and those of its
consumers (``stream.json``), the consumers' progress (``progress``), and the segments of messages; damaged
ones are moved to ``damaged``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
import orjson
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from dendrite_tw.jetstream import errors, wire
from dendrite_tw.jetstream.configs import ConsumerConfig, StreamConfig
from dendrite_tw.jetstream.consumers import Consumer
from dendrite_tw.jetstream.errors import refusal
from dendrite_tw.jetstream.hosted import Hosted, SavedStream, read_progress
from dendrite_tw.jetstream.segments import DamagedError, sync_folder
from dendrite_tw.jetstream.server import Server
from dendrite_tw.jetstream.storage import MemoryStorage, Stored
from dendrite_tw.jetstream.store import FileStorage
from dendrite_tw.jetstream.streams import Stream
from dendrite_tw.jetstream.syncer import Syncer
from dendrite_tw.jetstream.times import SECOND, format_time

SWEEP_SECONDS: Final = 1.0
"""How often progress is saved and idle consumers are looked for."""
SHORTEST_WAIT: Final = 0.001

log = Logger(namespace="dendrite_tw.jetstream")


class Limits(msgspec.Struct, frozen=True):
    """What an account may use; -1 is without limit."""

    max_memory: int = -1
    max_storage: int = -1
    max_streams: int = -1
    max_consumers: int = -1
    max_ack_pending: int = -1
    memory_max_stream_bytes: int = -1
    storage_max_stream_bytes: int = -1
    max_bytes_required: bool = False

    @classmethod
    def of(cls, tree: dict[str, Any]) -> Limits:
        """The limits of an account in a configuration file, in that file's names."""
        names = {
            "max_mem": "max_memory",
            "max_memory": "max_memory",
            "max_file": "max_storage",
            "max_store": "max_storage",
            "max_streams": "max_streams",
            "max_consumers": "max_consumers",
            "max_ack_pending": "max_ack_pending",
            "memory_max_stream_bytes": "memory_max_stream_bytes",
            "store_max_stream_bytes": "storage_max_stream_bytes",
            "max_stream_bytes": "max_bytes_required",
        }
        return msgspec.convert({names[key]: value for key, value in tree.items() if key in names}, cls)


class JetStream:
    """All streams of a server."""

    def __init__(
        self,
        server: Server,
        clock: IReactorTime,
        syncer: Syncer,
        folder: Path | None,
        limits: Limits | None = None,
    ) -> None:
        self.server = server
        self.limits = limits or Limits()
        self.clock = clock
        self.syncer = syncer
        self.folder = folder
        """Where streams with file storage lie; ``None`` keeps all in memory."""
        self.streams: dict[str, Hosted] = {}
        self.degraded: list[str] = []
        """Streams whose files were damaged and set aside: they began anew, empty."""
        self._timers: dict[Consumer, IDelayedCall] = {}
        self._sweep: IDelayedCall | None = None
        self._by_destination: dict[str, dict[Consumer, None]] = {}
        self._advisories = 0
        self._stale: list[Path] = []
        """Folders of streams that were deleted just before a crash."""
        server.subscribe("$JS.ACK.>", self._on_ack)
        server.subscribe("$JS.FC.>", self._on_flow)
        server.interest_gained = self._on_interest

    def now(self) -> int:
        """Nanoseconds since the epoch."""
        return int(self.clock.seconds() * SECOND)

    def start(self) -> None:
        self._sweep = self.clock.callLater(SWEEP_SECONDS, self._sweep_now)

    def stop(self) -> None:
        """Stop all clocks and subscriptions, and hand the last progress to the disk."""
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        for hosted in self.streams.values():
            hosted.save_progress()
            if hosted.files is not None:
                hosted.files.note_floor()
            hosted.close()

    def close_files(self) -> None:
        for hosted in self.streams.values():
            if hosted.files is not None:
                hosted.files.close()

    def acknowledge(self, reply: str, answer: bytes) -> None:
        self.server.publish(reply, "", b"", answer)

    # --- clocks ---

    def call_at(self, at: int, call: Callable[[], None]) -> IDelayedCall:
        """Call at a time in nanoseconds since the epoch."""
        return self.clock.callLater(max(at / SECOND - self.clock.seconds(), SHORTEST_WAIT), call)

    def wake(self, consumer: Consumer, at: int) -> None:
        timer = self._timers.get(consumer)
        if timer is not None and timer.active():
            timer.cancel()
        self._timers[consumer] = self.call_at(at, lambda: self._tick(consumer))

    def _tick(self, consumer: Consumer) -> None:
        self._timers.pop(consumer, None)
        consumer.tick(self.now())

    def disarm(self, consumer: Consumer) -> None:
        timer = self._timers.pop(consumer, None)
        if timer is not None and timer.active():
            timer.cancel()

    def _sweep_now(self) -> None:
        self._sweep = self.clock.callLater(SWEEP_SECONDS, self._sweep_now)
        now = self.now()
        for hosted in tuple(self.streams.values()):
            hosted.save_progress()
            hosted.stream.forget_ids(now)
            for consumer in tuple(hosted.consumers.values()):
                if consumer.config.inactive_threshold and self._is_abandoned(consumer, now):
                    self.delete_consumer(hosted, consumer)

    def _is_abandoned(self, consumer: Consumer, now: int) -> bool:
        config = consumer.config
        if consumer.is_push:
            active = self.server.reaches(config.deliver_subject or "", config.deliver_group or "")
        else:
            active = any(self.server.reaches(request.reply) for request in consumer.requests)
        if active:
            consumer.last_active = now
        return now - consumer.last_active >= (config.inactive_threshold or 0)

    # --- what consumers send ---

    def deliver(self, destination: str, message: Stored, reply: str, headers_only: bool) -> None:
        headers, payload = message.headers, message.payload
        if headers_only:
            size = {"Nats-Msg-Size": str(len(payload))}
            headers, payload = wire.replace_headers(headers, (), size), b""
        self.server.forward(destination, message.subject, reply, headers, payload)

    def status(self, destination: str, code: int, description: str, fields: dict[str, str], reply: str) -> None:
        block = wire.encode_headers(fields.items(), code, description)
        self.server.forward(destination, destination, reply, block, b"")

    def reaches(self, destination: str, group: str) -> bool:
        return self.server.reaches(destination, group)

    # --- advisories ---

    def advise(self, subject: str, kind: str, body: dict[str, Any]) -> None:
        """Tell who wants to know what happened."""
        full = f"$JS.EVENT.ADVISORY.{subject}"
        if not self.server.reaches(full):
            return
        self._advisories += 1
        now = self.now()
        head = {
            "type": f"io.nats.jetstream.advisory.v1.{kind}",
            "id": f"{now:x}{self._advisories:x}",
            "timestamp": format_time(now),
        }
        if self.server.settings.domain:
            head["domain"] = self.server.settings.domain
        self.server.publish(full, "", b"", orjson.dumps({**head, **body}))

    def advise_stream(self, hosted: Hosted, action: str) -> None:
        name = hosted.stream.config.name
        self.advise(f"STREAM.{_PAST[action]}.{name}", "stream_action", {"stream": name, "action": action})

    def advise_consumer(self, consumer: Consumer, action: str) -> None:
        names = {"stream": consumer.stream.config.name, "consumer": consumer.name}
        subject = f"CONSUMER.{_PAST[action]}.{names['stream']}.{names['consumer']}"
        self.advise(subject, "consumer_action", {**names, "action": action})

    def _advise_delivery(self, consumer: Consumer, what: str, kind: str, **more: Any) -> None:
        names = {"stream": consumer.stream.config.name, "consumer": consumer.name}
        self.advise(f"CONSUMER.{what}.{names['stream']}.{names['consumer']}", kind, {**names, **more})

    def given_up(self, consumer: Consumer, seq: int, deliveries: int) -> None:
        self._advise_delivery(consumer, "MAX_DELIVERIES", "max_deliver", stream_seq=seq, deliveries=deliveries)

    # --- what comes back ---

    def _on_ack(self, subject: str, reply: str, headers: bytes, payload: bytes) -> None:
        """An acknowledgement: ``$JS.ACK.stream.consumer.deliveries.seq.consumer_seq.time.pending``."""
        parts = subject.split(".")
        if len(parts) != 9 or not (parts[5].isdecimal() and parts[6].isdecimal()):
            return
        hosted = self.streams.get(parts[2])
        consumer = hosted.consumers.get(parts[3]) if hosted else None
        if consumer is None:
            return
        self._acknowledge(consumer, int(parts[5]), int(parts[6]), reply, payload)

    def _acknowledge(self, consumer: Consumer, seq: int, consumer_seq: int, reply: str, payload: bytes) -> None:
        now = self.now()
        word, _, argument = payload.partition(b" ")
        if word in (b"", b"+ACK"):
            consumer.ack(seq, consumer_seq, now)
        elif word == b"-NAK":
            consumer.nak(seq, _delay(argument), now)
            self._advise_delivery(consumer, "MSG_NAKED", "nak", stream_seq=seq, consumer_seq=consumer_seq)
        elif word == b"+WPI":
            consumer.progress(seq, now)
        elif word == b"+TERM":
            consumer.terminate(seq, now)
            reason = {"reason": argument.decode("utf-8", "replace")} if argument else {}
            self._advise_delivery(
                consumer, "MSG_TERMINATED", "terminated", stream_seq=seq, consumer_seq=consumer_seq, **reason
            )
        elif word.startswith(b"+NXT"):
            consumer.ack(seq, consumer_seq, now)
            if reply:
                self.next_message(consumer, reply, argument)
            return
        if reply:
            self.server.publish(reply, "", b"", b"")

    def next_message(self, consumer: Consumer, reply: str, argument: bytes) -> None:
        """Serve a pull request; replaced by the API, which knows its forms."""

    def _on_flow(self, subject: str, reply: str, headers: bytes, payload: bytes) -> None:
        parts = subject.split(".")
        hosted = self.streams.get(parts[2]) if len(parts) == 5 else None
        consumer = hosted.consumers.get(parts[3]) if hosted else None
        if consumer is not None:
            consumer.flow_answered(subject, self.now())

    def _on_interest(self, subject: str) -> None:
        """Somebody subscribed: push consumers that deliver there may go on."""
        for consumer in tuple(self._by_destination.get(subject, ())):
            consumer.last_active = self.now()
            consumer.pump(self.now())

    # --- streams ---

    def create_stream(self, config: StreamConfig) -> Hosted:
        """A new, empty stream of a configuration that has been checked."""
        now = self.now()
        stream, files = self._build(config, now)
        hosted = self.streams[config.name] = Hosted(self, stream, files)
        hosted.save()
        hosted.listen()
        self._feed_others(hosted)
        self.advise_stream(hosted, "create")
        return hosted

    def _feed_others(self, origin: Hosted) -> None:
        """Mirrors of the stream, and streams that gather from it, may have waited for it."""
        for other in tuple(self.streams.values()):
            for feed in other.fed_by:
                if feed.name == origin.stream.config.name and feed.origin is None and other is not origin:
                    feed.attach(origin)

    def _build(self, config: StreamConfig, created: int) -> tuple[Stream, FileStorage | None]:
        if config.storage == "memory" or self.folder is None:
            return Stream(config, MemoryStorage(), created), None
        stream = Stream(config, MemoryStorage(), created)
        # Each stream has a folder of its own, even if one of its name is just being removed.
        folder = self.folder / "streams" / f"{config.name}~{created:x}"
        files = FileStorage(folder, self.syncer, stream.index)
        stream.storage = files
        return stream, files

    def delete_stream(self, hosted: Hosted) -> None:
        """Remove a stream with all that belongs to it."""
        name = hosted.stream.config.name
        for consumer in tuple(hosted.consumers.values()):
            consumer.close_requests(409, "Consumer Deleted")
            self._unhost(consumer)
            self.advise_consumer(consumer, "delete")
        hosted.close()
        del self.streams[name]
        self.advise_stream(hosted, "delete")
        if hosted.files is not None:
            hosted.files.abandon()
            self.syncer.later(_remove_folder, hosted.files.folder)

    # --- consumers ---

    def create_consumer(
        self, hosted: Hosted, name: str, config: ConsumerConfig, *, durable: bool, created: int = 0
    ) -> Consumer:
        """A new consumer; the caller sets where it starts, and calls `host`."""
        return Consumer(name, config, hosted.stream, self, created or self.now(), durable=durable)

    def host(self, hosted: Hosted, consumer: Consumer) -> None:
        """Take a consumer into service; `Consumer.begin` lets it deliver."""
        hosted.consumers[consumer.name] = consumer
        hosted.stream.readers[consumer.name] = consumer
        if consumer.is_push:
            self._by_destination.setdefault(consumer.config.deliver_subject or "", {})[consumer] = None
        consumer.dirty = True

    def delete_consumer(self, hosted: Hosted, consumer: Consumer) -> None:
        consumer.close_requests(409, "Consumer Deleted")
        self._unhost(consumer)
        hosted.consumers.pop(consumer.name, None)
        hosted.stream.readers.pop(consumer.name, None)
        hosted.stream.settle_all()
        hosted.save()
        self.advise_consumer(consumer, "delete")

    def reconfigure(self, hosted: Hosted, consumer: Consumer, config: ConsumerConfig) -> None:
        """Give a consumer another configuration, in the middle of its work."""
        self._unhost(consumer)
        consumer.configure(config)
        self.host(hosted, consumer)
        consumer.begin(self.now())
        hosted.stream.settle_all()

    def _unhost(self, consumer: Consumer) -> None:
        self.disarm(consumer)
        destination = consumer.config.deliver_subject or ""
        others = self._by_destination.get(destination, {})
        others.pop(consumer, None)
        if not others:
            self._by_destination.pop(destination, None)

    # --- recovery ---

    def recover(self) -> None:
        """Bring back the streams that lie on disk; damaged ones are set aside and named in `degraded`.

        It may run in a thread: it reads, but starts no clock and writes nothing but what recovery cuts off.
        """
        if self.folder is None:
            return
        root = self.folder / "streams"
        root.mkdir(parents=True, exist_ok=True)
        for folder in sorted(root.iterdir(), key=_age_of):
            if not folder.is_dir():
                continue
            try:
                hosted = self._load(folder)
            except (DamagedError, OSError, ValueError) as error:
                self._quarantine(folder, str(error))
                continue
            if hosted is None:
                continue
            name = hosted.stream.config.name
            if name in self.streams:
                # The older one was deleted; only its folder was still there.
                log.warn("Stream {name} lies on disk twice; the newer one counts", name=name)
                older = self.streams[name].files
                if older is not None:
                    self._stale.append(older.folder)
            self.streams[name] = hosted

    def serve(self) -> None:
        """Begin to listen for the recovered streams."""
        now = self.now()
        for folder in self._stale:
            self.syncer.later(_remove_folder, folder)
        for hosted in self.streams.values():
            stream = hosted.stream
            stream.drop_unfinished_batch()
            stream.enforce_all_limits()
            stream.expire(now)
            stream.settle_all()
            if hosted.files is not None:
                hosted.files.tidy()
            hosted.listen()
            for consumer in tuple(hosted.consumers.values()):
                self.host(hosted, consumer)
                consumer.begin(now)

    def _load(self, folder: Path) -> Hosted | None:
        description = folder / "stream.json"
        if not description.exists():
            if any(folder.glob("*.seg")):
                raise DamagedError("stream.json is missing")
            return None
        try:
            saved = msgspec.json.decode(description.read_bytes(), type=SavedStream)
        except msgspec.MsgspecError as error:
            raise DamagedError(f"stream.json: {error}") from error
        if f"{saved.config.name}~{saved.created:x}" != folder.name:
            raise DamagedError("stream.json is that of another folder")
        stream, files = self._build(saved.config, saved.created)
        if files is None:
            return None
        now = self.now()
        scheduled: list[Stored] = []
        recovered = files.recover()
        for message, place in recovered.live():
            stream.recover(message, place, now)
            if message.headers and b"\r\nNats-Schedule:" in message.headers:
                scheduled.append(message)
        stream.index.skip_to(recovered.last_seq)
        hosted = Hosted(self, stream, files)
        for message in scheduled:
            hosted.schedule(message, now)
        self._load_consumers(hosted, saved, folder, now)
        return hosted

    def _load_consumers(self, hosted: Hosted, saved: SavedStream, folder: Path, now: int) -> None:
        progress = {snapshot.name: snapshot for snapshot in read_progress(folder)}
        for row in saved.consumers:
            consumer = self.create_consumer(hosted, row.name, row.config, durable=row.durable, created=row.created)
            hosted.consumers[row.name] = consumer
            hosted.stream.readers[row.name] = consumer
            snapshot = progress.get(row.name)
            if snapshot is not None:
                consumer.restore(snapshot, now)
            else:
                consumer.start_at(1)

    def _quarantine(self, folder: Path, reason: str) -> None:
        assert self.folder is not None
        aside = self.folder / "damaged"
        aside.mkdir(exist_ok=True)
        number = 1
        while (target := aside / f"{folder.name}-{number}").exists():
            number += 1
        folder.rename(target)
        sync_folder(aside)
        name = folder.name.rpartition("~")[0] or folder.name
        self.degraded.append(name)
        log.error(
            "Stream {name} is damaged and was set aside as {target}: {reason}",
            name=name,
            target=str(target),
            reason=reason,
        )

    def stream(self, name: str) -> Hosted:
        hosted = self.streams.get(name)
        if hosted is None:
            raise refusal(errors.STREAM_NOT_FOUND)
        return hosted

    def info(self) -> dict[str, Any]:
        """Totals, as account information and monitoring show them."""
        files = [hosted for hosted in self.streams.values() if hosted.files is not None]
        memory = [hosted for hosted in self.streams.values() if hosted.files is None]
        return {
            "memory": sum(hosted.stream.index.bytes for hosted in memory),
            "storage": sum(hosted.stream.index.bytes for hosted in files),
            "streams": len(self.streams),
            "consumers": sum(len(hosted.consumers) for hosted in self.streams.values()),
        }


def _age_of(folder: Path) -> tuple[int, str]:
    created = folder.name.rpartition("~")[2]
    return (int(created, 16) if re.fullmatch("[0-9a-f]{1,16}", created) else 0), folder.name


def _remove_folder(folder: Path) -> None:
    if folder.exists():
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
        sync_folder(folder.parent)


_PAST: Final = {"create": "CREATED", "delete": "DELETED", "modify": "UPDATED"}
_DELAY: Final = re.compile(rb'\{\s*"delay"\s*:\s*(\d{1,18})\s*\}')


def _delay(argument: bytes) -> int:
    """The delay that a NAK asks for, in nanoseconds."""
    match = _DELAY.match(argument.strip())
    return int(match[1]) if match else 0

"""JetStream within the server: holds the streams and consumers, feeds them, keeps their clocks, and saves
them.

The promises are made in `streams` and `consumers`; here they meet subjects, timers and files.  On disk,
each stream with file storage has a folder ``streams/NAME`` with its configuration and those of its durable
consumers (``stream.json``), the consumers' progress (``progress``), and the segments of messages.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from zlib import crc32

import msgspec
import orjson
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from dendrite_tw.jetstream import errors, wire
from dendrite_tw.jetstream.consumers import Consumer, ConsumerConfig, Snapshot
from dendrite_tw.jetstream.errors import ApiError, refusal
from dendrite_tw.jetstream.server import Server, Subscription
from dendrite_tw.jetstream.store import DamagedError, FileStorage, Syncer, sync_folder, write_file
from dendrite_tw.jetstream.streams import MemoryStorage, Stored, Stream, StreamConfig

SECOND: Final = 1_000_000_000
SWEEP_SECONDS: Final = 1.0
"""How often progress is saved and idle consumers are looked for."""
SHORTEST_WAIT: Final = 0.001

log = Logger(namespace="dendrite_tw.jetstream")


class SavedConsumer(msgspec.Struct, kw_only=True):
    name: str
    config: ConsumerConfig
    created: int
    durable: bool


class SavedStream(msgspec.Struct, kw_only=True):
    """What ``stream.json`` holds."""

    config: StreamConfig
    created: int
    consumers: list[SavedConsumer] = []


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


class Hosted:
    """A stream in the server: its consumers, its files, its subscriptions."""

    def __init__(self, engine: JetStream, stream: Stream, files: FileStorage | None) -> None:
        self.engine = engine
        self.stream = stream
        self.files = files
        self.consumers: dict[str, Consumer] = {}
        self.subscriptions: list[Subscription] = []
        self.expiry: IDelayedCall | None = None
        self.name_bytes = orjson.dumps(stream.config.name)
        self._ages = stream.config.max_age > 0 or bool(stream.config.allow_msg_ttl)

    def listen(self) -> None:
        """Subscribe to the subjects of the configuration, in place of earlier ones."""
        for subscription in self.subscriptions:
            self.engine.server.remove(subscription)
        self.subscriptions = [
            self.engine.server.subscribe(subject, self.ingest)
            for subject in self.stream.config.subjects or ()
        ]
        self._ages = self.stream.config.max_age > 0 or bool(self.stream.config.allow_msg_ttl)
        self.arm_expiry()

    def ingest(self, subject: str, reply: str, headers: bytes, payload: bytes) -> None:
        """A message was published on one of the stream's subjects."""
        engine = self.engine
        now = engine.now()
        try:
            if self.files is not None:
                self._check_disk(self.files)
            accepted = self.stream.publish(subject, headers, payload, now)
        except ApiError as error:
            if reply:
                answer = {"error": error.body(), "stream": self.stream.config.name, "seq": 0}
                engine.server.publish(reply, "", b"", orjson.dumps(answer))
            return
        message = accepted.message
        if message is not None:
            for consumer in tuple(self.consumers.values()):
                consumer.stored(message, now)
            if self._ages and self.expiry is None:
                self.arm_expiry()
        if not reply or self.stream.config.no_ack:
            return
        tail = b', "duplicate":true}' if accepted.duplicate else b"}"
        answer_bytes = b'{"stream":%b, "seq":%d%b' % (self.name_bytes, accepted.seq, tail)
        if self.files is None:
            engine.server.publish(reply, "", b"", answer_bytes)
        else:
            engine.syncer.when_synced(lambda: engine.acknowledge(reply, answer_bytes))

    def _check_disk(self, files: FileStorage) -> None:
        if self.engine.syncer.failing or files.is_full():
            raise refusal(
                errors.STORE_FAILED, f"the disk does not take messages: {self.engine.syncer.failing}"
            )

    # --- time ---

    def arm_expiry(self) -> None:
        if self.expiry is not None:
            self.expiry.cancel()
            self.expiry = None
        at = self.stream.next_expiry()
        if at:
            self.expiry = self.engine.call_at(at, self._expire)

    def _expire(self) -> None:
        self.expiry = None
        self.stream.expire(self.engine.now())
        self.arm_expiry()

    def close(self) -> None:
        """Stop all that runs for the stream; its files stay."""
        if self.expiry is not None:
            self.expiry.cancel()
            self.expiry = None
        for subscription in self.subscriptions:
            self.engine.server.remove(subscription)
        self.subscriptions = []
        for consumer in self.consumers.values():
            self.engine.disarm(consumer)

    # --- files ---

    def description(self) -> bytes:
        saved = SavedStream(
            config=self.stream.config,
            created=self.stream.created,
            consumers=[
                SavedConsumer(name=c.name, config=c.config, created=c.created, durable=c.durable)
                for c in self.consumers.values()
                if not c.config.mem_storage
            ],
        )
        return msgspec.json.encode(saved)

    def save(self) -> None:
        """Write the configuration of stream and consumers, with the next batch."""
        if self.files is not None:
            self.engine.syncer.later(write_file, self.files.folder / "stream.json", self.description())

    def save_progress(self) -> None:
        """Write where the consumers are, if they moved.  Losing this file repeats deliveries, no more."""
        if self.files is None or not any(consumer.dirty for consumer in self.consumers.values()):
            return
        snapshots = []
        for consumer in self.consumers.values():
            consumer.dirty = False
            if not consumer.config.mem_storage:
                snapshots.append(consumer.snapshot())
        body = msgspec.msgpack.encode(snapshots)
        self.engine.syncer.later(
            _write_progress, self.files.folder / "progress", crc32(body).to_bytes(4, "little") + body
        )


def _write_progress(path: Path, data: bytes) -> None:
    write_file(path, data, durable=False)


def read_progress(folder: Path) -> list[Snapshot]:
    """The consumers' progress as it was last saved; nothing if it cannot be trusted."""
    try:
        data = (folder / "progress").read_bytes()
    except FileNotFoundError:
        return []
    if crc32(data[4:]) != int.from_bytes(data[:4], "little"):
        return []
    try:
        return msgspec.msgpack.decode(data[4:], type=list[Snapshot])
    except msgspec.MsgspecError:
        return []


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
        self._by_destination: dict[str, Consumer] = {}
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

    def status(
        self, destination: str, code: int, description: str, fields: dict[str, str], reply: str
    ) -> None:
        block = wire.encode_headers(fields.items(), code, description)
        self.server.forward(destination, destination, reply, block, b"")

    def reaches(self, destination: str, group: str) -> bool:
        return self.server.reaches(destination, group)

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

    def _acknowledge(
        self, consumer: Consumer, seq: int, consumer_seq: int, reply: str, payload: bytes
    ) -> None:
        now = self.now()
        word, _, argument = payload.partition(b" ")
        if word in (b"", b"+ACK"):
            consumer.ack(seq, consumer_seq, now)
        elif word == b"-NAK":
            consumer.nak(seq, _delay(argument), now)
        elif word == b"+WPI":
            consumer.progress(seq, now)
        elif word == b"+TERM":
            consumer.terminate(seq, now)
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
        consumer = self._by_destination.get(subject)
        if consumer is not None:
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
        return hosted

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
        hosted.close()
        del self.streams[name]
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
        """Take a consumer into service."""
        hosted.consumers[consumer.name] = consumer
        hosted.stream.readers[consumer.name] = consumer
        if consumer.is_push:
            self._by_destination[consumer.config.deliver_subject or ""] = consumer
        consumer.dirty = True
        consumer.begin(self.now())

    def delete_consumer(self, hosted: Hosted, consumer: Consumer) -> None:
        consumer.close_requests(409, "Consumer Deleted")
        self._unhost(consumer)
        hosted.consumers.pop(consumer.name, None)
        hosted.stream.readers.pop(consumer.name, None)
        hosted.stream.settle_all()
        hosted.save()

    def reconfigure(self, hosted: Hosted, consumer: Consumer, config: ConsumerConfig) -> None:
        """Give a consumer another configuration, in the middle of its work."""
        self._unhost(consumer)
        consumer.configure(config)
        self.host(hosted, consumer)
        hosted.stream.settle_all()

    def _unhost(self, consumer: Consumer) -> None:
        self.disarm(consumer)
        destination = consumer.config.deliver_subject or ""
        if self._by_destination.get(destination) is consumer:
            del self._by_destination[destination]

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
                self.streams[name].close()
            self.streams[name] = hosted

    def serve(self) -> None:
        """Begin to listen for the recovered streams."""
        now = self.now()
        for hosted in self.streams.values():
            stream = hosted.stream
            stream.enforce_all_limits()
            stream.expire(now)
            stream.settle_all()
            if hosted.files is not None:
                hosted.files.tidy()
            hosted.listen()
            for consumer in tuple(hosted.consumers.values()):
                self.host(hosted, consumer)

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
        recovered = files.recover()
        for message, place in recovered.live():
            stream.recover(message, place, now)
        stream.index.skip_to(recovered.last_seq)
        hosted = Hosted(self, stream, files)
        self._load_consumers(hosted, saved, folder, now)
        return hosted

    def _load_consumers(self, hosted: Hosted, saved: SavedStream, folder: Path, now: int) -> None:
        progress = {snapshot.name: snapshot for snapshot in read_progress(folder)}
        for row in saved.consumers:
            consumer = self.create_consumer(
                hosted, row.name, row.config, durable=row.durable, created=row.created
            )
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


_DELAY: Final = re.compile(rb'\{\s*"delay"\s*:\s*(\d{1,18})\s*\}')


def _delay(argument: bytes) -> int:
    """The delay that a NAK asks for, in nanoseconds."""
    match = _DELAY.match(argument.strip())
    return int(match[1]) if match else 0

"""A stream in the server: the promises of `streams` and `consumers` with subjects, clock, files and followers."""

from __future__ import annotations

import heapq
from pathlib import Path
from typing import TYPE_CHECKING
from zlib import crc32

import msgspec
import orjson
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from dendrite_tw.jetstream import errors, wire
from dendrite_tw.jetstream.batches import Batches, Staged
from dendrite_tw.jetstream.configs import ConsumerConfig, StreamConfig
from dendrite_tw.jetstream.consumers import Consumer
from dendrite_tw.jetstream.deliveries import Snapshot
from dendrite_tw.jetstream.errors import ApiError, refusal
from dendrite_tw.jetstream.schedules import parse_schedule, scheduled_message
from dendrite_tw.jetstream.segments import write_file
from dendrite_tw.jetstream.server import Subscription
from dendrite_tw.jetstream.sources import Feed
from dendrite_tw.jetstream.storage import Stored
from dendrite_tw.jetstream.store import FileStorage
from dendrite_tw.jetstream.streams import Accepted, Stream
from dendrite_tw.jetstream.times import SECOND, format_time
from dendrite_tw.jetstream.transforms import Transform

if TYPE_CHECKING:
    from dendrite_tw.jetstream.engine import JetStream

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


class Hosted:
    """A stream in the server: its consumers, its files, its subscriptions."""

    def __init__(self, engine: JetStream, stream: Stream, files: FileStorage | None) -> None:
        self.engine = engine
        self.stream = stream
        self.files = files
        self.consumers: dict[str, Consumer] = {}
        self.subscriptions: list[Subscription] = []
        self.expiry: IDelayedCall | None = None
        self.feeds: list[Feed] = []
        """Mirrors and others that take from this stream."""
        self.fed_by: list[Feed] = []
        """Where this stream takes from, if it is a mirror or has sources."""
        self.name_bytes = orjson.dumps(stream.config.name)
        self._batches = Batches()
        self._schedules: list[tuple[int, int]] = []
        self._republish: Transform | None = None
        self._ages = False
        self._configured()

    def _configured(self) -> None:
        config = self.stream.config
        self._ages = config.max_age > 0 or bool(config.allow_msg_ttl) or bool(config.allow_msg_schedules)
        rule = config.republish
        self._republish = Transform(str(rule.get("src") or ">"), str(rule["dest"])) if rule else None
        self.stream.check_schedule = lambda text: parse_schedule(text, 0, 0)

    def listen(self) -> None:
        """Subscribe to the subjects of the configuration, in place of earlier ones; begin to follow
        others.
        """
        config = self.stream.config
        for subscription in self.subscriptions:
            self.engine.server.remove(subscription)
        self.subscriptions = [self.engine.server.subscribe(subject, self.ingest) for subject in config.subjects or ()]
        self._configured()
        self.arm_expiry()
        for feed in self.fed_by:
            feed.close()
        self.fed_by = [Feed(self, config.mirror, mirror=True)] if config.mirror else []
        self.fed_by.extend(Feed(self, source, mirror=False) for source in config.sources or ())
        for feed in self.fed_by:
            origin = self.engine.streams.get(feed.name)
            if origin is not None and origin is not self:
                feed.attach(origin)

    # --- taking messages ---

    def ingest(self, subject: str, reply: str, headers: bytes, payload: bytes) -> None:
        """A message was published on one of the stream's subjects."""
        engine = self.engine
        now = engine.now()
        try:
            if self.files is not None:
                self._check_disk(self.files)
            if headers and b"\r\nNats-Batch-Id:" in headers:
                answer = self._ingest_batch(Staged(subject, headers, payload), now)
            else:
                accepted = self.accept(subject, headers, payload, now)
                answer = self._answer(accepted) if reply else b""
        except ApiError as error:
            if reply:
                body = {"error": error.body(), "stream": self.stream.config.name, "seq": 0}
                engine.server.publish(reply, "", b"", orjson.dumps(body))
            return
        if not reply or self.stream.config.no_ack:
            return
        if self.files is None or not answer or self.stream.config.persist_mode == "async":
            engine.server.publish(reply, "", b"", answer)
        else:
            engine.syncer.when_synced(lambda: engine.acknowledge(reply, answer))

    def _answer(self, accepted: Accepted) -> bytes:
        tail = b', "duplicate":true}' if accepted.duplicate else b"}"
        if accepted.value:
            tail = b', "val":"%b"}' % accepted.value.encode()
        return b'{"stream":%b, "seq":%d%b' % (self.name_bytes, accepted.seq, tail)

    def accept(self, subject: str, headers: bytes, payload: bytes, now: int) -> Accepted:
        """Store a message and do what follows from it; raises `errors.ApiError`."""
        accepted = self.stream.publish(subject, headers, payload, now)
        if accepted.message is not None:
            self.stored(accepted.message, now)
        return accepted

    def stored(self, message: Stored, now: int) -> None:
        """The stream has a new message: tell consumers, followers and clocks."""
        if self.consumers:
            for consumer in tuple(self.consumers.values()):
                consumer.stored(message, now)
        if self.feeds:
            for feed in tuple(self.feeds):
                feed.stored(message)
        if self._republish is not None:
            self._publish_again(message, self._republish)
        if self._ages:
            if message.headers and b"\r\nNats-Schedule:" in message.headers:
                self.schedule(message, now)
                self.arm_expiry()
            elif self.expiry is None:
                self.arm_expiry()

    def _ingest_batch(self, staged: Staged, now: int) -> bytes:
        """A message of an atomic batch; answers are empty until the one that commits it."""
        if not self.stream.config.allow_atomic:
            raise refusal(errors.BATCH_DISABLED)
        asked = wire.nats_headers(staged.headers)
        batch = self._batches.take(asked, staged, now)
        if batch is None:
            return b""
        ids: set[str] = set()
        examined = []
        for ahead, part in enumerate(batch):
            one = self.stream.examine(part.subject, part.headers, part.payload, now, ahead)
            if one.duplicate_of or one.msg_id in ids:
                raise refusal(errors.BATCH_DUPLICATE)
            if one.msg_id:
                ids.add(one.msg_id)
            examined.append(one)
        for one, part in zip(examined, batch, strict=True):
            accepted = self.stream.accept(one, part.subject, part.headers, part.payload, now)
            if accepted.message is not None:
                self.stored(accepted.message, now)
        return b'{"stream":%b, "seq":%d, "batch":%b, "count":%d}' % (
            self.name_bytes,
            accepted.seq,
            orjson.dumps(asked["Batch-Id"]),
            len(batch),
        )

    def _publish_again(self, message: Stored, rule: Transform) -> None:
        destination = rule.apply(message.subject)
        if destination is None:
            return
        state = self.stream.index.subjects.get(message.subject)
        previous = self.stream.index.previous_of(state, message.seq) if state is not None else 0
        fields = {
            "Nats-Stream": self.stream.config.name,
            "Nats-Subject": message.subject,
            "Nats-Sequence": str(message.seq),
            "Nats-Time-Stamp": format_time(message.time),
            "Nats-Last-Sequence": str(previous),
        }
        payload = message.payload
        if (self.stream.config.republish or {}).get("headers_only"):
            fields["Nats-Msg-Size"] = str(len(payload))
            payload = b""
        block = wire.replace_headers(message.headers, (), fields)
        self.engine.server.publish(destination, "", block, payload)

    def _check_disk(self, files: FileStorage) -> None:
        if self.engine.syncer.failing or files.is_full():
            raise refusal(errors.STORE_FAILED, f"the disk does not take messages: {self.engine.syncer.failing}")

    # --- time ---

    def schedule(self, message: Stored, now: int) -> None:
        """Remember when a message with a schedule is due."""
        text = wire.nats_headers(message.headers).get("Schedule", "")
        try:
            heapq.heappush(self._schedules, (parse_schedule(text, message.time, now).at, message.seq))
        except ApiError:
            return

    def arm_expiry(self) -> None:
        if self.expiry is not None:
            self.expiry.cancel()
            self.expiry = None
        moments = [at for at in (self.stream.next_expiry(), self._schedules[0][0] if self._schedules else 0) if at]
        if moments:
            self.expiry = self.engine.call_at(min(moments), self._due)

    def _due(self) -> None:
        self.expiry = None
        now = self.engine.now()
        for subject in self.stream.expire(now):
            self._leave_marker(subject, now)
        while self._schedules and self._schedules[0][0] <= now:
            self._fire(heapq.heappop(self._schedules)[1], now)
        self.arm_expiry()

    def _leave_marker(self, subject: str, now: int) -> None:
        """The last message of a subject has expired: say so to those who watch it."""
        lifetime = self.stream.config.subject_delete_marker_ttl or 0
        fields = {"Nats-Marker-Reason": "MaxAge", "Nats-TTL": str(-(-lifetime // SECOND))}
        try:
            self.accept(subject, wire.encode_headers(fields.items()), b"", now)
        except ApiError as error:
            log.warn("{stream}: no marker: {error}", stream=self.stream.config.name, error=error.description)

    def _fire(self, seq: int, now: int) -> None:
        """A scheduled message is due."""
        message = self.stream.read(seq)
        if message is None:
            return
        text = wire.nats_headers(message.headers)["Schedule"]
        schedule = parse_schedule(text, message.time, now)
        target, block, payload = scheduled_message(message, schedule, now)
        if schedule.every:
            heapq.heappush(self._schedules, (schedule.at, seq))
        else:
            self.stream.erase(seq)
        self.ingest(target, "", block, payload)

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
        for feed in self.fed_by:
            feed.close()
        for feed in tuple(self.feeds):
            feed.detach()

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

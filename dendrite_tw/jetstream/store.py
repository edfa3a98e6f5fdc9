"""Messages on disk: segment files with a checksum for each record, appended, synced in batches, recovered.

A stream has a folder of segments.  A segment is named for the first sequence it may hold and is a run of
records:

    magic (2) | kind (1) | flags (1) | CRC-32 of what follows (4) | length of the body (4) | body

The body of a MESSAGE is ``seq, time, length of subject, length of headers, subject, headers, payload``.
The other kinds say what is gone: ERASED (sequences deleted on request), FLOOR (nothing below is needed),
SKIPPED (sequences passed over).

**Syncing.**  What is appended while a sync is under way forms the next batch: no lingering, and one
`fdatasync` for as many messages as arrived meanwhile.  The `Syncer` does this for all streams, off the
reactor thread.

**Recovery.**  A crash leaves a prefix of what was written, perhaps with a torn batch at the end; nothing of
that batch was acknowledged, so it is cut off.  The first record of each batch is flagged: since a batch
begins only when the one before it is on disk, a flagged record *behind* a damaged one proves that
acknowledged data is damaged, which no crash does.  Then `DamagedError` is raised, and the stream is set
aside.
"""

from __future__ import annotations

import os
import struct
from collections import deque
from collections.abc import Callable, Iterator
from itertools import takewhile
from pathlib import Path
from typing import Final, TypeVar
from zlib import crc32

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from dendrite_tw.jetstream.index import Index
from dendrite_tw.jetstream.streams import Stored

T = TypeVar("T")
Run = Callable[..., "Deferred[T]"]
"""Runs a function with its arguments elsewhere (a thread) and promises its result, as `deferToThread`
does.
"""

SEGMENT_BYTES: Final = 8 * 1024 * 1024
RECENT_BYTES: Final = 256 * 1024
"""Bytes of a stream's newest messages that stay in memory after they were written, for readers close
behind.
"""
RETRY_SECONDS: Final = 1.0
MAX_UNWRITTEN: Final = 64 * 1024 * 1024
"""Bytes that may wait for a disk that does not take them; beyond, publications are refused."""

_MAGIC: Final = b"\xa7J"
_HEAD: Final = struct.Struct("<2sBBII")
_BODY: Final = struct.Struct("<QqHI")
_SEQ: Final = struct.Struct("<Q")
_MESSAGE, _ERASED, _FLOOR, _SKIPPED = 1, 2, 3, 4
_BATCH_START: Final = 1
_FLAGS_AT: Final = 3
_MAX_RECORD: Final = 80 * 1024 * 1024
_OFFSET_BITS: Final = 32
_OFFSET_MASK: Final = (1 << _OFFSET_BITS) - 1
_READ_AHEAD: Final = 4096
_OPEN_READERS: Final = 16
_ERASED_PER_RECORD: Final = 10_000

log = Logger(namespace="dendrite_tw.jetstream.store")


class DamagedError(Exception):
    """Acknowledged data of a stream cannot be read back."""


# --- records ---


def encode_record(kind: int, body: bytes) -> bytes:
    """The bytes of a record, not flagged as the start of a batch."""
    size = len(body)
    return _HEAD.pack(_MAGIC, kind, 0, crc32(body, size ^ kind), size) + body


def encode_message(message: Stored) -> bytes:
    subject, headers, payload = message.subject.encode(), message.headers, message.payload
    head = _BODY.pack(message.seq, message.time, len(subject), len(headers)) + subject + headers
    size = len(head) + len(payload)
    crc = crc32(payload, crc32(head, size ^ _MESSAGE))
    return b"".join((_HEAD.pack(_MAGIC, _MESSAGE, 0, crc, size), head, payload))


def decode_message(body: bytes) -> Stored:
    seq, time, subject_size, header_size = _BODY.unpack_from(body)
    at = _BODY.size + subject_size
    return Stored(seq, time, body[_BODY.size : at].decode(), body[at : at + header_size], body[at + header_size :])


class Record:
    """A record as it was found in a segment."""

    __slots__ = ("body", "end", "flags", "kind", "offset")

    def __init__(self, offset: int, kind: int, flags: int, body: bytes) -> None:
        self.offset = offset
        self.kind = kind
        self.flags = flags
        self.body = body
        self.end = offset + _HEAD.size + len(body)

    def raw(self) -> bytes:
        """The record anew, flagged as it was."""
        record = bytearray(encode_record(self.kind, self.body))
        record[_FLAGS_AT] = self.flags
        return bytes(record)


def record_at(data: bytes, offset: int) -> Record | None:
    """The valid record that begins here, or ``None``."""
    if len(data) < offset + _HEAD.size:
        return None
    magic, kind, flags, crc, size = _HEAD.unpack_from(data, offset)
    start = offset + _HEAD.size
    if magic != _MAGIC or size > _MAX_RECORD or len(data) < start + size:
        return None
    body = data[start : start + size]
    if crc32(body, size ^ kind) != crc or (kind == _MESSAGE and size < _BODY.size):
        return None
    return Record(offset, kind, flags, body)


def scan(data: bytes) -> tuple[list[Record], bool]:
    """The records of a segment up to the first damaged one, and whether a later batch follows the damage."""
    records = []
    offset = 0
    while (record := record_at(data, offset)) is not None:
        records.append(record)
        offset = record.end
    return records, _has_later_batch(data, offset + 1)


def _has_later_batch(data: bytes, offset: int) -> bool:
    while (offset := data.find(_MAGIC, offset)) >= 0:
        record = record_at(data, offset)
        if record is not None and record.flags & _BATCH_START:
            return True
        offset += 1
    return False


# --- segments ---


class Segment:
    """One file of records.

    ``size`` counts what has been handed over for writing, ``live`` the messages that are still needed.
    Writing and reading use a descriptor each, since they happen in different threads.
    """

    def __init__(self, path: Path, number: int, first_seq: int) -> None:
        self.path = path
        self.number = number
        self.first_seq = first_seq
        self.size = 0
        """Bytes that were handed over for writing."""
        self.written = 0
        """Bytes that are on disk."""
        self.live = 0
        """Messages that are still needed."""
        self.live_bytes = 0
        self.guards = False
        """Whether it says of messages in older segments that they were erased."""
        self.compacting = False
        self._writer = -1
        self._reader = -1

    def writer(self) -> int:
        if self._writer < 0:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            is_new = not self.path.exists()
            self._writer = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            if is_new:
                sync_folder(self.path.parent)
        return self._writer

    def reader(self) -> int:
        if self._reader < 0:
            self._reader = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        return self._reader

    def close_writer(self) -> None:
        if self._writer >= 0:
            os.close(self._writer)
            self._writer = -1

    def close_reader(self) -> None:
        if self._reader >= 0:
            os.close(self._reader)
            self._reader = -1

    def read(self, offset: int, seq: int) -> Stored | None:
        """The message of the record at this offset; ``None`` if it is damaged or another's."""
        try:
            descriptor = self.reader()
            head = os.pread(descriptor, _READ_AHEAD, offset)
            if len(head) >= _HEAD.size:
                size = _HEAD.unpack_from(head)[4] + _HEAD.size
                if len(head) < size <= _MAX_RECORD:
                    head += os.pread(descriptor, size - len(head), offset + len(head))
        except OSError as error:
            log.error("{path}: {error}", path=self.path.name, error=str(error))
            return None
        record = record_at(head, 0)
        message = decode_message(record.body) if record is not None and record.kind == _MESSAGE else None
        if message is None or message.seq != seq:
            log.error("{path}: no message {seq} at byte {offset}", path=self.path.name, seq=seq, offset=offset)
            return None
        return message


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Replace a small file as a whole; after a crash there is the old one or the new one, if ``durable``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        _write_all(descriptor, data, 0)
        if durable:
            os.fdatasync(descriptor)
    finally:
        os.close(descriptor)
    fresh.replace(path)
    if durable:
        sync_folder(path.parent)


def _write_all(descriptor: int, data: bytes | bytearray, offset: int) -> None:
    done = os.pwrite(descriptor, data, offset)
    while done < len(data):
        done += os.pwrite(descriptor, memoryview(data)[done:], offset + done)


class Write:
    """What one batch adds to one segment."""

    __slots__ = ("chunks", "offset", "segment", "size")

    def __init__(self, segment: Segment, offset: int) -> None:
        self.segment = segment
        self.offset = offset
        self.chunks: list[bytes] = []
        self.size = 0

    def perform(self) -> None:
        """In the thread: write at the known offset, so that a repetition after a failure does no harm, and
        sync.
        """
        data = bytearray().join(self.chunks)
        data[_FLAGS_AT] = _BATCH_START
        descriptor = self.segment.writer()
        _write_all(descriptor, data, self.offset)
        os.fdatasync(descriptor)


class FileStorage:
    """The messages of one stream in segment files."""

    def __init__(self, folder: Path, syncer: Syncer, index: Index, segment_bytes: int = SEGMENT_BYTES) -> None:
        self.folder = folder
        self._syncer = syncer
        self._index = index
        self._segment_bytes = segment_bytes
        self._segments: dict[int, Segment] = {}
        self._active: Segment | None = None
        self._readers: deque[Segment] = deque()
        self._writes: list[Write] = []
        self._unwritten = 0
        self._recent: dict[int, Stored] = {}
        self._recent_order: deque[tuple[int, int]] = deque()
        self._recent_bytes = 0
        self._rolled = False
        self._floor = self._noted_floor = 0
        self._skipped = self._noted_skip = 0

    # --- appending ---

    def append(self, message: Stored) -> int:
        seq = message.seq
        record = encode_message(message)
        size = len(record)
        segment, offset = self._write(record, seq)
        segment.live += 1
        segment.live_bytes += size
        self._recent[seq] = message
        self._recent_order.append((seq, size))
        self._recent_bytes += size
        return segment.number << _OFFSET_BITS | offset

    def _write(self, record: bytes, seq: int) -> tuple[Segment, int]:
        size = len(record)
        segment = self._active
        if segment is None or (segment.size and segment.size + size > self._segment_bytes):
            segment = self._roll(seq)
        offset = segment.size
        segment.size += size
        writes = self._writes
        if not writes or writes[-1].segment is not segment:
            writes.append(Write(segment, offset))
        writes[-1].chunks.append(record)
        writes[-1].size += size
        self._unwritten += size
        self._syncer.want(self)
        return segment, offset

    def _roll(self, seq: int) -> Segment:
        """Begin a new segment; the old one goes as soon as nothing in it lives."""
        number = max(self._segments, default=0) + 1
        segment = Segment(self.folder / f"{number:010d}-{seq}.seg", number, seq)
        old, self._active = self._active, segment
        self._segments[number] = segment
        if old is not None:
            self._syncer.later(old.close_writer)
            self._discard_dead()
            self._rolled = True
        return segment

    def is_full(self) -> bool:
        """Whether the disk has refused so much that no more can be taken."""
        return self._unwritten > MAX_UNWRITTEN

    def erased(self, seqs: list[int]) -> None:
        for start in range(0, len(seqs), _ERASED_PER_RECORD):
            part = seqs[start : start + _ERASED_PER_RECORD]
            record = encode_record(_ERASED, struct.pack(f"<{len(part)}Q", *part))
            segment, _ = self._write(record, self._index.last_seq + 1)
            segment.guards = True

    def floor(self, seq: int) -> None:
        self._floor = seq

    def skipped(self, seq: int) -> None:
        self._skipped = seq

    def note_floor(self) -> None:
        """Write down what need not be read again, and which sequences passed, with the next batch."""
        if self._skipped > self._noted_skip:
            self._noted_skip = self._skipped
            self._write(encode_record(_SKIPPED, _SEQ.pack(self._skipped)), self._skipped + 1)
        if self._floor > self._noted_floor:
            self._noted_floor = self._floor
            self._write(encode_record(_FLOOR, _SEQ.pack(self._floor)), self._index.last_seq + 1)

    # --- the syncer's side ---

    def take(self) -> list[Write]:
        """The writes of the next batch."""
        if self._writes:
            self.note_floor()
        writes, self._writes = self._writes, []
        return writes

    def written(self, writes: list[Write]) -> None:
        """The batch is on disk."""
        for write in writes:
            self._unwritten -= write.size
            write.segment.written = write.offset + write.size
        if self._rolled:
            self._rolled = False
            self._compact_one()
        allowed = RECENT_BYTES + self._unwritten
        while self._recent_bytes > allowed:
            seq, size = self._recent_order.popleft()
            self._recent.pop(seq, None)
            self._recent_bytes -= size

    # --- reading and letting go ---

    def read(self, seq: int, place: int) -> Stored | None:
        message = self._recent.get(seq)
        if message is not None:
            return message
        segment = self._segments.get(place >> _OFFSET_BITS)
        if segment is None:
            return None
        if segment not in self._readers:
            self._readers.append(segment)
            if len(self._readers) > _OPEN_READERS and not self._readers[0].compacting:
                self._readers.popleft().close_reader()
        return segment.read(place & _OFFSET_MASK, seq)

    def release(self, seq: int, place: int, size: int) -> None:
        self._recent.pop(seq, None)
        segment = self._segments.get(place >> _OFFSET_BITS)
        if segment is None:
            return
        segment.live -= 1
        segment.live_bytes -= size
        if not segment.live and segment is not self._active:
            self._discard_dead()

    def _discard_dead(self) -> None:
        """Delete the segments in which nothing lives; one that guards older segments stays as long as
        they.
        """
        has_older = False
        for segment in list(self._segments.values()):
            if segment.live or segment is self._active or segment.compacting or (segment.guards and has_older):
                has_older = True
                continue
            del self._segments[segment.number]
            if segment in self._readers:
                self._readers.remove(segment)
            segment.close_reader()
            self._syncer.later(remove_segment, segment)

    # --- compaction ---

    def _compact_one(self) -> None:
        """Rewrite the oldest segment of which more than half is dead."""
        for segment in self._segments.values():
            if segment is not self._active and not segment.compacting and segment.live_bytes * 2 < segment.size:
                self._compact(segment)
                return

    def _compact(self, segment: Segment) -> None:
        segment.compacting = True
        segment.reader()
        end = min(other.first_seq for other in self._segments.values() if other.number > segment.number)
        alive = set(takewhile(end.__gt__, self._index.sequences(segment.first_seq)))
        places: dict[int, int] = {}
        sizes: list[int] = []

        def rewrite() -> None:
            kept, kept_places = bytearray(), {}
            for record in scan(segment.path.read_bytes())[0]:
                if record.kind == _MESSAGE:
                    seq = _SEQ.unpack_from(record.body)[0]
                    if seq not in alive:
                        continue
                    kept_places[seq] = len(kept)
                kept += record.raw()
            write_file(segment.path, bytes(kept))
            places.update(kept_places)
            sizes.append(len(kept))

        def finished() -> None:
            segment.compacting = False
            segment.close_reader()
            if segment in self._readers:
                self._readers.remove(segment)
            if sizes:
                segment.size = segment.written = sizes[0]
            for seq, offset in places.items():
                if seq in self._index:
                    self._index.move(seq, segment.number << _OFFSET_BITS | offset)
            self._discard_dead()

        self._syncer.later(rewrite)
        self._syncer.when_synced(finished)

    # --- recovery ---

    def recover(self) -> Recovered:
        """Read back what survived; cuts a torn tail off.  Raises `DamagedError` if more than that is
        wrong.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for stale in self.folder.glob("*.new"):
            stale.unlink()
        found = Recovered()
        paths = sorted(self.folder.glob("*.seg"))
        for path in paths:
            segment = _segment_of(path)
            self._segments[segment.number] = self._active = segment
            try:
                data = path.read_bytes()
            except OSError as error:
                raise DamagedError(f"{path.name}: {error}") from error
            records, continues = scan(data)
            segment.size = segment.written = records[-1].end if records else 0
            if segment.size < len(data):
                if continues or path is not paths[-1]:
                    raise DamagedError(f"{path.name}: unreadable at byte {segment.size}")
                _cut(segment, len(data))
            found.segments.append(segment)
            found.last_seq = max(found.last_seq, segment.first_seq - 1)
            for record in records:
                found.note(record, segment)
        self._noted_floor = self._floor = found.floor
        self._noted_skip = self._skipped = found.last_seq
        return found

    def tidy(self) -> None:
        """After a recovery: drop the segments in which nothing lives."""
        self._discard_dead()

    def close(self) -> None:
        """Give the descriptors back."""
        for segment in self._segments.values():
            segment.close_reader()
            segment.close_writer()

    def abandon(self) -> None:
        """The stream is deleted: its files are closed once they are no longer written to."""
        self._syncer.later(self.close)


class Recovered:
    """What was read back from a folder: the messages with their places, and what is said to be gone."""

    def __init__(self) -> None:
        self.segments: list[Segment] = []
        self.floor = 0
        self.last_seq = 0
        self.erased: set[int] = set()

    def note(self, record: Record, segment: Segment) -> None:
        if record.kind == _MESSAGE:
            seq = _SEQ.unpack_from(record.body)[0]
            self.last_seq = max(self.last_seq, seq)
        elif record.kind == _ERASED:
            segment.guards = True
            count = len(record.body) // 8
            self.erased.update(struct.unpack(f"<{count}Q", record.body[: count * 8]))
        elif record.kind == _FLOOR:
            self.floor = max(self.floor, _SEQ.unpack(record.body)[0])
            self.last_seq = max(self.last_seq, self.floor - 1)
        elif record.kind == _SKIPPED:
            self.last_seq = max(self.last_seq, _SEQ.unpack(record.body)[0])

    def live(self) -> Iterator[tuple[Stored, int]]:
        """The messages that are not gone, in order, each with its place; counts them in their segments."""
        for segment in self.segments:
            for record in scan(segment.path.read_bytes())[0]:
                if record.kind != _MESSAGE:
                    continue
                message = decode_message(record.body)
                if message.seq >= self.floor and message.seq not in self.erased:
                    segment.live += 1
                    segment.live_bytes += record.end - record.offset
                    yield message, segment.number << _OFFSET_BITS | record.offset


def _cut(segment: Segment, size: int) -> None:
    """Cut off the torn end of a file that has this size."""
    log.warn(
        "{path}: {count} bytes at the end were never acknowledged, and are cut off",
        path=segment.path.name,
        count=size - segment.size,
    )
    os.ftruncate(segment.writer(), segment.size)
    os.fdatasync(segment.writer())


def _segment_of(path: Path) -> Segment:
    number, _, first_seq = path.stem.partition("-")
    if not (number.isdecimal() and first_seq.isdecimal()):
        raise DamagedError(f"{path.name}: not the name of a segment")
    return Segment(path, int(number), int(first_seq))


def remove_segment(segment: Segment) -> None:
    segment.close_writer()
    segment.path.unlink(missing_ok=True)


# --- syncing ---


class Syncer:
    """Brings all that was appended to disk, batch after batch, and runs what must come between two batches.

    A batch that fails is tried again until it succeeds; meanwhile nothing is acknowledged and ``failing``
    says why.
    """

    def __init__(self, run: Run[None], call_later: Callable[[float, Callable[[], None]], object]) -> None:
        self._run = run
        self._call_later = call_later
        self._wanting: dict[FileStorage, None] = {}
        self._jobs: list[Callable[[], object]] = []
        self._waiting: list[Callable[[], None]] = []
        self._busy = False
        self._scheduled = False
        self.after_batch: Callable[[], None] = lambda: None
        """Called when those who waited for a batch have been told."""
        self.failing = ""
        self.batches = 0

    def want(self, storage: FileStorage) -> None:
        """The storage has something to write."""
        self._wanting[storage] = None
        if not self._busy and not self._scheduled:
            self._schedule()

    def later(self, job: Callable[..., object], *args: object) -> None:
        """Run a job in the thread, after all that was appended until now is on disk."""
        self._jobs.append((lambda: job(*args)) if args else job)
        if not self._busy and not self._scheduled:
            self._schedule()

    def when_synced(self, call: Callable[[], None]) -> None:
        """Call back when all that was appended until now is on disk: at once if it is."""
        if self._busy or self._wanting or self._jobs:
            self._waiting.append(call)
        else:
            call()

    def is_idle(self) -> bool:
        return not (self._busy or self._wanting or self._jobs)

    def _schedule(self) -> None:
        """Start when the present turn of the reactor is over: what it still appends joins the batch."""
        self._scheduled = True
        self._call_later(0, self._start)

    def kick(self) -> None:
        """A turn's work is done: sync now what it appended."""
        if not self._busy and (self._wanting or self._jobs):
            self._start()

    def _start(self) -> None:
        self._scheduled = False
        if self._busy or not (self._wanting or self._jobs):
            return
        storages, self._wanting = list(self._wanting), {}
        jobs, self._jobs = self._jobs, []
        waiting, self._waiting = self._waiting, []
        batch = [(storage, storage.take()) for storage in storages]
        # Taking may have noted a floor, which is part of this batch.
        self._wanting.clear()
        self._busy = True
        self._attempt(batch, jobs, waiting)

    def _attempt(
        self,
        batch: list[tuple[FileStorage, list[Write]]],
        jobs: list[Callable[[], object]],
        waiting: list[Callable[[], None]],
    ) -> None:
        writes = [write for _, part in batch for write in part]

        def succeeded(ignored: None) -> None:
            self.failing = ""
            self.batches += 1
            self._busy = False
            for storage, part in batch:
                storage.written(part)
            if self._wanting or self._jobs:
                self._start()
            for call in waiting:
                call()
            self.after_batch()

        def failed(failure: Failure) -> None:
            if not self.failing:
                log.error("The queue cannot write: {error}", error=failure.getErrorMessage())
            self.failing = failure.getErrorMessage() or "unknown error"
            self._call_later(RETRY_SECONDS, lambda: self._attempt(batch, jobs, waiting))

        self._run(perform, writes, jobs).addCallbacks(succeeded, failed)


def perform(writes: list[Write], jobs: list[Callable[[], object]]) -> None:
    """In the thread: all writes, each synced, then the jobs.  Only a failed write fails the batch."""
    for write in writes:
        write.perform()
    for job in jobs:
        try:
            job()
        except OSError as error:
            log.error("The queue cannot tidy up: {error}", error=str(error))

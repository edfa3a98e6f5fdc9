"""The messages of a stream in segment files: what is appended, read, let go, compacted and recovered.

Records and files are those of `segments`; `syncer` decides when they are written.
"""

from __future__ import annotations

import os
import struct
from collections import deque
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Final

from twisted.logger import Logger

from dendrite_tw.jetstream.index import Index
from dendrite_tw.jetstream.segments import (
    ERASED,
    FLOOR,
    MESSAGE,
    SEQ,
    SKIPPED,
    DamagedError,
    Record,
    Segment,
    Write,
    decode_message,
    encode_message,
    encode_record,
    scan,
    write_file,
)
from dendrite_tw.jetstream.storage import Stored
from dendrite_tw.jetstream.syncer import Syncer

SEGMENT_BYTES: Final = 8 * 1024 * 1024
RECENT_BYTES: Final = 256 * 1024
"""Bytes of a stream's newest messages that stay in memory after they were written, for readers close
behind.
"""
MAX_UNWRITTEN: Final = 64 * 1024 * 1024
"""Bytes that may wait for a disk that does not take them; beyond, publications are refused."""

_OFFSET_BITS: Final = 32
_OFFSET_MASK: Final = (1 << _OFFSET_BITS) - 1
_OPEN_READERS: Final = 16
_ERASED_PER_RECORD: Final = 10_000

log = Logger(namespace="dendrite_tw.jetstream.store")


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
            record = encode_record(ERASED, struct.pack(f"<{len(part)}Q", *part))
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
            self._write(encode_record(SKIPPED, SEQ.pack(self._skipped)), self._skipped + 1)
        if self._floor > self._noted_floor:
            self._noted_floor = self._floor
            self._write(encode_record(FLOOR, SEQ.pack(self._floor)), self._index.last_seq + 1)

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
                if record.kind == MESSAGE:
                    seq = SEQ.unpack_from(record.body)[0]
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
        if record.kind == MESSAGE:
            seq = SEQ.unpack_from(record.body)[0]
            self.last_seq = max(self.last_seq, seq)
        elif record.kind == ERASED:
            segment.guards = True
            count = len(record.body) // 8
            self.erased.update(struct.unpack(f"<{count}Q", record.body[: count * 8]))
        elif record.kind == FLOOR:
            self.floor = max(self.floor, SEQ.unpack(record.body)[0])
            self.last_seq = max(self.last_seq, self.floor - 1)
        elif record.kind == SKIPPED:
            self.last_seq = max(self.last_seq, SEQ.unpack(record.body)[0])

    def live(self) -> Iterator[tuple[Stored, int]]:
        """The messages that are not gone, in order, each with its place; counts them in their segments."""
        for segment in self.segments:
            for record in scan(segment.path.read_bytes())[0]:
                if record.kind != MESSAGE:
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

"""Segment files: records with a checksum each, appended, and read back as far as they are whole.

A stream has a folder of segments.  A segment is named for the first sequence it may hold and is a run of
records:

    magic (2) | kind (1) | flags (1) | CRC-32 of what follows (4) | length of the body (4) | body

The body of a MESSAGE is ``seq, time, length of subject, length of headers, subject, headers, payload``.
The other kinds say what is gone: ERASED (sequences deleted on request), FLOOR (nothing below is needed),
SKIPPED (sequences passed over).

A crash leaves a prefix of what was written, perhaps with a torn batch at the end; nothing of
that batch was acknowledged, so it is cut off.  The first record of each batch is flagged: since a batch
begins only when the one before it is on disk, a flagged record *behind* a damaged one proves that
acknowledged data is damaged, which no crash does.  Then `DamagedError` is raised, and the stream is set
aside.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Final
from zlib import crc32

from twisted.logger import Logger

from dendrite_tw.jetstream.storage import Stored

log = Logger(namespace="dendrite_tw.jetstream.store")


_MAGIC: Final = b"\xa7J"


_HEAD: Final = struct.Struct("<2sBBII")


_BODY: Final = struct.Struct("<QqHI")


SEQ: Final = struct.Struct("<Q")


MESSAGE, ERASED, FLOOR, SKIPPED = 1, 2, 3, 4


_BATCH_START: Final = 1


_FLAGS_AT: Final = 3


_MAX_RECORD: Final = 80 * 1024 * 1024


_READ_AHEAD: Final = 4096


class DamagedError(Exception):
    """Acknowledged data of a stream cannot be read back."""


def encode_record(kind: int, body: bytes) -> bytes:
    """The bytes of a record, not flagged as the start of a batch."""
    size = len(body)
    return _HEAD.pack(_MAGIC, kind, 0, crc32(body, size ^ kind), size) + body


def encode_message(message: Stored) -> bytes:
    subject, headers, payload = message.subject.encode(), message.headers, message.payload
    head = _BODY.pack(message.seq, message.time, len(subject), len(headers)) + subject + headers
    size = len(head) + len(payload)
    crc = crc32(payload, crc32(head, size ^ MESSAGE))
    return b"".join((_HEAD.pack(_MAGIC, MESSAGE, 0, crc, size), head, payload))


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
    if crc32(body, size ^ kind) != crc or (kind == MESSAGE and size < _BODY.size):
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
        message = decode_message(record.body) if record is not None and record.kind == MESSAGE else None
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

"""What a stream promises, pure: order, limits, retention, deduplication, and what it does with each message.

A `Stream` keeps the `Index` of its messages and hands their bytes to a `Storage`.  Time is an argument
(``now``, nanoseconds since the epoch); nothing here waits, sleeps or touches a disk.

Reference: NATS documentation, "Streams"; the fields of `StreamConfig` are those of the JetStream API.
"""

from __future__ import annotations

import heapq
import re
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

import msgspec

from dendrite_tw.jetstream import errors, wire
from dendrite_tw.jetstream.configs import StreamConfig
from dendrite_tw.jetstream.errors import refusal
from dendrite_tw.jetstream.index import Entry, Index
from dendrite_tw.jetstream.storage import Storage, Stored
from dendrite_tw.jetstream.subjects import is_literal, is_valid, matches
from dendrite_tw.jetstream.times import SECOND, parse_duration
from dendrite_tw.jetstream.transforms import Transform

DEFAULT_DUPLICATE_WINDOW: Final = 120 * SECOND
MAX_MSG_IDS: Final = 1_000_000
"""Message ids remembered for deduplication; beyond, the oldest are forgotten before their time."""


class Reader(Protocol):
    """What a stream must know of a consumer, to keep what that one still needs."""

    def wants(self, subject: str) -> bool: ...

    def needs(self, seq: int) -> bool:
        """Whether the message has yet to be delivered to, or acknowledged by, this consumer."""

    def lost(self, entry: Entry) -> None:
        """The message has left the stream."""


class Accepted(msgspec.Struct, frozen=True, gc=False):
    """The outcome of a publication; ``message`` is ``None`` when nothing was stored (a duplicate, or no
    interest).
    """

    seq: int
    duplicate: bool
    message: Stored | None
    value: str = ""
    """The total of a counter."""


class Examined(msgspec.Struct, frozen=True, gc=False):
    """A publication that the stream would accept: its message id, its server headers, when it expires."""

    msg_id: str
    asked: dict[str, str]
    expires: int
    duplicate_of: int = 0


_PLAIN: Final = Examined("", {}, 0)


class Stream:
    """One stream: takes messages, keeps them as long as its limits and its consumers say."""

    def __init__(self, config: StreamConfig, storage: Storage, created: int) -> None:
        self.configure(config)
        self.created = created
        self.storage = storage
        self.index = Index(config.first_seq or 1)
        self.readers: dict[str, Reader] = {}
        self._ids: dict[str, int] = {}
        self._id_order: deque[tuple[int, str]] = deque()
        self._expiring: list[tuple[int, int]] = []
        self.check_schedule: Callable[[str], object] = lambda text: None
        """Raises `errors.ApiError` for a schedule that is not one."""
        self.sourced: dict[str, int] = {}
        """How far each source was read, by what is in the stream."""

    def configure(self, config: StreamConfig) -> None:
        """Take over a configuration; `enforce_all_limits` applies it to what is there."""
        self.config = config
        mapping = config.subject_transform
        self._transform = Transform(mapping.get("src", ""), mapping.get("dest", "")) if mapping else None
        self._limited = config.max_msgs > 0 or config.max_bytes > 0 or config.max_msgs_per_subject > 0

    # --- taking messages in ---

    def publish(self, subject: str, headers: bytes, payload: bytes, now: int) -> Accepted:
        """Store a message, unless a rule of the stream or a condition in its headers forbids it.

        Raises `errors.ApiError` with what the publisher is told.
        """
        if self._transform is not None:
            subject = self._transform.apply(subject) or subject
        examined = self.examine(subject, headers, payload, now)
        if examined.duplicate_of:
            return Accepted(examined.duplicate_of, True, None)
        return self.accept(examined, subject, headers, payload, now)

    def examine(self, subject: str, headers: bytes, payload: bytes, now: int, ahead: int = 0) -> Examined:
        """Whether the stream takes a message, after ``ahead`` others; raises `errors.ApiError` if not."""
        config = self.config
        examined = _PLAIN
        if headers and b"\r\nNats-" in headers:
            asked = wire.nats_headers(headers)
            msg_id = asked.get("Msg-Id", "")
            if msg_id:
                known = self._known_id(msg_id, now)
                if known:
                    return Examined(msg_id, asked, 0, known)
            expires = 0
            if len(asked) > 1 or not msg_id:
                expires = self._check_conditions(subject, asked, now, ahead)
            examined = Examined(msg_id, asked, expires)
        if config.sealed:
            raise refusal(errors.STREAM_SEALED)
        if 0 <= config.max_msg_size < len(headers) + len(payload):
            raise refusal(errors.MESSAGE_TOO_LARGE)
        if config.allow_msg_counter:
            self._check_counter(examined.asked, payload)
        if config.discard == "new":
            self._check_room(subject, self.size_of(subject, headers, payload), ahead)
        return examined

    def accept(self, examined: Examined, subject: str, headers: bytes, payload: bytes, now: int) -> Accepted:
        """Store a message that has been examined."""
        config, asked, value = self.config, examined.asked, ""
        seq = self.index.last_seq + 1
        if config.retention == "interest" and not any(r.wants(subject) for r in self.readers.values()):
            self.index.skip_to(seq)
            self.storage.skipped(seq)
            self._remember_id(examined.msg_id, seq, now)
            return Accepted(seq, False, None)
        if config.allow_msg_counter:
            value = self._add_up(subject, asked["Incr"])
            payload = b'{"val":"%b"}' % value.encode()
        marker = config.subject_delete_marker_ttl or 0
        expires = examined.expires
        if 0 < expires < now + marker:
            expires = now + marker
            headers = wire.replace_headers(headers, ("Nats-TTL",), {"Nats-TTL": str(-(-marker // SECOND))})
        message = Stored(seq, now, subject, headers, payload)
        self._enter(message, self.storage.append(message))
        self._remember_id(examined.msg_id, seq, now)
        if asked:
            if expires > 0:
                heapq.heappush(self._expiring, (expires, seq))
            if "Rollup" in asked:
                self.purge([] if asked["Rollup"] == "all" else [subject], before=seq)
            elif "Schedule" in asked:
                self.purge([subject], before=seq)
        if self._limited:
            self._enforce_limits(subject)
        return Accepted(seq, False, message, value)

    def _enter(self, message: Stored, place: int) -> None:
        size = self.size_of(message.subject, message.headers, message.payload)
        self.index.add(message.seq, message.subject, size, message.time, place)

    def copy(self, message: Stored) -> None:
        """Store a message of a mirrored stream as it is, under its own sequence."""
        self.index.skip_to(message.seq - 1)
        self._enter(message, self.storage.append(message))
        lifetime = wire.header(message.headers, "Nats-TTL")
        if lifetime and self.config.allow_msg_ttl:
            self._expire_later(lifetime, message)
        if self._limited:
            self._enforce_limits(message.subject)

    def size_of(self, subject: str, headers: bytes, payload: bytes) -> int:
        """What a message counts against ``max_bytes``: as in a NATS server's own accounting."""
        size = len(subject) + len(headers) + len(payload)
        if self.config.storage == "memory":
            return size + 16
        return size + (34 if headers else 30)

    def _check_conditions(self, subject: str, asked: dict[str, str], now: int, ahead: int) -> int:
        """Hold the publisher's expectations against the stream; returns when the message is to expire, or
        0.
        """
        expected = asked.get("Expected-Stream")
        if expected and expected != self.config.name:
            raise refusal(errors.EXPECTED_STREAM)
        last_id = asked.get("Expected-Last-Msg-Id")
        if last_id:
            newest = self._id_order[-1][1] if self._id_order else ""
            if newest != last_id:
                raise refusal(errors.WRONG_LAST_MSG_ID, newest)
        last_seq = asked.get("Expected-Last-Sequence")
        if last_seq and last_seq != str(self.index.last_seq + ahead):
            raise refusal(errors.WRONG_LAST_SEQUENCE, self.index.last_seq)
        last_of_subject = asked.get("Expected-Last-Subject-Sequence")
        if last_of_subject:
            pattern = asked.get("Expected-Last-Subject-Sequence-Subject") or subject
            last = self._last_sequence(pattern)
            if last_of_subject != str(last):
                raise refusal(errors.WRONG_LAST_SEQUENCE, last)
        if "Rollup" in asked:
            self._check_rollup(asked["Rollup"])
        if "Schedule" in asked:
            self._check_schedule(asked)
        if "Incr" in asked and not self.config.allow_msg_counter:
            raise refusal(errors.COUNTER_DISABLED)
        ttl = asked.get("TTL")
        if not ttl:
            return 0
        if not self.config.allow_msg_ttl:
            raise refusal(errors.MESSAGE_TTL_DISABLED)
        lifetime = parse_ttl(ttl)
        return now + lifetime if lifetime > 0 else 0

    def _last_sequence(self, pattern: str) -> int:
        if is_literal(pattern):
            state = self.index.subjects.get(pattern)
            return state.last if state else 0
        return max((state.last for state in self.index.matching([pattern])), default=0)

    def _check_rollup(self, rollup: str) -> None:
        if not self.config.allow_rollup_hdrs or self.config.deny_purge:
            raise refusal(errors.ROLLUP_FAILED, "rollup not permitted")
        if rollup not in ("all", "sub"):
            raise refusal(errors.ROLLUP_FAILED, f'rollup value invalid: "{rollup}"')

    def _check_schedule(self, asked: dict[str, str]) -> None:
        if not self.config.allow_msg_schedules:
            raise refusal(errors.SCHEDULES_DISABLED)
        target = asked.get("Schedule-Target", "")
        if not (is_valid(target) and is_literal(target) and self.listens_to(target)):
            raise refusal(errors.SCHEDULE_TARGET)
        if "Schedule-TTL" in asked:
            if not self.config.allow_msg_ttl:
                raise refusal(errors.MESSAGE_TTL_DISABLED)
            parse_ttl(asked["Schedule-TTL"])
        self.check_schedule(asked["Schedule"])

    def _check_counter(self, asked: dict[str, str], payload: bytes) -> None:
        if "Incr" not in asked:
            raise refusal(errors.COUNTER_MISSING)
        if payload:
            raise refusal(errors.COUNTER_PAYLOAD)
        if not _INCREMENT.fullmatch(asked["Incr"]):
            raise refusal(errors.COUNTER_INVALID)

    def _add_up(self, subject: str, increment: str) -> str:
        last = self.last_of(subject)
        match = _TOTAL.fullmatch(last.payload) if last is not None else None
        if last is not None and match is None:
            raise refusal(errors.COUNTER_BROKEN)
        return str((int(match[1]) if match else 0) + int(increment))

    def _check_room(self, subject: str, size: int, ahead: int) -> None:
        """With discard policy "new": refuse what would go beyond a limit."""
        config, index = self.config, self.index
        state = index.subjects.get(subject)
        per_subject = config.max_msgs_per_subject
        at_subject_limit = per_subject > 0 and state is not None and state.count >= per_subject
        if at_subject_limit and config.discard_new_per_subject:
            raise refusal(errors.STORE_FAILED, "maximum messages per subject exceeded")
        if 0 < config.max_msgs <= index.count + ahead and not at_subject_limit:
            raise refusal(errors.STORE_FAILED, "maximum messages exceeded")
        if config.max_bytes > 0 and index.bytes + size > config.max_bytes and not at_subject_limit:
            raise refusal(errors.STORE_FAILED, "maximum bytes exceeded")

    # --- deduplication ---

    @property
    def duplicate_window(self) -> int:
        return self.config.duplicate_window

    def _known_id(self, msg_id: str, now: int) -> int:
        self.forget_ids(now)
        return self._ids.get(msg_id, 0)

    def forget_ids(self, now: int) -> None:
        """Forget the message ids that came too long ago to matter."""
        oldest = now - self.duplicate_window
        order = self._id_order
        while order and (order[0][0] <= oldest or len(order) > MAX_MSG_IDS):
            self._ids.pop(order.popleft()[1], None)
            if not order:
                self._ids = {}  # a dictionary keeps the size that it once had

    def _remember_id(self, msg_id: str, seq: int, now: int) -> None:
        if msg_id and self.duplicate_window > 0:
            self._ids[msg_id] = seq
            self._id_order.append((now, msg_id))

    # --- letting messages go ---

    def remove(self, seq: int) -> bool:
        """Take one message out, whatever the reason; whether it was there."""
        entry = self.index.discard(seq)
        if entry is None:
            return False
        self.storage.release(seq, entry.place, entry.size)
        if self.index.first_seq > seq:
            self.storage.floor(self.index.first_seq)
        for reader in self.readers.values():
            reader.lost(entry)
        return True

    def erase(self, seq: int) -> bool:
        """Delete one message on request; it stays deleted."""
        if not self.remove(seq):
            return False
        self.storage.erased([seq])
        return True

    def purge(self, filters: list[str], before: int = 0, keep: int = 0) -> int:
        """Delete the messages of these subjects, below a sequence if given, but keep the newest; returns
        how many.
        """
        index = self.index
        doomed: list[int] = []
        seq = index.next_matching(index.first_seq, filters)
        while seq and (not before or seq < before):
            doomed.append(seq)
            seq = index.next_matching(seq + 1, filters)
        if keep:
            doomed = doomed[:-keep]
        for seq in doomed:
            self.remove(seq)
        if doomed:
            self.storage.erased(doomed)
        return len(doomed)

    def _enforce_limits(self, subject: str) -> None:
        config, index = self.config, self.index
        per_subject = config.max_msgs_per_subject
        if per_subject > 0:
            state = index.subjects.get(subject)
            while state is not None and state.count > per_subject:
                self.remove(state.first)
        while 0 < config.max_msgs < index.count or 0 < config.max_bytes < index.bytes:
            self.remove(index.first_seq)

    def enforce_all_limits(self) -> None:
        """Apply limits that have changed to all that is there."""
        for subject in list(self.index.subjects):
            self._enforce_limits(subject)

    def expire(self, now: int) -> list[str]:
        """Drop what is too old; returns the subjects that are to get a marker because they became empty."""
        index, max_age = self.index, self.config.max_age
        emptied: list[str] = []
        while max_age > 0 and index.count:
            oldest = index.get(index.first_seq)
            if oldest is None or oldest.time + max_age > now:
                break
            self._remove_aged(oldest, emptied)
        while self._expiring and self._expiring[0][0] <= now:
            entry = index.get(heapq.heappop(self._expiring)[1])
            if entry is not None:
                self._remove_aged(entry, emptied)
        return emptied

    def _remove_aged(self, entry: Entry, emptied: list[str]) -> None:
        marks = bool(self.config.subject_delete_marker_ttl)
        message = self.storage.read(entry.seq, entry.place) if marks else None
        self.remove(entry.seq)
        if (
            message is not None
            and entry.subject not in self.index.subjects
            and b"\r\nNats-Marker-Reason:" not in message.headers
        ):
            emptied.append(entry.subject)

    def next_expiry(self) -> int:
        """When the next message expires (nanoseconds), or 0."""
        moments = [self._expiring[0][0]] if self._expiring else []
        if self.config.max_age > 0 and self.index.count:
            oldest = self.index.get(self.index.first_seq)
            if oldest is not None:
                moments.append(oldest.time + self.config.max_age)
        return min(moments, default=0)

    # --- consumers' needs ---

    def settle(self, seq: int) -> None:
        """A consumer has done with a message: remove it if retention says that nobody needs it now."""
        retention = self.config.retention
        if retention == "limits":
            return
        if retention == "interest":
            for reader in self.readers.values():
                if reader.needs(seq):
                    return
        self.remove(seq)

    def settle_all(self) -> None:
        """After a consumer has gone: drop what only that one needed."""
        if self.config.retention == "interest":
            for seq in self.index.sequences():
                self.settle(seq)

    # --- reading ---

    def read(self, seq: int) -> Stored | None:
        entry = self.index.get(seq)
        return self.storage.read(seq, entry.place) if entry else None

    def last_of(self, pattern: str) -> Stored | None:
        """The newest message of a subject or of all the subjects of a pattern."""
        last = self._last_sequence(pattern)
        return self.read(last) if last else None

    def listens_to(self, subject: str) -> bool:
        return any(matches(pattern, subject) for pattern in self.config.subjects or ())

    # --- recovery ---

    def recover(self, message: Stored, place: int, now: int) -> None:
        """Enter a message that the storage still has, at a start."""
        self._enter(message, place)
        if not message.headers or b"\r\nNats-" not in message.headers:
            return
        asked = wire.nats_headers(message.headers)
        msg_id = asked.get("Msg-Id", "")
        if msg_id and message.time + self.duplicate_window > now:
            self._remember_id(msg_id, message.seq, message.time)
        if "TTL" in asked and self.config.allow_msg_ttl:
            self._expire_later(asked["TTL"], message)
        source = asked.get("Stream-Source", "").split(" ")
        if len(source) > 1 and source[1].isdecimal():
            self.sourced[source[0]] = int(source[1])

    def _expire_later(self, text: str, message: Stored) -> None:
        try:
            lifetime = parse_ttl(text)
        except errors.ApiError:
            # It was stored when lifetimes were not heeded, and so not checked.
            return
        if lifetime > 0:
            heapq.heappush(self._expiring, (message.time + lifetime, message.seq))

    def drop_unfinished_batch(self) -> None:
        """After a crash: an atomic batch at the end that was not written as a whole was never
        acknowledged.
        """
        seq = self.index.last_seq
        while seq >= self.index.first_seq:
            message = self.read(seq)
            if message is None:
                return
            asked = wire.nats_headers(message.headers)
            if "Batch-Id" not in asked or "Batch-Commit" in asked:
                return
            self.erase(seq)
            seq -= 1


_INCREMENT: Final = re.compile(r"[+-]?\d{1,300}", re.ASCII)
_TOTAL: Final = re.compile(rb'\{"val":"(-?\d{1,400})"\}')


def parse_ttl(text: str) -> int:
    """The lifetime of a ``Nats-TTL`` header in nanoseconds: seconds, a duration such as ``1h30m``, or
    ``never`` (-1).

    Raises `errors.ApiError` for anything else, and for less than a second.
    """
    if text == "never":
        return -1
    if text.isascii() and text.isdecimal() and len(text) <= 12:
        lifetime = int(text) * SECOND
    else:
        lifetime = parse_duration(text)
    if lifetime < SECOND:
        raise refusal(errors.MESSAGE_TTL_INVALID)
    return lifetime

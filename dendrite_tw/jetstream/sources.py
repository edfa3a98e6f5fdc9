"""Mirrors and sources: streams that are filled from other streams of the same server.

A mirror repeats one stream with its sequences; a stream with sources gathers several, each message with a
header that says where it came from.  A `Feed` is the way from one origin: it first reads what the origin
has, in portions, and then is given each new message.

Reference: NATS documentation, "Source and Mirror Streams".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from dendrite_tw.jetstream import wire
from dendrite_tw.jetstream.errors import ApiError
from dendrite_tw.jetstream.index import Entry
from dendrite_tw.jetstream.storage import Stored
from dendrite_tw.jetstream.subjects import matches
from dendrite_tw.jetstream.times import parse_time
from dendrite_tw.jetstream.transforms import Transform

if TYPE_CHECKING:
    from dendrite_tw.jetstream.hosted import Hosted

PORTION: Final = 256
"""Messages that a feed copies in one turn of the reactor."""


class Feed:
    """What one stream takes from another."""

    def __init__(self, target: Hosted, source: dict[str, Any], *, mirror: bool) -> None:
        self.target = target
        self.name = str(source["name"])
        self.mirror = mirror
        self.seq = 0
        """The last sequence of the origin that was dealt with."""
        self.active = 0
        """When the last message came."""
        self.origin: Hosted | None = None
        self._filter = str(source.get("filter_subject") or "")
        rows = source.get("subject_transforms") or []
        self._transforms = [Transform(row.get("src", ""), row.get("dest", "")) for row in rows]
        self._start_seq = int(source.get("opt_start_seq") or 0)
        self._start_time = parse_time(source["opt_start_time"]) if source.get("opt_start_time") else 0
        self._behind = True
        self._scheduled = False
        self._closed = False

    # --- what the origin asks of a reader ---

    def wants(self, subject: str) -> bool:
        if self._filter and not matches(self._filter, subject):
            return False
        return not self._transforms or any(matches(row.source, subject) for row in self._transforms)

    def needs(self, seq: int) -> bool:
        return seq > self.seq

    def lost(self, entry: Entry) -> None:
        """Whatever was not copied in time is not copied."""

    # --- following ---

    def attach(self, origin: Hosted) -> None:
        """The origin is there: begin where the target already is, or where the configuration says."""
        self.origin = origin
        target, index = self.target.stream, origin.stream.index
        known = target.index.last_seq if self.mirror else target.sourced.get(self.name, 0)
        if not known and self._start_seq:
            known = self._start_seq - 1
        elif not known and self._start_time:
            known = index.at_time(self._start_time) - 1
        self.seq = min(known, index.last_seq)
        origin.stream.readers[self._reader_name] = self
        origin.feeds.append(self)
        self._behind = True
        self._schedule()

    @property
    def _reader_name(self) -> str:
        return f"feed of {self.target.stream.config.name}"

    def detach(self) -> None:
        """The target or the origin has gone."""
        origin, self.origin = self.origin, None
        if origin is not None:
            origin.feeds.remove(self)
            origin.stream.readers.pop(self._reader_name, None)

    def close(self) -> None:
        self._closed = True
        self.detach()

    def stored(self, message: Stored) -> None:
        """The origin has a new message."""
        if not self._behind:
            self._take(message)

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self.target.engine.clock.callLater(0, self._catch_up)

    def _catch_up(self) -> None:
        self._scheduled = False
        origin = self.origin
        if origin is None or self._closed:
            return
        index = origin.stream.index
        for _ in range(PORTION):
            seq = index.next(self.seq + 1)
            message = origin.stream.read(seq) if seq else None
            if not seq:
                self._behind = False
                return
            if message is not None:
                self._take(message)
            self.seq = seq
        self._schedule()

    def _take(self, message: Stored) -> None:
        subject = self._subject_of(message.subject)
        now = self.target.engine.now()
        self.seq, self.active = message.seq, now
        if subject:
            if self.mirror:
                self._copy(message, subject, now)
            else:
                self._gather(message, subject, now)
        if self.origin is not None:
            self.origin.stream.settle(message.seq)

    def _subject_of(self, subject: str) -> str:
        """Under which subject the target keeps it; empty if not at all."""
        if self._filter and not matches(self._filter, subject):
            return ""
        if not self._transforms:
            return subject
        for row in self._transforms:
            mapped = row.apply(subject)
            if mapped is not None:
                return mapped
        return ""

    def _copy(self, message: Stored, subject: str, now: int) -> None:
        if message.seq <= self.target.stream.index.last_seq:
            return
        copy = Stored(message.seq, message.time, subject, message.headers, message.payload)
        self.target.stream.copy(copy)
        self.target.stored(copy, now)

    def _gather(self, message: Stored, subject: str, now: int) -> None:
        origin = f"{self.name} {message.seq} {self._filter or '>'} > {message.subject}"
        dropped = _CONDITIONS if self.target.stream.config.allow_msg_ttl else (*_CONDITIONS, "TTL")
        names = wire.nats_headers(message.headers)
        conditions = [f"Nats-{name}" for name in names if name.startswith(dropped)]
        block = wire.replace_headers(message.headers, conditions, {"Nats-Stream-Source": origin})
        try:
            self.target.accept(subject, block, message.payload, now)
        except ApiError:
            # The target's own limits forbid it.
            return

    def info(self) -> dict[str, Any]:
        """The state of the feed as stream information shows it."""
        origin = self.origin
        lag = max(origin.stream.index.last_seq - self.seq, 0) if origin is not None else 0
        now = self.target.engine.now()
        info: dict[str, Any] = {
            "name": self.name,
            "lag": lag,
            "active": now - self.active if self.active else -1,
        }
        if self._filter:
            info["filter_subject"] = self._filter
        if self.seq and not self.mirror:
            info["seq"] = self.seq
        return info


_CONDITIONS: Final = ("Msg-Id", "Expected-", "Batch-", "Rollup", "Schedule", "Stream-Source")

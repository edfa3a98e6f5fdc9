"""Scheduled messages, pure: a message that waits in a stream until it is its time, once or again and again.

Reference: NATS documentation, "Delayed Message Scheduling" (ADR-51): ``@at TIME`` and ``@every DURATION``.
"""

from __future__ import annotations

import msgspec

from dendrite_tw.jetstream import errors, wire
from dendrite_tw.jetstream.errors import refusal
from dendrite_tw.jetstream.storage import Stored
from dendrite_tw.jetstream.times import SECOND, format_time, parse_duration, parse_time


class Schedule(msgspec.Struct, frozen=True):
    """When (nanoseconds since the epoch), and how often (0: once)."""

    at: int
    every: int


def parse_schedule(text: str, stored: int, now: int) -> Schedule:
    """The next time of a ``Nats-Schedule``; raises `errors.ApiError` if it is not one.

    ``stored`` is when the message with it was stored: repetitions are counted from there.
    """
    kind, _, argument = text.strip().partition(" ")
    try:
        if kind == "@at":
            return Schedule(parse_time(argument.strip()), 0)
        if kind == "@every":
            every = parse_duration(argument.strip())
            if every >= SECOND:
                passed = max(now - stored, 0) // every
                return Schedule(stored + (passed + 1) * every, every)
    except ValueError:
        pass
    raise refusal(errors.SCHEDULE_INVALID)


def scheduled_message(message: Stored, schedule: Schedule, now: int) -> tuple[str, bytes, bytes]:
    """What is published when the time has come: subject, headers and payload."""
    asked = wire.nats_headers(message.headers)
    fields = {"Nats-Scheduler": message.subject, "Nats-Schedule-Next": "purge"}
    if schedule.every:
        fields["Nats-Schedule-Next"] = format_time(parse_schedule(asked["Schedule"], message.time, now).at)
    lifetime = asked.get("Schedule-TTL")
    if lifetime:
        fields["Nats-TTL"] = lifetime
    drop = [f"Nats-{name}" for name in asked]
    return asked["Schedule-Target"], wire.replace_headers(message.headers, drop, fields), message.payload

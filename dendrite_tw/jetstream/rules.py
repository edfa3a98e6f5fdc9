"""Which configurations of streams and consumers, and which pull requests, are accepted; with defaults
filled in.

The rules and their sentences are those of a NATS server, so that its clients understand a refusal.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from hashlib import sha256
from typing import Any, Final

import msgspec
import orjson

from dendrite_tw.jetstream import errors
from dendrite_tw.jetstream.configs import ConsumerConfig, StreamConfig
from dendrite_tw.jetstream.consumers import DEFAULT_ACK_WAIT, DEFAULT_MAX_ACK_PENDING, DEFAULT_MAX_WAITING, Consumer
from dendrite_tw.jetstream.deliveries import Pull
from dendrite_tw.jetstream.engine import Limits
from dendrite_tw.jetstream.errors import refusal
from dendrite_tw.jetstream.hosted import Hosted
from dendrite_tw.jetstream.streams import DEFAULT_DUPLICATE_WINDOW
from dendrite_tw.jetstream.subjects import is_literal, is_subset, is_valid, overlaps
from dendrite_tw.jetstream.times import SECOND, parse_time
from dendrite_tw.jetstream.transforms import Transform, TransformError

MAX_NAME: Final = 255
MAX_DESCRIPTION: Final = 4 * 1024
MAX_FILTERS: Final = 1000
MAX_SUBJECTS: Final = 1000
MAX_REPLICAS: Final = 5
MAX_PULL: Final = 1_000_000
EPHEMERAL_INACTIVE: Final = 5 * SECOND


def is_name(name: str) -> bool:
    """Whether this may name a stream or a consumer: one token of a subject, and of a path."""
    return 0 < len(name) <= MAX_NAME and not any(c in name for c in " .*>/\\~\t\r\n\0")


def subjects_overlap(ones: list[str], others: list[str]) -> bool:
    return any(overlaps(one, other) for one in ones for other in others)


# --- streams ---


def checked_stream(config: StreamConfig) -> StreamConfig:
    """The configuration with its defaults; raises `errors.ApiError` if it is not acceptable."""
    if not is_name(config.name):
        raise refusal(errors.STREAM_INVALID, "stream name is required and can not contain '.', '*', '>'")
    if config.description is not None and len(config.description) > MAX_DESCRIPTION:
        raise refusal(errors.STREAM_INVALID, f"stream description is too long, maximum allowed is {MAX_DESCRIPTION}")
    for value, allowed in (
        (config.retention, ("limits", "interest", "workqueue")),
        (config.storage, ("file", "memory")),
        (config.discard, ("old", "new")),
        (config.compression, ("none", "s2")),
    ):
        if value not in allowed:
            raise refusal(errors.INVALID_JSON, f"unknown value {value!r}")
    if config.num_replicas > MAX_REPLICAS:
        raise refusal(errors.STREAM_INVALID, f"maximum replicas is {MAX_REPLICAS}")
    if config.num_replicas > 1:
        raise refusal(errors.REPLICAS_UNSUPPORTED)
    _check_origins(config)
    _check_subjects(config)
    _check_mappings(config)
    changes: dict[str, Any] = {}
    for name in ("max_msgs", "max_bytes", "max_msg_size", "max_consumers", "max_msgs_per_subject"):
        if getattr(config, name) <= 0:
            changes[name] = -1
    if config.num_replicas < 1:
        changes["num_replicas"] = 1
    _check_durations(config, changes)
    _check_features(config, changes)
    for name in _OPTIONAL:
        if not getattr(config, name):
            changes.setdefault(name, None)
    return msgspec.structs.replace(config, **changes)


_OPTIONAL: Final = (
    "description",
    "no_ack",
    "placement",
    "subject_transform",
    "republish",
    "sources",
    "metadata",
    "first_seq",
    "consumer_limits",
    "allow_msg_ttl",
    "allow_msg_counter",
    "allow_atomic",
    "allow_msg_schedules",
    "discard_new_per_subject",
)


def _check_features(config: StreamConfig, changes: dict[str, Any]) -> None:
    """Which features exclude, or bring with them, which."""
    if config.discard_new_per_subject:
        if config.discard != "new":
            raise refusal(errors.STREAM_INVALID, "discard new per subject requires discard new policy to be set")
        if config.max_msgs_per_subject <= 0:
            raise refusal(errors.STREAM_INVALID, "discard new per subject requires max msgs per subject > 0")
    if config.mirror_direct and not config.mirror:
        raise refusal(errors.STREAM_INVALID, "stream has no mirror but does have mirror direct")
    if config.persist_mode == "default":
        changes["persist_mode"] = None
    elif config.persist_mode not in (None, "", "async"):
        raise refusal(errors.INVALID_JSON, f"unknown value {config.persist_mode!r}")
    elif config.persist_mode and config.allow_atomic:
        raise refusal(errors.STREAM_INVALID, "async persist mode is not supported with atomic batch publish")
    if config.subject_delete_marker_ttl:
        changes.update(allow_msg_ttl=True, allow_rollup_hdrs=True)
    if config.allow_msg_schedules:
        changes["allow_rollup_hdrs"] = True
    if config.sealed:
        changes.update(deny_delete=True, deny_purge=True)


def _check_origins(config: StreamConfig) -> None:
    """Mirrors and sources."""
    if config.mirror:
        if config.subjects:
            raise refusal(errors.MIRROR_WITH_SUBJECTS)
        if config.sources:
            raise refusal(errors.MIRROR_WITH_SOURCES)
    for source in [config.mirror] if config.mirror else config.sources or ():
        if not is_name(str(source.get("name") or "")) or source.get("external"):
            raise refusal(errors.STREAM_INVALID, "the origin must be a stream of this server")
        rows = source.get("subject_transforms") or []
        if len(rows) > MAX_SUBJECTS:
            raise refusal(errors.STREAM_INVALID, "too many subject transforms")
        patterns = [str(row.get("src") or ">") for row in rows]
        if any(subjects_overlap([one], patterns[:at]) for at, one in enumerate(patterns)):
            raise refusal(errors.SOURCES_OVERLAP)
        for row in rows:
            _transform(str(row.get("src") or ""), str(row.get("dest") or ""))
        if source.get("opt_start_time"):
            _check_time(source["opt_start_time"])


def _check_time(text: Any) -> None:
    try:
        parse_time(text)
    except (ValueError, TypeError):
        raise refusal(errors.INVALID_JSON, f"not a time: {text!r}") from None


def _transform(source: str, destination: str) -> Transform:
    try:
        return Transform(source, destination)
    except TransformError as error:
        raise refusal(errors.TRANSFORM_INVALID, str(error)) from None


def _check_mappings(config: StreamConfig) -> None:
    """Subject transform and republishing."""
    mapping = config.subject_transform
    if mapping:
        _transform(str(mapping.get("src") or ""), str(mapping.get("dest") or ""))
    rule = config.republish
    if rule:
        source, destination = str(rule.get("src") or ">"), str(rule.get("dest") or "")
        rule["src"] = source
        if not is_valid(destination):
            raise refusal(errors.STREAM_INVALID, "stream configuration for republish with invalid destination")
        _transform(source, destination)
        if subjects_overlap([destination], config.subjects or []):
            raise refusal(errors.STREAM_INVALID, "stream configuration for republish destination forms a cycle")


def _check_subjects(config: StreamConfig) -> None:
    if not config.subjects:
        config.subjects = None if config.mirror or config.sources else [config.name]
    subjects = config.subjects or []
    if len(subjects) > MAX_SUBJECTS:
        raise refusal(errors.STREAM_INVALID, "too many subjects")
    for position, subject in enumerate(subjects):
        if not is_valid(subject):
            raise refusal(errors.STREAM_INVALID, "invalid subject")
        for other in subjects[:position]:
            if overlaps(subject, other):
                raise refusal(errors.STREAM_INVALID, f'subject "{subject}" overlaps with "{other}"')
        if subject == ">" and not config.no_ack:
            raise refusal(errors.STREAM_INVALID, "capturing all subjects requires no-ack to be true")
        if subjects_overlap([subject], ["$JS.API.>", "$JS.ACK.>"]) and not config.no_ack:
            raise refusal(errors.STREAM_INVALID, "subjects that overlap with jetstream api require no-ack to be true")


def _check_durations(config: StreamConfig, changes: dict[str, Any]) -> None:
    if config.max_age and config.max_age < SECOND // 10:
        raise refusal(errors.STREAM_INVALID, "max age needs to be >= 100ms")
    if config.duplicate_window < 0:
        raise refusal(errors.STREAM_INVALID, "duplicates window can not be negative")
    if not config.duplicate_window:
        window = DEFAULT_DUPLICATE_WINDOW
        changes["duplicate_window"] = min(window, config.max_age) if config.max_age > 0 else window
    elif 0 < config.max_age < config.duplicate_window:
        raise refusal(errors.STREAM_INVALID, "duplicates window can not be larger then max age")
    if not config.subject_delete_marker_ttl:
        changes["subject_delete_marker_ttl"] = None
    elif config.subject_delete_marker_ttl < SECOND:
        raise refusal(errors.STREAM_INVALID, "subject delete marker TTL must be at least 1 second")


def check_stream_update(old: StreamConfig, new: StreamConfig) -> None:
    """Raises `errors.ApiError` where a stream cannot become what is asked."""
    if new.storage != old.storage:
        raise refusal(errors.STREAM_INVALID, "stream configuration update can not change storage type")
    if new.max_consumers != old.max_consumers:
        raise refusal(errors.STREAM_INVALID, "stream configuration update can not change MaxConsumers")
    if new.retention != old.retention and "workqueue" in (new.retention, old.retention):
        raise refusal(
            errors.STREAM_INVALID,
            "stream configuration update can not change retention policy to/from workqueue",
        )
    if new.mirror and new.mirror != old.mirror:
        raise refusal(errors.MIRROR_FIXED)
    if old.sealed and not new.sealed:
        raise refusal(errors.STREAM_INVALID, "stream configuration update can not unseal a sealed stream")
    if old.deny_delete and not new.deny_delete:
        raise refusal(errors.STREAM_INVALID, "stream configuration update can not cancel deny message deletes")
    if old.deny_purge and not new.deny_purge:
        raise refusal(errors.STREAM_INVALID, "stream configuration update can not cancel deny purge")


def check_account(limits: Limits, config: StreamConfig, streams: Collection[Hosted]) -> None:
    """Raises `errors.ApiError` if a new stream would go beyond what the account may use."""
    if limits.max_bytes_required and config.max_bytes <= 0:
        raise refusal(errors.MAX_BYTES_REQUIRED)
    in_memory = config.storage == "memory"
    largest = limits.memory_max_stream_bytes if in_memory else limits.storage_max_stream_bytes
    if 0 < largest < config.max_bytes:
        raise refusal(errors.MAX_STREAM_BYTES)
    if 0 < limits.max_streams <= len(streams):
        raise refusal(errors.MAX_STREAMS)
    total = limits.max_memory if in_memory else limits.max_storage
    reserved = sum(
        max(hosted.stream.config.max_bytes, 0) for hosted in streams if hosted.stream.config.storage == config.storage
    )
    if 0 < total < reserved + max(config.max_bytes, 0):
        raise refusal(errors.MEMORY_EXCEEDED if in_memory else errors.STORAGE_EXCEEDED)


# --- consumers ---


def consumer_name(config: ConsumerConfig, words: list[str], *, durable: bool) -> str:
    """The name that subject and configuration agree on; empty for an ephemeral one without a name."""
    named = words[1] if len(words) > 1 else ""
    if durable:
        if not config.durable_name:
            raise refusal(errors.CONSUMER_DURABLE_NAME_NOT_SET)
        if config.durable_name != named:
            raise refusal(errors.CONSUMER_DURABLE_NAME_MISMATCH)
        return _checked_name(named)
    if config.durable_name and not named:
        raise refusal(errors.CONSUMER_DURABLE_IN_REQUEST)
    if config.durable_name and config.durable_name != named:
        raise refusal(errors.CONSUMER_DURABLE_NAME_MISMATCH)
    if len(words) > 2 and ".".join(words[2:]) != (config.filter_subject or ""):
        raise refusal(errors.CONSUMER_FILTER_MISMATCH)
    name = named or config.name or ""
    return _checked_name(name) if name else ""


def _checked_name(name: str) -> str:
    if not is_name(name):
        raise refusal(errors.CONSUMER_BAD_NAME)
    return name


def ephemeral_name(taken: Mapping[str, object], now: int) -> str:
    """A name for a consumer that came without one."""
    number = len(taken)
    while (name := sha256(f"{now}.{number}".encode()).hexdigest()[:8].upper()) in taken:
        number += 1
    return name


def checked_consumer(config: ConsumerConfig, stream: StreamConfig) -> ConsumerConfig:
    """The configuration with its defaults; raises `errors.ApiError` if it is not acceptable."""
    for value, allowed in (
        (config.ack_policy, ("none", "all", "explicit")),
        (config.replay_policy, ("instant", "original")),
        (
            config.deliver_policy,
            ("all", "last", "new", "by_start_sequence", "by_start_time", "last_per_subject"),
        ),
    ):
        if value not in allowed:
            raise refusal(errors.INVALID_JSON, f"unknown value {value!r}")
    _check_filters(config, stream)
    _check_start(config)
    _check_deliveries(config, stream)
    if config.deliver_subject:
        _check_push(config, stream)
    else:
        _check_pull(config)
    changes: dict[str, Any] = {
        name: None
        for name in (
            "opt_start_seq",
            "idle_heartbeat",
            "inactive_threshold",
            "backoff",
            "filter_subject",
            "sample_freq",
            "deliver_group",
            "rate_limit_bps",
            "flow_control",
            "headers_only",
            "max_batch",
            "max_expires",
            "max_bytes",
            "mem_storage",
            "direct",
            "description",
            "pause_until",
            "filter_subjects",
        )
        if not getattr(config, name)
    }
    limits = stream.consumer_limits or {}
    changes["max_deliver"] = config.max_deliver or -1
    if config.ack_policy != "none":
        changes["ack_wait"] = config.backoff[0] if config.backoff else config.ack_wait or DEFAULT_ACK_WAIT
        changes["max_ack_pending"] = config.max_ack_pending or limits.get("max_ack_pending") or DEFAULT_MAX_ACK_PENDING
    if not config.deliver_subject:
        changes["max_waiting"] = config.max_waiting or DEFAULT_MAX_WAITING
    if not config.inactive_threshold:
        threshold = limits.get("inactive_threshold") or (0 if config.durable_name else EPHEMERAL_INACTIVE)
        changes["inactive_threshold"] = threshold or None
    return msgspec.structs.replace(config, **changes)


def _check_deliveries(config: ConsumerConfig, stream: StreamConfig) -> None:
    if config.num_replicas > 1:
        raise refusal(errors.REPLICAS_UNSUPPORTED)
    if config.backoff and 0 < (config.max_deliver or 0) <= len(config.backoff):
        raise refusal(errors.CONSUMER_BACKOFF)
    limits = stream.consumer_limits or {}
    largest = limits.get("max_ack_pending") or 0
    if 0 < largest < (config.max_ack_pending or 0):
        raise refusal(errors.MAX_ACK_PENDING, largest)
    longest = limits.get("inactive_threshold") or 0
    if 0 < longest < (config.inactive_threshold or 0):
        raise refusal(errors.INACTIVE_THRESHOLD, longest)
    if config.pause_until:
        _check_time(config.pause_until)


def check_consumer_limits(config: ConsumerConfig, limits: Limits) -> None:
    """Raises `errors.ApiError` if a consumer would go beyond what the account may use."""
    if 0 < limits.max_ack_pending < (config.max_ack_pending or 0):
        raise refusal(errors.MAX_ACK_PENDING, limits.max_ack_pending)


def _check_filters(config: ConsumerConfig, stream: StreamConfig) -> None:
    filters = config.filters()
    if config.filter_subject and config.filter_subjects:
        raise refusal(errors.CONSUMER_DUPLICATE_FILTERS)
    if len(filters) > MAX_FILTERS:
        raise refusal(errors.BAD_REQUEST)
    for pattern in filters:
        if not is_valid(pattern):
            raise refusal(errors.CONSUMER_FILTER_NOT_SUBSET)
        if not _may_hold(stream, pattern):
            raise refusal(errors.CONSUMER_FILTER_NOT_SUBSET)
    for position, pattern in enumerate(filters):
        if any(is_subset(pattern, other) or is_subset(other, pattern) for other in filters[:position]):
            raise refusal(errors.CONSUMER_FILTERS_OVERLAP)


def _may_hold(stream: StreamConfig, pattern: str) -> bool:
    """Whether messages of such subjects can be in the stream."""
    if stream.mirror or stream.sources or stream.subject_transform:
        return True
    return subjects_overlap([pattern], stream.subjects or [])


def _check_start(config: ConsumerConfig) -> None:
    policy = config.deliver_policy
    if config.opt_start_seq and policy != "by_start_sequence":
        name = policy.replace("_", " ")
        raise refusal(
            errors.CONSUMER_INVALID_POLICY,
            f"consumer delivery policy is deliver {name}, but optional start sequence is also set",
        )
    if policy == "by_start_sequence" and not config.opt_start_seq:
        raise refusal(
            errors.CONSUMER_INVALID_POLICY,
            "consumer delivery policy is deliver by start sequence, but optional start sequence is not set",
        )
    if policy == "by_start_time":
        try:
            parse_time(config.opt_start_time or "")
        except ValueError:
            raise refusal(
                errors.CONSUMER_INVALID_POLICY,
                "consumer delivery policy is deliver by start time, but optional start time is not set",
            ) from None
    if policy == "last_per_subject" and not config.filters():
        raise refusal(
            errors.CONSUMER_INVALID_POLICY,
            "consumer delivery policy is deliver last per subject, but optional filter subject is not set",
        )


def _check_push(config: ConsumerConfig, stream: StreamConfig) -> None:
    destination = config.deliver_subject or ""
    if not is_valid(destination) or not is_literal(destination):
        raise refusal(errors.CONSUMER_DELIVER_WILDCARD)
    if subjects_overlap([destination], stream.subjects or []):
        raise refusal(errors.CONSUMER_DELIVER_CYCLE)
    if config.max_waiting:
        raise refusal(errors.CONSUMER_PUSH_MAX_WAITING)
    if config.idle_heartbeat and config.idle_heartbeat < SECOND // 10:
        raise refusal(errors.CONSUMER_SMALL_HEARTBEAT)
    if config.flow_control and not config.idle_heartbeat:
        raise refusal(errors.CONSUMER_FLOW_WITHOUT_HEARTBEAT)


def _check_pull(config: ConsumerConfig) -> None:
    if config.idle_heartbeat:
        raise refusal(errors.CONSUMER_PULL_HEARTBEAT)
    if config.flow_control:
        raise refusal(errors.CONSUMER_PULL_FLOW)
    if config.rate_limit_bps:
        raise refusal(errors.CONSUMER_PULL_RATE)


def check_new_consumer(config: ConsumerConfig, stream: StreamConfig, consumers: Mapping[str, Consumer]) -> None:
    """Raises `errors.ApiError` if the stream has no room for another consumer of this kind."""
    if 0 < stream.max_consumers <= len(consumers):
        raise refusal(errors.MAX_CONSUMERS)
    if stream.retention != "workqueue":
        return
    if config.ack_policy != "explicit":
        row = errors.WORKQUEUE_EXPLICIT_ACK if config.deliver_subject else errors.WORKQUEUE_PULL_EXPLICIT
        raise refusal(row)
    if config.deliver_policy != "all":
        raise refusal(errors.WORKQUEUE_DELIVER_ALL)
    for other in consumers.values():
        if not config.filters() or not other.filters:
            raise refusal(errors.WORKQUEUE_MULTIPLE)
        if subjects_overlap(config.filters(), other.filters):
            raise refusal(errors.WORKQUEUE_NOT_UNIQUE)


_FIXED: Final = (
    "deliver_policy",
    "opt_start_seq",
    "opt_start_time",
    "ack_policy",
    "replay_policy",
    "flow_control",
)


def check_consumer_update(old: ConsumerConfig, new: ConsumerConfig) -> None:
    """Raises `errors.ApiError` where a consumer cannot become what is asked."""
    for name in _FIXED:
        if getattr(old, name) != getattr(new, name):
            raise refusal(errors.CONSUMER_CREATE, f"{name.replace('_', ' ')} can not be updated")
    if bool(old.deliver_subject) != bool(new.deliver_subject):
        kinds = ("push", "pull") if old.deliver_subject else ("pull", "push")
        raise refusal(errors.CONSUMER_CREATE, "can not update {} consumer to {} based".format(*kinds))


# --- pull requests ---


def pull_request(consumer: Consumer, reply: str, argument: bytes, now: int) -> Pull:
    """The pull request of a body: nothing, a number, or an object; raises `errors.ApiError` with the
    status.
    """
    if consumer.is_push:
        raise errors.ApiError(409, 0, "Consumer is push based")
    asked: dict[str, Any] = {}
    text = argument.strip()
    if text.isdigit() and len(text) <= 9:
        asked = {"batch": int(text)}
    elif text:
        try:
            value = orjson.loads(text)
        except orjson.JSONDecodeError:
            value = None
        asked = value if isinstance(value, dict) else {}
    numbers = {key: asked.get(key) or 0 for key in ("batch", "expires", "max_bytes", "idle_heartbeat")}
    if any(not isinstance(number, int) for number in numbers.values()):
        raise errors.ApiError(400, 0, "Bad Request")
    batch, expires = min(max(numbers["batch"], 1), MAX_PULL), numbers["expires"]
    config = consumer.config
    if config.max_batch and batch > config.max_batch:
        raise errors.ApiError(409, 0, f"Exceeded MaxRequestBatch of {config.max_batch}")
    if config.max_expires and expires > config.max_expires:
        raise errors.ApiError(409, 0, f"Exceeded MaxRequestExpires of {config.max_expires // SECOND}s")
    if config.max_bytes and numbers["max_bytes"] > config.max_bytes:
        raise errors.ApiError(409, 0, f"Exceeded MaxRequestMaxBytes of {config.max_bytes}")
    heartbeat = numbers["idle_heartbeat"]
    if heartbeat and (not expires or heartbeat * 2 > expires):
        raise errors.ApiError(400, 0, "Bad Request - heartbeat value too large")
    return Pull(
        reply,
        batch,
        now + expires if expires else 0,
        no_wait=bool(asked.get("no_wait")),
        max_bytes=max(numbers["max_bytes"], 0),
        heartbeat=heartbeat,
    )

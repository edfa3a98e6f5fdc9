"""The configurations of streams and consumers, in the names and units of the JetStream API.

Which of them are accepted, and what their defaults are, is decided in `rules`.
"""

from __future__ import annotations

from typing import Any

import msgspec


class StreamConfig(msgspec.Struct, kw_only=True, omit_defaults=False):
    """The configuration of a stream, in the names and units of the JetStream API (durations in
    nanoseconds).
    """

    name: str = ""
    description: str | None = None
    subjects: list[str] | None = None
    retention: str = "limits"
    max_consumers: int = -1
    max_msgs: int = -1
    max_bytes: int = -1
    max_age: int = 0
    max_msgs_per_subject: int = -1
    max_msg_size: int = -1
    discard: str = "old"
    storage: str = "file"
    num_replicas: int = 1
    no_ack: bool | None = None
    duplicate_window: int = 0
    placement: dict[str, Any] | None = None
    mirror: dict[str, Any] | None = None
    sources: list[dict[str, Any]] | None = None
    compression: str = "none"
    subject_transform: dict[str, str] | None = None
    republish: dict[str, Any] | None = None
    sealed: bool = False
    deny_delete: bool = False
    deny_purge: bool = False
    allow_rollup_hdrs: bool = False
    allow_direct: bool = False
    mirror_direct: bool = False
    discard_new_per_subject: bool | None = None
    metadata: dict[str, str] | None = None
    first_seq: int | None = None
    consumer_limits: dict[str, Any] | None = None
    allow_msg_ttl: bool | None = None
    subject_delete_marker_ttl: int | None = None
    allow_msg_counter: bool | None = None
    allow_atomic: bool | None = None
    allow_msg_schedules: bool | None = None
    persist_mode: str | None = None

    def body(self) -> dict[str, Any]:
        """The configuration as the API shows it: optional fields only where they are set."""
        return {key: value for key, value in msgspec.to_builtins(self).items() if value is not None}


class ConsumerConfig(msgspec.Struct, kw_only=True):
    """The configuration of a consumer, in the names and units of the JetStream API (durations in
    nanoseconds).
    """

    name: str | None = None
    durable_name: str | None = None
    description: str | None = None
    deliver_subject: str | None = None
    deliver_group: str | None = None
    deliver_policy: str = "all"
    opt_start_seq: int | None = None
    opt_start_time: str | None = None
    ack_policy: str = "none"
    ack_wait: int | None = None
    max_deliver: int | None = None
    backoff: list[int] | None = None
    filter_subject: str | None = None
    filter_subjects: list[str] | None = None
    replay_policy: str = "instant"
    rate_limit_bps: int | None = None
    sample_freq: str | None = None
    max_waiting: int | None = None
    max_ack_pending: int | None = None
    idle_heartbeat: int | None = None
    flow_control: bool | None = None
    headers_only: bool | None = None
    max_batch: int | None = None
    max_expires: int | None = None
    max_bytes: int | None = None
    inactive_threshold: int | None = None
    num_replicas: int = 0
    mem_storage: bool | None = None
    direct: bool | None = None
    metadata: dict[str, str] | None = None
    pause_until: str | None = None

    def body(self) -> dict[str, Any]:
        """The configuration as the API shows it: optional fields only where they are set."""
        return {key: value for key, value in msgspec.to_builtins(self).items() if value is not None}

    def filters(self) -> list[str]:
        if self.filter_subjects:
            return self.filter_subjects
        return [self.filter_subject] if self.filter_subject else []

"""What a JetStream server refuses, in its own words: HTTP-like code, error code, sentence.

The codes are those that NATS clients know (``err_code`` of the JetStream API); `refusal` makes one with its
sentence filled in.
"""

from __future__ import annotations

from typing import Final

import msgspec

from dendrite_tw.matrix.errors import MatrixError


class ApiError(Exception):
    """The queue does not do what was asked; the fields are those of the API's ``error`` object."""

    def __init__(self, code: int, err_code: int, description: str) -> None:
        super().__init__(description)
        self.code = code
        self.err_code = err_code
        self.description = description

    def body(self) -> dict[str, object]:
        return {"code": self.code, "err_code": self.err_code, "description": self.description}


class UnavailableError(MatrixError):
    """Nobody answered: the server is away, stopping, or the request took too long.  It may be tried again, which is
    also what a client is told whose request needs the queue.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(
            503, "M_UNKNOWN", f"The server's queue is not available: {reason}. Try again later.", retry_after_ms=5000
        )


class NobodyThereError(UnavailableError):
    """No one has subscribed to the subject; of a stream's subject, that there is no such stream."""

    def __init__(self) -> None:
        super().__init__("nobody serves that subject")


class Row(msgspec.Struct, frozen=True):
    code: int
    err_code: int
    sentence: str


def refusal(row: Row, *values: object) -> ApiError:
    """The refusal of a row, with the values put into its sentence."""
    return ApiError(row.code, row.err_code, row.sentence.format(*values))


BAD_REQUEST: Final = Row(400, 10003, "bad request")
INVALID_JSON: Final = Row(400, 10025, "invalid JSON: {}")
NOT_ENABLED: Final = Row(503, 10039, "JetStream not enabled for account")
INSUFFICIENT: Final = Row(503, 10023, "insufficient resources")
STREAM_NOT_FOUND: Final = Row(404, 10059, "stream not found")
STREAM_NAME_IN_USE: Final = Row(400, 10058, "stream name already in use with a different configuration")
STREAM_NAME_MISMATCH: Final = Row(400, 10056, "stream name in subject does not match request")
STREAM_INVALID: Final = Row(500, 10052, "{}")
STREAM_UPDATE: Final = Row(500, 10069, "{}")
SUBJECT_OVERLAP: Final = Row(400, 10065, "subjects overlap with an existing stream")
STORE_FAILED: Final = Row(503, 10077, "{}")
MESSAGE_TOO_LARGE: Final = Row(400, 10054, "message size exceeds maximum allowed")
NO_MESSAGE: Final = Row(404, 10037, "no message found")
EXPECTED_STREAM: Final = Row(400, 10060, "expected stream does not match")
WRONG_LAST_SEQUENCE: Final = Row(400, 10071, "wrong last sequence: {}")
WRONG_LAST_MSG_ID: Final = Row(400, 10070, "wrong last msg ID: {}")
STREAM_SEALED: Final = Row(400, 10109, "invalid operation on sealed stream")
ROLLUP_FAILED: Final = Row(500, 10111, "{}")
DELETE_DENIED: Final = Row(500, 10057, "{}")
MESSAGE_TTL_DISABLED: Final = Row(400, 10166, "per-message TTL is disabled")
MESSAGE_TTL_INVALID: Final = Row(400, 10165, "invalid per-message TTL")
CONSUMER_NOT_FOUND: Final = Row(404, 10014, "consumer not found")
CONSUMER_EXISTS: Final = Row(400, 10148, "consumer already exists")
CONSUMER_CREATE: Final = Row(500, 10012, "{}")
CONSUMER_DOES_NOT_EXIST: Final = Row(400, 10149, "consumer does not exist")
CONSUMER_DURABLE_NAME_NOT_SET: Final = Row(400, 10018, "consumer expected to be durable but a durable name was not set")
CONSUMER_DURABLE_NAME_MISMATCH: Final = Row(
    400, 10017, "consumer name in subject does not match durable name in request"
)
CONSUMER_FILTER_MISMATCH: Final = Row(
    400, 10131, "Consumer create request did not match filtered subject from create subject"
)
CONSUMER_BAD_NAME: Final = Row(500, 10052, "consumer name can not contain '.', '*', '>', '\\', '/'")
CONSUMER_DUPLICATE_FILTERS: Final = Row(
    400, 10136, "consumer cannot have both FilterSubject and FilterSubjects specified"
)
CONSUMER_FILTER_NOT_SUBSET: Final = Row(
    400, 10093, "consumer filter subject is not a valid subset of the interest subjects"
)
CONSUMER_FILTERS_OVERLAP: Final = Row(400, 10138, "consumer subject filters cannot overlap")
CONSUMER_INVALID_POLICY: Final = Row(400, 10094, "{}")
CONSUMER_DELIVER_WILDCARD: Final = Row(400, 10079, "consumer deliver subject has wildcards")
CONSUMER_DELIVER_CYCLE: Final = Row(400, 10081, "consumer deliver subject forms a cycle")
CONSUMER_PUSH_MAX_WAITING: Final = Row(400, 10080, "consumer in push mode can not set max waiting")
CONSUMER_SMALL_HEARTBEAT: Final = Row(400, 10083, "consumer idle heartbeat needs to be >= 100ms")
CONSUMER_FLOW_WITHOUT_HEARTBEAT: Final = Row(400, 10108, "consumer with flow control also needs heartbeats")
CONSUMER_PULL_HEARTBEAT: Final = Row(400, 10088, "consumer idle heartbeat requires a push based consumer")
CONSUMER_PULL_FLOW: Final = Row(400, 10089, "consumer flow control requires a push based consumer")
CONSUMER_PULL_RATE: Final = Row(400, 10086, "consumer in pull mode can not have rate limit set")
MAX_CONSUMERS: Final = Row(400, 10026, "maximum consumers limit reached")
WORKQUEUE_EXPLICIT_ACK: Final = Row(400, 10098, "workqueue stream requires explicit ack")
WORKQUEUE_DELIVER_ALL: Final = Row(400, 10101, "consumer must be deliver all on workqueue stream")
WORKQUEUE_MULTIPLE: Final = Row(400, 10099, "multiple non-filtered consumers not allowed on workqueue stream")
WORKQUEUE_NOT_UNIQUE: Final = Row(400, 10100, "filtered consumer not unique on workqueue stream")
MAX_BYTES_REQUIRED: Final = Row(400, 10113, "account requires a stream config to have max bytes set")
MAX_STREAM_BYTES: Final = Row(400, 10122, "stream max bytes exceeds account limit max stream bytes")
MAX_STREAMS: Final = Row(400, 10027, "maximum number of streams reached")
STORAGE_EXCEEDED: Final = Row(500, 10047, "insufficient storage resources available")
MEMORY_EXCEEDED: Final = Row(500, 10028, "insufficient memory resources available")
MAX_ACK_PENDING: Final = Row(400, 10121, "consumer max ack pending exceeds system limit of {}")
SCHEDULES_DISABLED: Final = Row(400, 10188, "message schedules is disabled")
SCHEDULE_INVALID: Final = Row(400, 10189, "message schedules pattern is invalid")
SCHEDULE_TARGET: Final = Row(400, 10190, "message schedules target is invalid")
BATCH_DISABLED: Final = Row(400, 10174, "atomic publish is disabled")
BATCH_SEQUENCE_MISSING: Final = Row(400, 10175, "atomic publish sequence is missing")
BATCH_INCOMPLETE: Final = Row(400, 10176, "atomic publish batch is incomplete")
BATCH_INVALID_ID: Final = Row(400, 10179, "atomic publish batch ID is invalid")
BATCH_INVALID_COMMIT: Final = Row(400, 10200, "atomic publish batch commit is invalid")
BATCH_DUPLICATE: Final = Row(400, 10201, "atomic publish batch contains duplicate message id")
BATCH_TOO_LARGE: Final = Row(400, 10199, "atomic publish batch is too large: {}")
COUNTER_DISABLED: Final = Row(400, 10168, "message counters is disabled")
COUNTER_MISSING: Final = Row(400, 10169, "message counter increment is missing")
COUNTER_PAYLOAD: Final = Row(400, 10170, "message counter has payload")
COUNTER_INVALID: Final = Row(400, 10171, "message counter increment is invalid")
COUNTER_BROKEN: Final = Row(400, 10172, "message counter is broken")
TRANSFORM_INVALID: Final = Row(400, 10156, "stream transform: {}")
MIRROR_WITH_SUBJECTS: Final = Row(400, 10034, "stream mirrors can not contain subjects")
MIRROR_WITH_SOURCES: Final = Row(400, 10031, "stream mirrors can not also contain other sources")
MIRROR_FIXED: Final = Row(400, 10055, "stream mirror configuration can not be updated")
SOURCES_OVERLAP: Final = Row(400, 10147, "source filters can not overlap")
REPLICAS_UNSUPPORTED: Final = Row(500, 10074, "replicas > 1 not supported in non-clustered mode")
PURGE_DENIED: Final = Row(500, 10110, "{}")
CONSUMER_DURABLE_IN_REQUEST: Final = Row(
    400, 10020, "consumer expected to be ephemeral but a durable name was set in request"
)
CONSUMER_BACKOFF: Final = Row(400, 10116, "max deliver is required to be > length of backoff values")
CONSUMER_IN_USE: Final = Row(400, 10013, "consumer name already in use")
WORKQUEUE_PULL_EXPLICIT: Final = Row(
    400, 10084, "consumer in pull mode requires explicit ack policy on workqueue stream"
)
INACTIVE_THRESHOLD: Final = Row(400, 10153, "consumer inactive threshold exceeds system limit of {}")

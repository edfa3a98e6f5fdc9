"""What a consumer promises, pure: which message goes to whom and when, and what becomes of it.

A `Consumer` reads its stream in order, remembers what it delivered and what was acknowledged, and delivers
again what was not: when its time is up (``ack_wait`` or ``backoff``), or when it is asked to (NAK).  Push
consumers have one destination; pull consumers serve requests in the order in which they came.  Time is an
argument (nanoseconds).

Reference: NATS documentation, "Consumers"; the fields of `ConsumerConfig` are those of the JetStream API.
"""

from __future__ import annotations

import heapq
from collections import deque
from itertools import takewhile
from typing import Final

from dendrite_tw.jetstream.configs import ConsumerConfig
from dendrite_tw.jetstream.deliveries import Output, Pending, Pull, Snapshot
from dendrite_tw.jetstream.index import Entry
from dendrite_tw.jetstream.storage import Stored
from dendrite_tw.jetstream.streams import Stream
from dendrite_tw.jetstream.subjects import matches
from dendrite_tw.jetstream.times import SECOND, format_time, parse_time

DEFAULT_ACK_WAIT: Final = 30 * SECOND
DEFAULT_MAX_ACK_PENDING: Final = 1000
DEFAULT_MAX_WAITING: Final = 512
FLOW_WINDOW: Final = 256 * 1024
"""Bytes that a push consumer with flow control sends before it waits for an answer."""


class Consumer:
    """One consumer of one stream."""

    def __init__(
        self,
        name: str,
        config: ConsumerConfig,
        stream: Stream,
        output: Output,
        created: int,
        *,
        durable: bool,
    ) -> None:
        self.name = name
        self.config = config
        self.stream = stream
        self.output = output
        self.created = created
        self.durable = durable
        self.consumer_seq = 0
        self.stream_seq = 0
        self.floor_consumer = 0
        self.floor_stream = 0
        self.pending: dict[int, Pending] = {}
        """By stream sequence, ascending: what is delivered again keeps its place."""
        self.redelivered: dict[int, int] = {}
        self.abandoned: dict[int, int] = {}
        """Delivered as often as allowed, in vain: their number, and the sequence of the consumer."""
        self.requests: deque[Pull] = deque()
        self.unread = 0
        """Messages of the filter that were never delivered."""
        self.dirty = False
        self.last_active = created
        self.last_ack = 0
        self.last_delivery = 0
        self.heartbeat_at = 0
        self.flow_reply = ""
        self._flow_bytes = 0
        self._again: list[int] = []
        self._initial: deque[int] = deque()
        self._armed = 0
        self._hold_until = 0
        self.configure(config)

    def configure(self, config: ConsumerConfig) -> None:
        """Take over a configuration; progress stays, but what counts as unread may change."""
        self.config = config
        self.filters = config.filters()
        self.acknowledges = config.ack_policy != "none"
        self.is_push = bool(config.deliver_subject)
        self.ack_wait = config.ack_wait or DEFAULT_ACK_WAIT
        self.max_deliver = config.max_deliver or -1
        self.backoff = config.backoff or []
        limit = config.max_ack_pending
        self.max_pending = limit if limit and limit > 0 else 0
        self._paced = bool(config.rate_limit_bps) or config.replay_policy == "original"
        self.paused_until = parse_time(config.pause_until) if config.pause_until else 0
        self.ack_prefix = f"$JS.ACK.{self.stream.config.name}.{self.name}."

    def start_at(self, seq: int, *, initial: list[int] | None = None) -> None:
        """Begin before this sequence; with ``initial``, first deliver just those (last per subject)."""
        self.stream_seq = self.floor_stream = max(seq, 1) - 1
        if initial is not None:
            self._initial = deque(initial)
            if initial:
                self.stream_seq = self.floor_stream = initial[0] - 1
        self._recount()

    def _recount(self) -> None:
        if self._initial:
            self.unread = len(self._initial) + self.stream.index.count_from(self._initial[-1] + 1, self.filters)
        else:
            self.unread = self.stream.index.count_from(self.stream_seq + 1, self.filters)

    def begin(self, now: int) -> None:
        """Go into service: deliver what is there, and set the clock."""
        self._armed = 0
        self.last_active = now
        self._recount()
        if self.is_push and self.config.idle_heartbeat:
            self.heartbeat_at = now + self.config.idle_heartbeat
        self.pump(now)
        at = self.wake_at(now)
        if at:
            self._arm(at)

    # --- what the stream asks ---

    def wants(self, subject: str) -> bool:
        return not self.filters or any(matches(pattern, subject) for pattern in self.filters)

    def needs(self, seq: int) -> bool:
        if seq <= self.stream_seq:
            return seq in self.pending or seq in self.abandoned
        if not self.filters:
            return True
        entry = self.stream.index.get(seq)
        return entry is not None and self.wants(entry.subject)

    def lost(self, entry: Entry) -> None:
        if entry.seq > self.stream_seq:
            if self.unread and self.wants(entry.subject):
                self.unread -= 1
        elif entry.seq in self.pending or entry.seq in self.abandoned:
            self._forget(entry.seq)

    def _forget(self, seq: int) -> None:
        self.pending.pop(seq, None)
        self.abandoned.pop(seq, None)
        self.redelivered.pop(seq, None)
        self.dirty = True
        self._raise_floor()

    def _raise_floor(self) -> None:
        """The floor is just below the oldest delivery that is not settled."""
        oldest, consumer_seq = self.stream_seq + 1, self.consumer_seq + 1
        if self.pending:
            oldest = next(iter(self.pending))
            consumer_seq = self.pending[oldest].consumer_seq
        if self.abandoned:
            first = min(self.abandoned)
            if first < oldest:
                oldest, consumer_seq = first, self.abandoned[first]
        if oldest - 1 >= self.floor_stream:
            self.floor_stream = oldest - 1
            self.floor_consumer = max(consumer_seq - 1, self.floor_consumer)

    # --- delivering ---

    def stored(self, message: Stored, now: int) -> None:
        """The stream has a new message."""
        if self.filters and not self.wants(message.subject):
            return
        self.unread += 1
        if self.unread == 1 and not self._again and self.stream_seq < message.seq and not self._initial:
            if (self.is_push or self.requests) and self._may_deliver(now):
                self._deliver_next(message, now)
                if self.requests and self.requests[0].no_wait:
                    self._answer_no_wait()
            return
        self.pump(now)

    def _may_deliver(self, now: int) -> bool:
        """Whether somebody is there to take a message, and may have one more."""
        if self.paused_until:
            if now < self.paused_until:
                return False
            self.paused_until = 0
        if self.max_pending and len(self.pending) >= self.max_pending and not self._again:
            return False
        if self._hold_until > now:
            self._arm(self._hold_until)
            return False
        if self.is_push:
            if self.config.flow_control and self._flow_bytes >= FLOW_WINDOW:
                return False
            destination, group = self.config.deliver_subject or "", self.config.deliver_group or ""
            return self.output.reaches(destination, group)
        return self._drop_dead_requests(now)

    def _drop_dead_requests(self, now: int) -> bool:
        """Close requests whose time is up or whose sender has gone; whether one is left."""
        requests = self.requests
        while requests:
            request = requests[0]
            if request.deadline and request.deadline <= now:
                self._close(request, 408, "Request Timeout")
            elif self.output.reaches(request.reply, ""):
                return True
            requests.popleft()
        return False

    def pump(self, now: int) -> None:
        """Deliver all that may be delivered now."""
        while self._again or self.unread > 0:
            if not (self.is_push or self.requests) or not self._may_deliver(now):
                break
            if self._again:
                seq = heapq.heappop(self._again)
                if seq in self.pending:
                    self._deliver_again(seq, now)
                continue
            message = self._next_new()
            if message is None:
                self.unread = 0
                break
            self._deliver_next(message, now)
        if self.requests and self.requests[0].no_wait:
            self._answer_no_wait()

    def _next_new(self) -> Stored | None:
        """The next message that was never delivered."""
        index = self.stream.index
        while self._initial:
            first = self.stream.read(self._initial[0])
            if first is not None:
                return first
            self._initial.popleft()
        seq = index.next_matching(self.stream_seq + 1, self.filters)
        while seq:
            message = self.stream.read(seq)
            if message is not None:
                return message
            self.stream.remove(seq)
            seq = index.next_matching(seq + 1, self.filters)
        return None

    def _deliver_next(self, message: Stored, now: int) -> None:
        if not self.is_push and not self._fits(message):
            return
        seq = message.seq
        if self._initial and self._initial[0] == seq:
            self._initial.popleft()
        self.unread -= 1
        self.consumer_seq += 1
        self.stream_seq = seq
        self.dirty = True
        if self.acknowledges:
            self.pending[seq] = Pending(self.consumer_seq, self._deadline(1, now))
        else:
            self.floor_consumer, self.floor_stream = self.consumer_seq, seq
        self._send(message, 1, now)
        if not self.acknowledges:
            self.stream.settle(seq)

    def _deliver_again(self, seq: int, now: int) -> None:
        deliveries = self.redelivered.get(seq, 1)
        if 0 < self.max_deliver <= deliveries:
            pending = self.pending.pop(seq)
            self.redelivered.pop(seq, None)
            self.abandoned[seq] = pending.consumer_seq
            self.dirty = True
            self.output.given_up(self, seq, deliveries)
            return
        message = self.stream.read(seq)
        if message is None:
            self._forget(seq)
            return
        if not self.is_push and not self._fits(message):
            heapq.heappush(self._again, seq)
            return
        self.consumer_seq += 1
        self.redelivered[seq] = deliveries + 1
        self.dirty = True
        self.pending[seq].deadline = self._deadline(deliveries + 1, now)
        self._send(message, deliveries + 1, now)

    def _deadline(self, deliveries: int, now: int) -> int:
        wait = self.backoff[min(deliveries, len(self.backoff)) - 1] if self.backoff else self.ack_wait
        deadline = now + wait
        self._arm(deadline)
        return deadline

    def _arm(self, at: int) -> None:
        if not self._armed or at < self._armed:
            self._armed = at
            self.output.wake(self, at)

    def _reply(self, message: Stored, deliveries: int, consumer_seq: int, unread: int) -> str:
        return f"{self.ack_prefix}{deliveries}.{message.seq}.{consumer_seq}.{message.time}.{unread}"

    def _fits(self, message: Stored) -> bool:
        """Whether the first request still has room for it; a request that has not is closed."""
        request = self.requests[0]
        if not request.max_bytes:
            return True
        reply = self._reply(message, 1, self.consumer_seq + 1, max(self.unread - 1, 0))
        size = len(message.subject) + len(reply) + len(message.headers) + len(message.payload)
        if size <= request.left_bytes:
            request.left_bytes -= size
            return True
        self.requests.popleft()
        self._close(request, 409, "Message Size Exceeds MaxBytes")
        return False

    def _send(self, message: Stored, deliveries: int, now: int) -> None:
        reply = self._reply(message, deliveries, self.consumer_seq, self.unread)
        headers_only = bool(self.config.headers_only)
        self.last_delivery = now
        if self._paced:
            self._pace(message, now)
        if self.is_push:
            if self.config.idle_heartbeat:
                self.heartbeat_at = now + self.config.idle_heartbeat
            self.output.deliver(self.config.deliver_subject or "", message, reply, headers_only)
            if self.config.flow_control:
                self._count_flow(message)
            return
        request = self.requests[0]
        request.batch -= 1
        request.sent += 1
        if request.heartbeat:
            request.heartbeat_at = now + request.heartbeat
        if request.batch <= 0:
            self.requests.popleft()
        self.output.deliver(request.reply, message, reply, headers_only)

    def _pace(self, message: Stored, now: int) -> None:
        """Not faster than the rate limit, nor than the messages once came (replay policy "original")."""
        self._hold_until = now
        if self.config.rate_limit_bps:
            bits = 8 * (len(message.headers) + len(message.payload))
            self._hold_until = now + bits * SECOND // self.config.rate_limit_bps
        if self.config.replay_policy == "original":
            following = self.stream.index.next_matching(message.seq + 1, self.filters)
            entry = self.stream.index.get(following) if following else None
            if entry is not None:
                self._hold_until = max(self._hold_until, now + entry.time - message.time)

    # --- flow control and heartbeats ---

    def _count_flow(self, message: Stored) -> None:
        self._flow_bytes += len(message.headers) + len(message.payload)
        if self._flow_bytes >= FLOW_WINDOW // 2 and not self.flow_reply:
            self.flow_reply = f"$JS.FC.{self.stream.config.name}.{self.name}.{self.consumer_seq}"
            self.output.status(self.config.deliver_subject or "", 100, "FlowControl Request", {}, self.flow_reply)

    def flow_answered(self, subject: str, now: int) -> None:
        """The subscriber has answered the flow control question of this subject."""
        if subject == self.flow_reply:
            self.flow_reply = ""
            self._flow_bytes = 0
            self.pump(now)

    def _beat(self, now: int) -> None:
        """Send heartbeats that are due, to an idle push subscriber or to waiting requests."""
        fields = {
            "Nats-Last-Consumer": str(self.consumer_seq),
            "Nats-Last-Stream": str(self.stream_seq),
        }
        if self.is_push and self.config.idle_heartbeat:
            if self.heartbeat_at <= now:
                self.heartbeat_at = now + self.config.idle_heartbeat
                if self.output.reaches(self.config.deliver_subject or "", self.config.deliver_group or ""):
                    if self.flow_reply:
                        fields["Nats-Consumer-Stalled"] = self.flow_reply
                    self.output.status(self.config.deliver_subject or "", 100, "Idle Heartbeat", fields, "")
            return
        for request in self.requests:
            if request.heartbeat and request.heartbeat_at <= now:
                request.heartbeat_at = now + request.heartbeat
                self.output.status(request.reply, 100, "Idle Heartbeat", fields, "")

    # --- pull requests ---

    def pull(self, request: Pull, now: int) -> None:
        """Serve a request, or keep it waiting."""
        limit = self.config.max_waiting or DEFAULT_MAX_WAITING
        if len(self.requests) >= limit:
            self._drop_dead_requests(now)
            if len(self.requests) >= limit:
                self.output.status(request.reply, 409, "Exceeded MaxWaiting", {}, "")
                return
        self.last_active = now
        if request.no_wait:
            available = self.unread + len(self._again)
            if not available and not request.deadline:
                self.output.status(request.reply, 404, "No Messages", {}, "")
                return
        if request.heartbeat:
            request.heartbeat_at = now + request.heartbeat
            self._arm(request.heartbeat_at)
        if request.deadline:
            self._arm(request.deadline)
        self.requests.append(request)
        self.pump(now)

    def _answer_no_wait(self) -> None:
        """A request that does not wait has got what there was; one that got nothing yet may wait its time."""
        requests = self.requests
        while requests and requests[0].no_wait and (requests[0].sent or not requests[0].deadline):
            self.output.status(requests.popleft().reply, 404, "No Messages", {}, "")

    def _close(self, request: Pull, code: int, description: str) -> None:
        fields = {"Nats-Pending-Messages": str(request.batch), "Nats-Pending-Bytes": str(request.left_bytes)}
        self.output.status(request.reply, code, description, fields, "")

    def close_requests(self, code: int, description: str) -> None:
        """End all waiting requests, for instance because the consumer is deleted."""
        requests, self.requests = self.requests, deque()
        for request in requests:
            self.output.status(request.reply, code, description, {}, "")

    # --- acknowledgements ---

    def ack(self, seq: int, consumer_seq: int, now: int) -> None:
        """The message has been dealt with; with policy "all", and everything before it."""
        self.last_ack = now
        if self.config.ack_policy == "all":
            self._ack_through(seq, consumer_seq)
        elif seq in self.pending or seq in self.abandoned:
            self._forget(seq)
            self.stream.settle(seq)
        if self.unread > 0 or self._again:
            self.pump(now)

    def _ack_through(self, seq: int, consumer_seq: int) -> None:
        if seq <= self.floor_stream or seq > self.stream_seq:
            return
        done = list(takewhile(seq.__ge__, self.pending))
        for pending in done:
            del self.pending[pending]
        if self.abandoned:
            done.extend(number for number in self.abandoned if number <= seq)
            self.abandoned = {number: at for number, at in self.abandoned.items() if number > seq}
        if self.redelivered:
            self.redelivered = {number: count for number, count in self.redelivered.items() if number > seq}
        self.dirty = True
        if self.pending:
            self.floor_stream, self.floor_consumer = seq, max(consumer_seq, self.floor_consumer)
        else:
            self._raise_floor()
        for pending in done:
            self.stream.settle(pending)

    def nak(self, seq: int, delay: int, now: int) -> None:
        """Deliver the message again: at once, or after ``delay`` nanoseconds."""
        pending = self.pending.get(seq)
        if pending is None:
            return
        if delay > 0:
            pending.deadline = now + delay
            self._arm(pending.deadline)
            return
        if seq not in self._again:
            heapq.heappush(self._again, seq)
        self.pump(now)

    def progress(self, seq: int, now: int) -> None:
        """Work on the message goes on: its time starts anew."""
        pending = self.pending.get(seq)
        if pending is not None:
            pending.deadline = self._deadline(self.redelivered.get(seq, 1), now)

    def terminate(self, seq: int, now: int) -> None:
        """Never deliver the message again, although it was not dealt with."""
        if seq in self.pending:
            self._forget(seq)
            self.stream.settle(seq)
            self.pump(now)

    def pause(self, until: int, now: int) -> None:
        """Deliver nothing before this time; 0 goes on at once."""
        self.paused_until = until if until > now else 0
        self.config.pause_until = format_time(until) if until > now else None
        if self.paused_until:
            self._arm(until)
        else:
            self.pump(now)

    # --- time ---

    @property
    def redelivering(self) -> int:
        return len(self.redelivered) + len(self.abandoned)

    def tick(self, now: int) -> None:
        """Do what has become due."""
        self._armed = 0
        queued = set(self._again)
        for seq, pending in self.pending.items():
            if pending.deadline <= now and seq not in queued:
                heapq.heappush(self._again, seq)
        self._expire_requests(now)
        self._beat(now)
        self.pump(now)
        at = self.wake_at(now)
        if at:
            self._arm(at)

    def _expire_requests(self, now: int) -> None:
        if any(request.deadline and request.deadline <= now for request in self.requests):
            waiting: deque[Pull] = deque()
            for request in self.requests:
                if request.deadline and request.deadline <= now:
                    self._close(request, 408, "Request Timeout")
                else:
                    waiting.append(request)
            self.requests = waiting

    def wake_at(self, now: int) -> int:
        """When something becomes due next (nanoseconds); 0 for nothing in sight."""
        moments = [pending.deadline for pending in self.pending.values() if pending.deadline > now]
        if self._hold_until > now:
            moments.append(self._hold_until)
        if self.paused_until > now:
            moments.append(self.paused_until)
        if self.is_push and self.config.idle_heartbeat:
            moments.append(self.heartbeat_at)
        for request in self.requests:
            if request.deadline:
                moments.append(request.deadline)
            if request.heartbeat:
                moments.append(request.heartbeat_at)
        return min(moments, default=0)

    # --- persistence ---

    def snapshot(self) -> Snapshot:
        pending = [(seq, delivery.consumer_seq) for seq, delivery in self.pending.items()]
        return Snapshot(
            self.name,
            self.consumer_seq,
            self.stream_seq,
            self.floor_consumer,
            self.floor_stream,
            pending,
            dict(self.redelivered),
            dict(self.abandoned),
        )

    def restore(self, saved: Snapshot, now: int) -> None:
        """Go on where the snapshot was taken, as far as the stream still reaches.

        What was delivered and not acknowledged is delivered again at once: whoever received it has gone
        with the process.
        """
        last = self.stream.index.last_seq
        self.consumer_seq = saved.consumer_seq
        self.floor_consumer = saved.floor_consumer
        self.stream_seq = min(saved.stream_seq, last)
        self.floor_stream = min(saved.floor_stream, last)
        self.redelivered = {seq: count for seq, count in saved.redelivered.items() if seq <= last}
        for seq, consumer_seq in saved.pending:
            if seq in self.stream.index:
                self.pending[seq] = Pending(consumer_seq, now)
        self.abandoned = {seq: at for seq, at in saved.abandoned.items() if seq in self.stream.index}
        self._again = sorted(self.pending)
        self._recount()

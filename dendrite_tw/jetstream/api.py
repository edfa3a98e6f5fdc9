"""The JetStream API: requests on ``$JS.API.>``, answered as a NATS server answers them.

Each request is a row of `_ROUTES`: the words of its subject, the type of its answer, and the method that
serves it. Reference: NATS documentation, "JetStream wire API Reference".
"""

from __future__ import annotations

import binascii
from collections.abc import Callable
from typing import Any, Final, TypeVar

import msgspec
import orjson

from dendrite_tw.jetstream import errors, rules, wire
from dendrite_tw.jetstream.configs import ConsumerConfig, StreamConfig
from dendrite_tw.jetstream.consumers import Consumer
from dendrite_tw.jetstream.engine import JetStream
from dendrite_tw.jetstream.errors import ApiError, refusal
from dendrite_tw.jetstream.hosted import Hosted
from dendrite_tw.jetstream.storage import Stored
from dendrite_tw.jetstream.times import NEVER, format_time, parse_time

C = TypeVar("C")

PREFIX: Final = "$JS.API."
API_LEVEL: Final = 2
"""The level of the JetStream API: 2 has message schedules, atomic batches and promotion of mirrors."""
PAGE_NAMES: Final = 1024
PAGE_INFOS: Final = 256
MAX_DIRECT: Final = 1024
"""Messages that one direct request may ask for."""
MAX_DETAILS: Final = 100_000
"""Subjects or deleted sequences that one answer lists."""


class Request:
    """A request as it came: the words after the route's own, and the body."""

    __slots__ = ("body", "reply", "words")

    def __init__(self, words: list[str], body: bytes, reply: str) -> None:
        self.words = words
        self.body = body
        self.reply = reply

    def json(self) -> dict[str, Any]:
        """The body as an object; an empty body is an empty object."""
        if not self.body.strip():
            return {}
        try:
            value = orjson.loads(self.body)
        except orjson.JSONDecodeError as error:
            raise refusal(errors.INVALID_JSON, str(error)) from None
        if not isinstance(value, dict):
            raise refusal(errors.INVALID_JSON, "not an object")
        return value


def convert(value: Any, kind: type[C]) -> C:
    """A typed configuration from what a client sent; unknown fields are ignored, null is absence."""
    if isinstance(value, dict):
        value = {key: item for key, item in value.items() if item is not None}
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise refusal(errors.INVALID_JSON, str(error)) from None


def natural(value: Any, default: int = 0) -> int:
    """A number of a request that must not be negative."""
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise refusal(errors.BAD_REQUEST)
    return value


class Api:
    """Serves the requests of the JetStream API."""

    def __init__(self, engine: JetStream, domain: str = "") -> None:
        self.engine = engine
        self.domain = domain
        self.calls = 0
        self.failures = 0
        engine.server.subscribe(PREFIX + ">", self._on_request)
        if domain:
            engine.server.subscribe(f"$JS.{domain}.API.>", self._on_domain_request)
        engine.next_message = self._next_for  # type: ignore[method-assign]

    def _on_domain_request(self, subject: str, reply: str, headers: bytes, payload: bytes) -> bool:
        return self._on_request(subject.replace(f".{self.domain}.", ".", 1), reply, headers, payload)

    def _on_request(self, subject: str, reply: str, headers: bytes, payload: bytes) -> bool:
        """Serve a request; false if nobody is there for it (a stream or consumer that does not exist)."""
        words = subject[len(PREFIX) :].split(".")
        if words[0] == "DIRECT":
            return self._direct(words, payload, reply)
        if words[:3] == ["CONSUMER", "MSG", "NEXT"]:
            return self._on_next(words, payload, reply)
        for size in (3, 2, 1):
            route = _ROUTES.get(".".join(words[:size]))
            if route is not None:
                self._serve(route, Request(words[size:], payload, reply))
                return True
        return False

    def _serve(self, route: Route, request: Request) -> None:
        answer: dict[str, Any] = {"type": f"io.nats.jetstream.api.v1.{route.answer}"}
        try:
            answer.update(route.serve(self, request))
        except ApiError as error:
            self.failures += 1
            answer["error"] = error.body()
        self.calls += 1
        if request.reply:
            data = orjson.dumps(answer)
            # What was changed is on disk before it is said to be done.
            self.engine.syncer.when_synced(lambda: self.engine.acknowledge(request.reply, data))

    # --- account ---

    def account_info(self, request: Request) -> dict[str, Any]:
        totals = self.engine.info()
        answer = {
            **totals,
            "reserved_memory": 0,
            "reserved_storage": 0,
            "limits": msgspec.to_builtins(self.engine.limits),
            "api": {"level": API_LEVEL, "total": self.calls, "errors": self.failures},
        }
        if self.domain:
            answer["domain"] = self.domain
        return answer

    # --- streams ---

    def stream_create(self, request: Request) -> dict[str, Any]:
        config = self._stream_config(request)
        existing = self.engine.streams.get(config.name)
        if existing is not None:
            if existing.stream.config != config:
                raise refusal(errors.STREAM_NAME_IN_USE)
            return {**self._stream_info(existing), "did_create": True}
        rules.check_account(self.engine.limits, config, self.engine.streams.values())
        self._check_overlap(config)
        hosted = self.engine.create_stream(config)
        return {**self._stream_info(hosted), "did_create": True}

    def _stream_config(self, request: Request) -> StreamConfig:
        config = convert(request.json(), StreamConfig)
        if request.words[:1] != [config.name]:
            raise refusal(errors.STREAM_NAME_MISMATCH)
        return rules.checked_stream(config)

    def _check_overlap(self, config: StreamConfig) -> None:
        for other in self.engine.streams.values():
            if other.stream.config.name != config.name and rules.subjects_overlap(
                config.subjects or [], other.stream.config.subjects or []
            ):
                raise refusal(errors.SUBJECT_OVERLAP)

    def stream_update(self, request: Request) -> dict[str, Any]:
        config = self._stream_config(request)
        hosted = self.engine.stream(config.name)
        rules.check_stream_update(hosted.stream.config, config)
        self._check_overlap(config)
        hosted.stream.configure(config)
        hosted.stream.enforce_all_limits()
        hosted.save()
        hosted.listen()
        self.engine.advise_stream(hosted, "modify")
        return self._stream_info(hosted)

    def stream_info(self, request: Request) -> dict[str, Any]:
        hosted = self._named_stream(request)
        asked = request.json()
        info = {**self._stream_info(hosted), "cluster": {"leader": self.engine.server.settings.name}}
        index = hosted.stream.index
        deleted = index.gaps(MAX_DETAILS) if asked.get("deleted_details") else []
        if deleted:
            info["state"]["deleted"] = deleted
        pattern = asked.get("subjects_filter")
        if isinstance(pattern, str) and pattern:
            states = index.matching([pattern])
            offset = natural(asked.get("offset"))
            page = states[offset : offset + MAX_DETAILS]
            if page:
                info["state"]["subjects"] = {state.name: state.count for state in page}
            info.update(total=len(states), offset=offset, limit=MAX_DETAILS)
        return info

    def stream_delete(self, request: Request) -> dict[str, Any]:
        self.engine.delete_stream(self._named_stream(request))
        return {"success": True}

    def stream_purge(self, request: Request) -> dict[str, Any]:
        hosted = self._named_stream(request)
        config = hosted.stream.config
        if config.sealed:
            raise refusal(errors.STREAM_SEALED)
        if config.deny_purge:
            raise refusal(errors.PURGE_DENIED, "stream purge not permitted")
        asked = request.json()
        before, keep = natural(asked.get("seq")), natural(asked.get("keep"))
        if before and keep:
            raise refusal(errors.BAD_REQUEST)
        pattern = asked.get("filter")
        filters = [pattern] if isinstance(pattern, str) and pattern else []
        return {"success": True, "purged": hosted.stream.purge(filters, before, keep)}

    def stream_names(self, request: Request) -> dict[str, Any]:
        streams, page = self._page(request, self._streams_with(request.json()), PAGE_NAMES)
        return {**page, "streams": [hosted.stream.config.name for hosted in streams]}

    def stream_list(self, request: Request) -> dict[str, Any]:
        streams, page = self._page(request, self._streams_with(request.json()), PAGE_INFOS)
        return {**page, "streams": [self._stream_info(hosted) for hosted in streams]}

    def _streams_with(self, asked: dict[str, Any]) -> list[Hosted]:
        subject = asked.get("subject")
        found = sorted(self.engine.streams.items())
        if not isinstance(subject, str) or not subject:
            return [hosted for _, hosted in found]
        return [hosted for _, hosted in found if rules.subjects_overlap([subject], hosted.stream.config.subjects or [])]

    def _page(self, request: Request, items: list[C], limit: int) -> tuple[list[C], dict[str, int]]:
        offset = min(natural(request.json().get("offset")), len(items))
        return items[offset : offset + limit], {"total": len(items), "offset": offset, "limit": limit}

    def _named_stream(self, request: Request) -> Hosted:
        if len(request.words) != 1:
            raise refusal(errors.BAD_REQUEST)
        return self.engine.stream(request.words[0])

    def _stream_info(self, hosted: Hosted) -> dict[str, Any]:
        stream = hosted.stream
        info: dict[str, Any] = {
            "config": stream.config.body(),
            "created": format_time(stream.created),
            "state": self._stream_state(hosted),
            "ts": format_time(self.engine.now()),
        }
        feeds = [feed.info() for feed in hosted.fed_by]
        if stream.config.mirror and feeds:
            info["mirror"] = feeds[0]
        elif feeds:
            info["sources"] = feeds
        return info

    def _stream_state(self, hosted: Hosted) -> dict[str, Any]:
        index = hosted.stream.index
        first, last = index.get(index.first_seq), index.get(index.last_seq)
        state = {
            "messages": index.count,
            "bytes": index.bytes,
            "first_seq": index.first_seq if index.last_seq else 0,
            "first_ts": format_time(first.time) if first else NEVER,
            "last_seq": index.last_seq,
            "last_ts": format_time(last.time) if last else NEVER,
            "consumer_count": len(hosted.consumers),
        }
        if index.subjects:
            state["num_subjects"] = len(index.subjects)
        deleted = index.last_seq - index.first_seq + 1 - index.count if index.count else 0
        if deleted:
            state["num_deleted"] = deleted
        return state

    # --- single messages ---

    def message_get(self, request: Request) -> dict[str, Any]:
        message = self._find(self._named_stream(request), request.json())
        return {"message": _message_body(message)}

    def _find(self, hosted: Hosted, asked: dict[str, Any]) -> Stored:
        stream = hosted.stream
        last, next_by = asked.get("last_by_subj"), asked.get("next_by_subj")
        if isinstance(last, str) and last:
            message = stream.last_of(last)
        else:
            seq = natural(asked.get("seq"))
            if isinstance(next_by, str) and next_by:
                seq = stream.index.next_matching(max(seq, 1), [next_by])
            elif not seq:
                raise refusal(errors.BAD_REQUEST)
            message = stream.read(seq)
        if message is None:
            raise refusal(errors.NO_MESSAGE)
        return message

    def message_delete(self, request: Request) -> dict[str, Any]:
        hosted = self._named_stream(request)
        config = hosted.stream.config
        if config.sealed:
            raise refusal(errors.STREAM_SEALED)
        if config.deny_delete:
            raise refusal(errors.DELETE_DENIED, "message delete not permitted")
        seq = natural(request.json().get("seq"))
        if not hosted.stream.erase(seq):
            gone = 0 < seq <= hosted.stream.index.last_seq
            raise refusal(errors.DELETE_DENIED, "no message found" if gone else "stream store EOF")
        return {"success": True}

    def _direct(self, words: list[str], payload: bytes, reply: str) -> bool:
        """DIRECT.GET: the message itself is the answer, or several of them."""
        hosted = self.engine.streams.get(words[2]) if len(words) > 2 and words[1] == "GET" else None
        if hosted is None or not hosted.stream.config.allow_direct:
            return False
        try:
            if len(words) > 3:
                asked: dict[str, Any] = {"last_by_subj": ".".join(words[3:])}
            else:
                asked = Request([], payload, reply).json()
        except ApiError:
            self._say(reply, 408, "Malformed Request")
            return True
        try:
            if "batch" in asked or "multi_last" in asked:
                self._direct_many(hosted, asked, reply)
            elif not asked:
                self._say(reply, 408, "Empty Request")
            else:
                self._send_direct(hosted, self._find(hosted, asked), reply, {})
        except ApiError as error:
            self._say(reply, *((404, "Message Not Found") if error.code == 404 else (408, "Bad Request")))
        return True

    def _say(self, reply: str, code: int, text: str, fields: dict[str, str] | None = None) -> None:
        if reply:
            self.engine.server.publish(reply, "", wire.encode_headers((fields or {}).items(), code, text), b"")

    def _send_direct(self, hosted: Hosted, message: Stored, reply: str, more: dict[str, str]) -> None:
        fields = {
            "Nats-Stream": hosted.stream.config.name,
            "Nats-Subject": message.subject,
            "Nats-Sequence": str(message.seq),
            "Nats-Time-Stamp": format_time(message.time),
            **more,
        }
        block = wire.replace_headers(message.headers, (), fields)
        self.engine.server.publish(reply, "", block, message.payload)

    def _direct_many(self, hosted: Hosted, asked: dict[str, Any], reply: str) -> None:
        """Several messages, each with how many are still to come, and a status that ends them."""
        index = hosted.stream.index
        patterns = asked.get("multi_last")
        end: dict[str, str] = {}
        limit = min(natural(asked.get("batch")) or MAX_DIRECT, MAX_DIRECT)
        if patterns is not None:
            if not isinstance(patterns, list) or not all(isinstance(p, str) and p for p in patterns):
                raise refusal(errors.BAD_REQUEST)
            seqs = sorted({state.last for state in index.matching(patterns)})
            end["Nats-UpTo-Sequence"] = str(index.last_seq)
        else:
            seqs = self._sequences_from(hosted, asked, limit + 1)
        if not seqs:
            raise refusal(errors.NO_MESSAGE)
        total = len(seqs) if patterns is not None else self._left_from(hosted, asked, seqs[0])
        last = 0
        for number, seq in enumerate(seqs[:limit], start=1):
            message = hosted.stream.read(seq)
            if message is not None:
                more = {"Nats-Num-Pending": str(total - number), "Nats-Last-Sequence": str(last)}
                self._send_direct(hosted, message, reply, more)
                last = seq
        sent = min(len(seqs), limit)
        fields = {"Nats-Num-Pending": str(total - sent), "Nats-Last-Sequence": str(last), **end}
        self._say(reply, 204, "EOB", fields)

    def _sequences_from(self, hosted: Hosted, asked: dict[str, Any], limit: int) -> list[int]:
        index = hosted.stream.index
        filters, seq = self._where(asked)
        if isinstance(asked.get("start_time"), str):
            try:
                seq = index.at_time(parse_time(asked["start_time"]))
            except ValueError:
                raise refusal(errors.BAD_REQUEST) from None
        found: list[int] = []
        seq = index.next_matching(max(seq, 1), filters)
        while seq and len(found) < limit:
            found.append(seq)
            seq = index.next_matching(seq + 1, filters)
        return found

    def _where(self, asked: dict[str, Any]) -> tuple[list[str], int]:
        pattern = asked.get("next_by_subj")
        return ([pattern] if isinstance(pattern, str) and pattern else []), natural(asked.get("seq"))

    def _left_from(self, hosted: Hosted, asked: dict[str, Any], seq: int) -> int:
        return hosted.stream.index.count_from(seq, self._where(asked)[0])

    # --- consumers ---

    def consumer_create(self, request: Request) -> dict[str, Any]:
        """CONSUMER.CREATE.stream[.name[.filter]]"""
        return self._create_consumer(request, durable=False)

    def durable_create(self, request: Request) -> dict[str, Any]:
        """CONSUMER.DURABLE.CREATE.stream.durable, the older form"""
        return self._create_consumer(request, durable=True)

    def _create_consumer(self, request: Request, *, durable: bool) -> dict[str, Any]:
        if not request.words:
            raise refusal(errors.BAD_REQUEST)
        asked = request.json()
        hosted = self.engine.stream(request.words[0])
        if asked.get("stream_name", request.words[0]) != request.words[0]:
            raise refusal(errors.STREAM_NAME_MISMATCH)
        config = convert(asked.get("config") or {}, ConsumerConfig)
        name = rules.consumer_name(config, request.words, durable=durable)
        config = rules.checked_consumer(config, hosted.stream.config)
        action = asked.get("action") or ""
        name = name or rules.ephemeral_name(hosted.consumers, self.engine.now())
        config.name = name
        existing = hosted.consumers.get(name)
        if existing is not None:
            return self._update_consumer(hosted, existing, config, action)
        if action == "update":
            raise refusal(errors.CONSUMER_DOES_NOT_EXIST)
        rules.check_new_consumer(config, hosted.stream.config, hosted.consumers)
        rules.check_consumer_limits(config, self.engine.limits)
        consumer = self.engine.create_consumer(hosted, name, config, durable=bool(config.durable_name))
        self._set_start(consumer)
        self.engine.host(hosted, consumer)
        if not config.mem_storage:
            hosted.save()
        info = self._consumer_info(hosted, consumer)
        self.engine.advise_consumer(consumer, "create")
        consumer.begin(self.engine.now())
        return info

    def _update_consumer(
        self, hosted: Hosted, consumer: Consumer, config: ConsumerConfig, action: str
    ) -> dict[str, Any]:
        if consumer.config != config:
            if action == "create":
                raise refusal(errors.CONSUMER_EXISTS)
            rules.check_consumer_update(consumer.config, config)
            destination = consumer.config.deliver_subject or ""
            if destination != (config.deliver_subject or "") and self.engine.server.reaches(destination):
                raise refusal(errors.CONSUMER_IN_USE)
            self.engine.reconfigure(hosted, consumer, config)
            hosted.save()
        return self._consumer_info(hosted, consumer)

    def _set_start(self, consumer: Consumer) -> None:
        config, index = consumer.config, consumer.stream.index
        policy = config.deliver_policy
        if policy == "new":
            consumer.start_at(index.last_seq + 1)
        elif policy == "last":
            last = max((state.last for state in index.matching(consumer.filters)), default=0)
            consumer.start_at(last or index.last_seq + 1)
        elif policy == "last_per_subject":
            latest = sorted(state.last for state in index.matching(consumer.filters))
            consumer.start_at(index.last_seq + 1, initial=latest)
        elif policy == "by_start_sequence":
            consumer.start_at(max(config.opt_start_seq or 1, index.first_seq))
        elif policy == "by_start_time":
            consumer.start_at(index.at_time(parse_time(config.opt_start_time or NEVER)))
        else:
            consumer.start_at(index.first_seq)

    def _named_consumer(self, request: Request) -> tuple[Hosted, Consumer]:
        if len(request.words) != 2:
            raise refusal(errors.BAD_REQUEST)
        hosted = self.engine.stream(request.words[0])
        consumer = hosted.consumers.get(request.words[1])
        if consumer is None:
            raise refusal(errors.CONSUMER_NOT_FOUND)
        return hosted, consumer

    def consumer_info(self, request: Request) -> dict[str, Any]:
        return self._consumer_info(*self._named_consumer(request))

    def consumer_delete(self, request: Request) -> dict[str, Any]:
        self.engine.delete_consumer(*self._named_consumer(request))
        return {"success": True}

    def consumer_names(self, request: Request) -> dict[str, Any]:
        hosted = self._named_stream(request)
        names, page = self._page(request, sorted(hosted.consumers), PAGE_NAMES)
        return {**page, "consumers": names}

    def consumer_list(self, request: Request) -> dict[str, Any]:
        hosted = self._named_stream(request)
        found, page = self._page(request, sorted(hosted.consumers.items()), PAGE_INFOS)
        return {**page, "consumers": [self._consumer_info(hosted, consumer) for _, consumer in found]}

    def consumer_pause(self, request: Request) -> dict[str, Any]:
        hosted, consumer = self._named_consumer(request)
        until = request.json().get("pause_until")
        now = self.engine.now()
        try:
            at = parse_time(until) if isinstance(until, str) and until else 0
        except ValueError:
            raise refusal(errors.BAD_REQUEST) from None
        consumer.pause(at, now)
        hosted.save()
        fields = {"paused": at > now, "pause_until": format_time(at) if at else NEVER}
        names = {"stream": hosted.stream.config.name, "consumer": consumer.name}
        subject = f"CONSUMER.PAUSE.{names['stream']}.{consumer.name}"
        self.engine.advise(subject, "consumer_pause", {**names, **fields})
        answer: dict[str, Any] = {"paused": at > now, "pause_until": format_time(at) if at else NEVER}
        if at > now:
            answer["pause_remaining"] = at - now
        return answer

    def _consumer_info(self, hosted: Hosted, consumer: Consumer) -> dict[str, Any]:
        now = self.engine.now()
        info: dict[str, Any] = {
            "stream_name": hosted.stream.config.name,
            "name": consumer.name,
            "created": format_time(consumer.created),
            "config": consumer.config.body(),
            "delivered": _position(consumer.consumer_seq, consumer.stream_seq, consumer.last_delivery),
            "ack_floor": _position(consumer.floor_consumer, consumer.floor_stream, consumer.last_ack),
            "num_ack_pending": len(consumer.pending),
            "num_redelivered": consumer.redelivering,
            "num_waiting": len(consumer.requests),
            "num_pending": consumer.unread,
            "ts": format_time(now),
        }
        if consumer.is_push:
            destination, group = consumer.config.deliver_subject or "", consumer.config.deliver_group or ""
            if self.engine.server.reaches(destination, group):
                info["push_bound"] = True
        if consumer.paused_until > now:
            info.update(paused=True, pause_remaining=consumer.paused_until - now)
        return info

    # --- pull requests ---

    def _on_next(self, words: list[str], payload: bytes, reply: str) -> bool:
        hosted = self.engine.streams.get(words[3]) if len(words) == 5 else None
        consumer = hosted.consumers.get(words[4]) if hosted else None
        if consumer is None:
            return False
        if reply:
            self._next_for(consumer, reply, payload)
        return True

    def _next_for(self, consumer: Consumer, reply: str, argument: bytes) -> None:
        """A pull request: a number of messages, or an object with conditions."""
        now = self.engine.now()
        try:
            request = rules.pull_request(consumer, reply, argument, now)
        except ApiError as error:
            self.engine.status(reply, error.code, error.description, {}, "")
            return
        consumer.pull(request, now)


def _position(consumer_seq: int, stream_seq: int, last: int) -> dict[str, Any]:
    position: dict[str, Any] = {"consumer_seq": consumer_seq, "stream_seq": stream_seq}
    if last:
        position["last_active"] = format_time(last)
    return position


def _message_body(message: Stored) -> dict[str, Any]:
    body: dict[str, Any] = {
        "subject": message.subject,
        "seq": message.seq,
        "data": _base64(message.payload),
        "time": format_time(message.time),
    }
    if message.headers:
        body["hdrs"] = _base64(message.headers)
    return body


def _base64(data: bytes) -> str:
    return binascii.b2a_base64(data, newline=False).decode()


class Route(msgspec.Struct, frozen=True):
    """One kind of request: the type of its answer, and what serves it."""

    answer: str
    serve: Callable[[Api, Request], dict[str, Any]]


_ROUTES: Final[dict[str, Route]] = {
    "INFO": Route("account_info_response", Api.account_info),
    "STREAM.CREATE": Route("stream_create_response", Api.stream_create),
    "STREAM.UPDATE": Route("stream_update_response", Api.stream_update),
    "STREAM.INFO": Route("stream_info_response", Api.stream_info),
    "STREAM.DELETE": Route("stream_delete_response", Api.stream_delete),
    "STREAM.PURGE": Route("stream_purge_response", Api.stream_purge),
    "STREAM.NAMES": Route("stream_names_response", Api.stream_names),
    "STREAM.LIST": Route("stream_list_response", Api.stream_list),
    "STREAM.MSG.GET": Route("stream_msg_get_response", Api.message_get),
    "STREAM.MSG.DELETE": Route("stream_msg_delete_response", Api.message_delete),
    "CONSUMER.CREATE": Route("consumer_create_response", Api.consumer_create),
    "CONSUMER.DURABLE.CREATE": Route("consumer_create_response", Api.durable_create),
    "CONSUMER.INFO": Route("consumer_info_response", Api.consumer_info),
    "CONSUMER.DELETE": Route("consumer_delete_response", Api.consumer_delete),
    "CONSUMER.NAMES": Route("consumer_names_response", Api.consumer_names),
    "CONSUMER.LIST": Route("consumer_list_response", Api.consumer_list),
    "CONSUMER.PAUSE": Route("consumer_pause_response", Api.consumer_pause),
}

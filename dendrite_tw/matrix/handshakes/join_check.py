"""Whether the room that a ``send_join`` answer describes can be believed.

Specification: Server-Server API, ``PUT /send_join``.  The answer brings all that a
server will know of the room: so each event in it is read, its signatures are
checked, and it must be allowed by its auth events, which must be in the answer
too.  What fails is left out, with all that builds on it; then the join must be
allowed in what is left.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from typing import Any

import msgspec

from dendrite_tw.matrix.admission import FetchKeys, Keys, check_signatures, key_requests
from dendrite_tw.matrix.auth_rules import AuthError, auth_state, check_auth, check_event_auth_events
from dendrite_tw.matrix.event_format import EventFormatError
from dendrite_tw.matrix.events import Event, ReceivedEvent, receive_event
from dendrite_tw.matrix.handshakes.messages import HandshakeError, Pause, Reply
from dendrite_tw.matrix.identifiers import is_server_name
from dendrite_tw.matrix.room_versions import ROOM_V1, RoomVersion
from dendrite_tw.matrix.signing import SignatureError
from dendrite_tw.matrix.state_res import auth_order

MAX_JOIN_EVENTS = 500_000
MAX_SERVERS = 100_000
PAUSE_EVERY = 200
"""Events checked between two pauses: some tens of milliseconds."""

_CREATE = ("m.room.create", "")


class Joined(msgspec.Struct, frozen=True, eq=False):
    """A room as its resident server described it, checked."""

    event: Event
    """The join, with the signature of the resident server if that was needed."""
    version: RoomVersion
    state: dict[tuple[str, str], Event]
    """The state before the join."""
    auth_chain: list[Event]
    """All other events of the answer that hold, each after those that authorise it."""
    partial: bool
    """Whether memberships were left out of the state."""
    servers_in_room: tuple[str, ...]
    """If partial: the servers that have members."""
    resident: str
    left_out: dict[str, str]
    """Events of the answer that do not hold, by id, and why."""


class _Answer(msgspec.Struct):
    state: list[msgspec.Raw]
    auth_chain: list[msgspec.Raw]
    event: msgspec.Raw = msgspec.Raw(b"null")
    members_omitted: bool = False
    servers_in_room: list[str] | None = None


_answer = msgspec.json.Decoder(_Answer)
Steps = Generator[FetchKeys | Pause, Any, Joined]


def check_join(sent: Event, reply: Reply, resident: str, *, now_ms: int) -> Steps:
    """Check the answer to a ``send_join`` of ``sent``.  Raises `HandshakeError`.

    Yields `FetchKeys` once for all events, and `Pause` while it works.
    """
    answer = _read(reply)
    join = _signed_join(sent, answer)
    left_out: dict[str, str] = {}
    state_ids, received = yield from _read_events(answer, sent, left_out)
    question = key_requests([*received.values(), join])
    keys: Keys = {} if question is None else (yield question)
    try:
        check_signatures(join, keys, now_ms=now_ms)
    except SignatureError as error:
        raise HandshakeError(f"the join is not signed as it must be: {error}") from None
    signed = yield from _check_signatures(received.values(), keys, left_out, now_ms)
    good = yield from _check_authority(signed, sent, left_out)
    state = _state(state_ids, good)
    _check_create(state, sent)
    _check_allowed(join.event, state, good, partial=answer.members_omitted)
    kept = {event.event_id for event in state.values()}
    return Joined(
        event=join.event,
        version=sent.version,
        state=state,
        auth_chain=[event for event in good.values() if event.event_id not in kept],
        partial=answer.members_omitted,
        servers_in_room=_servers(answer),
        resident=resident,
        left_out=left_out,
    )


def _read(reply: Reply) -> _Answer:
    try:
        answer = _answer.decode(reply.body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise HandshakeError(f"the answer is malformed: {error}") from None
    if len(answer.state) + len(answer.auth_chain) > MAX_JOIN_EVENTS:
        raise HandshakeError("the answer has too many events")
    return answer


def _servers(answer: _Answer) -> tuple[str, ...]:
    if not answer.members_omitted:
        return ()
    servers = tuple(dict.fromkeys(filter(is_server_name, answer.servers_in_room or ())))
    if not servers or len(servers) > MAX_SERVERS:
        raise HandshakeError("members were omitted, but the servers in the room are not told")
    return servers


def _signed_join(sent: Event, answer: _Answer) -> ReceivedEvent:
    """The join to go on with: ours, or the copy that the resident server has signed as well."""
    join = receive_event(sent.pdu, sent.version)
    if bytes(answer.event) == b"null":
        return join
    try:
        returned = receive_event(bytes(answer.event), sent.version)
    except EventFormatError as error:
        raise HandshakeError(f"the returned join is malformed: {error}") from None
    if returned.event.event_id != sent.event_id or returned.signed_bytes != join.signed_bytes or returned.redacted:
        raise HandshakeError("the returned join is another event")
    return returned


def _read_events(
    answer: _Answer, sent: Event, left_out: dict[str, str]
) -> Generator[Pause, Any, tuple[list[str], dict[str, ReceivedEvent]]]:
    """The events of the answer by id, and the ids of those which are the state."""
    received: dict[str, ReceivedEvent] = {}
    order: list[str] = []
    total = len(answer.state) + len(answer.auth_chain)
    for index, raw in enumerate((*answer.state, *answer.auth_chain)):
        if index % PAUSE_EVERY == PAUSE_EVERY - 1:
            yield Pause(index, total)
        try:
            one = receive_event(bytes(raw), sent.version)
        except EventFormatError as error:
            left_out[f"#{index}"] = str(error)
            continue
        event_id = one.event.event_id
        if one.event.room_id != sent.room_id or one.event.state_key is None:
            left_out[event_id] = "it is no state of this room"
            continue
        if index < len(answer.state):
            order.append(event_id)
        received.setdefault(event_id, one)
    return order, received


def _check_signatures(
    received: Iterable[ReceivedEvent], keys: Keys, left_out: dict[str, str], now_ms: int
) -> Generator[Pause, Any, list[Event]]:
    events = list(received)
    signed = []
    for index, one in enumerate(events):
        if index % PAUSE_EVERY == PAUSE_EVERY - 1:
            yield Pause(index, len(events))
        try:
            check_signatures(one, keys, now_ms=now_ms)
        except SignatureError as error:
            left_out[one.event.event_id] = str(error)
            continue
        signed.append(one.event)
    return signed


def _check_authority(
    signed: Sequence[Event], sent: Event, left_out: dict[str, str]
) -> Generator[Pause, Any, dict[str, Event]]:
    """The events that their auth events allow, in the order of authority."""
    good: dict[str, Event] = {}
    try:
        ordered = auth_order(signed)
    except ValueError as error:
        raise HandshakeError(f"the auth chain holds {error}") from None
    implied = not sent.version.create_event_in_auth_events
    create_id = "$" + sent.room_id[1:]
    # The create event authorises all others; where it is implied, the order does not know it.
    ordered.sort(key=lambda event: event.type != "m.room.create")
    for index, event in enumerate(ordered):
        if index % PAUSE_EVERY == PAUSE_EVERY - 1:
            yield Pause(index, len(ordered))
        missing = [auth_id for auth_id in event.auth_events if auth_id not in good]
        if missing:
            left_out[event.event_id] = f"{missing[0]}, which authorises it, is missing or does not hold"
            continue
        named = [good[auth_id] for auth_id in event.auth_events]
        try:
            check_event_auth_events(event, named)
            check_auth(event, auth_state(named, good.get(create_id) if implied else None))
        except AuthError as error:
            left_out[event.event_id] = str(error)
            continue
        good[event.event_id] = event
    return good


def _state(ids: Sequence[str], good: dict[str, Event]) -> dict[tuple[str, str], Event]:
    state: dict[tuple[str, str], Event] = {}
    for event_id in ids:
        event = good.get(event_id)
        if event is None or event.state_key is None:
            continue
        known = state.setdefault((event.type, event.state_key), event)
        if known is not event:
            raise HandshakeError("the state has two events in one place")
    return state


def _check_create(state: dict[tuple[str, str], Event], sent: Event) -> None:
    create = state.get(_CREATE)
    if create is None:
        raise HandshakeError("the state has no create event that holds")
    if create.content.get("room_version", ROOM_V1.identifier) != sent.version.identifier:
        raise HandshakeError("the room has another version than was said")


def _check_allowed(join: Event, state: dict[tuple[str, str], Event], good: dict[str, Event], *, partial: bool) -> None:
    """The join must be allowed by its auth events and by the state.

    A partial state is completed with the memberships among the auth events.
    """
    missing = [auth_id for auth_id in join.auth_events if auth_id not in good]
    if missing:
        raise HandshakeError("an event that authorises the join is missing or does not hold")
    named = [good[auth_id] for auth_id in join.auth_events]
    try:
        check_event_auth_events(join, named)
        check_auth(join, auth_state(named, state[_CREATE]))
        if partial:
            members = {key: one for key, one in auth_state(named).items() if key[0] == "m.room.member"}
            check_auth(join, {**members, **state})
        else:
            check_auth(join, state)
    except AuthError as error:
        raise HandshakeError(f"the join is not allowed in the room as it was described: {error}") from None

"""Whether the room that a ``send_join`` answer describes can be believed.

Specification: Server-Server API, ``PUT /send_join``.  The answer brings all that a
server will know of the room: `room_check` leaves out of it what does not hold; then
the join must be allowed in what is left.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import msgspec

from dendrite_tw.matrix.admission import FetchKeys, check_signatures, key_requests
from dendrite_tw.matrix.auth_rules import AuthError, auth_state, check_auth, check_event_auth_events
from dendrite_tw.matrix.errors import MALFORMED
from dendrite_tw.matrix.event_format import EventFormatError
from dendrite_tw.matrix.events import Event, ReceivedEvent, receive_event
from dendrite_tw.matrix.handshakes.messages import HandshakeError, Pause, Reply
from dendrite_tw.matrix.handshakes.room_check import MAX_SERVERS, Pile, check_room
from dendrite_tw.matrix.identifiers import is_server_name
from dendrite_tw.matrix.room_versions import ROOM_V1, RoomVersion
from dendrite_tw.matrix.signing import SignatureError

_CREATE = ("m.room.create", "")


class Joined(msgspec.Struct, frozen=True, eq=False):
    """A room as its resident server described it, checked."""

    event: Event
    """The join, with the signature of the resident server if that was needed."""
    version: RoomVersion
    state: dict[tuple[str, str], Event]
    """The state before the join."""
    events: list[Event]
    """All events of the answer that hold, each after those that authorise it; the state among them."""
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
    partial, servers = answer.members_omitted, _servers(answer)
    pile = Pile(answer.state, answer.auth_chain)
    # The answer is many times what is kept of it.
    del answer, reply
    question = key_requests([join])
    room, keys = yield from check_room(
        pile, sent.version, sent.room_id, now_ms=now_ms, besides=question.requests if question else ()
    )
    try:
        check_signatures(join, keys, now_ms=now_ms)
    except SignatureError as error:
        raise HandshakeError(f"the join is not signed as it must be: {error}") from None
    _check_create(room.state, sent)
    _check_allowed(join.event, room.state, room.good, partial=partial)
    return Joined(
        event=join.event,
        version=sent.version,
        state=room.state,
        events=list(room.good.values()),
        partial=partial,
        servers_in_room=servers,
        resident=resident,
        left_out=room.left_out,
    )


def _read(reply: Reply) -> _Answer:
    try:
        answer = _answer.decode(reply.body)
    except MALFORMED as error:
        raise HandshakeError(f"the answer is malformed: {error}") from None
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

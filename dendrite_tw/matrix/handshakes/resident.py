"""Joining, leaving and knocking through this server: the side that is asked.

Specification: Server-Server API, "Joining Rooms", "Restricted rooms", "Knocking upon a
room", "Leaving Rooms".  ``make_*`` gives a template that the room would allow now;
``send_*`` takes the signed event.  An event that has passed here goes on to
admission and the room's writer like any other.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import orjson
from pyroaring import BitMap

from dendrite_tw.matrix.admission import FetchKeys, verify
from dendrite_tw.matrix.auth_rules import AuthError, StateMap, auth_event_keys, check_auth, power_levels
from dendrite_tw.matrix.errors import MatrixError, forbidden, invalid_param
from dendrite_tw.matrix.event_format import EventFormatError
from dendrite_tw.matrix.events import Event, ReceivedEvent, build_pdu, receive_event, sign_event
from dendrite_tw.matrix.handshakes.messages import JOIN, Kind, Signer, incompatible
from dendrite_tw.matrix.identifiers import is_historical_user_id, is_room_id, server_name_of
from dendrite_tw.matrix.room_versions import RoomVersion
from dendrite_tw.matrix.state_res import AuthGraph

MAX_CONDITIONS = 50
"""Conditions of a restricted room that are looked at."""


class IsJoined(msgspec.Struct, frozen=True):
    """A question: is the user joined to that room?  `None` if this server is not in it, and cannot say."""

    room_id: str
    user_id: str


class Place(msgspec.Struct, frozen=True, eq=False):
    """Where in a room a new event would stand."""

    version: RoomVersion
    room_id: str
    state: StateMap
    """The current state: at least what authorises a membership of the user, and the join rules."""
    prev_events: Sequence[str]
    depth: int
    """Of the new event."""
    local_members: Collection[str] = ()
    """The joined users of this server."""
    reference_hashes: Mapping[str, str] | None = None
    """As of `events.build_pdu`, for room versions 1 and 2."""


# --- make -----------------------------------------------------------------------------------------


def make_template(
    kind: Kind, place: Place, user_id: str, *, origin: str, versions: Collection[str], server_name: str, now_ms: int
) -> Generator[IsJoined, bool | None, dict[str, Any]]:
    """The answer to a ``make_*`` of ``origin``, which knows ``versions``.  Raises `MatrixError`."""
    if not is_historical_user_id(user_id) or server_name_of(user_id) != origin:
        raise forbidden("The user is not of the server that asks.")
    if kind.membership != "leave" and place.version.identifier not in versions:
        raise incompatible(place.version)
    content = {"membership": kind.membership}
    if kind is JOIN:
        authoriser = yield from authorise_join(place, user_id, server_name=server_name)
        if authoriser is not None:
            content["join_authorised_via_users_server"] = authoriser
    keys = auth_event_keys(
        version=place.version, type="m.room.member", sender=user_id, state_key=user_id, content=content
    )
    pdu = build_pdu(
        place.version,
        room_id=place.room_id,
        sender=user_id,
        type="m.room.member",
        state_key=user_id,
        content=content,
        prev_events=place.prev_events,
        auth_events=[place.state[key].event_id for key in keys if key in place.state],
        depth=place.depth,
        origin_server_ts=now_ms,
        reference_hashes=place.reference_hashes,
    )
    try:
        check_auth(_unsigned(place, user_id, content), place.state)
    except AuthError as error:
        raise forbidden(f"The room does not allow it: {error}.") from None
    return {"room_version": place.version.identifier, "event": {**pdu, "origin": server_name}}


def _unsigned(place: Place, user_id: str, content: dict[str, Any]) -> Event:
    """The membership as far as the authorisation rules look at it."""
    return Event(
        version=place.version,
        event_id="",
        room_id=place.room_id,
        sender=user_id,
        type="m.room.member",
        state_key=user_id,
        content=content,
        origin_server_ts=0,
        depth=place.depth,
        prev_events=tuple(place.prev_events),
        auth_events=(),
        redacts=None,
        unsigned={},
        pdu=b"",
    )


# --- restricted rooms -----------------------------------------------------------------------------


def authorise_join(place: Place, user_id: str, *, server_name: str) -> Generator[IsJoined, bool | None, str | None]:
    """Which user of this server vouches for the join; `None` if none has to.

    Raises `MatrixError`: 403 if the user meets no condition, ``M_UNABLE_TO_AUTHORISE_JOIN`` if this server
    cannot tell, ``M_UNABLE_TO_GRANT_JOIN`` if none of its users may invite.
    """
    rooms = _conditions(place)
    current = place.state.get(("m.room.member", user_id))
    if rooms is None or (current is not None and current.membership in ("join", "invite")):
        return None
    if current is not None and current.membership == "ban":
        raise forbidden("The user is banned from the room.")
    unknown = False
    for room_id in rooms:
        joined = yield IsJoined(room_id, user_id)
        if joined:
            return _voucher(place, server_name)
        unknown = unknown or joined is None
    if unknown:
        raise MatrixError(
            400, "M_UNABLE_TO_AUTHORISE_JOIN", "This server cannot see whether the conditions of the room are met."
        )
    raise forbidden("The user meets none of the conditions of the room.")


def _conditions(place: Place) -> list[str] | None:
    """The rooms of which one must be joined; `None` if the join rule asks nothing of the kind."""
    version = place.version
    rules = place.state.get(("m.room.join_rules", ""))
    rule = None if rules is None else rules.content.get("join_rule")
    restricted = (rule == "restricted" and version.restricted_joins) or (
        rule == "knock_restricted" and version.knock_restricted
    )
    if rules is None or not restricted:
        return None
    allow = rules.content.get("allow")
    entries = allow if isinstance(allow, list) else []
    rooms = [
        entry["room_id"]
        for entry in entries[:MAX_CONDITIONS]
        if isinstance(entry, dict) and entry.get("type") == "m.room_membership" and is_room_id(entry.get("room_id"))
    ]
    return list(dict.fromkeys(rooms))


def _voucher(place: Place, server_name: str) -> str:
    levels = power_levels(place.state)
    able = [
        user
        for user in place.local_members
        if server_name_of(user) == server_name and levels.user_level(user) >= levels.invite
    ]
    if not able:
        raise MatrixError(400, "M_UNABLE_TO_GRANT_JOIN", "No user of this server may invite; ask another one.")
    return min(able, key=lambda user: (-levels.user_level(user), user))


def _check_voucher(
    place: Place, event: Event, authoriser: str, server_name: str
) -> Generator[IsJoined, bool | None, None]:
    """Whether this server may sign a join that names one of its users.  Raises `MatrixError`.

    Anybody can write that name into a join, and the room may have changed since the template was made: so the
    conditions are looked at again.
    """
    current = place.state.get(("m.room.member", event.sender))
    if current is not None and current.membership in ("join", "invite"):
        return
    if (yield from authorise_join(place, event.sender, server_name=server_name)) is None:
        raise forbidden("The room does not let anybody in on the word of a member.")
    levels = power_levels(place.state)
    if authoriser not in place.local_members or levels.user_level(authoriser) < levels.invite:
        raise MatrixError(400, "M_UNABLE_TO_GRANT_JOIN", "The user who is named may not invite.")


# --- send -----------------------------------------------------------------------------------------


def receive_membership(
    kind: Kind,
    pdu: bytes | Mapping[str, Any],
    place: Place,
    *,
    event_id: str,
    origin: str,
    signer: Signer,
    now_ms: int,
) -> Generator[FetchKeys | IsJoined, Any, ReceivedEvent]:
    """The event of a ``send_*``, checked as far as it can be apart from the room; signed by this server if it vouches.

    ``event_id`` is that of the request's path.  The event goes on to `admission.admit_verified`.  Raises
    `MatrixError`.
    """
    received = read_membership(kind, pdu, place.version, room_id=place.room_id, event_id=event_id, origin=origin)
    event = received.event
    authoriser = _local_authoriser(event, signer.server_name)
    excused = None if authoriser is None else signer.server_name
    failed: dict[str, str] = yield from verify([received], now_ms=now_ms, excused=excused)
    if failed:
        raise forbidden(f"The event is not signed as it must be: {failed[event.event_id]}.")
    if authoriser is None:
        return received
    yield from _check_voucher(place, event, authoriser, signer.server_name)
    try:
        signed = sign_event(event, signer.server_name, signer.key_id, signer.secret)
    except EventFormatError as error:
        raise invalid_param(f"The event cannot be signed: {error}.") from None
    return receive_event(signed.pdu, place.version)


def read_membership(
    kind: Kind, pdu: bytes | Mapping[str, Any], version: RoomVersion, *, room_id: str, event_id: str, origin: str
) -> ReceivedEvent:
    """The event, if it is the membership that the endpoint takes.  Raises `MatrixError`."""
    try:
        received = receive_event(pdu, version)
    except EventFormatError as error:
        if _is_unsigned(pdu):
            raise forbidden("The event is not signed.") from None
        raise MatrixError(400, "M_BAD_JSON", f"The event is malformed: {error}.") from None
    event = received.event
    if event.room_id != room_id or event.event_id != event_id:
        raise invalid_param("The event is not the one that the path names.")
    if event.type != "m.room.member" or event.membership != kind.membership:
        raise invalid_param(f"The event is no membership of {kind.membership}.")
    if server_name_of(event.sender) != origin:
        raise forbidden("The sender is not of the server that asks.")
    if event.state_key != event.sender:
        raise invalid_param("The event is about another user than its sender.")
    if received.redacted:
        raise invalid_param("The content hash of the event does not match.")
    return received


def _is_unsigned(pdu: bytes | Mapping[str, Any]) -> bool:
    """Whether somebody sent a template as they got it, or with a signature over nothing."""
    try:
        fields = orjson.loads(pdu) if isinstance(pdu, bytes) else pdu
    except orjson.JSONDecodeError:
        return False
    return isinstance(fields, Mapping) and not {"hashes", "signatures"} <= fields.keys()


def _local_authoriser(event: Event, server_name: str) -> str | None:
    authoriser = event.content.get("join_authorised_via_users_server")
    if event.membership != "join" or not event.version.restricted_joins or not is_historical_user_id(authoriser):
        return None
    return authoriser if server_name_of(authoriser) == server_name else None


# --- the answer to send_join ------------------------------------------------------------------------


class JoinAnswer(msgspec.Struct, frozen=True, eq=False):
    """What a joining server is told; `pieces` makes the bytes."""

    event: Event
    state: Sequence[int]
    """Event numbers of the graph."""
    auth_chain: Sequence[int]
    members_omitted: bool
    servers_in_room: Sequence[str]


def answer_join(
    event: Event,
    state: Mapping[tuple[str, str], int],
    graph: AuthGraph,
    *,
    omit_members: bool = False,
    heroes: Iterable[str] = (),
    servers_in_room: Sequence[str] = (),
) -> JoinAnswer:
    """Choose what to tell about ``state``, the state before the join, by event numbers of ``graph``.

    With ``omit_members``, memberships are left out but those of ``heroes``, who give a room without name its
    name, and of whom the join concerns; and the auth chain leaves out what is in the state.
    """
    if omit_members:
        concerned = {*heroes, event.sender}
        shown = [number for key, number in state.items() if key[0] != "m.room.member" or key[1] in concerned]
    else:
        shown = list(state.values())
    cited = [graph.number(auth_id) for auth_id in event.auth_events]
    chain = BitMap(cited)
    for number in (*cited, *shown):
        chain |= graph.auth_chain(number)
    if omit_members:
        chain -= BitMap(shown)
    return JoinAnswer(event, shown, list(chain), omit_members, servers_in_room if omit_members else ())


def pieces(answer: JoinAnswer, graph: AuthGraph) -> Iterator[bytes]:
    """The answer as JSON, an event at a time, so that a large room is never held twice."""
    yield b'{"event":' + answer.event.pdu
    if answer.members_omitted:
        yield b',"members_omitted":true,"servers_in_room":' + orjson.dumps(list(answer.servers_in_room))
    for name, numbers in (("state", answer.state), ("auth_chain", answer.auth_chain)):
        yield f',"{name}":['.encode()
        for index, number in enumerate(numbers):
            yield (b"," if index else b"") + graph.event(number).pdu
        yield b"]"
    yield b"}"

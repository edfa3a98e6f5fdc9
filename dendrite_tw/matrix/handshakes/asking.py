"""Joining, leaving and knocking through another server: the side that asks.

Specification: Server-Server API, "Joining Rooms", "Knocking upon a room", "Leaving
Rooms".  Each is a generator over candidate servers: it yields `Request`s, and the
questions of `join_check`, and returns with the first server that succeeds.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any

import msgspec

from dendrite_tw.matrix.admission import FetchKeys
from dendrite_tw.matrix.errors import MatrixError
from dendrite_tw.matrix.event_format import EventFormatError
from dendrite_tw.matrix.events import Event, finish_event
from dendrite_tw.matrix.handshakes.join_check import Joined, check_join
from dendrite_tw.matrix.handshakes.messages import (
    JOIN,
    KNOCK,
    LEAVE,
    HandshakeError,
    Kind,
    Pause,
    Reply,
    Request,
    Signer,
    error_of,
    for_client,
    is_unknown_endpoint,
    path,
    unwrap,
)
from dendrite_tw.matrix.handshakes.room_previews import read_preview
from dendrite_tw.matrix.identifiers import is_historical_user_id
from dendrite_tw.matrix.room_versions import ROOM_V1, ROOM_VERSIONS, RoomVersion

MAX_CANDIDATES = 20
"""How many servers are tried."""

Question = Request | FetchKeys | Pause


class Wish(msgspec.Struct, frozen=True):
    """What a user of this server wants from a room that this server is not in."""

    room_id: str
    user_id: str
    servers: Sequence[str]
    """Candidates, best first."""
    signer: Signer
    now_ms: int
    content: Mapping[str, Any] = {}
    """What the membership is to say besides: display name, avatar, reason."""
    event_name: str = ""
    """Random, for room versions in which servers choose event ids."""
    versions: Sequence[str] = tuple(ROOM_VERSIONS)
    """Room versions that this server knows."""


class Template(msgspec.Struct, frozen=True):
    """What ``make_*`` gave, checked."""

    version: RoomVersion
    fields: dict[str, Any]


class Knocked(msgspec.Struct, frozen=True, eq=False):
    """A knock that a resident server accepted."""

    event: Event
    version: RoomVersion
    resident: str
    state: list[dict[str, Any]]
    """Stripped state of the room."""


class Left(msgspec.Struct, frozen=True, eq=False):
    """A leave that a resident server accepted: an invite refused, or a knock retracted."""

    event: Event
    version: RoomVersion
    resident: str


# --- the three wishes -----------------------------------------------------------------------------


def join(wish: Wish, *, omit_members: bool = False) -> Generator[Question, Any, Joined]:
    """Join through the first candidate that lets the user in and whose answer holds.

    With ``omit_members``, the resident may leave memberships out; then `Joined.partial` is true.  Raises
    `MatrixError`, the most telling of the refusals.
    """
    errors: list[MatrixError] = []
    for server in wish.servers[:MAX_CANDIDATES]:
        try:
            template = yield from _make(JOIN, wish, server)
            event = complete(JOIN, template, wish)
            # The answer is passed on without a name here, which would keep a large room in memory twice.
            joined = yield from check_join(
                event,
                (yield from _send(JOIN, server, event, omit_members=omit_members)),
                server,
                now_ms=wish.now_ms,
            )
            if joined.partial and not omit_members:
                raise HandshakeError("members were omitted, which was not asked for")
            return joined
        except (HandshakeError, MatrixError) as error:
            errors.append(_as_matrix_error(error))
    raise _most_telling(errors)


def knock(wish: Wish) -> Generator[Question, Any, Knocked]:
    """Knock through the first candidate that takes it.  Raises `MatrixError`."""
    errors: list[MatrixError] = []
    for server in wish.servers[:MAX_CANDIDATES]:
        try:
            template = yield from _make(KNOCK, wish, server)
            event = complete(KNOCK, template, wish)
            reply = yield from _send(KNOCK, server, event)
            content = reply.content()
            entries = content.get("knock_room_state") if isinstance(content, dict) else None
            state = yield from read_preview(entries, template.version, wish.room_id, now_ms=wish.now_ms)
            return Knocked(event, template.version, server, state.stripped)
        except (HandshakeError, MatrixError) as error:
            errors.append(_as_matrix_error(error))
    raise _most_telling(errors)


def leave(wish: Wish) -> Generator[Question, Any, Left]:
    """Refuse an invite or retract a knock through the first candidate that takes it.  Raises `MatrixError`."""
    errors: list[MatrixError] = []
    for server in wish.servers[:MAX_CANDIDATES]:
        try:
            template = yield from _make(LEAVE, wish, server)
            event = complete(LEAVE, template, wish)
            yield from _send(LEAVE, server, event)
            return Left(event, template.version, server)
        except (HandshakeError, MatrixError) as error:
            errors.append(_as_matrix_error(error))
    raise _most_telling(errors)


def _as_matrix_error(error: HandshakeError | MatrixError) -> MatrixError:
    if isinstance(error, MatrixError):
        return for_client(error)
    return MatrixError(502, "M_UNKNOWN", f"The answer of the other server could not be used: {error}.")


def _most_telling(errors: Sequence[MatrixError]) -> MatrixError:
    """A refusal says more than a missing answer, and a lasting refusal more than advice to try elsewhere."""
    if not errors:
        return MatrixError(404, "M_NOT_FOUND", "No server is known through which the room could be reached.")

    def weight(error: MatrixError) -> int:
        if error.errcode == "M_INCOMPATIBLE_ROOM_VERSION":
            return 0
        if error.status == 403:
            return 1
        if error.errcode in ("M_UNABLE_TO_GRANT_JOIN", "M_UNABLE_TO_AUTHORISE_JOIN"):
            return 2
        return 3 if error.status < 500 else 4

    return min(errors, key=weight)


# --- make -----------------------------------------------------------------------------------------


def _make(kind: Kind, wish: Wish, server: str) -> Generator[Question, Any, Template]:
    query = tuple(("ver", version) for version in wish.versions) if kind is not LEAVE else ()
    where = path("v1", kind.make, wish.room_id, wish.user_id)
    reply: Reply | None = yield Request(server, "GET", where, query)
    if reply is None or reply.status != 200:
        raise error_of(reply)
    return read_template(kind, reply, wish)


def read_template(kind: Kind, reply: Reply, wish: Wish) -> Template:
    """The template of an answer, once it is the event that was asked for.

    Raises `HandshakeError`, and `MatrixError` for a room of a version that this server does not know.
    """
    content = reply.content()
    fields = content.get("event") if isinstance(content, dict) else None
    if not isinstance(fields, dict):
        raise HandshakeError("the answer holds no template")
    identifier = content.get("room_version", ROOM_V1.identifier)
    version = ROOM_VERSIONS.get(identifier) if isinstance(identifier, str) else None
    if version is None or identifier not in wish.versions:
        raise MatrixError(
            400,
            "M_INCOMPATIBLE_ROOM_VERSION",
            "This server does not know the room's version.",
            room_version=str(identifier),
        )
    inner = fields.get("content")
    expected = {
        "type": "m.room.member",
        "room_id": wish.room_id,
        "sender": wish.user_id,
        "state_key": wish.user_id,
    }
    for key, value in expected.items():
        if fields.get(key) != value:
            raise HandshakeError(f"the template has another {key}")
    if not isinstance(inner, dict) or inner.get("membership") != kind.membership:
        raise HandshakeError("the template has another membership")
    return Template(version, fields)


_TEMPLATE_KEYS = ("auth_events", "depth", "prev_events", "room_id", "sender", "state_key", "type")


def complete(kind: Kind, template: Template, wish: Wish) -> Event:
    """The signed event.  Of the template only what places the event in the room is taken over.

    Raises `HandshakeError` if no event can be made of it.
    """
    version, signer = template.version, wish.signer
    content = {key: value for key, value in wish.content.items() if key != "membership"}
    content["membership"] = kind.membership
    authoriser = template.fields["content"].get("join_authorised_via_users_server")
    content.pop("join_authorised_via_users_server", None)
    if kind is JOIN and version.restricted_joins and authoriser is not None:
        if not is_historical_user_id(authoriser):
            raise HandshakeError("the template names no user who authorises the join")
        content["join_authorised_via_users_server"] = authoriser
    fields = {key: template.fields[key] for key in _TEMPLATE_KEYS if key in template.fields}
    fields |= {"content": content, "origin_server_ts": wish.now_ms}
    if version.event_id_format == "origin":
        fields["event_id"] = f"${wish.event_name}:{signer.server_name}"
    try:
        return finish_event(
            fields, version, server_name=signer.server_name, key_id=signer.key_id, signing_key=signer.secret
        )
    except EventFormatError as error:
        raise HandshakeError(f"no event can be made of the template: {error}") from None


# --- send -----------------------------------------------------------------------------------------


def _send(kind: Kind, server: str, event: Event, *, omit_members: bool = False) -> Generator[Question, Any, Reply]:
    query = (("omit_members", "true"),) if omit_members else ()
    content = event.pdu_dict()
    where = path(kind.send_version, kind.send, event.room_id, event.event_id)
    reply: Reply | None = yield Request(server, "PUT", where, query, content)
    if kind.send_version == "v2" and is_unknown_endpoint(reply):
        where = path("v1", kind.send, event.room_id, event.event_id)
        reply = unwrap((yield Request(server, "PUT", where, (), content)))
    if reply is None or reply.status != 200:
        raise error_of(reply)
    return reply

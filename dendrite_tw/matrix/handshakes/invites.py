"""Inviting users of other servers, and being invited; invites by third-party identifier.

Specification: Server-Server API, "Inviting to a room" and "Third-party invites".  The
invited server signs the invite, so that it cannot be claimed that it never
heard of it; all else in the event stays as it was.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Mapping, Sequence
from typing import Any, TypeGuard

import msgspec
import orjson

from dendrite_tw.matrix import canonical_json
from dendrite_tw.matrix.admission import FetchKeys, verify
from dendrite_tw.matrix.errors import MatrixError, bad_json, forbidden, invalid_param, missing_param
from dendrite_tw.matrix.event_format import EventFormatError
from dendrite_tw.matrix.events import Event, ReceivedEvent, add_signature, receive_event, sign_event
from dendrite_tw.matrix.handshakes.messages import (
    HandshakeError,
    Reply,
    Request,
    Signer,
    error_of,
    path,
    unwrap,
)
from dendrite_tw.matrix.handshakes.room_previews import read_preview
from dendrite_tw.matrix.identifiers import is_historical_user_id, is_room_id, is_user_id, server_name_of, within_limit
from dendrite_tw.matrix.room_versions import ROOM_V1, ROOM_V2, ROOM_VERSIONS, RoomVersion

MAX_BOUND_INVITES = 100

_BEFORE_VERSIONS = (ROOM_V1, ROOM_V2)
"""What a room may be whose version an invite of the first API does not tell."""


# --- inviting -------------------------------------------------------------------------------------


def invite(event: Event, state: Sequence[Event], *, now_ms: int) -> Generator[Request | FetchKeys, Any, Event]:
    """Have the invited user's server sign an invite; returns the event with its signature added.

    ``state`` is what the invited user is shown of the room, with the create event.  Raises `MatrixError`, as the
    other server refused or as it could not be reached.
    """
    if event.state_key is None:
        raise ValueError("an invite has a state key")
    server = server_name_of(event.state_key)
    shown = [one.pdu_dict() for one in state]
    body = {
        "event": event.pdu_dict(),
        "invite_room_state": shown,
        "room_version": event.version.identifier,
    }
    reply: Reply | None = yield Request(server, "PUT", path("v2", "invite", event.room_id, event.event_id), (), body)
    try:
        if reply is not None and reply.status in (400, 404) and event.version in _BEFORE_VERSIONS:
            old_body = {**event.pdu_dict(), "unsigned": {"invite_room_state": shown}}
            where = path("v1", "invite", event.room_id, event.event_id)
            reply = unwrap((yield Request(server, "PUT", where, (), old_body)))
        if reply is None or reply.status != 200:
            raise error_of(reply)
        return (yield from _countersigned(event, reply, server, now_ms))
    except HandshakeError as error:
        raise MatrixError(502, "M_UNKNOWN", f"The answer of {server} could not be used: {error}.") from None


def _countersigned(event: Event, reply: Reply, server: str, now_ms: int) -> Generator[FetchKeys, Any, Event]:
    """Our event with the other server's signatures, whatever else its answer says."""
    content = reply.content()
    returned = content.get("event") if isinstance(content, dict) else None
    signatures = returned.get("signatures") if isinstance(returned, dict) else None
    added = signatures.get(server) if isinstance(signatures, dict) else None
    if event.version.strict_canonical_json:
        try:
            canonical_json.check(returned)
        except canonical_json.CanonicalJSONError as error:
            raise bad_json(f"The invite that {server} answered with cannot be in the room: {error}.") from None
    if not isinstance(added, dict) or not 0 < len(added) <= 10:
        raise HandshakeError("the invite is not signed")
    try:
        for key_id, signature in added.items():
            if isinstance(signature, str):
                event = add_signature(event, server, key_id, signature)
        received = receive_event(event.pdu, event.version)
    except EventFormatError as error:
        raise HandshakeError(str(error)) from None
    failed = yield from verify([received], now_ms=now_ms, also=server)
    if failed:
        raise HandshakeError(failed[event.event_id])
    return event


# --- being invited --------------------------------------------------------------------------------


class Invited(msgspec.Struct, frozen=True, eq=False):
    """An invite of a user of this server."""

    event: Event
    """Signed by this server."""
    version: RoomVersion
    state: list[dict[str, Any]]
    """Stripped state, to be shown to the user."""
    faults: list[str]
    """What was wrong with the state that was sent, to be logged."""


def receive_invite(
    body: Mapping[str, Any],
    *,
    room_id: str,
    event_id: str,
    origin: str,
    signer: Signer,
    now_ms: int,
    versions: Collection[str] = tuple(ROOM_VERSIONS),
) -> Generator[FetchKeys, Any, Invited]:
    """Take the body of ``PUT /v2/invite`` from ``origin``.  Raises `MatrixError`.

    Whether the user may be invited here at all is for the caller to say before; `answer_invite` makes the answer.
    """
    identifier, pdu = body.get("room_version"), body.get("event")
    if not isinstance(identifier, str) or not isinstance(pdu, dict):
        raise missing_param("room_version and event are needed.")
    if identifier not in versions or identifier not in ROOM_VERSIONS:
        raise MatrixError(
            400,
            "M_INCOMPATIBLE_ROOM_VERSION",
            "This server does not know the version of the room.",
            room_version=identifier,
        )
    version = ROOM_VERSIONS[identifier]
    received = _read_invite(pdu, version, room_id, event_id, origin, signer.server_name)
    failed = yield from verify([received], now_ms=now_ms)
    if failed:
        raise forbidden(f"The invite is not signed as it must be: {failed[event_id]}.")
    preview = yield from read_preview(body.get("invite_room_state"), version, room_id, now_ms=now_ms)
    if preview.must_refuse:
        refusal = missing_param if "invite_room_state" not in body else invalid_param
        raise refusal(f"invite_room_state is not as it must be: {preview.faults[0]}.")
    try:
        signed = sign_event(received.event, signer.server_name, signer.key_id, signer.secret)
    except EventFormatError as error:
        raise invalid_param(f"The invite cannot be signed: {error}.") from None
    return Invited(signed, version, preview.stripped, preview.faults)


def receive_old_invite(
    body: Mapping[str, Any], *, room_id: str, event_id: str, origin: str, signer: Signer, now_ms: int
) -> Generator[FetchKeys, Any, Invited]:
    """Take the body of ``PUT /v1/invite``: the event itself, of a room of version 1 or 2."""
    unsigned = body.get("unsigned")
    state = unsigned.get("invite_room_state") if isinstance(unsigned, dict) else None
    wrapped = {"room_version": ROOM_V1.identifier, "event": dict(body), "invite_room_state": state}
    return receive_invite(wrapped, room_id=room_id, event_id=event_id, origin=origin, signer=signer, now_ms=now_ms)


def _read_invite(
    pdu: dict[str, Any], version: RoomVersion, room_id: str, event_id: str, origin: str, server_name: str
) -> ReceivedEvent:
    try:
        received = receive_event(pdu, version)
    except EventFormatError as error:
        raise bad_json(f"The invite is malformed: {error}.") from None
    event = received.event
    if event.room_id != room_id or event.event_id != event_id:
        raise invalid_param("The event is not the one that the path names.")
    if event.type != "m.room.member" or event.membership != "invite":
        raise invalid_param("The event is no invite.")
    if server_name_of(event.sender) != origin:
        raise forbidden("The sender is not of the server that asks.")
    if not is_historical_user_id(event.state_key) or server_name_of(event.state_key) != server_name:
        raise invalid_param("The invited user is not of this server.")
    if received.redacted:
        raise invalid_param("The content hash of the invite does not match.")
    return received


def answer_invite(event: Event, *, old: bool = False) -> Any:
    """The answer to ``PUT /v2/invite``, or to that of ``/v1``: the event with this server's signature."""
    content = {"event": orjson.Fragment(event.pdu)}
    return [200, content] if old else content


# --- third-party identifiers ----------------------------------------------------------------------


class BoundInvite(msgspec.Struct, frozen=True):
    """An invite that waited for a third-party identifier which now belongs to a user of this server."""

    room_id: str
    sender: str
    user_id: str
    signed: dict[str, Any]
    """By the identity server: ``mxid``, ``token``, ``signatures``."""


def read_onbind(body: Mapping[str, Any], *, server_name: str) -> list[BoundInvite]:
    """The invites of a ``PUT /3pid/onbind``; those that cannot be meant are left out.  Raises `MatrixError`."""
    user_id, invites = body.get("mxid"), body.get("invites")
    if not is_user_id(user_id) or server_name_of(user_id) != server_name:
        raise invalid_param("mxid is no user of this server.")
    if not isinstance(invites, list) or len(invites) > MAX_BOUND_INVITES:
        raise invalid_param("invites is not a list, or too long a one.")
    found = []
    for entry in invites:
        if not isinstance(entry, dict) or entry.get("mxid") != user_id:
            continue
        room_id, sender, signed = entry.get("room_id"), entry.get("sender"), entry.get("signed")
        if is_room_id(room_id) and is_historical_user_id(sender) and _is_signed(signed, user_id):
            found.append(BoundInvite(room_id, sender, user_id, signed))
    return found


def _is_signed(signed: object, user_id: str) -> TypeGuard[dict[str, Any]]:
    if not isinstance(signed, dict):
        return False
    token = signed.get("token")
    return (
        signed.get("mxid") == user_id
        and isinstance(token, str)
        and within_limit(token)
        and isinstance(signed.get("signatures"), dict)
    )


def exchange_request(bound: BoundInvite, display_name: str) -> Request:
    """Ask the inviting user's server to make the invite, as this one is not in the room."""
    content = {
        "membership": "invite",
        "third_party_invite": {"display_name": display_name, "signed": bound.signed},
    }
    body = {
        "type": "m.room.member",
        "room_id": bound.room_id,
        "sender": bound.sender,
        "state_key": bound.user_id,
        "content": content,
    }
    where = path("v1", "exchange_third_party_invite", bound.room_id)
    return Request(server_name_of(bound.sender), "PUT", where, (), body)


class Exchange(msgspec.Struct, frozen=True):
    """The invite that another server asks for on behalf of its user, to be made and sent by this server."""

    sender: str
    target: str
    content: dict[str, Any]


def read_exchange(
    body: Mapping[str, Any], *, room_id: str, third_party_invite: Event | None, server_name: str
) -> Exchange:
    """Take the body of ``PUT /exchange_third_party_invite``.  Raises `MatrixError`.

    ``third_party_invite`` is the room's ``m.room.third_party_invite`` event for `exchange_token`.  The signatures
    are checked by the authorisation rules when the invite is made.
    """
    content, sender, target = body.get("content"), body.get("sender"), body.get("state_key")
    if body.get("type") != "m.room.member" or body.get("room_id") != room_id or not isinstance(content, dict):
        raise invalid_param("The body is no membership in the room of the path.")
    if not is_historical_user_id(sender) or not is_historical_user_id(target):
        raise invalid_param("sender and state_key must be user ids.")
    signed = _signed(content)
    if content.get("membership") != "invite" or not _is_signed(signed, target):
        raise invalid_param("The body is no signed third-party invite of that user.")
    if server_name_of(sender) != server_name:
        raise forbidden("The sender is not a user of this server.")
    if third_party_invite is None or third_party_invite.sender != sender:
        raise forbidden("The room has no such third-party invite by that user.")
    display_name = third_party_invite.content.get("display_name")
    shown = {"display_name": display_name} if isinstance(display_name, str) else {}
    made = {"membership": "invite", "third_party_invite": {**shown, "signed": signed}}
    return Exchange(sender, target, made)


def exchange_token(body: Mapping[str, Any]) -> str | None:
    """The token by which the room's ``m.room.third_party_invite`` event is found."""
    content = body.get("content")
    signed = _signed(content) if isinstance(content, dict) else None
    token = signed.get("token") if signed is not None else None
    return token if isinstance(token, str) and within_limit(token) else None


def _signed(content: Mapping[str, Any]) -> dict[str, Any] | None:
    invite = content.get("third_party_invite")
    signed = invite.get("signed") if isinstance(invite, dict) else None
    return signed if isinstance(signed, dict) else None

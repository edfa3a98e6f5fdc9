"""An event, frozen: read it, build it, hash it, show it.

Specification: "Event format" and "Event IDs" of each room version; Server-Server
API, "PDUs" and "Signing Events"; Client-Server API, "Room event format" and
"Size limits".

An `Event` keeps the canonical bytes of its PDU beside the parsed content, so
that neither storing nor sending it needs another encoding.  ``unsigned`` is not
part of those bytes: no signature covers it and every server has its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import orjson

from dendrite_tw.matrix import canonical_json, signing
from dendrite_tw.matrix.canonical_json import CanonicalJSONError
from dendrite_tw.matrix.event_format import (
    MAX_AUTH_EVENTS,
    MAX_PDU_BYTES,
    MAX_PREV_EVENTS,
    MAX_UNSIGNED_BYTES,
    EventFormatError,
    EventTooLargeError,
    bounded_unsigned,
    check_fields,
    check_hashes_and_signatures,
    redacts_of,
)
from dendrite_tw.matrix.identifiers import is_event_id
from dendrite_tw.matrix.redaction import redact
from dendrite_tw.matrix.room_versions import RoomVersion

__all__ = [
    "MAX_AUTH_EVENTS",
    "MAX_PDU_BYTES",
    "MAX_PREV_EVENTS",
    "Event",
    "EventFormatError",
    "EventTooLargeError",
    "ReceivedEvent",
    "add_signature",
    "build_event",
    "build_pdu",
    "check_content_hash",
    "client_dict",
    "client_json",
    "compute_event_id",
    "content_hash",
    "event_from_storage",
    "finish_event",
    "parse_event",
    "receive_event",
    "redact_event",
    "reference_hash",
    "shown_json",
    "sign_event",
    "signatures",
    "signed_bytes",
    "stripped",
]


class Event(msgspec.Struct, frozen=True, eq=False, kw_only=True, weakref=True):
    """One event of a room.  Compared by identity; ``content`` and ``unsigned`` are not to be changed."""

    version: RoomVersion
    event_id: str
    room_id: str
    """As in the PDU, or where room ids are hashes, for the create event: made from its id."""
    sender: str
    type: str
    state_key: str | None
    """`None` for a message event."""
    content: dict[str, Any]
    origin_server_ts: int
    """Milliseconds, by the sender's server."""
    depth: int
    prev_events: tuple[str, ...]
    auth_events: tuple[str, ...]
    redacts: str | None
    """For ``m.room.redaction``, the id of its target, wherever the room version puts it."""
    unsigned: dict[str, Any]
    """What the server that sent it to us had added.  Untrusted."""
    pdu: bytes
    """Canonical JSON, signatures included; no ``unsigned``, and no ``event_id`` where that is a hash."""

    @property
    def is_state(self) -> bool:
        return self.state_key is not None

    @property
    def membership(self) -> str | None:
        """``content.membership`` of a member event, if it is text."""
        if self.type != "m.room.member":
            return None
        membership = self.content.get("membership")
        return membership if isinstance(membership, str) else None

    def pdu_dict(self) -> dict[str, Any]:
        """The PDU, parsed anew; the caller may change it."""
        return _decode(self.pdu, self.version)

    def __repr__(self) -> str:
        return f"<Event {self.event_id} {self.type!r} in {self.room_id} v{self.version.identifier}>"


class ReceivedEvent(msgspec.Struct, frozen=True, eq=False):
    """What another server sent, read once for all checks that follow (see `receive_event`)."""

    event: Event
    """The event to go on with: the redacted copy if the content hash did not match."""
    signed_bytes: bytes
    """What its signatures cover."""
    signatures: dict[str, dict[str, str]]
    """Signatures by server and key id, unverified."""
    redacted: bool
    """Whether the content hash did not match."""


def _decode(data: bytes, version: RoomVersion) -> dict[str, Any]:
    value = canonical_json.decode(data) if version.strict_canonical_json else canonical_json.decode_lenient(data)
    if not isinstance(value, dict):
        raise CanonicalJSONError("not a JSON object")
    return value


def _encode(value: Mapping[str, Any], version: RoomVersion) -> bytes:
    """Encode what has been checked before, or was built from such parts."""
    if version.strict_canonical_json:
        return canonical_json.encode_checked(value)
    return canonical_json.encode_lenient(value)


# --- hashes and ids -------------------------------------------------------------------------------


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def content_hash(pdu: Mapping[str, Any], version: RoomVersion) -> bytes:
    """SHA-256 over all of a well-formed PDU but ``unsigned``, ``signatures`` and ``hashes``."""
    covered = {k: v for k, v in pdu.items() if k not in ("unsigned", "signatures", "hashes")}
    return _sha256(_encode(covered, version))


def _signed_bytes(pdu: Mapping[str, Any], version: RoomVersion) -> bytes:
    redacted = redact(pdu, version)
    redacted.pop("signatures", None)
    return _encode(redacted, version)


def reference_hash(pdu: Mapping[str, Any], version: RoomVersion) -> bytes:
    """SHA-256 over the redacted form of a well-formed PDU, without signatures; it outlives a redaction."""
    return _sha256(_signed_bytes(pdu, version))


def _hash_to_event_id(digest: bytes, version: RoomVersion) -> str:
    return "$" + signing.encode_base64(digest, urlsafe=version.event_id_format == "urlsafe_hash")


def compute_event_id(pdu: Mapping[str, Any], version: RoomVersion) -> str:
    """The id of the event: its own ``event_id`` in the oldest versions, else its reference hash."""
    if version.event_id_format == "origin":
        return str(pdu["event_id"])
    return _hash_to_event_id(reference_hash(pdu, version), version)


def check_content_hash(event: Event) -> bool:
    """Whether ``hashes.sha256`` is that of the event.  If not, only its redacted form may be used."""
    return _content_hash_matches(event.pdu_dict(), event.version)


def _content_hash_matches(pdu: Mapping[str, Any], version: RoomVersion) -> bool:
    try:
        claimed = signing.decode_base64(pdu["hashes"]["sha256"])
    except ValueError:
        return False
    return claimed == content_hash(pdu, version)


def signed_bytes(event: Event) -> bytes:
    """The bytes that signatures of the event cover: its redacted PDU without signatures."""
    return _signed_bytes(event.pdu_dict(), event.version)


def signatures(event: Event) -> dict[str, dict[str, str]]:
    """The signatures of the event, by server and key id."""
    found: dict[str, dict[str, str]] = event.pdu_dict()["signatures"]
    return found


# --- what many events say -------------------------------------------------------------------------

SHARED_TEXTS = 1024

_shared: dict[str, str] = {}


def shared(text: str) -> str:
    """The same text, in one object for all that say it about now: a room's id is in each of its events.

    Not `sys.intern`, which in some releases of Python keeps for ever what strangers send.
    """
    if len(_shared) >= SHARED_TEXTS and text not in _shared:
        _shared.clear()
    return _shared.setdefault(text, text)


# --- reading --------------------------------------------------------------------------------------


def _event(pdu: dict[str, Any], version: RoomVersion, event_id: str, encoded: bytes, unsigned: dict[str, Any]) -> Event:
    """Make the event from a PDU whose format is known to be right."""
    event_type, sender, state_key = shared(pdu["type"]), shared(pdu["sender"]), pdu.get("state_key")
    room_id = pdu.get("room_id")
    prev_events, auth_events = pdu["prev_events"], pdu["auth_events"]
    if version.event_format == "pairs":
        prev_events = [pair[0] for pair in prev_events]
        auth_events = [pair[0] for pair in auth_events]
    return Event(
        version=version,
        event_id=event_id,
        room_id=shared("!" + event_id[1:] if room_id is None else room_id),
        sender=sender,
        type=event_type,
        state_key=sender if state_key == sender else state_key,
        content=pdu["content"],
        origin_server_ts=pdu["origin_server_ts"],
        depth=pdu["depth"],
        prev_events=tuple(prev_events),
        auth_events=tuple(auth_events),
        redacts=redacts_of(pdu, event_type, version),
        unsigned=unsigned,
        pdu=encoded,
    )


def _checked_pdu(
    pdu: Mapping[str, Any] | bytes, version: RoomVersion, limited: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The PDU, format checked and without what it must not have; and its ``unsigned``."""
    if isinstance(pdu, bytes):
        if len(pdu) > MAX_PDU_BYTES + MAX_UNSIGNED_BYTES:
            raise EventTooLargeError("the event is too large")
        fields = _decode(pdu, version)
    else:
        fields = dict(pdu)
    unsigned = bounded_unsigned(fields.pop("unsigned", {}))
    if version.event_id_format != "origin":
        fields.pop("event_id", None)
    check_fields(fields, version, limited=limited)
    check_hashes_and_signatures(fields)
    return fields, unsigned


def _encode_received(fields: Mapping[str, Any], version: RoomVersion) -> bytes:
    encoded = canonical_json.encode(fields) if version.strict_canonical_json else canonical_json.encode_lenient(fields)
    if len(encoded) > MAX_PDU_BYTES:
        raise EventTooLargeError("the event is larger than 65,536 bytes")
    return encoded


def _parse(
    pdu: Mapping[str, Any] | bytes, version: RoomVersion, limited: bool = True
) -> tuple[Event, dict[str, Any], bytes]:
    try:
        fields, unsigned = _checked_pdu(pdu, version, limited)
        encoded = _encode_received(fields, version)
        covered = _signed_bytes(fields, version)
    except CanonicalJSONError as error:
        raise EventFormatError(str(error)) from None
    if version.event_id_format == "origin":
        event_id = fields["event_id"]
    else:
        event_id = _hash_to_event_id(_sha256(covered), version)
    return _event(fields, version, event_id, canonical_json.tight(encoded), unsigned), fields, covered


def parse_event(pdu: Mapping[str, Any] | bytes, version: RoomVersion) -> Event:
    """Read a PDU, checking the format of its room version; raises `EventFormatError`.

    For room versions 1 to 5 hand in bytes where possible: orjson has already
    turned integers beyond 64 bits into floats.  Neither the content hash nor a
    signature is checked here.
    """
    return _parse(pdu, version)[0]


def receive_event(pdu: Mapping[str, Any] | bytes, version: RoomVersion, *, limited: bool = True) -> ReceivedEvent:
    """Read a PDU that another server sent, with all that its signature check needs.

    Steps 1 and 3 of "Checks performed on receipt of a PDU": the format is checked
    (`EventFormatError`), and if the content hash does not match, the event is
    redacted.  The signatures are left to the caller, who fetches keys.  Without ``limited``
    it may refer to any number of others, as the specification has it for ``/backfill``.
    """
    event, fields, covered = _parse(pdu, version, limited)
    intact = _content_hash_matches(fields, version)
    return ReceivedEvent(
        event=event if intact else redact_event(event),
        signed_bytes=covered,
        signatures=fields["signatures"],
        redacted=not intact,
    )


def received_event_id(pdu: bytes, version: RoomVersion) -> str:
    """The id of a PDU that is to be read closely only later; raises `EventFormatError` where it can have none."""
    try:
        fields = _decode(pdu, version)
        if version.event_id_format == "origin":
            event_id = fields.get("event_id")
            if not is_event_id(event_id):
                raise EventFormatError("event_id is no event id")
            return event_id
        fields.pop("event_id", None)
        fields.pop("unsigned", None)
        return compute_event_id(fields, version)
    except EventFormatError:
        raise
    except (CanonicalJSONError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise EventFormatError(f"malformed: {error}") from None


def event_from_storage(pdu: bytes, version: RoomVersion, event_id: str) -> Event:
    """Read back `Event.pdu` that this server stored; nothing is checked again."""
    return _event(_decode(pdu, version), version, event_id, pdu, {})


def redact_event(event: Event) -> Event:
    """The event as it is after a redaction; same id, no ``unsigned``."""
    fields = redact(event.pdu_dict(), event.version)
    return _event(fields, event.version, event.event_id, canonical_json.tight(_encode(fields, event.version)), {})


# --- building -------------------------------------------------------------------------------------


def build_pdu(
    version: RoomVersion,
    *,
    room_id: str | None,
    sender: str,
    type: str,
    content: Mapping[str, Any],
    state_key: str | None = None,
    prev_events: Sequence[str],
    auth_events: Sequence[str],
    depth: int,
    origin_server_ts: int,
    redacts: str | None = None,
    event_id: str | None = None,
    reference_hashes: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The PDU before it is hashed and signed; also the template that ``make_join`` and kin return.

    ``room_id`` is `None` exactly for a create event whose id becomes the room id.
    ``reference_hashes`` gives the unpadded base64 `reference_hash` of each of ``prev_events``
    and ``auth_events``; room versions 1 and 2 need it, and ``event_id``.
    """
    pdu: dict[str, Any] = {
        "auth_events": list(auth_events),
        "content": content,
        "depth": min(depth, version.max_depth),
        "origin_server_ts": origin_server_ts,
        "prev_events": list(prev_events),
        "sender": sender,
        "type": type,
    }
    if room_id is not None:
        pdu["room_id"] = room_id
    if state_key is not None:
        pdu["state_key"] = state_key
    if redacts is not None:
        if version.redacts_in_content:
            pdu["content"] = {**content, "redacts": redacts}
        else:
            pdu["redacts"] = redacts
    if version.event_id_format == "origin" and event_id is not None:
        pdu["event_id"] = event_id
    if version.event_format == "pairs":
        hashes = reference_hashes or {}
        for key in ("prev_events", "auth_events"):
            missing = [reference for reference in pdu[key] if reference not in hashes]
            if missing:
                raise ValueError(f"no reference hash for {missing[0]}")
            pdu[key] = [[reference, {"sha256": hashes[reference]}] for reference in pdu[key]]
    return pdu


def build_event(
    version: RoomVersion,
    *,
    room_id: str | None,
    sender: str,
    type: str,
    content: Mapping[str, Any],
    state_key: str | None = None,
    prev_events: Sequence[str],
    auth_events: Sequence[str],
    depth: int,
    origin_server_ts: int,
    redacts: str | None = None,
    server_name: str,
    key_id: str,
    signing_key: signing.SigningSecret,
    event_id: str | None = None,
    reference_hashes: Mapping[str, str] | None = None,
) -> Event:
    """Make an event of this server: hashed, named and signed.

    Arguments as of `build_pdu`.  ``event_id`` is for room versions 1 and 2 the random
    local part of the id, or all of it.  Raises `EventFormatError` if the result would be none
    (`EventTooLargeError` if it would be too large).
    """
    if event_id is not None and not event_id.startswith("$"):
        event_id = f"${event_id}:{server_name}"
    pdu = build_pdu(
        version,
        room_id=room_id,
        sender=sender,
        type=type,
        content=content,
        state_key=state_key,
        prev_events=prev_events,
        auth_events=auth_events,
        depth=depth,
        origin_server_ts=origin_server_ts,
        redacts=redacts,
        event_id=event_id,
        reference_hashes=reference_hashes,
    )
    return finish_event(pdu, version, server_name=server_name, key_id=key_id, signing_key=signing_key)


def finish_event(
    pdu: Mapping[str, Any],
    version: RoomVersion,
    *,
    server_name: str,
    key_id: str,
    signing_key: signing.SigningSecret,
) -> Event:
    """Hash, name and sign a PDU of `build_pdu`, or the template of another server.

    Raises `EventFormatError`.  ``hashes``, ``signatures`` and ``unsigned`` of the argument are discarded.
    """
    fields = {k: v for k, v in pdu.items() if k not in ("hashes", "signatures", "unsigned")}
    try:
        check_fields(fields, version)
        return _hash_and_sign(fields, version, server_name, key_id, signing_key)
    except CanonicalJSONError as error:
        raise EventFormatError(str(error)) from None


def _hash_and_sign(
    fields: dict[str, Any],
    version: RoomVersion,
    server_name: str,
    key_id: str,
    signing_key: signing.SigningSecret,
) -> Event:
    content = fields["content"]
    if version.strict_canonical_json:
        canonical_json.check(fields)
        # Content is encoded once and spliced into both encodings that hold it whole.
        fields["content"] = orjson.Fragment(canonical_json.encode_checked(content))
    fields["hashes"] = {"sha256": signing.encode_base64(_sha256(_encode(fields, version)))}
    covered = _signed_bytes({**fields, "content": content}, version)
    if version.event_id_format == "origin":
        event_id = fields["event_id"]
    else:
        event_id = _hash_to_event_id(_sha256(covered), version)
    fields["signatures"] = {server_name: {key_id: signing.sign_bytes(covered, signing_key)}}
    encoded = _encode(fields, version)
    if len(encoded) > MAX_PDU_BYTES:
        raise EventTooLargeError("the event is larger than 65,536 bytes")
    fields["content"] = content if isinstance(content, dict) else dict(content)
    return _event(fields, version, event_id, canonical_json.tight(encoded), {})


def add_signature(event: Event, server_name: str, key_id: str, signature: str) -> Event:
    """The event with another server's signature (base64) beside those it has.

    Raises `EventTooLargeError` if it would exceed the limit.
    """
    fields = event.pdu_dict()
    fields["signatures"].setdefault(server_name, {})[key_id] = signature
    encoded = _encode(fields, event.version)
    if len(encoded) > MAX_PDU_BYTES:
        raise EventTooLargeError("the event is larger than 65,536 bytes")
    return msgspec.structs.replace(event, pdu=canonical_json.tight(encoded))


def sign_event(event: Event, server_name: str, key_id: str, signing_key: signing.SigningSecret) -> Event:
    """The event signed by one more server, as for an invite or a restricted join."""
    return add_signature(event, server_name, key_id, signing.sign_bytes(signed_bytes(event), signing_key))


# --- showing --------------------------------------------------------------------------------------


def client_dict(event: Event, room_id: bool = True) -> dict[str, Any]:
    """The event as the Client-Server API shows it, without ``unsigned``.

    A redaction names its target both in ``content`` and beside it, so that clients
    of either habit find it (room version 11).
    """
    shown: dict[str, Any] = {
        "content": event.content,
        "event_id": event.event_id,
        "origin_server_ts": event.origin_server_ts,
        "sender": event.sender,
        "type": event.type,
    }
    if room_id:
        shown["room_id"] = event.room_id
    if event.state_key is not None:
        shown["state_key"] = event.state_key
    if event.redacts is not None:
        shown["redacts"] = event.redacts
        if not event.version.redacts_in_content:
            shown["content"] = {**event.content, "redacts": event.redacts}
    return shown


def client_json(event: Event) -> bytes:
    """`client_dict` without ``room_id``, as a JSON object to splice more keys into.

    ``client_json(e)[:-1] + b',"unsigned":' + unsigned + b"}"`` is the event with
    the ``unsigned`` of one user.
    """
    return shown_json(client_dict(event, room_id=False), event.version)


def shown_json(shown: object, version: RoomVersion) -> bytes:
    """Something made of an event, or of its content, as JSON.

    In old room versions an event may hold numbers that orjson does not write.
    """
    if not version.strict_canonical_json:
        return canonical_json.encode_lenient(shown)
    return canonical_json.tight(orjson.dumps(shown))


def stripped(event: Event) -> dict[str, Any]:
    """The event as stripped state: ``content``, ``sender``, ``state_key``, ``type``."""
    return {
        "content": event.content,
        "sender": event.sender,
        "state_key": event.state_key if event.state_key is not None else "",
        "type": event.type,
    }

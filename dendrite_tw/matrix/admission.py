"""What becomes of an event that another server sent: the checks in the order of the specification.

Specification: Server-Server API, "Checks performed on receipt of a PDU", "Validating
hashes and signatures on received events" and "Policy Servers".

`admit` is a generator: it yields a question for whatever it lacks (`FetchKeys`,
`LoadAuthEvents`, `StateBefore`, `CurrentState`, `FindPolicyServer`, `AskPolicyServer`), is
sent the answer, and returns an `Admission`.  Each question is asked only if the steps
before it passed, so that an event nobody signed costs no look-up of state.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import Any, Literal, cast

import msgspec

from dendrite_tw.matrix import signing
from dendrite_tw.matrix.auth_rules import (
    AuthError,
    StateMap,
    auth_event_keys,
    auth_state,
    check_auth,
    check_event_auth_events,
)
from dendrite_tw.matrix.event_format import EventFormatError
from dendrite_tw.matrix.events import Event, ReceivedEvent, add_signature, receive_event
from dendrite_tw.matrix.identifiers import is_server_name
from dendrite_tw.matrix.keys import key_valid_at
from dendrite_tw.matrix.room_versions import RoomVersion

MAX_SIGNATURES = 20
"""Signatures of one server on one event that are looked at; an event with more is dropped."""

POLICY_KEY_ID = "ed25519:policy_server"

_CREATE = ("m.room.create", "")

Verdict = Literal["accepted", "soft_failed", "rejected", "dropped"]


class Admission(msgspec.Struct, frozen=True, eq=False):
    """What becomes of an event.

    Accepted: part of the room.  Soft-failed: kept, and used where others refer to it, but neither shown nor
    built upon.  Rejected: kept so that others may refer to it, but never part of any state.  Dropped: as if
    it had never come.
    """

    verdict: Verdict
    reason: str = ""
    """Why it was not accepted."""
    event: Event | None = None
    """The event to keep; redacted if its content hash did not match.  `None` if it was dropped."""
    redacted: bool = False
    missing: tuple[str, ...] = ()
    """Events without which nothing could be said, and which may yet come; the event was dropped for them."""


# --- questions and answers ------------------------------------------------------------------------


class VerifyKey(msgspec.Struct, frozen=True):
    """A public key of a server, as it was published."""

    key: bytes
    """32 bytes."""
    valid_until_ts: int
    expired_ts: int | None = None
    """Since when it is no longer used, for one among ``old_verify_keys``."""


class KeyRequest(msgspec.Struct, frozen=True):
    """Keys of one server, for signatures made at a time."""

    server_name: str
    key_ids: tuple[str, ...]
    ts: int
    """Milliseconds: a copy whose ``valid_until_ts`` does not reach this is better fetched again."""


class FetchKeys(msgspec.Struct, frozen=True):
    """The answer maps ``(server_name, key_id)`` to `VerifyKey`, without those that nobody knows."""

    requests: tuple[KeyRequest, ...]


class KnownEvent(msgspec.Struct, frozen=True, eq=False):
    """An event that this server has judged before."""

    event: Event
    rejected: bool = False


class LoadAuthEvents(msgspec.Struct, frozen=True):
    """The answer maps each id to `KnownEvent`, after those that were missing were fetched and admitted
    themselves; it lacks those that could not be had."""

    room_id: str
    event_ids: tuple[str, ...]


class StateBefore(msgspec.Struct, frozen=True, eq=False):
    """The answer is the state before the event at ``keys``, resolved over its ``prev_events``, after those
    that were missing were fetched; or `None` if that cannot be known now."""

    event: Event
    keys: tuple[tuple[str, str], ...]


class CurrentState(msgspec.Struct, frozen=True):
    """The answer is the room's current state at ``keys``; or `None` if it is the state before the event."""

    room_id: str
    keys: tuple[tuple[str, str], ...]


class FindPolicyServer(msgspec.Struct, frozen=True):
    """The answer is `PolicyServer` if the room has one (`read_policy`) that has a joined user, or `None`."""

    room_id: str


class PolicyServer(msgspec.Struct, frozen=True):
    """Whom a room asks to recommend its events."""

    via: str
    """Its server name."""
    key: bytes
    """Its public key, 32 bytes."""


class AskPolicyServer(msgspec.Struct, frozen=True, eq=False):
    """``POST /_matrix/policy/v1/sign``; the answer is its signature with `POLICY_KEY_ID`, or `None`."""

    via: str
    event: Event


Question = FetchKeys | LoadAuthEvents | StateBefore | CurrentState | FindPolicyServer | AskPolicyServer
Keys = Mapping[tuple[str, str], VerifyKey]
Steps = Generator[Question, Any, Admission]


# --- signatures -----------------------------------------------------------------------------------


def _signers(event: Event, excused: str | None, also: str | None) -> list[str]:
    signers = signing.required_signers(event) - {excused}
    return sorted(signers if also is None else signers | {also})


def key_requests(
    received: Sequence[ReceivedEvent], *, excused: str | None = None, also: str | None = None
) -> FetchKeys | None:
    """Which keys the required signatures of some events need; `None` if they need none.

    ``excused`` is a server that need not have signed yet: this one, if it is asked to sign.  ``also`` is one
    that must have signed besides: the invited one.
    """
    wanted: dict[str, dict[str, None]] = {}
    latest: dict[str, int] = {}
    for one in received:
        for server in _signers(one.event, excused, also):
            key_ids = _key_ids(one, server)[:MAX_SIGNATURES]
            if key_ids:
                wanted.setdefault(server, {}).update(dict.fromkeys(key_ids))
                latest[server] = max(latest.get(server, 0), one.event.origin_server_ts)
    if not wanted:
        return None
    return FetchKeys(tuple(KeyRequest(server, tuple(ids), latest[server]) for server, ids in sorted(wanted.items())))


def _key_ids(received: ReceivedEvent, server: str) -> list[str]:
    return [key_id for key_id in received.signatures.get(server, ()) if key_id.startswith("ed25519:")]


def check_signatures(
    received: ReceivedEvent, keys: Keys, *, now_ms: int, excused: str | None = None, also: str | None = None
) -> None:
    """Raise `signing.SignatureError` unless each required server has validly signed the event.

    Signatures by unknown keys, and by keys that were not valid when the event was made, are passed over;
    of the others none may be wrong, and one must be there.  ``excused`` and ``also`` as of `key_requests`.
    """
    event = received.event
    for server in _signers(event, excused, also):
        key_ids = _key_ids(received, server)
        if len(key_ids) > MAX_SIGNATURES:
            raise signing.SignatureError(f"too many signatures by {server}")
        verified = False
        for key_id in key_ids:
            key = keys.get((server, key_id))
            if key is None or not _valid_for(key, event, now_ms):
                continue
            try:
                signing.verify_bytes(received.signed_bytes, received.signatures[server][key_id], key.key)
            except signing.SignatureError:
                raise signing.SignatureError(f"the signature by {key_id} of {server} is wrong") from None
            verified = True
        if not verified:
            raise signing.SignatureError(f"no signature by a known and valid key of {server}")


def _valid_for(key: VerifyKey, event: Event, now_ms: int) -> bool:
    return key_valid_at(
        event.origin_server_ts, key.valid_until_ts, now=now_ms, version=event.version, expired_ts=key.expired_ts
    )


def verify(
    received: Sequence[ReceivedEvent], *, now_ms: int, excused: str | None = None, also: str | None = None
) -> Generator[FetchKeys, Keys, dict[str, str]]:
    """Check the signatures of many events with one question; returns why, by id, for those that fail."""
    question = key_requests(received, excused=excused, also=also)
    keys: Keys = {} if question is None else (yield question)
    failed: dict[str, str] = {}
    for one in received:
        try:
            check_signatures(one, keys, now_ms=now_ms, excused=excused, also=also)
        except signing.SignatureError as error:
            failed[one.event.event_id] = str(error)
    return failed


# --- the steps ------------------------------------------------------------------------------------


def admit(pdu: bytes | Mapping[str, Any], version: RoomVersion, *, now_ms: int, room_id: str | None = None) -> Steps:
    """Judge a PDU that another server sent; ``version`` is that of its room.

    ``room_id``, if given, is the room that it must belong to.  Nothing is raised for what a stranger sent.
    """
    try:
        received = receive_event(pdu, version)
    except EventFormatError as error:
        return Admission("dropped", str(error))
    if room_id is not None and received.event.room_id != room_id:
        return Admission("dropped", "the event belongs to another room")
    failed = yield from verify([received], now_ms=now_ms)
    if failed:
        return Admission("dropped", failed[received.event.event_id])
    return (yield from admit_verified(received))


def admit_verified(received: ReceivedEvent) -> Steps:
    """The steps after format, signatures and hashes."""
    event, redacted = received.event, received.redacted
    authority = yield from _load_authority(event)
    if isinstance(authority, Admission):
        return authority
    try:
        _check_authority(event, authority)
        before = yield from _state_before(event)
        if before is None:
            return Admission("dropped", "the state before the event is not known", missing=event.prev_events)
        check_auth(event, before)
    except AuthError as error:
        return Admission("rejected", str(error), event, redacted)
    current = yield CurrentState(event.room_id, auth_keys(event))
    if current is not None:
        try:
            check_auth(event, cast(StateMap, current))
        except AuthError as error:
            return Admission("soft_failed", f"not allowed now: {error}", event, redacted)
    return (yield from _recommend(received))


def _create_id(event: Event) -> str | None:
    """The create event that an event implies without naming it."""
    if event.version.create_event_in_auth_events or event.type == "m.room.create":
        return None
    return "$" + event.room_id[1:]


def _load_authority(event: Event) -> Generator[Question, Any, dict[str, KnownEvent] | Admission]:
    """The events that the event names as its authority, and the create event if that is implied."""
    if event.type == "m.room.create":
        return {}
    create_id = _create_id(event)
    wanted = (*event.auth_events, *(() if create_id is None else (create_id,)))
    found: dict[str, KnownEvent] = dict((yield LoadAuthEvents(event.room_id, wanted)))
    missing = tuple(event_id for event_id in wanted if event_id not in found)
    if missing:
        return Admission("dropped", "events that authorise it are missing", missing=missing)
    return found


def _check_authority(event: Event, known: Mapping[str, KnownEvent]) -> None:
    """Step 4; raises `AuthError`."""
    create_id = _create_id(event)
    create = None
    if create_id is not None:
        create = known[create_id].event
        if known[create_id].rejected or create.type != "m.room.create":
            raise AuthError("the room has no accepted create event")
    named = [known[event_id].event for event_id in event.auth_events]
    rejected = {event_id for event_id, one in known.items() if one.rejected}
    check_event_auth_events(event, named, rejected=rejected)
    check_auth(event, auth_state(named, create))


def auth_keys(event: Event) -> tuple[tuple[str, str], ...]:
    keys = auth_event_keys(
        version=event.version,
        type=event.type,
        sender=event.sender,
        state_key=event.state_key,
        content=event.content,
    )
    return tuple(dict.fromkeys([_CREATE, *keys]))


def _state_before(event: Event) -> Generator[Question, Any, StateMap | None]:
    if not event.prev_events:
        return {}
    return cast("StateMap | None", (yield StateBefore(event, auth_keys(event))))


def judge_apart(events: Iterable[Event], judged: dict[str, KnownEvent]) -> dict[str, str]:
    """Why, by id, events known apart from the timeline are rejected: those that their auth events do not allow.

    ``events`` are in the order of authority, as `state_res.auth_order` has them.  ``judged`` are those that are here
    already; the others are added to it, so that more may follow.  What names an event that is in neither is passed
    over: nothing can be said of it.
    """
    rejected: dict[str, str] = {}
    for event in events:
        wanted = {*event.auth_events, *filter(None, [_create_id(event)])}
        if not wanted <= judged.keys():
            continue
        try:
            if event.type == "m.room.create":
                check_auth(event, {})
            else:
                _check_authority(event, {event_id: judged[event_id] for event_id in wanted})
        except AuthError as error:
            rejected[event.event_id] = str(error)
        judged[event.event_id] = KnownEvent(event, event.event_id in rejected)
    return rejected


# --- policy servers -------------------------------------------------------------------------------


def read_policy(event: Event | None) -> PolicyServer | None:
    """What an ``m.room.policy`` state event with empty state key says, if it is valid."""
    if event is None or event.type != "m.room.policy" or event.state_key != "":
        return None
    via, keys = event.content.get("via"), event.content.get("public_keys")
    encoded = keys.get("ed25519") if isinstance(keys, dict) else None
    if not is_server_name(via) or not isinstance(encoded, str):
        return None
    try:
        key = signing.decode_base64_either(encoded)
    except ValueError:
        key = b""
    # A key that cannot be one still enables the policy server; nothing it signs will verify.
    return PolicyServer(via, key)


def needs_policy(event: Event) -> bool:
    """Whether a policy server is asked about such an event: all but the one that appoints it."""
    return not (event.type == "m.room.policy" and event.state_key == "")


def check_policy_signature(signed_bytes: bytes, signature: object, policy: PolicyServer) -> bool:
    """Whether a signature recommends an event.  ``signed_bytes`` as of `events.signed_bytes`."""
    if not isinstance(signature, str):
        return False
    try:
        signing.verify_bytes(signed_bytes, signature, policy.key)
    except signing.SignatureError:
        return False
    return True


def _recommend(received: ReceivedEvent) -> Steps:
    """Step 7: the room's policy server must have signed, or sign now."""
    event, redacted = received.event, received.redacted
    if not needs_policy(event):
        return Admission("accepted", event=event, redacted=redacted)
    policy: PolicyServer | None = yield FindPolicyServer(event.room_id)
    if policy is None:
        return Admission("accepted", event=event, redacted=redacted)
    present = received.signatures.get(policy.via, {}).get(POLICY_KEY_ID)
    if check_policy_signature(received.signed_bytes, present, policy):
        return Admission("accepted", event=event, redacted=redacted)
    signature = yield AskPolicyServer(policy.via, event)
    if not check_policy_signature(received.signed_bytes, signature, policy):
        return Admission("soft_failed", "the policy server does not recommend it", event, redacted)
    try:
        event = add_signature(event, policy.via, POLICY_KEY_ID, signature)
    except EventFormatError:
        return Admission("soft_failed", "there is no room for the policy server's signature", event, redacted)
    return Admission("accepted", event=event, redacted=redacted)

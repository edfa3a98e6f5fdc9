"""Whether a room's state, as one server describes it, can be believed.

Server-Server API, ``PUT /send_join`` and ``GET /state``.  Both bring a state and what
authorises it.  Each event is read, its signatures are checked, and it must be allowed
by its auth events, which must be among the others.  What fails is left out, with all
that builds on it.

Rooms have tens of thousands of members: an event is read once, little is kept beside
it, and a `Pause` follows every few milliseconds of work.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from dendrite_tw.matrix.admission import MAX_SIGNATURES, FetchKeys, KeyRequest, Keys, check_signatures
from dendrite_tw.matrix.auth_rules import AuthError, auth_state, check_auth, check_event_auth_events
from dendrite_tw.matrix.errors import MALFORMED
from dendrite_tw.matrix.event_format import EventFormatError
from dendrite_tw.matrix.events import Event, receive_event
from dendrite_tw.matrix.handshakes.messages import HandshakeError, Pause
from dendrite_tw.matrix.identifiers import is_server_name
from dendrite_tw.matrix.room_versions import RoomVersion
from dendrite_tw.matrix.signing import SignatureError
from dendrite_tw.matrix.state_res import auth_order_in_steps

MAX_EVENTS = 500_000
MAX_SERVERS = 100_000
"""Servers that may have signed something in one room."""

PAUSE_EVERY = 40
"""Events checked between two pauses."""

REASONS_KEPT = 1000

StateOf = dict[tuple[str, str], Event]


class Described(msgspec.Struct, frozen=True, eq=False):
    """What holds of a room that was described."""

    state: StateOf
    good: dict[str, Event]
    """All events that hold, by id, in the order of authority."""
    left_out: dict[str, str]
    """Events that do not hold, by id, and why."""


Raws = Sequence[msgspec.Raw]


class Pile:
    """Events as they came, which are let go when they have been read."""

    def __init__(self, state: list[msgspec.Raw], auth_chain: list[msgspec.Raw]) -> None:
        if len(state) + len(auth_chain) > MAX_EVENTS:
            raise HandshakeError("the answer has too many events")
        self.events = [*state, *auth_chain]
        self.of_state = len(state)


def check_room(
    pile: Pile, version: RoomVersion, room_id: str, *, now_ms: int, besides: Iterable[KeyRequest] = ()
) -> Generator[FetchKeys | Pause, Any, tuple[Described, Keys]]:
    """What holds of the room in `pile`, and the keys that were fetched; those of ``besides`` too.

    Yields `FetchKeys` once, if at all, and `Pause`.  Raises `HandshakeError` if nothing can be made of it.
    """
    left_out: dict[str, str] = {}
    wanted = yield from _wanted_keys(pile.events, version, besides)
    keys: Keys = {} if not wanted else (yield FetchKeys(wanted))
    order, signed = yield from _signed_events(pile, version, room_id, keys, now_ms, left_out)
    good = yield from _authorised(signed, version, room_id, left_out)
    return Described(_state(order, good), good, left_out), keys


def _leave_out(left_out: dict[str, str], event_id: str, reason: str) -> None:
    if len(left_out) < REASONS_KEPT:
        left_out[event_id] = reason


# --- signatures -----------------------------------------------------------------------------------


class _Signed(msgspec.Struct):
    """What of an event tells whose keys its signatures need, whatever else may be wrong with it."""

    sender: Any = None
    event_id: Any = None
    origin_server_ts: Any = None
    signatures: dict[str, dict[str, msgspec.Raw]] = {}
    content: msgspec.Raw = msgspec.Raw(b"{}")


class _Authorised(msgspec.Struct):
    join_authorised_via_users_server: Any = None


_signed = msgspec.json.Decoder(_Signed)
_authorised_by = msgspec.json.Decoder(_Authorised)


def _wanted_keys(
    raws: Raws, version: RoomVersion, besides: Iterable[KeyRequest]
) -> Generator[Pause, Any, tuple[KeyRequest, ...]]:
    """The keys for all events at once; more than `required_signers` would ask for does no harm."""
    wanted: dict[str, dict[str, None]] = {}
    latest: dict[str, int] = {}
    for request in besides:
        wanted[request.server_name] = dict.fromkeys(request.key_ids)
        latest[request.server_name] = request.ts
    for index, raw in enumerate(raws):
        if index % (50 * PAUSE_EVERY) == 50 * PAUSE_EVERY - 1:
            yield Pause(index, len(raws))
        try:
            one = _signed.decode(raw)
        except MALFORMED:
            continue
        for server in _likely_signers(one, version):
            made = list(one.signatures.get(server, ()))[:MAX_SIGNATURES]
            key_ids = [key_id for key_id in made if key_id.startswith("ed25519:")]
            if key_ids:
                wanted.setdefault(server, {}).update(dict.fromkeys(key_ids))
                stamp = one.origin_server_ts
                latest[server] = max(latest.get(server, 0), stamp if isinstance(stamp, int) else 0)
    if len(wanted) > MAX_SERVERS:
        raise HandshakeError("too many servers have signed events of the room")
    return tuple(KeyRequest(server, tuple(ids), latest[server]) for server, ids in sorted(wanted.items()))


def _likely_signers(one: _Signed, version: RoomVersion) -> set[str]:
    named = [one.sender]
    if version.event_id_format == "origin":
        named.append(one.event_id)
    if version.restricted_joins and b"join_authorised_via_users_server" in bytes(one.content):
        try:
            named.append(_authorised_by.decode(one.content).join_authorised_via_users_server)
        except MALFORMED:
            pass
    servers = {name.partition(":")[2] for name in named if isinstance(name, str)}
    return set(filter(is_server_name, servers))


def _signed_events(
    pile: Pile, version: RoomVersion, room_id: str, keys: Keys, now_ms: int, left_out: dict[str, str]
) -> Generator[Pause, Any, tuple[list[str], list[Event]]]:
    """The ids of those which are the state, and all events whose signatures are good, each once."""
    raws, pile.events = pile.events, []
    raws.reverse()
    total = len(raws)
    order: list[str] = []
    found: dict[str, Event] = {}
    known: dict[str, str] = {}
    for index in range(total):
        if index % PAUSE_EVERY == PAUSE_EVERY - 1:
            yield Pause(index, total)
        try:
            received = receive_event(bytes(raws.pop()), version)
        except EventFormatError as error:
            _leave_out(left_out, f"#{index}", str(error))
            continue
        event = received.event
        if event.room_id != room_id or event.state_key is None:
            _leave_out(left_out, event.event_id, "it is no state of this room")
            continue
        if index < pile.of_state:
            order.append(event.event_id)
        if event.event_id in found:
            continue
        try:
            check_signatures(received, keys, now_ms=now_ms)
        except SignatureError as error:
            _leave_out(left_out, event.event_id, str(error))
            continue
        found[event.event_id] = _lean(event, known)
    return order, list(found.values())


def _lean(event: Event, known: dict[str, str]) -> Event:
    """The event, with one copy for all of each text that many events have in common."""
    share = known.setdefault
    return msgspec.structs.replace(
        event,
        room_id=share(event.room_id, event.room_id),
        sender=share(event.sender, event.sender),
        state_key=share(event.state_key or "", event.state_key or ""),
        type=share(event.type, event.type),
        auth_events=tuple([share(event_id, event_id) for event_id in event.auth_events]),
        prev_events=tuple([share(event_id, event_id) for event_id in event.prev_events]),
        event_id=share(event.event_id, event.event_id),
        unsigned=_NOTHING,
    )


_NOTHING: Mapping[str, Any] = {}


# --- authority ------------------------------------------------------------------------------------


def _authorised(
    signed: Sequence[Event], version: RoomVersion, room_id: str, left_out: dict[str, str]
) -> Generator[Pause, Any, dict[str, Event]]:
    """The events that their auth events allow, in the order of authority."""
    good: dict[str, Event] = {}
    ordered = yield from _ordered(signed)
    # The create event authorises all others; where it is implied, the order does not know it.
    ordered.sort(key=lambda event: event.type != "m.room.create")
    create_id = None if version.create_event_in_auth_events else "$" + room_id[1:]
    for index, event in enumerate(ordered):
        if index % PAUSE_EVERY == PAUSE_EVERY - 1:
            yield Pause(index, len(ordered))
        missing = [auth_id for auth_id in event.auth_events if auth_id not in good]
        if missing:
            _leave_out(left_out, event.event_id, f"{missing[0]}, which authorises it, is missing or does not hold")
            continue
        named = [good[auth_id] for auth_id in event.auth_events]
        try:
            check_event_auth_events(event, named)
            check_auth(event, auth_state(named, good.get(create_id) if create_id else None))
        except AuthError as error:
            _leave_out(left_out, event.event_id, str(error))
            continue
        good[event.event_id] = event
    return good


def _ordered(signed: Sequence[Event]) -> Generator[Pause, Any, list[Event]]:
    steps = auth_order_in_steps(signed)
    while True:
        try:
            next(steps)
        except StopIteration as done:
            ordered: list[Event] = done.value
            return ordered
        except ValueError as error:
            raise HandshakeError(f"the auth chain holds {error}") from None
        yield Pause(0, len(signed))


def _state(ids: Sequence[str], good: Mapping[str, Event]) -> StateOf:
    state: StateOf = {}
    for event_id in ids:
        event = good.get(event_id)
        if event is None or event.state_key is None:
            continue
        known = state.setdefault((event.type, event.state_key), event)
        if known is not event:
            raise HandshakeError("the state has two events in one place")
    return state

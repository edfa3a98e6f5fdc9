"""Our users are invited by others, and invites are taken back.

Server-Server API, "Inviting to a room".  A room that this server is in takes an invite as any other
event; of one that it is not in, the invite is all that is known, and so is what ends it: the refusal
of a knock, a kick, a ban, which come as events of a room that is unknown otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from twisted.logger import Logger

from ...matrix.admission import verify
from ...matrix.auth_rules import AuthError, auth_state, check_auth, check_event_auth_events
from ...matrix.errors import MALFORMED
from ...matrix.events import Event, EventFormatError, ReceivedEvent, receive_event
from ...matrix.handshakes import (
    HandshakeError,
    Pile,
    Request,
    Signer,
    check_room,
    receive_invite,
    receive_old_invite,
)
from ...matrix.handshakes.messages import path
from ...matrix.identifiers import is_historical_user_id, server_name_of
from ...world import Clock
from ..room import Room, Rooms
from .driver import Driver
from .reading import CheckInvited, CheckServer, Receive
from .stubs import Known, Stubs

log = Logger()

AUTH_EVENTS_LIMIT = 10_000


class Invitations:
    """Takes invites of our users, and what ends them."""

    def __init__(
        self,
        *,
        rooms: Rooms,
        stubs: Stubs,
        driver: Driver,
        check_invited: CheckInvited,
        receive: Receive,
        acl: CheckServer,
        clock: Clock,
        signer: Signer,
    ) -> None:
        self._rooms = rooms
        self._stubs = stubs
        self._driver = driver
        self._check_invited = check_invited
        self._receive = receive
        self._acl = acl
        self._clock = clock
        self._signer = signer

    async def receive_invite(
        self, room_id: str, event_id: str, origin: str, body: dict[str, Any], old: bool = False
    ) -> bytes:
        """Take an invite; returns the event with our signature."""
        room = await self._rooms.find(room_id)
        is_here = room is not None and room.is_here
        if is_here:
            await self._acl(room_id, origin)
        target = _target(body if old else body.get("event"))
        if target is not None and self._is_ours(target):
            await self._check_invited(target)
            if not is_here:
                await self._stubs.check_crowd(target)
        read = receive_old_invite if old else receive_invite
        invited = await self._driver.run(
            read(
                body,
                room_id=room_id,
                event_id=event_id,
                origin=origin,
                signer=self._signer,
                now_ms=self._clock.now_ms(),
            )
        )
        for fault in invited.faults[:1]:
            log.info("{origin} tells {room} wrongly with an invite: {fault}", origin=origin, room=room_id, fault=fault)
        event = invited.event
        room = await self._rooms.find(room_id)
        if room is not None and room.is_here:
            # Our signature says that we heard of it.  Whether the room allows it, every server in it sees for itself.
            await self._receive(origin, room_id, [event.pdu])
        else:
            await self._stubs.put(event, invited.state, origin)
        return event.pdu

    def _is_ours(self, user_id: str) -> bool:
        return is_historical_user_id(user_id) and server_name_of(user_id) == self._signer.server_name

    # --- what ends them ---

    async def receive_aside(self, origin: str, room: Room, pdus: Sequence[bytes]) -> dict[str, str]:
        """Take events of a room that this server is not in; returns by ID why they were not.

        Only those are taken that end an invite or a knock of one of our users.
        """
        refused: dict[str, str] = {}
        for pdu in pdus:
            try:
                received = receive_event(pdu, room.version)
            except EventFormatError as error:
                refused[f"#{len(refused)}"] = str(error)
                continue
            reason = await self._end(origin, room, received)
            if reason is not None:
                refused[received.event.event_id] = reason
        return refused

    async def _end(self, origin: str, room: Room, received: ReceivedEvent) -> str | None:
        """Take an event that ends an invite or a knock; `None`, or why it was not taken."""
        event = received.event
        user_id = event.state_key
        if event.room_id != room.room_id or user_id is None or event.membership not in ("leave", "ban"):
            return "this server is not in the room"
        known = await self._stubs.known(room, user_id) if self._is_ours(user_id) else None
        if known is not None and known.event.event_id == event.event_id:
            return None
        if known is None or known.membership not in ("invite", "knock"):
            return "this server is not in the room"
        failed = await self._driver.run(verify([received], now_ms=self._clock.now_ms()))
        if failed:
            return failed[event.event_id]
        reason = await self._why_not(origin, event, known)
        if reason is None:
            await self._stubs.end(event)
        return reason

    async def _why_not(self, origin: str, event: Event, known: Known) -> str | None:
        """Why an event may not end an invite or a knock, or `None`.

        It must stand on that very event: one that stands on an earlier invite ended that one.
        """
        if known.event.event_id not in event.auth_events:
            return "it is not about the invite or knock that is known"
        try:
            good = await self._authority(origin, event, known)
        except HandshakeError as error:
            # Who has invited may take it back, and that much is known without the room.
            trusted = server_name_of(event.sender) in (server_name_of(known.event.sender), known.via)
            return None if trusted else str(error)
        named = [good[auth_id] for auth_id in event.auth_events if auth_id in good]
        if len(named) < len(event.auth_events):
            return "events that authorise it are missing or do not hold"
        create = None if event.version.create_event_in_auth_events else good.get("$" + event.room_id[1:])
        try:
            check_event_auth_events(event, named)
            check_auth(event, auth_state(named, create))
        except AuthError as error:
            return str(error)
        return None

    async def _authority(self, origin: str, event: Event, known: Known) -> dict[str, Event]:
        """The events that authorise one of a room elsewhere, those that hold; `HandshakeError` if they are not told."""
        reply = await self._driver.ask(Request(origin, "GET", path("v1", "event_auth", event.room_id, event.event_id)))
        if reply is None or reply.status != 200:
            raise HandshakeError("it cannot be checked")
        try:
            chain = _event_auth.decode(reply.body).auth_chain
        except MALFORMED:
            raise HandshakeError("what authorises it is malformed") from None
        if len(chain) > AUTH_EVENTS_LIMIT:
            raise HandshakeError("too much authorises it")
        chain.append(msgspec.Raw(known.event.pdu))
        good = await self._good(event, chain)
        if not event.version.create_event_in_auth_events and "$" + event.room_id[1:] not in good:
            good = await self._good(event, [*chain, *await self._create(origin, event)])
        return good

    async def _good(self, event: Event, chain: list[msgspec.Raw]) -> dict[str, Event]:
        steps = check_room(Pile([], chain), event.version, event.room_id, now_ms=self._clock.now_ms())
        described, _ = await self._driver.run(steps)
        return described.good

    async def _create(self, origin: str, event: Event) -> list[msgspec.Raw]:
        """The create event, which the auth events of a room do not name where it is in the room's ID."""
        reply = await self._driver.ask(Request(origin, "GET", path("v1", "event", "$" + event.room_id[1:])))
        if reply is None or reply.status != 200:
            return []
        try:
            return _transaction.decode(reply.body).pdus[:1]
        except MALFORMED:
            return []


class _EventAuth(msgspec.Struct):
    auth_chain: list[msgspec.Raw]


class _Transaction(msgspec.Struct):
    pdus: list[msgspec.Raw]


_event_auth = msgspec.json.Decoder(_EventAuth)
_transaction = msgspec.json.Decoder(_Transaction)


def _target(event: object) -> str | None:
    """Who is invited, before anything is known to be right about the event."""
    target = event.get("state_key") if isinstance(event, dict) else None
    return target if isinstance(target, str) else None

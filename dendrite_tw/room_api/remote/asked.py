"""What other servers want for their users of rooms that this one is in: to join, to knock, to leave.

Server-Server API, "Joining Rooms", "Restricted rooms", "Knocking upon a room", "Leaving Rooms".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from ...database.engines import Database
from ...matrix.errors import MALFORMED, bad_json, forbidden, invalid_param, not_found
from ...matrix.events import Event, ReceivedEvent, reference_hash
from ...matrix.handshakes import JOIN, KNOCK, LEAVE, Place, Signer, make_template, receive_membership
from ...matrix.identifiers import is_historical_user_id, server_name_of
from ...matrix.power_levels import PowerLevels
from ...matrix.signing import encode_base64
from ...world import Clock
from ..api import TakenMembership
from ..input import RoomWriter
from ..room import Arrival, Room, Rooms
from ..store import EventStore, stored_event
from ..tables import rooms as room_table
from ..tables.events import ACCEPTED, EventRow
from ..tables.names import Slot
from ..tables.rooms import ELSEWHERE, PARTIAL
from .answers import JoinAnswers
from .driver import Driver
from .reading import CheckServer, StateReader

KINDS = {"join": JOIN, "knock": KNOCK, "leave": LEAVE}

CREATE = ("m.room.create", "")
POWER_LEVELS = ("m.room.power_levels", "")
JOIN_RULES = ("m.room.join_rules", "")
MEMBER = "m.room.member"

MAX_PREV_EVENTS = 10

MEMBERS_LOOKED_AT = 100
"""Local members among whom one is looked for who may vouch for a join."""

VOUCHERS = 10


class Asked:
    """Answers them."""

    def __init__(
        self,
        *,
        database: Database,
        rooms: Rooms,
        state: StateReader,
        store: EventStore,
        writer: RoomWriter,
        answers: JoinAnswers,
        driver: Driver,
        acl: CheckServer,
        clock: Clock,
        signer: Signer,
    ) -> None:
        self._database = database
        self._rooms = rooms
        self._state = state
        self._store = store
        self._writer = writer
        self._answers = answers
        self._driver = driver
        self._acl = acl
        self._clock = clock
        self._signer = signer

    async def _room(self, room_id: str, origin: str) -> Room:
        """The room, if this server can let `origin` act in it: 404 ``M_NOT_FOUND`` or 403 ``M_FORBIDDEN``."""
        room = await self._rooms.find(room_id)
        if room is None or room.standing == ELSEWHERE or not room.head.local:
            raise not_found("This server is not in the room.")
        await self._acl(room_id, origin)
        if room.standing == PARTIAL:
            raise not_found("This server has only just joined the room itself; another one can help.")
        return room

    async def make_membership(
        self, kind: str, room_id: str, user_id: str, origin: str, versions: list[str]
    ) -> dict[str, Any]:
        """The answer to ``make_join``, ``make_knock`` and ``make_leave``: a template and the room's version."""
        room = await self._room(room_id, origin)
        if not is_historical_user_id(user_id):
            raise invalid_param("That is not a user ID.")
        place = await self._place(room, user_id, vouches=kind == "join")
        return await self._driver.run(
            make_template(
                KINDS[kind],
                place,
                user_id,
                origin=origin,
                versions=versions,
                server_name=self._signer.server_name,
                now_ms=self._clock.now_ms(),
            )
        )

    async def take_membership(
        self, kind: str, room_id: str, event_id: str, origin: str, pdu: bytes, omit_members: bool = False
    ) -> TakenMembership:
        """Take the event of ``send_join``, ``send_knock`` or ``send_leave`` into the room, and send it on."""
        room = await self._room(room_id, origin)
        sender, authoriser = _named(pdu)
        place = await self._place(room, sender, vouches=kind == "join", authoriser=authoriser)
        received = await self._driver.run(
            receive_membership(
                KINDS[kind],
                pdu,
                place,
                event_id=event_id,
                origin=origin,
                signer=self._signer,
                now_ms=self._clock.now_ms(),
            )
        )
        await self._check_place(room, received)
        arrival = Arrival(received, strict=True, distribute=True)
        (outcome,) = await self._writer.take(room, [arrival])
        event = received.event
        if outcome.verdict == "known":
            event = await self._known(event)
        if kind == "join":
            return await self._answers.joined(room, event, omit_members)
        shown = await self._answers.shown(room) if kind == "knock" else []
        return TakenMembership(event=event.pdu, stripped=shown)

    async def _known(self, event: Event) -> Event:
        """The event as it was taken before; an event that was refused then is refused again."""
        row = await self._store.row(event.event_id)
        if row is None or row.status != ACCEPTED:
            raise forbidden("The room does not allow this.")
        return stored_event(row)

    async def _check_place(self, room: Room, received: ReceivedEvent) -> None:
        """The event must follow what this server knows: one who is not in the room cannot know more."""
        wanted = set(received.event.prev_events)
        rows = await self._store.rows(list(wanted))
        placed = {row.event_id for row in rows if row.room_nid == room.room_nid and _is_live(row)}
        if not wanted or wanted - placed:
            raise invalid_param("The event follows others than those of the template.")

    async def _place(self, room: Room, user_id: str, *, vouches: bool, authoriser: str | None = None) -> Place:
        """Where a member event of the user would stand now."""
        head = room.head
        state = await self._state(room, CREATE, POWER_LEVELS, JOIN_RULES, (MEMBER, user_id))
        able: list[str] = []
        if vouches and JOIN_RULES in state and room.version.restricted_joins:
            able = await self._vouchers(room, state, authoriser)
            state |= await self._state(room, *((MEMBER, voucher) for voucher in able))
        previous = head.extremities[-MAX_PREV_EVENTS:]
        hashes = await self._hashes(previous, state.values()) if room.version.event_format == "pairs" else None
        return Place(
            version=room.version,
            room_id=room.room_id,
            state=state,
            prev_events=previous,
            depth=head.depth + 1,
            local_members=able,
            reference_hashes=hashes,
        )

    async def _vouchers(self, room: Room, state: dict[Slot, Event], authoriser: str | None) -> list[str]:
        """Some of our users in the room who may invite; the one who is named among them, if they may."""
        levels = PowerLevels(state[CREATE], state.get(POWER_LEVELS))
        named = [user for user in (authoriser, *levels.named) if user is not None and self._is_ours(user)]
        joined = await self._state(room, *((MEMBER, user) for user in named[:MEMBERS_LOOKED_AT]))
        able = [user for user in named if (MEMBER, user) in joined and joined[MEMBER, user].membership == "join"]
        if levels.users_default >= levels.invite:
            able += await self._database.read(room_table.some_local_members, room.room_nid, MEMBERS_LOOKED_AT)
        return [user for user in dict.fromkeys(able) if levels.user_level(user) >= levels.invite][:VOUCHERS]

    def _is_ours(self, user_id: str) -> bool:
        return is_historical_user_id(user_id) and server_name_of(user_id) == self._signer.server_name

    async def _hashes(self, event_ids: Sequence[str], authority: Iterable[Event]) -> dict[str, str]:
        """What references of the oldest room versions hold beside an event's ID."""
        events = [*authority, *(stored_event(row) for row in await self._store.rows(event_ids))]
        return {one.event_id: encode_base64(reference_hash(one.pdu_dict(), one.version)) for one in events}


def _is_live(row: EventRow) -> bool:
    """Whether an event is part of the live timeline, be it shown or not."""
    return row.position > 0 or (row.position == 0 and row.snapshot_nid != 0 and row.status == ACCEPTED)


def _named(pdu: bytes) -> tuple[str, str | None]:
    """The sender of a member event, and who vouches for it, before anything is known to be right about it."""
    try:
        found = _sender.decode(pdu)
    except MALFORMED:
        raise bad_json("The event is malformed.") from None
    return found.sender, found.content.join_authorised_via_users_server


class _Content(msgspec.Struct):
    join_authorised_via_users_server: str | None = None


class _Sender(msgspec.Struct):
    sender: str
    content: _Content


_sender = msgspec.json.Decoder(_Sender)

"""Invites of people who were known by an address only, once the address belongs to a user.

Server-Server API, "Third-party invites".  The identity server has signed who it is; the room's
``m.room.third_party_invite`` names the key, so the authorisation rules tell whether that holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twisted.logger import Logger

from ...matrix.errors import MatrixError, bad_json, forbidden, not_found
from ...matrix.events import Event, receive_event
from ...matrix.handshakes import (
    BoundInvite,
    exchange_request,
    exchange_token,
    read_exchange,
    read_onbind,
)
from ...matrix.handshakes.messages import error_of, for_client
from ...matrix.identifiers import is_historical_user_id, server_name_of
from ...user_api.api import UserAPI
from ..api import RoomAPI
from ..input import RoomWriter
from ..room import Arrival, Draft, Room, Rooms
from .driver import Driver
from .inviting import Inviting
from .reading import CheckInvited, CheckServer, StateReader

log = Logger()

MEMBER = "m.room.member"
THIRD_PARTY_INVITE = "m.room.third_party_invite"


class ThirdParty:
    """Turns them into invites of users."""

    def __init__(
        self,
        *,
        rooms: Rooms,
        state: StateReader,
        writer: RoomWriter,
        inviting: Inviting,
        driver: Driver,
        users: UserAPI,
        everywhere: RoomAPI,
        check_invited: CheckInvited,
        acl: CheckServer,
        server_name: str,
    ) -> None:
        self._rooms = rooms
        self._state = state
        self._writer = writer
        self._inviting = inviting
        self._driver = driver
        self._users = users
        self._everywhere = everywhere
        self._check_invited = check_invited
        self._acl = acl
        self._server_name = server_name

    # --- asked by other servers ---

    async def exchange(self, room_id: str, origin: str, body: dict[str, Any]) -> None:
        """Make the invite of ``PUT /exchange_third_party_invite``: one of our users has asked for it in the room."""
        room = await self._rooms.find(room_id)
        if room is None or not room.is_here:
            raise not_found("This server is not in the room.")
        await self._acl(room_id, origin)
        waiting = await self._waiting(room, exchange_token(body))
        wanted = read_exchange(body, room_id=room_id, third_party_invite=waiting, server_name=self._server_name)
        await self._make(room, wanted.sender, wanted.target, wanted.content)

    async def bound(self, body: dict[str, Any]) -> None:
        """Take up the invites of ``PUT /3pid/onbind``; what cannot be had is logged."""
        invites = read_onbind(body, server_name=self._server_name)
        if invites:
            await self._check_invited(invites[0].user_id)
        for invite in invites:
            try:
                await self._everywhere.take_up_third_party_invite(
                    invite.room_id, invite.sender, invite.user_id, dict(invite.signed)
                )
            except MatrixError as error:
                log.info(
                    "{user} is not invited to {room}: {error}",
                    user=invite.user_id,
                    room=invite.room_id,
                    error=error.error,
                )

    # --- ours ---

    async def claim(self, room_id: str, user_id: str, signed: Mapping[str, Any]) -> None:
        """Have a user invited who brings ``third_party_signed`` with a join; raises `MatrixError`."""
        sender = signed.get("sender")
        if signed.get("mxid") != user_id:
            raise forbidden("third_party_signed is about another user.")
        if not is_historical_user_id(sender) or not isinstance(signed.get("token"), str):
            raise bad_json("third_party_signed names no sender or no token.")
        if not isinstance(signed.get("signatures"), dict):
            raise bad_json("third_party_signed has no signatures.")
        kept = {key: signed[key] for key in ("mxid", "token", "signatures")}
        await self.take_up(BoundInvite(room_id, sender, user_id, kept))

    async def take_up_in(self, room_id: str, sender: str, user_id: str, signed: dict[str, Any]) -> None:
        """As `take_up`, for `bound` in any process."""
        await self.take_up(BoundInvite(room_id, sender, user_id, signed))

    async def take_up(self, invite: BoundInvite) -> None:
        """Invite one of our users: ourselves in a room that we are in, else through the server that invited."""
        room = await self._rooms.find(invite.room_id)
        if room is not None and room.is_here:
            waiting = await self._waiting(room, invite.signed.get("token"))
            if waiting is None or waiting.sender != invite.sender:
                raise forbidden("The room has no such third-party invite by that user.")
            name = waiting.content.get("display_name")
            shown = {"display_name": name} if isinstance(name, str) else {}
            content = {"membership": "invite", "third_party_invite": {**shown, "signed": invite.signed}}
            await self._make(room, invite.sender, invite.user_id, content)
            return
        if server_name_of(invite.sender) == self._server_name:
            raise not_found("This server does not know the room.")
        profile = await self._users.profile(invite.user_id)
        request = exchange_request(invite, profile.get("displayname") or invite.user_id)
        reply = await self._driver.ask(request)
        if reply is None or reply.status != 200:
            raise for_client(error_of(reply))

    async def _waiting(self, room: Room, token: object) -> Event | None:
        """The room's ``m.room.third_party_invite`` for a token."""
        if not isinstance(token, str):
            return None
        key = (THIRD_PARTY_INVITE, token)
        return (await self._state(room, key)).get(key)

    async def _make(self, room: Room, sender: str, target: str, content: dict[str, Any]) -> None:
        draft = Draft(sender=sender, type=MEMBER, content=content, state_key=target)
        if server_name_of(target) != self._server_name:
            await self._inviting.invite(room, draft)
            return
        await self._check_invited(target)
        # Who invited may be of another server: the signature of ours is enough for such an invite.
        event = await self._writer.compose(room, draft)
        received = receive_event(event.pdu, room.version)
        await self._writer.take(room, [Arrival(received, strict=True, distribute=True)])

"""What our users want of rooms that this server is not in: to join, to knock, to refuse and to take back.

Server-Server API, "Joining Rooms", "Knocking upon a room", "Leaving Rooms".  Another server has to be
found that lets them; the event that comes of it is kept with what was told of the room.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from twisted.internet.defer import DeferredLock
from twisted.logger import Logger

from ...database.engines import Database
from ...matrix.errors import MatrixError, forbidden, not_found
from ...matrix.events import Event, build_event, reference_hash
from ...matrix.handshakes import HandshakeError, Joined, Request, Signer, Wish, join, knock, leave
from ...matrix.handshakes.messages import path
from ...matrix.identifiers import is_server_name, server_name_of
from ...matrix.signing import encode_base64
from ...world import Clock, Random
from ..api import MembershipChange
from ..room import Room, Rooms
from ..tables import rooms as room_table
from .driver import Driver
from .reading import ServersOf
from .stubs import Known, Stubs

log = Logger()

FORMER_MEMBERS = 200
"""Users of other servers by whom those are found that may still be in a room."""

MAX_CANDIDATES = 20
"""Servers that are tried for one wish."""

SERVERS_ASKED = 3
"""Servers that are asked whether a room lets guests in."""

SET_BY_SERVERS = ("membership", "join_authorised_via_users_server", "third_party_invite")
"""What a client does not decide about its own membership."""

TakeRoom = Callable[[Joined], Awaitable[None]]
"""Stores a room that was joined."""


class Asking:
    """Goes through other servers."""

    def __init__(
        self,
        *,
        database: Database,
        rooms: Rooms,
        stubs: Stubs,
        driver: Driver,
        take_room: TakeRoom,
        servers_of: ServersOf,
        clock: Clock,
        random: Random,
        signer: Signer,
    ) -> None:
        self._database = database
        self._rooms = rooms
        self._stubs = stubs
        self._driver = driver
        self._take_room = take_room
        self._servers_of = servers_of
        self._clock = clock
        self._random = random
        self._signer = signer
        self._locks: dict[tuple[str, str], tuple[DeferredLock, int]] = {}

    async def change(self, change: MembershipChange) -> bool:
        """Carry out a join, a knock or a leave; `False` if this server is in the room by now and can do it itself."""
        # Who comes second finds the room joined; invites are refused by each for themselves.
        user = "" if change.action == "join" else change.target
        async with self._alone(change.room_id, user):
            room = await self._rooms.find(change.room_id)
            deserted = room is not None and room.is_here
            if room is not None and deserted and (room.head.local or change.action == "leave"):
                return False
            former = await self._former_servers(room)
            if deserted and not former:
                return False
            try:
                await self._ask(change, room, former)
            except MatrixError as error:
                # Nobody is left who would know better.
                if not deserted or error.status == 403:
                    raise
                return False
            return True

    async def _ask(self, change: MembershipChange, room: Room | None, former: list[str]) -> None:
        known = await self._stubs.known(room, change.target) if room is not None else None
        wish = await self._wish(change, known, former)
        if change.action == "join":
            await self._join(change, known, wish)
        elif change.action == "knock":
            knocked = await self._driver.run(knock(wish))
            await self._stubs.put(knocked.event, knocked.state, knocked.resident)
        else:
            await self._leave(change, room, known, wish)

    async def _former_servers(self, room: Room | None) -> list[str]:
        """Other servers that had members in a room when this one last knew, or before."""
        if room is None:
            return []
        users = await self._database.read(room_table.some_others, room.room_nid, FORMER_MEMBERS)
        servers = [*await self._servers_of(room.room_id), *(user.partition(":")[2] for user in users)]
        return [server for server in dict.fromkeys(servers) if server != self._signer.server_name]

    @asynccontextmanager
    async def _alone(self, room_id: str, user_id: str) -> Any:
        """Keep others out that want the same of the same room."""
        key = (room_id, user_id)
        lock, users = self._locks.get(key, (DeferredLock(), 0))
        self._locks[key] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks.pop(key)
            if users > 1:
                self._locks[key] = (lock, users - 1)

    # --- the wishes ---

    async def _join(self, change: MembershipChange, known: Known | None, wish: Wish) -> None:
        if change.is_guest and (known is None or known.membership != "invite"):
            raise MatrixError(403, "M_GUEST_ACCESS_FORBIDDEN", "Guests join rooms of other servers only when invited.")
        if change.is_guest and not await self._lets_guests_in(wish):
            raise MatrixError(403, "M_GUEST_ACCESS_FORBIDDEN", "The room does not let guests in.")
        log.info("joining {room} through {servers}", room=wish.room_id, servers=", ".join(wish.servers))
        joined = await self._driver.run(join(wish, omit_members=True), self._progress(wish))
        if joined.left_out:
            log.warn(
                "{count} events in the answer of {server} do not hold, one because {reason}",
                count=len(joined.left_out),
                server=joined.resident,
                reason=next(iter(joined.left_out.values())),
            )
        await self._take_room(joined)

    async def _lets_guests_in(self, wish: Wish) -> bool:
        """Whether a server that is in the room says so.

        A guest is nothing that others could know: the guest's own server has to see to it that they stay out.
        """
        where = path("v1", "hierarchy", wish.room_id)
        for server in wish.servers[:SERVERS_ASKED]:
            reply = await self._driver.ask(Request(server, "GET", where, (("suggested_only", "true"),)))
            try:
                answer = reply.content() if reply is not None and reply.status == 200 else None
            except HandshakeError:
                continue
            room = answer.get("room") if isinstance(answer, dict) else None
            if isinstance(room, dict) and room.get("room_id") == wish.room_id:
                return room.get("guest_can_join") is True
        return False

    async def join_through_another(self, change: MembershipChange) -> Joined:
        """Have another server let a user into a room that this one is in, where nobody here may vouch for them."""
        wish = await self._wish(change, None, await self._servers_of(change.room_id))
        return await self._driver.run(join(wish, omit_members=True))

    async def _leave(self, change: MembershipChange, room: Room | None, known: Known | None, wish: Wish) -> None:
        """Refuse an invite or take a knock back; if nobody hears of it, the user is rid of it all the same."""
        if room is None or known is None:
            raise not_found("You are not in this room.")
        if known.membership == "leave":
            return
        if known.membership == "ban":
            raise forbidden("You are banned from this room.")
        try:
            event = (await self._driver.run(leave(wish))).event
        except MatrixError as error:
            log.info("nobody takes the leave of {user}: {error}", user=change.target, error=error.error)
            event = self._own_leave(room, known, wish)
        await self._stubs.end(event)

    def _own_leave(self, room: Room, known: Known, wish: Wish) -> Event:
        """A leave that only this server knows: it stands on nothing but the invite or the knock."""
        before = known.event
        hashes = {before.event_id: encode_base64(reference_hash(before.pdu_dict(), room.version))}
        return build_event(
            room.version,
            room_id=room.room_id,
            sender=wish.user_id,
            type="m.room.member",
            state_key=wish.user_id,
            content={**wish.content, "membership": "leave"},
            prev_events=[before.event_id],
            auth_events=[before.event_id],
            depth=before.depth + 1,
            origin_server_ts=wish.now_ms,
            server_name=self._signer.server_name,
            key_id=self._signer.key_id,
            signing_key=self._signer.secret,
            event_id=wish.event_name if room.version.event_id_format == "origin" else None,
            reference_hashes=hashes if room.version.event_format == "pairs" else None,
        )

    # --- what is asked, and whom ---

    async def _wish(self, change: MembershipChange, known: Known | None, servers: Sequence[str]) -> Wish:
        content = {} if change.action == "leave" else {**change.profile, **change.content}
        content = {key: value for key, value in content.items() if key not in SET_BY_SERVERS}
        if change.reason is not None:
            content["reason"] = change.reason
        return Wish(
            room_id=change.room_id,
            user_id=change.target,
            servers=self._candidates(change, known, servers),
            signer=self._signer,
            now_ms=self._clock.now_ms(),
            content=content,
            event_name=self._random.token(18),
        )

    def _candidates(self, change: MembershipChange, known: Known | None, servers: Sequence[str]) -> list[str]:
        """Servers to try: whom the user names, who invited, who was in the room, whose room it is."""
        named = list(change.via)
        if known is not None:
            inviter = server_name_of(known.event.sender)
            first = [server for server in (known.via, inviter) if server]
            named = [*first, *named] if change.action == "leave" else [*named, *first]
        named += servers
        named.append(change.room_id.partition(":")[2])
        own = self._signer.server_name
        wanted = [server for server in dict.fromkeys(named) if is_server_name(server) and server != own]
        return wanted[:MAX_CANDIDATES]

    def _progress(self, wish: Wish) -> Callable[[int, int], None]:
        """Tells of a large room every few seconds how far the check has come."""
        last = self._clock.now_ms()

        def tell(done: int, of: int) -> None:
            nonlocal last
            now = self._clock.now_ms()
            if now - last >= PROGRESS_MS:
                last = now
                log.info("joining {room}: {done} of {of} events checked", room=wish.room_id, done=done, of=of)

        return tell


PROGRESS_MS = 2000
"""Between two lines of the log about one join."""

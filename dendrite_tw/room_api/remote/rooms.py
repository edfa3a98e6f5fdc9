"""Rooms and other servers: the parts of this folder, made and introduced, and what `Actions` asks of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...database.engines import Database
from ...database.outbox import Outbox
from ...federation_api.api import FederationAPI
from ...matrix.errors import MatrixError, forbidden
from ...matrix.handshakes import Signer
from ...matrix.keys import SigningKey
from ...user_api.api import UserAPI
from ...world import World
from ..adoption import Adoption
from ..api import MembershipChange, RoomAPI
from ..current import CurrentState, InvitePermission
from ..graph import AuthChains
from ..input import RoomWriter
from ..participation import Participation
from ..room import Draft, Room, Rooms
from ..servers import Servers
from ..snapshots import Snapshots
from ..store import EventStore, RoomEvents
from ..tables import rooms as room_table
from ..tables.duties import DutyRow
from ..tables.names import Names
from ..tables.rooms import ELSEWHERE, PARTIAL
from .aliases import RemoteAliases
from .answers import JoinAnswers
from .asked import Asked
from .asking import Asking
from .completing import Completing
from .driver import Driver
from .importing import Importing
from .invited import Invitations
from .inviting import Inviting
from .reading import Receive
from .rechecking import Rechecking
from .stubs import Stubs
from .third_party import ThirdParty


class RemoteRooms:
    """Everything about rooms that takes another server, or that another server asks for."""

    def __init__(
        self,
        *,
        database: Database,
        outbox: Outbox,
        names: Names,
        rooms: Rooms,
        snapshots: Snapshots,
        store: EventStore,
        shown: RoomEvents,
        servers: Servers,
        chains: AuthChains,
        current: CurrentState,
        permission: InvitePermission,
        writer: RoomWriter,
        adoption: Adoption,
        participation: Participation,
        receive: Receive,
        everywhere: RoomAPI,
        federation: FederationAPI,
        users: UserAPI,
        world: World,
        server_name: str,
        key: SigningKey,
    ) -> None:
        self._database = database
        self._rooms = rooms
        self._participation = participation
        self._current = current
        self._receive = receive
        self._server_name = server_name
        clock, acl = world.clock, participation.check_server
        signer = Signer(server_name, key.key_id, key.secret)
        driver = Driver(federation, world.time, self._is_joined)
        self.aliases = RemoteAliases(federation)
        self.stubs = Stubs(database=database, names=names, writer=writer, adoption=adoption)
        self._rechecking = Rechecking(
            database=database,
            outbox=outbox,
            names=names,
            snapshots=snapshots,
            store=store,
            shown=shown,
            servers=servers,
            writer=writer,
            server_name=server_name,
        )
        self.completing = Completing(
            database=database,
            rooms=rooms,
            state=current,
            writer=writer,
            adoption=adoption,
            driver=driver,
            time=world.time,
            clock=clock,
            random=world.random,
            server_name=server_name,
        )
        importing = Importing(adoption=adoption, stubs=self.stubs, clock=clock, on_partial=self.completing.begin)
        self.asking = Asking(
            database=database,
            rooms=rooms,
            stubs=self.stubs,
            driver=driver,
            take_room=importing.take,
            servers_of=self._servers_of,
            clock=clock,
            random=world.random,
            signer=signer,
        )
        self.answers = JoinAnswers(database=database, state=current, snapshots=snapshots, store=store, chains=chains)
        self.asked = Asked(
            database=database,
            rooms=rooms,
            state=current,
            store=store,
            writer=writer,
            answers=self.answers,
            driver=driver,
            acl=acl,
            clock=clock,
            signer=signer,
        )
        self.invitations = Invitations(
            rooms=rooms,
            stubs=self.stubs,
            driver=driver,
            # A bridge makes its users when they are first invited, so there need be no account yet.
            check_invited=permission.check,
            receive=receive,
            acl=acl,
            clock=clock,
            signer=signer,
        )
        self.inviting = Inviting(writer=writer, state=current, driver=driver, everywhere=everywhere, clock=clock)
        self.third_party = ThirdParty(
            rooms=rooms,
            state=current,
            writer=writer,
            inviting=self.inviting,
            driver=driver,
            users=users,
            everywhere=everywhere,
            check_invited=permission.check_from_outside,
            acl=acl,
            server_name=server_name,
        )

    async def start(self) -> None:
        """Go on with what an earlier run began."""
        await self.completing.start()

    def lose(self, share: int) -> None:
        """Leave the rooms of a share to another process."""
        self.completing.lose(share)

    def stop(self) -> None:
        """Ask other servers for nothing more."""
        self.completing.stop()

    async def recheck(self, duty: DutyRow) -> None:
        """A room is complete: judge again what came meanwhile."""
        row = await self._database.read(room_table.room_by_nid, duty.room_nid)
        room = await self._rooms.find(row.room_id) if row is not None else None
        if room is not None:
            await self._rechecking.recheck(room, int(duty.subject))

    async def _is_joined(self, room_id: str, user_id: str) -> bool | None:
        """Whether a user is joined to a room; `None` if this server is not in it, or knows too little of it."""
        room = await self._rooms.find(room_id)
        if room is None or room.standing == ELSEWHERE or not room.head.local:
            return None
        membership = await self._current.membership(room, user_id)
        return None if membership is None and room.standing == PARTIAL else membership == "join"

    async def _servers_of(self, room_id: str) -> list[str]:
        """The servers that had members in a room when this one last knew."""
        try:
            return await self._participation.room_servers(room_id)
        except MatrixError:
            return []

    # --- for `Actions` ---

    async def change(self, change: MembershipChange) -> bool:
        """As `Asking.change`."""
        return await self.asking.change(change)

    async def join_through_another(self, room: Room, change: MembershipChange) -> bool:
        """Let another server vouch for a user who joins a room that this server is in; `False` if there is no other."""
        if not set(await self._servers_of(room.room_id)) - {self._server_name}:
            return False
        joined = await self.asking.join_through_another(change)
        event = joined.event
        refused = await self._receive(joined.resident, room.room_id, [event.pdu])
        if event.event_id in refused:
            raise forbidden(f"The room does not allow this: {refused[event.event_id]}.")
        return True

    async def invite(self, room: Room, draft: Draft) -> str:
        """As `Inviting.invite`."""
        return await self.inviting.invite(room, draft)

    async def invite_all(self, room: Room, drafts: Sequence[Draft]) -> None:
        """As `Inviting.invite_all`."""
        if drafts:
            await self.inviting.invite_all(room, drafts)

    async def claim_invite(self, room_id: str, user_id: str, signed: Mapping[str, Any]) -> None:
        """As `ThirdParty.claim`."""
        await self.third_party.claim(room_id, user_id, signed)

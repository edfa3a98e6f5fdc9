"""The room component: its parts, made and introduced."""

from __future__ import annotations

from typing import cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..cache import CacheBudget
from ..database.engines import Database
from ..database.migrate import migrate, steps_of
from ..database.outbox import Outbox
from ..federation_api.api import FederationAPI
from ..links.echoes import Echoes, NoEchoes
from ..matrix.keys import SigningKey
from ..sharing.leases import Leases
from ..user_api.api import UserAPI
from ..world import World
from .actions import Actions, to_the_end
from .adoption import Adoption
from .api import RoomAPI
from .arrivals import Arrivals
from .backfilling import Backfilling
from .current import CurrentState, InvitePermission
from .directory import Directory
from .drafts import Drafting
from .duties import GUESTS, PURGE, RECHECK, TOMBSTONE, Duties
from .gaps import Gaps
from .graph import AuthChains, Resolver
from .guests import Guests
from .hierarchy import Hierarchy
from .input import RoomWriter
from .memberships import Memberships
from .missing import Missing
from .nearest import Nearest
from .ownership import AllRooms, Ownership
from .pages import Pages
from .participation import Participation
from .peers import Peers
from .placing import Placing
from .policies import Policies
from .purge import Purges
from .queries import Queries
from .receiving import Receiving
from .redactions import Redactions
from .relations import Relations
from .remote.rooms import RemoteRooms
from .remote.spaces import FarRooms
from .reports import Reports
from .room import Rooms
from .server_view import ServerViewer
from .servers import Servers
from .serving import Serving
from .snapshots import Snapshots
from .states import States
from .store import EventStore, RoomEvents
from .storing import Storing
from .succession import Succession
from .tables.names import Names
from .together import Together
from .upgrade import Upgrades
from .user_directory import UserDirectory
from .verifying import Verifying
from .viewing import Viewer

log = Logger()

GO_ON_SECONDS = 0.1
"""After rooms were gained, until what is to be done in them is looked for; they count as held by then."""

RETRY_SECONDS = 5.0


class RoomComponent:
    """Answers `RoomAPI`: each method is that of the part which carries it out."""

    def __init__(
        self,
        *,
        database: Database,
        users: UserAPI,
        federation: FederationAPI,
        world: World,
        budget: CacheBudget,
        server_name: str,
        key: SigningKey,
        default_room_version: str,
        rooms: RoomAPI | None = None,
        leases: Leases | None = None,
        echoes: Echoes | None = None,
    ) -> None:
        """``rooms`` reaches rooms that other processes have, `None` where this one has all; then no ``leases`` are
        needed."""
        echoes = NoEchoes() if echoes is None else echoes
        self.database = database
        self.federation = federation
        self.outbox = Outbox("room_api", database)
        self._leases = leases
        self._time = world.time
        self._going_on: IDelayedCall | None = None
        ownership = AllRooms() if leases is None else self._share(leases)
        everywhere = cast(RoomAPI, self) if rooms is None else rooms
        names = Names(ownership.shared)
        snapshots = Snapshots(budget, echoes)
        self.store = store = EventStore(database, budget, echoes)
        self.shown = shown = RoomEvents(database, store, budget)
        viewer = Viewer(database, names, snapshots, store)
        user_directory = UserDirectory(database, names, users)
        self.duties = duties = Duties(database, world.time, ownership)
        self.rooms = Rooms(database, snapshots, budget, ownership)
        self.servers = servers = Servers(database, budget, ownership.shared)
        states = States(database, names, store, servers)
        self.chains = chains = AuthChains(database, store, budget)
        self.placing = placing = Placing(
            database=database,
            store=store,
            snapshots=snapshots,
            resolver=Resolver(database, names, store, chains),
            server_name=server_name,
        )
        redactions = Redactions(database, states, store, snapshots)
        peers = Peers(federation)
        policies = Policies(names, states, peers, world.time)
        self.writer = RoomWriter(
            database=database,
            rooms=self.rooms,
            store=store,
            shown=shown,
            servers=servers,
            drafting=Drafting(
                states=states,
                store=store,
                placing=placing,
                redactions=redactions,
                policies=policies,
                clock=world.clock,
                random=world.random,
                server_name=server_name,
                key=key,
            ),
            arrivals=Arrivals(states=states, store=store, placing=placing, redactions=redactions, policies=policies),
            policies=policies,
            storing=Storing(
                outbox=self.outbox,
                names=names,
                duties=duties,
                user_directory=user_directory,
                server_name=server_name,
            ),
        )
        self.adoption = Adoption(
            database=database,
            outbox=self.outbox,
            names=names,
            rooms=self.rooms,
            writer=self.writer,
            snapshots=snapshots,
            redactions=redactions,
            servers=servers,
            user_directory=user_directory,
            duties=duties,
            server_name=server_name,
        )
        participation = Participation(
            database=database, names=names, rooms=self.rooms, store=store, servers=servers, budget=budget
        )
        verifying = Verifying(federation, world.clock, world.time)
        missing = Missing(
            database=database, store=store, states=states, adoption=self.adoption, peers=peers, verifying=verifying
        )
        self.receiving = receiving = Receiving(
            rooms=self.rooms,
            writer=self.writer,
            servers=servers,
            participation=participation,
            verifying=verifying,
            missing=missing,
            time=world.time,
            server_name=server_name,
        )
        current = CurrentState(database, names, store)
        permission = InvitePermission(users, server_name)
        self.remote = remote = RemoteRooms(
            database=database,
            outbox=self.outbox,
            names=names,
            rooms=self.rooms,
            snapshots=snapshots,
            store=store,
            shown=shown,
            servers=servers,
            chains=chains,
            current=current,
            permission=permission,
            writer=self.writer,
            adoption=self.adoption,
            participation=participation,
            receive=receiving.receive,
            everywhere=everywhere,
            federation=federation,
            users=users,
            world=world,
            server_name=server_name,
            key=key,
        )
        receiving.aside = remote.invitations.receive_aside
        memberships = Memberships(
            database=database,
            rooms=self.rooms,
            current=current,
            permission=permission,
            users=users,
            server_name=server_name,
        )
        actions = Actions(
            database=database,
            names=names,
            rooms=self.rooms,
            writer=self.writer,
            store=store,
            current=current,
            permission=permission,
            memberships=memberships,
            remote=remote,
            user_directory=user_directory,
            everywhere=everywhere,
            clock=world.clock,
            random=world.random,
            server_name=server_name,
            default_room_version=default_room_version,
        )
        queries = Queries(
            database=database,
            names=names,
            rooms=self.rooms,
            snapshots=snapshots,
            store=store,
            shown=shown,
            viewer=viewer,
            remote=remote,
        )
        self.backfilling = Backfilling(
            database=database,
            writer=self.writer,
            servers=servers,
            current=current,
            missing=missing,
            peers=peers,
            verifying=verifying,
            time=world.time,
            server_name=server_name,
        )
        gaps = Gaps(
            database=database,
            backfilling=self.backfilling,
            viewer=viewer,
            whole=remote.completing.whole,
            time=world.time,
        )
        pages = Pages(database=database, rooms=self.rooms, shown=shown, viewer=viewer, queries=queries, gaps=gaps)
        nearest = Nearest(
            database=database,
            rooms=self.rooms,
            store=store,
            viewer=viewer,
            pages=pages,
            writer=self.writer,
            servers=servers,
            peers=peers,
            verifying=verifying,
            missing=missing,
            time=world.time,
            server_name=server_name,
        )
        relations = Relations(
            database=database,
            names=names,
            rooms=self.rooms,
            store=store,
            shown=shown,
            viewer=viewer,
            queries=queries,
            pages=pages,
            gaps=gaps,
            users=users,
        )
        directory = Directory(
            database=database,
            rooms=self.rooms,
            actions=actions,
            everywhere=everywhere,
            viewer=viewer,
            elsewhere=remote.aliases,
            servers_of=participation.room_servers,
            clock=world.clock,
            server_name=server_name,
        )
        succession = Succession(database=database, rooms=self.rooms, actions=actions, users=users)
        actions.after_join = succession.joined
        upgrades = Upgrades(
            database=database,
            rooms=self.rooms,
            actions=actions,
            writer=self.writer,
            store=store,
            succession=succession,
            users=users,
        )
        guests = Guests(database=database, rooms=self.rooms, actions=actions, users=users)
        purges = Purges(
            database=database,
            outbox=self.outbox,
            names=names,
            rooms=self.rooms,
            writer=self.writer,
            everywhere=everywhere,
            duties=duties,
            users=users,
            server_name=server_name,
        )
        reports = Reports(
            database=database,
            names=names,
            rooms=self.rooms,
            store=store,
            viewer=viewer,
            actions=actions,
            users=users,
            clock=world.clock,
            server_name=server_name,
        )
        hierarchy = Hierarchy(
            database=database,
            names=names,
            rooms=self.rooms,
            store=store,
            actions=actions,
            memberships=memberships,
            directory=directory,
            far=FarRooms(federation, budget, world.clock, server_name),
            servers=servers,
            time=world.time,
            clock=world.clock,
            random=world.random,
        )
        serving = Serving(
            database=database,
            rooms=self.rooms,
            store=store,
            snapshots=snapshots,
            chains=chains,
            participation=participation,
            viewer=ServerViewer(
                database=database,
                names=names,
                snapshots=snapshots,
                servers=servers,
                users=users,
                server_name=server_name,
            ),
        )
        duties.carriers = {
            GUESTS: guests.access_changed,
            TOMBSTONE: succession.buried,
            PURGE: purges.delete_rest,
            RECHECK: remote.recheck,
        }
        self.upgrade = to_the_end(upgrades.upgrade)
        self.purge_room = to_the_end(purges.purge_room)
        self.evacuate_room = to_the_end(purges.evacuate_room)
        self.evacuate_user = to_the_end(purges.evacuate_user)
        self.empty_rooms = purges.empty_rooms
        self.report = reports.report
        self.report_user = reports.report_user
        self.reports = reports.reports
        self.report_details = reports.report_details
        self.delete_report = reports.delete_report
        self.hierarchy = hierarchy.hierarchy
        self.room_summary_for = hierarchy.room_summary_for
        self.mutual_rooms = hierarchy.mutual_rooms
        self.search_users = user_directory.search
        self.create_room = to_the_end(actions.create_room)
        self.send = to_the_end(actions.send)
        self.change_membership = to_the_end(actions.change_membership)
        self.forget = to_the_end(actions.forget)
        self.update_profile = to_the_end(actions.update_profile)
        self.renew_member = to_the_end(actions.renew_member)
        self.resolve_alias = directory.resolve_alias
        self.aliases = directory.aliases
        self.create_alias = to_the_end(directory.create_alias)
        self.delete_alias = to_the_end(directory.delete_alias)
        self.published = directory.published
        self.set_published = to_the_end(directory.set_published)
        self.public_rooms = directory.public_rooms
        self.room_version = directory.room_version
        self.room_summary = directory.room_summary
        self.memberships = queries.memberships
        self.membership = queries.membership
        self.local_memberships = queries.local_memberships
        self.joined_users = queries.joined_users
        self.shares_room = queries.shares_room
        self.room_view = queries.room_view
        self.newest_positions = queries.newest_positions
        self.newest_events = queries.newest_events
        self.stripped_state = queries.stripped_state
        self.pdus = queries.pdus
        self.timeline = queries.timeline
        self.state_at = queries.state_at
        self.state_changes = queries.state_changes
        self.state_before = queries.state_before
        self.current_state = queries.current_state
        self.state_event = queries.state_event
        self.members = queries.members
        self.joined_members = queries.joined_members
        self.event = queries.event
        self.events = queries.events
        self.messages = pages.messages
        self.context = pages.context
        self.relations = relations.relations
        self.threads = relations.threads
        self.aggregations = relations.aggregations
        together = Together(database, queries, relations)
        self.rooms_joined = together.rooms_joined
        self.room_views = together.room_views
        self.aggregations_of = together.aggregations_of
        self.dressing = together.dressing
        self.timestamp_to_event = nearest.timestamp_to_event
        self.visible = queries.visible
        self.make_membership = remote.asked.make_membership
        self.take_membership = to_the_end(remote.asked.take_membership)
        self.receive_invite = to_the_end(remote.invitations.receive_invite)
        self.exchange_third_party_invite = to_the_end(remote.third_party.exchange)
        self.third_party_bound = to_the_end(remote.third_party.bound)
        self.take_up_third_party_invite = to_the_end(remote.third_party.take_up_in)
        self.receive = receiving.receive
        self.events_for_server = serving.events_for_server
        self.state_ids_for_server = serving.state_ids_for_server
        self.event_auth_for_server = serving.event_auth_for_server
        self.missing_events_for_server = serving.missing_events_for_server
        self.backfill_for_server = serving.backfill_for_server
        self.timestamp_to_event_for_server = serving.timestamp_to_event_for_server
        self.hierarchy_for_server = hierarchy.hierarchy_for_server
        self.room_servers = participation.room_servers
        self.servers_of_user = participation.servers_of_user
        self.check_server = participation.check_server

    def prepare(self) -> None:
        """Bring the database up to date and take up its positions; before the reactor runs."""
        self.database.prepare(migrate, "room_api", steps_of("dendrite_tw.room_api"))
        self.database.prepare(self.outbox.create)

    async def start(self) -> None:
        """Go on with what an earlier run left to be done; rooms are loaded when they are asked for."""
        self.duties.wake()
        await self.remote.start()
        if self._leases is not None:
            await self._leases.start()

    def _share(self, leases: Leases) -> Ownership:
        """Have only some rooms, in turn with other processes."""
        from .shared_rooms import SharedRooms

        return SharedRooms(leases, self._gained, self._lost)

    def _gained(self, share: int) -> None:
        """Another process has written to these rooms until now: what is remembered of them may be out of date."""
        self.writer.forget_numbers()
        self.store.forget_all()
        self.shown.forget_all()
        if self._going_on is None:
            self._going_on = self._time.callLater(GO_ON_SECONDS, self._go_on)

    def _lost(self, share: int) -> None:
        self.rooms.lose(share)
        self.remote.lose(share)

    def _go_on(self) -> None:
        """Do what other processes left to be done in the rooms that this one has now."""
        self._going_on = None
        self.duties.wake()
        Deferred.fromCoroutine(self.remote.start()).addErrback(self._later)

    def _later(self, failure: Failure) -> None:
        log.warn("what was begun in rooms has to wait: {why}", why=failure.getErrorMessage())
        if self._going_on is None:
            self._going_on = self._time.callLater(RETRY_SECONDS, self._go_on)

    async def stop(self) -> None:
        """Nothing is kept in memory that is not on disk."""
        self.duties.stop()
        if self._leases is not None:
            await self._leases.stop()
        if self._going_on is not None:
            self._going_on.cancel()
            self._going_on = None
        self.remote.stop()
        self.backfilling.stop()

    async def position(self) -> int:
        """The newest position that is on disk."""
        return await self.outbox.newest()

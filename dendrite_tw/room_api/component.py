"""The room component: its parts, made and introduced."""

from __future__ import annotations

from ..cache import CacheBudget
from ..database.engines import Database
from ..database.migrate import migrate, steps_of
from ..database.outbox import Outbox
from ..matrix.keys import SigningKey
from ..user_api.api import UserAPI
from ..world import World
from .actions import Actions, to_the_end
from .directory import Directory
from .input import RoomWriter
from .queries import Queries
from .relations import Relations
from .room import Rooms
from .snapshots import Snapshots
from .store import EventStore, RoomEvents
from .tables.names import Names
from .viewing import Viewer


class RoomComponent:
    """Answers `RoomAPI`: each method is that of the part which carries it out."""

    def __init__(
        self,
        *,
        database: Database,
        users: UserAPI,
        world: World,
        budget: CacheBudget,
        server_name: str,
        key: SigningKey,
        default_room_version: str,
    ) -> None:
        self.database = database
        self.outbox = Outbox("room_api", database)
        names = Names()
        snapshots = Snapshots(budget)
        store = EventStore(database, budget)
        shown = RoomEvents(database, store)
        viewer = Viewer(database, names, snapshots, store)
        self.rooms = Rooms(database, snapshots, budget)
        self.writer = RoomWriter(
            database=database,
            outbox=self.outbox,
            names=names,
            rooms=self.rooms,
            store=store,
            clock=world.clock,
            random=world.random,
            server_name=server_name,
            key=key,
        )
        actions = Actions(
            database=database,
            names=names,
            rooms=self.rooms,
            writer=self.writer,
            store=store,
            users=users,
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
        )
        relations = Relations(
            database=database,
            names=names,
            rooms=self.rooms,
            store=store,
            shown=shown,
            viewer=viewer,
            queries=queries,
            users=users,
        )
        directory = Directory(
            database=database,
            rooms=self.rooms,
            actions=actions,
            viewer=viewer,
            clock=world.clock,
            server_name=server_name,
        )
        self.create_room = to_the_end(actions.create_room)
        self.send = to_the_end(actions.send)
        self.change_membership = to_the_end(actions.change_membership)
        self.forget = to_the_end(actions.forget)
        self.update_profile = to_the_end(actions.update_profile)
        self.resolve_alias = directory.resolve_alias
        self.aliases = directory.aliases
        self.create_alias = to_the_end(directory.create_alias)
        self.delete_alias = to_the_end(directory.delete_alias)
        self.published = directory.published
        self.set_published = to_the_end(directory.set_published)
        self.public_rooms = directory.public_rooms
        self.room_summary = directory.room_summary
        self.memberships = queries.memberships
        self.membership = queries.membership
        self.joined_users = queries.joined_users
        self.shares_room = queries.shares_room
        self.room_view = queries.room_view
        self.newest_positions = queries.newest_positions
        self.stripped_state = queries.stripped_state
        self.pdus = queries.pdus
        self.timeline = queries.timeline
        self.state_at = queries.state_at
        self.state_before = queries.state_before
        self.current_state = queries.current_state
        self.state_event = queries.state_event
        self.members = queries.members
        self.joined_members = queries.joined_members
        self.event = queries.event
        self.events = queries.events
        self.messages = queries.messages
        self.context = queries.context
        self.relations = relations.relations
        self.threads = relations.threads
        self.aggregations = relations.aggregations
        self.timestamp_to_event = queries.timestamp_to_event
        self.visible = queries.visible

    def prepare(self) -> None:
        """Bring the database up to date and take up its positions; before the reactor runs."""
        self.database.prepare(migrate, "room_api", steps_of("dendrite_tw.room_api"))
        self.database.prepare(self.outbox.create)

    async def start(self) -> None:
        """Nothing is consumed here; rooms are loaded when they are asked for."""

    async def stop(self) -> None:
        """Nothing is kept in memory that is not on disk."""

    async def position(self) -> int:
        """The newest position that is on disk."""
        return self.outbox.position

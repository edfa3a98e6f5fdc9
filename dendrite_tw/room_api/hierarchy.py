"""Spaces: the tree of rooms, what a room shows of itself to those outside, and rooms in common.

Client-Server API, "Spaces" and "Mutual Rooms".  The tree is walked depth
first; what remains to be walked is kept in memory for a while under the token
of the next page, so that each page costs only its own rooms.  Rooms that this
server is not in are described by others (`remote.spaces`); a page for which
too many of them would have to be asked ends before.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import msgspec
import orjson
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from ..database.engines import Database
from ..matrix.errors import forbidden, invalid_param, not_found
from ..matrix.identifiers import is_historical_user_id, is_room_id
from ..world import Clock, Random
from .actions import Actions
from .api import HierarchyRoom, PublicRoom
from .directory import Directory
from .memberships import Memberships
from .remote.spaces import SERVERS_ASKED, SPACE, SPACE_CHILD, Child, FarRoom, FarRooms, Later, Questions, child_of
from .room import Room, Rooms
from .servers import Servers
from .steps import is_local
from .store import EventStore
from .tables import names as name_table
from .tables import rooms as room_table
from .tables.names import Names

CREATE = ("m.room.create", "")
JOIN_RULES = ("m.room.join_rules", "")

PAGE_DEFAULT = 50
PAGE_LIMIT = 100
DEPTH_LIMIT = 50
CHILDREN_LIMIT = 1000
"""Children of one space that are walked and shown: the first of them."""

ROOMS_LIMIT = 10_000
"""Rooms of one walk."""

WALKS_LIMIT = 1000
WALK_MS = 10 * 60 * 1000
"""How many walks are remembered, and for how long."""

SERVER_CHILDREN = 200
"""Children of a space that another server is told of."""

ALLOWED_LIMIT = 20
"""Rooms whose members may join that are looked at."""

AT_ONCE = 20
"""Rooms that are described before the reactor may do something else."""

MUTUAL_PAGE = 100


class Stop(NamedTuple):
    """A room on the way, how deep it lies, and servers that may know it."""

    room_id: str
    level: int
    via: tuple[str, ...] = ()


@dataclass(frozen=True)
class Walk:
    """A walk that goes on: rooms still to be visited, the next one last, and those that were."""

    user_id: str
    room_id: str
    suggested_only: bool
    max_depth: int
    waiting: tuple[Stop, ...]
    visited: frozenset[str]
    expires: int = 0


class Hierarchy:
    """Answers the questions of `RoomAPI` about spaces and about rooms seen from outside."""

    def __init__(
        self,
        *,
        database: Database,
        names: Names,
        rooms: Rooms,
        store: EventStore,
        actions: Actions,
        memberships: Memberships,
        directory: Directory,
        far: FarRooms,
        servers: Servers,
        time: IReactorTime,
        clock: Clock,
        random: Random,
    ) -> None:
        self._database = database
        self._names = names
        self._rooms = rooms
        self._store = store
        self._actions = actions
        self._memberships = memberships
        self._directory = directory
        self._far = far
        self._servers = servers
        self._time = time
        self._clock = clock
        self._random = random
        self._walks: OrderedDict[str, Walk] = OrderedDict()

    # --- the tree ---

    async def hierarchy(
        self,
        user_id: str,
        room_id: str,
        suggested_only: bool,
        max_depth: int | None,
        limit: int | None,
        from_token: str | None,
    ) -> tuple[list[HierarchyRoom], str | None]:
        """A page of the tree below a room, as far as the user may see it, and the token of the next one.

        ``M_FORBIDDEN`` (403) where the room itself is not for them, ``M_INVALID_PARAM`` for limits that are
        none and tokens that are unknown or of another walk.
        """
        if (limit is not None and limit < 1) or (max_depth is not None and max_depth < 0):
            raise invalid_param("limit must be above zero, and max_depth not below.")
        depth = min(DEPTH_LIMIT if max_depth is None else max_depth, DEPTH_LIMIT)
        questions = Questions(self._clock)
        if await self._visit(user_id, Stop(room_id, 0), questions) is None:
            raise forbidden("You may not see this room.")
        begun = Walk(user_id, room_id, suggested_only, depth, (Stop(room_id, 0),), frozenset([room_id]))
        walk = begun if from_token is None else self._resumed(from_token, begun)
        found: list[HierarchyRoom] = []
        waiting, visited = list(walk.waiting), set(walk.visited)
        wanted = min(limit or PAGE_DEFAULT, PAGE_LIMIT)
        while waiting and len(found) < wanted:
            stop = waiting.pop()
            try:
                visit = await self._visit(user_id, stop, questions)
            except Later:
                waiting.append(stop)
                break
            if visit is None:
                continue
            children = [child for child in visit.children if child.suggested or not suggested_only]
            shown = [child.shown for child in children]
            found.append(HierarchyRoom(summary=visit.summary, children_state=shown))
            if stop.level < depth:
                fresh = [c for c in children if c.room_id not in visited and c.room_id not in visit.inaccessible]
                fresh = fresh[: ROOMS_LIMIT - len(visited)]
                visited.update(child.room_id for child in fresh)
                waiting += [Stop(child.room_id, stop.level + 1, child.via) for child in reversed(fresh)]
        if not waiting:
            return found, None
        return found, self._remembered(replace(walk, waiting=tuple(waiting), visited=frozenset(visited)))

    def _resumed(self, token: str, asked: Walk) -> Walk:
        walk = self._walks.get(token)
        if walk is None or walk.expires < self._clock.now_ms() or walk.user_id != asked.user_id:
            raise invalid_param("The token is unknown or has expired.")
        same = (walk.room_id, walk.suggested_only, walk.max_depth)
        if same != (asked.room_id, asked.suggested_only, asked.max_depth):
            raise invalid_param("room, suggested_only and max_depth must be those of the first page.")
        return walk

    def _remembered(self, walk: Walk) -> str:
        now = self._clock.now_ms()
        while self._walks and next(iter(self._walks.values())).expires < now:
            self._walks.popitem(last=False)
        if len(self._walks) >= WALKS_LIMIT:
            self._walks.popitem(last=False)
        token = self._random.token(24)
        self._walks[token] = replace(walk, expires=now + WALK_MS)
        return token

    async def _visit(self, user_id: str | None, stop: Stop, questions: Questions) -> FarRoom | None:
        """A room as far as a user may know of it, by what is here or by what others say; `None` where they may not.

        `Later` where too many others would have to be asked.
        """
        room = await self._rooms.find(stop.room_id) if is_room_id(stop.room_id) else None
        if room is not None and room.is_here:
            return await self._described(room, user_id)
        if not is_room_id(stop.room_id):
            return None
        far = await self._far.look(stop.room_id, stop.via, questions)
        if far is not None:
            return far if await self._may_see(far.summary, room, user_id) else None
        if room is not None and room.standing != room_table.ELSEWHERE:
            return await self._described(room, user_id)
        return None

    async def _described(self, room: Room, user_id: str | None) -> FarRoom | None:
        if not await self._accessible(room, user_id):
            return None
        children = await self._children(room)
        return FarRoom(summary=await self._directory.describe(room), children=tuple(children))

    async def _may_see(self, summary: PublicRoom, room: Room | None, user_id: str | None) -> bool:
        """Whether a user may be shown what another server says of a room that it lets this one know of."""
        if summary.world_readable or summary.join_rule in ("public", "knock", "knock_restricted"):
            return True
        if user_id is None:
            return False
        membership = await self._membership(room, user_id)
        if membership in ("join", "invite"):
            return True
        if summary.join_rule != "restricted":
            return False
        allow = [{"type": "m.room_membership", "room_id": one} for one in summary.allowed_room_ids or ()]
        return await self._memberships.in_allowed_room(allow[:ALLOWED_LIMIT], user_id)

    async def _membership(self, room: Room | None, user_id: str) -> str | None:
        """A user's membership, also in a room of which only that is known."""
        user_nid = await self._database.read(self._names.find, user_id) if room is not None else None
        if room is None or user_nid is None:
            return None
        row = await self._database.read(room_table.membership_in, user_nid, room.room_nid)
        return row.membership if row is not None else None

    async def _children(self, room: Room) -> list[Child]:
        """The valid children of a space, in their order; none of other rooms."""
        create = (await self._actions.state(room, CREATE))[CREATE]
        if create.content.get("type") != SPACE:
            return []
        slots = await self._database.read_long(name_table.slots_of_type_in, SPACE_CHILD, room.room_nid)
        nids = [room.head.state[slot] for slot in slots if slot in room.head.state]
        events = (await self._store.by_nid(nids)).values()
        found = [child_of(one.content, one.state_key or "", one.sender, one.origin_server_ts) for one in events]
        return sorted(filter(None, found), key=lambda child: child.order)[:CHILDREN_LIMIT]

    # --- for servers ---

    async def hierarchy_for_server(self, origin: str, room_id: str, suggested_only: bool) -> dict[str, Any]:
        """A room and its children as ``GET /hierarchy`` between servers has them, those that a server may know of.

        Children that this server knows nothing of are left out.  ``M_NOT_FOUND`` where the room is unknown here, or
        not for that server.
        """
        room = await self._known(room_id)
        if room is None or not await self._accessible_to_server(room, origin):
            raise not_found("There is no such room that your server may see.")
        children = [child for child in await self._children(room) if child.suggested or not suggested_only]
        found, inaccessible = [], []
        for index, child in enumerate(children[:SERVER_CHILDREN]):
            if index % AT_ONCE == AT_ONCE - 1:
                await deferLater(self._time, 0, lambda: None)
            other = await self._known(child.room_id)
            if other is None:
                continue
            if await self._accessible_to_server(other, origin):
                found.append(msgspec.to_builtins(await self._directory.describe(other)))
            else:
                inaccessible.append(other.room_id)
        state = [orjson.Fragment(child.shown) for child in children]
        return {
            "room": {**msgspec.to_builtins(await self._directory.describe(room)), "children_state": state},
            "children": found,
            "inaccessible_children": inaccessible,
        }

    async def _known(self, room_id: str) -> Room | None:
        """A room that this server is or was in."""
        room = await self._rooms.find(room_id) if is_room_id(room_id) else None
        return None if room is None or room.standing == room_table.ELSEWHERE else room

    async def _accessible_to_server(self, room: Room, server: str) -> bool:
        """Whether a user of a server may come to know what a room shows of itself."""
        summary = await self._directory.describe(room)
        if summary.world_readable or _may_ask_to_join(room, summary):
            return True
        if await self._servers.has(room.room_nid, server):
            return True
        if _is_restricted(room, summary):
            for room_id in (summary.allowed_room_ids or [])[:ALLOWED_LIMIT]:
                allowed = await self._known(room_id)
                if allowed is not None and await self._servers.has(allowed.room_nid, server):
                    return True
        return await self._is_invited(room, server)

    async def _is_invited(self, room: Room, server: str) -> bool:
        """Whether a user of a server is invited to a room."""
        rows = await self._database.read_long(room_table.member_slots, room.room_nid, f"%:{server}")
        return any(row.membership == "invite" and is_local(row.user_id, server) for row in rows)

    # --- from outside ---

    async def _accessible(self, room: Room, user_id: str | None) -> bool:
        """Whether a user (`None`: anybody) may know what a room shows of itself."""
        membership = await self._actions.membership(room, user_id) if user_id is not None else None
        if membership in ("join", "invite"):
            return True
        summary = await self._directory.describe(room)
        if summary.world_readable:
            return True
        if membership == "ban":
            return False
        if _may_ask_to_join(room, summary):
            return True
        if not _is_restricted(room, summary) or user_id is None:
            return False
        rules = (await self._actions.state(room, JOIN_RULES)).get(JOIN_RULES)
        return rules is not None and await self._memberships.in_allowed_room(rules.content.get("allow"), user_id)

    async def room_summary_for(
        self, room_id: str, user_id: str | None, via: list[str]
    ) -> tuple[PublicRoom, str | None]:
        """What a room shows to a user, or to anybody, and the user's membership; ``M_NOT_FOUND`` else.

        `via` may know a room that this server is not in; they are asked for users only.
        """
        questions = Questions(self._clock, SERVERS_ASKED if user_id is not None else 0)
        try:
            visit = await self._visit(user_id, Stop(room_id, 0, tuple(via)), questions)
        except Later:
            visit = None
        if visit is None:
            raise not_found("There is no such room that you may see.")
        room = await self._rooms.find(room_id)
        return visit.summary, await self._membership(room, user_id) if user_id is not None else None

    async def mutual_rooms(self, user_id: str, other: str, from_token: str | None) -> tuple[list[str], str | None, int]:
        """A page of the rooms to which both are joined, the token of the next one, and how many there are."""
        if not is_historical_user_id(other) or other == user_id:
            raise invalid_param("user_id must be the ID of another user.")
        if from_token is not None and not (from_token.isascii() and from_token.isdigit() and len(from_token) < 16):
            raise invalid_param("from is not a token of this list.")
        own, others = [await self._database.read(self._names.find, name) for name in (user_id, other)]
        if own is None or others is None:
            return [], None, 0
        rows = await self._database.read(room_table.mutual_rooms, own, others, int(from_token or 0), MUTUAL_PAGE + 1)
        page = rows[:MUTUAL_PAGE]
        following = str(page[-1].room_nid) if len(rows) > MUTUAL_PAGE else None
        count = await self._database.read(room_table.mutual_count, own, others)
        return [row.room_id for row in page], following, count


def _may_ask_to_join(room: Room, summary: PublicRoom) -> bool:
    """Whether everybody may join, or knock."""
    if summary.join_rule == "knock":
        return room.version.knocking
    if summary.join_rule == "knock_restricted":
        return room.version.knock_restricted
    return summary.join_rule == "public"


def _is_restricted(room: Room, summary: PublicRoom) -> bool:
    """Whether members of other rooms may join."""
    if summary.join_rule == "restricted":
        return room.version.restricted_joins
    return summary.join_rule == "knock_restricted" and room.version.knock_restricted

"""What may be asked of the room component: questions, actions, and what it tells.

Callers hold a `RoomAPI` and cannot tell whether it answers from this process.
Questions (methods that only read) may be repeated; actions that must not be
done twice carry the caller's transaction.  Any call may raise `MatrixError`.

Every accepted event is told on the stream ``OutputRoomEvent`` as an
`OutputRoomEvent`, in the order of its *position*, which grows by one writer's
commits and is the room part of a sync token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import msgspec
from msgspec.structs import force_setattr as set_field

from ..links.routing import routed
from ..matrix.events import shared

OUTPUT_ROOM_EVENT = "OutputRoomEvent"


class RoomEvent(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An event as components that serve clients need it.

    ``client`` is the event in the client format as a JSON object without
    ``unsigned`` and ``room_id``, ready to be spliced.  ``position`` is 0 for an
    event that was never part of the live stream, negative for history fetched
    later.  ``replaces`` and ``prev_content`` (JSON) tell what a state event
    took the place of.  ``gap``: events before this one are missing here or came later, as history, so a
    timeline begins with it.  ``transaction_id`` belongs to the device
    ``transaction_device`` of the sender alone.  ``redacted_by`` is the client
    form of the redaction, where there is one, with its event ID.
    """

    event_id: str
    room_id: str
    sender: str
    type: str
    state_key: str | None
    origin_server_ts: int
    position: int
    depth: int
    client: bytes
    membership: str | None = None
    has_url: bool = False
    rel_type: str | None = None
    relates_to: str | None = None
    replaces: str | None = None
    prev_content: bytes | None = None
    prev_sender: str | None = None
    transaction_id: str | None = None
    transaction_device: str | None = None
    redacted_by: bytes | None = None
    gap: bool = False

    def sparing(self) -> RoomEvent:
        """The same, for one who keeps it: what comes out of a queue has a copy of every text to itself."""
        sender = shared(self.sender)
        set_field(self, "sender", sender)
        set_field(self, "room_id", shared(self.room_id))
        set_field(self, "type", shared(self.type))
        if self.state_key is not None:
            set_field(self, "state_key", sender if self.state_key == sender else shared(self.state_key))
        if self.membership is not None:
            set_field(self, "membership", shared(self.membership))
        return self


class OutputRoomEvent(msgspec.Struct, frozen=True, kw_only=True):
    """The message of the stream ``OutputRoomEvent``.

    ``local_members`` tells how many users of this server were joined after the
    event, ``joined_members`` how many of all servers.  ``state_changed`` says
    whether the event became current state.  ``also_replaced`` lists further
    state that changed with it (after a resolution): the new current events, each
    with the position that it has of its own, which may be older or 0;
    ``also_removed`` the places (type and state key) that are now empty.
    ``rewrites_state``: the state of the room was replaced as a whole, as by a
    join through another server, or much of it at once; what changed is not listed
    but for members who are gone (in ``also_removed``, the first of them), and who
    keeps the state loads `RoomAPI.room_view` anew.  ``redacts`` is the event whose content went
    with this one.  ``distribute``: this server sends the event to the others in the room.
    """

    event: RoomEvent
    state_changed: bool
    joined_members: int
    local_members: int
    room_version: str
    redacts: str | None = None
    also_replaced: list[RoomEvent] = []
    also_removed: list[tuple[str, str]] = []
    rewrites_state: bool = False
    distribute: bool = False


PURGE_ROOM = "purge_room"
"""The header ``output_room_event_type`` of a message that is no `OutputRoomEvent` but a `RoomPurged`."""


class RoomPurged(msgspec.Struct, frozen=True, kw_only=True):
    """The message of the stream ``OutputRoomEvent`` with the type `PURGE_ROOM`: forget all about the room."""

    room_id: str
    position: int


STATE_COMPLETE = "state_complete"
"""As `PURGE_ROOM`, for a message that is a `StateComplete`."""


class StateComplete(msgspec.Struct, frozen=True, kw_only=True):
    """The message of the stream ``OutputRoomEvent`` with the type `STATE_COMPLETE`: the members that were missing
    since the room was joined through another server are here, so who keeps the state loads it anew."""

    room_id: str
    position: int


class Membership(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A user's standing in a room: the membership event that is current."""

    room_id: str
    user_id: str
    membership: str
    event_id: str
    sender: str
    position: int
    forgotten: bool = False


class RoomView(msgspec.Struct, frozen=True, kw_only=True):
    """A room as sync keeps it: current state and the newest part of the timeline.

    ``state`` holds every current state event at ``position``; ``timeline`` the newest live
    events up to ``position``, oldest first; ``complete`` says that nothing is before them.
    ``partial``: of the state, members are still missing.  ``rewritten`` is the newest position at
    which the state was replaced as a whole, 0 where it never was.
    """

    room_id: str
    room_version: str
    position: int
    state: list[RoomEvent]
    timeline: list[RoomEvent]
    complete: bool
    partial: bool = False
    rewritten: int = 0


class Dressing(msgspec.Struct, frozen=True, kw_only=True):
    """What events of a room are shown with: the user's membership, and by event the JSON of ``m.relations``."""

    membership: Membership | None
    bundles: dict[str, bytes]


class LiveEvents(msgspec.Struct, frozen=True, kw_only=True):
    """Live events of a room, oldest first; ``more`` where older ones remain of those that were asked for.

    ``cut``: what is before them is missing here, so they are not asked for beyond that.
    """

    events: list[RoomEvent]
    more: bool
    cut: bool = False


class ChangedSlot(msgspec.Struct, frozen=True, kw_only=True):
    """A place in the state of a room where two states differ: what stands there in each, `None` for nothing."""

    type: str
    state_key: str
    before: RoomEvent | None
    now: RoomEvent | None


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """Events in the order asked for; ``end`` is the token to go on from, `None` at the end of what may be seen."""

    events: list[RoomEvent]
    start: str
    end: str | None
    state: list[RoomEvent] = []


class Context(msgspec.Struct, frozen=True, kw_only=True):
    """An event with its surroundings, and the state after the last of them."""

    event: RoomEvent
    events_before: list[RoomEvent]
    events_after: list[RoomEvent]
    start: str
    end: str
    state: list[RoomEvent]


class EventFilter(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a room event filter that a database can apply; `None` means any."""

    types: list[str] | None = None
    not_types: list[str] = []
    senders: list[str] | None = None
    not_senders: list[str] = []
    contains_url: bool | None = None
    rel_types: list[str] | None = None
    related_by_senders: list[str] | None = None


class NewRoom(msgspec.Struct, frozen=True, kw_only=True):
    """What ``createRoom`` asks for, checked for shape only.

    ``creator_profile`` holds ``displayname`` and ``avatar_url`` where set.
    """

    creator: str
    room_version: str | None = None
    preset: str | None = None
    visibility: str = "private"
    room_alias_name: str | None = None
    name: str | None = None
    topic: str | None = None
    invite: list[str] = []
    invite_3pid: list[dict[str, Any]] = []
    creation_content: dict[str, Any] = {}
    initial_state: list[dict[str, Any]] = []
    power_level_content_override: dict[str, Any] | None = None
    is_direct: bool = False
    creator_profile: dict[str, str] = {}


class NewEvent(msgspec.Struct, frozen=True, kw_only=True):
    """An event that a local user wants to send.

    ``device_id`` and ``transaction_id`` name the client's transaction: sent
    again, it yields the first event's ID.  ``timestamp`` is for application
    services; ``is_guest`` matters where the event is the sender's own join.
    """

    room_id: str
    sender: str
    type: str
    content: dict[str, Any]
    state_key: str | None = None
    redacts: str | None = None
    device_id: str | None = None
    transaction_id: str | None = None
    timestamp: int | None = None
    is_guest: bool = False


class MembershipChange(msgspec.Struct, frozen=True, kw_only=True):
    """A change of one user's membership by a local user.

    ``action`` is one of ``join``, ``leave``, ``invite``, ``kick``, ``ban``,
    ``unban``, ``knock``.  ``profile`` is that of the target where it is local.
    """

    room_id: str
    sender: str
    target: str
    action: str
    reason: str | None = None
    content: dict[str, Any] = {}
    profile: dict[str, str] = {}
    via: list[str] = []
    third_party_signed: dict[str, Any] | None = None
    is_guest: bool = False


class TakenMembership(msgspec.Struct, frozen=True, kw_only=True):
    """A member event that this server took into a room for another one, and what that is told of the room.

    For a join: the state before it and what authorises both, by event IDs, and if members were omitted the servers
    with members.  For a knock: ``stripped``, whole events that show what room it is.
    """

    event: bytes
    state: list[str] = []
    auth_chain: list[str] = []
    members_omitted: bool = False
    servers_in_room: list[str] = []
    stripped: list[bytes] = []


class Alias(msgspec.Struct, frozen=True):
    """A room alias, the room it names and servers that know the room."""

    alias: str
    room_id: str
    servers: list[str]
    creator: str = ""


class PublicRoom(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A row of the room directory, as ``/publicRooms`` and the hierarchy show it."""

    room_id: str
    num_joined_members: int
    world_readable: bool
    guest_can_join: bool
    name: str | None = None
    topic: str | None = None
    canonical_alias: str | None = None
    avatar_url: str | None = None
    join_rule: str | None = None
    room_type: str | None = None
    room_version: str | None = None
    encryption: str | None = None
    allowed_room_ids: list[str] | None = None


class HierarchyRoom(msgspec.Struct, frozen=True, kw_only=True):
    """A room of a space's tree; ``children_state`` holds its child events, stripped, as JSON."""

    summary: PublicRoom
    children_state: list[bytes]


class FoundUser(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A row of the user directory."""

    user_id: str
    display_name: str | None = None
    avatar_url: str | None = None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a user reported: an event, a room (no event) or a user; with what the room shows of itself."""

    report_id: int
    received_ts: int
    reporter: str
    reason: str | None
    score: int | None
    room_id: str | None
    event_id: str | None
    user_id: str | None
    sender: str | None
    name: str | None
    canonical_alias: str | None


class ReportDetails(msgspec.Struct, frozen=True, kw_only=True):
    """A report and the event that it is about, as JSON in the client format."""

    report: Report
    event: bytes | None


class RoomAPI(Protocol):
    """Everything that other components may ask of rooms.

    What goes through a room's writer, or is answered from its memory, is asked of the process that has the room; what
    the database says, of any.
    """

    # --- actions ---

    async def create_room(self, room: NewRoom) -> str:
        """Make a room with its first events; returns its ID."""

    @routed(share="event.room_id")
    async def send(self, event: NewEvent) -> str:
        """Send a message, state or redaction event; returns its ID."""

    @routed(share="change.room_id")
    async def change_membership(self, change: MembershipChange) -> str:
        """Carry out `change`; returns the room's ID."""

    @routed(share="room_id", repeat=True)
    async def forget(self, user_id: str, room_id: str) -> None:
        """Hide a room that the user has left."""

    @routed(share="room_id")
    async def upgrade(self, user_id: str, room_id: str, new_version: str, additional_creators: list[str] | None) -> str:
        """Replace the room by one of `new_version`; returns the new room's ID."""

    async def update_profile(self, user_id: str, profile: dict[str, str]) -> None:
        """Show a user's new ``displayname`` and ``avatar_url`` in the member events of all joined rooms."""

    @routed(share="room_id", repeat=True)
    async def renew_member(self, user_id: str, room_id: str, profile: dict[str, str]) -> None:
        """As `update_profile`, in one room; does nothing where the user is not joined."""

    @routed(share="room_id")
    async def create_alias(self, alias: str, room_id: str, creator: str) -> None: ...

    async def delete_alias(self, alias: str, user_id: str, is_admin: bool) -> None: ...

    @routed(share="room_id", repeat=True)
    async def set_published(self, room_id: str, user_id: str, visible: bool, is_admin: bool) -> None: ...

    @routed(share="room_id")
    async def report(
        self, user_id: str, room_id: str, event_id: str | None, reason: str | None, score: int | None
    ) -> None:
        """Take a report of a room, or of an event in a room that the user is joined to."""

    async def report_user(self, user_id: str, reported: str, reason: str | None) -> None:
        """Take a report of the user `reported`."""

    async def delete_report(self, report_id: int) -> None: ...

    @routed(share="room_id")
    async def evacuate_room(self, room_id: str) -> list[str]:
        """Make all users of this server leave a room; returns those who left."""

    async def evacuate_user(self, user_id: str) -> list[str]:
        """Make a user of this server leave all rooms; returns the rooms."""

    @routed(share="room_id")
    async def purge_room(self, room_id: str) -> None:
        """Delete a room and all about it; others are told by a `RoomPurged`."""

    # --- for other servers ---

    @routed(share="room_id", repeat=True)
    async def make_membership(
        self, kind: str, room_id: str, user_id: str, origin: str, versions: list[str]
    ) -> dict[str, Any]:
        """The answer to ``make_join``, ``make_knock`` or ``make_leave`` of `origin` (`kind` without ``make_``).

        `versions` are the room versions that the other server knows.
        """

    @routed(share="room_id", repeat=True)
    async def take_membership(
        self, kind: str, room_id: str, event_id: str, origin: str, pdu: bytes, omit_members: bool = False
    ) -> TakenMembership:
        """Take the event of ``send_join``, ``send_knock`` or ``send_leave``; repeating it is harmless."""

    @routed(share="room_id", repeat=True)
    async def receive_invite(
        self, room_id: str, event_id: str, origin: str, body: dict[str, Any], old: bool = False
    ) -> bytes:
        """Take an invite of one of our users, the body of ``/invite`` of version 2 (`old`: 1); returns the event
        with our signature."""

    @routed(share="room_id")
    async def exchange_third_party_invite(self, room_id: str, origin: str, body: dict[str, Any]) -> None:
        """Make the invite that somebody's signed third-party identifier entitles them to."""

    async def third_party_bound(self, body: dict[str, Any]) -> None:
        """Take up the invites that waited for a third-party identifier which is now one of our users'."""

    @routed(share="room_id", repeat=True)
    async def take_up_third_party_invite(self, room_id: str, sender: str, user_id: str, signed: dict[str, Any]) -> None:
        """Have one of our users invited, whom `sender` invited by a third-party identifier: `signed` says that it is
        theirs."""

    # --- questions ---

    @routed(repeat=True)
    async def position(self) -> int:
        """The newest position that is on disk."""

    @routed(repeat=True)
    async def resolve_alias(self, alias: str) -> Alias: ...

    @routed(repeat=True)
    async def aliases(self, room_id: str, user_id: str) -> list[str]:
        """The local aliases of a room, for one who may know them."""

    @routed(repeat=True)
    async def published(self, room_id: str) -> bool: ...

    @routed(repeat=True)
    async def public_rooms(
        self, limit: int, since: str | None, search: str | None, room_types: list[str | None] | None
    ) -> tuple[list[PublicRoom], str | None, str | None, int]:
        """A page of the directory: rows, the next and the previous page's token, and how many there are in all."""

    @routed(repeat=True)
    async def room_version(self, room_id: str) -> str | None:
        """The version of a room, which never changes; `None` where this server does not know the room."""

    @routed(share="room_id", repeat=True)
    async def room_summary(self, room_id: str) -> PublicRoom | None: ...

    @routed(share="room_id", repeat=True)
    async def room_summary_for(
        self, room_id: str, user_id: str | None, via: list[str]
    ) -> tuple[PublicRoom, str | None]:
        """What a room shows to a user (`None`: to anybody), and the user's membership; ``M_NOT_FOUND`` else.

        `via` are servers that may know a room which this one is not in.
        """

    @routed(share="room_id", repeat=True)
    async def hierarchy(
        self,
        user_id: str,
        room_id: str,
        suggested_only: bool,
        max_depth: int | None,
        limit: int | None,
        from_token: str | None,
    ) -> tuple[list[HierarchyRoom], str | None]:
        """A page of the tree of rooms below a space, and the token of the next page."""

    @routed(repeat=True)
    async def mutual_rooms(self, user_id: str, other: str, from_token: str | None) -> tuple[list[str], str | None, int]:
        """A page of the rooms to which both are joined, the token of the next one, and how many there are."""

    @routed(repeat=True)
    async def search_users(self, user_id: str, term: str, limit: int) -> tuple[list[FoundUser], bool]:
        """Users whom `user_id` may know of, the best matches first; and whether there are more of them."""

    @routed(repeat=True)
    async def empty_rooms(self) -> list[str]:
        """Rooms in which no user of this server is joined."""

    @routed(repeat=True)
    async def reports(
        self, kind: str, reporter: str | None, room_id: str | None, start: int, limit: int, newest_first: bool
    ) -> tuple[list[Report], int]:
        """A page of the reports of a kind (``event``, ``room``, ``user``, or empty for all); how many there are."""

    @routed(repeat=True)
    async def report_details(self, report_id: int) -> ReportDetails: ...

    @routed(repeat=True)
    async def memberships(self, user_id: str) -> list[Membership]:
        """Every room in which the user has a membership, forgotten ones too."""

    @routed(repeat=True)
    async def membership(self, room_id: str, user_id: str) -> Membership | None: ...

    @routed(repeat=True)
    async def local_memberships(self, room_id: str) -> list[Membership]:
        """The memberships of this server's users in a room."""

    @routed(repeat=True)
    async def joined_users(self, room_id: str) -> list[str]:
        """The joined users of a room, local and remote."""

    @routed(repeat=True)
    async def shares_room(self, user_id: str, others: list[str]) -> list[str]:
        """Those of `others` who are joined to a room that the user is joined to."""

    @routed(repeat=True)
    async def room_view(self, room_id: str, timeline_limit: int) -> RoomView: ...

    @routed(repeat=True)
    async def room_views(self, room_ids: Sequence[str], timeline_limit: int) -> list[RoomView]:
        """As `room_view` for each of these rooms (50 at the most), without those that are not here."""

    @routed(repeat=True)
    async def rooms_joined(self, user_ids: Sequence[str]) -> dict[str, list[str]]:
        """The rooms that each of these users, local or remote, is joined to."""

    @routed(repeat=True)
    async def newest_positions(self, room_ids: Sequence[str]) -> dict[str, int]:
        """The newest position of each of these rooms: of a live event, or of a state that replaced all of it."""

    @routed(repeat=True)
    async def newest_events(self, room_ids: Sequence[str]) -> dict[str, list[str]]:
        """The events at the ends of the history of each of these rooms, those that the next event will refer to."""

    @routed(repeat=True)
    async def stripped_state(self, room_id: str, user_id: str) -> list[bytes]:
        """What one who is invited or knocks is shown of a room: stripped state events as JSON, theirs among them."""

    @routed(repeat=True)
    async def pdus(self, event_ids: Sequence[str]) -> dict[str, bytes]:
        """Stored events among these IDs as they travel between servers; no visibility applied."""

    @routed(repeat=True)
    async def timeline(self, room_id: str, after: int, upto: int, limit: int, filter: EventFilter | None) -> LiveEvents:
        """The newest `limit` live events in (after, upto], none of them from before a gap."""

    @routed(repeat=True)
    async def state_at(self, room_id: str, position: int) -> list[RoomEvent]:
        """The state of the room after the last live event up to `position`."""

    @routed(repeat=True)
    async def state_changes(self, room_id: str, after: int, upto: int) -> list[ChangedSlot]:
        """What differs between the states after the last live events up to `after` and up to `upto`."""

    @routed(repeat=True)
    async def state_before(self, event_id: str) -> list[RoomEvent]:
        """The state that the event was accepted on."""

    @routed(repeat=True)
    async def current_state(self, room_id: str, user_id: str) -> list[RoomEvent]:
        """The state that the user may see: current, or as it was when they left."""

    @routed(repeat=True)
    async def state_event(self, room_id: str, user_id: str, type: str, state_key: str) -> RoomEvent: ...

    @routed(share="room_id", repeat=True)
    async def members(
        self, room_id: str, user_id: str, at: str | None, membership: str | None, not_membership: str | None
    ) -> list[RoomEvent]: ...

    @routed(share="room_id", repeat=True)
    async def joined_members(self, room_id: str, user_id: str) -> list[RoomEvent]:
        """Member events of those joined, for one who is joined too."""

    @routed(repeat=True)
    async def event(self, room_id: str, user_id: str, event_id: str) -> RoomEvent:
        """An event that the user may see."""

    @routed(repeat=True)
    async def events(self, event_ids: list[str]) -> list[RoomEvent]:
        """Stored events among these IDs; no visibility applied."""

    @routed(share="room_id", repeat=True)
    async def messages(
        self,
        room_id: str,
        user_id: str,
        direction: str,
        from_token: str | None,
        to_token: str | None,
        limit: int,
        filter: EventFilter | None,
        lazy_load_members: bool,
    ) -> Page: ...

    @routed(share="room_id", repeat=True)
    async def context(
        self, room_id: str, user_id: str, event_id: str, limit: int, filter: EventFilter | None, lazy_load_members: bool
    ) -> Context: ...

    @routed(share="room_id", repeat=True)
    async def relations(
        self,
        room_id: str,
        user_id: str,
        event_id: str,
        rel_type: str | None,
        event_type: str | None,
        direction: str,
        from_token: str | None,
        to_token: str | None,
        limit: int,
        recurse: bool,
    ) -> Page: ...

    @routed(share="room_id", repeat=True)
    async def threads(self, room_id: str, user_id: str, include: str, from_token: str | None, limit: int) -> Page: ...

    @routed(repeat=True)
    async def aggregations(self, room_id: str, event_ids: Sequence[str], user_id: str) -> dict[str, bytes]:
        """For each event that has any, the JSON of ``unsigned.m.relations`` as the user sees it."""

    @routed(repeat=True)
    async def aggregations_of(self, events: dict[str, list[str]], user_id: str) -> dict[str, bytes]:
        """As `aggregations` for the events of several rooms: room to event IDs."""

    @routed(repeat=True)
    async def dressing(self, room_id: str, event_ids: Sequence[str], user_id: str) -> Dressing:
        """What events of a room are shown with to a user."""

    @routed(share="room_id", repeat=True)
    async def timestamp_to_event(self, room_id: str, user_id: str, ts: int, direction: str) -> tuple[str, int]:
        """The nearest event in a direction: its ID and time in milliseconds."""

    # --- servers ---

    @routed(share="room_id", repeat=True)
    async def receive(self, origin: str, room_id: str, pdus: list[bytes]) -> dict[str, str]:
        """Take events that the server `origin` sent, in order, after fetching what they refer to.

        Returns, by event ID, why some were not accepted.  Repeating it is harmless.  ``M_NOT_FOUND`` for a room that
        is not known here.
        """

    @routed(share="room_id", repeat=True)
    async def check_server(self, room_id: str, server: str) -> None:
        """Raise ``M_FORBIDDEN`` for a server that the room's access control list keeps out.

        ``M_NOT_FOUND`` for a room that is not known here.
        """

    @routed(share="room_id", repeat=True)
    async def room_servers(self, room_id: str) -> list[str]:
        """The servers with joined users in a room, this one too; from memory.  ``M_NOT_FOUND`` as above."""

    @routed(repeat=True)
    async def servers_of_user(self, user_id: str) -> list[str]:
        """The servers that share a joined room with a user."""

    @routed(repeat=True)
    async def events_for_server(self, origin: str, event_ids: list[str]) -> dict[str, bytes]:
        """The PDUs of events of any rooms, by ID; absent are those that are not here or not for the server `origin`.

        What it may know of and not read comes redacted, here as from the other questions of this kind.
        """

    @routed(share="room_id", repeat=True)
    async def state_ids_for_server(self, origin: str, room_id: str, event_id: str) -> tuple[list[str], list[str]]:
        """The state before an event and its auth chain, by ID.

        ``M_FORBIDDEN`` for a server that never was in the room, or has left before; ``M_NOT_FOUND`` where the event,
        or the whole state before it, is not known here.
        """

    @routed(share="room_id", repeat=True)
    async def event_auth_for_server(self, origin: str, room_id: str, event_id: str) -> list[str]:
        """The events that authorise an event, near and far, by ID.  Errors as above."""

    @routed(share="room_id", repeat=True)
    async def missing_events_for_server(
        self, origin: str, room_id: str, earliest: list[str], latest: list[str], limit: int, min_depth: int
    ) -> list[bytes]:
        """Events before `latest` and not before `earliest`, the nearest ones, oldest first."""

    @routed(share="room_id", repeat=True)
    async def backfill_for_server(self, origin: str, room_id: str, event_ids: list[str], limit: int) -> list[bytes]:
        """Some events and those before them, the latest first."""

    @routed(share="room_id", repeat=True)
    async def timestamp_to_event_for_server(
        self, origin: str, room_id: str, ts: int, direction: str
    ) -> tuple[str, int]:
        """The nearest event in a direction (``f`` or ``b``): its ID and time in milliseconds.  ``M_NOT_FOUND``."""

    @routed(share="room_id", repeat=True)
    async def hierarchy_for_server(self, origin: str, room_id: str, suggested_only: bool) -> dict[str, Any]:
        """What ``GET /hierarchy`` between servers answers about a space.  ``M_NOT_FOUND``."""

    @routed(repeat=True)
    async def visible(self, user_id: str, events: Sequence[RoomEvent]) -> list[RoomEvent]:
        """Those of `events` (of any rooms) that history visibility lets the user see, in the same order."""


def timeline_token(depth: int, position: int) -> str:
    """A token of ``/messages``: the place just after the event at this depth and position."""
    return f"t{depth}_{position}"

"""What changed for a user between two tokens: the model that every view of sync shows.

The model names rooms and gives events, receipts and counts; how they are laid
out in an answer is the view's matter.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec
from twisted.logger import Logger

from ..matrix.errors import MatrixError
from ..room_api.api import Membership, RoomAPI
from ..user_api.api import AccountDataChange, KeyAPI, Receipt, ToDeviceMessage, Unread, UserAPI
from .api import Presence
from .counting import Counting
from .device_lists import DeviceListReader, DeviceLists
from .joined import JoinedReader, JoinedRoom
from .left import LeftReader, LeftRoom
from .notifier import Notifier
from .presence import PresenceBoard
from .receipts import ReceiptLog
from .request import SyncRequest
from .tokens import SyncToken
from .typing import TypingBoard

log = Logger()

TO_DEVICE_LIMIT = 100
ROOMS_BETWEEN_PAUSES = 20
LOADED_AT_ONCE = 10

ARRIVALS_SHOWN = 50
"""Users newly met up to whom also those are told of who were never online."""


class RoomExtras(msgspec.Struct):
    """What a joined room has to tell besides its events."""

    account_data: list[AccountDataChange] = []
    receipts: list[Receipt] = []
    typing: bytes | None = None
    unread: Unread | None = None

    def __bool__(self) -> bool:
        return bool(self.account_data or self.receipts or self.typing is not None or self.unread is not None)


class StrippedRoom(msgspec.Struct, frozen=True):
    """A room that the user is invited to or knocks at, as far as it is shown."""

    room_id: str
    state: list[bytes]


class SyncChanges(msgspec.Struct):
    """Everything that one answer tells; ``upto`` is the token that it leads to."""

    upto: SyncToken
    joined: list[JoinedRoom] = []
    extras: dict[str, RoomExtras] = {}
    invited: list[StrippedRoom] = []
    knocked: list[StrippedRoom] = []
    left: list[LeftRoom] = []
    account_data: list[AccountDataChange] = []
    to_device: list[ToDeviceMessage] = []
    device_lists: DeviceLists = DeviceLists()
    presence: list[Presence] = []


class SyncModel:
    """Finds out what changed for a user; all state of users and rooms is held by others."""

    def __init__(
        self,
        rooms: RoomAPI,
        users: UserAPI,
        keys: KeyAPI,
        notifier: Notifier,
        joined: JoinedReader,
        receipts: ReceiptLog,
        typing: TypingBoard,
        presence: PresenceBoard,
        counting: Counting,
        pause: Callable[[], Awaitable[None]],
        loaded_at_once: int = 0,
    ) -> None:
        """``loaded_at_once``: how many rooms are asked for together where whoever has them is far away, 0 for one by
        one."""
        self._rooms = rooms
        self._users = users
        self._keys = keys
        self._notifier = notifier
        self._joined = joined
        self._left = LeftReader(rooms)
        self._device_lists = DeviceListReader(rooms, keys)
        self._receipts = receipts
        self._typing = typing
        self._presence = presence
        self._counting = counting
        self._pause = pause
        self._loaded_at_once = loaded_at_once

    async def collect(self, request: SyncRequest, since: SyncToken | None, upto: SyncToken) -> SyncChanges:
        """What changed in (since, upto], or everything where `since` is `None`.

        The answer may lead less far than `upto` where more messages wait for the device
        than go into one.
        """
        changes = SyncChanges(upto=upto)
        joined, others = self._rooms_concerned(request, since)
        await self._to_device(request, since, changes)
        await self._account_data(request, since, changes)
        extras_of = request.stream.joined if since is None or request.full_state else None
        await self._ephemeral(request, since, changes, extras_of)
        for room_id in changes.extras:
            member = request.stream.memberships.get(room_id)
            if member is not None:
                joined.setdefault(room_id, member)
        await self._read_joined(request, since, changes, joined)
        await self._read_others(request, since, changes, others)
        if since is not None:
            await self._catch_up(request, changes)
        await self._unread(request, since, changes)
        if since is not None:
            await self._read_device_lists(request, since, changes)
        await self._read_presence(request, since, changes)
        return changes

    async def device_lists(self, request: SyncRequest, since: SyncToken, upto: SyncToken) -> DeviceLists:
        """The device lists of (since, upto] alone."""
        changes = SyncChanges(upto=upto)
        joined, others = self._rooms_concerned(request, since)
        await self._read_joined(request, since, changes, joined)
        await self._read_others(request, since, changes, [m for m in others if m.membership in ("leave", "ban")])
        await self._read_device_lists(request, since, changes)
        return changes.device_lists

    # --- rooms ---

    def _rooms_concerned(
        self, request: SyncRequest, since: SyncToken | None
    ) -> tuple[dict[str, Membership], list[Membership]]:
        """The joined rooms to look at, and the memberships of other kinds to tell of, as they are now."""
        stream, allowed = request.stream, request.filter
        if since is None:
            room_ids = list(reversed(stream.rooms))
        else:
            room_ids = stream.rooms_after(since.room)
        joined: dict[str, Membership] = {}
        others: list[Membership] = []
        for room_id in room_ids:
            member = stream.memberships[room_id]
            if not allowed.allows_room(room_id):
                continue
            if member.membership == "join":
                joined[room_id] = member
            elif member.membership in ("invite", "knock") or since is not None or allowed.include_leave:
                others.append(member)
        if request.full_state:
            joined.update((r, stream.memberships[r]) for r in stream.joined if allowed.allows_room(r))
            if allowed.include_leave:
                known = {member.room_id for member in others}
                left = [m for m in stream.memberships.values() if m.membership in ("leave", "ban")]
                others += [m for m in left if m.room_id not in known and allowed.allows_room(m.room_id)]
        return joined, others

    async def _read_joined(
        self, request: SyncRequest, since: SyncToken | None, changes: SyncChanges, members: dict[str, Membership]
    ) -> None:
        at_once, listed = self._loaded_at_once, list(members.values())
        for number, member in enumerate(listed, 1):
            if at_once and number % at_once == 1 and len(listed) > 1:
                await self._joined.prepare(listed[number - 1 : number - 1 + at_once])
            if member.membership != "join":
                continue
            try:
                room = await self._joined.read(request, member, since, changes.upto)
                if room is not None:
                    changes.joined.append(room)
            except MatrixError as error:
                if error.status != 404:
                    raise
                log.warn("{room} is being deleted and left out of a sync", room=member.room_id)
            if number % ROOMS_BETWEEN_PAUSES == 0:
                await self._pause()

    async def _read_others(
        self, request: SyncRequest, since: SyncToken | None, changes: SyncChanges, others: list[Membership]
    ) -> None:
        for member in others:
            if member.membership in ("invite", "knock"):
                if member.membership == "invite" and member.sender in request.stream.ignored:
                    continue
                state = await self._rooms.stripped_state(member.room_id, request.user_id)
                section = changes.invited if member.membership == "invite" else changes.knocked
                section.append(StrippedRoom(member.room_id, state))
                continue
            start = None if request.full_state else since
            room = await self._left.read(request, member, start, str(since or changes.upto))
            if room is not None:
                changes.left.append(room)

    # --- what is not an event of a room ---

    async def acknowledge(self, request: SyncRequest) -> None:
        """The device has what it was told up to its token: messages up to there are deleted.

        The user component is asked for nothing where there can be none.
        """
        if request.filter.lazy_load_members:
            self._joined.acknowledge(request)
        device_id, upto = request.caller.device_id, request.acknowledged.user
        if device_id is None or upto == 0:
            return
        mark = request.stream.device(device_id)
        if mark.newest > mark.deleted and upto > mark.deleted:
            await self._keys.delete_to_device(request.user_id, device_id, upto)
            mark.deleted = upto

    async def _to_device(self, request: SyncRequest, since: SyncToken | None, changes: SyncChanges) -> None:
        device_id = request.caller.device_id
        if device_id is None:
            return
        mark = request.stream.device(device_id)
        after = since.user if since is not None else 0
        if since is not None and after >= request.stream.user_from and mark.newest <= after:
            return
        messages = await self._keys.to_device_since(
            request.user_id, device_id, after, changes.upto.user, TO_DEVICE_LIMIT
        )
        if messages:
            mark.newest = max(mark.newest, messages[-1].position)
        if len(messages) >= TO_DEVICE_LIMIT:
            changes.upto = changes.upto._replace(user=messages[-1].position)
        changes.to_device = messages

    async def _account_data(self, request: SyncRequest, since: SyncToken | None, changes: SyncChanges) -> None:
        stream = request.stream
        after = since.user if since is not None else 0
        if since is not None and after >= stream.user_from and stream.account_data <= after:
            return
        for change in await self._users.account_data_since(request.user_id, after, changes.upto.user):
            if not change.room_id:
                if request.filter.account_data.check(change.type, request.user_id):
                    changes.account_data.append(change)
            elif self._wants_extra(request, change.room_id) and request.filter.room_account_data.check(
                change.type, request.user_id, change.room_id
            ):
                self._extras(changes, change.room_id).account_data.append(change)

    def _wants_extra(self, request: SyncRequest, room_id: str) -> bool:
        member = request.stream.memberships.get(room_id)
        return member is not None and member.membership == "join" and request.filter.allows_room(room_id)

    def _extras(self, changes: SyncChanges, room_id: str) -> RoomExtras:
        extras = changes.extras.get(room_id)
        if extras is None:
            extras = changes.extras[room_id] = RoomExtras()
        return extras

    async def _ephemeral(
        self, request: SyncRequest, since: SyncToken | None, changes: SyncChanges, room_ids: list[str] | None
    ) -> None:
        """Receipts and typing, of all joined rooms or of those in which something changed."""
        stream, wanted = request.stream, request.filter.ephemeral
        if wanted.accepts_nothing:
            return
        start = since or SyncToken()
        if wanted.check_type("m.receipt"):
            if since is None or start.user < stream.user_from:
                rooms = stream.joined
            else:
                rooms = later(stream.receipts, start.user)
            rooms = [r for r in rooms if self._wants_extra(request, r) and wanted.check_room(r)]
            if rooms:
                found = await self._receipts.since(rooms, start.user, changes.upto.user)
                for room_id, receipts in found.items():
                    self._extras(changes, room_id).receipts = receipts
        if wanted.check_type("m.typing"):
            after = start.typing
            if since is None or after < stream.typing_from:
                rooms = stream.joined
            else:
                rooms = later(stream.typing, after)
            for room_id in rooms:
                event = self._typing.since(room_id, after)
                if event is not None and self._wants_extra(request, room_id) and wanted.check_room(room_id):
                    self._extras(changes, room_id).typing = event

    async def _catch_up(self, request: SyncRequest, changes: SyncChanges) -> None:
        """All account data and receipts of rooms that are new to the client: there may be some from before."""
        new = {room.room_id for room in changes.joined if room.newly_joined}
        if not new:
            return
        wanted = request.filter.room_account_data
        for change in await self._users.account_data_since(request.user_id, 0, changes.upto.user):
            if change.room_id in new and wanted.check(change.type, request.user_id, change.room_id):
                known = self._extras(changes, change.room_id).account_data
                if change not in known:
                    known.append(change)
        wanted = request.filter.ephemeral
        rooms = [room_id for room_id in new if wanted.check_room(room_id)]
        if rooms and not wanted.accepts_nothing and wanted.check_type("m.receipt"):
            for room_id, receipts in (await self._receipts.since(rooms, 0, changes.upto.user)).items():
                self._extras(changes, room_id).receipts = receipts

    async def _unread(self, request: SyncRequest, since: SyncToken | None, changes: SyncChanges) -> None:
        """The unread counts of the rooms in which they may have changed."""
        stream = request.stream
        after = since.user if since is not None else 0
        wanted = {room.room_id for room in changes.joined if since is None or room.newly_joined or room.timeline.events}
        wanted.update(room_id for room_id in later(stream.unread, after) if self._wants_extra(request, room_id))
        for room_id, extras in changes.extras.items():
            if has_own(request, extras.receipts):
                wanted.add(room_id)
        if since is not None and after < stream.user_from and not wants_receipts(request):
            receipts = await self._receipts.since(stream.joined, after, changes.upto.user)
            wanted.update(
                r for r, of_room in receipts.items() if has_own(request, of_room) and self._wants_extra(request, r)
            )
        if not wanted:
            return
        counts = await self._counting.unread(request.user_id, list(wanted), changes.upto.room)
        known = {room.room_id for room in changes.joined}
        for room_id in wanted:
            member = stream.memberships.get(room_id)
            if member is None or member.membership != "join":
                continue
            self._extras(changes, room_id).unread = counts.get(room_id) or Unread(room_id=room_id)
            if room_id not in known:
                room = await self._joined.read(request, member, since, changes.upto)
                if room is not None:
                    changes.joined.append(room)

    async def _read_device_lists(self, request: SyncRequest, since: SyncToken, changes: SyncChanges) -> None:
        arrived: set[str] = set()
        departed: set[str] = set()
        invited: set[str] = set()
        for room in changes.joined:
            arrived.update(room.arrived)
            departed.update(room.departed)
            invited.update(room.invited)
        for left in changes.left:
            if left.was_joined:
                departed.update(await self._rooms.joined_users(left.room_id))
        keys = self._notifier.key_changes_concern(request.stream, since)
        if keys or arrived or departed or invited:
            changes.device_lists = await self._device_lists.read(
                request.user_id, since, changes.upto, keys, arrived, departed, invited
            )

    async def _read_presence(self, request: SyncRequest, since: SyncToken | None, changes: SyncChanges) -> None:
        """The presence that changed, and that of users with whom a room is newly shared."""
        wanted = request.filter.presence
        start = since.presence if since is not None else 0
        arrived = {user for room in changes.joined for user in room.arrived} if since is not None else set()
        unchanged = request.stream.newest_presence <= start >= request.stream.presence_from
        if wanted.accepts_nothing or (unchanged and not arrived):
            return
        found = {presence.user_id: presence for presence in self._presence.since(start, changes.upto.presence)}
        few = len(arrived) <= ARRIVALS_SHOWN
        for user in arrived:
            known = self._presence.newly_shared(user) if few else self._presence.get(user)
            if known is not None:
                found[user] = known
        news = [presence for presence in found.values() if wanted.check("m.presence", presence.user_id)]
        others = [presence.user_id for presence in news if presence.user_id != request.user_id]
        shared = set(await self._rooms.shares_room(request.user_id, others)) if others else set()
        shared.add(request.user_id)
        changes.presence = [presence for presence in news if presence.user_id in shared]


def wants_receipts(request: SyncRequest) -> bool:
    wanted = request.filter.ephemeral
    return not wanted.accepts_nothing and wanted.check_type("m.receipt")


def has_own(request: SyncRequest, receipts: list[Receipt]) -> bool:
    """Whether the user has read further, with which unread counts change."""
    return any(receipt.user_id == request.user_id for receipt in receipts)


def later(positions: dict[str, int], after: int) -> list[str]:
    """The keys whose positions are beyond `after`, where the newest were put in last."""
    found = []
    for key in reversed(positions):
        if positions[key] <= after:
            break
        found.append(key)
    return found

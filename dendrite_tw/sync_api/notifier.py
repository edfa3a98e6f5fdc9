"""Whom a change concerns: the users who sync now, what changed for each, and waking them.

Each active user has a `UserStream`: the position at which each of their rooms
last changed, and the same for what is theirs alone.  Whether there is anything
to tell after a token is then a comparison of numbers.  A room's listeners are
the streams of its joined users; an event touches these and no others.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from ..database.engines import Unavailable
from ..room_api.api import Membership, OutputRoomEvent, RoomAPI, RoomEvent
from ..user_api.api import UserAPI
from .positions import Heard, with_timeout
from .rooms import MEMBER
from .splice import previous_membership
from .tokens import SyncToken

STREAMS_KEPT = 100_000
IDLE_SECONDS = 600.0
SWEEP_SECONDS = 60.0
WAITERS_OF_A_USER = 100
DEVICES_KEPT = 200
CATCH_UP_SECONDS = 10.0


def put_last(positions: dict[str, int], key: str, position: int) -> None:
    """Set a position and make its key the last one, so that the newest are found first from behind."""
    positions.pop(key, None)
    positions[key] = position


class DeviceMark:
    """What a stream knows of the messages to one device: the newest's position, and up to where they are deleted."""

    __slots__ = ("deleted", "newest")

    def __init__(self, newest: int) -> None:
        self.newest = newest
        self.deleted = -1


class UserStream:
    """What changed for one user, and their waiting requests.

    Positions of rooms are complete, however old a token; what else changed is known
    after ``user_from``, ``typing_from`` and ``presence_from`` only.
    """

    def __init__(self, user_id: str, heard: SyncToken) -> None:
        self.user_id = user_id
        self.user_from = heard.user
        self.typing_from = heard.typing
        self.presence_from = heard.presence
        self.tracked_from = 0
        self.memberships: dict[str, Membership] = {}
        self.joined_from: dict[str, int] = {}
        self.rooms: dict[str, int] = {}
        self.account_data = 0
        self.receipts: dict[str, int] = {}
        self.unread: dict[str, int] = {}
        self.devices: dict[str, DeviceMark] = {}
        self.key_changes = 0
        self.typing: dict[str, int] = {}
        self.newest_room = 0
        self.newest_user = 0
        self.newest_typing = 0
        self.newest_presence = 0
        self.ignored: frozenset[str] = frozenset()
        self.ignored_heard = False
        self.loading: list[Deferred[None]] | None = []
        self.last_used = 0.0
        self._waiters: list[Deferred[bool]] = []

    # --- what changed ---

    def changed(self, since: SyncToken) -> bool:
        """Whether anything may have changed after `since`; `False` is certain."""
        return (
            self.newest_room > since.room
            or self.newest_user > since.user
            or self.newest_typing > since.typing
            or self.newest_presence > since.presence
            or since.user < self.user_from
            or since.typing < self.typing_from
            or since.presence < self.presence_from
        )

    def rooms_after(self, position: int) -> list[str]:
        """The rooms that changed after `position`, the newest first."""
        found = []
        for room_id in reversed(self.rooms):
            if self.rooms[room_id] <= position:
                break
            found.append(room_id)
        return found

    def touch_room(self, room_id: str, position: int) -> None:
        put_last(self.rooms, room_id, position)
        self.newest_room = position

    def touch_user(self, position: int) -> None:
        self.newest_user = max(self.newest_user, position)

    def device(self, device_id: str) -> DeviceMark:
        """The device's mark; a new one says that there may be messages, for an older one may have made way."""
        mark = self.devices.get(device_id)
        if mark is None:
            if len(self.devices) >= DEVICES_KEPT:
                del self.devices[next(iter(self.devices))]
            mark = self.devices[device_id] = DeviceMark(self.newest_user)
        return mark

    @property
    def joined(self) -> list[str]:
        return [room_id for room_id, member in self.memberships.items() if member.membership == "join"]

    # --- waiting ---

    async def wait(self, time: IReactorTime, seconds: float) -> bool:
        """Until something changes, or `seconds` are over; `False` where too many others of the user wait."""
        waiter: Deferred[bool] = Deferred(self._forget)
        self._waiters.append(waiter)
        if len(self._waiters) > WAITERS_OF_A_USER:
            self._waiters.pop(0).callback(False)
        return await with_timeout(time, waiter, seconds, lambda: self._give_up(waiter))

    def _forget(self, waiter: Deferred[bool]) -> None:
        if waiter in self._waiters:
            self._waiters.remove(waiter)

    def _give_up(self, waiter: Deferred[bool]) -> None:
        self._forget(waiter)
        waiter.callback(True)

    @property
    def waiting(self) -> int:
        return len(self._waiters)

    def wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.callback(True)


class Notifier:
    """The streams of the users who sync, and who listens to which room."""

    def __init__(self, rooms: RoomAPI, users: UserAPI, heard: Heard, time: IReactorTime) -> None:
        self._rooms = rooms
        self._users = users
        self._heard = heard
        self._time = time
        self._streams: dict[str, UserStream] = {}
        self._listeners: dict[str, dict[UserStream, None]] = {}
        self._woken: dict[UserStream, None] = {}
        self._keys_pending: list[int] = []
        self._flush: IDelayedCall | None = None
        self._sweep: IDelayedCall | None = None
        self.stopped = False

    # --- streams ---

    def active(self, user_id: str) -> UserStream | None:
        """The user's stream, if they have one, for the feed; it may still be loading."""
        return self._streams.get(user_id)

    def listeners(self, room_id: str) -> Iterable[UserStream]:
        return self._listeners.get(room_id, ())

    def all(self) -> list[UserStream]:
        return list(self._streams.values())

    @property
    def streams(self) -> int:
        return len(self._streams)

    @property
    def waiting(self) -> int:
        """How many requests wait for something to happen."""
        return sum(stream.waiting for stream in self._streams.values())

    async def open(self, user_id: str) -> UserStream:
        """The stream of a user who syncs, made at the first time."""
        while True:
            stream = self._streams.get(user_id)
            if stream is None:
                await self._make(user_id)
                continue
            if stream.loading is not None:
                waiter: Deferred[None] = Deferred(stream.loading.remove)
                stream.loading.append(waiter)
                await waiter
                continue
            stream.last_used = self._time.seconds()
            return stream

    async def _make(self, user_id: str) -> None:
        self._make_way()
        stream = self._streams[user_id] = UserStream(user_id, self._heard.token())
        try:
            await self._load(stream)
        except BaseException:
            self.close(stream)
            raise
        finally:
            waiters, stream.loading = stream.loading or [], None
            for waiter in waiters:
                waiter.callback(None)

    async def _load(self, stream: UserStream) -> None:
        """Fill a stream with what is on disk; the feed writes to it from the start."""
        members = await self._rooms.memberships(stream.user_id)
        for member in members:
            known = stream.memberships.get(member.room_id)
            if known is None or known.position < member.position:
                stream.memberships[member.room_id] = member
        for room_id in stream.joined:
            self._listeners.setdefault(room_id, {})[stream] = None
        changed = {room_id: member.position for room_id, member in stream.memberships.items()}
        for room_id, position in (await self._rooms.newest_positions(stream.joined)).items():
            changed[room_id] = max(position, changed.get(room_id, 0))
        for room_id, position in stream.rooms.items():
            changed[room_id] = max(position, changed.get(room_id, 0))
        stream.rooms = dict(sorted(changed.items(), key=lambda item: item[1]))
        newest = max(changed.values(), default=0)
        stream.newest_room = max(stream.newest_room, newest)
        stream.tracked_from = max(self._heard.room, newest)
        ignored = await self._users.ignored_users(stream.user_id)
        if not stream.ignored_heard:
            stream.ignored = ignored
        if not await self._heard.reach(newest, 0, CATCH_UP_SECONDS):
            raise Unavailable("events are not being passed on")

    def close(self, stream: UserStream) -> None:
        """Forget a stream; the user's next sync makes a new one."""
        if self._streams.get(stream.user_id) is stream:
            del self._streams[stream.user_id]
        for room_id in stream.memberships:
            self._deafen(room_id, stream)
        self._woken.pop(stream, None)
        stream.wake()

    def _deafen(self, room_id: str, stream: UserStream) -> None:
        listeners = self._listeners.get(room_id)
        if listeners is not None and listeners.pop(stream, False) is None and not listeners:
            del self._listeners[room_id]

    def _make_way(self) -> None:
        if len(self._streams) >= STREAMS_KEPT:
            idle = min(self._streams.values(), key=lambda stream: (stream.waiting > 0, stream.last_used))
            self.close(idle)

    def start(self) -> None:
        self._sweep = self._time.callLater(SWEEP_SECONDS, self._close_idle)

    def release(self) -> None:
        """Nobody waits here any longer: those who do are answered with what there is."""
        self.stopped = True
        for stream in list(self._streams.values()):
            stream.wake()

    def stop(self) -> None:
        self.stopped = True
        for call in (self._sweep, self._flush):
            if call is not None and call.active():
                call.cancel()
        self.clear()

    def clear(self) -> None:
        """Forget all streams: at the end, or when the feed may have missed something."""
        for stream in list(self._streams.values()):
            self.close(stream)

    def _close_idle(self) -> None:
        before = self._time.seconds() - IDLE_SECONDS
        for stream in list(self._streams.values()):
            if stream.last_used < before and not stream.waiting and stream.loading is None:
                self.close(stream)
        self._sweep = self._time.callLater(SWEEP_SECONDS, self._close_idle)

    # --- what the feed tells ---

    def room_event(self, output: OutputRoomEvent) -> None:
        """Note an event for those who are in its room, and for those whose membership it changes."""
        event = output.event
        position = event.position
        for stream in self._listeners.get(event.room_id, ()):
            stream.touch_room(event.room_id, position)
            self._woken[stream] = None
        if event.type == MEMBER and output.state_changed:
            self._membership(event, position)
        for other in output.also_replaced:
            if other.type == MEMBER:
                self._membership(other, position)
        for type_, user_id in output.also_removed:
            if type_ == MEMBER and user_id in self._streams:
                self._removed(self._streams[user_id], event.room_id, position)
        self.schedule()

    def room_rewritten(self, room_id: str, position: int, members: Iterable[Membership]) -> None:
        """The state of a room was replaced as a whole; `members` are the memberships of this server's users after it.

        What is newer than `position` among them is told by events that are still to be heard.
        """
        known = {member.user_id: member for member in members}
        for stream in list(self._streams.values()):
            member, before = known.get(stream.user_id), stream.memberships.get(room_id)
            if member is None and before is not None and before.position <= position:
                self._removed(stream, room_id, position)
            elif member is not None and member.position <= position and member != before:
                self._set_membership(stream, member, before is not None and before.membership == "join", position)
            if stream in self._listeners.get(room_id, ()):
                stream.touch_room(room_id, position)
                self._woken[stream] = None
        self.schedule()

    def _removed(self, stream: UserStream, room_id: str, position: int) -> None:
        """There is no member event of the user in the room any more: they are not in it."""
        before = stream.memberships.get(room_id)
        if before is not None and before.membership not in ("leave", "ban"):
            gone = msgspec.structs.replace(before, membership="leave", position=position)
            self._set_membership(stream, gone, before.membership == "join", position)

    def _membership(self, event: RoomEvent, position: int) -> None:
        stream = self._streams.get(event.state_key or "")
        if stream is None:
            return
        room_id, membership = event.room_id, event.membership or "leave"
        before = stream.memberships.get(room_id)
        if before is not None and before.position > position:
            return
        if before is None or before.position == position:
            was_joined = previous_membership(event) == "join"
        else:
            was_joined = before.membership == "join"
        member = Membership(
            room_id=room_id,
            user_id=stream.user_id,
            membership=membership,
            event_id=event.event_id,
            sender=event.sender,
            position=position,
        )
        self._set_membership(stream, member, was_joined, position)

    def _set_membership(self, stream: UserStream, member: Membership, was_joined: bool, position: int) -> None:
        """Take up a user's membership, of which they are to be told at `position`."""
        room_id = member.room_id
        stream.memberships[room_id] = member
        if member.membership == "join":
            if not was_joined:
                stream.joined_from[room_id] = member.position
            self._listeners.setdefault(room_id, {})[stream] = None
        else:
            stream.joined_from.pop(room_id, None)
            self._deafen(room_id, stream)
        stream.touch_room(room_id, position)
        self._woken[stream] = None

    def room_purged(self, room_id: str, position: int) -> None:
        """The room was deleted: those who were still in it are out of it now."""
        for stream in list(self._listeners.get(room_id, ())):
            self._removed(stream, room_id, position)
        self.schedule()

    def typing(self, room_id: str, position: int) -> None:
        for stream in self._listeners.get(room_id, ()):
            put_last(stream.typing, room_id, position)
            stream.newest_typing = max(stream.newest_typing, position)
            self._woken[stream] = None
        self.schedule()

    def presence(self, streams: Iterable[UserStream], position: int) -> None:
        for stream in streams:
            stream.newest_presence = max(stream.newest_presence, position)
            self._woken[stream] = None
        self.schedule()

    def moments_renewed(self, heard: SyncToken) -> None:
        """What changed of typing and presence is known from here on only: all look for themselves."""
        for stream in self._streams.values():
            stream.typing_from = max(stream.typing_from, heard.typing)
            stream.presence_from = max(stream.presence_from, heard.presence)
            self._woken[stream] = None
        self.schedule()

    def wake(self, stream: UserStream, position: int) -> None:
        """Something of the user's own changed at `position`."""
        stream.touch_user(position)
        self._woken[stream] = None

    def keys_pending(self, position: int) -> None:
        """It is not known yet whom the change of keys at `position` concerns: anybody may be."""
        self._keys_pending.append(position)

    def keys_told(self, position: int) -> None:
        """Those whom the change of keys at `position` concerns have been told."""
        self._keys_pending.remove(position)

    def may_have_changed(self, stream: UserStream, since: SyncToken) -> bool:
        """Whether there may be anything for the user after `since`; `False` is certain."""
        return stream.changed(since) or (bool(self._keys_pending) and max(self._keys_pending) > since.user)

    def key_changes_concern(self, stream: UserStream, since: SyncToken) -> bool:
        """Whether keys of users whom the user shares rooms with may have changed after `since`."""
        return (
            stream.key_changes > since.user
            or since.user < stream.user_from
            or (bool(self._keys_pending) and max(self._keys_pending) > since.user)
        )

    def schedule(self) -> None:
        """Wake those concerned once what is being heard now has all been heard."""
        if self._woken and (self._flush is None or not self._flush.active()):
            self._flush = self._time.callLater(0, self._wake_all)

    def _wake_all(self) -> None:
        woken, self._woken = self._woken, {}
        for stream in woken:
            stream.wake()

"""What the rest of the server tells sync: the streams, decoded and passed on.

Each process hears every stream from now on, without a memory of its own: what
was said before is on disk and is asked for.  The user component speaks on
several streams, and one may run ahead of another; its messages are taken in
the order of their positions, for a token may tell of one only when all before
it have been heard.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from ..room_api.api import (
    OUTPUT_ROOM_EVENT,
    PURGE_ROOM,
    STATE_COMPLETE,
    Membership,
    OutputRoomEvent,
    RoomAPI,
    RoomPurged,
    StateComplete,
)
from ..user_api.api import (
    OUTPUT_CLIENT_DATA,
    OUTPUT_KEY_CHANGE_EVENT,
    OUTPUT_NOTIFICATION_DATA,
    OUTPUT_RECEIPT_EVENT,
    OUTPUT_SEND_TO_DEVICE_EVENT,
    AccountDataChange,
    KeyChange,
    Receipt,
    ToDeviceMessage,
    UnreadChange,
    UserAPI,
)
from .api import OUTPUT_PRESENCE_EVENT, OUTPUT_TYPING_EVENT, Presence, Typing
from .notifier import Notifier, UserStream, put_last
from .positions import Heard
from .presence import PresenceBoard
from .receipts import PRIVATE, ReceiptLog
from .rooms import RoomCache
from .tokens import SyncToken
from .typing import TypingBoard

log = Logger()

WATCH_SECONDS = 5.0
"""How often it is made sure that what is on disk was heard of too."""

RECHECK_SECONDS = 1.0
"""How soon again where something was not; so sync goes on, if slowly, while there is no queue."""

IGNORED_USERS = "m.ignored_user_list"

PREVIOUS = "Outbox-Previous"
"""The header of a message that names the position before its own."""

HELD_LIMIT = 10_000
"""Messages that may have run ahead at a time; further ones are looked up on disk."""


class Message(Protocol):
    """A message of the queue, as far as it is looked at here."""

    payload: bytes
    stream_seq: int

    @property
    def headers(self) -> Mapping[str, str]: ...


class Queue(Protocol):
    """The part of the queue's client that sync uses."""

    def listen(self, stream: str, handler: Callable[[Any], None]) -> Any:
        """Call `handler` with each new message of `stream`; what is returned can ``stop()``."""

    async def publish(self, stream: str, payload: bytes) -> Any: ...


class Feed:
    """Listens to all streams and keeps the model up to date."""

    def __init__(
        self,
        rooms: RoomAPI,
        users: UserAPI,
        heard: Heard,
        cache: RoomCache,
        notifier: Notifier,
        receipts: ReceiptLog,
        typing: TypingBoard,
        presence: PresenceBoard,
        time: IReactorTime,
    ) -> None:
        self._rooms = rooms
        self._users = users
        self._heard = heard
        self._cache = cache
        self._notifier = notifier
        self._receipts = receipts
        self._typing = typing
        self._presence = presence
        self._time = time
        self._listening: list[Any] = []
        self._held: dict[int, tuple[int, Callable[[], None]]] = {}
        self._behind: list[Callable[[], None]] | None = None
        """What was heard of rooms while the memberships of a rewritten one are being read."""
        self._overflowed = False
        self._watch: IDelayedCall | None = None
        self._on_disk = SyncToken()

    async def start(self, queue: Queue) -> None:
        """Listen, and take up the positions that are on disk already."""
        self._listen(queue, OUTPUT_ROOM_EVENT, OutputRoomEvent, self.room_event, other=self._not_an_event)
        self._listen(queue, OUTPUT_CLIENT_DATA, AccountDataChange, self.account_data, in_order=True)
        self._listen(queue, OUTPUT_RECEIPT_EVENT, Receipt, self.receipt, in_order=True)
        self._listen(queue, OUTPUT_SEND_TO_DEVICE_EVENT, ToDeviceMessage, self.to_device, in_order=True)
        self._listen(queue, OUTPUT_KEY_CHANGE_EVENT, KeyChange, self.key_change, in_order=True)
        self._listen(queue, OUTPUT_NOTIFICATION_DATA, UnreadChange, self.unread, in_order=True)
        self._listen(queue, OUTPUT_TYPING_EVENT, Typing, self._typing.hear, with_sequence=True)
        self._listen(queue, OUTPUT_PRESENCE_EVENT, Presence, self.presence, with_sequence=True)
        await self.resume()
        self._watch_again()

    async def resume(self) -> None:
        """Forget what may be out of date and go on from the positions on disk.

        At the start, and again when something was missed.
        """
        user, room = await self._users.position(), await self._rooms.position()
        self._heard.user = max(self._heard.user, user)
        self._heard.room = max(self._heard.room, room)
        self._receipts.start(user)
        self._cache.clear()
        self._notifier.clear()  # last: whoever wakes begins anew from the positions above
        self._take_held()
        self._heard.advance()

    def _watch_again(self) -> None:
        all_heard = self._heard.has(self._on_disk.room, self._on_disk.user)
        self._watch = self._time.callLater(WATCH_SECONDS if all_heard else RECHECK_SECONDS, self._start_look)

    def _start_look(self) -> None:
        looking = Deferred.fromCoroutine(self.look())
        looking.addErrback(lambda failure: log.failure("the positions on disk cannot be read", failure=failure))
        looking.addBoth(lambda _: self._watch_again() if self._listening else None)

    async def look(self) -> None:
        """Begin anew where what was on disk at the last look has still not been heard: then it was missed."""
        missed = not self._heard.has(self._on_disk.room, self._on_disk.user)
        self._on_disk = SyncToken(await self._rooms.position(), await self._users.position())
        if missed:
            log.warn("messages of the queue were missed; sync begins anew from what is on disk")
            await self.resume()

    def stop(self) -> None:
        if self._watch is not None and self._watch.active():
            self._watch.cancel()
        for listening in self._listening:
            listening.stop()
        self._listening.clear()
        self._typing.stop()

    def _listen(
        self,
        queue: Queue,
        stream: str,
        struct: Any,
        handler: Callable[..., None],
        with_sequence: bool = False,
        in_order: bool = False,
        other: Callable[[Message], bool] = lambda message: False,
    ) -> None:
        decoder = msgspec.msgpack.Decoder(struct)

        def hear(message: Message) -> None:
            try:
                value = decoder.decode(message.payload)
            except msgspec.MsgspecError:
                if other(message):
                    return
                log.error("a message of {stream} cannot be read and is left out", stream=stream)
                return
            if with_sequence:
                handler(value, message.stream_seq)
            elif in_order:
                self._take_in_order(value.position, message.headers.get(PREVIOUS, ""), lambda: handler(value))
            else:
                handler(value)
            self._heard.typing = self._typing.position
            self._heard.advance()

        self._listening.append(queue.listen(stream, hear))

    # --- order between streams ---

    def _take_in_order(self, position: int, previous: str, take: Callable[[], None]) -> None:
        """Take in a message of the user component once all before it have been; `look` helps if one never comes."""
        before = int(previous) if previous.isdecimal() else 0
        if before <= self._heard.user:
            take()
            self._take_held()
        elif len(self._held) < HELD_LIMIT:
            self._held[position] = before, take

    def _take_held(self) -> None:
        while self._held:
            position = min(self._held)
            before, take = self._held[position]
            if before > self._heard.user:
                return
            del self._held[position]
            take()

    # --- rooms ---

    def room_event(self, output: OutputRoomEvent) -> None:
        position = output.event.position
        if output.rewrites_state:
            self._state_replaced(output.event.room_id, position)
            return
        if self._behind is not None:
            self._hold_behind(lambda: self.room_event(output))
            return
        if position <= self._heard.room:
            return
        self._cache.apply(output)
        self._heard.room = position
        self._notifier.room_event(output)

    def _hold_behind(self, take: Callable[[], None]) -> None:
        """Take something in once the room before it has been; what is too much is looked up on disk."""
        assert self._behind is not None
        if len(self._behind) < HELD_LIMIT:
            self._behind.append(take)
        else:
            self._overflowed = True

    def _state_replaced(self, room_id: str, position: int) -> None:
        """Take in that all of a room's state was replaced, or completed: the room is loaded anew."""
        if self._behind is not None:
            self._hold_behind(lambda: self._state_replaced(room_id, position))
        elif position > self._heard.room:
            self._behind = []
            reading = Deferred.fromCoroutine(self._read_members(room_id, position))
            reading.addErrback(lambda failure: log.failure("a room could not be looked at anew", failure=failure))

    async def _read_members(self, room_id: str, position: int) -> None:
        """Ask who of this server's users is in a room now, and go on from there."""
        members: list[Membership] | None = None
        try:
            members = await self._rooms.local_memberships(room_id)
        finally:
            if position > self._heard.room:
                self._cache.rewritten(room_id, position)
                self._heard.room = position
                if members is None:
                    self._notifier.clear()
                else:
                    self._notifier.room_rewritten(room_id, position, members)
            if self._overflowed:
                self._overflowed, self._behind = False, []
                await self.resume()
            behind, self._behind = self._behind or [], None
            for take in behind:
                take()
            self._heard.advance()

    def _not_an_event(self, message: Message) -> bool:
        """Take a message of the stream of events that tells something else: a room was deleted, or completed."""
        kind = message.headers.get("output_room_event_type")
        if kind == STATE_COMPLETE:
            completed = msgspec.msgpack.decode(message.payload, type=StateComplete)
            self._state_replaced(completed.room_id, completed.position)
        elif kind == PURGE_ROOM:
            self._room_purged(msgspec.msgpack.decode(message.payload, type=RoomPurged))
        return kind in (STATE_COMPLETE, PURGE_ROOM)

    def _room_purged(self, purged: RoomPurged) -> None:
        if self._behind is not None:
            self._hold_behind(lambda: self._room_purged(purged))
            return
        self._cache.forget(purged.room_id)
        if purged.position > self._heard.room:
            self._heard.room = purged.position
            self._notifier.room_purged(purged.room_id, purged.position)
        self._heard.advance()

    # --- users ---

    def _is_known(self, position: int) -> bool:
        """Whether this was heard before, or was on disk when this process began to listen.

        After a crash the outbox repeats its last rows; taken in again they would move marks back.
        """
        return position <= self._heard.user

    def _user_position(self, position: int) -> None:
        self._heard.user = max(self._heard.user, position)

    def account_data(self, change: AccountDataChange) -> None:
        if self._is_known(change.position):
            return
        stream = self._notifier.active(change.user_id)
        if stream is not None:
            stream.account_data = change.position
            if change.type == IGNORED_USERS and not change.room_id:
                stream.ignored = ignored_users(change.content)
                stream.ignored_heard = True
            self._notifier.wake(stream, change.position)
        self._user_position(change.position)
        self._notifier.schedule()

    def receipt(self, receipt: Receipt) -> None:
        if self._is_known(receipt.position):
            return
        self._receipts.hear(receipt)
        position = receipt.position
        private = receipt.receipt_type == PRIVATE
        for stream in self._notifier.listeners(receipt.room_id):
            if private and stream.user_id != receipt.user_id:
                continue
            put_last(stream.receipts, receipt.room_id, position)
            if stream.user_id == receipt.user_id:
                put_last(stream.unread, receipt.room_id, position)
            self._notifier.wake(stream, position)
        self._user_position(position)
        self._notifier.schedule()

    def to_device(self, message: ToDeviceMessage) -> None:
        if self._is_known(message.position):
            return
        stream = self._notifier.active(message.user_id)
        if stream is not None:
            mark = stream.device(message.device_id)
            mark.newest = max(mark.newest, message.position)
            self._notifier.wake(stream, message.position)
        self._user_position(message.position)
        self._notifier.schedule()

    def unread(self, change: UnreadChange) -> None:
        if self._is_known(change.position):
            return
        stream = self._notifier.active(change.user_id)
        if stream is not None:
            put_last(stream.unread, change.room_id, change.position)
            self._notifier.wake(stream, change.position)
        self._user_position(change.position)
        self._notifier.schedule()

    def key_change(self, change: KeyChange) -> None:
        """Wake all who share a room with the user; for one who does not sync here that has to be asked."""
        if self._is_known(change.position):
            return
        if change.only_for:
            signer = self._notifier.active(change.only_for)
            if signer is not None:
                signer.key_changes = max(signer.key_changes, change.position)
                self._notifier.wake(signer, change.position)
            self._user_position(change.position)
            self._notifier.schedule()
            return
        stream = self._notifier.active(change.user_id)
        if stream is not None and stream.loading is None:
            self._keys_changed(change, stream.joined)
            self._user_position(change.position)
            self._notifier.schedule()
            return
        self._notifier.keys_pending(change.position)
        self._user_position(change.position)
        asking = Deferred.fromCoroutine(self._ask_and_tell(change))
        asking.addErrback(lambda failure: log.failure("device list changes could not be told", failure=failure))

    async def _ask_and_tell(self, change: KeyChange) -> None:
        try:
            rooms = [member.room_id for member in await memberships_joined(self._rooms, change.user_id)]
            self._keys_changed(change, rooms)
        finally:
            self._notifier.keys_told(change.position)
            self._notifier.schedule()

    def _keys_changed(self, change: KeyChange, room_ids: list[str]) -> None:
        streams: dict[UserStream, None] = {}
        own = self._notifier.active(change.user_id)
        if own is not None:
            streams[own] = None
        for room_id in room_ids:
            streams.update(dict.fromkeys(self._notifier.listeners(room_id)))
        for stream in streams:
            stream.key_changes = max(stream.key_changes, change.position)
            self._notifier.wake(stream, change.position)

    # --- presence ---

    def presence(self, presence: Presence, sequence: int) -> None:
        if not self._presence.hear(presence, sequence):
            return
        asking = Deferred.fromCoroutine(self._show_presence(presence, self._presence.position))
        asking.addErrback(lambda failure: log.failure("presence could not be told", failure=failure))

    async def _show_presence(self, presence: Presence, position: int) -> None:
        streams: dict[UserStream, None] = {}
        own = self._notifier.active(presence.user_id)
        if own is not None:
            streams[own] = None
        for member in await memberships_joined(self._rooms, presence.user_id):
            streams.update(dict.fromkeys(self._notifier.listeners(member.room_id)))
        self._heard.presence = max(self._heard.presence, position)
        self._notifier.presence(streams, position)


async def memberships_joined(rooms: RoomAPI, user_id: str) -> list[Any]:
    """The memberships of a user, local or remote, that are joins."""
    return [member for member in await rooms.memberships(user_id) if member.membership == "join"]


def ignored_users(content: bytes) -> frozenset[str]:
    """The users that an ``m.ignored_user_list`` names."""
    try:
        ignored = msgspec.json.decode(content).get("ignored_users")
    except (msgspec.DecodeError, AttributeError):
        return frozenset()
    return frozenset(ignored) if isinstance(ignored, dict) else frozenset()

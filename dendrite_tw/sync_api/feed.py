"""What the rest of the server tells sync: the streams, decoded and passed on.

Each process hears every stream from now on, without a memory of its own: what
was said before is on disk and is asked for.  The user component speaks on
several streams, and one may run ahead of another; its messages are taken in
the order of their positions, for a token may tell of one only when all before
it have been heard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..database.engines import Unavailable
from ..matrix.errors import MatrixError
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
from .moments import Moments
from .notifier import Notifier, UserStream, put_last
from .positions import Heard
from .receipts import PRIVATE, ReceiptLog
from .rooms import RoomCache
from .sharers import Sharers
from .tokens import SyncToken

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

    @property
    def headers(self) -> Mapping[str, str]: ...

    @property
    def time_us(self) -> int: ...


class Queue(Protocol):
    """The part of the queue's client that sync uses."""

    def listen(self, stream: str, handler: Callable[[Any], None], on_begun: Callable[[], None]) -> Any:
        """Call `handler` with each new message of `stream`; what is returned can ``stop()``.

        `on_begun` is called each time that this begins, also after messages may have been missed.
        """

    async def publish(self, stream: str, payload: bytes, *, msg_id: str | None = None) -> Any: ...


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
        moments: Moments,
        sharers: Sharers,
        time: IReactorTime,
    ) -> None:
        self._rooms = rooms
        self._users = users
        self._heard = heard
        self._cache = cache
        self._notifier = notifier
        self._receipts = receipts
        self._moments = moments
        self._sharers = sharers
        self._time = time
        self._started = False
        self._listening: list[Any] = []
        self._held: dict[int, tuple[int, Callable[[], None]]] = {}
        self._behind: list[Callable[[], None]] | None = None
        """What was heard of rooms while the memberships of a rewritten one are being read, or all begins anew."""
        self._overflowed = False
        self._watch: IDelayedCall | None = None
        self._on_disk = SyncToken()

    async def start(self, queue: Queue) -> None:
        """Listen, and take up the positions that are on disk already; waits for those who know them."""
        self._behind, self._overflowed = [], True
        self._listen(queue, OUTPUT_ROOM_EVENT, OutputRoomEvent, self._room_message, other=self._not_an_event)
        self._listen(queue, OUTPUT_CLIENT_DATA, AccountDataChange, self._in_order(self.account_data))
        self._listen(queue, OUTPUT_RECEIPT_EVENT, Receipt, self._in_order(self.receipt))
        self._listen(queue, OUTPUT_SEND_TO_DEVICE_EVENT, ToDeviceMessage, self._in_order(self.to_device))
        self._listen(queue, OUTPUT_KEY_CHANGE_EVENT, KeyChange, self._in_order(self.key_change))
        self._listen(queue, OUTPUT_NOTIFICATION_DATA, UnreadChange, self._in_order(self.unread))
        moments = self._moments
        self._listen(queue, OUTPUT_TYPING_EVENT, Typing, lambda told, m: moments.typing(told, m.time_us), moments.begun)
        self._listen(
            queue, OUTPUT_PRESENCE_EVENT, Presence, lambda told, m: moments.presence(told, m.time_us), moments.begun
        )
        await self._go_on()
        self._started = True
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

    async def _resume_patiently(self) -> None:
        """As `resume`, again and again where those who know the positions do not answer."""
        while self._listening:
            try:
                await self.resume()
            except MatrixError as error:
                log.warn("the positions on disk cannot be read; trying again: {error}", error=error.error)
                await deferLater(self._time, RECHECK_SECONDS, lambda: None)
            else:
                return

    def _begun(self) -> None:
        """A stream has begun to be heard.  Where that is not the first time, something may have been missed."""
        if self._started:
            self._begin_anew()

    def _begin_anew(self, *behind: Callable[[], None]) -> None:
        """Go on from what is on disk; `behind` is taken in after that, and so is what is heard of rooms meanwhile."""
        if self._behind is not None:
            self._overflowed = True
            return
        self._behind, self._overflowed = list(behind), True
        going_on = Deferred.fromCoroutine(self._go_on())
        going_on.addErrback(lambda failure: log.failure("sync could not begin anew", failure=failure))

    async def _go_on(self) -> None:
        """Take in what waited; first all begins anew if something was missed."""
        while self._overflowed:
            self._overflowed = False
            await self._resume_patiently()
        behind, self._behind = self._behind or [], None
        for take in behind:
            take()
        self._heard.advance()

    def _watch_again(self) -> None:
        all_heard = self._heard.has(self._on_disk.room, self._on_disk.user)
        self._watch = self._time.callLater(WATCH_SECONDS if all_heard else RECHECK_SECONDS, self._start_look)

    def _look_soon(self) -> None:
        """Something is missing so far: see whether it comes sooner than usual."""
        watch = self._watch
        if watch is not None and watch.active() and watch.getTime() > self._time.seconds() + RECHECK_SECONDS:
            watch.reset(RECHECK_SECONDS)

    def _start_look(self) -> None:
        looking = Deferred.fromCoroutine(self.look())
        looking.addErrback(self._not_seen)
        looking.addBoth(lambda _: self._watch_again() if self._listening else None)

    def _not_seen(self, failure: Failure) -> None:
        if failure.check(Unavailable):
            log.warn("the positions on disk cannot be read: {reason}", reason=failure.getErrorMessage())
        else:
            log.failure("the positions on disk cannot be read", failure=failure)

    async def look(self) -> None:
        """Begin anew where what was on disk at the last look has still not been heard: then it was missed."""
        missed = not self._heard.has(self._on_disk.room, self._on_disk.user)
        self._on_disk = SyncToken(await self._rooms.position(), await self._users.position())
        if missed:
            log.warn("messages of the queue were missed; sync begins anew from what is on disk")
            self._begin_anew()

    def stop(self) -> None:
        if self._watch is not None and self._watch.active():
            self._watch.cancel()
        for listening in self._listening:
            listening.stop()
        self._listening.clear()
        self._moments.stop()

    def _listen(
        self,
        queue: Queue,
        stream: str,
        struct: Any,
        handler: Callable[[Any, Message], None],
        on_begun: Callable[[], None] | None = None,
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
            handler(value, message)
            self._heard.advance()

        self._listening.append(queue.listen(stream, hear, on_begun or self._begun))

    # --- order between streams ---

    def _in_order(self, handler: Callable[[Any], None]) -> Callable[[Any, Message], None]:
        def take(value: Any, message: Message) -> None:
            self._take_in_order(value.position, previous(message), lambda: handler(value))

        return take

    def _take_in_order(self, position: int, before: int, take: Callable[[], None]) -> None:
        """Take in a message of the user component once all before it have been; `look` helps if one never comes."""
        if before <= self._heard.user:
            take()
            self._take_held()
        elif len(self._held) < HELD_LIMIT:
            self._held[position] = before, take
            self._look_soon()

    def _take_held(self) -> None:
        while self._held:
            position = min(self._held)
            before, take = self._held[position]
            if before > self._heard.user:
                return
            del self._held[position]
            take()

    # --- rooms ---

    def _room_message(self, output: OutputRoomEvent, message: Message) -> None:
        self._room_in_order(output.event.position, message, lambda: self.room_event(output))

    def _room_in_order(self, position: int, message: Message, take: Callable[[], None]) -> None:
        """Take in a message about rooms; where those before it were missed, all begins anew first."""
        if self._behind is not None:
            self._hold_behind(lambda: self._room_in_order(position, message, take))
            return
        if position > self._heard.room + 1 and previous(message) > self._heard.room:
            log.warn("messages of the queue were missed; sync begins anew from what is on disk")
            self._begin_anew(take)
            return
        take()

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
            await self._go_on()

    def _not_an_event(self, message: Message) -> bool:
        """Take a message of the stream of events that tells something else: a room was deleted, or completed."""
        kind = message.headers.get("output_room_event_type")
        if kind == STATE_COMPLETE:
            completed = msgspec.msgpack.decode(message.payload, type=StateComplete)
            room_id, position = completed.room_id, completed.position
            self._room_in_order(position, message, lambda: self._state_replaced(room_id, position))
        elif kind == PURGE_ROOM:
            purged = msgspec.msgpack.decode(message.payload, type=RoomPurged)
            self._room_in_order(purged.position, message, lambda: self._room_purged(purged))
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
        streams = self._sharers.at_once(change.user_id)
        if streams is not None:
            self._keys_changed(change, streams)
            self._user_position(change.position)
            self._notifier.schedule()
            return
        self._notifier.keys_pending(change.position)
        self._user_position(change.position)
        asking = Deferred.fromCoroutine(self._ask_and_tell(change))
        asking.addErrback(lambda failure: log.failure("device list changes could not be told", failure=failure))

    async def _ask_and_tell(self, change: KeyChange) -> None:
        try:
            self._keys_changed(change, await self._sharers.of(change.user_id))
        finally:
            self._notifier.keys_told(change.position)
            self._notifier.schedule()

    def _keys_changed(self, change: KeyChange, streams: Iterable[UserStream]) -> None:
        for stream in streams:
            stream.key_changes = max(stream.key_changes, change.position)
            self._notifier.wake(stream, change.position)


def previous(message: Message) -> int:
    """The position before that of a message, 0 where it names none."""
    text = message.headers.get(PREVIOUS, "")
    return int(text) if text.isdecimal() else 0


def ignored_users(content: bytes) -> frozenset[str]:
    """The users that an ``m.ignored_user_list`` names."""
    try:
        ignored = msgspec.json.decode(content).get("ignored_users")
    except (msgspec.DecodeError, AttributeError):
        return frozenset()
    return frozenset(ignored) if isinstance(ignored, dict) else frozenset()

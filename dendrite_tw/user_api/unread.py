"""Unread counts: every event of a room is taken into account as it comes, and users ask how many are unread.

Events come twice.  A listener brings each at once, so that a sync which waits
for it has the counts in the same answer; the durable consumer brings it again
in a batch and stores what follows from it with the position reached, so that a
crash loses nothing.  The listener is followed only while it continues without
a gap what the consumer has seen.  What follows what is said by positions, for
the queue may lose a stream and begin to number it anew.

Of the processes that share a database the holder of the lease `UNREAD` alone does this, and is asked for counts.
Another one goes on where it stored its position.

A count saturates at `settings.LOG_LIMIT`.  Client-Server API, "Receiving
notifications".
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Protocol

import msgspec
import orjson
from twisted.internet.defer import CancelledError, Deferred, DeferredLock
from twisted.internet.task import deferLater
from twisted.logger import Logger

from ..database.outbox import Outbox
from ..database.statements import Transaction
from ..matrix.errors import MatrixError
from ..matrix.push_rules import DEFAULT, RuleSet
from ..room_api.api import (
    OUTPUT_ROOM_EVENT,
    PURGE_ROOM,
    STATE_COMPLETE,
    OutputRoomEvent,
    RoomAPI,
    RoomEvent,
    RoomPurged,
    StateComplete,
)
from ..sharing.leases import NotMine
from ..world import World
from .accounts import in_background
from .api import OUTPUT_NOTIFICATION_DATA, UNREAD, Unread, UnreadChange
from .counts import EVERYTHING, FOREVER, MAIN, Spans, span_in
from .push_rules import PushRules
from .settings import NOTIFICATION_DAYS, UserSettings
from .tables.unread import LogRow, PersonalRow
from .threads import thread_of
from .unread_store import CONSUMER, UnreadStore
from .verdicts import Judge, Verdict

log = Logger()

BATCH = 256
LINGER_SECONDS = 0.3
"""How long a batch that is not full waits for more before it is stored."""

PATIENCE_SECONDS = 1.0
"""How long a question for counts waits for an event that is on its way."""

TAKEOVER_SECONDS = 5.0
"""How long it waits where this process has only just begun to count, and the queue is to bring what is missing."""

OWED_LIMIT = 10_000
"""Counts given too early that are remembered, about."""

PRUNE_SECONDS = 3600
DAY_MS = 86_400_000


class Message(Protocol):
    """What the queue delivers."""

    @property
    def payload(self) -> bytes: ...
    @property
    def headers(self) -> Mapping[str, str]: ...


MembershipHook = Callable[[OutputRoomEvent], Awaitable[None]]

_DECODER = msgspec.msgpack.Decoder(OutputRoomEvent)


def _position(message: Message) -> int:
    """The position of what a message tells."""
    return int(message.headers["Outbox-Id"])


def _previous(message: Message) -> int:
    """The position of what was told before it."""
    return int(message.headers["Outbox-Previous"])


def _read(message: Message) -> OutputRoomEvent | RoomPurged | StateComplete:
    """What a message tells; only one that is no event pays for a look at its headers."""
    try:
        return _DECODER.decode(message.payload)
    except msgspec.ValidationError:
        kind = message.headers.get("output_room_event_type")
        if kind not in (PURGE_ROOM, STATE_COMPLETE):
            raise
    if kind == STATE_COMPLETE:
        return msgspec.msgpack.decode(message.payload, type=StateComplete)
    return msgspec.msgpack.decode(message.payload, type=RoomPurged)


class UnreadCounts:
    """Takes events into account, and counts."""

    def __init__(
        self,
        settings: UserSettings,
        outbox: Outbox,
        store: UnreadStore,
        judge: Judge,
        rules: PushRules,
        rooms: RoomAPI,
        world: World,
        is_shared: bool = False,
    ) -> None:
        self._settings = settings
        self._outbox = outbox
        self._is_shared = is_shared
        self._store = store
        self._judge = judge
        self._rooms = rooms
        self._rules = rules
        self._time = world.time
        self._clock = world.clock
        self._order = DeferredLock()
        self._reached = 0
        self._given_up = 0
        self._followed: int | None = None
        """The position up to which events have come in, so that the listener's next one may be taken."""
        self._waiting: list[tuple[int, Deferred[None]]] = []
        self._subscriptions: list[Any] = []
        self._counting = False
        self._lingering: Deferred[None] | None = None
        self._owed: dict[tuple[str, str], None] = {}
        """Users and rooms for which counts were given that lacked events, until those are taken into account."""
        self._rules_waiting = False
        """Whether push rules are to be taken up, because they could not be when they changed."""
        self.on_memberships: list[MembershipHook] = []
        """Called in order with every event by which memberships changed, before it counts as taken."""
        rules.on_stored = self.look_at_rules

    # --- life ---

    async def start(self, queue: Any) -> None:
        """Go on from the position that is stored."""
        await self._rules.load()
        self._reached = await self._store.stored_position()
        self._store.on_stored(self._reached)
        self._counting = True
        try:
            await self._take_up_rules()
        except BaseException:
            self._let_go()
            raise
        self._subscriptions = [
            queue.listen(OUTPUT_ROOM_EVENT, self.heard),
            queue.consume(OUTPUT_ROOM_EVENT, CONSUMER, self.consume, batch=BATCH),
        ]
        if self._is_shared:
            marks = queue.listen(OUTPUT_NOTIFICATION_DATA, lambda message: self._store.heard_mark(message.payload))
            self._subscriptions.append(marks)

    async def stop(self, kept: bool = True) -> None:
        """Take no more events; those that were taken are stored, unless another process counts already."""
        self._counting = False
        if self._lingering is not None:
            self._lingering.cancel()
        subscriptions, self._subscriptions = self._subscriptions, []
        for subscription in subscriptions:
            stopping = subscription.stop()
            if stopping is not None:
                await stopping
        await self._order.acquire()
        try:
            if kept:
                await self._store.flush(self._reached)
        finally:
            self._let_go()
            self._order.release()

    def _let_go(self) -> None:
        """Know nothing that is true only for the one who counts."""
        self._counting = self._rules_waiting = False
        self._reached = self._given_up = 0
        self._owed.clear()
        self._followed = None
        self._store.forget_all()
        self._rules.forget_all()
        self._judge.forget_all()
        waiting, self._waiting = self._waiting, []
        for _, arrived in waiting:
            arrived.errback(NotMine())

    # --- events ---

    def heard(self, message: Message) -> None:
        """The listener's way: at once, if it is the next event."""
        if self._followed is not None and _previous(message) <= self._followed < _position(message):
            self._followed = _position(message)
            in_background(self._take_heard(message), "taking an event into account")

    async def _take_heard(self, message: Message) -> None:
        try:
            await self._in_order(message, _previous(message))
        except BaseException:
            self._followed = None
            raise

    async def consume(self, messages: list[Message]) -> None:
        """The durable consumer's way: what the listener has not brought, and then all of it to disk."""
        if self._rules_waiting:
            await self._take_up_rules()
        for message in messages:
            await self._in_order(message, 0)
            if not self._counting:
                raise NotMine
        if messages:
            self._followed = max(self._followed or 0, _position(messages[-1]))
        if len(messages) < BATCH:
            await self._linger()
        owed = list(self._owed) if self._reached >= self._given_up else []
        await self._store.flush(self._reached, lambda txn: self._put_right(txn, owed))
        for pair in owed:
            self._owed.pop(pair, None)

    async def _put_right(self, txn: Transaction, owed: list[tuple[str, str]]) -> None:
        """Tell who was given counts too early that there are others."""
        for user_id, room_id in owed:
            change = UnreadChange(user_id=user_id, room_id=room_id)
            await self._outbox.append(txn, OUTPUT_NOTIFICATION_DATA, partial(_at, change))

    async def _linger(self) -> None:
        """Let more come that can be stored together; not where this process is about to count no more."""
        self._lingering = deferLater(self._time, LINGER_SECONDS)
        try:
            await self._lingering
        except CancelledError:
            return
        finally:
            self._lingering = None

    async def _in_order(self, message: Message, after: int) -> None:
        """Take an event into account, one at a time and once, if all up to `after` have been."""
        await self._order.acquire()
        try:
            position = _position(message)
            if not self._counting or position <= self._reached or after > self._reached:
                return
            told = _read(message)
            if isinstance(told, RoomPurged):
                await self._store.delete_room(told.room_id)
            elif isinstance(told, StateComplete):
                self._judge.room_changed(told.room_id)
            else:
                if told.event.type == "m.room.member" or told.also_replaced or told.also_removed:
                    for hook in self.on_memberships:
                        await hook(told)
                await self._take_safely(told)
            self._reached = position
        finally:
            self._order.release()
        self._wake()

    async def _take_safely(self, told: OutputRoomEvent) -> None:
        """Take an event; one that cannot be judged is left out, so that it does not hold up all others."""
        try:
            await self._take(told)
        except MatrixError:
            raise
        except Exception:
            log.failure("event {id} could not be judged for notifications", id=told.event.event_id)

    async def _take(self, told: OutputRoomEvent) -> None:
        event = told.event
        self._judge.state_changed(told)
        if told.local_members or event.membership == "invite":
            verdict = await self._judge.judge(told)
            thread_id = await self._thread(event, verdict)
            await self._note(event, thread_id, verdict)
            self._mark_sender(event, thread_id)
        if told.redacts is not None:
            await self._forget(told.redacts)

    async def _thread(self, event: RoomEvent, verdict: Verdict) -> str:
        """The thread of an event, looked up only where somebody is told of it or has read it."""
        if event.rel_type is None:
            return MAIN
        if verdict.base.notify or verdict.personal or self._settings.is_local(event.sender):
            return await thread_of(self._rooms, event)
        return MAIN

    async def _note(self, event: RoomEvent, thread_id: str, verdict: Verdict) -> None:
        base = verdict.base
        where = (event.room_id, event.position, thread_id, event.event_id)
        if base.notify:
            await self._store.add_log(LogRow(*where, event.sender, event.origin_server_ts, int(base.highlight)))
        for user_id, outcome in verdict.personal.items():
            logged = base.notify + base.highlight
            if _is_personal(self._rules.rules_of(user_id), event.room_id):
                logged = 0
            if outcome.notify + outcome.highlight == logged:
                continue
            self._store.add_personal(
                PersonalRow(
                    user_id,
                    *where,
                    event.origin_server_ts,
                    int(outcome.notify),
                    int(outcome.highlight),
                    logged,
                    orjson.dumps(outcome.actions),
                )
            )

    def _mark_sender(self, event: RoomEvent, thread_id: str) -> None:
        """Who sends an event has read up to it; who joins has nothing unread from before."""
        if event.type == "m.room.member" and event.state_key is not None:
            changed = event.prev_content is None or orjson.loads(event.prev_content).get("membership") != "join"
            if event.membership == "join" and changed and self._settings.is_local(event.state_key):
                self._store.add_mark(event.state_key, event.room_id, EVERYTHING, event.position)
        elif self._settings.is_local(event.sender):
            self._store.add_mark(event.sender, event.room_id, thread_id, event.position)

    async def _forget(self, event_id: str) -> None:
        for event in await self._rooms.events([event_id]):
            await self._store.remove_event(event.room_id, event.position)

    # --- rules ---

    def look_at_rules(self) -> None:
        """Push rules may have changed; events that come from now on are judged by the new ones."""
        if self._counting:
            self._rules_waiting = True
            in_background(self._take_up_rules(), "taking up push rules")

    async def _take_up_rules(self) -> None:
        await self._order.acquire()
        try:
            if self._counting:
                self._rules_waiting = False
                for change in await self._store.take_up_rules(self._reached, spans_of):
                    self._rules.take(*change)
        except BaseException:
            self._rules_waiting = True
            raise
        finally:
            self._order.release()

    # --- questions ---

    async def unread(
        self, user_id: str, room_ids: list[str], room_position: int, lease: str = UNREAD
    ) -> dict[str, Unread]:
        await self._counted_upto(room_position, {user_id: room_ids})
        return await self._unread(user_id, room_ids)

    async def unread_of(
        self, rooms_of: dict[str, list[str]], room_position: int, lease: str = UNREAD
    ) -> dict[str, dict[str, Unread]]:
        await self._counted_upto(room_position, rooms_of)
        return {user_id: await self._unread(user_id, room_ids) for user_id, room_ids in rooms_of.items()}

    async def _counted_upto(self, room_position: int, rooms_of: dict[str, list[str]]) -> None:
        """Return when every event up to `room_position` has been taken into account; raises `NotMine`.

        Where that takes too long the answer is put right later.
        """
        if not self._counting:
            raise NotMine
        if room_position > max(self._reached, self._given_up):
            await self._arrival_of(room_position)
        if room_position > self._reached:
            for user_id, room_ids in rooms_of.items():
                if len(self._owed) < OWED_LIMIT:
                    self._owed.update(((user_id, room_id), None) for room_id in room_ids)

    async def _unread(self, user_id: str, room_ids: list[str]) -> dict[str, Unread]:
        known = self._store.known(user_id, room_ids)
        if known is not None:
            return {room_id: reader.unread(room_id, log, span) for room_id, reader, log, span in known}
        readers = await self._store.readers(user_id, room_ids)
        logs = await self._store.logs(room_ids)
        spans = await self._store.spans(user_id)
        return {
            room_id: readers[room_id].unread(room_id, logs[room_id], span_in(spans, room_id)) for room_id in room_ids
        }

    async def _arrival_of(self, position: int) -> None:
        """Wait until events up to `position` are taken into account, but not for ever."""
        arrived: Deferred[None] = Deferred()
        entry = (position, arrived)
        self._waiting.append(entry)
        taking_over = self._followed is None and self._is_shared
        timer = self._time.callLater(TAKEOVER_SECONDS if taking_over else PATIENCE_SECONDS, self._give_up, entry)
        try:
            await arrived
        finally:
            if timer.active():
                timer.cancel()
            if entry in self._waiting:
                self._waiting.remove(entry)

    def _give_up(self, entry: tuple[int, Deferred[None]]) -> None:
        """The event does not come: answer with what is known, to whoever asks for this position again too."""
        if entry in self._waiting:
            self._given_up = max(self._given_up, entry[0])
            self._waiting.remove(entry)
            entry[1].callback(None)

    def _wake(self) -> None:
        ready = [entry for entry in self._waiting if entry[0] <= self._reached]
        self._waiting = [entry for entry in self._waiting if entry[0] > self._reached]
        for _, arrived in ready:
            arrived.callback(None)

    # --- bookkeeping ---

    def oldest_kept(self) -> int:
        """Events before this time, in milliseconds, are pruned."""
        return self._clock.now_ms() - NOTIFICATION_DAYS * DAY_MS


def _at(change: UnreadChange, position: int) -> bytes:
    return msgspec.msgpack.encode(msgspec.structs.replace(change, position=position))


def spans_of(old: RuleSet, new: RuleSet, position: int) -> Spans:
    """Where a user's events begin or cease to be judged apart, the log counts up to `position` or from it on."""
    spans: Spans = {}
    ends, begins = (0, position), (position, FOREVER)
    if _is_apart(old) != _is_apart(new):
        spans[""] = ends if _is_apart(new) else begins
    for room_id in new.reach.rooms - old.reach.rooms:
        spans[room_id] = ends
    for room_id in old.reach.rooms - new.reach.rooms:
        spans[room_id] = begins
    return spans


def _is_apart(rules: RuleSet) -> bool:
    """Whether all events are judged apart for a user with these rules, so that no room's log counts."""
    return rules.profile != DEFAULT.profile or rules.reach.everywhere


def _is_personal(rules: RuleSet, room_id: str) -> bool:
    """Whether events of this room are."""
    return _is_apart(rules) or room_id.lower() in rules.reach.rooms

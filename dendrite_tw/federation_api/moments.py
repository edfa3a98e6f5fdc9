"""Who of this server types and who is present, told to other servers now or never.

Server-Server API, "Typing Notifications" and "Presence".  Nothing of this is stored.  Presence is told after a pause
in which it often changes back, and what a server knows already is not told again for a while.

Where several processes hear of it, one of them tells (``telling``); the others remember who is present, in case they
have to go on.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Collection, Sequence
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from ..matrix.edus import PresenceUpdate, edu_content
from ..matrix.edus import Typing as TypingEdu
from ..matrix.errors import MatrixError
from ..room_api.api import RoomAPI
from ..sync_api.api import OUTPUT_PRESENCE_EVENT, OUTPUT_TYPING_EVENT, Presence, Typing
from ..world import Clock
from .consumers import others_of, server_of
from .edu_consumers import linger
from .queue import Moment, PresenceMoment
from .senders import Senders

log = Logger()

PRESENCE_SECONDS = 3.0
"""How long a change of presence waits for the next one."""

REPEAT_MS = 10 * 60_000
"""How often others are told that a user is still there."""

PENDING_LIMIT = 10_000
KNOWN_LIMIT = 100_000
"""How many users' presence may wait to be told, and of how many it is remembered, and what was told."""

STATES = frozenset({"online", "unavailable", "offline"})


class TypingTeller:
    """Tells the servers in a room which local users type in it."""

    def __init__(self, senders: Senders, rooms: RoomAPI, server_name: str) -> None:
        self._senders = senders
        self._rooms = rooms
        self._server_name = server_name
        self._subscription: Any = None
        self.telling = True

    def start(self, queue: Any) -> None:
        self._subscription = queue.listen(OUTPUT_TYPING_EVENT, self._heard)

    def stop(self) -> None:
        if self._subscription is not None:
            self._subscription.stop()
            self._subscription = None

    def _heard(self, message: Any) -> None:
        if not self.telling:
            return
        typing = msgspec.msgpack.decode(message.payload, type=Typing)
        if server_of(typing.user_id) == self._server_name and not typing.ended:
            _in_background(self._tell(typing))

    async def _tell(self, typing: Typing) -> None:
        others = others_of(await self._rooms.room_servers(typing.room_id), self._server_name)
        if others:
            content = edu_content(TypingEdu(typing.room_id, typing.user_id, typing.typing))
            self._senders.add_moment(others, f"typing {typing.room_id} {typing.user_id}", Moment("m.typing", content))


class PresenceTeller:
    """Tells servers that share rooms with local users whether these are present."""

    def __init__(self, senders: Senders, rooms: RoomAPI, server_name: str, time: IReactorTime, clock: Clock) -> None:
        self._senders = senders
        self._rooms = rooms
        self._server_name = server_name
        self._time = time
        self._clock = clock
        self._pending: OrderedDict[str, Presence] = OrderedDict()
        self._known: OrderedDict[str, Presence] = OrderedDict()
        self._told: OrderedDict[str, tuple[tuple[str, str | None, bool], int]] = OrderedDict()
        """What was told of a user, and when."""
        self._timer: IDelayedCall | None = None
        self._subscription: Any = None
        self.telling = True

    def start(self, queue: Any) -> None:
        self._subscription = queue.listen(OUTPUT_PRESENCE_EVENT, self._heard)

    def stop(self) -> None:
        if self._subscription is not None:
            self._subscription.stop()
            self._subscription = None
        if self._timer is not None and self._timer.active():
            self._timer.cancel()

    def _heard(self, message: Any) -> None:
        presence = msgspec.msgpack.decode(message.payload, type=Presence)
        if server_of(presence.user_id) != self._server_name or presence.presence not in STATES:
            return
        self._known[presence.user_id] = presence
        self._known.move_to_end(presence.user_id)
        if len(self._known) > KNOWN_LIMIT:
            self._known.popitem(last=False)
        if not self.telling:
            return
        self._pending[presence.user_id] = presence
        if len(self._pending) > PENDING_LIMIT:
            self._pending.popitem(last=False)
        if self._timer is None:
            self._timer = self._time.callLater(PRESENCE_SECONDS, self._begin)

    def _begin(self) -> None:
        self._timer = None
        pending, self._pending = self._pending, OrderedDict()
        if not self.telling:
            return
        _in_background(self._tell_all(pending))

    async def _tell_all(self, pending: OrderedDict[str, Presence]) -> None:
        for presence in pending.values():
            if self._is_news(presence):
                await self._tell(presence)

    def _is_news(self, presence: Presence) -> bool:
        shown, now = (presence.presence, presence.status_msg, presence.currently_active), self._clock.now_ms()
        told = self._told.get(presence.user_id)
        if told is not None and told[0] == shown and now - told[1] < REPEAT_MS:
            return False
        self._told[presence.user_id] = (shown, now)
        self._told.move_to_end(presence.user_id)
        if len(self._told) > KNOWN_LIMIT:
            self._told.popitem(last=False)
        return True

    async def _tell(self, presence: Presence) -> None:
        others = others_of(await self._rooms.servers_of_user(presence.user_id), self._server_name)
        self._send(presence, others)

    def introduce(self, user_ids: Collection[str], servers: Sequence[str]) -> None:
        """Tell servers who is there of users whom they have not met before."""
        for user_id in user_ids:
            presence = self._known.get(user_id)
            if presence is not None and presence.presence != "offline":
                self._send(presence, servers)

    def _send(self, presence: Presence, others: Sequence[str]) -> None:
        state: Any = presence.presence
        update = PresenceUpdate(
            presence.user_id, state, currently_active=presence.currently_active, status_msg=presence.status_msg
        )
        moment = PresenceMoment(update, presence.last_active_ts)
        self._senders.add_moment(others, f"presence {presence.user_id}", moment, linger(len(others)))


def _in_background(work: Awaitable[None]) -> None:
    async def watched() -> None:
        try:
            await work
        except MatrixError as error:
            log.debug("other servers are not told: {error}", error=str(error))

    Deferred.fromCoroutine(watched()).addErrback(
        lambda failure: log.failure("other servers could not be told", failure=failure)
    )

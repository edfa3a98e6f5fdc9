"""Unread counts, and how many keys a device has left: what nearly every answer has to ask of the user component.

Where that is in another process, questions of the same moment (all who wait in a room wake
together) are gathered into one, and the counts of keys are remembered: whoever changes them tells so by an echo.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from ..cache import Cache, CacheBudget
from ..links.echoes import Echoes
from ..user_api.api import KEY_COUNTS, DeviceName, KeyAPI, KeyCounts, Unread, UserAPI

COUNTS_BYTES = 700
"""What the remembered counts of a device take, about."""

REMEMBERED_SECONDS = 60.0
"""A process that is killed after a change may not have told of it; so nothing is remembered for longer."""

UnreadCounts = dict[str, Unread]


class Counting(Protocol):
    """Asks for counts."""

    def unread(self, user_id: str, room_ids: list[str], room_position: int) -> Awaitable[UnreadCounts]:
        """As `UserAPI.unread`."""

    def keys(self, user_id: str, device_id: str) -> Awaitable[KeyCounts]:
        """As `KeyAPI.key_counts`."""


class CountingHere:
    """The user component is in this process."""

    def __init__(self, users: UserAPI, keys: KeyAPI) -> None:
        self._users = users
        self._keys = keys

    def unread(self, user_id: str, room_ids: list[str], room_position: int) -> Awaitable[UnreadCounts]:
        return self._users.unread(user_id, room_ids, room_position)

    def keys(self, user_id: str, device_id: str) -> Awaitable[KeyCounts]:
        return self._keys.key_counts(user_id, device_id)


class CountingElsewhere:
    """The user component may be in another process."""

    def __init__(self, users: UserAPI, keys: KeyAPI, echoes: Echoes, time: IReactorTime, budget: CacheBudget) -> None:
        self._users = users
        self._keys = keys
        self._time = time
        self._unread: dict[int, dict[str, list[tuple[list[str], Deferred[UnreadCounts]]]]] = {}
        """Who wants to know what of which rooms, by the position up to which it has to be counted."""
        self._counted: dict[DeviceName, list[Deferred[KeyCounts]]] = {}
        self._asking: IDelayedCall | None = None
        self._known = KnownCounts(echoes, time, budget)

    def unread(self, user_id: str, room_ids: list[str], room_position: int) -> Awaitable[UnreadCounts]:
        answer: Deferred[UnreadCounts] = Deferred()
        of_position = self._unread.setdefault(room_position, {})
        of_position.setdefault(user_id, []).append((room_ids, answer))
        self._ask_soon()
        return answer

    async def keys(self, user_id: str, device_id: str) -> KeyCounts:
        device = DeviceName(user_id, device_id)
        known = self._known.get(device)
        if known is not None:
            return known
        answer: Deferred[KeyCounts] = Deferred()
        self._counted.setdefault(device, []).append(answer)
        self._ask_soon()
        return await answer

    def _ask_soon(self) -> None:
        if self._asking is None:
            self._asking = self._time.callLater(0, self._ask)

    def _ask(self) -> None:
        self._asking = None
        unread, self._unread = self._unread, {}
        counted, self._counted = self._counted, {}
        for position, of_users in unread.items():
            Deferred.fromCoroutine(self._ask_unread(position, of_users))
        if counted:
            Deferred.fromCoroutine(self._ask_keys(counted))

    async def _ask_unread(
        self, position: int, of_users: dict[str, list[tuple[list[str], Deferred[UnreadCounts]]]]
    ) -> None:
        rooms = {user: list({room for ids, _ in asked for room in ids}) for user, asked in of_users.items()}
        try:
            found = await self._users.unread_of(rooms, position)
        except Exception:
            _tell(Failure(), [answer for asked in of_users.values() for _, answer in asked])
            return
        for user_id, asked in of_users.items():
            for room_ids, answer in asked:
                counts = found.get(user_id, {})
                _tell({room_id: counts[room_id] for room_id in room_ids if room_id in counts}, [answer])

    async def _ask_keys(self, counted: dict[DeviceName, list[Deferred[KeyCounts]]]) -> None:
        keep = self._known.keeper()
        try:
            found = await self._keys.key_counts_of(list(counted))
        except Exception:
            _tell(Failure(), [answer for answers in counted.values() for answer in answers])
            return
        for (device, answers), counts in zip(counted.items(), found, strict=True):
            keep(device, counts)
            _tell(counts, answers)


def _tell(result: object, answers: list[Deferred[UnreadCounts]] | list[Deferred[KeyCounts]]) -> None:
    """Answer those who still wait."""
    for answer in answers:
        if not answer.called:
            (answer.errback if isinstance(result, Failure) else answer.callback)(result)  # type: ignore[arg-type]


class KnownCounts:
    """Counts of keys, forgotten when they change: what was asked for before that is not kept."""

    def __init__(self, echoes: Echoes, time: IReactorTime, budget: CacheBudget) -> None:
        self._echoes = echoes
        self._time = time
        self._cache: Cache[DeviceName, tuple[float, KeyCounts]] = Cache(
            "sync_key_counts", budget, lambda known: COUNTS_BYTES
        )
        self._generation = 0
        echoes.hear(KEY_COUNTS, self._changed)
        echoes.on_missed(self._forget_all)

    def get(self, device: DeviceName) -> KeyCounts | None:
        known = self._cache.get(device)
        return known[1] if known is not None and known[0] > self._time.seconds() else None

    def keeper(self) -> Callable[[DeviceName, KeyCounts], None]:
        """What remembers the answer to a question that is asked now."""
        generation, until = self._generation, self._time.seconds() + REMEMBERED_SECONDS

        def keep(device: DeviceName, counts: KeyCounts) -> None:
            if generation == self._generation and self._echoes.hearing:
                self._cache.put(device, (until, counts))

        return keep

    def _changed(self, payload: bytes) -> None:
        self._generation += 1
        self._cache.pop(msgspec.msgpack.decode(payload, type=DeviceName))

    def _forget_all(self) -> None:
        self._generation += 1
        self._cache.clear()

"""Fetches lists of devices that are stale: a few servers at a time, each at its own pace.

Server-Server API, ``GET /user/devices/{userId}``.  Which lists are stale is on disk, so a restart goes on where it
was.  The servers that have any take turns; one that does not answer is left alone for longer each time, until it is
heard of again, and holds up nobody else.  A list that becomes stale again and again, as a server can make it, is
fetched less and less often.

Of the processes that share a database one does this, the holder of the lease `RESYNC`.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from contextlib import suppress
from urllib.parse import quote

from twisted.internet.defer import Deferred, TimeoutError, gatherResults
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..database.engines import Unavailable
from ..federation_api.api import BackingOff, FederationAPI, FederationRequest, RemoteRefused, Unreachable
from ..world import World
from .remote_checks import Malformed, read_device_list
from .remote_lists import RemoteLists

log = Logger()

ANSWER_LIMIT = 4 << 20
"""Bytes of a list of devices."""

TIMEOUT_MS = 30_000

LISTS_A_TURN = 10
"""How many lists of a server are fetched before the next server has its turn."""

FIRST_WAIT_SECONDS = 2.0
LONGEST_WAIT_SECONDS = 3600.0
"""How long a server that does not answer is left alone: at first, doubled with each time, and at most."""

HEARD_SECONDS = 10.0
"""How long after an attempt that failed the server is tried again because it was heard of."""

SPACING_SECONDS = 1.0
LONGEST_SPACING_SECONDS = 60.0
"""How far apart fetches of the same list are: the second, doubled with each further one, and at most."""

QUIET_SECONDS = 600.0
REMEMBERED = 10_000
"""A list that was not fetched for so long is fetched at once; so many that were are remembered."""

REFUSALS = frozenset((400, 403, 404, 405))
"""Statuses that say that the list is not to be had; others may pass."""


class _Server:
    """One server that is to be asked for lists."""

    def __init__(self) -> None:
        self.failures = 0
        self.failed_at = 0.0
        self.in_turn = False
        """Whether it is asked, or waits for its turn."""
        self.again = False
        """Whether more was told to be stale since it was last looked what is."""
        self.after = ""
        """Up to which user, in the order of their IDs, lists were fetched."""
        self.timer: IDelayedCall | None = None


class Resyncs:
    """Asks servers for the lists that `RemoteLists` calls stale."""

    def __init__(
        self, federation: FederationAPI, lists: RemoteLists, world: World, workers: int, is_shared: bool = False
    ) -> None:
        self._federation = federation
        self._lists = lists
        self._time = world.time
        self._random = world.random
        self._workers = max(1, workers)
        self._servers: dict[str, _Server] = {}
        self._ready: deque[str] = deque()
        self._running: set[Deferred[None]] = set()
        self._fetched: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._waiting: dict[str, list[Deferred[None]]] = {}
        self._stopped = is_shared
        self.attempts: dict[tuple[str, ...], int] = {(): 0}
        """How many lists were asked for, for the metrics."""

    async def start(self) -> None:
        """Go on with what is stale on disk."""
        self._stopped = False
        await self.look()

    async def look(self) -> None:
        """Wake all servers that have lists which are stale on disk, but for those that are known to have any.

        These have their turn, or are left alone for a while.
        """
        for server_name in await self._lists.stale_servers():
            if server_name not in self._servers:
                self.wake(server_name)

    async def stop(self) -> None:
        """Ask nobody any more."""
        self._stopped = True
        for server in self._servers.values():
            self._cancel_timer(server)
        self._servers.clear()
        self._ready.clear()
        for running in list(self._running):
            running.cancel()
        self._wake_waiting(list(self._waiting))

    @property
    def is_running(self) -> bool:
        return not self._stopped

    @property
    def waiting_servers(self) -> int:
        """How many servers wait for their turn."""
        return len(self._ready)

    @property
    def retrying_servers(self) -> int:
        """How many servers did not answer and are left alone for a while."""
        return sum(server.timer is not None and server.failures > 0 for server in self._servers.values())

    # --- turns ---

    def wake(self, server_name: str) -> None:
        """There is something to ask the server for, or it was heard of."""
        if self._stopped:
            return
        server = self._servers.setdefault(server_name, _Server())
        server.again = True
        if server.in_turn:
            return
        wait = server.failed_at + HEARD_SECONDS - self._time.seconds() if server.failures else 0.0
        if wait > 0:
            if server.timer is None or server.timer.getTime() > self._time.seconds() + wait:
                self._rest(server_name, server, wait)
            return
        self._enqueue(server_name, server)

    def _enqueue(self, server_name: str, server: _Server) -> None:
        self._cancel_timer(server)
        server.in_turn = True
        self._ready.append(server_name)
        self._give_turns()

    def _give_turns(self) -> None:
        while self._ready and len(self._running) < self._workers and not self._stopped:
            server_name = self._ready.popleft()
            turn = Deferred.fromCoroutine(self._turn(server_name))
            self._running.add(turn)
            turn.addErrback(self._broken, server_name)
            turn.addBoth(self._turned, turn)

    def _turned(self, _: object, turn: Deferred[None]) -> None:
        self._running.discard(turn)
        self._give_turns()

    def _broken(self, failure: Failure, server_name: str) -> None:
        """Something of ours failed, the database say: wait as if the server had not answered."""
        if self._stopped:
            return
        if failure.check(Unavailable):
            log.warn("lists of devices of {server} wait: {error}", server=server_name, error=str(failure.value))
        else:
            log.failure("lists of devices of {server} could not be fetched", failure=failure, server=server_name)
        self._failed(server_name, self._servers.setdefault(server_name, _Server()), None)

    async def _turn(self, server_name: str) -> None:
        """Fetch some lists of a server."""
        server = self._servers[server_name]
        server.again = False
        users = await self._lists.stale_users(server_name, server.after, LISTS_A_TURN)
        if len(users) < LISTS_A_TURN and server.after:
            users += await self._lists.stale_users(server_name, "", LISTS_A_TURN - len(users))
        soonest = LONGEST_SPACING_SECONDS if len(users) < LISTS_A_TURN else SPACING_SECONDS
        asked = False
        for user_id in dict.fromkeys(users):
            server.after = user_id
            wait = self._wait_of(user_id)
            if wait > 0:
                soonest = min(soonest, wait)
                self._wake_waiting([user_id])
                continue
            asked = True
            try:
                await self._fetch(server_name, user_id)
            except Unreachable as error:
                self._failed(server_name, server, error)
                return
            server.failures = 0
        server.in_turn = False
        if asked or server.again:
            self._enqueue(server_name, server)
        elif users:
            self._rest(server_name, server, soonest)
        else:
            del self._servers[server_name]

    def _failed(self, server_name: str, server: _Server, error: Unreachable | None) -> None:
        """Leave a server alone for a while."""
        server.in_turn = False
        server.failures += 1
        server.failed_at = self._time.seconds()
        wait = min(FIRST_WAIT_SECONDS * 2 ** min(server.failures - 1, 16), LONGEST_WAIT_SECONDS)
        if isinstance(error, BackingOff):
            known = LONGEST_WAIT_SECONDS if error.retry_after_ms is None else error.retry_after_ms / 1000
            wait = min(max(wait, known), LONGEST_WAIT_SECONDS)
        self._rest(server_name, server, wait * self._random.uniform(1.0, 1.2))
        self._wake_waiting([user_id for user_id in self._waiting if user_id.endswith(f":{server_name}")])

    def _rest(self, server_name: str, server: _Server, seconds: float) -> None:
        self._cancel_timer(server)
        server.timer = self._time.callLater(seconds, self._rested, server_name, server)

    def _rested(self, server_name: str, server: _Server) -> None:
        server.timer = None
        self._enqueue(server_name, server)

    def _cancel_timer(self, server: _Server) -> None:
        if server.timer is not None and server.timer.active():
            server.timer.cancel()
        server.timer = None

    # --- one list ---

    def _wait_of(self, user_id: str) -> float:
        """Seconds until the list may be fetched again."""
        fetched_at, spacing = self._fetched.get(user_id, (0.0, 0.0))
        return fetched_at + spacing - self._time.seconds()

    def _note_fetched(self, user_id: str) -> None:
        now = self._time.seconds()
        fetched_at, spacing = self._fetched.pop(user_id, (0.0, 0.0))
        if now - fetched_at > QUIET_SECONDS:
            spacing = 0.0
        self._fetched[user_id] = now, min(max(SPACING_SECONDS, 2 * spacing), LONGEST_SPACING_SECONDS)
        if len(self._fetched) > REMEMBERED:
            self._fetched.popitem(last=False)

    async def _fetch(self, server_name: str, user_id: str) -> None:
        """Fetch a list; raises `Unreachable` where the server does not answer as one that works."""
        if not await self._lists.is_shared(user_id):
            await self._lists.end([user_id])
            return
        self.attempts[()] += 1
        fetch = await self._lists.fetches.begin([user_id])
        try:
            try:
                found = read_device_list(await self._federation.request(_question(server_name, user_id)), user_id)
            except RemoteRefused as refused:
                if refused.remote_status not in REFUSALS:
                    raise Unreachable(f"it answered with status {refused.remote_status}") from None
                await self._lists.drop(user_id)
            except Malformed as malformed:
                log.warn("the list of devices of {user} cannot be used: {why}", user=user_id, why=str(malformed))
                await self._lists.drop(user_id)
            else:
                await self._lists.put_list(fetch, user_id, found)
            self._note_fetched(user_id)
        finally:
            await self._lists.fetches.finish(fetch)
        self._wake_waiting([user_id])

    # --- who waits for lists ---

    async def settle(self, user_ids: Iterable[str], seconds: float) -> None:
        """`settled` for each of the users."""
        await gatherResults([Deferred.fromCoroutine(self.settled(user_id, seconds)) for user_id in user_ids])

    async def settled(self, user_id: str, seconds: float) -> None:
        """Wait, if the list of the user is about to be fetched, until it was, or that failed, or for so long."""
        server = self._servers.get(user_id.partition(":")[2])
        if server is None or not server.in_turn or seconds <= 0:
            return
        waiting: Deferred[None] = Deferred()
        self._waiting.setdefault(user_id, []).append(waiting)
        with suppress(TimeoutError):
            await waiting.addTimeout(seconds, self._time)

    def _wake_waiting(self, user_ids: list[str]) -> None:
        for user_id in user_ids:
            for waiting in self._waiting.pop(user_id, ()):
                waiting.callback(None)


def devices_path(user_id: str) -> str:
    """Where a server gives the list of one of its users."""
    return f"/_matrix/federation/v1/user/devices/{quote(user_id, safe='')}"


def _question(server_name: str, user_id: str) -> FederationRequest:
    return FederationRequest(
        method="GET",
        destination=server_name,
        path=devices_path(user_id),
        timeout_ms=TIMEOUT_MS,
        response_limit=ANSWER_LIMIT,
    )

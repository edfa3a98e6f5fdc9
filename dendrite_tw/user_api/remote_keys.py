"""Keys of users of other servers: from the lists that are kept, else from their servers.

Server-Server API, ``POST /user/keys/query`` and ``/user/keys/claim``, ``GET /user/devices``.  The servers are asked at
the same time, each once for all of its users; what a client waits for ends with the client's time, and servers that
did not answer by then are its failures.  Of a few users who share a room the whole list is asked for first, for it
alone has a number that later updates can follow.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, DeferredSemaphore, FirstError, TimeoutError, gatherResults
from twisted.internet.interfaces import IReactorTime

from ..database.engines import Unavailable
from ..federation_api.api import FederationAPI, FederationRequest, RemoteRefused, Unreachable
from ..matrix.errors import MatrixError
from ..matrix.identifiers import server_name_of
from ..room_api.api import RoomAPI
from .api import ClaimedKeys, KeyAPI, QueriedKeys
from .remote_checks import Claimed, Malformed, RemoteDevices, read_claim, read_device_list, read_query
from .remote_lists import RemoteLists
from .resync import ANSWER_LIMIT as WHOLE_LIST_LIMIT
from .resync import devices_path

T = TypeVar("T")

MAX_TIMEOUT_MS = 60_000
"""How long other servers may take at most, whatever the client says."""

REQUESTS_AT_ONCE = 64
"""Requests for keys under way together; others wait for their turn, as long as their client does."""

USERS_A_REQUEST = 500
"""Users of one server whom one request asks about."""

WHOLE_LISTS = 10
"""Users up to whom a query asks for each one's list by itself: more of them, as when a large room was joined, would be
as many requests."""

ANSWER_LIMIT = 1 << 20
ANSWER_LIMIT_PER_USER = 64 << 10
ANSWER_LIMIT_IN_ALL = 16 << 20
"""Bytes of an answer: for the first user, for each further one, and at most."""

Failures = dict[str, dict[str, Any]]
"""Server name to what went wrong with it."""


class RemoteKeys:
    """Asks other servers for keys, where they are not known here."""

    def __init__(
        self, federation: FederationAPI, lists: RemoteLists, keys: KeyAPI, rooms: RoomAPI, time: IReactorTime
    ) -> None:
        """`keys` is asked to wait for lists that are about to be fetched."""
        self._federation = federation
        self._lists = lists
        self._keys = keys
        self._rooms = rooms
        self._time = time
        self._turns = DeferredSemaphore(REQUESTS_AT_ONCE)

    # --- queries ---

    async def query(self, requester: str, wanted: Mapping[str, list[str]], timeout_ms: int) -> QueriedKeys:
        """The keys of users of other servers (an empty list: of all their devices) within `timeout_ms`."""
        deadline = self._time.seconds() + bounded(timeout_ms) / 1000
        known, stale = await self._lists.known(list(wanted))
        if stale:
            with suppress(Unavailable):
                await self._keys.settle_lists(stale, bounded(int((deadline - self._time.seconds()) * 1000)))
            known, stale = await self._lists.known(list(wanted))
        missing = [user_id for user_id in wanted if user_id not in known]
        shared = set(await self._rooms.shares_room(requester, missing)) if missing else set()
        if await self._others_fetch(shared, deadline):
            known.update((await self._lists.known(missing))[0])
            shared.difference_update(known)
        if len(shared) <= WHOLE_LISTS:
            await self._all(self._begin_list(user_id, deadline, known) for user_id in sorted(shared))
        missing = [user_id for user_id in missing if user_id not in known]
        answer = QueriedKeys()
        await self._all(
            self._query_server(
                server_name, {user_id: wanted[user_id] for user_id in users}, shared, deadline, known, answer.failures
            )
            for server_name, users in _by_server(missing)
        )
        for user_id, found in known.items():
            _add(answer, user_id, found, wanted[user_id])
        return answer

    async def _others_fetch(self, user_ids: set[str], deadline: float) -> bool:
        """Wait for those who fetch these lists already, if anybody does: one answer is enough for all clients."""
        fetches = self._lists.fetches.of(user_ids)
        for fetch in fetches:
            seconds = deadline - self._time.seconds()
            if seconds > 0:
                with suppress(TimeoutError):
                    await fetch.finished().addTimeout(seconds, self._time)
        return bool(fetches)

    async def _begin_list(self, user_id: str, deadline: float, found: dict[str, RemoteDevices]) -> None:
        """Ask for the whole list of a user who shares a room, which is kept from now on; if there is none, a query
        may still have an answer."""
        server_name, path = server_name_of(user_id), devices_path(user_id)
        fetch = await self._lists.fetches.begin([user_id])
        try:
            answer = await self._ask(server_name, "GET", path, None, WHOLE_LIST_LIMIT, deadline)
            devices = read_device_list(answer, user_id)
        except (MatrixError, Malformed):
            return
        else:
            await self._lists.begin_list(fetch, user_id, devices)
            found[user_id] = devices
        finally:
            await self._lists.fetches.finish(fetch)

    async def _query_server(
        self,
        server_name: str,
        wanted: dict[str, list[str]],
        shared: set[str],
        deadline: float,
        found: dict[str, RemoteDevices],
        failures: Failures,
    ) -> None:
        """Ask one server; all devices of those who share a room, whose lists are kept from now on."""
        fetch = await self._lists.fetches.begin(shared & wanted.keys())
        try:
            question = {user_id: [] if user_id in shared else devices for user_id, devices in wanted.items()}

            async def ask() -> dict[str, RemoteDevices]:
                body = {"device_keys": question}
                return read_query(await self._post(server_name, "query", body, len(wanted), deadline), wanted)

            lists = await self._answer(server_name, ask, failures)
            if lists is not None:
                await self._lists.put_queried(fetch, {user_id: lists[user_id] for user_id in shared & lists.keys()})
                found.update(lists)
        finally:
            await self._lists.fetches.finish(fetch)

    # --- claims ---

    async def claim(self, wanted: Mapping[str, dict[str, str]], timeout_ms: int) -> ClaimedKeys:
        """A one-time key for each device (user, device, algorithm) whose server gives one within `timeout_ms`."""
        deadline = self._time.seconds() + bounded(timeout_ms) / 1000
        answer = ClaimedKeys()

        async def claim_of(server_name: str, part: dict[str, dict[str, str]]) -> None:
            async def ask() -> Claimed:
                count = sum(map(len, part.values()))
                return read_claim(
                    await self._post(server_name, "claim", {"one_time_keys": part}, count, deadline), part
                )

            answer.one_time_keys.update(await self._answer(server_name, ask, answer.failures) or {})

        await self._all(
            claim_of(server_name, {user_id: wanted[user_id] for user_id in users})
            for server_name, users in _by_server(wanted)
        )
        return answer

    # --- asking ---

    async def _answer(self, server_name: str, ask: Callable[[], Awaitable[T]], failures: Failures) -> T | None:
        """What a server says, or `None` with an entry in `failures`."""
        try:
            return await ask()
        except RemoteRefused as refused:
            failures[server_name] = {"status": refused.remote_status, "message": refused.remote_error}
        except MatrixError as error:
            failures[server_name] = {"status": 503, "message": error.error}
        return None

    async def _post(
        self, server_name: str, what: str, body: dict[str, Any], users: int, deadline: float
    ) -> dict[str, Any]:
        limit = min(ANSWER_LIMIT + users * ANSWER_LIMIT_PER_USER, ANSWER_LIMIT_IN_ALL)
        return await self._ask(server_name, "POST", f"/_matrix/federation/v1/user/keys/{what}", body, limit, deadline)

    async def _ask(
        self, server_name: str, method: str, path: str, body: dict[str, Any] | None, limit: int, deadline: float
    ) -> dict[str, Any]:
        """The answer to a request that waits for its turn; raises `Unreachable` where there is none by the deadline."""
        seconds = deadline - self._time.seconds()
        if seconds > 0:
            try:
                await self._turns.acquire().addTimeout(seconds, self._time)
            except TimeoutError:
                seconds = 0
            else:
                try:
                    seconds = deadline - self._time.seconds()
                    return await self._federation.request(
                        FederationRequest(
                            method=method,
                            destination=server_name,
                            path=path,
                            body=body,
                            timeout_ms=max(1, int(seconds * 1000)),
                            response_limit=limit,
                        )
                    )
                finally:
                    self._turns.release()
        raise Unreachable("it did not answer in time")

    async def _all(self, questions: Iterable[Coroutine[Any, Any, None]]) -> None:
        """Ask all at the same time, and wait for all of them; what fails beyond what is expected fails the whole."""
        running = [Deferred.fromCoroutine(question) for question in questions]
        try:
            await gatherResults(running, consumeErrors=True)
        except FirstError as first:
            first.subFailure.raiseException()


def bounded(timeout_ms: int) -> int:
    return max(0, min(timeout_ms, MAX_TIMEOUT_MS))


def _by_server(user_ids: Iterable[str]) -> list[tuple[str, list[str]]]:
    """Users by server, in parts that one request may ask about."""
    servers: dict[str, list[str]] = {}
    for user_id in user_ids:
        servers.setdefault(server_name_of(user_id), []).append(user_id)
    return [
        (server_name, users[start : start + USERS_A_REQUEST])
        for server_name, users in servers.items()
        for start in range(0, len(users), USERS_A_REQUEST)
    ]


def _add(answer: QueriedKeys, user_id: str, found: RemoteDevices, device_ids: list[str]) -> None:
    """Show a user's devices, or those of them that are named, and the cross-signing keys."""
    answer.device_keys[user_id] = (
        {device_id: found.devices[device_id] for device_id in device_ids if device_id in found.devices}
        if device_ids
        else dict(found.devices)
    )
    if found.master_key is not None:
        answer.master_keys[user_id] = found.master_key
    if found.self_signing_key is not None:
        answer.self_signing_keys[user_id] = found.self_signing_key

"""Requests to other servers: found, signed, limited, and told in two errors.

Server-Server API, "Request Authentication" and "Resolving server names".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote, urlencode

import msgspec
import orjson
from twisted.internet.defer import DeferredSemaphore, TimeoutError
from twisted.internet.interfaces import IReactorTime
from twisted.web.http_headers import Headers

from ..matrix.errors import MatrixError
from ..matrix.identifiers import is_server_name
from ..web.client import DEFAULT_TIMEOUT, JSON_LIMIT, HttpAnswer, Stale
from ..web.internet import Locator, PeerRequests, Sink
from ..web.routes import decode_object
from .api import FederationRequest, RawAnswer, RemoteRefused, Unreachable
from .destinations import Destinations
from .signing_keys import OwnKeys
from .xmatrix import sign_request

RUNNING_PER_DESTINATION = 8
WAITING_PER_DESTINATION = 256
"""How many requests to one server may be under way, and wait for their turn."""

PEERS_TRIED = 3
"""How many of the places where a server may be found are tried."""

ERRCODE_LIMIT = 255
ERROR_TEXT_LIMIT = 500

TRANSACTION_ANSWER_LIMIT = 1 << 20
REFUSED_CONTENT = (400, 413)
"""With these a server that works says that what it was sent is malformed or too large."""

Query = Sequence[tuple[str, str]]
Observer = Callable[[str, str], None]
"""Is told of every request: its method, and ``ok``, ``refused`` or ``unreachable``."""


class Busy(Unreachable):
    """This server has too much to ask the other one already; that says nothing about the other."""


class FederationClient:
    """Makes requests to other servers."""

    def __init__(
        self,
        http: PeerRequests,
        locator: Locator,
        destinations: Destinations,
        own: OwnKeys,
        time: IReactorTime,
        observe: Observer = lambda method, outcome: None,
    ) -> None:
        self._http = http
        self._locator = locator
        self._destinations = destinations
        self._own = own
        self._time = time
        self._observe = observe
        self._slots: dict[tuple[str, bool], _Slots] = {}

    async def request(self, request: FederationRequest) -> dict[str, Any]:
        """`FederationAPI.request`."""
        body = None if request.body is None else _encoded(request.body)
        return await self._ask(request, _target(request.path, request.query), body, signed=True)

    async def ask(self, request: FederationRequest) -> RawAnswer:
        """`FederationAPI.ask`."""
        body = None if request.body is None else _encoded(request.body)
        answer = await self._answer(request, _target(request.path, request.query), body, True, _anything)
        if 200 <= answer.status < 300:
            await self._succeeded(request)
        else:
            await self._refused(request, answer)
        return RawAnswer(answer.status, answer.body)

    async def fetch(self, request: FederationRequest, sink: Sink, signed: bool = True) -> HttpAnswer:
        """The answer to GET, whose body goes where `sink` says; errors as of `ask`, and what `sink` raises.

        Such requests take turns among themselves: while many files come, other questions need not wait.  That a
        file is not to be had says nothing against the server, unless it is a gateway that says so.
        """
        target = _target(request.path, request.query)
        answer = await self._answer(request, target, None, signed, _anything, sink)
        if answer.status < 400:
            await self._succeeded(request)
        elif answer.status < 500 or error_of(answer.body)[0] is not None:
            self._observe(request.method, "refused")
            await self._destinations.reached(request.destination)
        else:
            await self._refused(request, answer)
        return HttpAnswer(answer.status, answer.headers, answer.body)

    async def get_json(
        self,
        destination: str,
        path: str,
        query: Query = (),
        seconds: float = DEFAULT_TIMEOUT,
        retry: bool = True,
        limit: int = JSON_LIMIT,
        signed: bool = True,
        despite_backoff: bool = False,
    ) -> dict[str, Any]:
        """The answer to GET; errors as of `request`.  Only requests for keys and versions go unsigned."""
        request = FederationRequest(
            method="GET",
            destination=destination,
            path=path,
            timeout_ms=int(seconds * 1000),
            response_limit=limit,
            retry=retry,
            despite_backoff=despite_backoff,
        )
        return await self._ask(request, _target(path, query), None, signed)

    async def put_json(
        self,
        destination: str,
        path: str,
        query: Query,
        body: dict[str, Any] | bytes,
        seconds: float = DEFAULT_TIMEOUT,
        retry: bool = True,
        limit: int = JSON_LIMIT,
        signed: bool = True,
        despite_backoff: bool = False,
        method: str = "PUT",
    ) -> dict[str, Any]:
        """The answer to PUT (or another `method` with a body); `body` is an object, or its JSON."""
        request = FederationRequest(
            method=method,
            destination=destination,
            path=path,
            timeout_ms=int(seconds * 1000),
            response_limit=limit,
            retry=retry,
            despite_backoff=despite_backoff,
        )
        encoded = body if isinstance(body, bytes) else _encoded(body)
        return await self._ask(request, _target(path, query), encoded, signed)

    async def send_transaction(
        self, destination: str, txn_id: str, body: bytes, seconds: float
    ) -> RemoteRefused | None:
        """``PUT /send``: `None` once the destination has it, a refusal where it will not have it, now or ever.

        Raises `Unreachable` or `BackingOff` where it is to be sent again.  Unlike with a question, a refusal that is
        not about what was sent (who is this? not now; no such endpoint) counts as a failure: the next transaction would
        meet the same, and the destination shall be left in peace for a while.
        """
        request = FederationRequest(
            method="PUT",
            destination=destination,
            path=path_of("/_matrix/federation/v1/send/{}", txn_id),
            timeout_ms=int(seconds * 1000),
            response_limit=TRANSACTION_ANSWER_LIMIT,
        )
        answer = await self._answer(request, request.path, body, True, _json_if_good)
        if answer.content is not None:
            await self._succeeded(request)
            return None
        self._observe(request.method, "refused")
        refusal, is_matrix = _refusal(answer)
        if is_matrix and answer.status in REFUSED_CONTENT:
            await self._destinations.reached(destination)
            return refusal
        await self._destinations.failed(destination, _in_words(refusal))
        raise Unreachable(_in_words(refusal))

    async def _ask(self, request: FederationRequest, target: str, body: bytes | None, signed: bool) -> dict[str, Any]:
        """The JSON object of a good answer; `RemoteRefused` for another."""
        answer = await self._answer(request, target, body, signed, _json_if_good)
        if answer.content is None:
            raise await self._refused(request, answer)
        await self._succeeded(request)
        return answer.content

    async def _answer(
        self,
        request: FederationRequest,
        target: str,
        body: bytes | None,
        signed: bool,
        read: _Reader,
        sink: Sink | None = None,
    ) -> _Answer:
        """The answer of the destination as `read` takes it; `Unreachable` where it raises that."""
        destination = request.destination
        if not is_server_name(destination):
            raise Unreachable("the server's name is malformed")
        if destination == self._own.server_name:
            raise Unreachable("this server does not ask itself")
        if not request.despite_backoff:
            self._destinations.check(destination)
        headers = [("Accept", "application/json" if sink is None else "multipart/mixed, */*")]
        if body is not None:
            headers.append(("Content-Type", "application/json"))
        if signed:
            own = self._own
            header = sign_request(own.key, own.server_name, destination, request.method, target, body)
            headers.append(("Authorization", header))
        try:
            return read(await self._in_turn(request, target, headers, body, sink))
        except Busy:
            self._observe(request.method, "unreachable")
            raise
        except Unreachable as error:
            self._observe(request.method, "unreachable")
            self._locator.forget(destination)
            await self._destinations.failed(destination, error.reason)
            raise

    async def _succeeded(self, request: FederationRequest) -> None:
        self._observe(request.method, "ok")
        await self._destinations.reached(request.destination)

    async def _refused(self, request: FederationRequest, answer: _Answer) -> RemoteRefused:
        """The error that was answered.  Only that of a homeserver that works shows that it can be reached.

        A refusal in another form, like the page of a proxy that does not know a path, may concern this question only.
        """
        self._observe(request.method, "refused")
        refusal, is_matrix = _refusal(answer)
        if not 400 <= answer.status < 500:
            await self._destinations.failed(request.destination, _in_words(refusal))
        elif is_matrix:
            await self._destinations.reached(request.destination)
        return refusal

    async def _in_turn(
        self,
        request: FederationRequest,
        target: str,
        headers: list[tuple[str, str]],
        body: bytes | None,
        sink: Sink | None,
    ) -> HttpAnswer:
        """Wait for a turn at the destination, then ask it; all in the request's time."""
        deadline = self._time.seconds() + request.timeout_ms / 1000
        line = request.destination, sink is not None
        slots = self._slots.setdefault(line, _Slots())
        if slots.wanted >= RUNNING_PER_DESTINATION + WAITING_PER_DESTINATION:
            raise Busy("too many requests to this server wait already")
        slots.wanted += 1
        try:
            try:
                await slots.turn.acquire().addTimeout(request.timeout_ms / 1000, self._time)
            except TimeoutError:
                raise Busy("requests before this one took too long") from None
            try:
                return await self._anywhere(request, target, headers, body, deadline, sink)
            finally:
                slots.turn.release()
        finally:
            slots.wanted -= 1
            if not slots.wanted:
                self._slots.pop(line, None)

    async def _anywhere(
        self,
        request: FederationRequest,
        target: str,
        headers: list[tuple[str, str]],
        body: bytes | None,
        deadline: float,
        sink: Sink | None,
    ) -> HttpAnswer:
        """The first answer from one of the places where the destination may be found."""
        problem = Unreachable("there is nowhere to find this server")
        for peer in list(await self._locator.resolve(request.destination))[:PEERS_TRIED]:
            for attempt in range(2 if request.retry else 1):
                seconds = deadline - self._time.seconds()
                if seconds <= 0:
                    raise Unreachable("there was no answer in time")
                try:
                    return await self._http.request_at(
                        peer, request.method, target, headers, body, seconds, request.response_limit, sink
                    )
                except Unreachable as error:
                    problem = error
                    if attempt or not isinstance(error, Stale):
                        break
        raise problem


class _Answer(msgspec.Struct, frozen=True):
    """What was answered; ``content`` is the JSON object in a good answer, where that was asked for."""

    status: int
    headers: Headers
    body: bytes
    content: dict[str, Any] | None = None


def _refusal(answer: _Answer) -> tuple[RemoteRefused, bool]:
    """The error in an answer, and whether it has the form that homeservers give to errors."""
    errcode, text = error_of(answer.body)
    refusal = RemoteRefused(answer.status, errcode or "M_UNKNOWN", text or f"status {answer.status}")
    return refusal, errcode is not None


def _in_words(refusal: RemoteRefused) -> str:
    return f"it answered {refusal.remote_status} {refusal.remote_errcode}: {refusal.remote_error}"


_Reader = Callable[[HttpAnswer], _Answer]


def _anything(answer: HttpAnswer) -> _Answer:
    return _Answer(answer.status, answer.headers, answer.body)


def _json_if_good(answer: HttpAnswer) -> _Answer:
    good = 200 <= answer.status < 300
    return _Answer(answer.status, answer.headers, answer.body, answer.json_object() if good else None)


def error_of(body: bytes) -> tuple[str | None, str | None]:
    """The ``errcode`` and the sentence of an error, where they are there."""
    try:
        said = decode_object(body)
    except MatrixError:
        return None, None
    errcode, text = said.get("errcode"), said.get("error")
    return (
        errcode[:ERRCODE_LIMIT] if isinstance(errcode, str) else None,
        text[:ERROR_TEXT_LIMIT] if isinstance(text, str) else None,
    )


class _Slots:
    """The turns at one destination, and how many want one."""

    def __init__(self) -> None:
        self.turn = DeferredSemaphore(RUNNING_PER_DESTINATION)
        self.wanted = 0


def _encoded(body: dict[str, Any]) -> bytes:
    """A body's JSON; `Unreachable` for one that JSON cannot carry: it comes from events that strangers made."""
    try:
        return orjson.dumps(body)
    except (TypeError, ValueError):
        raise Unreachable("the request cannot be written as JSON") from None


def _target(path: str, query: Query) -> str:
    return f"{path}?{urlencode(query, quote_via=quote)}" if query else path


def path_of(template: str, *values: str) -> str:
    """A path with `values` in the places of ``{}``, percent-encoded: ``path_of("/a/{}", "!room:name")``."""
    return template.format(*(quote(value, safe="") for value in values))

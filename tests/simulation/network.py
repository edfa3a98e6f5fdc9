"""The internet between the servers of a simulation: it delays, loses, repeats, reorders and cuts, as the seed says.

A request of one server is the bytes of an HTTP request at the other, and the answer is read from the bytes that come
back, so all that lies between a server's client and another's routes is real but sockets, TLS and names.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.web.http_headers import Headers

from dendrite_tw.web.client import HttpAnswer, Peer, Stale, Unreachable
from dendrite_tw.web.internet import ClientOptions, NameCache, Sink
from dendrite_tw.web.names import Service, UnknownName
from tests.harness import Wire, dechunked
from tests.simulation.trace import Trace

if TYPE_CHECKING:
    from tests.simulation.host import Host
    from tests.simulation.timing import SharedClock

REFUSED_SECONDS = 0.02


@dataclass(frozen=True)
class Request:
    """A request as it is on its way."""

    method: str
    target: str
    headers: Sequence[tuple[str, str]]
    body: bytes | None

    def encode(self) -> bytes:
        data = self.body or b""
        lines = [f"{self.method} {self.target} HTTP/1.1", "Host: simulated"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        if self.body is not None or self.method in ("PUT", "POST"):
            lines.append(f"Content-Length: {len(data)}")
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + data


@dataclass(frozen=True)
class Response:
    """An answer as it came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)


Done = Callable[[Response | None], None]
"""Is called once: with the answer, or with `None` where the connection was lost before it was complete."""


class Exchange(Wire):
    """The server's end of a connection that carries one request; tells when the answer is complete."""

    def __init__(self, done: Done) -> None:
        super().__init__(
            hostAddress=IPv4Address("TCP", "192.0.2.98", 8448), peerAddress=IPv4Address("TCP", "192.0.2.99", 4242)
        )
        self._done: Done | None = done
        self._pieces: list[bytes] = []

    def write(self, data: bytes) -> None:
        self._pieces.append(data)
        response = self._complete()
        if response is not None:
            self.finish(response)

    def writeSequence(self, data: Iterable[bytes]) -> None:
        for piece in data:
            self.write(piece)

    def loseConnection(self) -> None:
        self.finish(None)
        super().loseConnection()

    def abortConnection(self) -> None:
        self.finish(None)
        super().abortConnection()

    def finish(self, response: Response | None) -> None:
        """It is over, with an answer or without."""
        done, self._done = self._done, None
        if done is not None:
            done(response)

    def _complete(self) -> Response | None:
        head, separator, body = b"".join(self._pieces).partition(b"\r\n\r\n")
        if not separator:
            return None
        start, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if headers.get("transfer-encoding") == "chunked":
            if not body.endswith(b"0\r\n\r\n"):
                return None
            body = dechunked(body)
        elif len(body) < int(headers.get("content-length", "0")):
            return None
        return Response(int(start.split(" ", 2)[1]), headers, body)


class Weather(random.Random):
    """What befalls requests; calm until told otherwise."""

    stormy = False

    def delay(self) -> float:
        """Seconds on the way: mostly short, so that what was sent first arrives first, and sometimes not."""
        if not self.stormy:
            return self.uniform(0.005, 0.02)
        return self.choice((self.uniform(0.005, 0.05), self.uniform(0.005, 0.3), self.uniform(0.01, 4.0)))

    def happens(self, likelihood: float) -> bool:
        return self.stormy and self.random() < likelihood


class Network:
    """Every server, and the links between them."""

    def __init__(self, clock: SharedClock, trace: Trace, weather: Weather) -> None:
        self.clock = clock
        self.trace = trace
        self.weather = weather
        self.hosts: dict[str, Host] = {}
        self.cut: set[tuple[str, str]] = set()
        """Links that carry nothing, in the direction from the first server to the second."""
        self.under_way = 0

    def carry(self, sender: str, receiver: str, request: Request, done: Callable[[Response | Exception], None]) -> None:
        """Bring a request to its receiver and the answer back, or not."""
        self.under_way += 1
        what = f"{request.method} {describe(request)}"

        def once(result: Response | Exception) -> None:
            nonlocal answered
            if not answered:
                answered = True
                self.under_way -= 1
                done(result)

        answered = False
        if receiver not in self.hosts:
            self.clock.callLater(REFUSED_SECONDS, once, Unreachable("there is no such server"))
            return
        if self.weather.happens(0.03):
            self.trace.note(sender, f"-> {receiver} {what} is lost")
            self.clock.callLater(self.weather.uniform(1, 60), once, Unreachable("there was no answer in time"))
            return
        repeats = 2 if self.weather.happens(0.05) else 1
        for _ in range(repeats):
            self.clock.callLater(self.weather.delay(), self._arrive, sender, receiver, request, what, once)

    def _arrive(
        self, sender: str, receiver: str, request: Request, what: str, once: Callable[[Response | Exception], None]
    ) -> None:
        host = self.hosts[receiver]
        if (sender, receiver) in self.cut or not host.is_up:
            self.trace.note(sender, f"-> {receiver} {what} finds nobody")
            self.clock.callLater(REFUSED_SECONDS, once, Unreachable("no connection"))
            return

        def answer(response: Response | None) -> None:
            if response is None:
                self.trace.note(sender, f"-> {receiver} {what}: the connection is lost")
                self.clock.callLater(REFUSED_SECONDS, once, Stale("the connection was closed without an answer"))
                return
            told = f" {response.body[:160].decode(errors='replace')}" if response.status != 200 else ""
            self.trace.note(sender, f"-> {receiver} {what}: {response.status}{told}")
            if (receiver, sender) in self.cut or self.weather.happens(0.03):
                self.trace.note(sender, f"-> {receiver} {what}: the answer is lost")
                lost = Stale("the connection was closed without an answer")
                self.clock.callLater(self.weather.uniform(0.1, 30), once, lost)
                return
            self.clock.callLater(self.weather.delay(), once, response)

        host.serve(request, answer)

    def cut_off(self, name: str, others: Iterable[str], one_way: bool) -> None:
        """Nothing goes from `name` to others any more, nor, unless it is `one_way`, back."""
        for other in others:
            self.cut.add((name, other))
            if not one_way:
                self.cut.add((other, name))


def describe(request: Request) -> str:
    """A request in a few words."""
    path = request.target.partition("?")[0]
    for prefix in ("/_matrix/federation/", "/_matrix/client/v3", "/_matrix"):
        path = path.removeprefix(prefix)
    path = path.replace("%24", "$").replace("%21", "!").replace("%3A", ":").replace("%40", "@")
    if "/send/" in path and request.body is not None and path.startswith("v1"):
        try:
            body = orjson.loads(request.body)
            events = [_event(event) for event in body.get("pdus", ())]
            edus = [edu.get("edu_type", "?") for edu in body.get("edus", ())]
            return f"{path} [{', '.join(events + edus)}]"
        except (AttributeError, KeyError, TypeError, ValueError):
            return f"{path} [{len(request.body)} bytes of nonsense]"
    return path


def _event(event: Any) -> str:
    kind = str(event.get("type", "?")).removeprefix("m.room.")
    content = event.get("content", {})
    if kind == "member":
        return f"{event['state_key']} {content.get('membership')}"
    return f"{kind} {content.get('body', '')}".strip()


class Nowhere:
    """Names: in a simulation there are none."""

    async def addresses(self, host: str) -> list[str]:
        raise UnknownName(host)

    async def services(self, name: str) -> list[Service]:
        return []


class Connection:
    """`World.internet` of one run of a server, and what it is asked for: the network as that server reaches it."""

    def __init__(self, network: Network, host: Host, alive: Callable[[], bool]) -> None:
        self._network = network
        self._host = host
        self._alive = alive

    @property
    def locator(self) -> Connection:
        return self

    async def resolve(self, server_name: str) -> Sequence[Peer]:
        return [Peer(server_name, 8448, server_name)]

    def forget(self, server_name: str) -> None:
        """Servers are always found in the same place."""

    def names(self, cache: NameCache | None) -> Nowhere:
        return Nowhere()

    def client(self, names: Any, options: ClientOptions) -> Connection:
        return self

    async def request(self, method: str, url: str, *args: Any, **kwargs: Any) -> HttpAnswer:
        raise Unreachable("there is nobody but homeservers")

    async def request_at(
        self,
        peer: Peer,
        method: str,
        target: str,
        headers: Iterable[tuple[str, str]] = (),
        body: bytes | None = None,
        seconds: float = 30.0,
        limit: int = 1 << 20,
        sink: Sink | None = None,
    ) -> HttpAnswer:
        answered: Deferred[Response] = Deferred()

        def done(result: Response | Exception) -> None:
            if not self._alive() or answered.called:
                return
            if isinstance(result, Exception):
                answered.errback(result)
            else:
                answered.callback(result)

        timer = self._network.clock.callLater(seconds, done, Unreachable("there was no answer in time"))
        self._network.carry(self._host.name, peer.name, Request(method, target, list(headers), body), done)
        try:
            response = await answered
        finally:
            if timer.active():
                timer.cancel()
        return _taken(response, limit, sink)

    def close(self) -> Deferred[None]:
        closed: Deferred[None] = Deferred()
        closed.callback(None)
        return closed


def _taken(response: Response, limit: int, sink: Sink | None) -> HttpAnswer:
    """The answer as a client takes it: into memory, or into a sink, and no more than was allowed."""
    headers = Headers({name: [value] for name, value in response.headers.items()})
    head = HttpAnswer(response.status, headers)
    write = sink(head) if sink is not None else None
    if write is not None:
        for start in range(0, len(response.body), 1 << 14):
            write(response.body[start : start + (1 << 14)])
        return head
    if len(response.body) > (limit if sink is None else min(limit, 1 << 20)):
        raise Unreachable(f"the answer has more than {limit} bytes")
    return HttpAnswer(response.status, headers, response.body)

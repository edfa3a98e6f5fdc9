"""Servers in memory that ask each other about the history of rooms, and answer as the component itself does."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from typing import Any
from urllib.parse import unquote

import orjson
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.federation_api.api import FederationRequest, RawAnswer, Unreachable
from dendrite_tw.matrix.errors import MatrixError
from dendrite_tw.room_api.api import Page
from tests.room_api.federated import Network, Server

ALICE, BOB, BERTA, CAROL, DAN = "@alice:a", "@bob:b", "@berta:b", "@carol:c", "@dan:d"

VISIBILITY, MEMBER, MESSAGE = "m.room.history_visibility", "m.room.member", "m.room.message"


class HistoryNetwork(Network):
    """A network whose servers answer what their room components say to the server that asks."""

    async def answer(self, origin: str, request: FederationRequest) -> RawAnswer:
        endpoint, *parts = request.path.split("/")[4:]
        self.asked.append((origin, request.destination, endpoint))
        own = self.answers.get((request.destination, endpoint))
        if own is not None:
            answer = own(request)
            if isinstance(answer, Exception):
                raise answer
            if answer is not None:
                return answer if isinstance(answer, RawAnswer) else RawAnswer(200, orjson.dumps(answer))
        server = self.servers.get(request.destination)
        if server is None or request.destination in self.deaf:
            raise Unreachable("nobody is there")
        try:
            found = await answered(server, origin, endpoint, [unquote(part) for part in parts], request)
        except MatrixError as error:
            return RawAnswer(error.status, orjson.dumps({"errcode": error.errcode, "error": error.error}))
        return RawAnswer(200, orjson.dumps(found))


async def answered(server: Server, origin: str, endpoint: str, parts: Sequence[str], request: FederationRequest) -> Any:
    """What the routes of a server would answer."""
    rooms, query = server.rooms, dict(request.query)
    if endpoint == "event":
        found = await rooms.events_for_server(origin, list(parts))
        if not found:
            raise MatrixError(404, "M_NOT_FOUND", "no such event")
        return {"pdus": list(map(orjson.Fragment, found.values()))}
    await rooms.check_server(parts[0], origin)
    if endpoint in ("state", "state_ids"):
        state, chain = await rooms.state_ids_for_server(origin, parts[0], query["event_id"])
        if endpoint == "state_ids":
            return {"pdu_ids": state, "auth_chain_ids": chain}
        return {"pdus": await bodies(server, state), "auth_chain": await bodies(server, chain)}
    if endpoint == "event_auth":
        return {"auth_chain": await bodies(server, await rooms.event_auth_for_server(origin, *parts))}
    if endpoint == "get_missing_events":
        body = request.body or {}
        latest, limit = body["latest_events"], body["limit"]
        events = await rooms.missing_events_for_server(
            origin, parts[0], body["earliest_events"], latest, limit, body["min_depth"]
        )
        return {"events": list(map(orjson.Fragment, events))}
    assert endpoint == "backfill", endpoint
    wanted = [value for key, value in request.query if key == "v"]
    events = await rooms.backfill_for_server(origin, parts[0], wanted, int(query["limit"]))
    return {"pdus": list(map(orjson.Fragment, events))}


async def bodies(server: Server, event_ids: Sequence[str]) -> list[orjson.Fragment]:
    found = await server.rooms.pdus(event_ids)
    return [orjson.Fragment(found[event_id]) for event_id in event_ids]


class HistoryStory(SynchronousTestCase):
    """Rooms of server a, and others that join them."""

    def setUp(self) -> None:
        self.network = HistoryNetwork(self)
        self.a, self.b, self.c, self.d = map(self.network.server, "abcd")

    def do(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.successResultOf(Deferred.fromCoroutine(coroutine))

    def later(self, coroutine: Coroutine[Any, Any, Any], answers: list[Any]) -> None:
        """Begin something that does not end at once; what comes of it is put into `answers`."""
        Deferred.fromCoroutine(coroutine).addBoth(answers.append)

    def refused(self, coroutine: Coroutine[Any, Any, Any], errcode: str, status: int) -> MatrixError:
        error: MatrixError = self.failureResultOf(Deferred.fromCoroutine(coroutine), MatrixError).value
        self.assertEqual((error.errcode, error.status), (errcode, status), error)
        return error

    def room(self, **options: Any) -> str:
        return self.a.create(ALICE, **{"preset": "public_chat", "room_version": "10", **options})

    def page(self, server: Server, room_id: str, user: str, direction: str = "b", **options: Any) -> Page:
        given: dict[str, Any] = {
            "from_token": None,
            "to_token": None,
            "limit": 1000,
            "filter": None,
            "lazy_load_members": False,
        }
        return self.wait(server.rooms.messages(room_id, user, direction, **{**given, **options}))  # type: ignore[no-any-return]

    def wait(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """As `do`, for what gives the reactor its turn in between."""
        waiting = Deferred.fromCoroutine(coroutine)
        for _ in range(100):
            if waiting.called:
                break
            self.network.memory.clock.advance(0)
        return self.successResultOf(waiting)

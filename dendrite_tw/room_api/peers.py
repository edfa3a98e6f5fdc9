"""What other servers are asked about the events of a room.

Server-Server API, "Retrieving event authorisation information", "Backfilling and retrieving missing events",
"Retrieving events", "Policy Servers".  Every answer is bounded in bytes and number, and none is believed:
events in it are as raw as if they had been sent.  No answer, a refusal and nonsense are all the same: `None`.
"""

from __future__ import annotations

from typing import Any, TypeVar
from urllib.parse import quote

import msgspec
from twisted.internet.interfaces import IReactorTime

from ..federation_api.api import FederationAPI, FederationRequest, RawAnswer, Unreachable
from ..matrix.errors import MALFORMED, MatrixError
from ..matrix.events import Event
from ..matrix.identifiers import is_event_id

T = TypeVar("T")

V1 = "/_matrix/federation/v1"

REQUEST_MS = 20_000
BACKFILL_MS = 10_000
STATE_MS = 60_000

EVENT_BYTES = 1 << 20
MISSING_BYTES = 8 << 20
IDS_BYTES = 16 << 20
CHAIN_BYTES = 32 << 20
STATE_BYTES = 256 << 20

MISSING_LIMIT = 20
"""Events that one answer to ``get_missing_events`` may have."""

BACKFILL_LIMIT = 100
"""Events that one answer to ``backfill`` may have."""

CHAIN_LIMIT = 10_000
STATE_LIMIT = 200_000


class Deadline:
    """When to give up, whatever is still to be asked."""

    def __init__(self, time: IReactorTime, seconds: float) -> None:
        self._time = time
        self._end = time.seconds() + seconds

    def left_ms(self) -> int:
        return max(0, int(1000 * (self._end - self._time.seconds())))


class StateIds(msgspec.Struct):
    """The state before an event and its auth chain, by ID."""

    pdu_ids: list[str]
    auth_chain_ids: list[str] = []


class _Missing(msgspec.Struct):
    events: list[msgspec.Raw]


class _Pdus(msgspec.Struct):
    pdus: list[msgspec.Raw]
    auth_chain: list[msgspec.Raw] = []


class _Chain(msgspec.Struct):
    auth_chain: list[msgspec.Raw]


class NearestEvent(msgspec.Struct):
    """An event near a time, as another server knows it."""

    event_id: str
    origin_server_ts: int


class _Refusal(msgspec.Struct):
    errcode: str = "M_UNKNOWN"
    error: str = ""


class Refused(Exception):
    """A policy server does not sign; ``error`` is what its answer means to a client."""

    def __init__(self, error: MatrixError) -> None:
        super().__init__(str(error))
        self.error = error


class Peers:
    """Asks other servers."""

    def __init__(self, federation: FederationAPI) -> None:
        self._federation = federation

    async def missing_events(
        self, server: str, room_id: str, earliest: list[str], latest: list[str], deadline: Deadline
    ) -> list[bytes] | None:
        """Events before `latest` and not before `earliest`, at most `MISSING_LIMIT` of them."""
        path = f"{V1}/get_missing_events/{quote(room_id, safe='')}"
        body = {"earliest_events": earliest, "latest_events": latest, "limit": MISSING_LIMIT, "min_depth": 0}
        answer = await self._ask("POST", server, path, [], body, MISSING_BYTES, REQUEST_MS, deadline)
        found = _decoded(answer, _Missing)
        return None if found is None else [bytes(raw) for raw in found.events[:MISSING_LIMIT]]

    async def backfill(self, server: str, room_id: str, event_ids: list[str], deadline: Deadline) -> list[bytes] | None:
        """Some events and those before them, at most `BACKFILL_LIMIT` in all."""
        path = f"{V1}/backfill/{quote(room_id, safe='')}"
        query = [*(("v", event_id) for event_id in event_ids), ("limit", str(BACKFILL_LIMIT))]
        answer = await self._ask("GET", server, path, query, None, MISSING_BYTES, BACKFILL_MS, deadline)
        found = _decoded(answer, _Pdus)
        return None if found is None else [bytes(raw) for raw in found.pdus[:BACKFILL_LIMIT]]

    async def event(self, server: str, event_id: str, deadline: Deadline) -> bytes | None:
        """One event."""
        path = f"{V1}/event/{quote(event_id, safe='')}"
        answer = await self._ask("GET", server, path, [], None, EVENT_BYTES, REQUEST_MS, deadline)
        found = _decoded(answer, _Pdus)
        return None if found is None or not found.pdus else bytes(found.pdus[0])

    async def state_ids(self, server: str, room_id: str, event_id: str, deadline: Deadline) -> StateIds | None:
        """The state before an event."""
        path = f"{V1}/state_ids/{quote(room_id, safe='')}"
        answer = await self._ask("GET", server, path, [("event_id", event_id)], None, IDS_BYTES, STATE_MS, deadline)
        found = _decoded(answer, StateIds)
        if found is None or len(found.pdu_ids) + len(found.auth_chain_ids) > STATE_LIMIT:
            return None
        return found if all(map(is_event_id, (*found.pdu_ids, *found.auth_chain_ids))) else None

    async def state(self, server: str, room_id: str, event_id: str, deadline: Deadline) -> list[bytes] | None:
        """The events of `state_ids`, all of them."""
        path = f"{V1}/state/{quote(room_id, safe='')}"
        answer = await self._ask("GET", server, path, [("event_id", event_id)], None, STATE_BYTES, STATE_MS, deadline)
        found = _decoded(answer, _Pdus)
        if found is None or len(found.pdus) + len(found.auth_chain) > STATE_LIMIT:
            return None
        return [bytes(raw) for raw in (*found.pdus, *found.auth_chain)]

    async def event_auth(self, server: str, room_id: str, event_id: str, deadline: Deadline) -> list[bytes] | None:
        """The auth chain of an event."""
        path = f"{V1}/event_auth/{quote(room_id, safe='')}/{quote(event_id, safe='')}"
        answer = await self._ask("GET", server, path, [], None, CHAIN_BYTES, REQUEST_MS, deadline)
        found = _decoded(answer, _Chain)
        if found is None or len(found.auth_chain) > CHAIN_LIMIT:
            return None
        return [bytes(raw) for raw in found.auth_chain]

    async def nearest(
        self, server: str, room_id: str, ts: int, direction: str, deadline: Deadline
    ) -> NearestEvent | None:
        """The event nearest to a time in a direction."""
        path = f"{V1}/timestamp_to_event/{quote(room_id, safe='')}"
        query = [("ts", str(ts)), ("dir", direction)]
        answer = await self._ask("GET", server, path, query, None, EVENT_BYTES, REQUEST_MS, deadline)
        found = _decoded(answer, NearestEvent)
        return found if found is not None and is_event_id(found.event_id) else None

    async def policy_signature(self, server: str, key_id: str, event: Event, deadline: Deadline) -> str:
        """The signature by which a policy server recommends an event; `Refused` if it does not."""
        answer = await self._ask(
            "POST", server, "/_matrix/policy/v1/sign", [], event.pdu_dict(), EVENT_BYTES, REQUEST_MS, deadline
        )
        if answer is None:
            raise Refused(MatrixError(502, "M_UNKNOWN", "The policy server of the room cannot be reached."))
        signatures = _decoded(answer, dict[str, Any])
        if signatures is None:
            raise Refused(_refusal(answer))
        by_key = signatures.get(server)
        signature = by_key.get(key_id) if isinstance(by_key, dict) else None
        if not isinstance(signature, str):
            raise Refused(MatrixError(403, "M_FORBIDDEN", "The policy server of the room does not sign the event."))
        return signature

    async def _ask(
        self,
        method: str,
        server: str,
        path: str,
        query: list[tuple[str, str]],
        body: dict[str, Any] | None,
        limit: int,
        timeout_ms: int,
        deadline: Deadline,
    ) -> RawAnswer | None:
        left = deadline.left_ms()
        if not left:
            return None
        request = FederationRequest(
            method=method,
            destination=server,
            path=path,
            query=query,
            body=body,
            timeout_ms=min(timeout_ms, left),
            response_limit=limit,
        )
        try:
            return await self._federation.ask(request)
        except Unreachable:
            return None


def _decoded(answer: RawAnswer | None, type: type[T]) -> T | None:
    if answer is None or answer.status != 200:
        return None
    try:
        return msgspec.json.decode(answer.body, type=type)
    except MALFORMED:
        return None


def _refusal(answer: RawAnswer) -> MatrixError:
    """What a policy server answered, for the client whose event it is about."""
    try:
        refusal = msgspec.json.decode(answer.body, type=_Refusal)
    except MALFORMED:
        refusal = _Refusal()
    text = refusal.error[:500] or "The policy server of the room does not recommend the event."
    if answer.status in (400, 403, 404, 429):
        return MatrixError(answer.status if answer.status != 404 else 403, refusal.errcode[:255], text)
    return MatrixError(502, "M_UNKNOWN", text)

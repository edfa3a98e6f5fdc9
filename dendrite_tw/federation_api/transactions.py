"""``PUT /send/{txnId}``: what other servers tell this one.

Server-Server API, "Transactions", "PDUs", "EDUs", "Server Access Control Lists".  Events are stored and answered for
before they are looked at closely (`inbox`): what comes of them does not concern who sent them.  A transaction that is
sent again gets the answer that it got before.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from twisted.internet.defer import DeferredLock
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from ..database.engines import Database
from ..matrix.errors import MatrixError, invalid_param, limit_exceeded
from ..matrix.event_format import EventFormatError
from ..matrix.events import received_event_id
from ..matrix.identifiers import within_limit
from ..matrix.room_versions import ROOM_VERSIONS, RoomVersion
from ..matrix.transactions import MAX_TRANSACTION_BYTES, read_transaction, room_id_of, transaction_bytes
from ..room_api.api import RoomAPI
from ..web.routes import Access, Response, Route
from ..world import Clock
from .buckets import Buckets
from .ephemeral import Ephemeral
from .inbox import Inbox, Staged
from .shared import SharedCalls
from .tables.staging import answer_to

AT_ONCE = 8
"""How many transactions of one server may wait for each other; the specification asks for one after the other."""

WAIT_MS = 5_000

BURST = 200
PACE_MS = 5
"""So many transactions of one server are taken as fast as it sends them, then one in so long.  Others are let wait and
not refused: to a refusal servers answer with a long silence.
"""

SERVERS_REMEMBERED = 20_000
VERSIONS_REMEMBERED = 10_000


class TransactionRoutes:
    """Takes transactions."""

    def __init__(
        self,
        database: Database,
        rooms: RoomAPI,
        inbox: Inbox,
        ephemeral: Ephemeral,
        time: IReactorTime,
        clock: Clock,
        observe: Callable[[str, int], None] = lambda outcome, count: None,
    ) -> None:
        """`observe` is told how many events came, as ``total``, and of how many of them nothing will come."""
        self._database = database
        self._rooms = rooms
        self._inbox = inbox
        self._ephemeral = ephemeral
        self._observe = observe
        self._time = time
        self._pace: Buckets[str] = Buckets(clock, BURST, PACE_MS, SERVERS_REMEMBERED)
        self._taking: SharedCalls[tuple[str, str], bytes] = SharedCalls()
        self._turns: dict[str, _Turns] = {}
        self._versions: OrderedDict[str, RoomVersion] = OrderedDict()

    def routes(self) -> list[Route]:
        path = "/_matrix/federation/v1/send/{txn_id}"
        return [Route("PUT", path, self.send, Access.SERVER, body_limit=MAX_TRANSACTION_BYTES, cors=False)]

    async def send(self, origin: str, txn_id: str, body: bytes) -> Response:
        """Take a transaction."""
        if not txn_id or not within_limit(txn_id):
            raise invalid_param("The transaction ID is empty or too long.")
        return Response(200, await self._taking.run((origin, txn_id), lambda: self._in_turn(origin, txn_id, body)))

    async def _in_turn(self, origin: str, txn_id: str, body: bytes) -> bytes:
        """The transactions of one server are taken in the order in which they come."""
        turns = self._turns.setdefault(origin, _Turns())
        if turns.wanted >= AT_ONCE:
            raise limit_exceeded(WAIT_MS)
        turns.wanted += 1
        try:
            async with turns.lock:
                wait_ms = self._pace.wait_ms(origin)
                if wait_ms:
                    await deferLater(self._time, wait_ms / 1000)
                self._pace.add(origin)
                return await self._take(origin, txn_id, body)
        finally:
            turns.wanted -= 1
            if not turns.wanted:
                del self._turns[origin]

    async def _take(self, origin: str, txn_id: str, body: bytes) -> bytes:
        answer = await self._database.read(answer_to, origin, txn_id)
        if answer is not None:
            return answer
        transaction = read_transaction(body, origin)
        if transaction.pdus:
            self._inbox.check(origin)
        events, outcomes = await self._sort(origin, transaction.pdus)
        await self._ephemeral.take(origin, transaction.edus)
        return await self._inbox.take(origin, txn_id, events, transaction_bytes(outcomes))

    async def _sort(self, origin: str, pdus: tuple[bytes, ...]) -> tuple[list[Staged], dict[str, str | None]]:
        """The events that are to be staged, and the answer for each that can be named."""
        events: list[Staged] = []
        outcomes: dict[str, str | None] = {}
        verdicts: dict[str, tuple[RoomVersion | None, str | None]] = {}
        for pdu in pdus:
            try:
                room_id = room_id_of(pdu)
                if room_id not in verdicts:
                    verdicts[room_id] = await self._verdict(origin, room_id)
                version, reason = verdicts[room_id]
                if version is None:
                    continue
                outcomes[received_event_id(pdu, version)] = reason
            except (ValueError, EventFormatError):
                continue
            if reason is None:
                events.append(Staged(room_id, pdu))
        self._observe("total", len(pdus))
        self._observe("dropped", len(pdus) - len(events))
        return events, outcomes

    async def _verdict(self, origin: str, room_id: str) -> tuple[RoomVersion | None, str | None]:
        """The room's version, `None` if the room is unknown; and why nothing is taken for it, if so."""
        version = self._versions.get(room_id)
        if version is None:
            version = ROOM_VERSIONS.get(await self._rooms.room_version(room_id) or "")
            if version is None:
                return None, None
            self._versions[room_id] = version
            if len(self._versions) > VERSIONS_REMEMBERED:
                self._versions.popitem(last=False)
        try:
            await self._rooms.check_server(room_id, origin)
        except MatrixError as error:
            if error.status >= 500:
                raise
            return version, error.error
        return version, None


class _Turns:
    """Whose turn it is of one server's transactions."""

    def __init__(self) -> None:
        self.lock = DeferredLock()
        self.wanted = 0

"""What an administrator sees of the queues: for whom something waits, why, and how to have it tried now.

Under Dendrite's paths in our own shape, and under Synapse's in that of its "Federation API", for tools that know it.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ..database.engines import Database
from ..database.statements import Transaction
from ..matrix.errors import MatrixError, invalid_param
from ..matrix.identifiers import is_server_name
from ..web.routes import Access, Route
from ..world import Clock
from .destinations import Destinations
from .post import Post
from .queue import Queue
from .senders import Senders
from .tables import queues as table

DENDRITE = "/_dendrite/admin/federation/destinations"
SYNAPSE = "/_synapse/admin/v1/federation/destinations"

PAGE = 100
PAGE_LIMIT = 500


class PageQuery(msgspec.Struct, frozen=True):
    """Which part of a list: from the start-th on, in ascending (``f``) or descending (``b``) order of names."""

    start: int = msgspec.field(name="from", default=0)
    limit: int = PAGE
    dir: str = "f"
    destination: str = ""

    def check(self) -> None:
        if self.start < 0 or self.limit < 0:
            raise invalid_param("from and limit are counts and not negative.")
        if self.dir not in ("f", "b"):
            raise invalid_param("dir is f or b.")


class Counts(msgspec.Struct, frozen=True):
    """How much waits for a server."""

    pdus: int
    edus: int
    rooms: int


class DestinationRoutes:
    """Serves both."""

    def __init__(
        self, database: Database, post: Post, senders: Senders, destinations: Destinations, clock: Clock
    ) -> None:
        self._database = database
        self._post = post
        self._senders = senders
        self._destinations = destinations
        self._clock = clock

    def routes(self) -> list[Route]:
        admin = Access.ADMIN
        return [
            Route("GET", DENDRITE, self.page, admin),
            Route("GET", f"{DENDRITE}/{{server}}", self.one, admin),
            Route("POST", f"{DENDRITE}/{{server}}/retry", self.retry, admin),
            Route("GET", SYNAPSE, self.synapse_page, admin),
            Route("GET", f"{SYNAPSE}/{{server}}", self.synapse_one, admin),
            Route("GET", f"{SYNAPSE}/{{server}}/rooms", self.synapse_rooms, admin),
            Route("POST", f"{SYNAPSE}/{{server}}/reset_connection", self.reset, admin),
        ]

    # --- ours ---

    async def page(self, query: PageQuery) -> dict[str, Any]:
        """Servers for which something waits, or that did not answer the last time."""
        names, total, following = await self._names(query)
        answer: dict[str, Any] = {"destinations": [await self._described(name) for name in names], "total": total}
        return answer if following is None else {**answer, "next_token": following}

    async def one(self, server: str) -> dict[str, Any]:
        """One server, also one of which nothing is known."""
        if not is_server_name(server):
            raise invalid_param("This is no server name.")
        return await self._described(server)

    async def retry(self, server: str) -> dict[str, Any]:
        """Try a server now."""
        if not is_server_name(server):
            raise invalid_param("This is no server name.")
        await self._senders.retry(server)
        return await self._described(server)

    async def _described(self, server: str) -> dict[str, Any]:
        counts = await self._database.read_long(_counts, server)
        queue, trouble = self._post.queues.get(server), self._destinations.trouble(server)
        state, reason = self._state(queue, server, counts)
        return {
            "destination": server,
            "state": state,
            "reason": reason,
            "queued_pdus": counts.pdus,
            "queued_edus": counts.edus,
            "rooms_to_catch_up": counts.rooms,
            "failures": trouble.failures if trouble else 0,
            "last_error": trouble.error if trouble else queue.trouble if queue else "",
            "last_failure_ts": trouble.failed_ts if trouble else None,
            "next_attempt_ts": trouble.retry_ts if trouble and not trouble.given_up else None,
            "given_up": bool(trouble and trouble.given_up),
            "last_sent_ts": (queue.sent_ts or None) if queue else None,
        }

    def _state(self, queue: Queue | None, server: str, counts: Counts) -> tuple[str, str]:
        """What a queue does, in a word and in a sentence."""
        trouble = self._destinations.trouble(server)
        if queue is not None and queue.busy:
            return "sending", "A transaction is under way."
        if trouble is not None and trouble.given_up:
            return "given_up", (
                f"It failed {trouble.failures} times in a row and is not tried again before it is heard of, "
                "or told to by POST …/retry."
            )
        if trouble is not None and trouble.retry_ts > self._clock.now_ms():
            seconds = -(-(trouble.retry_ts - self._clock.now_ms()) // 1000)
            return "backing_off", f"It failed {trouble.failures} times in a row; the next attempt is in {seconds} s."
        if queue is None:
            if counts.pdus or counts.edus or counts.rooms:
                return "waiting", "Another process of this server sends to it."
            return "idle", "Nothing waits."
        if queue.ready:
            return "waiting", "It waits for its turn: many transactions are under way."
        return "waiting", queue.trouble or "What waits is not urgent and goes out in a moment."

    # --- Synapse's ---

    async def synapse_page(self, query: PageQuery) -> dict[str, Any]:
        """``GET /_synapse/admin/v1/federation/destinations``."""
        names, total, following = await self._names(query)
        answer: dict[str, Any] = {"destinations": [self._synapse(name) for name in names], "total": total}
        return answer if following is None else {**answer, "next_token": following}

    async def synapse_one(self, server: str) -> dict[str, Any]:
        await self._require(server)
        return self._synapse(server)

    async def synapse_rooms(self, server: str, query: PageQuery) -> dict[str, Any]:
        """The rooms of which something waits for a server."""
        await self._require(server)
        query.check()
        limit = min(query.limit, PAGE_LIMIT)
        rows = await self._database.read_long(table.rooms_waiting, server, query.start, limit)
        total = await self._database.read_long(table.count_rooms_waiting, server)
        answer: dict[str, Any] = {
            "rooms": [{"room_id": row.room_id, "stream_ordering": row.position} for row in rows],
            "total": total,
        }
        following = query.start + len(rows)
        return {**answer, "next_token": str(following)} if rows and following < total else answer

    async def reset(self, server: str) -> dict[str, Any]:
        """``POST …/reset_connection``: forget that a server did not answer, and try it now."""
        await self._require(server)
        if not self._destinations.failures(server):
            raise MatrixError(400, "M_UNKNOWN", "The retry timing does not need to be reset for this destination.")
        await self._senders.retry(server)
        return {}

    def _synapse(self, server: str) -> dict[str, Any]:
        trouble = self._destinations.trouble(server)
        return {
            "destination": server,
            "retry_last_ts": trouble.failed_ts if trouble else 0,
            "retry_interval": trouble.retry_ts - trouble.failed_ts if trouble else 0,
            "failure_ts": trouble.failed_ts if trouble else None,
            "last_successful_stream_ordering": None,
        }

    async def _require(self, server: str) -> None:
        if self._destinations.trouble(server) is None and server not in await self._post.waiting():
            raise MatrixError(404, "M_NOT_FOUND", "Nothing waits for this server, and it answered the last time.")

    # --- both ---

    async def _names(self, query: PageQuery) -> tuple[list[str], int, str | None]:
        """A page of the servers' names, how many there are in all, and the token of the next page."""
        query.check()
        known = {*await self._post.waiting(), *self._destinations.failing()}
        names = sorted((name for name in known if query.destination in name), reverse=query.dir == "b")
        page = names[query.start : query.start + min(query.limit, PAGE_LIMIT)]
        following = query.start + len(page)
        return page, len(names), str(following) if page and following < len(names) else None


async def _counts(txn: Transaction, server: str) -> Counts:
    return Counts(
        await table.count_events(txn, server),
        await table.count_edus(txn, server),
        await table.count_rooms(txn, server),
    )

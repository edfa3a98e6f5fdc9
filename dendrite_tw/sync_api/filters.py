"""Filters by their IDs: stored for each user, compiled once, remembered.

Client-Server API, "Filtering".
"""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import orjson

from ..cache import Cache, CacheBudget
from ..database.engines import Database
from ..database.statements import Transaction
from ..matrix.errors import forbidden, invalid_param, not_found
from ..matrix.filters import DEFAULT, Filter, is_inline, load_json, parse_filter
from ..user_api.api import Caller
from ..web.routes import Access, Route
from ..world import Clock
from .tables.filters import FILTERS_OF_A_USER, delete_oldest, filter_content, put_filter

COMPILED_OVERHEAD = 4000
COMPILED_GROWTH = 10
"""What a compiled filter takes: so many bytes, and so many times the length of its JSON."""

ID_LENGTH_LIMIT = 64


class Filters:
    """Stores filters and gives them back ready for use."""

    def __init__(self, database: Database, clock: Clock, budget: CacheBudget) -> None:
        self._database = database
        self._clock = clock
        self._compiled: Cache[tuple[str, str], tuple[Filter, int]] = Cache(
            "sync_filters", budget, lambda known: COMPILED_OVERHEAD + COMPILED_GROWTH * known[1]
        )

    def routes(self) -> list[Route]:
        path = "/_matrix/client/v3/user/{user_id}/filter"
        return [
            Route("POST", path, self.define, Access.GUEST),
            Route("GET", path + "/{filter_id}", self.show, Access.GUEST),
        ]

    async def define(self, user_id: str, caller: Caller, body: dict[str, Any]) -> dict[str, str]:
        """``POST /user/{userId}/filter``."""
        if caller.user_id != user_id:
            raise forbidden("A filter can be made for oneself only.")
        made = parse_filter(body)
        content = orjson.dumps(made.to_json(), option=orjson.OPT_SORT_KEYS)
        digest = hashlib.blake2b(content, digest_size=12).digest()
        filter_id = base64.urlsafe_b64encode(digest).decode()
        await self._database.write(store_filter, user_id, filter_id, content, self._clock.now_ms())
        self._remember((user_id, filter_id), made, len(content))
        return {"filter_id": filter_id}

    async def show(self, user_id: str, filter_id: str, caller: Caller) -> dict[str, Any]:
        """``GET /user/{userId}/filter/{filterId}``."""
        if caller.user_id != user_id:
            raise forbidden("Only one's own filters can be read.")
        found = await self._find(user_id, filter_id)
        if found is None:
            raise not_found("There is no such filter.")
        return found.to_json()

    async def resolve(self, user_id: str, parameter: str | None) -> Filter:
        """The filter that the parameter ``filter`` of /sync means: an ID, or the filter itself."""
        if not parameter:
            return DEFAULT
        known = self._compiled.get((user_id, parameter))
        if known is not None:
            return known[0]
        if is_inline(parameter):
            made = parse_filter(load_json(parameter))
            self._remember((user_id, parameter), made, len(parameter))
            return made
        found = await self._find(user_id, parameter)
        if found is None:
            raise invalid_param("There is no filter with this ID.")
        return found

    async def _find(self, user_id: str, filter_id: str) -> Filter | None:
        known = self._compiled.get((user_id, filter_id))
        if known is not None:
            return known[0]
        if len(filter_id) > ID_LENGTH_LIMIT:
            return None
        content = await self._database.read(filter_content, user_id, filter_id)
        if content is None:
            return None
        made = parse_filter(orjson.loads(content))
        self._remember((user_id, filter_id), made, len(content))
        return made

    def _remember(self, key: tuple[str, str], made: Filter, size: int) -> None:
        self._compiled.put(key, (made, size))


async def store_filter(txn: Transaction, user_id: str, filter_id: str, content: bytes, now: int) -> None:
    await put_filter(txn, user_id, filter_id, content, now)
    await delete_oldest(txn, user_id, FILTERS_OF_A_USER)

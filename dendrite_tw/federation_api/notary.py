"""This server as a notary: documents of other servers' keys, handed on with its own signature beside theirs.

Server-Server API, "Querying Keys Through Another Server".  A document is handed out for half of its time, and after
that if its server does not answer or has forgotten the key that is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
from twisted.internet.defer import Deferred, gatherResults

from ..database.engines import Database
from ..matrix.identifiers import is_server_name
from ..world import Clock
from .buckets import Buckets
from .keyring import KeyRing, Wanted
from .signing_keys import OwnKeys
from .tables.keys import DocumentRow, document_of, retired_documents

FETCHES = 16
"""How many servers are asked at the same time for strangers who take this server for a notary."""

RENEWALS = 10
RENEWAL_MS = 5_000
"""How often one server is asked for them: so many times in a row, then once in so long."""

SERVERS_REMEMBERED = 20_000


class Notary:
    """Hands on what other servers say of their keys."""

    def __init__(self, ring: KeyRing, own: OwnKeys, database: Database, clock: Clock) -> None:
        self._ring = ring
        self._own = own
        self._database = database
        self._clock = clock
        self._renewing = 0
        self._renewals: Buckets[str] = Buckets(clock, RENEWALS, RENEWAL_MS, SERVERS_REMEMBERED)

    async def documents(self, wants: Mapping[str, Wanted], minimum_valid_until_ts: int = 0) -> list[dict[str, Any]]:
        """The documents of these servers with this server's signature added; none of those that cannot be had.

        They should count until `minimum_valid_until_ts`, and until the time that is given for a key.
        """
        waiting = [
            Deferred.fromCoroutine(self._countersigned(name, wanted, minimum_valid_until_ts))
            for name, wanted in wants.items()
        ]
        return [document for found in await gatherResults(waiting, consumeErrors=True) for document in found]

    async def _countersigned(self, server_name: str, wanted: Wanted, minimum: int) -> list[dict[str, Any]]:
        if server_name == self._own.server_name:
            return [self._own.document()]
        if not is_server_name(server_name):
            return []
        found = await self._documents(server_name, wanted)
        if not self._is_enough(found, wanted, minimum) and self._may_renew(server_name):
            self._renewals.add(server_name)
            self._renewing += 1
            try:
                await self._ring.renew(server_name)
            finally:
                self._renewing -= 1
            found = await self._documents(server_name, wanted)
        return [self._own.countersign(orjson.loads(row.document)) for row in found]

    async def _documents(self, server_name: str, wanted: Wanted) -> list[DocumentRow]:
        """The newest document, and for keys that it no longer has the last one that had them."""
        newest = await self._database.read(document_of, server_name)
        if newest is None:
            return []
        missing = [key_id for key_id in wanted if key_id not in keys_in(newest)]
        if not missing:
            return [newest]
        older = {row.document: row for row in await self._database.read(retired_documents, server_name, missing)}
        return [*older.values(), *([newest] if len(missing) < len(wanted) or not older else [])]

    def _is_enough(self, found: list[DocumentRow], wanted: Wanted, minimum: int) -> bool:
        """Whether each wanted key, or without any the server, is in a document that will do."""
        if not wanted:
            return any(self._will_do(row, minimum) for row in found)
        return all(
            any(key_id in keys_in(row) and self._will_do(row, ts or minimum) for row in found)
            for key_id, ts in wanted.items()
        )

    def _will_do(self, row: DocumentRow, minimum: int) -> bool:
        """Whether a document counts for as long as is asked; who asks for no time wants a fresh one."""
        if minimum:
            return row.valid_until_ts >= minimum
        return self._clock.now_ms() < row.fetched_ts + (row.valid_until_ts - row.fetched_ts) // 2

    def _may_renew(self, server_name: str) -> bool:
        return self._renewing < FETCHES and not self._renewals.wait_ms(server_name)


def keys_in(row: DocumentRow) -> set[str]:
    """The ids of all keys that a document names, old ones too."""
    document = orjson.loads(row.document)
    return {*document["verify_keys"], *(document.get("old_verify_keys") or {})}

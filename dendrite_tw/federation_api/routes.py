"""The first endpoints of federation: this server's keys, other servers' keys, and what runs here.

Server-Server API, "Retrieving server keys" and "Server implementation".
"""

from __future__ import annotations

from typing import Any

import msgspec

from .. import __version__
from ..matrix.errors import bad_json, invalid_param
from ..matrix.identifiers import is_server_name
from ..web.routes import Access, Response, Route
from .keyring import Wanted
from .notary import Notary
from .signing_keys import OwnKeys

QUERY_SERVERS = 50
QUERY_KEYS = 20
"""How many servers one question may be about, and how many keys of each."""

BODY_LIMIT = 64 << 10
LATEST_TS = 2**53 - 1


class Criteria(msgspec.Struct, frozen=True):
    """What is asked of a key."""

    minimum_valid_until_ts: int = 0


class KeyQuery(msgspec.Struct, frozen=True):
    """Which keys are asked for: by server name, then by key id; no ids ask for all."""

    server_keys: dict[str, dict[str, Criteria]]


class KeyRoutes:
    """Serves keys, without asking who wants them."""

    def __init__(self, own: OwnKeys, notary: Notary) -> None:
        self._own = own
        self._notary = notary

    def routes(self) -> list[Route]:
        public = Access.PUBLIC
        return [
            Route("GET", "/_matrix/key/v2/server", self.own_keys, public, cors=False),
            Route("GET", "/_matrix/key/v2/server/", self.own_keys, public, cors=False),
            Route("GET", "/_matrix/key/v2/server/{key_id}", self.own_key, public, cors=False),
            Route("POST", "/_matrix/key/v2/query", self.query, public, body_limit=BODY_LIMIT, cors=False),
            Route("GET", "/_matrix/key/v2/query/{server_name}", self.query_server, public, cors=False),
            Route("GET", "/_matrix/key/v2/query/{server_name}/{key_id}", self.query_key, public, cors=False),
            Route("GET", "/_matrix/federation/v1/version", self.version, public, cors=False),
        ]

    async def own_keys(self) -> Response:
        """This server's document."""
        return Response(200, self._own.document_bytes())

    async def own_key(self, key_id: str) -> Response:
        """The same; older versions of the specification let a key be named."""
        return Response(200, self._own.document_bytes())

    async def query(self, body: KeyQuery) -> dict[str, Any]:
        """The documents of several servers."""
        if len(body.server_keys) > QUERY_SERVERS:
            raise bad_json(f"At most {QUERY_SERVERS} servers may be asked about.")
        wants: dict[str, Wanted] = {}
        for server_name, keys in body.server_keys.items():
            if len(keys) > QUERY_KEYS:
                raise bad_json(f"At most {QUERY_KEYS} keys of a server may be asked about.")
            wants[server_name] = {key_id: _moment(one.minimum_valid_until_ts) for key_id, one in keys.items()}
        return {"server_keys": await self._notary.documents(wants)}

    async def query_server(self, server_name: str, query: Criteria) -> dict[str, Any]:
        """The document of one server."""
        return await self._one(server_name, "", query)

    async def query_key(self, server_name: str, key_id: str, query: Criteria) -> dict[str, Any]:
        """The same; older versions of the specification let a key be named."""
        return await self._one(server_name, key_id, query)

    async def _one(self, server_name: str, key_id: str, query: Criteria) -> dict[str, Any]:
        if not is_server_name(server_name):
            raise invalid_param("The server name is malformed.")
        minimum = _moment(query.minimum_valid_until_ts)
        wanted = {key_id: minimum} if key_id else {}
        return {"server_keys": await self._notary.documents({server_name: wanted}, minimum)}

    async def version(self) -> dict[str, Any]:
        """The name and version of this implementation."""
        return {"server": {"name": "dendrite_tw", "version": __version__}}


def _moment(ts: int) -> int:
    if not 0 <= ts <= LATEST_TS:
        raise invalid_param("minimum_valid_until_ts is out of range.")
    return ts

"""What aliases of other servers name.

Server-Server API, ``GET /query/directory``.
"""

from __future__ import annotations

from ...federation_api.api import FederationAPI, FederationRequest, RemoteRefused, Unreachable
from ...matrix.errors import MatrixError, not_found
from ...matrix.identifiers import is_room_id, is_server_name, server_name_of
from ..api import Alias

SECONDS = 10.0
LIMIT = 256 << 10

MAX_SERVERS = 50
"""Servers that are remembered with an alias."""


class RemoteAliases:
    """Asks the server of an alias, each time: people ask for few, and want to land where they lead now."""

    def __init__(self, federation: FederationAPI) -> None:
        self._federation = federation

    async def resolve(self, alias: str) -> Alias:
        """The room that an alias names; 404 ``M_NOT_FOUND`` where none, 502 if its server does not say."""
        server = server_name_of(alias)
        question = FederationRequest(
            method="GET",
            destination=server,
            path="/_matrix/federation/v1/query/directory",
            query=[("room_alias", alias)],
            timeout_ms=int(1000 * SECONDS),
            response_limit=LIMIT,
            despite_backoff=True,
        )
        try:
            answer = await self._federation.request(question)
        except RemoteRefused as error:
            if error.remote_status == 404:
                raise not_found(f"The alias {alias} names no room.") from None
            raise
        except Unreachable:
            raise MatrixError(502, "M_UNKNOWN", f"{server} could not be asked what {alias} names.") from None
        room_id, named = answer.get("room_id"), answer.get("servers")
        if not is_room_id(room_id):
            raise MatrixError(502, "M_UNKNOWN", f"{server} did not say what {alias} names.")
        servers = filter(is_server_name, named if isinstance(named, list) else [])
        return Alias(alias, room_id, list(dict.fromkeys([*servers, server]))[:MAX_SERVERS])

"""The directories of other servers, as clients here are shown them.

Client-Server API, ``/publicRooms`` with ``server``; Server-Server API, "Published Room Directory".
"""

from __future__ import annotations

from typing import Any

import msgspec
import orjson

from ..federation_api.api import FederationAPI, FederationRequest, RemoteRefused
from ..matrix.errors import MatrixError, invalid_param
from ..matrix.identifiers import is_room_id, is_server_name
from ..room_api.api import PublicRoom

PATH = "/_matrix/federation/v1/publicRooms"
TIMEOUT_MS = 20_000
ANSWER_LIMIT = 8 << 20
PAGE_LIMIT = 500
TOKEN_LIMIT = 4096

HIDDEN = frozenset({"room_version", "encryption", "allowed_room_ids"})
"""What only summaries show of a room."""


class FarQuery(msgspec.Struct, frozen=True, kw_only=True):
    """What a client asks of a directory, checked for shape only."""

    limit: int
    since: str | None = None
    filter: dict[str, Any] | None = None
    include_all_networks: bool = False
    third_party_instance_id: str | None = None


class FarDirectory:
    """Asks other servers for pages of their directories."""

    def __init__(self, federation: FederationAPI) -> None:
        self._federation = federation

    async def page(self, server: str, query: FarQuery) -> dict[str, Any]:
        """A page; 400 for what is no server, 502 where it cannot be asked, or what it refuses with."""
        if not is_server_name(server):
            raise invalid_param("server is not the name of a server.")
        limit = max(1, min(query.limit, PAGE_LIMIT))
        asked: dict[str, Any] = {"limit": limit, "include_all_networks": query.include_all_networks}
        if query.since is not None:
            asked["since"] = query.since
        if query.third_party_instance_id is not None:
            asked["third_party_instance_id"] = query.third_party_instance_id
        request = FederationRequest(
            method="GET" if query.filter is None else "POST",
            destination=server,
            path=PATH,
            query=[(key, _text(value)) for key, value in asked.items()] if query.filter is None else [],
            body=None if query.filter is None else {**asked, "filter": query.filter},
            timeout_ms=TIMEOUT_MS,
            response_limit=ANSWER_LIMIT,
            despite_backoff=True,
        )
        answer = await self._federation.ask(request)
        said = _object(answer.body)
        if answer.status != 200:
            raise _refusal(answer.status, said)
        return _page(said, limit)


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _object(body: bytes) -> dict[str, Any]:
    try:
        said = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    return said if isinstance(said, dict) else {}


def _refusal(status: int, said: dict[str, Any]) -> MatrixError:
    errcode, error = said.get("errcode"), said.get("error")
    refused = RemoteRefused(
        status,
        errcode[:255] if isinstance(errcode, str) else "M_UNKNOWN",
        error[:500] if isinstance(error, str) else f"status {status}",
    )
    return refused.forwarded()


def _page(said: dict[str, Any], limit: int) -> dict[str, Any]:
    """What of an answer a client is shown: rows and fields that are what they should be."""
    chunk, count = said.get("chunk"), said.get("total_room_count_estimate")
    rows = [_row(entry) for entry in chunk[:limit]] if isinstance(chunk, list) else []
    page: dict[str, Any] = {"chunk": [row for row in rows if row is not None]}
    if isinstance(count, int) and not isinstance(count, bool) and count >= 0:
        page["total_room_count_estimate"] = count
    for key in ("next_batch", "prev_batch"):
        token = said.get(key)
        if isinstance(token, str) and 0 < len(token) <= TOKEN_LIMIT:
            page[key] = token
    return page


def _row(entry: object) -> dict[str, Any] | None:
    if not isinstance(entry, dict):
        return None
    try:
        row = msgspec.convert({key: value for key, value in entry.items() if value is not None}, PublicRoom)
    except msgspec.ValidationError:
        return None
    if not is_room_id(row.room_id):
        return None
    return {key: value for key, value in msgspec.to_builtins(row).items() if key not in HIDDEN}

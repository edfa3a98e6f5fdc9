"""Profiles of users of other servers, which are asked for them and remembered for a while.

Server-Server API, ``GET /query/profile``.
"""

from __future__ import annotations

from typing import Any

import msgspec
import orjson
from twisted.internet.interfaces import IReactorTime

from ..cache import Cache, CacheBudget
from ..federation_api.api import FederationAPI, FederationRequest, RemoteRefused
from ..matrix.errors import MatrixError
from ..matrix.identifiers import is_historical_user_id, server_name_of
from .profiles import check_field
from .settings import PROFILE_LIMIT

KEPT_SECONDS = 300.0
"""How long a profile is shown as it was."""

TIMEOUT_MS = 10_000
SHORT_TIMEOUT_MS = 3_000
"""How long who asks for a profile waits for it, and who goes on without it."""

REQUESTS_AT_ONCE = 64
"""Requests under way together: anybody may ask for profiles."""

ENTRY_BYTES = 300
QUERY_PATH = "/_matrix/federation/v1/query/profile"

STRINGS = ("displayname", "avatar_url", "m.tz")
"""Fields that must be strings."""


class _Known(msgspec.Struct, frozen=True):
    """A profile as JSON (`None`: there is none) and when it was asked for."""

    fields: bytes | None
    asked_at: float


class RemoteProfiles:
    """Asks other servers for profiles."""

    def __init__(self, federation: FederationAPI, time: IReactorTime, budget: CacheBudget) -> None:
        self._federation = federation
        self._time = time
        self._running = 0
        self._cache: Cache[tuple[str, str], _Known] = Cache(
            "remote_profiles", budget, lambda known: ENTRY_BYTES + len(known.fields or b"")
        )

    async def profile(self, user_id: str) -> dict[str, str]:
        """The fields that rooms show; none where the server does not say."""
        try:
            fields = await self.fields(user_id, None, SHORT_TIMEOUT_MS)
        except MatrixError:
            fields = None
        return {name: fields[name] for name in ("displayname", "avatar_url") if name in fields} if fields else {}

    async def fields(self, user_id: str, field: str | None, timeout_ms: int = TIMEOUT_MS) -> dict[str, Any] | None:
        """All fields of a profile, or the one that is named; `None` where there is no such user.

        Raises `Unreachable` where there is no answer, and what the server says where it refuses: 403 for one.
        """
        if not is_historical_user_id(user_id):
            return None
        if field is not None:
            check_field(field)
        known = self._remembered(user_id, None)
        if known is None and field is not None:
            known = self._remembered(user_id, field)
        if known is None:
            known = _Known(await self._ask(user_id, field, timeout_ms), self._time.seconds())
            self._cache.put((user_id, field or ""), known)
        if known.fields is None:
            return None
        fields: dict[str, Any] = orjson.loads(known.fields)
        return fields if field is None else {name: value for name, value in fields.items() if name == field}

    def _remembered(self, user_id: str, field: str | None) -> _Known | None:
        known = self._cache.get((user_id, field or ""))
        return known if known is not None and self._time.seconds() < known.asked_at + KEPT_SECONDS else None

    async def _ask(self, user_id: str, field: str | None, timeout_ms: int) -> bytes | None:
        if self._running >= REQUESTS_AT_ONCE:
            raise MatrixError(
                429, "M_LIMIT_EXCEEDED", "Too many profiles are being asked for. Try again.", retry_after_ms=1000
            )
        request = FederationRequest(
            method="GET",
            destination=server_name_of(user_id),
            path=QUERY_PATH,
            query=[("user_id", user_id), *([("field", field)] if field is not None else [])],
            timeout_ms=timeout_ms,
            response_limit=2 * PROFILE_LIMIT,
        )
        self._running += 1
        try:
            return _checked(await self._federation.request(request))
        except RemoteRefused as refused:
            if refused.remote_status == 404:
                return None
            raise refused.forwarded() from None
        finally:
            self._running -= 1


def _checked(answer: dict[str, Any]) -> bytes:
    """A profile's JSON: fields with names and values that there can be; null counts as absent."""
    fields: dict[str, Any] = {}
    for name, value in answer.items():
        try:
            check_field(name)
        except MatrixError:
            continue
        if value is not None and (name not in STRINGS or isinstance(value, str)):
            fields[name] = value
    content = orjson.dumps(fields)
    if len(content) <= PROFILE_LIMIT:
        return content
    return orjson.dumps({name: value[:1000] for name, value in fields.items() if name in STRINGS})

"""Tokens that prove to others who a user is, and credentials for calls.

Client-Server API, "OpenID", "Voice over IP"; Server-Server API, "OpenID", which
anybody may ask, server or not.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from typing import Any

import msgspec

from ..matrix.errors import MatrixError
from ..user_api.api import Caller, UserAPI
from ..web.routes import Access, Route
from ..world import Clock
from .account_data import own
from .settings import TOKENS, ClientSettings


class TokenQuery(msgspec.Struct):
    access_token: str | None = None


class OpenIdSection:
    """``/openid/request_token``, ``/openid/userinfo`` and ``/voip/turnServer``."""

    def __init__(self, users: UserAPI, settings: ClientSettings, clock: Clock) -> None:
        self._users = users
        self._settings = settings
        self._clock = clock

    def routes(self) -> list[Route]:
        path = "/_matrix/client/v3/user/{user_id}/openid/request_token"
        return [
            Route("POST", path, self.request_token, Access.USER, TOKENS),
            Route("GET", "/_matrix/federation/v1/openid/userinfo", self.user_info, Access.PUBLIC, TOKENS),
            Route("GET", "/_matrix/client/v3/voip/turnServer", self.turn_server, Access.USER, TOKENS),
        ]

    async def request_token(self, caller: Caller, user_id: str) -> dict[str, Any]:
        own(caller, user_id)
        made = await self._users.new_openid_token(user_id)
        return {
            "access_token": made.token,
            "expires_in": made.expires_in_ms // 1000,
            "matrix_server_name": self._settings.server_name,
            "token_type": "Bearer",
        }

    async def user_info(self, query: TokenQuery) -> dict[str, str]:
        """Whom a token stands for, as ``sub``; 401 ``M_UNKNOWN_TOKEN`` for one that stands for nobody (any more)."""
        if query.access_token is None:
            raise MatrixError(401, "M_MISSING_TOKEN", "access_token is required.")
        owner = await self._users.owner_of_openid_token(query.access_token)
        if owner is None:
            raise MatrixError(401, "M_UNKNOWN_TOKEN", "The access token is unknown or has expired.")
        return {"sub": owner}

    async def turn_server(self, caller: Caller) -> dict[str, Any]:
        """Credentials; nothing where no TURN server is configured, which clients take for that."""
        turn = self._settings.turn
        if not turn.uris:
            return {}
        if turn.shared_secret:
            username = f"{self._clock.now_ms() // 1000 + turn.lifetime_seconds}:{caller.user_id}"
            mac = hmac.new(turn.shared_secret.encode(), username.encode(), hashlib.sha1).digest()
            password = base64.b64encode(mac).decode()
        elif turn.username and turn.password:
            username, password = turn.username, turn.password
        else:
            return {}
        return {
            "username": username,
            "password": password,
            "uris": list(turn.uris),
            "ttl": turn.lifetime_seconds,
        }

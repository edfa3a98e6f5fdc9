"""Tokens that prove to others who a user is, and credentials for calls.

Client-Server API, "OpenID", "Voice over IP".
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from typing import Any

from ..user_api.api import Caller, UserAPI
from ..web.routes import Access, Route
from ..world import Clock
from .account_data import own
from .settings import TOKENS, ClientSettings


class OpenIdSection:
    """``/openid/request_token`` and ``/voip/turnServer``."""

    def __init__(self, users: UserAPI, settings: ClientSettings, clock: Clock) -> None:
        self._users = users
        self._settings = settings
        self._clock = clock

    def routes(self) -> list[Route]:
        path = "/_matrix/client/v3/user/{user_id}/openid/request_token"
        return [
            Route("POST", path, self.request_token, Access.USER, TOKENS),
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

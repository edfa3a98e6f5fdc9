"""Who is asking: from an access token to a `Caller`, and whether the endpoint is for them.

Client-Server API, "Client Authentication".  A token comes in the
``Authorization`` header or, from older clients, in the query string.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ..matrix.errors import MatrixError, forbidden
from ..user_api.api import Caller
from .resource import Exchange
from .routes import Access

TOKEN_LIMIT = 2048
"""No token of ours is longer; a longer one is unknown without a look-up."""


def access_token(exchange: Exchange) -> str | None:
    """The access token that came with a request, if any."""
    header = exchange.header(b"authorization")
    if header is not None:
        scheme, _, token = header.partition(" ")
        if scheme.lower() == "bearer" and token.strip():
            return token.strip()
    return exchange.field("access_token") if b"access_token=" in exchange.uri else None


class WhoAsks(Protocol):
    """The part of `UserAPI` that knows whose tokens are."""

    async def caller_of(self, access_token: str) -> Caller: ...

    async def acting_as(self, appservice_id: str, user_id: str, device_id: str | None) -> Caller: ...


class TokenAuthenticator:
    """Asks the user component whose token it is, and holds that against the endpoint's `Access`."""

    def __init__(
        self, users: WhoAsks, observe: Callable[[Caller, Exchange], None] = lambda caller, exchange: None
    ) -> None:
        """`observe` is told of every request by a known caller."""
        self._users = users
        self._observe = observe

    async def caller(self, access: Access, exchange: Exchange) -> Caller | None:
        token = access_token(exchange)
        if token is None:
            if access is Access.OPTIONAL:
                return None
            raise MatrixError(401, "M_MISSING_TOKEN", "This endpoint needs an access token.")
        if len(token) > TOKEN_LIMIT:
            raise unknown_token()
        caller = await self._users.caller_of(token)
        if caller.appservice_id is not None:
            caller = await self._asserted(caller, caller.appservice_id, exchange)
        require(access, caller)
        self._observe(caller, exchange)
        return caller

    async def _asserted(self, caller: Caller, appservice_id: str, exchange: Exchange) -> Caller:
        """The user that an application service acts as (Application Service API, "Identity assertion")."""
        user_id, device_id = exchange.field("user_id"), exchange.field("device_id")
        if user_id is None and device_id is None:
            return caller
        return await self._users.acting_as(appservice_id, user_id or caller.user_id, device_id)


def require(access: Access, caller: Caller) -> None:
    """Raise the `MatrixError` that `caller` gets where `access` is not for them."""
    if caller.is_guest and access in (Access.USER, Access.ADMIN):
        raise MatrixError(403, "M_GUEST_ACCESS_FORBIDDEN", "Guests may not do this; make an account.")
    if access is Access.ADMIN and not caller.is_admin:
        raise forbidden("Only an administrator of this server may do this.")
    if access is Access.APPSERVICE and caller.appservice_id is None:
        raise forbidden("Only an application service may do this.")


def unknown_token(soft_logout: bool = False) -> MatrixError:
    """The answer to a token that belongs to nobody; after ``soft_logout`` a client keeps its keys."""
    return MatrixError(401, "M_UNKNOWN_TOKEN", "The access token is unknown or has expired.", soft_logout=soft_logout)

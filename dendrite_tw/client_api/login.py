"""Logging in and out, and fresh tokens (Client-Server API, "Login", "Refreshing access tokens")."""

from __future__ import annotations

from typing import Any

import msgspec

from ..matrix.errors import MatrixError, forbidden, missing_param
from ..user_api.api import TYPE_GUEST, Caller, Login, NewLogin, UserAPI
from ..web.auth import access_token
from ..web.resource import Exchange
from ..web.routes import Access, Route
from .settings import LOGIN, TOKENS, ClientSettings
from .uia import PASSWORD, InteractiveAuth, named_user

TOKEN = "m.login.token"  # noqa: S105
APPLICATION_SERVICE = "m.login.application_service"


class LoginBody(msgspec.Struct, kw_only=True):
    type: str
    identifier: Any = None
    user: Any = None
    medium: Any = None
    password: str | None = None
    token: str | None = None
    device_id: str | None = None
    initial_device_display_name: str | None = None
    refresh_token: bool = False


class RefreshBody(msgspec.Struct):
    refresh_token: str


class AuthBody(msgspec.Struct):
    auth: Any = None


def session_answer(login: Login, settings: ClientSettings) -> dict[str, Any]:
    """What ``/login`` and ``/register`` say of a new session."""
    answer: dict[str, Any] = {
        "user_id": login.user_id,
        "access_token": login.access_token,
        "device_id": login.device_id,
        "home_server": settings.server_name,
    }
    if login.refresh_token is not None:
        answer |= {"refresh_token": login.refresh_token, "expires_in_ms": login.expires_in_ms}
    if settings.well_known_client_name:
        answer["well_known"] = {"m.homeserver": {"base_url": settings.well_known_client_name}}
    return answer


def locked() -> MatrixError:
    return MatrixError(401, "M_USER_LOCKED", "This account has been locked.", soft_logout=True)


class LoginSection:
    """``/login``, ``/logout``, ``/refresh``."""

    def __init__(self, users: UserAPI, settings: ClientSettings, auth: InteractiveAuth) -> None:
        self._users = users
        self._settings = settings
        self._auth = auth

    def routes(self) -> list[Route]:
        return [
            Route("GET", "/_matrix/client/v3/login", self.flows, Access.PUBLIC, LOGIN),
            Route("POST", "/_matrix/client/v3/login", self.log_in, Access.PUBLIC, LOGIN),
            Route("POST", "/_matrix/client/v1/login/get_token", self.get_token, Access.USER, TOKENS),
            Route("POST", "/_matrix/client/v3/refresh", self.refresh, Access.PUBLIC, TOKENS),
            Route("POST", "/_matrix/client/v3/logout", self.log_out, Access.PUBLIC),
            Route("POST", "/_matrix/client/v3/logout/all", self.log_out_everywhere, Access.PUBLIC),
        ]

    async def flows(self) -> dict[str, Any]:
        flows: list[dict[str, Any]] = [{"type": PASSWORD}, {"type": TOKEN, "get_login_token": True}]
        if self._settings.has_appservices:
            flows.append({"type": APPLICATION_SERVICE})
        return {"flows": flows}

    async def log_in(self, request: Exchange, body: LoginBody) -> dict[str, Any]:
        if body.type == PASSWORD:
            user_id = await self._by_password(body)
        elif body.type == TOKEN:
            user_id = await self._by_token(body)
        elif body.type == APPLICATION_SERVICE:
            user_id = await self._by_appservice(request, body)
        else:
            raise MatrixError(400, "M_UNKNOWN", "This type of login is not known.")
        account = await self._users.account(user_id)
        if account is None or account.account_type == TYPE_GUEST:
            raise forbidden("Invalid username or password.")
        if account.locked:
            raise locked()
        login = NewLogin(
            user_id=user_id,
            device_id=body.device_id or None,
            display_name=body.initial_device_display_name,
            refreshable=body.refresh_token,
            ip=request.ip,
            user_agent=request.user_agent,
        )
        return session_answer(await self._users.log_in(login), self._settings)

    async def _by_password(self, body: LoginBody) -> str:
        if body.password is None:
            raise missing_param("password is required.")
        user_id = await self._named(body)
        if not await self._users.check_password(user_id, body.password):
            raise forbidden("Invalid username or password.")
        return user_id

    async def _named(self, body: LoginBody) -> str:
        named = {"identifier": body.identifier, "user": body.user, "medium": body.medium}
        return await named_user(
            self._users, self._settings.server_name, {key: value for key, value in named.items() if value is not None}
        )

    async def _by_token(self, body: LoginBody) -> str:
        if body.token is None:
            raise missing_param("token is required.")
        user_id = await self._users.use_login_token(body.token)
        if user_id is None:
            raise forbidden("The login token is not valid (any more).")
        return user_id

    async def _by_appservice(self, request: Exchange, body: LoginBody) -> str:
        token = access_token(request)
        if token is None:
            raise MatrixError(401, "M_MISSING_TOKEN", "This login needs the token of an application service.")
        try:
            service = await self._users.caller_of(token)
        except MatrixError:
            raise forbidden("The token is not that of an application service.") from None
        if service.appservice_id is None:
            raise forbidden("The token is not that of an application service.")
        user_id = await self._named(body)
        await self._users.acting_as(service.appservice_id, user_id, None)
        return user_id

    async def get_token(self, caller: Caller, request: Exchange, body: AuthBody) -> dict[str, Any]:
        await self._auth.require(request, "login/get_token", caller.user_id, body.auth, [[PASSWORD]])
        made = await self._users.new_login_token(caller.user_id)
        return {"login_token": made.token, "expires_in_ms": made.expires_in_ms}

    async def refresh(self, body: RefreshBody) -> dict[str, Any]:
        login = await self._users.refresh(body.refresh_token)
        return {
            "access_token": login.access_token,
            "refresh_token": login.refresh_token,
            "expires_in_ms": login.expires_in_ms,
        }

    async def log_out(self, request: Exchange) -> None:
        caller = await self._session(request)
        if caller.device_id is not None:
            await self._users.delete_devices(caller.user_id, [caller.device_id], None)

    async def log_out_everywhere(self, request: Exchange) -> None:
        caller = await self._session(request)
        await self._users.delete_devices(caller.user_id, None, None)

    async def _session(self, request: Exchange) -> Caller:
        """The caller, whose account may be locked ("Account locking")."""
        token = access_token(request)
        if token is None:
            raise MatrixError(401, "M_MISSING_TOKEN", "This endpoint needs an access token.")
        return await self._users.session_of(token)

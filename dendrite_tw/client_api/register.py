"""Making accounts: by users, guests and application services, and with the shared secret.

Client-Server API, "Account registration" and "Guest Access";
``/_synapse/admin/v1/register`` is what ``create-account`` speaks.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

import msgspec

from ..matrix.errors import MatrixError, forbidden, invalid_param, missing_param
from ..user_api.api import TYPE_ADMIN, TYPE_APPSERVICE, TYPE_GUEST, TYPE_USER, NewAccount, NewLogin, UIASession, UserAPI
from ..web.auth import access_token
from ..web.resource import Exchange
from ..web.routes import Access, Route, make_body_decoder
from ..world import World
from .login import APPLICATION_SERVICE, session_answer
from .settings import REGISTER, ClientSettings
from .uia import (
    DUMMY,
    RECAPTCHA,
    REGISTRATION_TOKEN,
    SESSION_LIFETIME_MS,
    SESSIONS_LIMIT,
    AuthenticationNeeded,
    InteractiveAuth,
)

NONCE_LIFETIME_MS = 300_000
NONCES_LIMIT = 1000
NONCE_LENGTH = 64

REMEMBERED_BODY = 4096
"""Bytes of a first request up to which it is remembered for those that follow in its session."""


class RegisterBody(msgspec.Struct, kw_only=True):
    auth: Any = None
    type: str | None = None
    username: str | None = None
    user: str | None = None
    password: str | None = None
    device_id: str | None = None
    initial_device_display_name: str | None = None
    inhibit_login: bool = False
    refresh_token: bool = False
    guest_access_token: str | None = None


class GuestBody(msgspec.Struct, kw_only=True):
    initial_device_display_name: str | None = None


_decode_user = make_body_decoder(RegisterBody)
_decode_guest = make_body_decoder(GuestBody)


class KindQuery(msgspec.Struct):
    kind: str = "user"


class AvailableQuery(msgspec.Struct):
    username: str


class TokenQuery(msgspec.Struct):
    token: str


class SecretBody(msgspec.Struct, kw_only=True):
    nonce: str
    username: str
    password: str
    mac: str
    admin: bool = False
    user_type: str | None = None
    displayname: str | None = None


class RegisterSection:
    """``/register`` and what belongs to it."""

    def __init__(self, users: UserAPI, settings: ClientSettings, auth: InteractiveAuth, world: World) -> None:
        self._users = users
        self._settings = settings
        self._auth = auth
        self._random = world.random
        self._clock = world.clock
        self._nonces = auth.keep("nonce", NONCES_LIMIT)
        self._asked = auth.keep("registration asked for", SESSIONS_LIMIT)
        self._made = auth.keep("registration made", SESSIONS_LIMIT)

    def routes(self) -> list[Route]:
        validity = "/_matrix/client/v1/register/m.login.registration_token/validity"
        rows = [
            Route("POST", "/_matrix/client/v3/register", self.register, Access.PUBLIC, REGISTER),
            Route("GET", "/_matrix/client/v3/register/available", self.available, Access.PUBLIC, REGISTER),
            Route("GET", validity, self.token_validity, Access.PUBLIC, REGISTER),
        ]
        if self._settings.registration_shared_secret:
            path = "/_synapse/admin/v1/register"
            rows += [
                Route("GET", path, self.nonce, Access.PUBLIC, REGISTER),
                Route("POST", path, self.register_with_secret, Access.PUBLIC, REGISTER),
            ]
        return rows

    @property
    def _flow(self) -> list[str]:
        """The stages that everybody goes through who registers."""
        stages = [RECAPTCHA] if self._settings.captcha is not None else []
        if self._settings.registration_requires_token:
            stages.append(REGISTRATION_TOKEN)
        return stages or [DUMMY]

    async def register(self, request: Exchange, query: KindQuery, body: bytes) -> dict[str, Any]:
        if query.kind == "guest":
            return await self._register_guest(request, _decode_guest(body))
        if query.kind != "user":
            raise MatrixError(400, "M_UNKNOWN", "The kind of account is user or guest.")
        wanted = _decode_user(body)
        if wanted.type == APPLICATION_SERVICE:
            return await self._register_for_appservice(request, wanted)
        if self._settings.registration_disabled:
            raise forbidden("Registration is disabled on this server.")
        session = session_of(wanted.auth)
        if session:
            made = await self._made_before(session)
            if made is not None and wanted.password and await self._users.check_password(made, wanted.password):
                return await self._answer_again(request, made, wanted)
            asked = await self._asked.get(session)
            if asked is not None:
                wanted = with_earlier(wanted, msgspec.convert(asked.params, RegisterBody))
        try:
            answer = await self._register_user(request, wanted)
        except AuthenticationNeeded as needed:
            if len(body) <= REMEMBERED_BODY:
                said = msgspec.to_builtins(msgspec.structs.replace(wanted, auth=None))
                await self._asked.put(self._proof(needed.session.id, SESSION_LIFETIME_MS, said))
            raise
        if session:
            await self._asked.end(session)
            await self._made.put(self._proof(session, SESSION_LIFETIME_MS, {}, answer["user_id"]))
        return answer

    def _proof(self, id: str, lifetime_ms: int, said: dict[str, Any], user_id: str | None = None) -> UIASession:
        """What is remembered for a while: what was said, or the user whom it came to."""
        return UIASession(
            id=id,
            purpose="register",
            user_id=user_id,
            flows=[],
            params=said,
            expires_ts=self._clock.now_ms() + lifetime_ms,
        )

    async def _made_before(self, session: str) -> str | None:
        """The user whom a session made already."""
        made = await self._made.get(session)
        return made.user_id if made is not None else None

    async def _answer_again(self, request: Exchange, user_id: str, body: RegisterBody) -> dict[str, Any]:
        """The answer to a registration that has happened: whoever repeats the request may have missed the first."""
        if body.inhibit_login:
            return {"user_id": user_id, "home_server": self._settings.server_name}
        login = msgspec.structs.replace(login_wanted(request, body), user_id=user_id)
        return session_answer(await self._users.log_in(login), self._settings)

    async def _register_user(self, request: Exchange, body: RegisterBody) -> dict[str, Any]:
        upgrades = await self._guest_of(body.guest_access_token) if body.guest_access_token is not None else None
        localpart = body.username if body.username is not None else body.user
        if localpart is not None and upgrades is None:
            localpart = await self._users.check_localpart(localpart, None)
        passed = await self._auth.require(request, "register", None, body.auth, [self._flow])
        if body.password is None:
            raise missing_param("password is required.")
        account = NewAccount(
            localpart=localpart,
            password=body.password,
            account_type=TYPE_USER,
            registration_token=passed.get(REGISTRATION_TOKEN),
            upgrades_guest=upgrades,
        )
        return await self._make(request, account, body)

    async def _guest_of(self, token: str) -> str:
        """The user ID of a guest who wants to become a user."""
        guest = await self._users.caller_of(token)
        if not guest.is_guest:
            raise forbidden("The guest access token is not that of a guest.")
        return guest.user_id

    async def _register_for_appservice(self, request: Exchange, body: RegisterBody) -> dict[str, Any]:
        token = access_token(request)
        if token is None:
            raise MatrixError(401, "M_MISSING_TOKEN", "This registration needs the token of an application service.")
        service = await self._users.caller_of(token)
        if service.appservice_id is None:
            raise forbidden("The token is not that of an application service.")
        localpart = body.username if body.username is not None else body.user
        if localpart is None:
            raise missing_param("username is required.")
        account = NewAccount(localpart=localpart, account_type=TYPE_APPSERVICE, appservice_id=service.appservice_id)
        return await self._make(request, account, body)

    async def _register_guest(self, request: Exchange, body: GuestBody) -> dict[str, Any]:
        if self._settings.guests_disabled or self._settings.registration_disabled:
            raise MatrixError(403, "M_GUEST_ACCESS_FORBIDDEN", "This server has no guest accounts.")
        wanted = RegisterBody(initial_device_display_name=body.initial_device_display_name)
        return await self._make(request, NewAccount(account_type=TYPE_GUEST), wanted)

    async def _make(self, request: Exchange, account: NewAccount, body: RegisterBody) -> dict[str, Any]:
        login = login_wanted(request, body)
        user_id, made = await self._users.register(account, None if body.inhibit_login else login)
        if made is None:
            return {"user_id": user_id, "home_server": self._settings.server_name}
        return session_answer(made, self._settings)

    async def available(self, query: AvailableQuery) -> dict[str, Any]:
        if self._settings.registration_disabled:
            raise forbidden("Registration is disabled on this server.")
        await self._users.check_localpart(query.username, None)
        return {"available": True}

    async def token_validity(self, query: TokenQuery) -> dict[str, Any]:
        if self._settings.registration_disabled:
            raise forbidden("Registration is not enabled on this homeserver.")
        return {"valid": await self._users.is_valid_registration_token(query.token)}

    # --- with the shared secret ---

    async def nonce(self) -> dict[str, Any]:
        nonce = self._random.token(NONCE_LENGTH)
        await self._nonces.put(self._proof(nonce, NONCE_LIFETIME_MS, {}))
        return {"nonce": nonce}

    async def register_with_secret(self, request: Exchange, body: SecretBody) -> dict[str, Any]:
        if await self._nonces.end(body.nonce) is None:
            raise invalid_param("The nonce is unknown or older than five minutes; get a new one.")
        if not hmac.compare_digest(self._mac(body), body.mac.lower().encode("utf-8", "replace")):
            raise forbidden("The MAC does not fit: the shared secret is another one here.")
        account = NewAccount(
            localpart=body.username,
            password=body.password,
            account_type=TYPE_ADMIN if body.admin else TYPE_USER,
        )
        login = NewLogin(display_name="shared_secret_registration", ip=request.ip, user_agent=request.user_agent)
        user_id, made = await self._users.register(account, login)
        if body.displayname is not None:
            await self._users.set_profile_field(user_id, "displayname", body.displayname)
        assert made is not None
        return session_answer(made, self._settings)

    def _mac(self, body: SecretBody) -> bytes:
        """The HMAC-SHA1, in hexadecimal, that whoever knows the secret puts on this request."""
        parts = [body.nonce, body.username, body.password, "admin" if body.admin else "notadmin"]
        if body.user_type is not None:
            parts.append(body.user_type)
        secret = self._settings.registration_shared_secret.encode()
        message = "\0".join(parts).encode("utf-8", "surrogatepass")
        return hmac.new(secret, message, hashlib.sha1).hexdigest().encode()


def session_of(auth: Any) -> str:
    """The session that a request names, or an empty string."""
    session = auth.get("session") if isinstance(auth, dict) else None
    return session if isinstance(session, str) else ""


def with_earlier(body: RegisterBody, earlier: RegisterBody) -> RegisterBody:
    """`body`, with what an earlier request of its session said where it is silent."""
    silent = RegisterBody()
    said = {name: value for name in body.__struct_fields__ if (value := getattr(body, name)) != getattr(silent, name)}
    return msgspec.structs.replace(earlier, **said)


def login_wanted(request: Exchange, body: RegisterBody) -> NewLogin:
    return NewLogin(
        device_id=body.device_id or None,
        display_name=body.initial_device_display_name,
        refreshable=body.refresh_token,
        ip=request.ip,
        user_agent=request.user_agent,
    )

"""User-interactive authentication: a caller proves again, in stages, who they are.

Client-Server API, "User-Interactive Authentication API".  A session remembers
which stages were passed, for one endpoint and one user.  Whoever loses one
begins again with the next 401.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from ..matrix.errors import MatrixError, bad_json, forbidden, missing_param, not_found
from ..user_api.api import UIASession, UserAPI
from ..web.resource import Exchange
from ..world import World
from .proofs import keeper
from .settings import ClientSettings

PASSWORD = "m.login.password"  # noqa: S105
DUMMY = "m.login.dummy"
REGISTRATION_TOKEN = "m.login.registration_token"  # noqa: S105
RECAPTCHA = "m.login.recaptcha"

SESSION_LIFETIME_MS = 3_600_000
SESSIONS_LIMIT = 10_000
"""Sessions that are remembered; the oldest is forgotten first."""

SESSION_LENGTH = 24

Flows = Sequence[Sequence[str]]


class Captcha(Protocol):
    """Asks a captcha service about a response."""

    async def passes(self, response: str, ip: str) -> bool: ...


class AuthenticationNeeded(MatrixError):
    """The 401 that tells what stages there are and which are done; with an error where one failed."""

    def __init__(self, session: UIASession, error: MatrixError | None = None) -> None:
        super().__init__(401, error.errcode if error else "", error.error if error else "")
        self.session = session

    def body(self) -> dict[str, Any]:
        session = self.session
        answer: dict[str, Any] = {
            "session": session.id,
            "flows": [{"stages": list(stages)} for stages in session.flows],
            "params": session.params,
        }
        if session.completed or self.errcode:
            answer["completed"] = list(session.completed)
        if self.errcode:
            answer |= {"errcode": self.errcode, "error": self.error}
        return answer


class AnotherUserError(MatrixError):
    """Somebody proves to be another user than the one who asks: no second attempt mends that."""

    def __init__(self) -> None:
        super().__init__(403, "M_FORBIDDEN", "This is another user.")


def is_complete(session: UIASession) -> bool:
    """Whether all stages of some flow are passed."""
    return any(all(stage in session.completed for stage in stages) for stages in session.flows)


def may_try(session: UIASession, stage: str) -> bool:
    """Whether `stage` is the next of a flow whose earlier stages are passed."""
    for stages in session.flows:
        if stage in stages and all(before in session.completed for before in stages[: stages.index(stage)]):
            return True
    return False


def with_stage(session: UIASession, stage: str, result: str) -> UIASession:
    """The session with one more stage that is passed."""
    return msgspec.structs.replace(session, completed={**session.completed, stage: result})


class InteractiveAuth:
    """Holds the sessions and judges the stages."""

    def __init__(
        self,
        users: UserAPI,
        world: World,
        settings: ClientSettings,
        captcha: Captcha | None = None,
        shared: bool = False,
    ) -> None:
        """`shared`: other processes serve the client API too, and the next step may reach one of them."""
        self._users = users
        self._clock = world.clock
        self._random = world.random
        self._settings = settings
        self._captcha = captcha
        self.keep = keeper(users, world, shared)
        """Where other sections keep what clients say in several steps."""
        self._sessions = self.keep("uia", SESSIONS_LIMIT)

    async def require(
        self, request: Exchange, purpose: str, user_id: str | None, auth: Any, flows: Flows
    ) -> dict[str, str]:
        """What each stage of the completed flow yielded; `AuthenticationNeeded` until one is complete.

        `purpose` names the operation and what it is done to: a session of one does not serve another.  `user_id` is the
        caller, where one is known; the password stage then takes no other's, and yields the user
        ID.  The session ends with this answer.
        """
        if auth is None:
            raise AuthenticationNeeded(await self._open(purpose, user_id, flows))
        if not isinstance(auth, dict):
            raise bad_json("auth must be an object.")
        stage = auth.get("type")
        if stage is not None and not isinstance(stage, str):
            raise bad_json("auth.type must be a string.")
        session = await self._resume(auth.get("session"), purpose, user_id)
        known = session is not None
        if session is None:
            session = self._new(purpose, user_id, flows)
        if stage is not None and stage not in session.completed:
            try:
                session = await self._attempt(session, stage, auth, request)
            except AuthenticationNeeded:
                if not known:
                    await self._sessions.put(session)
                raise
            if not is_complete(session):
                await self._sessions.put(session)
        elif not known:
            await self._sessions.put(session)
        if not is_complete(session):
            raise AuthenticationNeeded(session)
        if known and await self._sessions.end(session.id) is None:
            # Somebody else has just ended it: it serves once.
            raise AuthenticationNeeded(await self._open(purpose, user_id, flows))
        return session.completed

    async def _attempt(self, session: UIASession, stage: str, auth: dict[str, Any], request: Exchange) -> UIASession:
        if not may_try(session, stage):
            raise AuthenticationNeeded(session, MatrixError(401, "M_UNKNOWN", "This stage is not to be done now."))
        try:
            return with_stage(session, stage, await self._pass(session, stage, auth, request.ip))
        except MatrixError as error:
            if error.status >= 500 or error.errcode == "M_LIMIT_EXCEEDED" or isinstance(error, AnotherUserError):
                raise
            raise AuthenticationNeeded(session, error) from None

    def _new(self, purpose: str, user_id: str | None, flows: Flows) -> UIASession:
        params: dict[str, Any] = {}
        if self._settings.captcha is not None and any(RECAPTCHA in stages for stages in flows):
            params[RECAPTCHA] = {"public_key": self._settings.captcha.public_key}
        return UIASession(
            id=self._random.token(SESSION_LENGTH),
            purpose=purpose,
            user_id=user_id,
            flows=[list(stages) for stages in flows],
            params=params,
            expires_ts=self._clock.now_ms() + SESSION_LIFETIME_MS,
        )

    async def _open(self, purpose: str, user_id: str | None, flows: Flows) -> UIASession:
        session = self._new(purpose, user_id, flows)
        await self._sessions.put(session)
        return session

    async def _resume(self, id: Any, purpose: str, user_id: str | None) -> UIASession | None:
        session = await self._sessions.get(id) if isinstance(id, str) else None
        if session is not None and (session.purpose != purpose or session.user_id != user_id):
            raise forbidden("The session was begun for another operation.")
        return session

    # --- stages ---

    async def _pass(self, session: UIASession, stage: str, auth: dict[str, Any], ip: str) -> str:
        """What a passed stage yields; `MatrixError` where it is not passed."""
        if stage == PASSWORD:
            return await self._password(session, auth)
        if stage == REGISTRATION_TOKEN:
            return await self.check_registration_token(auth.get("token"))
        if stage == RECAPTCHA:
            return await self.check_captcha(auth.get("response"), ip)
        return ""

    async def _password(self, session: UIASession, auth: dict[str, Any]) -> str:
        password = auth.get("password")
        if not isinstance(password, str):
            raise missing_param("password is required.")
        named = await named_user(self._users, self._settings.server_name, auth, session.user_id)
        if session.user_id is not None and named != session.user_id:
            raise AnotherUserError
        if not await self._users.check_password(named, password):
            raise forbidden("Invalid password.")
        return named

    async def check_registration_token(self, token: Any) -> str:
        """`token` if somebody may register with it; ``M_UNAUTHORIZED`` otherwise."""
        if not isinstance(token, str):
            raise missing_param("token is required.")
        if not await self._users.is_valid_registration_token(token):
            raise MatrixError(401, "M_UNAUTHORIZED", "The registration token is not valid.")
        return token

    async def check_captcha(self, response: Any, ip: str) -> str:
        """Pass where the captcha service says so, or the response is the bypass secret."""
        settings = self._settings.captcha
        if settings is None or self._captcha is None:
            raise MatrixError(400, "M_UNRECOGNIZED", "This server asks for no captcha.")
        if not isinstance(response, str) or not response or len(response) > 16_384:
            raise MatrixError(401, "M_CAPTCHA_NEEDED", "A captcha response is required.")
        if settings.bypass_secret and same(response, settings.bypass_secret):
            return ""
        if not await self._captcha.passes(response, ip):
            raise MatrixError(401, "M_CAPTCHA_INVALID", "The captcha was not solved.")
        return ""

    # --- what a web page does for a client that does not know a stage ---

    async def complete_in_browser(self, id: str, stage: str, answer: str, ip: str) -> None:
        """Pass a stage of a session from its fallback page; raises what the page shall show."""
        session = await self.session(id)
        if stage in session.completed:
            return
        if stage not in (DUMMY, REGISTRATION_TOKEN, RECAPTCHA) or not may_try(session, stage):
            raise not_found("The session has no such stage to be done now.")
        result = await self._pass(session, stage, {"token": answer, "response": answer}, ip)
        await self._sessions.put(with_stage(session, stage, result))

    async def session(self, id: str) -> UIASession:
        """The session of that ID; 404 where there is none."""
        session = await self._sessions.get(id)
        if session is None:
            raise not_found("There is no such session; begin again in your app.")
        return session


def same(given: str, wanted: str) -> bool:
    """Whether two secrets are equal, in a time that tells nothing of where they differ."""
    return hmac.compare_digest(given.encode("utf-8", "replace"), wanted.encode("utf-8", "replace"))


async def named_user(users: UserAPI, server_name: str, body: dict[str, Any], otherwise: str | None = None) -> str:
    """The user ID that an ``identifier``, or the old ``user``, means on this server.

    An account is found without regard to case.  Raises 400 for what is no identifier, 403 for a user
    who can have no account here; an ID without an account is returned like any other.
    """
    identifier = body.get("identifier")
    if identifier is None:
        user = body.get("user", otherwise)
        if user is None and body.get("medium") is not None:
            raise forbidden("No account is known by this address.")
    elif not isinstance(identifier, dict):
        raise bad_json("identifier must be an object.")
    elif identifier.get("type") in ("m.id.thirdparty", "m.id.phone"):
        raise forbidden("No account is known by this address.")
    elif identifier.get("type") == "m.id.user":
        user = identifier.get("user")
    else:
        raise MatrixError(400, "M_UNKNOWN", "This type of identifier is not known.")
    if user is None:
        raise missing_param("identifier is required.")
    if not isinstance(user, str):
        raise bad_json("user must be a string.")
    return await _local_id(users, server_name, user)


async def _local_id(users: UserAPI, server_name: str, user: str) -> str:
    if user.startswith("@") and ":" in user:
        if user.partition(":")[2] != server_name:
            raise forbidden("This user is of another server.")
    else:
        user = f"@{user}:{server_name}"
    if len(user) > 512:
        raise forbidden("There is no such user.")
    if await users.account(user) is None:
        return f"{user.partition(':')[0].lower()}:{server_name}"
    return user

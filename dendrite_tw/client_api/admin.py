"""What administrators do with accounts: the specification's endpoints and Dendrite's.

Client-Server API, "Server Administration"; Dendrite's admin API.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from ..matrix.errors import MatrixError, bad_json, forbidden, invalid_param, missing_param, not_found
from ..user_api.api import TYPE_ADMIN, Account, Caller, RegistrationToken, UserAPI
from ..web.routes import Access, Route
from .settings import ClientSettings

DENDRITE = "/_dendrite/admin"
DEFAULT_TOKEN_LENGTH = 16
LARGEST_NUMBER = 2**53 - 1


class LockedBody(msgspec.Struct):
    locked: bool


class SuspendedBody(msgspec.Struct):
    suspended: bool


class ResetBody(msgspec.Struct, kw_only=True):
    password: str
    logout_devices: bool = False


Number = Annotated[int, msgspec.Meta(ge=0, le=LARGEST_NUMBER)]


class NewTokenBody(msgspec.Struct, kw_only=True):
    token: str | None = None
    uses_allowed: Number | None = None
    expiry_time: Number | None = None
    length: Number = DEFAULT_TOKEN_LENGTH


class ValidQuery(msgspec.Struct):
    valid: bool | None = None


class AdminSection:
    """Whois, locking and suspending, passwords and registration tokens."""

    def __init__(self, users: UserAPI, settings: ClientSettings) -> None:
        self._users = users
        self._settings = settings

    def routes(self) -> list[Route]:
        moderation = "/_matrix/client/v1/admin"
        tokens = f"{DENDRITE}/registrationTokens"
        return [
            Route("GET", "/_matrix/client/v3/admin/whois/{user_id}", self.whois, Access.USER),
            Route("GET", f"{moderation}/lock/{{user_id}}", self.locked, Access.ADMIN),
            Route("PUT", f"{moderation}/lock/{{user_id}}", self.set_locked, Access.ADMIN),
            Route("GET", f"{moderation}/suspend/{{user_id}}", self.suspended, Access.ADMIN),
            Route("PUT", f"{moderation}/suspend/{{user_id}}", self.set_suspended, Access.ADMIN),
            Route("POST", f"{DENDRITE}/resetPassword/{{user_id}}", self.reset_password, Access.ADMIN),
            Route("POST", f"{tokens}/new", self.new_token, Access.ADMIN),
            Route("GET", tokens, self.tokens, Access.ADMIN),
            Route("GET", f"{tokens}/{{registration_token}}", self.token, Access.ADMIN),
            Route("PUT", f"{tokens}/{{registration_token}}", self.update_token, Access.ADMIN),
            Route("DELETE", f"{tokens}/{{registration_token}}", self.delete_token, Access.ADMIN),
        ]

    # --- users ---

    async def whois(self, caller: Caller, user_id: str) -> dict[str, Any]:
        if caller.user_id != user_id and not caller.is_admin:
            raise forbidden("Only an administrator may ask for others.")
        if not self._is_local(user_id) or await self._users.account(user_id) is None:
            raise not_found("There is no such user here.")
        devices: dict[str, Any] = {}
        for device in await self._users.devices(user_id):
            seen = {"ip": device.last_seen_ip, "last_seen": device.last_seen_ts, "user_agent": device.user_agent}
            connections = [seen] if device.last_seen_ts else []
            devices[device.device_id] = {"sessions": [{"connections": connections}]}
        return {"user_id": user_id, "devices": devices}

    async def locked(self, caller: Caller, user_id: str) -> dict[str, Any]:
        return {"locked": (await self._moderated(caller, user_id)).locked}

    async def set_locked(self, caller: Caller, user_id: str, body: LockedBody) -> dict[str, Any]:
        await self._moderated(caller, user_id)
        await self._users.set_locked(user_id, body.locked)
        return {"locked": body.locked}

    async def suspended(self, caller: Caller, user_id: str) -> dict[str, Any]:
        return {"suspended": (await self._moderated(caller, user_id)).suspended}

    async def set_suspended(self, caller: Caller, user_id: str, body: SuspendedBody) -> dict[str, Any]:
        await self._moderated(caller, user_id)
        await self._users.set_suspended(user_id, body.suspended)
        return {"suspended": body.suspended}

    async def _moderated(self, caller: Caller, user_id: str) -> Account:
        """The account of a user who can be locked or suspended by the caller."""
        if not self._is_local(user_id):
            raise invalid_param("User does not belong to the local server.")
        account = await self._users.account(user_id)
        if account is None or account.deactivated:
            raise not_found("User not found.")
        if user_id == caller.user_id:
            raise forbidden("You cannot do this to yourself.")
        if account.account_type == TYPE_ADMIN:
            raise forbidden("The user is an administrator.")
        return account

    async def reset_password(self, user_id: str, body: ResetBody) -> dict[str, Any]:
        """Set anybody's password; the path has a user ID or a localpart."""
        if not user_id.startswith("@"):
            user_id = f"@{user_id}:{self._settings.server_name}"
        if not self._is_local(user_id):
            raise invalid_param("User does not belong to the local server.")
        await self._users.set_password(user_id, body.password, body.logout_devices, None)
        return {"password_updated": True}

    def _is_local(self, user_id: str) -> bool:
        return user_id.partition(":")[2] == self._settings.server_name

    # --- registration tokens ---

    async def new_token(self, body: NewTokenBody) -> RegistrationToken:
        self._check_tokens_used()
        return await self._users.new_registration_token(
            body.token or None, body.length, body.uses_allowed, body.expiry_time
        )

    def _check_tokens_used(self) -> None:
        if not self._settings.registration_requires_token:
            raise MatrixError(
                403, "M_FORBIDDEN", "Registration asks for no token here: set client_api.registration_requires_token."
            )

    async def tokens(self, query: ValidQuery) -> dict[str, Any]:
        found = await self._users.registration_tokens()
        if query.valid is not None:
            valid = {one.token: await self._users.is_valid_registration_token(one.token) for one in found}
            found = [one for one in found if valid[one.token] == query.valid]
        return {"registration_tokens": [msgspec.structs.asdict(one) for one in found]}

    async def token(self, registration_token: str) -> RegistrationToken:
        for one in await self._users.registration_tokens():
            if one.token == registration_token:
                return one
        raise not_found("There is no such registration token.")

    async def update_token(self, registration_token: str, body: dict[str, Any]) -> RegistrationToken:
        """Change what the body names; `None` takes a limit away."""
        old = await self.token(registration_token)
        if not body.keys() & {"uses_allowed", "expiry_time"}:
            raise missing_param("uses_allowed or expiry_time is required.")
        values = {"uses_allowed": old.uses_allowed, "expiry_time": old.expiry_time}
        for name in values.keys() & body.keys():
            value = body[name]
            if value is not None and (type(value) is not int or not 0 <= value <= LARGEST_NUMBER):
                raise bad_json(f"{name} must be a number of 0 or more, or null.")
            values[name] = value
        return await self._users.update_registration_token(
            registration_token, values["uses_allowed"], values["expiry_time"]
        )

    async def delete_token(self, registration_token: str) -> None:
        await self._users.delete_registration_token(registration_token)

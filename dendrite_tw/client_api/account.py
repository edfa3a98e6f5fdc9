"""One's own account: who am I, passwords, closing it, and third-party identifiers.

Client-Server API, "Account management", "Adding Account Administrative Contact
Information".  Identifiers need e-mail, SMS or an identity server, none of which
this server has: lists are empty, and what would add to them is refused.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ..matrix.errors import MatrixError, forbidden
from ..user_api.api import TYPE_APPSERVICE, Caller, UserAPI
from ..web.resource import Exchange
from ..web.routes import Access, Route
from .settings import ACCOUNT
from .uia import PASSWORD, InteractiveAuth

CLIENT = "/_matrix/client/v3"


class PasswordBody(msgspec.Struct, kw_only=True):
    new_password: str
    logout_devices: bool = True
    auth: Any = None


class DeactivateBody(msgspec.Struct, kw_only=True):
    auth: Any = None
    erase: bool = False
    id_server: str | None = None


class DeleteThreepidBody(msgspec.Struct, kw_only=True):
    medium: str
    address: str
    id_server: str | None = None


class AccountSection:
    """``/account``."""

    def __init__(self, users: UserAPI, auth: InteractiveAuth) -> None:
        self._users = users
        self._auth = auth

    def routes(self) -> list[Route]:
        return [
            Route("GET", f"{CLIENT}/account/whoami", self.who_am_i, Access.GUEST),
            Route("POST", f"{CLIENT}/account/password", self.set_password, Access.OPTIONAL, ACCOUNT),
            Route("POST", f"{CLIENT}/account/deactivate", self.deactivate, Access.OPTIONAL, ACCOUNT),
            *self._threepid_routes(),
        ]

    def _threepid_routes(self) -> list[Route]:
        requests = [
            f"{CLIENT}/{what}/{medium}/requestToken"
            for what in ("register", "account/password", "account/3pid")
            for medium in ("email", "msisdn")
        ]
        return [
            Route("GET", f"{CLIENT}/account/3pid", self.threepids),
            Route("POST", f"{CLIENT}/account/3pid", self.refuse_unverified, limit=ACCOUNT),
            Route("POST", f"{CLIENT}/account/3pid/add", self.refuse_unverified, limit=ACCOUNT),
            Route("POST", f"{CLIENT}/account/3pid/bind", self.refuse_unverified, limit=ACCOUNT),
            Route("POST", f"{CLIENT}/account/3pid/delete", self.delete_threepid, limit=ACCOUNT),
            Route("POST", f"{CLIENT}/account/3pid/unbind", self.delete_threepid, limit=ACCOUNT),
            *[Route("POST", path, self.refuse_medium, Access.PUBLIC, ACCOUNT) for path in requests],
        ]

    async def who_am_i(self, caller: Caller) -> dict[str, Any]:
        answer: dict[str, Any] = {"user_id": caller.user_id, "is_guest": caller.is_guest}
        if caller.device_id is not None:
            answer["device_id"] = caller.device_id
        return answer

    async def set_password(self, caller: Caller | None, request: Exchange, body: PasswordBody) -> None:
        owner = await self._owner(caller, request, "account/password", body.auth)
        keep = caller.device_id if caller is not None else None
        await self._users.set_password(owner, body.new_password, body.logout_devices, keep)

    async def deactivate(self, caller: Caller | None, request: Exchange, body: DeactivateBody) -> dict[str, Any]:
        owner = await self._owner(caller, request, "account/deactivate", body.auth)
        await self._users.deactivate(owner, body.erase)
        return {"id_server_unbind_result": "success"}

    async def _owner(self, caller: Caller | None, request: Exchange, purpose: str, auth: Any) -> str:
        """The user whose password was given; an application service needs none for its users."""
        if caller is not None and caller.is_guest:
            raise MatrixError(403, "M_GUEST_ACCESS_FORBIDDEN", "Guests have no password.")
        if caller is not None and caller.appservice_id is not None:
            account = await self._users.account(caller.user_id)
            if account is None or account.account_type != TYPE_APPSERVICE:
                raise forbidden("This is no account of the application service.")
            return caller.user_id
        user_id = caller.user_id if caller is not None else None
        passed = await self._auth.require(request, purpose, user_id, auth, [[PASSWORD]])
        return passed[PASSWORD]

    # --- third-party identifiers ---

    async def threepids(self) -> dict[str, Any]:
        return {"threepids": []}

    async def refuse_unverified(self) -> None:
        raise MatrixError(403, "M_THREEPID_AUTH_FAILED", "This server cannot verify third-party identifiers.")

    async def delete_threepid(self, body: DeleteThreepidBody) -> dict[str, Any]:
        """There is nothing to remove here; another server's binding is not ours to undo."""
        return {"id_server_unbind_result": "no-support"}

    async def refuse_medium(self) -> None:
        raise MatrixError(
            403, "M_THREEPID_DENIED", "This server sends neither e-mail nor SMS; it keeps no such identifiers."
        )

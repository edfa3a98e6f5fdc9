"""Profiles, one's own and others' (Client-Server API, "Profiles"); those of users of other servers come from there."""

from __future__ import annotations

from typing import Any

from ..matrix.errors import bad_json, forbidden, invalid_param, missing_param, not_found
from ..matrix.identifiers import is_historical_user_id
from ..user_api.api import Caller, UserAPI
from ..web.routes import Access, Route
from .settings import PROFILE

CLIENT = "/_matrix/client/v3"
BODY_LIMIT = 1 << 17
GUESTS_FIELD = "displayname"
"""The one field that guests may change ("Guest Access")."""


class ProfileSection:
    """``/profile``."""

    def __init__(self, users: UserAPI) -> None:
        self._users = users

    def routes(self) -> list[Route]:
        field = f"{CLIENT}/profile/{{user_id}}/{{key_name}}"
        return [
            Route("GET", f"{CLIENT}/profile/{{user_id}}", self.profile, Access.PUBLIC),
            Route("GET", field, self.field, Access.PUBLIC),
            Route("PUT", field, self.put, Access.GUEST, PROFILE, body_limit=BODY_LIMIT),
            Route("DELETE", field, self.delete, Access.GUEST, PROFILE),
        ]

    async def profile(self, user_id: str) -> dict[str, Any]:
        return await self._found(user_id, None)

    async def field(self, user_id: str, key_name: str) -> dict[str, Any]:
        fields = await self._found(user_id, key_name)
        if key_name not in fields:
            raise not_found("The profile has no such field.")
        return {key_name: fields[key_name]}

    async def _found(self, user_id: str, field: str | None) -> dict[str, Any]:
        """The profile of a user of any server; 404 where there is none."""
        if not is_historical_user_id(user_id):
            raise invalid_param("This is no user ID.")
        fields = await self._users.profile_fields(user_id, field)
        if fields is None:
            raise not_found("There is no such user.")
        return fields

    async def put(self, caller: Caller, user_id: str, key_name: str, body: dict[str, Any]) -> None:
        await self._check(caller, user_id, key_name)
        if key_name not in body:
            raise missing_param(f"{key_name} is required.")
        if len(body) > 1:
            raise bad_json(f"Only {key_name} can be set here.")
        await self._users.set_profile_field(user_id, key_name, body[key_name])

    async def delete(self, caller: Caller, user_id: str, key_name: str) -> None:
        await self._check(caller, user_id, key_name)
        await self._users.delete_profile_field(user_id, key_name)

    async def _check(self, caller: Caller, user_id: str, field: str) -> None:
        """Raise 403 unless the caller may change that field of that user."""
        if user_id != caller.user_id and not await self._is_administered(caller, user_id):
            raise forbidden("You may change your own profile only.")
        if caller.is_guest and field != GUESTS_FIELD:
            raise forbidden("Guests may change their display name only.")
        caller.require_not_suspended()

    async def _is_administered(self, caller: Caller, user_id: str) -> bool:
        return caller.is_admin and await self._users.is_local_account(user_id)

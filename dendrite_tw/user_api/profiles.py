"""Profiles: display name, avatar and further fields (Client-Server API, "Profiles")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import orjson

from ..database.engines import Database
from ..database.statements import Transaction
from ..matrix.errors import MatrixError, invalid_param
from ..matrix.identifiers import is_namespaced_identifier
from ..room_api.api import RoomAPI
from .accounts import Accounts, in_background
from .settings import PROFILE_LIMIT, UserSettings
from .tables import accounts
from .tables import profiles as table

KEY_LIMIT = 255
SHOWN_IN_ROOMS = ("displayname", "avatar_url")
STRING_LIMIT = {"displayname": 256, "avatar_url": 1000}
"""Characters of the fields that appear in room members' events, whose size is limited."""


class Elsewhere(Protocol):
    """Asks the servers of other users: see `RemoteProfiles`."""

    async def profile(self, user_id: str) -> dict[str, str]: ...

    async def fields(self, user_id: str, field: str | None) -> dict[str, Any] | None: ...


class Profiles:
    """The profiles of local users, and the way to those of others."""

    def __init__(
        self, settings: UserSettings, database: Database, rooms: RoomAPI, all_accounts: Accounts, elsewhere: Elsewhere
    ) -> None:
        self._settings = settings
        self._database = database
        self._rooms = rooms
        self._accounts = all_accounts
        self._elsewhere = elsewhere
        self._showing: dict[str, bool] = {}

    async def profile(self, user_id: str) -> dict[str, str]:
        if not self._settings.is_local(user_id):
            return await self._elsewhere.profile(user_id)
        return shown_of(await self._database.read(table.fields, user_id))

    async def profile_fields(self, user_id: str, field: str | None = None) -> dict[str, Any] | None:
        if not self._settings.is_local(user_id):
            return await self._elsewhere.fields(user_id, field)
        rows = await self._database.read(table.fields, user_id)
        if not rows and not await self._accounts.is_local_account(user_id):
            return None
        return {row.field: orjson.loads(row.value) for row in rows if field is None or row.field == field}

    async def set_profile_field(self, user_id: str, field: str, value: Any) -> None:
        check_field(field)
        if field in STRING_LIMIT and value is None:
            await self.delete_profile_field(user_id, field)
            return
        check_value(field, value)
        await self._database.write(self._set, user_id, field, orjson.dumps(value))
        self._show(user_id, field)

    async def _set(self, txn: Transaction, user_id: str, field: str, value: bytes) -> None:
        account = await accounts.account(txn, user_id)
        if account is None or account.deactivated:
            raise MatrixError(404, "M_NOT_FOUND", "There is no such user.")
        await table.set_field(txn, user_id, field, value)
        if field in SHOWN_IN_ROOMS:
            await accounts.must_show(txn, user_id)
        rows = await table.fields(txn, user_id)
        size = 2 + sum(len(orjson.dumps(row.field)) + len(row.value) + 2 for row in rows)
        if size > PROFILE_LIMIT:
            raise MatrixError(400, "M_PROFILE_TOO_LARGE", f"A profile may have {PROFILE_LIMIT} bytes at most.")

    async def delete_profile_field(self, user_id: str, field: str) -> None:
        check_field(field)
        await self._database.write(self._delete, user_id, field)
        self._show(user_id, field)

    async def _delete(self, txn: Transaction, user_id: str, field: str) -> None:
        await table.delete_field(txn, user_id, field)
        if field in SHOWN_IN_ROOMS:
            await accounts.must_show(txn, user_id)

    # --- in rooms ---

    async def resume(self) -> None:
        """Go on with what the end of a process, or of the rooms', interrupted."""
        for user_id in await self._database.read(accounts.still_to_show):
            self._show(user_id, SHOWN_IN_ROOMS[0])

    def _show(self, user_id: str, field: str) -> None:
        """Tell the user's rooms; the client need not wait until every one of them has taken it."""
        if field not in SHOWN_IN_ROOMS:
            return
        if user_id in self._showing:
            self._showing[user_id] = True
            return
        self._showing[user_id] = False
        in_background(self._show_until_done(user_id), f"showing the profile of {user_id} in rooms")

    async def _show_until_done(self, user_id: str) -> None:
        """Show the newest profile, and once more if it changed meanwhile: rooms never end with an older one.

        Not even if another process shows one at the same time: who has shown an older one last sees that it is.
        """
        try:
            again = True
            while again:
                self._showing[user_id] = False
                shown = await self.profile(user_id)
                await self._rooms.update_profile(user_id, shown)
                again = not await self._database.write(self._is_shown, user_id, shown) or self._showing[user_id]
        finally:
            del self._showing[user_id]

    async def _is_shown(self, txn: Transaction, user_id: str, shown: dict[str, str]) -> bool:
        """Whether what rooms show is what is stored; then nothing is left to do."""
        if shown_of(await table.fields(txn, user_id)) != shown:
            return False
        await accounts.is_shown(txn, user_id)
        return True


def shown_of(rows: Sequence[table.FieldRow]) -> dict[str, str]:
    """The fields that rooms show."""
    shown = {row.field: orjson.loads(row.value) for row in rows if row.field in SHOWN_IN_ROOMS}
    return {field: value for field, value in shown.items() if isinstance(value, str)}


def check_field(field: str) -> None:
    """Raise 400 ``M_KEY_TOO_LARGE`` or ``M_INVALID_PARAM`` for a name that no profile field can have."""
    if len(field.encode("utf-8", "replace")) > KEY_LIMIT:
        raise MatrixError(400, "M_KEY_TOO_LARGE", f"The name of a profile field may have {KEY_LIMIT} bytes at most.")
    if not is_namespaced_identifier(field):
        raise invalid_param("The name of a profile field has the characters a-z, 0-9 and -_. and begins with a letter.")


def check_value(field: str, value: Any) -> None:
    """Raise 400 ``M_INVALID_PARAM`` for a value that the field cannot have, ``M_PROFILE_TOO_LARGE`` for a big one."""
    if field in STRING_LIMIT or field == "m.tz":
        if not isinstance(value, str):
            raise invalid_param(f"{field} must be a string.")
        if len(value) > STRING_LIMIT.get(field, 255):
            raise MatrixError(400, "M_PROFILE_TOO_LARGE", f"{field} is too long.")
    elif len(orjson.dumps(value)) > PROFILE_LIMIT:
        raise MatrixError(400, "M_PROFILE_TOO_LARGE", f"A profile may have {PROFILE_LIMIT} bytes at most.")

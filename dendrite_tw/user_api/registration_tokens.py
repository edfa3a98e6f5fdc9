"""Registration tokens, which an administrator hands out (Client-Server API, "Token-authenticated registration")."""

from __future__ import annotations

import msgspec

from ..database.engines import Database
from ..database.statements import Transaction
from ..matrix.errors import MatrixError, invalid_param, not_found
from ..matrix.identifiers import is_opaque_identifier
from ..world import World
from .api import RegistrationToken
from .tables import registration_tokens as table

TOKEN_LIMIT = 64
"""Characters of a token; the specification's."""


class RegistrationTokens:
    """The registration tokens of this server."""

    def __init__(self, database: Database, world: World) -> None:
        self._database = database
        self._clock = world.clock
        self._random = world.random

    async def registration_tokens(self) -> list[RegistrationToken]:
        return [_shown(row) for row in await self._database.read(table.tokens)]

    async def is_valid_registration_token(self, token: str) -> bool:
        row = await self._database.read(table.token, token)
        return row is not None and row.is_valid(self._clock.now_ms())

    async def new_registration_token(
        self, token: str | None, length: int, uses_allowed: int | None, expiry_time: int | None
    ) -> RegistrationToken:
        if not 1 <= length <= TOKEN_LIMIT:
            raise invalid_param(f"A token has 1 to {TOKEN_LIMIT} characters.")
        if token is not None and (len(token) > TOKEN_LIMIT or not is_opaque_identifier(token)):
            raise invalid_param(f"A token has 1 to {TOKEN_LIMIT} characters out of A-Z, a-z, 0-9 and -._~.")
        self._check(uses_allowed, expiry_time)
        name = token or self._random.token(length)
        if not await self._database.write(table.insert, name, uses_allowed, expiry_time):
            raise MatrixError(409, "M_UNKNOWN", "There is such a token already.")
        return RegistrationToken(name, uses_allowed, 0, 0, expiry_time)

    async def update_registration_token(
        self, token: str, uses_allowed: int | None, expiry_time: int | None
    ) -> RegistrationToken:
        return _shown(await self._database.write(self._update, token, uses_allowed, expiry_time))

    async def _update(
        self, txn: Transaction, token: str, uses_allowed: int | None, expiry_time: int | None
    ) -> table.TokenRow:
        row = await table.token(txn, token)
        if row is None:
            raise not_found("There is no such registration token.")
        self._check(uses_allowed, None if expiry_time == row.expiry_time else expiry_time)
        await table.update(txn, token, uses_allowed, expiry_time)
        return msgspec.structs.replace(row, uses_allowed=uses_allowed, expiry_time=expiry_time)

    async def delete_registration_token(self, token: str) -> None:
        if not await self._database.write(table.delete, token):
            raise not_found("There is no such registration token.")

    def _check(self, uses_allowed: int | None, expiry_time: int | None) -> None:
        if uses_allowed is not None and not 0 <= uses_allowed < 1 << 53:
            raise invalid_param("uses_allowed must be a number of 0 or more, or null.")
        if expiry_time is not None and not self._clock.now_ms() < expiry_time < 1 << 53:
            raise invalid_param("expiry_time must be milliseconds since 1970, in the future, or null.")


def _shown(row: table.TokenRow) -> RegistrationToken:
    return RegistrationToken(row.token, row.uses_allowed, 0, row.completed, row.expiry_time)

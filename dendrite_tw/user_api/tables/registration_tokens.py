"""The table ``registration_tokens``: tokens that let somebody register."""

from __future__ import annotations

import msgspec

from ...database.statements import Transaction, many, maybe, none

RETENTION = "until an administrator deletes them"


class TokenRow(msgspec.Struct, frozen=True):
    token: str
    uses_allowed: int | None
    completed: int
    expiry_time: int | None

    def is_valid(self, now_ms: int) -> bool:
        """Whether somebody could register with it at this moment."""
        used_up = self.uses_allowed is not None and self.completed >= self.uses_allowed
        return not used_up and (self.expiry_time is None or self.expiry_time > now_ms)


@many(TokenRow, "SELECT token, uses_allowed, completed, expiry_time FROM registration_tokens ORDER BY token")
def tokens(txn: Transaction) -> None: ...


@maybe(TokenRow, "SELECT token, uses_allowed, completed, expiry_time FROM registration_tokens WHERE token = :token")
def token(txn: Transaction, token: str) -> None: ...


@none(
    "INSERT INTO registration_tokens (token, uses_allowed, completed, expiry_time) "
    "VALUES (:token, :uses_allowed, 0, :expiry_time) ON CONFLICT DO NOTHING"
)
def insert(txn: Transaction, token: str, uses_allowed: int | None, expiry_time: int | None) -> None: ...


@none("UPDATE registration_tokens SET uses_allowed = :uses_allowed, expiry_time = :expiry_time WHERE token = :token")
def update(txn: Transaction, token: str, uses_allowed: int | None, expiry_time: int | None) -> None: ...


@none("UPDATE registration_tokens SET completed = completed + 1 WHERE token = :token")
def use(txn: Transaction, token: str) -> None: ...


@none("DELETE FROM registration_tokens WHERE token = :token")
def delete(txn: Transaction, token: str) -> None: ...

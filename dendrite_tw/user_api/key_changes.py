"""Who must learn that a user's keys changed.

Client-Server API, "Tracking the device list for a user".  Each change is told
on ``OutputKeyChangeEvent``; a table keeps the newest position of every user, so
that a sync can ask what changed since its token.
"""

from __future__ import annotations

import msgspec

from ..database.engines import Database
from ..database.outbox import Outbox
from ..database.statements import Transaction
from .api import OUTPUT_KEY_CHANGE_EVENT, KeyChange
from .tables import cross_signing as signature_table
from .tables import key_changes as table


class KeyChanges:
    """Records and tells changes of keys.

    `exclusive` says that no other process writes this database; only then may
    the newest position be kept in memory, which spares a sync the question
    whether anything changed at all.
    """

    def __init__(self, database: Database, outbox: Outbox, exclusive: bool) -> None:
        self._database = database
        self._outbox = outbox
        self._exclusive = exclusive
        self._newest = 0
        self._loaded = False

    async def record(self, txn: Transaction, user_id: str, device_id: str = "", deleted: bool = False) -> int:
        """The keys of `user_id` (of that device, if one is named) change with this transaction."""
        before = await table.of_user(txn, user_id)
        previous = before.device_position if before is not None else 0
        position = await self._tell(
            txn, KeyChange(user_id=user_id, device_id=device_id, deleted=deleted, previous=previous)
        )
        await table.store(txn, user_id, position, position if device_id else previous)
        txn.after_commit(lambda: self._committed(position))
        return position

    async def tell_signer(self, txn: Transaction, signer: str, target: str) -> int:
        """Something of `target` changed that `signer` alone sees: what they signed there, or what they sign with.

        Returns the position.
        """
        return await self._tell(txn, KeyChange(user_id=target, only_for=signer))

    async def _tell(self, txn: Transaction, change: KeyChange) -> int:
        def payload(position: int) -> bytes:
            return msgspec.msgpack.encode(msgspec.structs.replace(change, position=position))

        return await self._outbox.append(txn, OUTPUT_KEY_CHANGE_EVENT, payload)

    async def since(self, after: int, upto: int) -> list[str]:
        """Users whose keys changed in (after, upto] and not again since."""
        if self._exclusive:
            if not self._loaded:
                self._newest = max(self._newest, await self._database.read(table.newest))
                self._loaded = True
            if after >= self._newest:
                return []
        return await self._database.read(table.between, after, upto)

    async def signed_since(self, signer: str, after: int, upto: int) -> list[str]:
        """Users of whom something changed for `signer` alone in (after, upto]."""
        return await self._database.read(signature_table.signed_between, signer, after, upto)

    def _committed(self, position: int) -> None:
        self._newest = max(self._newest, position)

"""The outbox: what a transaction tells the rest of the server, stored with it.

Every component keeps an ``outbox`` table in its own database.  A row is
written in the transaction of the change that it tells of, so either both are
on disk or neither.  The row's id is the component's *stream position*: it
grows with the order of the commits and is what sync tokens are made of.
After the commit the rows are offered to the queue's relay; they are deleted
when every durable consumer has stored a position beyond them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec
import orjson

from .engines import Database
from .statements import Transaction, many, none, one

SCHEMA = """
CREATE TABLE IF NOT EXISTS {name}_outbox (
    id BIGINT PRIMARY KEY,
    stream TEXT NOT NULL,
    subject_suffix TEXT NOT NULL,
    headers BYTES NOT NULL,
    payload BYTES NOT NULL
)
"""


class OutboxRow(msgspec.Struct, frozen=True):
    """One message to be published: ``id`` is its stream position."""

    id: int
    stream: str
    subject_suffix: str
    headers: bytes
    payload: bytes


class Outbox:
    """The outbox of one component.

    ``position`` is the highest id whose transaction is on disk.  `on_commit`
    is called on the reactor thread with the rows of each commit, in order.
    """

    def __init__(self, name: str, database: Database) -> None:
        self.name = name
        self._database = database
        self.position = 0
        self._given = 0
        self.on_commit: Callable[[list[OutboxRow]], None] = lambda rows: None
        table = f"{name}_outbox"

        @none(
            f"INSERT INTO {table} (id, stream, subject_suffix, headers, payload) "
            "VALUES (:id, :stream, :subject_suffix, :headers, :payload)"
        )
        def insert(
            txn: Transaction, id: int, stream: str, subject_suffix: str, headers: bytes, payload: bytes
        ) -> None: ...

        @many(
            OutboxRow,
            f"SELECT id, stream, subject_suffix, headers, payload FROM {table} "
            "WHERE id > :after AND id <= :upto ORDER BY id LIMIT :count",
        )
        def rows_after(txn: Transaction, after: int, upto: int, count: int) -> None: ...

        @none(f"DELETE FROM {table} WHERE id <= :upto AND id < (SELECT MAX(id) FROM {table})")
        def delete(txn: Transaction, upto: int) -> None: ...

        @one(int, f"SELECT COALESCE(MAX(id), 0) FROM {table}")
        def highest(txn: Transaction) -> None: ...

        self._insert, self._rows_after, self._delete, self._highest = insert, rows_after, delete, highest

    async def create(self, txn: Transaction) -> None:
        """Make the table where there is none, and take up the positions where an earlier run left them."""
        await txn.execute(txn.dialect.translate(SCHEMA.format(name=self.name))[0], ())
        self.position = self._given = await self._highest(txn)

    async def append(
        self,
        txn: Transaction,
        stream: str,
        payload: bytes | Callable[[int], bytes],
        subject_suffix: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> int:
        """Store a message for `stream` with this transaction; returns its position.

        A payload that has to hold its own position is given as a function of it.  Positions
        are given in the order of the commits, for one writer runs all transactions; one that
        is taken back leaves a gap.
        """
        self._given = position = self._given + 1
        packed = orjson.dumps(headers) if headers else b"{}"
        data = payload if isinstance(payload, bytes) else payload(position)
        await self._insert(txn, position, stream, subject_suffix, packed, data)
        row = OutboxRow(position, stream, subject_suffix, packed, data)
        txn.after_commit(lambda: self._committed(row))
        return position

    def _committed(self, row: OutboxRow) -> None:
        self.position = row.id
        self.on_commit([row])

    async def read_after(self, after: int, count: int) -> list[OutboxRow]:
        """Stored rows with ids above `after`, in order, at most `count`.

        None beyond `position`: a commit can be read before what follows from it in memory has been done,
        and nobody may hear of it before that.
        """
        return await self._database.read(self._rows_after, after, self.position, count)

    async def delete_upto(self, upto: int) -> None:
        """Forget the rows up to and including `upto`, but for the newest, which remembers the position."""
        await self._database.write(self._delete, upto)

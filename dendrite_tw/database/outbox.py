"""The outbox: what a transaction tells the rest of the server, stored with it.

Every component keeps an ``outbox`` table in its own database.  A row is
written in the transaction of the change that it tells of, so either both are
on disk or neither.  The row's id is the component's *stream position*: it
grows with the order of the commits and is what sync tokens are made of.
After the commit the rows are offered to the queue's relay; they are deleted
when every durable consumer has stored a position beyond them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec.structs
import orjson

from .engines import Database
from .migrate import hold_schema
from .statements import Transaction, each, many, none, one

SCHEMA = """
CREATE TABLE IF NOT EXISTS {name}_outbox (
    id BIGINT PRIMARY KEY,
    stream TEXT NOT NULL,
    subject_suffix TEXT NOT NULL,
    headers BYTES NOT NULL,
    payload BYTES NOT NULL
)
"""


NO_END = 2**63 - 1


Values = tuple[int, str, str, bytes, bytes]
"""What is stored of a row."""


class OutboxRow(msgspec.Struct, frozen=True):
    """One message to be published: ``id`` is its stream position."""

    id: int
    stream: str
    subject_suffix: str
    headers: bytes
    payload: bytes
    previous: int = 0
    """The id of the row before it in this outbox: who has heard of that one has missed nothing."""


class Outbox:
    """The outbox of one component.

    ``position`` is the highest id whose transaction is on disk, among those that
    this process has given: in a shared database ask `newest`.  `on_commit`
    is called on the reactor thread with the rows of each of its commits, in order.
    """

    def __init__(self, name: str, database: Database) -> None:
        self.name = name
        self._database = database
        self.position = 0
        self._given = 0
        self.on_commit: Callable[[list[OutboxRow]], None] = lambda rows: None
        self._table = table = f"{name}_outbox"

        @each(
            f"INSERT INTO {table} (id, stream, subject_suffix, headers, payload) "
            "VALUES (:id, :stream, :subject_suffix, :headers, :payload)",
            row="id stream subject_suffix headers payload",
        )
        def insert(txn: Transaction, rows: Sequence[Values]) -> None: ...

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
        self._count = f"SELECT COALESCE(MAX(id), 0) FROM {table}"

    async def create(self, txn: Transaction) -> None:
        """Make the table where there is none, and take up the positions where an earlier run left them."""
        await hold_schema(txn)
        await txn.execute(txn.dialect.translate(SCHEMA.format(name=self.name))[0], ())
        self.position = self._given = await self._highest(txn)
        txn.after_commit(lambda: self._database.count(self._table, self._count))

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
        is taken back leaves a gap.  In a shared database the last one given is read in each
        transaction, and there are no gaps.
        """
        position = await self._next(txn)
        packed = orjson.dumps(headers) if headers else b"{}"
        data = payload if isinstance(payload, bytes) else payload(position)
        row = (position, stream, subject_suffix, packed, data)
        await self._insert(txn, [row])
        txn.after_commit(lambda: self._committed(row))
        return position

    async def _next(self, txn: Transaction) -> int:
        if not self._database.shared:
            self._given += 1
            return self._given
        last = txn.counters.get(self._table)
        if last is None:
            last = await self._highest(txn)
        txn.counters[self._table] = last + 1
        return last + 1

    def _committed(self, values: Values) -> None:
        position = values[0]
        previous = position - 1 if self._database.shared else self.position
        self.position = position
        self.on_commit([OutboxRow(*values, previous)])

    async def newest(self) -> int:
        """The highest id whose transaction is on disk, whichever process gave it; so are all below it."""
        if not self._database.shared:
            return self.position
        return await self._database.read(self._highest)

    async def read_after(self, after: int, count: int, upto: int | None = None) -> list[OutboxRow]:
        """Stored rows with ids above `after`, up to `upto` if given, in order, at most `count`.

        None beyond `position`: a commit can be read before what follows from it in memory has been done,
        and nobody may hear of it before that.  In a shared database that is for the caller to know.
        """
        if not self._database.shared:
            upto = self.position if upto is None else min(upto, self.position)
        rows = await self._database.read(self._rows_after, after, NO_END if upto is None else upto, count)
        before = [after, *(row.id for row in rows)]
        return [msgspec.structs.replace(row, previous=previous) for row, previous in zip(rows, before, strict=False)]

    async def delete_upto(self, upto: int) -> None:
        """Forget the rows up to and including `upto`, but for the newest, which remembers the position."""
        await self._database.write(self._delete, upto)

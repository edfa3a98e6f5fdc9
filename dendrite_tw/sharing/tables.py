"""The lease tables of a component, in the component's own database.

Who lives is judged by the database's clock alone, so the clocks of machines may differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..database.statements import Transaction, each, many, none

SCHEMA = """
CREATE TABLE IF NOT EXISTS {name}_processes (
    process TEXT PRIMARY KEY,
    expires BIGINT NOT NULL,
    wants TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS {name}_leases (
    lease TEXT PRIMARY KEY,
    process TEXT NOT NULL
)
"""


class ProcessRow(NamedTuple):
    """A process; ``left`` are the milliseconds until it counts as dead, ``wants`` its leases, between spaces."""

    process: str
    left: int
    wants: str


class LeaseRow(NamedTuple):
    """A lease that is held."""

    lease: str
    process: str


class LeaseTables:
    """The statements on the two tables of the component `name`."""

    def __init__(self, name: str) -> None:
        self._name = name
        processes, leases = f"{name}_processes", f"{name}_leases"
        self.alive = f"SELECT EXISTS (SELECT 1 FROM {processes} WHERE process = '{{}}')"
        """SQL that is true while the process of this name has not been taken for dead."""

        @many(ProcessRow, f"SELECT process, expires - NOW_MS, wants FROM {processes}")
        def processes_now(txn: Transaction) -> None: ...

        @many(LeaseRow, f"SELECT lease, process FROM {leases}")
        def leases_now(txn: Transaction) -> None: ...

        @none(f"INSERT INTO {processes} (process, expires, wants) VALUES (:process, NOW_MS + :lasting, :wants)")
        def join(txn: Transaction, process: str, lasting: int, wants: str) -> None: ...

        @none(f"UPDATE {processes} SET expires = NOW_MS + :lasting WHERE process = :process")
        def renew(txn: Transaction, process: str, lasting: int) -> None: ...

        @none(f"UPDATE {processes} SET wants = '' WHERE process = :process")
        def want_nothing(txn: Transaction, process: str) -> None: ...

        @none(f"DELETE FROM {processes} WHERE expires < NOW_MS")
        def bury(txn: Transaction) -> None: ...

        @none(f"DELETE FROM {leases} WHERE process NOT IN (SELECT process FROM {processes})")
        def free(txn: Transaction) -> None: ...

        @each(
            f"INSERT INTO {leases} (lease, process) "
            f"SELECT :lease, process FROM {processes} WHERE process = :process ON CONFLICT (lease) DO NOTHING",
            row="lease process",
        )
        def take(txn: Transaction, rows: Sequence[tuple[str, str]]) -> None: ...

        @none(f"DELETE FROM {leases} WHERE lease = ANY(:names) AND process = :process")
        def give_back(txn: Transaction, names: Sequence[str], process: str) -> None: ...

        @none(f"DELETE FROM {processes} WHERE process = :process")
        def leave(txn: Transaction, process: str) -> None: ...

        self._processes, self._leases, self._bury, self._free, self._take = (
            processes_now,
            leases_now,
            bury,
            free,
            take,
        )
        self.join, self.renew, self.want_nothing, self.give_back, self._leave = (
            join,
            renew,
            want_nothing,
            give_back,
            leave,
        )

    async def create(self, txn: Transaction) -> None:
        """Make the tables where there are none."""
        for statement in SCHEMA.format(name=self._name).split(";"):
            await txn.execute(txn.dialect.translate(statement)[0], ())

    async def now(self, txn: Transaction) -> tuple[list[ProcessRow], list[LeaseRow]]:
        """All processes, dead ones that nobody has buried too, and all leases that are held."""
        leases = await self._leases(txn)
        return await self._processes(txn), leases

    async def settle(self, txn: Transaction, process: str, names: Sequence[str]) -> None:
        """Bury the dead, free their leases, and take those of `names` that are free.

        Burying fences: from the commit on nothing that the dead write is taken.
        """
        if await self._bury(txn):
            await self._free(txn)
        await self._take(txn, [(name, process) for name in names])

    async def leave(self, txn: Transaction, process: str) -> None:
        """Give up all that a process has, and itself."""
        await self._leave(txn, process)
        await self._free(txn)

"""SQL as typed functions.

    @many(EventRow, "SELECT event_nid, pdu FROM events WHERE event_id = ANY(:ids)")
    def events_by_id(txn: Transaction, ids: Sequence[str]) -> None:
        "The events among these ids that are stored, in no order."

The decorated name is then an ``async`` function of the transaction and the
arguments that returns ``list[EventRow]``.  Placeholders are held against the
parameters when the module is imported.  `one` wants exactly one row, `maybe`
at most one, `none` returns the number of rows touched, `each` runs the
statement once for every row of a sequence of tuples.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from .dialects import POSTGRESQL, SQLITE, Dialect

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

_SCALARS: tuple[type, ...] = (int, str, bytes, float, bool)


class Statement:
    """One text of SQL, translated for each engine at import."""

    def __init__(self, sql: str) -> None:
        self.sql = " ".join(sql.split())
        self._texts = {dialect.name: dialect.translate(self.sql) for dialect in (SQLITE, POSTGRESQL)}

    def text(self, dialect: Dialect) -> str:
        return self._texts[dialect.name][0]

    def order(self, dialect: Dialect) -> tuple[str, ...]:
        return self._texts[dialect.name][1]

    def lists(self, dialect: Dialect) -> frozenset[str]:
        return self._texts[dialect.name][2]

    def binder(self, dialect: Dialect, parameters: Sequence[str]) -> Callable[[Sequence[Any]], Sequence[Any]]:
        """A function from the arguments in the order of `parameters` to the values in the order of the SQL."""
        lists, bind_list = self.lists(dialect), dialect.bind_list
        places = [(parameters.index(name), name in lists) for name in self.order(dialect)]
        if not lists and [place for place, _ in places] == list(range(len(parameters))):
            return lambda values: values
        return lambda values: [bind_list(values[place]) if is_list else values[place] for place, is_list in places]


class Transaction(Protocol):
    """What a function of `Database.write` or `Database.read` may wait for, and nothing else."""

    dialect: Dialect
    counters: dict[str, int]
    """Of a shared database: the numbers that `Database.count` asks for, as they stand in this transaction.

    Who gives the next one raises it here; what is taken back with the transaction is taken back here too.
    """

    async def fetch(self, sql: str, values: Sequence[Any]) -> list[Any]:
        """Run `sql` and return its rows as tuples."""

    async def execute(self, sql: str, values: Sequence[Any]) -> int:
        """Run `sql` and return how many rows it touched."""

    async def execute_many(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        """Run `sql` once for each of `rows`."""

    def after_commit(self, function: Callable[[], None]) -> None:
        """Call `function` on the reactor thread once this transaction is on disk.

        Functions run in the order of the commits, before the caller of
        `Database.write` is answered; they do not run if it rolls back.
        """


class _Bound:
    """A statement with its parameters in the order of a function's signature."""

    def __init__(self, sql: str, function: Callable[..., object]) -> None:
        self.statement = Statement(sql)
        signature = inspect.signature(function)
        parameters = list(signature.parameters)[1:]
        wanted = set(self.statement.order(SQLITE))
        if wanted != set(parameters):
            raise TypeError(
                f"{function.__qualname__}: the SQL binds {sorted(wanted)}, the function takes {sorted(parameters)}"
            )
        self.name = function.__qualname__
        self.signature = signature
        self.count = len(parameters)
        self._by_dialect = {
            dialect.name: (self.statement.text(dialect), self.statement.binder(dialect, parameters))
            for dialect in (SQLITE, POSTGRESQL)
        }

    def values(self, txn: Transaction, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[str, Sequence[Any]]:
        if kwargs or len(args) != self.count:
            bound = self.signature.bind(txn, *args, **kwargs)
            bound.apply_defaults()
            args = bound.args[1:]
        sql, bind = self._by_dialect[txn.dialect.name]
        return sql, bind(args)


def _row_maker(row: type[R]) -> Callable[[Any], R]:
    if row in _SCALARS:
        return lambda values: values[0]
    return lambda values: row(*values)


def _dressed(call: Any, function: Callable[..., object], statement: Statement) -> Any:
    functools.update_wrapper(call, function)
    call.statement = statement
    return call


class Decorated(Protocol[R_co]):
    """Takes the declaration of a statement, gives the function that runs it."""

    def __call__(
        self, function: Callable[Concatenate[Transaction, P], object], /
    ) -> Callable[Concatenate[Transaction, P], Awaitable[R_co]]: ...


Rows = Callable[[Transaction, Sequence[Sequence[Any]]], Awaitable[None]]


def many(row: type[R], sql: str) -> Decorated[list[R]]:
    """Every row, each made into a `row` (a scalar type takes the only column)."""
    make = _row_maker(row)

    def decorate(function: Any) -> Any:
        bound = _Bound(sql, function)

        async def call(txn: Transaction, *args: Any, **kwargs: Any) -> list[R]:
            return [make(values) for values in await txn.fetch(*bound.values(txn, args, kwargs))]

        return _dressed(call, function, bound.statement)

    return decorate


def maybe(row: type[R], sql: str) -> Decorated[R | None]:
    """The first row, or `None` where there is none."""
    make = _row_maker(row)

    def decorate(function: Any) -> Any:
        bound = _Bound(sql, function)

        async def call(txn: Transaction, *args: Any, **kwargs: Any) -> R | None:
            rows = await txn.fetch(*bound.values(txn, args, kwargs))
            return make(rows[0]) if rows else None

        return _dressed(call, function, bound.statement)

    return decorate


def one(row: type[R], sql: str) -> Decorated[R]:
    """The only row; `LookupError` where there is none."""
    make = _row_maker(row)

    def decorate(function: Any) -> Any:
        bound = _Bound(sql, function)

        async def call(txn: Transaction, *args: Any, **kwargs: Any) -> R:
            rows = await txn.fetch(*bound.values(txn, args, kwargs))
            if not rows:
                raise LookupError(f"{bound.name}: no row")
            return make(rows[0])

        return _dressed(call, function, bound.statement)

    return decorate


def none(sql: str) -> Decorated[int]:
    """No rows wanted: how many the statement touched."""

    def decorate(function: Any) -> Any:
        bound = _Bound(sql, function)

        async def call(txn: Transaction, *args: Any, **kwargs: Any) -> int:
            return await txn.execute(*bound.values(txn, args, kwargs))

        return _dressed(call, function, bound.statement)

    return decorate


def each(sql: str, row: str) -> Callable[[Callable[..., object]], Rows]:
    """Once for each tuple of a sequence; `row` names the columns of a tuple in order."""
    columns = row.split()

    def decorate(function: Any) -> Any:
        statement = Statement(sql)
        if set(statement.order(SQLITE)) != set(columns):
            names = statement.order(SQLITE)
            raise TypeError(f"{function.__qualname__}: the SQL binds {names}, a row has {columns}")
        texts = {
            dialect.name: (statement.text(dialect), statement.binder(dialect, columns))
            for dialect in (SQLITE, POSTGRESQL)
        }

        async def call(txn: Transaction, rows: Sequence[Sequence[Any]]) -> None:
            if rows:
                text, bind = texts[txn.dialect.name]
                await txn.execute_many(text, map(bind, rows))

        return _dressed(call, function, statement)

    return decorate

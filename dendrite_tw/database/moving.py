"""From SQLite to PostgreSQL: every table of every component, copied and held against what it came from.

All that goes to one PostgreSQL database goes in one transaction: outboxes, and how far
consumers have read, move at one with what they speak of; and a move that is broken off leaves nothing.
Rows pass through one at a time, in COPY's text format, so memory does not grow with tables.

Before the commit both sides are read once more, each by itself, and compared: how many rows, and a sum of the
hashes of all rows, which does not depend on their order.  A target that holds just that already, from an
earlier run, is left as it is; any other that is not empty is refused.
"""

from __future__ import annotations

import sqlite3
from binascii import hexlify
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import psycopg2

from .connections import BlockingConnection, said_by
from .dialects import POSTGRESQL
from .engines import run_inline
from .groups import PostgreSQLTransaction
from .migrate import migrate, steps_of
from .outbox import SCHEMA

ROWS_AT_ONCE = 100
"""How many rows are read back in one message."""

TELL_ROWS = 100_000
"""After how many rows of a table more is said of it."""

PATIENT = "SET statement_timeout = 0; SET lock_timeout = 0; SET idle_in_transaction_session_timeout = 0"

STEPS = "schema_steps"
_KINDS = {"bigint": "number", "text": "text", "bytea": "bytes"}
_ESCAPED = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})
_REPLACEMENT = "\ufffd"

Tell = Callable[[str], None]


class MoveError(Exception):
    """Why a move is not possible: a sentence for the operator."""


class Digest(NamedTuple):
    """What a table holds: its rows, and the sum of their hashes."""

    rows: int
    checksum: int


class Moved(NamedTuple):
    """A table that is the same on both sides; ``copied`` unless it was so before."""

    table: str
    rows: int
    copied: bool


class Column(NamedTuple):
    """A column of a table: what it holds (a value of `_KINDS`), and the sequence that its numbers come from."""

    name: str
    kind: str
    sequence: str | None


# --- the two sides ---


class Source:
    """An SQLite file, which is only read."""

    def __init__(self, path: str) -> None:
        """Raises `MoveError` where it cannot be read."""
        self.path = path
        self._beside = [Path(f"{path}-{suffix}") for suffix in ("wal", "shm")]
        self._had = any(file.exists() for file in self._beside)
        if not Path(path).is_file():
            raise MoveError(f"there is no database {path}")
        try:
            self._connection = sqlite3.connect(f"file:{quote(path)}?mode=ro", uri=True, isolation_level=None)
            self._connection.execute("BEGIN")
            self.tables = [
                name
                for (name,) in self._connection.execute(
                    "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' "
                    "ORDER BY rootpage"
                )
            ]
        except sqlite3.Error as error:
            raise MoveError(f"{path} cannot be read: {error}") from error
        if STEPS not in self.tables:
            raise MoveError(f"{path} is no database of this server")

    def steps(self, package: str) -> set[int]:
        """The migrations of a component that it has seen."""
        found = self._connection.execute(f"SELECT step FROM {STEPS} WHERE component = ?", (package,))
        return {step for (step,) in found}

    def columns(self, table: str) -> list[str]:
        return [row[1] for row in self._connection.execute(f"PRAGMA table_info({_quoted(table)})")]

    def count(self, table: str) -> int:
        return int(self._connection.execute(f"SELECT COUNT(*) FROM {_quoted(table)}").fetchone()[0])

    def last_number(self, table: str, column: str) -> int:
        """The highest number that the table ever gave."""
        (highest,) = self._connection.execute(f"SELECT MAX({_quoted(column)}) FROM {_quoted(table)}").fetchone()
        given = self._connection.execute("SELECT seq FROM sqlite_sequence WHERE name = ?", (table,)).fetchone()
        return max(highest or 0, given[0] if given else 0)

    def rows(self, table: str, columns: Sequence[str]) -> Iterator[Sequence[Any]]:
        names = ", ".join(map(_quoted, columns))
        try:
            yield from self._connection.execute(f"SELECT {names} FROM {_quoted(table)}")
        except sqlite3.Error as error:
            raise MoveError(f"{self.path}: {table} cannot be read: {error}") from error

    def close(self) -> None:
        """Let go of the file, and take away what SQLite puts beside it even for reading."""
        self._connection.close()
        if not self._had:
            for file in self._beside:
                file.unlink(missing_ok=True)


class Target:
    """A PostgreSQL database, in one transaction from the beginning to `commit`."""

    def __init__(self, dsn: str) -> None:
        """Keep others away; raises `MoveError` where that cannot be."""
        try:
            self._session = BlockingConnection(dsn)
        except psycopg2.Error as error:
            raise MoveError(f"PostgreSQL cannot be used: {said_by(error)}") from error
        self.ask(PATIENT)
        self.ask("BEGIN")

    def ask(self, sql: str, values: Sequence[Any] | None = None) -> Any:
        with _explained():
            return run_inline(self._session.query(sql, values))

    @property
    def tables(self) -> set[str]:
        found = self.ask("SELECT tablename FROM pg_tables WHERE schemaname = current_schema()")
        return {name for (name,) in found.fetchall()}

    def steps(self, package: str) -> set[int]:
        found = self.ask(f"SELECT step FROM {STEPS} WHERE component = %s", (package,))
        return {step for (step,) in found.fetchall()}

    def make(self, package: str, done: set[int], has_outbox: bool) -> list[str]:
        """Make the tables of a component as they were after these migrations; their names."""
        before = self.tables
        steps = [step for step in steps_of(f"dendrite_tw.{package}") if step.number in done]
        with _explained():
            run_inline(migrate(PostgreSQLTransaction(self._session), package, steps))
        if has_outbox:
            self.ask(POSTGRESQL.translate(SCHEMA.format(name=package))[0])
        return sorted(self.tables - before - {STEPS})

    def columns(self, table: str) -> list[Column]:
        found = self.ask(
            "SELECT column_name, data_type, CASE WHEN column_default LIKE 'nextval(%%' "
            "THEN pg_get_serial_sequence(quote_ident(table_name), column_name) END FROM information_schema.columns "
            "WHERE table_schema = current_schema() AND table_name = %s ORDER BY ordinal_position",
            (table,),
        )
        return [Column(name, _KINDS[kind], sequence) for name, kind, sequence in found.fetchall()]

    def fill(self, table: str, columns: Sequence[Column], lines: Iterator[bytes]) -> None:
        names = ", ".join(_quoted(column.name) for column in columns)
        stream = _Stream(lines)
        try:
            self._session.copy(f"COPY {_quoted(table)} ({names}) FROM STDIN", stream)
        except psycopg2.Error as error:
            if stream.error is not None:
                raise stream.error from None
            raise MoveError(f"PostgreSQL does not take what is in {table}: {said_by(error)}") from error

    def set_last_number(self, sequence: str, number: int) -> None:
        if number:
            self.ask("SELECT setval(%s, %s)", (sequence, number))

    def rows(self, table: str, columns: Sequence[Column]) -> Iterator[Sequence[Any]]:
        names = ", ".join(_quoted(column.name) for column in columns)
        self.ask(f"DECLARE moved NO SCROLL CURSOR FOR SELECT {names} FROM {_quoted(table)}")
        while found := self.ask(f"FETCH {ROWS_AT_ONCE} FROM moved").fetchall():
            yield from found
        self.ask("CLOSE moved")

    def commit(self) -> None:
        """All of it counts from now on; the statistics that queries are planned with are made afterwards."""
        self.ask("COMMIT")
        self.ask("ANALYZE")

    def close(self) -> None:
        self._session.close()


class _Stream:
    """What COPY reads from: lines as bytes, some at a time."""

    def __init__(self, lines: Iterator[bytes]) -> None:
        self._lines = lines
        self._rest = b""
        self.error: MoveError | None = None
        """What went wrong with the lines; psycopg2 makes another error of it."""

    def read(self, size: int) -> bytes:
        try:
            return self._read(size)
        except MoveError as error:
            self.error = error
            raise

    def _read(self, size: int) -> bytes:
        parts, length = [self._rest], len(self._rest)
        for line in self._lines:
            parts.append(line)
            length += len(line)
            if length >= size:
                break
        data = b"".join(parts)
        self._rest = data[size:]
        return data[:size]


@contextmanager
def _explained() -> Iterator[None]:
    """Say what PostgreSQL says."""
    try:
        yield
    except psycopg2.Error as error:
        raise MoveError(f"PostgreSQL: {said_by(error)}") from error


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


# --- values ---


class Values:
    """Values of SQLite as PostgreSQL is to have them; what it cannot hold is noted in ``replaced``."""

    def __init__(self, table: str, columns: Sequence[Column]) -> None:
        self._table = table
        self._columns = columns
        self._convert = [getattr(self, f"_{column.kind}") for column in columns]
        self.replaced = 0
        """Texts with the character U+0000, which PostgreSQL does not store: U+FFFD stands in its place."""

    def row(self, values: Sequence[Any]) -> list[Any]:
        """Raises `MoveError` for what does not fit its column."""
        try:
            return [
                None if value is None else convert(value) for convert, value in zip(self._convert, values, strict=True)
            ]
        except (TypeError, ValueError, OverflowError):
            columns = ", ".join(column.name for column in self._columns)
            raise MoveError(f"{self._table}: a row does not fit its columns ({columns})") from None

    def _number(self, value: Any) -> int:
        if not isinstance(value, int):
            raise TypeError
        return value

    def _text(self, value: Any) -> str:
        text = value.decode() if isinstance(value, bytes) else value
        if not isinstance(text, str):
            raise TypeError
        if "\0" in text:
            self.replaced += 1
            text = text.replace("\0", _REPLACEMENT)
        return text

    def _bytes(self, value: Any) -> bytes:
        return value.encode() if isinstance(value, str) else bytes(memoryview(value))


def copy_line(row: Sequence[Any]) -> bytes:
    """A row in the text format of COPY."""
    return b"\t".join(map(_field, row)) + b"\n"


def _field(value: Any) -> bytes:
    if value is None:
        return b"\\N"
    if isinstance(value, bytes):
        return b"\\\\x" + hexlify(value)
    if isinstance(value, int):
        return b"%d" % value
    return str(value).translate(_ESCAPED).encode()


def digest(rows: Iterable[Sequence[Any]]) -> Digest:
    """Read all rows; the same rows in another order have the same digest."""
    count = checksum = 0
    for row in rows:
        count += 1
        # A tuple of numbers, texts, bytes and None is told from every other by how Python writes it.
        checksum += int.from_bytes(blake2b(repr(tuple(row)).encode(), digest_size=16).digest(), "big")
    return Digest(count, checksum % 2**128)


# --- moving ---


class Part(NamedTuple):
    """A component: the name of its package, and the file that it is in."""

    package: str
    source: Source


def move(parts: Sequence[Part], target: Target, tell: Tell) -> list[Moved]:
    """Copy these components into `target`, unless it has all of it already, and compare.

    Nothing counts until the target's commit.  Raises `MoveError`.
    """
    wanted = {name for part in parts for name in part.source.tables}
    if there := target.tables:
        if there != wanted:
            raise MoveError(f"the target is not empty: it has the table {min(there)}. Give an empty database.")
        tell("The target holds these tables already; comparing.")
        return _compared(parts, target, sorted(wanted - {STEPS}), tell, copied=False)
    tables: list[str] = []
    for part in parts:
        tables += _copied(part, target, tell)
    if left := wanted - {STEPS, *tables}:
        raise MoveError(f"the table {min(left)} belongs to no component that this version knows")
    tell("Comparing both sides.")
    return _compared(parts, target, tables, tell, copied=True)


def _copied(part: Part, target: Target, tell: Tell) -> list[str]:
    """Copy one component; its tables."""
    done = part.source.steps(part.package)
    if newer := done - {step.number for step in steps_of(f"dendrite_tw.{part.package}")}:
        raise MoveError(f"{part.source.path} is of a newer version (steps {sorted(newer)}); use that version's command")
    tables = target.make(part.package, done, f"{part.package}_outbox" in part.source.tables)
    for table in tables:
        if table not in part.source.tables:
            raise MoveError(f"{part.source.path} has no table {table}; start the server once, and stop it")
        _copy(part.source, target, table, tell)
    return tables


def _copy(source: Source, target: Target, table: str, tell: Tell) -> None:
    columns = _columns(source, target, table)
    values = Values(table, columns)
    total = source.count(table)
    tell(f"{table}: {total} rows")

    def lines() -> Iterator[bytes]:
        for number, row in enumerate(source.rows(table, [column.name for column in columns]), 1):
            if number % TELL_ROWS == 0:
                tell(f"{table}: {number} of {total}")
            yield copy_line(values.row(row))

    target.fill(table, columns, lines())
    for column in columns:
        if column.sequence is not None:
            target.set_last_number(column.sequence, source.last_number(table, column.name))
    if values.replaced:
        tell(f"{table}: {values.replaced} texts had the character U+0000, which PostgreSQL cannot store; now U+FFFD")


def _columns(source: Source, target: Target, table: str) -> list[Column]:
    columns = target.columns(table)
    if {column.name for column in columns} != set(source.columns(table)):
        raise MoveError(f"{table} has other columns in {source.path}; start the server once, and stop it")
    return columns


def _compared(parts: Sequence[Part], target: Target, tables: Sequence[str], tell: Tell, *, copied: bool) -> list[Moved]:
    """Hold each table against the file that it comes from."""
    sources = {table: part.source for part in parts for table in part.source.tables}
    for part in parts:
        if part.source.steps(part.package) != target.steps(part.package):
            raise MoveError(f"the target's tables of {part.package} are of another version")
    moved = []
    for table in tables:
        columns = _columns(sources[table], target, table)
        values = Values(table, columns)
        here = digest(map(values.row, sources[table].rows(table, [column.name for column in columns])))
        there = digest(target.rows(table, columns))
        if here != there:
            raise MoveError(
                f"{table} differs: {here.rows} rows in {sources[table].path}, {there.rows} in PostgreSQL"
                + (" with other content" if here.rows == there.rows else "")
            )
        moved.append(Moved(table, here.rows, copied))
    tell(f"{len(moved)} tables are the same on both sides.")
    return moved

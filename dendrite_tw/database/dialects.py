"""SQLite and PostgreSQL as word lists.

One text of SQL serves both engines.  A dialect says how a few capitalised
words are spelt (``BYTES``, ``SERIAL_KEY``), how a named placeholder is bound,
and how ``= ANY(:list)`` tests membership.  Nothing else in the project asks
which engine it is on.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson

_STRING_OR_NAME = re.compile(r"'(?:[^']|'')*'|(?<![:\w]):([a-z_][a-z0-9_]*)")
_ANY = re.compile(r"=\s*ANY\(:([a-z_][a-z0-9_]*)\)")


@dataclass(frozen=True)
class Dialect:
    """How one engine spells what the two do not share."""

    name: str
    words: dict[str, str]
    placeholder: str
    any_list: str
    escape_percent: bool
    bind_list: Callable[[Any], Any]
    hold_schema: str = ""
    """Keeps all others from changing the schema until the transaction ends; empty where there are no others."""

    def translate(self, sql: str) -> tuple[str, tuple[str, ...], frozenset[str]]:
        """SQL for this engine, the names of its placeholders in order, and which of them are lists."""
        lists = frozenset(_ANY.findall(sql))
        order: list[str] = []

        def bind(match: re.Match[str]) -> str:
            if match.group(1) is None:
                return match.group(0)
            order.append(match.group(1))
            return self.placeholder

        if self.escape_percent:
            sql = sql.replace("%", "%%")
        sql = _ANY.sub(lambda match: self.any_list.format(match.group(1)), sql)
        for word, spelling in self.words.items():
            sql = re.sub(rf"\b{word}\b", spelling, sql)
        return _STRING_OR_NAME.sub(bind, sql), tuple(order), lists


SQLITE = Dialect(
    name="sqlite",
    words={
        "BYTES": "BLOB",
        "SERIAL_KEY": "INTEGER PRIMARY KEY AUTOINCREMENT",
        "BIGINT": "INTEGER",
        "NOW_MS": "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)",
    },
    placeholder="?",
    any_list="IN (SELECT value FROM json_each(:{}))",
    escape_percent=False,
    bind_list=lambda values: orjson.dumps(list(values)).decode(),
)

POSTGRESQL = Dialect(
    name="postgresql",
    # Text is compared by its bytes, as SQLite does, whatever the locale of the database.
    words={
        "BYTES": "BYTEA",
        "SERIAL_KEY": "BIGSERIAL PRIMARY KEY",
        "TEXT": 'TEXT COLLATE "C"',
        "NOW_MS": "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)",
    },
    placeholder="%s",
    any_list="= ANY(:{})",
    escape_percent=True,
    bind_list=list,
    hold_schema="SELECT pg_advisory_xact_lock(hashtext('dendrite_tw schema'), hashtext(current_schema()))",
)

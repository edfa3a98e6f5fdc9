"""Statements that a connection to PostgreSQL has prepared.

The server plans a statement each time that it comes as text, which for a join of four tables takes longer than its
execution.  What comes a second time on a connection is therefore prepared, in the same message that runs it; from then
on only its name and values travel.  What the server does not want to prepare (the type of a value that nothing tells)
goes on as text.

PostgreSQL documentation, "PREPARE".
"""

from __future__ import annotations

import re
from typing import Final

MOST: Final = 300
"""Statements that one connection prepares: each costs the server some memory."""

_VALUE: Final = re.compile("%s")
_SEEN: Final = ""
_UNFIT: Final = "-"


class Prepared:
    """The statements of one connection, by their text."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._count = 0

    def message(self, sql: str, values: int) -> str | None:
        """What to send instead of `sql`, which has so many values; `None` where it goes as it is."""
        name = self._names.get(sql)
        if name is None:
            if len(self._names) < 4 * MOST:
                self._names[sql] = _SEEN
            return None
        if name == _UNFIT:
            return None
        first = ""
        if name == _SEEN:
            if self._count >= MOST or ";" in sql:
                self._names[sql] = _UNFIT
                return None
            self._count += 1
            name = self._names[sql] = f"s{self._count}"
            first = f"PREPARE {name} AS {_numbered(sql)}; "
        return f"{first}EXECUTE {name} ({', '.join(['%s'] * values)})"

    def give_up(self, sql: str) -> None:
        """The server did not take what `message` said: it goes as text from now on."""
        self._names[sql] = _UNFIT


def _numbered(sql: str) -> str:
    """The statement with ``$1``, ``$2`` … in the places of its values."""
    parts = _VALUE.split(sql)
    return parts[0] + "".join(f"${index}{part}" for index, part in enumerate(parts[1:], 1))

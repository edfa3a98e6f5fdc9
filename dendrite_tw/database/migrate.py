"""Numbered steps of SQL, forward only.

A component keeps ``migrations/0001_….sql`` and so on beside its tables; each
step runs once, in its own transaction, and is remembered by component and
number in ``schema_steps``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import resources
from typing import Any

from .statements import Transaction, each, many, none

_NAME = re.compile(r"^(\d{4})_[a-z0-9_]+\.sql$")


@dataclass(frozen=True)
class Step:
    """One file of SQL: its number and its text."""

    number: int
    sql: str

    def statements(self) -> list[str]:
        """The statements of the step, comments removed."""
        text = re.sub(r"--[^\n]*", "", self.sql)
        return [part.strip() for part in text.split(";") if part.strip()]


def steps_of(package: str) -> list[Step]:
    """The migrations that a package carries in its folder ``migrations``, in order."""
    found = []
    for entry in resources.files(package).joinpath("migrations").iterdir():
        match = _NAME.match(entry.name)
        if match:
            found.append(Step(int(match.group(1)), entry.read_text(encoding="utf-8")))
    return sorted(found, key=lambda step: step.number)


@none(
    "CREATE TABLE IF NOT EXISTS schema_steps (component TEXT NOT NULL, step BIGINT NOT NULL, "
    "PRIMARY KEY (component, step))"
)
def _create_schema_steps(txn: Transaction) -> None: ...


@many(int, "SELECT step FROM schema_steps WHERE component = :component")
def _steps_done(txn: Transaction, component: str) -> None: ...


@each("INSERT INTO schema_steps (component, step) VALUES (:component, :step)", row="component step")
def _step_done(txn: Transaction, rows: Any) -> None: ...


async def hold_schema(txn: Transaction) -> None:
    """Wait until nobody else changes the schema: what `IF NOT EXISTS` finds then stays as it is."""
    if txn.dialect.hold_schema:
        await txn.fetch(txn.dialect.hold_schema, ())


async def migrate(txn: Transaction, component: str, steps: list[Step]) -> list[int]:
    """Bring `component` up to its newest step; returns the numbers of the steps that ran.

    Processes that start together wait for each other; the first does what is to be done.
    Raises `RuntimeError` where the database has steps that this version does not know:
    it was used by a newer version, and going on could lose what that one stored.
    """
    await hold_schema(txn)
    await _create_schema_steps(txn)
    done = set(await _steps_done(txn, component))
    newer = sorted(done - {step.number for step in steps})
    if newer:
        raise RuntimeError(f"the database of {component} is of a newer version (steps {newer}); start that version")
    ran = [step for step in steps if step.number not in done]
    for step in ran:
        for sql in step.statements():
            await txn.execute(txn.dialect.translate(sql)[0], ())
    await _step_done(txn, [(component, step.number) for step in ran])
    return [step.number for step in ran]

"""What a file must say besides if the components run as processes of their own."""

from __future__ import annotations

from dendrite_tw.config.problems import Problem
from dendrite_tw.config.tree import Database, Section, Tree, fields


def check_polylith(tree: Tree) -> list[Problem]:
    """Everything in the tree that stops the start of such a process; lines are not filled in."""
    return [*_queue(tree), *_databases(tree)]


def _queue(tree: Tree) -> list[Problem]:
    if tree.global_.jetstream.addresses:
        return []
    return [
        Problem(
            "error",
            "global.jetstream.addresses",
            "Components in processes of their own talk through a NATS server, and none is named.",
            'Start nats-server with JetStream and write ["localhost:4222"], or run all components as one process '
            'with "dendrite".',
        )
    ]


def _databases(tree: Tree) -> list[Problem]:
    """Each SQLite file: it belongs to one process."""
    sections = ["global.database"] if tree.global_.database.is_sqlite else []
    for field in fields(Tree):
        section = getattr(tree, field.attribute)
        if isinstance(section, Section) and field.name not in ("global", "mscs", "relay_api"):
            sections += [f"{field.name}.{name}" for name in _on_sqlite(section)]
    return [
        Problem(
            "error",
            f"{name}.connection_string",
            "This is an SQLite file, which only one process can use.",
            "Name a PostgreSQL database: postgresql://user:password@host/name?sslmode=disable.",
        )
        for name in sections
    ]


def _on_sqlite(section: Section) -> list[str]:
    values = {field.name: getattr(section, field.attribute) for field in fields(type(section))}
    return [name for name, value in values.items() if isinstance(value, Database) and value.is_sqlite]

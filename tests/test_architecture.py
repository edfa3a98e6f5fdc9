"""Who may import whom, and who may ask the world for the time or for chance.

The rules are those of `docs/ARCHITECTURE.md`; each is held against the
sources, and against a source that breaks it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

PACKAGE = Path(__file__).parent.parent / "dendrite_tw"

COMPONENTS = {
    "room_api",
    "user_api",
    "sync_api",
    "client_api",
    "media_api",
    "federation_api",
    "appservice",
    "relay_api",
}

RIM = {"world.py", "tap.py", "assemble.py", "logs.py", "commands"}
"""Where the operating system, the reactor and chance may be met."""

IMPURE = {"twisted", "sqlite3", "psycopg2", "txpostgres", "random", "secrets", "socket", "asyncio", "threading"}


def imports(source: str, module: str) -> Iterator[str]:
    """The full names of what a module imports; `module` is its own, as ``dendrite_tw.x.y``."""
    package = module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            yield from ([name] if node.module else [f"{name}.{alias.name}" for alias in node.names])


def breaches(source: str, module: str) -> list[str]:
    """What a module does that the architecture forbids it."""
    parts = module.split(".")[1:]
    found = []
    for name in imports(source, module):
        ours = name.split(".")[1:] if name.split(".")[0] == "dendrite_tw" else None
        if parts[0] == "matrix":
            if ours is not None and ours[:1] != ["matrix"]:
                found.append(f"{module}: the protocol imports {name}")
            if name.split(".")[0] in IMPURE:
                found.append(f"{module}: the protocol is pure, but imports {name}")
        elif parts[0] in COMPONENTS and ours and ours[0] in COMPONENTS and ours[0] != parts[0] and ours[1:2] != ["api"]:
            found.append(f"{module}: imports {name}, which is not another component's api")
        if (
            parts[0] in {"web", "links", "database", "jetstream"}
            and ours
            and ours[0] in COMPONENTS
            and ours[1:2] != ["api"]
        ):
            found.append(f"{module}: the ground that components stand on imports {name}")
        if name == "dendrite_tw.assemble" and parts[0] not in {"tap", "commands", "polylith"}:
            found.append(f"{module}: nobody but the start knows how all is wired")
        if name in {"random", "secrets", "twisted.internet.reactor"} and not is_rim(parts):
            found.append(f"{module}: imports {name}; it is to be handed in")
    return found + [f"{module}: {what}" for what in asks_the_world(source) if not is_rim(parts)]


def is_rim(parts: list[str]) -> bool:
    return parts[0] in RIM or f"{parts[0]}.py" in RIM or parts[-1] == "command"


def asks_the_world(source: str) -> Iterator[str]:
    """Calls that take time or chance from the operating system."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = f"{node.value.id}.{node.attr}"
            if name in {"time.time", "os.urandom", "datetime.now", "uuid.uuid4"}:
                yield f"calls {name}; it is to be handed in"
        if isinstance(node, ast.ImportFrom) and node.module == "twisted.internet":
            yield from ("imports the reactor; it is to be handed in" for alias in node.names if alias.name == "reactor")


class ArchitectureTests(SynchronousTestCase):
    def test_the_sources_keep_the_rules(self) -> None:
        found: list[str] = []
        for path in sorted(PACKAGE.rglob("*.py")):
            module = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
            found += breaches(path.read_text(encoding="utf-8"), module.removesuffix(".__init__"))
        self.assertEqual(found, [])

    def test_breaches_are_noticed(self) -> None:
        cases = [
            ("from twisted.internet.defer import Deferred", "dendrite_tw.matrix.events"),
            ("from ..world import Clock", "dendrite_tw.matrix.events"),
            ("import random", "dendrite_tw.matrix.events"),
            ("from ..room_api.input import RoomWriter", "dendrite_tw.client_api.rooms"),
            ("from dendrite_tw.user_api import tokens", "dendrite_tw.web.auth"),
            ("from ..room_api.room import Room", "dendrite_tw.web.auth"),
            ("from .. import assemble", "dendrite_tw.room_api.room"),
            ("import random", "dendrite_tw.room_api.room"),
            ("from twisted.internet import reactor", "dendrite_tw.sync_api.notifier"),
            ("import time\ntime.time()", "dendrite_tw.sync_api.notifier"),
            ("import os\nos.urandom(3)", "dendrite_tw.jetstream.store"),
        ]
        for source, module in cases:
            self.assertNotEqual(breaches(source, module), [], (source, module))

    def test_what_is_allowed_is_not_a_breach(self) -> None:
        cases = [
            ("from ..room_api.api import RoomAPI", "dendrite_tw.client_api.rooms"),
            ("from .errors import MatrixError", "dendrite_tw.matrix.events"),
            ("from ..user_api.api import Caller", "dendrite_tw.web.auth"),
            ("import random", "dendrite_tw.world"),
            ("from twisted.internet import reactor", "dendrite_tw.tap"),
        ]
        for source, module in cases:
            self.assertEqual(breaches(source, module), [], (source, module))

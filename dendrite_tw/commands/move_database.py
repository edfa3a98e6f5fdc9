"""``dendrite-move-database``: from SQLite to PostgreSQL.

The server must be down meanwhile: its locks are taken, on both sides.  The files are only read.  What is copied to
one PostgreSQL database counts as a whole or not at all, so a move that was broken off is run again.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

from dendrite_tw.commands.goflags import FlagSet
from dendrite_tw.config import Component, Config, ConfigError, load
from dendrite_tw.locks import InUseError, Locks

if TYPE_CHECKING:
    from dendrite_tw.database.moving import Moved, Part

PACKAGES: Mapping[Component, str] = {
    "user_api": "user_api",
    "room_server": "room_api",
    "sync_api": "sync_api",
    "media_api": "media_api",
    "federation_api": "federation_api",
}
"""Components with a database, and where their tables are declared."""

_INTRODUCTION = """\
Copies a server's SQLite databases to PostgreSQL, while the server is down:

    dendrite-move-database -config dendrite.yaml -to postgresql://user:password@localhost/dendrite
    dendrite-move-database -config dendrite.yaml -to-config new.yaml

The first puts all into one database, the second each component where new.yaml has it. The target must be empty. The
files stay as they are. It can be run again when it was broken off. At the end it holds both sides against each other,
and says what to change in the configuration."""


class StopError(Exception):
    """Why nothing could be moved: a sentence."""


def main(arguments: list[str] | None = None, say: Callable[[str], None] = print) -> int:
    """Run the command; the exit code."""
    flags = FlagSet("dendrite-move-database", _INTRODUCTION)
    path = flags.string("config", "dendrite.yaml", "The configuration file of the server, with SQLite")
    to = flags.string("to", "", "The PostgreSQL database for all components, as in the configuration")
    to_config = flags.string("to-config", "", "A configuration file that names PostgreSQL databases, instead of -to")
    flags.parse_only(sys.argv[1:] if arguments is None else arguments)
    if bool(to.value) == bool(to_config.value):
        flags.fail("give either -to or -to-config")
    locks = Locks()
    try:
        config = load(path.value, allow_open_registration=True)
        new = load(to_config.value, allow_open_registration=True) if to_config.value else None
        targets = _targets(config, new, to.value)
        _take(config, targets, locks)
        moved = move_all(config, targets, say)
    except (ConfigError, StopError) as error:
        print(f"dendrite-move-database: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("dendrite-move-database: broken off. Nothing has changed; run it again.", file=sys.stderr)
        return 1
    finally:
        locks.release()
    say(report(config, targets, moved, to_config.value))
    return 0


Targets = dict[Component, str]
"""Where each component that is on SQLite goes: a connection string."""


def _targets(config: Config, new: Config | None, to: str) -> Targets:
    """Raises `StopError` where there is nothing to move, or not everything has a place."""
    from dendrite_tw.database.addresses import dsn_of

    targets: Targets = {}
    for component in PACKAGES:
        if not config.database_of(component).is_sqlite:
            continue
        wanted = new.database_of(component) if new is not None else None
        if wanted is not None and wanted.is_sqlite:
            raise StopError(f"{component} has no PostgreSQL database in {cast(Config, new).path}.")
        targets[component] = wanted.connection_string if wanted is not None else to
        try:
            dsn_of(targets[component])
        except ValueError as error:
            advice = "Write postgresql://user:password@host/name."
            raise StopError(f"the target of {component} is no address of a database: {error}. {advice}") from None
    if not targets:
        raise StopError("no component of this configuration is on SQLite.")
    if new is not None and new.global_.server_name != config.global_.server_name:
        raise StopError(f"the two configurations are of different servers: {new.global_.server_name} is another name.")
    by_file: dict[str, str] = {}
    for component, target in targets.items():
        file = config.database_of(component).sqlite_path
        if by_file.setdefault(file, target) != target:
            raise StopError(f"{file} serves several components: give them one PostgreSQL database (global.database).")
    return targets


def _take(config: Config, targets: Targets, locks: Locks) -> None:
    """Keep the server away; `StopError` if it runs."""
    for component in targets:
        path = config.database_of(component).sqlite_path
        if not Path(path).is_file():
            raise StopError(f"there is no database {path} ({config.key_of_database(component)}).")
        try:
            locks.take(Path(f"{path}-lock"))
        except InUseError as error:
            raise StopError(f"the server is running ({error.holder}). Stop it first.") from None
        except OSError as error:
            raise StopError(f"{path}-lock cannot be written: {error.strerror or error}.") from None


def move_all(config: Config, targets: Targets, say: Callable[[str], None]) -> list[Moved]:
    """Move the components, one PostgreSQL database after the other; `StopError` with the reason if that fails."""
    from dendrite_tw.database.moving import MoveError, Part, Source

    moved: list[Moved] = []
    sources: dict[str, Source] = {}
    try:
        for target in dict.fromkeys(targets.values()):
            parts = []
            for component in [component for component, its in targets.items() if its == target]:
                path = config.database_of(component).sqlite_path
                source = sources[path] = sources.get(path) or Source(path)
                parts.append(Part(PACKAGES[component], source))
            moved += _move(parts, target, say)
    except MoveError as error:
        raise StopError(f"{error}.") from error
    finally:
        for source in sources.values():
            source.close()
    return moved


def _move(parts: list[Part], connection_string: str, say: Callable[[str], None]) -> list[Moved]:
    from dendrite_tw.database.addresses import dsn_of
    from dendrite_tw.database.moving import MoveError, Target, move

    target = Target(dsn_of(connection_string))
    try:
        moved = move(parts, target, say)
        try:
            target.commit()
        except MoveError as error:
            raise MoveError(f"{error}. Run it again, which tells whether all is there") from error
    finally:
        target.close()
    return moved


def report(config: Config, targets: Targets, moved: list[Moved], new_path: str) -> str:
    """What was done, and what is to be changed."""
    rows = sum(table.rows for table in moved)
    done = "moved" if any(table.copied for table in moved) else "there already, the same on both sides"
    lines = ["", f"{len(moved)} tables with {rows} rows: {done}."]
    if new_path:
        lines += ["", f"Start the server with {new_path} from now on."]
    else:
        (target,) = set(targets.values())
        shown = without_password(target)
        lines += ["Now change this in the configuration, and start the server:", ""]
        lines += ["global:", "  database:", f'    connection_string: "{shown}"']
        if shown != target:
            lines.append("    # with the password that you gave, in place of ***")
        lines += ["", "and take these away, so that all components use it:", ""]
        own = {config.key_of_database(component) for component in targets} - {"global.database.connection_string"}
        for key in sorted(own):
            line = config.lines.get(key)
            lines.append(f"  {key}" + (f"   (line {line})" if line else ""))
    files = sorted({config.database_of(component).sqlite_path for component in targets})
    lines += ["", "The queue, media files and keys stay where they are. These files are not used any more then:"]
    return "\n".join(lines + [f"  {file}" for file in files])


def without_password(connection_string: str) -> str:
    """The connection string without its password."""
    hidden = re.sub(r"(?<=://)([^:/@?]*):[^@/]*@", r"\1:***@", connection_string)
    return re.sub(r"(\bpassword\s*=\s*)('(?:[^'\\]|\\.)*'|[^\s&]*)", r"\1***", hidden)

"""The configuration: ``dendrite.yaml``, version 2, as a typed tree.

`load` reads a file and returns a `Config`, or raises `ConfigError`, which says with file, line, key
and remedy what stops the start.  What does not stop it is in `Config.problems`, for the log.

The keys themselves are in `tree`, the rules in `checks`; `samples` writes files from both.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import msgspec

from dendrite_tw.config.checks import DATABASES, check, complete, not_yet, value_at
from dendrite_tw.config.polylith import check_polylith
from dendrite_tw.config.problems import ConfigError, Problem
from dendrite_tw.config.reader import MAX_BYTES, Reader
from dendrite_tw.config.tree import (
    AppServiceApi,
    ClientApi,
    Database,
    FederationApi,
    Global,
    JetStream,
    KeyPerspective,
    KeyServer,
    LogHook,
    MediaApi,
    Mscs,
    OldPrivateKey,
    RateLimiting,
    RelayApi,
    RoomServer,
    SyncApi,
    ThumbnailSize,
    Tracing,
    Tree,
    Turn,
    UserApi,
)

__all__ = [
    "AppServiceApi",
    "ClientApi",
    "Component",
    "Config",
    "ConfigError",
    "Database",
    "FederationApi",
    "Global",
    "JetStream",
    "KeyPerspective",
    "KeyServer",
    "LogHook",
    "MediaApi",
    "Mscs",
    "OldPrivateKey",
    "Problem",
    "RateLimiting",
    "RelayApi",
    "RoomServer",
    "SyncApi",
    "ThumbnailSize",
    "Tracing",
    "Turn",
    "UserApi",
    "load",
    "loads",
]

Component = Literal[
    "room_server", "user_api", "key_server", "sync_api", "media_api", "federation_api", "relay_api", "mscs"
]


class Config(Tree, frozen=True, kw_only=True):
    """A configuration that can be used: the keys of the file, and what is known about the file.

    ``config.global_.server_name``, ``config.client_api.rate_limiting.threshold`` … are as in the file, with
    defaults filled in; durations are seconds (float), sizes bytes, and file paths absolute.
    """

    path: str = ""
    problems: tuple[Problem, ...] = ()
    lines: dict[str, int] = msgspec.field(default_factory=dict)
    open_registration_allowed: bool = False

    def database_of(self, component: Component) -> Database:
        """The database a component uses: its own, or else the one of all (`global.database`)."""
        own: Database = value_at(self, DATABASES[component])
        return own if own.connection_string else self.global_.database

    def key_of_database(self, component: Component) -> str:
        """Where the file names the database of a component, for messages."""
        own: Database = value_at(self, DATABASES[component])
        section = DATABASES[component] if own.connection_string else "global.database"
        return f"{section}.connection_string"

    @property
    def registration_open(self) -> bool:
        """Whether anybody may register without proof of any kind: neither captcha nor token."""
        client = self.client_api
        proven = client.enable_registration_captcha or client.registration_requires_token
        return not (client.registration_disabled or proven)

    def error(self, key: str, text: str, remedy: str = "") -> ConfigError:
        """An error about one key, found only after reading: with the line where the file has that key."""
        return ConfigError(self.path, [Problem("error", key, text, remedy, self.lines.get(key, 0))])


def load(path: str | os.PathLike[str], *, allow_open_registration: bool = False, polylith: bool = False) -> Config:
    """Read and check a configuration file; `ConfigError` if it cannot be used.

    Relative paths in the file are resolved against the current working directory.
    ``allow_open_registration`` is the flag ``-really-enable-open-registration``; ``polylith`` asks for what
    components need that run as processes of their own.
    """
    name = os.fspath(path)
    try:
        with Path(name).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError(name, [Problem("error", "", "The file is not UTF-8 text.")]) from None
    except OSError as error:
        remedy = 'Name your file with --config, or write one with "generate-config".'
        text = f"The file cannot be read: {error.strerror or error}."
        raise ConfigError(name, [Problem("error", "", text, remedy)]) from None
    return loads(text, name, allow_open_registration=allow_open_registration, polylith=polylith)


def loads(
    text: str,
    path: str = "dendrite.yaml",
    *,
    base: str | None = "",
    allow_open_registration: bool = False,
    polylith: bool = False,
) -> Config:
    """Check a configuration given as text; ``path`` is its name in messages.

    ``base`` is the directory for relative paths: empty = the current one, ``None`` = leave them as written.
    """
    reader = Reader(path, str(Path.cwd()) if base == "" else base)
    tree = complete(reader.read(text))
    unfit = {problem.key for problem in reader.problems if problem.kind == "error"}
    wrong = [*check(tree, allow_open_registration), *(check_polylith(tree) if polylith else ()), *not_yet(tree)]
    found = [
        msgspec.structs.replace(problem, line=_line_of(problem.key, reader.lines))
        for problem in wrong
        if problem.key not in unfit
    ]
    problems = tuple(sorted([*reader.problems, *found], key=lambda problem: problem.line))
    if any(problem.kind == "error" for problem in problems):
        raise ConfigError(path, problems)
    values = {name: getattr(tree, name) for name in Tree.__struct_fields__}
    return Config(
        **values,
        path=path,
        problems=problems,
        lines=reader.lines,
        open_registration_allowed=allow_open_registration,
    )


def _line_of(key: str, lines: dict[str, int]) -> int:
    """The line of a key, or of the nearest section above it that the file has; 0 if of none."""
    while key and key not in lines:
        key = key[: max(key.rfind("."), key.rfind("["), 0)]
    return lines.get(key, 0)

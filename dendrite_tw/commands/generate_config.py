"""``generate-config``: a configuration on standard output that starts the server as it is."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from dendrite_tw.commands.goflags import FlagSet
from dendrite_tw.config import ConfigError
from dendrite_tw.config.problems import Problem
from dendrite_tw.config.reader import Reader
from dendrite_tw.config.samples import generate_config, render

_INTRODUCTION = """\
Prints a configuration. The server starts with it once the signing key exists:

    generate-config -server example.com > dendrite.yaml
    generate-config -polylith -server example.com -db postgresql://user:password@host/name > dendrite.yaml
    generate-keys -private-key matrix_key.pem"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; the exit code."""
    flags = FlagSet("generate-config", _INTRODUCTION)
    server = flags.string("server", "localhost", "Domain name of the server")
    database = flags.string("db", "", "PostgreSQL URI for all components; SQLite files if not given")
    directory = flags.string("dir", "./", "Directory for databases, media, queue and search index")
    private_key = flags.string("private-key", "matrix_key.pem", "File with the signing key")
    polylith = flags.boolean("polylith", "For components in processes of their own, on NATS and PostgreSQL")
    nats = flags.string("nats", "localhost:4222", "With -polylith: addresses of NATS servers, separated by commas")
    ci = flags.boolean("ci", "For tests: quick and open (start with -really-enable-open-registration)")
    normalise = flags.string("normalise", "", "File to print with all keys, defaults filled in")
    flags.parse_only(sys.argv[1:] if arguments is None else arguments)
    if polylith.value and database.value.startswith("file:"):
        flags.fail("a polylith needs PostgreSQL: -db postgresql://user:password@host/name")
    try:
        if normalise.value:
            text = normalised(normalise.value)
        else:
            text = generate_config(
                server.value or "localhost",
                database.value,
                directory.value,
                ci=ci.value,
                private_key=private_key.value,
                nats=nats.value if polylith.value else "",
            )
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    sys.stdout.write(text)
    return 0


def normalised(path: str | os.PathLike[str]) -> str:
    """The configuration in a file with every key, as it is understood; `ConfigError` if it is not.

    Paths stay as they are written.  What would stop a start but is well-formed does not matter here.
    """
    name = os.fspath(path)
    try:
        text = Path(name).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(name, [Problem("error", "", f"The file cannot be read: {error}.")]) from None
    reader = Reader(name, None)
    tree = reader.read(text)
    errors = [problem for problem in reader.problems if problem.kind == "error"]
    if errors:
        raise ConfigError(name, errors)
    for problem in reader.problems:
        print(problem.render(name), file=sys.stderr)
    return render(tree)

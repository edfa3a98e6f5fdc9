"""A PostgreSQL server for one server under test, set up as Debian's package leaves it: commits are on disk.

Its processor time is that of the whole tree: the server's own processes, the backends that serve now, and those that
have ended, whose time their parent is told.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import psycopg2

from bench.processes import CLOCK_TICKS, ServerProcess, stat_fields

START_PATIENCE = 30.0
CONNECTIONS = 200


def program(name: str) -> str:
    """The path of one of the server's programs; Debian keeps them out of PATH."""
    versions = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[-3]))
    found = str(versions[-1]) if versions else shutil.which(name)
    if found is None:
        raise RuntimeError(f"{name} is not there (Debian: apt-get install postgresql)")
    return found


class PostgreSQL:
    """One cluster in `folder` on a socket of its own there; started and stopped as a unit."""

    def __init__(self, folder: Path, on_cores: set[int] | None) -> None:
        self.folder = folder
        self._on_cores = on_cores
        self._process: ServerProcess | None = None

    def start(self) -> None:
        """Make the cluster if there is none, start it, and wait until it takes connections."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if os.geteuid() == 0:
            self._open_the_way()
            shutil.chown(self.folder, "postgres", "postgres")
        data = self.folder / "data"
        if not data.exists():
            # C and UTF8 are what Synapse asks for; for ours any locale does.
            options = ["-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C"]
            self._run([program("initdb"), "-D", str(data), *options])
        command = [program("postgres"), "-D", str(data), "-k", str(self.folder)]
        command += ["-c", "listen_addresses=", "-c", f"max_connections={CONNECTIONS}"]
        self._process = ServerProcess(
            self._as_postgres(command),
            folder=self.folder,
            log=self.folder / "postgresql.log",
            environment=os.environ,
            on_cores=self._on_cores,
        )
        deadline = time.monotonic() + START_PATIENCE
        while not self._answers():
            if self._process.ended() or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL did not start: {self.folder / 'postgresql.log'}")
            time.sleep(0.05)

    def stop(self) -> None:
        if self._process is not None:
            self._process.stop()

    def kill(self) -> None:
        """``kill -9`` of all its processes."""
        assert self._process is not None
        self._process.kill()

    def make(self, database: str) -> None:
        """An empty database of this name."""
        connection = psycopg2.connect(self.dsn("postgres"))
        try:
            connection.autocommit = True
            connection.cursor().execute(f'CREATE DATABASE "{database}"')
        finally:
            connection.close()

    def dsn(self, database: str) -> str:
        """A connection string for a database."""
        return f"postgresql://postgres@/{database}?host={self.folder}&sslmode=disable"

    def look_for_children(self) -> None:
        """Bring the list of measured processes up to date."""
        assert self._process is not None
        self._process.look_for_children()

    def processor_seconds(self) -> float:
        """Processor time of everything that this server has run since it started."""
        assert self._process is not None
        self._process.look_for_children()
        return self._process.processor_seconds() + ended_seconds(self._process.pid)

    def _as_postgres(self, command: list[str]) -> list[str]:
        if os.geteuid() != 0:
            return command
        return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", *command]

    def _open_the_way(self) -> None:
        """Let another user reach the folder, wherever it was put."""
        for parent in self.folder.parents:
            if parent.stat().st_uid == os.geteuid() and parent != Path("/"):
                parent.chmod(parent.stat().st_mode | 0o011)

    def _run(self, command: list[str]) -> None:
        subprocess.run(self._as_postgres(command), cwd=self.folder, check=True, stdout=subprocess.DEVNULL)

    def _answers(self) -> bool:
        try:
            psycopg2.connect(self.dsn("postgres")).close()
        except psycopg2.OperationalError:
            return False
        return True


def ended_seconds(pid: int) -> float:
    """Processor seconds of the children of `pid` that have ended."""
    fields = stat_fields(pid)
    return (int(fields[13]) + int(fields[14])) / CLOCK_TICKS if fields else 0.0

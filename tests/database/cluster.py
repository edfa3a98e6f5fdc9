"""A PostgreSQL server of the tests' own: started when first asked for, gone when they are over.

It listens on a socket in a directory of its own and writes nothing to disk for good.  Each
test gets a schema, which is as good as a database and costs a hundredth of one.
"""

from __future__ import annotations

import atexit
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import psycopg2

SETTINGS = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "listen_addresses": "",
    "max_connections": "200",
    "shared_buffers": "32MB",
    "autovacuum": "off",
    "log_min_messages": "fatal",
    "logging_collector": "off",
}


OTHER_VERSIONS = Path(__file__).parent / "versions" / "node_modules"
"""Where `.ci/install-test-tools postgresql-versions` puts those that Debian does not have."""


def program(name: str) -> str:
    """The path of one of the server's programs; Debian keeps them out of PATH.

    POSTGRESQL_VERSION chooses another version than the newest of Debian's packages that is installed.
    """
    version = os.environ.get("POSTGRESQL_VERSION", "*")
    versions = sorted(Path("/usr/lib/postgresql").glob(f"{version}/bin/{name}"), key=lambda path: int(path.parts[-3]))
    if versions:
        return str(versions[-1])
    other = OTHER_VERSIONS / f"postgresql-{version}" / "native" / "bin" / name
    if other.exists():
        return str(other)
    found = shutil.which(name) if version == "*" else None
    if found is None:
        raise RuntimeError(f"the tests need PostgreSQL: {name} is not there (Debian: apt-get install postgresql)")
    return found


class Cluster:
    """One server process; `stop` and `start` may be called again and again."""

    def __init__(self, port: int = 0, primary: Cluster | None = None) -> None:
        """Listens on `port` of localhost too, unless it is 0.

        With a `primary`, which is stopped for a moment, as its standby.
        """
        self.port = port
        self._primary = primary
        self.folder = Path(tempfile.mkdtemp(prefix="pg-"))
        self._as: dict[str, object] = {}
        if os.geteuid() == 0:
            self._as = {"user": "postgres", "group": "postgres", "extra_groups": []}
            shutil.chown(self.folder, "postgres", "postgres")
        self._process: subprocess.Popen[bytes] | None = None
        self._schemas = itertools.count(1)
        if primary is None:
            self._run(
                program("initdb"), "-D", self.folder / "data", "-A", "trust", "-U", "postgres", "-N", "-E", "UTF8"
            )
        else:
            self._copy(primary)
        self.start()

    def _copy(self, primary: Cluster) -> None:
        primary.stop()
        subprocess.run(["cp", "-a", primary.folder / "data", self.folder / "data"], check=True)
        primary.start()
        signal_file = self.folder / "data" / "standby.signal"
        signal_file.touch()
        if self._as:
            shutil.chown(signal_file, "postgres", "postgres")

    def wait_for_standby(self) -> None:
        """From now on this primary answers a commit only when a standby has it too."""
        self.ask("ALTER SYSTEM SET synchronous_standby_names = '*'")
        self.ask("SELECT pg_reload_conf()")
        for _ in range(200):
            if self.ask("SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync'"):
                return
            time.sleep(0.05)
        raise RuntimeError("the standby does not follow")

    def promote(self) -> None:
        """Make a standby the primary."""
        self.ask("ALTER SYSTEM RESET synchronous_standby_names")
        self.ask("SELECT pg_promote()")

    def _run(self, *command: object) -> None:
        subprocess.run(
            [str(part) for part in command],
            cwd=self.folder,
            check=True,
            stdout=subprocess.DEVNULL,
            **self._as,  # type: ignore[call-overload]
        )

    def start(self) -> None:
        command = [program("postgres"), "-D", str(self.folder / "data"), "-k", str(self.folder)]
        more = {"listen_addresses": "localhost", "port": str(self.port)} if self.port else {}
        if self._primary is not None:
            more["primary_conninfo"] = f"host=localhost port={self._primary.port} user=postgres"
        for name, value in {**SETTINGS, **more}.items():
            command += ["-c", f"{name}={value}"]
        self._process = subprocess.Popen(
            command,
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **self._as,  # type: ignore[call-overload]
        )
        for _ in range(600):
            try:
                psycopg2.connect(self.dsn()).close()
                return
            except psycopg2.OperationalError:
                time.sleep(0.05)
        raise RuntimeError("the server did not start")

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT ends connections and writes all down; SIGQUIT leaves as in a crash."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(60)
            self._process = None

    def dsn(self, schema: str = "public") -> str:
        """A connection string for a schema."""
        host = f"localhost:{self.port}/postgres?" if self.port else f"/postgres?host={self.folder}&"
        return f"postgresql://postgres@{host}options=-csearch_path%3D{schema}&sslmode=disable"

    def new(self, more: str = "") -> str:
        """A connection string for an empty schema, with `more` schemas behind it on the search path."""
        name = f"t{next(self._schemas)}"
        self.ask(f"CREATE SCHEMA {name}")
        return self.dsn(name + more)

    def ask(self, sql: str) -> list[tuple[object, ...]]:
        """Run SQL as the administrator."""
        connection = psycopg2.connect(self.dsn())
        try:
            connection.autocommit = True
            cursor = connection.cursor()
            cursor.execute(sql)
            return cursor.fetchall() if cursor.description else []
        finally:
            connection.close()

    def remove(self) -> None:
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self.folder, ignore_errors=True)


_shared: list[Cluster] = []


def cluster() -> Cluster:
    """The server that all tests of this process share."""
    if not _shared:
        _shared.append(Cluster())
        atexit.register(_shared[0].remove)
    return _shared[0]

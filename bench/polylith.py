"""A polylith under test, set up as docs/polylith.md tells: processes of each component, NATS, PostgreSQL, nginx.

All of it is on this machine and in one folder.  Every process can be drained, killed and started again by itself.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from bench.nginx import Nginx
from bench.postgresql import PostgreSQL
from bench.processes import ServerProcess, free_port
from bench.servers import (
    DATABASE,
    PASSWORD_HASH_COST,
    SERVER_NAME,
    SIGNING_KEY_PEM,
    DidNotStartError,
    Ours,
)

START_PATIENCE = 60.0
DRAIN_PATIENCE = 40.0
COMPONENTS = ("user-api", "room-api", "federation-api", "media-api", "sync-api", "client-api")
"""The programs without ``dendrite-``."""
BEHIND_NGINX = ("client-api", "federation-api", "media-api", "sync-api")


class Nats:
    """A real nats-server with JetStream, whose store outlives it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.address = f"nats://127.0.0.1:{self.port}"
        self._process: ServerProcess | None = None

    def start(self) -> None:
        """Start it and wait until it listens."""
        self.folder.mkdir(parents=True, exist_ok=True)
        found = shutil.which("nats-server", path=str(Path(sys.executable).parent)) or shutil.which("nats-server")
        if found is None:
            raise RuntimeError("nats-server is not there: it comes with requirements-test.txt")
        command = [found, "-a", "127.0.0.1", "-p", str(self.port), "-js", "-sd", str(self.folder / "store")]
        log = self.folder / "nats.log"
        self._process = ServerProcess(command, folder=self.folder, log=log, environment=os.environ, on_cores=None)
        deadline = time.monotonic() + START_PATIENCE
        while not self._listens():
            if self._process.ended() or time.monotonic() > deadline:
                raise DidNotStartError(f"nats-server: {log.read_text()[-2000:]}")
            time.sleep(0.05)

    def _listens(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return True
        except OSError:
            return False

    def processor_seconds(self) -> float:
        """Processor time since it started."""
        return self._process.processor_seconds() if self._process is not None else 0.0

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()

    def stop(self) -> None:
        if self._process is not None:
            self._process.stop()

    def empty(self) -> None:
        """Delete all that it stored; it must be down."""
        shutil.rmtree(self.folder / "store")


class Member:
    """One process of a component, on a port of its own, which it keeps when it is started again."""

    def __init__(self, deployment: Polylith, component: str, number: int) -> None:
        self.component = component
        self.name = f"{component}-{number}"
        self.port = free_port()
        self._deployment = deployment
        self._process: ServerProcess | None = None

    @property
    def running(self) -> bool:
        return self._process is not None and not self._process.ended()

    @property
    def process(self) -> ServerProcess:
        assert self._process is not None, f"{self.name} was not started"
        return self._process

    def start(self) -> None:
        """Start it; `wait` waits until it serves."""
        folder = self._deployment.folder
        self._process = ServerProcess(
            self._deployment.command_of(self),
            folder=folder,
            log=self._deployment.log,
            environment=self._deployment.environment(),
            on_cores=None,
        )

    def wait(self, patience: float = START_PATIENCE) -> None:
        """Return when it is healthy.  Raises :class:`DidNotStartError`."""
        deadline = time.monotonic() + patience
        while self.health() != (200, []):
            if not self.running or time.monotonic() > deadline:
                raise DidNotStartError(f"{self.name}: {self.health()}\n{self._deployment.log_tail()}")
            time.sleep(0.05)

    def health(self) -> tuple[int, list[str]]:
        """Status and warnings of ``/_dendrite/monitor/health``; 0 where nobody answers."""
        url = f"http://127.0.0.1:{self.port}/_dendrite/monitor/health"
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                return answer.status, json.load(answer).get("warnings", [])
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error).get("warnings", [])
        except (OSError, ValueError):
            return 0, []

    def drain(self) -> None:
        """SIGTERM, and wait until it has ended by itself."""
        self.process.stop(DRAIN_PATIENCE)

    def kill(self) -> None:
        """``kill -9``."""
        self.process.kill()


class Polylith(Ours):
    """dendrite_tw from this checkout with `each` processes of every component, or as many as `counts` says."""

    name = "polylith"
    server_name = SERVER_NAME

    def __init__(
        self,
        folder: Path,
        *,
        each: int = 2,
        counts: Mapping[str, int] | None = None,
        on_cores: set[int] | None = None,
        database: PostgreSQL | None = None,
    ) -> None:
        super().__init__(folder, on_cores=on_cores, database=database)
        self.set_up(each, counts)

    def set_up(self, each: int, counts: Mapping[str, int] | None = None) -> None:
        """Decide on everything that it consists of; nothing is started."""
        self.database = self.database or PostgreSQL(self.folder / "postgresql", None)
        self.nats = Nats(self.folder / "nats")
        wanted = dict.fromkeys(COMPONENTS, each) | dict(counts or {})
        self.members = [Member(self, name, n + 1) for name in COMPONENTS for n in range(wanted[name])]
        self._nginx: Nginx | None = None

    @property
    def store(self) -> PostgreSQL:
        """The PostgreSQL server."""
        assert self.database is not None
        return self.database

    def of(self, component: str) -> list[Member]:
        """The processes of a component (``room-api``)."""
        return [member for member in self.members if member.component == component]

    # --- set up ---

    def prepare(self) -> None:
        key = SIGNING_KEY_PEM.format(
            identifier=secrets.token_hex(3), seed=base64.b64encode(secrets.token_bytes(32)).decode()
        )
        (self.folder / "matrix_key.pem").write_text(key)
        settings = yaml.safe_load(self._run("generate-config", *self._generated_with()))
        self.adapt(settings)
        (self.folder / "dendrite.yaml").write_text(yaml.safe_dump(settings))

    def _generated_with(self) -> list[str]:
        return [
            *("-polylith", "-server", self.server_name, "-db", self.store.dsn(DATABASE), "-nats", self.nats.address),
            *("-dir", str(self.folder), "-private-key", str(self.folder / "matrix_key.pem")),
        ]

    def adapt(self, settings: dict[str, Any]) -> None:
        """Change what tests want otherwise than operators: nothing is limited, passwords are cheap."""
        settings["global"]["disable_federation"] = True
        settings["client_api"]["registration_shared_secret"] = self.registration_secret
        settings["client_api"]["rate_limiting"]["enabled"] = False
        settings["user_api"]["bcrypt_cost"] = PASSWORD_HASH_COST
        settings["logging"] = [{"type": "std", "level": "warn"}]

    def site(self) -> str:
        """What nginx is given: the output of ``dendrite-generate-nginx``, unless a test has something else to try."""
        words = ["-config", str(self.folder / "dendrite.yaml"), "-host", "localhost"]
        words += ["-listen", f"127.0.0.1:{self.port}"]
        for component in BEHIND_NGINX:
            words += [f"-{component}", ",".join(f"127.0.0.1:{member.port}" for member in self.of(component))]
        return self._run("dendrite-generate-nginx", *words)

    def _run(self, program: str, *words: str) -> str:
        command = [str(self.environment_folder / "bin" / program), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, env=self.environment()).stdout

    def command_of(self, member: Member) -> list[str]:
        """The command that runs a process in the foreground."""
        program = str(self.environment_folder / "bin" / f"dendrite-{member.component}")
        config = str(self.folder / "dendrite.yaml")
        return [program, "--config", config, "--http-bind-address", f"127.0.0.1:{member.port}"]

    # --- life ---

    def start(self) -> None:
        """Start all that is not running, and wait until it serves.  Raises :class:`DidNotStartError`."""
        if self._nginx is None:
            self.store.start()
            self.nats.start()
            self.store.make(DATABASE)
            self.prepare()
        started = [member for member in self.members if not member.running]
        for member in started:
            member.start()
        for member in started:
            member.wait()
        if self._nginx is None:
            self._nginx = Nginx(self.folder / "nginx", self.site(), self.port)
            self._nginx.start()

    def stop(self) -> None:
        """End all of it in order: who asks before who answers, then what they stand on."""
        for component in reversed(COMPONENTS):
            running = [member for member in self.of(component) if member.running]
            for member in running:
                member.process.terminate()
            for member in running:
                member.process.wait(DRAIN_PATIENCE)
        if self._nginx is not None:
            self._nginx.stop()
        self.nats.stop()
        self.store.stop()

    def kill(self) -> None:
        """``kill -9`` of every process of ours at once."""
        for member in self.members:
            member.kill()

    def look_for_children(self) -> None:
        self.store.look_for_children()

    def processor_seconds(self) -> float:
        """Processor time of our processes and the database; without NATS and nginx."""
        ours = sum(member.process.processor_seconds() for member in self.members)
        return ours + self.store.processor_seconds()

    def resident_bytes(self) -> int:
        """Of all our processes together (pages that they share are counted for each)."""
        return sum(member.process.resident_bytes() for member in self.members)

    def seconds_around(self) -> dict[str, float]:
        """Processor time of what stands around our processes."""
        return {
            "PostgreSQL": self.store.processor_seconds(),
            "NATS": self.nats.processor_seconds(),
            "nginx": self._nginx.processor_seconds() if self._nginx else 0.0,
        }

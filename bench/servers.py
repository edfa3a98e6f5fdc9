"""The servers under test: ours and Synapse, each started as its users start it, on loopback and SQLite or PostgreSQL.

Both run without federation, presence, rate limits and request log, and with cheap password hashing, so that a
scenario measures its own work. A server can be stopped or killed and started again on the same folder and
port.
"""

from __future__ import annotations

import base64
import os
import re
import secrets
import subprocess
import sys
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from bench.postgresql import PostgreSQL
from bench.processes import ServerProcess, free_port

REPOSITORY = Path(__file__).resolve().parent.parent
CACHE = Path(__file__).resolve().parent / ".cache"
SYNAPSE_REQUIREMENTS = Path(__file__).resolve().parent / "requirements-synapse.txt"
START_PATIENCE = 60.0
SERVER_NAME = "localhost"
PASSWORD_HASH_COST = 4
DATABASE = "homeserver"


class DidNotStartError(Exception):
    """The server ended or stayed silent after it was started; the end of its log is in the message."""


class ServerUnderTest(ABC):
    """A homeserver in a folder of its own, on a port of 127.0.0.1."""

    name: ClassVar[str]
    repeats_to_device: ClassVar[bool] = False  # forgets to-device transaction ids when it is restarted

    def __init__(self, folder: Path, *, on_cores: set[int] | None = None, database: PostgreSQL | None = None) -> None:
        self.folder = folder
        self.database = database
        """The PostgreSQL server that is this one's alone; None for SQLite."""
        self.host = "127.0.0.1"
        self.port = free_port()
        self.registration_secret = secrets.token_hex(16)
        self.log = folder / "server.log"
        self._on_cores = on_cores
        self._process: ServerProcess | None = None
        folder.mkdir(parents=True, exist_ok=True)

    @abstractmethod
    def version(self) -> str:
        """What is measured, for the report."""

    @abstractmethod
    def prepare(self) -> None:
        """Write the configuration and the keys; called once, before the first start."""

    @classmethod
    @abstractmethod
    def install(cls) -> None:
        """Make the environment that the server runs in unless it is there."""

    @abstractmethod
    def command(self) -> list[str]:
        """The command that serves in the foreground."""

    def environment(self) -> dict[str, str]:
        """The environment of the command."""
        return dict(os.environ)

    @property
    def url(self) -> str:
        """Base URL of the client-server API."""
        return f"http://{self.host}:{self.port}"

    @property
    def process(self) -> ServerProcess:
        """The running process."""
        assert self._process is not None, "not started"
        return self._process

    def look_for_children(self) -> None:
        """Bring the list of measured processes up to date (slow: not inside a measurement)."""
        self.process.look_for_children()

    def processor_seconds(self) -> float:
        """Processor time of everything that serves, the database included, since it started."""
        return self.process.processor_seconds() + (self.database.processor_seconds() if self.database else 0.0)

    def resident_bytes(self) -> int:
        """Resident memory of the server, without a database's."""
        return self.process.resident_bytes()

    def start(self) -> None:
        """Start the server and wait until it answers. Raises :class:`DidNotStartError`."""
        if self.database is not None:
            self.database.start()
        if not any(self.folder.iterdir()):
            if self.database is not None:
                self.database.make(DATABASE)
            self.prepare()
        self._process = ServerProcess(
            self.command(),
            folder=self.folder,
            log=self.log,
            environment=self.environment(),
            on_cores=self._on_cores,
        )
        deadline = time.monotonic() + START_PATIENCE
        while not self._answers():
            if self._process.ended() or time.monotonic() > deadline:
                self._process.kill()
                raise DidNotStartError(f"{self.name}: {' '.join(self.command())}\n{self.log_tail()}")
            time.sleep(0.05)
        self._process.look_for_children()

    def stop(self) -> None:
        """End the server in order."""
        if self._process is not None:
            self._process.stop()
        if self.database is not None:
            self.database.stop()

    def kill(self) -> None:
        """``kill -9``."""
        self.process.kill()

    def log_tail(self, lines: int = 60) -> str:
        """The end of what the server printed."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/_matrix/client/versions", timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


DENDRITE_YAML = """\
version: 2
global:
  server_name: {server_name}
  private_key: {folder}/matrix_key.pem
  disable_federation: true
  presence: {{enable_inbound: false, enable_outbound: false}}
  jetstream: {{storage_path: {folder}/jetstream}}
client_api:
  registration_disabled: true
  guests_disabled: true
  registration_shared_secret: {secret}
  rate_limiting: {{enabled: false}}
federation_api:
  database: {{connection_string: "file:{folder}/federation_api.db"}}
media_api:
  database: {{connection_string: "file:{folder}/media_api.db"}}
  base_path: {folder}/media
room_server:
  database: {{connection_string: "file:{folder}/room_server.db"}}
sync_api:
  database: {{connection_string: "file:{folder}/sync_api.db"}}
key_server:
  database: {{connection_string: "file:{folder}/key_server.db"}}
relay_api:
  database: {{connection_string: "file:{folder}/relay_api.db"}}
mscs:
  database: {{connection_string: "file:{folder}/mscs.db"}}
user_api:
  bcrypt_cost: {hash_cost}
  account_database: {{connection_string: "file:{folder}/user_api.db"}}
logging:
  - {{type: std, level: warn}}
"""

SIGNING_KEY_PEM = """\
-----BEGIN MATRIX PRIVATE KEY-----
Key-ID: ed25519:{identifier}

{seed}
-----END MATRIX PRIVATE KEY-----
"""


class Ours(ServerUnderTest):
    """dendrite_tw from this checkout, as ``make run`` starts it: in this environment, or in one made by `install`."""

    name = "ours"
    environment_folder: ClassVar[Path] = Path(sys.prefix)

    @classmethod
    def install(cls) -> None:
        """Use an environment with the runtime requirements alone, as users have; made anew when they change.

        Twisted loads further packages (HTTP/2) where it finds them, and the tests need such.
        """
        cls.environment_folder = CACHE / "ours-venv"
        make_environment(cls.environment_folder, REPOSITORY / "requirements.txt")

    def version(self) -> str:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=False,
        )
        return f"dendrite_tw {described.stdout.strip() or 'unversioned'}"

    def prepare(self) -> None:
        settings = DENDRITE_YAML.format(
            server_name=SERVER_NAME,
            folder=self.folder,
            secret=self.registration_secret,
            hash_cost=PASSWORD_HASH_COST,
        )
        if self.database is not None:
            settings = re.sub(r'"file:[^"]+"', f'"{self.database.dsn(DATABASE)}"', settings)
        (self.folder / "dendrite.yaml").write_text(settings)
        seed = base64.b64encode(secrets.token_bytes(32)).decode()
        key = SIGNING_KEY_PEM.format(identifier=secrets.token_hex(3), seed=seed)
        (self.folder / "matrix_key.pem").write_text(key)

    def command(self) -> list[str]:
        twistd = str(self.environment_folder / "bin" / "twistd")
        return [
            *(twistd, "--nodaemon", "--pidfile=", "--logger=dendrite_tw.logs.standard_output", "dendrite"),
            *("--config", str(self.folder / "dendrite.yaml")),
            *("--http-bind-address", f"{self.host}:{self.port}"),
        ]

    def environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(REPOSITORY)}


def make_environment(folder: Path, requirements: Path) -> None:
    """See to it that there is a virtual environment in `folder` with just `requirements`; anew when those change."""
    wanted = requirements.read_text()
    stamp = folder / requirements.name
    if stamp.exists() and stamp.read_text() == wanted:
        return
    print(f"installing {requirements.name} into {folder}", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    subprocess.run([*pip, "-r", str(requirements)], check=True)
    stamp.write_text(wanted)


HOMESERVER_YAML = """\
server_name: {server_name}
report_stats: false
pid_file: {folder}/homeserver.pid
log_config: {folder}/log.yaml
signing_key_path: {folder}/signing.key
media_store_path: {folder}/media
registration_shared_secret: {secret}
macaroon_secret_key: {secret}
form_secret: {secret}
bcrypt_rounds: {hash_cost}
federation_domain_whitelist: []
trusted_key_servers: []
presence: {{enabled: false}}
database: {database}
caches: {{sync_response_cache_duration: 0s}}
listeners:
  - {{type: http, port: {port}, bind_addresses: [127.0.0.1], resources: [{{names: [client, media]}}]}}
rc_message: {{per_second: 1000000, burst_count: 1000000}}
rc_registration: {{per_second: 1000000, burst_count: 1000000}}
rc_room_creation: {{per_second: 1000000, burst_count: 1000000}}
rc_admin_redaction: {{per_second: 1000000, burst_count: 1000000}}
rc_login:
  address: {{per_second: 1000000, burst_count: 1000000}}
  account: {{per_second: 1000000, burst_count: 1000000}}
  failed_attempts: {{per_second: 1000000, burst_count: 1000000}}
rc_joins:
  local: {{per_second: 1000000, burst_count: 1000000}}
  remote: {{per_second: 1000000, burst_count: 1000000}}
rc_joins_per_room: {{per_second: 1000000, burst_count: 1000000}}
rc_invites:
  per_room: {{per_second: 1000000, burst_count: 1000000}}
  per_user: {{per_second: 1000000, burst_count: 1000000}}
  per_issuer: {{per_second: 1000000, burst_count: 1000000}}
"""

SYNAPSE_LOG_YAML = """\
version: 1
formatters: {plain: {format: '%(asctime)s %(levelname)s %(name)s %(message)s'}}
handlers: {console: {class: logging.StreamHandler, formatter: plain}}
root: {level: WARNING, handlers: [console]}
disable_existing_loggers: false
"""


class Synapse(ServerUnderTest):
    """Synapse from PyPI in a virtual environment of its own."""

    name = "synapse"
    repeats_to_device = True
    environment_folder: ClassVar[Path] = Path(os.environ.get("SYNAPSE_VENV", CACHE / "synapse-venv"))

    @classmethod
    def install(cls) -> None:
        """Make the virtual environment of the pinned release under ``bench/.cache``, unless another one is named."""
        if "SYNAPSE_VENV" not in os.environ:
            make_environment(cls.environment_folder, SYNAPSE_REQUIREMENTS)

    def version(self) -> str:
        ask = "from importlib.metadata import version; print(version('matrix-synapse'))"
        python = str(self.environment_folder / "bin" / "python")
        answer = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True)
        return f"Synapse {answer.stdout.strip()}"

    def prepare(self) -> None:
        settings = HOMESERVER_YAML.format(
            server_name=SERVER_NAME,
            folder=self.folder,
            secret=self.registration_secret,
            hash_cost=PASSWORD_HASH_COST,
            port=self.port,
            database=self._database_settings(),
        )
        (self.folder / "homeserver.yaml").write_text(settings)
        (self.folder / "log.yaml").write_text(SYNAPSE_LOG_YAML)
        seed = base64.b64encode(secrets.token_bytes(32)).decode().rstrip("=")
        (self.folder / "signing.key").write_text(f"ed25519 a_{secrets.token_hex(2)} {seed}\n")

    def _database_settings(self) -> str:
        if self.database is None:
            return f"{{name: sqlite3, args: {{database: {self.folder}/homeserver.db}}}}"
        place = f"user: postgres, dbname: {DATABASE}, host: {self.database.folder}"
        return f"{{name: psycopg2, args: {{{place}, cp_min: 5, cp_max: 10}}}}"

    def command(self) -> list[str]:
        python = str(self.environment_folder / "bin" / "python")
        return [python, "-m", "synapse.app.homeserver", "-c", str(self.folder / "homeserver.yaml")]


SERVERS: dict[str, type[ServerUnderTest]] = {Ours.name: Ours, Synapse.name: Synapse}

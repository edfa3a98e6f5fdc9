"""Homeservers that federate over TLS on the loopback interface: ours, and Synapse from PyPI.

A server is called ``localhost:PORT`` or ``127.0.0.1:PORT`` after the port of its federation API, so nothing need be
looked up. Both check certificates against the tests' own authority. What only slows tests down (rate limits, patience
with servers that are away) is short.
"""

from __future__ import annotations

import base64
import fcntl
import http.client
import os
import secrets
import ssl
from pathlib import Path
from typing import Any, ClassVar

from bench.polylith import Polylith
from bench.processes import free_port
from bench.servers import SIGNING_KEY_PEM, Ours, ServerUnderTest, Synapse
from tests.interop.authority import Authority
from tests.interop.people import Person, Reply, Wire, registered


class Homeserver(ServerUnderTest):
    """A server that other servers can reach."""

    def __init__(self, folder: Path, authority: Authority, domain: str, *, validate: bool = True) -> None:
        """`domain` is the name without the port; `validate` false takes any certificate of others."""
        super().__init__(folder)
        self.authority = authority
        self.domain = domain
        self.validate = validate
        self.federation_port = free_port()
        while self.federation_port == self.port:
            self.federation_port = free_port()
        self.server_name = f"{domain}:{self.federation_port}"
        self.wire = Wire(self.host, self.port)
        self._people = 0

    def person(self, name: str = "someone") -> Person:
        """A new account with one device."""
        self._people += 1
        return registered(self.wire, self.registration_secret, f"{name}{self._people}")

    def ask(self, path: str) -> Reply:
        """An unsigned request to the federation API, its certificate checked."""
        trust = ssl.create_default_context(cafile=str(self.authority.file))
        connection = http.client.HTTPSConnection(self.domain, self.federation_port, context=trust)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return Reply(answer.status, answer.read())
        finally:
            connection.close()

    def written(self) -> int:
        """How long the log is now."""
        return self.log.stat().st_size if self.log.exists() else 0

    def log_since(self, offset: int) -> str:
        """What was logged since the log was so long."""
        with self.log.open("rb") as log:
            log.seek(offset)
            return log.read().decode(errors="replace")

    def complaints(self, offset: int) -> list[str]:
        """Lines of the log since then that tell of a fault of the server's own."""
        return []


OURS_YAML = """\
version: 2
global:
  server_name: {server_name}
  private_key: {folder}/matrix_key.pem
  presence: {{enable_inbound: true, enable_outbound: true}}
  jetstream: {{storage_path: {folder}/jetstream}}
client_api:
  registration_disabled: true
  guests_disabled: true
  registration_shared_secret: {secret}
  rate_limiting: {{enabled: false}}
federation_api:
  database: {{connection_string: "file:{folder}/federation_api.db"}}
  deny_networks: []
  allow_networks: []
  disable_tls_validation: {any_certificate}
media_api:
  database: {{connection_string: "file:{folder}/media_api.db"}}
  base_path: {folder}/media
  dynamic_thumbnails: true
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
  bcrypt_cost: 4
  account_database: {{connection_string: "file:{folder}/user_api.db"}}
logging:
  - {{type: std, level: info}}
"""


class OurHomeserver(Ours, Homeserver):
    """dendrite_tw from this checkout, HTTPS served by itself."""

    trusts_authority = True

    def prepare(self) -> None:
        self.configure()
        seed = base64.b64encode(secrets.token_bytes(32)).decode()
        key = SIGNING_KEY_PEM.format(identifier=secrets.token_hex(3), seed=seed)
        (self.folder / "matrix_key.pem").write_text(key)
        self.authority.issue(self.domain, self.folder)

    def configure(self) -> None:
        """Write the configuration as the attributes say."""
        settings = OURS_YAML.format(
            server_name=self.server_name,
            folder=self.folder,
            secret=self.registration_secret,
            any_certificate="false" if self.validate else "true",
        )
        (self.folder / "dendrite.yaml").write_text(settings)

    def command(self) -> list[str]:
        return [
            *super().command(),
            *("--https-bind-address", f"{self.host}:{self.federation_port}"),
            *("--tls-cert", str(self.folder / "tls.crt"), "--tls-key", str(self.folder / "tls.key")),
        ]

    def environment(self) -> dict[str, str]:
        trusted = {"SSL_CERT_FILE": str(self.authority.file)} if self.trusts_authority else {}
        return {**super().environment(), **trusted}

    def complaints(self, offset: int) -> list[str]:
        lines = self.log_since(offset).splitlines()
        return [line for line in lines if "level=error" in line or "level=fatal" in line or "Traceback" in line]


class PolylithHomeserver(Polylith, Homeserver):
    """dendrite_tw as two processes of each component, behind an nginx that serves HTTPS."""

    def __init__(
        self, folder: Path, authority: Authority, domain: str, *, validate: bool = True, each: int = 2
    ) -> None:
        Homeserver.__init__(self, folder, authority, domain, validate=validate)
        self.set_up(each)

    def prepare(self) -> None:
        super().prepare()
        self.authority.issue(self.domain, self.folder)

    def adapt(self, settings: dict[str, Any]) -> None:
        super().adapt(settings)
        settings["global"]["disable_federation"] = False
        settings["global"]["presence"] = {"enable_inbound": True, "enable_outbound": True}
        settings["federation_api"] |= {
            "deny_networks": [],
            "allow_networks": [],
            "key_perspectives": [],
            "disable_tls_validation": not self.validate,
        }
        settings["media_api"]["dynamic_thumbnails"] = True
        settings["logging"] = [{"type": "std", "level": "info"}]

    def site(self) -> str:
        plain = f"listen {self.host}:{self.port};"
        tls = f"listen {self.host}:{self.federation_port} ssl;"
        certificate = f"ssl_certificate {self.folder}/tls.crt; ssl_certificate_key {self.folder}/tls.key;"
        return super().site().replace(plain, f"{plain}\n    {tls}\n    {certificate}")

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "SSL_CERT_FILE": str(self.authority.file)}

    def complaints(self, offset: int) -> list[str]:
        lines = self.log_since(offset).splitlines()
        return [line for line in lines if "level=error" in line or "level=fatal" in line or "Traceback" in line]


SYNAPSE_YAML = """\
server_name: "{server_name}"
public_baseurl: "http://127.0.0.1:{port}/"
report_stats: false
pid_file: {folder}/homeserver.pid
log_config: {folder}/log.yaml
signing_key_path: {folder}/signing.key
media_store_path: {folder}/media
registration_shared_secret: {secret}
macaroon_secret_key: {secret}
form_secret: {secret}
bcrypt_rounds: 4
trusted_key_servers: []
federation_verify_certificates: {verify}
federation_custom_ca_list: [{authority}]
ip_range_blacklist: []
federation_ip_range_blacklist: []
federation:
  client_timeout: 10s
  destination_min_retry_interval: 500
  destination_retry_multiplier: 1
  destination_max_retry_interval: 500
  max_long_retries: 2
  max_short_retries: 1
  max_long_retry_delay: 500
  max_short_retry_delay: 100
allow_public_rooms_over_federation: true
allow_public_rooms_without_auth: true
allow_profile_lookup_over_federation: true
allow_device_name_lookup_over_federation: true
room_list_publication_rules: [{{action: allow}}]
presence: {{enabled: true}}
tls_certificate_path: {folder}/tls.crt
tls_private_key_path: {folder}/tls.key
database: {{name: sqlite3, args: {{database: {folder}/homeserver.db}}}}
caches: {{sync_response_cache_duration: 0s}}
listeners:
  - {{type: http, port: {port}, bind_addresses: [127.0.0.1], resources: [{{names: [client, media]}}]}}
  - type: http
    tls: true
    port: {federation_port}
    bind_addresses: [127.0.0.1]
    resources: [{{names: [federation, media]}}]
rc_message: {rate}
rc_registration: {rate}
rc_room_creation: {rate}
rc_admin_redaction: {rate}
rc_login: {{address: {rate}, account: {rate}, failed_attempts: {rate}}}
rc_joins: {{local: {rate}, remote: {rate}}}
rc_joins_per_room: {rate}
rc_invites: {{per_room: {rate}, per_user: {rate}, per_issuer: {rate}}}
rc_key_requests: {rate}
rc_presence: {{per_user: {rate}}}
rc_federation: {{window_size: 1000, sleep_limit: 100000, sleep_delay: 1, reject_limit: 100000, concurrent: 50}}
"""

SYNAPSE_LOG_YAML = """\
version: 1
formatters: {plain: {format: '%(asctime)s %(levelname)s %(name)s %(message)s'}}
handlers: {console: {class: logging.StreamHandler, formatter: plain}}
root: {level: WARNING, handlers: [console]}
loggers:
  synapse.handlers.federation_event: {level: INFO}
  synapse.federation: {level: INFO}
disable_existing_loggers: false
"""


class SynapseHomeserver(Synapse, Homeserver):
    """Synapse, from the virtual environment that the benchmarks use too."""

    RATE: ClassVar[str] = "{per_second: 1000000, burst_count: 1000000}"

    @classmethod
    def installed(cls) -> None:
        """Make sure that it is installed; of several processes that want it, one installs."""
        lock = cls.environment_folder.with_suffix(".lock")
        lock.parent.mkdir(parents=True, exist_ok=True)
        with lock.open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            cls.install()

    def prepare(self) -> None:
        settings = SYNAPSE_YAML.format(
            server_name=self.server_name,
            folder=self.folder,
            secret=self.registration_secret,
            authority=self.authority.file,
            verify="true" if self.validate else "false",
            port=self.port,
            federation_port=self.federation_port,
            rate=self.RATE,
        )
        (self.folder / "homeserver.yaml").write_text(settings)
        (self.folder / "log.yaml").write_text(SYNAPSE_LOG_YAML)
        seed = base64.b64encode(secrets.token_bytes(32)).decode().rstrip("=")
        (self.folder / "signing.key").write_text(f"ed25519 a_{secrets.token_hex(2)} {seed}\n")
        self.authority.issue(self.domain, self.folder)

    def environment(self) -> dict[str, str]:
        return dict(os.environ)

"""``dendrite-generate-nginx``: an nginx configuration for a polylith on standard output, from the table of routes."""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from dendrite_tw.commands.goflags import Flag, FlagSet
from dendrite_tw.components import EXTERNAL, host_and_port
from dendrite_tw.config import Config, ConfigError, load, loads

if TYPE_CHECKING:
    from dendrite_tw.nginx import Site
    from dendrite_tw.web.routes import Route

_INTRODUCTION = """\
Prints an nginx configuration that sends every request to a process that serves it:

    dendrite-generate-nginx -config dendrite.yaml > /etc/nginx/sites-enabled/dendrite.conf

Where a component runs in more than one process, or not where the file says, list the addresses:

    dendrite-generate-nginx -sync-api 127.0.0.1:8073,127.0.0.1:8173 -client-api 10.0.0.5:8071"""

_ADDRESS = re.compile(r"unix:/[^\s;{}\"']{1,100}|(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,255}):[0-9]{1,5}")
_NAME = re.compile(r"[A-Za-z0-9.-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\]")
_PATH = re.compile(r"[^\s;{}\"'$\\]{1,1000}")
_LISTEN = re.compile(r"[A-Za-z0-9.:\[\]*_/-]{1,300}")

_IN_MEMORY = """\
version: 2
global: {{server_name: a.example, private_key: {folder}/key.pem, disable_federation: {alone},
    well_known_server_name: a.example, well_known_client_name: "https://a.example",
    server_notices: {{enabled: true, local_part: _server}}, jetstream: {{in_memory: true}}}}
client_api: {{registration_shared_secret: secret, registration_requires_token: true, registration_disabled: false}}
media_api: {{base_path: {folder}, database: {{connection_string: "file::memory:"}}}}
room_server: {{database: {{connection_string: "file::memory:"}}}}
user_api: {{account_database: {{connection_string: "file::memory:"}}}}
key_server: {{database: {{connection_string: "file::memory:"}}}}
sync_api: {{database: {{connection_string: "file::memory:"}}}}
federation_api: {{database: {{connection_string: "file::memory:"}}}}
"""
"""A server on which everything is switched on that has rows of its own."""


class UseError(Exception):
    """What is wrong with the flags: a sentence."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; the exit code."""
    flags = FlagSet("dendrite-generate-nginx", _INTRODUCTION)
    path = flags.string("config", "dendrite.yaml", "The configuration file of the server")
    host = flags.string("host", "", "Name under which clients reach nginx; as well_known_client_name has it by default")
    certificate = flags.string("tls-cert", "", "Certificate chain; by default where certbot puts that of the host")
    key = flags.string("tls-key", "", "Key of that certificate")
    listen = flags.string("listen", "", "Serve HTTP without TLS on these addresses alone, separated by commas")
    upstreams = {
        component: flags.string(
            component.replace("_", "-"), "", "Addresses of its processes, separated by commas: host:port or unix:/path"
        )
        for component in EXTERNAL
    }
    flags.parse_only(sys.argv[1:] if arguments is None else arguments)
    try:
        config = load(path.value, allow_open_registration=True, polylith=True)
        name = _checked(_NAME, host.value or host_of(config), "-host", "a host name")
        site = _site(config, name, certificate.value, key.value, listen.value, upstreams)
    except (ConfigError, UseError) as error:
        print(error, file=sys.stderr)
        return 1
    sys.stdout.write(file_for(site, config.global_.disable_federation))
    return 0


def file_for(site: Site, alone: bool = False) -> str:
    """The configuration of nginx for this site; ``alone`` = without federation."""
    from dendrite_tw import nginx

    rows = all_rows(alone)
    if site.largest_body:
        limits = [row.body_limit for routes in rows.values() for row in routes if row.body_file is None]
        site = msgspec.structs.replace(site, largest_body=max(site.largest_body, *limits))
    return nginx.render(nginx.dispatch(rows), site)


def all_rows(alone: bool = False) -> Mapping[str, Sequence[Route]]:
    """The table of routes, component -> rows: that of a server that is put together in memory, and never started."""
    from twisted.internet.task import Clock

    from dendrite_tw.assemble import monolith
    from dendrite_tw.matrix.keys import signing_key, write_pem
    from dendrite_tw.web.internet import SystemInternet
    from dendrite_tw.world import ReactorClock, SeededRandom, World

    time = Clock()
    clock = ReactorClock(time)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "key.pem").write_text(write_pem(signing_key("ed25519:1", b"0" * 32)), encoding="utf-8")
        config = loads(_IN_MEMORY.format(folder=folder, alone=str(alone).lower()))
        server = monolith(config, World(time, clock, SeededRandom(0), None, SystemInternet(time, clock)))
    return {component: rows for component, rows in server.parts.rows.items() if component in EXTERNAL}


def host_of(config: Config) -> str:
    """The name under which clients reach this server, as far as the file tells: without a port."""
    general = config.global_
    delegated = general.well_known_client_name.partition("://")[2] or general.well_known_server_name
    name = delegated.partition("/")[0] or general.server_name
    return re.sub(r":[0-9]+$", "", name)


def _site(
    config: Config, host: str, certificate: str, key: str, listen: str, upstreams: Mapping[str, Flag[str]]
) -> Site:
    """What the flags and the file say; `UseError` or `ConfigError` where that cannot be."""
    from dendrite_tw.nginx import Site

    if bool(certificate) != bool(key):
        raise UseError("-tls-cert and -tls-key are only of use together.")
    folder = f"/etc/letsencrypt/live/{host}"
    alone = config.global_.disable_federation
    serving = [component for component in upstreams if not (alone and component == "federation_api")]
    return Site(
        server_name=re.sub(r":[0-9]+$", "", config.global_.server_name),
        host=host,
        upstreams={component: _upstreams(config, component, upstreams[component].value) for component in serving},
        largest_body=config.media_api.max_file_size_bytes,
        certificate=_checked(_PATH, certificate or f"{folder}/fullchain.pem", "-tls-cert", "a path"),
        key=_checked(_PATH, key or f"{folder}/privkey.pem", "-tls-key", "a path"),
        listen=[_checked(_LISTEN, one.strip(), "-listen", "an address") for one in listen.split(",") if one.strip()],
    )


def _upstreams(config: Config, component: str, given: str) -> list[str]:
    """Where the processes of a component are: as the flag says, or the one that the file has."""
    flag = f"-{component.replace('_', '-')}"
    found = [one.strip() for one in given.split(",") if one.strip()]
    if not found:
        key = f"{component}.external_api.listen"
        address = host_and_port(getattr(config, component).external_api.listen)
        if not address:
            raise config.error(key, "Where this component listens is not said.", f"Set it, or give {flag} host:port.")
        port = address.rpartition(":")[2]
        everywhere = address.startswith((":", "0.0.0.0:"))
        found = [f"127.0.0.1:{port}" if everywhere else address]
    return [_checked(_ADDRESS, one, flag, "host:port or unix:/path") for one in found]


def _checked(pattern: re.Pattern[str], text: str, flag: str, kind: str) -> str:
    if not pattern.fullmatch(text):
        raise UseError(f"{flag} must be {kind}, not {text[:80]!r}.")
    return text


def sample() -> str:
    """``contrib/nginx/polylith.conf``: two processes of each component on one machine."""
    from dendrite_tw.nginx import Site

    ports = {"client_api": 8071, "federation_api": 8072, "sync_api": 8073, "media_api": 8074}
    return file_for(
        Site(
            server_name="example.com",
            host="matrix.example.com",
            upstreams={name: [f"127.0.0.1:{port}", f"127.0.0.1:{port + 100}"] for name, port in ports.items()},
            largest_body=50 << 20,
            certificate="/etc/letsencrypt/live/matrix.example.com/fullchain.pem",
            key="/etc/letsencrypt/live/matrix.example.com/privkey.pem",
        )
    )

"""``python -m dendrite_tw.commands.first_start``: what a server needs before it first starts, for ``make run``.

Makes in one directory, each only if it is missing, the signing key, a certificate for TLS signed by itself, and a
configuration with SQLite databases, the queue and the media there and a random registration secret.
"""

from __future__ import annotations

import secrets
import sys
from pathlib import Path

from dendrite_tw.commands.goflags import FlagSet

_EVERYWHERE = ("", "0.0.0.0", "[::]")  # noqa: S104


def main(arguments: list[str] | None = None) -> int:
    """Run the command; the exit code."""
    flags = FlagSet("first_start", "Makes keys and a configuration where they are missing.")
    data = flags.string("data", "data", "Directory for all files of the server")
    server = flags.string("server", "localhost", "Domain name of the server")
    http = flags.string("http", "127.0.0.1:8008", "Where it will listen for HTTP")
    flags.parse_only(sys.argv[1:] if arguments is None else arguments)
    directory = Path(data.value).absolute()
    try:
        made = prepare(directory, server.value or "localhost")
    except OSError as error:
        print(f"{directory} cannot be prepared: {error}.", file=sys.stderr)
        return 1
    for path in made:
        print(f"Created {path}")
    if made:
        print(welcome(directory, http.value), flush=True)
    return 0


def prepare(directory: Path, server: str) -> list[Path]:
    """Make what is missing and return it; `OSError` if the directory cannot be written to."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    key, config = directory / "matrix_key.pem", directory / "dendrite.yaml"
    tls_cert, tls_key = directory / "server.crt", directory / "server.key"
    made = []
    if not key.exists():
        from dendrite_tw.commands.generate_keys import write_signing_key

        write_signing_key(str(key))
        made.append(key)
    if not (tls_cert.exists() and tls_key.exists()):
        from dendrite_tw.commands.generate_keys import write_certificate

        write_certificate(str(tls_cert), str(tls_key), server, 2048)
        made += [tls_cert, tls_key]
    if not config.exists():
        from dendrite_tw.config.samples import generate_config

        text = generate_config(
            server,
            directory=str(directory),
            private_key=str(key),
            registration_shared_secret=secrets.token_urlsafe(32),
        )
        config.touch(mode=0o600)
        config.write_text(text, encoding="utf-8")
        made.append(config)
    return made


def welcome(directory: Path, http: str) -> str:
    """Where to point a client and how to make the first account."""
    host, _, port = http.rpartition(":")
    url = f"http://{host if host not in _EVERYWHERE else 'localhost'}:{port}"
    return f"""
Point a client at {url} once the server runs.
Make the first account from another terminal, in this directory:

    .venv/bin/create-account --config {directory / "dendrite.yaml"} --url {url} --username alice --admin
"""


if __name__ == "__main__":
    raise SystemExit(main())

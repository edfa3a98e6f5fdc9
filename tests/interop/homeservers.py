"""The homeservers of the stories, as `bench.federating` starts them, with people on them and an ear for their logs."""

from __future__ import annotations

import http.client
import ssl
from pathlib import Path

from bench.authority import Authority
from bench.federating import Federating, FederatingOurs, FederatingSynapse
from tests.interop.people import Person, Reply, Wire, registered


class Homeserver(Federating):
    """A server that other servers can reach."""

    talkative = True

    def __init__(self, folder: Path, authority: Authority, domain: str) -> None:
        super().__init__(folder, authority, domain)
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


class OurHomeserver(FederatingOurs, Homeserver):
    """dendrite_tw from this checkout."""

    talkative = True

    def complaints(self, offset: int) -> list[str]:
        lines = self.log_since(offset).splitlines()
        return [line for line in lines if "level=error" in line or "level=fatal" in line or "Traceback" in line]


class SynapseHomeserver(FederatingSynapse, Homeserver):
    """Synapse from PyPI."""

    talkative = True

"""Other servers: who speaks to them, who takes what they send, and who tells them what happens here.

Loaded only where the configuration does not switch federation off.
"""

from __future__ import annotations

from ..federating import Federating
from ..federation_api.api import FederationAPI
from ..web.routes import Route
from .basis import Basis, Living


class FederationPart:
    """Answers `FederationAPI`, and serves other servers."""

    def __init__(self, basis: Basis) -> None:
        self.federating = Federating(
            basis.config,
            basis.world,
            basis.database("federation_api"),
            basis.metrics,
            basis.rooms,
            basis.users,
            basis.keys,
            basis.client,
            basis.relays.consumed,
            basis.ways.echoes,
            basis.leases("federation_api"),
        )
        self.servers = self.federating.component.servers
        basis.ways.here(FederationAPI, self.federating.component)
        self.life: list[Living] = list(self.federating.parts)
        self.later: list[Living] = []

    def prepare(self) -> None:
        for part in self.federating.parts:
            part.prepare()

    def rows(self) -> list[Route]:
        return [row for part in self.federating.parts for row in part.routes()]

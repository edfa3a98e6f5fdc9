"""What clients read: sync and the endpoints beside it."""

from __future__ import annotations

from ..figures import show_syncs
from ..sync_api.api import SyncAPI
from ..sync_api.component import SyncComponent
from ..web.routes import Route, client_paths
from .basis import Basis, Living


class SyncPart:
    """Hears what the others tell, and serves it."""

    def __init__(self, basis: Basis) -> None:
        self.sync = sync_of(basis)
        basis.ways.here(SyncAPI, self.sync)
        show_syncs(basis.metrics, self.sync)
        self.life: list[Living] = [self.sync]
        self.later: list[Living] = []
        self.prepare = self.sync.prepare

    def rows(self) -> list[Route]:
        return client_paths(self.sync.routes())


def sync_of(basis: Basis) -> SyncComponent:
    return SyncComponent(
        basis.rooms,
        basis.users,
        basis.keys,
        basis.client,
        basis.database("sync_api"),
        basis.world,
        basis.budget,
        basis.server_name,
        presence_enabled=basis.config.global_.presence.enable_outbound,
        others=basis.ways.beside(SyncAPI),
        process=basis.ways.process,
        echoes=basis.ways.echoes,
    )

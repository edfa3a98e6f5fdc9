"""What a server that talks to others has beside the rest: the wiring of `federation_api`, its settings and figures.

`assemble` loads this only where the configuration does not switch federation off: the client, TLS and names take
some megabytes, of no use to a server that keeps to itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .config import Config
from .config.key_files import old_verify_keys, signing_key
from .database.engines import Database
from .federation_api.component import FederationComponent
from .federation_api.inbound import Inbound
from .federation_api.keyring import Perspective, perspective
from .federation_api.outbound import OutboundComponent
from .federation_api.signing_keys import OwnKeys
from .links.echoes import Echoes
from .metrics import Metrics
from .room_api.api import RoomAPI
from .sharing.leases import Leases, Sole
from .user_api.api import KeyAPI, UserAPI
from .web.internet import ClientOptions, NameCache
from .web.networks import Networks
from .web.routes import Route
from .world import World


class Federating:
    """The three parts: who speaks to other servers, who takes what they send, and who tells them what happens here.

    ``parts`` are the three in the order in which they start, and the leases, under which the last two work where
    several processes do.  `on_stored` is told by the consumers of `outbound`, with their names, up to which position
    all is stored.
    """

    def __init__(
        self,
        config: Config,
        world: World,
        database: Database,
        metrics: Metrics,
        rooms: RoomAPI,
        users: UserAPI,
        keys: KeyAPI,
        queue: Any,
        on_stored: Callable[[str, int], None],
        echoes: Echoes | None = None,
        leases: Leases | None = None,
    ) -> None:
        server_name, presence = config.global_.server_name, config.global_.presence
        leases = leases or Sole()
        self.component = federation_component(config, world, database, metrics, echoes)
        self.inbound = Inbound(
            database, rooms, users, keys, queue, world, server_name, presence.enable_inbound, echoes, leases
        )
        self.outbound = OutboundComponent(
            server_name,
            database,
            self.component.destinations,
            self.component.client.send_transaction,
            rooms,
            keys,
            queue,
            world,
            presence.enable_outbound,
            on_stored,
            echoes,
            leases,
        )
        self.parts = (self.component, self.inbound, self.outbound, Holding(leases))
        show_inbound(metrics, self.inbound)
        show_outbound(metrics, self.outbound)


class Holding:
    """Takes leases once all is there that works under them, and gives them back before that ends."""

    def __init__(self, leases: Leases) -> None:
        self.start = leases.start
        self.stop = leases.stop

    def prepare(self) -> None:
        """Nothing: leases are taken when all processes can be asked."""

    def routes(self) -> list[Route]:
        return []


def federation_component(
    config: Config, world: World, database: Database, metrics: Metrics, echoes: Echoes | None = None
) -> FederationComponent:
    """What speaks to other servers."""
    internet = world.internet
    assert internet is not None
    names = internet.names(name_cache(config))
    return FederationComponent(
        database,
        internet.client(names, client_options(config)),
        names,
        own_keys(config, world),
        world,
        perspectives(config),
        config.federation_api.prefer_direct_fetch,
        config.federation_api.send_max_retries,
        internet.locator,
        counted_requests(metrics),
        echoes,
    )


# --- settings ---


def client_options(config: Config) -> ClientOptions:
    """How connections to other homeservers are made."""
    api = config.federation_api
    return ClientOptions(
        Networks(api.deny_networks, api.allow_networks),
        validate_tls=not api.disable_tls_validation,
        keep_alive=not api.disable_http_keepalives,
    )


def name_cache(config: Config) -> NameCache | None:
    cache = config.global_.dns_cache
    return NameCache(cache.cache_size, int(cache.cache_lifetime * 1000)) if cache.enabled else None


def own_keys(config: Config, world: World) -> OwnKeys:
    """What this server signs with, and what it publishes of it; `ConfigError` for a key that is none."""
    old, validity_ms = old_verify_keys(config), int(config.global_.key_validity_period * 1000)
    try:
        return OwnKeys(config.global_.server_name, signing_key(config), old, validity_ms, world.clock)
    except ValueError:
        raise config.error(
            "global.old_private_keys", "A public key is not base64.", "Copy it anew, or name the file of the key."
        ) from None


def perspectives(config: Config) -> list[Perspective]:
    """The notaries; `ConfigError` for a key that is none."""
    found = []
    for index, one in enumerate(config.federation_api.key_perspectives):
        try:
            found.append(perspective(one.server_name, [(key.key_id, key.public_key) for key in one.keys]))
        except ValueError as error:
            raise config.error(
                f"federation_api.key_perspectives[{index}]",
                f"A public key of {one.server_name[:100]} cannot be read: {error}.",
                "Public keys are 32 bytes in unpadded base64.",
            ) from None
    return found


# --- figures ---


def show_inbound(metrics: Metrics, inbound: Inbound) -> None:
    """What other servers send, under Dendrite's names."""
    metrics.counter("dendrite_federationapi_recv_pdus", "Events of other servers.", ["status"], inbound.pdus)
    metrics.counter("dendrite_federationapi_recv_edus", "EDUs of other servers.", ["type"], inbound.edus)
    metrics.gauge(
        "dendrite_federationapi_staged_pdus", "Events of other servers that wait.", lambda: inbound.inbox.waiting
    )


def show_outbound(metrics: Metrics, outbound: OutboundComponent) -> None:
    """The queues of other servers, under Dendrite's names."""
    name, senders = "dendrite_federationapi_destination_queues", outbound.senders
    metrics.gauge(f"{name}_total", "Servers for which something waits.", lambda: senders.total)
    metrics.gauge(f"{name}_running", "Servers to which a transaction is under way.", lambda: senders.running)
    metrics.gauge(
        f"{name}_backing_off", "Servers for which something waits that do not answer.", lambda: senders.backing_off
    )


def counted_requests(metrics: Metrics) -> Callable[[str, str], None]:
    """Is to be told of every request to another server: its method and outcome."""
    asked: dict[tuple[str, ...], int] = {}
    metrics.counter("dendrite_federationapi_requests", "Requests to other servers.", ["method", "outcome"], asked)

    def observe(method: str, outcome: str) -> None:
        asked[method, outcome] = asked.get((method, outcome), 0) + 1

    return observe

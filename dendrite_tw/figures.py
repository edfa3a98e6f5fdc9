"""What `metrics` shows of each component, under Dendrite's names where it has one."""

from __future__ import annotations

from collections.abc import Callable

from .federation_api.inbound import Inbound
from .federation_api.outbound import OutboundComponent
from .metrics import Metrics
from .sync_api.component import SyncComponent
from .user_api.resync import Resyncs


def show_syncs(metrics: Metrics, sync: SyncComponent) -> None:
    """Who syncs."""
    handler, notifier = sync.handler, sync.notifier
    metrics.gauge("dendrite_syncapi_active_sync_requests", "Syncs that are being answered.", lambda: handler.active)
    metrics.gauge("dendrite_syncapi_waiting_sync_requests", "Syncs that wait for news.", lambda: notifier.waiting)
    metrics.gauge("dendrite_syncapi_active_users", "Users who sync.", lambda: notifier.streams)


def show_resyncs(metrics: Metrics, resyncs: Resyncs) -> None:
    """How device lists of other servers' users are fetched, under Dendrite's names."""
    metrics.counter("dendrite_keyserver_device_list_update", "Device lists asked for.", [], resyncs.attempts)
    metrics.gauge(
        "dendrite_keyserver_worker_backpressure",
        "Servers to be asked for device lists that wait for their turn.",
        lambda: resyncs.waiting_servers,
    )
    metrics.gauge(
        "dendrite_keyserver_worker_servers_retrying",
        "Servers to be asked for device lists that did not answer.",
        lambda: resyncs.retrying_servers,
    )


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

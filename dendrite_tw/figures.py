"""What `metrics` shows of each component, under Dendrite's names where it has one."""

from __future__ import annotations

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

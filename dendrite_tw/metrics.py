"""Counters and gauges at ``/metrics``, in the format of Prometheus.

Hot paths count in plain dictionaries; the `prometheus_client` objects are
made when somebody asks, and the library is imported no sooner: it is a megabyte
of memory that a server whom nobody asks does not need.  With ``global.metrics.basic_auth`` set, wrong
credentials are answered with 403, as Dendrite answers them.
"""

from __future__ import annotations

import base64
import hmac
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from twisted.web.resource import Resource
from twisted.web.server import Request

from . import __version__
from .cache import CacheBudget
from .web.routes import Endpoint

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric


class Metrics:
    """What the process counts, as a collector of Prometheus."""

    def __init__(self, budget: CacheBudget) -> None:
        self._budget = budget
        self._requests: dict[tuple[str, str, int], int] = {}
        self._gauges: list[tuple[str, str, Callable[[], float]]] = []
        self._counters: list[tuple[str, str, tuple[str, ...], Mapping[tuple[str, ...], int]]] = []
        self._registry: CollectorRegistry | None = None

    @property
    def registry(self) -> CollectorRegistry:
        """All that is shown: this, and what the library says of every process."""
        if self._registry is None:
            from prometheus_client import CollectorRegistry
            from prometheus_client.gc_collector import GCCollector
            from prometheus_client.process_collector import ProcessCollector

            self._registry = CollectorRegistry()
            self._registry.register(self)
            ProcessCollector(registry=self._registry)
            GCCollector(registry=self._registry)
        return self._registry

    def observe(self, endpoint: Endpoint | None, status: int) -> None:
        """Count an answer."""
        key = (endpoint.label, endpoint.route.method, status) if endpoint else ("", "", status)
        self._requests[key] = self._requests.get(key, 0) + 1

    def gauge(self, name: str, documentation: str, read: Callable[[], float]) -> None:
        """Show a number that is read when it is asked for."""
        self._gauges.append((name, documentation, read))

    def counter(
        self, name: str, documentation: str, labels: Sequence[str], counts: Mapping[tuple[str, ...], int]
    ) -> None:
        """Show what is counted in `counts`, by the values of the labels, under exactly this name."""
        self._counters.append((name, documentation, tuple(labels), counts))

    def collect(self) -> Iterable[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

        up = GaugeMetricFamily("dendrite_up", "The server runs.", labels=["version"])
        up.add_metric([__version__], 1)
        yield up
        requests = CounterMetricFamily(
            "dendrite_http_requests", "Answers by endpoint.", labels=["endpoint", "method", "code"]
        )
        for (label, method, status), count in self._requests.items():
            requests.add_metric([label, method, str(status)], count)
        yield requests
        size = GaugeMetricFamily("dendrite_caching_bytes", "Estimated bytes held by a cache.", labels=["cache"])
        lookups = CounterMetricFamily("dendrite_caching_lookups", "Look-ups of a cache.", labels=["cache", "found"])
        for cache in self._budget.caches:
            size.add_metric([cache.name], cache.bytes)
            lookups.add_metric([cache.name, "true"], cache.hits)
            lookups.add_metric([cache.name, "false"], cache.misses)
        yield size
        yield lookups
        for name, documentation, read in self._gauges:
            yield GaugeMetricFamily(name, documentation, value=read())
        for name, documentation, labels, counts in self._counters:
            # Dendrite's names have no suffix, which the library gives to all that it calls a counter.
            counter = Metric(name, documentation, "unknown")
            for values, count in counts.items():
                counter.add_sample(name, dict(zip(labels, values, strict=True)), count)
            yield counter


class MetricsResource(Resource):
    """Serves `Metrics`; with a user name and a password, only to who knows them."""

    isLeaf = True

    def __init__(self, metrics: Metrics, username: str, password: str) -> None:
        super().__init__()
        self._metrics = metrics
        self._expected = (
            b"Basic " + base64.b64encode(f"{username}:{password}".encode()) if username and password else None
        )

    def render_GET(self, request: Request) -> bytes:
        from prometheus_client import generate_latest

        if self._expected is not None:
            given = request.getHeader(b"authorization") or b""
            if not hmac.compare_digest(given.encode() if isinstance(given, str) else given, self._expected):
                request.setResponseCode(403)
                return b"Forbidden\n"
        request.setHeader(b"Content-Type", b"text/plain; version=0.0.4; charset=utf-8")
        return generate_latest(self._metrics.registry)

"""The monitoring port: what an operator or a probe may ask a running server over HTTP.

Reference: NATS documentation, "Monitoring".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

from dendrite_tw.jetstream.engine import JetStream
from dendrite_tw.jetstream.server import PROTOCOL_VERSION, Server
from dendrite_tw.jetstream.times import format_time


class _Page(Resource):
    """A JSON document."""

    isLeaf = True

    def __init__(self, document: Callable[[], tuple[int, Any]]) -> None:
        super().__init__()
        self._document = document

    def render_GET(self, request: Request) -> bytes:
        status, document = self._document()
        request.setResponseCode(status)
        request.setHeader(b"content-type", b"application/json")
        body: bytes = orjson.dumps(document, option=orjson.OPT_INDENT_2)
        return body


def monitor_site(servers: list[Server], engines: list[JetStream], started: int) -> Site:
    """``/varz``, ``/connz``, ``/jsz`` and ``/healthz`` for these accounts of one server."""
    first = servers[0]

    def varz() -> tuple[int, Any]:
        return 200, {
            "server_id": first.settings.server_id,
            "server_name": first.settings.name,
            "version": PROTOCOL_VERSION,
            "host": first.settings.host,
            "port": first.settings.port,
            "max_payload": first.settings.max_payload,
            "start": format_time(started),
            "connections": sum(len(server.sessions) for server in servers),
            "subscriptions": sum(session.subscription_count for s in servers for session in s.sessions.values()),
            "in_msgs": sum(server.in_messages for server in servers),
            "out_msgs": sum(server.out_messages for server in servers),
            "in_bytes": sum(server.in_bytes for server in servers),
            "out_bytes": sum(server.out_bytes for server in servers),
            "jetstream": {"stats": _totals(engines)} if engines else {},
        }

    def connz() -> tuple[int, Any]:
        connections = [
            {"cid": session.number, "name": session.name, "subscriptions": session.subscription_count}
            for server in servers
            for session in server.sessions.values()
        ]
        return 200, {"num_connections": len(connections), "connections": connections[:1024]}

    def jsz() -> tuple[int, Any]:
        if not engines:
            return 200, {"disabled": True}
        messages = sum(hosted.stream.index.count for engine in engines for hosted in engine.streams.values())
        return 200, {**_totals(engines), "messages": messages}

    def healthz() -> tuple[int, Any]:
        failing = [engine.syncer.failing for engine in engines if engine.syncer.failing]
        if failing:
            return 503, {"status": "unavailable", "error": failing[0]}
        return 200, {"status": "ok"}

    root = Resource()
    for name, document in (("varz", varz), ("connz", connz), ("jsz", jsz), ("healthz", healthz)):
        root.putChild(name.encode(), _Page(document))
    root.putChild(b"", _Page(lambda: (200, ["varz", "connz", "jsz", "healthz"])))
    site = Site(root)
    site.displayTracebacks = False
    site.noisy = False
    return site


def _totals(engines: list[JetStream]) -> dict[str, Any]:
    totals: dict[str, Any] = {}
    for engine in engines:
        for key, value in engine.info().items():
            totals[key] = totals.get(key, 0) + value
    return totals

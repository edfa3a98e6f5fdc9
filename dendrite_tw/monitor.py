"""Whether the server is up, and whether all is well with it.

Dendrite's ``/_dendrite/monitor/up`` and ``/_dendrite/monitor/health``, and
``/health`` as Synapse has it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import orjson

from .web.routes import Access, Response, Route

Warnings = Callable[[], Sequence[str]]
"""What is degraded in one part of the server, a sentence each."""


class MonitorRoutes:
    """The endpoints for whoever watches over the server."""

    def __init__(self, parts: Sequence[Warnings]) -> None:
        self._parts = parts

    def routes(self) -> list[Route]:
        return [
            Route("GET", "/_dendrite/monitor/up", self.up, Access.PUBLIC),
            Route("GET", "/_dendrite/monitor/health", self.health, Access.PUBLIC),
            Route("GET", "/health", self.plain_health, Access.PUBLIC),
        ]

    def warnings(self) -> list[str]:
        return [warning for part in self._parts for warning in part()]

    async def up(self) -> None:
        return None

    async def health(self) -> Response:
        warnings = self.warnings()
        if not warnings:
            return Response(200, b"{}")
        return Response(503, orjson.dumps({"warnings": warnings}))

    async def plain_health(self) -> Response:
        warnings = self.warnings()
        text = "\n".join(warnings) or "OK"
        return Response(503 if warnings else 200, text.encode(), b"text/plain; charset=utf-8")

"""Who of the other servers made a request, where the keys of servers are in another process."""

from __future__ import annotations

from ..federation_api.api import FederationAPI, SignedRequest
from ..web.resource import Exchange


class AskedServers:
    """A `ServerAuthenticator` that asks the federation component."""

    def __init__(self, others: FederationAPI) -> None:
        self._others = others

    async def origin_of(self, exchange: Exchange) -> str:
        return await self._others.origin_of(
            SignedRequest(
                method=exchange.method,
                uri=exchange.uri,
                authorization=exchange.header(b"authorization"),
                content=exchange.body,
                ip=exchange.ip,
            )
        )

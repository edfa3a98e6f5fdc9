"""Media of other servers: asked of the server that the URI names, in the new way and then in the old.

Server-Server API, "Content Repository".  What the other server says of itself is told to a client as far as it is
about the media; whatever else goes wrong is 502.
"""

from __future__ import annotations

from urllib.parse import quote

from ..federation_api.api import Download, DownloadRequest, FederationAPI
from ..matrix.errors import MatrixError, not_found
from .api import RemoteMedia
from .headers import name_in_disposition

TRANSFER_MS = 120_000
"""How long the bytes of a file may take, once they begin to come."""

FORWARDED = {
    (404, "M_NOT_FOUND"): "There is no such media.",
    (403, "M_FORBIDDEN"): "The other server does not give this media away.",
    (504, "M_NOT_YET_UPLOADED"): "The content was not uploaded yet.",
    (502, "M_TOO_LARGE"): "The content is too large for the other server to send.",
    (429, "M_LIMIT_EXCEEDED"): "The other server was asked too often; try again later.",
}
"""Refusals that a client is told as they are, and what it is told with them."""


class RemoteFiles:
    """Fetches media through the federation component, which writes it to the store's disk."""

    def __init__(self, federation: FederationAPI) -> None:
        self._federation = federation

    async def fetch(self, server_name: str, media_id: str, into: str, limit: int, timeout_ms: int) -> RemoteMedia:
        """A `RemoteFetcher`."""
        found = await self._federation.download(
            DownloadRequest(
                destination=server_name,
                path=f"/_matrix/federation/v1/media/download/{media_id}",
                query=[("timeout_ms", str(timeout_ms))],
                into=into,
                limit=limit,
                timeout_ms=timeout_ms + TRANSFER_MS,
            )
        )
        if found.status == 404 and found.errcode in (None, "M_UNRECOGNIZED"):
            found = await self._fetch_as_before(server_name, media_id, into, limit, timeout_ms)
        if found.status != 200:
            raise _refusal(found)
        return RemoteMedia(
            size=found.size,
            sha256=found.sha256,
            content_type=found.content_type,
            name=name_in_disposition(found.disposition),
        )

    async def _fetch_as_before(
        self, server_name: str, media_id: str, into: str, limit: int, timeout_ms: int
    ) -> Download:
        """Ask a server that has only the endpoint of before Matrix 1.11, which must not ask others in turn."""
        query = [("allow_remote", "false"), ("allow_redirect", "true"), ("timeout_ms", str(timeout_ms))]
        return await self._federation.download(
            DownloadRequest(
                destination=server_name,
                path=f"/_matrix/media/v3/download/{quote(server_name, safe='')}/{media_id}",
                query=query,
                into=into,
                limit=limit,
                timeout_ms=timeout_ms + TRANSFER_MS,
                multipart=False,
            )
        )


def _refusal(found: Download) -> MatrixError:
    """What a client is told of the other server's refusal."""
    if found.status == 404:
        return not_found(FORWARDED[404, "M_NOT_FOUND"])
    text = FORWARDED.get((found.status, found.errcode or ""))
    if text is None:
        return MatrixError(502, "M_UNKNOWN", "The other server could not send this media.")
    return MatrixError(found.status, found.errcode or "", text)

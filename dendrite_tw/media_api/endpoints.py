"""The media endpoints: ``/_matrix/client/v1/media/…``, ``/_matrix/media/…`` and their older forms.

Client-Server API, "Content repository".  The older forms ask for no token.
"""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from ..matrix.errors import MatrixError
from ..matrix.multipart import framed
from ..user_api.api import Caller
from ..web.resource import Exchange
from ..web.routes import Access, Limit, Response, Route
from ..world import Random
from .api import DEFAULT_TIMEOUT_MS, MediaFile, MediaQuestion, Method, ThumbnailSize
from .headers import checked_name, content_disposition, media_headers
from .store import Incoming

MEDIA = Limit("media")
SERVERS = Limit("federation_media", factor=20)
"""Other servers ask for the media that all of their users look at."""


BOUNDARY_LENGTH = 32


class UploadQuery(msgspec.Struct, frozen=True):
    filename: str | None = None


class ServerQuery(msgspec.Struct, frozen=True):
    timeout_ms: int = DEFAULT_TIMEOUT_MS


class DownloadQuery(msgspec.Struct, frozen=True):
    """``allow_redirect`` is understood, and never needed: this server sends content itself."""

    timeout_ms: int = DEFAULT_TIMEOUT_MS
    allow_remote: bool = True
    allow_redirect: bool = False


class ServerThumbnailQuery(msgspec.Struct, frozen=True):
    width: int
    height: int
    method: Method = Method.SCALE
    animated: bool = False
    timeout_ms: int = DEFAULT_TIMEOUT_MS


class ThumbnailQuery(ServerThumbnailQuery, frozen=True):
    allow_remote: bool = True
    allow_redirect: bool = False


class MediaService(Protocol):
    """What the endpoints need of the component."""

    max_file_size_bytes: int

    def open_upload(self) -> Incoming: ...

    async def accept(self, uploader: str, content_type: str | None, name: str | None, body: Incoming) -> str: ...

    async def create(self, uploader: str) -> tuple[str, int]: ...

    async def complete(
        self, uploader: str, server_name: str, media_id: str, content_type: str | None, name: str | None, body: Incoming
    ) -> None: ...

    async def media(self, question: MediaQuestion) -> MediaFile: ...

    async def thumbnail(self, question: MediaQuestion, size: ThumbnailSize, animated: bool = False) -> MediaFile: ...


class MediaEndpoints:
    """Handlers and their rows."""

    def __init__(self, media: MediaService, limit: int, server_name: str, random: Random) -> None:
        """``random`` makes the boundaries of answers to other servers."""
        self._media = media
        self._limit = limit
        self._server_name = server_name
        self._random = random

    async def upload(self, caller: Caller, query: UploadQuery, request: Exchange, body: Incoming) -> dict[str, Any]:
        """``POST /_matrix/media/v3/upload``."""
        kind = request.header(b"content-type")
        return {"content_uri": await self._media.accept(caller.user_id, kind, query.filename, body)}

    async def create(self, caller: Caller) -> dict[str, Any]:
        """``POST /_matrix/media/v1/create``."""
        uri, expires = await self._media.create(caller.user_id)
        return {"content_uri": uri, "unused_expires_at": expires}

    async def upload_to(
        self, caller: Caller, server_name: str, media_id: str, query: UploadQuery, request: Exchange, body: Incoming
    ) -> None:
        """``PUT /_matrix/media/v3/upload/{serverName}/{mediaId}``."""
        kind = request.header(b"content-type")
        await self._media.complete(caller.user_id, server_name, media_id, kind, query.filename, body)

    async def config(self) -> dict[str, Any]:
        """``GET …/media/config``; no limit is not listed."""
        limit = self._media.max_file_size_bytes
        return {"m.upload.size": limit} if limit else {}

    async def download(self, server_name: str, media_id: str, query: DownloadQuery) -> Response:
        """``GET /_matrix/client/v1/media/download/{serverName}/{mediaId}``."""
        return await self._download(server_name, media_id, None, query, anonymous=False)

    async def download_as(self, server_name: str, media_id: str, file_name: str, query: DownloadQuery) -> Response:
        """``GET /_matrix/client/v1/media/download/{serverName}/{mediaId}/{fileName}``."""
        return await self._download(server_name, media_id, file_name, query, anonymous=False)

    async def thumbnail(self, server_name: str, media_id: str, query: ThumbnailQuery) -> Response:
        """``GET /_matrix/client/v1/media/thumbnail/{serverName}/{mediaId}``."""
        return await self._thumbnail(server_name, media_id, query, anonymous=False)

    async def old_download(self, server_name: str, media_id: str, query: DownloadQuery) -> Response:
        """``GET /_matrix/media/v3/download/{serverName}/{mediaId}``."""
        return await self._download(server_name, media_id, None, query, anonymous=True)

    async def old_download_as(self, server_name: str, media_id: str, file_name: str, query: DownloadQuery) -> Response:
        """``GET /_matrix/media/v3/download/{serverName}/{mediaId}/{fileName}``."""
        return await self._download(server_name, media_id, file_name, query, anonymous=True)

    async def old_thumbnail(self, server_name: str, media_id: str, query: ThumbnailQuery) -> Response:
        """``GET /_matrix/media/v3/thumbnail/{serverName}/{mediaId}``."""
        return await self._thumbnail(server_name, media_id, query, anonymous=True)

    async def _download(
        self, server_name: str, media_id: str, file_name: str | None, query: DownloadQuery, anonymous: bool
    ) -> Response:
        file = await self._media.media(
            MediaQuestion(
                server_name=server_name,
                media_id=media_id,
                timeout_ms=query.timeout_ms,
                allow_remote=query.allow_remote,
                anonymous=anonymous,
            )
        )
        return file_response(file, checked_name(file_name) or file.name, not anonymous)

    async def _thumbnail(self, server_name: str, media_id: str, query: ThumbnailQuery, anonymous: bool) -> Response:
        check_size(query)
        file = await self._media.thumbnail(
            MediaQuestion(
                server_name=server_name,
                media_id=media_id,
                timeout_ms=query.timeout_ms,
                allow_remote=query.allow_remote,
                anonymous=anonymous,
            ),
            ThumbnailSize(query.width, query.height, query.method),
            query.animated,
        )
        return file_response(file, file.name, not anonymous)

    # --- for other servers ---

    async def download_for_server(self, media_id: str, query: ServerQuery) -> Response:
        """``GET /_matrix/federation/v1/media/download/{mediaId}``."""
        return self._mixed(await self._media.media(self._own(media_id, query.timeout_ms)))

    async def thumbnail_for_server(self, media_id: str, query: ServerThumbnailQuery) -> Response:
        """``GET /_matrix/federation/v1/media/thumbnail/{mediaId}``."""
        check_size(query)
        size = ThumbnailSize(query.width, query.height, query.method)
        return self._mixed(
            await self._media.thumbnail(self._own(media_id, query.timeout_ms), size, query.animated),
        )

    def _own(self, media_id: str, timeout_ms: int) -> MediaQuestion:
        """A question about media of this server."""
        return MediaQuestion(
            server_name=self._server_name, media_id=media_id, timeout_ms=timeout_ms, allow_remote=False
        )

    def _mixed(self, file: MediaFile) -> Response:
        """The answer that has the file as its second part."""
        boundary = self._random.token(BOUNDARY_LENGTH)
        disposition = content_disposition(file.content_type, file.name)
        head, tail = framed(boundary, file.content_type, disposition)
        kind = f"multipart/mixed; boundary={boundary}".encode()
        return Response(200, head, kind, (), file.path, 0, file.size, tail)

    def routes(self) -> list[Route]:
        """A row for each endpoint; the old ones as ``v3`` and ``v1``."""
        new, old, servers = "/_matrix/client/v1/media", "/_matrix/media", "/_matrix/federation/v1/media"
        whole, part = "download/{server_name}/{media_id}", "thumbnail/{server_name}/{media_id}"
        rows = [
            Route("GET", f"{new}/config", self.config, Access.USER, MEDIA),
            Route("GET", f"{new}/{whole}", self.download, Access.GUEST, MEDIA),
            Route("GET", f"{new}/{whole}/{{file_name}}", self.download_as, Access.GUEST, MEDIA),
            Route("GET", f"{new}/{part}", self.thumbnail, Access.GUEST),
            Route("POST", f"{old}/v1/create", self.create, Access.USER, MEDIA),
            Route(
                "GET", f"{servers}/download/{{media_id}}", self.download_for_server, Access.SERVER, SERVERS, cors=False
            ),
            Route(
                "GET",
                f"{servers}/thumbnail/{{media_id}}",
                self.thumbnail_for_server,
                Access.SERVER,
                SERVERS,
                cors=False,
            ),
            self._upload("PUT", f"{old}/v3/upload/{{server_name}}/{{media_id}}", self.upload_to),
        ]
        for version in ("v3", "v1"):
            rows += [
                self._upload("POST", f"{old}/{version}/upload", self.upload),
                Route("GET", f"{old}/{version}/config", self.config, Access.USER, MEDIA),
                Route("GET", f"{old}/{version}/{whole}", self.old_download, Access.PUBLIC, MEDIA),
                Route("GET", f"{old}/{version}/{whole}/{{file_name}}", self.old_download_as, Access.PUBLIC, MEDIA),
                Route("GET", f"{old}/{version}/{part}", self.old_thumbnail, Access.PUBLIC),
            ]
        return rows

    def _upload(self, method: str, path: str, handler: Any) -> Route:
        return Route(
            method, path, handler, Access.USER, MEDIA, body_limit=self._limit, body_file=self._media.open_upload
        )


def check_size(query: ServerThumbnailQuery) -> None:
    if query.width <= 0 or query.height <= 0:
        raise MatrixError(400, "M_UNKNOWN", "A thumbnail's width and height are greater than 0.")


def file_response(file: MediaFile, name: str | None, private: bool) -> Response:
    """The answer that is this file."""
    return Response(
        200,
        b"",
        file.content_type.encode(),
        media_headers(file.content_type, name, file.etag, private),
        file.path,
        0,
        file.size,
    )

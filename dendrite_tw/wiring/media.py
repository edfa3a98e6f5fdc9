"""Files that users send, and their thumbnails."""

from __future__ import annotations

from ..media_api.api import MediaAPI, Method, ThumbnailSize
from ..media_api.component import MediaComponent
from ..media_api.remote import RemoteFiles
from ..web.routes import Route, client_paths
from .basis import Basis, Living


class MediaPart:
    """Answers `MediaAPI`, and serves what is uploaded."""

    def __init__(self, basis: Basis) -> None:
        self.media = media_of(basis)
        basis.ways.here(MediaAPI, self.media)
        self.life: list[Living] = [self.media]
        self.later: list[Living] = []
        self._config = basis.config

    def prepare(self) -> None:
        """Make the folder and the tables; `ConfigError` where that cannot be."""
        try:
            self.media.prepare()
        except OSError as error:
            reason = error.strerror or str(error)
            raise self._config.error(
                "media_api.base_path",
                f"Files cannot be kept in {self._config.media_api.base_path}: {reason}.",
                "Name a directory that this user may write to, with all below it on one file system.",
            ) from None

    def rows(self) -> list[Route]:
        return client_paths(self.media.routes())


def media_of(basis: Basis) -> MediaComponent:
    settings = basis.config.media_api
    return MediaComponent(
        basis.database("media_api"),
        settings.base_path,
        settings.max_file_size_bytes,
        [ThumbnailSize(size.width, size.height, Method(size.method)) for size in settings.thumbnail_sizes],
        settings.dynamic_thumbnails,
        settings.max_thumbnail_generators,
        basis.world,
        basis.server_name,
        RemoteFiles(basis.others).fetch if basis.federates else None,
        remote_lifetime_ms=int(settings.remote_media_lifetime * 1000),
        echoes=basis.ways.echoes,
    )

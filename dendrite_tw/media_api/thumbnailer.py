"""Finds or makes the thumbnail that answers a wish.

Thumbnails are files beside their original, so equal uploads share them.  The
configured sizes of a file are made together, with one decoding, after its
upload or when first asked for; with ``dynamic_thumbnails`` other sizes are made
as they are wished for.  What is being made already is waited for, not made
twice.  At most ``max_thumbnail_generators`` work at a time, and of those that
decode very large images, one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Sequence
from typing import TypeVar

import msgspec
from twisted.internet.defer import DeferredLock, DeferredSemaphore
from twisted.logger import Logger

from ..database.engines import Database
from ..database.statements import Transaction
from ..matrix.errors import MatrixError, limit_exceeded
from ..world import World
from . import thumbnails
from .api import MediaFile, ThumbnailSize
from .sizes import choose, shrinks, thumbnail_name
from .store import MediaStore
from .tables.media import hash_in_use
from .tables.thumbnails import ThumbnailRow, insert_thumbnails, thumbnails_of
from .thumbnails import Facts, NotAnImage, Thumbnail, TooManyPixels, TooSlow
from .work import Shared, in_thread

T = TypeVar("T")

log = Logger()

LARGE_PIXELS = 8_000_000
"""From here on an image takes so much memory that only one is decoded at a time."""

QUEUE_LIMIT = 200
"""How many pieces of work may wait; beyond it clients are asked to come back."""

WISHES_A_FILE = 64
"""How many thumbnails of one file are kept; a stranger can ask for any number of sizes."""

FACTS_REMEMBERED = 10_000


class Original(msgspec.Struct, frozen=True):
    """The file that a thumbnail is wanted of; ``remote`` where it is another server's."""

    hash: str
    size: int
    remote: bool = False


class Thumbnailer:
    """Makes thumbnails for one store."""

    def __init__(
        self,
        database: Database,
        store: MediaStore,
        world: World,
        sizes: Sequence[ThumbnailSize],
        dynamic: bool,
        max_generators: int,
    ) -> None:
        self._database = database
        self._store = store
        self._world = world
        self._sizes = tuple(sizes)
        self._dynamic = dynamic
        self._slots = DeferredSemaphore(max(1, max_generators))
        self._large = DeferredLock()
        self._facts: OrderedDict[str, Facts] = OrderedDict()
        self._shared = Shared()

    async def idle(self) -> None:
        """Wait until nothing is being made."""
        await self._shared.idle()

    def prepare_sizes(self, original: Original) -> None:
        """Make the configured sizes of a new file, if it is an image, without anybody waiting."""
        if self._sizes and len(self._shared) < QUEUE_LIMIT // 2:
            self._shared.run(("new", original.hash), lambda: self._prepare_sizes(original))

    async def _prepare_sizes(self, original: Original) -> None:
        try:
            facts = await self._look(original)
            if not facts.too_large:
                await self._make_configured(original, facts)
        except MatrixError:
            log.debug("no thumbnails of {hash}", hash=original.hash)
        except Exception:
            log.failure("thumbnails of {hash} could not be made", hash=original.hash)

    async def thumbnail(self, original: Original, wish: ThumbnailSize, animated: bool) -> MediaFile:
        """The thumbnail for `wish`, or the original; the errors of `MediaAPI.thumbnail`."""
        facts = await self._look(original)
        animated = animated and facts.animated
        target = self._target(facts, wish)
        rows = {row.name: row for row in await self._database.read(thumbnails_of, original.hash)}
        if target is not None and len(rows) >= WISHES_A_FILE and thumbnail_name(target, animated) not in rows:
            target = None
        if target is None:
            if animated or not facts.animated:
                return self._whole(original, facts)
            target = ThumbnailSize(facts.width, facts.height)
        name = thumbnail_name(target, animated)
        if name not in rows or not self._store.path(original.hash, name).exists():
            rows = await self._make(original, facts, target, animated)
        row = rows[name]
        return MediaFile(
            path=str(self._store.path(original.hash, row.name)),
            size=row.size,
            content_type=row.content_type,
            etag=f"{original.hash}.{row.name}",
            name=f"thumbnail.{row.content_type.rpartition('/')[2]}",
        )

    def _target(self, facts: Facts, wish: ThumbnailSize) -> ThumbnailSize | None:
        """The size to answer `wish` with; `None` for the original."""
        if not shrinks(facts.width, facts.height, wish):
            return None
        if self._dynamic:
            return wish
        return choose((size for size in self._sizes if shrinks(facts.width, facts.height, size)), wish)

    def _whole(self, original: Original, facts: Facts) -> MediaFile:
        """The original as its own thumbnail, with the type that it really is of."""
        return MediaFile(
            path=str(self._store.path(original.hash)),
            size=original.size,
            content_type=facts.content_type,
            etag=original.hash,
            name=f"thumbnail.{facts.content_type.rpartition('/')[2]}",
        )

    async def _look(self, original: Original) -> Facts:
        """What the file's head says; `MatrixError` where it is no image."""
        facts = self._facts.get(original.hash)
        if facts is None:
            path, now_ms = self._store.path(original.hash), self._world.clock.now_ms
            facts = await self._attempt(original, in_thread(self._world.threads, thumbnails.look, path, now_ms))
            self._facts[original.hash] = facts
            if len(self._facts) > FACTS_REMEMBERED:
                self._facts.popitem(last=False)
        return facts

    async def _attempt(self, original: Original, work: Awaitable[T]) -> T:
        """The result of `work`, or what a client is told where that cannot be had."""
        try:
            return await work
        except NotAnImage:
            raise MatrixError(400, "M_UNKNOWN", "No thumbnail can be made of this content.") from None
        except (TooManyPixels, TooSlow, MemoryError):
            status = 502 if original.remote else 413
            raise MatrixError(status, "M_TOO_LARGE", "The content is too large to make a thumbnail of.") from None
        except FileNotFoundError:
            raise MatrixError(404, "M_NOT_FOUND", "The file is gone.") from None

    async def _make(
        self, original: Original, facts: Facts, target: ThumbnailSize, animated: bool
    ) -> dict[str, ThumbnailRow]:
        """Make `target`, and what else is made with it."""
        if target in self._sizes and not animated:
            key, sizes = (original.hash, ""), self._wanted(facts)
        else:
            key, sizes = (original.hash, thumbnail_name(target, animated)), [target]
        if key not in self._shared and len(self._shared) >= QUEUE_LIMIT:
            raise limit_exceeded(2000)
        return await self._shared.run(key, lambda: self._generate(original, facts, sizes, animated))

    async def _make_configured(self, original: Original, facts: Facts) -> None:
        wanted = self._wanted(facts)
        rows = {row.name for row in await self._database.read(thumbnails_of, original.hash)}
        if any(thumbnail_name(size, False) not in rows for size in wanted):
            await self._shared.run((original.hash, ""), lambda: self._generate(original, facts, wanted, False))

    def _wanted(self, facts: Facts) -> list[ThumbnailSize]:
        """The configured sizes that are smaller than the image."""
        return [size for size in self._sizes if shrinks(facts.width, facts.height, size)]

    async def _generate(
        self, original: Original, facts: Facts, sizes: Sequence[ThumbnailSize], animated: bool
    ) -> dict[str, ThumbnailRow]:
        """Decode, make smaller, write files, write rows."""
        made = await self._attempt(original, self._decode(original, facts, sizes, animated))
        names = [thumbnail_name(size, animated) for size in sizes]
        files = {name: thumbnail.data for name, thumbnail in zip(names, made, strict=True)}
        await self._attempt(original, self._store.add_beside(original.hash, files))
        rows = [
            ThumbnailRow(name, len(thumbnail.data), thumbnail.content_type)
            for name, thumbnail in zip(names, made, strict=True)
        ]
        now = self._world.clock.now_ms()
        written = [(original.hash, row.name, row.size, row.content_type, now) for row in rows]
        await self._database.write(store_thumbnails, original.hash, written)
        return {row.name: row for row in rows}

    async def _decode(
        self, original: Original, facts: Facts, sizes: Sequence[ThumbnailSize], animated: bool
    ) -> list[Thumbnail]:
        """The thumbnails, made in a thread when it is this one's turn."""
        large = facts.pixels >= LARGE_PIXELS
        if large:
            await self._large.acquire()
        try:
            await self._slots.acquire()
            try:
                path, now_ms = self._store.path(original.hash), self._world.clock.now_ms
                return await in_thread(self._world.threads, thumbnails.make, path, facts, sizes, animated, now_ms)
            finally:
                self._slots.release()
        finally:
            if large:
                self._large.release()


async def store_thumbnails(txn: Transaction, hash: str, rows: list[tuple[str, str, int, str, int]]) -> None:
    """Write the rows of thumbnails, unless their file has been forgotten meanwhile: then they go with it."""
    if await hash_in_use(txn, hash) is not None:
        await insert_thumbnails(txn, rows)

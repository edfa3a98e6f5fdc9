"""The media component: what is stored for an ``mxc://`` URI, and who may have it.

Client-Server API, "Content repository".  Media of other servers is kept in the
same store once a client has asked for it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import deferLater
from twisted.logger import Logger

from ..database.engines import Database
from ..database.migrate import migrate, steps_of
from ..database.statements import Transaction
from ..links.echoes import Echoes, NoEchoes
from ..matrix.errors import MatrixError, forbidden, limit_exceeded, not_found, too_large
from ..matrix.identifiers import parse_mxc
from ..web.bodies import no_space
from ..web.routes import Route
from ..world import World
from .api import MediaFile, MediaQuestion, RemoteFetcher, RemoteMedia, ThumbnailSize
from .endpoints import MediaEndpoints
from .headers import checked_name, clean_content_type, clean_name
from .store import Incoming, MediaStore, Received
from .tables.media import (
    MediaRow,
    complete_media,
    delete_expired,
    delete_unused,
    forget_unused_file,
    hash_in_use,
    insert_media,
    insert_or_forget,
    media_row,
    pending_of,
    touch_media,
    unused_files,
)
from .tables.thumbnails import forget_thumbnails
from .thumbnailer import Original, Thumbnailer
from .work import Arrivals, Shared

log = Logger()

UNLIMITED = 1 << 62
MEDIA_ID_LENGTH = 32
UNUSED_LIFETIME_MS = 24 * 3_600_000
"""How long an upload may be awaited."""

PENDING_LIMIT = 10
"""How many uploads of one user may be awaited."""

TIMEOUT_LIMIT_MS = 60_000
"""The longest that a request waits for content that is not uploaded yet."""

RECHECK_MS = 2000
"""How soon a waiting request sees an upload that another process took, where it does not hear of it."""

ARRIVED = "media_arrived"
"""The topic of the echoes that tell of an awaited upload; the payload is the media ID."""

WAITER_LIMIT = 1000
BUSY_MS = 5_000
REMOTE_FETCHES = 32
FETCHES_OF_SERVER = 8
"""How many files of other servers, and of one of them, are fetched at the same time."""

FETCHES_WAITING = 2_000
"""How many more may wait for their turn: anybody may ask for media of servers that take their time."""

ACCESS_SECONDS = 60
SWEEP_SECONDS = 900
ACCESSES_HELD = 10_000
PRUNED_AT_ONCE = 500


RowWriter = Callable[[Transaction, str, int, int], Awaitable[None]]
"""Writes the row of a file: ``(txn, hash, size, now)``."""


class MediaComponent:
    """Serves `MediaAPI` and the media endpoints."""

    def __init__(
        self,
        database: Database,
        base_path: str | Path,
        max_file_size_bytes: int,
        thumbnail_sizes: Sequence[ThumbnailSize],
        dynamic_thumbnails: bool,
        max_thumbnail_generators: int,
        world: World,
        server_name: str,
        remote: RemoteFetcher | None = None,
        serve_unauthenticated: bool = True,
        remote_lifetime_ms: int = 0,
        echoes: Echoes | None = None,
    ) -> None:
        """The arguments are ``media_api``'s keys, and what the component needs.

        ``max_file_size_bytes`` 0 means no limit; sizes of 0 pixels are left out.  ``remote`` fetches other servers'
        media; without it there is none.  With ``serve_unauthenticated`` the old
        endpoints go on serving everything, as Dendrite's do; without it they are
        *frozen*: they serve what was stored before, and nothing new.  Other servers' media that nobody asked for
        during ``remote_lifetime_ms`` is deleted; 0 keeps it.  By ``echoes`` other processes hear of uploads that are
        awaited.
        """
        self._database = database
        self._world = world
        self._server_name = server_name
        self._remote = remote
        self._authenticated = int(not serve_unauthenticated)
        self._remote_lifetime_ms = remote_lifetime_ms
        self.max_file_size_bytes = max_file_size_bytes
        self._limit = max_file_size_bytes or UNLIMITED
        self._store = MediaStore(Path(base_path), world.random, world.threads)
        sizes = [size for size in thumbnail_sizes if size.width > 0 and size.height > 0]
        self._thumbnails = Thumbnailer(
            database, self._store, world, sizes, dynamic_thumbnails, max_thumbnail_generators
        )
        self._arrivals = Arrivals(world.time, WAITER_LIMIT)
        self._echoes: Echoes = echoes or NoEchoes()
        self._echoes.hear(ARRIVED, lambda media_id: self._arrivals.tell(media_id.decode("ascii", "replace")))
        self._work = Shared()
        self._fetches = DeferredSemaphore(REMOTE_FETCHES)
        self._fetches_of: dict[str, DeferredSemaphore] = {}
        self._wanted = 0
        self._asking: dict[tuple[str, str], Deferred[None]] = {}
        self._accesses: dict[tuple[str, str], int] = {}
        self._calls: dict[str, IDelayedCall] = {}

    # --- life ---

    def prepare(self) -> None:
        """Make directories and tables; before the reactor runs."""
        self._store.prepare()
        self._database.prepare(migrate, "media_api", steps_of("dendrite_tw.media_api"))

    async def start(self) -> None:
        """Begin what is done from time to time, the first sweep at once."""
        self._every("accesses", ACCESS_SECONDS, self.write_accesses)
        self._every("sweep", SWEEP_SECONDS, self.sweep, first=0)

    async def stop(self) -> None:
        """Finish what was begun, but for what others take their time with."""
        calls, self._calls = self._calls, {}
        for call in calls.values():
            if call.active():
                call.cancel()
        # The newest first: of those that wait none shall begin with what another one lets go of.
        for asking in reversed(list(self._asking.values())):
            asking.cancel()
        await self._work.idle()
        await self._thumbnails.idle()
        await self.write_accesses()

    def _every(self, name: str, seconds: float, work: Callable[[], Any], first: float | None = None) -> None:
        """Do `work` each so many `seconds`, counted from the end of one to the begin of the next, until `stop`."""

        async def attempt() -> None:
            try:
                await work()
            except MatrixError as error:
                log.warn("media: {name} is tried again later: {error}", name=name, error=error.error)
            except Exception:
                log.failure("media: {name} failed; it is tried again", name=name)

        def done(_: object) -> None:
            if name in self._calls:
                self._calls[name] = self._world.time.callLater(seconds, run)

        def run() -> None:
            self._work.run(("every", name), attempt).addBoth(done)

        self._calls[name] = self._world.time.callLater(seconds if first is None else first, run)

    async def write_accesses(self) -> None:
        """Write down when media was last asked for."""
        accesses, self._accesses = self._accesses, {}
        if accesses:
            await self._database.write(touch_media, [(ts, *key) for key, ts in accesses.items()])

    async def sweep(self) -> None:
        """Forget uploads that did not come and media that nobody wants, and remove files that no row names."""
        now = self._world.clock.now_ms()
        await self._database.write(delete_expired, now)
        if self._remote_lifetime_ms:
            await self.write_accesses()
            await self._prune(now - self._remote_lifetime_ms)
        await self._remove_unused()
        for hash in await self._store.sweep(now, self._in_use):
            await self._database.write(forget_thumbnails, hash)

    async def _prune(self, before: int) -> None:
        """Delete the rows of other servers' media that was last asked for before a time."""
        while await self._database.write(delete_unused, self._server_name, before, PRUNED_AT_ONCE) == PRUNED_AT_ONCE:
            pass

    async def _remove_unused(self) -> None:
        """Remove files whose rows were deleted, also before a crash."""
        while hashes := await self._database.read(unused_files, PRUNED_AT_ONCE):
            for hash in hashes:
                if await self._store.remove(hash, self._in_use):
                    await self._database.write(forget_thumbnails, hash)
                await self._database.write(forget_unused_file, hash)

    async def _in_use(self, hash: str) -> bool:
        return await self._database.read(hash_in_use, hash) is not None

    def routes(self) -> list[Route]:
        """The rows of the media endpoints; `client_paths` adds their ``r0`` forms."""
        return MediaEndpoints(self, self._limit, self._server_name, self._world.random).routes()

    # --- upload ---

    def open_upload(self) -> Incoming:
        """Where an upload's body is written to."""
        return self._store.open_incoming(self._limit, too_large(f"Files may have {self._limit} bytes at most."))

    async def upload(self, uploader: str, content_type: str, name: str | None, content: bytes) -> str:
        """`MediaAPI.upload`."""
        body = self.open_upload()
        try:
            body.write(content)
            return await self.accept(uploader, content_type, name, body)
        finally:
            body.close()

    async def accept(self, uploader: str, content_type: str | None, name: str | None, body: Incoming) -> str:
        """Store a complete body under a new URI.  It is stored even where the client does not wait for the answer."""
        media_id = self._new_media_id()
        kind, file_name = clean_content_type(content_type), checked_name(name)

        async def insert(txn: Transaction, hash: str, size: int, now: int) -> None:
            await insert_media(
                txn,
                self._server_name,
                media_id,
                hash,
                size,
                kind,
                file_name,
                uploader,
                now,
                None,
                self._authenticated,
            )

        await self._work.run(("upload", media_id), lambda: self._keep(body, insert))
        return f"mxc://{self._server_name}/{media_id}"

    async def create(self, uploader: str) -> tuple[str, int]:
        """A new URI whose content comes later, and when that is too late; ``M_LIMIT_EXCEEDED``."""
        media_id, now = self._new_media_id(), self._world.clock.now_ms()

        async def insert(txn: Transaction) -> int:
            pending = await pending_of(txn, uploader, now)
            if pending.count >= PENDING_LIMIT:
                raise limit_exceeded(max(1, pending.first_expires_ts - now))
            expires = now + UNUSED_LIFETIME_MS
            await insert_media(
                txn, self._server_name, media_id, None, 0, "", None, uploader, now, expires, self._authenticated
            )
            return expires

        return f"mxc://{self._server_name}/{media_id}", await self._database.write(insert)

    async def complete(
        self, uploader: str, server_name: str, media_id: str, content_type: str | None, name: str | None, body: Incoming
    ) -> None:
        """Store a body under a URI that `create` made.

        ``M_NOT_FOUND``, ``M_FORBIDDEN`` for another user's, ``M_CANNOT_OVERWRITE_MEDIA`` (409).
        """
        kind, file_name = clean_content_type(content_type), checked_name(name)

        async def check(txn: Transaction, now: int) -> None:
            row = await media_row(txn, server_name, media_id) if server_name == self._server_name else None
            if row is None or _is_expired(row, now):
                raise not_found("No upload is awaited for this URI.")
            if row.uploader != uploader:
                raise forbidden("The URI was created by somebody else.")
            if row.hash is not None:
                raise MatrixError(409, "M_CANNOT_OVERWRITE_MEDIA", "The content of this URI was uploaded before.")

        async def update(txn: Transaction, hash: str, size: int, now: int) -> None:
            await check(txn, now)
            await complete_media(txn, server_name, media_id, hash, size, kind, file_name, now, self._authenticated)

        await self._database.read(check, self._world.clock.now_ms())
        await self._work.run(("complete", media_id, body.path), lambda: self._keep(body, update))
        self._arrivals.tell(media_id)
        self._echoes.tell(ARRIVED, media_id.encode())

    def _new_media_id(self) -> str:
        return self._world.random.token(MEDIA_ID_LENGTH)

    async def _keep(self, body: Incoming | Received, write_row: RowWriter) -> Original:
        """Bring a body to the disk, then its row, then begin with its thumbnails."""
        try:
            claim = await self._store.keep(body)
        except OSError as error:
            raise no_space(error) from error
        await self._database.write(write_row, claim.hash, claim.size, self._world.clock.now_ms())
        self._store.settle(claim)
        original = Original(claim.hash, claim.size)
        self._thumbnails.prepare_sizes(original)
        return original

    # --- download ---

    async def media(self, question: MediaQuestion) -> MediaFile:
        """`MediaAPI.media`."""
        row = await self._row(question)
        assert row.hash is not None
        return MediaFile(
            path=str(self._store.path(row.hash)),
            size=row.size,
            content_type=row.content_type,
            etag=row.hash,
            name=row.upload_name,
        )

    async def thumbnail(self, question: MediaQuestion, size: ThumbnailSize, animated: bool = False) -> MediaFile:
        """`MediaAPI.thumbnail`."""
        row = await self._row(question)
        assert row.hash is not None
        return await self._thumbnails.thumbnail(
            Original(row.hash, row.size, row.origin != self._server_name), size, animated
        )

    async def _row(self, question: MediaQuestion) -> MediaRow:
        """The row of media that is here and that the one who asks may have."""
        try:
            parse_mxc(f"mxc://{question.server_name}/{question.media_id}")
        except ValueError:
            raise not_found("There can be no media of this name.") from None
        timeout_ms = max(0, min(question.timeout_ms, TIMEOUT_LIMIT_MS))
        if question.server_name == self._server_name:
            row = await self._local(question.media_id, timeout_ms)
        else:
            cached = await self._database.read(media_row, question.server_name, question.media_id)
            row = cached or await self._fetched(question, timeout_ms)
        if question.anonymous and row.authenticated:
            raise not_found("There is no such media.")
        now = self._world.clock.now_ms()
        self._accesses[row.origin, row.media_id] = now
        if len(self._accesses) >= ACCESSES_HELD or self._is_near_its_end(row, now):
            await self.write_accesses()
        return row

    def _is_near_its_end(self, row: MediaRow, now: int) -> bool:
        """Whether media may soon be deleted, by any process, unless it is told that it is wanted."""
        lifetime = self._remote_lifetime_ms
        return bool(lifetime) and row.uploader is None and now - row.accessed_ts > lifetime // 2

    async def _local(self, media_id: str, timeout_ms: int) -> MediaRow:
        """The row of media of this server, once its content is here."""
        clock = self._world.clock
        deadline = clock.now_ms() + timeout_ms
        while True:
            row = await self._database.read(media_row, self._server_name, media_id)
            now = clock.now_ms()
            if row is None or _is_expired(row, now):
                raise not_found("There is no such media.")
            if row.hash is not None:
                return row
            seconds = min(deadline - now, RECHECK_MS) / 1000
            if seconds <= 0 or not await self._arrivals.wait(media_id, seconds):
                raise MatrixError(504, "M_NOT_YET_UPLOADED", "The content was not uploaded yet.")

    async def _fetched(self, question: MediaQuestion, timeout_ms: int) -> MediaRow:
        """The row of another server's media, fetched now; ``M_NOT_FOUND`` where that may not or cannot be."""
        frozen = question.anonymous and self._authenticated
        if self._remote is None or not question.allow_remote or frozen:
            raise not_found("There is no such media here.")
        server_name, media_id = question.server_name, question.media_id
        await self._work.run(("fetch", server_name, media_id), lambda: self._fetch(server_name, media_id, timeout_ms))
        row = await self._database.read(media_row, server_name, media_id)
        if row is None:
            raise not_found("There is no such media.")
        return row

    async def _fetch(self, server_name: str, media_id: str, timeout_ms: int) -> None:
        """Fetch another server's media and store it, when it is its turn.

        A server that takes its time keeps no other one waiting: turns at it come before turns at all.
        """
        if self._wanted >= REMOTE_FETCHES + FETCHES_WAITING:
            raise limit_exceeded(BUSY_MS)
        self._wanted += 1
        turns = self._fetches_of.setdefault(server_name, DeferredSemaphore(FETCHES_OF_SERVER))
        key = (server_name, media_id)
        fetching = Deferred.fromCoroutine(self._fetch_in_turn(turns, key, timeout_ms))
        if not fetching.called:
            self._asking[key] = fetching
        try:
            await fetching
        except CancelledError:
            raise MatrixError(503, "M_UNKNOWN", "The server is being stopped.") from None
        finally:
            self._asking.pop(key, None)
            self._wanted -= 1
            if turns.tokens == turns.limit:
                self._fetches_of.pop(server_name, None)

    async def _fetch_in_turn(self, turns: DeferredSemaphore, key: tuple[str, str], timeout_ms: int) -> None:
        assert self._remote is not None
        path = self._store.incoming_path()
        await self._turn(turns)
        try:
            await self._turn(self._fetches)
            try:
                said = await self._remote(*key, str(path), self._limit, timeout_ms)
                # What is here is stored, also while the server is being stopped.
                self._asking.pop(key, None)
                self._check_folder(path, said)
                await self._keep(Received(path, said.size, said.sha256), self._remote_row(*key, said))
            finally:
                self._fetches.release()
                path.unlink(missing_ok=True)
        finally:
            turns.release()

    def _check_folder(self, path: Path, said: RemoteMedia) -> None:
        """Raise 502 where the file that the federation component wrote is not here."""
        if not path.exists() or path.stat().st_size != said.size:
            log.error(
                "what was fetched to {path} is not there: media_api.base_path has to be one folder for all processes "
                "of media_api and federation_api",
                path=str(path),
            )
            raise MatrixError(502, "M_UNKNOWN", "The media was fetched, and is not where this server keeps media.")

    async def _turn(self, turns: DeferredSemaphore) -> None:
        """Wait for a turn.  Whoever waited begins on their own: a long row of quick ones would nest too deeply."""
        turn = turns.acquire()
        if turn.called:
            return
        await turn
        try:
            await deferLater(self._world.time, 0)
        except CancelledError:
            turns.release()
            raise

    def _remote_row(self, server_name: str, media_id: str, said: RemoteMedia) -> RowWriter:
        kind = clean_content_type(said.content_type)
        try:
            name = clean_name(said.name)
        except ValueError:
            name = None

        async def insert(txn: Transaction, hash: str, size: int, now: int) -> None:
            inserted = insert_media(
                txn, server_name, media_id, hash, size, kind, name, None, now, None, self._authenticated
            )
            await insert_or_forget(txn, hash, inserted, server_name, media_id)

        return insert


def _is_expired(row: MediaRow, now: int) -> bool:
    """Whether the content did not come in time."""
    return row.hash is None and (row.expires_ts or 0) <= now

"""Files on disk, named by what is in them.

A file's name is the SHA-256 of its bytes in URL-safe base64, spread over
directories as Dendrite does: ``base_path/q/w/erty…/file``; thumbnails lie
beside ``file``.  Equal uploads share one file.

What must survive ``kill -9``:

* A row never names a file that is not whole.  Bytes are written to
  ``base_path/tmp``, synced and renamed, with their directories synced, before
  the row is written.
* A file never stays without a row.  A *claim*, an empty file in ``tmp`` that
  names the hash, is made before the rename and removed after the row's commit;
  what a crash leaves behind, `sweep` finds by its claim.

Several processes may share a store.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from base64 import urlsafe_b64encode
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from ..matrix.errors import MatrixError
from ..world import Random, ThreadRunner
from .work import in_thread

CLAIM_AGE_MS = 3_600_000
"""What lies in ``tmp`` for longer than this belongs to nobody any more."""

_SWEEP_LIMIT = 10_000


class Incoming:
    """Bytes on their way into the store: a `BodyFile` that counts and hashes what is written.

    ``too_large`` is raised where there are more than `limit` bytes.
    """

    def __init__(self, path: Path, limit: int, too_large: MatrixError) -> None:
        self.path = path
        self.size = 0
        self._limit = limit
        self._too_large = too_large
        self._file = path.open("xb", buffering=0)
        self._hash = hashlib.sha256()
        self._taken = False

    def write(self, data: bytes) -> None:
        if self.size + len(data) > self._limit:
            raise self._too_large
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]
        self._hash.update(data)
        self.size += len(data)

    def tell(self) -> int:
        return self.size

    def seek(self, offset: int, whence: int = 0) -> None:
        """A body's file is rewound when it is complete; there is nothing to rewind here."""

    @property
    def hash(self) -> str:
        return _name_of(self._hash.digest())

    def take(self) -> None:
        """From now on `close` leaves the file to whoever called this."""
        self._taken = True

    def sync(self) -> None:
        """Bring the bytes to the disk and let go of them."""
        os.fsync(self._file.fileno())
        self._file.close()

    def close(self) -> None:
        """Throw away what nobody took."""
        if not self._taken:
            self.discard()

    def discard(self) -> None:
        self._taken = True
        self._file.close()
        self.path.unlink(missing_ok=True)


class Received:
    """A whole file in ``tmp`` that somebody else wrote, on its way into the store as an `Incoming` is."""

    def __init__(self, path: Path, size: int, sha256: str) -> None:
        self.path = path
        self.size = size
        self.hash = _name_of(bytes.fromhex(sha256))

    def take(self) -> None:
        """Whoever made it throws away what nobody took by its path."""

    def sync(self) -> None:
        handle = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)


class Claim(msgspec.Struct, frozen=True):
    """A file that is whole and in its place, but whose row is not written yet."""

    hash: str
    size: int
    path: Path


class MediaStore:
    """The directory tree of media; blocking work is done in `threads`."""

    def __init__(self, base_path: Path, random: Random, threads: ThreadRunner | None) -> None:
        self._base = base_path
        self._tmp = base_path / "tmp"
        self._random = random
        self._threads = threads

    def prepare(self) -> None:
        """Make the directories; `OSError` where that cannot be, or where files cannot be moved between them."""
        self._tmp.mkdir(parents=True, exist_ok=True)
        if self._tmp.stat().st_dev != self._base.stat().st_dev:
            raise OSError(errno.EXDEV, f"{self._tmp} is on another file system than {self._base}")
        _sync_directory(self._base)

    def path(self, hash: str, name: str = "file") -> Path:
        """Where the file `hash`, or something beside it, lies."""
        return self._base / hash[0] / hash[1] / hash[2:] / name

    def open_incoming(self, limit: int, too_large: MatrixError) -> Incoming:
        """A new place to write bytes to; `OSError` where there is none."""
        return Incoming(self.incoming_path(), limit, too_large)

    def incoming_path(self) -> Path:
        """Where a file may be written that is then kept as `Received`."""
        return self._tmp / f"incoming.{self._random.token(24)}"

    async def keep(self, incoming: Incoming | Received) -> Claim:
        """Put `incoming` in its place, durably.  Write its row, then call `settle`.

        Where no row is written, `sweep` removes the file in time.  `OSError` where the disk fails.
        """
        incoming.take()
        claim = Claim(incoming.hash, incoming.size, self._tmp / f"claim.{incoming.hash}.{self._random.token(24)}")
        await in_thread(self._threads, self._keep, incoming, claim)
        return claim

    def _keep(self, incoming: Incoming | Received, claim: Claim) -> None:
        try:
            claim.path.touch()
            _sync_directory(self._tmp)
            target = self.path(claim.hash)
            if _size(target) == incoming.size:
                incoming.discard()
            else:
                incoming.sync()
                target.parent.mkdir(parents=True, exist_ok=True)
                incoming.path.replace(target)
            self._sync_to_base(target.parent)
        except BaseException:
            with contextlib.suppress(OSError):
                incoming.discard()
            raise

    def settle(self, claim: Claim) -> None:
        """The row of a claimed file is on disk."""
        claim.path.unlink(missing_ok=True)

    async def add_beside(self, hash: str, files: dict[str, bytes]) -> None:
        """Write small files beside the file `hash`, durably; `FileNotFoundError` where that is gone."""
        await in_thread(self._threads, self._add_beside, hash, files)

    def _add_beside(self, hash: str, files: dict[str, bytes]) -> None:
        for name, data in files.items():
            part = self._tmp / f"part.{self._random.token(24)}"
            try:
                with part.open("xb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                part.replace(self.path(hash, name))
            finally:
                part.unlink(missing_ok=True)
        if files:
            _sync_directory(self.path(hash).parent)

    def _sync_to_base(self, directory: Path) -> None:
        """Sync a directory and those above it: they may be new as well."""
        while True:
            _sync_directory(directory)
            if directory == self._base:
                return
            directory = directory.parent

    async def remove(self, hash: str, in_use: Callable[[str], Awaitable[bool]]) -> bool:
        """Remove the file `hash` and what lies beside it, unless `in_use` says that a row names it.

        An upload of the same bytes may come at any moment.  The file is moved
        aside first, then rows and claims are asked for again: a claim is made
        before the file is looked for, and outlives the row's commit.
        """
        if await in_use(hash):
            return False
        aside = self._tmp / f"aside.{hash}.{self._random.token(24)}"
        try:
            await in_thread(self._threads, self.path(hash).parent.rename, aside)
        except FileNotFoundError:
            return False
        return await self._decide(aside, hash, in_use)

    async def _decide(self, aside: Path, hash: str, in_use: Callable[[str], Awaitable[bool]]) -> bool:
        """Whether what was moved aside is deleted; it is put back where it is wanted."""
        wanted = await in_use(hash) or await in_thread(self._threads, self._claimed, hash)
        if wanted:
            await in_thread(self._threads, self._put_back, aside, hash)
            return False
        await in_thread(self._threads, shutil.rmtree, aside, ignore_errors=True)
        return True

    def _put_back(self, aside: Path, hash: str) -> None:
        target = self.path(hash).parent
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            aside.rename(target)
        except OSError:
            # Uploaded anew meanwhile; thumbnails that went with the old one are made again.
            shutil.rmtree(aside, ignore_errors=True)
        self._sync_to_base(target.parent)

    def _claimed(self, hash: str) -> bool:
        return next(self._tmp.glob(f"claim.{hash}.*"), None) is not None

    async def sweep(self, now_ms: int, in_use: Callable[[str], Awaitable[bool]]) -> list[str]:
        """Remove what crashed processes left behind; returns the hashes of files that went with it."""
        removed = []
        for path in await in_thread(self._threads, self._leftovers, now_ms - CLAIM_AGE_MS):
            kind, _, rest = path.name.partition(".")
            hash = rest.partition(".")[0]
            gone = False
            if kind == "aside":
                gone = await self._decide(path, hash, in_use)
            else:
                await in_thread(self._threads, path.unlink, missing_ok=True)
            if kind == "claim" and not await in_thread(self._threads, self._claimed, hash):
                gone = await self.remove(hash, in_use)
            if gone:
                removed.append(hash)
        return removed

    def _leftovers(self, before_ms: int) -> list[Path]:
        """What in ``tmp`` is ours and was last touched before `before_ms`."""
        found = []
        with os.scandir(self._tmp) as entries:
            for entry in entries:
                if entry.name.partition(".")[0] not in ("incoming", "claim", "part", "aside"):
                    continue
                with contextlib.suppress(FileNotFoundError):
                    if entry.stat().st_mtime * 1000 < before_ms:
                        found.append(Path(entry.path))
                if len(found) == _SWEEP_LIMIT:
                    break
        return found


def _name_of(digest: bytes) -> str:
    return urlsafe_b64encode(digest).rstrip(b"=").decode()


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _sync_directory(path: Path) -> None:
    """Make the names in a directory durable; some file systems cannot, and need not, be asked."""
    handle = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)

"""One server for its files: locks that end with the process, however it ends.

SQLite lets several processes write to one database, and nothing keeps two queues
out of one folder; but what a server holds in memory is true only while nobody
else writes.  `flock` is inherited by a daemon and forgotten by a kill.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO


class InUseError(Exception):
    """Another process holds the lock; ``holder`` is what it wrote of itself, perhaps nothing."""

    def __init__(self, holder: str) -> None:
        super().__init__(holder)
        self.holder = holder


class Locks:
    """The locks that this process holds."""

    def __init__(self) -> None:
        self._held: dict[Path, IO[str]] = {}

    def take(self, path: Path) -> None:
        """Hold the lock file at `path`, made where there is none; `InUseError` if another process does, `OSError`."""
        if path in self._held:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read(40).strip()
            file.close()
            raise InUseError(holder) from None
        except OSError:
            file.close()
            raise
        self._sign(file)
        self._held[path] = file

    def _sign(self, file: IO[str]) -> None:
        """Say who holds the lock, if the disk takes it."""
        try:
            file.truncate(0)
            file.write(f"process {os.getpid()}\n")
            file.flush()
        except OSError:
            return

    def release(self) -> None:
        """Give all locks back; the files stay."""
        for file in self._held.values():
            file.close()
        self._held.clear()

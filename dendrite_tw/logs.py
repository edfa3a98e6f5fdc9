"""Where the log goes: the section ``logging`` of the configuration.

Standard output always gets what is of level info and above, and more if a ``std`` entry asks for it.  A
``file`` entry writes ``dendrite.log`` in a directory and packs away yesterday's; a ``syslog`` entry sends to a
syslog server.  A line reads as Dendrite's do, ``time="…" level=info msg="…"``, in UTC.
"""

from __future__ import annotations

import datetime
import gzip
import json
import logging
import queue
import shutil
import sys
import threading
from collections.abc import Iterable
from logging.handlers import QueueHandler, QueueListener, SysLogHandler
from pathlib import Path
from socket import SOCK_DGRAM, SOCK_STREAM
from typing import TYPE_CHECKING, TextIO

from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent
from zope.interface import implementer

if TYPE_CHECKING:
    from dendrite_tw.config import LogHook

_SEVERITY = {"trace": 0, "debug": 0, "info": 1, "warn": 2, "warning": 2, "error": 3, "fatal": 4, "panic": 4}
_RANK = {
    LogLevel.debug: 0,
    LogLevel.info: 1,
    LogLevel.warn: 2,
    LogLevel.error: 3,
    LogLevel.critical: 4,
}
_NAMES = ("debug", "info", "warning", "error", "fatal")
_SYSLOG_PRIORITY = (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL)
_SYSLOG_BACKLOG = 10_000


def format_line(event: LogEvent) -> str:
    """One event as a line, with the traceback of a failure on further lines."""
    when = datetime.datetime.fromtimestamp(event["log_time"], datetime.UTC)
    text = f'time="{when:%Y-%m-%dT%H:%M:%S.%f}000Z" level={_NAMES[_rank(event)]}'
    text += f" msg={json.dumps(formatEvent(event), ensure_ascii=False)}"
    if event.get("log_namespace"):
        text += f" component={event['log_namespace']}"
    failure = event.get("log_failure")
    if failure is not None:
        text += "\n" + failure.getTraceback().rstrip("\n")
    return text + "\n"


def _rank(event: LogEvent) -> int:
    return _RANK.get(event.get("log_level", LogLevel.info), 1)


@implementer(ILogObserver)
class Lines:
    """Writes events from a level on to a stream."""

    def __init__(self, stream: TextIO, level: str = "info") -> None:
        self._stream = stream
        self.least = _SEVERITY[level]

    def __call__(self, event: LogEvent) -> None:
        if _rank(event) >= self.least:
            self._stream.write(format_line(event))
            self._stream.flush()


@implementer(ILogObserver)
class DailyFile:
    """Writes ``dendrite.log`` in a directory; at midnight UTC that of the day before becomes a ``.gz``.

    Raises `OSError` if the directory cannot be made or written to.
    """

    def __init__(self, directory: str, level: str) -> None:
        self._path = Path(directory, "dendrite.log")
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._least = _SEVERITY[level]
        self._file = self._path.open("a", encoding="utf-8", errors="backslashreplace")
        self._day = _day(self._path.stat().st_mtime) if self._file.tell() else ""

    def __call__(self, event: LogEvent) -> None:
        if _rank(event) < self._least:
            return
        today = _day(event["log_time"])
        if self._day and self._day < today:
            self._rotate()
        self._day = max(self._day, today)
        self._file.write(format_line(event))
        self._file.flush()

    def _rotate(self) -> None:
        self._file.close()
        old = self._path.with_name(f"dendrite.log.{self._day}")
        self._path.rename(old)
        self._file = self._path.open("a", encoding="utf-8", errors="backslashreplace")
        threading.Thread(target=pack, args=(old,), daemon=True).start()


def _day(timestamp: float) -> str:
    return datetime.datetime.fromtimestamp(timestamp, datetime.UTC).strftime("%Y-%m-%d")


def pack(path: Path) -> None:
    """Replace a file by its ``.gz``."""
    with path.open("rb") as source, gzip.open(f"{path}.gz", "ab") as target:
        shutil.copyfileobj(source, target)
    path.unlink()


@implementer(ILogObserver)
class Syslog:
    """Sends events to a syslog server from a thread, so that a slow one holds nothing up; drops when behind."""

    def __init__(self, address: str, protocol: str, level: str) -> None:
        host, _, port = address.rpartition(":")
        kind = SOCK_STREAM if protocol == "tcp" else SOCK_DGRAM
        handler = SysLogHandler((host.strip("[]") or "localhost", int(port)), socktype=kind)
        backlog: queue.Queue[logging.LogRecord] = queue.Queue(_SYSLOG_BACKLOG)
        self._handler = QueueHandler(backlog)
        self._handler.handleError = lambda record: None  # type: ignore[method-assign]
        QueueListener(backlog, handler).start()
        self._least = _SEVERITY[level]

    def __call__(self, event: LogEvent) -> None:
        rank = _rank(event)
        if rank >= self._least:
            text = format_line(event).rstrip("\n")
            priority = _SYSLOG_PRIORITY[rank]
            self._handler.handle(logging.LogRecord("dendrite", priority, "", 0, text, None, None))


_standard_output = Lines(sys.stdout)


def standard_output() -> Lines:
    """The observer on standard output: ``twistd --logger dendrite_tw.logs.standard_output``."""
    return _standard_output


def observers(hooks: Iterable[LogHook]) -> list[ILogObserver]:
    """Set the level of standard output, and make the observers of the other entries.

    Raises `OSError` or `ValueError` if a file or server cannot be used.
    """
    made: list[ILogObserver] = []
    _standard_output.least = _SEVERITY["info"]
    for hook in hooks:
        if hook.type == "std":
            _standard_output.least = min(_standard_output.least, _SEVERITY[hook.level])
        elif hook.type == "file":
            made.append(DailyFile(hook.params["path"], hook.level))
        else:
            made.append(Syslog(hook.params["address"], hook.params["protocol"], hook.level))
    return made

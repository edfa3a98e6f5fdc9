"""A server process and all its children: started, measured, pinned to a core, and ended by process id.

Processor time is read from each process's own clock (nanoseconds, threads that ended included) where the
kernel offers it, and from ``utime + stime`` of ``/proc/PID/stat`` (hundredths of a second) otherwise.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
PORTS = range(12000, 32000)
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
SCHEDULED_TIME = 2  # the kernel's CPUCLOCK_SCHED: time on a processor, user and system together


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listened on a moment ago.

    Below those that the kernel gives to outgoing connections, so that it stays free while a server restarts.
    """
    while True:
        port = secrets.choice(PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def cores() -> tuple[set[int], set[int]] | None:
    """The cores for the server and for the load generator; None where there is one or no say in it."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    available = sorted(os.sched_getaffinity(0))
    return ({available[0]}, {available[1]}) if len(available) > 1 else None


def stat_fields(pid: int) -> list[str] | None:
    """The fields of ``/proc/PID/stat`` after the command's name, or None when the process is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text[text.rindex(")") + 2 :].split()


def descendants(pid: int) -> list[int]:
    """``pid`` and every process below it that is alive now."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := stat_fields(int(entry.name))):
            parents[int(entry.name)] = int(fields[1])
    found = [pid]
    for known in found:
        found.extend(child for child, parent in parents.items() if parent == known)
    return found


def processor_seconds(pid: int) -> float:
    """Seconds that ``pid`` alone has been on a processor; 0 when it is gone."""
    try:
        return time.clock_gettime_ns((~pid << 3) | SCHEDULED_TIME) / 1e9
    except OSError:
        fields = stat_fields(pid)
        return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS if fields else 0.0


def resident_bytes(pid: int) -> int:
    """Resident memory of ``pid`` alone; 0 when it is gone."""
    fields = stat_fields(pid)
    return int(fields[21]) * PAGE_BYTES if fields else 0


class ServerProcess:
    """One running command in its own process group, with its output in a file."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        folder: Path,
        log: Path,
        environment: Mapping[str, str],
        on_cores: set[int] | None,
    ) -> None:
        self.log = log
        with log.open("ab") as output:
            self._popen = subprocess.Popen(
                command,
                cwd=folder,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        if on_cores is not None:
            os.sched_setaffinity(self._popen.pid, on_cores)
        self._tree = [self._popen.pid]

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def exit_code(self) -> int | None:
        """That of the command, negative where a signal ended it; None while it runs."""
        return self._popen.poll()

    def ended(self) -> bool:
        """Whether the command has ended by itself or was ended."""
        return self._popen.poll() is not None

    def look_for_children(self) -> None:
        """Bring the list of measured processes up to date (slow: not inside a measurement)."""
        self._tree = descendants(self._popen.pid)

    def processor_seconds(self) -> float:
        """Processor time of the whole tree since it started, in seconds."""
        return sum(processor_seconds(pid) for pid in self._tree)

    def resident_bytes(self) -> int:
        """Resident memory of the whole tree (pages shared within it are counted for each), in bytes."""
        return sum(resident_bytes(pid) for pid in self._tree)

    def kill(self) -> None:
        """``kill -9`` of the whole group: nothing in it gets to say goodbye."""
        self._signal(signal.SIGKILL)
        self._popen.wait()

    def stop(self, patience: float = 15.0) -> None:
        """Ask it to end, and insist after ``patience`` seconds."""
        self.terminate()
        self.wait(patience)

    def pause(self) -> None:
        """Let the whole group stand still (SIGSTOP)."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it go on after `pause`."""
        self._signal(signal.SIGCONT)

    def terminate(self) -> None:
        """Ask it to end."""
        self._signal(signal.SIGTERM)

    def wait(self, patience: float) -> None:
        """Wait for the end that it was asked for, and insist after ``patience`` seconds."""
        try:
            self._popen.wait(patience)
        except subprocess.TimeoutExpired:
            self.kill()

    def _signal(self, number: int) -> None:
        if not self.ended():
            os.killpg(self._popen.pid, number)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

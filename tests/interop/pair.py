"""Two homeservers that federate, ours and Synapse, started once for each process that runs tests.

``INTEROP_SERVERS=synapse,synapse`` plays the stories between two Synapses, which tells a fault of a story from a fault
of ours; ``INTEROP_SERVERS=polylith,synapse`` has ours run as many processes.
"""

from __future__ import annotations

import atexit
import os
import subprocess
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from bench.servers import DidNotStartError
from tests.interop.authority import Authority
from tests.interop.homeservers import Homeserver, OurHomeserver, PolylithHomeserver, SynapseHomeserver

KINDS: dict[str, type[Homeserver]] = {
    "ours": OurHomeserver,
    "polylith": PolylithHomeserver,
    "synapse": SynapseHomeserver,
}
LOG_CHARACTERS = 5000


class StoryFailed(AssertionError):
    """A story ended badly; what both servers logged is in the message."""


@dataclass(frozen=True)
class Pair:
    """The servers of the tests; ``ours`` is the first one."""

    ours: Homeserver
    synapse: Homeserver

    def both(self) -> tuple[Homeserver, Homeserver]:
        return self.ours, self.synapse


@dataclass(frozen=True)
class Play:
    """What a story is given: who has the rooms, who comes as a guest, and the version of rooms."""

    host: Homeserver
    guest: Homeserver
    version: str

    @property
    def via(self) -> str:
        """The server through which guests join."""
        return self.host.server_name


Scene = Callable[[Play], None]


def pair() -> Pair:
    """The two servers, running; they end with this process.  A start that failed is not tried again."""
    started = _started()
    if isinstance(started, Exception):
        raise started
    return started


@lru_cache(maxsize=1)
def _started() -> Pair | Exception:
    try:
        return _start()
    except (DidNotStartError, OSError, subprocess.CalledProcessError) as error:
        return error


def _start() -> Pair:
    SynapseHomeserver.installed()
    folder = tempfile.TemporaryDirectory(prefix="interop-")
    atexit.register(folder.cleanup)
    root = Path(folder.name)
    authority = Authority.make(root)
    first, second = os.environ.get("INTEROP_SERVERS", "ours,synapse").split(",")
    servers = [
        KINDS[first](root / "first", authority, "localhost"),
        KINDS[second](root / "second", authority, "127.0.0.1"),
    ]
    for server in servers:
        atexit.register(server.stop)
        server.start()
    return Pair(*servers)


class PairTestCase(SynchronousTestCase):
    """Tests between the two.  What they logged is shown with a failure, and errors in our server's log are one."""

    def setUp(self) -> None:
        self.pair = pair()
        self._written = [server.written() for server in self.pair.both()]

    def play(self, scene: Callable[[], None]) -> None:
        """Run a scene; a failure tells what both servers logged."""
        try:
            scene()
            found = [
                line
                for server, offset in zip(self.pair.both(), self._written, strict=True)
                for line in server.complaints(offset)
            ]
            self.assertEqual(found, [], "errors were logged")
        except Exception as error:
            told = ["".join(traceback.format_exception(error))]
            for server, offset in zip(self.pair.both(), self._written, strict=True):
                told.append(f"--- {server.name} {server.server_name}\n{server.log_since(offset)[-LOG_CHARACTERS:]}")
            raise StoryFailed("\n".join(told)) from None

"""Where the stories play: a server started as users start it, two users, and everything ended afterwards.

``CLIENTS_SERVER=synapse`` plays them on Synapse instead (``SYNAPSE_VENV`` names its virtual environment),
which tells a fault of a story from a fault of the server; ``CLIENTS_SERVER=polylith`` on two processes of each
component.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import traceback
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, ClassVar

from twisted.trial.unittest import SynchronousTestCase

from bench.matrix import register
from bench.polylith import Polylith
from bench.servers import SERVERS, ServerUnderTest, Synapse
from tests.clients.actor import Actor

STORY_SECONDS = 55.0
LOG_CHARACTERS = 6000
PASSWORD = "correct horse battery staple"


class StoryFailedError(AssertionError):
    """A story ended badly; what the server printed is in the message."""


class Stage(SynchronousTestCase):
    """A test case with a server of its own in ``self.server``."""

    kind: ClassVar[str] = os.environ.get("CLIENTS_SERVER", "ours")
    """The server that is played on."""
    expected_complaints: ClassVar[tuple[str, ...]] = ()
    """Parts of the lines that the server may log as errors."""

    def setUp(self) -> None:
        """Start the server that ``CLIENTS_SERVER`` names: ours unless told otherwise."""
        if self.kind == Synapse.name:
            Synapse.install()
        folder = tempfile.TemporaryDirectory(prefix="stage-")
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.server: ServerUnderTest = (SERVERS | {Polylith.name: Polylith})[self.kind](self.folder / "server")
        if self.kind != Synapse.name:
            self.addCleanup(self.check_log)
        self.addCleanup(self.server.stop)
        self.server.start()

    def check_log(self) -> None:
        """Nothing went wrong that only the server's log tells of."""
        lines = self.server.log.read_text(errors="replace").splitlines()
        wrong = [line for line in lines if "level=error" in line or "level=fatal" in line or "Traceback" in line]
        self.assertEqual([line for line in wrong if not any(text in line for text in self.expected_complaints)], [])

    def play(self, story: Coroutine[Any, Any, None]) -> None:
        """Run a story to its end within :data:`STORY_SECONDS`; show the server's log if it fails."""

        async def bounded() -> None:
            async with asyncio.timeout(STORY_SECONDS):
                await story

        try:
            asyncio.run(bounded())
        except Exception as error:
            raise StoryFailedError(self._account_of(error)) from None

    def _account_of(self, error: Exception) -> str:
        """Where the story stopped, and the end of every log."""
        told = ["".join(traceback.format_exception(error))]
        for log in [self.server.log, *self.folder.glob("*.log"), *self.folder.glob("server/nginx/*.log")]:
            told.append(f"--- end of {log.name}\n{log.read_text(errors='replace')[-LOG_CHARACTERS:]}")
        return "\n".join(told)

    async def cast(self, exits: AsyncExitStack, kind: type[Actor], localpart: str) -> Actor:
        """A registered user with a client, logged in; ended when ``exits`` closes."""
        await register(self.server, localpart, PASSWORD)
        actor = kind(self.server.url, localpart, PASSWORD, self.folder)
        exits.push_async_callback(actor.leave)
        await actor.login()
        return actor

"""Two users of matrix-nio (vodozemac encryption) and everything they do in a room."""

from __future__ import annotations

from contextlib import AsyncExitStack

from tests.clients.nio_actor import NioActor
from tests.clients.stage import Stage
from tests.clients.story import whole_evening


class NioTests(Stage):
    """matrix-nio on both sides."""

    def test_evening(self) -> None:
        """An encrypted conversation, and the return of one of them on a new device."""

        async def story() -> None:
            async with AsyncExitStack() as exits:
                alice = await self.cast(exits, NioActor, "alice")
                bob = await self.cast(exits, NioActor, "bob")
                await whole_evening(alice, bob)

        self.play(story())

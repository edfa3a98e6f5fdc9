"""matrix-js-sdk (Rust encryption) with itself and with matrix-nio, key backup and recovery key included."""

from __future__ import annotations

from contextlib import AsyncExitStack

from tests.clients.js_actor import JsActor
from tests.clients.nio_actor import NioActor
from tests.clients.stage import Stage
from tests.clients.story import whole_evening


class JsSdkTests(Stage):
    """matrix-js-sdk on one side or on both."""

    def test_evening(self) -> None:
        """An encrypted conversation; the one who returns shows the thread and the edit as they were."""

        async def story() -> None:
            async with AsyncExitStack() as exits:
                alice = await self.cast(exits, JsActor, "alice")
                bob = await self.cast(exits, JsActor, "bob")
                room, hello = await whole_evening(alice, bob)
                assert isinstance(alice, JsActor)
                assert await alice.shown(room, hello) == "How camest thou hither, tell me?"
                assert await alice.thread_length(room, hello) == 1

        self.play(story())

    def test_evening_with_nio(self) -> None:
        """matrix-js-sdk makes the room and returns by key backup; matrix-nio answers."""

        async def story() -> None:
            async with AsyncExitStack() as exits:
                alice = await self.cast(exits, JsActor, "alice")
                bob = await self.cast(exits, NioActor, "bob")
                await whole_evening(alice, bob)

        self.play(story())

    def test_evening_invited_by_nio(self) -> None:
        """matrix-nio makes the room and returns by export file; matrix-js-sdk answers."""

        async def story() -> None:
            async with AsyncExitStack() as exits:
                alice = await self.cast(exits, NioActor, "alice")
                bob = await self.cast(exits, JsActor, "bob")
                await whole_evening(alice, bob)

        self.play(story())

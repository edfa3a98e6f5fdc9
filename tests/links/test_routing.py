"""Who may answer a method, read from where it is declared."""

from __future__ import annotations

from typing import Protocol

import msgspec
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.links.routing import Routing, key_of, routed, routing_of


class Draft(msgspec.Struct):
    room_id: str


class Desk(Protocol):
    async def plain(self) -> None: ...

    @routed(repeat=True)
    async def question(self, room_id: str) -> str: ...

    @routed(share="room_id")
    async def action(self, user_id: str, room_id: str) -> str: ...

    @routed(share="draft.room_id", repeat=True)
    async def nested(self, draft: Draft) -> str: ...

    @routed(share="lease")
    async def held(self, count: int, lease: str = "counting") -> str: ...


class RoutingTests(SynchronousTestCase):
    def test_what_is_not_said_is_for_anybody_and_not_repeated(self) -> None:
        self.assertEqual(routing_of(Desk, "plain"), Routing("", repeat=False))

    def test_what_is_said_is_read(self) -> None:
        self.assertEqual(routing_of(Desk, "question"), Routing("", repeat=True))
        self.assertEqual(routing_of(Desk, "action"), Routing("room_id", repeat=False))

    def test_the_key_is_found_by_place_and_by_name(self) -> None:
        key = key_of(Desk, "action")
        self.assertEqual(key(("@a:x", "!r:x"), {}), "!r:x")
        self.assertEqual(key(("@a:x",), {"room_id": "!r:x"}), "!r:x")
        self.assertEqual(key_of(Desk, "nested")((Draft("!r:x"),), {}), "!r:x")

    def test_a_key_that_the_call_does_not_give_is_the_default(self) -> None:
        key = key_of(Desk, "held")
        self.assertEqual([key((1,), {}), key((), {"count": 1})], ["counting", "counting"])
        self.assertEqual(key((1, "other"), {}), "other")

    def test_an_argument_that_is_not_there_is_refused_at_once(self) -> None:
        with self.assertRaises(TypeError):

            @routed(share="rom_id")
            async def call(self: object, room_id: str) -> None: ...

"""One interface over both transports: callers cannot tell which."""

from __future__ import annotations

import socket
from typing import Any, Protocol

import msgspec
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.links.codec import InterfaceCodec
from dendrite_tw.links.handle import Answerer, Direct, Encoded, handle
from dendrite_tw.matrix.errors import MatrixError
from dendrite_tw.room_api.api import RoomAPI
from dendrite_tw.sync_api.api import SyncAPI
from dendrite_tw.user_api.api import KeyAPI, UserAPI


class Item(msgspec.Struct, frozen=True):
    name: str
    data: bytes = b""


class ShopAPI(Protocol):
    async def buy(self, item: Item, count: int = 1) -> list[Item]: ...

    async def close(self) -> None: ...


class Shop:
    def __init__(self) -> None:
        self.open = True

    async def buy(self, item: Item, count: int = 1) -> list[Item]:
        if count > 3:
            raise MatrixError(403, "M_FORBIDDEN", "Leave some for the others.", left=3)
        return [item] * count

    async def close(self) -> None:
        self.open = False


class Contract:
    """What every transport has to keep."""

    def make(self, shop: Shop) -> ShopAPI:
        raise AssertionError("a subclass says over which transport")

    def begun(self, coroutine: Any) -> Any:
        return Deferred.fromCoroutine(coroutine)

    def run_call(self, coroutine: Any) -> Any:
        return self.successResultOf(self.begun(coroutine))  # type: ignore[attr-defined]

    def test_results_come_back(self: Any) -> None:
        shop = self.make(Shop())
        self.assertEqual(self.run_call(shop.buy(Item("egg", b"\xff"), count=2)), [Item("egg", b"\xff")] * 2)
        self.assertEqual(self.run_call(shop.buy(Item("egg"))), [Item("egg")])

    def test_errors_come_back(self: Any) -> None:
        shop = self.make(Shop())
        failure = self.failureResultOf(self.begun(shop.buy(Item("egg"), 4)), MatrixError)
        self.assertEqual(
            failure.value.body(), {"errcode": "M_FORBIDDEN", "error": "Leave some for the others.", "left": 3}
        )

    def test_actions_reach_the_component(self: Any) -> None:
        target = Shop()
        self.run_call(self.make(target).close())
        self.assertFalse(target.open)

    def test_unknown_methods_do_not_exist(self: Any) -> None:
        with self.assertRaises(AttributeError):
            self.make(Shop()).steal  # noqa: B018


class DirectTests(Contract, SynchronousTestCase):
    def make(self, shop: Shop) -> ShopAPI:
        transport = Direct()
        made = handle(ShopAPI, transport)
        transport.connect(shop)
        return made


class EncodedTests(Contract, SynchronousTestCase):
    def make(self, shop: Shop) -> ShopAPI:
        return handle(ShopAPI, Encoded(ShopAPI, Answerer(ShopAPI, shop)))


class CodecTests(SynchronousTestCase):
    def test_our_interfaces_can_cross_a_process_border(self) -> None:
        for interface in (RoomAPI, UserAPI, KeyAPI, SyncAPI):
            self.assertTrue(InterfaceCodec(interface).methods)

    def test_a_type_that_cannot_is_refused(self) -> None:
        class Wrong(Protocol):
            async def call(self, value: socket.socket) -> dict[Any, socket.socket]: ...

        class Bare(Protocol):
            async def call(self, value) -> None: ...  # type: ignore[no-untyped-def]

        for interface in (Wrong, Bare):
            with self.assertRaises(TypeError):
                InterfaceCodec(interface)

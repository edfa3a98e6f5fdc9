"""The sockets that a start takes, with real ports of the loopback interface."""

from __future__ import annotations

import socket
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw import tap
from dendrite_tw.config import ConfigError, loads
from tests.test_config import POLYLITH


class Sockets(SynchronousTestCase):
    def open(self, listen: str = "", **settings: Any) -> list[tap.Listener]:
        text = POLYLITH + f"sync_api: {{external_api: {{listen: '{listen}'}}}}\n"
        listeners = tap.open_sockets(tap.Settings(**settings), None, loads(text))
        for listener in listeners:
            self.addCleanup(listener.close)
        return listeners

    def test_one_address(self) -> None:
        (listener,) = self.open(http_bind_address="127.0.0.1:0")
        with socket.create_connection(listener.address, timeout=5):
            pass

    def test_name(self) -> None:
        (listener,) = self.open(http_bind_address="localhost:0")
        self.assertIn(listener.address[0], ("127.0.0.1", "::1"))

    def test_all_addresses(self) -> None:
        listeners = self.open(http_bind_address=":0")
        self.assertEqual(len({listener.address[1] for listener in listeners}), 1)
        self.assertEqual(listeners[0].address[0], "0.0.0.0")
        for listener in listeners[1:]:
            self.assertEqual(listener.address[0], "::")
        with socket.create_connection(("127.0.0.1", listeners[0].address[1]), timeout=5):
            pass

    def test_https_only_with_certificate(self) -> None:
        self.assertEqual(len(self.open(http_bind_address="127.0.0.1:0", https_bind_address="127.0.0.1:0")), 1)

    def test_port_in_use(self) -> None:
        (listener,) = self.open(http_bind_address="127.0.0.1:0")
        port = listener.address[1]
        for address in (f"127.0.0.1:{port}", f":{port}"):
            error = self.assertRaises(tap.StartError, self.open, http_bind_address=address)
            self.assertIn(f"Cannot listen on {address}: Address already in use.", str(error))

    def test_address_of_another_machine(self) -> None:
        error = self.assertRaises(tap.StartError, self.open, http_bind_address="192.0.2.1:0")
        self.assertIn("Check --http-bind-address", str(error))

    def test_where_the_file_says(self) -> None:
        (listener,) = self.open("http://127.0.0.1:0", components=("sync_api",))
        self.assertEqual(listener.address[0], "127.0.0.1")
        busy = f"http://127.0.0.1:{listener.address[1]}"
        error = self.assertRaises(tap.StartError, self.open, busy, components=("sync_api",))
        self.assertIn("sync_api.external_api.listen (dendrite.yaml:", str(error))
        self.assertEqual(
            len(self.open("http://[::]:0", components=("sync_api",))), len(self.open(http_bind_address=":0"))
        )

    def test_the_command_line_before_the_file(self) -> None:
        (listener,) = self.open("http://192.0.2.1:1", components=("sync_api",), http_bind_address="127.0.0.1:0")
        self.assertEqual(listener.address[0], "127.0.0.1")

    def test_nowhere_to_listen(self) -> None:
        self.assertRaises(ConfigError, self.open, components=("sync_api",))
        self.assertEqual(self.open(components=("room_server",)), [])

"""Which addresses may be connected to."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.config.tree import FederationApi
from dendrite_tw.web.networks import Networks

DEFAULTS = Networks(FederationApi().deny_networks, FederationApi().allow_networks)


class NetworksTests(SynchronousTestCase):
    def test_public_addresses_are_permitted_by_the_defaults(self) -> None:
        for address in ("192.0.2.1", "8.8.8.8", "172.32.0.1", "2001:db8::1", "::ffff:8.8.8.8", "64:ff9b::808:808"):
            self.assertTrue(DEFAULTS.permits(address), address)

    def test_private_addresses_are_not_however_they_are_written(self) -> None:
        for address in (
            "127.0.0.1",
            "127.1.2.3",
            "10.0.0.1",
            "172.16.5.5",
            "192.168.1.1",
            "100.64.0.1",
            "169.254.169.254",
            "0.0.0.0",
            "::",
            "::1",
            "fe80::1",
            "fe80::1%eth0",
            "fd00::1",
            "::ffff:127.0.0.1",
            "::ffff:0.0.0.0",
            "::ffff:a00:1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
        ):
            self.assertFalse(DEFAULTS.permits(address), address)

    def test_text_that_is_no_address_is_not_permitted(self) -> None:
        for text in ("", "localhost", "127.1", "0x7f000001", "[::1]", "1.2.3.4:80"):
            self.assertFalse(DEFAULTS.permits(text), text)

    def test_a_denied_network_wins(self) -> None:
        networks = Networks(["192.0.2.0/25"], ["192.0.2.0/24"])
        self.assertFalse(networks.permits("192.0.2.1"))
        self.assertTrue(networks.permits("192.0.2.200"))
        self.assertFalse(networks.permits("198.51.100.1"))
        self.assertFalse(networks.permits("2001:db8::1"))

    def test_without_allowed_networks_all_but_the_denied_are(self) -> None:
        networks = Networks(["192.0.2.0/24"], [])
        self.assertFalse(networks.permits("192.0.2.1"))
        self.assertTrue(networks.permits("198.51.100.1"))

    def test_two_empty_lists_check_nothing(self) -> None:
        self.assertTrue(Networks([], []).permits("127.0.0.1"))

    def test_malformed_networks_are_refused(self) -> None:
        for network in ("300.0.0.0/8", "10.0.0.0/33", "example.org"):
            self.assertRaises(ValueError, Networks, [network], [])
            self.assertRaises(ValueError, Networks, [], [network])

    def test_the_order_is_kept(self) -> None:
        self.assertEqual(DEFAULTS.permitted(["9.9.9.9", "10.0.0.1", "8.8.8.8"]), ["9.9.9.9", "8.8.8.8"])

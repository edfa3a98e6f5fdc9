"""A whole server that federates: what its configuration says of other servers has effect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred

from dendrite_tw.config import ConfigError, loads
from dendrite_tw.federating import client_options, name_cache, own_keys, perspectives
from dendrite_tw.federation_api.api import FederationRequest, Unreachable
from dendrite_tw.matrix import signing
from dendrite_tw.matrix.keys import signing_key, write_pem
from dendrite_tw.web.internet import NameCache
from dendrite_tw.world import test_world
from tests.server import ServerTestCase

from .network import Names, key_of
from .whole import WHOLE_ADDRESS, WholeServerTestCase

VERSION = "/_matrix/federation/v1/version"


class FederatingTests(WholeServerTestCase):
    def test_its_keys_are_published(self) -> None:
        document = self.request("GET", "/_matrix/key/v2/server").json
        signing.verify_json(document, "test", "ed25519:1", signing_key("ed25519:1", b"k" * 32).verify_key)

    def test_other_servers_reach_it_over_tls(self) -> None:
        answer = self.successResultOf(self.stranger().ask(VERSION))
        self.assertEqual(answer["server"]["name"], "dendrite_tw")

    def test_it_reaches_other_servers(self) -> None:
        self.stranger()
        ask = FederationRequest(method="GET", destination="stranger.test", path=VERSION)
        answer = self.successResultOf(self.network.begin(self.server.parts.others.request(ask)))
        self.assertEqual(answer["server"]["name"], "dendrite_tw")

    def test_metrics(self) -> None:
        self.test_it_reaches_other_servers()
        self.assertIn('dendrite_federationapi_requests{method="GET",outcome="ok"} 1.0', self.figures())

    def write_config(self, folder: str) -> str:
        text = super().write_config(folder)
        return text.replace(
            "global:\n", "global:\n  well_known_server_name: matrix.test:443\n  metrics: {enabled: true}\n"
        )

    def test_where_other_servers_are_sent(self) -> None:
        self.assertEqual(self.request("GET", "/.well-known/matrix/server").json, {"m.server": "matrix.test:443"})


class DeniedTests(WholeServerTestCase):
    def write_config(self, folder: str) -> str:
        return (
            super()
            .write_config(folder)
            .replace("federation_api: {", "federation_api: {deny_networks: [192.0.2.0/24], ")
        )

    def test_denied_networks_are_not_connected_to(self) -> None:
        self.stranger()
        ask = FederationRequest(method="GET", destination="stranger.test", path=VERSION)
        self.failureResultOf(self.network.begin(self.server.parts.others.request(ask)), Unreachable)
        self.assertEqual(self.network.connections, [])


class NotFederatingTests(WholeServerTestCase):
    def write_config(self, folder: str) -> str:
        return super().write_config(folder).replace("global:\n", "global:\n  disable_federation: true\n")

    def test_nothing_is_served_to_other_servers(self) -> None:
        for path in (VERSION, "/_matrix/key/v2/server", "/_matrix/federation/v1/event/$x"):
            answer = self.request("GET", path)
            self.assertEqual((answer.status, answer.errcode), (404, "M_UNRECOGNIZED"), path)

    def test_nobody_is_asked(self) -> None:
        self.stranger()
        ask = FederationRequest(method="GET", destination="stranger.test", path=VERSION)
        error = self.failureResultOf(Deferred.fromCoroutine(self.server.parts.others.request(ask)), Unreachable)
        self.assertEqual(error.value.reason, "this server does not federate")

    def test_its_database_is_not_made(self) -> None:
        folder = self.config_text.split("private_key: ")[1].split("/matrix_key.pem")[0]
        self.assertFalse((Path(folder) / "federation.db").exists())


class WithoutOthersTests(ServerTestCase):
    def test_a_world_without_network_has_no_federation(self) -> None:
        self.assertIsNone(self.server.parts.federating)
        self.assertEqual(self.request("GET", "/_matrix/key/v2/server").errcode, "M_UNRECOGNIZED")


class SettingsTests(ServerTestCase):
    """What is made of the configuration's keys."""

    def config(self, more: str = "", in_global: str = "") -> Any:
        text = self.config_text.replace("global:\n", "global:\n" + in_global)
        return loads(text.replace("federation_api: {", "federation_api: {" + more), allow_open_registration=True)

    def test_connections(self) -> None:
        usual = client_options(self.config())
        self.assertEqual((usual.validate_tls, usual.keep_alive), (True, True))
        self.assertEqual(
            [usual.networks.permits(one) for one in ("198.51.100.1", "2001:db8::1", "127.0.0.1", "::1", "10.1.1.1")],
            [True, True, False, False, False],
        )
        other = client_options(self.config("disable_tls_validation: true, disable_http_keepalives: true, "))
        self.assertEqual((other.validate_tls, other.keep_alive), (False, False))

    def test_everything_of_old_days_means_the_new_internet_too(self) -> None:
        options = client_options(self.config('allow_networks: ["0.0.0.0/0"], '))
        self.assertTrue(options.networks.permits("2001:db8::1"))
        options = client_options(self.config('allow_networks: ["192.0.2.0/24"], '))
        self.assertEqual([options.networks.permits(one) for one in ("192.0.2.1", "2001:db8::1")], [True, False])

    def test_the_cache_of_names(self) -> None:
        self.assertIsNone(name_cache(self.config()))
        config = self.config(in_global="  dns_cache: {enabled: true, cache_size: 7, cache_lifetime: 90s}\n")
        self.assertEqual(name_cache(config), NameCache(7, 90_000))

    def test_our_keys(self) -> None:
        folder = Path(self.mktemp())
        folder.mkdir()
        (folder / "old.pem").write_text(write_pem(key_of(5, "ed25519:old")))
        more = f"  old_private_keys: [{{private_key: {folder.absolute()}/old.pem, expired_at: 77}}]\n"
        keys = own_keys(self.config(in_global=more + "  key_validity_period: 24h\n"), test_world(self.clock))
        document = keys.document()
        self.assertEqual(document["valid_until_ts"], (int(self.clock.seconds()) + 86_400) * 1000)
        old = {"key": key_of(5).verify_key_base64, "expired_ts": 77}
        self.assertEqual(document["old_verify_keys"], {"ed25519:old": old})
        self.assertEqual(list(document["verify_keys"]), ["ed25519:1"])

    def test_notaries(self) -> None:
        text = key_of(9).verify_key_base64
        keys = f"keys: [{{key_id: ed25519:auto, public_key: {text}}}]"
        (notary,) = perspectives(self.config(f"key_perspectives: [{{server_name: notary.test, {keys}}}], "))
        self.assertEqual((notary.server_name, notary.keys), ("notary.test", {"ed25519:auto": key_of(9).verify_key}))
        config = self.config("key_perspectives: [{server_name: n.test, keys: [{key_id: ed25519:a, public_key: x}]}], ")
        error = self.assertRaises(ConfigError, perspectives, config)
        self.assertIn("federation_api.key_perspectives[0]", str(error))


class WiredTests(WholeServerTestCase):
    def write_config(self, folder: str) -> str:
        text = (
            super()
            .write_config(folder)
            .replace(
                "federation_api: {",
                "federation_api: {disable_tls_validation: true, disable_http_keepalives: true, ",
            )
        )
        return text.replace("global:\n", "global:\n  dns_cache: {enabled: true}\n")

    def test_the_settings_reach_who_connects(self) -> None:
        caches = [cache for net in self.nets for cache in net.caches]
        options = [(made.validate_tls, made.keep_alive) for net in self.nets for made in net.options]
        self.assertEqual(caches, [NameCache(256, 300_000)] * len(self.federating()))
        self.assertEqual(options, [(False, False)] * len(self.federating()))

    def test_any_certificate_will_do(self) -> None:
        stranger = self.stranger()
        self.network.listen(stranger.address, 8448, stranger.server.site, certificate_for="somebody.else.test")
        ask = FederationRequest(method="GET", destination="stranger.test", path=VERSION)
        for _ in range(2):
            self.successResultOf(self.network.begin(self.server.parts.others.request(ask)))
        self.assertEqual(self.network.connections.count((stranger.address, 8448)), 2)
        self.assertIsInstance(self.network.names, Names)
        self.assertNotEqual(stranger.address, WHOLE_ADDRESS)

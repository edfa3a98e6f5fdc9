"""The tools and the start of the server, as their users type them."""

from __future__ import annotations

import contextlib
import getpass
import gzip
import hashlib
import hmac
import io
import json
import os
import resource
import socket
import stat
import sys
import tempfile
import urllib.error
from email.message import Message
from pathlib import Path
from typing import Any

from twisted.application.service import IService, IServiceMaker, MultiService
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import LogLevel
from twisted.plugin import getPlugins
from twisted.python import usage
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.resource import Resource

from dendrite_tw import components, logs, readiness, tap
from dendrite_tw.commands import (
    check_config,
    create_account,
    first_start,
    generate_config,
    generate_keys,
    polylith,
    server,
)
from dendrite_tw.commands.goflags import FlagSet
from dendrite_tw.config import Config, ConfigError, LogHook, load, loads
from dendrite_tw.config.key_files import old_verify_keys, signing_key
from dendrite_tw.matrix.keys import read_pem
from dendrite_tw.web.site import make_site
from tests.test_config import MINIMAL, POLYLITH


class Case(SynchronousTestCase):
    """Runs commands in a directory of their own."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir(parents=True)

    def file(self, name: str, text: str = "") -> str:
        path = self.directory / name
        if text:
            path.write_text(text, encoding="utf-8")
        return str(path)

    def run_command(self, command: Any, *arguments: str) -> tuple[int, str, str]:
        """Exit code, standard output and standard error."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = command(list(arguments))
            except SystemExit as stop:
                code = stop.code
        return code, out.getvalue(), err.getvalue()


class GoFlags(Case):
    def parse(self, *arguments: str) -> tuple[Any, ...]:
        flags = FlagSet("program", "What it does.")
        name = flags.string("name", "nobody", "A name")
        loud = flags.boolean("loud", "Shout")
        size = flags.integer("size", 0, "A size")
        timeout = flags.duration("timeout", 30.0, "A timeout")
        rest = flags.parse(list(arguments))
        return name.value, loud.value, size.value, timeout.value, rest

    def test_all_spellings(self) -> None:
        for words in (["-name", "x"], ["--name", "x"], ["-name=x"], ["--name=x"]):
            self.assertEqual(self.parse(*words)[0], "x")
        self.assertEqual(self.parse(), ("nobody", False, 0, 30.0, []))
        self.assertEqual(self.parse("-name="), ("", False, 0, 30.0, []))
        self.assertEqual(self.parse("-name=a=b")[0], "a=b")
        self.assertEqual(self.parse("-name", "-loud")[:2], ("-loud", False))

    def test_booleans_take_values_only_behind_an_equals_sign(self) -> None:
        self.assertEqual(self.parse("-loud", "false")[1::3], (True, ["false"]))
        for word in ("1", "t", "T", "true", "TRUE", "True"):
            self.assertTrue(self.parse(f"-loud={word}")[1])
        for word in ("0", "f", "F", "false", "FALSE", "False"):
            self.assertFalse(self.parse(f"-loud={word}")[1])

    def test_numbers_and_durations(self) -> None:
        self.assertEqual(self.parse("-size", "0x10", "-timeout", "1m30s")[2:4], (16, 90.0))
        self.assertEqual(self.parse("-size=-5")[2], -5)

    def test_the_first_word_that_is_no_flag_ends_them(self) -> None:
        self.assertEqual(self.parse("-loud", "x", "-name", "y"), ("nobody", True, 0, 30.0, ["x", "-name", "y"]))
        self.assertEqual(self.parse("-loud", "--", "-name")[4], ["-name"])
        self.assertEqual(self.parse("-", "-loud")[4], ["-", "-loud"])

    def test_mistakes_exit_with_2(self) -> None:
        for words, said in (
            (["-nmae", "x"], "flag provided but not defined: -nmae"),
            (["-name"], "flag needs an argument: -name"),
            (["-loud=maybe"], 'invalid value "maybe" for flag -loud'),
            (["-size=big"], 'invalid value "big" for flag -size'),
            (["-timeout=5"], 'invalid value "5" for flag -timeout'),
            (["---name", "x"], "bad flag syntax: ---name"),
            (["-=x"], "bad flag syntax: -=x"),
        ):
            code, out, err = self.run_command(lambda given: self.parse(*given), *words)
            self.assertEqual((code, out), (2, ""))
            self.assertIn(said, err)
            self.assertIn("Usage of program:", err)

    def test_help_exits_with_0(self) -> None:
        for word in ("-h", "--help"):
            code, _, err = self.run_command(lambda given: self.parse(*given), word)
            self.assertEqual(code, 0)
            self.assertIn('-name string\n    \tA name (default "nobody")', err)
            self.assertIn("-timeout duration\n    \tA timeout (default 30s)", err)
            self.assertIn("-loud\n    \tShout\n", err)


class GenerateKeys(Case):
    def test_signing_key(self) -> None:
        path = self.file("matrix_key.pem")
        code, out, _ = self.run_command(generate_keys.main, "--private-key", path)
        self.assertEqual((code, out), (0, f"Created private key file: {path}\n"))
        key = read_pem(Path(path).read_text(encoding="utf-8"))
        self.assertRegex(key.key_id, r"\Aed25519:[A-Za-z0-9]{6}\Z")
        self.assertEqual(stat.S_IMODE(Path(path).stat().st_mode), 0o600)
        other = self.file("other.pem")
        self.run_command(server.main, "generate-keys", "--private-key", other)
        self.assertNotEqual(read_pem(Path(other).read_text(encoding="utf-8")).seed, key.seed)

    def test_signing_key_is_never_overwritten(self) -> None:
        path = self.file("matrix_key.pem", "precious")
        code, _, err = self.run_command(generate_keys.main, "-private-key", path)
        self.assertEqual(code, 1)
        self.assertIn("Move it away first", err)
        self.assertEqual(Path(path).read_text(encoding="utf-8"), "precious")

    def test_certificate(self) -> None:
        from cryptography import x509

        cert, key = self.file("server.crt"), self.file("server.key")
        words = ["-tls-cert", cert, "-tls-key", key, "-keysize", "1024"]
        for server_name, names in (
            ([], [x509.DNSName("localhost")]),
            (["-server", "a.example:8448"], [x509.DNSName("a.example")]),
        ):
            code, out, _ = self.run_command(generate_keys.main, *words, *server_name)
            self.assertEqual(code, 0)
            self.assertIn(f"Created TLS cert file:    {cert}\n", out)
            made = x509.load_pem_x509_certificate(Path(cert).read_bytes())
            extension = made.extensions.get_extension_for_class(x509.SubjectAlternativeName)
            self.assertEqual(list(extension.value), names)
        self.assertEqual(stat.S_IMODE(Path(key).stat().st_mode), 0o600)
        self.assertIn("BEGIN RSA PRIVATE KEY", Path(key).read_text(encoding="utf-8"))

    def test_address_in_certificate(self) -> None:
        for name, host in (("[::1]:8448", "::1"), ("127.0.0.1", "127.0.0.1")):
            (found,) = generate_keys._names(name)
            self.assertEqual(str(found.value), host)

    def test_certificate_of_an_authority(self) -> None:
        from cryptography import x509

        ca = [self.file("ca.crt"), self.file("ca.key")]
        pair = [self.file("a.crt"), self.file("a.key")]
        generate_keys.write_certificate(*ca, "ca", 1024)
        words = ["-tls-cert", pair[0], "-tls-key", pair[1], "-keysize=1024", "-server=hs1"]
        words += ["-tls-authority-cert", ca[0], "-tls-authority-key", ca[1]]
        self.assertEqual(self.run_command(generate_keys.main, *words)[0], 0)
        authority, made = (x509.load_pem_x509_certificate(Path(path).read_bytes()) for path in (ca[0], pair[0]))
        made.verify_directly_issued_by(authority)

    def test_mistakes(self) -> None:
        cert, key, text = self.file("a.crt"), self.file("a.key"), self.file("text", "no PEM at all")
        pair = ["-tls-cert", cert, "-tls-key", key]
        for words, said in (
            (["-tls-cert", cert], "only of use together"),
            ([*pair, "-tls-authority-cert", text], "only of use together"),
            ([*pair, "-keysize", "12"], "-keysize must be"),
            ([*pair, "-keysize", "1024", "-tls-authority-cert", text, "-tls-authority-key", text], "not a certificate"),
            (["-private-key", self.file("no/such/directory")], "No such file or directory"),
        ):
            code, _, err = self.run_command(generate_keys.main, *words)
            self.assertEqual(code, 1, words)
            self.assertIn(said, err)
            self.assertFalse(Path(cert).exists())

    def test_nothing_to_do(self) -> None:
        code, out, err = self.run_command(generate_keys.main)
        self.assertEqual((code, out), (0, ""))
        self.assertIn("-private-key", err)


class GenerateConfig(Case):
    def test_starts_as_it_is(self) -> None:
        code, out, _ = self.run_command(generate_config.main, "-server", "a.example", "--dir=/var/dendrite")
        self.assertEqual(code, 0)
        config = loads(out)
        self.assertEqual(config.problems, ())
        self.assertEqual(config.global_.server_name, "a.example")
        self.assertEqual(
            config.database_of("federation_api").connection_string, "file:/var/dendrite/dendrite_federationapi.db"
        )

    def test_postgresql(self) -> None:
        _, out, _ = self.run_command(generate_config.main, "-db", "postgres://h/d")
        self.assertEqual(loads(out).global_.database.connection_string, "postgres://h/d")
        self.assertEqual(loads(out).room_server.database.connection_string, "")

    def test_for_tests(self) -> None:
        _, out, _ = self.run_command(server.main, "generate-config", "-ci")
        self.assertRaises(ConfigError, loads, out)
        config = loads(out, allow_open_registration=True)
        self.assertTrue(config.registration_open)
        self.assertEqual(config.user_api.bcrypt_cost, 4)
        self.assertFalse(config.client_api.rate_limiting.enabled)

    def test_normalise(self) -> None:
        path = self.file("a.yaml", MINIMAL + "user_api:\n  bcrypt_cost: 12\nfoo: 1\n")
        code, out, err = self.run_command(generate_config.main, "-normalise", path)
        self.assertEqual(code, 0)
        self.assertIn("foo: There is no such key.", err)
        config = loads(out)
        self.assertEqual(config.user_api.bcrypt_cost, 12)
        self.assertIn("private_key: matrix_key.pem", out)
        self.assertIn("key_validity_period: 168h0m0s", out)
        self.assertEqual(config.client_api.rate_limiting.threshold, 5)

    def test_normalise_what_cannot_be_read(self) -> None:
        for path in (self.file("missing"), self.file("a.yaml", "user_api: 5")):
            code, out, err = self.run_command(generate_config.main, "-normalise", path)
            self.assertEqual((code, out), (1, ""))
            self.assertIn(path, err)

    def test_polylith(self) -> None:
        _, out, _ = self.run_command(generate_config.main, "-polylith")
        self.assertEqual(loads(out, polylith=True).sync_api.external_api.listen, "http://[::]:8073")
        self.assertEqual(
            loads(out).room_server.database.connection_string.rpartition("/")[2][:19], "dendrite_roomserver"
        )

    def test_polylith_that_starts_as_it_is(self) -> None:
        words = [
            "-polylith",
            "-server",
            "a.example",
            "-db",
            "postgres://h/d",
            "-nats",
            "n1:4222, tls://n2",
            "-dir",
            "/srv",
        ]
        code, out, _ = self.run_command(generate_config.main, *words)
        self.assertEqual(code, 0)
        config = loads(out, polylith=True)
        self.assertEqual(config.problems, ())
        self.assertEqual(config.global_.server_name, "a.example")
        self.assertEqual(config.global_.jetstream.addresses, ("n1:4222", "tls://n2"))
        self.assertEqual(config.database_of("room_server").connection_string, "postgres://h/d")
        self.assertEqual(config.media_api.base_path, "/srv/media")
        self.assertEqual(self.run_command(generate_config.main, "-polylith", "-db", "file:a.db")[0], 2)


class CheckConfig(Case):
    def test_no_mistakes(self) -> None:
        path = self.file("a.yaml", MINIMAL)
        for words in (["-config", path], [path]):
            self.assertEqual(self.run_command(check_config.main, *words), (0, f"{path}: no mistakes.\n", ""))

    def test_mistakes_are_named(self) -> None:
        text = MINIMAL + "client_api:\n  registation_disabled: true\n  turn: 5\nuser_api: {}\nuser_api: {}\n"
        path = self.file("a.yaml", text)
        code, out, _ = self.run_command(server.main, "check-config", "--config", path)
        self.assertEqual(code, 1)
        self.assertIn(
            f"{path}:10: client_api.registation_disabled: There is no such key. Did you mean "
            "client_api.registration_disabled?\n",
            out,
        )
        self.assertIn(f"{path}:11: client_api.turn: This must be a section", out)
        self.assertIn(f"{path}:13: user_api: This key is given twice", out)
        self.assertTrue(out.endswith(f"{path}: 3 mistakes.\n"))

    def test_advice_is_no_mistake(self) -> None:
        path = self.file("a.yaml", MINIMAL + "federation_sender: {}\ntracing: {enabled: true}\n")
        code, out, _ = self.run_command(check_config.main, path)
        self.assertEqual(code, 0)
        self.assertEqual(len(out.splitlines()), 3)

    def test_open_registration(self) -> None:
        path = self.file("a.yaml", MINIMAL + "client_api: {registration_disabled: false}\n")
        self.assertEqual(self.run_command(check_config.main, path)[0], 1)
        self.assertEqual(self.run_command(check_config.main, "-really-enable-open-registration", path)[0], 0)

    def test_too_many_files(self) -> None:
        self.assertEqual(self.run_command(check_config.main, "a", "b")[0], 2)

    def test_polylith(self) -> None:
        path = self.file("a.yaml", MINIMAL)
        code, out, _ = self.run_command(check_config.main, "-polylith", path)
        self.assertEqual(code, 1)
        self.assertIn("global.jetstream.addresses: ", out)
        path = self.file("b.yaml", POLYLITH + "room_server: {internal_api: {listen: 'localhost:7770'}}\n")
        code, out, _ = self.run_command(check_config.main, "-polylith", path)
        self.assertEqual(code, 1)
        self.assertIn(f"{path}:10: room_server.internal_api.listen: 'localhost:7770' is no address to listen on.", out)
        self.assertEqual(out.count("This process answers clients or servers, but has no address"), 4)

    def test_addresses_that_are_the_same(self) -> None:
        _, text, _ = self.run_command(generate_config.main, "-polylith", "-db", "postgres://h/d")
        code, out, _ = self.run_command(check_config.main, "-polylith", self.file("a.yaml", text))
        self.assertEqual(out, f"{self.file('a.yaml')}: no mistakes.\n")
        path = self.file("b.yaml", text.replace("[::]:8074", "[::]:8073"))
        code, out, _ = self.run_command(check_config.main, "-polylith", path)
        self.assertEqual(code, 0)
        self.assertIn("is the same address: on one machine only one of the two processes can have it.", out)


def http_error(code: int, body: object) -> urllib.error.HTTPError:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return urllib.error.HTTPError("http://h/", code, "", Message(), io.BytesIO(data))


class FakeServer:
    """Answers as a homeserver with shared-secret registration does; checks the MAC."""

    def __init__(self, secret: str = "s3cret") -> None:
        self.secret = secret
        self.accounts: dict[str, dict[str, Any]] = {}
        self.asked: list[tuple[str, float]] = []

    def ask(self, endpoint: str, body: dict[str, Any] | None, timeout: float) -> dict[str, Any]:
        self.asked.append((endpoint, timeout))
        if body is None:
            return {"nonce": "n0nce"}
        kind = "admin" if body["admin"] else "notadmin"
        message = f"n0nce\0{body['username']}\0{body['password']}\0{kind}".encode()
        mac = hmac.new(self.secret.encode(), message, hashlib.sha1).hexdigest()
        if mac != body["mac"]:
            error = http_error(403, {"errcode": "M_FORBIDDEN", "error": "HMAC incorrect"})
            raise create_account.StopError(create_account._refusal(error, endpoint))
        self.accounts[body["username"]] = body
        return {"access_token": "t0ken", "user_id": "@x:example.com"}


class CreateAccount(Case):
    def setUp(self) -> None:
        super().setUp()
        self.server = FakeServer()
        self.patch(create_account, "_ask", self.server.ask)
        self.config = self.file(
            "dendrite.yaml",
            MINIMAL + "client_api:\n  registration_shared_secret: s3cret\n  registration_disabled: false\n",
        )

    def create(self, *words: str) -> tuple[int, str, str]:
        return self.run_command(create_account.main, "--config", self.config, *words)

    def test_as_in_the_guide(self) -> None:
        answers = iter(["correct horse", "correct horse"])
        self.patch(getpass, "getpass", lambda prompt: next(answers))
        words = ["--config", self.config, "--url", "http://localhost:8008", "--username", "admin", "--admin"]
        code, out, err = self.run_command(server.main, "create-account", *words)
        self.assertEqual((code, err), (0, ""))
        self.assertIn("Created account: admin (AccessToken: t0ken)", out)
        self.assertTrue(self.server.accounts["admin"]["admin"])
        self.assertEqual(self.server.asked[0], ("http://localhost:8008/_synapse/admin/v1/register", 30.0))

    def test_sources_of_the_password(self) -> None:
        path = self.file("my.pass", "from a file\n")
        self.create("-username", "alice", "-passwordfile", path)
        self.patch(sys, "stdin", io.StringIO("from standard input\n"))
        self.create("-username", "bob", "-passwordstdin")
        self.create("-username", "carol", "-password", "from a flag", "-url=https://h:1/", "-timeout=5s")
        found = {name: body["password"] for name, body in self.server.accounts.items()}
        expected = {"alice": "from a file", "bob": "from standard input", "carol": "from a flag"}
        self.assertEqual(found, expected)
        self.assertEqual(self.server.asked[-1], ("https://h:1/_synapse/admin/v1/register", 5.0))
        self.assertFalse(self.server.accounts["alice"]["admin"])

    def assert_fails(self, said: str, *words: str) -> None:
        code, out, err = self.create(*words)
        self.assertEqual((code, out), (1, ""), err)
        self.assertIn(said, err)
        self.assertEqual(self.server.accounts, {})

    def test_passwords_that_differ(self) -> None:
        answers = iter(["correct horse", "battery staple"])
        self.patch(getpass, "getpass", lambda prompt: next(answers))
        self.assert_fails("not the same", "-username", "alice")

    def test_no_terminal(self) -> None:
        def end(prompt: str) -> str:
            raise EOFError

        self.patch(getpass, "getpass", end)
        self.assert_fails("-passwordstdin", "-username", "alice")

    def test_given_up(self) -> None:
        def interrupt(prompt: str) -> str:
            raise KeyboardInterrupt

        self.patch(getpass, "getpass", interrupt)
        self.assert_fails("given up", "-username", "alice")

    def test_mistakes(self) -> None:
        password = ("-password", "long enough")
        for name in ("Alice", "@alice:example.com", "a b", "_alice", "ä", "x" * 250):
            self.assert_fails("username", "-username", name, *password)
        self.assert_fails("too short", "-username", "alice", "-password", "1234567")
        self.assert_fails("too long", "-username", "alice", "-password", "x" * 513)
        self.assert_fails("cannot be read", "-username", "alice", "-passwordfile", self.file("missing"))
        self.assert_fails("http://", "-username", "alice", *password, "-url", "file:///etc/passwd")
        self.assert_fails("-timeout", "-username", "alice", *password, "-timeout", "-1s")
        self.assert_fails("resetPassword", "-reset-password")
        self.assert_fails("Usage of create-account", "-admin")

    def test_no_secret(self) -> None:
        self.config = self.file("other.yaml", MINIMAL)
        self.assert_fails("no client_api.registration_shared_secret", "-username", "a", "-password", "12345678")
        self.config = self.file("missing.yaml")
        self.assert_fails("cannot be read", "-username", "a", "-password", "12345678")

    def test_another_secret(self) -> None:
        self.server.secret = "another"
        self.assert_fails("another configuration file", "-username", "alice", "-password", "12345678")

    def test_refusals_are_explained(self) -> None:
        for code, body, said in (
            (400, {"errcode": "M_USER_IN_USE", "error": "x"}, "already"),
            (404, b"<html>", "without client_api.registration_shared_secret"),
            (404, {"errcode": "M_UNRECOGNIZED"}, "without client_api.registration_shared_secret"),
            (400, {"errcode": "M_WEAK_PASSWORD", "error": "Too weak."}, "M_WEAK_PASSWORD Too weak."),
            (502, b"[]", "502"),
        ):
            self.assertIn(said, create_account._refusal(http_error(code, body), "http://h/x"))

    def test_answers_of_something_else(self) -> None:
        for answers in ([{}], [{"nonce": 5}], [{"nonce": "n"}, {}]):
            given = iter(answers)
            self.patch(create_account, "_ask", lambda *arguments, given=given: next(given))
            self.assert_fails("", "-username", "alice", "-password", "12345678")

    def test_proxies_are_not_used_on_this_machine(self) -> None:
        self.patch(os, "environ", {"http_proxy": "http://proxy.invalid:1"})
        for url, proxied in (("http://localhost:8008/", False), ("http://127.0.0.1/", False), ("http://h/", True)):
            handlers = [type(one).__name__ for one in create_account._opener(url).handlers]  # type: ignore[attr-defined]
            self.assertEqual("ProxyHandler" in handlers, proxied, url)


class FirstStart(Case):
    def test_makes_what_is_missing_once(self) -> None:
        data = self.directory / "data"
        words = ("-data", str(data), "-server", "a.example", "-http", ":8008")
        code, out, _ = self.run_command(first_start.main, *words)
        self.assertEqual(code, 0)
        self.assertIn("http://localhost:8008", out)
        self.assertIn("create-account", out)
        config = load(data / "dendrite.yaml")
        self.assertEqual(config.problems, ())
        self.assertEqual(config.global_.server_name, "a.example")
        self.assertGreater(len(config.client_api.registration_shared_secret), 30)
        self.assertEqual(signing_key(config).key_id[:8], "ed25519:")
        for path in (
            config.media_api.base_path,
            config.database_of("room_server").sqlite_path,
            config.global_.jetstream.storage_path,
        ):
            self.assertTrue(path.startswith(str(data)), path)
        self.assertEqual(
            {path.name: stat.S_IMODE(path.stat().st_mode) for path in data.iterdir()},
            {"dendrite.yaml": 0o600, "matrix_key.pem": 0o600, "server.crt": 0o644, "server.key": 0o600},
        )
        before = {path: path.read_bytes() for path in data.iterdir()}
        self.assertEqual(self.run_command(first_start.main, *words), (0, "", ""))
        self.assertEqual({path: path.read_bytes() for path in data.iterdir()}, before)
        (data / "dendrite.yaml").unlink()
        self.assertIn("Created", self.run_command(first_start.main, *words)[1])
        self.assertEqual((data / "matrix_key.pem").read_bytes(), before[data / "matrix_key.pem"])

    def test_directory_that_cannot_be_made(self) -> None:
        code, _, err = self.run_command(first_start.main, "-data", self.file("file", "text") + "/data")
        self.assertEqual(code, 1)
        self.assertIn("cannot be prepared", err)

    def test_url(self) -> None:
        for http, url in (("127.0.0.1:8008", "http://127.0.0.1:8008"), ("[::]:80", "http://localhost:80")):
            self.assertIn(f"at {url} once", first_start.welcome(self.directory, http))


class KeyFiles(Case):
    def config_with(self, **values: Any) -> Config:
        text = MINIMAL
        for name, value in values.items():
            text = text.replace("  private_key: matrix_key.pem\n", "") if name == "private_key" else text
            text = text.replace("  database:", f"  {name}: {json.dumps(value)}\n  database:")
        return loads(text, base=str(self.directory))

    def test_key_and_old_keys(self) -> None:
        current, old = self.file("key.pem"), self.file("old.pem")
        generate_keys.write_signing_key(current)
        generate_keys.write_signing_key(old)
        public = "mn59Kxfdq9VziYHSBzI7+EDPDcBS2Xl7jeUdiiQcOnM="
        listed = [
            {"private_key": "old.pem", "expired_at": 5},
            {"public_key": public, "key_id": "ed25519:x-y", "expired_at": 6},
        ]
        config = self.config_with(private_key="key.pem", old_private_keys=listed)
        self.assertEqual(signing_key(config), read_pem(Path(current).read_text(encoding="utf-8")))
        first, second = old_verify_keys(config)
        self.assertEqual(first.verify_key_base64, read_pem(Path(old).read_text(encoding="utf-8")).verify_key_base64)
        self.assertEqual((first.expired_ts, second.expired_ts, second.key_id), (5, 6, "ed25519:x-y"))
        self.assertEqual(second.verify_key_base64, public.rstrip("="))

    def test_what_is_wrong_is_said_with_the_key(self) -> None:
        for text, said in (
            ("", "No such file"),
            ("hello\n", "not a signing key"),
            ("ed25519 a " + "A" * 43 + "\ned25519 b " + "B" * 43 + "\n", "2 keys"),
        ):
            self.file("key.pem", text)
            error = self.assertRaises(ConfigError, signing_key, self.config_with(private_key="key.pem"))
            self.assertTrue(str(error).startswith("dendrite.yaml:4: global.private_key: "), error)
            self.assertIn(said, str(error))
        config = self.config_with(old_private_keys=[{"private_key": "missing.pem"}])
        error = self.assertRaises(ConfigError, old_verify_keys, config)
        self.assertIn("global.old_private_keys[0].private_key", str(error))


class FakePort:
    def __init__(self) -> None:
        self.stopped: Deferred[None] = Deferred()

    def stopListening(self) -> Deferred[None]:
        return self.stopped


class FakeReactor:
    """Takes over sockets, as a reactor does."""

    def __init__(self) -> None:
        self.adopted: list[tuple[int, Any, FakePort]] = []
        self.stopped = False

    def callWhenRunning(self, function: Any) -> None:
        function()

    def stop(self) -> None:
        self.stopped = True

    def adoptStreamPort(self, descriptor: int, family: int, factory: Any) -> FakePort:
        assert socket.socket(fileno=os.dup(descriptor)).getsockname()
        port = FakePort()
        self.adopted.append((family, factory, port))
        return port


class Site(MultiService):
    def __init__(self) -> None:
        super().__init__()
        self.site = Resource()
        self.started: Deferred[None] = Deferred()
        self.serves = self.started
        self.configured: list[Config] = []

    def factory(self, reactor: Any) -> Any:
        return make_site(self.site, Clock())


class Start(Case):
    def setUp(self) -> None:
        super().setUp()
        self.reactor = FakeReactor()
        self.monolith = Site()
        self.socket = self.file("http.sock")
        # A unix socket's path has room for 107 bytes, less than trial's directories may take.
        self.previous = os.open(".", os.O_RDONLY)
        os.chdir(self.directory)
        self.addCleanup(self.go_back)
        self.limits = resource.getrlimit(resource.RLIMIT_NOFILE)

    def go_back(self) -> None:
        os.fchdir(self.previous)
        os.close(self.previous)

    def assemble(self, config: Config, world: Any) -> Site:
        self.monolith.configured.append(config)
        return self.monolith

    def start(self, text: str = MINIMAL, **settings: Any) -> tap.Whole:
        settings = {"config": self.file("a.yaml", text), "unix_socket": "http.sock"} | settings
        return tap.make_service(tap.Settings(**settings), self.reactor, self.assemble, world=object())

    def refused(self, **settings: Any) -> str:
        return str(self.assertRaises(tap.StartError, self.start, **settings))

    def test_serves_what_is_assembled(self) -> None:
        service = self.start(unix_socket_permission="700")
        self.assertEqual(self.monolith.configured[0].global_.server_name, "example.com")
        self.assertEqual(self.reactor.adopted, [])
        service.startService()
        self.assertTrue(self.monolith.running)
        self.assertEqual(self.reactor.adopted, [])
        self.monolith.started.callback(None)
        ((family, factory, port),) = self.reactor.adopted
        self.assertEqual(family, socket.AF_UNIX)
        self.assertIs(factory.resource, self.monolith.site)
        self.assertEqual(stat.S_IMODE(Path(self.socket).stat().st_mode), 0o700)
        stopped = service.stopService()
        self.assertNoResult(stopped)
        port.stopped.callback(None)
        self.successResultOf(stopped)
        self.assertFalse(self.monolith.running)
        self.assertFalse(Path(self.socket).exists())

    def test_a_service_manager_is_told(self) -> None:
        # A path of a socket is short; that of the test's folder may not be.
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        path = f"{folder.name}/notify"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(path)
            manager.setblocking(False)
            self.patch(os, "environ", {**os.environ, "NOTIFY_SOCKET": path})
            self.patch(readiness.tell, "__defaults__", (os.environ,))
            service = self.start()
            service.startService()
            self.assertRaises(BlockingIOError, manager.recv, 100)
            self.monolith.started.callback(None)
            self.assertEqual(manager.recv(100), b"READY=1")
            stopped = service.stopService()
            self.assertEqual(manager.recv(100), b"STOPPING=1")
            for _, _, port in self.reactor.adopted:
                port.stopped.callback(None)
            self.successResultOf(stopped)

    def test_a_service_manager_that_is_gone(self) -> None:
        said: list[dict[str, Any]] = []
        self.patch(readiness.log, "observer", said.append)
        for address in ("/nowhere/notify", "@nobody"):
            readiness.tell(readiness.READY, {"NOTIFY_SOCKET": address})
            self.assertIn("cannot be told", said.pop()["log_format"])
        readiness.tell(readiness.READY, {})
        self.assertEqual(said, [])

    def test_what_has_started_at_once_is_served_once(self) -> None:
        self.monolith.startService = lambda: self.monolith.started.callback(None)  # type: ignore[method-assign]
        self.start().startService()
        self.assertEqual(len(self.reactor.adopted), 1)

    def test_a_process_that_was_told_to_stop_ends_well(self) -> None:
        class Reactor(FakeReactor):
            _exitSignal = 15

            def addSystemEventTrigger(self, phase: str, event: str, call: Any) -> None:
                self.after = (phase, event, call)

        self.reactor = reactor = Reactor()
        tap.end_in_order(reactor)
        phase, event, call = reactor.after
        self.assertEqual((phase, event), ("after", "shutdown"))
        call()
        self.assertIsNone(reactor._exitSignal)

    def test_stopped_before_it_has_started(self) -> None:
        service = self.start()
        service.startService()
        self.successResultOf(service.stopService())
        self.monolith.started.callback(None)
        self.assertEqual(self.reactor.adopted, [])
        self.assertFalse(Path(self.socket).exists())

    def test_what_cannot_start_ends_the_process(self) -> None:
        for reason in (OSError(28, "No space left on device"), ValueError("a defect")):
            said: list[dict[str, Any]] = []
            self.patch(tap.log, "observer", said.append)
            self.reactor, self.monolith = FakeReactor(), Site()
            service = self.start()
            service.startService()
            self.monolith.started.errback(reason)
            self.assertEqual((service.exit_code, self.reactor.stopped, self.reactor.adopted), (1, True, []))
            (line,) = [event for event in said if "cannot start" in event["log_format"]]
            self.assertEqual("log_failure" in line, isinstance(reason, ValueError))
            self.successResultOf(service.stopService())

    def test_plugin(self) -> None:
        (maker,) = [one for one in getPlugins(IServiceMaker) if one.tapname == "dendrite"]
        options = maker.options()
        options.parseOptions(
            [
                "--config",
                "a.yaml",
                "--http-bind-address=:1",
                "--tls-key",
                "k",
                "--tls-cert=c",
                "--really-enable-open-registration",
                "--unix-socket-permission",
                "770",
            ]
        )
        self.assertEqual(
            options.settings(),
            tap.Settings(
                config="a.yaml",
                http_bind_address=":1",
                tls_key="k",
                tls_cert="c",
                really_enable_open_registration=True,
                unix_socket_permission="770",
            ),
        )
        some = maker.options()
        some.parseOptions(["--component", "client_api,syncapi", "--component=room-api"])
        self.assertEqual(some.settings().components, ("client_api", "sync_api", "room_server"))
        self.assertRaises(usage.UsageError, maker.options().parseOptions, ["--component", "kitchen"])
        defaults = maker.options()
        defaults.parseOptions([])
        self.assertEqual(defaults.settings(), tap.Settings())
        self.assertEqual((tap.Settings().http_bind_address, tap.Settings().https_bind_address), ("", ":8448"))
        seen = []
        self.patch(tap, "make_service", lambda settings: seen.append(settings) or self.monolith)
        self.assertTrue(IService.providedBy(maker.makeService(options)))
        self.assertEqual(seen, [options.settings()])

    def test_mistakes_end_the_start_with_a_sentence(self) -> None:
        options = tap.Options()
        options.parseOptions(["--config", self.file("missing.yaml")])
        stop = self.assertRaises(SystemExit, tap.makeService, options)
        self.assertIn("cannot be read", str(stop))

    def test_version(self) -> None:
        found = self.run_command(tap.Options().parseOptions, "--version")
        self.assertEqual(found, (0, f"{tap.version_text()}\n", ""))

    def test_open_registration_needs_the_flag(self) -> None:
        text = MINIMAL + "client_api: {registration_disabled: false}\n"
        self.assertRaises(ConfigError, self.start, text)
        self.start(text, really_enable_open_registration=True)
        self.assertTrue(self.monolith.configured[0].registration_open)

    def test_warnings_are_logged(self) -> None:
        said: list[dict[str, Any]] = []
        self.patch(tap.log, "observer", said.append)
        self.start(MINIMAL + "tracing: {enabled: true}\nfoo: 1\n")
        problems = [event["problem"] for event in said if "problem" in event]
        self.assertEqual(len(problems), 2)
        self.assertIn("a.yaml:10: foo: There is no such key.", problems[1])

    def test_socket_of_a_killed_server_is_replaced(self) -> None:
        dead = socket.socket(socket.AF_UNIX)
        dead.bind("http.sock")
        dead.close()
        self.start()

    def test_socket_in_use_is_left_alone(self) -> None:
        alive = socket.socket(socket.AF_UNIX)
        self.addCleanup(alive.close)
        alive.bind("http.sock")
        alive.listen()
        self.assertIn("Address already in use", self.refused())
        self.assertTrue(Path(self.socket).exists())

    def test_file_in_the_way_is_left_alone(self) -> None:
        self.file("http.sock", "text")
        self.assertIn("Address already in use", self.refused())
        self.assertEqual(Path(self.socket).read_text(encoding="utf-8"), "text")

    def test_mistakes_on_the_command_line(self) -> None:
        for permission in ("888", "rwx", "-1", "17777"):
            self.assertIn("octal", self.refused(unix_socket_permission=permission))
        for address in ("8008", "localhost", ":", ":http", ":65536", "::x"):
            self.assertIn("--http-bind-address must be", self.refused(unix_socket="", http_bind_address=address))
        self.assertIn("together", self.refused(unix_socket="", tls_cert="a"))
        self.assertIn("No such file", self.refused(unix_socket="", tls_cert="missing", tls_key="missing"))

    def test_certificates(self) -> None:
        for name in ("a", "b"):
            generate_keys.write_certificate(f"{name}.crt", f"{name}.key", "localhost", 2048)
        tap.tls_options("a.crt", "a.key")
        chain = Path("a.crt").read_text(encoding="utf-8") + Path("b.crt").read_text(encoding="utf-8")
        options = tap.tls_options(self.file("chain.crt", "A comment.\n" + chain), "a.key")
        self.assertEqual(len(options.extraCertChain), 1)
        for cert, key in (("a.crt", "b.key"), ("a.key", "a.key"), ("a.crt", "a.crt"), ("a.yaml", "a.key")):
            self.file("a.yaml", MINIMAL)
            error = self.assertRaises(tap.StartError, tap.tls_options, cert, key)
            self.assertIn("generate-keys", str(error))

    def test_nothing_is_kept_if_assembling_fails(self) -> None:
        def fail(config: Config, world: Any) -> Site:
            raise config.error("global.private_key", "The key cannot be read.")

        self.assemble = fail  # type: ignore[method-assign]
        self.assertRaises(ConfigError, self.start)
        self.assertFalse(Path(self.socket).exists())

    def test_few_files(self) -> None:
        said: list[dict[str, Any]] = []
        self.patch(tap.log, "observer", said.append)
        raised: list[Any] = []
        self.patch(resource, "setrlimit", lambda which, limits: raised.append(limits))
        unlimited = resource.RLIM_INFINITY
        for limits, warned, set_to in (
            ((1024, 4096), True, [(4096, 4096)]),
            ((1024, 1 << 20), False, [(65535, 1 << 20)]),
            ((1024, unlimited), False, [(65535, unlimited)]),
            ((4096, 4096), True, []),
            ((65535, 65535), False, []),
            ((unlimited, unlimited), False, []),
        ):
            said.clear()
            raised.clear()
            self.patch(resource, "getrlimit", lambda which, limits=limits: limits)
            tap.check_file_limit()
            self.assertEqual((bool(said), raised), (warned, set_to), limits)


class Server(Case):
    def test_version(self) -> None:
        self.assertEqual(self.run_command(server.main, "-version"), (0, f"{tap.version_text()}\n", ""))

    def test_flags_become_settings(self) -> None:
        seen: list[Any] = []
        self.patch(server, "run", lambda settings: seen.append(settings) or 0)
        words = ["-config", "a.yaml", "-http-bind-address=:1", "--https-bind-address", ":2", "-tls-cert", "c"]
        words += ["-tls-key", "k", "-unix-socket", "s", "-unix-socket-permission=700"]
        self.run_command(server.main, *words, "-really-enable-open-registration")
        self.assertEqual(seen, [tap.Settings("a.yaml", ":1", ":2", "c", "k", "s", "700", True)])
        self.run_command(server.main)
        self.assertEqual(seen[1], tap.Settings())
        code, _, err = self.run_command(server.main, "-api", "-api-bind-address=localhost:18008")
        self.assertEqual(code, 0)
        self.assertIn("no effect", err)

    def test_some_components(self) -> None:
        seen: list[Any] = []
        self.patch(server, "run", lambda settings: seen.append(settings) or 0)
        self.run_command(server.main, "-component", "client_api,sync_api")
        self.assertEqual(seen, [tap.Settings(components=("client_api", "sync_api"))])
        code, _, err = self.run_command(server.main, "-component=kitchen")
        self.assertEqual(code, 2)
        self.assertIn("'kitchen'; there are client_api, federation_api", err)

    def test_unknown_tool(self) -> None:
        code, _, err = self.run_command(server.main, "make-coffee")
        self.assertEqual(code, 2)
        for tool in server.TOOLS:
            self.assertIn(tool, err)


class Polylith(Case):
    """The programs of single components."""

    def setUp(self) -> None:
        super().setUp()
        self.seen: list[Any] = []
        self.patch(server, "run", lambda settings: self.seen.append(settings) or 0)

    def test_a_word_as_in_the_last_release(self) -> None:
        for word, section in components.WORDS.items():
            for words in (["--config", "a.yaml", word], ["--config=a.yaml", word.upper()], [word, "-config", "a.yaml"]):
                self.assertEqual(self.run_command(polylith.multi, *words), (0, "", ""))
                self.assertEqual(self.seen.pop(), tap.Settings(config="a.yaml", components=(section,)))

    def test_without_a_word_or_with_a_wrong_one(self) -> None:
        words = "appservice, clientapi, federationapi, keyserver, mediaapi, roomserver, syncapi, userapi"
        valid = f"Valid components: {words}\n"
        for words, said in (
            ([], "No component is named.\n"),
            (["--config", "a.yaml"], "No component is named.\n"),
            (["kitchen"], "Unknown component: 'kitchen'.\n"),
        ):
            self.assertEqual(self.run_command(polylith.multi, *words), (1, "", said + valid))
        self.assertEqual(self.seen, [])

    def test_version_and_mistakes(self) -> None:
        self.assertEqual(self.run_command(polylith.multi, "-version"), (0, f"{tap.version_text()}\n", ""))
        self.assertEqual(self.run_command(polylith.multi, "syncapi", "roomserver")[0], 2)
        self.assertEqual(self.run_command(polylith.sync_api, "syncapi")[0], 2)
        self.assertEqual(self.seen, [])

    def test_a_program_for_each(self) -> None:
        for program, section in (
            (polylith.client_api, "client_api"),
            (polylith.federation_api, "federation_api"),
            (polylith.media_api, "media_api"),
            (polylith.sync_api, "sync_api"),
            (polylith.room_api, "room_server"),
            (polylith.user_api, "user_api"),
            (polylith.key_server, "key_server"),
            (polylith.appservice, "app_service_api"),
        ):
            self.assertEqual(self.run_command(program, "-config=a.yaml", "-http-bind-address=:1")[0], 0)
            self.assertEqual(
                self.seen.pop(), tap.Settings(config="a.yaml", http_bind_address=":1", components=(section,))
            )

    def test_who_does_the_work_of_former_components(self) -> None:
        self.assertEqual(components.run_by(["key_server", "app_service_api", "user_api"]), {"user_api"})
        self.assertEqual(components.run_by(components.SECTIONS), frozenset(components.COMPONENTS))

    def test_a_start_asks_for_what_they_need(self) -> None:
        settings = tap.Settings(config=self.file("a.yaml", MINIMAL), components=("sync_api",))
        error = self.assertRaises(ConfigError, tap.make_service, settings, FakeReactor(), None, object())
        self.assertIn("global.jetstream.addresses", str(error))


def event(text: str = "hello", level: Any = LogLevel.info, **more: Any) -> dict[str, Any]:
    return {
        "log_format": "{text}",
        "text": text,
        "log_level": level,
        "log_time": 1767225600.25,
        "log_namespace": "dendrite_tw.x",
        **more,
    }


class Logs(Case):
    def test_line(self) -> None:
        self.assertEqual(
            logs.format_line(event('say "hi"\n')),
            'time="2026-01-01T00:00:00.250000000Z" level=info msg="say \\"hi\\"\\n" component=dendrite_tw.x\n',
        )
        try:
            raise ValueError("broken")
        except ValueError:
            text = logs.format_line(event(level=LogLevel.critical, log_failure=Failure()))
        self.assertIn("level=fatal", text)
        self.assertIn("ValueError: broken", text)

    def test_levels(self) -> None:
        for level, count in (("trace", 5), ("debug", 5), ("info", 4), ("warn", 3), ("error", 2), ("panic", 1)):
            stream = io.StringIO()
            observer = logs.Lines(stream, level)
            for one in LogLevel.iterconstants():
                observer(event(level=one))
            self.assertEqual(len(stream.getvalue().splitlines()), count)

    def test_standard_output_gets_info_at_least(self) -> None:
        for hooks, least in (([], 1), ([LogHook(level="error")], 1), ([LogHook(level="debug")], 0)):
            self.assertEqual(logs.observers(hooks), [])
            self.assertEqual(logs.standard_output().least, least)
        logs.observers([])

    def test_file_is_packed_daily(self) -> None:
        self.patch(logs.threading, "Thread", InlineThread)
        hook = LogHook(type="file", level="warn", params={"path": str(self.directory / "logs")})
        (observer,) = logs.observers([hook])
        observer(event("quiet"))
        observer(event("first", LogLevel.warn))
        observer(event("second", LogLevel.error, log_time=1767225600.25 + 86400))
        observer(event("late", LogLevel.error))
        directory = self.directory / "logs"
        self.assertEqual(
            sorted(path.name for path in directory.iterdir()), ["dendrite.log", "dendrite.log.2026-01-01.gz"]
        )
        with gzip.open(directory / "dendrite.log.2026-01-01.gz", "rt") as packed:
            (line,) = packed.readlines()
        self.assertIn("first", line)
        current = (directory / "dendrite.log").read_text(encoding="utf-8")
        self.assertEqual([word in current for word in ("quiet", "second", "late")], [False, True, True])

    def test_file_of_an_earlier_day_is_packed_after_a_restart(self) -> None:
        self.patch(logs.threading, "Thread", InlineThread)
        path = self.directory / "dendrite.log"
        path.write_text("old\n", encoding="utf-8")
        os.utime(path, (1767000000, 1767000000))
        logs.DailyFile(str(self.directory), "info")(event("new"))
        self.assertIn("new", path.read_text(encoding="utf-8"))
        self.assertEqual(len(list(self.directory.glob("*.gz"))), 1)

    def test_directory_that_cannot_be_made(self) -> None:
        inside = self.file("file", "text") + "/logs"
        self.assertRaises(OSError, logs.observers, [LogHook(type="file", params={"path": inside})])


class InlineThread:
    """A thread whose work is done when it is started."""

    def __init__(self, target: Any, args: Any, daemon: bool) -> None:
        self.start = lambda: target(*args)

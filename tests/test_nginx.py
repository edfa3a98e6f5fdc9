"""The nginx configuration that is written from the table of routes, as text; `interop.test_nginx` has nginx read it."""

from __future__ import annotations

import contextlib
import functools
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.commands import generate_nginx
from dendrite_tw.components import EXTERNAL
from dendrite_tw.nginx import Rule, component_of, dispatch
from dendrite_tw.web.routes import Route
from tests.test_config import POLYLITH


async def nothing() -> None:
    """Stands for any handler."""


def rows(**paths: str) -> Mapping[str, Sequence[Route]]:
    """Component -> rows, from ``GET /a PUT /b``."""
    words = {name: text.split() for name, text in paths.items()}
    return {
        name: [Route(method, path, nothing) for method, path in zip(found[::2], found[1::2], strict=True)]
        for name, found in words.items()
    }


table_of_the_server = functools.cache(generate_nginx.all_rows)
"""The rows of all components; putting a server together takes a second."""


def requests(table: Mapping[str, Sequence[Route]]) -> list[tuple[str, str, str]]:
    """A method and a target for each row, and whom it must reach; parameters with what tempts a careless pattern."""
    found = []
    for component, routes in table.items():
        for row in routes:
            for value in ("!a%2Fb:c", "sync", "media", "$x?y".replace("?", "%3F")):
                path = re.sub(r"\{[a-z_]+\}", value, row.path)
                if "{" in row.path or value == "sync":
                    found += [(row.method, path, component), (row.method, f"{path}?from=/_matrix/media/x", component)]
            if row.method == "GET":
                found.append(("HEAD", re.sub(r"\{[a-z_]+\}", "x", row.path), component))
    return found


class Dispatch(SynchronousTestCase):
    """Few rules, and every row by the right one."""

    def hold(self, table: Mapping[str, Sequence[Route]]) -> list[Rule]:
        rules = dispatch(table)
        for component, routes in table.items():
            for row in routes:
                path = re.sub(r"\{[a-z_]+\}", "x", row.path)
                self.assertEqual(component_of(rules, row.method, path), component, (row, rules))
        return rules

    def test_a_subtree_is_one_rule(self) -> None:
        table = rows(client_api="GET /a/b", media_api="GET /a/m/{x} PUT /a/m/{x}/{y} GET /a/m")
        self.assertEqual(self.hold(table), [Rule(r"^\S+ /a/m(/|\?|$)", "media_api")])

    def test_a_method_decides(self) -> None:
        table = rows(client_api="PUT /a/{x}/s/{y} GET /a/{x}/t GET /a/{x}/u", sync_api="GET /a/{x}/s/{y} GET /a/{x}/s")
        self.assertEqual(self.hold(table), [Rule(r"^(GET|HEAD) /a/[^/?]+/s(/|\?|$)", "sync_api")])

    def test_old_paths_share_a_rule(self) -> None:
        table = rows(client_api="GET /c/v3/a GET /c/r0/a", sync_api="GET /c/v3/sync GET /c/r0/sync")
        self.assertEqual(self.hold(table), [Rule(r"^\S+ /c/(r0|v3)/sync(/|\?|$)", "sync_api")])

    def test_old_paths_that_only_some_have(self) -> None:
        table = rows(client_api="GET /c/v3/a GET /c/r0/a", sync_api="GET /c/v3/sync GET /c/r0/sync GET /c/v3/new")
        self.assertNotIn("(r0|v3)", str(self.hold(table)))

    def test_a_literal_before_a_parameter(self) -> None:
        table = rows(
            client_api="GET /a/{x}/b GET /a/{x}/c GET /a/{x}/e GET /a/lit/d", sync_api="GET /a/{x}/d GET /a/other"
        )
        rules = self.hold(table)
        self.assertEqual(component_of(rules, "GET", "/a/lit/d"), "client_api")
        self.assertEqual(component_of(rules, "GET", "/a/else/d"), "sync_api")

    def test_dots_are_dots(self) -> None:
        rules = self.hold(rows(client_api="GET /a/b", media_api="GET /a/x.y"))
        self.assertEqual(component_of(rules, "GET", "/a/xzy"), "client_api")

    def test_the_rows_of_the_server(self) -> None:
        table = table_of_the_server()
        self.assertEqual(set(table), set(EXTERNAL))
        rules = dispatch(table)
        self.assertLess(len(rules), 40)
        tried = requests(table)
        self.assertGreater(len(tried), 1000)
        for method, target, component in tried:
            self.assertEqual(component_of(rules, method, target), component, f"{method} {target}")

    def test_routing_of_the_last_release_is_among_it(self) -> None:
        """Who sends these to sync_api, federation_api and media_api by an old file is told nothing else now."""
        rules = dispatch(table_of_the_server())
        client = "/_matrix/client/v3"
        for component, targets in {
            "sync_api": ["sync", "user/@a:b/filter", "keys/changes", "rooms/!a:b/messages", "rooms/!a:b/members"],
            "client_api": ["login", "rooms/!a:b/send/m.room.message/1"],
        }.items():
            for target in targets:
                self.assertEqual(component_of(rules, "GET", f"{client}/{target}"), component, target)
        self.assertEqual(component_of(rules, "PUT", "/_matrix/federation/v1/send/1"), "federation_api")
        self.assertEqual(component_of(rules, "POST", "/_matrix/media/v3/upload"), "media_api")

    def test_without_federation(self) -> None:
        rules = dispatch(table_of_the_server(alone=True))
        self.assertEqual({rule.component for rule in rules}, {"client_api", "sync_api", "media_api"})


class Command(SynchronousTestCase):
    """``dendrite-generate-nginx``."""

    LISTENING = "".join(
        f"{name}: {{external_api: {{listen: 'http://{address}'}}}}\n"
        for name, address in (
            ("client_api", "[::]:8071"),
            ("federation_api", "0.0.0.0:8072"),
            ("sync_api", "10.0.0.5:8073"),
        )
    )

    def setUp(self) -> None:
        self.patch(generate_nginx, "all_rows", table_of_the_server)

    def run_on(self, text: str, *words: str) -> tuple[Any, str, str]:
        path = Path(self.mktemp())
        path.write_text(text)
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code: Any = generate_nginx.main(["-config", str(path), *words])
            except SystemExit as stop:
                code = stop.code
        return code, out.getvalue(), err.getvalue()

    def config(self, server: str = "", media: str = ", external_api: {listen: 'http://[::1]:8074'}") -> str:
        text = POLYLITH.replace("media_api:\n  base_path: ./media_store\n", f"media_api: {{base_path: m{media}}}\n")
        return text.replace("  private_key", f"{server}  private_key") + self.LISTENING

    def test_addresses_of_the_file(self) -> None:
        code, out, err = self.run_on(self.config())
        self.assertEqual((code, err), (0, ""))
        for address in ("127.0.0.1:8071", "127.0.0.1:8072", "10.0.0.5:8073", "[::1]:8074"):
            self.assertIn(f"    server {address} max_fails", out)
        self.assertIn("server_name example.com;", out)
        self.assertEqual(out.count("server {"), 1)
        self.assertIn("ssl_certificate /etc/letsencrypt/live/example.com/fullchain.pem;", out)
        self.assertNotIn("hash ", out)

    def test_several_processes(self) -> None:
        words = ["-sync-api", "127.0.0.1:1, 127.0.0.1:2", "--media-api=unix:/run/media.sock"]
        _, out, _ = self.run_on(self.config(), *words)
        self.assertIn("    server 127.0.0.1:1 max_fails=1 fail_timeout=1s;\n    server 127.0.0.1:2 ", out)
        self.assertIn("    hash $http_authorization consistent;", out)
        self.assertIn("    server unix:/run/media.sock ", out)

    def test_delegation(self) -> None:
        for key, value in (("server", "m.example.com:443"), ("client", "https://m.example.com:8443/")):
            _, out, _ = self.run_on(self.config(f"  well_known_{key}_name: {value}\n"))
            self.assertIn("server_name m.example.com;", out)
            self.assertIn("server_name example.com;", out)
            self.assertIn("location /.well-known/matrix/ {", out)
            self.assertIn("ssl_certificate /etc/letsencrypt/live/example.com/fullchain.pem;", out)
        _, out, _ = self.run_on(
            self.config(), "-host", "other.example.com", "-tls-cert", "/c.pem", "-tls-key", "/k.pem"
        )
        self.assertIn("server_name other.example.com;", out)
        self.assertEqual(out.count("ssl_certificate /c.pem;"), 2)

    def test_without_tls(self) -> None:
        _, out, _ = self.run_on(self.config(), "-listen", "127.0.0.1:80,[::1]:80")
        self.assertIn("    listen 127.0.0.1:80;\n    listen [::1]:80;\n", out)
        self.assertNotIn("ssl", out)

    def test_size_of_bodies(self) -> None:
        for size, expected in ((0, "0"), (100_000_000, "96m"), (1, r"16m")):
            _, out, _ = self.run_on(self.config(media=f", max_file_size_bytes: {size}"), "-media-api", "h:1")
            self.assertIn(f"client_max_body_size {expected};", out, size)

    def test_without_federation(self) -> None:
        _, out, _ = self.run_on(self.config("  disable_federation: true\n"))
        self.assertNotIn("federation_api", out)
        self.assertIn("upstream dendrite_media_api {", out)

    def test_mistakes(self) -> None:
        code, out, err = self.run_on(self.config(media=""))
        self.assertEqual((code, out), (1, ""))
        self.assertIn("media_api.external_api.listen: Where this component listens is not said.", err)
        for words, said in (
            (["-sync-api", "h:1;"], "-sync-api must be host:port or unix:/path, not 'h:1;'."),
            (["-host", "a b"], "-host must be a host name"),
            (["-tls-cert", "/c"], "-tls-cert and -tls-key"),
            (["-tls-cert", "/c;", "-tls-key", "k"], "-tls-cert must be a path"),
            (["-listen", "80; x"], "-listen must be an address"),
        ):
            code, out, err = self.run_on(self.config(), *words)
            self.assertEqual((code, out), (1, ""))
            self.assertIn(said, err)
        self.assertEqual(self.run_on("version: 2\n")[0], 1)
        self.assertEqual(self.run_on(self.config(), "extra")[0], 2)

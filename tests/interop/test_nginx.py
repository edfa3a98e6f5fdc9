"""Debian's nginx with the configuration that is written for it, and an old one, before components of the tests' own."""

from __future__ import annotations

import socket
import tempfile
import threading
import time
from collections.abc import Callable
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from bench.nginx import Nginx
from dendrite_tw import nginx
from dendrite_tw.commands import generate_nginx
from dendrite_tw.commands.generate_keys import write_certificate
from dendrite_tw.components import EXTERNAL
from tests.interop.test_jetstream import free_port
from tests.test_nginx import requests, table_of_the_server

ROOT = Path(__file__).parent.parent.parent


class Component(ThreadingHTTPServer):
    """Answers with its own name and the target that it was asked for, after the seconds that the query may name."""

    daemon_threads = True
    # As many wait as nginx has connections: a refusal would look like a process that is gone.
    request_queue_size = 128

    def __init__(self, name: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.name = name
        self.bodies: list[int] = []
        self._kept: list[socket.socket] = []
        self.address = f"127.0.0.1:{self.server_address[1]}"
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self._kept.append(connection)
        return connection, address

    def close(self) -> None:
        """As a process ends: the connections that are kept go too."""
        self.shutdown()
        self.server_close()
        self._thread.join()
        for connection in self._kept:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Component

    def answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        while length > 0:
            length -= len(self.rfile.read(min(length, 1 << 16)))
            self.server.bodies.append(length)
        if "wait=" in self.path:
            time.sleep(float(self.path.rpartition("wait=")[2]))
        body = f"{self.server.name} {self.path}".encode()
        self.send_response(200)
        self.send_header("X-Component", self.server.name)
        self.send_header("X-Asked", f"{self.headers.get('Host')} {self.headers.get('X-Forwarded-For')}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do_OPTIONS = do_PATCH = answer

    def log_message(self, *words: Any) -> None:
        """Nothing is to be printed."""


class NginxCase(SynchronousTestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory(prefix="nginx-")
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.port = free_port()
        self.components: dict[str, Component] = {}

    def component(self, name: str) -> Component:
        made = self.components[name] = Component(name)
        self.addCleanup(made.close)
        return made

    def serve(self, text: str) -> Nginx:
        server = Nginx(self.folder, text, self.port)
        code, said = server.check()
        self.assertEqual(code, 0, said)
        self.assertNotIn("[warn]", said)
        server.start()
        self.addCleanup(server.stop)
        return server

    def generated(self, **upstreams: list[str]) -> str:
        self.patch(generate_nginx, "all_rows", table_of_the_server)
        where = {name: upstreams.get(name) or [self.component(name).address] for name in EXTERNAL}
        return generate_nginx.file_for(
            nginx.Site(
                server_name="example.com",
                host="matrix.example.com",
                upstreams=where,
                largest_body=20 << 20,
                listen=[f"127.0.0.1:{self.port}"],
            )
        )

    def ask(self, method: str, target: str, body: bytes | None = None, **headers: str) -> tuple[int, str, str]:
        """Status, the component that answered, and the body; over a connection that is kept."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, target, body, {"Host": "matrix.example.com", **headers})
            answer = connection.getresponse()
            return answer.status, answer.getheader("X-Component", ""), answer.read().decode()
        finally:
            connection.close()


class Generated(NginxCase):
    """The file of ``dendrite-generate-nginx``."""

    def test_the_sample_is_taken(self) -> None:
        """Certificates and ports put aside, which are the operator's."""
        write_certificate(str(self.folder / "c.pem"), str(self.folder / "k.pem"), "example.com", 2048)
        text = (ROOT / "contrib" / "nginx" / "polylith.conf").read_text()
        for name in ("matrix.example.com", "example.com"):
            folder = f"/etc/letsencrypt/live/{name}"
            text = text.replace(f"{folder}/fullchain.pem", f"{self.folder}/c.pem")
            text = text.replace(f"{folder}/privkey.pem", f"{self.folder}/k.pem")
        text = text.replace("443 ssl", f"{free_port()} ssl").replace("8448 ssl", f"{free_port()} ssl")
        code, said = Nginx(self.folder, text, 0).check()
        self.assertEqual(code, 0, said)
        self.assertNotIn("[warn]", said)

    def test_every_row_reaches_its_component(self) -> None:
        self.serve(self.generated())
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        self.addCleanup(connection.close)
        tried = 0
        for method, target, component in requests(table_of_the_server()):
            connection.request(method, target, headers={"Host": "matrix.example.com"})
            answer = connection.getresponse()
            body = answer.read().decode()
            self.assertEqual((answer.status, answer.getheader("X-Component")), (200, component), f"{method} {target}")
            if method != "HEAD":
                self.assertEqual(body, f"{component} {target}")
            tried += 1
        self.assertGreater(tried, 1000)

    def test_what_is_not_matrix_is_not_passed_on(self) -> None:
        self.serve(self.generated())
        for target in ("/metrics", "/admin", "/_matrixx/client", "/"):
            self.assertEqual(self.ask("GET", target)[:2], (404, ""), target)

    def test_domain_and_host(self) -> None:
        self.serve(self.generated())
        found = self.ask("GET", "/.well-known/matrix/server", Host="example.com")
        self.assertEqual(found, (200, "client_api", "client_api /.well-known/matrix/server"))
        self.assertEqual(self.ask("GET", "/_matrix/client/versions", Host="example.com")[0], 404)

    def test_a_client_address_is_told(self) -> None:
        self.serve(self.generated())
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        self.addCleanup(connection.close)
        connection.request(
            "GET", "/_matrix/client/versions", headers={"Host": "matrix.example.com", "X-Forwarded-For": "1.2.3.4"}
        )
        self.assertEqual(connection.getresponse().getheader("X-Asked"), "matrix.example.com 127.0.0.1")

    def test_uploads_go_through_as_they_come(self) -> None:
        self.serve(self.generated())
        self.assertEqual(self.ask("POST", "/_matrix/media/v3/upload", b"x" * (15 << 20))[:2], (200, "media_api"))
        self.assertEqual(self.ask("POST", "/_matrix/media/v3/upload", b"x" * (21 << 20))[0], 413)
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as upload:
            head = (
                "POST /_matrix/media/v3/upload HTTP/1.1\r\nHost: matrix.example.com\r\nContent-Length: 200000\r\n\r\n"
            )
            self.components["media_api"].bodies.clear()
            upload.sendall(head.encode() + b"x" * 100_000)
            self.until(lambda: bool(self.components["media_api"].bodies))
            upload.sendall(b"x" * 100_000)
            self.assertIn(b" 200 OK", upload.recv(1000))

    def test_long_polls(self) -> None:
        self.serve(self.generated())
        self.assertEqual(self.ask("GET", "/_matrix/client/v3/sync?wait=2")[:2], (200, "sync_api"))

    def test_a_device_stays_with_one_process(self) -> None:
        first, second = self.component("first"), self.component("second")
        self.serve(self.generated(sync_api=[first.address, second.address]))
        seen = {}
        for number in range(20):
            token = f"Bearer {number}"
            seen[token] = {self.ask("GET", "/_matrix/client/v3/sync", Authorization=token)[1] for _ in range(3)}
        self.assertTrue(all(len(names) == 1 for names in seen.values()), seen)
        self.assertEqual(set.union(*seen.values()), {"first", "second"})

    def test_a_process_that_is_gone_is_passed_over(self) -> None:
        here, there = self.component("here"), Component("there")
        both = [here.address, there.address]
        self.serve(self.generated(client_api=both, sync_api=both))
        client, sync = "/_matrix/client/v3/login", "/_matrix/client/v3/sync"
        self.assertEqual({self.ask("GET", client)[1] for _ in range(4)}, {"here", "there"})
        there.close()
        for number in range(10):
            for method in ("GET", "PUT", "POST", "DELETE"):
                self.assertEqual(self.ask(method, client, b"{}")[:2], (200, "here"))
            self.assertEqual(self.ask("GET", sync, Authorization=f"{number}")[:2], (200, "here"))

    def until(self, condition: Callable[[], bool]) -> None:
        for _ in range(200):
            if condition():
                return
            time.sleep(0.05)
        self.fail("it does not come")

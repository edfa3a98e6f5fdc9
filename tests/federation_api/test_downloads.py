"""Files of other servers: as a part of an answer, from elsewhere, from old servers, and in every way broken."""

from __future__ import annotations

import hashlib
from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.federation_api.api import Download, DownloadRequest, NoFederation, Unreachable
from dendrite_tw.federation_api.downloads import BESIDE_LIMIT
from dendrite_tw.matrix.errors import MatrixError
from dendrite_tw.matrix.multipart import framed
from dendrite_tw.web.networks import Networks

from .network import FederationServer, Network, Script, key_of, response

FILE = bytes(range(256)) * 50
PATH = "/_matrix/federation/v1/media/download/abc"
KIND = "Content-Type: multipart/mixed; boundary=xyz\r\n"


def mixed(content: bytes = FILE, headers: str = "Content-Type: image/png\r\n") -> bytes:
    return response(
        b"--xyz\r\nContent-Type: application/json\r\n\r\n{}\r\n--xyz\r\n"
        + headers.encode()
        + b"\r\n"
        + content
        + b"\r\n--xyz--\r\n",
        headers=KIND,
    )


class DownloadTests(SynchronousTestCase):
    def setUp(self) -> None:
        clock = Clock()
        clock.advance(1_700_000_000)
        self.network = Network(clock)
        self.us = FederationServer(self.network, "us.test", "192.0.2.1", key_of(1))
        self.network.names.known["far.test"] = ["192.0.2.2"]
        self.network.names.known["cdn.test"] = ["192.0.2.3"]
        self.into = Path(self.mktemp())

    def far(self, *answers: bytes) -> Script:
        """The other server says this from now on; it has no `.well-known`."""
        self.us.component._http.close()
        self.network.flush()
        script = Script(*answers)
        self.network.listen("192.0.2.2", 8448, script, certificate_for="far.test")
        return script

    def cdn(self, *answers: bytes) -> Script:
        script = Script(*answers)
        self.network.listen("192.0.2.3", 443, script, certificate_for="cdn.test")
        return script

    def download(self, limit: int = len(FILE), multipart: bool = True, path: str = PATH) -> Deferred[Download]:
        request = DownloadRequest(
            destination="far.test",
            path=path,
            query=[("timeout_ms", "5")],
            into=str(self.into),
            limit=limit,
            multipart=multipart,
        )
        return self.network.begin(self.us.component.download(request))

    def check_file(self, found: Download) -> None:
        self.assertEqual((found.status, found.size), (200, len(FILE)))
        self.assertEqual(found.sha256, hashlib.sha256(FILE).hexdigest())
        self.assertEqual(self.into.read_bytes(), FILE)

    def test_a_file_comes_as_the_second_part(self) -> None:
        head, tail = framed("xyz", "image/png", b'inline; filename="a.png"')
        script = self.far(response(head + FILE + tail, headers=KIND))
        found = self.successResultOf(self.download())
        self.check_file(found)
        self.assertEqual((found.content_type, found.disposition), ("image/png", 'inline; filename="a.png"'))
        self.assertTrue(script.heard[0].startswith(b"GET " + PATH.encode() + b"?timeout_ms=5 HTTP/1.1\r\n"))
        self.assertIn(b"Authorization: X-Matrix", script.heard[0])

    def test_a_file_may_lie_elsewhere(self) -> None:
        self.far(mixed(b"", "Location: https://cdn.test/a/b?c=d\r\n"))
        cdn = self.cdn(
            response(b"", "302 Found", "Location: /c\r\n"),
            response(FILE, headers="Content-Type: text/plain\r\nContent-Disposition: attachment\r\n"),
        )
        found = self.successResultOf(self.download())
        self.check_file(found)
        self.assertEqual((found.content_type, found.disposition), ("text/plain", "attachment"))
        self.assertTrue(cdn.heard[0].startswith(b"GET /a/b?c=d HTTP/1.1\r\n"))
        self.assertNotIn(b"X-Matrix", b"".join(cdn.heard))

    def test_a_file_is_not_fetched_from_just_anywhere(self) -> None:
        for location in ("http://cdn.test/a", "https://", "file:///etc/passwd", "/a"):
            self.far(mixed(b"", f"Location: {location}\r\n"))
            self.failureResultOf(self.download(), Unreachable)
        self.us.component.downloads._http._networks = Networks(["192.0.2.3/32"], [])
        self.far(mixed(b"", "Location: https://cdn.test/a\r\n"))
        cdn = self.cdn(response(FILE))
        self.assertIn("may not connect", str(self.failureResultOf(self.download(), Unreachable).value))
        self.assertEqual(cdn.heard, [])

    def test_a_file_that_does_not_lie_where_it_should(self) -> None:
        self.far(mixed(b"", "Location: https://cdn.test/a\r\n"))
        self.cdn(response(b"gone", "404 Not Found"))
        self.failureResultOf(self.download(), Unreachable)
        self.assertEqual(self.us.component.destinations.failures("far.test"), 0)

    def test_old_servers_answer_with_the_file_or_redirect(self) -> None:
        script = self.far(response(FILE, headers="Content-Type: image/gif\r\n"))
        found = self.successResultOf(self.download(multipart=False))
        self.check_file(found)
        self.assertEqual((found.content_type, found.disposition), ("image/gif", None))
        self.assertNotIn(b"X-Matrix", script.heard[0])
        self.far(response(b"", "307 Temporary Redirect", "Location: https://cdn.test/x\r\n"))
        self.cdn(response(FILE))
        self.check_file(self.successResultOf(self.download(multipart=False)))

    def test_a_refusal_is_handed_on_and_says_nothing_against_the_server(self) -> None:
        for status, errcode in ((404, "M_UNRECOGNIZED"), (504, "M_NOT_YET_UPLOADED"), (502, "M_TOO_LARGE")):
            body = b'{"errcode":"%b","error":"No."}' % errcode.encode()
            self.far(response(body, f"{status} No"))
            found = self.successResultOf(self.download())
            self.assertEqual((found.status, found.errcode, found.error), (status, errcode, "No."))
            self.assertEqual(self.us.component.destinations.failures("far.test"), 0)
        self.far(response(b"<html>", "404 Not Found"))
        self.assertEqual(self.successResultOf(self.download()), Download(status=404))
        self.far(response(b"<html>", "502 Bad Gateway"))
        self.assertEqual(self.successResultOf(self.download()), Download(status=502))
        self.assertEqual(self.us.component.destinations.failures("far.test"), 1)

    def test_too_large_a_file_is_refused_and_says_nothing_against_the_server(self) -> None:
        for answer, multipart in ((mixed(), True), (response(FILE), False)):
            self.far(answer)
            error = self.failureResultOf(self.download(len(FILE) - 1, multipart), MatrixError).value
            self.assertEqual((error.status, error.errcode), (502, "M_TOO_LARGE"))
            self.assertEqual(self.us.component.destinations.failures("far.test"), 0)

    def test_an_answer_that_is_none(self) -> None:
        body = mixed().partition(b"\r\n\r\n")[2]
        for answer in (
            response(FILE, headers="Content-Type: image/png\r\n"),
            response(b"--xyz\r\n\r\n{}\r\n--xyz--\r\n", headers=KIND),
            response(body[:-20], headers=KIND),
            response(body.replace(b"--xyz--", b"--xyz\r\n\r\nx\r\n--xyz--"), headers=KIND),
            response(b"--xyz\r\nnonsense\r\n\r\n{}", headers=KIND),
            response(b"--xyz\r\n\r\n" + b" " * (BESIDE_LIMIT + 1), headers=KIND),
            mixed(b" " * (BESIDE_LIMIT + 1), "Location: https://cdn.test/a\r\n"),
        ):
            self.far(answer)
            self.failureResultOf(self.download(), Unreachable)
            self.network.advance(100_000)

    def test_a_place_that_breaks_off_is_followed_by_the_next(self) -> None:
        broken = Script(mixed()[:-300], close=True)
        self.network.listen("192.0.2.2", 8448, broken, certificate_for="far.test")
        self.network.names.records["_matrix-fed._tcp.far.test"] = []
        whole = Script(mixed())
        self.network.listen("192.0.2.9", 8448, whole, certificate_for="far.test")
        locator = self.us.component.locator
        first = self.successResultOf(self.network.begin(locator.resolve("far.test")))
        second = type(first[0])("far.test", 8448, "far.test", ("192.0.2.9",))

        async def both(name: str) -> list[object]:
            return [*first, second]

        self.patch(locator, "resolve", both)
        self.check_file(self.successResultOf(self.download()))
        self.assertEqual(len(broken.heard), 1)

    def test_a_place_where_nothing_can_be_written(self) -> None:
        self.into = self.into / "nowhere" / "x"
        self.far(mixed())
        self.assertEqual(self.failureResultOf(self.download(), MatrixError).value.status, 503)

    def test_without_federation_there_is_none(self) -> None:
        request = DownloadRequest(destination="far.test", path=PATH, into=str(self.into), limit=1)
        self.failureResultOf(Deferred.fromCoroutine(NoFederation().download(request)), Unreachable)
        self.assertFalse(self.into.exists())

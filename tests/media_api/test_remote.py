"""Media of other servers: whom is asked for what, and what a client is told of a refusal."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.federation_api.api import Download, DownloadRequest, NoFederation, Unreachable
from dendrite_tw.matrix.errors import MatrixError
from dendrite_tw.media_api.api import RemoteMedia
from dendrite_tw.media_api.remote import TRANSFER_MS, RemoteFiles

FOUND = Download(status=200, size=3, sha256="00" * 32, content_type="image/png", disposition='inline; filename="a.png"')


class FakeFederation(NoFederation):
    """Answers downloads with what it was told."""

    def __init__(self, *answers: Download) -> None:
        self.answers = list(answers)
        self.asked: list[DownloadRequest] = []

    async def download(self, request: DownloadRequest) -> Download:
        self.asked.append(request)
        return self.answers.pop(0) if self.answers else await super().download(request)


class RemoteFilesTests(SynchronousTestCase):
    def fetch(self, *answers: Download, server: str = "far.test") -> Deferred[RemoteMedia]:
        self.federation = FakeFederation(*answers)
        files = RemoteFiles(self.federation)
        return Deferred.fromCoroutine(files.fetch(server, "abc", "/tmp/x", 100, 5000))

    def test_the_server_of_the_uri_is_asked(self) -> None:
        found = self.successResultOf(self.fetch(FOUND))
        self.assertEqual(found, RemoteMedia(size=3, sha256="00" * 32, content_type="image/png", name="a.png"))
        (asked,) = self.federation.asked
        self.assertEqual((asked.destination, asked.into, asked.limit), ("far.test", "/tmp/x", 100))
        self.assertEqual(
            (asked.path, asked.query), ("/_matrix/federation/v1/media/download/abc", [("timeout_ms", "5000")])
        )
        self.assertEqual((asked.timeout_ms, asked.multipart), (5000 + TRANSFER_MS, True))

    def test_an_old_server_is_asked_in_the_old_way(self) -> None:
        for refusal in (Download(status=404, errcode="M_UNRECOGNIZED"), Download(status=404)):
            found = self.successResultOf(self.fetch(refusal, FOUND, server="far.test:8448"))
            self.assertEqual(found.size, 3)
            asked = self.federation.asked[1]
            self.assertEqual(asked.path, "/_matrix/media/v3/download/far.test%3A8448/abc")
            self.assertIn(("allow_remote", "false"), asked.query)
            self.assertFalse(asked.multipart)

    def test_it_is_not_asked_in_the_old_way_for_what_it_does_not_have(self) -> None:
        self.failureResultOf(self.fetch(Download(status=404, errcode="M_NOT_FOUND")), MatrixError)
        self.assertEqual(len(self.federation.asked), 1)

    def test_refusals(self) -> None:
        for status, errcode, told in (
            (404, "M_NOT_FOUND", (404, "M_NOT_FOUND")),
            (404, "M_STRANGE", (404, "M_NOT_FOUND")),
            (504, "M_NOT_YET_UPLOADED", (504, "M_NOT_YET_UPLOADED")),
            (502, "M_TOO_LARGE", (502, "M_TOO_LARGE")),
            (429, "M_LIMIT_EXCEEDED", (429, "M_LIMIT_EXCEEDED")),
            (403, "M_FORBIDDEN", (403, "M_FORBIDDEN")),
            (401, "M_UNAUTHORIZED", (502, "M_UNKNOWN")),
            (401, "M_UNKNOWN_TOKEN", (502, "M_UNKNOWN")),
            (500, None, (502, "M_UNKNOWN")),
        ):
            error = self.failureResultOf(self.fetch(Download(status=status, errcode=errcode)), MatrixError).value
            self.assertEqual((error.status, error.errcode), told)

    def test_who_cannot_be_reached(self) -> None:
        error = self.failureResultOf(self.fetch(), Unreachable).value
        self.assertEqual(error.status, 502)

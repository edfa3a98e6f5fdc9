"""Media as clients see it: upload, download, thumbnails, uploads that come later, other servers' media."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from twisted.internet.defer import Deferred, fail
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.database.engines import Unavailable
from dendrite_tw.links.codec import InterfaceCodec
from dendrite_tw.links.echoes import Echoes
from dendrite_tw.links.handle import Direct, handle
from dendrite_tw.matrix.errors import MatrixError, not_found
from dendrite_tw.matrix.multipart import MultipartReader, boundary_of
from dendrite_tw.media_api import component as component_module
from dendrite_tw.media_api import thumbnailer, thumbnails
from dendrite_tw.media_api.api import MediaAPI, MediaQuestion, Method, RemoteFetcher, RemoteMedia, ThumbnailSize
from dendrite_tw.media_api.component import (
    ACCESS_SECONDS,
    PENDING_LIMIT,
    SWEEP_SECONDS,
    UNUSED_LIFETIME_MS,
    MediaComponent,
)
from dendrite_tw.media_api.tables.media import media_row, uploads_of
from dendrite_tw.media_api.tables.thumbnails import insert_thumbnails, thumbnails_of
from dendrite_tw.web.routes import client_paths
from dendrite_tw.world import World
from tests.harness import Answer, KnownServers, Memory, Web, serve
from tests.matrix.test_multipart import parts_of
from tests.media_api.images import bomb_png, film, frame_count, opened, picture

UPLOAD = "/_matrix/media/v3/upload"
NEW = "/_matrix/client/v1/media"
OLD = "/_matrix/media/v3"
LIMIT = 1_000_000
HOUR_MS = 3_600_000
SIZES = [
    ThumbnailSize(0, 9),
    ThumbnailSize(32, 32, Method.CROP),
    ThumbnailSize(96, 96, Method.CROP),
    ThumbnailSize(320, 240),
]


class Threads:
    """Threads that run when the test says so, or at once."""

    def __init__(self) -> None:
        self.held: list[Callable[[], Any]] | None = None

    def call_in_thread(self, function: Callable[..., Any], *args: Any) -> None:
        if self.held is None:
            function(*args)
        else:
            self.held.append(lambda: function(*args))

    def call_from_thread(self, function: Callable[..., Any], *args: Any) -> None:
        function(*args)

    def release(self) -> int:
        held, self.held = self.held or [], None
        for call in held:
            call()
        return len(held)


class MediaCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.memory = Memory()
        self.clock = self.memory.clock
        self.threads = Threads()
        world = self.memory.world
        self.world = World(world.time, world.clock, world.random, self.threads)
        self.base = Path(self.mktemp())
        self.database = self.memory.database()
        self.addCleanup(self.database.close)
        self.make()

    def make(
        self,
        remote: RemoteFetcher | None = None,
        serve_unauthenticated: bool = True,
        limit: int = LIMIT,
        dynamic: bool = False,
        sizes: list[ThumbnailSize] = SIZES,
        remote_lifetime_ms: int = 0,
        echoes: Echoes | None = None,
    ) -> None:
        self.media = MediaComponent(
            self.database,
            self.base,
            limit,
            sizes,
            dynamic,
            2,
            self.world,
            "test",
            remote,
            serve_unauthenticated,
            remote_lifetime_ms,
            echoes,
        )
        self.media.prepare()
        self.web: Web = serve(client_paths(self.media.routes()), self.clock, servers=KnownServers())

    def run_(self, work: Awaitable[Any]) -> Any:
        async def coroutine() -> Any:
            return await work

        return self.successResultOf(Deferred.fromCoroutine(coroutine()))

    def upload(self, data: bytes, kind: str | None = "image/png", name: str = "", token: str = "alice") -> str:
        answer = self.web.request(
            "POST",
            UPLOAD + (f"?filename={quote(name)}" if name else ""),
            data,
            token,
            {} if kind is None else {"Content-Type": kind},
        )
        self.assertEqual(answer.status, 200, answer)
        match = re.fullmatch(r"mxc://test/([A-Za-z0-9]{32})", answer.json["content_uri"])
        assert match is not None
        return match.group(1)

    def download(self, media_id: str, token: str = "alice", server_name: str = "test", rest: str = "") -> Answer:
        return self.web.get(f"{NEW}/download/{server_name}/{media_id}{rest}", token)

    def thumbnail(self, media_id: str, query: str, token: str = "alice", server_name: str = "test") -> Answer:
        return self.web.get(f"{NEW}/thumbnail/{server_name}/{media_id}?{query}", token)

    def check_refused(self, answer: Answer, status: int, errcode: str) -> None:
        self.assertEqual((answer.status, answer.errcode), (status, errcode), answer)

    def row(self, media_id: str, origin: str = "test") -> Any:
        return self.run_(self.database.read(media_row, origin, media_id))

    def files(self) -> list[str]:
        return sorted(path.name for path in self.base.rglob("*") if path.is_file())


class UploadTests(MediaCase):
    def test_what_goes_in_comes_out(self) -> None:
        media_id = self.upload(b"\x89PNG not really", "image/png", "My picture.png")
        answer = self.download(media_id)
        self.assertEqual((answer.status, answer.body), (200, b"\x89PNG not really"))
        self.assertEqual(answer.headers["content-type"], "image/png")
        self.assertEqual(answer.headers["content-disposition"], 'inline; filename="My picture.png"')
        self.assertIn("sandbox", answer.headers["content-security-policy"])
        self.assertEqual(answer.headers["cross-origin-resource-policy"], "cross-origin")
        self.assertEqual(answer.headers["access-control-allow-origin"], "*")
        row = self.row(media_id)
        self.assertEqual((row.uploader, row.size, row.created_ts), ("@alice:test", 15, 1_700_000_000_000))
        self.assertEqual(self.run_(self.database.read(uploads_of, "@alice:test")), [media_id])

    def test_a_type_is_a_default_or_well_formed(self) -> None:
        for kind in (None, "nonsense", "text/"):
            answer = self.download(self.upload(b"x", kind))
            self.assertEqual(answer.headers["content-type"], "application/octet-stream")
            self.assertEqual(answer.headers["content-disposition"], "attachment")

    def test_a_page_is_saved_not_shown(self) -> None:
        answer = self.download(self.upload(b"<script>", "text/html", "a.html"))
        self.assertEqual(answer.headers["content-type"], "text/html")
        self.assertEqual(answer.headers["content-disposition"], 'attachment; filename="a.html"')
        self.assertEqual(answer.headers["x-content-type-options"], "nosniff")

    def test_names_of_any_script(self) -> None:
        answer = self.download(self.upload(b"x", "text/plain", "café ☕;\r\n.txt"))
        self.assertEqual(answer.headers["content-disposition"], "inline; filename*=utf-8''caf%C3%A9%20%E2%98%95%3B.txt")

    def test_a_name_from_the_path_comes_before_the_uploaders(self) -> None:
        media_id = self.upload(b"x", "text/plain", "a.txt")
        answer = self.download(media_id, rest="/" + quote("b/c .txt", safe=""))
        self.assertEqual(answer.headers["content-disposition"], 'inline; filename="b/c .txt"')
        self.check_refused(self.download(media_id, rest="/" + "x" * 1025), 400, "M_INVALID_PARAM")

    def test_an_empty_file(self) -> None:
        answer = self.download(self.upload(b""))
        self.assertEqual((answer.status, answer.body, answer.headers["content-length"]), (200, b"", "0"))

    def test_equal_files_are_stored_once(self) -> None:
        first, second = self.upload(b"same"), self.upload(b"same", "text/plain", token="bob")
        self.assertNotEqual(first, second)
        self.assertEqual(self.files(), ["file"])
        self.assertEqual(self.download(first).headers["content-type"], "image/png")
        self.assertEqual(self.download(second).headers["content-type"], "text/plain")

    def test_too_large(self) -> None:
        self.upload(b"x" * LIMIT)
        self.check_refused(self.web.request("POST", UPLOAD, b"x" * (LIMIT + 1), "alice"), 413, "M_TOO_LARGE")
        self.assertEqual(self.files(), ["file"])

    def test_no_limit(self) -> None:
        self.make(limit=0)
        self.upload(b"x" * (LIMIT + 1))
        self.assertEqual(self.web.get(f"{NEW}/config", "alice").json, {})

    def test_config(self) -> None:
        for path in (f"{NEW}/config", f"{OLD}/config", "/_matrix/media/r0/config", "/_matrix/media/v1/config"):
            self.assertEqual(self.web.get(path, "alice").json, {"m.upload.size": LIMIT})
            self.check_refused(self.web.get(path), 401, "M_MISSING_TOKEN")

    def test_who_may_upload(self) -> None:
        for method, path in (("POST", UPLOAD), ("POST", "/_matrix/media/v1/create"), ("PUT", f"{UPLOAD}/test/abc")):
            self.check_refused(self.web.request(method, path, b"x"), 401, "M_MISSING_TOKEN")
            self.check_refused(self.web.request(method, path, b"x", "guest"), 403, "M_GUEST_ACCESS_FORBIDDEN")
        self.assertEqual(self.files(), [])

    def test_a_name_that_is_too_long(self) -> None:
        answer = self.web.request("POST", f"{UPLOAD}?filename={'x' * 1025}", b"x", "alice")
        self.check_refused(answer, 400, "M_INVALID_PARAM")
        self.assertEqual(self.files(), [])

    def test_other_components_upload_too(self) -> None:
        uri = self.run_(self.media.upload("@alice:test", "text/plain", "a.txt", b"abc"))
        self.assertEqual(self.download(uri.rpartition("/")[2]).body, b"abc")
        failure = self.failureResultOf(
            Deferred.fromCoroutine(self.media.upload("@alice:test", "text/plain", None, b"x" * (LIMIT + 1)))
        )
        failure.trap(MatrixError)
        self.assertEqual(self.files(), ["file"])

    def test_a_client_that_does_not_wait_for_the_answer(self) -> None:
        self.threads.held = []
        upload = Deferred.fromCoroutine(self.media.accept("@alice:test", "text/plain", None, self.written(b"patience")))
        upload.cancel()
        self.failureResultOf(upload)
        self.assertEqual(self.threads.release(), 1)
        self.assertEqual(len(self.run_(self.database.read(uploads_of, "@alice:test"))), 1)
        self.assertEqual(self.files(), ["file"])

    def written(self, data: bytes) -> Any:
        body = self.media.open_upload()
        body.write(data)
        return body

    def test_a_database_that_fails_leaves_a_file_that_is_swept(self) -> None:
        write = self.database.write
        self.patch(self.database, "write", lambda *_: fail(Unavailable("no")))
        self.check_refused(self.web.request("POST", UPLOAD, b"abc", "alice"), 503, "M_UNKNOWN")
        self.assertEqual(len(self.files()), 2)
        hash = next(self.base.glob("tmp/claim.*")).name.split(".")[1]
        for path in (self.base / "tmp").iterdir():
            os.utime(path, (1000, 1000))
        self.patch(self.database, "write", write)
        self.run_(self.database.write(insert_thumbnails, [(hash, "old", 1, "image/png", 0)]))
        self.run_(self.media.sweep())
        self.assertEqual(self.files(), [])
        self.assertEqual(self.run_(self.database.read(thumbnails_of, hash)), [])

    def test_a_disk_that_fails(self) -> None:
        self.patch(self.media._store, "_keep", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
        self.check_refused(self.web.request("POST", UPLOAD, b"abc", "alice"), 503, "M_UNKNOWN")


class DownloadTests(MediaCase):
    def test_what_is_not_there(self) -> None:
        for media_id in ("x" * 32, quote("../../etc/passwd", safe=""), "%2e%2e", "a.b", "a%00b", "%C3%A9", "x" * 300):
            for answer in (self.download(media_id), self.thumbnail(media_id, "width=1&height=1")):
                self.check_refused(answer, 404, "M_NOT_FOUND")
        for server_name in ("a%20b", "a%2F..%2Fb", "[::1", "other.test"):
            self.check_refused(self.download("abc", server_name=server_name), 404, "M_NOT_FOUND")

    def test_a_file_that_was_lost(self) -> None:
        media_id = self.upload(picture(100, 100))
        for path in self.base.rglob("file"):
            path.unlink()
        self.check_refused(self.download(media_id), 404, "M_NOT_FOUND")
        self.media._thumbnails._facts.clear()
        self.check_refused(self.thumbnail(media_id, "width=10&height=10&method=crop"), 404, "M_NOT_FOUND")

    def test_who_may_download(self) -> None:
        media_id = self.upload(b"x")
        for token in ("alice", "bob", "guest"):
            self.assertEqual(self.download(media_id, token).status, 200)
        for path in (f"{NEW}/download/test/{media_id}", f"{NEW}/thumbnail/test/{media_id}?width=1&height=1"):
            self.check_refused(self.web.get(path), 401, "M_MISSING_TOKEN")

    def test_the_old_endpoints_ask_for_no_token(self) -> None:
        media_id = self.upload(picture(100, 100))
        for version in ("v3", "r0", "v1"):
            base = f"/_matrix/media/{version}"
            answer = self.web.get(f"{base}/download/test/{media_id}?allow_redirect=true&allow_remote=false")
            self.assertEqual((answer.status, answer.body), (200, picture(100, 100)))
            self.assertTrue(answer.headers["cache-control"].startswith("public"))
            self.assertEqual(self.web.get(f"{base}/download/test/{media_id}/a.png").status, 200)
            self.assertEqual(self.web.get(f"{base}/thumbnail/test/{media_id}?width=32&height=32").status, 200)
        self.assertTrue(self.download(media_id).headers["cache-control"].startswith("private"))

    def test_frozen_endpoints_serve_what_was_there_and_nothing_new(self) -> None:
        before = self.upload(b"before")
        self.make(serve_unauthenticated=False)
        after = self.upload(b"after")
        created = self.web.post("/_matrix/media/v1/create", {}, "alice").json["content_uri"].rpartition("/")[2]
        self.web.request("PUT", f"{UPLOAD}/test/{created}", b"later", "alice")
        self.assertEqual(self.web.get(f"{OLD}/download/test/{before}").body, b"before")
        for media_id in (after, created):
            self.assertEqual(self.download(media_id).status, 200)
            self.check_refused(self.web.get(f"{OLD}/download/test/{media_id}"), 404, "M_NOT_FOUND")
            self.check_refused(self.web.get(f"{OLD}/thumbnail/test/{media_id}?width=1&height=1"), 404, "M_NOT_FOUND")

    def test_parts_heads_and_conditions(self) -> None:
        path = f"{NEW}/download/test/{self.upload(b'0123456789')}"
        part = self.web.request("GET", path, None, "alice", {"Range": "bytes=2-4"})
        self.assertEqual((part.status, part.body), (206, b"234"))
        self.assertIn("sandbox", part.headers["content-security-policy"])
        head = self.web.request("HEAD", path, None, "alice")
        self.assertEqual((head.status, head.body, head.headers["content-length"]), (200, b"", "10"))
        again = self.web.request("GET", path, None, "alice", {"If-None-Match": head.headers["etag"]})
        self.assertEqual(again.status, 304)

    def test_parameters_that_make_no_sense(self) -> None:
        media_id = self.upload(b"x")
        for query in ("timeout_ms=x", "allow_remote=perhaps"):
            self.check_refused(self.download(media_id, rest=f"?{query}"), 400, "M_INVALID_PARAM")
        for query in ("timeout_ms=-5", "timeout_ms=" + "9" * 18, "unknown=1"):
            self.assertEqual(self.download(media_id, rest=f"?{query}").status, 200)

    def test_accesses_are_written_in_batches(self) -> None:
        media_id = self.upload(b"x")
        self.run_(self.media.start())
        self.clock.advance(10)
        self.download(media_id)
        self.assertEqual(self.row(media_id).accessed_ts, 1_700_000_000_000)
        self.clock.advance(ACCESS_SECONDS)
        self.assertEqual(self.row(media_id).accessed_ts, 1_700_000_010_000)
        self.clock.advance(5)
        self.download(media_id)
        self.run_(self.media.stop())
        self.assertGreater(self.row(media_id).accessed_ts, 1_700_000_060_000)
        ours = [
            call for call in self.clock.getDelayedCalls() if "Channel" not in str(call) and "Timeout" not in str(call)
        ]
        self.assertEqual(ours, [])

    def test_accesses_are_written_when_there_are_many(self) -> None:
        self.patch(component_module, "ACCESSES_HELD", 2)
        for data in (b"a", b"b"):
            media_id = self.upload(data)
            self.clock.advance(1)
            self.download(media_id)
        self.assertEqual(self.row(media_id).accessed_ts, 1_700_000_002_000)


class LaterUploadTests(MediaCase):
    def create(self, token: str = "alice") -> str:
        answer = self.web.post("/_matrix/media/v1/create", {}, token)
        self.assertEqual(answer.status, 200, answer)
        self.assertEqual(answer.json["unused_expires_at"], int(self.clock.seconds() * 1000) + UNUSED_LIFETIME_MS)
        return str(answer.json["content_uri"].removeprefix("mxc://test/"))

    def put(self, media_id: str, data: bytes = b"abc", token: str = "alice", server_name: str = "test") -> Answer:
        return self.web.request(
            "PUT", f"{UPLOAD}/{server_name}/{media_id}?filename=a.txt", data, token, {"Content-Type": "text/plain"}
        )

    def test_content_comes_later(self) -> None:
        media_id = self.create()
        answer = self.put(media_id)
        self.assertEqual((answer.status, answer.json), (200, {}))
        got = self.download(media_id)
        self.assertEqual((got.body, got.headers["content-disposition"]), (b"abc", 'inline; filename="a.txt"'))

    def test_refusals(self) -> None:
        media_id = self.create()
        self.check_refused(self.put(media_id, token="bob"), 403, "M_FORBIDDEN")
        self.check_refused(self.put("unknown"), 404, "M_NOT_FOUND")
        self.check_refused(self.put("..%2F.."), 404, "M_NOT_FOUND")
        self.check_refused(self.put(media_id, server_name="other"), 404, "M_NOT_FOUND")
        self.check_refused(self.put(media_id, b"x" * (LIMIT + 1)), 413, "M_TOO_LARGE")
        self.assertEqual(self.put(media_id).status, 200)
        self.check_refused(self.put(media_id, b"other"), 409, "M_CANNOT_OVERWRITE_MEDIA")
        self.check_refused(self.put(media_id, token="bob"), 403, "M_FORBIDDEN")
        self.check_refused(self.put(self.upload(b"x")), 409, "M_CANNOT_OVERWRITE_MEDIA")
        self.assertEqual(self.download(media_id).body, b"abc")

    def test_of_two_uploads_at_once_one_wins(self) -> None:
        media_id = self.create()
        self.threads.held = []
        first, second = self.put(media_id, b"first"), self.put(media_id, b"second")
        self.threads.release()
        self.assertEqual(first.status, 200)
        self.check_refused(second, 409, "M_CANNOT_OVERWRITE_MEDIA")
        self.assertEqual(self.download(media_id).body, b"first")

    def test_a_download_waits(self) -> None:
        media_id = self.create()
        answers = [self.download(media_id, rest="?timeout_ms=30000"), self.download(media_id)]
        self.clock.pump([1] * 5)
        self.assertFalse(any(answer.done for answer in answers))
        self.put(media_id)
        self.assertEqual([answer.body for answer in answers], [b"abc", b"abc"])
        self.assertEqual(len(self.media._arrivals), 0)

    def test_a_download_waits_so_long_and_no_longer(self) -> None:
        media_id = self.create()
        for rest, seconds in (("?timeout_ms=3000", 3), ("", 20), ("?timeout_ms=999999999", 60)):
            answer = self.download(media_id, rest=rest)
            self.clock.pump([1] * (seconds - 1))
            self.assertFalse(answer.done, rest)
            self.clock.advance(1)
            self.check_refused(answer, 504, "M_NOT_YET_UPLOADED")
        for rest in ("?timeout_ms=0", "?timeout_ms=-1"):
            self.check_refused(self.download(media_id, rest=rest), 504, "M_NOT_YET_UPLOADED")
        self.check_refused(self.thumbnail(media_id, "width=1&height=1&timeout_ms=0"), 504, "M_NOT_YET_UPLOADED")

    def test_an_upload_that_another_process_took_is_seen(self) -> None:
        media_id = self.create()
        answer = self.download(media_id)
        other = MediaComponent(self.database, self.base, LIMIT, [], False, 1, self.world, "test")
        body = other.open_upload()
        body.write(b"there")
        self.run_(other.complete("@alice:test", "test", media_id, "text/plain", None, body))
        self.clock.advance(2)
        self.assertEqual(answer.body, b"there")

    def test_few_may_wait(self) -> None:
        media_id = self.create()
        self.media._arrivals._limit = 1
        self.download(media_id)
        self.check_refused(self.download(media_id), 504, "M_NOT_YET_UPLOADED")

    def test_what_does_not_come_is_forgotten(self) -> None:
        media_id = self.create()
        self.run_(self.media.start())
        self.clock.advance(UNUSED_LIFETIME_MS / 1000)
        self.check_refused(self.put(media_id), 404, "M_NOT_FOUND")
        self.check_refused(self.download(media_id), 404, "M_NOT_FOUND")
        self.clock.advance(SWEEP_SECONDS)
        self.assertIsNone(self.row(media_id))
        self.run_(self.media.stop())

    def test_few_uploads_may_be_awaited(self) -> None:
        ids = [self.create() for _ in range(PENDING_LIMIT)]
        self.clock.advance(1)
        refused = self.web.post("/_matrix/media/v1/create", {}, "alice")
        self.check_refused(refused, 429, "M_LIMIT_EXCEEDED")
        self.assertEqual(refused.json["retry_after_ms"], UNUSED_LIFETIME_MS - 1000)
        self.create("bob")
        self.put(ids[0])
        self.create()
        self.clock.advance(UNUSED_LIFETIME_MS / 1000)
        self.create()


class ThumbnailTests(MediaCase):
    def made(self) -> int:
        return len([name for name in self.files() if name.startswith("thumbnail")])

    def test_configured_sizes_are_made_at_upload(self) -> None:
        media_id = self.upload(picture(800, 600, "PNG"))
        self.assertEqual(self.made(), 3)
        answer = self.thumbnail(media_id, "width=30&height=20&method=crop")
        self.assertEqual((answer.status, opened(answer.body).size), (200, (32, 32)))
        self.assertEqual(answer.headers["content-type"], "image/jpeg")
        self.assertEqual(answer.headers["content-disposition"], 'inline; filename="thumbnail.jpeg"')
        self.assertIn("sandbox", answer.headers["content-security-policy"])
        self.assertEqual(opened(self.thumbnail(media_id, "width=100&height=100").body).size, (320, 240))
        self.assertEqual(self.made(), 3)

    def test_what_no_configured_size_covers_is_answered_with_the_original(self) -> None:
        data = picture(800, 600, "PNG")
        answer = self.thumbnail(self.upload(data, "text/html"), "width=640&height=480")
        self.assertEqual((answer.body, answer.headers["content-type"]), (data, "image/png"))

    def test_other_sizes_on_demand(self) -> None:
        self.make(dynamic=True)
        media_id = self.upload(picture(800, 600))
        for query, size in [
            ("width=100&height=50&method=crop", (100, 50)),
            ("width=100&height=50&method=scale", (100, 75)),
            ("width=100&height=50", (100, 75)),
        ]:
            answer = self.thumbnail(media_id, query)
            self.assertEqual((answer.status, opened(answer.body).size), (200, size), query)
        self.assertEqual(self.made(), 5)

    def test_nothing_is_made_larger(self) -> None:
        self.make(dynamic=True)
        data = picture(80, 60, "PNG")
        media_id = self.upload(data)
        for query in ("width=81&height=1", "width=80&height=60", "width=1000&height=1000&method=crop"):
            self.assertEqual(self.thumbnail(media_id, query).body, data, query)

    def test_parameters_that_make_no_sense(self) -> None:
        media_id = self.upload(picture(80, 60))
        for query, errcode in [
            ("width=0&height=1", "M_UNKNOWN"),
            ("width=1&height=-1", "M_UNKNOWN"),
            ("width=1", "M_MISSING_PARAM"),
            ("height=1", "M_MISSING_PARAM"),
            ("width=a&height=1", "M_INVALID_PARAM"),
            ("width=1.5&height=1", "M_INVALID_PARAM"),
            ("width=1&height=1&method=stretch", "M_INVALID_PARAM"),
            ("width=1&height=1&animated=maybe", "M_INVALID_PARAM"),
        ]:
            self.check_refused(self.thumbnail(media_id, query), 400, errcode)
        self.assertEqual(self.thumbnail(media_id, "width=" + "9" * 18 + "&height=1").status, 200)

    def test_what_is_no_image(self) -> None:
        for data, kind in ((b"hello", "text/plain"), (b"", "image/png"), (b"\x89PNG\r\n\x1a\nxx", "image/png")):
            answer = self.thumbnail(self.upload(data, kind), "width=1&height=1&method=crop")
            self.check_refused(answer, 400, "M_UNKNOWN")

    def test_bombs(self) -> None:
        for data in (bomb_png(9000, 9000), bomb_png(100_000, 100_000)):
            media_id = self.upload(data)
            answer = self.thumbnail(media_id, "width=32&height=32&method=crop")
            self.check_refused(answer, 413, "M_TOO_LARGE")
            self.assertEqual(self.download(media_id).body, data)
        self.assertEqual(self.made(), 0)

    def test_slow_images(self) -> None:
        media_id = self.upload(b"\xff\xd8\xff")
        self.media._thumbnails._facts.clear()
        self.patch(thumbnails, "_open", self.too_slow)
        self.check_refused(self.thumbnail(media_id, "width=1&height=1"), 413, "M_TOO_LARGE")

    def too_slow(self, file: Any) -> Any:
        raise thumbnails.TooSlow

    def test_animations(self) -> None:
        self.make(dynamic=True)
        data = film(200, 100, 3)
        media_id = self.upload(data, "image/gif")
        for query, kind, frames in [
            ("width=50&height=25", "image/jpeg", 1),
            ("width=50&height=25&animated=false", "image/jpeg", 1),
            ("width=50&height=25&animated=true", "image/webp", 3),
            ("width=500&height=500&animated=true", "image/gif", 3),
            ("width=500&height=500&animated=false", "image/jpeg", 1),
            ("width=500&height=500", "image/jpeg", 1),
        ]:
            answer = self.thumbnail(media_id, query)
            self.assertEqual((answer.headers["content-type"], frame_count(answer.body)), (kind, frames), query)
        still = self.thumbnail(self.upload(picture(100, 100)), "width=50&height=50&animated=true")
        self.assertEqual(still.headers["content-type"], "image/jpeg")

    def test_one_of_many_equal_wishes_is_worked_for(self) -> None:
        self.make(dynamic=True, sizes=[])
        media_id = self.upload(picture(800, 600))
        calls: list[Any] = []
        make = thumbnails.make

        def counted(*args: Any) -> Any:
            calls.append(args)
            return make(*args)

        self.patch(thumbnails, "make", counted)
        self.thumbnail(media_id, "width=800&height=600")
        self.threads.held = []
        answers = [self.thumbnail(media_id, "width=50&height=50") for _ in range(5)]
        self.assertFalse(any(answer.done for answer in answers))
        self.threads.release()
        self.assertEqual({answer.body for answer in answers}, {answers[0].body})
        self.assertEqual((len(calls), answers[0].status), (1, 200))
        self.thumbnail(media_id, "width=50&height=50")
        self.assertEqual(len(calls), 1)

    def test_configured_sizes_that_are_missing_are_made_when_asked_for(self) -> None:
        self.make(sizes=[])
        media_id = self.upload(picture(800, 600))
        self.make()
        self.assertEqual(self.made(), 0)
        self.assertEqual(opened(self.thumbnail(media_id, "width=32&height=32&method=crop").body).size, (32, 32))
        self.assertEqual(self.made(), 3)
        for path in self.base.rglob("thumbnail-32*"):
            path.unlink()
        self.assertEqual(opened(self.thumbnail(media_id, "width=32&height=32&method=crop").body).size, (32, 32))

    def test_few_generators_work_at_once(self) -> None:
        self.make(dynamic=True, sizes=[])
        ids = [self.upload(picture(100 + i, 100)) for i in range(4)]
        for media_id in ids:
            self.thumbnail(media_id, "width=500&height=500")
        self.threads.held = []
        answers = [self.thumbnail(media_id, "width=50&height=50") for media_id in ids]
        self.assertEqual(len(self.threads.held), 2)
        self.threads.release()
        self.assertEqual([answer.status for answer in answers], [200] * 4)

    def test_large_images_take_turns(self) -> None:
        self.patch(thumbnailer, "LARGE_PIXELS", 10_000)
        self.make(dynamic=True, sizes=[])
        ids = [self.upload(picture(100 + i, 100)) for i in range(2)]
        for media_id in ids:
            self.thumbnail(media_id, "width=500&height=500")
        self.threads.held = []
        answers = [self.thumbnail(media_id, "width=50&height=50") for media_id in ids]
        self.assertEqual(len(self.threads.held), 1)
        self.threads.release()
        self.assertEqual([answer.status for answer in answers], [200] * 2)

    def test_a_long_queue_is_not_made_longer(self) -> None:
        self.patch(thumbnailer, "QUEUE_LIMIT", 1)
        self.make(dynamic=True, sizes=[])
        media_id = self.upload(picture(100, 100))
        self.thumbnail(media_id, "width=500&height=500")
        self.threads.held = []
        first, second = (self.thumbnail(media_id, f"width={n}&height=50") for n in (50, 51))
        self.check_refused(second, 429, "M_LIMIT_EXCEEDED")
        self.threads.release()
        self.assertEqual(first.status, 200)

    def test_few_wishes_a_file_are_granted(self) -> None:
        self.patch(thumbnailer, "WISHES_A_FILE", 3)
        self.make(dynamic=True, sizes=[])
        media_id = self.upload(film(100, 100, 2), "image/gif")
        sizes = [opened(self.thumbnail(media_id, f"width={n}&height=50").body).size for n in range(50, 60)]
        self.assertEqual(sizes[:3], [(50, 50), (51, 51), (52, 52)])
        self.assertEqual(set(sizes[3:]), {(100, 100)})
        self.assertEqual(self.made(), 4)
        self.assertEqual(self.thumbnail(media_id, "width=59&height=50").headers["content-type"], "image/jpeg")

    def test_equal_files_share_their_thumbnails(self) -> None:
        for token in ("alice", "bob"):
            self.upload(picture(800, 600), token=token)
        self.assertEqual(self.made(), 3)


class RemoteCase(MediaCase):
    """Another server, which gives `data` for whatever it is asked for, once `gate` is open."""

    def setUp(self) -> None:
        super().setUp()
        self.asked: list[tuple[str, str, int]] = []
        self.gate: Deferred[None] | None = None
        self.data = picture(400, 300)
        self.said = ("image/jpeg", "cat.jpg")
        self.make(self.fetch)

    async def fetch(self, server_name: str, media_id: str, into: str, limit: int, timeout_ms: int) -> RemoteMedia:
        self.asked.append((server_name, media_id, timeout_ms))
        if self.gate is not None:
            await self.gate
        if media_id == "none":
            raise not_found("No.")
        (self.base / "tmp" / Path(into).name).write_bytes(self.data[:limit])
        if len(self.data) > limit:
            raise MatrixError(502, "M_TOO_LARGE", "Too large.")
        kind, name = self.said
        return RemoteMedia(
            size=len(self.data), sha256=hashlib.sha256(self.data).hexdigest(), content_type=kind, name=name
        )

    def get(self, media_id: str, rest: str = "") -> Answer:
        return self.download(media_id, server_name="far.test", rest=rest)


class RemoteTests(RemoteCase):
    def test_media_of_others_is_fetched_once(self) -> None:
        for _ in range(2):
            answer = self.get("abc", "?timeout_ms=7000")
            self.assertEqual((answer.status, answer.body), (200, self.data))
            self.assertEqual(answer.headers["content-disposition"], 'inline; filename="cat.jpg"')
        self.assertEqual(self.asked, [("far.test", "abc", 7000)])
        row = self.row("abc", "far.test")
        self.assertEqual((row.uploader, row.size), (None, len(self.data)))
        answer = self.thumbnail("abc", "width=32&height=32&method=crop", server_name="far.test")
        self.assertEqual(opened(answer.body).size, (32, 32))

    def test_many_who_ask_are_answered_by_one_fetch(self) -> None:
        self.gate = Deferred()
        answers = [self.get("abc") for _ in range(3)]
        self.gate.callback(None)
        self.assertEqual([answer.body for answer in answers], [self.data] * 3)
        self.assertEqual(len(self.asked), 1)

    def test_what_others_do_not_have(self) -> None:
        self.check_refused(self.get("none"), 404, "M_NOT_FOUND")
        self.assertEqual(self.files(), [])

    def test_what_is_too_large(self) -> None:
        self.data = bytes(LIMIT + 1)
        self.check_refused(self.get("abc"), 502, "M_TOO_LARGE")
        self.assertEqual(self.files(), [])
        self.data = bomb_png(9000, 9000)
        answer = self.thumbnail("bomb", "width=32&height=32&method=crop", server_name="far.test")
        self.check_refused(answer, 502, "M_TOO_LARGE")

    def test_what_others_say_is_cleaned(self) -> None:
        self.said = ("text/plain\nX: y", "x" * 2000)
        answer = self.get("abc")
        self.assertEqual(answer.headers["content-type"], "application/octet-stream")
        self.assertEqual(answer.headers["content-disposition"], "attachment")

    def test_others_are_not_asked_where_the_client_says_so(self) -> None:
        self.check_refused(self.get("abc", "?allow_remote=false"), 404, "M_NOT_FOUND")
        self.check_refused(self.web.get(f"{OLD}/download/far.test/abc?allow_remote=false"), 404, "M_NOT_FOUND")
        self.assertEqual(self.asked, [])
        self.get("abc")
        self.assertEqual(self.get("abc", "?allow_remote=false").status, 200)

    def test_frozen_endpoints_fetch_nothing(self) -> None:
        self.get("before")
        self.make(self.fetch, serve_unauthenticated=False)
        self.get("after")
        self.asked.clear()
        self.assertEqual(self.web.get(f"{OLD}/download/far.test/before").status, 200)
        for media_id in ("after", "never"):
            self.check_refused(self.web.get(f"{OLD}/download/far.test/{media_id}"), 404, "M_NOT_FOUND")
        self.assertEqual(self.asked, [])

    def test_a_server_that_stops_waits_for_nobody(self) -> None:
        self.gate = Deferred()
        waiting = self.get("abc")
        self.run_(self.media.stop())
        self.assertEqual(waiting.status, 503)
        self.assertEqual(self.files(), [])

    def ask_for(self, media_id: str, server_name: str) -> Answer:
        return self.download(media_id, server_name=server_name)

    def turns(self, count: int = 20) -> None:
        for _ in range(count):
            self.clock.advance(0)

    async def hang(self, *args: Any) -> RemoteMedia:
        return await Deferred()

    def test_nor_for_what_had_not_been_begun(self) -> None:
        self.make(self.hang)
        servers = ["a.test", "b.test", "c.test", "d.test", "e.test"]
        waiting = [self.ask_for(f"x{n}", name) for name in servers for n in range(10)]
        self.run_(self.media.stop())
        self.assertEqual({answer.status for answer in waiting}, {503})
        self.assertEqual(self.files(), [])

    def test_a_server_that_is_slow_does_not_keep_others_waiting(self) -> None:
        gate = self.gate = Deferred()
        slow = [self.ask_for(f"x{n}", "slow.test") for n in range(40)]
        self.gate = None
        self.assertEqual(self.get("abc").status, 200)
        gate.callback(None)
        self.turns()
        self.assertEqual({answer.status for answer in slow}, {200})

    def test_a_long_row_that_is_refused_at_once(self) -> None:
        gate = self.gate = Deferred()
        waiting = [self.ask_for(f"x{n}", "far.test") for n in range(1000)]
        self.gate = None
        self.patch(self.media, "_remote", self.refuse)
        gate.callback(None)
        self.turns(1100)
        self.assertTrue(all(answer.done for answer in waiting))
        self.assertEqual(self.flushLoggedErrors(), [])

    async def refuse(self, *args: Any) -> RemoteMedia:
        raise not_found("No.")

    def test_only_so_many_may_wait(self) -> None:
        self.patch(component_module, "FETCHES_WAITING", 40)
        self.gate = Deferred()
        waiting = [self.ask_for(f"x{n}", f"s{n}.test") for n in range(72)]
        self.check_refused(self.get("abc"), 429, "M_LIMIT_EXCEEDED")
        self.gate.callback(None)
        self.turns(80)
        self.assertEqual({answer.status for answer in waiting}, {200})
        self.assertEqual(self.get("abc").status, 200)

    def test_a_disk_that_fails(self) -> None:
        self.patch(self.media._store, "_keep", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
        self.check_refused(self.get("abc"), 503, "M_UNKNOWN")
        self.assertEqual(self.files(), [])

    def test_what_nobody_asks_for_is_deleted_and_fetched_again(self) -> None:
        self.make(self.fetch, remote_lifetime_ms=HOUR_MS)
        own = self.upload(picture(100, 100))
        self.get("old")
        self.thumbnail("old", "width=32&height=32&method=crop", server_name="far.test")
        self.data = picture(200, 200)
        self.get("new")
        self.clock.advance(3000)
        self.get("new")
        self.clock.advance(1000)
        self.run_(self.media.sweep())
        self.assertIsNone(self.row("old", "far.test"))
        self.assertIsNotNone(self.row("new", "far.test"))
        self.assertIsNotNone(self.row(own))
        self.assertEqual(self.files().count("file"), 2)
        asked = len(self.asked)
        self.assertEqual(self.get("old").status, 200)
        self.assertEqual(len(self.asked), asked + 1)

    def test_a_file_that_others_use_stays(self) -> None:
        self.make(self.fetch, remote_lifetime_ms=HOUR_MS)
        own = self.upload(self.data)
        self.get("same")
        self.clock.advance(4000)
        self.run_(self.media.sweep())
        self.assertIsNone(self.row("same", "far.test"))
        self.assertEqual(self.download(own).body, self.data)

    def test_a_crash_between_row_and_file_leaves_nothing(self) -> None:
        self.make(self.fetch, remote_lifetime_ms=HOUR_MS)
        self.get("old")
        self.clock.advance(4000)
        self.patch(self.media._store, "remove", lambda *_: fail(Unavailable("gone")))
        self.failureResultOf(Deferred.fromCoroutine(self.media.sweep()), Unavailable)
        self.assertEqual(self.files().count("file"), 1)
        self.make(self.fetch)
        self.run_(self.media.sweep())
        self.assertEqual(self.files(), [])

    def test_nothing_is_deleted_where_nothing_is_to_be(self) -> None:
        self.get("old")
        self.clock.advance(10**9)
        self.run_(self.media.sweep())
        self.assertIsNotNone(self.row("old", "far.test"))


class ServerTests(MediaCase):
    """What other servers are given."""

    def ask(self, path: str, server: str | None = "far.test") -> Answer:
        headers = {} if server is None else {"X-Server": server}
        return self.web.request("GET", f"/_matrix/federation/v1/media/{path}", headers=headers)

    def parts(self, answer: Answer) -> list[tuple[dict[str, str], bytes]]:
        self.assertEqual(answer.status, 200, answer)
        self.assertEqual(int(answer.headers["content-length"]), len(answer.body))
        reader = MultipartReader(boundary_of(answer.headers["content-type"]))
        found = parts_of(reader.feed(answer.body))
        self.assertTrue(reader.complete)
        return found

    def test_a_file_is_the_second_part(self) -> None:
        data = b"\r\n--" + bytes(range(256)) * 1000
        media_id = self.upload(data, "text/html", 'a "b".html')
        self.assertEqual(
            self.parts(self.ask(f"download/{media_id}")),
            [
                ({"content-type": "application/json"}, b"{}"),
                (
                    {
                        "content-type": "text/html",
                        "content-disposition": "attachment; filename*=utf-8''a%20%22b%22.html",
                    },
                    data,
                ),
            ],
        )

    def test_an_empty_file(self) -> None:
        media_id = self.upload(b"", "text/plain")
        self.assertEqual([part[1] for part in self.parts(self.ask(f"download/{media_id}"))], [b"{}", b""])

    def test_a_part_of_it_is_not_to_be_had(self) -> None:
        media_id = self.upload(b"abcdef", "text/plain")
        path = f"/_matrix/federation/v1/media/download/{media_id}"
        answer = self.web.request("GET", path, headers={"X-Server": "far.test", "Range": "bytes=1-2"})
        self.assertEqual(self.parts(answer)[1][1], b"abcdef")

    def test_a_thumbnail(self) -> None:
        media_id = self.upload(picture(400, 300))
        found = self.parts(self.ask(f"thumbnail/{media_id}?width=32&height=32&method=crop"))
        self.assertEqual(opened(found[1][1]).size, (32, 32))
        self.assertEqual(found[1][0]["content-type"], "image/jpeg")
        self.assertEqual(self.ask(f"thumbnail/{media_id}?width=0&height=9").status, 400)
        self.assertEqual(self.ask(f"thumbnail/{media_id}?width=x&height=9").status, 400)

    def test_who_is_not_known_is_given_nothing(self) -> None:
        media_id = self.upload(b"abc")
        self.check_refused(self.ask(f"download/{media_id}", None), 401, "M_UNAUTHORIZED")
        self.check_refused(self.ask(f"thumbnail/{media_id}?width=9&height=9", None), 401, "M_UNAUTHORIZED")

    def test_only_media_of_this_server_is_given(self) -> None:
        self.make(lambda *_: self.fail("nobody is asked"))
        self.check_refused(self.ask("download/unknown"), 404, "M_NOT_FOUND")
        self.check_refused(self.ask("download/un%2Fknown"), 404, "M_NOT_FOUND")

    def test_an_upload_that_is_awaited(self) -> None:
        uri = self.web.post("/_matrix/media/v1/create", token="alice").json["content_uri"]
        media_id = uri.rpartition("/")[2]
        self.check_refused(self.ask(f"download/{media_id}?timeout_ms=0"), 504, "M_NOT_YET_UPLOADED")
        waiting = self.ask(f"download/{media_id}")
        self.assertFalse(waiting.done)
        self.web.request("PUT", f"/_matrix/media/v3/upload/test/{media_id}", b"late", "alice")
        self.assertEqual(self.parts(waiting)[1][1], b"late")


class InterfaceTests(MediaCase):
    def test_the_interface_can_be_carried_as_bytes(self) -> None:
        self.assertEqual(set(InterfaceCodec(MediaAPI).methods), {"upload", "media", "thumbnail"})

    def test_a_file_is_told_of(self) -> None:
        media_id = self.upload(picture(100, 100), "image/jpeg", "a.jpg")
        question = MediaQuestion(server_name="test", media_id=media_id)
        file = self.run_(self.media.media(question))
        self.assertEqual((Path(file.path).read_bytes(), file.name), (picture(100, 100), "a.jpg"))
        small = self.run_(self.media.thumbnail(question, ThumbnailSize(32, 32, Method.CROP)))
        self.assertEqual(opened(Path(small.path).read_bytes()).size, (32, 32))
        self.assertNotEqual(small.etag, file.etag)

    def test_it_is_called_through_a_handle(self) -> None:
        direct = Direct()
        media = handle(MediaAPI, direct)
        direct.connect(self.media)
        uri = self.run_(media.upload("@alice:test", "text/plain", None, b"abc"))
        file = self.run_(media.media(MediaQuestion(server_name="test", media_id=uri.rpartition("/")[2])))
        self.assertEqual(Path(file.path).read_bytes(), b"abc")

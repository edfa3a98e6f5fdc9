"""Several processes of the media component over one folder and one database."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred

from dendrite_tw.media_api.api import RemoteMedia
from dendrite_tw.media_api.component import SWEEP_SECONDS, MediaComponent
from dendrite_tw.media_api.store import CLAIM_AGE_MS, MediaStore
from tests.fakes import Hall
from tests.harness import Answer, Web, ask
from tests.media_api.images import opened, picture
from tests.media_api.test_component import HOUR_MS, RemoteCase

CREATE = "/_matrix/media/v1/create"


class TwoCase(RemoteCase):
    """Two processes; requests go to the one that was chosen last."""

    def setUp(self) -> None:
        self.hall = Hall()
        self.processes: list[tuple[MediaComponent, Web]] = []
        super().setUp()
        for _ in range(2):
            self.make(self.fetch, remote_lifetime_ms=HOUR_MS, echoes=self.hall.echoes())
            self.processes.append((self.media, self.web))
        self.choose(0)

    def choose(self, number: int) -> None:
        self.media, self.web = self.processes[number]

    def age(self, pattern: str) -> None:
        """Make what lies in ``tmp`` by that name as old as what nobody will finish."""
        for path in (self.base / "tmp").glob(pattern):
            old = self.clock.seconds() - CLAIM_AGE_MS / 1000 - 1
            os.utime(path, (old, old))


class Sharing(TwoCase):
    def test_what_one_took_the_other_gives(self) -> None:
        media_id = self.upload(picture(800, 600))
        self.choose(1)
        self.assertEqual(self.download(media_id).status, 200)
        answer = self.thumbnail(media_id, "width=32&height=32&method=crop")
        self.assertEqual(opened(answer.body).size, (32, 32))

    def test_both_make_the_same_thumbnails(self) -> None:
        self.threads.held = []
        answers: list[Answer] = []
        for number in range(2):
            self.choose(number)
            answers.append(self.web.request("POST", "/_matrix/media/v3/upload", picture(800, 600), "alice"))
        while self.threads.release():
            pass
        ids = [answer.json["content_uri"].rpartition("/")[2] for answer in answers]
        for number, media_id in enumerate(ids):
            self.choose(number)
            for _ in range(2):
                answer = self.thumbnail(media_id, "width=32&height=32&method=crop")
                self.assertEqual((answer.status, opened(answer.body).size), (200, (32, 32)))
        self.assertEqual(self.files().count("file"), 1)

    def test_both_fetch_the_same(self) -> None:
        self.gate = Deferred()
        answers = []
        for number in range(2):
            self.choose(number)
            answers.append(self.get("abc"))
        self.gate.callback(None)
        self.assertEqual([(answer.status, answer.body) for answer in answers], [(200, self.data)] * 2)
        self.assertEqual((len(self.asked), self.files().count("file")), (2, 1))
        self.run_(self.media.sweep())
        self.assertEqual(self.files().count("file"), 1)

    def test_both_fetch_and_are_given_different_files(self) -> None:
        gates: list[Deferred[None]] = []
        answers = []
        for number in range(2):
            self.choose(number)
            gates.append(Deferred())
            self.gate = gates[-1]
            answers.append(self.get("abc"))
        for number in range(2):
            self.data = picture(100 + number, 100)
            gates[number].callback(None)
        self.assertEqual([answer.status for answer in answers], [200, 200])
        self.assertEqual(answers[0].body, answers[1].body)
        self.run_(self.media.sweep())
        self.assertEqual(self.files().count("file"), 1)
        self.assertEqual(self.get("abc").body, answers[0].body)

    def test_an_upload_that_is_awaited_elsewhere(self) -> None:
        uri = self.web.post(CREATE, {}, "alice").json["content_uri"]
        media_id = uri.rpartition("/")[2]
        self.choose(1)
        waiting = self.download(media_id)
        self.assertFalse(waiting.done)
        self.choose(0)
        self.web.request("PUT", f"/_matrix/media/v3/upload/test/{media_id}", b"hello", "alice")
        self.assertEqual((waiting.status, waiting.body), (200, b"hello"))

    def test_only_one_may_complete_an_upload(self) -> None:
        uri = self.web.post(CREATE, {}, "alice").json["content_uri"]
        self.threads.held = []
        answers = []
        for number in range(2):
            self.choose(number)
            path = f"/_matrix/media/v3/upload/test/{uri.rpartition('/')[2]}"
            answers.append(self.web.request("PUT", path, b"hello %d" % number, "alice"))
        while self.threads.release():
            pass
        self.assertEqual(sorted(answer.status for answer in answers), [200, 409])


class Crashes(TwoCase):
    def test_a_file_whose_row_was_never_written(self) -> None:
        body = self.media.open_upload()
        body.write(b"hello")
        self.run_(self.media._store.keep(body))
        self.assertEqual(self.files().count("file"), 1)
        self.choose(1)
        self.run_(self.media.sweep())
        self.assertEqual(self.files().count("file"), 1, "its process may still be about to write the row")
        self.age("claim.*")
        self.run_(self.media.sweep())
        self.assertEqual(self.files(), [])

    def test_a_file_whose_row_was_written_just_before(self) -> None:
        self.patch(self.media._store, "settle", lambda claim: None)
        media_id = self.upload(b"hello")
        self.choose(1)
        self.age("claim.*")
        self.run_(self.media.sweep())
        self.assertEqual(self.download(media_id).body, b"hello")
        self.assertEqual([name for name in self.files() if name.startswith("claim")], [])

    def test_a_file_that_was_moved_aside_to_be_deleted(self) -> None:
        media_id = self.upload(b"hello")
        directory = next(self.base.rglob("file")).parent
        row = self.row(media_id)
        assert row is not None
        directory.rename(self.base / "tmp" / f"aside.{row.hash}.xyz")
        self.choose(1)
        self.age("aside.*")
        self.run_(self.media.sweep())
        self.assertEqual(self.download(media_id).body, b"hello")


class Deleting(TwoCase):
    def test_who_reads_a_file_while_another_process_deletes_it_has_all_of_it(self) -> None:
        self.get("abc")
        path = next(self.base.rglob("file"))
        with path.open("rb") as reading:
            first = reading.read(10)
            self.forget("abc")
            self.assertFalse(path.exists())
            self.assertEqual(first + reading.read(), self.data)

    def forget(self, media_id: str) -> None:
        self.choose(1)
        self.clock.advance(HOUR_MS / 1000 + 1)
        self.run_(self.media.sweep())
        self.assertIsNone(self.row(media_id, "far.test"))

    def test_who_asks_after_that_is_given_it_anew(self) -> None:
        self.get("abc")
        self.thumbnail("abc", "width=32&height=32&method=crop", server_name="far.test")
        self.forget("abc")
        self.assertEqual(self.files(), [])
        self.choose(0)
        self.assertEqual(self.get("abc").body, self.data)
        answer = self.thumbnail("abc", "width=32&height=32&method=crop", server_name="far.test")
        self.assertEqual(opened(answer.body).size, (32, 32))

    def test_what_is_asked_for_at_one_process_is_not_deleted_by_the_other(self) -> None:
        self.get("abc")
        self.clock.advance(HOUR_MS / 1000 * 0.9)
        self.get("abc")
        self.clock.advance(HOUR_MS / 1000 * 0.2)
        self.choose(1)
        self.run_(self.media.sweep())
        self.assertIsNotNone(self.row("abc", "far.test"))

    def test_a_thumbnail_that_comes_too_late_leaves_no_row(self) -> None:
        self.get("abc")
        self.threads.held = []
        answer = self.thumbnail("abc", "width=96&height=96&method=crop", server_name="far.test")
        held, self.threads.held = self.threads.held, None
        self.forget("abc")
        for call in held:
            call()
        self.assertIn(answer.status, (200, 404))
        self.assertEqual(ask(self.database, "SELECT hash FROM thumbnails"), [])

    def test_both_sweep(self) -> None:
        self.get("abc")
        for media, _ in self.processes:
            self.run_(media.start())
        self.clock.pump([SWEEP_SECONDS] * 6)
        self.assertEqual(self.files(), [])
        for media, _ in self.processes:
            self.run_(media.stop())


class Folder(TwoCase):
    def test_a_federation_process_with_another_folder(self) -> None:
        elsewhere = Path(self.mktemp())

        def write() -> None:
            elsewhere.write_bytes(b"x")

        async def fetch(server_name: str, media_id: str, into: str, limit: int, timeout_ms: int) -> RemoteMedia:
            write()
            return RemoteMedia(size=1, sha256="00" * 32)

        self.make(fetch)
        self.check_refused(self.get("abc"), 502, "M_UNKNOWN")
        self.assertIsNone(self.row("abc", "far.test"))

    def test_a_folder_across_file_systems(self) -> None:
        real = Path.stat

        def stat(path: Path, **options: Any) -> Any:
            found = real(path, **options)
            if path.name != "tmp":
                return found
            return os.stat_result((*found[:2], found.st_dev + 1, *found[3:10]))

        self.patch(Path, "stat", stat)
        store = MediaStore(self.base, self.world.random, None)
        error = self.assertRaises(OSError, store.prepare)
        self.assertEqual(error.errno, errno.EXDEV)

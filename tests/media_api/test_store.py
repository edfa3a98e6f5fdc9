"""Files: named by their bytes, whole or not there, and gone when nobody names them."""

from __future__ import annotations

import os
from base64 import urlsafe_b64encode
from hashlib import sha256
from pathlib import Path
from typing import Any
from unittest import mock

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.matrix.errors import MatrixError, too_large
from dendrite_tw.media_api.store import CLAIM_AGE_MS, Claim, Incoming, MediaStore
from dendrite_tw.world import SeededRandom


def name_of(data: bytes) -> str:
    return urlsafe_b64encode(sha256(data).digest()).rstrip(b"=").decode()


class Crash(BaseException):
    """The process dies here."""


class StoreTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.base = Path(self.mktemp())
        self.store = MediaStore(self.base, SeededRandom(1), None)
        self.store.prepare()
        self.rows: set[str] = set()
        self.asked: list[str] = []

    async def in_use(self, hash: str) -> bool:
        self.asked.append(hash)
        return hash in self.rows

    def incoming(self, data: bytes, limit: int = 1 << 20) -> Incoming:
        incoming = self.store.open_incoming(limit, too_large("Too much."))
        for start in range(0, len(data), 1000):
            incoming.write(data[start : start + 1000])
        return incoming

    def run_(self, work: Any) -> Any:
        return self.successResultOf(Deferred.fromCoroutine(work))

    def keep(self, data: bytes) -> Claim:
        claim = self.run_(self.store.keep(self.incoming(data)))
        assert isinstance(claim, Claim)
        return claim

    def files(self) -> list[str]:
        return sorted(str(path.relative_to(self.base)) for path in self.base.rglob("*") if path.is_file())

    def leftovers(self) -> list[str]:
        return [path.name.partition(".")[0] for path in (self.base / "tmp").iterdir()]

    def later(self) -> int:
        return int(max(path.stat().st_mtime for path in (self.base / "tmp").iterdir()) * 1000) + CLAIM_AGE_MS + 1000

    def test_a_file_is_named_by_its_bytes(self) -> None:
        data = b"hello" * 1000
        claim = self.keep(data)
        self.assertEqual((claim.hash, claim.size), (name_of(data), 5000))
        path = self.store.path(claim.hash)
        self.assertEqual(path, self.base / claim.hash[0] / claim.hash[1] / claim.hash[2:] / "file")
        self.assertEqual(path.read_bytes(), data)
        self.store.settle(claim)
        self.assertEqual(len(self.files()), 1)

    def test_equal_files_are_one(self) -> None:
        for _ in range(2):
            self.store.settle(self.keep(b"same"))
        self.assertEqual(len(self.files()), 1)

    def test_a_damaged_file_is_replaced_by_its_next_upload(self) -> None:
        claim = self.keep(b"whole")
        self.store.path(claim.hash).write_bytes(b"who")
        self.keep(b"whole")
        self.assertEqual(self.store.path(claim.hash).read_bytes(), b"whole")

    def test_an_empty_file_is_a_file(self) -> None:
        claim = self.keep(b"")
        self.assertEqual((claim.size, self.store.path(claim.hash).read_bytes()), (0, b""))

    def test_what_is_not_taken_leaves_nothing(self) -> None:
        incoming = self.incoming(b"abc")
        self.assertEqual(len(self.files()), 1)
        incoming.close()
        incoming.close()
        self.assertEqual(self.files(), [])

    def test_what_was_kept_may_be_closed(self) -> None:
        incoming = self.incoming(b"abc")
        self.run_(self.store.keep(incoming))
        incoming.close()
        self.assertTrue(self.store.path(name_of(b"abc")).exists())

    def test_a_file_may_not_grow_beyond_its_limit(self) -> None:
        incoming = self.incoming(b"x" * 10, limit=10)
        with self.assertRaises(MatrixError) as caught:
            incoming.write(b"x")
        self.assertEqual((caught.exception.status, incoming.size), (413, 10))
        incoming.close()

    def test_a_failing_disk_leaves_nothing_half_done(self) -> None:
        with mock.patch("os.fsync", side_effect=OSError(28, "No space left on device")):
            failure = self.failureResultOf(Deferred.fromCoroutine(self.store.keep(self.incoming(b"abc"))))
        failure.trap(OSError)
        self.assertEqual(self.leftovers(), ["claim"])
        self.assertFalse(self.store.path(name_of(b"abc")).exists())

    def test_files_beside_it(self) -> None:
        claim = self.keep(b"original")
        self.run_(self.store.add_beside(claim.hash, {"thumbnail-1x1-crop": b"a", "thumbnail-2x2-crop": b"b"}))
        self.assertEqual(self.store.path(claim.hash, "thumbnail-2x2-crop").read_bytes(), b"b")
        failure = self.failureResultOf(Deferred.fromCoroutine(self.store.add_beside(name_of(b"?"), {"x": b"a"})))
        failure.trap(FileNotFoundError)
        self.assertEqual(self.leftovers(), ["claim"])

    def test_a_crash_at_any_step_leaves_what_a_sweep_removes(self) -> None:
        """Die at each call that touches the disk: never a torn file, and nothing left after a sweep."""
        steps = ("touch", "mkdir", "replace")
        for step in (*steps, "fsync", "fsync 2", "fsync 3"):
            name, _, number = step.partition(" ")
            calls = [mock.DEFAULT] * (int(number or 1) - 1) + [Crash()]
            target = f"os.{name}" if name == "fsync" else f"pathlib.Path.{name}"
            data = step.encode() * 500
            incoming = self.incoming(data)
            claim = Claim(name_of(data), len(data), self.base / f"tmp/claim.{name_of(data)}.x")
            patches = mock.patch.object(Incoming, "discard"), mock.patch(target, side_effect=calls)
            with patches[0], patches[1], self.assertRaises(Crash):
                self.store._keep(incoming, claim)
            path = self.store.path(name_of(data))
            if path.exists():
                self.assertEqual(path.read_bytes(), data)
            self.run_(self.store.sweep(self.later(), self.in_use))
            self.assertEqual(self.files(), [], step)

    def test_a_sweep_leaves_what_has_a_row_or_is_young(self) -> None:
        kept, orphan = self.keep(b"kept"), self.keep(b"orphan")
        self.rows.add(kept.hash)
        young = self.later() - CLAIM_AGE_MS - 60_000
        self.assertEqual(self.run_(self.store.sweep(young, self.in_use)), [])
        self.assertEqual(self.leftovers(), ["claim", "claim"])
        self.assertEqual(self.run_(self.store.sweep(self.later(), self.in_use)), [orphan.hash])
        self.assertTrue(self.store.path(kept.hash).exists())
        self.assertFalse(self.store.path(orphan.hash).exists())
        self.assertEqual(self.leftovers(), [])

    def test_a_sweep_leaves_what_is_claimed_anew(self) -> None:
        old = self.keep(b"twice")
        os.utime(old.path, (1000, 1000))
        new = self.keep(b"twice")
        self.run_(self.store.sweep(2_000_000 + CLAIM_AGE_MS, self.in_use))
        self.assertTrue(self.store.path(new.hash).exists())
        self.assertFalse(old.path.exists())

    def test_foreign_files_are_left_alone(self) -> None:
        (self.base / "tmp" / "notes.txt").write_text("mine")
        self.run_(self.store.sweep(self.later(), self.in_use))
        self.assertEqual(self.files(), ["tmp/notes.txt"])

    def test_removal(self) -> None:
        claim = self.keep(b"gone")
        self.store.settle(claim)
        self.rows.add(claim.hash)
        self.assertFalse(self.run_(self.store.remove(claim.hash, self.in_use)))
        self.rows.clear()
        self.assertTrue(self.run_(self.store.remove(claim.hash, self.in_use)))
        self.assertFalse(self.run_(self.store.remove(claim.hash, self.in_use)))
        self.assertEqual(self.files(), [])

    def test_an_upload_during_removal_wins(self) -> None:
        """The same bytes come again after the file was looked for in the rows, and before it is deleted."""
        for when in (1, 2):
            claim = self.keep(b"raced")
            self.store.settle(claim)
            asked = 0

            async def in_use(hash: str, moment: int = when) -> bool:
                nonlocal asked
                asked += 1
                if asked == moment:
                    self.keep(b"raced")
                return False

            self.assertFalse(self.run_(self.store.remove(claim.hash, in_use)))
            self.assertEqual(self.store.path(claim.hash).read_bytes(), b"raced")
            for path in (self.base / "tmp").iterdir():
                path.unlink()

    def test_a_removal_that_a_crash_cut_short_is_finished_or_undone(self) -> None:
        for wanted in (False, True):
            claim = self.keep(b"cut")
            self.store.settle(claim)

            async def dies(hash: str) -> bool:
                if not self.store.path(hash).exists():
                    raise ValueError
                return False

            self.failureResultOf(Deferred.fromCoroutine(self.store.remove(claim.hash, dies)), ValueError)
            self.assertEqual(self.leftovers(), ["aside"])
            if wanted:
                self.rows.add(claim.hash)
            self.run_(self.store.sweep(self.later(), self.in_use))
            self.assertEqual(self.store.path(claim.hash).exists(), wanted)
            self.assertEqual(self.leftovers(), [])

"""Messages on disk: what was acknowledged survives every cut, what is damaged is noticed, room is given
back.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from dendrite_tw.jetstream import segments, store
from dendrite_tw.jetstream.index import Index
from dendrite_tw.jetstream.segments import DamagedError
from dendrite_tw.jetstream.storage import Stored
from dendrite_tw.jetstream.store import FileStorage
from dendrite_tw.jetstream.syncer import Syncer
from tests.jetstream.support import DiskCase, inline, settle


class Shelf:
    """A file storage with its index, as a stream uses them."""

    def __init__(self, folder: Path, segment_bytes: int = store.SEGMENT_BYTES) -> None:
        self.clock = Clock()
        self.syncer = Syncer(inline, self.clock.callLater)
        self.index = Index()
        self.files = FileStorage(folder, self.syncer, self.index, segment_bytes)
        self.folder = folder

    def recover(self) -> Shelf:
        found = self.files.recover()
        for message, place in found.live():
            self.index.add(message.seq, message.subject, len(message.payload), message.time, place)
        self.index.skip_to(found.last_seq)
        self.files.tidy()
        return self

    def put(self, payload: bytes, headers: bytes = b"") -> int:
        seq = self.index.last_seq + 1
        message = Stored(seq, seq * 1000, f"s.{seq % 3}", headers, payload)
        self.index.add(seq, message.subject, len(payload), message.time, self.files.append(message))
        return seq

    def drop(self, seq: int, *, erase: bool = False) -> None:
        entry = self.index.discard(seq)
        assert entry is not None
        self.files.release(seq, entry.place, entry.size)
        if erase:
            self.files.erased([seq])

    def sync(self) -> None:
        settle(self.clock, 5)

    def contents(self) -> dict[int, bytes]:
        found = {}
        for seq in self.index.sequences():
            entry = self.index.get(seq)
            assert entry is not None
            message = self.files.read(seq, entry.place)
            assert message is not None
            found[seq] = message.payload
        return found

    def segments(self) -> list[Path]:
        return sorted(self.folder.glob("*.seg"))

    def close(self) -> None:
        self.files.close()


class StoreCase(DiskCase):
    def setUp(self) -> None:
        super().setUp()
        self.folder = Path(self.mktemp())

    def shelf(self, segment_bytes: int = store.SEGMENT_BYTES) -> Shelf:
        shelf = Shelf(self.folder, segment_bytes).recover()
        self.addCleanup(shelf.close)
        return shelf


class RecoveryTests(StoreCase):
    def test_what_was_written_is_read_back(self) -> None:
        shelf = self.shelf()
        headers = b"NATS/1.0\r\na: b\r\n\r\n"
        shelf.put(b"one", headers)
        shelf.put(b"")
        shelf.put(bytes(range(256)) * 300)
        shelf.sync()
        again = self.shelf()
        self.assertEqual(again.contents(), shelf.contents())
        entry = again.index.get(1)
        assert entry is not None
        message = again.files.read(1, entry.place)
        self.assertEqual(message, Stored(1, 1000, "s.1", headers, b"one"))

    def test_torn_at_every_byte(self) -> None:
        """Each batch was acknowledged before the next began: a cut in the last one loses nothing else."""
        shelf = self.shelf()
        for batch in range(3):
            for number in range(2):
                shelf.put(b"%d-%d" % (batch, number), b"NATS/1.0\r\na: b\r\n\r\n" if number else b"")
            shelf.sync()
        acknowledged = {seq: payload for seq, payload in shelf.contents().items() if seq <= 4}
        [segment] = shelf.segments()
        whole = segment.read_bytes()
        start = whole.rindex(b"\xa7J\x01\x01")
        for cut in range(start, len(whole)):
            segment.write_bytes(whole[:cut])
            again = Shelf(self.folder).recover()
            found = again.contents()
            self.assertEqual({seq: found[seq] for seq in acknowledged}, acknowledged)
            self.assertEqual(sorted(found), list(range(1, len(found) + 1)))
            seq = again.put(b"next")
            again.sync()
            again.close()
            third = Shelf(self.folder).recover()
            self.assertEqual(third.contents(), {**found, seq: b"next"})
            third.close()

    def test_last_batch_damaged_at_every_byte(self) -> None:
        """Pages of a batch that was not synced may be missing in any order; it is cut, the rest stays."""
        shelf = self.shelf()
        for batch in range(3):
            for number in range(3):
                shelf.put(b"%d-%d" % (batch, number))
            shelf.sync()
        acknowledged = {seq: payload for seq, payload in shelf.contents().items() if seq <= 6}
        [segment] = shelf.segments()
        whole = segment.read_bytes()
        start = whole.rindex(b"\xa7J\x01\x01")
        for position in range(start, len(whole)):
            if position - start == 3:
                continue  # the flag of the batch's first record is not part of its checksum
            damaged = bytearray(whole)
            damaged[position] ^= 0xFF
            segment.write_bytes(damaged)
            again = Shelf(self.folder).recover()
            found = again.contents()
            self.assertEqual({seq: found[seq] for seq in acknowledged}, acknowledged)
            again.close()

    def test_acknowledged_data_damaged_at_every_byte(self) -> None:
        """Damage before the last batch is never taken for a torn tail."""
        shelf = self.shelf()
        for batch in range(3):
            shelf.put(b"payload of batch %d" % batch)
            shelf.sync()
        [segment] = shelf.segments()
        whole = segment.read_bytes()
        start = whole.rindex(b"\xa7J\x01\x01")
        for position in range(start):
            if whole[position - 3 : position] == b"\xa7J\x01":
                continue  # a flag
            damaged = bytearray(whole)
            damaged[position] ^= 0xFF
            segment.write_bytes(damaged)
            with self.assertRaises(DamagedError):
                Shelf(self.folder).recover()

    def test_older_segment_torn(self) -> None:
        shelf = self.shelf(segment_bytes=200)
        for _ in range(10):
            shelf.put(b"x" * 50)
            shelf.sync()
        first = shelf.segments()[0]
        first.write_bytes(first.read_bytes()[:-1])
        with self.assertRaises(DamagedError):
            Shelf(self.folder).recover()

    def test_strange_file(self) -> None:
        self.folder.mkdir(parents=True)
        (self.folder / "notes.seg").write_bytes(b"")
        with self.assertRaises(DamagedError):
            Shelf(self.folder).recover()

    def test_sequence_goes_on_when_everything_is_consumed(self) -> None:
        shelf = self.shelf(segment_bytes=200)
        for _ in range(20):
            shelf.drop(shelf.put(b"x" * 50))
            shelf.sync()
        self.assertEqual(len(shelf.segments()), 1)
        again = self.shelf()
        self.assertEqual(again.index.last_seq, 20)
        self.assertNotIn(18, again.contents())

    def test_erased_stays_erased(self) -> None:
        shelf = self.shelf(segment_bytes=200)
        for number in range(12):
            shelf.put(b"%d" % number * 20)
        shelf.sync()
        for seq in (2, 5, 12):
            shelf.drop(seq, erase=True)
        shelf.sync()
        for _ in range(10):
            shelf.drop(shelf.put(b"y" * 60), erase=True)
        shelf.sync()
        self.assertEqual(self.shelf().contents(), shelf.contents())
        self.assertEqual(sorted(shelf.contents()), [1, 3, 4, 6, 7, 8, 9, 10, 11])

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(st.integers(0, 2**32))
    def test_random_histories(self, seed: int) -> None:
        """Appends, erasures, consumption from the front, syncs and crashes, in any order."""
        chance = random.Random(seed)
        folder = Path(self.mktemp())
        shelf = Shelf(folder, 400).recover()
        synced: dict[int, bytes] = {}
        erased: set[int] = set()
        for _ in range(60):
            action = chance.random()
            alive = list(shelf.index.sequences())
            if action < 0.5:
                shelf.put(chance.randbytes(chance.randint(0, 120)))
            elif action < 0.65 and alive:
                seq = chance.choice(alive)
                shelf.drop(seq, erase=True)
                erased.add(seq)
            elif action < 0.85:
                shelf.sync()
                synced = shelf.contents()
            else:
                shelf.close()
                shelf = Shelf(folder, 400).recover()
                found = shelf.contents()
                self.assertEqual(
                    {seq: found.get(seq) for seq in synced if seq not in erased},
                    {seq: payload for seq, payload in synced.items() if seq not in erased},
                    f"seed {seed}",
                )
                erased.clear()
                synced = found
        shelf.close()


class RoomTests(StoreCase):
    def test_consumed_segments_are_deleted(self) -> None:
        shelf = self.shelf(segment_bytes=1000)
        for _ in range(100):
            shelf.put(b"x" * 100)
        shelf.sync()
        self.assertGreater(len(shelf.segments()), 10)
        for seq in range(1, 101):
            shelf.drop(seq)
        shelf.sync()
        self.assertEqual(len(shelf.segments()), 1)

    def test_sparse_segments_are_rewritten(self) -> None:
        shelf = self.shelf(segment_bytes=4000)
        kept = {}
        for number in range(400):
            seq = shelf.put(b"%d" % number * 20)
            if number % 10:
                shelf.drop(seq, erase=True)
            else:
                kept[seq] = b"%d" % number * 20
            shelf.sync()
        self.assertEqual(shelf.contents(), kept)
        self.assertLess(sum(path.stat().st_size for path in shelf.segments()), 20000)
        self.assertEqual(self.shelf().contents(), kept)

    def test_memory_is_bounded(self) -> None:
        shelf = self.shelf()
        for _ in range(100):
            for _ in range(10):
                shelf.put(b"x" * 2000)
            shelf.sync()
        kept = sum(len(message.payload) for message in shelf.files._recent.values())
        self.assertLess(kept, 2 * store.RECENT_BYTES)
        self.assertEqual(len(shelf.contents()), 1000)

    def test_unreadable_message_is_reported_not_raised(self) -> None:
        shelf = self.shelf()
        shelf.put(b"payload")
        shelf.sync()
        shelf.close()
        again = self.shelf()
        [segment] = again.segments()
        segment.write_bytes(segment.read_bytes().replace(b"payload", b"pay1oad"))
        entry = again.index.get(1)
        assert entry is not None
        self.assertIsNone(again.files.read(1, entry.place))


class SyncTests(StoreCase):
    def test_what_arrives_during_a_sync_is_the_next_batch(self) -> None:
        held: list[tuple[Callable[..., Any], tuple[Any, ...], Deferred[Any]]] = []

        def hold(call: Callable[..., Any], *args: Any) -> Deferred[Any]:
            deferred: Deferred[Any] = Deferred()
            held.append((call, args, deferred))
            return deferred

        def release() -> None:
            call, args, deferred = held.pop()
            deferred.callback(call(*args))

        shelf = self.shelf()
        shelf.syncer._run = hold
        told: list[str] = []
        shelf.put(b"1")
        shelf.syncer.when_synced(lambda: told.append("1"))
        shelf.sync()
        for name in ("2", "3", "4"):
            shelf.put(name.encode())
            shelf.syncer.when_synced(lambda name=name: told.append(name))
        shelf.sync()
        self.assertEqual((len(held), told), (1, []))
        release()
        self.assertEqual(told, ["1"])
        release()
        self.assertEqual((told, held), (["1", "2", "3", "4"], []))
        self.assertEqual(shelf.syncer.batches, 2)

    def test_who_asks_while_the_last_batch_is_written_is_told_when_it_is(self) -> None:
        held: list[tuple[Callable[..., Any], Any, Deferred[Any]]] = []

        def hold(call: Callable[..., Any], *args: Any) -> Deferred[Any]:
            deferred: Deferred[Any] = Deferred()
            held.append((call, args, deferred))
            return deferred

        shelf = self.shelf()
        shelf.syncer._run = hold
        shelf.put(b"last")
        shelf.sync()
        told: list[int] = []
        shelf.syncer.when_synced(lambda: told.append(1))
        self.assertEqual((len(held), told), (1, []))
        call, args, deferred = held.pop()
        deferred.callback(call(*args))
        self.assertEqual((told, held, shelf.syncer.is_idle()), ([1], [], True))

    def test_full_disk_is_waited_for(self) -> None:
        shelf = self.shelf()
        shelf.put(b"before")
        shelf.sync()
        full = OSError(errno.ENOSPC, "No space left on device")
        shelf.syncer._run = lambda call, *args: fail(Failure(full))
        told: list[int] = []
        shelf.put(b"during")
        shelf.syncer.when_synced(lambda: told.append(1))
        shelf.sync()
        self.assertIn("No space", shelf.syncer.failing)
        shelf.clock.advance(5)
        self.assertEqual(told, [])
        shelf.syncer._run = inline
        shelf.clock.advance(5)
        self.assertEqual((told, shelf.syncer.failing), ([1], ""))
        self.assertEqual(self.shelf().contents(), {1: b"before", 2: b"during"})

    def test_partly_written_batch_is_written_again(self) -> None:
        shelf = self.shelf()
        attempts: list[int] = []
        original = segments._write_all

        def half(descriptor: int, data: bytes, offset: int) -> None:
            attempts.append(1)
            if len(attempts) == 1:
                original(descriptor, data[: len(data) // 2], offset)
                raise OSError(errno.EIO, "told to fail")
            original(descriptor, data, offset)

        self.patch(segments, "_write_all", half)
        shelf.put(b"a")
        shelf.put(b"b")
        shelf.sync()
        shelf.clock.advance(2)
        self.assertEqual(self.shelf().contents(), {1: b"a", 2: b"b"})

    def test_failing_job_does_not_stop_the_rest(self) -> None:
        shelf = self.shelf()
        done: list[int] = []

        def fail_job() -> None:
            raise OSError("told to fail")

        shelf.syncer.later(fail_job)
        shelf.syncer.later(done.append, 1)
        shelf.sync()
        self.assertEqual(done, [1])

"""Backups of room keys: the newest is written, better keys win, counts are exact."""

from __future__ import annotations

from typing import Any

import orjson
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dendrite_tw.user_api import key_backup
from dendrite_tw.user_api.api import BackupKey, BackupState
from dendrite_tw.user_api.tables import key_backup as table
from tests.user_api.keys_support import ALICE, BOB, KeysCase

ROOM = "!room:test"


def key(
    session_id: str = "s",
    room_id: str = ROOM,
    verified: bool = False,
    index: int = 10,
    forwarded: int = 5,
    data: str = "x",
) -> BackupKey:
    return BackupKey(
        room_id=room_id,
        session_id=session_id,
        first_message_index=index,
        forwarded_count=forwarded,
        is_verified=verified,
        session_data=orjson.dumps({"ciphertext": data}),
    )


MANY = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.differing_executors]
)
"""The same tests run on one process and on two, which is as many classes."""


class BackupTests(KeysCase):
    def setUp(self) -> None:
        super().setUp()
        self.version = self.create()

    def create(self, user_id: str = ALICE) -> str:
        return self.get(self.keys.create_backup(user_id, "m.test", b'{"public_key":"x"}'))

    def put(self, *keys: BackupKey, version: str | None = None) -> BackupState:
        return self.get(self.keys.put_backup_keys(ALICE, version or self.version, list(keys)))

    def stored(self, room_id: str | None = None, session_id: str | None = None) -> Any:
        return orjson.loads(self.get(self.keys.backup_keys(ALICE, self.version, room_id, session_id)))

    def test_versions(self) -> None:
        info = self.get(self.keys.backup(ALICE, None))
        self.assertEqual(
            (info.version, info.algorithm, info.auth_data, info.count),
            (self.version, "m.test", b'{"public_key":"x"}', 0),
        )
        newer = self.create()
        self.assertEqual(self.get(self.keys.backup(ALICE, None)).version, newer)
        self.assertEqual(self.get(self.keys.backup(ALICE, self.version)), info)
        self.get(self.keys.update_backup(ALICE, newer, "m.test", b"{}"))
        self.assertEqual(self.get(self.keys.backup(ALICE, None)).auth_data, b"{}")
        self.get(self.keys.delete_backup(ALICE, newer))
        self.assertEqual(self.get(self.keys.backup(ALICE, None)).version, self.version)
        self.get(self.keys.delete_backup(ALICE, newer))
        self.check_refused(self.keys.backup(ALICE, newer), 404, "M_NOT_FOUND")

    def test_what_is_not_there_is_not_found(self) -> None:
        for version in ("0", "999", "01", "x", "", "9" * 30, "٣", "-1"):
            self.check_refused(self.keys.backup(ALICE, version), 404, "M_NOT_FOUND")
            self.check_refused(self.keys.update_backup(ALICE, version, "m.test", b"{}"), 404, "M_NOT_FOUND")
            self.check_refused(self.keys.delete_backup(ALICE, version), 404, "M_NOT_FOUND")
            self.check_refused(self.keys.put_backup_keys(ALICE, version, [key()]), 404, "M_NOT_FOUND")
            self.check_refused(self.keys.backup_keys(ALICE, version, None, None), 404, "M_NOT_FOUND")
            self.check_refused(self.keys.delete_backup_keys(ALICE, version, None, None), 404, "M_NOT_FOUND")
        self.check_refused(self.keys.backup(BOB, None), 404, "M_NOT_FOUND")
        self.check_refused(self.keys.backup(BOB, self.version), 404, "M_NOT_FOUND")
        self.check_refused(self.keys.backup_keys(BOB, self.version, None, None), 404, "M_NOT_FOUND")
        self.check_refused(self.keys.delete_backup(BOB, self.version), 404, "M_NOT_FOUND")
        self.check_refused(self.keys.backup_keys(ALICE, self.version, ROOM, "s"), 404, "M_NOT_FOUND")
        self.check_refused(self.keys.backup_keys(ALICE, self.version, "\0", "\0"), 404, "M_NOT_FOUND")
        self.assertEqual((self.stored(), self.stored(ROOM)), ({"rooms": {}}, {"sessions": {}}))

    def test_keys_at_all_three_levels(self) -> None:
        state = self.put(key("a"), key("b"), key("a", "!other:test"))
        self.assertEqual(state.count, 3)
        value = {
            "first_message_index": 10,
            "forwarded_count": 5,
            "is_verified": False,
            "session_data": {"ciphertext": "x"},
        }
        self.assertEqual(self.stored(ROOM, "a"), value)
        self.assertEqual(self.stored(ROOM), {"sessions": {"a": value, "b": value}})
        other = {"sessions": {"a": value}}
        self.assertEqual(self.stored(), {"rooms": {ROOM: self.stored(ROOM), "!other:test": other}})

        def delete(room_id: str | None, session_id: str | None) -> int:
            return self.get(self.keys.delete_backup_keys(ALICE, self.version, room_id, session_id)).count

        self.assertEqual(delete(ROOM, "a"), 2)
        self.assertEqual(delete(ROOM, "a"), 2)
        self.put(key("c"))
        self.assertEqual(delete(ROOM, None), 1)
        self.assertEqual(self.stored(), {"rooms": {"!other:test": other}})
        self.assertEqual(delete(None, None), 0)
        self.assertEqual(self.stored(), {"rooms": {}})

    def test_the_etag_changes_with_the_keys(self) -> None:
        etags = [self.put(key("a")).etag, self.put(key("a")).etag, self.put(key("b")).etag]
        self.assertEqual(etags[0], etags[1])
        self.assertNotEqual(etags[1], etags[2])
        self.assertEqual(self.get(self.keys.backup(ALICE, None)).etag, etags[2])
        gone = self.get(self.keys.delete_backup_keys(ALICE, self.version, ROOM, "a"))
        self.assertNotEqual(gone.etag, etags[2])
        same = self.get(self.keys.delete_backup_keys(ALICE, self.version, ROOM, "a"))
        self.assertEqual(same.etag, gone.etag)

    def test_the_newest_version_alone_is_written(self) -> None:
        newer = self.create()
        error = self.refused(self.keys.put_backup_keys(ALICE, self.version, [key()]))
        self.assertEqual((error.status, error.errcode), (403, "M_WRONG_ROOM_KEYS_VERSION"))
        self.assertEqual(error.extra, {"current_version": newer})
        self.put(key(), version=newer)
        self.get(self.keys.delete_backup(ALICE, newer))
        self.check_refused(self.keys.put_backup_keys(ALICE, newer, [key()]), 404, "M_NOT_FOUND")
        self.assertEqual(self.put(key()).count, 1)

    def test_the_algorithm_stays(self) -> None:
        self.check_refused(self.keys.update_backup(ALICE, self.version, "m.other", b"{}"), 400, "M_INVALID_PARAM")

    @MANY
    @given(
        st.lists(
            st.tuples(st.sampled_from("ab"), st.booleans(), st.integers(0, 2), st.integers(0, 2)),
            min_size=1,
            max_size=12,
        )
    )
    def test_the_best_key_stays_whatever_the_order(self, uploads: list[tuple[str, bool, int, int]]) -> None:
        self.version = self.create()
        best: dict[str, tuple[bool, int, int, int]] = {}
        for number, (session, verified, index, forwarded) in enumerate(uploads):
            self.put(key(session, verified=verified, index=index, forwarded=forwarded, data=str(number)))
            rank = (not verified, index, forwarded, number)
            best[session] = min(best.get(session, rank), rank)
        sessions = self.stored(ROOM)["sessions"]
        self.assertEqual(
            {session: int(value["session_data"]["ciphertext"]) for session, value in sessions.items()},
            {session: rank[3] for session, rank in best.items()},
        )
        self.assertEqual(self.get(self.keys.backup(ALICE, None)).count, len(best))
        self.get(self.keys.delete_backup(ALICE, self.version))

    def test_a_key_named_twice_in_a_request_counts_once(self) -> None:
        self.assertEqual(self.put(key("a", index=1), key("a", index=2)).count, 1)

    def test_a_big_backup_goes_in_parts(self) -> None:
        self.patch(key_backup, "CHUNK", 10)
        keys = [key(str(number), f"!r{number % 3}:test") for number in range(35)]
        self.assertEqual(self.put(*keys).count, 35)
        self.assertEqual(len(self.stored("!r0:test")["sessions"]), 12)
        self.assertEqual(self.get(self.keys.delete_backup_keys(ALICE, self.version, None, None)).count, 0)
        self.put(*keys)
        self.get(self.keys.delete_backup(ALICE, self.version))
        self.assertEqual(self.get(self.database.read(table.keys, int(self.version))), [])

    def test_a_deactivated_users_keys_are_deleted_later(self) -> None:
        self.put(key("a"), key("b"))
        self.successResultOf(self.database.write(self.keys.account_deactivated, ALICE))
        self.check_refused(self.keys.backup(ALICE, None), 404, "M_NOT_FOUND")
        self.assertEqual(len(self.get(self.database.read(table.keys, int(self.version)))), 2)
        self.get(self.keys.prune())
        self.assertEqual(self.get(self.database.read(table.keys, int(self.version))), [])

    def test_limits(self) -> None:
        put = self.keys.put_backup_keys
        self.check_refused(put(ALICE, self.version, [key("\0")]), 400, "M_INVALID_PARAM")
        self.check_refused(put(ALICE, self.version, [key("x" * 256)]), 400, "M_INVALID_PARAM")
        self.check_refused(put(ALICE, self.version, [key(room_id="")]), 400, "M_INVALID_PARAM")
        self.check_refused(put(ALICE, self.version, [key(data="x" * 17_000)]), 413, "M_TOO_LARGE")
        self.check_refused(self.keys.create_backup(ALICE, "", b"{}"), 400, "M_INVALID_PARAM")
        self.check_refused(self.keys.create_backup(ALICE, "a", b" " * 70_000), 413, "M_TOO_LARGE")
        self.patch(key_backup, "KEYS_LIMIT", 2)
        self.put(key("a"), key("b"))
        self.check_refused(put(ALICE, self.version, [key("c")]), 413, "M_TOO_LARGE")
        self.put(key("a", verified=True))
        self.patch(key_backup, "VERSIONS_LIMIT", 2)
        self.create()
        self.check_refused(self.keys.create_backup(ALICE, "a", b"{}"), 403, "M_FORBIDDEN")
        self.create(BOB)

    def test_numbers_of_deleted_versions_are_forgotten_in_the_end(self) -> None:
        self.patch(table, "DELETED_KEPT", 2)
        versions = [self.create() for _ in range(4)]
        for version in versions:
            self.get(self.keys.delete_backup(ALICE, version))
        self.check_refused(self.keys.delete_backup(ALICE, versions[0]), 404, "M_NOT_FOUND")
        self.get(self.keys.delete_backup(ALICE, versions[3]))

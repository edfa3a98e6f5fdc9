"""Who is found by whom, and by what."""

from __future__ import annotations

from typing import Any

from dendrite_tw.database.statements import Transaction, many
from dendrite_tw.room_api.user_directory import searched, words_of
from tests.room_api.story import ALICE, BOB, CAROL, RoomStory


@many(int, "SELECT DISTINCT user_nid FROM directory_words")
def listed(txn: Transaction) -> None: ...


class UserDirectoryTests(RoomStory):
    def setUp(self) -> None:
        super().setUp()
        self.users.profiles = {
            BOB: {"displayname": "Robert Bücher", "avatar_url": "mxc://test/bob"},
            CAROL: {"displayname": "Carol"},
        }

    def found(self, term: str, user: str = ALICE, limit: int = 10) -> list[str]:
        users, _ = self.do(self.rooms.search_users(user, term, limit))
        return [user.user_id for user in users]

    def join(self, room_id: str, user: str) -> None:
        self.member(room_id, user, "join", profile=self.users.profiles.get(user, {}))

    def test_terms(self) -> None:
        self.join(self.create(preset="public_chat"), BOB)
        for term in ("rob", "ROBERT", "büch", "BÜCHER", "bob", "@bob", "@bob:te", "bob:test", "buc rob", "rob büc"):
            self.assertEqual(self.found(term), [BOB] if term != "buc rob" else [], term)
        for term in ("", "  ", "@", "obert", "rob x", "bob:other", "\0"):
            self.assertEqual(self.found(term), [], term)
        user = self.do(self.rooms.search_users(ALICE, "rob", 10))[0][0]
        self.assertEqual((user.display_name, user.avatar_url), ("Robert Bücher", "mxc://test/bob"))

    def test_public_rooms_show_their_members(self) -> None:
        room_id = self.create(preset="public_chat")
        self.assertEqual(self.found("bob", BOB), [])
        self.join(room_id, BOB)
        self.assertEqual((self.found("bob", BOB), self.found("bob", CAROL)), ([BOB], [BOB]))
        self.member(room_id, BOB, "leave")
        self.assertEqual((self.found("bob", BOB), self.found("bob", CAROL)), ([], []))
        self.assertEqual(len(self.database.prepare(listed)), 1)

    def test_private_rooms_show_their_members_to_each_other(self) -> None:
        rooms = [self.create(invite=[BOB]) for _ in range(2)]
        self.assertEqual(self.found("bob"), [])
        for room_id in rooms:
            self.join(room_id, BOB)
        self.assertEqual((self.found("bob"), self.found("bob", BOB), self.found("bob", CAROL)), ([BOB], [], []))
        self.member(rooms[0], BOB, "leave")
        self.assertEqual(self.found("bob"), [BOB])
        self.member(rooms[1], BOB, "leave")
        self.assertEqual(self.found("bob"), [])

    def test_rooms_open_and_close(self) -> None:
        room_id = self.create(invite=[BOB])
        self.join(room_id, BOB)

        def both(rule: str, visibility: str) -> Any:
            self.set_state(room_id, ALICE, "m.room.join_rules", {"join_rule": rule})
            self.set_state(room_id, ALICE, "m.room.history_visibility", {"history_visibility": visibility})
            return self.found("bob", CAROL) == [BOB]

        seen = [both(rule, visibility) for rule in ("invite", "public") for visibility in ("shared", "world_readable")]
        self.assertEqual(seen, [False, True, True, True])
        self.assertFalse(both("invite", "joined"))

    def test_a_new_name_is_found(self) -> None:
        self.join(self.create(preset="public_chat"), BOB)
        self.users.profiles[BOB] = {"displayname": "Bert"}
        self.do(self.rooms.update_profile(BOB, {"displayname": "Bert"}))
        self.assertEqual((self.found("bert"), self.found("robert")), ([BOB], []))

    def test_a_name_for_one_room_stays_there(self) -> None:
        self.join(self.create(preset="public_chat"), BOB)
        den = self.create(preset="private_chat", invite=[BOB])
        self.member(den, BOB, "join", content={"displayname": "Honey"})
        self.assertEqual(self.found("honey"), [])
        self.assertEqual(self.do(self.rooms.search_users(ALICE, "bob", 5))[0][0].display_name, "Robert Bücher")

    def test_best_matches_first_and_limits(self) -> None:
        room_id = self.create(preset="public_chat")
        for name in ("anna", "annabel", "ann", "x1"):
            profile = {"displayname": "Ann Other"} if name == "x1" else {}
            self.member(room_id, f"@{name}:test", "join", profile=profile)
        self.assertEqual(self.found("ann"), ["@x1:test", "@ann:test", "@anna:test", "@annabel:test"])
        users, limited = self.do(self.rooms.search_users(ALICE, "ann", 2))
        self.assertEqual((len(users), limited), (2, True))
        self.assertFalse(self.do(self.rooms.search_users(ALICE, "ann", 4))[1])

    def test_words_are_bounded(self) -> None:
        words = words_of("@" + "x" * 250, " ".join(f"word{number}" for number in range(1000)) + "y" * 300)
        self.assertLessEqual(len(words), 12)
        self.assertTrue(all(len(word) <= 64 for word in words))
        self.assertLessEqual(len(searched(" ".join(str(number) for number in range(1000)))), 12)

"""What other servers are told of rooms: whom, what, how much and in which order."""

from __future__ import annotations

from typing import Any

import orjson

from dendrite_tw.matrix.events import Event, parse_event
from dendrite_tw.matrix.room_versions import ROOM_VERSIONS
from dendrite_tw.room_api import graph, server_view, serving, store
from dendrite_tw.room_api.serving import MISSING_LIMIT
from dendrite_tw.room_api.tables.events import SOFT_FAILED
from dendrite_tw.user_api.api import Account
from tests.room_api.federated import count
from tests.room_api.history import ALICE, BERTA, BOB, CAROL, DAN, MEMBER, MESSAGE, VISIBILITY, HistoryStory

WHOLE, REDACTED, ABSENT = "whole", "redacted", "absent"


class Serving(HistoryStory):
    def form(self, origin: str, event_id: str) -> str:
        """In which form a server is given an event."""
        found = self.do(self.a.rooms.events_for_server(origin, [event_id]))
        if event_id not in found:
            return ABSENT
        return WHOLE if orjson.loads(found[event_id])["content"] else REDACTED

    def take(self, room_id: str, sender: str, content: dict[str, Any], target: str) -> None:
        """Let a member event of another server in."""
        server = self.network.servers[sender.partition(":")[2]]
        event = server.make_on(self.a, room_id, sender, MEMBER, content, target)
        self.assertEqual([one.verdict for one in self.a.take(room_id, [event])], ["accepted"])

    def join(self, room_id: str, user: str) -> None:
        self.take(room_id, user, {"membership": "join"}, user)

    def invite(self, room_id: str, user: str) -> None:
        self.take(room_id, ALICE, {"membership": "invite"}, user)

    def leave(self, room_id: str, user: str) -> None:
        self.take(room_id, user, {"membership": "leave"}, user)


class VisibilityTests(Serving):
    def test_each_visibility_against_each_standing_of_a_server(self) -> None:
        """What is said before an invitation, during it, while joined, and after leaving."""
        expected = {
            # visibility: what the server may see while it is in the room again, and after it has left for good
            "world_readable": ((WHOLE,) * 4, (WHOLE,) * 4),
            "shared": ((WHOLE,) * 4, (WHOLE, WHOLE, WHOLE, ABSENT)),
            "invited": ((REDACTED, WHOLE, WHOLE, REDACTED), (ABSENT, WHOLE, WHOLE, ABSENT)),
            "joined": ((REDACTED, REDACTED, WHOLE, REDACTED), (ABSENT, ABSENT, WHOLE, ABSENT)),
        }
        for version in ("10", "12"):
            for visibility, (when_in, when_left) in expected.items():
                room_id = self.room(room_version=version)
                self.a.send(room_id, ALICE, VISIBILITY, {"history_visibility": visibility}, "")
                said = [self.a.say(room_id, ALICE, "before")]
                self.invite(room_id, BOB)
                said.append(self.a.say(room_id, ALICE, "invited"))
                self.join(room_id, BOB)
                said.append(self.a.say(room_id, ALICE, "joined"))
                self.leave(room_id, BOB)
                said.append(self.a.say(room_id, ALICE, "left"))
                self.assertEqual(tuple(self.form("b", one) for one in said), when_left, visibility)
                self.join(room_id, BERTA)
                self.assertEqual(tuple(self.form("b", one) for one in said), when_in, visibility)
                never = WHOLE if visibility == "world_readable" else ABSENT
                self.assertEqual({self.form("c", one) for one in said}, {never})

    def test_a_user_who_is_only_invited_brings_a_server_nothing_but_what_the_world_may_read(self) -> None:
        room_id = self.room()
        self.invite(room_id, BOB)
        said = self.a.say(room_id, ALICE, "secret")
        self.assertEqual(self.form("b", said), ABSENT)
        self.refused(self.a.rooms.backfill_for_server("b", room_id, [said], 10), "M_FORBIDDEN", 403)

    def test_the_event_that_changes_the_visibility_counts_on_both_sides(self) -> None:
        room_id = self.room()
        self.a.send(room_id, ALICE, VISIBILITY, {"history_visibility": "joined"}, "")
        opened = self.a.send(room_id, ALICE, VISIBILITY, {"history_visibility": "world_readable"}, "")
        closed = self.a.send(room_id, ALICE, VISIBILITY, {"history_visibility": "joined"}, "")
        shut = self.a.send(room_id, ALICE, VISIBILITY, {"history_visibility": "joined", "again": True}, "")
        self.assertEqual([self.form("b", one) for one in (opened, closed, shut)], [WHOLE, WHOLE, ABSENT])

    def test_a_join_of_ones_own_is_seen(self) -> None:
        room_id = self.room()
        self.a.send(room_id, ALICE, VISIBILITY, {"history_visibility": "joined"}, "")
        self.join(room_id, BOB)
        joined = self.a.state(room_id)[MEMBER, BOB]
        self.leave(room_id, BOB)
        self.assertEqual(self.form("b", joined), WHOLE)
        self.join(room_id, CAROL)
        # Redacted, a join still says that it is one; what else is in it does not travel.
        found = self.do(self.a.rooms.events_for_server("c", [joined]))
        self.assertEqual(orjson.loads(found[joined])["content"], {"membership": "join"})

    def test_a_server_with_many_users_needs_but_one_who_was_there(self) -> None:
        room_id = self.room()
        self.a.send(room_id, ALICE, VISIBILITY, {"history_visibility": "joined"}, "")
        self.patch(server_view, "SLOTS_AT_ONCE", 3)
        for number in range(8):
            self.join(room_id, f"@late{number}:b")
        early = self.a.say(room_id, ALICE, "seen by one")
        self.assertEqual(self.form("b", early), WHOLE)
        for number in range(1, 8):
            self.leave(room_id, f"@late{number}:b")
        self.assertEqual(self.form("b", self.a.say(room_id, ALICE, "still")), WHOLE)
        self.leave(room_id, "@late0:b")
        after = self.a.say(room_id, ALICE, "nobody there")
        self.join(room_id, "@new:b")
        self.assertEqual(self.form("b", after), REDACTED)

    def test_a_server_that_the_room_keeps_out_is_given_nothing(self) -> None:
        room_id = self.room()
        self.join(room_id, BOB)
        said = self.a.say(room_id, ALICE, "hello")
        self.assertEqual(self.form("b", said), WHOLE)
        self.a.send(room_id, ALICE, "m.room.server_acl", {"allow": ["*"], "deny": ["b"]}, "")
        self.assertEqual(self.form("b", said), ABSENT)

    def test_what_was_redacted_is_given_redacted(self) -> None:
        room_id = self.room()
        self.join(room_id, BOB)
        said = self.a.say(room_id, ALICE, "oops")
        redaction = self.a.send(room_id, ALICE, "m.room.redaction", {}, redacts=said)
        self.assertEqual([self.form("b", said), self.form("b", redaction)], [REDACTED, REDACTED])
        self.assertEqual(self.do(self.a.rooms.events_for_server("b", ["$unknown"])), {})

    def test_erased_users_are_redacted_for_servers_that_were_not_there(self) -> None:
        room_id = self.room()
        self.join(room_id, BOB)
        said = self.a.say(room_id, ALICE, "mine")
        self.join(room_id, CAROL)
        account = Account(user_id=ALICE, account_type=1, created_ts=0, erased=True)

        async def erased(user_id: str) -> Account | None:
            return account if user_id == ALICE else None

        self.assertEqual(self.form("c", said), WHOLE)
        self.a.users.account = erased  # type: ignore[method-assign]
        self.assertEqual([self.form("b", said), self.form("c", said)], [WHOLE, REDACTED])
        self.leave(room_id, CAROL)
        self.assertEqual(self.form("c", said), REDACTED)


class StateTests(Serving):
    def test_the_state_before_an_event_and_its_authority(self) -> None:
        for version in ROOM_VERSIONS:
            room_id = self.room(room_version=version)
            self.join(room_id, BOB)
            before = set(self.a.state(room_id).values())
            topic = self.a.send(room_id, ALICE, "m.room.topic", {"topic": "t"}, "")
            state, chain = self.do(self.a.rooms.state_ids_for_server("b", room_id, topic))
            self.assertEqual(set(state), before)
            self.assertEqual(len(state), len(before))
            authority = {event.event_id for event in self.a.chain([self.a.event(one) for one in state])}
            self.assertEqual(set(chain), authority)
            named = {event.event_id for event in self.a.chain([self.a.event(topic)])}
            named.add(self.a.state(room_id)["m.room.create", ""])
            self.assertEqual(set(self.do(self.a.rooms.event_auth_for_server("b", room_id, topic))), named)
            create = self.a.state(room_id)["m.room.create", ""]
            self.assertEqual(self.do(self.a.rooms.state_ids_for_server("b", room_id, create)), ([], []))
            self.assertEqual(self.do(self.a.rooms.event_auth_for_server("b", room_id, create)), [])

    def test_who_may_not_ask(self) -> None:
        room_id, other = self.room(), self.room()
        said = self.a.say(room_id, ALICE, "hello")
        for ask in (self.a.rooms.state_ids_for_server, self.a.rooms.event_auth_for_server):
            self.refused(ask("b", room_id, said), "M_FORBIDDEN", 403)
            self.refused(ask("b", "!nowhere:a", said), "M_NOT_FOUND", 404)
        self.join(room_id, BOB)
        elsewhere = self.a.say(other, ALICE, "elsewhere")
        for ask in (self.a.rooms.state_ids_for_server, self.a.rooms.event_auth_for_server):
            self.do(ask("b", room_id, said))
            for unknown in ("$unknown", elsewhere):
                self.refused(ask("b", room_id, unknown), "M_NOT_FOUND", 404)
        self.leave(room_id, BOB)
        after = self.a.say(room_id, ALICE, "bob is gone")
        for ask in (self.a.rooms.state_ids_for_server, self.a.rooms.event_auth_for_server):
            self.do(ask("b", room_id, said))
            self.refused(ask("b", room_id, after), "M_FORBIDDEN", 403)

    def test_the_state_before_an_event_apart_from_the_timeline_is_not_known(self) -> None:
        room_id = self.room()
        topic = self.a.send(room_id, ALICE, "m.room.topic", {"topic": "t"}, "")
        self.a.let_join(self.b, room_id, BOB)
        self.refused(self.b.rooms.state_ids_for_server("a", room_id, topic), "M_NOT_FOUND", 404)
        chain = self.do(self.b.rooms.event_auth_for_server("a", room_id, topic))
        self.assertEqual(set(chain), {event.event_id for event in self.a.chain([self.a.event(topic)])})
        self.assertIn(topic, self.do(self.b.rooms.events_for_server("a", [topic])))
        self.assertEqual(self.do(self.b.rooms.events_for_server("c", [topic])), {})


class WalkTests(Serving):
    def setUp(self) -> None:
        super().setUp()
        self.room_id = self.room()
        self.join(self.room_id, BOB)
        self.root = self.a.say(self.room_id, ALICE, "root")

    def message(self, name: str, *prev: str, sender: str = BOB, **more: Any) -> str:
        """A message of another server after some events; returns its ID."""
        server = self.network.servers[sender.partition(":")[2]]
        before = [self.a.event(event_id) for event_id in prev]
        event = server.make_on(self.a, self.room_id, sender, MESSAGE, {"body": name}, prev=before, **more)
        self.a.take(self.room_id, [event])
        return event.event_id

    def missing(self, earliest: list[str], latest: list[str], limit: int = 20, min_depth: int = 0) -> list[str]:
        return self.ids(
            self.do(self.a.rooms.missing_events_for_server("b", self.room_id, earliest, latest, limit, min_depth))
        )

    def backfill(self, event_ids: list[str], limit: int = 100) -> list[str]:
        return self.ids(self.do(self.a.rooms.backfill_for_server("b", self.room_id, event_ids, limit)))

    def ids(self, pdus: list[bytes]) -> list[str]:
        return [parse_event(pdu, ROOM_VERSIONS["10"]).event_id for pdu in pdus]

    def diamond(self) -> dict[str, str]:
        """root - left1 - left2 - end, and root - right - end."""
        made = {"root": self.root}
        made["left1"] = self.message("left1", self.root)
        made["left2"] = self.message("left2", made["left1"])
        made["right"] = self.message("right", self.root)
        made["end"] = self.message("end", made["left2"], made["right"])
        return made

    def test_missing_events_on_a_fork(self) -> None:
        made = self.diamond()
        found = self.missing([self.root], [made["end"]])
        self.assertEqual(set(found), {made["left1"], made["left2"], made["right"]})
        self.assertLess(found.index(made["left1"]), found.index(made["left2"]))
        # Breadth first: what is near goes before what is far.
        self.assertEqual(set(self.missing([self.root], [made["end"]], 2)), {made["left2"], made["right"]})
        self.assertEqual(set(self.missing([made["left1"]], [made["end"]])) & {made["left1"]}, set())
        self.assertEqual(self.missing([made["left2"], made["right"]], [made["end"]]), [])
        self.assertEqual(self.missing([self.root], [made["left2"], made["right"]]), [made["left1"]])

    def test_bounds_of_missing_events(self) -> None:
        last = self.root
        depth = self.a.event(self.root).depth
        said = []
        for number in range(MISSING_LIMIT + 10):
            last = self.message(f"m{number}", last)
            said.append(last)
        self.assertEqual(self.missing([], [last], 1000), said[-MISSING_LIMIT - 1 : -1])
        self.assertEqual(self.missing([], [last], 20, depth + 28), said[27:-1])
        self.assertEqual(self.missing([], [last], 0), [])
        self.assertEqual(self.missing([], ["$unknown", self.a.say(self.room(), ALICE, "elsewhere")]), [])
        self.refused(self.a.rooms.missing_events_for_server("d", self.room_id, [], [last], 10, 0), "M_FORBIDDEN", 403)

    def test_backfill_begins_with_what_was_named_and_goes_back(self) -> None:
        made = self.diamond()
        depth = {event_id: self.a.event(event_id).depth for event_id in made.values()}
        found = self.backfill([made["end"]], 5)
        self.assertEqual(found[:2], [made["end"], made["left2"]])
        self.assertEqual(set(found[2:4]), {made["left1"], made["right"]})
        self.assertEqual(found[4], self.root)
        self.assertEqual([depth[one] for one in found], sorted(depth.values(), reverse=True))
        self.assertEqual(self.backfill([made["right"]], 2), [made["right"], self.root])
        self.assertEqual(self.backfill([made["left1"], made["right"]], 3)[2], self.root)
        everything = self.backfill([made["end"]])
        self.assertEqual(everything[-1], self.a.state(self.room_id)["m.room.create", ""])
        self.assertEqual(len(everything), len(set(everything)))
        self.assertEqual(self.backfill(["$unknown"]), [])
        self.assertEqual(self.backfill([made["end"]], 0), [])

    def test_rejected_events_are_passed_over_and_soft_failed_ones_given_where_something_follows_them(self) -> None:
        bad = self.message("not allowed", self.root, sender=DAN)
        self.assertEqual(self.form("b", bad), ABSENT)
        after_bad = self.message("after", bad)
        found = self.backfill([after_bad], 2)
        self.assertEqual(found, [after_bad, self.root])
        self.assertEqual(self.missing([], [after_bad], 1), [self.root])
        self.refused(self.a.rooms.state_ids_for_server("b", self.room_id, bad), "M_NOT_FOUND", 404)

        branch = self.a.event(self.root)
        self.a.change(self.room_id, ALICE, "ban", BERTA)
        join = self.b.make_on(
            self.a, self.room_id, BERTA, MEMBER, {"membership": "join"}, BERTA, prev=[branch], state=self.before_ban()
        )
        self.a.take(self.room_id, [join])
        self.assertEqual(self.a.status(join.event_id), SOFT_FAILED)
        self.assertEqual(self.form("b", join.event_id), WHOLE)
        self.assertNotIn(join.event_id, self.backfill(list(self.a.room(self.room_id).head.extremities)))
        follower = self.message("follows", join.event_id)
        self.assertIn(join.event_id, self.backfill([follower]))
        self.assertIn(join.event_id, self.missing([], [follower]))

    def before_ban(self) -> list[Event]:
        state = self.a.state(self.room_id)
        return [self.a.event(event_id) for key, event_id in state.items() if key != (MEMBER, BERTA)]

    def test_what_a_server_may_not_read_is_redacted_and_the_walk_goes_on(self) -> None:
        self.a.send(self.room_id, ALICE, VISIBILITY, {"history_visibility": "joined"}, "")
        self.leave(self.room_id, BOB)
        secret = self.a.say(self.room_id, ALICE, "secret")
        self.join(self.room_id, BOB)
        last = self.a.say(self.room_id, ALICE, "open")
        pdus = self.do(self.a.rooms.backfill_for_server("b", self.room_id, [last], 100))
        found = dict(zip(self.ids(pdus), map(orjson.loads, pdus), strict=True))
        self.assertEqual(found[secret]["content"], {})
        self.assertEqual(found[last]["content"]["body"], "open")
        self.assertEqual(found[self.root]["content"]["body"], "root")
        self.leave(self.room_id, BOB)
        pdus = self.do(self.a.rooms.backfill_for_server("b", self.room_id, [last], 100))
        self.assertNotIn(secret, self.ids(pdus))
        self.assertIn(self.root, self.ids(pdus))

    def test_the_event_nearest_to_a_time(self) -> None:
        clock = self.network.memory.world.clock
        ts = self.a.event(self.root).origin_server_ts
        self.network.memory.clock.advance(60)
        later = self.a.say(self.room_id, ALICE, "later")
        self.assertGreater(clock.now_ms(), ts)

        def near(origin: str, ts: int, direction: str) -> Any:
            return self.a.rooms.timestamp_to_event_for_server(origin, self.room_id, ts, direction)

        self.assertEqual(self.do(near("b", ts + 1, "f")), (later, self.a.event(later).origin_server_ts))
        self.assertEqual(self.do(near("b", ts + 1, "b"))[1], ts)
        self.refused(near("b", clock.now_ms() + 1, "f"), "M_NOT_FOUND", 404)
        self.refused(near("d", ts, "f"), "M_FORBIDDEN", 403)
        self.leave(self.room_id, BOB)
        self.network.memory.clock.advance(60)
        self.a.say(self.room_id, ALICE, "not for b")
        self.refused(near("b", clock.now_ms(), "f"), "M_NOT_FOUND", 404)


class BigRoomTests(Serving):
    def test_the_state_of_a_room_is_read_in_pieces(self) -> None:
        """Chains that were never made are made without reading all of the state's events at once."""
        room_id = self.room()
        for module, name in ((graph, "FEW"), (graph, "AT_ONCE"), (store, "FEW")):
            self.patch(module, name, 7)
        self.patch(serving, "PIECE", 7)
        for number in range(40):
            self.join(room_id, f"@u{number}:b")
        last = self.a.say(room_id, ALICE, "many")
        self.a.restart()
        for _ in range(2):
            state, chain = self.do(self.a.rooms.state_ids_for_server("b", room_id, last))
            self.assertEqual(set(state), set(self.a.state(room_id).values()))
            self.assertEqual(len(state), len(set(state)))
            self.assertEqual(set(chain), {one.event_id for one in self.a.chain([self.a.event(one) for one in state])})
        self.assertGreater(self.a.database.prepare(count, "auth_chains"), 40)

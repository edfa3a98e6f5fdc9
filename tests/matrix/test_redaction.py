"""What each room version protects from redaction."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.matrix.redaction import redact
from dendrite_tw.matrix.room_versions import ROOM_V10, ROOM_V11, ROOM_V12, ROOM_VERSIONS
from tests.matrix.strategies import bounded, json_objects

TOP_LEVEL = [
    "event_id",
    "type",
    "room_id",
    "sender",
    "state_key",
    "content",
    "hashes",
    "signatures",
    "depth",
    "prev_events",
    "auth_events",
    "origin_server_ts",
]

# Event type, content key, first and last version in which the key survives.
CONTENT = [
    ("m.room.member", "membership", 1, 12),
    ("m.room.member", "join_authorised_via_users_server", 9, 12),
    ("m.room.create", "creator", 1, 12),
    ("m.room.create", "room_version", 11, 12),
    ("m.room.create", "anything", 11, 12),
    ("m.room.join_rules", "join_rule", 1, 12),
    ("m.room.join_rules", "allow", 8, 12),
    ("m.room.power_levels", "ban", 1, 12),
    ("m.room.power_levels", "events", 1, 12),
    ("m.room.power_levels", "events_default", 1, 12),
    ("m.room.power_levels", "kick", 1, 12),
    ("m.room.power_levels", "redact", 1, 12),
    ("m.room.power_levels", "state_default", 1, 12),
    ("m.room.power_levels", "users", 1, 12),
    ("m.room.power_levels", "users_default", 1, 12),
    ("m.room.power_levels", "invite", 11, 12),
    ("m.room.power_levels", "notifications", 0, 0),
    ("m.room.aliases", "aliases", 1, 5),
    ("m.room.history_visibility", "history_visibility", 1, 12),
    ("m.room.redaction", "redacts", 11, 12),
    ("m.room.redaction", "reason", 0, 0),
    ("m.room.message", "body", 0, 0),
    ("m.room.name", "name", 0, 0),
]

EVENT_TYPES = sorted({row[0] for row in CONTENT})


def everything(event_type: str, content: dict[str, Any]) -> dict[str, Any]:
    pdu = dict.fromkeys(TOP_LEVEL, "x") | {"type": event_type, "content": content}
    return pdu | dict.fromkeys(("prev_state", "origin", "membership", "unsigned", "redacts", "other"), "y")


class RedactionTests(SynchronousTestCase):
    def test_top_level_keys(self):
        for version in ROOM_VERSIONS.values():
            older = [] if version.updated_redaction_rules else ["prev_state", "origin", "membership"]
            kept = redact(everything("m.room.message", {"body": "x"}), version)
            self.assertEqual(sorted(kept), sorted(TOP_LEVEL + older), version)
            self.assertEqual(kept["content"], {})

    def test_content_keys(self):
        for event_type, key, first, last in CONTENT:
            for name, version in ROOM_VERSIONS.items():
                content = redact(everything(event_type, {key: "v", "zzz": 1}), version)["content"]
                whole = event_type == "m.room.create" and version.updated_redaction_rules
                expected = {key: "v"} if first <= int(name) <= last else {}
                self.assertEqual(content, expected | ({"zzz": 1} if whole else {}), (event_type, key, name))

    def test_third_party_invite_keeps_signed(self):
        content = {
            "membership": "invite",
            "third_party_invite": {"signed": {"mxid": "@a:b"}, "display_name": "A"},
        }
        self.assertEqual(redact(everything("m.room.member", content), ROOM_V10)["content"], {"membership": "invite"})
        for version in (ROOM_V11, ROOM_V12):
            self.assertEqual(
                redact(everything("m.room.member", content), version)["content"],
                {"membership": "invite", "third_party_invite": {"signed": {"mxid": "@a:b"}}},
            )

    def test_malformed_third_party_invite(self):
        for odd in (None, "x", [], 7):
            kept = redact(everything("m.room.member", {"third_party_invite": odd}), ROOM_V11)
            self.assertEqual(kept["content"], {})

    @bounded
    @given(
        st.sampled_from(EVENT_TYPES),
        json_objects,
        st.sampled_from(list(ROOM_VERSIONS.values())),
        st.lists(st.sampled_from(CONTENT), max_size=6),
    )
    def test_idempotent_and_pure(self, event_type, content, version, known):
        content = content | {row[1]: {"signed": 1, "x": 2} for row in known}
        pdu = everything(event_type, content)
        before = everything(event_type, dict(content))
        once = redact(pdu, version)
        self.assertEqual(redact(once, version), once)
        self.assertEqual(pdu, before)
        self.assertLessEqual(set(once), set(pdu))

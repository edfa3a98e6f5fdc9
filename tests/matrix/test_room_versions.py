"""The table of room versions against the feature matrix of the specification."""

from __future__ import annotations

import pickle

from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.matrix.room_versions import DEFAULT_ROOM_VERSION, ROOM_V1, ROOM_VERSIONS, room_version

# The first and the last version with the trait as given.
TRAITS = [
    ("event_format", "ids", 3, 12),
    ("event_id_format", "origin", 1, 2),
    ("event_id_format", "hash", 3, 3),
    ("event_id_format", "urlsafe_hash", 4, 12),
    ("redaction_in_auth_rules", True, 1, 2),
    ("state_resolution", "v1", 1, 1),
    ("state_resolution", "v2", 2, 11),
    ("state_resolution", "v2.1", 12, 12),
    ("enforce_key_validity", True, 5, 12),
    ("strict_canonical_json", True, 6, 12),
    ("max_depth", 2**53 - 1, 6, 12),
    ("special_case_aliases_auth", True, 1, 5),
    ("redaction_keeps_aliases", True, 1, 5),
    ("limit_notifications_power_levels", True, 6, 12),
    ("knocking", True, 7, 12),
    ("restricted_joins", True, 8, 12),
    ("redaction_keeps_allow", True, 8, 12),
    ("redaction_keeps_join_authorised", True, 9, 12),
    ("knock_restricted", True, 10, 12),
    ("integer_power_levels", True, 10, 12),
    ("implicit_room_creator", True, 11, 12),
    ("updated_redaction_rules", True, 11, 12),
    ("redacts_in_content", True, 11, 12),
    ("room_ids_as_hashes", True, 12, 12),
    ("privileged_creators", True, 12, 12),
    ("create_event_in_auth_events", True, 1, 11),
]


class RoomVersionTests(SynchronousTestCase):
    def test_traits(self):
        for trait, value, first, last in TRAITS:
            having = [int(name) for name, version in ROOM_VERSIONS.items() if getattr(version, trait) == value]
            self.assertEqual(having, list(range(first, last + 1)), trait)

    def test_names(self):
        self.assertEqual(list(ROOM_VERSIONS), [str(n) for n in range(1, 13)])
        self.assertTrue(all(version.stable for version in ROOM_VERSIONS.values()))
        self.assertIn(DEFAULT_ROOM_VERSION, ROOM_VERSIONS)
        self.assertIs(room_version("1"), ROOM_V1)
        self.assertRaises(KeyError, room_version, "13")

    def test_identity_survives_pickling(self):
        for version in ROOM_VERSIONS.values():
            self.assertIs(pickle.loads(pickle.dumps(version)), version)

    def test_frozen(self):
        self.assertRaises(AttributeError, setattr, ROOM_V1, "knocking", True)

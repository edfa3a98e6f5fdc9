"""The grammar of identifiers: what it lets in, what it keeps out."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.matrix import identifiers as ids

HASH = "Rqnc-F-dvnEYJTyHq_iKxU2bZ1CI92-kuZq3a5lr5Zg"


class GrammarTests(SynchronousTestCase):
    def check(self, accept, good, bad):
        for value in good:
            self.assertTrue(accept(value), f"{accept.__name__} must accept {value!r}")
        for value in (*bad, None, 7, [], b"@a:b"):
            self.assertFalse(accept(value), f"{accept.__name__} must refuse {value!r}")

    def test_server_name(self):
        self.check(
            ids.is_server_name,
            [
                "matrix.org",
                "matrix.org:65535",
                "matrix.org:8888",
                "255.255.255.255",
                "1.2.3.4",
                "1.2.3.4:1234",
                "[1234:5678::abcd]",
                "[1234:5678::abcd]:5678",
                "[::ffff:1.2.3.4]",
                "localhost",
                "UPPER.example",
                "a" * 255,
            ],
            [
                "",
                ":80",
                "matrix.org:",
                "matrix.org:x",
                "matrix.org:123456",
                "matrix.org:65536",
                "under_score.example",
                "1.2.3.256",
                "1.2.3.400",
                "[1.2.3.4",
                "[]",
                "[::1",
                "::1",
                "[1::2::3]",
                "a/b",
                "a b",
                "matrix.org\n",
                "ünder.example",
                "a" * 256,
            ],
        )

    def test_user_id(self):
        self.check(
            ids.is_user_id,
            ["@alice:example.org", "@a.b_c=d-e/f+9:example.org:80", "@a:[::1]"],
            [
                "alice:example.org",
                "@:example.org",
                "@Alice:example.org",
                "@a",
                "@a:",
                "@ä:example.org",
                "@a b:c",
            ],
        )

    def test_historical_user_id(self):
        self.check(
            ids.is_historical_user_id,
            ["@alice:example.org", "@:example.org", "@Alice:example.org", "@ä\x01 b:example.org"],
            ["@a", "@a:", "@a\0b:example.org", "@\ud800:example.org", "@a:exa mple.org", "#a:example.org"],
        )

    def test_user_id_length_counts_bytes(self):
        def user_id(local, total):
            return "@" + local * ((total - 3) // len(local.encode())) + ":b"

        self.assertEqual(len(user_id("a", 255)), 255)
        self.assertTrue(ids.is_user_id(user_id("a", 255)))
        self.assertFalse(ids.is_user_id(user_id("a", 256)))
        self.assertEqual(len(user_id("ä", 255).encode()), 255)
        self.assertTrue(ids.is_historical_user_id(user_id("ä", 255)))
        self.assertFalse(ids.is_historical_user_id(user_id("ä", 257)))

    def test_room_id(self):
        self.check(
            ids.is_room_id,
            ["!abc:example.org", "!ä b:example.org", f"!{HASH}"],
            ["!", "!abc", f"!{HASH}x", f"!{HASH[:-1]}", "!a\0:b", "!:example.org", f"${HASH}", f"!{HASH}\n"],
        )
        self.assertTrue(ids.is_hash_room_id(f"!{HASH}"))
        self.assertFalse(ids.is_hash_room_id("!abc:example.org"))
        self.assertFalse(ids.is_domain_room_id(f"!{HASH}"))

    def test_room_alias(self):
        self.check(
            ids.is_room_alias,
            ["#room:example.org", "#Zürich 2:example.org"],
            ["#room", "room:example.org", "#a\0:example.org", "#:example.org", "#" + "a" * 250 + ":b.org"],
        )

    def test_event_id(self):
        self.check(
            ids.is_event_id,
            [f"${HASH}", "$acR1l0raoZnm60CBwAVgqbZqoO/mYU81xysh1u7XcJk", "$143:example.org", "$x"],
            ["$", "143:example.org", "$" + "a" * 255, "$a\0"],
        )
        self.check(ids.is_domain_event_id, ["$143:example.org"], [f"${HASH}", "$:example.org"])

    def test_localpart_for_registration(self):
        self.check(
            ids.is_valid_localpart_for_registration,
            ["alice", "a.b_c=d-e/f+9"],
            ["", "Alice", "a:b", "a b", "ä", "alice\n"],
        )

    def test_opaque_identifier(self):
        self.check(ids.is_opaque_identifier, ["a", "A.b-c_d~9", "x" * 255], ["", "a/b", "x" * 256, "a\n"])

    def test_namespaced_identifier(self):
        self.check(
            ids.is_namespaced_identifier,
            ["m.room.message", "org.example-1_x", "a" * 255],
            ["", "1a", "M.room", ".a", "a" * 256, "a/b"],
        )

    def test_mxc(self):
        self.check(
            ids.is_mxc_uri,
            ["mxc://example.org/abcDEF_-0", "mxc://[::1]:80/a"],
            [
                "http://example.org/a",
                "mxc://example.org",
                "mxc://example.org/",
                "mxc://example.org/a/b",
                "mxc://example.org/../a",
                "mxc:///a",
                "mxc://exa mple/a",
                "mxc://example.org/a?b",
            ],
        )
        self.assertEqual(ids.parse_mxc("mxc://example.org:80/abc"), ("example.org:80", "abc"))


class PartsTests(SynchronousTestCase):
    def test_parts(self):
        self.assertEqual(ids.server_name_of("@a:example.org:8448"), "example.org:8448")
        self.assertEqual(ids.localpart_of("@a:example.org:8448"), "a")
        self.assertEqual(ids.localpart_of("@:example.org"), "")

    def test_no_parts(self):
        for bad in ("", "@a", "@a:", f"!{HASH}"):
            self.assertRaises(ValueError, ids.server_name_of, bad)
        for bad in ("", "@a", ":b"):
            self.assertRaises(ValueError, ids.localpart_of, bad)

"""``dendrite.yaml``: how each kind of value is read, what is refused, and what is only remarked on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.components import SECTIONS, addresses, host_and_port, section_named, sections_named
from dendrite_tw.config import Config, ConfigError, load, loads
from dendrite_tw.config.checks import DATABASES, NOT_YET, value_at
from dendrite_tw.config.reader import MAX_ALIASES, MAX_BYTES, MAX_DEPTH, OLD_KEYS, all_keys
from dendrite_tw.config.samples import changed, generate_config, polylith_sample, render, sample, sample_tree
from dendrite_tw.config.tree import Database, Tree
from dendrite_tw.config.units import (
    format_duration,
    format_size,
    parse_duration,
    parse_nanoseconds,
    parse_size,
)

MINIMAL = """\
version: 2
global:
  server_name: example.com
  private_key: matrix_key.pem
  database:
    connection_string: postgresql://localhost/dendrite
media_api:
  base_path: ./media_store
"""

POLYLITH = MINIMAL.replace("  database:", "  jetstream: {addresses: ['localhost:4222']}\n  database:")

GUIDE = """\
version: 2
global:
  server_name: example.com
  private_key: /etc/dendrite/matrix_key.pem
  database:
    connection_string: postgresql://dendrite:password@localhost/dendrite?sslmode=disable
    max_open_conns: 90
    max_idle_conns: 5
    conn_max_lifetime: -1
  jetstream:
    storage_path: /var/dendrite/jetstream
    addresses: []
  key_validity_period: 168h0m0s
  disable_federation: false
  cache:
    max_size_estimated: 1gb
    max_age: 1h
client_api:
  registration_disabled: true
  guests_disabled: true
  registration_shared_secret: "your-secret-here"
media_api:
  base_path: /var/dendrite/media
  max_file_size_bytes: 52428800  # 50MB
  dynamic_thumbnails: true
sync_api:
  real_ip_header: X-Forwarded-For
  search:
    enabled: true
    index_path: /var/dendrite/searchindex
federation_api:
  send_max_retries: 16
  disable_tls_validation: false
  prefer_direct_fetch: false
user_api:
  bcrypt_cost: 10
mscs:
  mscs: []
"""

quick = settings(max_examples=80, deadline=None, derandomize=True)


def problems(text: str, **options: Any) -> list[tuple[str, str, int]]:
    """Kind, key and line of all that is said about a file, whether it can be used or not."""
    try:
        found = loads(text, **options).problems
    except ConfigError as error:
        found = error.problems
    return [(problem.kind, problem.key, problem.line) for problem in found]


def queue_problems(keys: str) -> list[tuple[str, str, int]]:
    """What is said about these keys of ``global.jetstream``."""
    return problems(MINIMAL.replace("  private_key", f"  jetstream: {{{keys}}}\n  private_key"))


def minimal(addition: str = "") -> Config:
    return loads(MINIMAL + addition)


class Durations(SynchronousTestCase):
    def test_spellings_of_go(self) -> None:
        cases = {
            "168h0m0s": 604800.0,
            "5m": 300.0,
            "1h30m": 5400.0,
            "300ms": 0.3,
            "1.5h": 5400.0,
            ".5s": 0.5,
            "1.s": 1.0,
            "2h45m30.5s": 9930.5,
            "-1m": -60.0,
            "+3s": 3.0,
            "0": 0.0,
            "-0": 0.0,
            "1us": 1e-6,
            "1µs": 1e-6,
            "1μs": 1e-6,
            "7ns": 7e-9,
        }
        for text, seconds in cases.items():
            self.assertEqual(parse_duration(text), seconds, text)

    def test_what_go_refuses(self) -> None:
        for text in ("", "5", "-", "+", "h", ".s", "1d", "1h 30m", "1H", "five", "1e3s", "--5s", "٣s", "1h30"):
            self.assertRaises(ValueError, parse_duration, text)

    def test_longest(self) -> None:
        self.assertEqual(parse_nanoseconds("9223372036854775807ns"), 2**63 - 1)
        self.assertEqual(parse_nanoseconds("-9223372036854775808ns"), -(2**63))
        self.assertRaises(ValueError, parse_nanoseconds, "9223372036854775808ns")
        self.assertRaises(ValueError, parse_nanoseconds, "2562048h")
        self.assertRaises(ValueError, parse_nanoseconds, "1" * 500 + "h")

    def test_printed_as_go_does(self) -> None:
        cases = {604800.0: "168h0m0s", 300.0: "5m0s", 0.3: "300ms", 0.0: "0s", 1.5: "1.5s", 2e-6: "2us"}
        for seconds, text in cases.items():
            self.assertEqual(format_duration(seconds), text)
        self.assertEqual(format_duration(-61.0), "-1m1s")

    @quick
    @given(st.integers(min_value=-(10**15), max_value=10**15))
    def test_printing_and_reading_agree(self, nanoseconds: int) -> None:
        text = format_duration(nanoseconds / 1e9)
        self.assertAlmostEqual(parse_nanoseconds(text), nanoseconds, delta=1)


class Sizes(SynchronousTestCase):
    def test_spellings(self) -> None:
        cases = {
            "1gb": 1024**3,
            "1GB": 1024**3,
            "1.5mb": 1572864,
            "2kb": 2048,
            "1tb": 1024**4,
            "10485760": 10485760,
            "0": 0,
            ".5kb": 512,
            "1.": 1,
        }
        for text, size in cases.items():
            self.assertEqual(parse_size(text), size, text)

    def test_refused(self) -> None:
        for text in ("", "gb", "1 gb", "1g", "1gib", "one", "nan", "inf", "1_000", "99999999999tb"):
            self.assertRaises(ValueError, parse_size, text)

    @quick
    @given(st.integers(min_value=0, max_value=2**50))
    def test_printing_and_reading_agree(self, size: int) -> None:
        self.assertEqual(parse_size(format_size(size)), size)


class Reading(SynchronousTestCase):
    def test_defaults_are_those_of_the_code(self) -> None:
        config = minimal()
        self.assertEqual(config.problems, ())
        self.assertEqual(config.global_.key_validity_period, 604800.0)
        self.assertEqual(config.global_.cache.max_size_estimated, 1024**3)
        self.assertEqual(config.global_.database.max_open_conns, 90)
        self.assertEqual(config.global_.jetstream.listen, "")
        self.assertTrue(config.client_api.registration_disabled)
        self.assertFalse(config.client_api.guests_disabled)
        self.assertEqual(config.client_api.rate_limiting.threshold, 5)
        self.assertEqual(config.room_server.default_room_version, "12")
        self.assertEqual(config.user_api.worker_count, 8)
        self.assertIn("::/0", config.federation_api.allow_networks)

    def test_configuration_of_the_guide(self) -> None:
        config = loads(GUIDE)
        self.assertEqual(config.global_.private_key, "/etc/dendrite/matrix_key.pem")
        self.assertEqual(config.media_api.max_file_size_bytes, 52428800)
        self.assertEqual(config.sync_api.real_ip_header, "X-Forwarded-For")
        self.assertTrue({problem.kind for problem in config.problems} <= {"unavailable"})

    def test_relative_paths_are_resolved(self) -> None:
        config = loads(MINIMAL, base="/srv/matrix")
        self.assertEqual(config.global_.private_key, "/srv/matrix/matrix_key.pem")
        self.assertEqual(config.media_api.base_path, "/srv/matrix/media_store")
        self.assertEqual(minimal().media_api.base_path, str(Path.cwd() / "media_store"))
        listed = "app_service_api:\n  config_files: [a.yaml, /b.yaml]\n"
        files = loads(MINIMAL + listed, base="/srv").app_service_api.config_files
        self.assertEqual(files, ("/srv/a.yaml", "/b.yaml"))

    def test_plain_scalars_are_text_where_text_is_wanted(self) -> None:
        config = minimal("room_server:\n  default_room_version: 11\nsync_api:\n  real_ip_header: yes\n")
        self.assertEqual(config.room_server.default_room_version, "11")
        self.assertEqual(config.sync_api.real_ip_header, "yes")

    def test_booleans_of_yaml(self) -> None:
        for word, value in {"yes": True, "on": True, "True": True, "no": False, "off": False, "n": False}.items():
            config = minimal(f"federation_api:\n  prefer_direct_fetch: {word}\n")
            self.assertIs(config.federation_api.prefer_direct_fetch, value, word)

    def test_integers_of_yaml(self) -> None:
        for word, value in {"0x10": 16, "010": 8, "1_000": 1000, "1e3": 1000, "+5": 5}.items():
            config = minimal(
                f"federation_api:\n  send_max_retries: 3\nsync_api: {{}}\nkey_server: {{}}\n"
                f"user_api:\n  openid_token_lifetime_ms: {word}\n"
            )
            self.assertEqual(config.user_api.openid_token_lifetime_ms, value, word)

    def test_key_without_value_keeps_its_default(self) -> None:
        config = minimal("client_api:\n  registration_disabled:\n  turn:\n  rate_limiting:\n    threshold:\n")
        self.assertTrue(config.client_api.registration_disabled)
        self.assertEqual(config.client_api.rate_limiting.threshold, 5)
        self.assertEqual(config.problems, ())

    def test_merged_sections(self) -> None:
        config = loads(
            "version: 2\nglobal:\n  server_name: a.b\n  private_key: k\n"
            "room_server:\n  database: &db {connection_string: 'file:a.db', max_open_conns: 3}\n"
            + "".join(f"{name}:\n  database: *db\n" for name in ("key_server", "sync_api", "federation_api"))
            + "media_api:\n  base_path: m\n  database: *db\n"
            "user_api:\n  account_database:\n    <<: *db\n    max_open_conns: 4\n"
        )
        self.assertEqual(config.user_api.account_database.connection_string, "file:a.db")
        self.assertEqual(config.user_api.account_database.max_open_conns, 4)
        self.assertEqual(config.key_server.database.max_open_conns, 3)
        self.assertEqual(config.problems, ())

    def test_lists_of_sections(self) -> None:
        config = minimal(
            "  thumbnail_sizes:\n    - {width: 32, height: 33, method: crop}\n    - {width: 1, height: 2}\n"
        )
        first, second = config.media_api.thumbnail_sizes
        self.assertEqual((first.width, first.height, first.method), (32, 33, "crop"))
        self.assertEqual(second.method, "scale")

    def test_bare_number_as_duration_counts_nanoseconds(self) -> None:
        config = loads(MINIMAL.replace("  private_key", "  key_validity_period: 3600000000000\n  private_key"))
        self.assertEqual(config.global_.key_validity_period, 3600.0)
        self.assertEqual(
            [(p.kind, p.key, p.line) for p in config.problems], [("note", "global.key_validity_period", 4)]
        )

    def test_byte_order_mark(self) -> None:
        path = self.mktemp()
        Path(path).write_bytes(b"\xef\xbb\xbf" + MINIMAL.encode())
        self.assertEqual(load(path).global_.server_name, "example.com")

    def test_second_document_is_not_read(self) -> None:
        self.assertEqual(problems(MINIMAL + "---\nglobal: 3\n"), [("note", "", 10)])


class IllTyped(SynchronousTestCase):
    def assert_ill_typed(self, addition: str, key: str, line: int, *, text: str = MINIMAL) -> None:
        self.assertIn(("error", key, line), problems(text + addition), addition)

    def test_each_kind(self) -> None:
        for section, name, value in (
            ("client_api", "registration_disabled", '"true"'),
            ("client_api", "registration_disabled", "1"),
            ("client_api", "registration_shared_secret", "[a]"),
            ("client_api", "turn", "udp"),
            ("client_api", "rate_limiting", "[]"),
            ("federation_api", "send_max_retries", "many"),
            ("federation_api", "send_max_retries", "1.5"),
            ("federation_api", "send_max_retries", "-1"),
            ("federation_api", "send_max_retries", '"16"'),
            ("federation_api", "send_max_retries", "99999999999999999999999"),
            ("federation_api", "deny_networks", "10.0.0.0/8"),
            ("user_api", "bcrypt_cost", "3"),
            ("user_api", "bcrypt_cost", "32"),
            ("tracing", "jaeger", "5"),
        ):
            self.assert_ill_typed(f"{section}:\n  {name}: {value}\n", f"{section}.{name}", 10)

    def test_inside(self) -> None:
        self.assert_ill_typed(
            "client_api:\n  turn:\n    turn_user_lifetime: 5 minutes\n", "client_api.turn.turn_user_lifetime", 11
        )
        self.assert_ill_typed("  thumbnail_sizes: [{width: wide}]\n", "media_api.thumbnail_sizes[0].width", 9)
        self.assert_ill_typed("  thumbnail_sizes: [{method: stretch}]\n", "media_api.thumbnail_sizes[0].method", 9)
        self.assert_ill_typed("logging:\n- {type: kafka}\n", "logging[0].type", 10)
        self.assert_ill_typed("logging:\n- {level: loud}\n", "logging[0].level", 10)
        self.assert_ill_typed("app_service_api:\n  config_files: [{a: b}]\n", "app_service_api.config_files[0]", 10)

    def test_cache_size(self) -> None:
        text = MINIMAL.replace("  private_key", "  cache: {max_size_estimated: large}\n  private_key")
        self.assert_ill_typed("", "global.cache.max_size_estimated", 4, text=text)
        text = text.replace("large", "-1gb")
        self.assert_ill_typed("", "global.cache.max_size_estimated", 4, text=text)

    def test_all_are_named_at_once(self) -> None:
        found = problems("version: 2\nglobal:\n  disable_federation: 5\nclient_api: []\n")
        self.assertEqual(
            [(kind, key) for kind, key, _ in found if key in ("global.disable_federation", "client_api")],
            [("error", "global.disable_federation"), ("error", "client_api")],
        )

    def test_secrets_are_not_repeated(self) -> None:
        for text in (
            "client_api:\n  registration_shared_secret: {hunter2: hunter2}\n",
            "federation_api:\n  database: {connection_string: [hunter2]}\n",
        ):
            error = self.assertRaises(ConfigError, loads, MINIMAL + text)
            self.assertNotIn("hunter2", str(error))

    def test_quotes_are_mentioned(self) -> None:
        error = self.assertRaises(ConfigError, minimal, 'user_api:\n  bcrypt_cost: "10"\n')
        self.assertEqual(
            str(error),
            "dendrite.yaml:10: user_api.bcrypt_cost: This must be a whole number, not '10'. Remove the quotes.",
        )


class UnknownKeys(SynchronousTestCase):
    def test_named_with_line_and_nearest_key(self) -> None:
        for addition, key, line, near in (
            (
                "client_api:\n  registation_disabled: true\n",
                "client_api.registation_disabled",
                10,
                "client_api.registration_disabled",
            ),
            ("bcrypt_cost: 4\n", "bcrypt_cost", 9, "user_api.bcrypt_cost"),
            (
                "user_api:\n  max_file_size_bytes: 4\n",
                "user_api.max_file_size_bytes",
                10,
                "media_api.max_file_size_bytes",
            ),
            ("sync_api:\n  search:\n    index: x\n", "sync_api.search.index", 11, "sync_api.search.index_path"),
            ("roomserver: {}\n", "roomserver", 9, "room_server"),
        ):
            (problem,) = minimal(addition).problems
            self.assertEqual((problem.kind, problem.key, problem.line), ("unknown", key, line))
            self.assertEqual(problem.remedy, f"Did you mean {near}?")

    def test_without_a_near_key(self) -> None:
        (problem,) = minimal("zzzzzz: {a: b}\n").problems
        self.assertEqual(problem.kind, "unknown")
        self.assertNotIn("Did you mean", problem.remedy)

    def test_given_twice_the_last_counts(self) -> None:
        config = minimal("user_api:\n  bcrypt_cost: 5\n  bcrypt_cost: 6\n")
        self.assertEqual(config.user_api.bcrypt_cost, 6)
        self.assertEqual([(p.kind, p.line) for p in config.problems], [("duplicate", 11)])

    def test_keys_of_older_versions(self) -> None:
        for key in OLD_KEYS:
            names = key.split(".")
            if names[0] in ("global", "federation_sender"):
                continue
            text = "".join(f"{'  ' * depth}{name}:\n" for depth, name in enumerate(names))
            self.assertEqual([p.kind for p in minimal(text).problems], ["old"], key)
            self.assertEqual(minimal(text).problems[0].key, key)
        text = MINIMAL.replace("  private_key", "  kafka: {addresses: [a]}\n  private_key")
        self.assertEqual(problems(text), [("old", "global.kafka", 4)])
        self.assertNotIn("federation_sender", all_keys())

    def test_key_that_is_no_word(self) -> None:
        self.assertEqual(problems(MINIMAL + "? [a, b]\n: c\n"), [("note", "", 9)])


class Refused(SynchronousTestCase):
    def assert_refused(self, text: str, key: str, **options: Any) -> None:
        self.assertIn(("error", key), [found[:2] for found in problems(text, **options)], text)

    def test_version(self) -> None:
        for version in ("1", "0", "3", "two", '"1"'):
            error = self.assertRaises(ConfigError, loads, MINIMAL.replace("version: 2", f"version: {version}"))
            (problem,) = error.problems
            self.assertEqual((problem.key, problem.line), ("version", 1))
            self.assertIn("version 2 is needed", problem.text)
            self.assertIn("generate-config", problem.remedy)

    def test_missing(self) -> None:
        for line, key in (
            ("  server_name: example.com\n", "global.server_name"),
            ("  private_key: matrix_key.pem\n", "global.private_key"),
            ("  base_path: ./media_store\n", "media_api.base_path"),
            ("    connection_string: postgresql://localhost/dendrite\n", "global.database.connection_string"),
        ):
            self.assert_refused(MINIMAL.replace(line, ""), key)

    def test_one_database_missing(self) -> None:
        text = generate_config()
        self.assertEqual(problems(text), [])
        for key in list(DATABASES.values())[:6]:
            section = key.partition(".")[0]
            name = next(line for line in text.splitlines() if f"dendrite_{section.replace('_', '')}.db" in line)
            self.assert_refused(text.replace(name, ""), f"{key}.connection_string")

    def test_database_of_what_is_not_used_may_be_missing(self) -> None:
        text = generate_config().replace("file:dendrite_relayapi.db", '""').replace("file:dendrite_mscs.db", '""')
        self.assertEqual([kind for kind, _, _ in problems(text)], [])
        text = text.replace("mscs:\n  # Proposals", "mscs:\n  mscs: [msc2836]\n  # Proposals")
        self.assert_refused(text, "mscs.database.connection_string")

    def test_server_names(self) -> None:
        for name in ("https://example.com", "example.com/", "a b", "@alice:example.com", "ex_ample.com", "a:b"):
            self.assert_refused(MINIMAL.replace("example.com", f'"{name}"'), "global.server_name")
        for name in ("localhost", "example.com:8448", "1.2.3.4", "[2001:db8::1]:8448"):
            self.assertEqual(problems(MINIMAL.replace("example.com", f'"{name}"')), [])

    def test_room_version(self) -> None:
        self.assert_refused(MINIMAL + "room_server: {default_room_version: 99}", "room_server.default_room_version")
        for version in range(1, 13):
            self.assertEqual(problems(MINIMAL + f"room_server: {{default_room_version: {version}}}"), [])

    def test_well_known(self) -> None:
        for name, value in (("well_known_client_name", "matrix.example.com"), ("well_known_server_name", "https://a")):
            text = MINIMAL.replace("  private_key", f"  {name}: {value}\n  private_key")
            self.assert_refused(text, f"global.{name}")
        good = "  well_known_client_name: https://a.b\n  well_known_server_name: a.b:443\n  private_key"
        self.assertEqual(problems(MINIMAL.replace("  private_key", good)), [])

    def test_open_registration(self) -> None:
        text = MINIMAL + "client_api: {registration_disabled: false}"
        self.assert_refused(text, "client_api.registration_disabled")
        self.assertTrue(loads(text, allow_open_registration=True).registration_open)
        self.assertFalse(minimal().registration_open)

    def test_captcha(self) -> None:
        text = MINIMAL + "client_api:\n  registration_disabled: false\n  enable_registration_captcha: true\n"
        self.assert_refused(text, "client_api.recaptcha_public_key")
        text += "  recaptcha_public_key: a\n  recaptcha_private_key: b\n"
        client = loads(text).client_api
        self.assertEqual(client.recaptcha_form_field, "g-recaptcha-response")
        self.assertTrue(client.recaptcha_siteverify_api.startswith("https://www.google.com/"))

    def test_a_proof_that_is_asked_for_makes_registration_less_than_open(self) -> None:
        text = MINIMAL + "client_api:\n  registration_disabled: false\n  %s: true\n"
        text += "  recaptcha_public_key: a\n  recaptcha_private_key: b\n"
        for name in ("enable_registration_captcha", "registration_requires_token"):
            self.assertFalse(loads(text % name).registration_open)

    def test_old_keys(self) -> None:
        public = "mn59Kxfdq9VziYHSBzI7+EDPDcBS2Xl7jeUdiiQcOnM="
        for item, key in (
            ("{expired_at: 5}", "global.old_private_keys[0]"),
            (f"{{public_key: {public}}}", "global.old_private_keys[0].key_id"),
            ("{public_key: abc, key_id: 'ed25519:a'}", "global.old_private_keys[0].public_key"),
        ):
            text = MINIMAL.replace("  private_key", f"  old_private_keys: [{item}]\n  private_key")
            self.assert_refused(text, key)
        for item in ("{private_key: a.pem}", f"{{public_key: {public}, key_id: 'ed25519:a-b'}}"):
            text = MINIMAL.replace("  private_key", f"  old_private_keys: [{item}]\n  private_key")
            self.assertEqual(problems(text), [])

    def test_networks(self) -> None:
        self.assert_refused(
            MINIMAL + "federation_api:\n  deny_networks: [10.0.0.0/8, 10.0.0.0/99]\n",
            "federation_api.deny_networks[1]",
        )
        config = minimal("federation_api:\n  deny_networks: []\n  allow_networks: [127.0.0.1/8]\n")
        self.assertEqual(config.federation_api.deny_networks, ())

    def test_logging(self) -> None:
        self.assert_refused(MINIMAL + "logging: [{type: file}]", "logging[0].params.path")
        self.assert_refused(MINIMAL + "logging: [{type: syslog, params: {address: a}}]", "logging[0].params.protocol")
        good = minimal("logging: [{type: file, level: WARN, params: {path: ./logs, keep: [1, {a: null}]}}]")
        self.assertEqual(good.logging[0].level, "warn")
        self.assertEqual(good.logging[0].params, {"path": "./logs", "keep": [1, {"a": None}]})

    def test_queue_address(self) -> None:
        ours = (":4222", "127.0.0.1:4222", "localhost:4222", "[::1]:4222")
        open_to_others = ("0.0.0.0:4222", "nats:4222", "[::]:4222")
        for value in ("4222", "http://a:1", "a:99999", *open_to_others):
            self.assertIn(("error", "global.jetstream.listen", 4), queue_problems(f'listen: "{value}"'), value)
        for value in ours:
            self.assertEqual(queue_problems(f'listen: "{value}"'), [], value)
        for value in open_to_others:
            self.assertEqual(queue_problems(f'listen: "{value}", listen_token: s'), [], value)
        text = 'listen: "127.0.0.1:4222", addresses: [a]'
        self.assertEqual(queue_problems(text), [("note", "global.jetstream.listen", 4)])

    def test_addresses_of_nats(self) -> None:
        good = '["a", "a:1", "nats://u:p@a:1", "tls://[::1]:4222"]'
        self.assertEqual(queue_problems(f"addresses: {good}"), [])
        for value in ("", "http://a:1", "nats://", "a:b"):
            found = queue_problems(f'addresses: ["a", "{value}"]')
            self.assertEqual([(kind, key) for kind, key, _ in found], [("error", "global.jetstream.addresses[1]")])

    def test_prefix_of_streams(self) -> None:
        for value, wrong in (("", False), ("Dendrite", False), ("a-b_c", False), ("a.b", True), ("a b", True)):
            found = queue_problems(f'topic_prefix: "{value}"')
            self.assertEqual(found, [("error", "global.jetstream.topic_prefix", 4)] if wrong else [], value)

    def test_not_yaml(self) -> None:
        for text, line in (("a: [", 1), ("\tb: c", 1), ("a: b\n c: d", 2), ('a: "b', 1), ("a: \x00", 0), ("&a", 0)):
            error = self.assertRaises(ConfigError, loads, text)
            self.assertGreaterEqual(error.problems[0].line, line, text)

    def test_not_a_mapping(self) -> None:
        self.assertEqual(problems("- a\n")[0][0], "error")
        self.assert_refused("just text", "")

    def test_file_that_cannot_be_read(self) -> None:
        missing = self.mktemp()
        error = self.assertRaises(ConfigError, load, missing)
        self.assertIn("cannot be read", str(error))
        self.assertTrue(str(error).startswith(missing))
        Path(missing).write_bytes(b"version: \xff\xfe")
        self.assertIn("not UTF-8", str(self.assertRaises(ConfigError, load, missing)))
        directory = self.mktemp()
        Path(directory).mkdir()
        self.assertRaises(ConfigError, load, directory)


class Bounds(SynchronousTestCase):
    def test_depth(self) -> None:
        deep = "[" * (MAX_DEPTH + 5) + "]" * (MAX_DEPTH + 5)
        self.assertRaises(ConfigError, minimal, f"logging: {deep}\n")
        self.assertRaises(ConfigError, loads, "[" * 100_000)

    def test_length(self) -> None:
        self.assertRaises(ConfigError, minimal, "# " + "x" * MAX_BYTES)

    def test_aliases(self) -> None:
        self.assertRaises(ConfigError, minimal, "a: &a 1\nb: [" + "*a, " * (MAX_ALIASES + 1) + "]\n")

    def test_unfolding(self) -> None:
        lines = ["logging:", "- type: std", "  params:", "    a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
        for depth in range(1, 8):
            lines.append(f"    a{depth}: &a{depth} [{', '.join([f'*a{depth - 1}'] * 10)}]")
        error = self.assertRaises(ConfigError, minimal, "\n".join(lines) + "\n")
        self.assertIn("unfold", str(error))

    def test_alias_to_itself(self) -> None:
        self.assertRaises(ConfigError, minimal, "logging: [{params: &a {b: *a}}]\n")
        self.assertEqual(minimal("zz: &a [*a]\n").problems[0].kind, "unknown")
        self.assertEqual(minimal("tracing: &a {<<: *a, enabled: false}\n").tracing.enabled, False)

    @quick
    @given(st.text(max_size=200))
    def test_any_text_is_read_or_refused(self, text: str) -> None:
        try:
            loads(text)
        except ConfigError as error:
            self.assertTrue(error.problems)

    @quick
    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.sampled_from(sorted({k.split(".")[-1] for k in all_keys()})), inner, max_size=4)
            ),
            max_leaves=12,
        )
    )
    def test_any_shape_is_read_or_refused(self, value: Any) -> None:
        import orjson

        try:
            loads(orjson.dumps(value, option=orjson.OPT_PASSTHROUGH_SUBCLASS).decode())
        except orjson.JSONEncodeError:
            return
        except ConfigError as error:
            self.assertTrue(error.problems)


class WhatIsMissing(SynchronousTestCase):
    def test_every_entry_names_a_key(self) -> None:
        for key, sentence in NOT_YET.items():
            self.assertIn(key, all_keys())
            self.assertTrue(sentence.endswith("."))

    def test_said_only_if_asked_for(self) -> None:
        self.assertEqual(problems(render(changed(sample_tree(), {}))), [])
        for key in NOT_YET:
            value = value_at(Tree(), key)
            given: Any = True if value is False else ("a:1",)
            if key == "global.presence":
                key_given, given = "global.presence.enable_inbound", True
            else:
                key_given = key
            tree = changed(sample_tree(), {key_given: given})
            tree = changed(tree, {"client_api.recaptcha_public_key": "a", "client_api.recaptcha_private_key": "b"})
            kinds = [(kind, found) for kind, found, _ in problems(render(tree))]
            self.assertIn(("unavailable", key), kinds)


class Databases(SynchronousTestCase):
    def test_own_before_common(self) -> None:
        config = minimal("room_server:\n  database: {connection_string: 'file:r.db'}\n")
        self.assertEqual(config.database_of("room_server").connection_string, "file:r.db")
        self.assertEqual(config.database_of("room_server").max_open_conns, 10)
        for component in ("user_api", "key_server", "sync_api", "media_api", "federation_api", "relay_api", "mscs"):
            database = config.database_of(component)  # type: ignore[arg-type]
            self.assertIs(database, config.global_.database)

    def test_kinds(self) -> None:
        for uri, path in (
            ("file:dendrite.db", "dendrite.db"),
            ("file:///var/lib/a%20b.db?_busy_timeout=5", "/var/lib/a b.db"),
            ("file:data/x.db?mode=rw", "data/x.db"),
            ("file://localhost/x.db", "/x.db"),
        ):
            database = Database(connection_string=uri)
            self.assertTrue(database.is_sqlite)
            self.assertEqual(database.sqlite_path, path)
        for uri in ("postgres://a/b", "postgresql://a/b", "host=a dbname=b", "dendrite.db"):
            self.assertFalse(Database(connection_string=uri).is_sqlite)


class Polylith(SynchronousTestCase):
    """What the components need in processes of their own, beyond what they need in one."""

    def test_all_that_is_mandatory(self) -> None:
        self.assertEqual(problems(POLYLITH, polylith=True), [])

    def test_queue(self) -> None:
        self.assertEqual(problems(MINIMAL, polylith=True), [("error", "global.jetstream.addresses", 2)])
        empty = MINIMAL.replace("  database:", "  jetstream:\n    addresses: []\n  database:")
        self.assertEqual(problems(empty, polylith=True), [("error", "global.jetstream.addresses", 6)])

    def test_databases(self) -> None:
        text = POLYLITH.replace("postgresql://localhost/dendrite", "file:a.db")
        self.assertEqual(problems(text, polylith=True), [("error", "global.database.connection_string", 7)])
        text = POLYLITH + "user_api:\n  account_database: {connection_string: 'file:a.db'}\n"
        text += "key_server:\n  database:\n    connection_string: file:b.db\n"
        expected = [
            ("error", "user_api.account_database.connection_string", 11),
            ("error", "key_server.database.connection_string", 14),
        ]
        self.assertEqual(problems(text, polylith=True), expected)
        self.assertEqual(problems(text), [])

    def test_the_sample(self) -> None:
        config = loads(polylith_sample(), polylith=True)
        found = {section: [one.address for one in addresses(config, [section])] for section in SECTIONS}
        self.assertEqual(
            found,
            {
                "client_api": [":8071", ":7771"],
                "federation_api": [":8072", ":7772"],
                "media_api": [":8074", ":7774"],
                "sync_api": [":8073", ":7773"],
                "room_server": [":7770"],
                "user_api": [":7781"],
                "key_server": [":7779"],
                "app_service_api": [":7777"],
            },
        )

    def test_addresses(self) -> None:
        for url, expected in (
            ("http://localhost:8071", "localhost:8071"),
            ("http://[::1]:8071/", "[::1]:8071"),
            ("http://0.0.0.0:8071", "0.0.0.0:8071"),
            ("http://:8071", ":8071"),
            ("http://localhost", ""),
            ("https://localhost:8071", ""),
            ("localhost:8071", ""),
            ("http://localhost:99999", ""),
            ("http://u@localhost:1", ""),
            ("http://localhost:1/path", ""),
            ("http://[::1:1", ""),
        ):
            self.assertEqual(host_and_port(url), expected, url)

    def test_what_is_wrong_with_an_address(self) -> None:
        config = loads(POLYLITH + "sync_api:\n  external_api: {listen: localhost}\n")
        error = self.assertRaises(ConfigError, addresses, config, ["sync_api"])
        self.assertIn("dendrite.yaml:11: sync_api.external_api.listen: 'localhost' is no address", str(error))
        error = self.assertRaises(ConfigError, addresses, config, ["client_api"])
        self.assertIn("start with --http-bind-address", str(error))

    def test_several_components_on_one_address(self) -> None:
        config = loads(
            POLYLITH
            + "".join(f"{name}: {{external_api: {{listen: 'http://[::]:1'}}}}\n" for name in ("sync_api", "client_api"))
        )
        self.assertEqual([one.address for one in addresses(config, ["sync_api", "client_api", "user_api"])], [":1"])

    def test_names(self) -> None:
        for word in ("room_server", "room-server", "roomserver", "roomapi", "Room-API", " room_api"):
            self.assertEqual(section_named(word), "room_server")
        self.assertEqual(
            sections_named(["client_api,keyserver", "syncapi", "client-api"]), ("client_api", "key_server", "sync_api")
        )
        self.assertRaises(ValueError, section_named, "relay_api")
        self.assertEqual(sections_named([""]), ())


class Samples(SynchronousTestCase):
    def test_they_load_as_they_are(self) -> None:
        self.assertEqual(problems(sample()), [])
        kinds = {kind for kind, _, _ in problems(polylith_sample())}
        self.assertTrue(kinds <= {"unavailable"})
        config = loads(polylith_sample())
        self.assertEqual(config.client_api.external_api.listen, "http://[::]:8071")
        self.assertEqual(config.media_api.database.max_open_conns, 5)

    def test_rendering_keeps_every_value(self) -> None:
        for text in (sample(), polylith_sample(), generate_config("a.b"), generate_config(ci=True)):
            config = loads(text, base=None, allow_open_registration=True)
            tree = Tree(**{name: getattr(config, name) for name in Tree.__struct_fields__})
            again = loads(render(tree), base=None, allow_open_registration=True)
            for name in Tree.__struct_fields__:
                self.assertEqual(getattr(again, name), getattr(config, name), name)

    def test_commented_keys_can_be_switched_on(self) -> None:
        """Taking away the # before any key of the sample gives a file without unknown or ill-typed keys."""
        lines = sample().splitlines()
        names = {key.split(".")[-1] for key in all_keys()}
        tried = 0
        for number, line in enumerate(lines):
            found = re.match(r" *# ([a-z_]+):", line)
            if found is None or found[1] not in names:
                continue
            tried += 1
            end = number + 1
            inner = line.index("#") * " " + "#  "
            while end < len(lines) and lines[end].startswith(inner):
                end += 1
            block = [one.replace("# ", "", 1) for one in lines[number:end]]
            text = "\n".join(lines[:number] + block + lines[end:])
            kinds = {kind for kind, _, _ in problems(text, allow_open_registration=True)}
            self.assertTrue(kinds <= {"unavailable", "note"}, (line, kinds))
        self.assertGreater(tried, 20)

    @quick
    @given(st.text(max_size=30).filter(lambda text: "\x00" not in text))
    def test_any_text_survives_rendering(self, text: str) -> None:
        try:
            text.encode()
        except UnicodeEncodeError:
            return
        tree = changed(sample_tree(), {"client_api.registration_shared_secret": text})
        self.assertEqual(loads(render(tree), base=None).client_api.registration_shared_secret, text)

    def test_generated_files_are_where_they_should_be(self) -> None:
        config = loads(generate_config("a.b", directory="/var/dendrite"), base="/")
        self.assertEqual(config.database_of("room_server").sqlite_path, "/var/dendrite/dendrite_roomserver.db")
        self.assertEqual(config.media_api.base_path, "/var/dendrite/media")
        self.assertEqual(config.global_.jetstream.storage_path, "/var/dendrite/jetstream")
        config = loads(generate_config("a.b"), base="/srv")
        self.assertEqual(config.database_of("user_api").sqlite_path, "dendrite_userapi.db")
        self.assertEqual(config.media_api.base_path, "/srv/media")
        config = loads(generate_config("a.b", "postgres://h/d"))
        self.assertEqual({config.database_of(name).connection_string for name in DATABASES}, {"postgres://h/d"})  # type: ignore[arg-type]

    def test_error_found_later_has_its_line(self) -> None:
        error = minimal().error("global.private_key", "The key cannot be read.", "Make one.")
        self.assertEqual(str(error), "dendrite.yaml:4: global.private_key: The key cannot be read. Make one.")

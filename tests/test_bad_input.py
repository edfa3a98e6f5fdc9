"""Every endpoint, asked wrongly: the specification's status and ``errcode``, and never a 500.

The cases are made from the rows themselves, so a new endpoint is tried in
every way on the day it is added.
"""

from __future__ import annotations

import json
import re
import typing
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import msgspec

from dendrite_tw.matrix.canonical_json import CanonicalJSONError
from dendrite_tw.web.routes import Access, Route
from tests.federation_api.network import CONNECTION_REFUSED_SECONDS, key_of
from tests.federation_api.whole import WholeServerTestCase
from tests.harness import Answer
from tests.server import ServerTestCase

OF_OTHERS = (
    "/join/{room_id_or_alias}",
    "/knock/{room_id_or_alias}",
    "/directory/room/{room_alias}",
    "/publicRooms",
    "/room_summary/{room_id_or_alias}",
    "/summary/{room_id_or_alias}",
    "/rooms/{room_id_or_alias}/summary",
)
"""Client endpoints that may need an answer of another server: 502 where there is none."""

NEEDS_TOKEN = (Access.USER, Access.GUEST, Access.ADMIN, Access.APPSERVICE)

JUNK: list[Any] = [
    None,
    True,
    -1,
    7,
    2**70,
    1.5,
    "",
    "x",
    "\x00",
    "x" * 300,
    [],
    [1],
    ["x"],
    [[]],
    {},
    {"x": 1},
    {"x": {}},
]

METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH")


def body_type(route: Route) -> Any:
    """The annotation of a handler's body, `None` where it takes none."""
    return typing.get_type_hints(route.handler).get("body")


def fields_of(annotation: Any) -> list[str]:
    """The names of the fields of a Struct as they are written in JSON."""
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        return [field.encode_name for field in msgspec.structs.fields(annotation)]
    return []


PATH_JUNK = ("!", "!x", "@", "#a:b", "$", "\x00", "..", "../..", "a" * 400, "é" * 200, " ", "{}", "%")
QUERY_JUNK = ("", "x", "-1", "99999999999999999999", "true", "%FF", "%00", "{", '{"a":[[[]]]}', "a" * 3000)


class BadInputTests(ServerTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.alice = self.register("alice", admin=True)
        self.bob = self.register("bob")
        self.room_id = self.alice.create_room(name="private")
        self.event_id = self.alice.say(self.room_id, "secret")
        self.rows = [row for row in self.server.parts.routes if "/r0/" not in row.path]

    def path(self, route: Route, **given: str) -> str:
        """The path of a route with something plausible in every place."""
        values = {
            "room_id": self.room_id,
            "room_id_or_alias": self.room_id,
            "event_id": self.event_id,
            "user_id": self.bob.user_id,
            "room_alias": "#nothing:test",
            "server_name": "test",
            **given,
        }
        parts = [
            quote(values.get(part[1:-1], "x"), safe="") if part.startswith("{") else part
            for part in route.path.split("/")
        ]
        return "/".join(parts)

    def token_for(self, route: Route) -> str:
        return self.alice.token if route.access is Access.ADMIN else self.bob.token

    def check(self, answer: Answer, route: Route, case: object) -> None:
        """Whatever comes back is an answer of the specification's kind."""
        where = f"{route.method} {route.path}: {case!r}: {answer!r}"
        self.assertTrue(answer.done, where)
        if answer.status == 502:
            # What another server has was asked for, and there is no way to any.
            self.assertIn(re.sub("^/_matrix/client/(v[13]|unstable/[a-z.]+)", "", route.path), OF_OTHERS, where)
            self.assertEqual(answer.errcode, "M_UNKNOWN", where)
            return
        self.assertLess(answer.status, 500, where)
        if answer.status >= 400 and answer.headers.get("content-type") == "application/json":
            self.assertTrue(answer.json.get("errcode") or "flows" in answer.json, where)

    def ask(self, route: Route, body: Any = None, bearer: str | None = None, query: str = "", **given: str) -> Answer:
        return self.request(route.method, self.path(route, **given) + query, body, bearer)

    def test_without_a_token(self) -> None:
        for route in self.rows:
            if route.access in NEEDS_TOKEN:
                answer = self.ask(route, {})
                self.assertEqual((answer.status, answer.errcode), (401, "M_MISSING_TOKEN"), route.path)

    def test_with_an_unknown_token(self) -> None:
        for route in self.rows:
            if route.access in NEEDS_TOKEN:
                answer = self.ask(route, {}, "nobody's")
                self.assertEqual((answer.status, answer.errcode), (401, "M_UNKNOWN_TOKEN"), route.path)

    def test_with_a_method_that_is_none(self) -> None:
        known: dict[str, set[str]] = {}
        for route in self.rows:
            known.setdefault(self.path(route), set()).add(route.method)
        for path, methods in known.items():
            for method in set(METHODS) - methods:
                answer = self.request(method, path, {}, self.bob.token)
                if answer.status != 405:
                    self.assertIn(answer.status, (200, 400, 403, 404), (method, path, answer))
                    continue
                self.assertEqual(answer.errcode, "M_UNRECOGNIZED", (method, path))

    def test_unknown_paths(self) -> None:
        for path in ("/_matrix/client/v3/nothing", "/_matrix/client/v9/sync", "/_matrix", "/nothing", "/_matrix/x/y"):
            for method in METHODS:
                answer = self.request(method, path, {}, self.bob.token)
                self.assertEqual((answer.status, answer.errcode), (404, "M_UNRECOGNIZED"), (method, path))

    def test_bodies_that_are_not_json(self) -> None:
        for route, token in self._with_body():
            for body in (b"{", b"nonsense", b"\xff\xfe", b'{"a":}', b"{'a':1}", b'{"a":NaN}'):
                answer = self.request(route.method, self.path(route), body, token)
                self.assertEqual((answer.status, answer.errcode), (400, "M_NOT_JSON"), (route.path, body, answer))

    def test_bodies_that_are_no_objects(self) -> None:
        for route, token in self._with_body():
            for body in (b"[]", b"7", b'"x"', b"null", b"[{}]"):
                answer = self.request(route.method, self.path(route), body, token)
                self.assertEqual(answer.status, 400, (route.path, body, answer))
                self.assertIn(answer.errcode, ("M_BAD_JSON", "M_NOT_JSON"), (route.path, body))

    def _with_body(self) -> Iterator[tuple[Route, str]]:
        for route in self.rows:
            takes_json = body_type(route) not in (None, bytes) and not route.path.startswith("/_matrix/media/")
            if takes_json and route.access is not Access.APPSERVICE:
                yield route, self.token_for(route)

    def test_fields_of_every_wrong_type(self) -> None:
        for route in self.rows:
            annotation = body_type(route)
            if annotation in (None, bytes):
                continue
            names = fields_of(annotation) or ["membership", "messages", "events", "rooms", "auth", "user_id", "type"]
            for name in names:
                for junk in JUNK:
                    body = json.dumps({name: junk}).encode()
                    self.check(self.ask(route, body, self._fresh_token(route)), route, (name, junk))

    def _fresh_token(self, route: Route) -> str:
        """A token that still works, though the endpoint may have ended the last one's life."""
        client = self.alice if route.access is Access.ADMIN else self.bob
        if self.request("GET", "/_matrix/client/v3/account/whoami", None, client.token).status != 200:
            fresh = self.register(f"user{len(self.server.parts.routes)}{self._spare}")
            self._spare += 1
            client.token, client.user_id = fresh.token, fresh.user_id
        return client.token

    _spare = 0

    def test_values_that_are_too_deep_or_too_large(self) -> None:
        for route, token in self._with_body():
            deep = b'{"a":' + b"[" * 3000 + b"]" * 3000 + b"}"
            answer = self.request(route.method, self.path(route), deep, token)
            self.assertIn(answer.status // 100, (2, 4), (route.path, answer))
            answer = self.request(route.method, self.path(route), b'{"a":"' + b"x" * route.body_limit + b'"}', token)
            self.assertEqual((answer.status, answer.errcode), (413, "M_TOO_LARGE"), route.path)

    def test_query_fields_of_every_sort(self) -> None:
        for route in self.rows:
            query = typing.get_type_hints(route.handler).get("query")
            for name in fields_of(query):
                for junk in QUERY_JUNK:
                    value = junk if "%" in junk else quote(junk)
                    answer = self.ask(route, b"", self._fresh_token(route), f"?{name}={value}")
                    if not answer.done:
                        self.pump(3600)
                    self.check(answer, route, (name, junk))

    def test_path_parameters_of_every_sort(self) -> None:
        for route in self.rows:
            names = [part[1:-1] for part in route.path.split("/") if part.startswith("{")]
            for name in names:
                for junk in PATH_JUNK:
                    answer = self.ask(route, b"{}", self._fresh_token(route), **{name: junk})
                    self.check(answer, route, (name, junk))

    def test_a_room_of_others(self) -> None:
        for route in self.rows:
            if "{room_id}" in route.path and route.access in (Access.USER, Access.GUEST) and "/user/" not in route.path:
                answer = self.ask(route, {"m.fully_read": self.event_id}, self.bob.token)
                self.check(answer, route, "a room of others")
                if "directory/list" in route.path or "/room_keys/" in route.path or "/report" in route.path:
                    continue
                self.assertIn(answer.status, (400, 403, 404), (route.method, route.path, answer))


class ServerBadInputTests(WholeServerTestCase):
    """The endpoints for other servers, asked wrongly by one that knows how to sign, and by one that does not."""

    def write_config(self, folder: str) -> str:
        return super().write_config(folder).replace("sync_api: {", "sync_api: {real_ip_header: X-Real-IP, ")

    def setUp(self) -> None:
        super().setUp()
        self.alice = self.register("alice")
        self.room_id = self.alice.create_room(preset="public_chat")
        self.event_id = self.alice.say(self.room_id, "hello")
        self.other = self.stranger()
        self.other.get("/v1/query/nothing")
        for _ in range(4):
            self.pump(0.3)
        self.rows = [row for row in self.server.parts.routes if row.access is Access.SERVER]
        self.asked = 0

    def path(self, route: Route, **given: str) -> str:
        """The path of a route with something plausible in every place."""
        values = {
            "room_id": self.room_id,
            "event_id": self.event_id,
            "user_id": "@bob:stranger.test",
            "txn_id": "t",
            "query_type": "profile",
            **given,
        }
        parts = [
            quote(values.get(part[1:-1], "x"), safe="") if part.startswith("{") else part
            for part in route.path.split("/")
        ]
        return "/".join(parts)

    def send(self, route: Route, uri: str, body: bytes | None, header: str | None = None) -> Answer:
        """The answer to a request from an address of its own; signed as it must be, unless `header` is given."""
        self.asked += 1
        address = f"2001:db8::{self.asked:x}"
        signed = self.other.signed(route.method, uri, body) if header is None else header
        headers = {"X-Real-IP": address, **({"Authorization": signed} if signed else {})}
        answer = self.request(route.method, uri, body, headers=headers)
        for _ in range(4):
            if not answer.done:
                self.pump(CONNECTION_REFUSED_SECONDS)
        return answer

    def check(self, answer: Answer, route: Route, case: object) -> None:
        """Whatever comes back is an answer of the specification's kind."""
        where = f"{route.method} {route.path}: {case!r}: {answer!r}"
        if not answer.done:
            self.pump(60)
        self.assertTrue(answer.done, where)
        self.assertLess(answer.status, 500, where)
        if answer.status >= 400:
            self.assertTrue(answer.errcode.startswith("M_"), where)

    def body_of(self, route: Route) -> bytes | None:
        return None if route.method == "GET" else b"{}"

    def test_unsigned_and_wrongly_signed(self) -> None:
        for route in self.rows:
            uri, body = self.path(route), self.body_of(route)
            good = self.other.signed(route.method, uri, body)
            for header in (
                "",
                "Bearer abc",
                "X-Matrix",
                "X-Matrix " + "x" * 5000,
                good.replace('sig="', 'sig="A'),
                good.replace('sig="', 'sig="\x7f'),
                good.replace("stranger.test", "test"),
                good.replace("ed25519:one", "ed25519:two"),
                self.other.signed(route.method, uri, body, destination="elsewhere.test"),
                self.other.signed(route.method, uri, body, key=key_of(5)),
                self.other.signed(route.method, uri + "/", body),
                self.other.signed("PATCH", uri, body),
            ):
                answer = self.send(route, uri, body, header)
                self.assertEqual((answer.status, answer.errcode), (401, "M_UNAUTHORIZED"), (route.path, header, answer))

    def test_bodies_that_are_not_json_or_nest_too_deeply(self) -> None:
        deep = b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}"
        for route in self.rows:
            if route.method == "GET":
                continue
            uri = self.path(route)
            header = self.other.signed(route.method, uri, b"{}")
            for body in (b"{", b"nonsense", b"\xff\xfe", b'{"a":}', b"{'a':1}", b'{"a":NaN}', deep):
                answer = self.send(route, uri, body, header)
                self.assertEqual((answer.status, answer.errcode), (400, "M_NOT_JSON"), (route.path, body[:20], answer))

    def test_bodies_that_are_too_large(self) -> None:
        for route in self.rows:
            if route.method != "GET":
                body = b'{"a":"' + b"x" * route.body_limit + b'"}'
                answer = self.send(route, self.path(route), body, 'X-Matrix origin="stranger.test",key="a",sig="b"')
                self.assertEqual((answer.status, answer.errcode), (413, "M_TOO_LARGE"), route.path)

    def test_bodies_of_every_wrong_sort(self) -> None:
        for route in self.rows:
            annotation = body_type(route)
            if annotation is None:
                continue
            for body in (b"[]", b"7", b'"x"', b"null", b"[{}]"):
                answer = self.send(route, self.path(route), body)
                self.assertEqual((answer.status, answer.errcode), (400, "M_BAD_JSON"), (route.path, body, answer))
            names = fields_of(annotation) or ["event", "room_version", "type", "content", "sender", "pdus", "edus"]
            for name in names:
                for junk in JUNK:
                    body = json.dumps({name: junk}).encode()
                    try:
                        self.check(self.send(route, self.path(route), body), route, (name, junk))
                    except CanonicalJSONError:
                        continue

    def test_query_fields_of_every_sort(self) -> None:
        for route in self.rows:
            query = typing.get_type_hints(route.handler).get("query")
            for name in fields_of(query):
                for junk in QUERY_JUNK:
                    uri = f"{self.path(route)}?{name}={junk if '%' in junk else quote(junk)}"
                    self.check(self.send(route, uri, self.body_of(route)), route, (name, junk))

    def test_path_parameters_of_every_sort(self) -> None:
        for route in self.rows:
            names = [part[1:-1] for part in route.path.split("/") if part.startswith("{")]
            for name in names:
                for junk in PATH_JUNK:
                    uri = self.path(route, **{name: junk})
                    self.check(self.send(route, uri, self.body_of(route)), route, (name, junk))

"""What a handler is given, what a client is answered, and every way to ask wrongly."""

from __future__ import annotations

from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.matrix.errors import forbidden
from dendrite_tw.user_api.api import Caller
from dendrite_tw.web.limits import SlotLimiter
from dendrite_tw.web.resource import ApiResource
from dendrite_tw.web.routes import Access, Limit, Response, Route, RouteTree, client_paths
from dendrite_tw.world import ReactorClock
from tests.harness import CALLERS, KnownCallers, Root, Web, serve


class Body(msgspec.Struct):
    name: str
    count: int = 1


class Query(msgspec.Struct):
    limit: int = 10
    via: list[str] = []
    full: bool = False


class Shop:
    def __init__(self) -> None:
        self.waiting: Deferred[Any] = Deferred()

    async def buy(self, caller: Caller, item_id: str, body: Body, query: Query) -> dict[str, Any]:
        return {"by": caller.user_id, "item": item_id, "name": body.name, "limit": query.limit, "via": query.via}

    async def anything(self, body: dict[str, Any]) -> dict[str, Any]:
        return body

    async def refuse(self, item_id: str, state_key: str) -> None:
        raise forbidden(f"Not {item_id} with {state_key!r}.")

    async def breaks(self) -> None:
        raise ZeroDivisionError

    async def page(self) -> Response:
        return Response(201, b"<p>", b"text/html", [(b"X-Test", b"yes")])

    async def wait(self) -> dict[str, Any]:
        return {"got": await self.waiting}

    def routes(self) -> list[Route]:
        return client_paths(
            [
                Route("POST", "/_matrix/client/v3/shop/{item_id}", self.buy, Access.USER),
                Route("POST", "/_matrix/client/v3/any", self.anything, Access.PUBLIC, body_limit=2000),
                Route("GET", "/_matrix/client/v3/shop/{item_id}/{state_key}", self.refuse, Access.GUEST),
                Route("GET", "/_matrix/client/v3/shop/page", self.page, Access.PUBLIC),
                Route("GET", "/_matrix/client/v1/breaks", self.breaks, Access.PUBLIC),
                Route("GET", "/_matrix/client/v1/wait", self.wait, Access.ADMIN, Limit("wait")),
            ]
        )


class ResourceTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.shop = Shop()
        self.web = serve(self.shop.routes(), Clock())

    def test_a_handler_is_given_what_it_names(self) -> None:
        answer = self.web.post("/_matrix/client/v3/shop/a%2Fb%20c?limit=3&via=x&via=y", {"name": "egg"}, "alice")
        self.assertEqual(answer.status, 200)
        self.assertEqual(
            answer.json, {"by": "@alice:test", "item": "a/b c", "name": "egg", "limit": 3, "via": ["x", "y"]}
        )
        self.assertEqual(answer.headers["access-control-allow-origin"], "*")
        self.assertEqual(answer.headers["content-type"], "application/json")

    def test_old_paths_and_old_tokens_work(self) -> None:
        answer = self.web.post("/_matrix/client/r0/shop/x?access_token=bob", {"name": "egg"})
        self.assertEqual(answer.json["by"], "@bob:test")

    def check_refused(self, answer: Any, status: int, errcode: str) -> None:
        self.assertEqual((answer.status, answer.errcode), (status, errcode), answer)

    def test_refusals(self) -> None:
        path = "/_matrix/client/v3/shop/x"
        post, request = self.web.post, self.web.request
        self.check_refused(post(path, {"name": "egg"}), 401, "M_MISSING_TOKEN")
        self.check_refused(post(path, {"name": "egg"}, "nobody"), 401, "M_UNKNOWN_TOKEN")
        self.check_refused(post(path, {"name": "egg"}, "guest"), 403, "M_GUEST_ACCESS_FORBIDDEN")
        self.check_refused(self.web.get("/_matrix/client/v1/wait", "alice"), 403, "M_FORBIDDEN")
        self.check_refused(post(path, b"{", "alice"), 400, "M_NOT_JSON")
        self.check_refused(post(path, b"\xff", "alice"), 400, "M_NOT_JSON")
        self.check_refused(post(path, b"[]", "alice"), 400, "M_BAD_JSON")
        self.check_refused(post(path, {"name": 1}, "alice"), 400, "M_BAD_JSON")
        self.check_refused(post(path, {}, "alice"), 400, "M_MISSING_PARAM")
        self.check_refused(post(path + "?limit=x", {"name": "egg"}, "alice"), 400, "M_INVALID_PARAM")
        self.check_refused(post(path + "?" + "a=1&" * 300, {"name": "egg"}, "alice"), 400, "M_INVALID_PARAM")
        self.check_refused(post("/_matrix/client/v3/shop/%ff", {"name": "egg"}, "alice"), 400, "M_INVALID_PARAM")
        self.check_refused(self.web.get("/_matrix/client/v3/nowhere", "alice"), 404, "M_UNRECOGNIZED")
        self.check_refused(self.web.get(path, "alice"), 405, "M_UNRECOGNIZED")
        self.check_refused(request("PATCH", path, {}, "alice"), 405, "M_UNRECOGNIZED")
        self.check_refused(self.web.get(path + "/y%20z", "guest"), 403, "M_FORBIDDEN")

    def test_bodies_of_any_shape_are_bounded(self) -> None:
        path = "/_matrix/client/v3/any"
        self.assertEqual(self.web.post(path, b"").json, {})
        self.check_refused(self.web.post(path, b'{"a":' + b"[" * 300 + b"]" * 300 + b"}"), 400, "M_BAD_JSON")
        self.check_refused(self.web.post(path, b"[" * 1500), 400, "M_NOT_JSON")
        self.check_refused(self.web.post(path, b'{"a":"' + b"x" * 2000 + b'"}'), 413, "M_TOO_LARGE")
        self.check_refused(self.web.post(path, b"7"), 400, "M_BAD_JSON")

    def test_a_typed_body_that_is_too_deep_is_refused(self) -> None:
        body = b'{"name":"a","other":' + b"[" * 5000 + b"]" * 5000 + b"}"
        answer = self.web.post("/_matrix/client/v3/shop/x", body, "alice")
        self.assertEqual(answer.status // 100, 4)

    def test_preflight_is_answered_without_a_token(self) -> None:
        answer = self.web.request("OPTIONS", "/_matrix/client/v3/shop/x")
        self.assertEqual(answer.status, 200)
        self.assertIn("Authorization", answer.headers["access-control-allow-headers"])
        self.assertEqual(self.web.request("OPTIONS", "/_matrix/client/v3/nowhere").status, 404)

    def test_a_response_is_sent_as_it_is(self) -> None:
        answer = self.web.get("/_matrix/client/v3/shop/page")
        self.assertEqual((answer.status, answer.body, answer.headers["x-test"]), (201, b"<p>", "yes"))

    def test_a_defect_is_logged_and_shows_no_trace(self) -> None:
        answer = self.web.get("/_matrix/client/v1/breaks")
        self.check_refused(answer, 500, "M_UNKNOWN")
        self.assertNotIn(b"ZeroDivision", answer.body)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_an_answer_may_take_its_time(self) -> None:
        answer = self.web.get("/_matrix/client/v1/wait", "admin")
        self.assertFalse(answer.done)
        self.shop.waiting.callback(7)
        self.assertEqual(answer.json, {"got": 7})

    def test_two_rows_for_one_endpoint_are_refused(self) -> None:
        with self.assertRaises(ValueError):
            RouteTree(self.shop.routes() + self.shop.routes())

    def test_a_handler_that_does_not_fit_its_path_is_refused(self) -> None:
        with self.assertRaises(TypeError):
            RouteTree([Route("GET", "/x/{other}", self.shop.refuse)])


class LimitTests(SynchronousTestCase):
    def test_slots_free_themselves(self) -> None:
        clock = Clock()
        shop = Shop()
        shop.waiting.callback(1)
        limiter = SlotLimiter(ReactorClock(clock), True, 2, 500, ["@exempt:test"])
        route = Route("GET", "/wait", shop.wait, Access.USER, Limit("wait"))
        callers = dict(CALLERS, exempt=Caller(user_id="@exempt:test", device_id="X"))
        web = Web(Root(ApiResource([route], KnownCallers(callers), limiter)), clock)
        self.assertEqual([web.get("/wait", "alice").status for _ in range(3)], [200, 200, 429])
        refused = web.get("/wait", "alice")
        self.assertEqual((refused.errcode, refused.json["retry_after_ms"]), ("M_LIMIT_EXCEEDED", 500))
        self.assertEqual(refused.headers["retry-after"], "1")
        self.assertEqual(web.get("/wait", "bob").status, 200)
        for free in ("admin", "exempt"):
            self.assertEqual({web.get("/wait", free).status for _ in range(5)}, {200})
        clock.advance(0.5)
        self.assertEqual(web.get("/wait", "alice").status, 200)

"""The account sections of the client API over a real user component, asked by HTTP."""

from __future__ import annotations

from typing import Any

import msgspec

from dendrite_tw.client_api.last_seen import LastSeen
from dendrite_tw.client_api.routes import account_routes
from dendrite_tw.client_api.settings import ClientSettings
from dendrite_tw.client_api.uia import InteractiveAuth
from dendrite_tw.federation_api.api import FederationRequest, RemoteRefused
from dendrite_tw.links.handle import Answerer, Encoded, handle
from dendrite_tw.user_api.api import TYPE_ADMIN, NewAccount, NewLogin, UserAPI
from dendrite_tw.web.auth import TokenAuthenticator
from dendrite_tw.web.resource import ApiResource
from dendrite_tw.world import World
from tests.harness import Answer, NoLimits, Root, Web
from tests.turns import Turns
from tests.user_api.harness import UsersCase

V3 = "/_matrix/client/v3"
V1 = "/_matrix/client/v1"
PASSWORD = "correct horse"


class FakeCaptcha:
    """Takes one response for good."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    async def passes(self, response: str, ip: str) -> bool:
        self.asked.append((response, ip))
        return response == "solved"


def far_profile(request: FederationRequest) -> dict[str, Any]:
    """What a server says that knows one user."""
    if dict(request.query)["user_id"] != "@eve:far":
        raise RemoteRefused(404, "M_NOT_FOUND", "There is no such user.")
    return {"displayname": "Eve"}


class ClientCase(UsersCase):
    """A server with its client API; `client` changes its settings, `encoded` asks the component through bytes.

    With `by_turns` two processes serve it, and each request reaches another one than the last.
    """

    client: dict[str, Any] = {}  # noqa: RUF012
    encoded = False
    by_turns = False
    web: Any

    def setUp(self) -> None:
        super().setUp()
        settings = {"server_name": "test", "registration_disabled": False, "room_versions": {"12": "stable"}}
        self.client_settings = ClientSettings(**(settings | self.client))
        self.captcha = FakeCaptcha()
        world = self.users.memory.world
        users: Any = self.api
        if self.encoded:
            users = handle(UserAPI, Encoded(UserAPI, Answerer(UserAPI, self.api)))
        self.users.federation.answers["far", "/_matrix/federation/v1/query/profile"] = far_profile
        self.web = Turns()
        for place in range(2 if self.by_turns else 1):
            self.web.webs[place] = self.process(users, world)

    def process(self, users: UserAPI, world: World) -> Web:
        """A process that serves the client API."""
        self.auth = InteractiveAuth(users, world, self.client_settings, self.captcha, self.by_turns)
        self.seen = LastSeen(users, world)
        rows = account_routes(self.client_settings, users, self.users.rooms, self.users.queue, world, self.auth)
        api = ApiResource(rows, TokenAuthenticator(users, self.seen), NoLimits())
        return Web(Root(api), self.users.clock)

    def tokens(self, *names: str) -> list[str]:
        """Access tokens of new accounts, each on the device PHONE."""
        return [self.make(name, PASSWORD, device_id="PHONE").access_token for name in names]

    def admin(self) -> str:
        account = NewAccount(localpart="admin", password=PASSWORD, account_type=TYPE_ADMIN)
        _, login = self.wait(self.api.register(account, NewLogin()))
        return str(login.access_token)

    def check(self, answer: Answer, status: int, errcode: str | None = None) -> Any:
        """The JSON of an answer that has this status and error code."""
        self.assertEqual(status, answer.status, answer.body)
        if errcode is not None:
            self.assertEqual(errcode, answer.errcode)
        return answer.json

    def with_password(
        self,
        path: str,
        token: str | None,
        body: dict[str, Any],
        user: str,
        method: str = "POST",
        password: str = PASSWORD,
    ) -> Answer:
        """A request that is authenticated with a password in a second one."""
        session = self.check(self.web.request(method, path, body, token), 401)["session"]
        auth = {
            "type": "m.login.password",
            "session": session,
            "identifier": {"type": "m.id.user", "user": user},
            "password": password,
        }
        return self.web.request(method, path, body | {"auth": auth}, token)

    def last_published(self, shape: type[Any]) -> Any:
        return msgspec.msgpack.decode(self.users.queue.published[-1][1], type=shape)

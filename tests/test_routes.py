"""Our rows against the specification's lists of endpoints, and against themselves."""

from __future__ import annotations

import re
from pathlib import Path

from dendrite_tw.web.routes import Access
from tests.federation_api.whole import WholeServerTestCase
from tests.server import ServerTestCase

LIST = Path(__file__).parent / "data" / "client_endpoints.tsv"
"""Method, path and authentication of every endpoint of the Client-Server API v1.19."""

SERVER_LIST = Path(__file__).parent / "data" / "server_endpoints.tsv"
"""The same for the Server-Server API; the endpoint of policy servers is not ours to serve."""

LATER = {
    "GET /_matrix/client/v1/auth_metadata",
    "GET /_matrix/client/v1/media/preview_url",
    "GET /_matrix/client/v3/login/sso/redirect",
    "GET /_matrix/client/v3/login/sso/redirect/{}",
    "GET /_matrix/client/v3/thirdparty/location",
    "GET /_matrix/client/v3/thirdparty/location/{}",
    "GET /_matrix/client/v3/thirdparty/protocol/{}",
    "GET /_matrix/client/v3/thirdparty/protocols",
    "GET /_matrix/client/v3/thirdparty/user",
    "GET /_matrix/client/v3/thirdparty/user/{}",
    "GET /_matrix/media/v3/preview_url",
    "POST /_matrix/client/v1/appservice/{}/ping",
    "POST /_matrix/client/v3/search",
    "PUT /_matrix/client/v3/directory/list/appservice/{}/{}",
}
"""What is not served yet: bridges, search, previews, sign-in by others, OAuth."""


def normal(method: str, path: str) -> str:
    """An endpoint with its parameters nameless."""
    return f"{method} {re.sub(r'{[^}]*}', '{}', path)}"


class RouteTests(ServerTestCase):
    def setUp(self) -> None:
        super().setUp()
        rows = [line.split("\t") for line in LIST.read_text(encoding="utf-8").splitlines()]
        self.wanted = {normal(method, path): auth for method, path, auth in rows}
        self.served = {normal(row.method, row.path): row for row in self.server.parts.routes}

    def test_every_endpoint_is_served_or_known_to_be_missing(self) -> None:
        missing = {endpoint for endpoint in self.wanted if endpoint not in self.served}
        self.assertEqual(missing, LATER)

    def test_authentication_is_what_the_specification_wants(self) -> None:
        allowed = {
            "none": {Access.PUBLIC, Access.OPTIONAL},
            "optional-user": {Access.PUBLIC, Access.OPTIONAL},
            "user": {Access.USER, Access.GUEST, Access.ADMIN},
            "guest-allowed": {Access.GUEST},
            "appservice": {Access.APPSERVICE},
        }
        wrong = {
            endpoint: (auth, self.served[endpoint].access)
            for endpoint, auth in self.wanted.items()
            if endpoint in self.served and self.served[endpoint].access not in allowed[auth]
        }
        self.assertEqual(wrong, EXPLAINED)

    def test_old_clients_find_everything_under_r0(self) -> None:
        for endpoint in self.served:
            if " /_matrix/client/v3/" in endpoint:
                self.assertIn(endpoint.replace("/v3/", "/r0/", 1), self.served)


EXPLAINED = {
    "POST /_matrix/client/v3/logout": ("user", Access.PUBLIC),
    "POST /_matrix/client/v3/logout/all": ("user", Access.PUBLIC),
}
"""Endpoints whose handlers look at the token themselves: who is locked out may still log out."""


OLD_PATHS = {
    "PUT /_matrix/federation/v1/send_join/{}/{}",
    "PUT /_matrix/federation/v1/send_leave/{}/{}",
}
"""What the specification has no longer, and old servers still ask for."""


class ServerRouteTests(WholeServerTestCase):
    def setUp(self) -> None:
        super().setUp()
        rows = [line.split("\t") for line in SERVER_LIST.read_text(encoding="utf-8").splitlines()]
        self.wanted = {normal(method, path): auth for method, path, auth in rows}
        self.served = {normal(row.method, row.path): row for row in self.server.parts.routes}

    def test_every_endpoint_is_served(self) -> None:
        self.assertEqual(len(self.wanted), 35)
        self.assertEqual({endpoint for endpoint in self.wanted if endpoint not in self.served}, set())

    def test_authentication_is_what_the_specification_wants(self) -> None:
        allowed = {"none": Access.PUBLIC, "server": Access.SERVER}
        found = {endpoint: self.served[endpoint].access for endpoint in self.wanted}
        self.assertEqual(found, {endpoint: allowed[auth] for endpoint, auth in self.wanted.items()})

    def test_nothing_else_is_served_to_servers(self) -> None:
        signed = {endpoint for endpoint, row in self.served.items() if row.access is Access.SERVER}
        self.assertEqual(signed - self.wanted.keys(), OLD_PATHS)

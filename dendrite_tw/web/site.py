"""The tree of Resources that a listener serves: one for each API, built from the rows of all components.

Anything that is in no table is answered as the specification wants unknown
endpoints answered, in JSON, so that a client never meets a page of HTML.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from twisted.web.http import Request as HttpRequest
from twisted.web.resource import IResource, Resource
from twisted.web.server import NOT_DONE_YET, Request

from ..matrix.errors import unrecognized
from .bodies import BoundedSite, apis_below
from .channel import ChannelTimeouts, DirectChannel, Heads, find_api
from .resource import ApiResource, Authenticator, Limiter, Observer, ServerAuthenticator, error_response, write
from .routes import Response, Route

APIS = (
    "/_matrix/client",
    "/_matrix/media",
    "/_matrix/federation",
    "/_matrix/key",
    "/_matrix/static",
    "/_synapse",
    "/_dendrite",
    "/.well-known",
    "/health",
)
"""The prefixes that each get a Resource of their own."""


class Nowhere(Resource):
    """What is found where nothing is."""

    isLeaf = True

    def render(self, request: Request) -> int:
        if request.method == b"OPTIONS":
            write(request, Response(404, error_response(unrecognized()).body), cors=True)
        else:
            write(request, error_response(unrecognized()), cors=True)
        return NOT_DONE_YET


class Branch(Resource):
    """An inner node of the tree: children by name, `Nowhere` for the rest."""

    def getChild(self, path: bytes, request: Request) -> Resource:
        return Nowhere()

    def render(self, request: Request) -> int:
        return Nowhere().render(request)


class Landing(Branch):
    """The root: a visitor with a browser is shown the server's page."""

    def getChild(self, path: bytes, request: Request) -> Resource:
        return self if path == b"" and not request.postpath else Nowhere()

    def render(self, request: Request) -> int:
        write(request, Response(302, b"", b"text/plain", [(b"Location", b"/_matrix/static/")]), cors=False)
        return NOT_DONE_YET


def make_root(
    routes: Iterable[Route],
    authenticator: Authenticator,
    limiter: Limiter,
    observe: Observer,
    others: Mapping[bytes, IResource] | None = None,
    real_ip_header: str = "",
    servers: ServerAuthenticator | None = None,
) -> Resource:
    """The root Resource for the rows of all components; `others` are further children of the root.

    Without `servers` the endpoints that other servers sign their requests to are not there.
    """
    root = Landing()
    by_api: dict[str, list[Route]] = {}
    for row in routes:
        prefix = next((api for api in APIS if row.path == api or row.path.startswith(api + "/")), None)
        if prefix is None:
            raise ValueError(f"{row.path} belongs to no API")
        by_api.setdefault(prefix, []).append(row)
    for prefix, rows in by_api.items():
        _plant(root, prefix, ApiResource(rows, authenticator, limiter, observe, real_ip_header, servers))
    for name, resource in (others or {}).items():
        root.putChild(name, resource)
    return root


def _plant(root: Resource, prefix: str, resource: Resource) -> None:
    *branches, leaf = prefix.encode().split(b"/")[1:]
    node = root
    for name in branches:
        child = node.children.get(name)
        if child is None:
            child = Branch()
            node.putChild(name, child)
        node = child
    node.putChild(leaf, resource)


class QuietSite(BoundedSite):
    """A site without an access log, whose connections read whole requests at once."""

    displayTracebacks = False
    noisy = False
    protocol = DirectChannel  # type: ignore[assignment]

    def __init__(self, resource: IResource, apis: Sequence[tuple[bytes, ApiResource]], **options: Any) -> None:
        super().__init__(resource, apis, **options)
        self.head = Heads(self.reactor).head
        self.timeouts = ChannelTimeouts(self.reactor)
        self.seconds: Callable[[], float] = self.reactor.seconds

    def api_of(self, uri: bytes) -> ApiResource | None:
        """The API that answers a request's target, where one does."""
        return find_api(self._apis, uri)

    def log(self, request: HttpRequest) -> None:
        return None

    def startFactory(self) -> None:
        """No log file to open, no date to keep for it."""

    def stopFactory(self) -> None:
        return None


def make_site(root: Resource, reactor: Any) -> QuietSite:
    """What listens: HTTP/1.1 with keep-alive; connections that are idle for a minute and a half are closed."""
    return QuietSite(root, apis_below(root), reactor=reactor, timeout=90)

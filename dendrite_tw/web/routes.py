"""One row per endpoint, and what is derived from a list of rows.

    Route("POST", "/_matrix/client/v3/rooms/{room_id}/join", rooms.join, Access.GUEST, limit=JOINS)

A handler is an ``async`` function.  What it is given follows from the names
and annotations of its parameters: `caller` is who asks, `body` the request's
body checked against the annotation, `query` the query string likewise,
`request` the exchange itself, `origin` the name of the server that signed it
(with `Access.SERVER`, which has no `caller`); every other parameter is a part of the path.
What it returns becomes the answer: a dict or Struct is encoded as JSON,
bytes are JSON already, a `Response` is sent as it is, `None` means ``{}``.
A row for GET answers HEAD too.  A row with ``body_file`` has its bodies
written to a file while they arrive; the handler's `body` is that file.

The rows give dispatch, authentication, limits, labels of metrics, the
manual's list, a reverse proxy's map, and the test against the specification.
"""

from __future__ import annotations

import enum
import inspect
import re
import typing
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Protocol
from urllib.parse import unquote_to_bytes

import msgspec
import orjson

from ..matrix.errors import MatrixError, bad_json, invalid_param, missing_param, not_json, unrecognized
from .pieces import Pieces

Handler = Callable[..., Awaitable[Any]]

DEFAULT_BODY_LIMIT = 1 << 20
"""Bytes of a JSON body, unless a route says otherwise."""

JSON_DEPTH_LIMIT = 200
"""Nesting that no honest client comes near; beyond it a value could not be encoded again."""


class Access(enum.Enum):
    """Who may call an endpoint."""

    PUBLIC = "no token needed, none looked at"
    OPTIONAL = "a token is looked at where there is one"
    USER = "a user's token"
    GUEST = "a user's or a guest's token"
    ADMIN = "the token of a user who administers this server"
    APPSERVICE = "an application service's token"
    SERVER = "another server's signature"


class Limit(msgspec.Struct, frozen=True):
    """A rate limit's name: routes with the same one share a caller's slots.

    ``factor``: so many times the configured slots are there, for those who ask on behalf of many.
    """

    name: str
    factor: int = 1


class BodyFile(Protocol):
    """Where a body is written while it arrives.

    The web closes it when the exchange is over, also where the client went
    away or was refused; what a handler wants to keep, it must take before.
    """

    def write(self, data: bytes, /) -> Any:
        """Append `data`; `MatrixError` where it may not grow so far, `OSError` where it cannot."""

    def tell(self) -> int:
        """How many bytes were written."""

    def seek(self, offset: int, whence: int = 0, /) -> Any:
        """Called once with 0, when the body is complete."""

    def close(self) -> None: ...


class Route(msgspec.Struct, frozen=True):
    """A row of an API's table."""

    method: str
    path: str
    handler: Handler
    access: Access = Access.USER
    limit: Limit | None = None
    body_limit: int = DEFAULT_BODY_LIMIT
    cors: bool = True
    body_file: Callable[[], BodyFile] | None = None


class Response(msgspec.Struct):
    """An answer that is more than a JSON object with status 200.

    ``file`` names a file whose bytes from ``file_offset``, ``file_length`` of
    them, follow ``body``, and are followed by ``tail``; they are sent piece by piece.  The web answers
    requests for a range of it, and conditional ones where it has an ``ETag``.
    ``pieces`` yields the rest of a body whose length nobody knows yet.
    """

    status: int = 200
    body: bytes = b""
    content_type: bytes = b"application/json"
    headers: Sequence[tuple[bytes, bytes]] = ()
    file: str | None = None
    file_offset: int = 0
    file_length: int = 0
    tail: bytes = b""
    pieces: Pieces | None = None

    @property
    def length(self) -> int:
        """How many bytes are sent after the head."""
        return len(self.body) + self.file_length + len(self.tail)


def client_paths(routes: Iterable[Route]) -> list[Route]:
    """The rows with, for each ``/v3/`` path, its ``/r0/`` form, which older clients still call."""
    rows = list(routes)
    return rows + [
        msgspec.structs.replace(row, path=row.path.replace("/v3/", "/r0/", 1)) for row in rows if "/v3/" in row.path
    ]


_PARAMETER = re.compile(r"^\{([a-z_]+)\}$")


Shape = tuple[dict[str, Any], list[str]]
"""The annotations of a handler, and the names of its parameters."""


def shape_of(handler: Handler) -> Shape:
    names = [name for name in inspect.signature(handler).parameters if name != "self"]
    return typing.get_type_hints(inspect.unwrap(handler)), names


class Endpoint:
    """A route made ready to be called: what its handler wants, and how to make it from a request."""

    def __init__(self, route: Route, shape: Shape | None = None) -> None:
        """`shape` is that of the handler, where it is known already."""
        self.route = route
        self.parameters = [m.group(1) for part in route.path.split("/") if (m := _PARAMETER.match(part))]
        hints, names = shape or shape_of(route.handler)
        special = {"caller", "body", "query", "request"}
        self.wants_origin = route.access is Access.SERVER and "origin" in names
        if route.access is Access.SERVER:
            special = {"origin", "body", "query", "request"}
            if route.body_file is not None:
                raise TypeError(f"{route.method} {route.path}: a server's signature covers the body")
        if set(names) - special != set(self.parameters):
            raise TypeError(f"{route.method} {route.path}: the handler takes {names}")
        self.wants_caller = "caller" in names
        self.wants_request = "request" in names
        takes_json = "body" in names and route.body_file is None
        self.body = make_body_decoder(hints["body"]) if takes_json else None
        self.takes_object = self.body is decode_object
        if route.body_file is not None and "body" not in names:
            raise TypeError(f"{route.method} {route.path}: the handler takes no body")
        self.query = QueryDecoder(hints["query"]) if "query" in names else None
        self.label = route.path.rsplit("/_matrix/", 1)[-1]


def make_body_decoder(annotation: Any) -> Callable[[bytes], Any]:
    """A function from a request's body to the value that `annotation` describes.

    It raises `MatrixError`: ``M_NOT_JSON`` for what is not JSON, ``M_BAD_JSON`` or
    ``M_MISSING_PARAM`` for JSON of another shape.
    """
    if annotation is bytes:
        return lambda body: body
    if annotation in (dict, dict[str, Any]):
        return decode_object
    decoder = msgspec.json.Decoder(annotation)

    def decode(body: bytes) -> Any:
        try:
            return decoder.decode(body or b"{}")
        except msgspec.ValidationError as error:
            raise shape_error(error) from None
        except (msgspec.DecodeError, UnicodeDecodeError, ValueError):
            raise not_json() from None
        except RecursionError:
            raise bad_json("The request body is nested too deeply.") from None

    return decode


def shape_error(error: msgspec.ValidationError) -> MatrixError:
    """What a client is told of a value of the wrong shape."""
    text = str(error)
    return missing_param(text) if "missing required field" in text else bad_json(text)


def decode_object(body: bytes) -> dict[str, Any]:
    """The JSON object in `body`; an empty body is an empty object."""
    try:
        value = orjson.loads(body or b"{}")
    except orjson.JSONDecodeError:
        raise not_json() from None
    if not isinstance(value, dict):
        raise bad_json("The request body must be a JSON object.")
    if body.count(b"[") + body.count(b"{") > JSON_DEPTH_LIMIT and _too_deep(value, JSON_DEPTH_LIMIT):
        raise bad_json("The request body is nested too deeply.")
    return value


def _too_deep(value: Any, levels: int) -> bool:
    """Whether `value` nests more than `levels` objects or lists, walked without recursion."""
    layer = [value]
    for _ in range(levels):
        layer = [
            inner
            for outer in layer
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not layer:
            return False
    return True


class QueryDecoder:
    """Makes a Struct out of a query string; fields of list type collect repeated keys."""

    def __init__(self, struct: type[msgspec.Struct]) -> None:
        self._struct = struct
        hints = typing.get_type_hints(struct)
        self._fields = {field.encode_name: hints[field.name] for field in msgspec.structs.fields(struct)}
        self._empty: Any = None
        try:
            self._empty = struct()
        except TypeError:
            pass

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> Any:
        """The Struct for decoded `pairs`; ``M_INVALID_PARAM`` or ``M_MISSING_PARAM`` where they do not fit."""
        if not pairs and self._empty is not None:
            return self._empty
        values: dict[str, Any] = {}
        for key, value in pairs:
            if key not in self._fields:
                continue
            if typing.get_origin(self._fields[key]) is list:
                values.setdefault(key, []).append(value)
            else:
                values.setdefault(key, value)
        try:
            return msgspec.convert(values, self._struct, strict=False)
        except msgspec.ValidationError as error:
            text = str(error)
            raise (missing_param(text) if "missing required field" in text else invalid_param(text)) from None


class _Node:
    """A level of the tree of path segments."""

    __slots__ = ("children", "methods", "parameter")

    def __init__(self) -> None:
        self.children: dict[str, _Node] = {}
        self.parameter: _Node | None = None
        self.methods: dict[str, Endpoint] = {}


class RouteTree:
    """Finds the endpoint for a method and a path."""

    def __init__(self, routes: Iterable[Route]) -> None:
        shapes: dict[Handler, Shape] = {}
        self.endpoints: list[Endpoint] = []
        for route in routes:
            shape = shapes.get(route.handler) or shapes.setdefault(route.handler, shape_of(route.handler))
            self.endpoints.append(Endpoint(route, shape))
        self._root = _Node()
        for endpoint in self.endpoints:
            node = self._root
            for part in endpoint.route.path.split("/")[1:]:
                if _PARAMETER.match(part):
                    node.parameter = node = node.parameter or _Node()
                else:
                    node = node.children.setdefault(part, _Node())
            if endpoint.route.method in node.methods:
                raise ValueError(f"two rows for {endpoint.route.method} {endpoint.route.path}")
            node.methods[endpoint.route.method] = endpoint

    def find(self, method: str, path: bytes) -> tuple[Endpoint, list[str]]:
        """The endpoint and the decoded path parameters, in the order of the path; HEAD finds that of GET.

        ``M_UNRECOGNIZED`` with 404 for an unknown path, 405 for a wrong method.
        """
        parts = segments(path)
        found = self._straight(parts) or self._walk(self._root, parts, 0, [])
        if found is None:
            raise unrecognized()
        node, values = found
        endpoint = node.methods.get("GET" if method == "HEAD" else method)
        if endpoint is None:
            raise unrecognized(405, f"This endpoint does not answer {method}.")
        return endpoint, values

    def knows(self, path: bytes) -> bool:
        """Whether any method is answered at `path`."""
        return self._walk(self._root, segments(path), 0, []) is not None

    def _straight(self, parts: list[str]) -> tuple[_Node, list[str]] | None:
        """The way that takes a literal part wherever there is one; right for nearly every path."""
        node, values, last = self._root, [], len(parts) - 1
        for at, part in enumerate(parts):
            child = node.children.get(part)
            if child is None:
                child = node.parameter
                if child is None or not (part or at == last):
                    return None
                values.append(part)
            node = child
        return (node, values) if node.methods else None

    def _walk(self, node: _Node, parts: list[str], at: int, values: list[str]) -> tuple[_Node, list[str]] | None:
        if at == len(parts):
            return (node, values) if node.methods else None
        child = node.children.get(parts[at])
        if child is not None:
            found = self._walk(child, parts, at + 1, values)
            if found is not None:
                return found
        if node.parameter is not None and (parts[at] or at == len(parts) - 1):
            return self._walk(node.parameter, parts, at + 1, [*values, parts[at]])
        return None


def segments(path: bytes) -> list[str]:
    """The parts of a raw path after its first slash, each percent-decoded.

    ``M_INVALID_PARAM`` where a part is not UTF-8.
    """
    parts = path.split(b"/")[1:]
    try:
        if b"%" in path:
            return [unquote_to_bytes(part).decode() for part in parts]
        return [part.decode() for part in parts]
    except UnicodeDecodeError:
        raise invalid_param("The path is not valid UTF-8.") from None

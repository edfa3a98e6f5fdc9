"""Who made a request between servers: the ``Authorization: X-Matrix`` header.

Server-Server API, "Request Authentication"; the header's grammar is that of RFC 9110, section 11.4.  What is signed is
a JSON object of the request's method, target, content and both servers.  The content is JSON that either side parsed
for itself; where it has numbers that canonical JSON does not (transactions with events of old room versions have),
it is written as the servers of those days wrote it.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import msgspec

from ..matrix import canonical_json, signing
from ..matrix.errors import MatrixError, invalid_param
from ..matrix.identifiers import is_server_name
from ..matrix.keys import SigningKey
from ..matrix.signing import SignatureError
from .api import SignedRequest
from .failures import FailedRequests

HEADER_LIMIT = 4096
"""No honest header is longer: two names of 255 bytes, a key id and a signature."""

KEY_ID_LIMIT = 255

_NAME = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_SCHEME = re.compile(r"x-matrix(?: +|\Z)", re.IGNORECASE)
_PARAMETER = re.compile(
    rf"""[ \t]* (?P<name>{_NAME}) [ \t]* = [ \t]*
    (?: "(?P<quoted> (?: [^"\\] | \\. )* )" | (?P<bare> [^",\\ \t]+ ) )
    [ \t]* (?: , | \Z )""",
    re.VERBOSE,
)
_ESCAPED = re.compile(r"\\(.)")


class XMatrix(msgspec.Struct, frozen=True):
    """The header's parameters; ``destination`` is missing in those of old servers."""

    origin: str
    key_id: str
    signature: str
    destination: str | None = None


class Claim(Protocol):
    """What a request says of who made it; `resource.Exchange` is one."""

    parsed: Any

    @property
    def method(self) -> str: ...

    @property
    def uri(self) -> bytes: ...

    @property
    def body(self) -> bytes: ...

    @property
    def ip(self) -> str: ...

    def header(self, name: bytes) -> str | None: ...


class Asked:
    """The `Claim` of a request that another process was sent."""

    def __init__(self, request: SignedRequest) -> None:
        self._authorization = request.authorization
        self.parsed: Any = None
        self.method = request.method
        self.uri = request.uri
        self.body = request.content
        self.ip = request.ip

    def header(self, name: bytes) -> str | None:
        return self._authorization


class NotAServerName(ValueError):
    """Somebody calls themselves what no server can be called."""


class Verifier(Protocol):
    """What the check asks of the key ring."""

    async def verify(
        self, server_name: str, key_id: str, message: bytes, signature: str, minimum_valid_until_ts: int
    ) -> None:
        """Raise `SignatureError` unless the signature is good."""


def parse_header(header: str) -> XMatrix:
    """Read the header.

    Names are taken in either case, values quoted or bare, with what a token may not hold (colons, say) allowed in bare
    ones.  Raises `ValueError`, also for a parameter that comes twice: which one counts, nobody could say.
    """
    scheme = _SCHEME.match(header)
    if scheme is None or len(header) > HEADER_LIMIT:
        raise ValueError("not an X-Matrix header")
    found: dict[str, str] = {}
    at = scheme.end()
    while at < len(header):
        parameter = _PARAMETER.match(header, at)
        if parameter is None:
            raise ValueError("malformed parameters")
        name = parameter["name"].lower()
        if name in found:
            raise ValueError(f"{name} comes twice")
        quoted = parameter["quoted"]
        found[name] = parameter["bare"] if quoted is None else _ESCAPED.sub(r"\1", quoted)
        at = parameter.end()
    origin, key_id = found.get("origin", ""), found.get("key", "")
    signature = found.get("sig") or found.get("signature") or ""
    if not origin or not key_id or len(key_id) > KEY_ID_LIMIT or not signature:
        raise ValueError("origin, key or sig is missing or malformed")
    if not is_server_name(origin):
        raise NotAServerName("the origin is not the name of a server")
    return XMatrix(origin, key_id, signature, found.get("destination"))


def build_header(origin: str, destination: str, key_id: str, signature: str) -> str:
    """The header in the form that every server reads."""
    return f'X-Matrix origin="{origin}",destination="{destination}",key="{key_id}",sig="{signature}"'


def request_message(method: str, uri: str, origin: str, destination: str | None, content: bytes | None) -> bytes:
    """The bytes that a request's signature covers.

    `uri` is the target as it is sent, path and query.  `content` is the body's JSON, `None` where there is none.
    Raises `canonical_json.CanonicalJSONError` for a body that is not JSON or that nobody could have signed.
    """
    return read_request(method, uri, origin, destination, content)[0]


def read_request(
    method: str, uri: str, origin: str, destination: str | None, content: bytes | None
) -> tuple[bytes, Any]:
    """The same, and the body's value, so that it need not be read twice.

    The value is `None` if there is no body, or one with numbers that only old room versions have.
    """
    value: dict[str, Any] = {"method": method, "uri": uri, "origin": origin}
    if destination is not None:
        value["destination"] = destination
    if content is None:
        return canonical_json.encode(value), None
    try:
        value["content"] = canonical_json.decode(content)
        return canonical_json.encode(value), value["content"]
    except canonical_json.CanonicalJSONError:
        value["content"] = canonical_json.decode_lenient(content)
        return canonical_json.encode_lenient(value), None


def sign_request(key: SigningKey, origin: str, destination: str, method: str, uri: str, content: bytes | None) -> str:
    """The value of the ``Authorization`` header for a request."""
    message = request_message(method, uri, origin, destination, content)
    return build_header(origin, destination, key.key_id, signing.sign_bytes(message, key.secret))


class ServerAuthenticator:
    """Says which server made a request to this one."""

    def __init__(
        self,
        server_names: frozenset[str],
        verifier: Verifier,
        now_ms: Callable[[], int],
        on_seen: Callable[[str], Awaitable[None]],
        failures: FailedRequests,
    ) -> None:
        """`server_names` are those of this server; `on_seen` is told of every server that proved who it is."""
        self._server_names = server_names
        self._verifier = verifier
        self._now_ms = now_ms
        self._on_seen = on_seen
        self._failures = failures

    async def origin_of(self, exchange: Claim) -> str:
        """The name of the server that signed a request; ``M_UNAUTHORIZED`` where none did."""
        header = exchange.header(b"authorization")
        if header is None:
            raise unauthorized("The request is not signed.")
        try:
            said = parse_header(header)
        except NotAServerName:
            raise invalid_param("The origin in the Authorization header is not the name of a server.") from None
        except ValueError as error:
            raise unauthorized(f"The Authorization header cannot be read: {error}.") from None
        if said.destination is not None and said.destination not in self._server_names:
            raise unauthorized("The request is signed for another server.")
        if said.origin in self._server_names:
            raise unauthorized("The request claims to be from this server.")
        self._failures.check(exchange.ip, said.origin)
        try:
            await self._verify(exchange, said)
        except MatrixError:
            self._failures.failed(exchange.ip, said.origin)
            raise
        self._failures.passed(exchange.ip, said.origin)
        await self._on_seen(said.origin)
        return said.origin

    async def _verify(self, exchange: Claim, said: XMatrix) -> None:
        """Raise `MatrixError` unless the request is signed as it says."""
        try:
            uri = exchange.uri.decode("ascii")
            content = exchange.body or None
            message, exchange.parsed = read_request(exchange.method, uri, said.origin, said.destination, content)
            await self._verifier.verify(said.origin, said.key_id, message, said.signature, self._now_ms())
        except UnicodeDecodeError:
            raise unauthorized("The request's target is not ASCII.") from None
        except canonical_json.CanonicalJSONError:
            raise MatrixError(400, "M_NOT_JSON", "The request body is not valid JSON.") from None
        except SignatureError as error:
            raise unauthorized(f"The signature of {said.origin} cannot be confirmed: {error}.") from None


def unauthorized(error: str) -> MatrixError:
    """The answer to a request of which it is not known who made it."""
    return MatrixError(401, "M_UNAUTHORIZED", error)

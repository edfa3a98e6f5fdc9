"""What both sides of a handshake share: its kinds, its requests, its signer and its errors."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import quote

import msgspec
import orjson

from dendrite_tw.matrix.errors import MALFORMED, MatrixError
from dendrite_tw.matrix.room_versions import RoomVersion


class HandshakeError(Exception):
    """The other server's answer cannot be used; the text says why.  Another server may do better."""


class Kind(msgspec.Struct, frozen=True):
    """One of the memberships that a user can have a resident server make."""

    membership: str
    make: str
    """The endpoint that gives the template."""
    send: str
    """The endpoint that takes the event."""
    send_version: str = "v2"


JOIN: Final = Kind("join", "make_join", "send_join")
LEAVE: Final = Kind("leave", "make_leave", "send_leave")
KNOCK: Final = Kind("knock", "make_knock", "send_knock", "v1")


class Signer(msgspec.Struct, frozen=True):
    """This server and the key that it signs with."""

    server_name: str
    key_id: str
    secret: bytes

    def __repr__(self) -> str:
        return f"Signer({self.server_name!r}, {self.key_id!r})"


class Request(msgspec.Struct, frozen=True):
    """A question: a signed request to another server.  The answer is a `Reply`, or `None` if none came."""

    server_name: str
    method: str
    path: str
    """Escaped, without query."""
    query: tuple[tuple[str, str], ...] = ()
    content: dict[str, Any] | None = None
    """The JSON object to send, which the request's signature covers; `None` for no body."""


class Reply(msgspec.Struct, frozen=True):
    """What the other server answered."""

    status: int
    body: bytes

    def content(self) -> Any:
        """The body as JSON; raises `HandshakeError`."""
        try:
            return orjson.loads(self.body)
        except orjson.JSONDecodeError:
            raise HandshakeError("the answer is not JSON") from None


class Pause(msgspec.Struct, frozen=True):
    """A question without an answer: a long calculation may be interrupted here."""

    done: int
    of: int


def path(version: str, endpoint: str, *parts: str) -> str:
    """The path of a federation endpoint, its parts escaped."""
    return "/".join([f"/_matrix/federation/{version}/{endpoint}", *(quote(part, safe="") for part in parts)])


def error_of(reply: Reply | None) -> MatrixError:
    """What an answer that is no success means."""
    if reply is None:
        return MatrixError(502, "M_UNKNOWN", "The server could not be reached.")
    try:
        content = reply.content()
    except HandshakeError:
        content = None
    if not isinstance(content, dict):
        content = {}
    errcode, error = content.get("errcode"), content.get("error")
    extra = {key: content[key] for key in ("room_version",) if isinstance(content.get(key), str)}
    return MatrixError(
        reply.status if 400 <= reply.status < 500 else 502,
        errcode if isinstance(errcode, str) and len(errcode) <= 100 else "M_UNKNOWN",
        error[:500] if isinstance(error, str) else f"The server answered with status {reply.status}.",
        **extra,
    )


def for_client(error: MatrixError) -> MatrixError:
    """The error as the client is told: what it could not have done better is not its fault."""
    if error.errcode in ("M_MISSING_PARAM", "M_INVALID_PARAM", "M_UNRECOGNIZED", "M_BAD_JSON", "M_NOT_JSON"):
        return MatrixError(502, error.errcode, error.error)
    if error.status == 401:
        return MatrixError(502, "M_UNKNOWN", error.error)
    return error


def incompatible(version: RoomVersion) -> MatrixError:
    """The refusal for a server that does not know the room's version."""
    return MatrixError(
        400,
        "M_INCOMPATIBLE_ROOM_VERSION",
        "Your homeserver does not support the version of this room.",
        room_version=version.identifier,
    )


def is_unknown_endpoint(reply: Reply | None) -> bool:
    """Whether an older server answered, that does not have the endpoint."""
    if reply is None or reply.status not in (404, 405):
        return False
    return not reply.body.strip() or error_of(reply).errcode in ("M_UNRECOGNIZED", "M_UNKNOWN")


def unwrap(reply: Reply | None) -> Reply | None:
    """The answer of a first-version endpoint, ``[200, {…}]``, as that of its successor."""
    if reply is None or reply.status != 200:
        return reply
    try:
        pair = msgspec.json.decode(reply.body, type=tuple[int, msgspec.Raw])
    except MALFORMED:
        raise HandshakeError("the answer is not a pair of status and object") from None
    return Reply(pair[0], bytes(pair[1]))

"""What other components ask of other servers, through this one.

Server-Server API.  Whatever can go wrong with another server is one of two errors: `Unreachable`, there was no answer
(`BackingOff`: none was asked for, because there was none lately), and `RemoteRefused`, the answer was no.
"""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from ..links.codec import InterfaceCodec
from ..links.routing import routed
from ..matrix.errors import MatrixError
from ..web.internet import Unreachable

__all__ = [
    "BackingOff",
    "Download",
    "DownloadRequest",
    "FederationAPI",
    "FederationRequest",
    "KeysWanted",
    "NoFederation",
    "RawAnswer",
    "RemoteRefused",
    "ServerKey",
    "SignatureCheck",
    "SignedRequest",
    "Unreachable",
]


DURABLES = {
    "OutputRoomEvent": ["FederationAPIRoomServerConsumer"],
    "OutputSendToDeviceEvent": ["FederationAPIESendToDeviceConsumer"],
    "OutputKeyChangeEvent": ["FederationAPIKeyChangeConsumer"],
    "OutputReceiptEvent": ["FederationAPIReceiptConsumer"],
}
"""The durable consumers of each stream, whose positions hold back the pruning of outboxes."""


class BackingOff(Unreachable):
    """The server did not answer lately; ``retry_after_ms`` until it is asked again, `None` if it must speak first."""

    def __init__(self, destination: str, retry_after_ms: int | None) -> None:
        super().__init__(f"{destination} did not answer lately and is left in peace")
        self.retry_after_ms = retry_after_ms


class RemoteRefused(MatrixError):
    """The other server answered with an error.

    As it stands a client is told 502: what another server says of this one (an unknown token, say) is not meant for
    it.  `forwarded` is for the errors that are.
    """

    def __init__(self, remote_status: int, remote_errcode: str, remote_error: str) -> None:
        super().__init__(502, "M_UNKNOWN", f"The other server refused: {remote_error}")
        self.remote_status = remote_status
        self.remote_errcode = remote_errcode
        self.remote_error = remote_error

    def forwarded(self) -> MatrixError:
        """The other server's error as ours, where it is about what was asked for; else this error."""
        if self.remote_status in (400, 403, 404) and self.remote_errcode != "M_UNKNOWN_TOKEN":
            return MatrixError(self.remote_status, self.remote_errcode, self.remote_error)
        return self


class FederationRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A signed request to another server.

    ``path`` is encoded already; ``query`` is a list of fields.  ``body`` is a JSON object; `None` is for GET.
    """

    method: str
    destination: str
    path: str
    query: list[tuple[str, str]] = []
    body: dict[str, Any] | None = None
    timeout_ms: int = 30_000
    response_limit: int = 1 << 20
    """Bytes that the answer may have."""
    retry: bool = True
    """Whether the request may be made again at once when a kept connection turns out to be closed."""
    despite_backoff: bool = False
    """Ask even a server that did not answer lately: for what a user waits for."""


class SignatureCheck(msgspec.Struct, frozen=True):
    """A signature to be checked: of ``message``, canonical JSON, by a key of ``server_name``.

    The key must have been valid at ``minimum_valid_until_ts`` (milliseconds); 0 accepts a key of any time, as room
    versions 1 to 4 do.  ``signature`` is unpadded base64.
    """

    server_name: str
    key_id: str
    message: bytes
    signature: str
    minimum_valid_until_ts: int = 0


class KeysWanted(msgspec.Struct, frozen=True):
    """Keys of a server for signatures made at ``ts`` (milliseconds), as `matrix.admission.KeyRequest`.

    A copy of a key that is not known to have been valid then is fetched again; 0 is content with any.
    """

    server_name: str
    key_ids: list[str]
    ts: int


class ServerKey(msgspec.Struct, frozen=True):
    """A public key of a server, 32 bytes, and until when its signatures count (milliseconds).

    ``expired_ts`` is set for a key that the server no longer signs with: since when.
    """

    server_name: str
    key_id: str
    key: bytes
    valid_until_ts: int
    expired_ts: int | None = None


class RawAnswer(msgspec.Struct, frozen=True):
    """What another server answered, whatever it was."""

    status: int
    body: bytes


class DownloadRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A file that another server is asked for, and where to write it.

    ``path`` and ``query`` are as of `FederationRequest`.  ``into`` names the file that is written, on a disk that
    whoever asks shares with this component; whoever asks removes it where the answer is no.  ``multipart``: the
    request is signed, and answered as ``/_matrix/federation/v1/media/download`` is; otherwise it is neither.
    """

    destination: str
    path: str
    query: list[tuple[str, str]] = []
    into: str
    limit: int
    timeout_ms: int = 120_000
    multipart: bool = True


class Download(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a download: with a ``status`` of 200 a file, else the reason.

    ``sha256`` is in hexadecimal; ``content_type`` and ``disposition`` are what the other server said.
    """

    status: int
    size: int = 0
    sha256: str = ""
    content_type: str | None = None
    disposition: str | None = None
    errcode: str | None = None
    error: str | None = None


class SignedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request of another server to this one, and the address that it came from."""

    method: str
    uri: bytes
    authorization: str | None
    content: bytes
    ip: str


class FederationAPI(Protocol):
    """The transport of federation: questions to other servers, and their keys."""

    async def request(self, request: FederationRequest) -> dict[str, Any]:
        """The answer of another server.

        Raises `Unreachable`, `BackingOff` or `RemoteRefused`.
        """

    async def ask(self, request: FederationRequest) -> RawAnswer:
        """The answer of another server with any status, for those who look at refusals too.

        Raises `Unreachable` or `BackingOff`.
        """

    async def download(self, request: DownloadRequest) -> Download:
        """Have a file written, from the server or from where it says that the file lies.

        Raises `Unreachable`, `BackingOff`, and ``M_TOO_LARGE`` (502) beyond the limit.
        """

    @routed(repeat=True)
    async def check_signatures(self, checks: list[SignatureCheck]) -> list[str | None]:
        """For each signature `None` where it is good, else the reason why it is not.

        Keys that are missing are fetched, those of many servers at once.
        """

    @routed(repeat=True)
    async def fetch_keys(self, wanted: list[KeysWanted]) -> list[ServerKey]:
        """The keys among `wanted` that anybody knows, whether or not they were valid at the time that is given."""

    @routed(repeat=True)
    async def origin_of(self, request: SignedRequest) -> str:
        """The name of the server that signed a request; ``M_UNAUTHORIZED`` where none did."""


InterfaceCodec(FederationAPI)


class NoFederation:
    """`FederationAPI` of a server that does not federate: nobody is to be reached."""

    async def request(self, request: FederationRequest) -> dict[str, Any]:
        raise _no_federation()

    async def ask(self, request: FederationRequest) -> RawAnswer:
        raise _no_federation()

    async def download(self, request: DownloadRequest) -> Download:
        raise _no_federation()

    async def check_signatures(self, checks: list[SignatureCheck]) -> list[str | None]:
        return ["this server does not federate, so it has no keys of others"] * len(checks)

    async def fetch_keys(self, wanted: list[KeysWanted]) -> list[ServerKey]:
        return []

    async def origin_of(self, request: SignedRequest) -> str:
        raise MatrixError(401, "M_UNAUTHORIZED", "This server does not federate.")


def _no_federation() -> Unreachable:
    return Unreachable("this server does not federate")

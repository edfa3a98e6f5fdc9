"""Files of other servers, written to the disk as they come.

Server-Server API, "Content Repository".  The answer is ``multipart/mixed``: metadata, then the file itself or the
``Location`` where it lies.  There it is fetched without a signature, over HTTPS, and from no network that this server
may not connect to.  The older endpoints answer with the file, or redirect.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from urllib.parse import urljoin

from ..matrix.errors import MatrixError
from ..matrix.multipart import MultipartError, MultipartReader, PartHead, boundary_of
from ..web.bodies import no_space
from ..web.client import REDIRECTS, HttpAnswer
from ..web.internet import HttpRequests, Write
from .api import Download, DownloadRequest, FederationRequest, Unreachable
from .client import FederationClient, error_of

REDIRECTIONS = 3
HEADER_LENGTH = 4096
"""Characters of a file's type and name, and of a location, that are looked at."""

BESIDE_LIMIT = 64 << 10
"""Bytes of the metadata, and of what stands where a location says that the file lies elsewhere."""


class Downloads:
    """Answers `FederationAPI.download`."""

    def __init__(self, client: FederationClient, http: HttpRequests) -> None:
        self._client = client
        self._http = http

    async def download(self, request: DownloadRequest) -> Download:
        """`FederationAPI.download`."""
        taker = _Taker(request)
        try:
            answer = await self._client.fetch(
                FederationRequest(
                    method="GET",
                    destination=request.destination,
                    path=request.path,
                    query=request.query,
                    timeout_ms=request.timeout_ms,
                ),
                taker.multipart if request.multipart else taker.plain,
                signed=request.multipart,
            )
            location = taker.location
            if not request.multipart and answer.status in REDIRECTS:
                location = _joined(request, answer.header("location") or "")
            if location is not None:
                answer = await self._elsewhere(location, taker, request.timeout_ms / 1000)
            return taker.result(answer)
        finally:
            taker.close()

    async def _elsewhere(self, location: str, taker: _Taker, seconds: float) -> HttpAnswer:
        """Fetch the file from where it lies; that this fails says nothing about the server."""
        if not location.startswith("https://"):
            raise Unreachable("the file is said to lie where it cannot be fetched from")
        headers = [("Accept", "*/*")]
        answer = await self._http.request(
            "GET", location, headers, None, seconds, redirects=REDIRECTIONS, sink=taker.plain
        )
        if answer.status != 200:
            raise Unreachable("the file does not lie where it is said to")
        return answer


def _joined(request: DownloadRequest, location: str) -> str:
    """The URL that a server redirects to."""
    try:
        return urljoin(f"https://{request.destination}{request.path}", location[:HEADER_LENGTH])
    except ValueError:
        raise Unreachable("the answer leads to a malformed URL") from None


class _Taker:
    """Writes the file of an answer, which may be begun anew where one place breaks off and another is asked."""

    def __init__(self, request: DownloadRequest) -> None:
        self._request = request
        self._file = _File(request.into, request.limit)
        self._reader: MultipartReader | None = None
        self._parts: list[PartHead] = []
        self._beside = 0
        self._head: dict[str, str] = {}

    @property
    def location(self) -> str | None:
        """Where the file lies, if the answer says so instead of holding it."""
        return self._parts[1].get("location", "")[:HEADER_LENGTH] or None if len(self._parts) > 1 else None

    def plain(self, head: HttpAnswer) -> Write | None:
        """A `Sink` for an answer that is the file."""
        if head.status != 200:
            return None
        self._head = {name: head.header(name) or "" for name in ("content-type", "content-disposition")}
        self._reader = None
        self._file.begin()
        return self._file.write

    def multipart(self, head: HttpAnswer) -> Write | None:
        """A `Sink` for an answer that has the file as its second part."""
        if head.status != 200:
            return None
        try:
            self._reader = MultipartReader(boundary_of(head.header("content-type") or ""))
        except MultipartError as error:
            raise Unreachable(str(error)) from None
        self._parts = []
        self._beside = 0
        self._file.begin()
        return self._take

    def _take(self, data: bytes) -> None:
        assert self._reader is not None
        try:
            events = self._reader.feed(data)
        except MultipartError as error:
            raise Unreachable(str(error)) from None
        for event in events:
            if isinstance(event, PartHead):
                self._parts.append(event)
                if len(self._parts) > 2:
                    raise Unreachable("the answer has more than two parts")
                self._head = event
            elif len(self._parts) == 2 and self.location is None:
                self._file.write(event)
            else:
                self._beside += len(event)
                if self._beside > BESIDE_LIMIT:
                    raise Unreachable("the answer has too much beside the file")

    def result(self, answer: HttpAnswer) -> Download:
        """What came of it."""
        if answer.status != 200:
            errcode, error = error_of(answer.body)
            status = answer.status if answer.status >= 400 else 502
            return Download(status=status, errcode=errcode, error=error)
        if self._reader is not None and not (self._reader.complete and len(self._parts) == 2):
            raise Unreachable("the answer broke off")
        return Download(
            status=200,
            size=self._file.size,
            sha256=self._file.sha256(),
            content_type=self._head.get("content-type", "")[:HEADER_LENGTH] or None,
            disposition=self._head.get("content-disposition", "")[:HEADER_LENGTH] or None,
        )

    def close(self) -> None:
        self._file.close()


class _File:
    """A file that is written from its beginning, counted and hashed."""

    def __init__(self, path: str, limit: int) -> None:
        self.size = 0
        self._limit = limit
        self._hash = hashlib.sha256()
        try:
            self._file = Path(path).open("wb", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise no_space(error) from error

    def begin(self) -> None:
        """Forget what was written."""
        self._hash = hashlib.sha256()
        if self.size:
            self.size = 0
            try:
                self._file.seek(0)
                self._file.truncate()
            except OSError as error:
                raise no_space(error) from error

    def write(self, data: bytes) -> None:
        if self.size + len(data) > self._limit:
            raise MatrixError(502, "M_TOO_LARGE", "The content is too large for this server.")
        try:
            view = memoryview(data)
            while view:
                view = view[self._file.write(view) :]
        except OSError as error:
            raise no_space(error) from error
        self._hash.update(data)
        self.size += len(data)

    def sha256(self) -> str:
        return self._hash.hexdigest()

    def close(self) -> None:
        self._file.close()

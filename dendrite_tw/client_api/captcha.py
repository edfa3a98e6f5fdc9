"""Asks a captcha service whether a response is good (Client-Server API, "Google ReCaptcha")."""

from __future__ import annotations

from typing import Any

import orjson
from treq.client import HTTPClient
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from ..matrix.errors import MatrixError
from .settings import CaptchaSettings

log = Logger()

ANSWER_LIMIT = 65_536
TIMEOUT_SECONDS = 10


class HttpCaptcha:
    """A service with reCAPTCHA's ``siteverify``, as hCaptcha has it too.

    `client` makes the requests; `time` schedules their end.
    """

    def __init__(self, settings: CaptchaSettings, client: HTTPClient, time: IReactorTime) -> None:
        self._settings = settings
        self._client = client
        self._time: Any = time

    async def passes(self, response: str, ip: str) -> bool:
        """Whether the service is content; 503 where it cannot be asked."""
        form = {"secret": self._settings.private_key, "response": response, "remoteip": ip}
        try:
            answer = await self._client.post(
                self._settings.siteverify_api, data=form, timeout=TIMEOUT_SECONDS, reactor=self._time
            )
            chunks: list[bytes] = []
            await answer.collect(lambda data: _keep(chunks, data))
            verdict = orjson.loads(b"".join(chunks))
        except Exception:
            log.failure("the captcha service could not be asked")
            raise MatrixError(503, "M_UNKNOWN", "The captcha service cannot be asked now; try again later.") from None
        return isinstance(verdict, dict) and verdict.get("success") is True


def _keep(chunks: list[bytes], data: bytes) -> None:
    if sum(map(len, chunks)) < ANSWER_LIMIT:
        chunks.append(data)

"""The captcha service is asked, and its answer believed or not."""

from __future__ import annotations

from typing import Any

from treq.client import HTTPClient
from treq.testing import StubTreq
from twisted.internet.defer import Deferred, fail
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.resource import Resource

from dendrite_tw.client_api.captcha import HttpCaptcha
from dendrite_tw.client_api.settings import CaptchaSettings
from dendrite_tw.matrix.errors import MatrixError

SETTINGS = CaptchaSettings(public_key="site", private_key="secret", siteverify_api="http://captcha.test/siteverify")


class Service(Resource):
    """Answers what the test wants, and notes the form."""

    isLeaf = True

    def __init__(self, answer: bytes) -> None:
        super().__init__()
        self._answer = answer
        self.form: dict[bytes, list[bytes]] = {}

    def render_POST(self, request: Any) -> bytes:
        self.form = dict(request.args)
        return self._answer


class Refusing:
    """An agent that reaches nobody."""

    def request(self, *args: Any, **kwargs: Any) -> Deferred[Any]:
        return fail(ConnectionRefusedError())


class Asking(SynchronousTestCase):
    def ask(self, answer: bytes) -> tuple[Service, Deferred[bool]]:
        service = Service(answer)
        client: Any = StubTreq(service)
        asked = Deferred.fromCoroutine(HttpCaptcha(SETTINGS, client, Clock()).passes("response", "192.0.2.1"))
        client.flush()
        return service, asked

    def test_the_service_decides(self) -> None:
        service, asked = self.ask(b'{"success": true}')
        self.assertTrue(self.successResultOf(asked))
        self.assertEqual(
            {b"secret": [b"secret"], b"response": [b"response"], b"remoteip": [b"192.0.2.1"]}, service.form
        )
        for answer in (b'{"success": false}', b'{"success": "true"}', b"[]"):
            self.assertFalse(self.successResultOf(self.ask(answer)[1]))

    def test_a_service_that_talks_nonsense_or_nothing(self) -> None:
        for answer in (b"nonsense", b" " * 200_000):
            error = self.failureResultOf(self.ask(answer)[1], MatrixError).value
            self.assertEqual(503, error.status)
        captcha = HttpCaptcha(SETTINGS, HTTPClient(Refusing()), Clock())
        asked = Deferred.fromCoroutine(captcha.passes("response", "192.0.2.1"))
        self.assertEqual(503, self.failureResultOf(asked, MatrixError).value.status)
        self.assertEqual(3, len(self.flushLoggedErrors()))

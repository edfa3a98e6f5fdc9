"""Passwords as bcrypt hashes, computed beside the reactor.

bcrypt reads 72 bytes.  A longer password is condensed first, so that its end
counts too; shorter ones are hashed as they are, as Dendrite and Synapse do,
whose hashes thus stay good.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from typing import TypeVar

import bcrypt
from twisted.internet.defer import Deferred, DeferredSemaphore
from twisted.python.failure import Failure

from ..matrix.errors import MatrixError, invalid_param
from ..world import Random, ThreadRunner
from .settings import PASSWORD_LIMIT, PASSWORD_MINIMUM

T = TypeVar("T")

BCRYPT_BYTES = 72
CONCURRENT_HASHES = 2
"""Hashes computed at the same time: more would only take the cores from everything else."""

_BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_BCRYPT64 = b"./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


def check_strength(password: str) -> None:
    """Raise 400 ``M_WEAK_PASSWORD`` or ``M_INVALID_PARAM`` for a password that is not accepted."""
    length = len(password.encode("utf-8", "surrogatepass"))
    if length < PASSWORD_MINIMUM:
        raise MatrixError(400, "M_WEAK_PASSWORD", f"A password needs at least {PASSWORD_MINIMUM} characters.")
    if length > PASSWORD_LIMIT:
        raise invalid_param(f"A password may have {PASSWORD_LIMIT} characters at most.")


def _condensed(password: str) -> bytes:
    data = password.encode("utf-8", "surrogatepass")
    if len(data) <= BCRYPT_BYTES and b"\0" not in data:
        return data
    return base64.b64encode(hashlib.sha384(data).digest())


def make_salt(random: Random, cost: int) -> bytes:
    """A bcrypt salt from 16 random bytes."""
    digits = base64.b64encode(random.bytes(16)).rstrip(b"=").translate(bytes.maketrans(_BASE64, _BCRYPT64))
    return b"$2b$%02d$%s" % (cost, digits)


class Passwords:
    """Hashes and checks passwords, at most `CONCURRENT_HASHES` at a time."""

    def __init__(self, cost: int, random: Random, threads: ThreadRunner | None) -> None:
        self._cost = cost
        self._random = random
        self._threads = threads
        self._turns = DeferredSemaphore(CONCURRENT_HASHES)
        self._nobodys = bcrypt.hashpw(b"nobody's password", make_salt(random, cost)).decode()

    async def hash(self, password: str) -> str:
        """The hash to store for `password`."""
        salt = make_salt(self._random, self._cost)
        hashed = await self._turns.run(self._beside, lambda: bcrypt.hashpw(_condensed(password), salt))
        return hashed.decode()

    async def matches(self, password: str, hashed: str | None) -> bool:
        """Whether `hashed` was made of `password`; `None` takes as long and never matches."""
        if len(password) > PASSWORD_LIMIT:
            return False
        against = (hashed or self._nobodys).encode()
        same = await self._turns.run(self._beside, lambda: _matches(_condensed(password), against))
        return same and hashed is not None

    def _beside(self, function: Callable[[], T]) -> Deferred[T]:
        """Run `function` in a thread, or inline where there are none."""
        done: Deferred[T] = Deferred()
        threads = self._threads

        def work() -> None:
            try:
                result = function()
            except Exception:
                failure = Failure()
                call(done.errback, failure)
            else:
                call(done.callback, result)

        if threads is None:
            call: Callable[..., object] = lambda function, value: function(value)  # noqa: E731
            work()
        else:
            call = threads.call_from_thread
            threads.call_in_thread(work)
        return done


def _matches(password: bytes, hashed: bytes) -> bool:
    try:
        return bcrypt.checkpw(password, hashed)
    except ValueError:
        return False

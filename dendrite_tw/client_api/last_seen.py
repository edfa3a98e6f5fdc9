"""When and where devices were last used: noted at each request, stored once a minute for all together."""

from __future__ import annotations

from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from ..database.engines import Unavailable
from ..matrix.errors import MatrixError
from ..user_api.api import Caller, DeviceSeen, UserAPI
from ..web.resource import Exchange
from ..world import World

log = Logger()

INTERVAL_SECONDS = 60
DEVICES_LIMIT = 100_000
"""Devices that are noted between two times of storing."""


class LastSeen:
    """Is told of requests by `TokenAuthenticator`, and tells the user component now and then."""

    def __init__(self, users: UserAPI, world: World) -> None:
        self._users = users
        self._clock = world.clock
        self._seen: dict[tuple[str, str], DeviceSeen] = {}
        self._loop = LoopingCall(self.store)
        self._loop.clock = world.time

    def __call__(self, caller: Caller, exchange: Exchange) -> None:
        """A caller made a request: the first one of a minute is noted."""
        if caller.device_id is None or caller.appservice_id is not None:
            return
        key = (caller.user_id, caller.device_id)
        if key not in self._seen and len(self._seen) < DEVICES_LIMIT:
            self._seen[key] = DeviceSeen(*key, self._clock.now_ms(), exchange.ip, exchange.user_agent)

    def start(self) -> None:
        """Begin to store what is noted, once a minute."""
        self._loop.start(INTERVAL_SECONDS, now=False).addErrback(
            lambda failure: log.failure("devices are not noted any more", failure=failure)
        )

    async def store(self) -> None:
        """Store what is noted; where that fails it is lost, which does no harm."""
        seen, self._seen = list(self._seen.values()), {}
        if seen:
            try:
                await self._users.devices_seen(seen)
            except Unavailable as error:
                log.warn("when devices were seen could not be stored: {reason}", reason=str(error))
            except MatrixError as error:
                log.warn("when devices were seen could not be stored: {error}", error=error.error)
            except Exception:
                log.failure("when devices were seen could not be stored")

    async def stop(self) -> None:
        """Store what is noted, and no more after that."""
        if self._loop.running:
            self._loop.stop()
        await self.store()

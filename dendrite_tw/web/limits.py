"""How often a caller may call: slots that free themselves after a while.

Dendrite's ``client_api.rate_limiting``: a caller has ``threshold`` slots for
each named `Limit`; a request takes one and gives it back after ``cooloff_ms``.
Administrators, application services and the listed users are exempt.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Collection

from ..matrix.errors import limit_exceeded
from ..user_api.api import Caller
from ..world import Clock
from .routes import Endpoint

CALLERS_REMEMBERED = 100_000
"""How many callers are kept in mind; the longest silent is forgotten first."""


class SlotLimiter:
    """Counts the slots of each caller and limit."""

    def __init__(
        self, clock: Clock, enabled: bool, threshold: int, cooloff_ms: int, exempt_user_ids: Collection[str]
    ) -> None:
        self._clock = clock
        self._enabled = enabled
        self._threshold = threshold
        self._cooloff_ms = cooloff_ms
        self._exempt = frozenset(exempt_user_ids)
        self._taken: OrderedDict[tuple[str, str], deque[int]] = OrderedDict()

    def check(self, endpoint: Endpoint, caller: Caller | None, ip: str) -> None:
        """Take a slot, or raise ``M_LIMIT_EXCEEDED`` with the wait until one is free."""
        limit = endpoint.route.limit
        if limit is None or not self._enabled:
            return
        if caller is not None and (caller.is_admin or caller.appservice_id or caller.user_id in self._exempt):
            return
        who = f"{caller.user_id} {caller.device_id}" if caller is not None else ip
        now = self._clock.now_ms()
        taken = self._taken.setdefault((who, limit.name), deque())
        self._taken.move_to_end((who, limit.name))
        while taken and taken[0] <= now - self._cooloff_ms:
            taken.popleft()
        if len(taken) >= self._threshold * limit.factor:
            raise limit_exceeded(max(1, taken[0] + self._cooloff_ms - now))
        taken.append(now)
        if len(self._taken) > CALLERS_REMEMBERED:
            self._taken.popitem(last=False)

"""Application services as the user component knows them: tokens, and the users that are theirs.

Application Service API, "Registration" and "Identity assertion".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..matrix.errors import MatrixError
from .tokens import digest


@dataclass(frozen=True)
class Namespace:
    """Users that an application service cares for; ``exclusive`` means that nobody else may register them."""

    regex: re.Pattern[str]
    exclusive: bool


@dataclass(frozen=True)
class AppService:
    """What of a registration file concerns users; ``sender`` is the user ID of ``sender_localpart``."""

    id: str
    as_token: str
    sender: str
    users: Sequence[Namespace] = ()

    def is_interested(self, user_id: str) -> bool:
        """Whether the user is its sender or in one of its namespaces."""
        return user_id == self.sender or any(space.regex.match(user_id) for space in self.users)

    def is_exclusive(self, user_id: str) -> bool:
        return user_id == self.sender or any(space.exclusive and space.regex.match(user_id) for space in self.users)


class AppServices:
    """All application services of this server."""

    def __init__(self, services: Sequence[AppService] = ()) -> None:
        self._by_id = {service.id: service for service in services}
        self._by_digest = {digest(service.as_token): service for service in services}

    def of_token(self, token: str) -> AppService | None:
        """The service whose token this is."""
        return self._by_digest.get(digest(token)) if self._by_digest else None

    def get(self, appservice_id: str) -> AppService | None:
        return self._by_id.get(appservice_id)

    def check_may_register(self, user_id: str, appservice_id: str | None) -> None:
        """Raise 400 ``M_EXCLUSIVE`` where another's namespace, or for a service none of its own, has `user_id`."""
        own = self._by_id.get(appservice_id) if appservice_id is not None else None
        if appservice_id is not None and (own is None or not own.is_interested(user_id)):
            raise MatrixError(400, "M_EXCLUSIVE", "The user ID is in no namespace of the application service.")
        for service in self._by_id.values():
            if service is not own and service.is_exclusive(user_id):
                raise MatrixError(400, "M_EXCLUSIVE", "The user ID belongs to an application service.")

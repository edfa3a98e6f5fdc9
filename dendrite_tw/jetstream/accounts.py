"""Who may use the server: users, their accounts, and what they may publish and hear.

An account is a world of subjects and streams of its own, that is a `Server` with its `JetStream`.
"""

from __future__ import annotations

import hmac
from typing import Any

import msgspec

from dendrite_tw.jetstream.server import Server
from dendrite_tw.jetstream.subjects import is_literal, is_subset, matches


class Permissions(msgspec.Struct, frozen=True):
    """Subjects that are allowed (all, if none are named) and denied, for one direction."""

    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()

    @property
    def is_open(self) -> bool:
        """Whether everything is allowed."""
        return not self.allow and not self.deny

    def admits(self, subject: str) -> bool:
        """Whether a literal subject, or every subject of a pattern, is allowed and not denied altogether."""
        if is_literal(subject):
            if any(matches(pattern, subject) for pattern in self.deny):
                return False
            return not self.allow or any(matches(pattern, subject) for pattern in self.allow)
        if any(is_subset(subject, pattern) for pattern in self.deny):
            return False
        return not self.allow or any(is_subset(subject, pattern) for pattern in self.allow)


class User(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody with a name and a password."""

    name: str
    password: str
    server: Server
    publish: Permissions = Permissions()
    subscribe: Permissions = Permissions()


class Gate:
    """Decides who may enter, and into which account."""

    def __init__(
        self, server: Server, *, users: list[User] | None = None, token: str = "", no_auth_user: str = ""
    ) -> None:
        self.server = server
        """The account of those who need no name."""
        self._users = {user.name: user for user in users or ()}
        self._token = token
        self._no_auth_user = no_auth_user

    @property
    def demands_login(self) -> bool:
        return bool((self._users or self._token) and not self._no_auth_user)

    def admit(self, options: dict[str, Any]) -> User | None:
        """The user that these options of a CONNECT prove, or ``None``."""
        name, password = str(options.get("user") or ""), str(options.get("pass") or "")
        token = str(options.get("auth_token") or "")
        if not (self._users or self._token):
            return User(name="", password="", server=self.server)
        if self._token:
            return User(name="", password="", server=self.server) if _same(token, self._token) else None
        if not name and not token and self._no_auth_user:
            return self._users.get(self._no_auth_user)
        user = self._users.get(name)
        if user is None or not _same(password, user.password):
            return None
        return user


def _same(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode(), expected.encode())

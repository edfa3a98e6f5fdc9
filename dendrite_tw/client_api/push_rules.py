"""Push rules (Client-Server API, "Push Rules: API")."""

from __future__ import annotations

from typing import Any

import msgspec

from ..matrix.errors import bad_json, missing_param
from ..user_api.api import Caller, UserAPI
from ..web.routes import Access, Route
from .settings import PUSH

RULES = "/_matrix/client/v3/pushrules"


class PlaceQuery(msgspec.Struct):
    before: str | None = None
    after: str | None = None


class EnabledBody(msgspec.Struct):
    enabled: bool


class PushRulesSection:
    """``/pushrules``."""

    def __init__(self, users: UserAPI) -> None:
        self._users = users

    def routes(self) -> list[Route]:
        one = f"{RULES}/global/{{kind}}/{{rule_id}}"
        return [
            *[Route("GET", f"{RULES}{slash}", self.all_rules) for slash in ("/", "")],
            *[Route("GET", f"{RULES}/global{slash}", self.global_rules) for slash in ("/", "")],
            Route("GET", one, self.rule),
            Route("PUT", one, self.put, Access.USER, PUSH),
            Route("DELETE", one, self.delete),
            Route("GET", f"{one}/enabled", self.enabled),
            Route("PUT", f"{one}/enabled", self.set_enabled),
            Route("GET", f"{one}/actions", self.actions),
            Route("PUT", f"{one}/actions", self.set_actions),
        ]

    async def all_rules(self, caller: Caller) -> dict[str, Any]:
        return await self._users.push_rules(caller.user_id)

    async def global_rules(self, caller: Caller) -> Any:
        return (await self._users.push_rules(caller.user_id))["global"]

    async def rule(self, caller: Caller, kind: str, rule_id: str) -> dict[str, Any]:
        return await self._users.push_rule(caller.user_id, kind, rule_id)

    async def put(self, caller: Caller, kind: str, rule_id: str, query: PlaceQuery, body: dict[str, Any]) -> None:
        await self._users.put_push_rule(caller.user_id, kind, rule_id, body, query.before, query.after)

    async def delete(self, caller: Caller, kind: str, rule_id: str) -> None:
        await self._users.delete_push_rule(caller.user_id, kind, rule_id)

    async def enabled(self, caller: Caller, kind: str, rule_id: str) -> dict[str, Any]:
        return {"enabled": (await self.rule(caller, kind, rule_id))["enabled"]}

    async def set_enabled(self, caller: Caller, kind: str, rule_id: str, body: EnabledBody) -> None:
        await self._users.set_push_rule_enabled(caller.user_id, kind, rule_id, body.enabled)

    async def actions(self, caller: Caller, kind: str, rule_id: str) -> dict[str, Any]:
        return {"actions": (await self.rule(caller, kind, rule_id))["actions"]}

    async def set_actions(self, caller: Caller, kind: str, rule_id: str, body: dict[str, Any]) -> None:
        if "actions" not in body:
            raise missing_param("actions is required.")
        if not isinstance(body["actions"], list):
            raise bad_json("actions must be a list.")
        await self._users.set_push_rule_actions(caller.user_id, kind, rule_id, body["actions"])

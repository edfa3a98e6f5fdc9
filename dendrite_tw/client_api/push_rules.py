"""Push rules (Client-Server API, "Push Rules: API")."""

from __future__ import annotations

from typing import Any

import msgspec

from ..matrix.errors import bad_json, invalid_param, missing_param
from ..user_api.api import Caller, UserAPI
from ..web.routes import Access, Route
from .settings import PUSH

RULES = "/_matrix/client/v3/pushrules"
METHODS = ("GET", "PUT", "DELETE")


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
            Route("GET", f"{RULES}/global/", self.global_rules),
            Route("GET", f"{RULES}/global/{{kind}}/", self.rules_of_kind),
            Route("GET", one, self.rule),
            Route("PUT", one, self.put, Access.USER, PUSH),
            Route("DELETE", one, self.delete),
            Route("GET", f"{one}/enabled", self.enabled),
            Route("PUT", f"{one}/enabled", self.set_enabled),
            Route("GET", f"{one}/actions", self.actions),
            Route("PUT", f"{one}/actions", self.set_actions),
            *self._incomplete(),
        ]

    def _incomplete(self) -> list[Route]:
        """Paths that lack something, or name what there is not: their requests are wrong, not their paths unknown."""
        return [
            Route("PUT", f"{RULES}/", self.no_rule),
            *[Route(method, f"{RULES}/global", self.no_rule) for method in ("GET", "PUT")],
            *[Route(method, f"{RULES}/global/{{kind}}", self.no_rule_of_kind) for method in ("GET", "PUT")],
            Route("PUT", f"{RULES}/global/{{kind}}/", self.no_rule_of_kind),
            Route("GET", f"{RULES}/{{scope}}/", self.no_scope),
            *[Route(method, f"{RULES}/{{scope}}/{{kind}}/{{rule_id}}", self.no_rule_in_scope) for method in METHODS],
            *[Route(m, f"{RULES}/global/{{kind}}/{{rule_id}}/{{part}}", self.no_part) for m in ("GET", "PUT")],
        ]

    async def no_rule(self) -> None:
        raise invalid_param("A push rule is named as global/{kind}/{ruleId}; lists of them end with a slash.")

    async def no_rule_of_kind(self, kind: str) -> None:
        await self.no_rule()

    async def no_scope(self, scope: str) -> None:
        raise invalid_param("The only scope of push rules is global.")

    async def no_rule_in_scope(self, scope: str, kind: str, rule_id: str) -> None:
        await self.no_scope(scope)

    async def no_part(self, kind: str, rule_id: str, part: str) -> None:
        raise invalid_param("Of a push rule there are enabled and actions.")

    async def all_rules(self, caller: Caller) -> dict[str, Any]:
        return await self._users.push_rules(caller.user_id)

    async def global_rules(self, caller: Caller) -> Any:
        return (await self._users.push_rules(caller.user_id))["global"]

    async def rules_of_kind(self, caller: Caller, kind: str) -> Any:
        rules = (await self._users.push_rules(caller.user_id))["global"]
        if kind not in rules:
            raise invalid_param(f"The kinds of push rules are {', '.join(rules)}.")
        return rules[kind]

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

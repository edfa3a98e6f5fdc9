"""Every user's push rules: kept as account data, and in memory for those who changed any.

Only users whose rules are not the defaults are in memory, with the index that
says which events could meet rules of theirs.  Client-Server API, "Push Rules".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson

from ..database.engines import Database
from ..database.statements import Transaction
from ..matrix.push_evaluation import Interests, PersonalEvaluator
from ..matrix.push_rules import DEFAULT, RuleSet
from .account_data import PUSH_RULES, AccountData
from .tables import account_data as table

Change = Callable[[RuleSet], RuleSet]
Changed = Callable[[str, RuleSet, RuleSet], None]
"""Told of a user's old and new rules, once they are on disk."""


class PushRules:
    """The push rules of local users.

    ``interests`` finds users whose own rules an event could match; ``on_change`` is
    told of every change.
    """

    def __init__(self, database: Database, data: AccountData) -> None:
        self._database = database
        self._data = data
        self._rules: dict[str, RuleSet] = {}
        self._evaluators: dict[str, PersonalEvaluator] = {}
        self.interests = Interests()
        self.on_change: list[Changed] = []

    async def load(self) -> None:
        """Take up the rules of everybody who has any, at the start."""
        for row in await self._database.read(table.everybodys, PUSH_RULES):
            self._take(row.user_id, RuleSet.from_stored(orjson.loads(row.content)))

    def _take(self, user_id: str, rules: RuleSet) -> None:
        self._evaluators.pop(user_id, None)
        if rules.is_default:
            self._rules.pop(user_id, None)
            self.interests.discard(user_id)
        else:
            self._rules[user_id] = rules
            self.interests.put(user_id, rules)

    # --- questions ---

    def rules_of(self, user_id: str) -> RuleSet:
        """The user's rules; the defaults for everybody else."""
        return self._rules.get(user_id, DEFAULT)

    def with_own_rules(self) -> set[str]:
        """Users whose rules are not the defaults."""
        return set(self._rules)

    def evaluator_of(self, user_id: str) -> PersonalEvaluator:
        """The evaluator for all rules of a user, made when it is first needed."""
        evaluator = self._evaluators.get(user_id)
        if evaluator is None:
            evaluator = self._evaluators[user_id] = PersonalEvaluator(self.rules_of(user_id))
        return evaluator

    async def push_rules(self, user_id: str) -> dict[str, Any]:
        return self.rules_of(user_id).to_client(user_id)

    async def push_rule(self, user_id: str, kind: str, rule_id: str) -> dict[str, Any]:
        return self.rules_of(user_id).get(kind, rule_id).to_client(user_id)

    # --- changes ---

    async def put_push_rule(
        self, user_id: str, kind: str, rule_id: str, rule: dict[str, Any], before: str | None, after: str | None
    ) -> None:
        await self._change(user_id, lambda rules: rules.put(kind, rule_id, rule, before, after))

    async def delete_push_rule(self, user_id: str, kind: str, rule_id: str) -> None:
        await self._change(user_id, lambda rules: rules.delete(kind, rule_id))

    async def set_push_rule_enabled(self, user_id: str, kind: str, rule_id: str, enabled: bool) -> None:
        await self._change(user_id, lambda rules: rules.set_enabled(kind, rule_id, enabled))

    async def set_push_rule_actions(self, user_id: str, kind: str, rule_id: str, actions: list[Any]) -> None:
        await self._change(user_id, lambda rules: rules.set_actions(kind, rule_id, actions))

    async def copy_push_rules_to_room(self, user_id: str, old_room: str, new_room: str) -> None:
        rules = self.rules_of(user_id)
        if rules.copied_to_room(old_room, new_room) != rules:
            await self._change(user_id, lambda rules: rules.copied_to_room(old_room, new_room))

    async def _change(self, user_id: str, change: Change) -> None:
        await self._database.write(self._store, user_id, change)

    async def _store(self, txn: Transaction, user_id: str, change: Change) -> None:
        old = RuleSet.from_stored(orjson.loads(await table.content(txn, user_id, "", PUSH_RULES) or b"{}"))
        new = change(old)
        await self._data.put(txn, user_id, "", PUSH_RULES, orjson.dumps(new.to_stored()))
        txn.after_commit(lambda: self._changed(user_id, old, new))

    def _changed(self, user_id: str, old: RuleSet, new: RuleSet) -> None:
        self._take(user_id, new)
        for told in self.on_change:
            told(user_id, old, new)

    def forget(self, user_id: str) -> None:
        """The account is closed; nothing is evaluated for it any more."""
        old = self.rules_of(user_id)
        self._take(user_id, DEFAULT)
        for told in self.on_change:
            told(user_id, old, DEFAULT)

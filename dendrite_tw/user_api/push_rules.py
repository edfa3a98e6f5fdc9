"""Every user's push rules: kept as account data, and in memory for those who changed any.

Only users whose rules are not the defaults are in memory, with the index that
says which events could meet rules of theirs, and only where what is unread is counted.  What is in memory are the
rules by which events are judged now: who counts takes up a change between two events, and stores with it from which
event on it counts (`unread`).  Client-Server API, "Push Rules".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson

from ..database.engines import Database
from ..database.statements import Transaction
from ..links.echoes import Echoes
from ..matrix.push_evaluation import Interests, PersonalEvaluator
from ..matrix.push_rules import DEFAULT, RuleSet
from .account_data import PUSH_RULES, AccountData
from .tables import account_data as table
from .tables import push_rule_changes as change_table

Change = Callable[[RuleSet], RuleSet]
Changed = Callable[[str, RuleSet, RuleSet], None]
"""Told of a user's old and new rules, once events are judged by the new ones."""

PUSH_RULES_CHANGED = "push_rules"
"""The topic of the echoes that tell of new rules to take up."""


def rules_in(content: bytes | None) -> RuleSet:
    """The rules that are stored so; the defaults where nothing is."""
    return DEFAULT if content is None else RuleSet.from_stored(orjson.loads(content))


class PushRules:
    """The push rules of local users.

    ``interests`` finds users whose own rules an event could match.  ``on_stored`` is called when there are new rules
    to take up, ``on_change`` when they were.
    """

    def __init__(self, database: Database, data: AccountData, echoes: Echoes) -> None:
        self._database = database
        self._data = data
        self._echoes = echoes
        self._rules: dict[str, RuleSet] = {}
        self._evaluators: dict[str, PersonalEvaluator] = {}
        self.interests = Interests()
        self.on_stored: Callable[[], None] = lambda: None
        self.on_change: list[Changed] = []
        echoes.hear(PUSH_RULES_CHANGED, lambda payload: self.on_stored())
        echoes.on_missed(lambda: self.on_stored())

    # --- the rules by which events are judged ---

    async def load(self) -> None:
        """Begin to judge: with the rules of everybody who has any, as they are judged by."""
        self.forget_all()
        for row in await self._database.read(table.everybodys, PUSH_RULES):
            self._take(row.user_id, rules_in(row.content))
        for change in await self._database.read(change_table.changes):
            self._take(change.user_id, rules_in(change.content))

    def forget_all(self) -> None:
        """Judge no more."""
        self._rules.clear()
        self._evaluators.clear()
        self.interests = Interests()

    def take(self, user_id: str, old: RuleSet, new: RuleSet) -> None:
        """Judge by the new rules from now on."""
        self._take(user_id, new)
        for told in self.on_change:
            told(user_id, old, new)

    def _take(self, user_id: str, rules: RuleSet) -> None:
        self._evaluators.pop(user_id, None)
        if rules.is_default:
            self._rules.pop(user_id, None)
            self.interests.discard(user_id)
        else:
            self._rules[user_id] = rules
            self.interests.put(user_id, rules)

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

    # --- questions ---

    async def _stored(self, user_id: str) -> RuleSet:
        return rules_in(await self._database.read(table.content, user_id, "", PUSH_RULES))

    async def push_rules(self, user_id: str) -> dict[str, Any]:
        return (await self._stored(user_id)).to_client(user_id)

    async def push_rule(self, user_id: str, kind: str, rule_id: str) -> dict[str, Any]:
        return (await self._stored(user_id)).get(kind, rule_id).to_client(user_id)

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
        rules = await self._stored(user_id)
        if rules.copied_to_room(old_room, new_room) != rules:
            await self._change(user_id, lambda rules: rules.copied_to_room(old_room, new_room))

    async def _change(self, user_id: str, change: Change) -> None:
        await self._database.write(self._store, user_id, change)

    async def _store(self, txn: Transaction, user_id: str, change: Change) -> None:
        content = await table.content(txn, user_id, "", PUSH_RULES)
        new = change(rules_in(content))
        await self._data.put(txn, user_id, "", PUSH_RULES, orjson.dumps(new.to_stored()))
        await self._note(txn, user_id, content)

    async def forget(self, txn: Transaction, user_id: str) -> None:
        """The account is closed with `txn`; nothing is evaluated for it any more."""
        content = await table.content(txn, user_id, "", PUSH_RULES)
        if content is not None:
            await table.delete(txn, user_id, "", PUSH_RULES)
            await self._note(txn, user_id, content)

    async def _note(self, txn: Transaction, user_id: str, old: bytes | None) -> None:
        """Other rules than `old` are to be taken up."""
        await change_table.note(txn, user_id, old or b"{}")
        txn.after_commit(self._tell)

    def _tell(self) -> None:
        self.on_stored()
        if self._database.shared:
            self._echoes.tell(PUSH_RULES_CHANGED, b"")

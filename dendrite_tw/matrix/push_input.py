"""What clients may send as a push rule, and how large it may be.

Client-Server API, ``PUT /pushrules/global/{kind}/{ruleId}`` and "Actions" in
the push notifications module.
"""

from __future__ import annotations

from typing import Any, Final

import orjson

from dendrite_tw.matrix.errors import bad_json, invalid_param, missing_param
from dendrite_tw.matrix.push_conditions import fault_of, is_pattern
from dendrite_tw.matrix.push_defaults import Action, Condition, PushRule

MAX_RULE_ID: Final = 512
MAX_CONDITIONS: Final = 20
MAX_ACTIONS: Final = 20
MAX_ACTIONS_SIZE: Final = 2048
"""Bytes of the actions of a rule, as JSON."""
MAX_CONDITIONS_SIZE: Final = 8192
"""Bytes of the conditions of a rule, as JSON."""

_FORGOTTEN_ACTIONS: Final = frozenset({"dont_notify", "coalesce"})


def check_new_id(rule_id: str) -> None:
    """Raise 400 ``M_INVALID_PARAM`` unless a user's rule can have this id."""
    if not rule_id or len(rule_id) > MAX_RULE_ID:
        raise invalid_param(f"The id of a push rule must have 1 to {MAX_RULE_ID} characters.")
    if rule_id.startswith("."):
        raise invalid_param("The ids of push rules that begin with a dot are the server's.")
    if "/" in rule_id or "\\" in rule_id:
        raise invalid_param("The id of a push rule must have no slash and no backslash.")


def rule_from(kind: str, rule_id: str, body: object) -> PushRule:
    """The rule that a client describes in the body of a request.

    Raises a `MatrixError` with status 400 for what is missing or not valid; keys
    that the kind of rule does not have are left out.
    """
    if not isinstance(body, dict):
        raise bad_json("A push rule must be a JSON object.")
    actions = actions_from(body.get("actions"))
    if kind in ("override", "underride"):
        return PushRule(rule_id, actions, conditions=_conditions_from(body.get("conditions")))
    if kind == "content":
        pattern = body.get("pattern")
        if pattern is None:
            raise missing_param("A content rule must have a 'pattern'.")
        if not is_pattern(pattern):
            raise bad_json("The 'pattern' of a content rule must be a string, and not a long one.")
        return PushRule(rule_id, actions, pattern=pattern)
    return PushRule(rule_id, actions)


def _conditions_from(conditions: object) -> tuple[Condition, ...]:
    if conditions is None:
        raise missing_param("Override and underride rules must have 'conditions'; they can be empty.")
    if not isinstance(conditions, list) or len(conditions) > MAX_CONDITIONS:
        raise bad_json(f"The 'conditions' of a rule must be a list of at most {MAX_CONDITIONS}.")
    for condition in conditions:
        fault = fault_of(condition)
        if fault is not None:
            raise fault
    _check_size("conditions", conditions, MAX_CONDITIONS_SIZE)
    return tuple(conditions)


def actions_from(actions: object) -> tuple[Action, ...]:
    """The actions a client sent; those that the specification has given up are kept and never carried out.

    Raises a `MatrixError` with status 400.
    """
    if actions is None:
        raise missing_param("A push rule must have 'actions'.")
    if not isinstance(actions, list) or len(actions) > MAX_ACTIONS:
        raise bad_json(f"The 'actions' of a rule must be a list of at most {MAX_ACTIONS}.")
    for action in actions:
        tweak = action.get("set_tweak") if isinstance(action, dict) else None
        if action != "notify" and not isinstance(tweak, str) and not is_forgotten(action):
            raise bad_json("An action must be 'notify' or an object with the string 'set_tweak'.")
    _check_size("actions", actions, MAX_ACTIONS_SIZE)
    return tuple(actions)


def is_forgotten(action: object) -> bool:
    """Whether an action is one of those that must be ignored ("Historical Actions")."""
    return isinstance(action, str) and action in _FORGOTTEN_ACTIONS


def _check_size(name: str, value: list[Any], limit: int) -> None:
    try:
        size = len(orjson.dumps(value))
    except orjson.JSONEncodeError:
        raise bad_json(f"The '{name}' of a rule cannot be stored as JSON.") from None
    if size > limit:
        raise bad_json(f"The '{name}' of a rule are too long.")

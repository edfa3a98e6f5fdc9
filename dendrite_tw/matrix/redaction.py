"""What survives a redaction, by room version.

Specification: "Redactions" of each room version; in Client-Server API also
"Redactions".  The same stripped form is what signatures and reference hashes
cover, so that a redacted event still proves its origin and keeps its id.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dendrite_tw.matrix.room_versions import ROOM_VERSIONS, RoomVersion

_TOP_LEVEL = (
    "event_id",
    "type",
    "room_id",
    "sender",
    "state_key",
    "content",
    "hashes",
    "signatures",
    "depth",
    "prev_events",
    "auth_events",
    "origin_server_ts",
)
_TOP_LEVEL_BEFORE_UPDATE = ("prev_state", "origin", "membership")


def _top_level_keys(version: RoomVersion) -> frozenset[str]:
    return frozenset(_TOP_LEVEL if version.updated_redaction_rules else _TOP_LEVEL + _TOP_LEVEL_BEFORE_UPDATE)


def _content_keys(version: RoomVersion) -> Mapping[str, tuple[str, ...]]:
    updated = version.updated_redaction_rules
    levels = ("ban", "events", "events_default", "kick", "redact", "state_default", "users", "users_default")
    keys: dict[str, tuple[str, ...]] = {
        "m.room.member": ("membership",),
        "m.room.create": ("creator",),
        "m.room.join_rules": ("join_rule",),
        "m.room.power_levels": (*levels, "invite") if updated else levels,
        "m.room.history_visibility": ("history_visibility",),
    }
    if version.redaction_keeps_aliases:
        keys["m.room.aliases"] = ("aliases",)
    if version.redaction_keeps_allow:
        keys["m.room.join_rules"] += ("allow",)
    if version.redaction_keeps_join_authorised:
        keys["m.room.member"] += ("join_authorised_via_users_server",)
    if updated:
        keys["m.room.redaction"] = ("redacts",)
    return keys


# Worked out once, because every event built or received is redacted once for its hash.
_TOP_LEVEL_KEYS = {version: _top_level_keys(version) for version in ROOM_VERSIONS.values()}
_CONTENT_KEYS = {version: _content_keys(version) for version in ROOM_VERSIONS.values()}


def redact_content(event_type: str, content: Mapping[str, Any], version: RoomVersion) -> dict[str, Any]:
    """What remains of the ``content`` of an event of this type."""
    if event_type == "m.room.create" and version.updated_redaction_rules:
        return dict(content)
    keys = _CONTENT_KEYS[version].get(event_type)
    if keys is None:
        return {}
    kept = {key: content[key] for key in keys if key in content}
    if event_type == "m.room.member" and version.updated_redaction_rules:
        third_party = content.get("third_party_invite")
        if isinstance(third_party, dict):
            kept["third_party_invite"] = {key: third_party[key] for key in ("signed",) if key in third_party}
    return kept


def redact(pdu: Mapping[str, Any], version: RoomVersion) -> dict[str, Any]:
    """A copy of a PDU with only what the room version protects from redaction.

    ``unsigned`` does not survive; whoever shows a redacted event adds
    ``redacted_because`` to a new one.
    """
    allowed = _TOP_LEVEL_KEYS[version]
    kept = {key: value for key, value in pdu.items() if key in allowed}
    content = pdu.get("content")
    kept["content"] = redact_content(pdu.get("type", ""), content, version) if isinstance(content, dict) else {}
    return kept

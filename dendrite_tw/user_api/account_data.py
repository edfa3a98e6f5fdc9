"""Account data and tags: what users store for themselves (Client-Server API, "Client Config", "Room Tagging").

Each change gets a position, which is that of its message on the stream
``OutputClientData``; a sync asks for what changed between two positions.
"""

from __future__ import annotations

from typing import Any

import msgspec
import orjson

from ..cache import CacheBudget
from ..database.engines import Database
from ..database.outbox import Outbox
from ..database.statements import Transaction
from ..matrix.errors import MatrixError, invalid_param, too_large
from ..matrix.push_rules import RuleSet
from .api import OUTPUT_CLIENT_DATA, AccountDataChange
from .recent import Recent
from .settings import ACCOUNT_DATA_COUNT_LIMIT, ACCOUNT_DATA_LIMIT, TAGS_LIMIT
from .tables import account_data as table

PUSH_RULES = "m.push_rules"
FULLY_READ = "m.fully_read"
TAGS = "m.tag"
IGNORED_USERS = "m.ignored_user_list"
SERVER_MANAGED = frozenset({PUSH_RULES, FULLY_READ})

TYPE_LIMIT = 255
TAG_LIMIT = 255
IGNORED_BYTES = 500
"""What a list of the ignored takes in memory, about: most are empty."""


class AccountData:
    """The account data of local users."""

    def __init__(self, database: Database, outbox: Outbox, budget: CacheBudget) -> None:
        self._database = database
        self._outbox = outbox
        self._ignored: Recent[str, frozenset[str]] = Recent("ignored_users", budget, IGNORED_BYTES)

    # --- questions ---

    async def account_data_since(self, user_id: str, after: int, upto: int) -> list[AccountDataChange]:
        rows = await self._database.read(table.since, user_id, after, upto)
        changes = [
            AccountDataChange(
                user_id=user_id,
                room_id=row.room_id,
                type=row.type,
                content=_for_client(user_id, row.room_id, row.type, row.content),
                position=row.position,
            )
            for row in rows
        ]
        if after == 0 and not any(change.type == PUSH_RULES and not change.room_id for change in changes):
            content = await self.account_data(user_id, "", PUSH_RULES)
            if content is not None:
                changes.insert(0, AccountDataChange(user_id=user_id, room_id="", type=PUSH_RULES, content=content))
        return changes

    async def account_data(self, user_id: str, room_id: str, type: str) -> bytes | None:
        content = await self._database.read(table.content, user_id, room_id, type)
        if content is None and type == PUSH_RULES and not room_id:
            content = b"{}"
        return None if content is None else _for_client(user_id, room_id, type, content)

    async def ignored_users(self, user_id: str) -> frozenset[str]:
        if self._database.shared:
            return _ignored_in(await self._database.read(table.content, user_id, "", IGNORED_USERS))
        known = self._ignored.get(user_id)
        if known is None:
            generation = self._ignored.generation
            known = _ignored_in(await self._database.read(table.content, user_id, "", IGNORED_USERS))
            self._ignored.keep(user_id, known, generation)
        return known

    # --- changes ---

    async def put_account_data(self, user_id: str, room_id: str, type: str, content: bytes) -> None:
        if type in SERVER_MANAGED:
            raise MatrixError(405, "M_BAD_JSON", f"Cannot set {type} through this API.")
        check_type(type)
        if len(content) > ACCOUNT_DATA_LIMIT:
            raise too_large(f"Account data may have {ACCOUNT_DATA_LIMIT} bytes at most.")
        await self._database.write(self.put, user_id, room_id, type, content)

    async def put(self, txn: Transaction, user_id: str, room_id: str, type: str, content: bytes) -> int:
        """Store account data of any type within `txn` and tell of it; returns the position."""
        old = await table.content(txn, user_id, room_id, type)
        if old is None and await table.count(txn, user_id) >= ACCOUNT_DATA_COUNT_LIMIT:
            raise MatrixError(403, "M_FORBIDDEN", "There is no room for more account data; reuse some.")
        shown = _for_client(user_id, room_id, type, content)

        def change(position: int) -> bytes:
            told = AccountDataChange(user_id=user_id, room_id=room_id, type=type, content=shown, position=position)
            return msgspec.msgpack.encode(told)

        position = await self._outbox.append(txn, OUTPUT_CLIENT_DATA, change)
        await table.put(txn, user_id, room_id, type, content, position)
        if type == IGNORED_USERS and not room_id:
            txn.after_commit(lambda: self.forget(user_id))
        return position

    def forget(self, user_id: str) -> None:
        """Read the user's list of the ignored again."""
        self._ignored.forget(user_id)

    async def put_tag(self, user_id: str, room_id: str, tag: str, content: dict[str, Any] | None) -> None:
        if not tag or len(tag.encode("utf-8", "replace")) > TAG_LIMIT:
            raise invalid_param(f"A tag has 1 to {TAG_LIMIT} bytes.")
        await self._database.write(self._put_tag, user_id, room_id, tag, content)

    async def _put_tag(
        self, txn: Transaction, user_id: str, room_id: str, tag: str, content: dict[str, Any] | None
    ) -> None:
        stored = orjson.loads(await table.content(txn, user_id, room_id, TAGS) or b"{}")
        tags = stored.get("tags") if isinstance(stored, dict) else None
        tags = tags if isinstance(tags, dict) else {}
        if content is None:
            if tag not in tags:
                return
            del tags[tag]
        else:
            tags[tag] = content
        if len(tags) > TAGS_LIMIT:
            raise invalid_param(f"A room may have {TAGS_LIMIT} tags at most.")
        packed = orjson.dumps({"tags": tags})
        if len(packed) > ACCOUNT_DATA_LIMIT:
            raise too_large(f"The tags of a room may have {ACCOUNT_DATA_LIMIT} bytes at most.")
        await self.put(txn, user_id, room_id, TAGS, packed)


def check_type(type: str) -> None:
    """Raise 400 ``M_INVALID_PARAM`` for what is no type of account data."""
    if not type or len(type.encode("utf-8", "replace")) > TYPE_LIMIT:
        raise invalid_param(f"A type of account data has 1 to {TYPE_LIMIT} bytes.")


def _for_client(user_id: str, room_id: str, type: str, content: bytes) -> bytes:
    """Stored content as clients see it: push rules are stored as what differs from the defaults."""
    if type == PUSH_RULES and not room_id:
        return orjson.dumps(RuleSet.from_stored(orjson.loads(content)).to_client(user_id))
    return content


def _ignored_in(content: bytes | None) -> frozenset[str]:
    """The users in an ``m.ignored_user_list``; none where it is malformed."""
    value = orjson.loads(content) if content else None
    users = value.get("ignored_users") if isinstance(value, dict) else None
    return frozenset(users) if isinstance(users, dict) else frozenset()

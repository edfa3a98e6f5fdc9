"""Cross-signing keys of users, and what users sign of each other.

A key's JSON holds the signatures that everybody may see.  What somebody's
user-signing key says of another user is for that somebody alone and stands apart.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ...database.statements import Transaction, many, none

RETENTION = (
    "Keys: three for a user, replaced in place. Signatures: one for each pair of signer and signed, deleted when "
    "the signer's user-signing key is replaced (`delete_signatures_by`) or either account goes."
)


class CrossSigningRow(msgspec.Struct, frozen=True):
    """A key: ``usage`` is ``master``, ``self_signing`` or ``user_signing``; ``content`` its JSON."""

    user_id: str
    usage: str
    public_key: str
    content: bytes


class UserSignature(msgspec.Struct, frozen=True):
    """The signature that a user made of ``target``'s master key ``target_key`` with ``signing_key``."""

    target: str
    target_key: str
    signing_key: str
    signature: str


@many(
    CrossSigningRow,
    "SELECT user_id, usage, public_key, content FROM cross_signing_keys WHERE user_id = ANY(:user_ids)",
)
def of_users(txn: Transaction, user_ids: Sequence[str]) -> None: ...


@many(CrossSigningRow, "SELECT user_id, usage, public_key, content FROM cross_signing_keys WHERE user_id = :user_id")
def of_user(txn: Transaction, user_id: str) -> None: ...


@none(
    """
    INSERT INTO cross_signing_keys (user_id, usage, public_key, content)
    VALUES (:user_id, :usage, :public_key, :content)
    ON CONFLICT (user_id, usage) DO UPDATE SET public_key = excluded.public_key, content = excluded.content
    """
)
def store(txn: Transaction, user_id: str, usage: str, public_key: str, content: bytes) -> None: ...


@none("UPDATE cross_signing_keys SET told_position = :position WHERE user_id = :user_id AND usage = :usage")
def set_told(txn: Transaction, user_id: str, usage: str, position: int) -> None: ...


@none("DELETE FROM cross_signing_keys WHERE user_id = :user_id AND usage = :usage")
def delete(txn: Transaction, user_id: str, usage: str) -> None: ...


@none("DELETE FROM cross_signing_keys WHERE user_id = :user_id")
def delete_of_user(txn: Transaction, user_id: str) -> None: ...


@many(
    UserSignature,
    """
    SELECT target, target_key, signing_key, signature FROM user_signatures
    WHERE signer = :signer AND target = ANY(:targets)
    """,
)
def signatures_by(txn: Transaction, signer: str, targets: Sequence[str]) -> None: ...


@none(
    """
    INSERT INTO user_signatures (signer, target, target_key, signing_key, signature, position)
    VALUES (:signer, :target, :target_key, :signing_key, :signature, :position)
    ON CONFLICT (signer, target) DO UPDATE SET target_key = excluded.target_key,
    signing_key = excluded.signing_key, signature = excluded.signature, position = excluded.position
    """
)
def store_signature(
    txn: Transaction,
    signer: str,
    target: str,
    target_key: str,
    signing_key: str,
    signature: str,
    position: int,
) -> None: ...


@many(
    str,
    """
    SELECT target FROM user_signatures
    WHERE signer = :signer AND position > :after AND position <= :upto
    UNION
    SELECT user_id FROM cross_signing_keys
    WHERE user_id = :signer AND told_position > :after AND told_position <= :upto
    """,
)
def signed_between(txn: Transaction, signer: str, after: int, upto: int) -> None: ...


@none("DELETE FROM user_signatures WHERE signer = :signer")
def delete_signatures_by(txn: Transaction, signer: str) -> None: ...


@none("DELETE FROM user_signatures WHERE signer = :user_id OR target = :user_id")
def delete_signatures_of(txn: Transaction, user_id: str) -> None: ...

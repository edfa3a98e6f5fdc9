"""The shape of ``PUT /_matrix/federation/v1/send/{txnId}``: what one server tells another.

Specification: Server-Server API, "Transactions".  PDUs stay the bytes they came
as: each is read once, by `events.receive_event`, when the version of its room is
known; of a version 12 room, even its id is known only then.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import orjson

from dendrite_tw.matrix.errors import MALFORMED, bad_json, forbidden, not_json, too_large
from dendrite_tw.matrix.event_format import MAX_PDU_BYTES, MAX_UNSIGNED_BYTES
from dendrite_tw.matrix.identifiers import is_room_id, within_limit

MAX_PDUS = 50
MAX_EDUS = 100
MAX_TRANSACTION_BYTES = 50 * (MAX_PDU_BYTES + 16_384) + MAX_EDUS * 65_536
"""Room for full lists of PDUs and EDUs of the largest usual size."""


class EDU(msgspec.Struct, frozen=True):
    """An ephemeral message as it came, its content unread."""

    edu_type: str
    content: msgspec.Raw


class _Envelope(msgspec.Struct, frozen=True):
    origin: str
    origin_server_ts: int
    pdus: list[msgspec.Raw] = []
    edus: list[msgspec.Raw] = []


class _Where(msgspec.Struct):
    room_id: str


class Transaction(msgspec.Struct, frozen=True):
    """What one request brought."""

    origin: str
    origin_server_ts: int
    pdus: tuple[bytes, ...]
    """Each a JSON object as it came."""
    edus: tuple[EDU, ...]
    """Those that have the form of an EDU; others are left out."""


_envelope = msgspec.json.Decoder(_Envelope)
_edu = msgspec.json.Decoder(EDU)
_where = msgspec.json.Decoder(_Where)


def read_transaction(body: bytes, origin: str) -> Transaction:
    """Read the body of a ``/send`` that ``origin`` has signed.

    Raises `MatrixError`: 400 if it is no transaction or too long a one, 403 if it names another origin, 413
    if it is too large.
    """
    if len(body) > MAX_TRANSACTION_BYTES:
        raise too_large("The transaction is too large.")
    try:
        envelope = _envelope.decode(body)
    except msgspec.ValidationError as error:
        raise bad_json(f"The body is not a transaction: {error}.") from None
    except MALFORMED:
        raise not_json() from None
    if envelope.origin != origin:
        raise forbidden("The transaction names another origin than the request.")
    if len(envelope.pdus) > MAX_PDUS:
        raise bad_json(f"A transaction has at most {MAX_PDUS} PDUs.")
    if len(envelope.edus) > MAX_EDUS:
        raise bad_json(f"A transaction has at most {MAX_EDUS} EDUs.")
    edus = [edu for edu in map(_read_edu, envelope.edus) if edu is not None]
    return Transaction(origin, envelope.origin_server_ts, tuple(map(bytes, envelope.pdus)), tuple(edus))


def _read_edu(raw: msgspec.Raw) -> EDU | None:
    try:
        edu = _edu.decode(raw)
    except MALFORMED:
        return None
    return EDU(edu.edu_type, edu.content.copy()) if within_limit(edu.edu_type) else None


def room_id_of(pdu: bytes) -> str:
    """The room that a PDU says it belongs to, so that the version to read it by can be looked up.

    Raises `ValueError` if it says none.  A create event of a room whose id is its hash
    says none either: no such event is sent in a transaction to a server that is not in the room.
    """
    if len(pdu) > MAX_PDU_BYTES + MAX_UNSIGNED_BYTES:
        raise ValueError("the event is too large")
    try:
        room_id = _where.decode(pdu).room_id
    except MALFORMED:
        raise ValueError("the event names no room") from None
    if not is_room_id(room_id):
        raise ValueError("the event names no room")
    return room_id


def build_transaction(origin: str, now_ms: int, pdus: Iterable[bytes], edus: Iterable[Mapping[str, Any]] = ()) -> bytes:
    """The body of a ``/send``.  ``pdus`` are spliced as they are; the caller keeps to `MAX_PDUS` and `MAX_EDUS`."""
    return orjson.dumps(
        {
            "origin": origin,
            "origin_server_ts": now_ms,
            "pdus": [orjson.Fragment(pdu) for pdu in pdus],
            "edus": list(edus),
        }
    )


def transaction_result(outcomes: Mapping[str, str | None]) -> dict[str, Any]:
    """The answer to ``/send``: for each event id nothing, or what was wrong with it."""
    return {"pdus": {event_id: {"error": error} if error else {} for event_id, error in outcomes.items()}}


def transaction_bytes(outcomes: Mapping[str, str | None]) -> bytes:
    """`transaction_result` as JSON."""
    return orjson.dumps(transaction_result(outcomes))

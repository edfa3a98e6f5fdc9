"""A server that means no good: it joins rooms as it should, and then says and answers whatever a test makes it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote, unquote

import orjson

from dendrite_tw.federation_api.xmatrix import sign_request
from dendrite_tw.matrix.events import Event, build_event, finish_event, parse_event
from dendrite_tw.matrix.keys import SigningKey, signing_key
from dendrite_tw.matrix.room_versions import ROOM_VERSIONS, RoomVersion
from dendrite_tw.matrix.signing import sign_json
from tests.simulation.network import Done, Network, Request, Response

NAME = "evil.test"
HOUR_MS = 3_600_000

Answering = Callable[[Request], Any]
"""What it says: a `Response`, JSON for one with status 200, bytes of a body, or `None` to stay silent."""


class Villain:
    """The server; `answers` are by a part of the path."""

    def __init__(self, network: Network, victim: str, name: str = NAME) -> None:
        self.network = network
        self.victim = victim
        self.name = name
        self.user_id = f"@mallory:{name}"
        self.key: SigningKey = signing_key("ed25519:evil", name.encode().ljust(32, b"e")[:32])
        self.valid_ms = HOUR_MS
        self.old_keys: dict[str, Any] = {}
        self.is_up = True
        self.asked: list[str] = []
        self.answers: dict[str, Answering] = {}
        self._transactions = 0
        network.hosts[name] = self  # type: ignore[assignment]

    def now_ms(self) -> int:
        return int(self.network.clock.seconds() * 1000)

    # --- what it answers ---

    def serve(self, request: Request, done: Done) -> None:
        """Answer as the test wants, with its keys as they should be, or with nothing that helps."""
        path = unquote(request.target.partition("?")[0])
        self.asked.append(path)
        for part, answer in self.answers.items():
            if part in path:
                said = answer(request)
                break
        else:
            said = self._proper(path)
        if said is not None:
            done(said if isinstance(said, Response) else response(said))

    def _proper(self, path: str) -> Any:
        if path.startswith("/_matrix/key/v2/server"):
            return self.document()
        if "/send/" in path:
            return {"pdus": {}}
        return response({"errcode": "M_NOT_FOUND", "error": "Nothing here."}, 404)

    def document(self) -> dict[str, Any]:
        """Its keys."""
        document = {
            "server_name": self.name,
            "verify_keys": {self.key.key_id: {"key": self.key.verify_key_base64}},
            "old_verify_keys": self.old_keys,
            "valid_until_ts": self.now_ms() + self.valid_ms,
        }
        return sign_json(document, self.name, self.key.key_id, self.key.secret)

    # --- what it asks ---

    def ask(self, method: str, path: str, body: Any = None, seconds: float = 60.0) -> Response:
        """The answer to a signed request; a body that is bytes goes as it is, and is not signed if it is no JSON."""
        content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        try:
            header = sign_request(self.key, self.name, self.victim, method, path, content)
        except ValueError:
            header = sign_request(self.key, self.name, self.victim, method, path, b"{}")
        answers: list[Response | Exception] = []
        headers = [("Authorization", header)]
        self.network.carry(self.name, self.victim, Request(method, path, headers, content), answers.append)
        self.network.clock.run_until(lambda: bool(answers), seconds)
        assert answers, f"{method} {path} was not answered"
        answer = answers[0]
        assert isinstance(answer, Response), f"{method} {path}: {answer!r}"
        return answer

    def send(self, pdus: Sequence[Any] = (), edus: Sequence[Any] = ()) -> Response:
        """A transaction; then a moment for what follows from it."""
        self._transactions += 1
        body = {
            "origin": self.name,
            "origin_server_ts": self.now_ms(),
            "pdus": [pdu.pdu_dict() if isinstance(pdu, Event) else pdu for pdu in pdus],
            "edus": list(edus),
        }
        answer = self.ask("PUT", f"/_matrix/federation/v1/send/x{self._transactions}", body)
        self.network.clock.run(5)
        return answer


class Seat:
    """The villain's place in a room of the victim's."""

    def __init__(self, villain: Villain, room_id: str, version: str) -> None:
        """Join it, by the rules."""
        self.villain = villain
        self.room_id = room_id
        self.version: RoomVersion = ROOM_VERSIONS[version]
        place = f"{quote(room_id, safe='')}/{quote(villain.user_id, safe='')}"
        made = villain.ask("GET", f"/_matrix/federation/v1/make_join/{place}?ver={version}").json
        key = villain.key
        fields = {**made["event"], "origin_server_ts": villain.now_ms()}
        if self.version.event_id_format == "origin":
            fields["event_id"] = f"$join:{villain.name}"
        join = finish_event(fields, self.version, server_name=villain.name, key_id=key.key_id, signing_key=key.secret)
        path = f"/_matrix/federation/v2/send_join/{quote(room_id, safe='')}/{quote(join.event_id, safe='')}"
        told = villain.ask("PUT", path, join.pdu_dict()).json
        self.state: dict[tuple[str, str], Event] = {}
        for pdu in told["state"]:
            event = parse_event(pdu, self.version)
            self.state[event.type, event.state_key or ""] = event
        self.join = self.state["m.room.member", villain.user_id] = join
        self.last: Event = join

    def auth(self) -> list[str]:
        """What authorises a message of the villain's."""
        slots = [("m.room.create", ""), ("m.room.power_levels", ""), ("m.room.member", self.villain.user_id)]
        return [self.state[slot].event_id for slot in slots]

    def make(self, text: str = "", **fields: Any) -> Event:
        """A message after the last event, made as it should be but for `fields`."""
        villain = self.villain
        given: dict[str, Any] = {
            "room_id": self.room_id,
            "sender": villain.user_id,
            "type": "m.room.message",
            "content": {"msgtype": "m.text", "body": text},
            "prev_events": [self.last.event_id],
            "auth_events": self.auth(),
            "depth": self.last.depth + 1,
            "origin_server_ts": villain.now_ms(),
            **fields,
        }
        if self.version.event_format == "pairs":
            known = {*given["prev_events"], *given["auth_events"]}
            given.setdefault("reference_hashes", dict.fromkeys(known, "x" * 43))
        return build_event(
            self.version,
            server_name=villain.name,
            key_id=villain.key.key_id,
            signing_key=villain.key.secret,
            **given,
        )


def response(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """An answer with a JSON body, or with one that is bytes already."""
    data = body if isinstance(body, bytes) else orjson.dumps(body)
    return Response(status, {"content-type": "application/json", **(headers or {})}, data)

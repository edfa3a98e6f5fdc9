"""Several processes that serve the same, asked by turns."""

from __future__ import annotations

from typing import Any

from tests.harness import Answer, Web


class Turns:
    """Sends each request to another one of several servers than the last."""

    def __init__(self) -> None:
        self.webs: dict[int, Web] = {}
        self.last = 1

    def request(self, *args: Any, **options: Any) -> Answer:
        self.last = next((place for place in self.webs if place != self.last), self.last)
        return self.webs[self.last].request(*args, **options)

    def get(self, path: str, token: str | None = None) -> Answer:
        return self.request("GET", path, None, token)

    def post(self, path: str, body: Any = None, token: str | None = None) -> Answer:
        return self.request("POST", path, {} if body is None else body, token)

    def put(self, path: str, body: Any = None, token: str | None = None) -> Answer:
        return self.request("PUT", path, {} if body is None else body, token)

    def delete(self, path: str, body: Any = None, token: str | None = None) -> Answer:
        return self.request("DELETE", path, body, token)

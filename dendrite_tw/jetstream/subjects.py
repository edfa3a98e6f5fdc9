"""Subjects: names of tokens joined by dots, their wildcards, and who is interested in which.

``*`` stands for one token, ``>`` at the end for one or more.  `Interest` is the tree that routes a message:
from a subject to everything that subscribed to it.
"""

from __future__ import annotations

from typing import Generic, TypeVar

T = TypeVar("T")

MAX_TOKENS = 64
"""Tokens in a subject that a client may use; deeper ones are refused."""


def is_valid(subject: str) -> bool:
    """Whether this is a well-formed subject, wildcards included."""
    if not subject or any(character in subject for character in " \t\r\n\0"):
        return False
    tokens = subject.split(".")
    if len(tokens) > MAX_TOKENS or "" in tokens:
        return False
    return ">" not in tokens[:-1]


def is_literal(subject: str) -> bool:
    """Whether a valid subject is free of wildcards."""
    if "*" not in subject and ">" not in subject:
        return True
    tokens = subject.split(".")
    return "*" not in tokens and tokens[-1] != ">"


def matches(pattern: str, subject: str) -> bool:
    """Whether a literal subject is one of those that the pattern stands for."""
    if pattern == subject or pattern == ">":
        return True
    if is_literal(pattern):
        return False
    return is_subset(subject, pattern)


def is_subset(inner: str, outer: str) -> bool:
    """Whether every subject of pattern ``inner`` is also one of ``outer``."""
    inner_tokens, outer_tokens = inner.split("."), outer.split(".")
    for position, theirs in enumerate(outer_tokens):
        if position >= len(inner_tokens):
            return False
        mine = inner_tokens[position]
        if theirs == ">":
            return True
        if mine == ">" or (theirs != "*" and theirs != mine):
            return False
    return len(inner_tokens) == len(outer_tokens)


def overlaps(one: str, other: str) -> bool:
    """Whether some subject belongs to both patterns."""
    left, right = one.split("."), other.split(".")
    for mine, theirs in zip(left, right, strict=False):
        if mine == ">" or theirs == ">":
            return True
        if mine != theirs and mine != "*" and theirs != "*":
            return False
    return len(left) == len(right)


class _Node(Generic[T]):
    __slots__ = ("children", "members", "tail")

    def __init__(self) -> None:
        self.children: dict[str, _Node[T]] = {}
        self.members: dict[T, None] = {}
        self.tail: dict[T, None] = {}
        """Those who subscribed to everything below this node (``>``)."""

    def is_empty(self) -> bool:
        return not (self.children or self.members or self.tail)


class Interest(Generic[T]):
    """A tree of subscriptions; members are kept in the order in which they came."""

    def __init__(self) -> None:
        self._root: _Node[T] = _Node()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, pattern: str, member: T) -> None:
        node = self._root
        tokens = pattern.split(".")
        is_tail = tokens[-1] == ">"
        for token in tokens[:-1] if is_tail else tokens:
            child = node.children.get(token)
            if child is None:
                child = node.children[token] = _Node()
            node = child
        (node.tail if is_tail else node.members)[member] = None
        self._count += 1

    def remove(self, pattern: str, member: T) -> None:
        """Take a member out; `KeyError` if it was not there."""
        tokens = pattern.split(".")
        is_tail = tokens[-1] == ">"
        path = [self._root]
        steps = tokens[:-1] if is_tail else tokens
        for token in steps:
            path.append(path[-1].children[token])
        del (path[-1].tail if is_tail else path[-1].members)[member]
        self._count -= 1
        for depth in range(len(steps), 0, -1):
            if not path[depth].is_empty():
                break
            del path[depth - 1].children[steps[depth - 1]]

    def match(self, subject: str) -> list[T]:
        """All members whose pattern includes this literal subject."""
        found: list[T] = []
        nodes = [self._root]
        for token in subject.split("."):
            following = []
            for node in nodes:
                if node.tail:
                    found.extend(node.tail)
                child = node.children.get(token)
                if child is not None:
                    following.append(child)
                child = node.children.get("*")
                if child is not None:
                    following.append(child)
            if not following:
                return found
            nodes = following
        for node in nodes:
            found.extend(node.members)
        return found

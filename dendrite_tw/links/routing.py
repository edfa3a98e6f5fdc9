"""Who may answer a method of an interface, said where the method is declared.

`routed` marks the methods of a `typing.Protocol`; `routing_of` reads the mark.  Without one, any process that runs
the component answers, and what nobody is known to have done is not asked a second time.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Final, TypeVar

import msgspec

F = TypeVar("F", bound=Callable[..., Any])

_MARK: Final = "__routing__"


class Routing(msgspec.Struct, frozen=True):
    """How a call finds its answerer.

    ``share`` is the path to the argument whose share says who alone may answer (``room_id``, ``event.room_id``); empty
    where anybody may.  ``repeat``: the call changes nothing, so it may be asked again when no answer came.
    """

    share: str = ""
    repeat: bool = False


ANYBODY: Final = Routing()


def routed(*, share: str = "", repeat: bool = False) -> Callable[[F], F]:
    """Mark a method with its `Routing`; `TypeError` where it has no such argument."""

    def mark(method: F) -> F:
        if share and share.partition(".")[0] not in list(inspect.signature(method).parameters)[1:]:
            raise TypeError(f"{method.__qualname__} has no argument for the share {share!r}")
        setattr(method, _MARK, Routing(share, repeat))
        return method

    return mark


def routing_of(interface: type, name: str) -> Routing:
    """The routing of a method."""
    found: Routing = getattr(getattr(interface, name), _MARK, ANYBODY)
    return found


def key_of(interface: type, name: str) -> Callable[[tuple[Any, ...], dict[str, Any]], str]:
    """For a method with a share: reads the key that the share is of from a call's arguments."""
    first, *path = routing_of(interface, name).share.split(".")
    parameters = inspect.signature(getattr(interface, name)).parameters
    at, default = list(parameters).index(first) - 1, parameters[first].default

    def key(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        value = args[at] if at < len(args) else kwargs.get(first, default)
        for attribute in path:
            value = getattr(value, attribute)
        return str(value)

    return key

"""Calls as bytes: the arguments and the result of each method of an interface, by its annotations.

A codec is made once for an interface (a `typing.Protocol` of ``async``
methods).  Making it fails for a type that cannot be encoded, so an interface
that could not cross a process border is refused at import, not in production.
Errors of the vocabulary (`MatrixError`) cross as themselves.
"""

from __future__ import annotations

import inspect
import typing
from typing import Any

import msgspec
from msgspec import inspect as shapes

from ..matrix.errors import MatrixError


class Refusal(msgspec.Struct, frozen=True):
    """A `MatrixError` on its way between processes."""

    status: int
    errcode: str
    error: str
    extra: dict[str, Any]


def require_encodable(annotation: Any, where: str) -> None:
    """Raise `TypeError` if a value of this type could not be encoded and made again."""
    seen: set[int] = set()
    waiting: list[Any] = [shapes.type_info(annotation)]
    while waiting:
        shape = waiting.pop()
        if isinstance(shape, shapes.CustomType):
            raise TypeError(f"{where}: {shape.cls!r} cannot be encoded")
        if isinstance(shape, shapes.Type | shapes.Field) and id(shape) not in seen:
            seen.add(id(shape))
            for value in (getattr(shape, field) for field in shape.__struct_fields__):
                waiting.extend(value if isinstance(value, tuple) else [value])


class MethodCodec:
    """One method: its arguments to bytes and back, its result to bytes and back."""

    def __init__(self, interface: type, name: str) -> None:
        function = getattr(interface, name)
        hints = typing.get_type_hints(function)
        self.signature = inspect.signature(function)
        names = [parameter for parameter in self.signature.parameters if parameter != "self"]
        missing = [parameter for parameter in [*names, "return"] if parameter not in hints]
        if missing:
            raise TypeError(f"{interface.__name__}.{name}: no annotation for {missing}")
        self.names = names
        for parameter in [*names, "return"]:
            require_encodable(hints[parameter], f"{interface.__name__}.{name}, {parameter}")
        self._arguments = msgspec.msgpack.Decoder(tuple[tuple(hints[parameter] for parameter in names)])  # type: ignore[misc]
        self._result = msgspec.msgpack.Decoder(hints["return"])

    def encode_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        bound = self.signature.bind(None, *args, **kwargs)
        bound.apply_defaults()
        return msgspec.msgpack.encode([bound.arguments[name] for name in self.names])

    def decode_arguments(self, data: bytes) -> tuple[Any, ...]:
        return self._arguments.decode(data)  # type: ignore[no-any-return]

    def encode_result(self, value: Any) -> bytes:
        return b"\x00" + msgspec.msgpack.encode(value)

    def encode_error(self, error: MatrixError) -> bytes:
        return b"\x01" + msgspec.msgpack.encode(Refusal(error.status, error.errcode, error.error, error.extra))

    def decode_result(self, data: bytes) -> Any:
        """The result, or the `MatrixError` that the other side raised."""
        if data[:1] == b"\x01":
            refusal = msgspec.msgpack.decode(data[1:], type=Refusal)
            raise MatrixError(refusal.status, refusal.errcode, refusal.error, **refusal.extra)
        return self._result.decode(data[1:])


def methods_of(interface: type) -> list[str]:
    """The names of the interface's methods."""
    return [name for name, value in vars(interface).items() if inspect.iscoroutinefunction(value)]


class InterfaceCodec:
    """All methods of an interface."""

    def __init__(self, interface: type) -> None:
        self.interface = interface
        self.methods = {name: MethodCodec(interface, name) for name in methods_of(interface)}

"""Calls as bytes: the arguments and the result of each method of an interface, by its annotations.

A codec is made once for an interface (a `typing.Protocol` of ``async``
methods).  Making it fails for a type that cannot be encoded, so an interface
that could not cross a process border is refused at import, not in production.
Errors of the vocabulary (`MatrixError` and what is made of it) cross as themselves.

Arguments are told by their places.  A caller that does not know the newest ones yet leaves them out, and they take
their defaults; so processes of neighbouring releases understand each other.
"""

from __future__ import annotations

import functools
import inspect
import typing
from typing import Any, Final

import msgspec
import orjson
from msgspec import inspect as shapes

from ..matrix.errors import MatrixError, bad_json

RESULT: Final = b"\x00"
ERROR: Final = b"\x01"


def _plain(value: Any) -> Any:
    """JSON that is encoded already, as what it says."""
    if isinstance(value, orjson.Fragment):
        return orjson.loads(orjson.dumps(value))
    raise TypeError(f"{type(value).__name__} cannot be encoded")


_encode: Final = msgspec.msgpack.Encoder(enc_hook=_plain).encode


class Refusal(msgspec.Struct, frozen=True):
    """A `MatrixError` on its way between processes.

    ``kinds`` names its class and those that that is made of, the narrowest first; ``fields`` is what it has beyond a
    `MatrixError`.
    """

    status: int
    errcode: str
    error: str
    extra: dict[str, Any]
    kinds: list[str] = []
    fields: dict[str, Any] = {}


_OF_ALL: Final = frozenset(("status", "errcode", "error", "extra"))


def refusal_of(error: MatrixError) -> Refusal:
    kinds = [kind.__name__ for kind in type(error).__mro__ if MatrixError.kinds.get(kind.__name__) is kind]
    fields = {name: value for name, value in vars(error).items() if name not in _OF_ALL} if kinds else {}
    return Refusal(error.status, error.errcode, error.error, error.extra, kinds, fields)


def error_of(refusal: Refusal) -> MatrixError:
    """The error again, as an object of the narrowest class that is known in this process."""
    kinds = (MatrixError.kinds[name] for name in refusal.kinds if name in MatrixError.kinds)
    kind = next(kinds, MatrixError)
    error: MatrixError = kind.__new__(kind, refusal.error)
    MatrixError.__init__(error, refusal.status, refusal.errcode, refusal.error, **refusal.extra)
    vars(error).update(refusal.fields)
    return error


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


def _arguments(values: Any) -> bytes:
    """Arguments as bytes; ``M_BAD_JSON`` for numbers that only somebody outside can have thought of."""
    try:
        return _encode(values)
    except OverflowError:
        raise bad_json("A number is too large.") from None


class MethodCodec:
    """One method: its arguments to bytes and back, its result to bytes and back."""

    def __init__(self, interface: type, name: str) -> None:
        function = getattr(interface, name)
        hints = typing.get_type_hints(function)
        self.signature = inspect.signature(function)
        self.names = [parameter for parameter in self.signature.parameters if parameter != "self"]
        missing = [parameter for parameter in [*self.names, "return"] if parameter not in hints]
        if missing:
            raise TypeError(f"{interface.__name__}.{name}: no annotation for {missing}")
        for parameter in [*self.names, "return"]:
            require_encodable(hints[parameter], f"{interface.__name__}.{name}, {parameter}")
        parameters = self.signature.parameters
        self._defaults = {
            each: parameters[each].default
            for each in self.names
            if parameters[each].default is not inspect.Parameter.empty
        }
        fields: list[Any] = [
            (each, hints[each], self._defaults[each]) if each in self._defaults else (each, hints[each])
            for each in self.names
        ]
        shape = msgspec.defstruct(name, fields, array_like=True, forbid_unknown_fields=True)
        self._arguments: Any = msgspec.msgpack.Decoder(shape)
        self._result = msgspec.msgpack.Decoder(hints["return"])

    def encode_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        """Raises `TypeError` where the method could not be called so."""
        if not kwargs and len(args) == len(self.names):
            return _arguments(args)
        values = [*args, *(kwargs.get(name, self._defaults.get(name, _NOTHING)) for name in self.names[len(args) :])]
        by_name = sum(name in kwargs for name in self.names[len(args) :])
        if len(values) > len(self.names) or by_name < len(kwargs) or any(value is _NOTHING for value in values):
            self.signature.bind(None, *args, **kwargs)
        return _arguments(values)

    def decode_arguments(self, data: bytes | memoryview) -> tuple[Any, ...]:
        return msgspec.structs.astuple(self._arguments.decode(data))

    def encode_result(self, value: Any) -> bytes:
        return RESULT + _encode(value)

    def encode_error(self, error: MatrixError) -> bytes:
        refusal = refusal_of(error)
        try:
            return ERROR + _encode(refusal)
        except TypeError:
            # It has something with it that is of this process alone, so elsewhere it is a plain error.
            return ERROR + _encode(msgspec.structs.replace(refusal, kinds=[], fields={}))

    def decode_result(self, data: bytes) -> Any:
        """The result, or the `MatrixError` that the other side raised."""
        if data[:1] == ERROR:
            raise error_of(msgspec.msgpack.decode(data[1:], type=Refusal))
        return self._result.decode(memoryview(data)[1:])


_NOTHING: Final = object()


def methods_of(interface: type) -> list[str]:
    """The names of the interface's methods."""
    return [name for name, value in vars(interface).items() if inspect.iscoroutinefunction(value)]


class InterfaceCodec:
    """All methods of an interface."""

    def __init__(self, interface: type) -> None:
        self.interface = interface
        self.methods = {name: MethodCodec(interface, name) for name in methods_of(interface)}


codec_of = functools.cache(InterfaceCodec)
"""The codec of an interface, made once."""

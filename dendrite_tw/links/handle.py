"""The object that callers of a component hold.

`handle` makes an object with the methods of an interface out of a transport.
Over the `Direct` transport a method is the component's own bound method, so
a call costs nothing more; over `Encoded` the call crosses as bytes.  Handles
exist before the components do, which is how components that call each other
are wired without a cycle.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar, cast

from ..matrix.errors import MatrixError
from .codec import InterfaceCodec, MethodCodec

T = TypeVar("T")
Method = Callable[..., Awaitable[Any]]


class Transport(Protocol):
    """Gives the callable behind a method's name."""

    def method(self, interface: type, name: str) -> Method: ...


class Direct:
    """Calls an object in this process; `connect` says which, once it exists."""

    def __init__(self) -> None:
        self._target: Any = None

    def connect(self, target: object) -> None:
        self._target = target

    def method(self, interface: type, name: str) -> Method:
        if self._target is None:
            raise RuntimeError(f"{interface.__name__}.{name} was called before its component was made")
        return cast(Method, getattr(self._target, name))


class Encoded:
    """Calls through bytes: ``exchange(method name, request) -> reply`` carries them."""

    def __init__(self, interface: type, exchange: Callable[[str, bytes], Awaitable[bytes]]) -> None:
        self._codec = InterfaceCodec(interface)
        self._exchange = exchange

    def method(self, interface: type, name: str) -> Method:
        codec: MethodCodec = self._codec.methods[name]

        async def call(*args: Any, **kwargs: Any) -> Any:
            return codec.decode_result(await self._exchange(name, codec.encode_arguments(args, kwargs)))

        return call


class Answerer:
    """The other end of `Encoded`: decodes a request, calls the component, encodes what it says."""

    def __init__(self, interface: type, target: object) -> None:
        self._codec = InterfaceCodec(interface)
        self._target = target

    async def __call__(self, name: str, request: bytes) -> bytes:
        codec = self._codec.methods[name]
        try:
            result = await getattr(self._target, name)(*codec.decode_arguments(request))
        except MatrixError as error:
            return codec.encode_error(error)
        return codec.encode_result(result)


class _Handle:
    """Looks a method up in the transport when it is first called, then keeps it."""

    def __init__(self, interface: type, transport: Transport) -> None:
        self._interface = interface
        self._transport = transport

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or not hasattr(self._interface, name):
            raise AttributeError(name)
        method = self._transport.method(self._interface, name)
        self.__dict__[name] = method
        return method


def handle(interface: type[T], transport: Transport) -> T:
    """An object with the methods of `interface`, carried by `transport`."""
    return cast(T, _Handle(interface, transport))

"""User data as bytes: arguments, results, checkpoints, effects and document entries.

`codec` says what a value may hold; here it gets its name in errors, and its limit. The core carries
the bytes and never looks inside.
"""

from __future__ import annotations

from typing import Any, Final

from crdtsync.errors import InvalidRequestError, PayloadTooLargeError, RemoteProtocolError
from crdtsync.protocol import codec
from crdtsync.protocol.codec import VALUE_BYTES_MAX, VALUE_DEPTH_MAX, decode_value

__all__ = [
    "VALUE_BYTES_MAX",
    "VALUE_DEPTH_MAX",
    "decode_arguments",
    "decode_value",
    "encode_arguments",
    "encode_value",
]

_NO_ARGUMENTS: Final = bytes.fromhex("8280a0")  # [[], {}]
_NONE: Final = bytes.fromhex("f6")


def encode_value(value: Any, what: str = "value") -> bytes:
    """The canonical bytes of a value: equal values have equal bytes.

    Args:
        value: None, bool, int of 64 bits, float, str, bytes, list, tuple or dict, nested at most VALUE_DEPTH_MAX deep.
        what: How an error names it: "result", "arguments of 'charge'".

    Raises:
        InvalidRequestError: If something in it cannot travel; the message says what and where.
        PayloadTooLargeError: If it takes more than VALUE_BYTES_MAX bytes.
    """
    if value is None:
        return _NONE
    try:
        data = codec.encode_value(value)
    except InvalidRequestError as error:
        raise InvalidRequestError(f"{what}: {error}") from None
    if len(data) > VALUE_BYTES_MAX:
        raise PayloadTooLargeError(
            f"{what}: {len(data)} bytes, the limit is {VALUE_BYTES_MAX}; keep large data in a store, pass its address",
            size=len(data),
            limit=VALUE_BYTES_MAX,
        )
    return data


def encode_arguments(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    """The payload of a task: `[args, kwargs]`. Errors as in `encode_value`."""
    if not args and not kwargs:
        return _NO_ARGUMENTS
    return encode_value((args, kwargs), f"arguments of {name!r}")


def decode_arguments(payload: bytes) -> tuple[list[Any], dict[str, Any]]:
    """Inverse of `encode_arguments`. Raises RemoteProtocolError."""
    if payload in (_NO_ARGUMENTS, b""):
        return [], {}
    match decode_value(payload):
        case [list() as args, dict() as kwargs] if all(type(key) is str for key in kwargs):
            return args, kwargs
        case other:
            raise RemoteProtocolError(f"a payload is [arguments, keyword arguments], not {type(other).__name__}")

"""The messages of XenStore: types, the 16-byte header, and taking messages out of a stream that comes in pieces.

Names and numbers are those of Xen's public header io/xs_wire.h.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass

from trapgate.errors import StoreError, TrapgateError

__all__ = [
    "HEADER_SIZE",
    "PAYLOAD_MAX",
    "Assembler",
    "Message",
    "MessageType",
    "OverlongMessage",
    "one_string",
    "pack",
    "strings",
]

#: Bytes of a message's header (struct xsd_sockmsg).
HEADER_SIZE = 16
#: Bytes that a message may carry (XENSTORE_PAYLOAD_MAX), in both directions.
PAYLOAD_MAX = 4096

_HEADER = struct.Struct("<IIII")


class MessageType(enum.IntEnum):
    """What a message asks or tells (enum xsd_sockmsg_type); numbers that are not here are unknown requests."""

    CONTROL = 0
    DIRECTORY = 1
    READ = 2
    GET_PERMS = 3
    WATCH = 4
    UNWATCH = 5
    TRANSACTION_START = 6
    TRANSACTION_END = 7
    INTRODUCE = 8
    RELEASE = 9
    GET_DOMAIN_PATH = 10
    WRITE = 11
    MKDIR = 12
    RM = 13
    SET_PERMS = 14
    WATCH_EVENT = 15
    ERROR = 16
    IS_DOMAIN_INTRODUCED = 17
    RESUME = 18
    SET_TARGET = 19
    RESET_WATCHES = 21


class OverlongMessage(TrapgateError, ValueError):
    """A header announces more than `PAYLOAD_MAX` bytes: where the next message begins cannot be trusted."""


@dataclass(frozen=True, slots=True)
class Message:
    """One whole message. `type` is the number as it came, for it may be one that nobody knows."""

    type: int
    request: int
    transaction: int
    payload: bytes


def pack(kind: int, request: int, transaction: int, payload: bytes) -> bytes:
    """Give a message's bytes; the numbers are unsigned and of 32 bits."""
    return _HEADER.pack(kind, request, transaction, len(payload)) + payload


class Assembler:
    """Puts messages together from pieces. It never asks for more than the message that it is at needs."""

    def __init__(self) -> None:
        self._have = bytearray()
        self._need = HEADER_SIZE

    @property
    def missing(self) -> int:
        """How many bytes may be fed before the next call of `next`: 1 to 4096, or 0 when a message is whole."""
        return self._need - len(self._have)

    def feed(self, piece: bytes) -> None:
        """Add bytes, at most `missing` of them."""
        self._have += piece

    def next(self) -> Message | None:
        """Take the message if it is whole; a header alone raises what `missing` gives, as far as its length says.

        Raises `OverlongMessage`, again at every call.
        """
        if len(self._have) < HEADER_SIZE:
            return None
        kind, request, transaction, length = _HEADER.unpack_from(self._have)
        if length > PAYLOAD_MAX:
            raise OverlongMessage(
                f"a message of {length} bytes is announced; at most {PAYLOAD_MAX} are allowed"
            )
        self._need = HEADER_SIZE + length
        if len(self._have) < self._need:
            return None
        payload = bytes(self._have[HEADER_SIZE : self._need])
        self._have.clear()
        self._need = HEADER_SIZE
        return Message(kind, request, transaction, payload)


def strings(payload: bytes) -> list[bytes]:
    """Give the strings that end with a NUL, without it; bytes behind the last NUL are left out, as Xen does."""
    return payload.split(b"\0")[:-1]


def one_string(payload: bytes) -> bytes:
    """Give the only string of a payload, which must end with its only NUL; raises `StoreError` (EINVAL)."""
    found = strings(payload)
    if len(found) != 1 or not payload.endswith(b"\0"):
        raise StoreError("the request must carry one string with a NUL at its end", "EINVAL")
    return found[0]

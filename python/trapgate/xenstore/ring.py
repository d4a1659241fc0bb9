"""The page that a guest and XenStore share: two rings of 1024 bytes with free-running indices.

The guest is not trusted: its two indices are read once per use and checked before anything is moved, our own
two are kept here and only ever written, and bytes are copied out before anybody looks at them.
"""

from __future__ import annotations

import struct
from typing import Protocol

from trapgate.errors import TrapgateError

__all__ = ["ERROR_COMM", "ERROR_PROTO", "ERROR_RINGIDX", "RING_SIZE", "Page", "Ring", "RingError"]

#: Bytes of each ring (XENSTORE_RING_SIZE).
RING_SIZE = 1024

#: What the page's error field says: the page cannot be used, wild indices, an overlong message.
ERROR_COMM = 1
ERROR_RINGIDX = 2
ERROR_PROTO = 3

# struct xenstore_domain_interface.
_REQUESTS = 0x000
_REPLIES = 0x400
_REQ_CONS = 0x800
_REQ_PROD = 0x804
_RSP_CONS = 0x808
_RSP_PROD = 0x80C
_FEATURES = 0x810
_ERROR = 0x818

# XENSTORE_SERVER_FEATURE_ERROR: the error field is in use. Reconnecting is not offered.
_FEATURE_ERROR = 2

_MASK = RING_SIZE - 1
_INDEX = struct.Struct("<I")


class Page(Protocol):
    """A shared page of 4096 bytes, as the ring needs it.

    An aligned read or write of 4 bytes happens at once, and no access passes an earlier one, reads after writes
    included: the ring finds out whether the guest made room by reading an index after it wrote one. When the
    page is not there any more, both methods raise a `TrapgateError`.
    """

    def read(self, offset: int, n: int, /) -> bytes:
        """Give exactly `n` bytes from `offset`, as a copy."""
        ...

    def write(self, offset: int, data: bytes, /) -> None:
        """Store all of `data` from `offset` on."""
        ...


class RingError(TrapgateError):
    """The ring cannot be used any more; `error` is what the page's error field should say."""

    def __init__(self, message: str, error: int = ERROR_COMM) -> None:
        super().__init__(message)
        self.error = error


class Ring:
    """XenStore's end of the page. It takes requests and puts replies; nobody else may do so at the same time.

    All methods raise `RingError` when the page cannot be used.
    """

    def __init__(self, page: Page) -> None:
        self._page = page
        # A domain that was there before goes on where it stopped; a new one's page is zero.
        self._req_cons = self._index(_REQ_CONS)
        self._rsp_prod = self._index(_RSP_PROD)
        #: Whether something moved since this was last set to False: then the guest wants an event.
        self.moved = False
        self._write(_FEATURES, _INDEX.pack(_FEATURE_ERROR))
        self._write(_ERROR, _INDEX.pack(0))

    def waiting(self) -> int:
        """How many bytes of requests are there, 0 to 1024; raises `RingError` (ERROR_RINGIDX)."""
        return self._distance(self._index(_REQ_PROD), self._req_cons, "request")

    def room(self) -> int:
        """How many bytes of replies can be put, 0 to 1024; raises `RingError` (ERROR_RINGIDX)."""
        return RING_SIZE - self._distance(self._rsp_prod, self._index(_RSP_CONS), "reply")

    def take(self, n: int) -> bytes:
        """Copy `n` bytes of requests out, of those that `waiting` told, and give their place back."""
        start = self._req_cons & _MASK
        first = min(n, RING_SIZE - start)
        data = self._read(_REQUESTS + start, first)
        if first < n:
            data += self._read(_REQUESTS, n - first)
        self._req_cons = (self._req_cons + n) & 0xFFFFFFFF
        self._write(_REQ_CONS, _INDEX.pack(self._req_cons))
        self.moved = True
        return data

    def put(self, data: bytes) -> None:
        """Store bytes of replies, at most as many as `room` told, and show them to the guest."""
        start = self._rsp_prod & _MASK
        first = min(len(data), RING_SIZE - start)
        self._write(_REPLIES + start, data[:first])
        if first < len(data):
            self._write(_REPLIES, data[first:])
        self._rsp_prod = (self._rsp_prod + len(data)) & 0xFFFFFFFF
        self._write(_RSP_PROD, _INDEX.pack(self._rsp_prod))
        self.moved = True

    def fail(self, error: int) -> None:
        """Tell the guest why it is not served any more: one of the ERROR_ numbers."""
        self._write(_ERROR, _INDEX.pack(error))
        self.moved = True

    def _index(self, offset: int) -> int:
        value: int = _INDEX.unpack(self._read(offset, 4))[0]
        return value

    def _read(self, offset: int, n: int) -> bytes:
        try:
            return self._page.read(offset, n)
        except TrapgateError as error:
            raise RingError(f"the store's page cannot be read: {error}") from error

    def _write(self, offset: int, data: bytes) -> None:
        try:
            self._page.write(offset, data)
        except TrapgateError as error:
            raise RingError(f"the store's page cannot be written: {error}") from error

    @staticmethod
    def _distance(producer: int, consumer: int, name: str) -> int:
        distance = (producer - consumer) & 0xFFFFFFFF
        if distance > RING_SIZE:
            raise RingError(
                f"the {name} ring's indices {producer:#x} and {consumer:#x} are wild", ERROR_RINGIDX
            )
        return distance

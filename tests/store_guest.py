"""A guest's end of XenStore for the tests: a page of bytes, and a client that follows the header io/xs_wire.h."""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass

from trapgate.errors import MemoryAccessError
from trapgate.xenstore import Quota, XenStore

__all__ = ["FakePage", "Guest", "Reply", "errors", "message"]

DIRECTORY, READ, GET_PERMS, WATCH, UNWATCH, START, END = 1, 2, 3, 4, 5, 6, 7
DOMAIN_PATH, WRITE, MKDIR, RM, SET_PERMS, EVENT, ERROR, RESET = 10, 11, 12, 13, 14, 15, 16, 21

REQ_CONS, REQ_PROD, RSP_CONS, RSP_PROD, FEATURES, ERROR_FIELD = 0x800, 0x804, 0x808, 0x80C, 0x810, 0x818


class FakePage:
    """The shared page. It can be lost, and it keeps what was accessed."""

    def __init__(self) -> None:
        self.data = bytearray(4096)
        self.lost = False
        self.accesses: list[tuple[str, int, int]] = []

    def read(self, offset: int, n: int, /) -> bytes:
        self._access("read", offset, n)
        return bytes(self.data[offset : offset + n])

    def write(self, offset: int, data: bytes, /) -> None:
        self._access("write", offset, len(data))
        self.data[offset : offset + len(data)] = data

    def _access(self, kind: str, offset: int, n: int) -> None:
        if self.lost:
            raise MemoryAccessError("the page is gone")
        assert offset >= 0
        assert offset + n <= 4096
        self.accesses.append((kind, offset, n))

    def get(self, offset: int) -> int:
        value: int = struct.unpack_from("<I", self.data, offset)[0]
        return value

    def set(self, offset: int, value: int) -> None:
        struct.pack_into("<I", self.data, offset, value & 0xFFFFFFFF)


@dataclass(frozen=True)
class Reply:
    type: int
    request: int
    transaction: int
    payload: bytes


def message(kind: int, payload: bytes, request: int = 0, transaction: int = 0) -> bytes:
    return struct.pack("<IIII", kind, request, transaction, len(payload)) + payload


class Guest:
    """A domain that is introduced to a store. Texts in payloads stand for bytes, with | for NUL."""

    def __init__(
        self, store: XenStore, domid: int = 1, *, start: int = 0, limit: int = 64, quota: Quota | None = None
    ) -> None:
        self.store = store
        self.domid = domid
        self.limit = limit
        self.page = FakePage()
        for index in (REQ_CONS, REQ_PROD, RSP_CONS, RSP_PROD):
            self.page.set(index, start)
        #: How often the store sent an event.
        self.notified = 0
        #: Watch events that came, as path and token.
        self.events: deque[tuple[str, str]] = deque()
        self._input = b""
        self._request = 0
        store.introduce(domid, self.page, self._notify, quota=quota)

    def _notify(self) -> None:
        self.notified += 1

    def serve(self) -> bool:
        return self.store.serve(self.domid, self.limit)

    def serve_all(self) -> None:
        """Have requests carried out until there are no more."""
        for _ in range(2000):
            if not self.serve():
                return
        raise AssertionError("the store finds no end")

    def push(self, data: bytes) -> int:
        """Put as many bytes as fit into the request ring; give how many."""
        prod = self.page.get(REQ_PROD)
        n = min(len(data), 1024 - ((prod - self.page.get(REQ_CONS)) & 0xFFFFFFFF))
        for i in range(n):
            self.page.data[(prod + i) % 1024] = data[i]
        self.page.set(REQ_PROD, prod + n)
        return n

    def pull(self) -> bytes:
        """Take all bytes of the reply ring."""
        cons, prod = self.page.get(RSP_CONS), self.page.get(RSP_PROD)
        n = (prod - cons) & 0xFFFFFFFF
        assert n <= 1024
        data = bytes(self.page.data[0x400 + (cons + i) % 1024] for i in range(n))
        self.page.set(RSP_CONS, prod)
        return data

    def send(self, data: bytes) -> None:
        """Send bytes, and take replies whenever the ring is full."""
        while data:
            rest = data[self.push(data) :]
            self.serve_all()
            new = self.pull()
            assert new or len(rest) < len(data), "the store does not go on"
            self._input += new
            data = rest

    def take(self) -> list[Reply]:
        """Take all whole messages that the store has for this guest, as it does at an event."""
        replies = []
        while True:
            self.serve_all()
            new = self.pull()
            self._input += new
            while len(self._input) >= 16:
                kind, request, transaction, length = struct.unpack_from("<IIII", self._input)
                if len(self._input) < 16 + length:
                    break
                replies.append(Reply(kind, request, transaction, self._input[16 : 16 + length]))
                self._input = self._input[16 + length :]
            if not new:
                return replies

    def request(self, kind: int, payload: bytes | str, transaction: int = 0) -> Reply:
        """Make a request and give its reply; events go to `events`."""
        self._request += 1
        data = payload.replace("|", "\0").encode() if isinstance(payload, str) else payload
        self.send(message(kind, data, self._request, transaction))
        replies = [reply for reply in self.take() if not self._keep_event(reply)]
        (reply,) = replies
        assert (reply.request, reply.transaction) == (self._request, transaction)
        assert reply.type in (kind, ERROR)
        return reply

    def ask(self, kind: int, payload: bytes | str, transaction: int = 0) -> str:
        """As `request`, but give the reply's payload as text with | for NUL, or the error's name."""
        reply = self.request(kind, payload, transaction)
        text = reply.payload.decode("latin-1")
        return text.removesuffix("\0") if reply.type == ERROR else text.replace("\0", "|")

    def take_events(self) -> list[tuple[str, str]]:
        """Give the events that came up to now."""
        for reply in self.take():
            assert self._keep_event(reply), reply
        events = list(self.events)
        self.events.clear()
        return events

    def _keep_event(self, reply: Reply) -> bool:
        if reply.type != EVENT:
            return False
        assert (reply.request, reply.transaction) == (0, 0)
        path, token, rest = reply.payload.decode().split("\0")
        assert rest == ""
        self.events.append((path, token))
        return True


def errors(guest: Guest, kind: int, payloads: list[bytes | str]) -> list[str]:
    """Give the errors of requests that must all fail."""
    replies = [guest.request(kind, payload) for payload in payloads]
    assert all(reply.type == ERROR for reply in replies)
    return [reply.payload.decode().removesuffix("\0") for reply in replies]

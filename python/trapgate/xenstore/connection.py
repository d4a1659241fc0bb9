"""One guest's connection: its requests are taken from the ring, carried out, and answered in order.

Nothing that a guest sends raises out of here. What it may use is bounded by its quota; with too many answers
that it has not taken, its requests stay in the ring until it takes them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import ClassVar

from trapgate.errors import StoreError
from trapgate.xenstore import tree as operations
from trapgate.xenstore.nodes import Permission, absolute, home
from trapgate.xenstore.outbox import Outbox
from trapgate.xenstore.quota import Actor, Quota
from trapgate.xenstore.ring import ERROR_PROTO, Page, Ring, RingError
from trapgate.xenstore.transaction import Transaction
from trapgate.xenstore.tree import Change, Tree, View
from trapgate.xenstore.watches import Watch, Watches
from trapgate.xenstore.wire import (
    PAYLOAD_MAX,
    Assembler,
    Message,
    MessageType,
    OverlongMessage,
    one_string,
    pack,
    strings,
)

__all__ = ["Connection"]

_OK = b"OK\0"

# Requests that only the toolstack's domain may make, and it has Python for them.
_PRIVILEGED = frozenset(
    {
        MessageType.CONTROL,
        MessageType.INTRODUCE,
        MessageType.RELEASE,
        MessageType.IS_DOMAIN_INTRODUCED,
        MessageType.RESUME,
        MessageType.SET_TARGET,
    }
)
# Their transaction's number is ignored.
_OUTSIDE = frozenset({MessageType.WATCH, MessageType.UNWATCH})


class Connection:
    """A domain that is introduced. Its methods are called with the store's lock held.

    `wake` is called, with the lock held, when there is something to send that the guest did not ask for;
    `notify`, without it, when the guest needs an event.
    """

    def __init__(
        self,
        tree: Tree,
        watches: Watches,
        actor: Actor,
        page: Page,
        notify: Callable[[], object],
        wake: Callable[[Connection], None],
    ) -> None:
        assert actor.quota is not None
        self.actor = actor
        self.notify = notify
        #: What the page's error field says: 0, or why the guest is not served any more.
        self.failure = 0
        self._quota: Quota = actor.quota
        self._tree = tree
        self._watches = watches
        self._wake = wake
        self._ring = Ring(page)
        self._assembler = Assembler()
        self._outbox = Outbox(events_max=2 * self._quota.watches)
        self._own_watches: dict[tuple[str, bytes], Watch] = {}
        self._transactions: dict[int, Transaction] = {}
        self._last_transaction = 0
        # What the request at hand has changed; told after its reply.
        self._changes: list[Change] = []
        self._new_watch: Watch | None = None

    @property
    def pending(self) -> int:
        """Bytes that wait to be sent."""
        return self._outbox.size

    def serve(self, limit: int) -> bool:
        """Carry out up to `limit` requests; say whether more are in the ring that could be carried out now."""
        if self.failure:
            return False
        try:
            return self._serve(limit)
        except RingError as error:
            self._fail(error.error)
        except OverlongMessage:
            self._fail(ERROR_PROTO)
        return False

    def flush(self) -> bool:
        """Send what fits; say whether the guest needs an event for anything since the last call."""
        if not self.failure:
            try:
                self._send()
            except RingError as error:
                self._fail(error.error)
        moved, self._ring.moved = self._ring.moved, False
        return moved

    def deliver(self, watch: Watch, path: str) -> None:
        """Queue an event."""
        self._outbox.event(watch, path)
        self._wake(self)

    def close(self) -> None:
        """Forget the guest's watches, transactions and what was to be sent."""
        self._forget()
        self._outbox.clear()

    def _fail(self, error: int) -> None:
        self.failure = error
        self.close()
        with contextlib.suppress(RingError):
            self._ring.fail(error)

    def _forget(self) -> None:
        for watch in list(self._own_watches.values()):
            self._drop_watch(watch)
        for transaction in self._transactions.values():
            transaction.abort()
        self._transactions.clear()

    def _serve(self, limit: int) -> bool:
        available = self._ring.waiting()
        self._send()
        served = 0
        # With too much outstanding the guest has to read first; it sends an event when it did.
        while len(self._outbox) < self._quota.outstanding:
            if served == limit:
                return available > 0
            message, available = self._receive(available)
            if message is None:
                break
            self._carry_out(message)
            self._send()
            served += 1
        return False

    def _receive(self, available: int) -> tuple[Message | None, int]:
        while (message := self._assembler.next()) is None:
            n = min(self._assembler.missing, available)
            if not n:
                return None, 0
            self._assembler.feed(self._ring.take(n))
            available -= n
        return message, available

    def _send(self) -> None:
        # The guest may make room at any time, and tells so only if it saw a full ring: so look again after
        # every piece.
        while len(self._outbox) and (room := self._ring.room()):
            self._ring.put(self._outbox.take(room))

    def _carry_out(self, message: Message) -> None:
        self._changes = []
        self._new_watch = None
        kind: int = message.type
        try:
            payload = self._answer(message)
            if len(payload) > PAYLOAD_MAX:
                raise StoreError(f"a reply of {len(payload)} bytes does not fit", "E2BIG")
        except StoreError as error:
            kind, payload = MessageType.ERROR, error.code.encode("ascii") + b"\0"
        self._outbox.reply(pack(kind, message.request, message.transaction, payload))
        if self._new_watch is not None:
            self._outbox.event(self._new_watch, self._new_watch.path)
        self._watches.fire(self._changes)

    def _answer(self, message: Message) -> bytes:
        if message.type in _PRIVILEGED:
            raise StoreError("only the toolstack may do this", "EACCES")
        handler = self._HANDLERS.get(message.type)
        if handler is None:
            raise StoreError(f"there is no request {message.type}", "ENOSYS")
        view: View = self._tree
        if message.transaction and message.type not in _OUTSIDE:
            transaction = self._transactions.get(message.transaction)
            if transaction is None:
                raise StoreError(f"there is no transaction {message.transaction}", "ENOENT")
            view = transaction
        return handler(self, view, message)

    def _path(self, given: bytes, special: bool = False) -> str:
        return absolute(self.actor, given.decode("latin-1"), special)

    def _changed(self, view: View, changes: list[Change]) -> bytes:
        if isinstance(view, Transaction):
            view.note(changes)
        else:
            self._changes = changes
        return _OK

    def _directory(self, view: View, message: Message) -> bytes:
        node = operations.visible(view, self.actor, self._path(one_string(message.payload)))
        return b"".join(name.encode("ascii") + b"\0" for name in node.children)

    def _read(self, view: View, message: Message) -> bytes:
        return operations.visible(view, self.actor, self._path(one_string(message.payload))).value

    def _write(self, view: View, message: Message) -> bytes:
        path, end, value = message.payload.partition(b"\0")
        if not end:
            raise StoreError("the path must end with a NUL", "EINVAL")
        return self._changed(view, operations.write(view, self.actor, self._path(path), value))

    def _mkdir(self, view: View, message: Message) -> bytes:
        path = self._path(one_string(message.payload))
        return self._changed(view, operations.make(view, self.actor, path))

    def _rm(self, view: View, message: Message) -> bytes:
        path = self._path(one_string(message.payload))
        return self._changed(view, operations.remove(view, self.actor, path))

    def _get_perms(self, view: View, message: Message) -> bytes:
        path = self._path(one_string(message.payload), special=True)
        node = operations.visible(view, self.actor, path)
        return b"".join(f"{entry}\0".encode("ascii") for entry in node.permissions)

    def _set_perms(self, view: View, message: Message) -> bytes:
        given = strings(message.payload)
        if len(given) < 2:
            raise StoreError("a path and permissions are needed", "EINVAL")
        # Their number first: a message has room for a thousand.
        if len(given) - 1 > self._quota.permissions:
            raise StoreError(f"{self._quota.permissions} permissions are allowed", "ENOSPC")
        path = self._path(given[0], special=True)
        entries = [Permission.parse(text.decode("latin-1")) for text in given[1:]]
        return self._changed(view, operations.set_permissions(view, self.actor, path, entries))

    def _watch_key(self, message: Message) -> tuple[str, bytes, bool]:
        given = strings(message.payload)
        if len(given) != 2:
            raise StoreError("a path and a token are needed", "EINVAL")
        relative = not given[0].startswith((b"/", b"@"))
        return self._path(given[0], special=True), given[1], relative

    def _watch(self, _view: View, message: Message) -> bytes:
        path, token, relative = self._watch_key(message)
        if (path, token) in self._own_watches:
            raise StoreError(f"{path}: there is such a watch", "EEXIST")
        if len(self._own_watches) >= self._quota.watches:
            raise StoreError(f"{self._quota.watches} watches are allowed", "E2BIG")
        memory = len(path) + len(token)
        self._tree.ledger.check(self.actor, memory=memory)
        self._tree.ledger.charge(self.actor.domid, memory=memory)
        watch = Watch(self, path, token, cut=len(home(self.actor.domid)) + 1 if relative else 0)
        self._own_watches[path, token] = watch
        self._watches.add(watch)
        self._new_watch = watch
        return _OK

    def _unwatch(self, _view: View, message: Message) -> bytes:
        path, token, _ = self._watch_key(message)
        watch = self._own_watches.get((path, token))
        if watch is None:
            raise StoreError(f"{path}: there is no such watch", "ENOENT")
        self._drop_watch(watch)
        return _OK

    def _drop_watch(self, watch: Watch) -> None:
        del self._own_watches[watch.path, watch.token]
        self._watches.remove(watch)
        self._tree.ledger.charge(self.actor.domid, memory=-len(watch.path) - len(watch.token))

    def _reset_watches(self, _view: View, _message: Message) -> bytes:
        self._forget()
        return _OK

    def _transaction_start(self, _view: View, message: Message) -> bytes:
        if message.transaction:
            raise StoreError("a transaction cannot be part of another", "EBUSY")
        if len(self._transactions) >= self._quota.transactions:
            raise StoreError(f"{self._quota.transactions} transactions are allowed", "ENOSPC")
        number = self._last_transaction
        while True:
            number = number % 0xFFFFFFFF + 1
            if number not in self._transactions:
                break
        self._last_transaction = number
        self._transactions[number] = Transaction(self._tree, self.actor)
        return b"%d\0" % number

    def _transaction_end(self, view: View, message: Message) -> bytes:
        verdict = one_string(message.payload)
        if verdict not in (b"T", b"F"):
            raise StoreError("a transaction ends with T or F", "EINVAL")
        if not isinstance(view, Transaction):
            raise StoreError("there is no transaction 0", "ENOENT")
        del self._transactions[message.transaction]
        if verdict == b"T":
            self._changes = view.commit()
        else:
            view.abort()
        return _OK

    def _get_domain_path(self, _view: View, message: Message) -> bytes:
        given = one_string(message.payload)
        if not given.isdigit() or len(given) > 5 or int(given) > 0xFFFF:
            raise StoreError("a domain's number is needed", "EINVAL")
        return home(int(given)).encode("ascii") + b"\0"

    _HANDLERS: ClassVar[dict[int, Callable[[Connection, View, Message], bytes]]] = {
        MessageType.DIRECTORY: _directory,
        MessageType.READ: _read,
        MessageType.GET_PERMS: _get_perms,
        MessageType.WATCH: _watch,
        MessageType.UNWATCH: _unwatch,
        MessageType.TRANSACTION_START: _transaction_start,
        MessageType.TRANSACTION_END: _transaction_end,
        MessageType.GET_DOMAIN_PATH: _get_domain_path,
        MessageType.WRITE: _write,
        MessageType.MKDIR: _mkdir,
        MessageType.RM: _rm,
        MessageType.SET_PERMS: _set_perms,
        MessageType.RESET_WATCHES: _reset_watches,
    }

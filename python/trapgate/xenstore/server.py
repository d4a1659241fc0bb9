"""The store itself: all domains' connections over one tree, and the toolstack's side in Python.

It knows nothing of a virtual machine: a domain is a number, a page to read and write, and a function that
sends it an event. Any thread may call; the store's lock is never held while functions from outside run.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from trapgate.errors import ConfigError, StateError
from trapgate.xenstore import tree as operations
from trapgate.xenstore.connection import Connection
from trapgate.xenstore.editor import TOOLSTACK, Editor
from trapgate.xenstore.nodes import DOMAIN_MAX, absolute
from trapgate.xenstore.quota import Account, Actor, Quota
from trapgate.xenstore.ring import Page
from trapgate.xenstore.transaction import Transaction
from trapgate.xenstore.tree import Change, Tree, View
from trapgate.xenstore.watches import Watch, Watches

__all__ = ["PythonWatch", "StoreTransaction", "XenStore"]

# Requests that one connection gets before those of Python's watches are called that they concern.
_SLICE = 16
# Calls that may wait while another thread makes some, before guests have to wait, too; and calls after which a
# thread goes on with its own work, whatever the others add.
_CALLS_MAX = 4096
_CALLS_TURN = 1 << 16


class PythonWatch:
    """A watch that calls a function; as a context manager it is cancelled at the end."""

    #: For whom it listens.
    actor = TOOLSTACK

    def __init__(self, store: XenStore, path: str, callback: Callable[[str], object]) -> None:
        self.path = path
        self.active = True
        self.callback = callback
        self._store = store
        self._watch = Watch(self, path, b"")

    def cancel(self) -> None:
        """End the watch: the function is not called any more. A second time does nothing."""
        self._store._cancel(self, self._watch)
        # What it is bound to need not wait for the garbage collector, who finds the watch.
        self.callback = _ignore

    def deliver(self, _watch: Watch, path: str) -> None:
        """Queue an event."""
        self._store._call_later(self, path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()


class StoreTransaction(Editor):
    """A transaction of the toolstack: nobody sees its changes before it ends, and then all of them.

    As a context manager it is committed at the end, or aborted if the block raises. A method of an ended one
    raises `StateError`.
    """

    def __init__(self, store: XenStore) -> None:
        super().__init__(store._lock)
        self._store = store
        self._transaction: Transaction | None = Transaction(store._tree, TOOLSTACK)

    def commit(self) -> None:
        """Put the changes in place; raises `StoreError` (EAGAIN) if something it looked at has changed."""
        self._store._edit(lambda _view: self._end().commit())

    def abort(self) -> None:
        """Forget the changes."""
        with self._lock:
            self._end().abort()

    def _view(self) -> Transaction:
        if self._transaction is None:
            raise StateError("the transaction has ended")
        return self._transaction

    def _edit(self, edit: Callable[[View], list[Change]]) -> None:
        with self._lock:
            view = self._view()
            view.note(edit(view))

    def _end(self) -> Transaction:
        transaction = self._view()
        self._transaction = None
        return transaction

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._transaction is None:
            return
        if kind is None:
            self.commit()
        else:
            self.abort()


class XenStore(Editor):
    """A XenStore. `quota` is for each guest.

    Functions given to `watch` are called one after the other and in the order of the changes, after the
    change stands, by the thread that made it or by one that is calling already; they may use the store. What
    they raise comes out of the method that called them, and the calls that still wait are made by the next.
    """

    def __init__(self, quota: Quota | None = None) -> None:
        super().__init__(threading.RLock())
        self._quota = Quota() if quota is None else quota
        self._tree = Tree()
        self._watches = Watches()
        self._connections: dict[int, Connection] = {}
        # Guests that have to be sent something, and calls to be made; both in order and without repetition.
        self._awake: dict[Connection, None] = {}
        self._calls: dict[tuple[PythonWatch, str], None] = {}
        self._calling = False

    def introduce(
        self, domid: int, page: Page, notify: Callable[[], object], *, quota: Quota | None = None
    ) -> None:
        """Begin to serve a domain (INTRODUCE), 1 to 32751, by a page that it shares.

        `notify` has to send the domain an event; it is called after anything moved in the page, by any thread.
        The page's indices are taken as they stand. Raises `ConfigError` for another number, `StateError` for
        a domain that is served already, `RingError` if the page cannot be used.
        """
        if not 1 <= domid <= DOMAIN_MAX:
            raise ConfigError(f"the domain's number is {domid}; it must be 1 to {DOMAIN_MAX}")
        with self._lock:
            if domid in self._connections:
                raise StateError(f"domain {domid} is introduced already")
            actor = Actor(domid, self._quota if quota is None else quota)
            self._connections[domid] = Connection(self._tree, self._watches, actor, page, notify, self._wake)
            self._announce("@introduceDomain")
        self._settle()

    def release(self, domid: int) -> None:
        """Stop serving a domain that is gone (RELEASE): its watches, transactions and nodes go with it.

        What it owned is removed, and its number leaves the permissions of other nodes, so that a later domain
        of the same number finds nothing. Raises `StateError` if it is not introduced.
        """
        with self._lock:
            self._connection(domid).close()
            self._awake.pop(self._connections.pop(domid), None)
            for path in self._tree.paths():
                self._disown(path, domid)
            self._announce("@releaseDomain")
        self._settle()

    def introduced(self, domid: int) -> bool:
        """Whether a domain is being served (IS_DOMAIN_INTRODUCED), one that was given up included."""
        with self._lock:
            return domid in self._connections

    def failure(self, domid: int) -> int:
        """Give why a domain is not served any more: 0 if it is, else Xen's number in the page's error field.

        1 the page cannot be used, 2 wild indices, 3 an overlong message. Raises `StateError` if it is not
        introduced.
        """
        with self._lock:
            return self._connection(domid).failure

    def usage(self, domid: int) -> Account:
        """Give what a domain has: nodes that it owns, and bytes that count for its memory quota."""
        with self._lock:
            return self._tree.ledger.of(domid)

    def serve(self, domid: int, limit: int = 64) -> bool:
        """Carry out up to `limit` requests of a domain, at least 1; call it at every event of the domain.

        Returns whether more could be carried out at once: then call again, perhaps after others had their
        turn. Raises `StateError` for a domain that is not introduced; nothing that a guest does raises.
        """
        if limit < 1:
            raise ConfigError(f"the limit is {limit}; at least one request must be allowed")
        with self._lock:
            connection = self._connection(domid)
        more = True
        while more and limit > 0:
            with self._lock:
                # What a watch calls may have released it.
                if self._connections.get(domid) is not connection:
                    return False
                if len(self._calls) < _CALLS_MAX:
                    more = connection.serve(min(limit, _SLICE))
                    self._wake(connection)
            limit -= _SLICE
            self._settle()
        return more

    def watch(self, path: str, callback: Callable[[str], object]) -> PythonWatch:
        """Call a function with the path of every change at a node and below: made, changed, removed (WATCH).

        As with Xen it is called once at the beginning, with `path` itself, and changes that come close
        together may give one call; it has to look what is there. The path may be @introduceDomain or
        @releaseDomain. Raises `StoreError` (EINVAL).
        """
        whole = absolute(TOOLSTACK, path, special=True)
        watch = PythonWatch(self, whole, callback)
        with self._lock:
            self._watches.add(watch._watch)
            self._call_later(watch, whole)
        self._settle()
        return watch

    def transaction(self) -> StoreTransaction:
        """Begin a transaction, best in a `with` statement."""
        with self._lock:
            return StoreTransaction(self)

    def _view(self) -> Tree:
        return self._tree

    def _edit(self, edit: Callable[[View], list[Change]]) -> None:
        with self._lock:
            self._watches.fire(edit(self._tree))
        self._settle()

    def _connection(self, domid: int) -> Connection:
        connection = self._connections.get(domid)
        if connection is None:
            raise StateError(f"domain {domid} is not introduced")
        return connection

    def _disown(self, path: str, domid: int) -> None:
        node = self._tree.get(path)
        if node is None:
            return
        if node.owner == domid and path != "/":
            self._watches.fire(operations.remove(self._tree, TOOLSTACK, path))
        elif any(entry.domid == domid for entry in node.permissions[1:]):
            kept = (node.permissions[0], *(e for e in node.permissions[1:] if e.domid != domid))
            operations.set_permissions(self._tree, TOOLSTACK, path, kept)

    def _announce(self, name: str) -> None:
        node = self._tree.get(name)
        if node is not None:
            self._watches.fire([Change(name, exact=True, before=(), after=node.permissions, above=())])

    def _wake(self, connection: Connection) -> None:
        self._awake[connection] = None

    def _call_later(self, watch: PythonWatch, path: str) -> None:
        self._calls[watch, path] = None

    def _cancel(self, handle: PythonWatch, watch: Watch) -> None:
        with self._lock:
            if handle.active:
                handle.active = False
                self._watches.remove(watch)

    def _settle(self) -> None:
        """Send what waits, then call Python's watches, until there is nothing more; without the lock."""
        for _ in range(_CALLS_TURN):
            self._send()
            with self._lock:
                if self._calling or not self._calls:
                    return
                watch, path = next(iter(self._calls))
                del self._calls[watch, path]
                self._calling = True
            try:
                if watch.active:
                    watch.callback(path)
            finally:
                with self._lock:
                    self._calling = False

    def _send(self) -> None:
        with self._lock:
            awake = [connection for connection in self._awake if connection.flush()]
            self._awake.clear()
        for connection in awake:
            connection.notify()


def _ignore(_path: str) -> None:
    """Stand for the function of a watch that has ended."""

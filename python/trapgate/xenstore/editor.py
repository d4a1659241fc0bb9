"""What the toolstack does with nodes from Python, directly or within a transaction."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable

from trapgate.xenstore import tree as operations
from trapgate.xenstore.nodes import Permission, absolute, parse_permissions
from trapgate.xenstore.quota import Actor
from trapgate.xenstore.tree import Change, View

__all__ = ["TOOLSTACK", "Editor", "Value"]

#: The toolstack's domain, which may do everything and has no quota.
TOOLSTACK = Actor(0, None)

#: What may be written: bytes, text (stored as UTF-8), or a number (stored in decimal).
Value = bytes | str | int


def _bytes(value: Value) -> bytes:
    if isinstance(value, bytes):
        return value
    return str(int(value) if isinstance(value, int) else value).encode()


class Editor(ABC):
    """Nodes by whole path, such as /local/domain/1/name, with the rights of domain 0.

    Every method raises `StoreError`, whose `code` is Xen's name of the reason: EINVAL for what is not a path,
    ENOENT for a node that is not there. Values are bytes, as guests may write any.
    """

    def __init__(self, lock: threading.RLock) -> None:
        self._lock = lock

    @abstractmethod
    def _view(self) -> View:
        """Give the nodes to work on; called with the lock held."""

    @abstractmethod
    def _edit(self, edit: Callable[[View], list[Change]]) -> None:
        """Take the lock, make changes, and see to it that watches hear of them."""

    def read(self, path: str) -> bytes:
        """Give a node's value (READ)."""
        whole = absolute(TOOLSTACK, path)
        with self._lock:
            return operations.visible(self._view(), TOOLSTACK, whole).value

    def get(self, path: str) -> bytes | None:
        """Give a node's value, or None if there is no such node."""
        whole = absolute(TOOLSTACK, path)
        with self._lock:
            node = self._view().get(whole)
        return None if node is None else node.value

    def exists(self, path: str) -> bool:
        """Whether there is such a node."""
        return self.get(path) is not None

    def list(self, path: str) -> list[str]:
        """Give the names of a node's children, in the order in which they came (DIRECTORY)."""
        whole = absolute(TOOLSTACK, path)
        with self._lock:
            return list(operations.visible(self._view(), TOOLSTACK, whole).children)

    def write(self, path: str, value: Value) -> None:
        """Set a node's value, at most 4096 bytes (else E2BIG); it and those above are made if need be (WRITE)."""
        whole = absolute(TOOLSTACK, path)
        data = _bytes(value)
        self._edit(lambda view: operations.write(view, TOOLSTACK, whole, data))

    def mkdir(self, path: str) -> None:
        """Make an empty node and those above it; one that is there stays as it is (MKDIR)."""
        whole = absolute(TOOLSTACK, path)
        self._edit(lambda view: operations.make(view, TOOLSTACK, whole))

    def rm(self, path: str) -> None:
        """Take a node away with all below it (RM).

        That it is not there is fine if the node above is (else ENOENT); "/" cannot be removed (EINVAL).
        """
        whole = absolute(TOOLSTACK, path)
        self._edit(lambda view: operations.remove(view, TOOLSTACK, whole))

    def permissions(self, path: str) -> tuple[Permission, ...]:
        """Give a node's permissions: the owner with what everybody may do, then single domains (GET_PERMS)."""
        whole = absolute(TOOLSTACK, path, special=True)
        with self._lock:
            return operations.visible(self._view(), TOOLSTACK, whole).permissions

    def set_permissions(self, path: str, permissions: str | Iterable[str | Permission]) -> None:
        """Set a node's permissions, as text "n0,r1" or one by one (SET_PERMS); EINVAL for what cannot be read."""
        whole = absolute(TOOLSTACK, path, special=True)
        entries = parse_permissions(permissions if isinstance(permissions, str) else map(str, permissions))
        self._edit(lambda view: operations.set_permissions(view, TOOLSTACK, whole, entries))

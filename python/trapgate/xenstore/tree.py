"""The nodes of the store, and what can be done with them by whom.

The operations work on a `View`: the tree itself, or a transaction that lies over it. Each looks at all that it
needs and at the quotas before it changes anything, so that what fails leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from trapgate.errors import StoreError
from trapgate.xenstore.nodes import Access, Node, Permission, ancestors, base, child, parent
from trapgate.xenstore.quota import Actor, Ledger
from trapgate.xenstore.wire import PAYLOAD_MAX

__all__ = ["Change", "Tree", "View", "find", "make", "remove", "set_permissions", "visible", "write"]

_NOBODY: tuple[Permission, ...] = (Permission(0, Access.NONE),)


@dataclass(frozen=True, slots=True)
class Change:
    """Something that watches may want to know.

    `exact` changes are for watches of this very path: they are the parts of a larger one. The permissions of
    the node before and after, and those of its parent, say who may hear of it; no permissions are those of a
    node that is not there.
    """

    path: str
    exact: bool
    before: tuple[Permission, ...]
    after: tuple[Permission, ...]
    above: tuple[Permission, ...]


class View(Protocol):
    """Nodes by path, as the operations see them."""

    def get(self, path: str) -> Node | None:
        """Give a node, or None; a transaction raises `StoreError` (ENOSPC) if it has touched too many."""
        ...

    def peek(self, path: str) -> Node | None:
        """Give a node, or None, where nothing depends on what it says."""
        ...

    def put(self, path: str, node: Node) -> None:
        """Store a node whose path was asked for before."""
        ...

    def delete(self, path: str) -> None:
        """Take a node away whose path was asked for before; its parent's list is the caller's affair."""
        ...

    def check(self, actor: Actor, nodes: int, memory: int) -> None:
        """Raise `StoreError` (ENOSPC) when the actor must not have so much more."""
        ...


class Tree:
    """All nodes, the number of changes so far, and what each domain owns."""

    def __init__(self) -> None:
        self._nodes: dict[str, Node] = {}
        #: Counts the changes; a node carries the number of the change that stored it.
        self.generation = 0
        #: What domains use, their watches and transactions included.
        self.ledger = Ledger()
        for path in ("/", "@introduceDomain", "@releaseDomain"):
            self.put(path, Node(b"", _NOBODY))

    def __len__(self) -> int:
        return len(self._nodes)

    def get(self, path: str) -> Node | None:
        """Give a node, or None."""
        return self._nodes.get(path)

    peek = get

    def put(self, path: str, node: Node) -> None:
        """Store a node, new or changed."""
        self.delete(path)
        self._nodes[path] = replace(node, generation=self.generation)
        self.ledger.charge(node.owner, nodes=1, memory=node.cost(path))

    def delete(self, path: str) -> None:
        """Take a node away if it is there."""
        self.generation += 1
        old = self._nodes.pop(path, None)
        if old is not None:
            self.ledger.charge(old.owner, nodes=-1, memory=-old.cost(path))

    def check(self, actor: Actor, nodes: int, memory: int) -> None:
        """Raise `StoreError` (ENOSPC) when the actor must not have so much more."""
        self.ledger.check(actor, nodes, memory)

    def paths(self) -> list[str]:
        """Give all paths."""
        return list(self._nodes)


def find(view: View, actor: Actor, path: str, need: Access) -> Node | None:
    """Give a node with which the actor may do all of `need`, or None if it is not there.

    Who may not know that it is not there gets `StoreError` (EACCES), as for one that must not be touched: the
    nearest node above decides.
    """
    node = view.get(path)
    if node is not None:
        allowed = (node.access(actor) & need) == need
    elif actor.quota is None:
        allowed = True
    else:
        above = next(found for found in map(view.get, ancestors(path)) if found is not None)
        allowed = bool(above.access(actor) & need)
    if not allowed:
        raise StoreError(f"{path}: domain {actor.domid} may not do this", "EACCES")
    return node


def visible(view: View, actor: Actor, path: str) -> Node:
    """Give a node that the actor may read; raises `StoreError` (ENOENT, EACCES)."""
    node = find(view, actor, path, Access.READ)
    if node is None:
        raise StoreError(f"{path}: there is no such node", "ENOENT")
    return node


def write(view: View, actor: Actor, path: str, value: bytes) -> list[Change]:
    """Set a value; the node and those above it are made if they are not there.

    Raises `StoreError`: EACCES, ENOSPC by quota, E2BIG for a value that no message can carry.
    """
    if len(value) > PAYLOAD_MAX:
        raise StoreError(f"{path}: a value of {len(value)} bytes; at most {PAYLOAD_MAX} fit", "E2BIG")
    node = find(view, actor, path, Access.WRITE)
    if node is None:
        return _create(view, actor, path, value)
    changed = replace(node, value=value)
    _check_sizes(view, actor, [(path, node, changed)])
    view.put(path, changed)
    return [_change(view, path, node, changed)]


def make(view: View, actor: Actor, path: str) -> list[Change]:
    """Make an empty node and those above it; one that is there stays as it is. Raises as `write` does."""
    if find(view, actor, path, Access.WRITE) is not None:
        return []
    return _create(view, actor, path, b"")


def remove(view: View, actor: Actor, path: str) -> list[Change]:
    """Take a node away with all below it; none there is fine if its parent is.

    Raises `StoreError`: EINVAL for "/", EACCES, ENOENT.
    """
    if path == "/":
        raise StoreError("/: the root cannot be removed", "EINVAL")
    node = find(view, actor, path, Access.WRITE)
    above = view.get(parent(path))
    if node is None:
        if above is None:
            raise StoreError(f"{parent(path)}: there is no such node", "ENOENT")
        return []
    gone = _with_all_below(view, path, node)
    # A transaction that will have to be tried again may see a node whose parent is gone.
    if above is not None:
        view.put(parent(path), replace(above, children=tuple(n for n in above.children if n != base(path))))
    for name, _ in gone:
        view.delete(name)
    allowed = () if above is None else above.permissions
    return [
        Change(name, name != path, old.permissions, (), allowed if name == path else ()) for name, old in gone
    ]


def set_permissions(view: View, actor: Actor, path: str, entries: Sequence[Permission]) -> list[Change]:
    """Set a node's permissions; only its owner may, and nobody but the toolstack gives it to another.

    Raises `StoreError`: EINVAL, ENOSPC for too many entries, EACCES, ENOENT, EPERM.
    """
    if not entries:
        raise StoreError(f"{path}: a node's permissions need at least the owner", "EINVAL")
    if actor.quota is not None and len(entries) > actor.quota.permissions:
        raise StoreError(
            f"{path}: {len(entries)} permissions; {actor.quota.permissions} are allowed", "ENOSPC"
        )
    node = find(view, actor, path, Access.WRITE | Access.OWNER)
    if node is None:
        raise StoreError(f"{path}: there is no such node", "ENOENT")
    if actor.quota is not None and entries[0].domid != node.owner:
        raise StoreError(f"{path}: domain {actor.domid} may not give the node away", "EPERM")
    changed = replace(node, permissions=tuple(entries))
    _check_sizes(view, actor, [(path, node, changed)])
    view.put(path, changed)
    return [_change(view, path, node, changed)]


def _create(view: View, actor: Actor, path: str, value: bytes) -> list[Change]:
    missing = [path]
    above = parent(path)
    while (there := view.get(above)) is None:
        missing.append(above)
        above = parent(above)
    # Permissions are inherited, but what a guest makes is its own.
    permissions = there.permissions
    if actor.quota is not None:
        permissions = (replace(permissions[0], domid=actor.domid), *permissions[1:])
    steps: list[tuple[str, Node | None, Node]] = [
        (above, there, replace(there, children=(*there.children, base(missing[-1]))))
    ]
    for at in reversed(range(len(missing))):
        below = (base(missing[at - 1]),) if at else ()
        steps.append((missing[at], None, Node(b"" if at else value, permissions, below)))
    _check_sizes(view, actor, steps)
    for name, _, node in steps:
        view.put(name, node)
    # One event is enough: whoever watches a node above hears of it too.
    return [_change(view, path, None, steps[-1][2])]


def _check_sizes(view: View, actor: Actor, steps: Sequence[tuple[str, Node | None, Node]]) -> None:
    if actor.quota is None:
        return
    nodes = memory = 0
    for path, old, new in steps:
        if new.size > actor.quota.node_size and (old is None or new.size > old.size):
            raise StoreError(f"{path}: {new.size} bytes; {actor.quota.node_size} are allowed", "ENOSPC")
        if new.owner == actor.domid:
            nodes += old is None
            memory += new.cost(path) - (0 if old is None else old.cost(path))
    view.check(actor, nodes, memory)


def _change(view: View, path: str, old: Node | None, new: Node) -> Change:
    above = view.peek(parent(path))
    return Change(
        path,
        exact=False,
        before=() if old is None else old.permissions,
        after=new.permissions,
        above=() if above is None else above.permissions,
    )


def _with_all_below(view: View, path: str, node: Node) -> list[tuple[str, Node]]:
    """Give a node and those below it, children before their parents."""
    found = [(path, node)]
    at = 0
    while at < len(found):
        name, node = found[at]
        at += 1
        below = [child(name, last) for last in node.children]
        # Only a transaction that will have to be tried again sees a child that is not there.
        found += [(path, there) for path in below if (there := view.get(path)) is not None]
    found.reverse()
    return found

"""Transactions: what they touch is copied at the first touch, changes stay here, and the end puts them in place.

The end fails with EAGAIN if any node that was touched has changed meanwhile, for then the transaction saw a
store that never was. Whoever began it has to try again, so no transaction can hold up another domain.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from trapgate.errors import StoreError
from trapgate.xenstore.nodes import Node
from trapgate.xenstore.quota import Actor, Ledger
from trapgate.xenstore.tree import Change, Tree

__all__ = ["Transaction"]


@dataclass(slots=True)
class _Touched:
    """A node as it is in the transaction, and the generation that it had outside; 0 is for none."""

    node: Node | None
    seen: int
    cost: int
    changed: bool = False


class Transaction:
    """A view of the tree with changes that nobody else sees yet.

    The one who began it pays memory for every node that it touches, until the end.
    """

    def __init__(self, tree: Tree, actor: Actor) -> None:
        self._tree = tree
        self._actor = actor
        self._touched: dict[str, _Touched] = {}
        # What domains would own more or less of after the end.
        self._pending = Ledger()
        self._made = False
        # For the watches, by path and in the order of the first change.
        self._changes: dict[str, Change] = {}

    def __len__(self) -> int:
        return len(self._touched)

    def get(self, path: str) -> Node | None:
        """Give a node, or None; raises `StoreError` (ENOSPC) when too many have been touched."""
        touched = self._touched.get(path)
        if touched is not None:
            return touched.node
        quota = self._actor.quota
        if quota is not None and len(self._touched) >= quota.transaction_nodes:
            raise StoreError(f"a transaction may touch {quota.transaction_nodes} nodes", "ENOSPC")
        node = self._tree.get(path)
        cost = len(path) if node is None else node.cost(path)
        pending = self._pending.of(self._actor.domid)
        self._tree.ledger.check(self._actor, memory=cost, pending=pending)
        self._tree.ledger.charge(self._actor.domid, memory=cost)
        self._touched[path] = _Touched(node, 0 if node is None else node.generation, cost)
        return node

    def peek(self, path: str) -> Node | None:
        """Give a node, or None, without touching it."""
        touched = self._touched.get(path)
        return self._tree.get(path) if touched is None else touched.node

    def put(self, path: str, node: Node) -> None:
        """Store a node that was touched."""
        touched = self._touched[path]
        self._replace(path, touched, node)
        self._pending.charge(node.owner, nodes=1, memory=node.cost(path))

    def delete(self, path: str) -> None:
        """Take away a node that was touched."""
        self._replace(path, self._touched[path], None)

    def _replace(self, path: str, touched: _Touched, node: Node | None) -> None:
        old = touched.node
        if old is not None:
            self._pending.charge(old.owner, nodes=-1, memory=-old.cost(path))
        elif node is not None:
            self._made = True
        touched.node = node
        touched.changed = True

    def check(self, actor: Actor, nodes: int, memory: int) -> None:
        """Raise `StoreError` (ENOSPC) when the actor must not have so much more, with what is here already."""
        self._tree.ledger.check(actor, nodes, memory, self._pending.of(actor.domid))

    def note(self, changes: list[Change]) -> None:
        """Keep what the watches have to hear at the end; of several changes of a node they hear once."""
        for change in changes:
            earlier = self._changes.get(change.path)
            if earlier is not None:
                change = replace(change, exact=earlier.exact and change.exact, before=earlier.before)
            self._changes[change.path] = change

    def commit(self) -> list[Change]:
        """End the transaction and put its changes in place; give what the watches have to hear.

        Raises `StoreError`, and nothing is changed: EAGAIN if it has to be tried again, ENOSPC if its domain
        used up its quota meanwhile.
        """
        self.abort()
        for path, touched in self._touched.items():
            now = self._tree.get(path)
            if (0 if now is None else now.generation) != touched.seen:
                raise StoreError(f"{path} was changed during the transaction; try again", "EAGAIN")
        if self._made:
            pending = self._pending.of(self._actor.domid)
            self._tree.check(self._actor, pending.nodes, pending.memory)
        for path, touched in self._touched.items():
            if not touched.changed:
                continue
            if touched.node is None:
                self._tree.delete(path)
            else:
                self._tree.put(path, touched.node)
        return list(self._changes.values())

    def abort(self) -> None:
        """End the transaction without a trace."""
        for touched in self._touched.values():
            self._tree.ledger.charge(self._actor.domid, memory=-touched.cost)
            touched.cost = 0

"""How much of XenStore a guest may use, and the accounts of what it uses.

Without these a guest could fill the host's memory by writing nodes. The toolstack (domain 0) has no limits.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from trapgate.errors import ConfigError, StoreError

__all__ = ["Account", "Actor", "Ledger", "Quota"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """Limits of one guest, by default those of xenstored. Each is a whole number of at least 1.

    Raises `ConfigError` for anything else.
    """

    #: Nodes that it owns.
    nodes: int = 1000
    #: Watches that are set.
    watches: int = 128
    #: Replies and events that it has not taken; with so many its requests wait.
    outstanding: int = 20
    #: Bytes of names and values: nodes that it owns, watches, and what its open transactions touch.
    memory: int = 5 << 19
    #: Transactions open at once.
    transactions: int = 10
    #: Nodes that one transaction touches.
    transaction_nodes: int = 1024
    #: Entries in one node's list of permissions.
    permissions: int = 5
    #: Characters of a whole path.
    path: int = 3072
    #: Characters of a path below /local/domain/<own number>, as the guest gives it.
    relative_path: int = 2048
    #: Bytes of one node: value, names of children with a NUL each, and 8 for each permission.
    node_size: int = 2048

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(
                    f"the quota {field.name} is {value!r}; it must be a whole number of at least 1"
                )


@dataclass(frozen=True, slots=True)
class Actor:
    """Who asks: a domain and its limits; None is for the toolstack, which may do all."""

    domid: int
    quota: Quota | None = None


@dataclass(slots=True)
class Account:
    """What a domain has: nodes that it owns, and bytes of memory."""

    nodes: int = 0
    memory: int = 0


class Ledger:
    """The accounts of all domains; a transaction has a second one with the changes that it would make."""

    def __init__(self) -> None:
        self._accounts: dict[int, Account] = {}

    def of(self, domid: int) -> Account:
        """Give a copy of a domain's account."""
        account = self._accounts.get(domid)
        return Account() if account is None else Account(account.nodes, account.memory)

    def charge(self, domid: int, nodes: int = 0, memory: int = 0) -> None:
        """Add to an account, or take from it with negative numbers."""
        account = self._accounts.setdefault(domid, Account())
        account.nodes += nodes
        account.memory += memory
        if account.nodes == 0 and account.memory == 0:
            del self._accounts[domid]

    def add(self, other: Ledger) -> None:
        """Add all accounts of another ledger to these."""
        for domid, account in list(other._accounts.items()):
            self.charge(domid, account.nodes, account.memory)

    def check(self, actor: Actor, nodes: int = 0, memory: int = 0, pending: Account | None = None) -> None:
        """Raise `StoreError` (ENOSPC) when the actor must not have so much more; what shrinks is always allowed.

        `pending` is what the actor's transaction has added already.
        """
        quota = actor.quota
        if quota is None:
            return
        have = self.of(actor.domid)
        if pending is not None:
            have = Account(have.nodes + pending.nodes, have.memory + pending.memory)
        if nodes > 0 and have.nodes + nodes > quota.nodes:
            raise StoreError(f"domain {actor.domid} may own {quota.nodes} nodes", "ENOSPC")
        if memory > 0 and have.memory + memory > quota.memory:
            raise StoreError(f"domain {actor.domid} may use {quota.memory} bytes of the store", "ENOSPC")

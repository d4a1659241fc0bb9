"""What a guest may do beside computing: which hypercalls it may make, and to which domains it may have channels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from trapgate.errors import ConfigError
from trapgate.xenstore.nodes import DOMAIN_MAX

if TYPE_CHECKING:
    from trapgate.config import Machine
    from trapgate.para.hypercalls import Handler, Hypercall
    from trapgate.vm import VM

__all__ = ["Admission", "Enforcement", "Permissions"]


@dataclass(frozen=True, kw_only=True)
class Permissions:
    """What a guest may do; by default everything.

    >>> Permissions(forbidden={"grant_table_op"}, events={2})  # doctest: +SKIP
    """

    #: Names of the hypercalls that it may make (as in `vm.hypercalls`); None is for all. Others end with EPERM.
    hypercalls: frozenset[str] | None = None
    #: Names of hypercalls that it may not make, whatever `hypercalls` says.
    forbidden: frozenset[str] = frozenset()
    #: Numbers of the domains that it may have event channels to, beside itself and domain 0, whose back-ends serve
    #: it; None is for all. To others it cannot make channels, and sending by one that it has fails, with EPERM.
    events: frozenset[int] | None = None

    def __post_init__(self) -> None:
        for name in ("hypercalls", "forbidden", "events"):
            value = getattr(self, name)
            if value is None and name != "forbidden":
                continue
            if isinstance(value, str) or not isinstance(value, Iterable):
                raise ConfigError(f"the permissions' {name} is {value!r}; it must be a set")
            object.__setattr__(self, name, frozenset(value))
        calls = (self.hypercalls or frozenset()) | self.forbidden
        if wrong := [call for call in calls if not isinstance(call, str)]:
            raise ConfigError(f"{wrong[0]!r} is no name of a hypercall")
        for domid in self.events or ():
            if not isinstance(domid, int) or isinstance(domid, bool) or not 0 <= domid <= DOMAIN_MAX:
                raise ConfigError(f"{domid!r} is no domain's number; those are 0 to {DOMAIN_MAX}")

    def allows(self, hypercall: str) -> bool:
        """Whether a hypercall of that name may be made."""
        return hypercall not in self.forbidden and (self.hypercalls is None or hypercall in self.hypercalls)

    @property
    def unlimited(self) -> bool:
        """Whether everything is allowed."""
        return self.hypercalls is None and not self.forbidden and self.events is None


class Admission(Protocol):
    """A policy that is asked before a guest is made."""

    def admit(self, name: str, machine: Machine, asked: Permissions) -> Permissions:
        """Give what a guest may do, given what it was to be allowed; raise `NotPermitted` to refuse the guest."""


class Enforcement:
    """Puts a guest's permissions in force, and takes back what it did before."""

    def __init__(self, vm: VM) -> None:
        self._vm = vm
        # Rows that are forbidden from here, and what served them before.
        self._taken: dict[Hypercall, tuple[Handler | None, int | None]] = {}

    @staticmethod
    def check(vm: VM, permissions: Permissions) -> None:
        """Raise `ConfigError` if the permissions make no sense for the machine."""
        if vm.config.mode != "para":
            if not permissions.unlimited:
                raise ConfigError("only a para-virtual guest makes hypercalls that can be forbidden")
            return
        named = permissions.forbidden | (permissions.hypercalls or frozenset())
        if unknown := sorted(named - set(vm.hypercalls)):
            raise ConfigError(f"there is no hypercall {unknown[0]!r}")

    def apply(self, permissions: Permissions) -> None:
        """Put permissions in force from the guest's next call on; raises `ConfigError` for unknown names."""
        self.check(self._vm, permissions)
        if self._vm.config.mode != "para":
            return
        for name, row in self._vm.hypercalls.items():
            if not permissions.allows(name):
                if row not in self._taken:
                    self._taken[row] = (row._handler, row.errno)
                    row.forbid()
            elif row in self._taken:
                row._handler, row.errno = self._taken.pop(row)
                row._apply()
        events = permissions.events
        self._vm.domain._native.set_remotes(None if events is None else sorted(events))

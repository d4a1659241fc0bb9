"""The memory that all guests together may have: who has how much, and who gets more.

What counts for a guest is the larger of what it owns now and what it may grow to; so the sum never exceeds the total,
however slowly a guest follows its target. Of a para-virtual guest that is counted in frames of its domain.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trapgate.config import format_size
from trapgate.errors import CapacityError, ConfigError, StateError

if TYPE_CHECKING:
    from trapgate.config import Machine
    from trapgate.vm import VM

__all__ = ["Balloon", "MemoryUse", "check_target", "require"]

_PAGE = 4096


@dataclass(frozen=True, kw_only=True)
class MemoryUse:
    """What there is for guests, in bytes."""

    #: What all may have together; None is for no limit.
    total: int | None
    #: What is theirs: owned, or promised by a target.
    reserved: int

    @property
    def free(self) -> int | None:
        """What another guest could get; None is for no limit."""
        return None if self.total is None else self.total - self.reserved


def check_target(machine: Machine, target: int) -> None:
    """Raise the error that setting such a target deserves, if it does."""
    if machine.mode != "para":
        if target == machine.memory_bytes:
            return
        raise StateError(
            "the memory of a full guest cannot change: its balloon is a virtio device, which this version does not "
            "have; use mode 'para'"
        )
    if target < _PAGE or target % _PAGE:
        raise ConfigError(f"the memory target is {target} bytes; it must be whole pages of 4 KiB")
    if target > machine.maximum_memory_bytes:
        raise ConfigError(
            f"the memory target is {format_size(target)}; the guest's maximum_memory is "
            f"{format_size(machine.maximum_memory_bytes)}"
        )


class Balloon:
    """The memory of one guest."""

    def __init__(self, vm: VM, target: int) -> None:
        """Take over a new machine, which has what its config says, with a target for what it shall have."""
        self._vm = vm
        self.target = vm.config.memory_bytes
        if vm.config.mode == "para":
            self._limit(self.target)
            if target != self.target:
                self.set(target)

    @property
    def owned(self) -> int:
        """Bytes that the guest has."""
        if self._vm.config.mode != "para":
            return self._vm.config.memory_bytes
        # A machine that is closed counts until its guest has another, or is gone.
        domain = None if self._vm._domain is None else self._vm._domain._native_or_none
        return self.target if domain is None else domain.frames()[0] * _PAGE

    @property
    def reserved(self) -> int:
        """Bytes that it has or may take."""
        return max(self.owned, self.target)

    def set(self, target: int) -> None:
        """Let a para-virtual guest have `target` bytes; its balloon driver follows while it runs."""
        domain = self._vm.domain
        if target > self.target:
            self._limit(target)
            domain.balloon(target)
        else:
            # It may not take back what it is asked to give.
            domain.balloon(target)
            self._limit(target)
        self.target = target

    def _limit(self, size: int) -> None:
        self._vm.domain._native.set_maximum(size // _PAGE)


def require(more: int, total: int | None, reserved: Iterable[int], what: str) -> None:
    """Raise `CapacityError` unless `more` bytes are free."""
    if total is None or more <= 0:
        return
    free = total - sum(reserved)
    if more > free:
        raise CapacityError(
            f"{what} needs {format_size(more)} and {format_size(max(free, 0))} of {format_size(total)} are free; "
            f"lower another guest's memory target, or destroy one"
        )

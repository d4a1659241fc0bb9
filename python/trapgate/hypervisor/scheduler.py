"""What a scheduler is: a policy in Python that says who runs next and for how long.

The hypervisor does the mechanics (threads, slices, wake-ups, clocks) and asks the policy. It calls the policy by one
thread at a time, so that a policy needs no locks; times are nanoseconds of one clock that never goes back. A policy
must not call the hypervisor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from trapgate.errors import ConfigError

__all__ = ["DEFAULT_WEIGHT", "MOST_CAP", "MOST_WEIGHT", "Scheduler", "Turn", "VCpu"]

#: Weights as Xen has them.
DEFAULT_WEIGHT = 256
MOST_WEIGHT = 65535
#: A vCPU uses one CPU at most.
MOST_CAP = 100


class VCpu:
    """A guest's virtual CPU as a scheduler sees it. `weight` and `cap` may change at any time."""

    __slots__ = ("_cap", "_weight", "domid", "name")

    def __init__(self, name: str, domid: int, weight: int = DEFAULT_WEIGHT, cap: int = 0) -> None:
        """Make one; raises `ConfigError` for a weight or cap that cannot be."""
        #: The guest's name and its domain's number.
        self.name = name
        self.domid = domid
        self.weight = weight
        self.cap = cap

    @property
    def weight(self) -> int:
        """The share of CPU time relative to others, 1 to 65535. Raises `ConfigError` when set to another."""
        return self._weight

    @weight.setter
    def weight(self, value: int) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_WEIGHT:
            raise ConfigError(f"the weight is {value!r}; it must be a whole number of 1 to {MOST_WEIGHT}")
        self._weight = value

    @property
    def cap(self) -> int:
        """The most that it may use, in percent of one CPU; 0 is for no limit. Setting raises `ConfigError`."""
        return self._cap

    @cap.setter
    def cap(self, value: int) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST_CAP:
            raise ConfigError(f"the cap is {value!r}; it must be a whole number of 0 to {MOST_CAP} percent")
        self._cap = value

    def __repr__(self) -> str:
        return f"<VCpu {self.name} weight={self.weight} cap={self.cap}>"


@dataclass(frozen=True, slots=True)
class Turn:
    """Who runs next, and for how long at most, in nanoseconds. It gives its CPU back earlier when it blocks."""

    vcpu: VCpu
    nanoseconds: int


@runtime_checkable
class Scheduler(Protocol):
    """A policy. A vCPU comes blocked; from `wake` to `block` it is runnable, and is to be given out by `next`."""

    def start(self, cpus: int, now: int) -> None:
        """Learn how many CPUs there are: threads that run guests. Called again when the hypervisor starts again."""

    def add(self, vcpu: VCpu, now: int) -> None:
        """A vCPU has come."""

    def remove(self, vcpu: VCpu, now: int) -> None:
        """A vCPU is gone; it does not run."""

    def wake(self, vcpu: VCpu, now: int) -> VCpu | None:
        """A vCPU has something to do. Give the running one that is to be interrupted for it, or None."""

    def block(self, vcpu: VCpu, now: int) -> None:
        """A vCPU has nothing to do, or is paused."""

    def next(self, cpu: int, now: int) -> Turn | None:
        """Give out a runnable vCPU to CPU number `cpu`; None: that stays idle until somebody wakes, or `due`.

        What is given out runs, and is not given out again, until `used`.
        """

    def used(self, vcpu: VCpu, nanoseconds: int, now: int) -> None:
        """A vCPU ran and used so much CPU time. It is still runnable; `block` follows if it is not."""

    def due(self, now: int) -> int | None:
        """Give the time at which `next` may give out more though nobody wakes; None if there is none."""

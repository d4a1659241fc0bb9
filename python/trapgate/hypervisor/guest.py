"""A guest of a hypervisor: the handle by which it is looked at and steered while it runs."""

from __future__ import annotations

import enum
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trapgate import config, exits
from trapgate.errors import StateError
from trapgate.goal import reached
from trapgate.hypervisor.memory import Balloon
from trapgate.hypervisor.permissions import Enforcement, Permissions
from trapgate.hypervisor.scheduler import VCpu

if TYPE_CHECKING:
    from trapgate.console import Console
    from trapgate.goal import Until
    from trapgate.hypervisor.hypervisor import Hypervisor
    from trapgate.hypervisor.waits import Wait
    from trapgate.vm import VM

__all__ = ["Event", "Guest", "GuestState", "Happening"]


class GuestState(enum.Enum):
    """What a guest does, in xl's words."""

    #: A CPU runs it.
    RUNNING = "running"
    #: It would run, and waits for a CPU, for its cap, or for the hypervisor to start.
    RUNNABLE = "runnable"
    #: It waits for a timer, for input or for an event.
    BLOCKED = "blocked"
    PAUSED = "paused"
    #: It ended in good order: it powered itself off, or asked for a reset that nobody fulfils.
    SHUTDOWN = "shutdown"
    #: It crashed, or a Python handler of it raised something.
    CRASHED = "crashed"
    DESTROYED = "destroyed"


class Happening(enum.Enum):
    """What can happen to a guest."""

    CREATED = "created"
    PAUSED = "paused"
    RESUMED = "resumed"
    #: It ended, by the exit.
    SHUTDOWN = "shutdown"
    #: It asked for a reset, and has a new machine.
    RESTARTED = "restarted"
    #: It crashed, by the exit, or the error that a handler raised.
    CRASHED = "crashed"
    #: It halted for good: interrupts are off.
    HALTED = "halted"
    DESTROYED = "destroyed"


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened to a guest."""

    kind: Happening
    guest: Guest
    #: The exit by which it ended, and the error, where there is one.
    exit: exits.Exit | None = None
    error: BaseException | None = None


class Guest:
    """A guest; made by `Hypervisor.create`. Everything here may be called by any thread."""

    def __init__(
        self, hypervisor: Hypervisor, name: str, vm: VM, vcpu: VCpu, target: int, *, restart: bool
    ) -> None:
        self._hypervisor = hypervisor
        self.name = name
        #: The machine. After a restart it is another one.
        self.vm = vm
        #: Whether a guest that asks for a reset gets a new machine of the same config.
        self.restart = restart
        #: The exit by which it ended, and the error that ended it, if any.
        self.exit: exits.Exit | None = None
        self.error: BaseException | None = None
        self._vcpu = vcpu
        self._state = GuestState.BLOCKED
        self._paused = False
        # A thread runs a slice of it, and which; something woke it meanwhile; when its timer is due, in nanoseconds.
        self._in_slice = False
        self._thread: int | None = None
        self._woken = False
        # It gets a new machine at the moment.
        self._restarting = False
        self._wants_at: int | None = None
        self._waits: list[Wait] = []
        self._cpu_time = 0
        self._slices = 0
        self._permissions = Permissions()
        self._made_at = time.monotonic()
        self._set_vm(vm, target)

    def _set_vm(self, vm: VM, target: int) -> None:
        self.vm = vm
        self._balloon = Balloon(vm, target)
        self._enforcement = Enforcement(vm)
        vm._guest = self

    # Looking.

    @property
    def config(self) -> config.Machine:
        """What the machine is made of."""
        return self.vm.config

    @property
    def domid(self) -> int:
        """The domain's number."""
        return self._vcpu.domid

    @property
    def state(self) -> GuestState:
        """What it does now."""
        if self._paused and self._state in _ALIVE:
            return GuestState.PAUSED
        return self._state

    @property
    def paused(self) -> bool:
        """Whether it waits for `resume`."""
        return self._paused

    @property
    def alive(self) -> bool:
        """Whether it runs, or can run on."""
        return self._state in _ALIVE

    @property
    def console(self) -> Console:
        """The console. `expect` runs the hypervisor while it waits, unless that is running anyway."""
        return self.vm.console

    @property
    def cpu_time(self) -> float:
        """Seconds of CPU time that it has used."""
        return self._cpu_time / 1e9

    @property
    def slices(self) -> int:
        """How often a CPU was given to it."""
        return self._slices

    # Steering.

    @property
    def weight(self) -> int:
        """The share of CPU time relative to other guests, 1 to 65535; may be set, or raises `ConfigError`."""
        return self._vcpu.weight

    @weight.setter
    def weight(self, value: int) -> None:
        self._vcpu.weight = value

    @property
    def cap(self) -> int:
        """Percent of one CPU that it may use, 0 for no limit; may be set, or raises `ConfigError`."""
        return self._vcpu.cap

    @cap.setter
    def cap(self, value: int) -> None:
        self._vcpu.cap = value

    @property
    def permissions(self) -> Permissions:
        """What it may do; may be set, from its next hypercall on. Raises `ConfigError` for what makes no sense."""
        return self._permissions

    @permissions.setter
    def permissions(self, value: Permissions) -> None:
        self._check_there()
        self._enforcement.apply(value)
        self._permissions = value

    @property
    def memory(self) -> int:
        """Bytes of memory that it has."""
        return 0 if self._state is GuestState.DESTROYED else self._balloon.owned

    @property
    def memory_target(self) -> int:
        """Bytes of memory that it is to have; see `Hypervisor.set_memory`."""
        return self._balloon.target

    @memory_target.setter
    def memory_target(self, target: int | str) -> None:
        self._hypervisor.set_memory(self, target)

    def pause(self) -> None:
        """Let it run no more, and its clock stand still; see `Hypervisor.pause`."""
        self._hypervisor.pause(self)

    def resume(self) -> None:
        """Let it run on; see `Hypervisor.resume`."""
        self._hypervisor.resume(self)

    def shutdown(self) -> None:
        """Ask the guest to switch itself off: by its toolstack's node in XenStore, or its power button."""
        self._check_there()
        self.vm.press_power_button()

    def destroy(self) -> None:
        """End it and give back all that it has; see `Hypervisor.destroy`."""
        self._hypervisor.destroy(self)

    # For the machine.

    def _run(
        self,
        max_instructions: int | None,
        until: Until | None,
        timeout: float | None,
        host_timeout: float | None,
    ) -> exits.Exit:
        if max_instructions is not None:
            raise StateError("the machine belongs to a hypervisor; it cannot run a number of instructions")
        if isinstance(until, int) and not isinstance(until, bool):
            raise StateError("the machine belongs to a hypervisor; it cannot run until an address")
        with reached(self.vm, until) as goal:
            return self._hypervisor._wait_for(self, goal, timeout, host_timeout)

    def _stop_waiting(self) -> None:
        self._hypervisor._stop_waits(self)

    def _check_there(self) -> None:
        if self._state is GuestState.DESTROYED:
            raise StateError(f"the guest {self.name!r} is destroyed")

    def __repr__(self) -> str:
        return f"<Guest {self.name} domid={self.domid} {self.config.mode} {self.state.value}>"


_ALIVE = frozenset({GuestState.RUNNING, GuestState.RUNNABLE, GuestState.BLOCKED})

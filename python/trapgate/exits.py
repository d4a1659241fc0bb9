"""Why `VM.run` returned, as small values that `match` can take apart.

What a guest does, faults and crashes included, is told here; exceptions are for wrong calls and for what the
host cannot give.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

__all__ = [
    "FINAL",
    "Breakpoint",
    "BudgetExhausted",
    "Crashed",
    "DebugExit",
    "Exit",
    "Expected",
    "Halted",
    "Reset",
    "Satisfied",
    "Shutdown",
    "Stopped",
    "Suspended",
    "TimedOut",
    "TripleFault",
    "Unsupported",
]


@dataclass(frozen=True, kw_only=True)
class Exit:
    """Base of all exits."""

    #: Instructions completed since the machine was made.
    icount: int
    #: The machine's time in seconds since it was made.
    now: float

    @property
    def kind(self) -> str:
        """The exit's name."""
        return type(self).__name__

    def as_dict(self) -> dict[str, Any]:
        """Give the exit as what JSON can hold."""
        return {"kind": self.kind, **{field.name: getattr(self, field.name) for field in fields(self)}}


@dataclass(frozen=True, kw_only=True)
class Shutdown(Exit):
    """The guest switched the power off (ACPI S5, or SCHEDOP_shutdown). The machine cannot run on."""


@dataclass(frozen=True, kw_only=True)
class Reset(Exit):
    """The guest asked for a reset. The machine cannot run on; make a new one to start over."""


@dataclass(frozen=True, kw_only=True)
class TripleFault(Exit):
    """A fault could not be delivered, nor the double fault that followed. The machine cannot run on."""

    #: Linear address of the instruction that started it, and the vector of the first fault.
    rip: int
    vector: int


@dataclass(frozen=True, kw_only=True)
class Crashed(Exit):
    """A para-virtual guest said that it crashed, or did what its monitor cannot carry on. It cannot run on."""

    #: What the monitor has to say; None if the guest said it.
    message: str | None


@dataclass(frozen=True, kw_only=True)
class Suspended(Exit):
    """A para-virtual guest asked to be saved (SHUTDOWN_suspend). The machine cannot run on."""


@dataclass(frozen=True, kw_only=True)
class DebugExit(Exit):
    """The guest wrote to the debug exit port. The machine cannot run on."""

    value: int

    @property
    def status(self) -> int:
        """The exit status that this stands for, as QEMU's isa-debug-exit has it."""
        return (self.value << 1 | 1) & 0xFF


@dataclass(frozen=True, kw_only=True)
class Halted(Exit):
    """The processor waits for an interrupt and nothing in the machine is going to send one."""


@dataclass(frozen=True, kw_only=True)
class BudgetExhausted(Exit):
    """The number of instructions asked for has been run."""


@dataclass(frozen=True, kw_only=True)
class TimedOut(Exit):
    """The time asked for has passed."""


@dataclass(frozen=True, kw_only=True)
class Stopped(Exit):
    """`VM.stop` was called."""


@dataclass(frozen=True, kw_only=True)
class Breakpoint(Exit):
    """The instruction at the address asked for is next."""

    rip: int


@dataclass(frozen=True, kw_only=True)
class Expected(Exit):
    """The console showed the text asked for."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Satisfied(Exit):
    """The condition asked for is true."""


@dataclass(frozen=True, kw_only=True)
class Unsupported(Exit):
    """The guest went where this version of trapgate cannot follow. The machine cannot run on."""

    what: str
    rip: int


#: Exits after which the machine cannot run on.
FINAL: tuple[type[Exit], ...] = (
    Shutdown,
    Reset,
    TripleFault,
    DebugExit,
    Unsupported,
    Crashed,
    Suspended,
)

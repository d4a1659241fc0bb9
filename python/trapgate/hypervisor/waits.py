"""Waiting for something that a guest does, while the hypervisor's threads run it."""

from __future__ import annotations

import enum
import time
from typing import TYPE_CHECKING

from trapgate import exits

if TYPE_CHECKING:
    from trapgate.goal import Goal
    from trapgate.vm import VM

__all__ = ["Outcome", "Wait"]

_SECOND = 1_000_000_000


class Outcome(enum.Enum):
    """Why `Hypervisor.run` returned."""

    #: The condition is true.
    SATISFIED = "satisfied"
    #: No guest can run on.
    ENDED = "ended"
    TIMED_OUT = "timed out"
    #: Another thread stopped the hypervisor.
    STOPPED = "stopped"


class Wait:
    """One call that waits, and what it waits for."""

    def __init__(self, vm: VM, goal: Goal, timeout: float | None, host_timeout: float | None) -> None:
        """Wait for a goal, or for seconds of the machine's clock or of the host's to pass."""
        self._vm = vm
        self._goal = goal
        self._deadline = None if timeout is None else vm.now + timeout
        self._host_end = None if host_timeout is None else time.monotonic() + host_timeout
        self.result: exits.Exit | None = None
        self.error: BaseException | None = None

    @property
    def done(self) -> bool:
        """Whether the wait is over."""
        return self.result is not None or self.error is not None

    @property
    def watches_console(self) -> bool:
        """Whether each piece of output is to be looked at."""
        return self._goal.watches_console

    def check(self) -> bool:
        """Look whether the goal has just been reached; by the thread that runs the machine, or while none does."""
        if self.done:
            return False
        try:
            self.result = self._goal.check(self._vm)
        except Exception as error:  # of the caller's own condition, whom it is for
            self.error = error
        return self.done

    def tell(self, result: exits.Exit) -> None:
        """An exit: the wait is over if it is one that is waited for, or the last."""
        if not self.done and (isinstance(result, exits.FINAL) or self._goal.accepts(result)):
            self.result = result

    def check_time(self) -> None:
        """Look whether the time is over."""
        late = self._host_end is not None and time.monotonic() >= self._host_end
        if not self.done and (late or (self._deadline is not None and self._vm.now >= self._deadline)):
            self.result = exits.TimedOut(**self._vm._when())

    def stop(self) -> None:
        """End the wait as `VM.stop` does."""
        if not self.done:
            self.result = exits.Stopped(icount=0, now=0.0)

    def fail(self, error: BaseException) -> None:
        """End the wait with an error."""
        if not self.done:
            self.error = error

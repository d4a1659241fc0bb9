"""One slice of a machine's run, for schedulers: run for a while, and say why it ended and when it wants to go on.

`VM.run` is for a machine that has a thread to itself and sleeps in it while the guest waits; here a guest that
waits gives its thread back at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trapgate import exits
from trapgate.errors import ConfigError, StateError

if TYPE_CHECKING:
    from trapgate.vm import VM

__all__ = ["SliceResult", "run"]

_FOREVER = (1 << 64) - 1
_SECOND = 1_000_000_000
#: A slice shorter than this is all overhead, in microseconds.
_LEAST = 100


@dataclass(frozen=True, kw_only=True)
class SliceResult:
    """How a slice ended."""

    #: What happened, if that is why; after one of `exits.FINAL` the machine cannot run on.
    exit: exits.Exit | None = None
    #: The guest waits: for input, for an event, or for `wants_at`. Otherwise it would run on.
    blocked: bool = False
    #: When a blocked guest's next timer is due, by `time.monotonic`; None: it has none.
    wants_at: float | None = None


def run(
    vm: VM,
    milliseconds: float,
    *,
    watches_console: bool = False,
    check: Callable[[], bool] | None = None,
) -> SliceResult:
    """Run a slice of `vm`; see `VM.slice`. It ends early when `check`, asked now and then, says so."""
    if not milliseconds > 0:
        raise ConfigError(f"a slice is {milliseconds} milliseconds; it must be more than 0")
    core = vm._core
    with core:
        if vm.ended is not None:
            raise StateError(f"the machine cannot run on after {vm.ended.kind}")
        vm._started = True
        end = time.monotonic() + milliseconds / 1000
        # What an exception in a hook has left over from the slice before.
        vm.on._dispatch()
        vm._serve_domain(core)
        while True:
            if check is not None and check():
                return SliceResult()
            microseconds = int((end - time.monotonic()) * 1_000_000)
            if microseconds <= 0:
                return SliceResult()
            try:
                kind, first, second = core.slice_run(max(microseconds, _LEAST), watches_console)
            finally:
                vm._drain(core)
            match kind:
                case "hook":
                    vm.on._dispatch()
                case "doorbell" | "hypercall":
                    vm._serve_domain(core)
                case "console":
                    pass
                case "slice" | "stopped":
                    if check is not None:
                        check()
                    return SliceResult()
                case "blocked":
                    at = None if first == _FOREVER else time.monotonic() + first / _SECOND
                    if check is not None:
                        check()
                    return SliceResult(blocked=True, wants_at=at)
                case _:
                    result = vm._exit(kind, first, second)
                    if isinstance(result, exits.FINAL):
                        vm.ended = result
                    return SliceResult(exit=result)

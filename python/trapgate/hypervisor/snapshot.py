"""What a hypervisor does, as values of one moment; two of them give rates."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trapgate.hypervisor.guest import Guest

__all__ = ["GuestSnapshot", "Snapshot", "of_guest"]

# Escape sequences, and what else does not belong into a line.
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_TAIL = 1024


@dataclass(frozen=True, kw_only=True)
class GuestSnapshot:
    """A guest at one moment. Rates are since the snapshot before, or since the guest was made."""

    name: str
    domid: int
    #: "full" or "para".
    mode: str
    #: A `GuestState`'s value.
    state: str
    weight: int
    cap: int
    #: Seconds of CPU time used, and percent of one CPU.
    cpu_time: float
    cpu_percent: float
    #: Instructions completed, in all and in a second.
    instructions: int
    instructions_per_second: float
    #: Hypercalls of a para-virtual guest, and accesses to chips of a full one: in all and in a second.
    calls: int
    calls_per_second: float
    #: Bytes that it has, is to have, and may have at most.
    memory: int
    memory_target: int
    memory_maximum: int
    #: Seconds of the guest's clock.
    uptime: float
    #: The end of what the console shows.
    last_line: str
    #: Why it ended, if it did.
    ended: str | None


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A hypervisor at one moment."""

    #: By `time.monotonic`.
    time: float
    #: Whether guests run, and on how many CPUs.
    running: bool
    cpus: int
    #: Bytes that all guests may have together (None: no limit), and what is theirs.
    memory_total: int | None
    memory_reserved: int
    guests: tuple[GuestSnapshot, ...]

    def guest(self, name: str) -> GuestSnapshot | None:
        """Give the guest of that name, if there is one."""
        return next((guest for guest in self.guests if guest.name == name), None)

    def as_dict(self) -> dict[str, Any]:
        """Give it as what JSON can hold."""
        return asdict(self)


def of_guest(guest: Guest, now: float, before: Snapshot | None) -> GuestSnapshot:
    """Give a guest as it is now, with rates since the snapshot before if that has it."""
    vm, destroyed = guest.vm, guest.vm._core_or_none is None
    instructions, uptime, calls = (0, 0.0, 0) if destroyed else (vm.icount, vm.now, _calls(guest))
    earlier = None if before is None else before.guest(guest.name)
    if before is None or earlier is None or earlier.domid != guest.domid:
        since, base = guest._made_at, (0.0, 0, 0)
    else:
        since, base = before.time, (earlier.cpu_time, earlier.instructions, earlier.calls)
    seconds = max(now - since, 1e-9)
    ended = guest.exit.kind if guest.exit is not None else None
    return GuestSnapshot(
        name=guest.name,
        domid=guest.domid,
        mode=guest.config.mode,
        state=guest.state.value,
        weight=guest.weight,
        cap=guest.cap,
        cpu_time=guest.cpu_time,
        cpu_percent=max(0.0, guest.cpu_time - base[0]) / seconds * 100,
        instructions=instructions,
        instructions_per_second=max(0, instructions - base[1]) / seconds,
        calls=calls,
        calls_per_second=max(0, calls - base[2]) / seconds,
        memory=guest.memory,
        memory_target=guest.memory_target,
        memory_maximum=guest.config.maximum_memory_bytes,
        uptime=uptime,
        last_line=last_line(vm.console._text[-_TAIL:]),
        ended=ended if guest.error is None else f"{type(guest.error).__name__}: {guest.error}",
    )


def last_line(text: str) -> str:
    """Give the last line that is not empty, without what a terminal would take as commands."""
    lines = _ESCAPES.sub("", text).replace("\r", "\n").split("\n")
    return next((_CONTROLS.sub("", line) for line in reversed(lines) if line.strip()), "")


def _calls(guest: Guest) -> int:
    if guest.config.mode == "para":
        rows = guest.vm.domain._native.hypercalls()
        return sum(row[4] for row in rows)
    return guest.vm.stats.accesses

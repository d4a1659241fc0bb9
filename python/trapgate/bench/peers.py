"""Where programs are run: the host itself, guests of trapgate, a guest of QEMU. Each gives nanoseconds."""

from __future__ import annotations

import re
import subprocess
import time
from dataclasses import asdict
from pathlib import Path
from typing import Protocol, runtime_checkable

from trapgate.bench import qemu
from trapgate.bench.files import APPEND, PROGRAM, PROMPT, Files
from trapgate.config import Engine, Machine, Mode, Paging
from trapgate.errors import GuestError
from trapgate.vm import VM

__all__ = ["MEMORY", "Guest", "Native", "Peer", "Tcg", "Trapgate"]

#: RAM of every guest.
MEMORY = "512M"

# Nanoseconds of a program in which departures are counted, about; it then runs for twice as long.
_COUNTED = 50e6

# Seconds of the host that a boot and a program may take, on a host that is busy as well.
_BOOT = 180.0
_RUN = 120.0


class Peer(Protocol):
    """Something that programs are run in."""

    def measure(self, program: str, operations: int | None) -> float:
        """Run a program and give what one operation takes, in nanoseconds; calibrated unless their number is given."""

    def close(self) -> None:
        """End what runs."""


@runtime_checkable
class Guest(Peer, Protocol):
    """A peer that can also be booted."""

    def boot(self, kernel: Path) -> float:
        """Start another guest of this kind and give the nanoseconds to its prompt, reading the files included."""


def _arguments(program: str, operations: int | None) -> list[str]:
    return [*(() if operations is None else ("-n", str(operations))), program]


def _result(program: str, output: str) -> float:
    """Find the line of a program's figure in what was printed."""
    found = re.search(rf"^{re.escape(program)} (\d+\.\d+)\r*$", output, re.MULTILINE)
    if found is None or not float(found[1]) > 0:
        raise GuestError(f"{program} gave no figure but: {output.strip()[-500:]}")
    return float(found[1])


class Native:
    """The host's own processor and kernel."""

    def __init__(self, program: Path) -> None:
        self._program = program

    def measure(self, program: str, operations: int | None) -> float:
        """Run the program as a process."""
        result = subprocess.run(
            [self._program, *_arguments(program, operations)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_RUN,
            check=False,
        )
        return _result(program, result.stdout)

    def close(self) -> None:
        """Nothing runs between two measurements."""


class Trapgate:
    """A guest of trapgate, booted when it is first needed, with the real clock. It stands still while others run."""

    def __init__(self, files: Files, engine: Engine, mode: Mode = "full", paging: Paging = "walk") -> None:
        self._files = files
        self._engine = engine
        self._mode = mode
        self._paging = paging
        self._vm: VM | None = None
        self._boot: dict[str, float] = {}
        #: The engine that has run guests.
        self.used = ""

    def _machine(self, kernel: Path, initrd: Path) -> Machine:
        append = APPEND.replace("ttyS0", "hvc0") if self._mode == "para" else APPEND
        return Machine(
            kernel=kernel,
            initrd=initrd,
            append=append,
            memory=MEMORY,
            engine=self._engine,
            mode=self._mode,
            paging=self._paging,
        )

    def _booted(self) -> VM:
        if self._vm is None:
            self._vm = VM(self._machine(self._files.elf, self._files.initrd_with_programs))
            self._vm.console.expect(PROMPT, timeout=_BOOT)
            self.used = self._vm.stats.engine
        return self._vm

    def measure(self, program: str, operations: int | None) -> float:
        """Run the program from the guest's shell."""
        line = " ".join([PROGRAM, *_arguments(program, operations)])
        return _result(program, self._booted().console.command(line, PROMPT, timeout=_RUN))

    def boot(self, kernel: Path) -> float:
        """Boot a machine of its own."""
        start = time.perf_counter_ns()
        with VM(self._machine(kernel, self._files.initrd)) as vm:
            vm.console.expect(PROMPT, timeout=_BOOT)
            self.used = vm.stats.engine
            taken = float(time.perf_counter_ns() - start)
            self._boot = {name: float(count) for name, count in asdict(vm.stats.departures).items()}
            return taken

    def boot_departures(self) -> dict[str, float]:
        """Give what the last boot needed its monitor for, by reason; nothing if there was none."""
        return self._boot

    def departures(self, program: str, nanoseconds: float) -> dict[str, float]:
        """Count what one operation, which takes so long, needs the monitor for, by reason.

        Starting the program and ending it is not counted: it runs twice, once with twice as many operations.
        """
        operations = max(1, round(_COUNTED / nanoseconds))
        once, twice = (self._departures(program, times * operations) for times in (1, 2))
        return {name: max(0.0, (twice[name] - once[name]) / operations) for name in once}

    def _departures(self, program: str, operations: int) -> dict[str, int]:
        before = asdict(self._booted().stats.departures)
        self.measure(program, operations)
        return {name: count - before[name] for name, count in asdict(self._booted().stats.departures).items()}

    def close(self) -> None:
        """End the guest."""
        if self._vm is not None:
            self._vm.close()


class Tcg:
    """A guest of QEMU, translated by TCG in one thread. It idles while others run."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._qemu: qemu.Qemu | None = None

    def measure(self, program: str, operations: int | None) -> float:
        """Run the program from the guest's shell."""
        if self._qemu is None:
            files = self._files
            self._qemu = qemu.Qemu(
                qemu.arguments(files.elf, files.initrd_with_programs, APPEND, MEMORY),
            )
            self._qemu.expect(PROMPT, _BOOT)
        line = " ".join([PROGRAM, *_arguments(program, operations)])
        return _result(program, self._qemu.command(line, PROMPT, _RUN))

    def boot(self, kernel: Path) -> float:
        """Boot a QEMU of its own."""
        start = time.perf_counter_ns()
        with qemu.Qemu(qemu.arguments(kernel, self._files.initrd, APPEND, MEMORY)) as machine:
            machine.expect(PROMPT, _BOOT)
            return float(time.perf_counter_ns() - start)

    def close(self) -> None:
        """End the guest."""
        if self._qemu is not None:
            self._qemu.close()

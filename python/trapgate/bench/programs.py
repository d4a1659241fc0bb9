"""The programs that are measured: what they are called, what one operation of them is, how they are compiled."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trapgate.errors import ConfigError, HostUnavailable

__all__ = ["GROUPS", "PROGRAMS", "Program", "build", "select"]


@dataclass(frozen=True, kw_only=True)
class Program:
    """One thing that is measured."""

    name: str
    group: str
    #: What one operation is.
    operation: str


def _programs(group: str, **operations: str) -> list[Program]:
    return [
        Program(name=name.replace("_", "-"), group=group, operation=text) for name, text in operations.items()
    ]


#: What the groups have in common.
GROUPS = {
    "compute": "user mode only",
    "kernel": "the guest's kernel does most of the work",
    "boot": "from nothing to the shell's prompt; there is no native figure",
}

#: Everything that can be measured, in the order in which it is; the sources are in benches/guest.
PROGRAMS: tuple[Program, ...] = (
    *_programs(
        "compute",
        integer="multiply, shift, rotate, add, branch",
        sha256="SHA-256 of 64 bytes",
        matrix="multiply and add doubles, SSE2",
        recursion="call and return",
        sort="one of 4096 numbers sorted",
        hash="look-up in a table of 128 KiB",
        copy="64 bytes copied, SSE2",
        triad="a[i] = b[i] + s * c[i], doubles",
        chase_l1="dependent load, 16 KiB",
        chase_l2="dependent load, 256 KiB",
        chase_dram="dependent load, 64 MiB",
    ),
    *_programs(
        "kernel",
        syscall="system call that does nothing",
        fork="fork, exit, wait",
        exec="vfork, execute, exit, wait",
        pipe="byte to a process and back",
        fault="first write to a new page",
        signal="signal to itself, handled",
    ),
    *_programs("boot", boot_elf="boot of the ELF kernel", boot_bzimage="boot of the bzImage"),
)

# Plain x86-64 for all, so that no peer runs other code than the rest; loops stay what they are written as.
_FLAGS = ("-std=gnu11", "-O2", "-march=x86-64", "-fno-tree-loop-distribute-patterns", "-static", "-s")


def select(names: Sequence[str] = ()) -> list[Program]:
    """Give the programs of these names and groups, all if there are none, in the order of the list."""
    known = {program.name for program in PROGRAMS} | set(GROUPS)
    for name in names:
        if name not in known:
            listed = ", ".join([*GROUPS, *(program.name for program in PROGRAMS)])
            raise ConfigError(f"there is no benchmark {name!r}; there are: {listed}")
    return [program for program in PROGRAMS if not names or {program.name, program.group} & set(names)]


def build(folder: Path, sources: Path | None) -> Path:
    """Compile the programs into one file in `folder` and give it."""
    files = sorted(_sources(sources).glob("*.c"))
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise HostUnavailable(
            "the benchmark's programs need a C compiler; run: sudo apt-get install gcc libc6-dev"
        )
    program = folder / "guest-bench"
    command = [compiler, *_FLAGS, "-o", str(program), *map(str, files)]
    # What an interrupted compiler leaves behind goes with the folder.
    environment = {**os.environ, "TMPDIR": str(folder), "LC_ALL": "C"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        reason = next((line for line in result.stderr.splitlines() if "error" in line), "no reason given")
        raise HostUnavailable(f"the benchmark's programs cannot be compiled: {reason}")
    return program


def _sources(given: Path | None) -> Path:
    """Give the folder with the sources: the one that is named, the one of this checkout, or of the current one."""
    if given is not None:
        places = [given]
    else:
        places = [Path(__file__).parents[3] / "benches/guest", Path("benches/guest").absolute()]
    for place in places:
        if (place / "bench.h").is_file():
            return place
    raise ConfigError(
        f"the benchmark's programs are not in {places[-1]};"
        " they are the folder benches/guest of trapgate's sources"
    )

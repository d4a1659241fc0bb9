"""Measures: every program in every peer in turn, and all of that again for each run."""

from __future__ import annotations

import functools
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from trapgate.bench import files, qemu
from trapgate.bench.peers import Guest, Native, Peer, Tcg, Trapgate
from trapgate.bench.programs import Program, build, select
from trapgate.bench.report import SUBJECT, Figures, Report, Row
from trapgate.errors import ConfigError, HostUnavailable
from trapgate.images import Progress

__all__ = ["PEERS", "run"]

#: What trapgate can be compared with: the host itself, QEMU's translator, trapgate's own interpreter, the same guest
#: with shadow page tables, and the same kernel file as a para-virtual guest.
PEERS = ("native", "tcg", "interpret", "shadow", "para")


def run(
    names: Sequence[str] = (),
    *,
    peers: Sequence[str] = ("native", "tcg"),
    runs: int = 5,
    operations: int | None = None,
    departures: bool = False,
    sources: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Report:
    """Measure programs and groups by name, all if there are none, in trapgate and in its peers.

    Each program runs for about a fifth of a second, or does a given number of operations. With `departures` it is
    counted afterwards what an operation needs the monitor for in each guest of trapgate. `sources` is the folder of the
    programs' sources, which is found in a checkout. What of QEMU is missing is installed if this is root.
    """
    chosen = select(names)
    if not sys.platform.startswith("linux") or platform.machine() != "x86_64":
        raise HostUnavailable(
            "the benchmark runs on Linux on x86-64, where its programs can also run natively"
        )
    for name in peers:
        if name not in PEERS:
            raise ConfigError(f"there is no peer {name!r}; there are: {', '.join(PEERS)}")
    if runs < 1 or (operations is not None and operations < 1):
        raise ConfigError("runs and operations are counted from 1")
    report = progress or (lambda _text, _part: None)
    if "tcg" in peers:
        qemu.install(report)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="trapgate-bench-")))
        report("Compiling the programs", None)
        program = build(folder, None if sources is None else Path(sources))
        prepared = files.prepare(folder, program, report)
        subject = Trapgate(prepared, "auto")
        others = {name: _make(name, program, prepared) for name in peers}
        for peer in (subject, *others.values()):
            stack.callback(peer.close)
        figures = _measure(chosen, {SUBJECT: subject, **others}, prepared, runs, operations, report)
        guests = {
            name: peer for name, peer in {SUBJECT: subject, **others}.items() if isinstance(peer, Trapgate)
        }
        counted = _count(chosen, guests, figures, report) if departures else {}
        return Report(
            peers=tuple(others),
            runs=runs,
            engine=subject.used,
            host=_host(prepared, peers),
            rows=tuple(_row(each, figures, counted) for each in chosen),
        )


def _row(
    program: Program,
    figures: dict[tuple[str, str], list[float]],
    departures: dict[tuple[str, str], dict[str, float]],
) -> Row:
    return Row(
        name=program.name,
        group=program.group,
        operation=program.operation,
        figures={
            peer: Figures(tuple(values)) for (name, peer), values in figures.items() if name == program.name
        },
        departures={peer: counts for (name, peer), counts in departures.items() if name == program.name},
    )


def _make(name: str, program: Path, prepared: files.Files) -> Peer:
    if name == "native":
        return Native(program)
    if name == "para":
        return Trapgate(prepared, "auto", "para")
    if name == "shadow":
        return Trapgate(prepared, "auto", paging="shadow")
    return Tcg(prepared) if name == "tcg" else Trapgate(prepared, "interpret")


def _measure(
    programs: Sequence[Program],
    peers: dict[str, Peer],
    prepared: files.Files,
    runs: int,
    operations: int | None,
    progress: Progress,
) -> dict[tuple[str, str], list[float]]:
    """Give nanoseconds by program and peer, a value for each run."""
    figures: dict[tuple[str, str], list[float]] = {}
    steps, step = runs * len(programs) * len(peers), 0
    kernels = {"boot-elf": prepared.elf, "boot-bzimage": prepared.bzimage}
    for number in range(1, runs + 1):
        for program in programs:
            for name, peer in peers.items():
                progress(f"Run {number} of {runs}: {program.name}", step / steps)
                step += 1
                if (kernel := kernels.get(program.name)) is None:
                    measure = functools.partial(peer.measure, program.name, operations)
                elif isinstance(peer, Guest):
                    measure = functools.partial(peer.boot, kernel)
                else:
                    continue
                figures.setdefault((program.name, name), []).append(measure())
    return figures


def _count(
    programs: Sequence[Program],
    guests: dict[str, Trapgate],
    figures: dict[tuple[str, str], list[float]],
    progress: Progress,
) -> dict[tuple[str, str], dict[str, float]]:
    """Give departures of one operation, by program and guest."""
    counted = {}
    for number, program in enumerate(programs):
        progress(f"Counting departures: {program.name}", number / len(programs))
        for name, guest in guests.items():
            measured = figures[program.name, name]
            counted[program.name, name] = (
                guest.boot_departures()
                if program.group == "boot"
                else guest.departures(program.name, min(measured))
            )
    return counted


def _host(prepared: files.Files, peers: Sequence[str]) -> dict[str, str]:
    """Describe the host and the guest."""
    import trapgate

    described = {
        "processor": _processor(),
        "processors": str(os.cpu_count()),
        "trapgate": trapgate.__version__,
        "guest_kernel": prepared.kernel,
        "append": files.APPEND,
    }
    if "tcg" in peers:
        described |= {"qemu": qemu.version(), "qemu_cpu": qemu.CPU}
    return described


def _processor() -> str:
    """Give the name of the host's processor, as its kernel has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "unknown"
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown"
    )

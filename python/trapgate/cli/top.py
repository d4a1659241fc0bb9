"""`trapgate top`: runs guests and shows what they do, on a screen, as lines, or as JSON."""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TextIO

import click

from trapgate import images
from trapgate.cli import INTERRUPTED, OK
from trapgate.cli.output import progress, show_log
from trapgate.cli.screen import Screen, screen
from trapgate.config import format_size
from trapgate.errors import StateError
from trapgate.hypervisor import Event, Happening, Hypervisor, Setup, Snapshot
from trapgate.hypervisor.snapshot import GuestSnapshot

__all__ = ["render", "top"]

_HEADINGS = ("NAME", "ID", "MODE", "STATE", "WEIGHT", "CAP", "CPU%", "MIPS", "CALLS/S", "MEMORY", "CONSOLE")
_RIGHT = frozenset({"ID", "WEIGHT", "CAP", "CPU%", "MIPS", "CALLS/S"})
_HELP = "q quit   up/down select   p pause or resume"
_REVERSE, _PLAIN = "\x1b[7m", "\x1b[0m"
_LONGEST_NAME = 20


@click.command()
@click.argument("guests", nargs=-1, required=True, metavar="FILE.toml | IMAGE[:MODE]...")
@click.option("--memory", default="256M", show_default=True, help="RAM of each guest that is given by image.")
@click.option("--cpus", type=int, help="Threads that run guests; by default the host's CPUs.")
@click.option("--interval", type=float, default=1.0, show_default=True, help="Seconds between two looks.")
@click.option("--once", is_flag=True, help="Look once, after an interval, and end.")
@click.option("--count", type=int, metavar="N", help="Look N times, and end.")
@click.option(
    "--json", "json_file", metavar="FILE", help="Write each look as a line of JSON to FILE; - is the output."
)
def top(
    guests: tuple[str, ...],
    memory: str,
    cpus: int | None,
    interval: float,
    once: bool,
    count: int | None,
    json_file: str | None,
) -> int:
    """Run GUESTS and show what they do: images such as debian-12:para and debian-12:full, or a TOML file.

    On a terminal it is a screen, on which q quits and p pauses and resumes the guest that the arrow keys select;
    otherwise, and with --once or --count, there is a line for each guest after each interval. It ends when all
    guests have ended; the guests end with it.
    """
    if not 0.05 <= interval < 1e6:
        raise click.UsageError(f"--interval is {interval}; it must be at least 0.05 seconds")
    if count is not None and count < 1:
        raise click.UsageError(f"--count is {count}; it must be 1 or more")
    setup = _setup(guests, memory, cpus)
    show_log()
    with progress() as report:
        for name in dict.fromkeys(guest.image for guest in setup.guests if guest.image is not None):
            images.pull(name, progress=report)
    looks = 1 if once else count
    with ExitStack() as stack:
        hypervisor = stack.enter_context(setup.open())
        hypervisor.start()
        write = _writer(json_file, stack)
        if looks is None and json_file != "-" and sys.stdin.isatty() and sys.stdout.isatty():
            with screen() as terminal:
                return _Live(hypervisor, terminal, interval, write).run()
        return _lines(hypervisor, interval, looks, write, quiet=json_file == "-")


def _setup(guests: tuple[str, ...], memory: str, cpus: int | None) -> Setup:
    if any(word.endswith(".toml") for word in guests):
        if len(guests) > 1:
            raise click.UsageError("give one TOML file, or images, not both")
        setup = Setup.from_toml(guests[0])
    else:
        setup = Setup.from_words(guests, memory=memory)
    return setup if cpus is None else Setup(guests=setup.guests, memory=setup.memory, cpus=cpus)


def _writer(target: str | None, stack: ExitStack) -> Callable[[Snapshot], None]:
    """Give what writes a look as a line of JSON, if that is asked for."""
    if target is None:
        return lambda _snapshot: None
    file: TextIO = sys.stdout
    if target != "-":
        file = stack.enter_context(open(target, "w", encoding="utf-8"))  # noqa: SIM115

    def write(snapshot: Snapshot) -> None:
        file.write(json.dumps(snapshot.as_dict()) + "\n")
        file.flush()

    return write


def _over(hypervisor: Hypervisor) -> bool:
    """Whether no guest can run on."""
    return not any(guest.alive and guest.exit is None for guest in hypervisor.list())


def _lines(
    hypervisor: Hypervisor,
    interval: float,
    count: int | None,
    write: Callable[[Snapshot], None],
    *,
    quiet: bool,
) -> int:
    """Print a table after each interval."""
    before = hypervisor.snapshot()
    done = 0
    while count is None or done < count:
        hypervisor.run(until=lambda h, end=before.time + interval: time.monotonic() >= end)  # type: ignore[misc]
        before = now = hypervisor.snapshot(before)
        write(now)
        if not quiet:
            for row in (_HEADINGS, *map(_row, now.guests)):
                print("\t".join(row))
            sys.stdout.flush()
        done += 1
        if _over(hypervisor):
            break
    return OK


class _Live:
    """The screen."""

    def __init__(
        self, hypervisor: Hypervisor, terminal: Screen, interval: float, write: Callable[[Snapshot], None]
    ) -> None:
        self._hypervisor = hypervisor
        self._screen = terminal
        self._interval = interval
        self._write = write
        self._selected = 0
        self._news: deque[str] = deque(maxlen=3)
        hypervisor.listeners.append(self._hear)

    def run(self) -> int:
        """Show until a key ends it, or nothing runs any more."""
        snapshot = self._hypervisor.snapshot()
        while True:
            columns, rows = self._screen.size
            self._screen.show(render(snapshot, columns, rows, self._selected, tuple(self._news)))
            left = snapshot.time + self._interval - time.monotonic()
            if left <= 0:
                # What the scheduler raised is to be seen, and ends it.
                self._hypervisor.run(timeout=0)
                snapshot = self._hypervisor.snapshot(snapshot)
                self._write(snapshot)
                if _over(self._hypervisor):
                    return OK
                continue
            try:
                key = self._screen.key(left)
            except (EOFError, OSError):
                return INTERRUPTED
            if key in ("q", "interrupt"):
                return OK if key == "q" else INTERRUPTED
            self._press(key)

    def _press(self, key: str | None) -> None:
        guests = self._hypervisor.list()
        if key in ("up", "down"):
            step = 1 if key == "down" else -1
            self._selected = min(max(self._selected + step, 0), max(len(guests) - 1, 0))
        elif key == "p" and self._selected < len(guests):
            guest = guests[self._selected]
            try:
                if guest.paused:
                    guest.resume()
                else:
                    guest.pause()
            except StateError as error:
                self._news.append(str(error))

    def _hear(self, event: Event) -> None:
        if event.kind is not Happening.CREATED:
            why = event.error or (event.exit and event.exit.kind)
            self._news.append(f"{event.guest.name}: {event.kind.value}{f' ({why})' if why else ''}")


def render(snapshot: Snapshot, columns: int, rows: int, selected: int, news: Sequence[str] = ()) -> list[str]:
    """Give the lines of a screen of that size."""
    running = sum(guest.state == "running" for guest in snapshot.guests)
    total = "" if snapshot.memory_total is None else f" of {format_size(snapshot.memory_total)}"
    percent = sum(guest.cpu_percent for guest in snapshot.guests)
    summary = (
        f"trapgate top   guests {len(snapshot.guests)}, running {running}   "
        f"cpus {snapshot.cpus}, used {percent:.0f}%   memory {format_size(snapshot.memory_reserved)}{total}"
    )
    table = [_HEADINGS, *map(_row, snapshot.guests)]
    widths = [max(len(row[column]) for row in table) for column in range(len(_HEADINGS) - 1)]
    lines = [
        "  ".join(
            [
                cell.rjust(width) if heading in _RIGHT else cell.ljust(width)
                for cell, width, heading in zip(row, widths, _HEADINGS, strict=False)
            ]
            + [row[-1]]
        )
        for row in table
    ]
    room = max(1, rows - 4 - len(news))
    first = max(0, min(selected - room + 1, len(snapshot.guests) - room))
    shown = [summary, "", lines[0]]
    for index, line in enumerate(lines[1:][first : first + room], first):
        text = line[:columns].ljust(columns)
        shown.append(f"{_REVERSE}{text}{_PLAIN}" if index == selected else text.rstrip())
    shown = [line if line.startswith(_REVERSE) else line[:columns] for line in shown]
    bottom = [*(item[:columns] for item in news), _HELP[:columns]]
    return (shown + [""] * (rows - len(shown) - len(bottom)) + bottom)[:rows]


def _row(guest: GuestSnapshot) -> tuple[str, ...]:
    state = guest.state if guest.ended is None else f"{guest.state} ({guest.ended})"
    memory = format_size(guest.memory)
    if guest.memory_target != guest.memory:
        memory += f" > {format_size(guest.memory_target)}"
    return (
        guest.name[:_LONGEST_NAME],
        str(guest.domid),
        guest.mode,
        state[:_LONGEST_NAME],
        str(guest.weight),
        str(guest.cap) if guest.cap else "-",
        f"{guest.cpu_percent:.1f}",
        f"{guest.instructions_per_second / 1e6:.1f}",
        f"{guest.calls_per_second:.0f}",
        memory,
        "".join(c if c.isprintable() else "?" for c in guest.last_line),
    )

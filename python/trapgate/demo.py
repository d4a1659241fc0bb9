"""One guest in two builds, side by side: unmodified in `full` mode, para-virtual in `para` mode.

The guest is the package's own, so nothing is fetched. Both builds do the same work and check it themselves; what
differs is what the monitor has to do for it, and how often. docs/modifying-a-guest.md reads the source with you.
"""

from __future__ import annotations

import re
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from trapgate.errors import ConfigError, GuestError, HostUnavailable

if TYPE_CHECKING:
    from trapgate.config import Clock, CpuModel, Engine, Machine, Paging
    from trapgate.vm import Departures

__all__ = ["Demo", "Interface", "Mode", "Run", "Work", "check_interface", "machine", "run", "run_one"]

#: The modes that there is a build for.
Mode = Literal["full", "para"]

#: Rounds of work that are done if nothing is said, and the most that may be asked for.
DEFAULT_ROUNDS = 100
MOST_ROUNDS = 100_000

_MEMORY = "16M"
# What a guest that goes round for ever may take, in seconds of the host's; a round takes about a millisecond.
_PATIENCE = 60.0
_PATIENCE_PER_ROUND = 0.1


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a guest says that it did."""

    #: System calls that its user program made.
    system_calls: int
    #: Page faults that its kernel answered with a page.
    page_faults: int
    #: Switches from one address space to another.
    space_switches: int
    #: Timer interrupts.
    ticks: int


@dataclass(frozen=True, kw_only=True)
class Run:
    """One build's run."""

    mode: Mode
    #: Whether the guest found everything right, and switched itself off.
    success: bool
    work: Work
    #: Instructions that the guest completed.
    instructions: int
    #: How often it did what only the monitor can do for it, by reason.
    departures: Departures
    #: How often translated code did that without being left.
    in_place: int
    #: Hypercalls by name; those that were made inside a multicall are counted by their own names as well.
    hypercalls: dict[str, int]
    #: Seconds of the host's.
    seconds: float
    #: What the guest printed.
    output: str

    @property
    def needed(self) -> int:
        """How often the monitor had to do something for it."""
        return sum(asdict(self.departures).values())

    @property
    def left(self) -> int:
        """How often guest code was left, for whatever reason."""
        return self.needed - self.in_place


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Both runs."""

    rounds: int
    full: Run
    para: Run

    @property
    def success(self) -> bool:
        """Whether both guests found everything right and did the same."""
        return self.full.success and self.para.success and self.full.work == self.para.work

    def as_dict(self) -> dict[str, Any]:
        """Give everything as what JSON can hold."""
        result = {"success": self.success, **asdict(self)}
        for run in (self.full, self.para):
            result[run.mode] |= {"needed": run.needed, "left": run.left}
        return result


@dataclass(frozen=True, kw_only=True)
class Interface:
    """What the para-virtual build found when it tried the hypervisor's interface."""

    #: Answers that were looked at, and what was said of those that were not as they should be.
    checks: int
    mismatches: tuple[str, ...]
    success: bool
    output: str


def machine(
    mode: Mode,
    *,
    append: str = "",
    cpu: CpuModel = "x86-64-v2",
    engine: Engine = "auto",
    paging: Paging = "walk",
    clock: Clock = "virtual",
) -> Machine:
    """Give the machine of one build; `append` is its command line, "rounds=N" or "abi".

    `paging` is for the unmodified build; the other one's page tables are used as they are. A HostUnavailable if this
    copy of trapgate was built where there was no compiler for guests.
    """
    from trapgate._core import own_guests
    from trapgate.config import Machine

    if mode not in ("full", "para"):
        raise ConfigError(f"mode is {mode!r}; there is a build for full and one for para")
    full, para, problem = own_guests()
    if problem:
        raise HostUnavailable(f"the demonstration's guests are not in this copy of trapgate: {problem}")
    kernel = full if mode == "full" else para
    paging = paging if mode == "full" else "walk"
    return Machine(
        kernel=kernel,
        append=append,
        memory=_MEMORY,
        mode=mode,
        cpu=cpu,
        engine=engine,
        paging=paging,
        clock=clock,
    )


def run(
    rounds: int = DEFAULT_ROUNDS,
    *,
    engine: Engine = "auto",
    paging: Paging = "walk",
    clock: Clock = "virtual",
) -> Demo:
    """Run both builds, one after the other. With the virtual clock all counts are the same each time."""
    full, para = (
        run_one(mode, rounds, engine=engine, paging=paging, clock=clock) for mode in ("full", "para")
    )
    return Demo(rounds=rounds, full=full, para=para)


def run_one(
    mode: Mode,
    rounds: int = DEFAULT_ROUNDS,
    *,
    engine: Engine = "auto",
    paging: Paging = "walk",
    clock: Clock = "virtual",
) -> Run:
    """Run one build."""
    from trapgate import exits
    from trapgate.vm import VM

    if not 1 <= rounds <= MOST_ROUNDS:
        raise ConfigError(f"rounds is {rounds}; it must be from 1 to {MOST_ROUNDS}")
    config = machine(mode, append=f"rounds={rounds}", engine=engine, paging=paging, clock=clock)
    with VM(config) as vm:
        begun = time.perf_counter()
        ended = vm.run(host_timeout=_PATIENCE + rounds * _PATIENCE_PER_ROUND)
        seconds = time.perf_counter() - begun
        output, stats = vm.console.transcript, vm.stats
        hypercalls = (
            {name: row.calls for name, row in vm.hypercalls.stats().items()} if mode == "para" else {}
        )
        return Run(
            mode=mode,
            success=isinstance(ended, exits.Shutdown) and _says_success(output),
            work=_work(output, mode),
            instructions=stats.instructions,
            departures=stats.departures,
            in_place=stats.translator.in_place if stats.translator else 0,
            hypercalls={name: calls for name, calls in hypercalls.items() if calls},
            seconds=seconds,
            output=output,
        )


def check_interface(
    *, cpu: CpuModel = "x86-64-v2", engine: Engine = "auto", clock: Clock = "virtual"
) -> Interface:
    """Have the para-virtual build make every hypercall, with right and wrong arguments, and compare the answers."""
    from trapgate import exits
    from trapgate.vm import VM

    with VM(machine("para", append="abi", cpu=cpu, engine=engine, clock=clock)) as vm:
        ended = vm.run(host_timeout=_PATIENCE)
        output = vm.console.transcript
    checks = re.search(r"^checks: (\d+)$", output, re.MULTILINE)
    return Interface(
        checks=int(checks[1]) if checks else 0,
        mismatches=tuple(re.findall(r"^mismatch: (.*)$", output, re.MULTILINE)),
        success=isinstance(ended, exits.Shutdown) and _says_success(output),
        output=output,
    )


def _says_success(output: str) -> bool:
    return re.search(r"^result: success$", output, re.MULTILINE) is not None


def _work(output: str, mode: Mode) -> Work:
    """Read the guest's report."""
    found = dict(re.findall(r"^did: ([a-z-]+) (\d+)$", output, re.MULTILINE))
    try:
        return Work(**{name: int(found[name.replace("_", "-")]) for name in Work.__dataclass_fields__})
    except KeyError:
        said = output.strip().splitlines()
        last = said[-1] if said else "nothing"
        raise GuestError(f"the guest for {mode} mode ended without a report; it said last: {last}") from None

"""A machine that runs: made of a config, driven by `run`, left with a typed exit.

Nothing here is global; any number of machines live in one process. Guest code runs without the interpreter lock,
in slices short enough for signals and other threads to be served in between.
"""

from __future__ import annotations

import enum
import functools
import os
import secrets
import stat
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, overload

from trapgate import config, devices, exits
from trapgate.console import Console
from trapgate.errors import ConfigError, StateError
from trapgate.goal import Goal, Until, reached
from trapgate.hooks import Hooks
from trapgate.memory import Mapping, Memory, Translation
from trapgate.registers import Registers
from trapgate.stats import Departures, Stats, TranslatorStats
from trapgate.trace import Trace

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from trapgate._core import Core
    from trapgate._core import Disk as Image
    from trapgate._core import Domain as CoreDomain
    from trapgate.hypervisor import Guest
    from trapgate.instructions import Instruction
    from trapgate.para import Domain, Hypercalls
    from trapgate.slices import SliceResult
    from trapgate.xenstore import XenStore

__all__ = ["VM", "Departures", "State", "Stats", "TranslatorStats", "Until"]

#: How long guest code runs before Python looks around, in milliseconds.
_SLICE = 20
_FOREVER = (1 << 64) - 1
_SECOND = 1_000_000_000


class State(enum.Enum):
    """Where a machine is in its life."""

    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"
    CLOSED = "closed"


class VM:
    """A machine.

    >>> with VM(Machine.from_image("debian-12")) as vm:  # doctest: +SKIP
    ...     vm.console.expect("# ")
    ...     vm.console.sendline("uname -a")
    """

    def __init__(
        self, machine: config.Machine, *, store: XenStore | None = None, domid: int = 1, name: str = "guest"
    ) -> None:
        """Make a machine. A para-virtual one is the domain of that number and name in a store, or in one of its own."""
        from trapgate._core import Core

        #: The config that the machine was made of.
        self.config = machine
        seed = machine.seed
        if seed is None:
            seed = 0 if machine.clock == "virtual" else secrets.randbits(64)
        disks = _open_disks(machine)
        self._core_or_none: Core | None = Core(
            mode=machine.mode,
            domid=domid,
            maximum_memory=machine.maximum_memory_bytes,
            memory=machine.memory_bytes,
            cpu=machine.cpu,
            engine=machine.engine,
            shadow_paging=machine.paging == "shadow",
            kernel=_contents("kernel", machine.kernel, max(machine.memory_bytes, _LARGEST_KERNEL)),
            initrd=None
            if machine.initrd is None
            else _contents("initrd", machine.initrd, machine.memory_bytes),
            append=machine.append,
            protocol=machine.protocol,
            virtual_clock=machine.clock == "virtual",
            seed=seed,
            debug_console=machine.debug_console,
            debug_exit=machine.debug_exit,
        )
        if machine.engine == "auto" and self._core.translator_stats() is None:
            _say_interpreted()
        #: The exit after which the machine could not run on, if there was one.
        self.ended: exits.Exit | None = None
        #: Called with what the guest writes to the debug console, as it comes; without it, see `debug_output`.
        self.debug_listener: Callable[[bytes], object] | None = None
        self._started = False
        # The hypervisor's guest that this machine is; the hypervisor then runs it.
        self._guest: Guest | None = None
        #: The first serial port.
        self.console = Console(self)
        #: Registers, memory and hooks; see their classes.
        self.regs = Registers(self._core)
        self.mem = Memory(self._core)
        self.on = Hooks(self._core)
        #: What the translator makes of the guest's code.
        self.trace = Trace(self)
        self._domain: Domain | None = None
        self._hypercalls: Hypercalls | None = None
        if (native := self._core.domain()) is not None:
            self._make_domain(native, store, name)
            for disk, image in disks:
                self.domain._attach_disk(disk, image)
            for nic in machine.nics:
                self.domain.attach_nic(nic)

    # Life.

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the machine; once is enough. Its memory is given back when the last view of it is gone.

        If another thread runs it, that run is stopped and waited for, hooks that are being served included. From
        within the machine's own run, by a hook or a device, it cannot be closed: that is a StateError.
        """
        if (core := self._core_or_none) is not None:
            core.close()
            self._core_or_none = None
            if self._domain is not None:
                self._domain._release()
            if self._hypercalls is not None:
                self._hypercalls._release()

    def _make_domain(self, native: CoreDomain, store: XenStore | None, name: str) -> None:
        from trapgate.para import Domain, Hypercalls
        from trapgate.xenstore import XenStore

        self._domain = Domain(self._core, native, XenStore() if store is None else store, name)
        self._hypercalls = Hypercalls(self, native)

    @property
    def domain(self) -> Domain:
        """The domain of a para-virtual guest; a StateError for any other."""
        if self._domain is None:
            raise StateError("only a para-virtual guest is a domain; make the machine with mode 'para'")
        return self._domain

    def attach_disk(self, disk: config.Disk) -> None:
        """Give a para-virtual guest a disk, also while it runs; see `Domain.attach_disk`."""
        self.domain.attach_disk(disk)

    def detach_disk(self, name: str) -> None:
        """Ask a para-virtual guest to give a disk up; see `Domain.detach_disk`."""
        self.domain.detach_disk(name)

    def attach_nic(self, nic: config.Nic) -> int:
        """Give a para-virtual guest a network interface, also while it runs; see `Domain.attach_nic`."""
        return self.domain.attach_nic(nic)

    def detach_nic(self, handle: int) -> None:
        """Ask a para-virtual guest to give an interface up; see `Domain.detach_nic`."""
        self.domain.detach_nic(handle)

    @property
    def hypercalls(self) -> Hypercalls:
        """The hypercall table of a para-virtual guest; a StateError for any other."""
        if self._hypercalls is None:
            raise StateError("only a para-virtual guest makes hypercalls; make the machine with mode 'para'")
        return self._hypercalls

    def balloon(self, target: int | str) -> None:
        """Ask a para-virtual guest to have `target` bytes of memory; see `Domain.balloon`."""
        self.domain.balloon(config.parse_size(target, "target"))

    @property
    def state(self) -> State:
        """Where the machine is in its life."""
        core = self._core_or_none
        if core is None:
            return State.CLOSED
        if core.running:
            return State.RUNNING
        if self.ended is not None:
            return State.STOPPED
        return State.PAUSED if self._started else State.CREATED

    @property
    def _core(self) -> Core:
        core = self._core_or_none
        if core is None:
            raise StateError("the machine is closed")
        return core

    # Running.

    def run(
        self,
        *,
        max_instructions: int | None = None,
        until: Until | None = None,
        timeout: float | None = None,
        host_timeout: float | None = None,
    ) -> exits.Exit:
        """Run the guest and say why it no longer runs.

        It runs until something happens that it cannot run on after, `stop` is called, or the first of the given
        limits is reached: a number of instructions, a goal, seconds of the machine's clock, seconds of the host's.
        Ctrl-C raises KeyboardInterrupt within a tenth of a second; the machine can be run on after it.

        A machine that belongs to a `Hypervisor` is run by that, among the others, while this call waits.
        """
        for name, value in (
            ("max_instructions", max_instructions),
            ("timeout", timeout),
            ("host_timeout", host_timeout),
        ):
            if value is not None and not value >= 0:
                raise ConfigError(f"{name} is {value}; it must be 0 or more")
        core = self._core
        if self._guest is not None:
            return self._guest._run(max_instructions, until, timeout, host_timeout)
        with core:
            if self.ended is not None:
                raise StateError(f"the machine cannot run on after {self.ended.kind}")
            self._started = True
            limit = _FOREVER if max_instructions is None else min(core.icount + max_instructions, _FOREVER)
            # A time that no clock reaches is none; infinity cannot be rounded.
            if timeout is None or timeout * _SECOND >= _FOREVER:
                deadline = _FOREVER
            else:
                deadline = min(core.now + round(timeout * _SECOND), _FOREVER)
            host_end = None if host_timeout is None else time.monotonic() + host_timeout
            with reached(self, until) as goal:
                result = self._slices(core, goal, limit, deadline, host_end)
            if isinstance(result, exits.FINAL):
                self.ended = result
            return result

    def step(self, count: int = 1) -> exits.Exit:
        """Run `count` instructions."""
        return self.run(max_instructions=count)

    def stop(self) -> None:
        """End the current `run`, or the next one if there is none, with `Stopped`; from any thread."""
        if self._guest is not None:
            self._guest._stop_waiting()
        else:
            self._core.stop()

    def slice(self, milliseconds: float = 10) -> SliceResult:
        """Run the guest for at most a number of milliseconds, or until it waits; for schedulers.

        Unlike after `run`, the clock of a guest in real time goes on between slices; `stop_clock` stops it.
        """
        from trapgate import slices

        if self._guest is not None:
            raise StateError("the machine belongs to a hypervisor, which runs it")
        return slices.run(self, milliseconds)

    def stop_clock(self) -> None:
        """Let real time stand still for the guest until it runs again; what `run` does at its end."""
        self._core.stop_clock()

    def _slices(
        self, core: Core, goal: Goal, limit: int, deadline: int, host_end: float | None
    ) -> exits.Exit:
        """Run slice after slice."""
        # What an exception in a hook, or Ctrl-C, has left over from the run before.
        self.on._dispatch()
        self._serve_domain(core)
        if (result := goal.check(self)) is not None:
            return result
        while True:
            milliseconds = _SLICE
            if host_end is not None:
                left = host_end - time.monotonic()
                if left <= 0:
                    return exits.TimedOut(**self._when())
                milliseconds = max(1, int(min(_SLICE, left * 1000)))
            try:
                kind, first, second = core.run(limit, deadline, milliseconds, goal.watches_console)
            finally:
                self._drain(core)
            if kind == "hook":
                self.on._dispatch()
            elif kind in _OF_DOMAIN:
                self._serve_domain(core)
            if (result := goal.check(self)) is not None:
                return result
            if kind in _GO_ON:
                continue
            result = self._exit(kind, first, second)
            if isinstance(result, exits.FINAL) or goal.accepts(result):
                return result

    def _serve_domain(self, core: Core) -> None:
        """Serve what a para-virtual guest waits for."""
        if self._hypercalls is not None:
            self._hypercalls._dispatch(core)
        if self._domain is not None:
            self._domain._serve()

    def _drain(self, core: Core) -> None:
        """Take the guest's output to whoever listens: all of them, though one raises."""
        with ExitStack() as calls:
            if self.debug_listener is not None and (debug := core.debug_take()):
                calls.callback(self.debug_listener, debug)
            if data := core.console_take(self.console._taken):
                for listener in reversed(self.console.listeners):
                    calls.callback(listener, data)
                self.console._feed(data)

    def _when(self) -> dict[str, Any]:
        return {"icount": self.icount, "now": self.now}

    def _exit(self, kind: str, first: int, second: int) -> exits.Exit:
        """Give the exit that the core's outcome stands for."""
        when = self._when()
        match kind:
            case "budget":
                return exits.BudgetExhausted(**when)
            case "deadline":
                return exits.TimedOut(**when)
            case "stopped":
                return exits.Stopped(**when)
            case "halted":
                return exits.Halted(**when)
            case "shutdown":
                return exits.Shutdown(**when)
            case "reset":
                return exits.Reset(**when)
            case "triple_fault":
                return exits.TripleFault(rip=first, vector=second, **when)
            case "suspended":
                return exits.Suspended(**when)
            case "crashed":
                ended = None if self._domain is None else self._domain._native.ended()
                return exits.Crashed(message=None if ended is None else ended[1], **when)
            case "debug_exit":
                return exits.DebugExit(value=first, **when)
        what = kind.removeprefix("unsupported: ")
        return exits.Unsupported(what=what, rip=first, **when)

    # Looking and touching.

    @property
    def icount(self) -> int:
        """Instructions completed since the machine was made."""
        return self._core.icount

    @property
    def now(self) -> float:
        """The machine's time in seconds since it was made."""
        return self._core.now / _SECOND

    @property
    def stats(self) -> Stats:
        """Counts of what the machine has done so far."""
        core = self._core
        # Which engine it is does not change while a machine lives.
        counts = core.translator_stats()
        translator = None if counts is None else TranslatorStats(**counts)
        engine = "interpret" if translator is None else "translate"
        counted = core.departures()
        if self._domain is not None:
            counted["trapped_stores"] += self._domain._native.counters()[1]
        departures = Departures(**counted)
        hypercalls = None if self._hypercalls is None else self._hypercalls.stats()
        return Stats(
            engine=engine, translator=translator, departures=departures, hypercalls=hypercalls, **core.stats()
        )

    def digest(self) -> str:
        """Give a hash of registers, RAM and devices: equal for equal machines."""
        return self._core.digest().hex()

    @overload
    def translate(self, linear: int) -> Translation: ...
    @overload
    def translate(self, linear: npt.ArrayLike) -> npt.NDArray[np.uint64]: ...
    def translate(self, linear: int | npt.ArrayLike) -> Translation | npt.NDArray[np.uint64]:
        """Give where a linear address leads and every step of the walk.

        Of an array of addresses, give the physical addresses; where nothing is mapped, `memory.UNMAPPED`.
        """
        if isinstance(linear, int):
            return Translation.from_core(self._core.translate(linear))
        import numpy as np

        addresses = np.ascontiguousarray(linear, dtype=np.uint64)
        raw = self._core.translate_many(addresses.reshape(-1).view(np.uint8).data)
        found = np.frombuffer(memoryview(raw), dtype=np.uint64)
        return found.reshape(addresses.shape)

    def mappings(self) -> list[Mapping]:
        """List the current address space."""
        return [
            Mapping(
                linear=linear,
                physical=physical,
                size=size,
                writable=bool(flags & 1),
                user=bool(flags & 2),
                executable=bool(flags & 4),
            )
            for linear, physical, size, flags in self._core.mappings()
        ]

    def disassemble(self, address: int | None = None, count: int = 10) -> list[Instruction]:
        """Give `count` instructions from linear `address` on, by default from where the processor is."""
        from trapgate.instructions import decode

        regs = self.regs
        if address is None:
            address = regs.cs_base + regs.rip & _FOREVER
        bits = regs.code_bits
        code = self.mem.linear.read_mapped(address, 15 * count)
        return decode(code, bits, address, cpu=self.config.cpu)[:count]

    def attach(
        self,
        device: devices.Device,
        *,
        ports: int | None = None,
        mmio: int | None = None,
        size: int | None = None,
        irq: int | None = None,
    ) -> devices.Line | None:
        """Put a device written in Python on I/O ports or into the physical address space.

        With `irq`, the interrupt line of that number is given back, and to the device's `connect` if it has one.
        """
        devices.attach(self._core, device, ports, mmio, size)
        if irq is None:
            return None
        if not 0 <= irq <= 15:
            raise ConfigError(f"there is no interrupt line {irq}; they go up to 15")
        line = devices.Line(self._core, irq)
        if callable(connect := getattr(device, "connect", None)):
            connect(line)
        return line

    def press_power_button(self) -> None:
        """Press the power button: the guest is asked to switch off and decides what to do. From any thread."""
        if self._domain is not None:
            self._domain.shutdown("poweroff")
        else:
            self._core.press_power_button()

    def debug_output(self) -> bytes:
        """Give what the guest has written to the debug console since the last call."""
        return self._core.debug_take()

    def _console_send(self, data: bytes) -> int:
        return self._core.console_send(data)

    def __repr__(self) -> str:
        return (
            f"<VM {self.state.value}>"
            if self.state is State.CLOSED
            else f"<VM {self.state.value} icount={self.icount}>"
        )


# Outcomes of a slice that are no exits: time for Python to look around, hooks to serve, output to match.
_GO_ON = frozenset({"slice", "hook", "console", "doorbell", "hypercall"})
# Those that a para-virtual guest waits for.
_OF_DOMAIN = frozenset({"doorbell", "hypercall"})


@functools.cache
def _say_interpreted() -> None:
    """Tell the log, once in a process, that guests run slower than they could elsewhere."""
    import logging

    logging.getLogger("trapgate").warning(
        "this host cannot run translated code; the interpreter runs the guest, which takes longer"
    )


def _open_disks(machine: config.Machine) -> list[tuple[config.Disk, Image]]:
    """Open the files of all disks, before anything else is made."""
    if not machine.disks:
        return []
    from trapgate.para.domain import open_image

    return [(disk, open_image(disk)) for disk in machine.disks]


# A kernel's file may be larger than what is loaded of it: debug information stays behind.
_LARGEST_KERNEL = 4 << 30


def _contents(name: str, source: config.Source, limit: int) -> bytes:
    """Give the bytes of a kernel or an initrd, of which there may be `limit`."""
    if isinstance(source, bytes):
        return source
    path = Path(os.fspath(source))
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if not (stat.S_ISREG(status.st_mode) or stat.S_ISFIFO(status.st_mode)):
                raise ConfigError(f"the {name} {path} is not a file")
            contents = file.read(limit + 1) if status.st_size <= limit else b""
            if status.st_size > limit or len(contents) > limit:
                raise ConfigError(
                    f"the {name} {path} is larger than the {config.format_size(limit)} there is room for"
                )
            return contents
    except OSError as error:
        raise ConfigError(f"cannot read the {name} {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise ConfigError(f"cannot read the {name} {str(path)!r}: {error}") from error
